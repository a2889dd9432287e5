"""Learn2PD: the oracle and its records, the filter and its training, the rule and the cut behind the end token."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masks import END, MASK, VOCAB, confident, lively, prompts_of, rows_of, scripted

from helpers.grids import crossed, spread
from unwrite.diffusion import (
    Blocks,
    FixedBlocks,
    Gumbel,
    LeftToRight,
    Margin,
    MaskPredictor,
    Sampler,
    Threshold,
    TopK,
)
from unwrite.diffusion.parts.learn2pd import (
    EoTP,
    Filter,
    LearnedSelect,
    Oracle,
    Records,
    collect,
    judge,
    safe_bar,
    train,
)
from unwrite.errors import DataError, MethodError

OFFICIAL = json.loads(Path(__file__).with_name("official_learn2pd.json").read_text(encoding="utf-8"))
ONE_BY_ONE = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=TopK())


def hand_filter(seed=0, size=8):
    """Mostly each position's own confidence, and a little of the others'."""
    generator, model = torch.Generator().manual_seed(seed), Filter(size)
    with torch.no_grad():
        for layer, bias in zip(model.layers, (-1.0, -6.0), strict=True):
            layer.weight.copy_(4 * torch.eye(size) + 0.3 * torch.randn(size, size, generator=generator))
            layer.bias.fill_(bias)
    return model.eval()


def bar_at(threshold):
    """A filter that lets through what has this confidence."""
    return lambda confidence: torch.where(confidence >= threshold, math.inf, -math.inf)


def made(labels, count=2000, size=8, **more):
    """Records of confidences between 0 and 1, mostly near the ends, ten a prompt; labels: of [records, size] confidences."""
    torch.manual_seed(0)
    confidence = torch.distributions.Beta(0.3, 0.3).sample((count, size))
    numbers = torch.arange(count)
    record = Records(
        confidence,
        labels(confidence),
        torch.ones(count, size, dtype=torch.bool),
        numbers // 10,
        numbers % 2,
        numbers % 5,
    )
    return replace(record, **more)


def same_run(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.nfe, second.nfe)


# The rule


@crossed(steps=[None, 12], cache=["none", "prefix", "dual"], seed=[0, 1, 2])
def test_from_an_acceptance_of_one_on_it_is_the_vanilla_decoder(seed, cache, steps):
    prompts = prompts_of(3, 6, 5, seed=seed)
    plain = Sampler(gen_length=24, steps=steps, blocks=FixedBlocks(8), commit=TopK(), cache=cache)
    expected = plain(lively(seed), None, prompts)
    for accept in (1.0, 1.5):
        rule = LearnedSelect(lambda confidence: torch.full_like(confidence, math.inf), accept)
        assert same_run(replace(plain, commit=rule)(lively(seed), None, prompts), expected)


@crossed(threshold=[0.5, 0.9], cache=["none", "prefix", "dual"], seed=[0, 1, 2])
def test_a_filter_that_is_a_bar_is_threshold_decoding(threshold, seed, cache):
    prompts = prompts_of(3, 6, 5, seed=seed)
    plain = replace(ONE_BY_ONE, commit=Threshold(threshold), cache=cache)
    expected = plain(lively(seed, 2.0), None, prompts)
    found = replace(plain, commit=LearnedSelect(bar_at(threshold)))(lively(seed, 2.0), None, prompts)
    assert same_run(found, expected)
    assert int(found.nfe.sum()) < 72


def test_the_filter_sees_the_whole_block_as_it_was_trained():
    """Confidences of revealed positions too, in their places; float32 on any model."""
    seen = []

    def watching(confidence):
        seen.append(confidence)
        return torch.full_like(confidence, -math.inf)

    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.3, 0.9, 0.5, 0.7])])
    Sampler(gen_length=4, commit=LearnedSelect(watching))(rows_of(table), None, [[7]])
    assert len(seen) == 4
    for confidence in seen:
        torch.testing.assert_close(confidence, torch.tensor([[0.3, 0.9, 0.5, 0.7]]))


def test_a_block_shorter_than_the_filter_counts_as_sure_where_it_ends():
    seen = []

    class Watching(Filter):
        def forward(self, confidence):
            seen.append(confidence)
            return torch.full_like(confidence, -math.inf)

    table = torch.cat([torch.zeros(1, VOCAB), confident([END, 5, 6, 7], [0.3, 0.6, 0.2, 0.9])])
    table[3, :] = confident([END], [0.95])[0]
    sampler = Sampler(gen_length=4, commit=LearnedSelect(Watching(4)), edit=EoTP())
    out = sampler(rows_of(table), None, [[7]])
    assert out.trace.order[0].tolist() == [2, 1, 0, -1]
    torch.testing.assert_close(seen[1], torch.tensor([[0.3, 0.6, 0.95, 1.0]]))


def test_a_shorter_row_counts_as_sure_where_it_ends_beside_a_longer_one():
    seen = []

    class Watching(Filter):
        def forward(self, confidence):
            seen.append(confidence)
            return torch.full_like(confidence, -math.inf)

    one = torch.cat([torch.zeros(1, VOCAB), confident([5, END, 6, 7], [0.3, 0.9, 0.2, 0.1])])
    other = torch.cat([torch.zeros(1, VOCAB), confident([5, 6, 6, 7], [0.3, 0.9, 0.2, 0.1])])
    model = scripted(lambda canvas: torch.where((canvas[:, :1] == 7)[..., None], one, other))
    sampler = Sampler(gen_length=4, commit=LearnedSelect(Watching(4)), edit=EoTP())
    sampler(model, None, [[7], [8]])
    torch.testing.assert_close(seen[1], torch.tensor([[0.3, 0.9, 1.0, 1.0], [0.3, 0.9, 0.2, 0.1]]))


def test_rows_of_a_batch_do_not_see_each_other():
    prompts = prompts_of(3, 6, 5, seed=1)
    rule = LearnedSelect(hand_filter(1), 0.9)
    for edit in (EoTP(), EoTP("aggressive", select=rule)):
        sampler = replace(ONE_BY_ONE, commit=rule, edit=edit)
        predictor = replace(lively(1), end_ids=(13,))
        out = sampler(predictor, None, prompts)
        alone = [sampler(predictor, None, [prompt]) for prompt in prompts]
        assert out.answers == [one.answers[0] for one in alone]
        assert out.nfe.tolist() == [int(one.nfe) for one in alone]


# The oracle and the records


@pytest.mark.parametrize("seed", range(8))
def test_the_oracle_writes_the_reference_in_no_more_forwards(seed):
    prompts, predictor = prompts_of(3, 6, 5, seed=seed), lively(seed)
    plain = ONE_BY_ONE(predictor, None, prompts)
    answers = torch.stack([row[len(prompt) :][:24] for row, prompt in zip(plain.sequences, prompts, strict=True)])
    out = replace(ONE_BY_ONE, commit=Oracle(answers))(predictor, None, prompts)
    assert torch.equal(out.sequences, plain.sequences)
    assert (out.nfe < plain.nfe).all()


def test_a_model_that_never_agrees_is_given_the_block():
    """Wrong everywhere: one forward to see it, one to see that nothing changes."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 6, [0.9] * 6)])
    answers = torch.full((1, 6), 9)
    sampler = Sampler(gen_length=6, blocks=FixedBlocks(3), commit=Oracle(answers))
    out = sampler(rows_of(table), None, [[7]])
    assert out.sequences[0, 1:].tolist() == [9] * 6
    assert out.nfe.tolist() == [4]


