"""Prophet: when a row stops, what it then holds, and that it is the baseline until it does."""

import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from masks import END, MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from helpers.grids import crossed, spread
from unwrite.diffusion import Edit, FixedBlocks, Gumbel, RandomOrder, Sampler, Threshold, TopK
from unwrite.diffusion.parts.prophet import (
    Convergence,
    Prophet,
    ProphetLog,
    anchors,
    answer_convergence,
    calibrated_bars,
    token_convergence,
)
from unwrite.errors import DataError, MethodError

OFFICIAL = json.loads(Path(__file__).with_name("official_prophet.json").read_text(encoding="utf-8"))
INF = math.inf
NEVER, AT_ONCE = (INF,) * 3, (-INF,) * 3
ONE_BY_ONE = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=TopK())
IN_ANY_ORDER = Sampler(gen_length=24, blocks=FixedBlocks(None), commit=TopK(), score=RandomOrder())


def table_of(*rows):
    """Logits [1 + positions, vocab]: each row's largest values at tokens 5, 6, ..., all others at -20."""
    table = torch.full((1 + len(rows), VOCAB), -20.0)
    for place, values in enumerate(rows, 1):
        table[place, 5 : 5 + len(values)] = torch.tensor(values)
    return table


def gaps_of(model, prophet, sampler=ONE_BY_ONE, prompts=([7],), **more):
    """The gap of each forward of the first row, without stopping."""
    log = ProphetLog(replace(prophet, bars=NEVER))
    replace(sampler, stop=log.prophet, watch=log)(model, None, list(prompts), **more)
    return log.gaps[0]


def at(n, steps=24, **more):
    """Stops at forward n, whatever the gap."""
    return Prophet((INF, -INF, -INF), (n / steps, n / steps), **more)


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# Identities


@crossed(commit=[TopK(), Threshold(0.7)], cache=["none", "prefix", "dual"], seed=[0, 1, 2])
def test_infinite_bars_are_the_baseline(commit, seed, cache):
    plain = replace(ONE_BY_ONE, commit=commit, cache=cache)
    prompts = prompts_of(3, 6, 5, seed=seed)
    expected = plain(lively(seed), None, prompts)
    for region in ("after_anchor", "last_n_before_eos", "all_masked"):
        out = replace(plain, stop=Prophet(NEVER, region=region, start=10))(lively(seed), None, prompts)
        assert same_run(out, expected)
        assert out.trace.exits.tolist() == [-1] * 3


@pytest.mark.parametrize("sampler", [ONE_BY_ONE, IN_ANY_ORDER])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("seed", [0, 1])
def test_bars_at_minus_infinity_take_one_forward(sampler, cache, seed):
    prompts = prompts_of(3, 6, seed=seed)
    predictor = lively(seed)
    out = replace(sampler, cache=cache, stop=Prophet(AT_ONCE, start=10))(predictor, None, prompts, fixed={4: 7})
    assert out.nfe.tolist() == [1, 1]
    assert out.trace.exits.tolist() == [0, 0]
    for row, prompt in zip(out.sequences, prompts, strict=True):
        canvas = torch.tensor([prompt + [MASK] * 24])
        canvas[0, len(prompt) + 4] = 7
        logits = predictor.model(input_ids=canvas).logits[0].index_fill(-1, torch.tensor(MASK), -torch.inf)
        expected = torch.where(canvas[0] == MASK, logits.argmax(-1), canvas[0])
        assert row[: len(expected)].tolist() == expected.tolist()


def test_in_any_order_infinite_bars_are_the_baseline():
    prompts = prompts_of(3, 6)
    expected = IN_ANY_ORDER(lively(), None, prompts)
    assert same_run(replace(IN_ANY_ORDER, stop=Prophet(NEVER, start=10))(lively(), None, prompts), expected)


