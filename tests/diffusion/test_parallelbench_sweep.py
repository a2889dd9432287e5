"""Sweeps of samplers with their curve, the numbers that sum them up, and the remasking rules against the benchmark's code."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masks import END, MASK, random_predictor, scripted
from scipy.stats import kendalltau, spearmanr

from unwrite.diffusion import (
    RCR,
    Confidence,
    FixedBlocks,
    Gumbel,
    LeftToRight,
    MaskPredictor,
    RandomOrder,
    ReMDM,
    Sampler,
    Threshold,
    TopK,
)
from unwrite.diffusion.parallelbench import (
    IdealListModel,
    ListTokens,
    TextTokens,
    accuracy,
    decode_order,
    load,
    oracle,
    order_preference,
    paper_samplers,
    parallelizability,
    sweep,
)
from unwrite.errors import MethodError

OFFICIAL = json.loads((Path(__file__).parent / "official_parallelbench.json").read_text())
TOKENS = ListTokens()


def ideal(**options):
    return MaskPredictor(IdealListModel(TOKENS, **options), TOKENS.mask_id, (), probe=False)


def counted(k, n=6, **parts):
    settings = {"score": RandomOrder(), "propose": Gumbel(1.0), **parts}
    return Sampler(gen_length=n, steps=n // k, blocks=FixedBlocks(None), commit=TopK(), **settings)


SAMPLERS = {f"k={k}": counted(k) for k in (1, 2, 3, 6)}


def test_a_row_for_every_task_and_sampler_with_forwards_and_tokens_a_step():
    tasks = ["letters_n6/copy", "letters_n6/shuffle", "letters_n6/replace_random"]
    found = sweep(ideal(changed=True), SAMPLERS, tasks, TOKENS)
    assert [(row.task, row.sampler) for row in found.rows] == [(task, name) for task in tasks for name in SAMPLERS]
    for row in found.rows:
        k = int(row.sampler[2:])
        assert (row.samples, row.nfe, row.tokens_per_step) == (100, 6 / k, k)
        assert row.loose == row.strict
        if row.task == "letters_n6/copy" or k == 1:
            assert row.loose == 100
    for row in found.rows[8:]:
        expected = 100 * accuracy("replace_random", 6, int(row.sampler[2:]))
        assert abs(row.loose - expected) <= 4 * math.sqrt(expected * (100 - expected) / 100)
    assert found.records()[0]["task"] == "letters_n6/copy"
    assert "letters_n6/shuffle" in str(found)


def test_the_curve_goes_from_few_to_many_tokens_a_step_and_averages_tasks():
    tasks = ["letters_n6/copy", "letters_n6/shuffle"]
    samplers = {"slow": counted(1), "all": counted(6), "fast": counted(3), "brisk": counted(2)}
    found = sweep(ideal(changed=True), samplers, tasks, TOKENS)
    curve = found.curve()
    expected = [("slow", 1), ("brisk", 2), ("fast", 3), ("all", 6)]
    assert [(point.sampler, point.tokens_per_step) for point in curve] == expected
    by_name = {(row.task, row.sampler): row.loose for row in found.rows}
    for point in curve:
        assert point.score == pytest.approx(sum(by_name[task, point.sampler] for task in tasks) / 2)
    assert [point.score for point in found.curve(task="letters_n6/copy")] == [100] * 4
    assert [point.sampler for point in found.curve(["all", "slow"])] == ["slow", "all"]


def test_an_answer_of_another_length_keeps_the_share_of_steps():
    """Seven cells in half as many steps are four forwards, five are three."""
    tasks = ["letters_n6/insert_index", "letters_n6/remove_index"]
    found = sweep(ideal(), {"half": counted(2)}, tasks, TOKENS)
    assert [row.nfe for row in found.rows] == [4, 3]
    mixed = sweep(ideal(), {"half": counted(2)}, ["letters/copy"], TOKENS)
    assert mixed.rows[0].nfe == sum(-(-n // 2) for n in range(6, 16)) / 10
    assert mixed.rows[0].tokens_per_step == pytest.approx(10.5 / mixed.rows[0].nfe)


def test_every_batch_draws_for_itself():
    drawn = []
    sampler = counted(6, watch=lambda step: drawn.append(step.confidence))
    sweep(ideal(), {"at once": sampler}, ["letters_n6/copy"], TOKENS, batch_size=50)
    one, two = drawn
    assert one.shape == two.shape == (50, 6)
    assert not (one == two).any()


def test_a_sweep_measures_the_order_it_writes_in():
    order = {"left": counted(1, score=LeftToRight()), "random": counted(1), "at once": counted(6)}
    left, random, once = sweep(ideal(), order, ["letters_n6/copy"], TOKENS).rows
    assert left.kendall == left.spearman == pytest.approx(1)
    assert abs(random.kendall) < 0.2  # 100 draws with a sigma of .37 each
    assert math.isnan(once.kendall)


def test_each_samples_best_threshold_is_the_oracle():
    thresholds = {f"{t}": Sampler(gen_length=6, blocks=FixedBlocks(None), commit=Threshold(t)) for t in (0.3, 0.5, 0.9)}
    found = sweep(ideal(changed=True), thresholds, ["letters_n6/shuffle"], TOKENS)
    best, steps = found.oracle(list(thresholds), "letters_n6/shuffle")
    assert best == 100
    by_name = {row.sampler: row for row in found.rows}
    assert steps < by_name["0.9"].nfe
    assert best > by_name["0.3"].loose
    assert found.oracle(["0.9"], "letters_n6/shuffle") == (100, by_name["0.9"].nfe)


def test_samples_may_be_given_instead_of_names():
    some = load("letters_n6/reverse")[:3]
    row = sweep(ideal(), {"all": counted(6)}, {"mine": some}, TOKENS).rows[0]
    assert (row.task, row.samples, row.strict) == ("mine", 3, 100)


class Letters:
    """A tokenizer of single characters, without a chat template."""

    mask_token_id, eos_token_id, pad_token_id = MASK, END, 0
    known = '[]", ABCDEFGHIJK'

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3 + self.known.index(sign) if sign in self.known else 22 for sign in text]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.known[i - 3] for i in ids if 3 <= i < 3 + len(self.known))


def listed(items):
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def text_samples(items="ABC", operation="copy"):
    sample = load(f"letters/{operation}")[0]
    row = {"items": tuple(items), "cells": len(items), "answer": listed(items), "inputs": {"context": listed(items)}}
    return [replace(sample, **row, messages=({"role": "user", "content": listed(items)},))]


def copying(canvas):
    """Says at every position what stands as far from the prompt's beginning, which ends with a new line."""
    end = int((canvas[0] == 22).nonzero()[-1]) + 1
    logits = torch.zeros(*canvas.shape, MASK + 1)
    source = canvas[:, : canvas.shape[1] - end]
    source = torch.where(torch.arange(source.shape[1]) < end - 1, source, END)
    return logits.scatter(2, torch.cat([canvas[:, :end], source], 1)[..., None], 20.0)