def test_what_lies_behind_a_rows_block_does_not_keep_the_oracle_waiting():
    class ByRow(Blocks):
        default = 4

        def lengths(self, step):
            return torch.where(step.prompt == 1, 2, 4)

    count = iter(range(100))

    def logits(canvas):
        """Behind the first row's block another token at each of the first forwards."""
        n = min(next(count), 4)
        row = confident([5, 5, 5, 6 + n, 6 + n, 6 + n], [0.9] * 6)
        return row[: canvas.shape[1]].expand(len(canvas), -1, -1).clone()

    sampler = Sampler(gen_length=4, blocks=ByRow(), commit=Oracle(torch.full((2, 4), 4)))
    out = sampler(scripted(logits), None, [[7], [7, 8]])
    assert out.trace.blocks == [[2, 2], [4]]
    assert out.trace.order[0, :2].tolist() == [1, 1]  # wrong twice in the same way


def test_the_oracle_reveals_what_is_right_and_only_that():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 6, 7], [0.2, 0.9, 0.2])])
    out = Sampler(gen_length=3, commit=Oracle(torch.tensor([[5, 9, 7]])))(rows_of(table), None, [[7]])
    assert out.trace.order[0].tolist() == [0, 1, 0]
    assert out.sequences[0, 1:].tolist() == [5, 9, 7]