@pytest.mark.parametrize("sampler", [ONE_BY_ONE, IN_ANY_ORDER, replace(ONE_BY_ONE, steps=12)])
@pytest.mark.parametrize("n", [2, 9, 12])
def test_it_stops_as_a_cut_off_baseline_filled_with_the_arg_max(sampler, n):
    prompt, predictor, fixed = prompts_of(5, seed=n)[0], lively(n), {12: 7, 13: 9}
    out = replace(sampler, stop=at(n, sampler.steps or 24))(predictor, None, [prompt], fixed=fixed)
    assert (out.nfe.tolist(), out.trace.exits.tolist()) == ([n], [n - 1])
    plain = replace(sampler, keep_history=True)(predictor, None, [prompt], fixed=fixed)
    canvas = torch.tensor([prompt + plain.trace.canvases[0][n - 2]])
    logits = predictor.model(input_ids=canvas).logits[0].index_fill(-1, torch.tensor(MASK), -torch.inf)
    assert MASK in canvas
    assert out.sequences[0].tolist() == torch.where(canvas[0] == MASK, logits.argmax(-1), canvas[0]).tolist()


@pytest.mark.parametrize("n", [1, 6, 20])
def test_nothing_that_was_given_changes_and_no_mask_stays(n):
    prompts, fixed = prompts_of(3, 6), {12: 7, 13: 9}
    out = replace(ONE_BY_ONE, stop=at(n), guidance=0.5)(lively(), None, prompts, fixed=fixed)
    assert out.trace.exits.tolist() == [n - 1] * 2
    for row, prompt in zip(out.sequences.tolist(), prompts, strict=True):
        assert row[: len(prompt)] == prompt
        assert (row[len(prompt) + 12], row[len(prompt) + 13]) == (7, 9)
        assert MASK not in row


# The bar


def test_the_bars_boundaries():
    def bar(n, **more):
        return float(Prophet(**more).bar(SimpleNamespace(number=torch.tensor([n - 1]), total=100))[0])

    assert [bar(n) for n in (1, 32, 33, 66, 67, 100)] == [7.5, 7.5, 5.0, 5.0, 2.5, 2.5]
    assert [bar(n, schedule="line") for n in (50, 100, 150)] == pytest.approx([5.0, 2.5, 2.5])
    assert bar(20, bars=(3.0, 2.0, 1.0), cuts=(0.1, 0.2)) == 1.0
    assert bar(40, bars=(2.0, 2.0, 2.0), schedule="line") == 2.0


def test_the_gap_is_the_mean_distance_of_the_two_largest_logits():
    table = table_of(*[(0.0, 0.0)] * 8, (9.0, 3.0), (4.0, 1.0))
    sampler = replace(ONE_BY_ONE, gen_length=10, blocks=FixedBlocks(None))
    prophet = Prophet(start=8, count=2)
    assert gaps_of(rows_of(table), prophet, sampler) == [4.5] * 10
    # 4.5 is less than the bar of 5 at 5 / 10 and more than that of 2.5 from 7 / 10 on.
    assert replace(sampler, stop=prophet)(rows_of(table), None, [[7]]).nfe.tolist() == [7]
    assert replace(sampler, stop=replace(prophet, bars=(9.0, 9.0, 4.5)))(rows_of(table), None, [[7]]).nfe.tolist() == [
        7
    ]


def test_even_an_infinite_gap_stays_below_an_infinite_bar():
    table = torch.full((25, VOCAB), -INF)
    table[:, 5] = 0.0
    assert gaps_of(rows_of(table), Prophet(start=10))[0] == INF
    assert replace(ONE_BY_ONE, stop=Prophet(NEVER, start=10))(rows_of(table), None, [[7]]).nfe.tolist() == [24]


def test_the_gap_is_of_logits_not_of_probabilities():
    table = torch.randn(25, VOCAB, generator=torch.Generator().manual_seed(0))
    prophet = Prophet(start=10)
    plain, moved, twice = (gaps_of(rows_of(one), prophet)[0] for one in (table, table + 3, 2 * table))
    assert moved == pytest.approx(plain, abs=1e-5)
    assert twice == pytest.approx(2 * plain, abs=1e-5)