def test_infill_gives_the_list_and_masks_its_items():
    frame = TextTokens(Letters(), infill=True).frame(text_samples()[0])
    assert frame.length == len('["A", "B", "C"]')
    assert sorted(set(range(frame.length)) - set(frame.fixed)) == [2, 7, 12]
    shown = "".join(Letters.known[frame.fixed[i] - 3] if i in frame.fixed else "_" for i in range(frame.length))
    assert shown == '["_", "_", "_"]'


@pytest.mark.parametrize(("k", "forwards"), [(1, 3), (2, 2), (4, 1)])
def test_a_text_model_fills_in_only_the_items(k, forwards):
    """Three cells of fifteen positions: a sampler's steps are a share of the cells."""
    tokens = TextTokens(Letters(), infill=True)
    row = sweep(scripted(copying), {"k": counted(k, 4)}, {"copy": text_samples()}, tokens).rows[0]
    assert (row.strict, row.nfe, row.tokens_per_step) == (100, forwards, 3 / forwards)


def test_a_text_model_writes_the_whole_answer_in_the_tasks_positions():
    samplers = {"k=4": Sampler(gen_length=32, steps=8, blocks=FixedBlocks(None), commit=TopK(), score=LeftToRight())}
    found = sweep(scripted(copying), samplers, {"copy": text_samples()}, TextTokens(Letters()))
    row = found.rows[0]
    assert (row.strict, row.nfe, row.tokens_per_step) == (100, 16, 4)  # 64 positions
    assert row.kendall > 0.9
    assert not math.isnan(row.kendall_answer)
    assert row.kendall_answer < row.kendall  # fewer groups of four