def test_records_say_how_sure_each_position_was_and_whether_it_was_right():
    predictor, prompts = lively(3), prompts_of(5, 6, seed=3)
    records = collect(predictor, None, prompts, block=8, gen_length=24)
    reference = ONE_BY_ONE(predictor, None, prompts)
    steps = []
    answers = torch.stack([row[len(prompt) :][:24] for row, prompt in zip(reference.sequences, prompts, strict=True)])
    replace(ONE_BY_ONE, commit=Oracle(answers), watch=steps.append)(predictor, None, prompts)
    at = 0
    for step in steps:
        for row, prompt in enumerate(step.rows.tolist()):
            first = int(step.start[row] - step.prompt[row])
            assert (int(records.prompt[at]), int(records.block[at]) * 8) == (prompt, first)
            assert torch.equal(records.confidence[at], step.confidence[row].float())
            assert torch.equal(records.right[at], step.proposed[row] == answers[prompt, first : first + 8])
            assert torch.equal(records.masked[at], step.masked[row])
            at += 1
    assert at == len(records)
    assert records.forwards_a_block() == len(records) / 6
    assert records.source == {"model": "LlamaForCausalLM", "mask_id": str(MASK), "precision": "float32"}


def test_records_do_not_depend_on_the_batch():
    prompts = prompts_of(3, 6, 5, 4, seed=2)
    found = [collect(lively(2), None, prompts, block=8, gen_length=24, batch_size=size) for size in (1, 3)]
    keys = [
        sorted(zip(r.prompt.tolist(), r.block.tolist(), r.step.tolist(), r.right.tolist(), strict=True)) for r in found
    ]
    assert keys[0] == keys[1]


def test_collecting_leaves_the_model_as_it_is():
    predictor = lively()
    before = {name: weight.clone() for name, weight in predictor.model.state_dict().items()}
    rule = LearnedSelect(train(collect(predictor, None, prompts_of(*[4] * 6), block=8, gen_length=16), epochs=20), 0.6)
    replace(ONE_BY_ONE, commit=rule, edit=EoTP())(predictor, None, prompts_of(4))
    assert all(torch.equal(weight, before[name]) for name, weight in predictor.model.state_dict().items())
    assert all(weight.grad is None for weight in predictor.model.parameters())


def test_a_prompts_records_land_in_one_part():
    parts = made(lambda c: c > 0.5).split(seed=3)
    prompts = [set(part.prompt.tolist()) for part in parts]
    assert [len(one) for one in prompts] == [160, 20, 20]
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & prompts[2]
    assert set(made(lambda c: c > 0.5).split(seed=4)[2].prompt.tolist()) != prompts[2]


def test_joined_records_keep_their_prompts_apart(tmp_path):
    records = collect(lively(), None, prompts_of(4, 5), block=8, gen_length=16)
    whole = Records.joined([records, records])
    assert len(whole) == 2 * len(records)
    assert whole.prompt.unique().tolist() == [0, 1, 2, 3]
    whole.save(tmp_path / "r.safetensors")
    loaded = Records.load(tmp_path / "r.safetensors")
    assert torch.equal(loaded.confidence, whole.confidence)
    assert torch.equal(loaded.right, whole.right)
    assert loaded.source == whole.source
    with pytest.raises(DataError, match="can't join"):
        Records.joined([records, replace(records, source={"model": "another"})])
    with pytest.raises(DataError, match="no records to join"):
        Records.joined([])


# The filter


def test_a_filter_for_32_positions_has_2112_weights():
    assert sum(weight.numel() for weight in Filter(32).parameters()) == 2112
    assert sum(weight.numel() for weight in Filter(32, depth=1).parameters()) == 1056
    assert sum(weight.numel() for weight in Filter(32, depth=4).parameters()) == 4224


def test_the_layers_are_joined_by_relu():
    model = Filter(2)
    with torch.no_grad():
        for layer, sign in zip(model.layers, (-1.0, 1.0), strict=True):
            layer.weight.copy_(sign * torch.eye(2))
            layer.bias.copy_(torch.tensor([0.7, 0.0]) if sign < 0 else torch.zeros(2))
    torch.testing.assert_close(model(torch.tensor([[0.5, 0.4]])), torch.tensor([[0.2, 0.0]]))


