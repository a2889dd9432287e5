"""The loss, its trainer, and the recipe that makes a causal model a mask predictor."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from masks import END, MASK, VOCAB, lively, prompts_of, random_predictor, scripted
from transformers import TrainingArguments

from conftest import make_llama
from unwrite.diffusion import MaskPredictor, Sampler, Threshold, log_likelihood
from unwrite.diffusion.training import (
    MaskedCollator,
    MaskedDiffusionTrainer,
    MaskedRow,
    mask_predictor_recipe,
    masked_diffusion_loss,
)
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.models import load_model, trained


def uniform_model():
    return scripted(lambda canvas: torch.zeros(*canvas.shape, VOCAB))


@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_a_uniform_model_loses_ln_v(eps):
    """E[1[hidden] / p] = 1; 2,000 rows of 128 tokens: one sigma is about 0.5 %."""
    ids = torch.full((2000, 128), 5)
    full, none = torch.full((2000,), 128), torch.zeros(2000, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    loss = masked_diffusion_loss(uniform_model(), ids, full, none, eps=eps, generator=generator)
    assert abs(float(loss.mean()) / math.log(VOCAB - 1) - 1) < 0.02


def test_the_prompt_is_never_hidden_and_filled_up_answers_are():
    model = uniform_model()
    batch = MaskedCollator(END)([MaskedRow([5, 6, 7, 8], 2), MaskedRow([5, 6, 7, 8, 9, 10], 3)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, END, END], [5, 6, 7, 8, 9, 10]]
    torch.manual_seed(0)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    for _ in range(200):
        masked_diffusion_loss(model, batch["input_ids"], batch["lengths"], batch["prompt_lengths"])
        hidden |= model.model.seen[-1] == MASK
    assert hidden.tolist() == [[False, False, True, True, True, True], [False, False, False, True, True, True]]


def test_a_shifted_model_never_loses_its_first_token():
    """Nothing predicts it."""
    model = scripted(lambda canvas: torch.zeros(*canvas.shape, VOCAB), shift=True)
    ids, full, none = torch.full((4, 6), 5), torch.full((4,), 6), torch.zeros(4, dtype=torch.long)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(20):
        losses.append(masked_diffusion_loss(model, ids, full, none, eps=0.999, short=0.5, generator=generator))
        assert not (model.model.seen[-1][:, 0] == MASK).any()
    assert torch.stack(losses).isfinite().all()
    # Otherwise everything is hidden, and all but the first token is the answer.
    assert float(losses[0].max()) == pytest.approx(math.log(VOCAB - 1), rel=0.01)


def test_the_loss_is_finite_where_padding_looks_like_the_mask():
    model = scripted(lambda canvas: torch.zeros(*canvas.shape, VOCAB), mask_id=0, pad_id=1)
    batch = MaskedCollator(None)([MaskedRow([5, 6], 1), MaskedRow([5, 6, 7, 8, 9], 1)])
    loss = masked_diffusion_loss(model, batch["input_ids"], batch["lengths"], batch["prompt_lengths"], eps=0.999)
    assert loss.isfinite().all()


def test_padding_is_neither_seen_nor_learnt():
    predictor = random_predictor()
    rows = [MaskedRow([5, 6, 7], 1), MaskedRow([5, 6, 7, 8, 9, 10], 1)]
    batch = MaskedCollator(None)(rows)
    alone = MaskedCollator(None)(rows[:1])
    found = []
    for one in (batch, alone):
        ids, lengths, prompts = one["input_ids"][:1], one["lengths"][:1], one["prompt_lengths"][:1]
        losses = [
            masked_diffusion_loss(
                predictor, ids, lengths, prompts, generator=torch.Generator().manual_seed(s), eps=0.999
            )
            for s in range(3)
        ]
        found.append(torch.cat(losses))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)  # at eps 0.999 all is hidden in both


def test_the_loss_is_each_rows_own_mean_over_its_answer():
    """Written out for one draw, against the predictor's own logits."""
    predictor = random_predictor()
    ids, prompts, lengths = torch.tensor(prompts_of(10, 10)), torch.tensor([3, 6]), torch.tensor([10, 10])
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["input_ids"]), with_kwargs=True)
    loss = masked_diffusion_loss(predictor, ids, lengths, prompts, generator=torch.Generator().manual_seed(1))
    share = (1 - 1e-3) * torch.rand(2, generator=torch.Generator().manual_seed(1)) + 1e-3
    canvas = seen[-1]
    logits = predictor.model(input_ids=canvas).logits.index_fill(-1, torch.tensor(MASK), -torch.inf)
    nll = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    hidden = canvas == MASK
    wanted = (nll * hidden).sum(1) / share / (lengths - prompts)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    assert hidden.any()