def test_a_chat_template_is_used_where_there_is_one():
    class Chat(Letters):
        chat_template = "yes"

        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            assert add_generation_prompt
            assert not tokenize
            return "AB" * len(messages)

    assert TextTokens(Chat()).frame(text_samples()[0]).prompt == Letters()("AB")["input_ids"]


def test_parallelizability_is_the_mean_of_k_weighted_by_score():
    assert parallelizability({1: 100, 2: 100, 4: 100}) == pytest.approx(7 / 3)
    assert parallelizability({1: 100, 2: 0, 4: 0}) == 1
    assert parallelizability({1: 90, 2: 60, 4: 30}) == pytest.approx((90 + 120 + 120) / 180)


def test_order_preference_is_the_gain_of_halving_the_block():
    assert order_preference({2: 80, 4: 70, 8: 60, 16: 50, 32: 40}) == pytest.approx(10)
    assert order_preference({2: 40, 8: 60}) == pytest.approx(-10)
    assert order_preference({2: 50, 32: 50}) == pytest.approx(0)
    assert order_preference({2: 44, 4: 42, 8: 38}, log=False) == pytest.approx(1)


def test_the_oracle_takes_the_fewest_steps_of_the_best_score():
    scores = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    steps = torch.tensor([[2, 1, 3], [5, 4, 7]])
    assert oracle(scores, steps) == (pytest.approx(2 / 3), pytest.approx((2 + 4 + 3) / 3))


@pytest.mark.parametrize("against", ["position", "sorted"])
def test_decode_orders_are_scipys_rank_correlations(against):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-1, 5, (20, 9), generator=generator)
    written = torch.rand(20, 9, generator=generator) < 0.8
    found = decode_order(steps, written, against)
    for row in range(20):
        kept = written[row] & (steps[row] >= 0)
        values = steps[row][kept]
        other = torch.arange(9)[kept] if against == "position" else values.sort().values
        assert float(found["kendall"][row]) == pytest.approx(kendalltau(other, values)[0], abs=1e-12)
        assert float(found["spearman"][row]) == pytest.approx(spearmanr(other, values)[0], abs=1e-12)


@pytest.mark.parametrize("case", range(len(OFFICIAL["order"])))
def test_decode_orders_against_sorted_steps_are_the_benchmarks(case):
    expected = OFFICIAL["order"][case]
    found = decode_order(torch.tensor([expected["steps"]]), against="sorted")
    assert float(found["kendall"]) == pytest.approx(expected["kendall"], abs=1e-9)
    assert float(found["spearman"]) == pytest.approx(expected["spearman"], abs=1e-9)


def test_groups_in_order_are_no_perfect_order():
    """Position by position it is not known in which order a group came; the benchmark counts it as in order."""
    groups = torch.tensor([[0, 0, 1, 1]])
    assert float(decode_order(groups)["kendall"]) == pytest.approx(4 / math.sqrt(6 * 4))
    assert float(decode_order(groups, against="sorted")["kendall"]) == 1
    assert float(decode_order(torch.tensor([[3, 2, 1, 0]]))["kendall"]) == -1


def test_the_papers_grid():
    small, large = paper_samplers(32), paper_samplers(64)
    assert len(small) == 4 * 21 + 6 + 6 * (6 + 5)
    assert len(large) == 4 * 28 + 7 + 7 * (6 + 5)
    assert small["confidence k=4 block=8"] == Sampler(
        gen_length=32, steps=8, blocks=FixedBlocks(8), score=Confidence(), commit=TopK()
    )
    assert small["threshold 0.9 block=32"].commit == Threshold(0.9)
    assert paper_samplers(32, 1.0)["random k=1 block=1"].propose == Gumbel(1.0)


