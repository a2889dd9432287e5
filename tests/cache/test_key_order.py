"""The order of key channels: sorted by what was measured, kept in a file, and of one model and rotation."""

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.tiny import make_llama, make_tokenizer
from transformers import DynamicCache

from unwrite.cache import KeyOrder, RotateKV, RotateKVCache, calibrate_key_order
from unwrite.cache.engine.hadamard import walsh_hadamard
from unwrite.errors import MethodError, ModelError, UnwriteError

TEXTS = ["ann wrote the old book .", "the river of winter is near the town", "bert was born in summer ."]


@pytest.fixture(scope="module")
def model():
    return make_llama(layers=2)


@pytest.fixture(scope="module")
def order(model):
    return calibrate_key_order(model, make_tokenizer(), TEXTS)


@torch.no_grad()
def rotated(model, layer, size):
    """Keys before rope of all texts, rotated: [tokens, channels]; from the projection itself."""
    rows = []
    module = model.model.layers[layer].self_attn.k_proj
    handle = module.register_forward_hook(lambda *call: rows.append(call[2][0]))
    for text in TEXTS:
        model(make_tokenizer()(text, return_tensors="pt")["input_ids"])
    handle.remove()
    return walsh_hadamard(torch.cat(rows), size)


@pytest.mark.parametrize("layer", [0, 1])
def test_means_rise_along_the_order(model, order, layer):
    means = rotated(model, layer, 16).mean(0)[order.order[layer]]
    assert (means.diff() >= -1e-6).all()
    assert means[-1] - means[0] > 0.01
    assert order.tokens == sum(len(text.split()) for text in TEXTS)


def test_sizes_rise_along_the_other_order(model):
    by_size = calibrate_key_order(model, make_tokenizer(), TEXTS, by="absmean", rotate_keys="head")
    sizes = rotated(model, 1, 8).abs().mean(0)[by_size.order[1]]
    assert (sizes.diff() >= -1e-6).all()
    assert by_size.rotated == 8


def test_calibration_leaves_the_model_as_it_was(model):
    model.train()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    calibrate_key_order(model, make_tokenizer(), TEXTS[:1], length=3)
    assert model.training
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    model.eval()


def test_texts_are_cut_and_needed(model):
    assert calibrate_key_order(model, make_tokenizer(), TEXTS, length=3).tokens == 9
    with pytest.raises(MethodError, match="calibrated on texts, and there are none"):
        calibrate_key_order(model, make_tokenizer(), [])
    with pytest.raises(MethodError, match="unknown way to sort keys 'mean'"):
        calibrate_key_order(model, make_tokenizer(), TEXTS, by="mean")


def test_a_file_gives_back_the_order(order, tmp_path):
    path = order.save(tmp_path / "order.safetensors")
    back = KeyOrder.load(path)
    assert torch.equal(back.order, order.order)
    assert (back.rotated, back.model, back.by, back.tokens) == (order.rotated, order.model, order.by, order.tokens)
    with pytest.raises(UnwriteError):
        order.save(path)


def test_other_files_are_refused(order, tmp_path):
    note = {"rotated": "16", "model": "x", "by": "sum", "tokens": "3"}
    with pytest.raises(ModelError, match="no order of keys"):
        KeyOrder.load(tmp_path / "none")
    for at, changed in enumerate(({"by": "size"}, {"rotated": "-1"}, {"model": ""})):
        save_file({"order": order.order.int()}, str(tmp_path / str(at)), {**note, **changed})
        with pytest.raises(ModelError, match="doesn't say of which model"):
            KeyOrder.load(tmp_path / str(at))
    save_file({"order": torch.zeros(2, 16, dtype=torch.int32)}, str(tmp_path / "same"), note)
    with pytest.raises(ModelError, match="don't name every channel once"):
        KeyOrder.load(tmp_path / "same")


def test_an_order_serves_its_model_and_rotation_alone(model, order):
    assert "reordered" in repr(RotateKVCache(model, order=order))
    with pytest.raises(ModelError, match="calibrated on another model"):
        RotateKVCache(make_llama(layers=2, rope_parameters={"rope_type": "default", "rope_theta": 500.0}), order=order)
    with pytest.raises(ModelError, match="of rotations of 16 numbers, and these are of 8"):
        RotateKVCache(model, order=order, rotate_keys="head")
    assert (
        RotateKV(order=order).cache(make_llama(seed=5, layers=2)).nbytes() == 0
    )  # further training leaves an order as good


def test_a_calibrated_order_loses_less_of_keys_with_steady_channels(model, order):
    """Constant parts of channels, as trained models have: sorted, a group holds like ones."""
    steady = make_llama(layers=2, attention_bias=True)
    with torch.no_grad():
        for layer in steady.model.layers:
            layer.self_attn.k_proj.bias.copy_(8 * torch.randn(16, generator=torch.Generator().manual_seed(3)))
    ids = make_tokenizer()(TEXTS[1], return_tensors="pt")["input_ids"]
    own = calibrate_key_order(steady, make_tokenizer(), TEXTS[:1])
    off = []
    for one in (None, own):
        cache, full = RotateKVCache(steady, order=one, sinks=0, group_size=4), DynamicCache()
        with torch.no_grad():
            for made in (cache, full):
                steady(ids, past_key_values=made)
        turn = steady.model.rotary_emb(torch.zeros(0), torch.arange(ids.shape[1])[None])
        off.append((cache.layers[0]._used(ids.shape[1], turn)[0] - full.layers[0].keys).square().mean())
    assert off[1] < off[0] / 2
