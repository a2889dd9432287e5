"""Which rows come when: functions of (seed, epoch, row), and of nothing that training moves."""

import numpy as np
import pytest
import torch
from forgetting import encoded

from unwrite.forget.engine.stream import Collator, EpochSampler, UnlearnRows, interleave, partner, permutation


@pytest.fixture
def rows(forget, retain, tokenizer):
    parts = encoded(forget, retain, tokenizer)
    return lambda stream="paired", seed=0: UnlearnRows(stream, parts["forget"], parts["retain"], seed=seed)


def pairing(rows, epoch):
    return {row: rows[(epoch, row)]["retain"].index for row in range(len(rows.forget))}


def test_partners_cover_the_retain_set_over_epochs(rows):
    seen = [index for epoch in range(5) for index in pairing(rows(), epoch).values()]
    # 5 x 16 draws on 20 rows: four whole passes.
    assert all(seen.count(index) == 4 for index in range(20))


def test_partners_differ_between_epochs_and_between_seeds(rows):
    assert pairing(rows(), 0) != pairing(rows(), 1)
    assert pairing(rows(seed=0), 0) != pairing(rows(seed=1), 0)


def test_partner_depends_on_seed_epoch_and_row_alone(rows):
    expected = pairing(rows(), 3)
    np.random.seed(5)
    torch.manual_seed(5)
    fresh = rows()
    assert {row: fresh[(3, row)]["retain"].index for row in reversed(range(16))} == dict(reversed(expected.items()))
    assert expected == {row: partner(0, 3, row, 16, 20) for row in range(16)}


def test_order_is_a_permutation_that_changes_by_epoch(rows):
    first, second = rows().order(0), rows().order(1)
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


def test_sampler_repeats_an_epoch_exactly_when_it_is_told_to(rows):
    sampler = EpochSampler(rows())
    sampler.set_epoch(2)
    expected = list(sampler)
    sampler.set_epoch(0)
    list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == expected
    assert all(epoch == 2 for epoch, _ in expected)


def test_retain_rows_names_all_rows_that_pairing_touches(rows):
    data = rows()
    touched = {data[(epoch, row)]["retain"].index for epoch in range(2) for row in range(16)}
    assert set(data.retain_rows(2)) == touched


def test_a_forget_stream_brings_forget_rows_alone(rows):
    assert set(rows("forget")[(0, 0)]) == {"forget"}


def test_a_retain_stream_goes_over_the_retain_set(rows):
    data = rows("retain")
    assert len(data) == 20
    assert {data[(0, row)]["retain"].index for row in data.order(0)} == set(range(20))


def test_a_mixed_stream_brings_single_rows_of_both_kinds(rows):
    data = rows("mixed")
    kinds = [next(iter(data[(0, row)])) for row in data.order(0)]
    assert all(len(data[(0, row)]) == 1 for row in data.order(0))
    assert all({"forget", "retain"} == set(kinds[i : i + 4]) for i in range(0, len(kinds) - 3, 4))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 1], [10, 11, 12, 13], [0, 10, 11, 1, 12, 13]),
        ([0, 1, 2], [10, 11, 12, 13], [0, 10, 1, 11, 2, 12]),
        ([0, 1, 2, 3], [10, 11], [10, 0, 1, 11, 2, 3]),
    ],
)
def test_interleave_gives_each_batch_both_kinds_and_drops_leftovers(first, second, expected):
    assert interleave(first, second) == expected


def test_permutation_is_a_function_of_its_seeds():
    assert permutation(50, 1, 2).tolist() == permutation(50, 1, 2).tolist()
    assert permutation(50, 1, 2).tolist() != permutation(50, 2, 1).tolist()


def test_collator_pads_each_part_to_its_own_longest_row(rows):
    data = rows()
    items = [data[(0, row)] for row in range(4)]
    batch = Collator(0)(items)
    for part in ("forget", "retain"):
        lengths = [len(item[part].input_ids) for item in items]
        assert batch[part]["input_ids"].shape == (4, max(lengths))
        assert batch[part]["attention_mask"].sum(1).tolist() == lengths
        assert batch[part]["index"].tolist() == [item[part].index for item in items]


# --- covering and union -----------------------------------------------------------------------------------------------

SIZES = [(16, 20), (20, 16), (7, 40), (40, 7), (5, 5), (1, 6), (6, 1), (1, 1)]


def numbered(stream, forget, retain, seed=0, **more):
    """Rows that are their own numbers, retain rows from 1000."""
    return UnlearnRows(stream, range(forget), range(1000, 1000 + retain), seed=seed, **more)


def items(data, epoch):
    return [data[(epoch, row)] for row in data.order(epoch)]


