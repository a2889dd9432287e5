"""Who trains on published pictures: what it reads, what its training depends on, and the table of protections and defences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import COLOURS, Linear, make_folder, make_pictures
from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_vision import SmallCNN
from unwrite.shield import (
    JPEG,
    AdversarialTraining,
    Attacker,
    Defence,
    DefenceCell,
    FolderPictures,
    Grey,
    PublishedPictures,
    UEraser,
    Undefended,
    evaluate_protection,
    hits_of,
    train_attacker,
)
from unwrite.shield import attacking as module
from unwrite.shield.attacking import cropped_and_flipped, mean_change, signed_class_noise
from unwrite.shield.engine import published as engine

SMALL = Attacker(net=Linear, epochs=2, batch_size=8, lr=0.05)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def images(rows=24, seed=0, **how):
    pixels, labels = make_pictures(rows=rows, seed=seed, **how)
    return Images(pixels.astype(np.float32) / 255, labels, classes=COLOURS)


def published(rows=24, **how):
    return engine.as_published(images(rows, **how))


def weights(net):
    return torch.cat([value.flatten().float() for value in net.state_dict().values()])


# The training


def test_without_defence_crops_and_flips_it_is_the_ordinary_image_training_to_the_last_bit():
    data = images(64, channels=1)
    settings = {"epochs": 2, "batch_size": 16, "lr": 2e-3, "weight_decay": 5e-4, "clip": 1e9}
    plain = fitted(
        image_recipe(SmallCNN, num_classes=3, channels=1, image_size=8, width=4, **settings), data, range(64), 5
    )
    attacker = Attacker(net=SmallCNN, width=4, momentum=None, shift=0, flip=False, **settings)
    assert torch.equal(weights(train_attacker(data, attacker=attacker, seed=5)), weights(plain))


def test_a_defence_without_effect_trains_the_same_model_crops_and_flips_and_all():
    data = images()
    plain = weights(train_attacker(data, Undefended(), SMALL, seed=1))
    assert torch.equal(weights(train_attacker(data, AdversarialTraining(eps=0.0, steps=2), SMALL, seed=1)), plain)
    assert torch.equal(weights(train_attacker(data, UEraser(repeats=0), SMALL, seed=1)), plain)
    assert not torch.equal(weights(train_attacker(data, AdversarialTraining(steps=2), SMALL, seed=1)), plain)
    assert not torch.equal(weights(train_attacker(data, None, SMALL, seed=2)), plain)
    assert not torch.equal(weights(train_attacker(data, None, replace(SMALL, flip=False), seed=1)), plain)
    assert not torch.equal(weights(train_attacker(data, None, replace(SMALL, shift=0), seed=1)), plain)


def test_the_loss_is_told_the_epoch_and_draws_that_follow_from_seed_and_epoch(monkeypatch):
    seen = []

    class Noting(Undefended):
        def transform(self, pixels, rows, generator):
            seen.append(("rows", torch.rand(1, generator=generator).item(), rows.tolist()))
            return pixels

        def loss(self, model, pixels, labels, moment):
            seen.append((moment.epoch, torch.rand(1, generator=moment.generator).item(), moment.epochs))
            return super().loss(model, pixels, labels, moment)

    train_attacker(images(16), Noting(), replace(SMALL, epochs=3), seed=0)
    epochs = [one[0] for one in seen if one[0] != "rows"]
    assert epochs == [0, 0, 1, 1, 2, 2]
    assert {one[2] for one in seen if one[0] != "rows"} == {3}
    assert sorted(row for one in seen[:4] if one[0] == "rows" for row in one[2]) == list(range(16))
    draws = [one[1] for one in seen]
    assert len(set(draws)) == 12
    first = module._Draws(0, 3)
    first.begin(2)
    assert torch.rand(1, generator=first.moment.generator).item() == next(one[1] for one in seen if one[0] == 2)


def test_a_training_that_is_killed_goes_on_to_the_same_weights(monkeypatch, tmp_path):
    data, defence = images(), UEraser(repeats=2, early=0.5)
    whole = weights(train_attacker(data, defence, replace(SMALL, epochs=4), seed=3))
    calls = []
    plain_loss = UEraser.loss

    def failing(self, *given):
        calls.append(1)
        if len(calls) == 8:  # in the third epoch of three batches
            raise KeyboardInterrupt
        return plain_loss(self, *given)

    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(UEraser, "loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train_attacker(data, defence, replace(SMALL, epochs=4), seed=3)
    monkeypatch.setattr(UEraser, "loss", plain_loss)
    assert torch.equal(weights(train_attacker(data, defence, replace(SMALL, epochs=4), seed=3)), whole)


def test_a_model_is_trained_once_for_what_it_depends_on(monkeypatch):
    data, counts = images(), []
    monkeypatch.setattr(module, "fit_rows", lambda *given, **more: counts.append(1))
    train_attacker(data, JPEG(), SMALL)
    train_attacker(data, JPEG(), SMALL)
    assert len(counts) == 1
    for other in (JPEG(quality=11), JPEG(at_test=True), Grey()):
        train_attacker(data, other, SMALL)
    train_attacker(images(seed=1), JPEG(), SMALL)
    for field, value in {"epochs": 3, "lr": 0.01, "flip": False, "shift": 2, "batch_size": 4}.items():
        train_attacker(data, JPEG(), replace(SMALL, **{field: value}))
    assert len(counts) == 10


def test_pictures_are_moved_by_up_to_the_reach_with_zeros_and_half_are_mirrored():
    pixels = torch.arange(1, 17).float().view(1, 1, 4, 4).repeat(600, 1, 1, 1)
    moved = cropped_and_flipped(pixels, 1, False, torch.Generator().manual_seed(0))
    kinds = moved.flatten(1).unique(dim=0)
    assert len(kinds) == 9
    padded = torch.nn.functional.pad(pixels[:1], (1, 1, 1, 1))
    expected = {tuple(padded[0, 0, i : i + 4, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(kind.tolist()) for kind in kinds} == expected
    mirrored = cropped_and_flipped(pixels, 0, True, torch.Generator().manual_seed(0))
    share = (mirrored != pixels).flatten(1).any(1).float().mean()
    assert share == pytest.approx(0.5, abs=0.07)
    assert all(torch.equal(one, pixels[0]) or torch.equal(one, pixels[0].flip(2)) for one in mirrored)
    assert cropped_and_flipped(pixels, 0, False, torch.Generator()) is pixels
    assert Attacker().reach((3, 32, 40)) == 4
    assert Attacker(shift=0).reach((3, 32, 32)) == 0


def test_hits_are_the_pictures_that_a_model_gets_right_as_the_defence_shows_them():
    data = published(30)
    net = train_attacker(data, None, SMALL)
    logits = net(data[range(30)].pixels)
    right = int((logits.argmax(1) == data[range(30)].target).sum())
    assert hits_of(net, data) == hits_of(net, data, Grey()) == right
    grey = Grey(at_test=True)
    seen = int((net(grey.squeezed(data[range(30)].pixels)).argmax(1) == data[range(30)].target).sum())
    assert hits_of(net, data, grey) == seen


# The table


def test_the_table_has_every_defence_on_every_set_and_what_is_known_is_not_trained_again(monkeypatch):
    sets, clean = {"protected": images(), "unprotected": images(seed=1)}, images(30, seed=2)
    defences = {"none": Undefended(), "jpeg10": JPEG()}
    told = []
    cells = evaluate_protection(sets, clean, defences, attacker=SMALL, tell=told.append)
    assert [(one.defence, one.published) for one in cells] == [
        ("none", "protected"),
        ("none", "unprotected"),
        ("jpeg10", "protected"),
        ("jpeg10", "unprotected"),
    ]
    assert told == cells
    assert cells[2].hits == hits_of(train_attacker(sets["protected"], JPEG(), SMALL), clean)
    assert cells[0].rows == 30
    assert cells[0].accuracy == pytest.approx(100 * cells[0].hits / 30)
    monkeypatch.setattr(module, "train_attacker", None)
    known = {cell.key: replace(cell, hits=7) for cell in cells}
    renamed = {"plain": Undefended(), "jpeg": JPEG()}
    again = evaluate_protection(sets, clean, renamed, attacker=SMALL, known=known, tell=told.append)
    assert [(one.defence, one.hits) for one in again] == [("plain", 7), ("plain", 7), ("jpeg", 7), ("jpeg", 7)]
    assert len(told) == 4


def test_a_cells_key_changes_with_all_that_its_figure_depends_on():
    sets, clean, keys = {"protected": images()}, images(30, seed=2), set()

    def key(**changes):
        how = {"published": sets, "test": clean, "defences": {"none": Undefended()}, "attacker": SMALL, "seed": 0}
        given = {**how, **changes}
        (cell,) = evaluate_protection(given.pop("published"), given.pop("test"), given.pop("defences"), **given)
        return cell.key

    keys = [
        key(),
        key(published={"protected": images(seed=1)}),
        key(test=images(30, seed=3)),
        key(defences={"none": Defence()}),
        key(attacker=replace(SMALL, lr=0.01)),
        key(seed=1),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_sets_of_another_shape_or_other_classes_are_refused():
    with pytest.raises(
        DataError, match=r"a has pictures of shape \[3, 8, 8\] and 3 classes, and the clean ones \[3, 6, 6\]"
    ):
        evaluate_protection({"a": images()}, images(side=6), {"none": Undefended()}, attacker=SMALL)
    other = Images(images().pixels, images().labels, classes=("x", "y", "z"))
    with pytest.raises(DataError, match="of one size and the same classes"):
        evaluate_protection({"a": images()}, other, {"none": Undefended()}, attacker=SMALL)


def test_one_class_alone_is_refused():
    one = Images(images().pixels, np.zeros(24, dtype=int), classes=COLOURS)
    with pytest.raises(DataError, match=r"all pictures of images are of one class. There is nothing to learn"):
        train_attacker(one, None, SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"net": "smal-cnn"}, "unknown net 'smal-cnn'. Did you mean 'small-cnn'"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number, at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"momentum": 1.5}, "momentum is 1.5; it must be at least 0 and at most 1"),
        ({"shift": -1}, "shift is -1; it must be a whole number, at least 0"),
        ({"width": 0}, "width is 0; it must be a whole number, at least 1"),
        ({"device": "tpu9"}, "device is 'tpu9'; it must be a device of torch"),
    ],
)
def test_refuses_an_attacker_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        Attacker(**fields)


def test_a_net_without_a_name_is_refused_since_a_hash_must_tell_it():
    with pytest.raises(MethodError, match="Give a class or function with a name of its own"):
        Attacker(net=lambda **how: Linear(**how)).recipe(Undefended(), (3, 8, 8), 3)


# What is read


def test_a_folder_is_read_as_its_pictures_are_and_hashed_by_its_content(tmp_path):
    folder = make_folder(tmp_path / "pets", rows=3)
    data = engine.as_published(folder)
    rows = FolderPictures(folder)
    batch = data[[4, 1]]
    assert torch.equal(batch.pixels * 255, torch.from_numpy(rows.pixels([4, 1])).float())
    assert (batch.target.tolist(), batch.index.tolist()) == ([1, 0], [4, 1])
    assert (len(data), data.shape, data.classes) == (9, (3, 8, 8), COLOURS)
    arrays = engine.as_published(Images(rows.pixels(range(9)).astype(np.float32) / 255, rows.labels, classes=COLOURS))
    assert data.hash == arrays.hash == engine.as_published(str(folder)).hash
    hashes = {data.hash, engine.as_published(make_folder(tmp_path / "other", rows=3, seed=1)).hash}
    hashes.add(PublishedPictures(rows, classes=(*COLOURS, "more")).hash)
    hashes.add(PublishedPictures(rows, order=np.arange(9)[::-1]).hash)
    rows.targets = np.roll(rows.labels, 1)
    hashes.add(PublishedPictures(rows).hash)
    assert len(hashes) == 5


def test_a_set_that_is_larger_than_what_is_held_is_decoded_batch_by_batch(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "pets", rows=3)
    held = engine.as_published(folder)
    decoded = []
    read = FolderPictures.pixels
    monkeypatch.setattr(FolderPictures, "pixels", lambda self, rows: (decoded.append(len(rows)), read(self, rows))[1])
    monkeypatch.setattr(engine, "BATCH", 2)
    monkeypatch.setattr(engine, "MOST_HELD", held.bytes - 1)
    streamed = engine.as_published(folder)
    assert streamed.hash == held.hash
    assert torch.equal(streamed[[8, 0]].pixels, held[[8, 0]].pixels)
    assert max(decoded) == 2
    count = len(decoded)
    _ = streamed[[8, 0]]
    assert len(decoded) == count + 1
    monkeypatch.setattr(engine, "MOST_HELD", held.bytes)
    _ = held[[1]], held[[1]], held[[2]]
    assert len(decoded) == count + 1 + 5


def test_pictures_of_several_sizes_are_refused_or_scaled(tmp_path):
    folder = make_folder(tmp_path / "pets")
    wide = folder / "blue" / "wide.png"
    Image.fromarray(np.full((7, 11, 3), 90, dtype=np.uint8)).save(wide)
    with pytest.raises(
        DataError, match=r"wide.png has 11x7 pixels .* and a network reads one size: size=32 scales them"
    ):
        engine.as_published(folder)
    data = engine.as_published(folder, size=6)
    assert data.shape == (3, 6, 6)
    assert torch.allclose(data[[4]].pixels, torch.full((1, 3, 6, 6), 90 / 255))
    picture = Image.open(folder / "amber" / "0.png").resize((6, 6), Image.Resampling.BICUBIC)
    assert np.array_equal(data.pixels(np.array([0]))[0].transpose(1, 2, 0), np.asarray(picture))
    same = engine.as_published(make_folder(tmp_path / "other"), size=8)
    assert torch.equal(same[[0]].pixels, engine.as_published(tmp_path / "other")[[0]].pixels)
    for bad in (0, 5000, 2.5, True):
        with pytest.raises(MethodError, match=r"size is .* it must be a whole number from 1 to 4096"):
            engine.as_published(folder, size=bad)


def test_classes_are_matched_by_name_and_a_new_one_is_refused(tmp_path):
    rows = FolderPictures(make_folder(tmp_path / "pets", rows=1))
    data = PublishedPictures(rows, classes=("cyan", "grey", "amber", "blue"))
    assert data.labels.tolist() == [2, 3, 0]
    with pytest.raises(DataError, match=r"has the class 'cyan', and those trained on are amber, blue. Name them alike"):
        PublishedPictures(rows, classes=("amber", "blue"))


def test_grey_pictures_beside_coloured_ones_have_three_channels(tmp_path):
    pixels, labels = make_pictures(channels=1)
    data = PublishedPictures(engine.ArrayPictures(pixels, labels, "labels"), channels=3)
    assert data.shape == (3, 8, 8)
    assert np.array_equal(data.pixels(np.arange(12)), np.repeat(pixels, 3, axis=1))


def test_noise_of_a_class_is_added_in_levels_and_kept_in_range():
    data = published()
    noise = signed_class_noise(3, data.shape, 30, seed=0)
    assert np.array_equal(noise, signed_class_noise(3, data.shape, 30, seed=0))
    assert set(np.unique(noise)) == {-30, 30}
    assert abs(noise.mean()) < 5
    noisy = data.with_noise(noise)
    before, after = data.pixels(np.arange(24)).astype(int), noisy.pixels(np.arange(24)).astype(int)
    assert np.array_equal(after, np.clip(before + noise[data.labels], 0, 255))
    assert noisy.hash != data.hash
    assert mean_change(noisy, data) == pytest.approx(np.abs(after - before).mean())
    assert 20 < mean_change(noisy, data) < 30
    assert mean_change(data, data) == 0


def test_an_order_and_noise_and_a_size_go_together(tmp_path):
    rows = FolderPictures(make_folder(tmp_path / "pets", rows=2))
    data = PublishedPictures(rows, order=np.array([5, 0, 2]), size=4)
    assert (len(data), data.labels.tolist()) == (3, [2, 0, 1])
    noisy = data.with_noise(np.full((3, 3, 4, 4), 1, dtype=np.int16))
    assert (len(noisy), noisy.shape, noisy.labels.tolist()) == (3, (3, 4, 4), [2, 0, 1])
    change = noisy.pixels(np.arange(3)).astype(int) - data.pixels(np.arange(3))
    assert set(np.unique(change)) <= {0, 1}
    assert change.mean() > 0.9


def test_a_cell_is_a_plain_value():
    assert DefenceCell("protected", "none", 1, 4, "k").accuracy == 25