def test_a_confident_mask_token_does_not_look_like_an_answer():
    table = table_of(*[(1.0, 0.5)] * 24)
    table[:, MASK] = 30.0
    assert gaps_of(rows_of(table), Prophet(start=10))[0] == pytest.approx(0.5)


def test_revealed_positions_of_the_region_count():
    """Two positions, one of which is given: the mean is over both."""
    table = table_of(*[(6.0, 0.0), (2.0, 0.0)])
    sampler = replace(ONE_BY_ONE, gen_length=2, blocks=FixedBlocks(None))
    assert gaps_of(rows_of(table), Prophet(start=0, count=2), sampler, fixed={0: 9}) == [4.0]


@pytest.mark.parametrize("seed", range(6))
def test_lower_bars_never_take_longer(seed):
    prompts = prompts_of(3, 6, seed=seed)
    ladder = [(9.0, 9.0, 9.0), (9.0, 9.0, 2.0), (9.0, 3.0, 2.0), (2.0, 2.0, 2.0), (2.0, 1.0, 0.5), (0.0, 0.0, 0.0)]
    taken = [replace(ONE_BY_ONE, stop=Prophet(bars, start=12))(lively(seed), None, prompts).nfe for bars in ladder]
    for higher, lower in itertools.pairwise(taken):
        assert (lower <= higher).all()
    assert (taken[-1] == 1).all()


# The region


def test_the_region_begins_two_after_the_last_anchor_and_has_five_positions():
    distances = [float(place) for place in range(1, 25)]
    table = table_of(*[(distance, 0.0) for distance in distances])
    found = gaps_of(rows_of(table), Prophet(), fixed={3: 9, 7: 9})
    assert found[0] == sum(distances[9:14]) / 5
    assert gaps_of(rows_of(table), Prophet(), fixed={18: 9})[0] == sum(distances[20:24]) / 4  # cut at the end
    assert gaps_of(rows_of(table), Prophet(start=2, count=3), fixed={18: 9})[0] == sum(distances[2:5]) / 3


def test_each_row_has_its_own_anchor():
    table = table_of(*[(float(place), 0.0) for place in range(24)])
    log = ProphetLog(Prophet(NEVER))
    model = scripted(lambda canvas: table[: canvas.shape[1]].expand(len(canvas), -1, -1).clone())
    replace(ONE_BY_ONE, stop=log.prophet, watch=log)(model, None, [[7], [7]], fixed=[{3: 9}, {8: 9}])
    assert (log.gaps[0][0], log.gaps[1][0]) == (7.0, 12.0)


