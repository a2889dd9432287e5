"""A merged model answers as the adapted one, after a reload too, whatever the adapter is on and whatever is tied."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM

from helpers.architectures import tiny_model, tokens
from unwrite.errors import ModelError
from unwrite.models import load_model, save
from unwrite.models.agreement import outputs, short_batch
from unwrite.models.merging import merged

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft's own advice

LORA = {"init_lora_weights": False}
KINDS = {
    "attention": lambda: peft.LoraConfig(target_modules=["q_proj", "v_proj"], **LORA),
    "mlp": lambda: peft.LoraConfig(target_modules=["down_proj"], **LORA),
    "all linear": lambda: peft.LoraConfig(target_modules="all-linear", **LORA),
    "embedding": lambda: peft.LoraConfig(target_modules=["embed_tokens"], **LORA),
    "head": lambda: peft.LoraConfig(target_modules=["lm_head"], **LORA),
    "head and attention": lambda: peft.LoraConfig(target_modules=["lm_head", "q_proj"], **LORA),
    "embedding and head": lambda: peft.LoraConfig(target_modules=["embed_tokens", "lm_head"], **LORA),
    "one adapter on both": lambda: peft.LoraConfig(
        target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True, **LORA
    ),
    "DoRA": lambda: peft.LoraConfig(target_modules=["q_proj"], use_dora=True, **LORA),
    "DoRA on the head": lambda: peft.LoraConfig(target_modules=["lm_head"], use_dora=True, **LORA),
    "DoRA on the embedding": lambda: peft.LoraConfig(target_modules=["embed_tokens"], use_dora=True, **LORA),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "IA3 on the head": lambda: peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
    "whole head": lambda: peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], **LORA),
    "whole embedding": lambda: peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], **LORA),
    "whole embedding and head": lambda: peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], **LORA
    ),
    "whole norm": lambda: peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], **LORA),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 4, 5], init_weights=False),
    "tokens of the head": lambda: peft.TrainableTokensConfig(
        target_modules=["lm_head"], token_indices=[3, 4, 5], init_weights=False
    ),
    "tokens beside attention": lambda: peft.LoraConfig(
        target_modules=["q_proj"], trainable_token_indices=[3, 4, 5], **LORA
    ),
    "LoHa on the head": lambda: peft.LoHaConfig(target_modules=["lm_head"], init_weights=False),
    "LoKr on the head": lambda: peft.LoKrConfig(target_modules=["lm_head"], init_weights=False),
    "AdaLoRA": lambda: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, **LORA),
    "OFT": lambda: peft.OFTConfig(target_modules=["q_proj"], init_weights=False, oft_block_size=8, r=0),
    "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj"], init_weights=False),
}
GPT2 = {
    "attention": lambda: peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **LORA),
    "head": lambda: peft.LoraConfig(target_modules=["lm_head"], **LORA),
    "embedding": lambda: peft.LoraConfig(target_modules=["wte"], **LORA),
}


def adapted(base, config):
    """The base with an adapter of random weights on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        model = peft.get_peft_model(base, config).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def close(model, logits, within=1e-4):
    torch.testing.assert_close(model(tokens()).logits, logits, rtol=within, atol=within)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_answers_the_same_once_merged_and_once_read_back(kind, tied, tmp_path):
    model = adapted(tiny_model("llama", layers=2, tie_word_embeddings=tied), KINDS[kind]())
    logits = model(tokens()).logits
    close(merged(model), logits)
    close(load_model(save(model, tmp_path / "m", merge=True)), logits)
    torch.testing.assert_close(model(tokens()).logits, logits, rtol=0, atol=0)  # the adapted model is as it was


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_saved_alone_comes_back_on_its_tied_base(kind, tmp_path):
    base = save(tiny_model("llama", layers=1, tie_word_embeddings=True), tmp_path / "base")
    model = adapted(load_model(base), KINDS[kind]())
    close(load_model(save(model, tmp_path / "adapter")), model(tokens()).logits)


