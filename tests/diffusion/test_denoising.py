"""The loop: how many forwards, in which order, what stays as it was."""

import itertools
from dataclasses import replace

import pytest
import torch
from masks import END, MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from unwrite.diffusion import (
    RCR,
    AdaBlock,
    Commit,
    CommitRule,
    DrawnBlocks,
    EarlyStop,
    Edit,
    Factor,
    FixedBlocks,
    Gumbel,
    LeftToRight,
    NoEnd,
    Origin,
    RandomOrder,
    ReMDM,
    Sampler,
    Stop,
    Threshold,
    TopK,
)

SIZE = 16
ONE_BY_ONE = Sampler(gen_length=SIZE, steps=SIZE, blocks=FixedBlocks(8), commit=TopK())


def written(sampler, predictor, prompts):
    out = sampler(predictor, None, prompts)
    return [row[: len(prompt) + SIZE].tolist() for row, prompt in zip(out.sequences, prompts, strict=True)]


def by_hand(predictor, prompt, block):
    """Greedy one-by-one decoding, written out."""
    canvas = torch.tensor([prompt + [MASK] * SIZE])
    for start in range(len(prompt), len(prompt) + SIZE, block):
        for _ in range(block):
            logits = predictor.model(input_ids=canvas).logits[0].double().index_fill(-1, torch.tensor(MASK), -torch.inf)
            sure, tokens = logits.softmax(-1).max(-1)
            sure[canvas[0] != MASK] = -1
            place = start + int(sure[start : start + block].argmax())
            canvas[0, place] = tokens[place]
    return canvas[0].tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_token_a_step_is_greedy_one_by_one_decoding(seed):
    predictor, prompts = lively(seed), prompts_of(5, seed=seed)
    out = ONE_BY_ONE(predictor, None, prompts)
    assert out.sequences[0].tolist() == by_hand(predictor, prompts[0], 8)
    assert out.nfe.tolist() == [SIZE]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_threshold_above_one_is_one_token_a_step(seed):
    predictor, prompts = lively(seed), prompts_of(5, 3, 9, seed=seed)
    strict = replace(ONE_BY_ONE, commit=Threshold(1.1), steps=None)
    assert written(strict, predictor, prompts) == written(ONE_BY_ONE, predictor, prompts)
    assert strict(predictor, None, prompts).nfe.tolist() == [SIZE] * 3


@pytest.mark.parametrize("propose", [Gumbel(), Gumbel(9.0)])
def test_a_threshold_of_zero_takes_one_forward_a_block(propose):
    """However unlikely a token is: at a temperature of 9 many of those drawn are."""
    steps = []
    sampler = replace(ONE_BY_ONE, commit=Threshold(0.0), propose=propose, watch=steps.append)
    assert sampler(lively(), None, prompts_of(5, 3)).nfe.tolist() == [2, 2]
    least = min(float(step.confidence.min()) for step in steps)
    assert least < 1e-4 or propose == Gumbel()


def test_blocks_of_one_go_strictly_from_left_to_right():
    out = replace(ONE_BY_ONE, blocks=FixedBlocks(1))(lively(), None, prompts_of(4))
    assert out.trace.order[0].tolist() == list(range(SIZE))
    assert out.trace.blocks == [[1] * SIZE]


@pytest.mark.parametrize("blocks", [4, 5, 16, 40, None])
def test_blocks_cover_the_answer_and_are_finished_in_order(blocks):
    sampler = Sampler(gen_length=SIZE, blocks=FixedBlocks(blocks), commit=Threshold(0.3))
    trace = sampler(lively(), None, prompts_of(4, 6)).trace
    for row in range(2):
        assert sum(trace.blocks[row]) == SIZE
        order = trace.order[row].split(trace.blocks[row])
        assert all(int(a.max()) < int(b.min()) for a, b in itertools.pairwise(order))


