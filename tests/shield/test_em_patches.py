"""Error-minimising noise in a patch, and the baseline of uniform noise: where it lies, what moves, and what is released."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.pictures import Linear, make_pictures
from unwrite.errors import MethodError
from unwrite.shield import EMNoise
from unwrite.shield.em_noise import NoiseSearch
from unwrite.shield.engine.patches import corners_of, cut_out, pasted
from unwrite.shield.engine.pictures import ArrayPictures
from unwrite.shield.engine.surrogates import frozen, signed_steps

SMALL = {"surrogate": Linear, "rounds": 2, "alpha": 3 / 255, "steps": 2, "batch_size": 12, "share": 1.0}
pytestmark = pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")


def changed(shield, pixels, labels):
    """[rows, height, width]: which places of each picture change in any channel."""
    return (shield.fit_transform(pixels, labels) != pixels).any(1)


@pytest.mark.parametrize("mode", ["sample", "class"])
@pytest.mark.parametrize("direction", ["minimise", "random"])
def test_a_patch_lies_in_the_middle_and_nothing_else_changes(mode, direction):
    pixels, labels = make_pictures(rows=24)
    shield = EMNoise(key=1, mode=mode, direction=direction, patch=4, random_start=True, **SMALL)
    protection = shield.fit(pixels, labels)
    assert protection.noise_.shape == ((24 if mode == "sample" else 3), 3, 4, 4)
    where = changed(shield, pixels, labels)
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:6, 2:6] = True
    assert not where[:, ~inside].any()
    assert where[:, inside].mean() > 0.8
    assert np.abs(protection.noise_).max() <= 8 / 255 + 1e-7


def test_random_places_are_a_pictures_own_and_the_same_in_every_batch():
    pixels, labels = make_pictures(rows=60)
    shield = EMNoise(key=1, mode="class", direction="random", patch=3, place="random")
    protection = shield.fit(pixels, labels)
    protected = protection.transform(pixels, labels)
    where = (protected != pixels).any(1)
    corners = corners_of(1, np.arange(60), 3, (3, 8, 8), "random")
    assert corners.min() == 0
    assert corners.max() == 5
    assert len(np.unique(corners, axis=0)) > 20
    for row, (top, left) in enumerate(corners):
        outside = np.ones((8, 8), dtype=bool)
        outside[top : top + 3, left : left + 3] = False
        assert not where[row, outside].any()
        assert where[row].any()
    assert np.array_equal(protection.transform(pixels[:7], labels[:7]), protected[:7])
    assert not np.array_equal(corners, corners_of(2, np.arange(60), 3, (3, 8, 8), "random"))


def test_only_the_patch_moves_while_noise_is_looked_for():
    pixels, labels = make_pictures(rows=24)
    shield = EMNoise(key=1, patch=4, place="random", random_start=True, **{**SMALL, "batch_size": 24})
    search = NoiseSearch(shield, ArrayPictures(pixels, labels, "labels"))
    before = search.noise.clone()
    at = np.arange(24)
    corners = corners_of(1, at, 4, (3, 8, 8), "random")
    whole, inside = pasted(before, corners, (3, 8, 8)), pasted(torch.ones_like(before), corners, (3, 8, 8))
    given = torch.from_numpy(pixels).float() / 255
    with frozen(search.model):
        moved = signed_steps(
            search.model,
            given,
            torch.from_numpy(labels),
            whole,
            eps=shield.eps,
            alpha=shield.alpha,
            steps=2,
            where=inside,
        )
    assert (moved * (1 - inside)).abs().max() == 0
    search.search()
    assert torch.allclose(search.noise, cut_out(moved, corners, 4), atol=1e-7)
    assert not torch.allclose(search.noise, before)


def test_a_classes_patch_is_the_mean_of_its_members_own_places():
    pixels, labels = make_pictures(rows=24)
    shield = EMNoise(key=1, mode="class", patch=4, place="random", **{**SMALL, "batch_size": 24, "steps": 1})
    search = NoiseSearch(shield, ArrayPictures(pixels, labels, "labels"))
    at = np.arange(24)
    corners = corners_of(1, at, 4, (3, 8, 8), "random")
    inside = pasted(torch.ones(24, 3, 4, 4), corners, (3, 8, 8))
    with frozen(search.model):
        moved = signed_steps(
            search.model,
            torch.from_numpy(pixels).float() / 255,
            torch.from_numpy(labels),
            torch.zeros(24, 3, 8, 8),
            eps=shield.eps,
            alpha=shield.alpha,
            steps=1,
            where=inside,
        )
    own = cut_out(moved, corners, 4)
    search.search()
    for label in range(3):
        assert torch.allclose(search.noise[label], own[labels == label].mean(0), atol=1e-6)


def test_pasting_and_cutting_out_are_inverse_and_odd_sides_keep_their_size():
    """The official code loses a row and a column of patches of odd side."""
    patches = torch.rand(5, 2, 3, 3) + 1
    corners = np.array([[0, 0], [1, 4], [2, 2], [3, 1], [0, 4]])
    whole = pasted(patches, corners, (2, 6, 7))
    assert torch.equal(cut_out(whole, corners, 3), patches)
    assert (whole != 0).sum() == 5 * 2 * 9
    assert torch.equal(whole[1, :, 1:4, 4:7], patches[1])
    assert corners_of(0, np.arange(2), 3, (2, 6, 7), "centre").tolist() == [[1, 2], [1, 2]]


def test_a_patch_as_large_as_the_picture_is_the_noise_without_one():
    pixels, labels = make_pictures(rows=24)
    whole = EMNoise(key=1, mode="class", **SMALL).fit_transform(pixels, labels)
    assert np.array_equal(EMNoise(key=1, mode="class", patch=8, **SMALL).fit_transform(pixels, labels), whole)


def test_uniform_noise_fills_its_budget_without_a_surrogate():
    pixels, labels = make_pictures(rows=60)

    def no_surrogate(**how):
        raise AssertionError("built")

    shield = EMNoise(key=1, direction="random", surrogate=no_surrogate)
    protection = shield.fit(pixels, labels)
    noise = protection.noise_ * 255
    assert (protection.converged_, protection.rounds_, protection.error_) == (True, 0, None)
    assert np.abs(noise).max() <= 8
    assert noise.mean() == pytest.approx(0, abs=0.2)
    assert noise.std() == pytest.approx(8 / np.sqrt(3), rel=0.03)
    one_class = replace(shield, mode="class").fit(pixels, labels)
    assert one_class.noise_.shape == (3, 3, 8, 8)
    assert not np.array_equal(replace(shield, key=2).fit(pixels, labels).noise_, protection.noise_)


@pytest.mark.parametrize("direction", ["minimise", "random"])
def test_a_patch_that_is_larger_than_the_picture_is_refused(direction):
    pixels, labels = make_pictures()
    with pytest.raises(MethodError, match=r"patch is 9, and the pictures have 8x8 pixels. Give at most 8"):
        EMNoise(key=1, direction=direction, patch=9).fit(pixels, labels)


@pytest.mark.parametrize(("fields", "message"), [({"patch": 0}, "patch is 0"), ({"place": "top"}, "place is 'top'")])
def test_refuses_a_patch_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        EMNoise(key=1, **fields)