@pytest.mark.timeout(60)  # a minute is the claim
@pytest.mark.parametrize("depth", [2, 4])
def test_every_hidden_unit_starts_awake(depth):
    """The least that a unit can be, for confidences from 0 to 1, is torch's own bias; without the rise it would sleep."""
    torch.manual_seed(0)
    for layer in Filter(size=16, depth=depth).layers[:-1]:
        least = layer.bias - (-layer.weight).relu().sum(1)
        assert least.abs().max() <= 16**-0.5
        assert layer.bias.min() > 0


def test_a_filter_learns_a_bar():
    model = train(made(lambda c: c > 0.8), epochs=6000)
    assert model.report.validation.accuracy > 0.99
    assert model.report.test.accuracy > 0.985
    assert model.report.validation.calibration_error < 0.02
    confidence = torch.tensor([[0.95, 0.1, 0.9, 0.3, 0.99, 0.5, 0.2, 0.97]])
    assert (model(confidence) > 0).tolist() == (confidence > 0.8).tolist()


def test_shuffled_labels_teach_nothing():
    torch.manual_seed(1)
    shuffled = train(made(lambda c: torch.rand(c.shape) < 0.7), epochs=300, patience=50)
    assert abs(shuffled.report.validation.accuracy - shuffled.report.validation.base_rate) < 0.01


def test_training_keeps_the_best_epoch_or_the_last_and_stops_in_time():
    torch.manual_seed(1)
    records = made(lambda c: torch.rand(c.shape) < 0.7, count=100)
    best = train(records, epochs=600, patience=40, lr=0.03)
    losses = [validation for _, validation in best.report.losses]
    assert best.report.best == losses.index(min(losses)) + 1
    assert best.report.epochs == best.report.best + 40
    last = train(records, epochs=best.report.epochs, patience=None, keep="last", lr=0.03)
    assert last.report.losses == best.report.losses
    validation = records.split(seed=0)[1]

    def loss(model):
        return float(
            torch.nn.functional.binary_cross_entropy_with_logits(model(validation.confidence), validation.right.float())
        )

    assert loss(best) == pytest.approx(min(losses), rel=1e-5)
    assert loss(last) == pytest.approx(losses[-1], rel=1e-5)


def test_revealed_positions_can_be_left_out_of_the_loss():
    """Masked positions are right above .5; the others' labels say the opposite."""
    records = made(lambda c: c > 0.5)
    masked = torch.rand(records.masked.shape) < 0.5
    records = replace(records, masked=masked, right=torch.where(masked, records.right, ~records.right))
    assert train(records, epochs=800, mask_revealed=True, lr=0.02).report.validation.accuracy > 0.95
    assert train(records, epochs=200, lr=0.02).report.validation.accuracy < 0.75


def test_training_is_reproducible_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    records = replace(made(lambda c: c > 0.8, count=100))
    torch.manual_seed(5)
    first = train(records, epochs=30)
    assert torch.equal(torch.rand(1), expected)
    second = train(records, epochs=30)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in first.parameters())


def test_training_works_where_gradients_are_switched_off():
    with torch.no_grad():
        report = train(made(lambda c: c > 0.8, count=100), epochs=30).report
    assert report.losses[-1][0] < report.losses[0][0]


def test_figures_are_over_the_positions_that_were_to_be_written():
    logits = torch.tensor([[3.0, -3.0, 3.0, 0.1], [3.0, 3.0, -3.0, 3.0]])
    records = Records(
        confidence=torch.zeros(2, 4),
        right=torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0]]).bool(),
        masked=torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]]).bool(),
        prompt=torch.arange(2),
        block=torch.zeros(2, dtype=torch.long),
        step=torch.zeros(2, dtype=torch.long),
    )
    found = judge(lambda _: logits, records)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.base_rate == pytest.approx(4 / 6)
    assert found.kept == pytest.approx(3 / 6)  # sigmoid(3) = .953
    assert found.false_positives == pytest.approx(1 / 3)
    low, middle, high = found.calibration
    assert (low[2], middle[2], high[2]) == (2, 1, 3)
    assert high[:2] == pytest.approx((0.9526, 2 / 3), abs=1e-4)
    assert found.calibration_error == pytest.approx(
        (2 * (0.5 - 0.0474) + 1 - 0.525 + 3 * (0.9526 - 2 / 3)) / 6, abs=1e-3
    )
    with pytest.raises(DataError, match="still to be written"):
        judge(lambda _: logits, replace(records, masked=torch.zeros(2, 4, dtype=torch.bool)))


