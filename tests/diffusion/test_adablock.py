"""AdaBlock: blocks by hand, identities with fixed blocks, agreement with the authors' code."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masks import MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from helpers.grids import crossed, spread
from unwrite.diffusion import EarlyStop, FixedBlocks, Gumbel, Nucleus, Sampler, Threshold, TopK
from unwrite.diffusion.parts.adablock import (
    AdaBlock,
    DrawnBlocks,
    WholeCanvas,
    confidence_profile,
    delimiters_of,
    late,
    premature,
)
from unwrite.errors import MethodError, ModelError

CASES = json.loads(Path(__file__).with_name("official_adablock.json").read_text(encoding="utf-8"))["cases"]
NL = 5
HAND = AdaBlock(4, (NL,), 0.3)
REAL = AdaBlock(6, (13, 22), 0.3)  # tokens that `lively` models propose


def blocks_of(pattern, blocks=HAND, size=16, fixed=None):
    """Sizes of the blocks over constant confidences. pattern: {offset: p(newline)}; elsewhere another token at .9."""
    tokens = [NL if place in pattern else 7 for place in range(size)]
    table = torch.cat([torch.zeros(1, VOCAB), confident(tokens, [pattern.get(place, 0.9) for place in range(size)])])
    sampler = Sampler(gen_length=size, blocks=blocks, commit=Threshold(0.0))
    return sampler(rows_of(table), None, [[6]], fixed=fixed).trace.blocks[0]


def steps_of(sampler, model, prompts, **more):
    steps = []
    out = replace(sampler, watch=steps.append)(model, None, prompts, **more)
    return out, steps


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# Identities


@crossed(bar=[math.inf, 2.0], cache=["none", "prefix", "dual"], seed=[0, 1, 2])
def test_without_a_sure_enough_delimiter_blocks_have_one_size(bar, seed, cache):
    """Tokens and forwards; 20 is no multiple of 6."""
    prompts = prompts_of(3, 8, 5, seed=seed)
    sampler = Sampler(gen_length=20, blocks=FixedBlocks(6), commit=Threshold(0.6), cache=cache)
    plain = sampler(lively(seed), None, prompts)
    found = replace(sampler, blocks=replace(REAL, delimiter_threshold=bar))(lively(seed), None, prompts)
    assert same_run(found, plain)
    assert found.trace.blocks == plain.trace.blocks == [[6, 6, 6, 2]] * 3
    assert torch.equal(found.trace.work, plain.trace.work)


def test_delimiters_change_the_run_the_identity_is_about():
    prompts = prompts_of(3, 8, 5)
    sampler = Sampler(gen_length=20, blocks=FixedBlocks(6), commit=Threshold(0.6))
    out = replace(sampler, blocks=REAL)(lively(), None, prompts)
    assert not same_run(out, sampler(lively(), None, prompts))


def test_without_adaptivity_drawn_tokens_are_the_same_too():
    """Nothing is looked at ahead, so nothing is drawn for it, and delimiters that the model lacks do no harm."""
    sampler = Sampler(gen_length=20, blocks=FixedBlocks(3), commit=Threshold(0.6), propose=Gumbel(1.0), seed=3)
    prompts = prompts_of(3, 8)
    off = replace(sampler, blocks=AdaBlock(3, (198,), math.inf))
    assert same_run(off(lively(), None, prompts), sampler(lively(), None, prompts))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_batch_writes_what_each_row_writes_alone(cache):
    prompts = prompts_of(3, 8, 5)
    sampler = Sampler(gen_length=24, blocks=REAL, commit=Threshold(0.6), cache=cache)
    together = sampler(lively(1), None, prompts)
    assert len({tuple(blocks) for blocks in together.trace.blocks}) > 1
    assert together.trace.counts["delimited_blocks"].sum() > 1
    for row, prompt in enumerate(prompts):
        alone = sampler(lively(1), None, [prompt])
        assert together.sequences[row, : len(prompt) + 24].tolist() == alone.sequences[0].tolist()
        assert together.trace.blocks[row] == alone.trace.blocks[0]
        counted = [out.trace.counts["delimited_blocks"] for out in (together, alone)]
        assert counted[0][row] == counted[1][0]
        assert (together.nfe[row], together.trace.work[row]) == (alone.nfe[0], alone.trace.work[0])


@pytest.mark.parametrize(
    "case",
    spread(
        CASES,
        lambda c: (
            *(c[name] for name in ("code", "cache", "threshold", "size", "delimiter_threshold", "sharpness")),
            tuple(c["delimiters"]),
        ),
    ),
    ids=lambda c: f"{c['code']}-{c['seed']}-{c['threshold']}-{c['cache']}",
)
def test_tokens_blocks_and_forwards_are_the_official_codes(case):
    bar = math.inf if case["delimiter_threshold"] is None else case["delimiter_threshold"]
    sampler = Sampler(
        gen_length=32,
        blocks=AdaBlock(case["size"], tuple(case["delimiters"]), bar),
        commit=Threshold(case["threshold"]),
        propose=Nucleus(0.0, case["top_p"]) if case["code"] == "Dream" else Gumbel(),
        cache=case["cache"],
    )
    model = lively(case["seed"], case["sharpness"], shift=case["code"] == "Dream")
    out = sampler(model, None, [case["prompt"]])
    assert out.sequences[0, len(case["prompt"]) :].tolist() == case["answer"]
    assert out.trace.blocks[0] == case["blocks"]
    assert out.nfe.tolist() == [case["nfe"]]


def test_the_official_cases_have_many_kinds_of_blocks():
    """Or agreement would mean little."""
    assert len({tuple(case["blocks"]) for case in CASES}) > 15


# Blocks by hand


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ({1: 0.35, 3: 0.8}, 4),  # the surest
        ({1: 0.35, 3: 0.2}, 2),
        ({1: 0.25, 3: 0.2}, 4),  # none is sure enough
        ({0: 0.31}, 1),
        ({6: 0.99}, 4),  # past the window of 16 / 4
        ({1: 0.5, 2: 0.5}, 2),  # of equals the earliest
    ],
)
def test_the_surest_delimiter_of_the_window_ends_the_block(pattern, first):
    assert blocks_of(pattern)[0] == first


def test_a_bar_is_reached_from_below_or_not():
    assert blocks_of({1: 0.3 + 1e-9})[0] == 2
    assert blocks_of({1: 0.3 - 1e-9})[0] == 4
    certain = torch.zeros(17, VOCAB, dtype=torch.float64)
    certain[1:, 7], certain[2, NL] = 1e3, 2e3  # a probability of exactly 1
    out = Sampler(gen_length=16, blocks=replace(HAND, delimiter_threshold=1.0), commit=Threshold(0.0))
    assert out(rows_of(certain), None, [[6]]).trace.blocks[0][0] == 2


def test_a_delimiter_may_end_a_block_that_is_longer_than_usual():
    assert blocks_of({3: 0.8}, replace(HAND, size=2))[0] == 4


@pytest.mark.parametrize(("newline", "other", "first"), [(0.45, 0.5, 4), (0.5, 0.45, 2)])
def test_only_the_likeliest_token_counts(newline, other, first):
    table = torch.cat([torch.zeros(1, VOCAB), confident([7] * 16, [0.9] * 16)]).float()
    table[2] = -torch.inf
    table[2, [NL, 7, 8]] = torch.tensor([newline, other, 0.05]).log()
    out = Sampler(gen_length=16, blocks=HAND, commit=Threshold(0.0))(rows_of(table), None, [[6]])
    assert out.trace.blocks[0][0] == first


@pytest.mark.parametrize(("pattern", "blocks"), [({0: 0.9}, [1, 8, 3]), ({0: 0.9, 11: 0.9}, [1, 8, 3])])
def test_the_last_block_takes_what_remains(pattern, blocks):
    """Twelve positions, a window of 3, usual blocks of 8: three remain, with a delimiter at their offset 2 or without."""
    assert blocks_of(pattern, replace(HAND, size=8), size=12) == blocks


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_blocks_cover_the_answer_within_their_bounds(seed, share):
    sampler = Sampler(gen_length=32, blocks=replace(REAL, share=share), commit=Threshold(0.6))
    out = sampler(lively(seed), None, prompts_of(3, 8, seed=seed))
    for row, blocks in enumerate(out.trace.blocks):
        assert sum(blocks) == 32
        assert all(1 <= size <= max(int(share * 32), 6) for size in blocks)
        assert out.nfe[row] >= len(blocks)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_threshold_of_zero_takes_one_forward_a_block_and_one_above_one_a_token(cache):
    prompts = prompts_of(3, 8)
    sampler = Sampler(gen_length=24, blocks=REAL, commit=Threshold(0.0), cache=cache)
    out = sampler(lively(), None, prompts)
    assert out.nfe.tolist() == [len(blocks) for blocks in out.trace.blocks]
    assert [len(set(row.tolist())) for row in out.trace.order] == out.nfe.tolist()
    assert replace(sampler, commit=Threshold(1.1))(lively(), None, prompts).nfe.tolist() == [24, 24]


def test_windows_that_follow_what_is_done_begin_with_one_position():
    done = replace(HAND, window="fraction_of_done", share=0.5, size=2)
    # g = 0: W = 1, the delimiter at 1 is not seen. g = 2: W = 1. g = 4: W = 2, the delimiter at offset 1 ends it like any
    # other; g = 6: W = 3 and the one at offset 2 makes a block of 3.
    assert blocks_of({1: 0.9, 8: 0.9}, done, size=16)[:4] == [2, 2, 2, 3]
    assert blocks_of({0: 0.9}, done, size=16)[0] == 1
    assert blocks_of({1: 0.9, 8: 0.9}, replace(done, window="fraction_of_budget"), size=16)[:3] == [2, 7, 2]


def test_max_block_narrows_the_window():
    wide = replace(HAND, share=1.0)
    assert blocks_of({15: 0.99}, wide) == [16]
    assert blocks_of({15: 0.99}, replace(wide, max_block=8)) == [4, 4, 8]
    assert blocks_of({5: 0.5, 9: 0.99}, replace(wide, max_block=8))[0] == 6


def test_answers_too_short_for_a_window_have_usual_blocks():
    short = replace(HAND, size=2)
    assert blocks_of({0: 0.99}, short, size=3) == [2, 1]
    assert blocks_of({0: 0.99}, replace(short, window="fraction_of_done"), size=3) == [1, 2]  # at least one


def test_given_tokens_are_no_delimiters():
    """The model proposes a newline at offset 1, but something else stands there."""
    assert blocks_of({1: 0.9}, fixed={1: 8})[0] == 4
    assert blocks_of({1: 0.9, 2: 0.4}, fixed={1: 8})[0] == 3


def test_blocks_ended_by_a_delimiter_are_counted():
    table = torch.cat([torch.zeros(1, VOCAB), confident([7, NL] + [7] * 13 + [NL], [0.9] * 16)])
    out = Sampler(gen_length=16, blocks=HAND, commit=Threshold(0.95))(rows_of(table), None, [[6], [8]])
    assert out.trace.blocks == [[2, 4, 4, 4, 2]] * 2
    assert out.trace.counts["delimited_blocks"].tolist() == [2, 2]


# The forward that is looked at


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_queries_have_the_chosen_blocks_length(cache):
    widths = []
    model, prompt = lively(1), prompts_of(5)
    sampler = Sampler(gen_length=32, blocks=REAL, commit=Threshold(0.8), cache=cache)
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    out = sampler(model, None, prompt)
    handle.remove()
    widths = widths[-int(out.nfe) :]  # probes come before
    expected, spent = [], 0
    for steps in out.trace.order[0].split(out.trace.blocks[0]):
        count = int(steps.max()) + 1 - spent
        expected += [37] + [37 if cache == "none" else len(steps)] * (count - 1)
        spent += count
    assert widths == expected
    assert len(set(out.trace.blocks[0])) > 2


def test_the_first_step_reveals_from_the_logits_that_were_looked_at():
    sampler = Sampler(gen_length=24, blocks=REAL, commit=Threshold(0.6), propose=Gumbel(1.0))
    _, steps = steps_of(sampler, lively(2), prompts_of(4))
    for step in steps:
        if bool(step.opening):
            width = step.proposed.shape[1]
            assert torch.equal(step.proposed, step.ahead_proposed[:, :width])


@pytest.mark.parametrize("seed", range(6))
def test_drawn_delimiters_are_judged_by_clean_probabilities(seed):
    logits = torch.randn(33, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    blocks = AdaBlock(5, (NL, 7, 8, 9), 0.2)
    sampler = Sampler(gen_length=32, blocks=blocks, commit=Threshold(0.5), propose=Gumbel(1.0), seed=seed)
    out, steps = steps_of(sampler, rows_of(logits), [[6]])
    opened = [step for step in steps if bool(step.opening)]
    drawn = 0
    for step, size in zip(opened, out.trace.blocks[0], strict=True):
        done = int(step.start - step.prompt)
        width = min(8, 32 - done)
        clean = step.ahead[0, :width].double().softmax(-1)
        tokens = step.ahead_proposed[0, :width].tolist()
        drawn += tokens != clean.argmax(-1).tolist()
        found = [(float(clean[i, t]), -i) for i, t in enumerate(tokens) if t in blocks.delimiters]
        sure, place = max(found, default=(0.0, 0))
        assert size == (1 - place if sure >= 0.2 else min(5, 32 - done))
    assert drawn > 2


def test_half_precision_logits_are_compared_in_double():
    """In bfloat16 both newlines have the same probability and the first would win."""
    table = torch.full((17, VOCAB), -torch.inf)
    table[1:, 7], table[1:, 8] = 4.0, 0.0
    table[2, NL], table[2, 7] = 4.0, 3.0
    table[4, NL], table[4, 7] = 4.0, 2.984375  # a little surer
    out = Sampler(gen_length=16, blocks=HAND, commit=Threshold(0.0))(rows_of(table.bfloat16()), None, [[6]])
    low = [(row - row.logsumexp(-1)).exp()[NL] for row in table.bfloat16()[[2, 4]]]
    assert low[0] == low[1]
    assert out.trace.blocks[0][0] == 4


def test_the_mask_token_never_ends_a_block():
    table = torch.cat([torch.zeros(1, VOCAB), confident([NL] + [7] * 15, [0.5] * 16)])
    table[1, MASK] = 50.0
    out = Sampler(gen_length=16, blocks=HAND, commit=Threshold(0.0))(rows_of(table), None, [[6]])
    assert out.trace.blocks[0][0] == 1
    assert MASK not in out.sequences[0].tolist()


@pytest.mark.parametrize("commit", [Threshold(0.6), TopK()])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_it_composes_with_rules_caches_and_early_stops(commit, cache):
    model = replace(lively(3), end_ids=(13,))
    sampler = Sampler(gen_length=24, steps=12, blocks=REAL, commit=commit, cache=cache, edit=EarlyStop())
    out = sampler(model, None, prompts_of(3, 8))
    assert MASK not in out.sequences.tolist()[1]
    assert bool((out.nfe <= 24).all())


# Delimiters of a tokenizer


def words(*tokens):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token=tokens[0]))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<\n>")


def test_every_token_with_a_newline_is_a_delimiter_but_the_mask():
    tokenizer = words("a", "\n", "b.\n", "\n\n", " ", "\r", "<\n>")
    assert delimiters_of(tokenizer) == (1, 2, 3)
    assert delimiters_of(tokenizer, ".") == (2,)


def test_characters_have_one_newline():
    from unwrite.beds.denoiser import tokenizer

    assert [tokenizer().decode([token]) for token in delimiters_of(tokenizer())] == ["\n"]


def test_a_tokenizer_without_newlines_is_refused():
    with pytest.raises(ModelError, match=r"no token of the tokenizer contains '\\n'"):
        delimiters_of(words("a", "b", "<\n>"))


# The control and the diagnostics


def test_drawn_blocks_have_the_given_sizes_in_their_shares():
    sampler = Sampler(gen_length=100, blocks=DrawnBlocks((1, 1, 1, 9)), commit=Threshold(0.0))
    table = torch.zeros(101, VOCAB)
    blocks = sampler(rows_of(table), None, [[6]] * 40).trace.blocks
    drawn = [size for row in blocks for size in row[:-1]]  # the last may be cut
    assert set(drawn) == {1, 9}
    # One size in four is 9: 1,300 draws, sigma .012, and a little less as the end cuts long ones.
    assert drawn.count(9) / len(drawn) == pytest.approx(0.25, abs=0.05)
    assert len({tuple(row) for row in blocks}) > 30
    again = replace(sampler, seed=1)(rows_of(table), None, [[6]])
    assert again.trace.blocks[0] != blocks[0]


def test_drawn_blocks_of_one_size_are_fixed_blocks_and_rows_draw_for_themselves():
    prompts = prompts_of(3, 8)
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(5), commit=Threshold(0.6))
    assert same_run(
        replace(sampler, blocks=DrawnBlocks((5,)))(lively(), None, prompts), sampler(lively(), None, prompts)
    )
    drawn = replace(sampler, blocks=DrawnBlocks((2, 5, 9)))
    assert drawn(lively(), None, prompts).trace.blocks[0] == drawn(lively(), None, prompts[:1]).trace.blocks[0]


def watched(confidences, size, threshold=0.9, whole=True, **more):
    table = torch.cat([torch.zeros(1, VOCAB), confident([7] * len(confidences), confidences)])
    parts = {"commit": Threshold(threshold), "edit": WholeCanvas() if whole else None}
    sampler = Sampler(gen_length=len(confidences), blocks=FixedBlocks(size), **parts)
    return steps_of(sampler, rows_of(table), [[6]], **more)


def test_a_step_is_late_while_a_sure_position_waits_behind_the_block():
    _, steps = watched([0.5, 0.6, 0.95, 0.2], 2)
    assert [bool(late(step)) for step in steps] == [True, True, False, False]
    assert [bool(late(step, 0.96)) for step in steps] == [False] * 4
    _, steps = watched([0.5, 0.6, 0.95, 0.2], 2, fixed={2: 8})
    assert not any(bool(late(step)) for step in steps)


def test_what_a_cached_forward_has_not_computed_is_not_late():
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(4), commit=Threshold(0.9), cache="dual", edit=WholeCanvas())
    _, steps = steps_of(sampler, lively(), prompts_of(4))
    assert any(bool(late(step, 0.5)) for step in steps if bool(step.opening))
    assert not any(bool(late(step, 0.5)) for step in steps if not bool(step.opening))


def test_whole_canvas_changes_nothing():
    sampler = Sampler(gen_length=24, blocks=REAL, commit=Threshold(0.6))
    prompts = prompts_of(3, 8)
    shown = replace(sampler, edit=WholeCanvas())(lively(), None, prompts)
    assert same_run(shown, sampler(lively(), None, prompts))


def test_premature_tokens_are_those_below_the_bar_that_the_reference_has_not():
    out, steps = watched([0.5, 0.95, 0.6, 0.2], 2)
    reference = out.sequences.clone()
    assert [int(premature(step, reference)) for step in steps] == [0, 0, 0, 0]
    reference[0, 1:4] = 8  # positions 0, 1 and 2 of the answer
    assert [int(premature(step, reference)) for step in steps] == [0, 1, 1, 0]  # position 1 passed the bar


def test_the_profile_shows_confidences_and_written_positions_at_one():
    _, steps = watched([0.8, 0.6, 0.4, 0.2], None, 2.0)
    found = confidence_profile(steps, (0.0, 0.5, 0.75))
    expected = torch.tensor([[0.8, 0.6, 0.4, 0.2], [1, 1, 0.4, 0.2], [1, 1, 1, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_the_profile_is_a_mean_over_rows():
    low, high = ([7] * 3, [0.2] * 3), ([7] * 3, [0.4] * 3)

    def logits(canvas):
        rows = [confident(*(low if int(row[0]) == 6 else high)) for row in canvas]
        return torch.cat([torch.zeros(len(canvas), 1, VOCAB), torch.stack(rows)], 1)

    sampler = Sampler(gen_length=3, commit=Threshold(2.0), edit=WholeCanvas())
    _, steps = steps_of(sampler, scripted(logits), [[6], [8]])
    assert confidence_profile(steps, (0.0,))[0].tolist() == pytest.approx([0.3] * 3)


def test_the_diagnostics_say_what_they_lack():
    _, steps = watched([0.5, 0.6], None, whole=False)
    with pytest.raises(MethodError, match="Add WholeCanvas"):
        late(steps[0])
    with pytest.raises(MethodError, match="there are no steps"):
        confidence_profile([])


# Settings and refusals


def test_the_defaults_are_the_authors():
    llada, dream = AdaBlock(), AdaBlock.dream()
    assert (llada.size, llada.delimiters, llada.delimiter_threshold) == (32, (198,), 0.3)
    assert (llada.window, llada.share, llada.max_block) == ("fraction_of_budget", 0.25, None)
    assert llada.reach(512) == 128
    assert AdaBlock.llada() == llada
    assert (len(dream.delimiters), dream.delimiters[0], dream.delimiters[-1]) == (24, 198, 68327)
    assert dream.delimiter_threshold == 0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AdaBlock(0), "size is 0"),
        (lambda: AdaBlock(delimiters=()), "delimiters is empty"),
        (lambda: AdaBlock(delimiters=(5, -1)), "delimiter -1 is no id"),
        (lambda: AdaBlock(delimiter_threshold=-0.1), "delimiter_threshold is -0.1"),
        (lambda: AdaBlock(delimiter_threshold=math.nan), "delimiter_threshold is nan"),
        (lambda: AdaBlock(delimiter_threshold=None), "delimiter_threshold is None"),
        (lambda: Sampler(blocks=AdaBlock(), commit=Threshold(None)), "threshold is None"),
        (lambda: AdaBlock(window="fraction_of_dome"), "Did you mean 'fraction_of_done'"),
        (lambda: AdaBlock(share=1.5), "share is 1.5"),
        (lambda: AdaBlock(share=math.nan), "share is nan"),
        (lambda: AdaBlock(max_block=31), "max_block is 31, less than size, 32"),
        (lambda: DrawnBlocks(()), "sizes is"),
        (lambda: DrawnBlocks((3, 0)), "each at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@pytest.mark.parametrize(
    ("ids", "says"), [((198,), "198 is outside the model's 24"), ((NL, MASK), "is the mask token")]
)
def test_ids_the_model_cannot_write_are_refused(ids, says):
    with pytest.raises(MethodError, match=says):
        blocks_of({}, replace(HAND, delimiters=ids))
