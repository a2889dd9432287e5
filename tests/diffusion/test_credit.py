"""CreditDecoding: closed forms of the credit, identities with plain thresholds, agreement with the authors' engine."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masks import END, MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from helpers.grids import crossed, spread
from unwrite.diffusion import (
    RCR,
    EarlyStop,
    Edit,
    EndLast,
    Factor,
    FixedBlocks,
    Gumbel,
    NoEnd,
    Origin,
    RandomOrder,
    ReMDM,
    Sampler,
    Threshold,
    TopK,
)
from unwrite.diffusion.parts.credit import CreditDecoding, CreditThreshold
from unwrite.errors import MethodError

OFFICIAL = json.loads((Path(__file__).parent / "official_credit.json").read_text())
PRESETS = {"paper": CreditDecoding.paper(), "dinfer": CreditDecoding.dinfer()}
PLAIN = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=Threshold(0.7))
WAITING = CreditThreshold(fallback="none", patience=200)


def canvas_of(model, tokens, sampler, **parts):
    """One row written over `rows_of` logits (a prompt column is put in front), and its steps."""
    steps = []
    out = replace(sampler, watch=steps.append, **parts)(model, None, tokens)
    return out, steps


def waiting(model, credit, commit=WAITING, length=64):
    """One position to be written, in a canvas long enough for long waits, and the steps it took."""
    steps = []
    sampler = Sampler(gen_length=length, blocks=FixedBlocks(None), commit=commit, logits=credit, watch=steps.append)
    return sampler(model, None, [[7]], fixed=dict.fromkeys(range(1, length), 8)), steps


def constant(p, credit, commit=WAITING):
    """A position whose top token always has probability p."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 64, [p] * 64)])
    return waiting(rows_of(table), credit, commit)


def credit_of(step, credit, token=5):
    """[width] the credit that lifted `token`, from the fused logits."""
    return ((step.fused - step.clean)[0, :, token] / credit.alpha).expm1()


def alternating(*tables):
    """Every position gets the n-th row of logits [vocab] at the n-th forward, the last one from then on."""
    count = iter(range(10_000))

    def logits(canvas):
        return tables[min(next(count), len(tables) - 1)].expand(*canvas.shape, -1).clone()

    return scripted(logits)


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# Identities


@crossed(
    credit=[
        CreditDecoding(alpha=0),
        CreditDecoding(alpha=0, update="all"),
        CreditDecoding(beta=0, gamma=math.inf),
        CreditDecoding(alpha=0, storage="dense"),
    ],
    cache=["none", "prefix", "dual"],
    seed=[0, 1, 2],
)
def test_without_credit_it_is_plain_threshold_decoding(credit, seed, cache):
    prompts = prompts_of(3, 6, 5, seed=seed)
    plain = replace(PLAIN, cache=cache)
    expected = plain(lively(seed, 2.0), None, prompts)
    assert same_run(replace(plain, logits=credit)(lively(seed, 2.0), None, prompts), expected)


