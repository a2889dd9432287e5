"""Relearning and quantisation: what they do, what they leave alone, what they refuse."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unwrite.audit import Quantise, Relearn, TextContext, quantise, relearn
from unwrite.audit.attacks.quantisation import round_to_grid
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.runs import hash_model


def test_relearning_raises_the_rows_it_shows_and_measures_the_others(tokenizer: Any, split: Any, model: Any) -> None:
    _, curve = relearn(model, tokenizer, split.forget, rows=2, steps=12, every=4, learning_rate=3e-3)
    assert [point["step"] for point in curve] == [0, 4, 8, 12]
    assert curve[-1]["shown"] > 10 * curve[0]["shown"]


def test_relearning_leaves_the_model_as_it_was(tokenizer: Any, split: Any, model: Any) -> None:
    model.requires_grad_(False)
    before = hash_model(model)
    attacked, _ = relearn(model, tokenizer, split.forget, steps=2, learning_rate=1e-3)
    assert hash_model(model) == before != hash_model(attacked)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_relearning_is_reproducible_and_leaves_the_callers_random_state(tokenizer: Any, split: Any, model: Any) -> None:
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = relearn(model, tokenizer, split.forget, steps=3, learning_rate=1e-3)[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    torch.manual_seed(6)
    assert relearn(model, tokenizer, split.forget, steps=3, learning_rate=1e-3)[1] == first


def test_at_most_half_of_the_forget_rows_are_shown() -> None:
    shown, unseen = Relearn(rows=10).drawn(7)
    assert (len(shown), len(unseen)) == (3, 4)
    assert sorted(shown + unseen) == list(range(7))


def test_relearning_an_adapter_attacks_the_merged_weights(tokenizer: Any, split: Any, model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"]))
    attacked, _ = relearn(adapted, tokenizer, split.forget, steps=1, learning_rate=1e-3)
    assert type(attacked) is type(model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_both_attacks_see_an_adapter_on_a_tied_head_as_it_answers(tokenizer: Any, split: Any, model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    tied = copy.deepcopy(model)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    ids = torch.arange(5, 15)[None]
    adapted = get_peft_model(tied, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()
    logits = adapted(ids).logits.detach()
    attacked, curve = relearn(adapted, tokenizer, split.forget, steps=1, learning_rate=1e-12)
    torch.testing.assert_close(attacked(ids).logits.detach(), logits, rtol=1e-4, atol=1e-4)
    assert curve[0]["unseen"] == pytest.approx(curve[-1]["unseen"], rel=1e-4)
    # 8 bits hardly move the weights, so what is rounded must still answer as the adapted model
    rounded = quantise(adapted, bits=8, group=1)
    assert type(rounded) is type(model)
    torch.testing.assert_close(rounded(ids).logits.detach(), logits, rtol=1e-4, atol=1e-4)


def test_refuses_to_relearn_a_single_row(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(DataError, match="at least 2 forget rows"):
        relearn(model, tokenizer, split.forget[:1])


def test_refuses_to_relearn_what_has_no_weights(tokenizer: Any, split: Any) -> None:
    class Guard:
        pass

    with pytest.raises(ModelError, match="a Guard has none of its own"):
        relearn(Guard(), tokenizer, split.forget)


@pytest.mark.parametrize(
    "settings", [{"rows": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}]
)
def test_refuses_relearning_settings_without_meaning(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="relearning needs"):
        Relearn(**settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 100, 7])
def test_rounding_twice_is_rounding_once(dtype: torch.dtype, width: int) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    once = round_to_grid(weight)
    assert torch.equal(round_to_grid(once), once)


def test_no_weight_moves_by_more_than_half_a_step() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    scale = weight.view(8, 2, 64).abs().amax(-1, keepdim=True) / 7
    moved = (weight - round_to_grid(weight)).abs().view(8, 2, 64)
    assert (moved <= scale / 2 + 1e-6).all()


def test_a_group_has_at_most_fifteen_values() -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    assert len(round_to_grid(weight).unique()) <= 15


def test_a_zero_weight_stays_zero() -> None:
    assert round_to_grid(torch.zeros(2, 64)).eq(0).all()


def test_head_and_embeddings_stay_and_the_original_too(model: Any) -> None:
    before = hash_model(model)
    small = quantise(model)
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    assert torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert not torch.equal(small.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert hash_model(model) == before


def test_conv1d_weights_are_grouped_along_their_inputs() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=64, n_layer=1, n_head=2, n_positions=32))
    layer, small = gpt2.transformer.h[0].mlp.c_fc, quantise(gpt2).transformer.h[0].mlp.c_fc
    assert torch.equal(small.weight, round_to_grid(layer.weight.T).T)


def test_the_quantisation_attack_measures_both_widths(tokenizer: Any, split: Any, model: Any) -> None:
    points = Quantise()(TextContext(model, split, tokenizer))
    assert [point["bits"] for point in points] == [32.0, 4.0]
    assert set(points[0]) == {"bits", "forget", "kept"}


@pytest.mark.parametrize("bits", [1, 17])
def test_refuses_widths_without_a_grid(bits: int) -> None:
    with pytest.raises(MethodError, match=f"not {bits}"):
        Quantise(bits)


def test_refuses_to_quantise_what_has_no_linear_weight() -> None:
    with pytest.raises(ModelError, match="Embedding has no linear weight"):
        quantise(torch.nn.Embedding(2, 2))