def test_short_cuts_whole_batches_only_without_prompts():
    model = uniform_model()
    ids, full = torch.full((4, 32), 5), torch.full((4,), 32)
    for prompts, cut in ((torch.zeros(4, dtype=torch.long), True), (torch.ones(4, dtype=torch.long), False)):
        widths = set()
        for seed in range(20):
            masked_diffusion_loss(model, ids, full, prompts, short=1.0, generator=torch.Generator().manual_seed(seed))
            widths.add(model.model.seen[-1].shape[1])
        assert (len(widths) > 5) == cut


def test_a_one_token_answer_has_its_exact_likelihood():
    predictor = random_predictor()
    prompt = prompts_of(6)[0]
    logits = predictor.model(input_ids=torch.tensor([[*prompt, MASK]])).logits[0, -1].double()
    logits[MASK] = -torch.inf
    found = log_likelihood(predictor, prompt, [7], samples=1)
    assert found == pytest.approx(logits.log_softmax(-1)[7].item(), abs=1e-6)


def test_other_seeds_change_a_long_answers_likelihood_within_its_error():
    predictor = random_predictor(sharpness=1.0)
    prompt, answer = prompts_of(6, 12)
    found = torch.tensor([log_likelihood(predictor, prompt, answer, samples=64, seed=seed) for seed in range(8)])
    few = torch.tensor([log_likelihood(predictor, prompt, answer, samples=8, batch_size=8, seed=s) for s in range(8)])
    assert 0 < float(found.std()) < float(few.std())
    assert abs(float(found.mean() - few.mean())) < 4 * float(few.std()) / math.sqrt(8)


def every_draw(predictor, prompt, answer):
    """Mean and deviation of one draw, over every set of hidden tokens with its probability."""
    size, values, weights = len(answer), [], []
    for count in range(1, size + 1):
        for hidden in itertools.combinations(range(len(prompt), len(prompt) + size), count):
            canvas = torch.tensor([[*prompt, *answer]])
            canvas[0, list(hidden)] = MASK
            logits = predictor.model(input_ids=canvas).logits[0].detach().double()
            log_p = logits.index_fill(-1, torch.tensor(MASK), -torch.inf).log_softmax(-1)
            values.append(size / count * sum(float(log_p[place, answer[place - len(prompt)]]) for place in hidden))
            weights.append(1 / size / math.comb(size, count))
    assert sum(weights) == pytest.approx(1.0)
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return mean, math.sqrt(sum((v - mean) ** 2 * w for v, w in zip(values, weights, strict=True)))


def test_every_seeds_likelihood_is_the_exact_one_within_its_error():
    """Counts spread evenly within a batch vary less than independent draws, whose error is taken here."""
    predictor = lively()
    prompt, answer = prompts_of(4, 6)
    exact, sigma = every_draw(predictor, prompt, answer)
    found = [log_likelihood(predictor, prompt, answer, samples=256, seed=seed) for seed in range(10)]
    assert max(abs(one - exact) for one in found) < 3 * sigma / math.sqrt(256)
    assert abs(sum(found) / 10 - exact) < 3 * sigma / math.sqrt(2560)
    assert len(set(found)) == 10