def test_credit_changes_the_run_the_identities_are_about():
    prompts = prompts_of(3, 6, 5)
    assert not same_run(
        PLAIN(lively(0, 2.0), None, prompts), replace(PLAIN, logits=CreditDecoding())(lively(0, 2.0), None, prompts)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_counting_rule_is_the_plain_threshold(seed):
    prompts = prompts_of(3, 6, 5, seed=seed)
    credited = replace(PLAIN, logits=CreditDecoding())
    expected = credited(lively(seed, 2.0), None, prompts)
    assert same_run(replace(credited, commit=CreditThreshold(0.7))(lively(seed, 2.0), None, prompts), expected)


# Closed forms


def test_constant_probability_grows_by_the_closed_form():
    credit = CreditDecoding()
    _, steps = constant(0.8, credit)
    expected = [0.8**0.2 * (1 - 0.7**n) / 0.3 for n in range(1, 6)]
    assert expected == pytest.approx([0.9564, 1.6258, 2.0944, 2.4224, 2.6521], abs=5e-5)
    assert [float(credit_of(step, credit)[0]) for step in steps] == pytest.approx(expected, abs=1e-5)
    fused = [float(step.confidence[0, 0]) for step in steps]
    assert fused == pytest.approx([0.8609, 0.8822, 0.8929, 0.8990, 0.9028], abs=5e-5)


@pytest.mark.parametrize(("p", "steps", "last"), [(0.8, 5, (0.8990, 0.9028)), (0.85, 2, (0.8980, 0.9143))])
def test_a_stable_token_passes_after_the_steps_of_the_closed_form(p, steps, last):
    out, seen = constant(p, CreditDecoding())
    assert out.nfe.tolist() == [steps]
    assert [float(step.confidence[0, 0]) for step in seen[-2:]] == pytest.approx(last, abs=5e-5)
    plain, _ = constant(p, None, CreditThreshold(fallback="none", patience=50))
    assert plain.nfe.tolist() == [51]  # never by itself


def test_too_low_a_constant_probability_never_passes():
    out, steps = constant(0.6, CreditDecoding())
    assert out.nfe.tolist() == [201]
    assert float(steps[-1].confidence[0, 0]) == pytest.approx(0.787, abs=5e-4)


@pytest.mark.parametrize(("credit", "least"), [(CreditDecoding(), 0.7805), (CreditDecoding.dinfer(), 0.7271)])
def test_the_smallest_constant_probability_that_can_pass(credit, least):
    assert constant(least - 2e-4, credit)[0].nfe.tolist() == [201]
    assert constant(least + 2e-4, credit)[0].nfe[0] < 100


@pytest.mark.parametrize(("p", "needed"), [(0.8, 2.25), (0.6, 6.0), (0.5, 9.0)])
def test_the_boost_a_probability_needs(p, needed):
    """(1 + C)^alpha must reach tau / (1 - tau) (1 / p - 1); with gamma 0, beta 0 and C = 1 it is 2^alpha."""
    exponent = math.log2(needed)
    assert constant(p, CreditDecoding(alpha=exponent + 1e-6, beta=0, gamma=0))[0].nfe.tolist() == [1]
    assert constant(p, CreditDecoding(alpha=exponent - 1e-4, beta=0, gamma=0))[0].nfe.tolist() == [201]


def test_a_stable_token_is_never_less_sure_than_without_credit():
    for p in (0.3, 0.5, 0.7):
        _, steps = constant(p, CreditDecoding())
        assert all(float(step.confidence[0, 0]) >= p for step in steps)


def test_alternating_tokens_get_less_boost_than_a_constant_one():
    a, b = (confident([token], [0.7])[0] for token in (5, 6))
    _, steady = waiting(alternating(a), CreditDecoding(), replace(WAITING, patience=10))
    _, swaying = waiting(alternating(*[a, b] * 10), CreditDecoding(), replace(WAITING, patience=10))
    assert float(swaying[0].confidence[0, 0]) == pytest.approx(float(steady[0].confidence[0, 0]))
    for one, other in zip(swaying[1:], steady[1:], strict=False):
        assert float(one.confidence[0, 0]) < float(other.confidence[0, 0])


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_credit_fades_while_another_token_wins(storage):
    a, b = (confident([token], [0.6])[0] for token in (5, 6))
    credit = CreditDecoding(storage=storage)
    _, steps = waiting(alternating(a, a, a, b), credit, replace(WAITING, patience=4))
    before, after = float(credit_of(steps[2], credit, 5)[0]), float(credit_of(steps[3], credit, 5)[0])
    assert after == pytest.approx(0.7 * before, rel=1e-5)
    assert float(credit_of(steps[3], credit, 6)[0]) == pytest.approx(0.6**0.2, rel=1e-5)


def test_all_tokens_get_credit_by_their_own_probability():
    credit = CreditDecoding(update="all", gamma=1.0)
    _, steps = constant(0.6, credit, replace(WAITING, patience=2))
    assert float(credit_of(steps[0], credit, 5)[0]) == pytest.approx(0.6, abs=1e-6)
    assert float(credit_of(steps[1], credit, 9)[0]) == pytest.approx(1.7 * 0.4 / (VOCAB - 2), rel=1e-4)


# State


@pytest.mark.parametrize("how", [{"storage": "dense"}, {"storage": "sparse"}, {"update": "all"}])
def test_written_positions_get_no_credit(how):
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 5], [0.95, 0.6])])
    credit = CreditDecoding(**how)
    sampler = Sampler(gen_length=2, commit=replace(WAITING, patience=3), logits=credit)
    _, steps = canvas_of(rows_of(table), [[7]], sampler)
    first = [float(credit_of(step, credit)[0]) for step in steps[:3]]
    assert first == pytest.approx([0.95**0.2, 0.7 * 0.95**0.2, 0.49 * 0.95**0.2], rel=1e-5)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_credit_is_zero_when_a_block_is_opened(storage):
    one = confident([5, 6, 7], [0.8, 0.85, 0.5])
    table = torch.cat([torch.zeros(1, VOCAB), one, one])
    credit = CreditDecoding(storage=storage)
    sampler = Sampler(gen_length=6, blocks=FixedBlocks(3), commit=CreditThreshold(), logits=credit)
    out, steps = canvas_of(rows_of(table), [[7]], sampler)
    order = out.trace.order[0]
    half = len(steps) // 2
    assert (order[3:] - half).tolist() == order[:3].tolist()
    assert torch.equal(steps[half].fused, steps[0].fused)


