"""Which rows come when: functions of (seed, epoch, row), and of nothing that training moves."""

import numpy as np
import pytest
import torch
from forgetting import encoded

from unwrite.forget.stream import Collator, EpochSampler, UnlearnRows, interleave, partner, permutation


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
