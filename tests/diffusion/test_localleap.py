"""LocalLeap: reveals by hand, identities with thresholds, agreement with the authors' code."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from masks import MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from helpers.grids import crossed, spread
from unwrite.diffusion import EarlyStop, EndLast, FixedBlocks, RandomOrder, Sampler, Threshold
from unwrite.diffusion.parts.adablock import AdaBlock
from unwrite.diffusion.parts.localleap import LocalLeap, RandomNeighbours, delays, settled
from unwrite.errors import MethodError

CASES = json.loads(Path(__file__).with_name("official_localleap.json").read_text(encoding="utf-8"))["cases"]
HAND = LocalLeap(0.9, 0.75, 2)


def table_of(confidences):
    return rows_of(torch.cat([torch.zeros(1, VOCAB), confident([7] * len(confidences), confidences)]))


def written(confidences, commit=HAND, block=None, fixed=None):
    """A run over constant confidences."""
    sampler = Sampler(gen_length=len(confidences), blocks=FixedBlocks(block), commit=commit)
    return sampler(table_of(confidences), None, [[6]], fixed=fixed)


def first(confidences, commit=HAND, **more):
    """Positions that the first step reveals."""
    order = written(confidences, commit, **more).trace.order[0].tolist()
    return [place for place, step in enumerate(order) if step == 0]


def steps_of(sampler, model, prompts):
    steps = []
    out = replace(sampler, watch=steps.append)(model, None, prompts)
    return out, steps


def told(sampler, model, prompts):
    """What the diagnostics read."""
    out, steps = steps_of(sampler, model, prompts)
    return steps, out.sequences


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# Identities


@crossed(
    commit=[
        LocalLeap(0.7, 0.7),
        LocalLeap(0.7, None),
        LocalLeap(0.7, 0.0, radius=0),
        LocalLeap(0.7, 0.1, 0, transitive=True),
    ],
    cache=["none", "prefix", "dual"],
    seed=[0, 1, 2],
)
def test_without_a_lower_bar_or_neighbours_it_is_threshold_decoding(commit, seed, cache):
    prompts = prompts_of(3, 8, 5, seed=seed)
    plain = Sampler(gen_length=20, blocks=FixedBlocks(8), commit=Threshold(0.7), cache=cache)
    expected = plain(lively(seed, 2.0), None, prompts)
    found = replace(plain, commit=commit)(lively(seed, 2.0), None, prompts)
    assert same_run(found, expected)
    assert torch.equal(found.trace.work, expected.trace.work)
    assert found.trace.counts["relaxed_commits"].tolist() == [0, 0, 0]


def test_neighbours_change_the_run_the_identities_are_about():
    plain = Sampler(gen_length=20, blocks=FixedBlocks(8), commit=Threshold(0.7))
    prompts = prompts_of(3, 8, 5)
    out = replace(plain, commit=LocalLeap(0.7, 0.2))(lively(0, 2.0), None, prompts)
    assert bool((out.nfe < plain(lively(0, 2.0), None, prompts).nfe).any())


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("rule", [LocalLeap(0.7, 0.3), LocalLeap(0.7, 0.3, 2, transitive=True)])
def test_a_batch_writes_what_each_row_writes_alone(rule, cache):
    prompts = prompts_of(3, 8, 5)
    sampler = Sampler(gen_length=20, blocks=FixedBlocks(8), commit=rule, cache=cache)
    together = sampler(lively(1, 2.0), None, prompts)
    for row, prompt in enumerate(prompts):
        alone = sampler(lively(1, 2.0), None, [prompt])
        assert together.sequences[row, : len(prompt) + 20].tolist() == alone.sequences[0].tolist()
        assert together.nfe[row] == alone.nfe[0]


@pytest.mark.parametrize(
    "case",
    spread(CASES, lambda c: [c[name] for name in ("threshold", "relaxed", "early_stop", "block", "sharpness")]),
    ids=lambda c: f"{c['seed']}-{c['threshold']}-{c['relaxed']}-{c['early_stop']}",
)
def test_tokens_and_forwards_are_the_official_codes(case):
    sampler = Sampler(
        gen_length=32,
        blocks=FixedBlocks(case["block"]),
        commit=LocalLeap(case["threshold"], case["relaxed"], case["radius"]),
        edit=EarlyStop() if case["early_stop"] else None,
    )
    model = replace(lively(case["seed"], case["sharpness"]), end_ids=(case["end"],))
    out = sampler(model, None, [case["prompt"]])
    assert out.sequences[0, len(case["prompt"]) :].tolist() == case["answer"]
    assert out.nfe.tolist() == [case["nfe"]]


def test_the_official_cases_differ_in_their_forwards():
    """Or agreement would mean little."""
    assert len({case["nfe"] for case in CASES}) > 10


# By hand


def test_neighbours_of_anchors_pass_the_lower_bar():
    confidences = [0.95, 0.80, 0.76, 0.80, 0.50, 0.70, 0.92, 0.74]
    assert first(confidences) == [0, 1, 2, 6]  # 3 is three away; 4, 5 and 7 are below .75
    assert first(confidences, Threshold(0.9)) == [0, 6]
    near = HAND.neighbours(None, torch.tensor([[sure >= 0.9 for sure in confidences]]))[0]
    assert torch.nonzero(near)[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_without_an_anchor_one_token_is_revealed_a_step():
    confidences = [0.76, 0.89, 0.75, 0.80, 0.85, 0.88]
    out = written(confidences)
    assert sorted(out.trace.order[0].tolist()) == list(range(6))
    assert out.trace.counts["forced_commits"].tolist() == [6]
    assert first(confidences, Threshold(0.75)) == list(range(6))  # a lower threshold would take them all


def test_what_the_lower_bar_lets_through_is_no_anchor():
    confidences = [0.95] + [0.80] * 6
    assert first(confidences) == [0, 1, 2]
    assert first(confidences, replace(HAND, transitive=True)) == list(range(7))


def test_it_is_no_anchor_in_later_steps_either():
    assert written([0.95] + [0.80] * 4).trace.order[0].tolist() == [0, 0, 0, 1, 2]


def test_revealed_tokens_are_no_anchors():
    assert first([0.95] + [0.80] * 6, fixed={0: 7}) == [1]


def test_an_anchor_does_not_reach_into_the_next_block():
    confidences = [0.5, 0.95, 0.8, 0.8]
    assert written(confidences, LocalLeap(0.9, 0.75, 4), 2).trace.order[0].tolist() == [1, 0, 2, 3]
    assert first(confidences, LocalLeap(0.9, 0.75, 4)) == [1, 2, 3]


def test_an_anchor_of_the_next_block_does_not_reach_back():
    assert first([0.5, 0.8, 0.95, 0.95], block=2) == [1]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("radius", [8, 100])
def test_with_no_bar_at_all_an_anchor_completes_its_block(seed, radius):
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=LocalLeap(0.8, 0.0, radius))
    _, steps = steps_of(sampler, lively(seed, 2.0), prompts_of(3, 8, seed=seed))
    completed = 0
    for step in steps:
        anchor = (step.masked & (step.confidence >= 0.8)).any(1)
        shown = (step.masked & (step.tokens != MASK)).sum(1)
        assert torch.equal(shown, torch.where(anchor, step.masked.sum(1), 1))
        completed += int(anchor.sum())
    assert completed > 0


@pytest.mark.parametrize("commit", [LocalLeap(0.7, 0.4, 2), RandomNeighbours(0.7, 0.4, 2)])
def test_a_step_reveals_what_the_threshold_would_and_never_more_than_there_is(commit):
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=commit)
    prompts = prompts_of(3, 8)  # at 1.0 most steps have no anchor, at 2.0 all have one
    for step in (step for sharp in (1.0, 2.0) for step in steps_of(sampler, lively(0, sharp), prompts)[1]):
        shown = step.masked & (step.tokens != MASK)
        assert bool(shown[Threshold(0.7).commit(step).reveal].all())
        assert bool((shown.sum(1) >= step.masked.any(1).long()).all())
        assert bool((shown.sum(1) <= step.masked.sum(1)).all())


def test_why_tokens_were_revealed_is_counted():
    counts = written([0.95, 0.80, 0.76, 0.80, 0.50, 0.70, 0.92, 0.74]).trace.counts
    assert {name: total.tolist() for name, total in counts.items()} == {
        "anchor_commits": [2],
        "relaxed_commits": [2],
        "forced_commits": [4],
    }


# The vectorised form


def random_step(generator):
    """Several rows, coarse confidences so that there are ties, some positions written; one row may be short."""
    rows, width = (int(torch.randint(1, most, (), generator=generator)) for most in (5, 14))
    confidence = torch.randint(0, 11, (rows, width), generator=generator).double() / 10
    masked = torch.rand(rows, width, generator=generator) < 0.8
    masked[-1, width // 2 + 1 :] = False
    counts = {}
    return SimpleNamespace(
        start=torch.zeros(rows, dtype=torch.long),
        confidence=confidence,
        masked=masked,
        counts=counts,
        count=counts.__setitem__,
        random_places=lambda: torch.rand(rows, width, dtype=torch.float64, generator=generator),
    )


def by_loop(c, masked, kappa, tau, radius, transitive):
    """One row, as the rule reads."""
    open_places = [i for i in range(len(c)) if masked[i]]
    if not open_places:
        return set()
    anchors = [i for i in open_places if c[i] >= kappa]
    taken = {max(open_places, key=lambda i: (c[i], -i)), *anchors}
    sources = list(anchors)
    while sources:
        near = {i for i in open_places for a in sources if abs(a - i) <= radius and c[i] >= tau} - taken
        taken |= near
        sources = list(near) if transitive else []
    return taken


@pytest.mark.parametrize("transitive", [False, True])
def test_the_vectorised_rule_is_the_loop(transitive):
    generator = torch.Generator().manual_seed(0)
    relaxed = 0
    for _ in range(1000):
        step = random_step(generator)
        kappa = float(torch.randint(5, 11, (), generator=generator)) / 10
        tau = min(kappa, float(torch.randint(0, 9, (), generator=generator)) / 10)
        radius = int(torch.randint(0, 6, (), generator=generator))
        found = LocalLeap(kappa, tau, radius, transitive).commit(step).reveal
        for row in range(len(found)):
            c, masked = step.confidence[row].tolist(), step.masked[row].tolist()
            expected = by_loop(c, masked, kappa, tau, radius, transitive)
            assert set(torch.nonzero(found[row])[:, 0].tolist()) == expected
        relaxed += int(step.counts["relaxed_commits"].sum())
        assert torch.equal(sum(step.counts.values()), found.sum(1))
    assert relaxed > 1000


# The control


def test_random_neighbours_are_as_many_and_anywhere():
    generator = torch.Generator().manual_seed(1)
    far = 0
    for _ in range(300):
        step = random_step(generator)
        near, drawn = LocalLeap(0.9, 0.0, 2), RandomNeighbours(0.9, 0.0, 2)
        anchors = step.masked & (step.confidence >= 0.9)
        there = near.neighbours(step, anchors) & step.masked & ~anchors
        chosen = drawn.neighbours(step, anchors)
        assert torch.equal(chosen.sum(1), there.sum(1))
        assert not bool((chosen & (anchors | ~step.masked)).any())
        far += int((chosen & ~there).sum())
    assert far > 100


def test_random_neighbours_are_uniform():
    """Of seven masked positions two are near the anchor; each is drawn with 2 / 7. 4000 rows, sigma .007."""
    commit = RandomNeighbours(0.9, 0.0, 1)
    step = SimpleNamespace(
        masked=torch.ones(4000, 8, dtype=torch.bool), confidence=torch.full((4000, 8), 0.5, dtype=torch.float64)
    )
    step.confidence[:, 3] = 0.95
    generator = torch.Generator().manual_seed(0)
    step.random_places = lambda: torch.rand(4000, 8, dtype=torch.float64, generator=generator)
    drawn = commit.neighbours(step, step.confidence >= 0.9).double().mean(0)
    assert drawn[3] == 0
    assert drawn[[0, 1, 2, 4, 5, 6, 7]].tolist() == pytest.approx([2 / 7] * 7, abs=0.03)


def test_random_neighbours_without_a_lower_bar_are_threshold_decoding():
    plain = Sampler(gen_length=20, blocks=FixedBlocks(8), commit=Threshold(0.7))
    found = replace(plain, commit=RandomNeighbours(0.7, None))(lively(0, 2.0), None, prompts_of(3, 8))
    assert same_run(found, plain(lively(0, 2.0), None, prompts_of(3, 8)))


# Diagnostics


def changing(*tables):
    """Every position gets the n-th list of (token, confidence) at the n-th forward."""
    count = iter(range(100))

    def logits(canvas):
        tokens, sure = zip(*tables[min(next(count), len(tables) - 1)], strict=True)
        return torch.cat([torch.zeros(1, VOCAB), confident(tokens, sure)]).expand(len(canvas), -1, -1).clone()

    return scripted(logits)


def one_by_one(*tables):
    size = len(tables[0])
    return steps_of(Sampler(gen_length=size, blocks=FixedBlocks(None), commit=Threshold(2.0)), changing(*tables), [[6]])


def test_settled_counts_final_proposals_by_confidence_and_distance():
    a, b = 7, 8
    out, steps = one_by_one(
        [(a, 0.95), (a, 0.8), (a, 0.3), (b, 0.8)],  # 1 and 3 are as sure; 3 is going to change
        [(a, 0.95), (a, 0.85), (a, 0.3), (a, 0.8)],  # no anchor is left
    )
    assert out.answers == [[a] * 4]
    found = settled(steps, out.sequences, edges=(0.5, 0.9), farthest=3)
    # buckets: below .5, below .9, anchors; distances 0 to 3
    assert found.seen.tolist() == [[0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert found.final.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert found.share[1, 1] == 1
    assert found.share[1, 3] == 0
    assert math.isnan(found.share[0, 0])


def test_settled_takes_the_nearest_anchor_and_lumps_the_far_ones():
    _, steps = one_by_one([(7, c) for c in (0.95, 0.5, 0.5, 0.5, 0.92, 0.5, 0.5, 0.5)])
    found = settled(steps[:1], torch.full((1, 9), 7), edges=(), farthest=2)
    assert found.seen.tolist() == [[2, 3, 3]]  # distances 0 1 2 1 0 1 2 3
    assert bool((found.final == found.seen).all())


def test_a_confidence_at_an_edge_belongs_to_the_upper_bucket():
    step = SimpleNamespace(
        rows=torch.tensor([0]),
        columns=torch.tensor([[1, 2]]),
        proposed=torch.tensor([[7, 7]]),
        masked=torch.ones(1, 2, dtype=torch.bool),
        confidence=torch.tensor([[1.0, 0.5]], dtype=torch.float64),
    )
    assert settled([step], torch.full((1, 3), 7), edges=(0.5,), farthest=1).seen.tolist() == [[0, 0], [1, 1]]


def test_settled_is_the_same_for_a_batch_and_its_rows():
    sampler = Sampler(gen_length=20, blocks=FixedBlocks(8), commit=Threshold(2.0))
    prompts = prompts_of(3, 8)
    together = settled(*told(sampler, lively(0, 2.0), prompts))
    rows = [settled(*told(sampler, lively(0, 2.0), [prompt])) for prompt in prompts]
    assert torch.equal(together.seen, sum(one.seen for one in rows))
    assert torch.equal(together.final, sum(one.final for one in rows))
    assert int(together.seen.sum()) > int(together.final.sum()) > 0


def test_delays_count_from_the_last_change_to_the_reveal():
    a, b = 7, 8
    out, steps = one_by_one(
        [(a, 0.9), (a, 0.6), (b, 0.5), (a, 0.4)],
        [(a, 0.9), (a, 0.6), (b, 0.5), (b, 0.4)],
        [(a, 0.9), (a, 0.6), (a, 0.5), (a, 0.4)],
    )
    assert out.trace.order[0].tolist() == [0, 1, 2, 3]
    # 0 at once; 1 settled at 0; 2 only when it was revealed; 3 lost its token at 1 and had it again at 2
    assert delays(steps, out.sequences).tolist() == [[0, 1, 0, 1]]


def test_delays_are_the_same_for_a_batch_and_its_rows():
    """Rows whose blocks have different sizes."""
    blocks = AdaBlock(6, (13, 22), 0.3)
    sampler = Sampler(gen_length=24, blocks=blocks, commit=Threshold(0.6))
    prompts = prompts_of(3, 8, 5)
    together = delays(*told(sampler, lively(1), prompts))
    for row, prompt in enumerate(prompts):
        assert delays(*told(sampler, lively(1), [prompt]))[0].tolist() == together[row].tolist()
    assert int(together.min()) == 0
    assert int(together.max()) > 1


def test_delays_leave_out_what_was_given():
    steps = []
    sampler = Sampler(gen_length=3, commit=Threshold(2.0), watch=steps.append)
    out = sampler(table_of([0.5, 0.6, 0.7]), None, [[6]], fixed={1: 9})
    assert delays(steps, out.sequences).tolist() == [[1, -1, 0]]


# Settings and refusals


def test_the_defaults_are_the_authors():
    assert LocalLeap() == LocalLeap(threshold=0.9, relaxed=0.75, radius=4, transitive=False)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LocalLeap(0.7, 0.75), "relaxed is 0.75, above threshold, 0.7"),
        (lambda: LocalLeap(-0.1, None), "threshold is -0.1"),
        (lambda: LocalLeap(relaxed=-0.1), "relaxed is -0.1"),
        (lambda: LocalLeap(math.nan), "threshold is nan"),
        (lambda: LocalLeap(relaxed=math.nan), "relaxed is nan"),
        (lambda: LocalLeap(radius=-1), "radius is -1"),
        (lambda: RandomNeighbours(transitive=True), "transitive is True"),
        (lambda: Sampler(commit=LocalLeap(), score=RandomOrder()), r"RandomOrder\(\)\)? draws its scores"),
        (lambda: Sampler(commit=LocalLeap(), score=EndLast(RandomOrder())), r"RandomOrder\(\)\)? draws its scores"),
        (lambda: Sampler(commit=RandomNeighbours(), score=RandomOrder()), "RandomNeighbours looks for sure tokens"),
        (lambda: delays([], torch.zeros(1, 1)), "there are no steps"),
    ],
)
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()