def test_a_factorised_models_likelihood_is_the_sum_whatever_is_hidden():
    """Where tokens do not depend on each other every draw's expectation is the same; all hidden gives it exactly."""
    table = torch.randn(10, VOCAB, generator=torch.Generator().manual_seed(0)).double()
    predictor = scripted(lambda canvas: table.expand(len(canvas), -1, -1))
    clean = table.index_fill(-1, torch.tensor(MASK), -torch.inf).log_softmax(-1)
    exact = float(sum(clean[4 + i, token] for i, token in enumerate([5, 6, 7, 8, 9, 10])))
    found = log_likelihood(predictor, [3, 4, 5, 6], [5, 6, 7, 8, 9, 10], samples=6000, batch_size=600)
    assert found == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda p: log_likelihood(p, [5], []), "answer is empty"),
        (lambda p: log_likelihood(p, [5, MASK], [6]), "holds the mask token"),
        (lambda p: log_likelihood(p, [5], [6], samples=0), "samples is 0"),
        (lambda p: log_likelihood(p, [5], [6], guidance=-1), "guidance -1"),
        (lambda p: log_likelihood(p, [5], [6], guidance=math.inf), "guidance inf"),
    ],
)
def test_likelihoods_without_meaning_are_refused(call, what):
    with pytest.raises(MethodError, match=what):
        call(random_predictor())


class Rows(list):
    @property
    def hash(self):
        return str([(row.input_ids, row.answer) for row in self])


def copying(count=64, length=4):
    """The answer repeats the prompt."""
    generator = torch.Generator().manual_seed(0)
    found = Rows()
    for _ in range(count):
        word = torch.randint(3, 9, (length,), generator=generator).tolist()
        found.append(MaskedRow([*word, 9, *word, END], length + 1))
    return found


def recipe(start, **more):
    return mask_predictor_recipe(start, mask_id=MASK, end_id=END, **{"epochs": 2, "lr": 1e-3, "batch_size": 16, **more})


def test_a_causal_config_becomes_a_saved_mask_predictor():
    config = make_llama(vocab=VOCAB).config
    folder = trained(recipe(config), copying(), range(64), 0)
    predictor = MaskPredictor.of(load_model(folder))
    assert (predictor.mask_id, predictor.end_ids) == (MASK, (END,))
    out = Sampler(gen_length=5, commit=Threshold(0.5))(predictor, None, [[3, 4, 5, 6, 9]])
    assert len(out.answers) == 1


def test_training_lowers_the_loss(tmp_path):
    config, rows = make_llama(vocab=VOCAB).config, copying(256)
    batch = MaskedCollator(END)(rows)
    losses = []
    for epochs in (1, 30):
        model = load_model(trained(recipe(config, epochs=epochs, lr=3e-3), rows, range(256), 0))
        generator = torch.Generator().manual_seed(0)
        loss = masked_diffusion_loss(
            MaskPredictor.of(model), batch["input_ids"], batch["lengths"], batch["prompt_lengths"], generator=generator
        )
        losses.append(float(loss.detach().mean()))
    assert losses[1] < 0.7 * losses[0]