def test_credit_does_not_outlive_a_call():
    sampler = replace(PLAIN, logits=CreditDecoding.dinfer())
    prompts = prompts_of(6, seed=41)
    expected = sampler(lively(1, 2.0), None, prompts)
    ends = replace(lively(1, 2.0), end_ids=(10,))  # where a stopped text leaves the authors' engine with old credit
    stopped = replace(sampler, edit=EarlyStop())(ends, None, prompts_of(6, seed=21))
    assert len(stopped.trace.blocks[0]) < 3
    assert same_run(sampler(lively(1, 2.0), None, prompts), expected)


@pytest.mark.parametrize("credit", [CreditDecoding.dinfer(), CreditDecoding.adaptive(), CreditDecoding(beta=0.99)])
@pytest.mark.parametrize("commit", [Threshold(0.8), ReMDM(extra=3), TopK()])
def test_dense_and_sparse_storage_agree(credit, commit):
    fused = {}
    for storage in ("dense", "sparse"):
        steps = []
        sampler = replace(PLAIN, commit=commit, logits=replace(credit, storage=storage), watch=steps.append)
        out = sampler(lively(4, 2.0), None, prompts_of(3, 6, seed=4))
        fused[storage] = steps, out
    (dense, first), (sparse, second) = fused["dense"], fused["sparse"]
    assert same_run(first, second)
    for one, other in zip(dense, sparse, strict=True):
        torch.testing.assert_close(one.fused, other.fused, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_the_order_of_the_rows_does_not_matter(storage):
    prompts = prompts_of(3, 6, 5, seed=4)
    sampler = replace(PLAIN, logits=CreditDecoding(storage=storage))
    out, turned = sampler(lively(4, 2.0), None, prompts), sampler(lively(4, 2.0), None, prompts[::-1])
    alone = [sampler(lively(4, 2.0), None, [prompt]) for prompt in prompts]
    assert out.answers == turned.answers[::-1] == [one.answers[0] for one in alone]
    assert out.nfe.tolist() == turned.nfe.tolist()[::-1] == [int(one.nfe) for one in alone]


def test_more_top_tokens_than_sparse_storage_has_places_for_forget_the_least():
    """40 tokens on top in turn; 32 places. What is forgotten has less than .8^32 of its credit, under 1e-3."""
    tables = [confident([token], [0.6], vocab=48, mask_id=47)[0] for token in range(40)]
    found = []
    for storage in ("dense", "sparse"):
        model = replace(alternating(*tables), mask_id=47)
        found.append(waiting(model, CreditDecoding.dinfer(storage=storage), CreditThreshold(1.0, "none", 39), 12)[1])
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        torch.testing.assert_close(one.fused, other.fused, atol=1e-6 if number < 32 else 1e-3, rtol=1e-6)
        new = (other.fused - other.clean)[0, 0, number]
        assert float(new) == pytest.approx(0.7 * math.log1p(0.6**0.2), abs=1e-6)  # nothing of the forgotten one's


# The variant without tuning


def test_adaptive_leaves_a_fully_masked_block_alone():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.6] * 4)])
    _, steps = canvas_of(rows_of(table), [[7]], Sampler(gen_length=4, commit=TopK(), logits=CreditDecoding.adaptive()))
    assert torch.equal(steps[0].fused, steps[0].clean)
    assert not torch.equal(steps[1].fused, steps[1].clean)


def test_adaptive_rates_are_the_share_already_written():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.5] * 4)])
    _, steps = canvas_of(rows_of(table), [[7]], Sampler(gen_length=4, commit=TopK(), logits=CreditDecoding.adaptive()))
    # gamma 1, alpha = beta = 0, 1/4, 2/4, 3/4: the last position's credit is .5, .625, .8125, ...
    kept = 0.0
    for number, step in enumerate(steps):
        rate = number / 4
        kept = rate * kept + 0.5
        lifted = float((step.fused - step.clean)[0, 3, 5])
        assert lifted == pytest.approx(rate * math.log1p(kept), abs=1e-6)
    assert rate == 1 - 1 / 4