def test_a_safe_bar_lets_through_few_that_are_wrong():
    p = torch.tensor([[0.99, 0.98, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5]])
    right = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 0]]).bool()
    zeros = torch.zeros(1, dtype=torch.long)
    records = Records(p, right, torch.ones_like(right), zeros, zeros, zeros)
    assert safe_bar(torch.logit, records, 0.0) == pytest.approx(0.9)  # of the two at .9 one is wrong
    assert safe_bar(torch.logit, records, 0.2) == pytest.approx(0.5)  # 1 of 7 is wrong above .5, though 1 of 4 above .8
    assert safe_bar(torch.logit, records, 0.1) == pytest.approx(0.9)
    assert safe_bar(torch.logit, records, 1.0) == pytest.approx(0.0)
    assert safe_bar(torch.logit, replace(records, right=~right), 0.0) == 1.0
    # A bar within equal probabilities would let through only what is above them all, here one that is wrong.
    tied = replace(records, confidence=torch.tensor([[0.99, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1]]))
    tied = replace(tied, right=torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0]]).bool())
    assert safe_bar(torch.logit, tied, 0.25) == 1.0
    with pytest.raises(MethodError, match="wrong is 1"):
        safe_bar(torch.logit, records, 1.5)


def test_a_saved_filter_decides_the_same(tmp_path):
    model = Filter(8, 3, {"model": "LlamaForCausalLM", "mask_id": str(MASK), "precision": "float32"})
    model.save(tmp_path / "f.safetensors")
    loaded = Filter.load(tmp_path / "f.safetensors")
    confidence = torch.rand(50, 8)
    assert torch.equal(loaded(confidence), model(confidence))
    assert (loaded.size, len(loaded.layers), loaded.source) == (8, 3, model.source)
    prompts = prompts_of(3, 6)
    runs = [replace(ONE_BY_ONE, commit=LearnedSelect(one, 0.5))(lively(), None, prompts) for one in (model, loaded)]
    assert same_run(*runs)


def test_a_filter_of_another_model_is_warned_of(tmp_path):
    path = tmp_path / "f.safetensors"
    Filter(8, source={"model": "LlamaForCausalLM", "mask_id": str(MASK), "precision": "float32"}).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Filter.load(path, lively())
    half = replace(lively(), model=lively().model.bfloat16(), probe=False)
    with pytest.warns(UserWarning, match="precision float32 \\(here bfloat16\\)"):
        Filter.load(path, half)
    with pytest.warns(UserWarning, match=f"mask_id {MASK} \\(here 3\\)"):
        Filter.load(path, MaskPredictor(lively().model, 3, (END,)))


