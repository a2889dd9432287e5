"""RotateKV's cache: nothing lost at 16 bits, tokens whole where activations are massive, bytes as counted, and the same text by any way."""

import copy

import pytest
import torch
from tests.helpers.architectures import tiny_model
from tests.helpers.tiny import make_llama
from transformers import DeepseekV3Config, DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from unwrite.cache import KeyOrder, RotateKV, RotateKVCache
from unwrite.cache.engine.key_order import config_hash
from unwrite.cache.engine.massive import massive_tokens, real_columns
from unwrite.cache.engine.rope import Rope
from unwrite.cache.engine.support import KVShape
from unwrite.errors import MethodError, ModelError

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
MODELS = {
    "llama": make_llama,
    "yarn": lambda: make_llama(rope_parameters=YARN),
    "one key head": lambda: make_llama(num_key_value_heads=1),
    "as many key heads": lambda: make_llama(num_key_value_heads=4),
    "bias": lambda: tiny_model("qwen2", use_sliding_window=False),
    "qk-norm": lambda: tiny_model("qwen3"),
    "layers without rope": lambda: tiny_model("smollm3"),
    "a quarter turned, cache by another name": lambda: tiny_model("gpt_neox"),
    "half turned": lambda: tiny_model("phi"),
}
LENGTHS = (13, 20)


@pytest.fixture(scope="module")
def llama():
    return make_llama(layers=2, num_attention_heads=8, num_key_value_heads=4, head_dim=16)