def test_adaptive_can_look_at_the_whole_output():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.5] * 4)])
    sampler = Sampler(
        gen_length=4, blocks=FixedBlocks(2), commit=TopK(), logits=CreditDecoding.adaptive(scope="output")
    )
    _, steps = canvas_of(rows_of(table), [[7]], sampler)
    lifted = float((steps[2].fused - steps[2].clean)[0, 0, 5])  # the second block's first step: half is written
    assert lifted == pytest.approx(0.5 * math.log1p(0.5), abs=1e-6)


def test_the_share_of_the_output_is_that_of_a_shortened_row():
    class Cut(Edit):
        def edit(self, step, revealed):
            return torch.where(step.prompt == 3, step.prompt + 12, step.length)

    fused = []
    sampler = replace(PLAIN, commit=TopK(), edit=Cut(), logits=CreditDecoding.adaptive(scope="output"))
    for prompts in (prompts_of(3, 6), prompts_of(3)):
        out = replace(sampler, watch=lambda step: fused.append(step.fused[0]))(lively(2, 2.0), None, prompts)
        assert out.nfe[0] == 12
    for together, alone in zip(fused[:12], fused[-12:], strict=True):
        torch.testing.assert_close(together[: len(alone)], alone, atol=1e-4, rtol=1e-4)


# Decoding


def test_credit_saves_forwards_on_average():
    counts = {}
    for name, credit in {"plain": None, **PRESETS, "adaptive": CreditDecoding.adaptive()}.items():
        sampler = replace(PLAIN, logits=credit)
        counts[name] = sum(int(sampler(lively(s, 2.0), None, prompts_of(4, 5, 6, seed=s)).nfe.sum()) for s in range(4))
    assert max(counts["paper"], counts["dinfer"], counts["adaptive"]) < counts["plain"]


@pytest.mark.parametrize(
    ("case", "storage"),
    spread(
        itertools.product(OFFICIAL["cases"], ["dense", "sparse"]),
        lambda c: (*(c[0][name] for name in ("preset", "threshold", "sharpness")), len(c[0]["prompts"]), c[1]),
        lambda c: f"{c[1]}-{c[0]['preset']}-{c[0]['seed']}-{c[0]['threshold']}-{len(c[0]['prompts'])}",
    ),
)
def test_it_writes_what_the_authors_engine_writes(case, storage):
    credit = replace(PRESETS[case["preset"]], storage=storage)
    out = replace(PLAIN, commit=Threshold(case["threshold"]), logits=credit)(
        lively(case["seed"], case["sharpness"]), None, case["prompts"]
    )
    prompt = len(case["prompts"][0])
    assert out.sequences[:, prompt:].tolist() == case["answers"]
    # The engine's rows wait for each other at every block's end.
    last = out.trace.order.view(len(out.nfe), 3, 8).amax(2) + 1
    assert int(last.diff(dim=1, prepend=last.new_zeros(len(last), 1)).amax(0).sum()) == case["forwards"]


def test_boosted_commits_are_those_that_only_credit_carried_over_the_bar():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 6, 7], [0.95, 0.87, 0.2])])
    sampler = Sampler(gen_length=3, commit=CreditThreshold(0.9), logits=CreditDecoding())
    out = sampler(rows_of(table), None, [[7]])
    # .95 by itself; .87 by credit at once (.9099); .2 only because a step reveals something
    assert out.trace.order[0].tolist() == [0, 0, 1]
    assert out.trace.counts["credit_boosted"].tolist() == [1]


def test_old_credit_can_change_the_token_and_is_counted():
    a = confident([5], [0.5])[0]
    b = a.clone()
    b[6] = b[5] + 0.1  # now barely ahead
    out, _ = waiting(alternating(a, a, a, b), CreditDecoding(), replace(WAITING, patience=3))
    assert out.answers[0][0] == 5
    assert out.trace.counts["changed_argmax"].tolist() == [1]


def test_written_positions_are_not_counted_as_changed():
    a = confident([5], [0.5])[0]
    b = a.clone()
    b[6] = b[5] + 0.1
    out, _ = canvas_of(alternating(a, b), [[7]], Sampler(gen_length=2, commit=TopK(), logits=CreditDecoding()))
    # The masked position credits 6 at once and keeps it; the written one's old credit is all for 5.
    assert out.trace.counts["changed_argmax"].tolist() == [0]


def test_a_drawn_token_is_judged_by_the_fused_probability():
    table = torch.cat([torch.zeros(1, VOCAB), torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(3))])
    sampler = Sampler(gen_length=6, commit=Threshold(2.0), logits=CreditDecoding(), propose=Gumbel(1.0))
    _, steps = canvas_of(rows_of(table), [[7]], sampler)
    step = steps[2]
    fused = step.fused.double().softmax(-1).gather(-1, step.proposed[..., None])[..., 0]
    torch.testing.assert_close(step.confidence, fused, atol=1e-9, rtol=1e-7)