@pytest.mark.parametrize(
    ("prophet", "fixed"),
    [
        (Prophet(AT_ONCE), {}),
        (Prophet(AT_ONCE), {23: 7}),
        (Prophet(AT_ONCE), {22: 7}),
        (Prophet(AT_ONCE, start=24), {}),
    ],
)
def test_a_region_outside_the_answer_never_stops_and_warns_once(prophet, fixed):
    expected = ONE_BY_ONE(lively(), None, prompts_of(3, 6), fixed=fixed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = replace(ONE_BY_ONE, stop=prophet)(lively(), None, prompts_of(3, 6), fixed=fixed)
    assert same_run(out, expected)
    assert [str(one.message)[:33] for one in caught] == ["Prophet: 2 of 2 rows have no answ"]


def test_an_empty_region_of_ones_own_never_stops():
    nowhere = Prophet(AT_ONCE, region=lambda step: torch.zeros(len(step.rows), 24, dtype=torch.bool))
    prompts = prompts_of(3, 6)
    assert same_run(replace(ONE_BY_ONE, stop=nowhere)(lively(), None, prompts), ONE_BY_ONE(lively(), None, prompts))


def test_before_the_end_token_follows_what_is_predicted():
    distances = [float(place) for place in range(1, 25)]
    table = table_of(*[(distance, 0.0) for distance in distances])
    table[1 + 9, END] = table[1 + 15, END] = 40.0  # first at 9
    prophet = Prophet(region="last_n_before_eos")
    assert gaps_of(rows_of(table), prophet)[0] == sum(distances[4:9]) / 5
    table[1 + 9, END], table[1 + 2, END] = -20.0, 40.0
    assert gaps_of(rows_of(table), prophet)[0] == sum(distances[0:2]) / 2
    table[1 + 2, END] = table[1 + 15, END] = -20.0
    assert all(math.isnan(gap) for gap in gaps_of(rows_of(table), prophet))
    assert gaps_of(rows_of(table), prophet, fixed={6: END})[0] == sum(distances[1:6]) / 5  # one that stands there


def test_all_masked_is_the_mean_over_what_is_left():
    table = table_of((8.0, 0.0), (4.0, 0.0), (1.0, 0.0))
    sampler = replace(ONE_BY_ONE, gen_length=3, blocks=FixedBlocks(None))
    assert gaps_of(rows_of(table), Prophet(region="all_masked"), sampler) == pytest.approx([13 / 3, 5 / 2, 1.0])


def test_a_region_of_ones_own():
    table = table_of(*[(float(place), 0.0) for place in range(24)])
    ends = Prophet(region=lambda step: torch.arange(24).expand(len(step.rows), -1) >= 22)
    assert gaps_of(rows_of(table), ends)[0] == 22.5


def test_a_shortened_row_is_looked_at_as_far_as_it_goes():
    class Cut(Edit):
        def edit(self, step, revealed):
            return step.prompt + 12

    table = table_of(*[(float(place), 0.0) for place in range(24)])
    sampler = replace(ONE_BY_ONE, edit=Cut())
    own = Prophet(region=lambda step: torch.arange(24).expand(len(step.rows), -1) >= 10)
    for prophet in (own, Prophet(start=10)):
        assert gaps_of(rows_of(table), prophet, sampler)[1:] == [10.5] * 11


# Composition


@pytest.mark.parametrize("seed", range(4))
def test_a_dual_cache_is_asked_where_it_has_all_logits(seed):
    steps = []
    prophet = Prophet((1.5, 1.0, 0.5), start=18)
    sampler = replace(ONE_BY_ONE, cache="dual", stop=prophet, watch=steps.append)
    out = sampler(lively(seed), None, prompts_of(5, seed=seed))
    exits = int(out.trace.exits[0])
    assert 0 <= exits < 24
    assert exits % 8 == 0 or exits > 16  # a refresh, or the last block
    last = steps[-1]
    filled = last.wide.masked[0]
    assert last.wide.known[0][filled].all()
    assert torch.equal(last.canvas[0, 5:][filled], last.wide.clean[0].argmax(-1)[filled])


def test_a_region_in_the_block_waits_for_the_logits_that_are_to_be_filled():
    """With a dual cache the region of the first block is known at every step, what follows is not."""
    steps = []
    sampler = replace(ONE_BY_ONE, cache="dual", stop=at(3, start=0, count=4), watch=steps.append)
    out = sampler(lively(), None, prompts_of(5))
    assert not any(math.isnan(float(sampler.stop.gap(step)[0])) for step in steps[:8])
    assert out.trace.exits.tolist() == [8]  # the next refresh
    assert 0 not in out.sequences[0, 5:].tolist()


def test_what_has_no_logits_is_not_guessed():
    log = ProphetLog(Prophet(NEVER, start=10))
    replace(ONE_BY_ONE, cache="dual", stop=log.prophet, watch=log)(lively(), None, prompts_of(5))
    assert [ids.count(MASK) for ids in log.guesses[0]] == [0] + [16] * 7 + [0] + [8] * 7 + [0] * 8


def test_a_prefix_cache_is_asked_at_every_step():
    log = ProphetLog(Prophet(NEVER, start=18))
    replace(ONE_BY_ONE, cache="prefix", stop=log.prophet, watch=log)(lively(), None, prompts_of(5))
    assert len(log.gaps[0]) == 24
    assert not any(math.isnan(gap) for gap in log.gaps[0])
    log = ProphetLog(Prophet(NEVER, start=4, count=4))  # behind the block after the first one: only at refreshes
    replace(ONE_BY_ONE, cache="prefix", stop=log.prophet, watch=log)(lively(), None, prompts_of(5))
    assert [n for n, gap in enumerate(log.gaps[0]) if n >= 8 and not math.isnan(gap)] == [8, 16]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_rows_stop_one_by_one_as_they_would_alone(cache):
    prompts = prompts_of(3, 6, 5, seed=3)
    sampler = replace(ONE_BY_ONE, cache=cache, stop=Prophet((3.0, 2.0, 1.0), start=14))
    out = sampler(lively(3), None, prompts)
    alone = [sampler(lively(3), None, [prompt]) for prompt in prompts]
    assert out.nfe.tolist() == [int(one.nfe) for one in alone]
    assert out.answers == [one.answers[0] for one in alone]
    assert len(set(out.nfe.tolist())) > 1


def test_drawn_tokens_are_filled_with_the_clean_arg_max():
    table = torch.randn(25, VOCAB, generator=torch.Generator().manual_seed(0))
    table[:, MASK] = -20.0
    sampler = replace(ONE_BY_ONE, propose=Gumbel(5.0), stop=Prophet(AT_ONCE, start=10))
    assert sampler(rows_of(table), None, [[7]]).sequences[0, 1:].tolist() == table[1:].argmax(-1).tolist()


@pytest.mark.parametrize(
    "case",
    spread(
        OFFICIAL["cases"],
        lambda c: (c["sharpness"], c["steps"], c["block"], tuple(c["bars"]), bool(c["fixed"]), c.get("idle")),
    ),
)
def test_it_stops_where_the_official_code_stops(case):
    prophet = Prophet(tuple(float(bar) for bar in case["bars"]), start=case["start"])
    if case["fixed"]:
        assert case["start"] == max(map(int, case["fixed"])) + 2
        prophet = replace(prophet, start=None)
    sampler = Sampler(
        gen_length=24, steps=case["steps"], blocks=FixedBlocks(case["block"]), commit=TopK(), stop=prophet
    )
    fixed = {int(place): token for place, token in case["fixed"].items()}
    out = sampler(lively(case["seed"], case["sharpness"]), None, [case["prompt"]], fixed=fixed)
    assert out.sequences[0, len(case["prompt"]) :].tolist() == case["answer"]
    assert int(out.nfe) == case["forwards"] - case.get("idle", 0)
    assert int(out.trace.exits[0]) == (case["exit"] or 0) - 1


# Anchors


class Words:
    def encode(self, text, add_special_tokens):
        assert text[0] == " "
        assert not add_special_tokens
        return [10 + len(part) for part in text.strip().split("-") if part]


def test_anchors_take_one_position_a_token():
    assert anchors("20:The|21: answer |22:is-it", Words(), 24) == {20: 13, 21: 16, 22: 12, 23: 12}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20:an-swer|21:is", "overlaps"),
        ("24:is", "position 24, and the answer has 24"),
        ("23:an-swer", "position 24, and the answer has 24"),
        ("-1:is", "is no anchor"),
        ("20", "is no anchor"),
        ("20: ", "is no anchor"),
        ("20:-", "makes nothing of '-'"),
    ],
)
def test_anchors_without_meaning_are_refused(text, says):
    with pytest.raises(MethodError, match=says):
        anchors(text, Words(), 24)


