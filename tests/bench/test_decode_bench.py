"""The decoding benchmark: its prompts, its ratios, and its account of what can be copied."""

from collections import Counter

import pytest

from unwrite.beds.prompts import KINDS, prompts, prompts_hash
from unwrite.bench.decode import BenchSample, Measuring, copy_rate, ratio_of


def test_there_are_five_prompts_of_each_kind_for_tuning_and_five_for_the_figures():
    for use in ("tune", "report"):
        assert Counter(row.kind for row in prompts(use)) == dict.fromkeys(KINDS, 5)


def test_no_prompt_is_used_for_both():
    assert not {row.text for row in prompts("tune")} & {row.text for row in prompts("report")}


def test_the_prompts_are_those_that_were_committed_first():
    assert prompts_hash() == "9919db219648584c"


def test_a_ratio_is_the_peers_seconds_over_ours():
    point, low, high = ratio_of([[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [4.0, 4.0]])
    assert point == 3.0
    assert (low, high) == (2.0, 4.0)


def test_equal_times_have_no_interval():
    assert ratio_of([[1.5], [2.5]], [[1.5], [2.5]]) == (1.0, 1.0, 1.0)


def test_a_token_is_copied_if_it_ends_an_n_gram_that_stood_before():
    assert copy_rate([1, 2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 8]) == pytest.approx(1 / 4)
    assert copy_rate([1, 2, 3, 4, 5, 6, 7], [8, 9, 10]) == 0
    assert copy_rate([0, 1, 2, 3, 4], [1, 2, 3, 4], size=1) == 1


def test_every_cell_is_reported_and_the_peer_has_a_ratio_of_one():
    def takes(seconds):
        return lambda ids, count, temperature, seed: BenchSample(seconds, tuple(range(count)))

    run = Measuring({"plain": takes(2.0), "ours": takes(1.0)}, "plain", lambda text: [1, 2], deadline=0.0, tokens=4)
    rows = run.run(temperatures=(0.0,))
    assert len(rows) == 2 * len(KINDS)
    assert {row["strategy"]: row["ratio"] for row in rows} == {"plain": 1.0, "ours": 2.0}


def test_contenders_take_turns_at_going_first():
    first = []

    def noted(name):
        def write(ids, count, temperature, seed):
            first.append(name)
            return BenchSample(1.0, (1,))

        return write

    Measuring({"a": noted("a"), "b": noted("b")}, "a", lambda text: [1], deadline=0.0, tokens=1).run((0.0,))
    assert Counter(first[::2])["a"] in range(10, 21)