@pytest.mark.parametrize("load", [Filter.load, Records.load])
def test_other_files_are_refused(load, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(DataError, match="missing"):
        load(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(2)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(DataError, match=r"no filter|no file of records"):
        load(tmp_path / "x.safetensors")
    Filter(4).save(tmp_path / "f.safetensors")
    made(lambda c: c > 0.5, 20).save(tmp_path / "r.safetensors")
    with pytest.raises(DataError, match=r"no filter|no file of records"):
        load(tmp_path / ("r.safetensors" if load is Filter.load else "f.safetensors"))


# The cut behind the end token


def ends_at(offset, size=64):
    """The end token at `offset` at .99, all others a little less sure the later they come."""
    tokens, sure = [5 + place % 3 for place in range(size)], [0.5 - 0.001 * place for place in range(size)]
    tokens[offset], sure[offset] = END, 0.99
    return torch.cat([torch.zeros(1, VOCAB), confident(tokens, sure)])


@pytest.mark.parametrize("commit", [TopK(), LearnedSelect(bar_at(0.9)), Threshold(0.9)])
def test_a_resolved_end_token_makes_the_rest_of_the_forwards_short(commit):
    sampler = Sampler(gen_length=64, commit=commit, edit=EoTP())
    out = sampler(rows_of(ends_at(5)), None, [[7]])
    assert out.nfe.tolist() == [6]
    assert out.trace.work.tolist() == [1 + 64 + 5 * (1 + 6)]
    assert out.trace.order[0].tolist()[:7] == [1, 2, 3, 4, 5, 0, -1]
    assert out.answers == [[5, 6, 7, 5, 6]]


@pytest.mark.parametrize("size", [8, 32])
def test_no_block_is_opened_behind_the_cut(size):
    sampler = Sampler(gen_length=64, blocks=FixedBlocks(size), commit=TopK(), edit=EoTP())
    out = sampler(rows_of(ends_at(5)), None, [[7]])
    assert out.trace.blocks == [[size]]
    assert out.nfe.tolist() == [6]


def test_a_cut_does_not_hurry_the_rest():
    """One token a step before and after, also where quotas are two: 64 masks in 32 steps."""
    for steps, order in ((64, [1, 2, 3, 4, 5, 0]), (32, [0, 1, 1, 2, 2, 0])):
        sampler = Sampler(gen_length=64, steps=steps, commit=TopK(), edit=EoTP())
        assert sampler(rows_of(ends_at(5)), None, [[7]]).trace.order[0].tolist()[:6] == order


def test_a_minimum_of_tokens_is_never_cut():
    for mode in ("resolved", "aggressive"):
        sampler = Sampler(gen_length=64, commit=TopK(), edit=EoTP(mode, min_new_tokens=9))
        out = sampler(rows_of(ends_at(5)), None, [[7]])
        assert out.nfe.tolist() == [9]
        assert out.answers == [[5, 6, 7, 5, 6]]


def test_a_minimum_never_makes_a_row_longer():
    class Watched(EoTP):
        def edit(self, step, revealed):
            kept = super().edit(step, revealed)
            assert (kept <= step.length).all()
            return kept

    sampler = Sampler(gen_length=64, commit=TopK(), edit=Watched(min_new_tokens=100))
    assert sampler(rows_of(ends_at(5)), None, [[7]]).nfe.tolist() == [64]


@pytest.mark.parametrize("seed", range(3))
def test_an_aggressive_cut_looks_only_where_there_are_logits(seed):
    """Token 0 is an end token here, and what the arg max of missing logits would be."""
    lengths = [24]

    def watch(step):
        lengths.append(int(step.length[0] - step.prompt[0]))
        assert lengths[-1] == lengths[-2] or step.wide.known[0, lengths[-1] - 1]

    sampler = replace(ONE_BY_ONE, edit=EoTP("aggressive"), cache="dual", watch=watch)
    sampler(replace(lively(seed), end_ids=(0,)), None, prompts_of(4, seed=seed))


def test_off_is_the_same_run():
    prompts, predictor = prompts_of(3, 6), replace(lively(), end_ids=(13,))
    plain = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=TopK())
    assert same_run(replace(plain, edit=EoTP("off"))(predictor, None, prompts), plain(predictor, None, prompts))
    assert not same_run(replace(ONE_BY_ONE, edit=EoTP())(predictor, None, prompts), plain(predictor, None, prompts))


@pytest.mark.parametrize("mode", ["resolved", "aggressive"])
def test_no_token_before_the_cut_changes_when_it_is_made(mode):
    predictor, prompts = replace(lively(2), end_ids=(13,)), prompts_of(4, seed=2)
    cut = replace(ONE_BY_ONE, edit=EoTP(mode), keep_history=True)
    lengths = []
    found = replace(cut, watch=lambda step: lengths.append(int(step.length[0] - step.prompt[0])))(
        predictor, None, prompts
    )
    first = next(n for n, length in enumerate(lengths) if length < 24)
    plain = replace(cut, edit=None)(predictor, None, prompts)
    assert found.trace.canvases[0][: first + 1] == plain.trace.canvases[0][: first + 1]


def causal(seed):
    """A model whose logits look at earlier tokens only."""
    table = 3 * torch.randn(97, VOCAB, generator=torch.Generator().manual_seed(seed))
    table[:, END] += 2.0

    def logits(canvas):
        before = torch.cat([torch.zeros_like(canvas[:, :1]), canvas[:, :-1]], 1)
        weights = torch.arange(1, canvas.shape[1] + 1)
        return table[(before * weights).cumsum(1) % 97]

    return scripted(logits)


@pytest.mark.parametrize("seed", range(5))
def test_from_left_to_right_a_resolved_cut_changes_no_text(seed):
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(1), commit=TopK(), score=LeftToRight())
    prompts = prompts_of(3, 6, 4, seed=seed)
    plain = sampler(causal(seed), None, prompts)
    cut = replace(sampler, edit=EoTP())(causal(seed), None, prompts)
    assert cut.answers == plain.answers
    assert cut.nfe.tolist() == [min(24, len(answer) + 1) for answer in plain.answers]
    assert (cut.nfe < 24).any()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("mode", ["resolved", "aggressive"])
