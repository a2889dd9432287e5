"""Images keep their names under every selection, hash by content, and refuse what no model should see."""

import numpy as np
import pytest
import torch

from unwrite.data.images.images import Images
from unwrite.errors import DataError
from unwrite.models import TrainRecipe, trained


def images(rows=6, **given):
    pixels = torch.rand(rows, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    if "targets" not in given:
        given.setdefault("labels", torch.arange(rows) % 3)
    return Images(pixels, **given)


def test_arrays_and_lists_become_tensors():
    data = Images(np.zeros((2, 1, 3, 3)), labels=[0, 1], identity=np.array([1, 0]))
    assert (data.pixels.dtype, data.labels.dtype, data.identity.dtype) == (torch.float32, torch.int64, torch.int64)
    assert (data.classes, data.identities, data.num_outputs, data.shape) == (("0", "1"), ("0", "1"), 2, (1, 3, 3))
    assert data.index.tolist() == [0, 1]


def test_rows_keep_their_names_in_a_subset_of_a_subset():
    part = images(index=[10, 20, 30, 40, 50, 60], identity=[0, 1, 0, 1, 0, 1]).subset([50, 20, 10]).subset([10, 50])
    assert part.index.tolist() == [10, 50]
    assert part.labels.tolist() == [0, 1]
    assert part.identity.tolist() == [0, 0]
    assert part.classes == ("0", "1", "2")


def test_positions_are_where_the_names_stand():
    data = images(index=[7, 3, 9, 1, 5, 0])
    assert data.positions([9, 7, 0]).tolist() == [2, 0, 5]
    assert torch.equal(data.subset(data.index).pixels, data.pixels)


@pytest.mark.parametrize(
    ("item", "names"),
    [(1, [20]), (-1, [30]), (slice(1, None), [20, 30]), ([2, 0], [30, 10]), (torch.tensor([0]), [10])],
)
def test_a_batch_is_taken_by_position(item, names):
    data = images(3, index=[10, 20, 30])
    batch = data[item]
    assert batch.index.tolist() == names
    assert torch.equal(batch.pixels, data.subset(names).pixels)
    assert torch.equal(batch.target, data.subset(names).labels)


def test_a_batch_may_be_taken_by_a_mask():
    assert images(3)[torch.tensor([True, False, True])].index.tolist() == [0, 2]


def test_a_column_of_targets_becomes_one_number_a_row():
    data = images(3, targets=torch.tensor([[1.0], [2.0], [4.0]]))
    assert data.targets.shape == (3,)
    assert (data.num_outputs, data.classes) == (1, ())
    assert data[1].target.tolist() == [2.0]


def test_a_part_may_have_equal_targets():
    assert images(3, targets=[1.0, 1.0, 2.0]).subset([0, 1]).targets.tolist() == [1, 1]


def test_the_hash_is_of_the_content_not_the_name():
    data = images()
    assert data.hash == images(name="other").hash
    assert data.hash == data.subset(range(6)).hash
    for other in (
        data.subset([0]),
        data.subset(range(5, -1, -1)),
        images(index=range(1, 7)),
        images(labels=[0] * 6),
        images(classes=("a", "b", "c")),
        images(identity=[0] * 6),
    ):
        assert other.hash != data.hash


def test_what_was_split_is_joined_to_the_same_set():
    data = images(identity=[0, 1, 2, 0, 1, 2])
    mask = data.labels == 1
    assert data.where(~mask).joined(data.where(mask)).hash == data.hash


def test_joining_refuses_shared_rows_and_other_kinds():
    data = images()
    with pytest.raises(DataError, match="share 2 indices: 1, 2"):
        data.subset([1, 2]).joined(data)
    with pytest.raises(DataError, match=r"their shape are \(3, 4, 4\) and \(1, 4, 4\)"):
        data.joined(Images(torch.zeros(1, 1, 4, 4), [0], index=[9]))


def test_a_model_is_trained_on_images_once(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path))
    seen = []

    def fit(model, data, indices, seed, folder):
        seen.append(data[indices].index.tolist())

    recipe = TrainRecipe(lambda seed: torch.nn.Linear(2, 2), fit, name="on images")
    data = images(index=range(10, 16))
    first = trained(recipe, data, [4, 0], seed=0)
    assert trained(recipe, data.subset(data.index), [0, 4], seed=0) == first
    assert seen == [[10, 14]]


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (torch.zeros(0, 1, 2, 2), "mine has no images"),
        (torch.zeros(2, 4, 4), r"have shape \[2, 4, 4\]. Give \[rows, channels, height, width\]"),
        (torch.zeros(2, 3, 0, 4), r"have shape \[2, 3, 0, 4\]"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "are uint8. Give floats in 0..1: divide bytes by 255"),
        (torch.full((2, 1, 2, 2), 1.5), "image 0 of mine has a pixel of 1.5"),
        (torch.tensor([0.0, -0.1]).view(2, 1, 1, 1), "image 1 of mine has a pixel of -0.1"),
        (torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1), "image 1 of mine has a pixel of nan"),
        (torch.tensor([torch.inf, 0]).view(2, 1, 1, 1), "image 0 of mine has a pixel of inf"),
        ("pixels", "are no array of numbers"),
    ],
)
def test_refuses_images_of_the_wrong_shape_or_range(pixels, told):
    with pytest.raises(DataError, match=told):
        Images(pixels, labels=[0, 1], name="mine")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"labels": [0, 1, 3], "classes": ("a", "b", "c")}, r"1 labels of images are out of range \(first: row 2, 3\)"),
        ({"labels": [0, -1, 1]}, r"out of range \(first: row 1, -1\). They must be 0 or more"),
        ({"labels": [0, 1]}, r"3 images and labels of shape \[2\]"),
        ({"labels": [0.0, 1.0, 2.0]}, "the labels of images are float32. Give whole numbers"),
        (
            {"labels": [0, 1, 2], "identity": [0, 1, 2], "identities": ("a", "b")},
            "1 identity of images are out of range",
        ),
        ({"labels": [0, 1, 2], "index": [4, 5, 4]}, "1 indices stand more than once in images: 4"),
        ({"labels": [0, 1, 2], "targets": [0.0, 1.0, 2.0]}, "both labels and targets"),
        ({"labels": None}, "neither labels nor targets"),
        ({"targets": [1.0, torch.nan, 2.0]}, r"1 targets of images are not finite \(first: row 1, nan\)"),
        ({"targets": [2.0, 2.0, 2.0]}, "all 3 targets of images are 2. There is nothing to learn"),
        ({"targets": torch.zeros(3, 3)}, r"targets of shape \[3, 3\]"),
    ],
)
def test_refuses_labels_targets_and_indices_that_make_no_sense(given, told):
    with pytest.raises(DataError, match=told):
        images(3, **given)


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        ([0, 9, 8, 7, 11, 12, 13], r"has no rows of 6 of the 7 indices: 9, 8, 7, 11, 12, \.\.\."),
        ([1, 2, 1], "1 indices are given more than once: 1"),
        ([], "no indices of images are given"),
        ([0.5], "are float32. Give whole numbers"),
        (torch.tensor([True, False]), "are bool. Give whole numbers"),
    ],
)
def test_refuses_indices_it_does_not_have(indices, told):
    with pytest.raises(DataError, match=told):
        images().subset(indices)


@pytest.mark.parametrize("item", [6, -7, [0, 6], [0.5], torch.tensor([True])])
def test_refuses_positions_outside_the_set(item):
    with pytest.raises(DataError, match=r"Count from 0|is no position in images"):
        images()[item]


def test_refuses_to_select_nothing():
    with pytest.raises(DataError, match="no row of images is selected for mine"):
        images().where(torch.zeros(6, dtype=torch.bool), "mine")
