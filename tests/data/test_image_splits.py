"""Splits forget what was asked, never train on the holdout, and are the same for the same seed."""

import json

import numpy as np
import pytest
import torch

from unwrite.data.images.images import Images
from unwrite.data.images.splits import (
    ImageSplit,
    read_indices,
    split_at_random,
    split_by_class,
    split_by_identity,
    split_by_index,
    split_by_target,
)
from unwrite.errors import DataError


def images(rows=40, first=0, **given):
    generator = torch.Generator().manual_seed(first)
    numbers = torch.arange(rows)
    if "targets" not in given:
        given |= {"labels": numbers % 4, "identity": numbers % 5, "classes": ("a", "b", "c", "d")}
        given["identities"] = tuple("vwxyz")
    return Images(torch.rand(rows, 1, 2, 2, generator=generator), index=numbers + first, name="mine", **given)


def ages(rows=40, first=0):
    return images(rows, first, targets=torch.linspace(0, 80, rows))


TEST = images(20, first=1000)
MAKERS = {
    "class": lambda data, **more: split_by_class(data, "b", **more),
    "random": lambda data, **more: split_at_random(data, 0.25, **more),
    "identity": lambda data, **more: split_by_identity(data, ["w", "y"], **more),
    "index": lambda data, **more: split_by_index(data, [3, 4, 5], **more),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_parts_are_the_whole_and_share_nothing(kind):
    split = MAKERS[kind](images(), test=TEST)
    names = [set(rows.index.tolist()) for rows in (split.forget, split.retain, split.holdout)]
    assert set.union(*names) == set(range(40))
    assert sum(map(len, names)) == 40
    assert split.test is TEST


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_seed_makes_the_same_split(kind):
    one, same, other = (MAKERS[kind](images(), test=TEST, seed=seed).hash for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_one_holdout_and_one_training_set_serve_every_kind_of_split():
    splits = [MAKERS[kind](images(), seed=5) for kind in ("class", "random", "identity")]
    assert len({split.holdout.hash for split in splits}) == 1
    assert len({split.train.hash for split in splits}) == 1


def test_the_holdout_has_every_class_alike():
    assert split_by_class(images(), "a", holdout=0.2).holdout.labels.bincount().tolist() == [2, 2, 2, 2]


def test_a_holdout_may_be_given_or_left_out():
    data, held = images(), images(6, first=500)
    assert split_by_class(data, 0, holdout=held).holdout is held
    for none in (None, 0):
        split = split_by_class(data, 0, holdout=none)
        assert (split.holdout, split.train.hash) == (None, data.hash)


def test_a_class_is_forgotten_by_name_or_number():
    named, numbered = split_by_class(images(), ["b", "d"], test=TEST), split_by_class(images(), [1, 3], test=TEST)
    assert named.hash == numbered.hash
    assert set(named.forget.labels.tolist()) == {1, 3}
    assert set(named.retain.labels.tolist()) == {0, 2}
    assert set(named.test_forget.labels.tolist()) == {1, 3}
    assert set(named.test_retain.labels.tolist()) == {0, 2}
    assert named.name == "class b, d"


def test_an_identity_is_forgotten_in_training_and_told_apart_in_the_test():
    split = split_by_identity(images(), "x", test=TEST)
    assert set(split.forget.identity.tolist()) == {2}
    assert set(split.test_forget.identity.tolist()) == {2}
    assert 2 not in split.retain.identity


def test_a_random_share_is_of_the_training_rows():
    split = split_at_random(images(), 0.25, test=TEST, holdout=0.1)
    assert (len(split.forget), len(split.retain), len(split.holdout)) == (9, 27, 4)
    assert split.test_forget is None
    assert split.test_retain is TEST


def test_a_random_share_may_be_of_some_classes_only():
    split = split_at_random(images(), 0.4, classes=["c", "d"], holdout=None)
    assert split.forget.labels.bincount().tolist() == [0, 0, 4, 4]


def test_a_range_of_targets_has_both_its_ends():
    split = split_by_target(ages(41), high=30, test=ages(41, first=1000), holdout=None)
    assert float(split.forget.targets.max()) == 30
    assert float(split.retain.targets.min()) == 32
    assert float(split.test_forget.targets.max()) == 30
    assert split_by_target(ages(41), 10, 20, holdout=None).forget.targets.tolist() == [10, 12, 14, 16, 18, 20]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".npy"])