def test_a_cut_in_the_third_block_works_with_caches(cache, mode):
    cuts = 0
    for seed in range(6):
        rule = LearnedSelect(hand_filter(seed), 0.9)
        sampler = replace(ONE_BY_ONE, commit=rule, cache=cache)
        prompts, predictor = prompts_of(3, 6, seed=seed), lively(seed)
        # The end token is one that the first row writes late, and not before.
        first = sampler(predictor, None, prompts).sequences[0, 3:27].tolist()
        late = [first.index(token) for token in set(first) if 16 < first.index(token) < 23]
        if not late:
            continue
        predictor = replace(predictor, end_ids=(first[late[0]],))
        steps = []
        edit = EoTP(mode, min_new_tokens=17, select=rule if mode == "aggressive" else None)
        out = replace(sampler, edit=edit, watch=steps.append)(predictor, None, prompts)
        lengths = {row: n for step in steps for row, n in zip(step.rows.tolist(), step.length.tolist(), strict=True)}
        cuts += 17 < lengths[0] - 3 < 24
        for row, prompt in enumerate(prompts):
            whole, end = out.sequences[row].tolist(), len(prompt) + 24
            assert whole[: len(prompt)] == prompt
            assert MASK not in whole
            assert whole[lengths[row] : end] == [predictor.end_ids[0]] * (end - lengths[row])
        alone = [replace(sampler, edit=edit)(predictor, None, [prompt]) for prompt in prompts]
        assert out.answers == [one.answers[0] for one in alone]
    assert cuts


def test_an_aggressive_cut_follows_the_surest_end_token_of_the_whole_rest():
    table = ends_at(5, 16)
    table[1 + 11] = confident([END], [0.9])[0]
    table[1 + 13] = confident([END], [0.95])[0]
    table[1 + 5] = confident([END], [0.4])[0]
    lengths = []
    sampler = Sampler(
        gen_length=16, blocks=FixedBlocks(8), commit=TopK(), edit=EoTP("aggressive"),
        watch=lambda step: lengths.append(int(step.length[0]) - 1),
    )  # fmt: skip
    sampler(rows_of(table), None, [[7]])
    # Behind 13, although it is masked and in another block; once it is revealed 11 is the surest that is left.
    assert lengths[:10] == [14] * 9 + [12]


def test_an_aggressive_cut_prefers_what_the_filter_accepted():
    table = ends_at(3, 8)
    table[1 + 3] = confident([END], [0.8])[0]
    table[1 + 5] = confident([END], [0.85])[0]
    rule = LearnedSelect(bar_at(0.75))
    lengths = []
    for edit in (EoTP("aggressive", select=rule), EoTP("resolved")):
        sampler = Sampler(gen_length=8, commit=rule, edit=edit)
        replace(sampler, watch=lambda step: lengths.append(int(step.length[0]) - 1))(rows_of(table), None, [[7]])
        assert lengths[0] == 4  # the first, not the surest
        lengths.clear()
    alone = Sampler(gen_length=8, commit=TopK(), edit=EoTP("aggressive"))
    replace(alone, watch=lambda step: lengths.append(int(step.length[0]) - 1))(rows_of(table), None, [[7]])
    assert lengths[0] == 6


# The official code


