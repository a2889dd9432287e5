"""The parts found are the parts the model computes with, for every architecture."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertModel

from helpers.architectures import ARCHITECTURES, INNER, WIDTH, tiny_model, tokens
from unwrite.errors import ModelError
from unwrite.models import anatomy

ALL = pytest.mark.parametrize("arch", sorted(ARCHITECTURES))


def record(module, run):
    """The first input and the output of `module` while `run()` runs."""
    seen = {}

    def hook(_, args, kwargs, output):
        first = args[0] if args else next(iter(kwargs.values()))
        seen["in"], seen["out"] = first, output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return seen["in"], seen["out"]


def linear(projection, x):
    return F.linear(x, projection.weight, projection.bias)


@ALL
def test_fused_or_not_projections_give_what_their_module_gives(arch):
    model = tiny_model(arch)
    for block in anatomy(model).blocks:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            part = getattr(block, name)
            if part is None:
                continue
            x, y = record(part.module, lambda: model(tokens()))
            expected = y if part.rows is None else y[..., part.rows]
            torch.testing.assert_close(linear(part, x), expected, rtol=1e-5, atol=1e-5)
            assert part.shape == tuple(part.weight.shape)


@ALL
def test_the_blocks_of_a_fused_module_cover_each_row_once(arch):
    block = anatomy(tiny_model(arch)).blocks[0]
    fused: dict[int, list[int]] = {}
    for part in (block.q, block.k, block.v):
        rows = torch.arange(part.module.weight.shape[1 if part.transposed else 0])
        fused.setdefault(id(part.module), []).extend((rows if part.rows is None else rows[part.rows]).tolist())
    assert all(sorted(rows) == list(range(len(rows))) for rows in fused.values())


@ALL
def test_attention_answers_with_v(arch):
    model = tiny_model(arch)
    block = anatomy(model).blocks[1]
    block.v.write_(torch.zeros(block.v.shape), None if block.v.bias is None else torch.zeros(block.v.shape[0]))
    _, out = record(block.attention, lambda: model(tokens()))
    expected = torch.zeros_like(out) if block.o.bias is None else block.o.bias.expand_as(out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"modernbert"}))
def test_the_cache_keeps_what_k_and_not_q_gives(arch):
    model = tiny_model(arch)
    block = anatomy(model).blocks[0]
    before = model(tokens(), use_cache=True).past_key_values.layers[0].keys
    block.q.write_(torch.randn(block.q.shape))
    assert torch.equal(model(tokens(), use_cache=True).past_key_values.layers[0].keys, before)
    block.k.write_(torch.randn(block.k.shape))
    assert not torch.equal(model(tokens(), use_cache=True).past_key_values.layers[0].keys, before)


@ALL
def test_the_gate_goes_through_the_activation_and_up_does_not(arch):
    block = anatomy(model := tiny_model(arch)).blocks[0]
    if block.gate is None:
        return
    x, out = record(block.mlp, lambda: model(tokens()))
    activation = next(m for name, m in block.mlp.named_modules() if "act" in name)
    torch.testing.assert_close(
        linear(block.down, activation(linear(block.gate, x)) * linear(block.up, x)), out, rtol=1e-5, atol=1e-5
    )
    assert block.gate.shape == block.up.shape == (INNER, WIDTH)


@ALL
def test_writing_a_projection_changes_its_rows_and_no_others(arch):
    block = anatomy(tiny_model(arch)).blocks[0]
    others = [block.q.read(), block.v.read(), block.o.read()]
    new = torch.randn(block.k.shape)
    block.k.write_(new)
    torch.testing.assert_close(block.k.read(), new)
    for before, part in zip(others, (block.q, block.v, block.o), strict=True):
        assert torch.equal(before, part.read())


@ALL
def test_blocks_final_norm_and_head_give_the_models_logits(arch):
    model = tiny_model(arch)
    parts = anatomy(model)
    _, last = record(parts.hidden_layer(-1), lambda: model(tokens()))
    torch.testing.assert_close(parts.logits(parts.final_norm(last)), model(tokens()).logits)


@ALL
def test_an_early_exit_is_the_first_blocks_then_the_final_norm_and_the_head(arch):
    model = tiny_model(arch)
    parts = anatomy(model)
    for layers in (1, 3):
        _, hidden = record(parts.hidden_layer(layers), lambda: model(tokens()))
        early = parts.truncate(layers)
        torch.testing.assert_close(early(tokens()).logits, parts.logits(parts.final_norm(hidden)))
        assert len(anatomy(early).blocks) == early.config.num_hidden_layers == layers
    assert len(parts.blocks) == model.config.num_hidden_layers == 4


@ALL
def test_an_early_exit_shares_no_tensor_and_keeps_its_ties(arch):
    model = tiny_model(arch)
    early = anatomy(model).truncate(2)
    ours = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert not ours & {p.data_ptr() for p in (*early.parameters(), *early.buffers())}
    assert anatomy(early).tied == anatomy(model).tied == bool(model.config.tie_word_embeddings)


@ALL
def test_an_early_exit_saves_and_loads_to_the_same_logits(arch, tmp_path):
    early = anatomy(tiny_model(arch)).truncate(3)
    early.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if arch == "modernbert" else AutoModelForCausalLM
    torch.testing.assert_close(auto.from_pretrained(tmp_path)(tokens()).logits, early(tokens()).logits)


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"modernbert"}))
def test_an_early_exit_generates_the_same_with_a_cache_and_without(arch):
    early = anatomy(tiny_model(arch)).truncate(2)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = early.generate(tokens(1), use_cache=True, **options)
    assert torch.equal(with_cache, early.generate(tokens(1), use_cache=False, **options))


@ALL
def test_a_model_without_a_head_has_blocks_and_no_head(arch):
    full = tiny_model(arch)
    base = AutoModel.from_config(full.config)
    parts = anatomy(base)
    assert len(parts.blocks) == 4
    assert parts.head is None
    assert parts.unembedding is None
    with pytest.raises(ModelError, match="has no head"):
        parts.logits(torch.zeros(1, WIDTH))


@ALL
def test_every_norm_of_a_block_is_found(arch):
    block = anatomy(tiny_model(arch)).blocks[1]
    named = {name for name, module in block.module.named_modules() if "Norm" in type(module).__name__}
    assert set(block.norms) == named


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "modernbert"])
def test_under_an_adapter_the_frozen_projections_are_found(arch):
    plain = tiny_model(arch)
    before = anatomy(plain).blocks[0].q.read()
    path = anatomy(plain).layout.q.path.split(".")[-1]
    adapted = peft.get_peft_model(plain, peft.LoraConfig(target_modules=[path], init_lora_weights=False))
    parts = anatomy(adapted)
    assert torch.equal(parts.blocks[0].q.read(), before)
    assert parts.model is plain
    early = parts.truncate(2)
    _, hidden = record(parts.hidden_layer(2), lambda: adapted(tokens()))
    torch.testing.assert_close(early(tokens()).logits, parts.logits(parts.final_norm(hidden)))


def test_gemma_logits_are_capped_as_the_model_caps_them():
    model = tiny_model("gemma2", final_logit_softcapping=0.5)
    hidden = model.model(tokens()).last_hidden_state
    torch.testing.assert_close(anatomy(model).logits(hidden), model(tokens()).logits)


def test_an_opt_with_narrow_embeddings_projects_out_before_its_head():
    model = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    parts = anatomy(model)
    _, last = record(parts.hidden_layer(-1), lambda: model(tokens()))
    torch.testing.assert_close(parts.logits(parts.final_norm(last)), model(tokens()).logits)


def test_gradients_reach_the_weight_through_interleaved_rows():
    block = anatomy(tiny_model("gpt_neox")).blocks[0]
    block.k.weight.sum().backward()
    grad = block.k.module.weight.grad
    assert torch.equal(grad[block.k.rows], torch.ones(block.k.shape))
    assert grad.sum() == block.k.weight.numel()


def test_refuses_an_unknown_architecture_by_name_and_lists_the_known():
    model = BertModel(
        BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=8)
    )
    with pytest.raises(ModelError, match=r"BertModel: unknown architecture 'bert'.*modernbert.*qwen3"):
        anatomy(model)


def test_refuses_a_module_that_is_no_transformers_model():
    with pytest.raises(ModelError, match="Linear is not a transformers model"):
        anatomy(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("layers", [0, 5, -1, True, 2.0])
def test_refuses_to_keep_a_number_of_blocks_that_is_not_there(layers):
    with pytest.raises(ModelError, match="whole number from 1 to 4"):
        anatomy(tiny_model("llama")).truncate(layers)


@pytest.mark.parametrize("layer", [0, 5, -5])
def test_refuses_a_hidden_layer_that_is_no_block(layer):
    with pytest.raises(ModelError, match="Use 1 to 4"):
        anatomy(tiny_model("llama")).hidden_layer(layer)


def test_refuses_to_write_another_shape_and_says_which_is_wanted():
    with pytest.raises(ModelError, match=r"shape \(48, 32\) cannot replace one of shape \(32, 48\)"):
        anatomy(tiny_model("gpt2")).blocks[0].down.write_(torch.zeros(48, 32))


def test_refuses_to_write_a_bias_where_there_is_none():
    with pytest.raises(ModelError, match="has no bias"):
        anatomy(tiny_model("llama")).blocks[0].q.write_(bias=torch.zeros(32))
