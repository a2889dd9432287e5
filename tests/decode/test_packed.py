import copy
import gc

import numpy as np
import pytest
import torch
from targets import make_target
from torch import nn
from transformers.pytorch_utils import Conv1D

from unwrite.decode.engine.transformers import packed
from unwrite.decode.engine.transformers.fused import is_stock
from unwrite.decode.engine.transformers.packed import Unpacked, pack_of, packable, packed_copy, structural_copy
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def linear(rows=24, columns=16, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(columns, rows)


# Packs


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 40])
def test_a_pack_multiplies_as_its_layers_do(rows):
    one, other, x = linear(24), linear(8, seed=1), torch.randn(rows, 16)
    other.bias = None
    expected = torch.cat([one(x), other(x)], -1)
    residual = torch.randn(rows, 32)
    for product in (pack_of(nn.Identity(), [one, other]), Unpacked([one, other])):
        assert torch.allclose(product(x), expected, atol=1e-5)
        assert torch.allclose(product.add_to(residual, x), residual + expected, atol=1e-5)


def test_a_pack_of_a_conv1d_multiplies_as_it_does():
    torch.manual_seed(0)
    layer, x = Conv1D(24, 16), torch.randn(3, 16)
    layer.bias.data.normal_()
    assert torch.allclose(pack_of(layer, [layer])(x), layer(x), atol=1e-5)
    assert torch.allclose(Unpacked([layer])(x), layer(x), atol=1e-5)


def test_an_unchanged_layer_keeps_its_pack():
    layer = linear()
    assert pack_of(layer, [layer]) is pack_of(layer, [layer])


def flip_lowest_bit(weight):
    weight.view(torch.int32)[5, 3] ^= 1


def swap_two(weight):
    weight[[2, 3], 4] = weight[[3, 2], 4]


def reorder_rows(weight):
    weight.copy_(weight.flip(0))


def flip_sign_of_zero(weight):
    weight[0, 0] = -0.0


@pytest.mark.parametrize("edit", [flip_lowest_bit, swap_two, reorder_rows, flip_sign_of_zero])
def test_any_edit_through_data_makes_a_new_pack(edit):
    layer = linear()
    layer.weight.data[0, 0] = 0.0
    before, version = pack_of(layer, [layer]), layer.weight._version
    edit(layer.weight.data)
    assert layer.weight._version == version
    assert pack_of(layer, [layer]) is not before


def test_every_single_element_counts():
    layer = linear(5, 7)
    for element in range(35):
        before = pack_of(layer, [layer])
        layer.weight.data.view(-1)[element] += 1e-3
        assert pack_of(layer, [layer]) is not before
    before = pack_of(layer, [layer])
    layer.bias.data[4] += 1e-3
    assert pack_of(layer, [layer]) is not before


def test_a_replaced_parameter_makes_a_new_pack():
    layer, x = linear(), torch.randn(2, 16)
    pack_of(layer, [layer])
    layer.weight = nn.Parameter(torch.randn(24, 16))
    assert torch.allclose(pack_of(layer, [layer])(x), layer(x), atol=1e-5)


def test_packs_go_with_their_model():
    model = make_target("llama")
    gc.collect()
    before = len(packed._PACKS)
    for path in ("fused", "packed"):
        if path == "packed":
            model.model.register_forward_hook(lambda *_: None)
        runtime = TransformersRuntime(model, pack="always")
        runtime.prefill([np.arange(3, 12)], 20)
        runtime.use(path)
        runtime.forward(DraftTree.chain(5, []))
    assert len(packed._PACKS) > before
    del model, runtime
    gc.collect()
    assert len(packed._PACKS) == before


def test_two_runtimes_of_a_model_share_its_packs():
    model = make_target("llama")
    packs = []
    for _ in range(2):
        runtime = TransformersRuntime(model, pack="always")
        runtime.prefill([np.arange(3, 12)], 20)
        runtime.forward(DraftTree.chain(5, []))
        packs.append(packed._PACKS[model.lm_head])
    assert packs[0] is packs[1]


# What is packed


def test_only_ordinary_float32_linear_layers_are_packed():
    class Own(nn.Linear):
        pass

    assert packable(linear())
    assert packable(Conv1D(4, 3))
    assert not packable(linear().to(torch.bfloat16))
    assert not packable(linear().to("meta"))
    assert not packable(Own(3, 4))
    assert not packable(nn.Embedding(4, 3))