def test_the_mask_token_never_gets_credit():
    def logits(canvas):
        table = torch.randn(canvas.shape[1], VOCAB, generator=torch.Generator().manual_seed(0))
        table[:, MASK] = 50.0
        return table.expand(len(canvas), -1, -1).clone()

    for credit in (CreditDecoding(), CreditDecoding(storage="dense"), CreditDecoding(update="all", gamma=0.0)):
        out, steps = canvas_of(scripted(logits), [[7]], Sampler(gen_length=4, commit=TopK(), logits=credit))
        assert all(step.fused[..., MASK].eq(-torch.inf).all() for step in steps)
        assert MASK not in out.sequences[0].tolist()


def test_it_follows_a_part_that_took_tokens_out_before():
    table = torch.cat([torch.zeros(1, VOCAB), confident([END], [0.9])])
    sampler = Sampler(gen_length=1, commit=replace(WAITING, patience=2), logits=(NoEnd(), CreditDecoding()))
    _, steps = canvas_of(rows_of(table), [[7]], sampler)
    assert all(step.fused[0, 0, END] == -torch.inf for step in steps)
    assert (steps[0].fused - steps[0].clean)[0, 0].nan_to_num(neginf=0).max() > 0.1  # the next best is credited


def test_half_precision_logits_are_fused_in_single_precision():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5], [0.6]) + 200]).bfloat16()
    credit = CreditDecoding()
    _, steps = canvas_of(rows_of(table), [[7]], Sampler(gen_length=1, commit=TopK(), logits=credit))
    assert steps[0].fused.dtype == torch.float32
    assert float(steps[0].fused[0, 0, 5] - steps[0].clean[0, 0, 5].float()) > 0.3  # bf16 has steps of 1 there


@pytest.mark.parametrize("commit", [Threshold(0.9), Factor(1.0), TopK(), RCR()])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_it_composes_with_rules_and_caches(commit, cache):
    sampler = replace(PLAIN, commit=commit, cache=cache, logits=CreditDecoding())
    out = sampler(lively(1, 2.0), None, prompts_of(3, 6))
    assert MASK not in out.sequences.tolist()[1]


# What waits, and what is refused


def test_without_fallback_credit_decides_and_patience_ends_the_wait():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 6], [0.8, 0.3])])
    sampler = Sampler(gen_length=2, commit=CreditThreshold(0.9, "none", 7), logits=CreditDecoding())
    out = sampler(rows_of(table), None, [[7]])
    assert out.trace.order[0].tolist() == [4, 12]  # at the closed form's fifth step; 7 idle steps later
    with_fallback = replace(sampler, commit=CreditThreshold(0.9))(rows_of(table), None, [[7]])
    assert with_fallback.trace.order[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CreditDecoding(alpha=-0.1), "alpha is -0.1"),
        (lambda: CreditDecoding(alpha=math.inf), "alpha is inf"),
        (lambda: CreditDecoding(alpha=math.nan), "alpha is nan"),
        (lambda: CreditDecoding(gamma=-1), "gamma is -1"),
        (lambda: CreditDecoding(beta=1.0), "beta is 1.0"),
        (lambda: CreditDecoding(beta=-0.5), "beta is -0.5"),
        (lambda: CreditDecoding(rates="fast"), "fast"),
        (lambda: CreditDecoding(scope="row"), "row"),
        (lambda: CreditDecoding(update="al"), "Did you mean 'all'"),
        (lambda: CreditDecoding(storage="disk"), "disk"),
        (lambda: CreditDecoding(update="all", storage="sparse"), "Use 'dense'"),
        (lambda: CreditThreshold(-0.1), "threshold is -0.1"),
        (lambda: CreditThreshold(0.0, fallback="none"), "above 0"),
        (lambda: CreditThreshold(1.1, fallback="none"), "at most 1"),
        (lambda: CreditThreshold(fallback="top2"), "top2"),
        (lambda: CreditThreshold(patience=0), "patience is 0"),
        (lambda: Sampler(logits=CreditDecoding(), score=RandomOrder()), r"RandomOrder\(\)\)? reveals at random"),
        (
            lambda: Sampler(logits=CreditDecoding(), score=EndLast(RandomOrder())),
            r"RandomOrder\(\)\)? reveals at random",
        ),
        (lambda: Sampler(logits=CreditDecoding(), commit=Origin()), "Origin reveals at random"),
    ],
)
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()