def padded(seed=0, lengths=LENGTHS):
    rows = torch.randint(5, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": rows * mask, "attention_mask": mask}


@torch.no_grad()
def read(model, cache, inputs, *cuts):
    """Logits of all tokens, read in pieces that end at the cuts."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = [*cuts, ids.shape[1]]
    pieces = [
        model(ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b], past_key_values=cache).logits
        for a, b in zip([0, *cuts], ends, strict=True)
    ]
    return torch.cat(pieces, 1)


def written(model, cache, inputs, **settings):
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    return model.generate(**inputs, past_key_values=cache, **settings)


def random_order(model, settings):
    shape = KVShape(model.config.num_hidden_layers, 0, model.config.num_key_value_heads, model.config.head_dim)
    channels = shape.kv_heads * shape.head_dim
    order = torch.stack([torch.randperm(channels) for _ in range(shape.layers)])
    return KeyOrder(order, settings.rotated(shape), config_hash(model))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefill", ["exact", "quantised"])
def test_with_nothing_quantised_rotation_and_rope_are_undone(name, prefill):
    model, inputs = MODELS[name](), padded()
    real = inputs["attention_mask"].bool()
    whole = read(model, DynamicCache(), inputs)
    cache = RotateKVCache(model, bits=16, prefill=prefill)
    ours = read(model, cache, inputs, 15, 16, 18)
    torch.testing.assert_close(ours[real], whole[real], atol=1e-4, rtol=0)
    if prefill == "exact":
        assert torch.equal(written(model, RotateKVCache(model, bits=16), inputs), written(model, None, inputs))
    assert all(layer.positions is None for layer in cache.layers)  # an offset a row says it all


def test_layers_without_rope_keep_keys_as_they_come():
    model, full = tiny_model("smollm3"), DynamicCache()
    cache = RotateKVCache(model, bits=16, rotate_keys="none")
    for one in (cache, full):
        read(model, one, padded())
    without = [not layer.self_attn.use_rope for layer in model.model.layers]
    assert any(without)
    assert [layer.offset is None for layer in cache.layers] == without
    same = [
        torch.equal(one.kept_keys[0], other.keys.transpose(1, 2).flatten(2))
        for one, other in zip(cache.layers, full.layers, strict=True)
    ]
    assert same == without


def test_an_order_is_undone_too(llama):
    settings = RotateKV(bits=16, prefill="quantised")
    settings = RotateKV(bits=16, prefill="quantised", order=random_order(llama, settings))
    inputs = padded(lengths=(20, 20))
    torch.testing.assert_close(
        read(llama, settings.cache(llama), inputs, 9), read(llama, DynamicCache(), inputs), atol=1e-4, rtol=0
    )


def test_an_order_and_its_reverse_are_nothing(llama):
    order = random_order(llama, RotateKV()).order[0]
    assert torch.equal(order[order.argsort()], torch.arange(len(order)))
    assert torch.equal(order.argsort()[order], torch.arange(len(order)))


def test_positions_that_no_offset_tells_are_kept_and_counted(llama):
    inputs = padded(lengths=(20, 20))
    positions = torch.arange(20) * 2
    cache = RotateKVCache(llama, bits=16, prefill="quantised")
    with torch.no_grad():
        whole = llama(inputs["input_ids"], position_ids=positions[None]).logits
        ours = [
            llama(inputs["input_ids"][:, a:b], position_ids=positions[None, a:b], past_key_values=cache).logits
            for a, b in ((0, 8), (8, 9), (9, 20))
        ]
    torch.testing.assert_close(torch.cat(ours, 1), whole, atol=1e-4, rtol=0)
    layer = cache.layers[0]
    assert torch.equal(layer.positions, positions.int().expand(2, -1))
    assert layer.nbytes() == sum(one.nbytes for one in layer.tensors())
    assert any(one is layer.positions for one in layer.tensors())
    cache.crop(-5)
    assert layer.positions.shape == (2, 15)


def test_a_jump_in_positions_is_noticed_later_too(llama):
    ids = padded(lengths=(12, 12))["input_ids"]
    positions = torch.cat([torch.arange(8), torch.arange(20, 24)])[None]
    cache = RotateKVCache(llama, bits=16)
    with torch.no_grad():
        whole = llama(ids, position_ids=positions).logits[:, -4:]
        llama(ids[:, :8], past_key_values=cache)
        ours = llama(ids[:, 8:], position_ids=positions[:, 8:], past_key_values=cache).logits
    torch.testing.assert_close(ours, whole, atol=1e-4, rtol=0)
    assert cache.layers[0].positions.tolist() == positions.expand(2, -1).tolist()


def test_a_stretched_rope_is_undone_exactly():
    rope = Rope.of(make_llama(rope_parameters=YARN))
    keys = torch.randn(2, 2, 5, 8)
    turn = rope.at(torch.arange(3, 8)[None], rope._angles(keys, torch.arange(5)[None]))
    assert (turn[0].square() + turn[1].square()).mean() > 1.2  # yarn makes keys longer
    torch.testing.assert_close(rope.unturned(rope.turned(keys, turn), turn), keys)
    assert not torch.allclose(rope.turned(keys, turn).norm(), keys.norm())


def test_whole_tokens_are_what_came_to_the_bit(llama):
    cache, came = RotateKVCache(llama, sinks=6), DynamicCache()
    inputs = padded()
    read(llama, cache, inputs)
    read(llama, came, inputs)
    layer, full = cache.layers[1], came.layers[1]
    keys, values = layer._used(20, turn(llama, 20))
    assert 0 < cache.sink_tokens()[1][0] <= 6
    off = (keys - full.keys).abs().amax((1, 3))
    for row in range(2):
        columns = [int(one) for one in layer.sink_at[row] if one >= 0]
        assert all(one >= 20 - LENGTHS[row] for one in columns)  # never padding
        assert torch.equal(keys[row, :, columns], full.keys[row, :, columns])
        assert torch.equal(values[row, :, columns], full.values[row, :, columns])
        others = [one for one in range(20 - LENGTHS[row], 20) if one not in columns]
        assert (off[row, others] > 1e-3).all()


def turn(model, known):
    return model.model.rotary_emb(torch.zeros(0), torch.arange(known)[None])


def test_a_row_with_fewer_whole_tokens_has_no_others(llama):
    layer = RotateKVCache(llama).layers[0]
    keys, values = torch.randn(2, 2, 4, 6, 16)
    layer._protect(keys, values, torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).bool())
    assert layer.sink_at.tolist() == [[0, 2, 4], [3, -1, -1]]
    assert torch.equal(layer.sink_keys[0], keys[0][:, [0, 2, 4]])
    assert torch.equal(layer.sink_values[1][:, 0], values[1][:, 3])


def test_what_is_kept_lies_in_memory_of_its_own():
    """A lone head's numbers need no copy to be in order, and would be the model's own tensor."""
    model = make_llama(num_key_value_heads=1)
    cache = RotateKVCache(model, bits=16, rotate_keys="none", rotate_values=False, pre_rope=False)
    layer, values = cache.layers[0], torch.randn(2, 1, 3, 8)
    layer.moment = moment(model, turn(model, 3), torch.arange(3)[None])
    layer.update(values, values)
    before = layer.kept_values[0].clone()
    values.zero_()
    assert torch.equal(layer.kept_values[0], before)


def test_a_massive_activation_marks_its_token():
    residual = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    residual[0, 5, 3], residual[1, 2, 3] = -1e3, 1e3
    real = torch.ones(2, 9, dtype=torch.bool)
    assert massive_tokens(residual, real, 1).nonzero().tolist() == [[0, 5], [1, 2]]
    assert massive_tokens(residual, real, 20)[0, 5]
    assert massive_tokens(residual, real, 20).sum(1).max() <= 9
    assert massive_tokens(residual, real, 10**6).all()


def test_padding_is_never_whole_however_large_and_rows_count_alone():
    residual = torch.zeros(2, 4, 2)
    residual[:, 0] = 1e3
    real = torch.tensor([[False, False, False, True], [True] * 4])
    assert massive_tokens(residual, real, 2).tolist() == [[False, False, False, True], [True, False, False, False]]


def test_activations_are_those_in_front_of_the_norm(llama):
    """A token that is large throughout its residual is like others behind the norm."""
    model = copy.deepcopy(llama)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 1e3
    inputs = padded(lengths=(12, 12))
    inputs["input_ids"][:, 5] = 7
    cache = RotateKVCache(model, sinks=3)
    read(model, cache, inputs)
    assert cache.layers[0].sink_at.tolist() == [[5], [5]]
    assert cache.sink_tokens() == [[1, 1]] * 2


def test_what_is_written_after_the_first_call_is_never_whole(llama):
    inputs = padded(lengths=(12, 12))
    cache = RotateKVCache(llama, sinks=4)
    read(llama, cache, inputs, 6)
    assert (cache.layers[0].sink_at < 6).all()


@pytest.mark.parametrize(("mask", "expected"), [
    (None, [[True] * 3] * 2),
    (torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), [[False, True, True], [True] * 3]),
    (torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()[:, None, None].expand(-1, 1, 3, -1), [[False, True, True], [True] * 3]),
    (torch.where(torch.tensor([0, 0, 1, 1]) > 0, 0.0, torch.finfo(torch.float32).min)[None, None, None], [[False, True, True]] * 2),
])  # fmt: skip
def test_padding_is_read_off_any_kind_of_mask(mask, expected):
    assert real_columns(mask, 2, 3, 4, torch.device("cpu")).tolist() == expected


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bytes_are_those_of_codes_scales_and_whole_tokens(bits):
    """2.25 bits a number at 128 numbers a scale, and nothing else that grows."""
    model = make_llama(layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=64)
    cache = RotateKVCache(model, bits=bits, sinks=5)
    read(model, cache, padded(lengths=(50, 64)))
    numbers = 2 * 64 * 2 * 4 * 64  # rows, tokens, keys and values
    layer = cache.layers[0]
    whole = layer.sink_keys.nbytes + layer.sink_values.nbytes + layer.sink_at.nbytes
    assert whole <= 2 * 5 * (2 * 4 * 64 * 4 + 4)
    assert cache.nbytes() - whole == pytest.approx((bits + 32 / 128) / 8 * numbers, rel=0.01)
    assert cache.nbytes() == sum(one.nbytes for one in layer.tensors())


@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (2, 128)])
def test_four_thousand_tokens_at_two_bits_take_less_than_a_fifth_of_half_precision(heads, dim):
    model = make_llama(
        layers=1, hidden=24, num_attention_heads=heads, num_key_value_heads=heads, head_dim=dim
    ).bfloat16()
    model.config.max_position_embeddings = 4096
    ids = torch.randint(5, 60, (1, 4096))
    cache = RotateKVCache(model)
    with torch.no_grad():
        model.model(ids, past_key_values=cache)
    assert cache.nbytes() <= 0.2 * (2 * 2 * heads * dim * 4096)
    assert sum(cache.sink_tokens()[0]) <= 20


@pytest.mark.parametrize("prefill", ["exact", "quantised"])
def test_one_by_one_and_at_once_keep_the_same(llama, prefill):
    """64 tokens behind a prefix, given as they come, and the whole text in one piece."""
    keys, values = torch.randn(2, 2, 4, 80, 16, generator=torch.Generator().manual_seed(1))
    caches = [RotateKVCache(llama, sinks=0, prefill=prefill) for _ in range(2)]
    angles = [turn(llama, 80)[i].expand(2, -1, -1) for i in (0, 1)]
    for cache, cuts in zip(caches, ([*range(16, 80)], []), strict=True):
        for a, b in zip([0, *cuts], [*cuts, 80], strict=True):
            layer = cache.layers[0]
            layer.moment = moment(llama, tuple(one[:, a:b] for one in angles), torch.arange(a, b)[None])
            seen = layer.update(keys[:, :, a:b], values[:, :, a:b])
    for one, other in zip(caches[0].layers[0].tensors(), caches[1].layers[0].tensors(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(caches[0].layers[0]._used(80, angles)[0], caches[1].layers[0]._used(80, angles)[0])
    assert torch.equal(seen[0], keys) == (prefill == "exact")


def moment(model, rope, positions):
    from unwrite.cache.engine.attention import Moment

    return Moment(torch.zeros(0), torch.zeros(0), rope, None, positions, model.model.layers[0].self_attn)


def test_quantised_reading_says_the_same_in_any_pieces(llama):
    inputs = padded()
    real = inputs["attention_mask"].bool()
    made = [RotateKVCache(llama, prefill="quantised", sinks=0) for _ in range(3)]
    at_once, halves, singly = (
        read(llama, one, inputs, *cuts) for one, cuts in zip(made, ((), (14,), range(14, 20)), strict=True)
    )
    torch.testing.assert_close(halves[real], at_once[real], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(singly[real], at_once[real], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(at_once, read(llama, None, inputs), atol=1e-3)


def test_only_the_first_calls_own_attention_is_exact(llama):
    inputs = padded(lengths=(20, 20))
    exact, whole = (read(llama, one, inputs, 14) for one in (RotateKVCache(llama), DynamicCache()))
    torch.testing.assert_close(exact[:, :14], whole[:, :14])
    assert not torch.allclose(exact[:, 14:], whole[:, 14:], atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 16])
def test_given_back_tokens_were_never_read(llama, bits):
    inputs = padded()
    cache, shorter = (RotateKVCache(llama, bits=bits, sinks=0) for _ in range(2))
    read(llama, cache, inputs)
    read(llama, shorter, {name: one[:, :15] for name, one in inputs.items()})
    assert cache.is_croppable
    cache.crop(-5)
    assert (cache.get_seq_length(), cache.nbytes()) == (15, shorter.nbytes())
    for one, other in zip(cache.layers[1].tensors(), shorter.layers[1].tensors(), strict=True):
        torch.testing.assert_close(one, other)
    more = {
        "input_ids": inputs["input_ids"][:, 3:4],
        "attention_mask": torch.cat([inputs["attention_mask"][:, :15], torch.ones(2, 1, dtype=torch.long)], 1),
    }
    with torch.no_grad():
        torch.testing.assert_close(*(llama(**more, past_key_values=one).logits for one in (cache, shorter)))
    cache.crop(-16)
    assert cache.get_seq_length() == cache.nbytes() == 0


def test_with_whole_tokens_what_came_after_the_first_call_can_be_given_back(llama):
    inputs = padded(lengths=(20, 20))
    cache, shorter = (RotateKVCache(llama) for _ in range(2))
    read(llama, cache, inputs, 12, 15)
    read(llama, shorter, {name: one[:, :15] for name, one in inputs.items()}, 12)
    cache.crop(0)
    cache.crop(-5)
    for one, other in zip(cache.layers[1].tensors(), shorter.layers[1].tensors(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(MethodError, match=r"can't give back 4 tokens: that reaches into the 12 .* sinks=0"):
        cache.crop(-4)
    assert cache.get_seq_length() == 15


def test_assisted_generation_rolls_back(llama):
    inputs = padded(lengths=(12,))
    own = RotateKVCache(llama, sinks=0, prefill="quantised")
    text = written(llama, own, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(text, written(llama, RotateKVCache(llama, sinks=0, prefill="quantised"), inputs))


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_beams_and_samples_are_the_full_caches_at_16_bits(llama, settings):
    texts = []
    for cache in (DynamicCache(), RotateKVCache(llama, bits=16)):
        torch.manual_seed(0)
        texts.append(written(llama, cache, padded(), **settings))
    assert torch.equal(*texts)


def test_rows_are_taken_with_their_whole_tokens_and_positions(llama):
    cache = RotateKVCache(llama)
    read(llama, cache, padded())
    before = cache.layers[0]._used(20, turn(llama, 20))[0]
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(cache.layers[0]._used(20, turn(llama, 20))[0], before[[1, 0]])
    assert cache.layers[0].offset.flatten().tolist() == [0, -7]


def test_a_copy_goes_on_alone(llama):
    inputs = padded()
    cache = RotateKVCache(llama, sinks=3)
    read(llama, cache, inputs)
    twin = copy.deepcopy(cache)
    assert twin.layers[0].rope is cache.layers[0].rope
    more = {
        "input_ids": torch.tensor([[9], [8]]),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1),
    }
    with torch.no_grad():
        one = llama(**more, past_key_values=cache).logits
        torch.testing.assert_close(llama(**more, past_key_values=twin).logits, one)
    assert (cache.nbytes(), cache.get_seq_length()) == (twin.nbytes(), 21)
    cache.reset()
    assert cache.nbytes() == 0
    assert cache.sink_tokens() == [[], []]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_tokens_in_their_type(llama, dtype):
    model = copy.deepcopy(llama).to(dtype)
    cache = RotateKVCache(model, sinks=2)
    assert written(model, cache, padded()).shape == (2, 28)
    assert cache.layers[0].sink_keys.dtype == dtype
    whole = RotateKVCache(model, bits=16, prefill="quantised")
    ours, theirs = (read(model, one, padded(), 14)[1].float() for one in (whole, DynamicCache()))
    assert (ours - theirs).abs().max() < 0.1 * theirs.std()


def test_rounding_to_nearest_is_everything_off(llama):
    settings = RotateKV.nearest(3)
    assert (settings.rotate_keys, settings.rotate_values, settings.sinks, settings.clip) == ("none", False, 0, 1)
    cache, full = settings.cache(llama), DynamicCache()
    inputs = padded()
    for one in (cache, full):
        read(llama, one, inputs)
    layer = cache.layers[0]
    flat = full.layers[0].keys.transpose(1, 2).flatten(2)  # keys behind rope
    torch.testing.assert_close(
        layer.quantiser.restore(layer.quantiser.quantise(flat)), layer._restored(layer.kept_keys)
    )
    assert layer.offset is None


def test_defaults_are_the_published_ones():
    shape = KVShape(32, 32, 8, 128)
    two, three = RotateKV().quantiser(shape), RotateKV(bits=3).quantiser(shape)
    assert (two.bits, two.clip, two.group, three.clip) == (2, 0.8, 128, 1.0)
    assert RotateKV().rotated(shape) == 4 * 128
    assert RotateKV(rotate_keys="head").rotated(shape) == 128
    assert RotateKV(rotate_keys="none").rotated(shape) == 1
    assert (RotateKV().sinks, RotateKV().official_levels) == (20, False)


def test_what_a_model_leaves_room_for_is_taken_and_said():
    model = make_llama(hidden=24, num_attention_heads=3, num_key_value_heads=3, head_dim=64)
    text = repr(RotateKVCache(model))
    assert "keys rotated 1 heads of 64 at a time" in text
    assert "64 numbers a scale" in text
    assert "in the model's order" in text
    two = make_llama(hidden=24, num_attention_heads=6, num_key_value_heads=6, head_dim=8)
    assert "rotated 2 heads of 8" in repr(RotateKVCache(two))
    assert "keys as they are" in repr(RotateKV.nearest().cache(two))


@pytest.mark.parametrize(("fields", "message"), [
    ({"bits": 5}, "bits=5 can't be kept. Use 2, 3, 4, or 16"),
    ({"rotate_keys": "heads"}, "unknown value of rotate_keys 'heads'. Did you mean 'head'"),
    ({"prefill": "exactly"}, "Did you mean 'exact'"),
    ({"sinks": -1}, "sinks=-1 is no count"),
    ({"groups": 0}, "groups=0 is no size"),
    ({"group_size": 0}, "group_size=0 is no size"),
    ({"clip": 0.0}, "clip=0.0 is no share"),
    ({"clip": 1.5}, "clip=1.5 is no share"),
    ({"groups": 2, "rotate_keys": "head"}, "groups=2 has no meaning with rotate_keys='head'"),
    ({"order": KeyOrder(torch.zeros(1, 1).long(), 1, ""), "pre_rope": False}, "pre_rope=False keeps them behind it"),
])  # fmt: skip
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        RotateKV(**fields)


@pytest.mark.parametrize(("shape", "fields", "message"), [
    ((4, 16), {"groups": 3}, r"groups=3 of 4 heads with 16 numbers .* 3 \* 16"),
    ((4, 16), {"groups": 8}, "groups=8 of 4 heads"),
    ((4, 16), {"group_size": 24}, r"group_size=24 doesn't divide a token's 64 numbers \(4 heads of 16\). Leave it out for 64"),
    ((4, 24), {}, "keys of 24 numbers can't be rotated.* rotate_keys='none'"),
    ((4, 24), {"rotate_keys": "none"}, "values of 24 numbers can't be rotated.* rotate_values=False"),
])  # fmt: skip
def test_sizes_that_a_model_does_not_have_are_refused(shape, fields, message):
    heads, dim = shape
    model = make_llama(layers=1, num_attention_heads=heads, num_key_value_heads=heads, head_dim=dim)
    with pytest.raises(ModelError, match=message):
        RotateKVCache(model, **fields)


def test_models_without_rope_or_with_other_layers_are_refused(llama):
    with pytest.raises(ModelError, match=r"doesn't turn keys by one position a token.* pre_rope=False"):
        RotateKVCache(tiny_model("gpt2"))
    assert RotateKVCache(tiny_model("gpt2"), pre_rope=False).nbytes() == 0
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    with pytest.raises(ModelError, match="sliding"):
        RotateKVCache(Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads, **kinds)))
    other = copy.deepcopy(llama)
    other.config = DeepseekV3Config(**{**sizes, "num_hidden_layers": 2}, kv_lora_rank=4)
    with pytest.raises(ModelError, match="keys and values of two sizes"):
        RotateKV().check(KVShape(2, 8, 4, 16), other)


def test_a_rope_that_can_not_be_undone_is_refused(llama, monkeypatch):
    monkeypatch.setattr(Rope, "unturned", lambda self, keys, turn: self.turned(keys, turn))
    with pytest.raises(ModelError, match="rope can't be undone"):
        RotateKVCache(llama)


def test_a_model_that_hides_positions_is_refused(llama):
    cache = RotateKVCache(llama)
    layer = cache.layers[0]
    layer.moment = moment(llama, turn(llama, 3), None)
    with pytest.raises(MethodError, match="where tokens stand"):
        layer.update(*torch.zeros(2, 1, 4, 3, 16))


def test_another_models_texts_are_refused(llama):
    cache = RotateKVCache(llama)
    with pytest.raises(MethodError, match="another model"), torch.no_grad():
        make_llama()(torch.tensor([[5, 6]]), past_key_values=cache)


def test_gpt2_is_served_behind_positions():
    model = tiny_model("gpt2")
    inputs = padded()
    cache = RotateKVCache(model, bits=16, pre_rope=False, prefill="quantised")
    assert torch.equal(written(model, cache, inputs), written(model, None, inputs))
