"""EOSER and ascending steps: factors and counts by hand, identities, agreement with the authors' code."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from masks import END, MASK, VOCAB, confident, lively, prompts_of, rows_of

from helpers.grids import crossed, spread
from unwrite.diffusion import (
    Confidence,
    EndLast,
    FixedBlocks,
    Gumbel,
    LeftToRight,
    NegativeEntropy,
    NoEnd,
    Sampler,
    Threshold,
    TopK,
)
from unwrite.diffusion.parts.eoser import Ascending, AscendingBlocks, EOSReject, ascending_sizes, ascending_steps
from unwrite.errors import MethodError

OFFICIAL = json.loads(Path(__file__).with_name("official_eoser.json").read_text(encoding="utf-8"))
PLAIN = Sampler(gen_length=24, steps=12, blocks=FixedBlocks(None), commit=TopK())
ASS = Sampler(gen_length=128, steps=7, blocks=AscendingBlocks(), quota=Ascending(), commit=TopK(), keep_history=True)


def ending(seed, end):
    return replace(lively(seed), end_ids=(end,))


def flat(size, sure=0.5):
    return rows_of(torch.cat([torch.zeros(1, VOCAB), confident([7] * size, [sure] * size)]))


def factors(schedule, steps, **more):
    score = EOSReject(schedule=schedule, **more)
    return [float(score.factor(SimpleNamespace(number=torch.tensor([s]), total=steps))) for s in range(steps)]


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# EOSER


@crossed(
    commit=[TopK(), Threshold(0.6)], schedule=["linear", "ascending"], cache=["none", "prefix", "dual"], seed=[0, 1, 2]
)
def test_a_factor_of_one_is_the_plain_decoder(commit, schedule, seed, cache):
    """13 is a token that the model likes to write; blocks, several rows."""
    prompts = prompts_of(3, 8, 5, seed=seed)
    plain = replace(PLAIN, blocks=FixedBlocks(8), commit=commit, cache=cache)
    off = replace(plain, score=EOSReject(schedule=schedule, low=1.0))
    assert same_run(off(ending(seed, 13), None, prompts), plain(ending(seed, 13), None, prompts))


def test_a_smaller_factor_changes_the_run_the_identity_is_about():
    prompts = prompts_of(3, 8, 5)
    found = replace(PLAIN, score=EOSReject())(ending(0, 13), None, prompts)
    assert not same_run(found, PLAIN(ending(0, 13), None, prompts))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_no_end_token_is_proposed_nothing_changes(seed):
    prompts = prompts_of(3, 8, 5, seed=seed)
    plain = replace(PLAIN, logits=NoEnd())
    found = replace(plain, score=EOSReject(low=0.0))(ending(seed, 13), None, prompts)
    assert same_run(found, plain(ending(seed, 13), None, prompts))


def test_the_linear_factor_grows_from_low_to_high():
    found = factors("linear", 64)
    assert found[:2] == pytest.approx([0.4, 0.4095], abs=5e-5)
    assert found[1] == pytest.approx(0.4 + 0.6 / 63)
    assert found[63] == 1.0
    assert found == sorted(found)


def test_the_ascending_factor_follows_the_share_revealed():
    found = factors("ascending", 7)
    assert found == pytest.approx([0.0177, 0.0332, 0.0641, 0.1260, 0.2498, 0.4973, 0.9923], abs=5e-5)
    assert found[3] == pytest.approx(0.01 + 0.99 * 15 / 128, rel=1e-12)
    assert 0 < factors("ascending", 1100)[0] < 0.0101  # 2^1100 has no float64


@pytest.mark.parametrize("schedule", ["linear", "ascending"])
def test_a_single_step_has_the_last_factor(schedule):
    assert factors(schedule, 1, high=0.9) == [0.9]


@pytest.mark.parametrize(("schedule", "last"), [("linear", 1.0), ("ascending", 0.01 + 0.99 * 127 / 128)])
def test_steps_beyond_those_asked_for_have_the_last_factor(schedule, last):
    late = SimpleNamespace(number=torch.tensor([6, 7, 20]), total=7)
    assert EOSReject(schedule=schedule).factor(late).tolist() == pytest.approx([last] * 3, rel=1e-12)


@pytest.mark.parametrize(("number", "order"), [(0, ["a", "b", "end"]), (63, ["end", "a", "b"])])
def test_an_end_token_ranks_last_at_first_and_first_at_last(number, order):
    tokens = dict(zip(["end", "a", "b"], [END, 7, 8], strict=True))
    clean = confident(tokens.values(), [0.9, 0.5, 0.45])[None]
    step = SimpleNamespace(
        judged=clean,
        proposed=torch.tensor([list(tokens.values())]),
        eos_ids=(END,),
        number=torch.tensor([number]),
        total=64,
        scored=None,
    )
    scores = dict(zip(tokens, EOSReject().score(step)[0].tolist(), strict=True))
    assert sorted(scores, key=scores.get, reverse=True) == order
    assert scores["end"] == pytest.approx(0.36 if number == 0 else 0.9)
    assert (scores["a"], scores["b"]) == pytest.approx((0.5, 0.45))


def test_it_ranks_end_tokens_lower_but_does_not_change_them():
    tokens = [7, END, END, END]
    table = torch.cat([torch.zeros(1, VOCAB), confident(tokens, [0.5, 0.9, 0.9, 0.9])])
    sampler = Sampler(gen_length=4, steps=4, blocks=FixedBlocks(None), commit=TopK())
    plain, late = sampler(rows_of(table), None, [[6]]), replace(sampler, score=EOSReject())(rows_of(table), None, [[6]])
    assert plain.trace.order[0].tolist() == [3, 0, 1, 2]
    assert late.trace.order[0].tolist() == [0, 1, 2, 3]
    assert late.sequences.tolist() == plain.sequences.tolist() == [[6, *tokens]]


def test_steps_count_over_the_whole_answer_whatever_the_blocks():
    seen = []
    score = EOSReject()
    sampler = Sampler(
        gen_length=8, steps=8, blocks=FixedBlocks(2), commit=TopK(), score=score, watch=lambda s: seen.append(s)
    )
    table = torch.cat([torch.zeros(1, VOCAB), confident([END] * 8, [0.5] * 8)])
    sampler(rows_of(table), None, [[6]])
    confidences = [float(step.confidence[0, -1]) for step in seen]
    assert confidences == pytest.approx([0.5 * (0.4 + 0.6 * s / 7) for s in range(8)])


@pytest.mark.parametrize(("ends", "scaled"), [(None, [True, False]), ((END, 9), [True, True]), ((9,), [False, True])])
def test_the_first_end_token_is_ranked_lower_and_others_on_request(ends, scaled):
    model = replace(flat(2), end_ids=(END, 9))
    model.model.inner = lambda canvas: torch.cat([torch.zeros(1, VOCAB), confident([END, 9], [0.8, 0.8])])[None]
    steps = []
    replace(PLAIN, gen_length=2, steps=2, score=EOSReject(ends=ends), watch=steps.append)(model, None, [[6]])
    expected = [0.8 * 0.4 if one else 0.8 for one in scaled]
    assert steps[0].confidence[0].tolist() == pytest.approx(expected)


def test_it_wraps_other_scores_and_is_wrapped():
    prompts = prompts_of(3, 8)
    model = ending(0, 13)
    inside = replace(PLAIN, score=EndLast(EOSReject()))(model, None, prompts)
    assert same_run(inside, replace(PLAIN, score=EndLast())(model, None, prompts))  # last is last
    assert EOSReject().ranks_by == "probability"


# Ascending steps


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (128, [1, 2, 4, 8, 16, 32, 65]),
        (256, [1, 2, 4, 8, 16, 32, 64, 129]),
        (100, [1, 2, 4, 8, 16, 69]),
        (2, [2]),
        (3, [3]),
        (4, [1, 3]),
    ],
)
def test_counts_double_and_the_last_step_takes_the_rest(size, counts):
    sampler = replace(ASS, gen_length=size, steps=ascending_steps(size))
    out = sampler(flat(size), None, [[6]])
    assert out.trace.revealed == [counts]
    assert out.nfe.tolist() == [len(counts)]
    assert not bool((out.sequences == MASK).any())


@pytest.mark.parametrize(
    ("size", "number", "sizes"),
    [
        (128, 4, (15, 16, 32, 65)),
        (128, 1, (128,)),
        (128, 7, (1, 2, 4, 8, 16, 32, 65)),
        (100, 2, (31, 69)),
        (45, 4, (3, 4, 8, 30)),
    ],
)
def test_later_blocks_take_one_step_each(size, number, sizes):
    assert ascending_sizes(size, number) == sizes
    sampler = replace(ASS, gen_length=size, steps=ascending_steps(size), blocks=AscendingBlocks(number))
    out = sampler(flat(size), None, [[6]])
    assert out.trace.blocks == [list(sizes)]
    assert out.trace.revealed == [list(ascending_sizes(size, ascending_steps(size)))]  # every step as if a block
    assert out.nfe.tolist() == [ascending_steps(size)]


def test_the_first_four_of_seven_steps_stay_in_the_first_of_four_blocks():
    out = replace(ASS, blocks=AscendingBlocks(4))(flat(128), None, [[6]])
    assert out.nfe.tolist() == [7]
    for step, canvas in enumerate(out.trace.canvases[0]):
        shown = [place for place, token in enumerate(canvas) if token != MASK]
        assert (max(shown) < 15) == (step < 4)
    order = out.trace.order[0].split([15, 16, 32, 65])
    assert [sorted(set(steps.tolist())) for steps in order] == [[0, 1, 2, 3], [4], [5], [6]]


def test_one_ascending_block_is_a_single_block():
    prompts = prompts_of(3, 8, 5)
    one = Sampler(gen_length=24, steps=4, blocks=FixedBlocks(None), quota=Ascending(), commit=TopK())
    for more in ({}, {"propose": Gumbel(1.0), "seed": 4}, {"cache": "dual"}, {"cache": "prefix"}):
        plain = replace(one, **more)
        found = replace(plain, blocks=AscendingBlocks())(lively(), None, prompts)
        assert same_run(found, plain(lively(), None, prompts))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_batch_writes_what_each_row_writes_alone(number, cache):
    sampler = Sampler(
        gen_length=24,
        steps=4,
        blocks=AscendingBlocks(number),
        quota=Ascending(),
        commit=TopK(),
        score=EOSReject(schedule="ascending"),
        cache=cache,
    )
    prompts = prompts_of(3, 8, 5)
    together = sampler(ending(1, 13), None, prompts)
    for row, prompt in enumerate(prompts):
        alone = sampler(ending(1, 13), None, [prompt])
        assert together.sequences[row, : len(prompt) + 24].tolist() == alone.sequences[0].tolist()
        assert together.nfe[row] == alone.nfe[0] == 4


@pytest.mark.parametrize("given", [range(28), range(0, 128, 3), range(14, 60), [*range(15), 127], range(1, 128)])
@pytest.mark.parametrize("number", [1, 4])
def test_given_tokens_never_cost_steps(given, number):
    """Counts are clamped to the masks left, blocks without masks skipped."""
    sampler = replace(ASS, blocks=AscendingBlocks(number))
    out = sampler(flat(128), None, [[6]], fixed=dict.fromkeys(given, 9))
    assert not bool((out.sequences == MASK).any())
    assert int(out.nfe) <= 7
    assert min(out.trace.revealed[0]) > 0
    assert sum(out.trace.blocks[0]) == 128
    ends = set(itertools.accumulate(ascending_sizes(128, number)))
    assert ends <= set(itertools.accumulate(out.trace.blocks[0]))


# The authors' code


@pytest.mark.parametrize(
    "case",
    spread(
        OFFICIAL["cases"], lambda c: [c.get(name) for name in ("code", "end", "gen_length", "steps", "low", "blocks")]
    ),
    ids=lambda c: f"{c['code']}-{c['seed']}-{c['end']}-{c['gen_length']}",
)
def test_tokens_and_forwards_are_the_official_codes(case):
    sampler = Sampler(gen_length=case["gen_length"], steps=case["steps"], blocks=FixedBlocks(None), commit=TopK())
    if "blocks" in case:
        sampler = replace(sampler, blocks=AscendingBlocks(case["blocks"]), quota=Ascending())
    if case["code"] != "ass_generate":
        schedule = "ascending" if "blocks" in case else "linear"
        sampler = replace(sampler, score=EOSReject(schedule=schedule, low=case.get("low")))
    out = sampler(ending(case["seed"], case["end"]), None, case["prompts"])
    assert out.sequences[:, len(case["prompts"][0]) :].tolist() == case["answers"]
    assert out.nfe.tolist() == [case["nfe"]] * 2


@pytest.mark.parametrize("case", OFFICIAL["restarting"], ids=lambda c: f"{c['seed']}-{c['end']}")
def test_officially_the_factor_starts_anew_in_every_block(case):
    """With their step index, the one within the block, the texts are theirs; ours goes on counting."""

    class Restarting(EOSReject):
        def factor(self, step):
            return super().factor(replace(step, number=step.in_block))

    sampler = Sampler(gen_length=32, steps=16, blocks=FixedBlocks(16), commit=TopK())
    model, width = ending(case["seed"], case["end"]), len(case["prompts"][0])
    theirs = replace(sampler, score=Restarting(low=0.1))(model, None, case["prompts"])
    ours = replace(sampler, score=EOSReject(low=0.1))(model, None, case["prompts"])
    assert theirs.sequences[:, width:].tolist() == case["answers"]
    assert ours.sequences[:, width:].tolist() != case["answers"]


# Settings and refusals


def test_the_defaults_are_the_papers():
    assert (EOSReject().floor, EOSReject().high, EOSReject().inner) == (0.4, 1.0, Confidence())
    assert EOSReject(schedule="ascending").floor == 0.01
    assert AscendingBlocks().number == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EOSReject(low=-0.1), "low is -0.1"),
        (lambda: EOSReject(low=1.1), "low is 1.1"),
        (lambda: EOSReject(low=math.nan), "low is nan"),
        (lambda: EOSReject(high=0.3), "high is 0.3; use low, 0.4"),
        (lambda: EOSReject(high=1.5), "high is 1.5"),
        (lambda: EOSReject(schedule="linaer"), "Did you mean 'linear'"),
        (lambda: EOSReject(ends=()), "ends is empty"),
        (lambda: Sampler(score=EOSReject(NegativeEntropy())), "NegativeEntropy gives none"),
        (lambda: Sampler(score=EOSReject(EndLast(LeftToRight()))), "EndLast gives none"),
        (lambda: AscendingBlocks(0), "number is 0"),
        (lambda: replace(ASS, blocks=AscendingBlocks(8)), "number is 8, and gen_length 128 takes 7"),
        (lambda: replace(ASS, steps=8), "steps is 8; gen_length 128 takes 7"),
        (lambda: replace(ASS, steps=None), "Set steps=7"),
        (lambda: replace(ASS, gen_length=1, steps=1), "gen_length is 1"),
        (lambda: Sampler(gen_length=1, blocks=AscendingBlocks()), "gen_length is 1"),
        (lambda: replace(ASS, blocks=FixedBlocks(32)), "cuts it"),
        (lambda: replace(ASS, commit=Threshold()), "Threshold does not ask"),
    ],
)
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def test_what_the_inner_score_refuses_is_refused():
    class Picky(Confidence):
        def check(self, sampler):
            raise MethodError("not with this")

    with pytest.raises(MethodError, match="not with this"):
        Sampler(score=EOSReject(Picky()))


def test_a_model_without_end_tokens_is_refused():
    with pytest.raises(MethodError, match="the model names no end token"):
        replace(PLAIN, score=EOSReject())(replace(flat(24), end_ids=()), None, [[6]])
