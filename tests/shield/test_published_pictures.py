"""What an attacker reads: folders and arrays as published, in one order and size, with classes by name and with noise."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import COLOURS, make_folder, make_pictures
from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.shield import (
    FolderPictures,
    PublishedPictures,
)
from unwrite.shield.attacking import mean_change, signed_class_noise
from unwrite.shield.engine import published as engine


def images(rows=24, seed=0, **how):
    pixels, labels = make_pictures(rows=rows, seed=seed, **how)
    return Images(pixels.astype(np.float32) / 255, labels, classes=COLOURS)


def published(rows=24, **how):
    return engine.as_published(images(rows, **how))


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