@pytest.mark.parametrize(
    "case",
    spread(OFFICIAL["cases"], lambda c: (c["function"], c["sharpness"], c["end"])),
    ids=lambda c: f"{c['function']}-{c['seed']}-{c['sharpness']}-{c['end']}",
)
def test_it_writes_what_the_official_code_writes(case):
    rule = LearnedSelect(hand_filter(case["seed"]), 0.9)
    parts = {
        "generate_learn2parallel": {"commit": rule},
        "generate_predict_eot": {"edit": EoTP("aggressive")},
        "generate_l2p_eot": {"commit": rule, "edit": EoTP("aggressive", select=rule)},
    }[case["function"]]
    predictor = replace(lively(case["seed"], case["sharpness"]), end_ids=(case["end"],))
    out = replace(ONE_BY_ONE, **parts)(predictor, None, [case["prompt"]])
    assert out.sequences[0, len(case["prompt"]) :][: len(case["answer"])].tolist() == case["answer"]
    assert out.nfe.tolist() == [case["forwards"]]


@pytest.mark.parametrize("case", OFFICIAL["records"], ids=lambda c: c["seed"])
def test_its_records_are_the_official_ones(case):
    records = collect(lively(case["seed"], case["sharpness"]), None, [case["prompt"]], block=8, gen_length=24)
    assert records.step.tolist() == case["steps"]
    assert ["".join(str(int(one)) for one in row) for row in records.right.tolist()] == case["right"]
    torch.testing.assert_close(records.confidence, torch.tensor(case["confidence"]), atol=1e-5, rtol=0)


# Refusals


class Halves(Blocks):
    default = 8

    def lengths(self, step):
        return torch.full_like(step.start, 4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LearnedSelect(hand_filter(), -0.1), "accept is -0.1"),
        (lambda: LearnedSelect(hand_filter(), math.nan), "accept is nan"),
        (lambda: replace(ONE_BY_ONE, commit=LearnedSelect(Filter(16))), "blocks of 16, the sampler's have 8"),
        (lambda: replace(ONE_BY_ONE, commit=LearnedSelect(Filter(8)), blocks=Halves()), r"Use FixedBlocks\(8\)"),
        (lambda: replace(ONE_BY_ONE, commit=LearnedSelect(Filter(8)), score=Margin()), "Margin is none"),
        (lambda: Filter(0), "size is 0"),
        (lambda: Filter(8, 0), "depth 0"),
        (lambda: EoTP("soft"), "soft"),
        (lambda: EoTP(min_new_tokens=-1), "min_new_tokens is -1"),
        (lambda: replace(ONE_BY_ONE, commit=LearnedSelect(Filter(8)), edit=EoTP("aggressive")), "as select too"),
        (lambda: Sampler(gen_length=4, commit=Oracle(torch.zeros(1, 5))), r"answers are \[1, 5\]"),
        (lambda: Sampler(gen_length=4, commit=Oracle(torch.zeros(1, 4)), propose=Gumbel(0.5)), "temperature 0"),
        (lambda: collect(lively(), None, prompts_of(3), batch_size=0), "batch_size is 0"),
        (lambda: collect(lively(), None, prompts_of(3), block=7, gen_length=16), "no multiple"),
        (lambda: train(made(lambda c: c > 0.5, 30), epochs=0), "epochs is 0"),
        (lambda: train(made(lambda c: c > 0.5, 30), patience=0), "patience 0"),
        (lambda: train(made(lambda c: c > 0.5, 30), lr=0.0), "lr 0.0"),
        (lambda: train(made(lambda c: c > 0.5, 30), keep="first"), "keep 'first'"),
    ],
)
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (lambda: made(lambda c: c > 0.5, 30).at(torch.zeros(30, dtype=torch.bool)), "no records"),
        (lambda: made(lambda c: c > 0.5, 20), "of 2 prompts"),
        (lambda: made(lambda c: c >= 0), "labels are 1"),
        (lambda: made(lambda c: c < 0), "labels are 0"),
    ],
)
def test_records_that_teach_nothing_are_refused(records, says):
    with pytest.raises(DataError, match=says):
        train(records())


def test_what_only_the_model_tells_is_refused_at_the_first_step():
    with pytest.raises(MethodError, match="no end token"):
        replace(ONE_BY_ONE, edit=EoTP())(replace(lively(), end_ids=()), None, prompts_of(3))
    with pytest.raises(MethodError, match="2 answers for 1 prompts"):
        replace(ONE_BY_ONE, commit=Oracle(torch.zeros(2, 24)))(lively(), None, prompts_of(3))
    other = Filter(8, source={"mask_id": "126336"})
    with pytest.raises(MethodError, match=f"mask token 126336, this model's is {MASK}"):
        replace(ONE_BY_ONE, commit=LearnedSelect(other))(lively(), None, prompts_of(3))