def test_indices_are_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"forget{suffix}"
    wanted = [30, 2, 17]
    if suffix == ".npy":
        np.save(path, np.array(wanted))
    else:
        path.write_text(json.dumps(wanted) if suffix == ".json" else "30\n\n 2 \n17\n")
    assert read_indices(path) == wanted
    split = split_by_index(images(), path)
    assert (split.forget.index.tolist(), split.name) == ([2, 17, 30], "forget")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "3\nfour\n", "a.txt:2: 'four' is no index"),
        ("a.txt", "3\n4.0\n", "a.txt:2: '4.0' is no index"),
        ("a.txt", "\n", "a.txt has no indices"),
        ("a.json", "[1, 2.5]", "a.json item 1: 2.5 is no index"),
        ("a.json", "[1, true]", "a.json item 1: True is no index"),
        ("a.json", '{"forget": [1]}', "needs one list of indices, not one dict"),
        ("a.json", "[1,", "it is not JSON"),
        ("a.npy", "no array", "a.npy is no array of numbers"),
        ("a.csv", "1\n", "unknown file type '.csv'"),
    ],
)
def test_refuses_a_file_that_holds_something_else(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        read_indices(path)


def test_refuses_an_array_of_another_kind_and_a_pickle(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2]]))
    with pytest.raises(DataError, match=r"a.npy holds int64 \[1, 2\]. Give one array of whole numbers"):
        read_indices(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"b\.npy is no array of numbers"):
        read_indices(tmp_path / "b.npy")


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.txt"):
        split_by_index(images(), tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: split_by_index(images(), [1, 99, 98]), "has no rows of 2 of the 3 indices: 99, 98"),
        (lambda: split_by_index(images(), [1, 1]), "1 indices are given more than once: 1"),
        (lambda: split_by_index(images(), []), "no indices of mine are given"),
        (lambda: split_by_index(images(), range(40)), "names all 40 rows of mine"),
        (lambda: split_by_class(images(), "abcd"), "unknown class 'abcd'"),
        (lambda: split_by_class(images(), 4), "Or give its number, 0 to 3"),
        (lambda: split_by_class(images(), []), "no class of mine is named"),
        (lambda: split_by_class(images(), [0, 1, 2, 3]), "all 36 rows of mine are of class a, b, c, d"),
        (lambda: split_by_class(images().subset([0, 2, 4]), "b", holdout=None), "no row of mine is of class b"),
        (lambda: split_by_class(ages(), 0), "mine has no class column"),
        (lambda: split_by_identity(ages(), 0), "mine has no identity column"),
        (lambda: split_at_random(images(), 0), "a share of 0 can't be forgotten"),
        (lambda: split_at_random(images(), 1.0), "a share of 1.0 can't be forgotten"),
        (lambda: split_at_random(images(), 0.001), "no row of mine is of random 0.001"),
        (lambda: split_by_target(images(), high=3), "has labels, not targets"),
        (lambda: split_by_target(ages(), 5, 3), "no target lies from 5 to 3"),
        (lambda: split_by_target(ages(), torch.nan), "no target lies from nan"),
        (lambda: split_by_target(ages(), high=-1), "no row of mine is of targets -inf to -1"),
        (lambda: split_by_target(ages(), high=100), "all 36 rows"),
        (lambda: split_by_class(images(), 0, holdout=1.0), "a holdout of 1.0 is no share"),
        (lambda: split_by_class(images(), 0, holdout=0.01), "leaves one side empty"),
    ],
)
def test_refuses_what_leaves_nothing_or_does_not_exist(make, told):
    with pytest.raises(DataError, match=told):
        make()


def test_refuses_parts_that_share_rows():
    data = images()
    with pytest.raises(DataError, match=r"forget and retain share 2 rows \(index 1, 2\)"):
        ImageSplit(data.subset([0, 1, 2]), data.subset([1, 2, 3]))
    with pytest.raises(DataError, match=r"retain and test share 1 rows \(index 3\)"):
        ImageSplit(data.subset([0]), data.subset([3]), None, data.subset([3, 4]))
    with pytest.raises(DataError, match=r"forget and retain share 40 rows"):
        ImageSplit(data, data)


def test_refuses_a_missing_part_and_parts_of_another_kind():
    data = images()
    with pytest.raises(DataError, match=r"the retain set is empty\. Give at least one row to keep"):
        ImageSplit(data, None)
    with pytest.raises(DataError, match="the num_outputs of forget is 4 and of test 1"):
        ImageSplit(data.subset([0]), data.subset([1]), test=ages(first=1000))
    with pytest.raises(DataError, match="test_forget has rows that are not in test"):
        ImageSplit(data.subset([0]), data.subset([1]), test=TEST, test_forget=data.subset([2]))


def test_further_sets_may_hold_any_rows_but_no_name_of_the_split():
    data = images()
    split = ImageSplit(data.subset([0]), data.subset([1]), evaluation={"seen": data})
    assert list(split.parts) == ["forget", "retain", "seen"]
    with pytest.raises(DataError, match="an evaluation set can't be called 'test'"):
        ImageSplit(data.subset([0]), data.subset([1]), evaluation={"test": TEST})
