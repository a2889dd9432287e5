"""Who trains on published pictures: what its training depends on, and the table of protections and defences."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from helpers.pictures import COLOURS, Linear, make_pictures
from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_vision import SmallCNN
from unwrite.runs import hash_json
from unwrite.shield import (
    JPEG,
    AdversarialTraining,
    Attacker,
    Defence,
    DefenceCell,
    Grey,
    Smoothing,
    UEraser,
    Undefended,
    evaluate_protection,
    hits_of,
    train_attacker,
)
from unwrite.shield import attacking as module
from unwrite.shield.attacking import cropped_and_flipped, signed_class_noise
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


def test_a_cell_is_a_plain_value():
    assert DefenceCell("protected", "none", 1, 4, "k").accuracy == 25


# What the training is made of


def test_settings_tell_trainings_apart_by_all_that_has_a_part_in_them():
    """What a training is found again by: net, width, shape and number of classes among it; a name and its class are one net."""

    def told(attacker=SMALL, defence=JPEG(), shape=(3, 8, 8), classes=3):  # noqa: B008 - a frozen value
        return hash_json(attacker.recipe(defence, shape, classes).settings)

    cnn = replace(SMALL, net=SmallCNN)
    others = [
        told(), told(cnn), told(replace(cnn, width=4)), told(replace(cnn, width=5)), told(shape=(3, 8, 9)), told(shape=(1, 8, 8)),
        told(classes=4), told(defence=JPEG(quality=11)), told(defence=Grey()), told(defence=Undefended()), told(defence=Defence()),
        *(
            told(replace(SMALL, **{name: value}))
            for name, value in {
                "epochs": 3, "batch_size": 9, "lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "clip": 1.0, "shift": 2, "flip": False,
            }.items()
        ),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert told(cnn) == told(replace(SMALL, net="small-cnn"))


def test_optimiser_and_schedule_are_as_the_fields_say():
    fields = {"epochs": 7, "lr": 0.03, "batch_size": 5, "weight_decay": 0.2, "clip": 0.7, "momentum": 0.4}
    training = Attacker(**fields).training
    assert {name: getattr(training, name) for name in fields} == fields
    plain = Attacker()
    assert (plain.net, plain.epochs, plain.batch_size, plain.lr) == ("small-resnet", 60, 128, 0.1)
    assert (plain.momentum, plain.weight_decay, plain.clip, plain.flip) == (0.9, 5e-4, 5, True)


def test_the_net_has_the_width_asked_for():
    for width in (3, 5):
        built = Attacker(net="small-cnn", width=width).recipe(Undefended(), (3, 8, 8), 4).build(2)
        torch.manual_seed(2)
        expected = SmallCNN(num_classes=4, channels=3, image_size=8, width=width)
        assert torch.equal(weights(built), weights(expected))


def test_a_defence_is_shown_stored_pictures_and_its_loss_the_moved_ones_whose_moves_no_defence_changes():
    data, seen = published(16), {}

    class Noting(Defence):
        draws: ClassVar[int] = 0

        def transform(self, pixels, rows, generator):
            torch.rand(self.draws, generator=generator)
            assert torch.equal(pixels, data[rows.tolist()].pixels)
            return pixels * 0.5

        def loss(self, model, pixels, labels, moment):
            torch.rand(self.draws, generator=moment.generator)
            seen.setdefault(self.draws, []).append(pixels)
            return super().loss(model, pixels, labels, moment)

    class Drawing(Noting):
        draws = 3

    for defence in (Noting(), Drawing()):
        train_attacker(data, defence, replace(SMALL, batch_size=16), seed=1)
    assert all(torch.equal(one, two) for one, two in zip(seen[0], seen[3], strict=True))
    assert all(0.45 < one.max() <= 0.5 for one in seen[0])
    assert not torch.equal(seen[0][0].sum((0, 1)), seen[0][1].sum((0, 1)))  # an epoch's moves are its own


def test_crops_and_a_defences_draws_follow_from_seed_and_epoch_and_are_apart():
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        draws = module._Draws(seed, 2)
        draws.begin(epoch)
        drawn += [torch.rand(1, generator=one).item() for one in (draws.crops, draws.defence, draws.moment.generator)]
        assert (draws.moment.epoch, draws.moment.epochs) == (epoch, 2)
    assert len(set(drawn)) == 12


def test_a_defence_looks_at_the_shape_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(module, "fitted", None)
    with pytest.raises(DataError, match="a filter of 3 x 3 needs 2 a side"):
        train_attacker(images(side=1), Smoothing(), SMALL)


def test_the_table_is_of_the_seed_given(monkeypatch):
    seeds, own = [], module.train_attacker

    def noted(pictures, defence, attacker, seed):
        seeds.append(seed)
        return own(pictures, defence, attacker, seed)

    monkeypatch.setattr(module, "train_attacker", noted)
    evaluate_protection({"a": images()}, images(12, seed=2), {"none": Undefended()}, attacker=SMALL, seed=4)
    assert seeds == [4]


def test_noise_of_another_seed_is_another():
    one, other = (signed_class_noise(2, (3, 8, 8), 5, seed) for seed in (0, 1))
    assert not np.array_equal(one, other)