@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_covering_brings_every_retain_row_once_an_epoch_with_a_forget_row(forget, retain):
    data = numbered("covering", forget, retain)
    assert len(data) == retain
    for epoch in range(3):
        found = items(data, epoch)
        assert all(list(item) == ["forget", "retain"] for item in found)
        assert sorted(item["retain"] for item in found) == list(range(1000, 1000 + retain))
        assert {item["forget"] for item in found} <= set(range(forget))


@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_covering_takes_the_forget_rows_evenly_over_epochs(forget, retain):
    """As many epochs as there are forget rows bring each of them once for every retain row."""
    data = numbered("covering", forget, retain)
    drawn = [item["forget"] for epoch in range(forget) for item in items(data, epoch)]
    assert np.bincount(drawn, minlength=forget).tolist() == [retain] * forget


def test_where_forget_rows_are_more_covering_brings_no_row_twice_until_all_were_there():
    data = numbered("covering", 21, 7)
    walks = [[item["forget"] for epoch in epochs for item in items(data, epoch)] for epochs in (range(3), range(3, 6))]
    assert [sorted(walk) for walk in walks] == [list(range(21))] * 2
    assert [set(walks[0][:7]), set(walks[0][7:14])] != [set(walks[1][:7]), set(walks[1][7:14])]


@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_a_union_brings_every_row_of_both_kinds_once_an_epoch_alone(forget, retain):
    data = numbered("union", forget, retain)
    assert len(data) == forget + retain
    for epoch in range(3):
        found = items(data, epoch)
        assert all(len(item) == 1 for item in found)
        values = {kind: sorted(item[kind] for item in found if kind in item) for kind in ("forget", "retain")}
        assert values == {"forget": list(range(forget)), "retain": list(range(1000, 1000 + retain))}


def test_a_union_numbers_retain_rows_after_forget_rows_and_mixes_them():
    data = numbered("union", 3, 5)
    assert [data[(0, row)] for row in range(8)] == [
        *({"forget": row} for row in range(3)),
        *({"retain": 1000 + row} for row in range(5)),
    ]
    starts = {tuple(sorted(next(iter(item)) for item in items(data, epoch)[:3])) for epoch in range(20)}
    assert len(starts) > 2  # no kind comes first


@pytest.mark.parametrize("stream", ["covering", "union"])
def test_both_are_functions_of_seed_epoch_and_row_alone(stream):
    data, epochs = numbered(stream, 16, 20), {epoch: items(numbered(stream, 16, 20), epoch) for epoch in range(3)}
    np.random.seed(5)
    torch.manual_seed(5)
    for epoch in (2, 0, 1):  # whatever was asked before
        assert items(data, epoch) == epochs[epoch]
    row = data.order(1)[0]
    assert numbered(stream, 16, 20)[(1, row)] == epochs[1][0]
    assert epochs[0] != epochs[1] != epochs[2]
    assert items(numbered(stream, 16, 20, seed=1), 0) != epochs[0]


def test_the_pairs_of_covering_change_between_epochs_and_not_only_their_order():
    data = numbered("covering", 16, 20)
    pairs = [{item["retain"]: item["forget"] for item in items(data, epoch)} for epoch in range(2)]
    assert pairs[0] != pairs[1]
    assert pairs[0] == {1000 + row: partner(0, 0, row, 20, 16) for row in range(20)}


@pytest.mark.parametrize("stream", ["covering", "union"])
def test_a_forget_row_brings_its_own_other_answer(stream):
    data = numbered(stream, 4, 9, alternate=range(500, 504))
    for item in items(data, 0):
        if "forget" in item:
            assert item["alternate"] == 500 + item["forget"]
        else:
            assert "alternate" not in item


@pytest.mark.parametrize("stream", ["covering", "union"])
def test_all_retain_rows_may_be_touched_in_any_epoch(stream):
    assert numbered(stream, 4, 9).retain_rows(1) == list(range(9))


@pytest.mark.parametrize(("stream", "size"), [("covering", 19), ("union", 35)])
def test_a_lone_last_row_is_a_batch_of_its_own_parts(rows, stream, size):
    data = rows(stream)
    order = data.order(0)
    assert len(order) == size + 1
    batch = Collator(0)([data[(0, row)] for row in order[size:]])
    parts = {"covering": [["forget", "retain"]], "union": [["forget"], ["retain"]]}[stream]
    assert list(batch) in parts
    assert all(len(part["index"]) == 1 for part in batch.values())
    whole = Collator(0)([data[(0, row)] for row in order])
    assert {name: len(part["index"]) for name, part in whole.items()} == {
        "covering": {"forget": 20, "retain": 20},
        "union": {"forget": 16, "retain": 20},
    }[stream]
