"""Prophet where it stops: over whole runs, in any order, beside remasking, and with regions that come and go."""

import itertools
import math
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from masks import MASK, VOCAB, lively, prompts_of, rows_of

from unwrite.diffusion import RCR, FixedBlocks, Gumbel, RandomOrder, ReMDM, Sampler, Threshold, TopK
from unwrite.diffusion.parts.prophet import Prophet

INF = math.inf
AT_ONCE = (-INF,) * 3
ONE_BY_ONE = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=TopK())
IN_ANY_ORDER = replace(ONE_BY_ONE, blocks=FixedBlocks(None), score=RandomOrder())
BOTH = pytest.mark.parametrize("sampler", [ONE_BY_ONE, IN_ANY_ORDER], ids=["blocks", "any order"])


def at(n, **more):
    """Stops at forward n of 24, whatever the gap."""
    return Prophet((INF, -INF, -INF), (n / 24, n / 24), **more)


@BOTH
@pytest.mark.parametrize(
    ("gap", "n"), [(7.5, 1), (7.25, 33), (5.0, 33), (4.75, 67), (2.5, 67), (2.25, 100)], ids=lambda value: str(value)
)
def test_a_constant_gap_stops_a_hundred_steps_where_its_bar_begins(gap, n, sampler):
    """Steps count through all blocks; the last gap reaches no bar."""
    table = torch.full((101, VOCAB), -20.0)
    table[:, 5], table[:, 6] = gap, 0.0
    sampler = replace(sampler, gen_length=100, blocks=FixedBlocks(10 if sampler is ONE_BY_ONE else None))
    out = replace(sampler, stop=Prophet(start=90))(rows_of(table), None, [[7]])
    assert out.nfe.tolist() == [n]
    assert out.trace.exits.tolist() == [n - 1 if n < 100 else -1]


@BOTH
@pytest.mark.parametrize("n", [1, 6, 20])
def test_an_exit_at_forward_n_takes_n_forwards_and_leaves_what_was_given(n, sampler):
    prompts, fixed = prompts_of(3, 6), {12: 7, 13: 9}
    out = replace(sampler, stop=at(n))(lively(), None, prompts, fixed=fixed)
    assert out.nfe.tolist() == [n] * 2
    assert out.trace.exits.tolist() == [n - 1] * 2
    for row, prompt in zip(out.sequences.tolist(), prompts, strict=True):
        assert row[: len(prompt)] == prompt
        assert (row[len(prompt) + 12], row[len(prompt) + 13]) == (7, 9)
        assert MASK not in row


def test_a_forward_that_stops_reveals_nothing_on_its_own():
    """Alone the rule writes every drawn token at once."""
    table = torch.randn(25, VOCAB, generator=torch.Generator().manual_seed(0))
    table[:, MASK] = -20.0
    drawn = replace(ONE_BY_ONE, blocks=FixedBlocks(None), commit=Threshold(0.0), propose=Gumbel(5.0))
    stopped = replace(drawn, stop=Prophet(AT_ONCE, start=10))
    clean = table[1:].argmax(-1).tolist()
    assert stopped(rows_of(table), None, [[7]]).sequences[0, 1:].tolist() == clean
    assert drawn(rows_of(table), None, [[7]]).sequences[0, 1:].tolist() != clean


def noted(rule, asked):
    """The same rule; `asked` gets how many positions each step takes back that an earlier one revealed."""

    class Noted(type(rule)):
        def commit(self, step):
            found = super().commit(step)
            asked.append(int((found.hide & step.inside & ~step.masked).sum()))
            return found

    return Noted(**asdict(rule))


@pytest.mark.parametrize("rule", [RCR(), ReMDM(extra=6, after=0.25)], ids=["RCR", "ReMDM"])
def test_a_forward_that_stops_takes_nothing_back(rule):
    """Whatever the rule asks for; in some of these forwards it does."""
    prompts, at_exits = prompts_of(3, 6), 0
    for n in range(1, 13):
        asked = []
        stop = replace(at(n), cuts=(n / 12, n / 12), start=0)
        out = replace(ONE_BY_ONE, steps=12, commit=noted(rule, asked), stop=stop)(lively(1), None, prompts)
        assert out.trace.exits.tolist() == [n - 1] * 2
        assert not any(MASK in row[: len(prompt) + 24] for row, prompt in zip(out.sequences, prompts, strict=True))
        at_exits += asked[-1]
    assert at_exits > 0


@pytest.mark.parametrize("seed", range(4))
def test_lower_bars_never_take_longer_in_any_order(seed):
    prompts = prompts_of(3, 6, seed=seed)
    ladder = [(9.0, 9.0, 9.0), (9.0, 9.0, 2.0), (9.0, 3.0, 2.0), (2.0, 2.0, 2.0), (2.0, 1.0, 0.5), (0.0, 0.0, 0.0)]
    taken = [replace(IN_ANY_ORDER, stop=Prophet(bars, start=12))(lively(seed), None, prompts).nfe for bars in ladder]
    for higher, lower in itertools.pairwise(taken):
        assert (lower <= higher).all()
    assert (taken[-1] < taken[0]).all()


def test_a_region_that_is_empty_for_now_neither_stops_nor_warns():
    """Where a region moves, whether it is empty is known step by step only; from the fourth forward on this one is not."""
    late = Prophet(AT_ONCE, region=lambda step: (step.number >= 3)[:, None].expand(-1, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = replace(ONE_BY_ONE, stop=late)(lively(), None, prompts_of(3, 6))
    assert out.trace.exits.tolist() == [3, 3]