RULES = {
    "threshold": {"commit": Threshold(0.4)},
    "factor": {"commit": Factor(1.5)},
    "two a step": {"commit": TopK(), "steps": SIZE // 2},
    "left to right": {"commit": TopK(), "score": LeftToRight(), "steps": SIZE // 2},
    "rcr": {"commit": RCR(), "steps": SIZE // 2},
    "remdm": {"commit": ReMDM(), "steps": SIZE},
    "origin": {"commit": Origin(), "steps": 8, "seed": 3},
    "drawn": {"commit": Threshold(0.4), "propose": Gumbel(0.8), "seed": 5},
    "drawn places": {"commit": TopK(temperature=0.5), "steps": 8, "seed": 5},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_batch_writes_what_each_row_writes_alone(rule, cache):
    """Rows draw from their own generators: row 0's draws are those of a call of its own, so only it is compared there."""
    predictor, prompts = lively(1), prompts_of(3, 8, 5)
    sampler = Sampler(gen_length=SIZE, blocks=FixedBlocks(8), **RULES[rule], cache=cache)
    together = sampler(predictor, None, prompts)
    drawn = "seed" in RULES[rule]
    for row, prompt in enumerate(prompts[:1] if drawn else prompts):
        alone = sampler(predictor, None, [prompt])
        assert together.sequences[row, : len(prompt) + SIZE].tolist() == alone.sequences[0].tolist()
        assert int(together.nfe[row]) == int(alone.nfe)
        assert together.trace.work[row] == alone.trace.work[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", [{}, {"guidance": 0.5}, {"guidance": 0.5, "cache": "dual"}])
def test_no_mask_is_left_and_the_prompt_is_as_it_was(rule, how):
    """After every step."""
    prompts, canvases = prompts_of(3, 8), []

    def watch(step):
        canvases.extend(zip(step.rows.tolist(), step.canvas.tolist(), strict=True))

    sampler = Sampler(gen_length=SIZE, blocks=FixedBlocks(8), **RULES[rule], **how, watch=watch)
    out = sampler(lively(1), None, prompts)
    assert not (out.sequences == MASK).any()
    for row, canvas in [*canvases, *enumerate(out.sequences.tolist())]:
        assert canvas[: len(prompts[row])] == prompts[row]
    assert prompts == prompts_of(3, 8)


@pytest.mark.parametrize("rule", ["threshold", "factor", "two a step", "left to right", "origin"])
def test_what_is_revealed_stays(rule):
    canvases = []
    sampler = Sampler(
        gen_length=SIZE, blocks=FixedBlocks(8), **RULES[rule], watch=lambda step: canvases.append(step.canvas)
    )
    sampler(lively(1), None, prompts_of(4))
    for before, after in itertools.pairwise(canvases):
        shown = before != MASK
        assert torch.equal(before[shown], after[shown])


def test_the_mask_token_is_never_written_however_likely():
    table = torch.zeros(9, VOCAB)
    table[:, MASK] = 50.0
    out = Sampler(gen_length=8, commit=Threshold(0.9))(rows_of(table), None, [[5]])
    assert not (out.sequences == MASK).any()


def test_of_equals_the_leftmost_goes_first():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.5] * 4)])
    out = Sampler(gen_length=4, commit=Threshold(2.0))(rows_of(table), None, [[5]])
    assert out.trace.order[0].tolist() == [0, 1, 2, 3]


def test_guidance_mixes_a_forward_without_the_prompt():
    predictor, prompt, w = lively(2), prompts_of(5)[0], 0.7
    steps = []
    sampler = Sampler(gen_length=4, blocks=FixedBlocks(None), commit=Threshold(0.0), guidance=w, watch=steps.append)
    out = sampler(predictor, None, [prompt])
    canvas = torch.tensor([prompt + [MASK] * 4, [MASK] * 9])
    with_prompt, without = predictor.model(input_ids=canvas).logits[:, 5:].detach()
    wanted = (without + (w + 1) * (with_prompt - without)).index_fill(-1, torch.tensor(MASK), -torch.inf)
    torch.testing.assert_close(steps[0].clean[0], wanted, atol=1e-4, rtol=1e-4)
    assert out.nfe.tolist() == [2]


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_without_guidance_nothing_changes_at_weight_zero(cache):
    predictor, prompts = lively(2), prompts_of(5, 4)
    sampler = Sampler(gen_length=SIZE, blocks=FixedBlocks(8), cache=cache)
    assert written(sampler, predictor, prompts) == written(replace(sampler, guidance=0.0), predictor, prompts)


def test_given_tokens_stay_and_are_seen():
    predictor, prompt = lively(3), prompts_of(4)[0]
    out = ONE_BY_ONE(predictor, None, [prompt], fixed={2: 7, 9: 8})
    answer = out.sequences[0, 4:].tolist()
    assert (answer[2], answer[9]) == (7, 8)
    assert out.nfe.tolist() == [SIZE - 2]
    assert out.trace.order[0, [2, 9]].tolist() == [-1, -1]
    assert answer != ONE_BY_ONE(predictor, None, [prompt]).sequences[0, 4:].tolist()


def test_a_block_that_is_already_whole_takes_no_forward():
    out = replace(ONE_BY_ONE, commit=Threshold(0.0))(lively(), None, prompts_of(4), fixed=dict.fromkeys(range(8), 7))
    assert out.nfe.tolist() == [1]
    assert out.trace.blocks == [[8, 8]]


def test_answers_are_cut_at_the_first_end_token_and_sequences_are_not():
    table = torch.cat([torch.zeros(1, VOCAB), confident([7, 8, END, 9], [0.9] * 4)])
    out = Sampler(gen_length=4)(rows_of(table), None, [[5]])
    assert out.answers == [[7, 8]]
    assert out.sequences[0].tolist() == [5, 7, 8, END, 9]


class Cut(Edit):
    """Ten positions of the answer are left after the first step, the last of them still masked."""

    def edit(self, step, revealed):
        return step.prompt + 10


def test_what_was_cut_off_is_never_written_in_the_trace():
    cut = replace(ONE_BY_ONE, blocks=FixedBlocks(None), edit=Cut(), score=LeftToRight(), keep_history=True)
    together = cut(lively(), None, prompts_of(3, 8))
    alone = cut(lively(), None, prompts_of(3))
    for trace in (together.trace, alone.trace):
        assert trace.order[0].tolist() == [*range(10), *[-1] * 6]
        assert trace.revealed[0] == [1] * 10
        assert [canvas[10:] for canvas in trace.canvases[0]] == [[MASK] * 6] * 10
    assert alone.answers[0] == together.answers[0]


class AtOnce(Stop):
    """Stops whatever there is to fill from."""

    def stop(self, step):
        return torch.ones_like(step.opening)


class Blind(AtOnce):
    """Says that it reads its block only."""

    reads = "block"


@pytest.mark.parametrize("stop", [AtOnce(), Blind()])
def test_a_stop_fills_every_mask_from_its_forward(stop):
    table = torch.cat([torch.zeros(1, VOCAB), confident([7] * SIZE, [0.5] * SIZE)])
    out = replace(ONE_BY_ONE, stop=stop)(rows_of(table), None, [[5]])
    assert out.nfe.tolist() == [1]
    assert out.answers == [[7] * SIZE]


class Later(AtOnce):
    """Stops from the second step on."""

    def stop(self, step):
        return step.number >= 1


def test_a_stop_waits_for_a_forward_with_logits_at_every_mask():
    """With a dual cache the first block's later forwards have none behind it; the next block's first one has."""
    steps = []
    stopping = replace(ONE_BY_ONE, stop=Later(), cache="dual", watch=steps.append)
    out = stopping(lively(), None, prompts_of(4, 6))
    assert out.nfe.tolist() == [9, 9]
    assert out.trace.exits.tolist() == [8, 8]
    clean = steps[-1].wide.clean.argmax(-1)[:, 8:]
    assert [row[4 + 8 : 4 + 16].tolist() for row in out.sequences[:1]] == clean[:1].tolist()
    assert replace(stopping, cache="none")(lively(), None, prompts_of(4, 6)).nfe.tolist() == [2, 2]


@pytest.mark.parametrize(
    "parts",
    [
        {"propose": Gumbel(9.0), "commit": Threshold(2.0)},
        {"commit": TopK(temperature=0.5)},
        {"commit": Threshold(2.0), "score": RandomOrder()},
        {"commit": Origin()},
        {"propose": Gumbel(9.0), "commit": Threshold(2.0), "blocks": DrawnBlocks((3, 5))},
    ],
)
def test_what_a_row_draws_does_not_depend_on_the_others_blocks(parts):
    """Row 0 has less to write, so it is in its last, narrower block while row 1 is in a wider one."""
    sampler = Sampler(**{"gen_length": 22, "blocks": AdaBlock(6, (13,), 2.0), "seed": 3, **parts})
    prompts, given = prompts_of(3, 8), dict.fromkeys(range(6, 12), 7)
    widths = []
    watched = replace(sampler, watch=lambda step: widths.append((step.end - step.start).tolist()))
    together = watched(lively(1), None, prompts, fixed=[given, {}])
    assert any(len(set(both)) > 1 for both in widths)
    alone = sampler(lively(1), None, prompts[:1], fixed=given)
    assert together.sequences[0, :25].tolist() == alone.sequences[0].tolist()
    assert int(together.nfe[0]) == int(alone.nfe)


def test_given_tokens_cannot_be_hidden_again():
    class HidesAll(CommitRule):
        def commit(self, step):
            return Commit(step.masked, hide=step.inside & (step.in_block == 0)[:, None])

    out = Sampler(gen_length=4, commit=HidesAll())(lively(), None, prompts_of(3), fixed={1: 7})
    assert out.sequences[0, 3 + 1] == 7
    assert out.trace.order[0].tolist() == [1, -1, 1, 1]


def test_no_end_takes_end_tokens_out_of_the_choice():
    table = torch.cat([torch.zeros(1, VOCAB), confident([END, 8], [0.9, 0.9])])
    out = Sampler(gen_length=2, logits=NoEnd())(rows_of(table), None, [[5]])
    assert END not in out.sequences[0, 1:].tolist()


def test_early_stop_ends_a_row_after_the_block_with_its_end_token():
    table = torch.cat([torch.zeros(1, VOCAB), confident([7, END, 8, 9, 10, 11], [0.9] * 6)])
    out = Sampler(gen_length=6, blocks=FixedBlocks(2), edit=EarlyStop())(rows_of(table), None, [[5]])
    assert out.nfe.tolist() == [1]
    assert out.answers == [[7]]
    assert out.sequences[0].tolist() == [5, 7, END, END, END, END, END]


def test_history_shows_every_canvas_and_work_counts_every_column():
    out = replace(ONE_BY_ONE, steps=8, keep_history=True)(lively(), None, prompts_of(4, 6))
    for row, prompt in enumerate((4, 6)):
        shown = [sum(token != MASK for token in canvas) for canvas in out.trace.canvases[row]]
        assert shown == list(range(2, SIZE + 1, 2))
        assert out.trace.revealed[row] == [2] * 8
        assert out.trace.work[row] == 8 * (prompt + SIZE)


def test_a_rule_that_never_reveals_is_stopped_with_its_name():
    from unwrite.errors import MethodError

    class Never(CommitRule):
        def commit(self, step):
            return Commit(torch.zeros_like(step.masked))

    with pytest.raises(MethodError, match="Never has revealed nothing"):
        Sampler(gen_length=4, commit=Never())(lively(), None, prompts_of(3))


def test_the_loop_looks_once_a_step_and_never_at_a_finished_row():
    predictor = scripted(lambda canvas: torch.stack([_sure(row) for row in canvas]))
    out = Sampler(gen_length=4, blocks=FixedBlocks(None), commit=Threshold(0.9))(predictor, None, [[5], [6]])
    assert out.nfe.tolist() == [1, 4]
    assert [len(seen) for seen in predictor.model.seen] == [2, 1, 1, 1]


def _sure(row):
    """Sure of everything after a 5, of nothing else."""
    return confident([7] * len(row), [0.95 if int(row[0]) == 5 else 0.5] * len(row))