def test_nothing_is_packed_above_the_share_of_free_memory(monkeypatch):
    model = make_target("gpt2")
    weights = sum(m.weight.numel() * 4 for m in model.modules() if packable(m))

    def free(amount):
        monkeypatch.setattr(packed.psutil, "virtual_memory", lambda: type("Memory", (), {"available": amount}))

    def paths(pack):
        return TransformersRuntime(model, pack=pack).routes

    free(weights / packed.MEMORY_SHARE * 1.01)
    assert paths("auto") == ("packed", "stock")
    free(weights / packed.MEMORY_SHARE * 0.99)
    assert paths("auto") == ("stock",)
    assert paths("always") == ("packed", "stock")
    free(1e15)
    assert paths("never") == ("stock",)


def test_packs_already_made_do_not_count_as_new(monkeypatch):
    model = make_target("gpt2")
    packed_copy(model)
    monkeypatch.setattr(packed.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert packed.fits_memory(model)


# The copy


def test_a_structural_copy_shares_every_tensor_and_no_module():
    model = make_target("llama")
    clone, copies = structural_copy(model)
    originals = dict(model.named_modules())
    for name, module in clone.named_modules():
        assert module is copies[id(originals[name])]
        assert module is not originals[name]
        assert type(module) is type(originals[name])
    for (_, mine), (_, theirs) in zip(model.named_parameters(), clone.named_parameters(), strict=True):
        assert mine is theirs


def test_a_module_used_twice_is_copied_once():
    shared = linear()
    clone, _ = structural_copy(nn.ModuleList([shared, nn.Sequential(shared)]))
    assert clone[0] is clone[1][0]


def test_the_copy_hears_the_models_hooks_and_keeps_its_own_to_itself():
    layer, heard = linear(), []
    layer.register_forward_hook(lambda *_: heard.append("model"))
    clone, _ = packed_copy(layer)
    clone.register_forward_hook(lambda *_: heard.append("copy"))
    clone(torch.randn(1, 16))
    assert heard == ["model", "copy"]
    layer(torch.randn(1, 16))
    assert heard == ["model", "copy", "model"]


def test_a_packed_layer_steps_aside_under_autocast():
    layer = linear()
    clone, _ = packed_copy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert clone(torch.randn(2, 16)).dtype is torch.bfloat16


# What may run fused


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_stock_models_may_run_fused(family):
    assert is_stock(make_target(family))


@pytest.mark.parametrize("family", ["gemma", "gpt2", "opt"])
def test_other_families_may_not(family):
    assert not is_stock(make_target(family))


def subclass(model):
    model.__class__ = type("LlamaForCausalLM", (type(model),), {})


def own_attention(model):
    layer = model.model.layers[1].self_attn
    layer.__class__ = type("LlamaAttention", (type(layer),), {})


def hook(model):
    model.model.layers[2].mlp.register_forward_hook(lambda *_: None)


def early_hook(model):
    model.model.norm.register_forward_pre_hook(lambda *_: None)


def instance_forward(model):
    model.model.layers[0].mlp.forward = lambda x: x


def parametrised(model):
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def adapter(model):
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model)


def half(model):
    model.to(torch.bfloat16)


def dropout(model):
    model.config.attention_dropout = 0.1
    model.train()


@pytest.mark.parametrize(
    "change", [subclass, own_attention, hook, early_hook, instance_forward, parametrised, adapter, half, dropout]
)
def test_a_changed_model_may_not_run_fused(change):
    model = make_target("llama")
    change(model)
    assert not is_stock(model)


def test_a_patched_class_may_not_run_fused(monkeypatch):
    model = make_target("llama")
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: x)
    assert not is_stock(model)


def test_a_patched_function_may_not_run_fused(monkeypatch):
    from transformers.models.llama import modeling_llama

    model = make_target("llama")
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    assert not is_stock(model)


def test_asking_a_model_for_hidden_states_leaves_it_stock():
    model = make_target("llama")
    model(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    assert is_stock(model)


def test_hidden_states_asked_of_a_copy_are_counted_once_in_the_model():
    model = make_target("gpt2")
    runtime = TransformersRuntime(model, pack="always")
    runtime.prefill([np.arange(3, 12)], 20)
    runtime.forward(DraftTree.chain(5, []), frozenset({"logits", "final_hidden"}))
    twin = structural_copy(model)[0]
    twin(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert len(model(torch.tensor([[5, 6]]), output_hidden_states=True).hidden_states) == 4


def test_a_deep_copy_has_packs_of_its_own():
    model = make_target("llama")
    twin = copy.deepcopy(model)
    assert pack_of(model.lm_head, [model.lm_head]) is not pack_of(twin.lm_head, [twin.lm_head])