# When the answer was known


def test_the_log_keeps_what_each_forward_would_have_written():
    log = ProphetLog(Prophet(NEVER, start=10))
    out = replace(ONE_BY_ONE, stop=log.prophet, watch=log)(lively(), None, prompts_of(5))
    assert len(log.gaps[0]) == len(log.guesses[0]) == 24
    assert log.guesses[0][-1] == out.sequences[0, 5:].tolist()
    for n in (1, 7, 20):  # a text stopped at forward n is the guess of that forward
        stopped = replace(ONE_BY_ONE, stop=at(n, start=10))
        assert stopped(lively(), None, prompts_of(5)).sequences[0, 5:].tolist() == log.guesses[0][n - 1]


def test_a_log_without_a_part_that_reads_the_canvas_says_so():
    log = ProphetLog(Prophet(start=10))
    with pytest.raises(MethodError, match="stop=Prophet"):
        replace(ONE_BY_ONE, watch=log)(lively(), None, prompts_of(5))


def test_answers_converge_once_and_for_good():
    history = [[1], [4], [1], [4], [4], [4], [4], [4]]
    found = answer_convergence(history, lambda ids: ids[0], 4)
    assert found == Convergence(first=2 / 8, stable=4 / 8)
    assert found.by(0.25, stable=False)
    assert not found.by(0.25)
    assert found.by(0.5)
    assert answer_convergence(history, lambda ids: ids[0], 9) == Convergence(None, None)
    assert answer_convergence(history[:3], lambda ids: ids[0], 4) == Convergence(2 / 3, None)
    assert not Convergence(None, None).by(1.0)