def test_a_causal_model_keeps_its_weights_and_gets_room_for_the_mask(tmp_path):
    model = make_llama(vocab=VOCAB - 1)  # no mask token yet
    model.save_pretrained(tmp_path / "causal")
    built = recipe(tmp_path / "causal").build(0)
    assert built.get_input_embeddings().weight.shape[0] == VOCAB
    assert torch.equal(built.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert built.config.is_causal is False


def test_the_same_seed_trains_the_same_model_and_another_start_another(tmp_path, monkeypatch):
    config, rows = make_llama(vocab=VOCAB).config, copying()
    weights = []
    for cache, seed in (("a", 0), ("b", 0), ("c", 1)):
        monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / cache))
        weights.append(load_model(trained(recipe(config), rows, range(64), seed)).lm_head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rows_with_the_mask_token_are_refused():
    rows = Rows([MaskedRow([5, MASK, 6], 1)])
    with pytest.raises(DataError, match="row 0 holds the mask token"):
        trained(recipe(make_llama(vocab=VOCAB).config), rows, [0], 0)


def test_rows_without_an_answer_or_too_long_are_refused():
    with pytest.raises(DataError, match="answer begins at 3"):
        MaskedCollator(END)([MaskedRow([5, 6, 7], 3)])
    with pytest.raises(DataError, match="more than length, 2"):
        MaskedCollator(END, length=2)([MaskedRow([5, 6, 7], 1)])


def test_shares_outside_their_range_are_refused():
    with pytest.raises(ModelError, match="eps is 0"):
        recipe(make_llama(vocab=VOCAB).config, eps=0)
    with pytest.raises(MethodError, match="eps is 1"):
        MaskedDiffusionTrainer(make_llama(), eps=1.0)


def arguments(folder, **more):
    settings = {"max_steps": 3, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return TrainingArguments(str(folder), remove_unused_columns=False, **settings, **more)


def bidirectional():
    return random_predictor(sharpness=1.0).model


@pytest.mark.parametrize("uneven", [12, 16])
def test_the_trainer_averages_over_rows_of_an_accumulated_batch(tmp_path, uneven, monkeypatch):
    """8 rows a step at once, or 2 x 4: the same weights. Everything is hidden (eps near 1), so no draw differs."""
    weights = []
    for size, accumulate in ((8, 1), (4, 2)):
        model = bidirectional()
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            learning_rate=1e-3,
            seed=0,
        )
        trainer = MaskedDiffusionTrainer(
            model, args, mask_id=MASK, end_id=END, eps=1 - 1e-7, train_dataset=list(copying(uneven))
        )
        trainer.train()
        weights.append(model.lm_head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=0)


def test_the_trainers_evaluation_is_the_same_twice(tmp_path):
    rows = list(copying(16))
    trainer = MaskedDiffusionTrainer(
        bidirectional(), arguments(tmp_path), mask_id=MASK, end_id=END, train_dataset=rows, eval_dataset=rows
    )
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_the_trainer_says_which_argument_would_strip_the_answers(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(MethodError, match="remove_unused_columns=False"):
        MaskedDiffusionTrainer(bidirectional(), args, mask_id=MASK)


@pytest.mark.parametrize("ids", [[5, MASK, 6], [5, 6, MASK]])
def test_the_trainer_refuses_rows_with_the_mask_token(tmp_path, ids):
    trainer = MaskedDiffusionTrainer(
        bidirectional(), arguments(tmp_path), mask_id=MASK, end_id=END, train_dataset=[MaskedRow(ids, 2)] * 8
    )
    with pytest.raises(DataError, match=f"holds the mask token {MASK}"):
        trainer.train()


def test_rows_may_be_mappings():
    batch = MaskedCollator(END)([{"input_ids": [5, 6, 7], "answer": 1}, SimpleNamespace(input_ids=[5, 6], answer=0)])
    assert batch["prompt_lengths"].tolist() == [1, 0]


def test_spread_times_have_the_same_expectation_and_less_variance():
    ids, full, none = torch.full((16, 64), 5), torch.full((16,), 64), torch.zeros(16, dtype=torch.long)
    model = uniform_model()
    means = {}
    for spread in (False, True):
        generator = torch.Generator().manual_seed(0)
        draws = [
            masked_diffusion_loss(model, ids, full, none, spread=spread, eps=0.05, generator=generator).mean()
            for _ in range(300)
        ]
        means[spread] = torch.stack(draws)
    assert abs(float(means[True].mean() / means[False].mean()) - 1) < 0.02
    assert float(means[True].std()) < float(means[False].std())