def test_the_grid_runs_on_answers_of_its_length():
    samples = [s for s in load("letters/copy") if s.cells == 8][:2]
    found = sweep(ideal(), paper_samplers(8), {"copy": samples}, TOKENS)
    assert {row.strict for row in found.rows} == {100}
    assert max(row.tokens_per_step for row in found.rows) == 8


@pytest.mark.parametrize("rule", ["rcr", "remdm"])
def test_remasking_writes_what_the_benchmarks_code_writes(rule):
    for case in OFFICIAL[rule]:
        length, block, steps, *more = case["setting"]
        commit = RCR() if rule == "rcr" else ReMDM(extra=more[0], number=more[1])
        sampler = Sampler(gen_length=length, steps=steps, blocks=FixedBlocks(block), commit=commit)
        out = sampler(random_predictor(case["seed"]), None, [case["prompt"]])
        assert out.sequences[0, len(case["prompt"]) :].tolist() == case["tokens"], case["setting"]
        assert int(out.nfe[0]) == case["nfe"], case["setting"]


@pytest.mark.parametrize("commit", [RCR(), ReMDM(extra=2, number=3)])
def test_remasking_hides_no_token_that_was_given(commit):
    """Even where every choice has the probability 1, so that confidences can't tell given tokens from written ones."""

    def certain(canvas):
        return torch.full((*canvas.shape, MASK + 1), -1e4).index_fill(-1, torch.tensor(5), 0.0)

    given = {0: 7, 1: 8, 6: 9}
    sampler = Sampler(gen_length=8, steps=4, blocks=FixedBlocks(8), commit=commit)
    out = sampler(scripted(certain), None, [[3, 4]], fixed=given)
    assert out.sequences[0, 2:].tolist() == [7, 8, 5, 5, 5, 5, 9, 5]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sweep(ideal(), {}, ["letters/copy"], TOKENS), "at least one of each"),
        (lambda: sweep(ideal(), SAMPLERS, [], TOKENS), "at least one of each"),
        (lambda: sweep(ideal(), SAMPLERS, {"none": []}, TOKENS), "none has no samples"),
        (lambda: sweep(ideal(), SAMPLERS, ["puzzle/sudoku_n4_12"], TOKENS), "not written in list tokens"),
        (
            lambda: TextTokens(Letters(), infill=True).frame(load("waiting_line/copy")[0]),
            "a cell of an infilled list is one",
        ),
        (lambda: TextTokens(Letters(), infill=True).frame(load("puzzle/sudoku_n4_12")[0]), "no list to fill in"),
        (lambda: parallelizability({1: 0.0}), "no score is above 0"),
        (lambda: parallelizability({}), "no score is above 0"),
        (lambda: order_preference({2: 50.0}), "two block lengths"),
        (lambda: oracle(torch.zeros(2, 3), torch.zeros(3, 2)), "of both"),
        (lambda: paper_samplers(48), "power of two"),
    ],
)
def test_refuses_what_has_no_meaning(call, says):
    with pytest.raises(MethodError, match=says):
        call()


def test_refuses_before_the_first_forward_what_a_sampler_cannot_write():
    """Six cells are no multiple of four; the sampler before this one could have written them."""
    watched = []
    samplers = {
        "fine": counted(1, watch=watched.append),
        "quarters": replace(counted(1, 8), blocks=FixedBlocks(4)),
    }
    with pytest.raises(MethodError, match=r"quarters .* letters_n6/copy.* no multiple of the block size 4"):
        sweep(ideal(), samplers, ["letters_n6/copy"], TOKENS)
    assert not watched


def test_refuses_an_oracle_over_what_was_not_swept():
    found = sweep(ideal(), {"k": counted(6)}, ["letters_n6/copy"], TOKENS)
    with pytest.raises(MethodError, match="was not swept"):
        found.oracle(["other"], "letters_n6/copy")


def test_refuses_infill_without_a_mask_token():
    class Maskless(Letters):
        mask_token_id = None

    with pytest.raises(MethodError, match="no mask token"):
        TextTokens(Maskless(), infill=True).frame(text_samples()[0])
    assert TextTokens(Maskless(), infill=True, mask_id=MASK).frame(text_samples()[0]).length == 15