def test_tokens_converge_where_they_last_changed():
    assert token_convergence([[1, 5, 7], [2, 5, 8], [2, 5, 7], [2, 5, 7]]) == [0.5, 0.25, 0.75]


def test_bars_are_quantiles_of_the_gaps_after_the_answer_settled():
    gaps = [[100.0, 200.0, 1.0, 2.0, 3.0], [math.nan, 4.0, 5.0]]
    histories = [[[1], [2], [4], [4], [4]], [[4], [4], [4]]]
    found = calibrated_bars(gaps, histories, lambda ids: ids[0])
    assert found == pytest.approx((4.8, 4.0, 3.0))  # of 1, 2, 3, 4, 5
    with pytest.raises(DataError, match="no forward has a gap"):
        calibrated_bars([[math.nan]], [[[1]]], lambda ids: ids[0])


# Refusals


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Prophet((1.0, 2.0)), "three numbers"),
        (lambda: Prophet((math.nan, 2.0, 1.0)), "three numbers"),
        (lambda: Prophet(cuts=(0.7, 0.3)), "no larger"),
        (lambda: Prophet(cuts=(-0.1, 0.3)), "no larger"),
        (lambda: Prophet(schedule="curve"), "curve"),
        (lambda: Prophet(region="all_mask"), "Did you mean 'all_masked'"),
        (lambda: Prophet(start=-1), "start is -1"),
        (lambda: Prophet(count=0), "count is 0"),
        (lambda: Sampler(gen_length=32, steps=3, blocks=FixedBlocks(8), stop=Prophet()), "3 steps for 4 blocks"),
    ],
)
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def test_rising_bars_are_warned_of():
    with pytest.warns(UserWarning, match="rise"):
        Prophet((1.0, 2.0, 3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prophet((2.0, 2.0, 1.0))


def test_confident_answers_stop_at_the_late_bar():
    """A table at .99 has gaps of ln(.99 / (.01 / 22)) = 7.7, more than the first bar."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 24, [0.99] * 24)])
    assert gaps_of(rows_of(table), Prophet(start=10))[0] == pytest.approx(math.log(0.99 * 22 / 0.01))
    assert replace(ONE_BY_ONE, stop=Prophet(start=10))(rows_of(table), None, [[7]]).nfe.tolist() == [1]