@pytest.mark.parametrize("kind", GPT2)
def test_transposed_layers_and_another_familys_tied_head_merge_as_well(kind, tmp_path):
    model = adapted(tiny_model("gpt2", layers=2), GPT2[kind]())
    close(load_model(save(model, tmp_path / "m", merge=True)), model(tokens()).logits)


def bart():
    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def bert():
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    return BertForMaskedLM(config).eval()


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (bart, "lm_head"),  # one weight for three embeddings and the head
        (bart, "model.shared"),
        (bert, "cls.predictions.decoder"),  # a bias that is tied, too
        (bert, "bert.embeddings.word_embeddings"),
        (lambda: tiny_model("modernbert", layers=1), "decoder"),
        (lambda: tiny_model("gemma2", layers=1, tie_word_embeddings=True), "lm_head"),
        (lambda: tiny_model("opt", layers=1, tie_word_embeddings=True), "lm_head"),
        (lambda: tiny_model("gpt_neox", layers=1, tie_word_embeddings=True), "lm_head"),
    ],
)
def test_whatever_else_is_tied_is_parted_with_the_head(build, target, tmp_path):
    model = adapted(build(), peft.LoraConfig(target_modules=[target], **LORA))
    batch = short_batch(model)
    again = load_model(save(model, tmp_path / "m", merge=True))
    torch.testing.assert_close(outputs(again, batch), outputs(model, batch), rtol=1e-4, atol=1e-4)


def test_what_both_learned_alike_stays_one_weight_and_what_one_learned_does_not():
    tied = {"layers": 2, "tie_word_embeddings": True}
    plain = merged(adapted(tiny_model("llama", **tied), KINDS["tokens beside attention"]()))
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings
    plain = merged(adapted(tiny_model("llama", **tied), KINDS["head"]()))
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
    assert not plain.config.tie_word_embeddings


def test_the_model_it_came_from_stays_tied_and_keeps_its_mode():
    model = adapted(tiny_model("llama", layers=2, tie_word_embeddings=True), KINDS["head"]()).train()
    assert merged(model).training
    assert model.training
    assert model.base_model.model.lm_head.base_layer.weight is model.base_model.model.model.embed_tokens.weight
    assert model.base_model.model.config.tie_word_embeddings


def test_merging_in_place_uses_the_models_own_weights():
    model = adapted(tiny_model("llama", layers=2), KINDS["attention"]())
    logits, norm = model(tokens()).logits, model.base_model.model.model.norm
    plain = merged(model, in_place=True)
    close(plain, logits)
    assert plain.model.norm is norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["head", "attention"])
def test_half_precision_merges_within_its_rounding(kind, dtype, tmp_path):
    model = adapted(tiny_model("llama", layers=2, tie_word_embeddings=True).to(dtype), KINDS[kind]())
    logits = model(tokens()).logits.detach()
    again = load_model(save(model, tmp_path / "m", merge=True), dtype=dtype)
    assert float((again(tokens()).logits.detach() - logits).norm() / logits.norm()) < 0.02


def test_refuses_adapters_that_have_no_place_in_the_weights():
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ModelError, match=r"only adds to the input \(PROMPT_TUNING\)"):
        merged(peft.get_peft_model(tiny_model("llama"), prompt))
    bias = peft.LoraConfig(target_modules=["q_proj"], lora_bias=True, **LORA)
    with pytest.raises(ModelError, match=r"the LORA adapter cannot be merged: .* Save it with merge=False\.") as caught:
        merged(adapted(tiny_model("llama"), bias))
    assert "\n" not in str(caught.value)


def test_refuses_a_merge_that_gives_another_model():
    """Adapters that are switched off would be switched on by the merge."""
    model = adapted(tiny_model("llama"), KINDS["attention"]())
    model.base_model.disable_adapter_layers()
    with pytest.raises(ModelError, match="merging the LORA adapter gives another model"):
        merged(model)


def test_refuses_an_adapter_that_is_no_number():
    model = adapted(tiny_model("llama", layers=1), KINDS["attention"]())
    next(weight for weight in model.parameters() if weight.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"the LORA adapter cannot be merged: NaNs detected"):
        merged(model)
