"""Mustafar: which numbers go, when, and that attention to what is packed is attention to the same numbers with zeros."""

import copy

import pytest
import torch
from tests.helpers.tiny import make_llama
from transformers import DynamicCache

from unwrite.cache import Mustafar, MustafarCache
from unwrite.cache.engine.bitmap import BitmapTensor
from unwrite.cache.engine.pruning import prune_per_token, prune_values, recent_attention
from unwrite.cache.engine.sparse_attention import attend_both
from unwrite.errors import MethodError

SMALL = {"window": 8, "block": 64}


def llama(heads=4, kv_heads=2, **settings):
    return make_llama(
        layers=2,
        hidden=48,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=2048,
        **settings,
    ).eval()


@pytest.fixture(scope="module")
def model():
    return llama()


def texts(model, length, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, model.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def read(model, cache, ids, **inputs):
    return model(ids, past_key_values=cache, use_cache=True, **inputs).logits


def written(model, cache, ids, **settings):
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    settings.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(input_ids=ids, past_key_values=cache, **settings)


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_exactly_the_floor_of_each_vectors_numbers_go_and_the_largest_stay(sparsity, dim):
    x = torch.randn(2, 3, 5, dim)
    pruned = prune_per_token(x, sparsity)
    gone = pruned == 0
    assert (gone.sum(-1) == int(sparsity * dim + 1e-9)).all()
    assert torch.equal(pruned[~gone], x[~gone])
    largest_gone = x.abs().masked_fill(~gone, 0).amax(-1)
    assert (largest_gone <= x.abs().masked_fill(gone, torch.inf).amin(-1)).all()
    official = prune_per_token(x, sparsity, official=True)
    assert ((official == 0).sum(-1) == max(1, int(sparsity * dim)) - 1).all()


def test_a_part_that_binary_numbers_round_down_still_counts_whole():
    assert int(0.29 * 100) == 28
    assert (prune_per_token(torch.randn(3, 100), 0.29) == 0).sum() == 3 * 29


def test_ties_go_to_the_exact_count_and_officially_all_stay():
    x = torch.ones(4, 64)
    assert ((prune_per_token(x, 0.5) == 0).sum(-1) == 32).all()
    assert (prune_per_token(x, 0.5, official=True) == 1).all()


@pytest.mark.parametrize("length", [3, 20, 31, 32, 40, 300])
@pytest.mark.parametrize("packed", [True, False])
def test_without_sparsity_the_text_is_the_full_caches(model, length, packed):
    ids = texts(model, length, 2)
    cache = MustafarCache(model, k_sparsity=0, v_sparsity=0, packed=packed)
    assert torch.equal(written(model, cache, ids), written(model, DynamicCache(), ids))


@pytest.mark.parametrize("heads", [2, 6, 8])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_attention_to_packed_keys_is_attention_to_keys_with_zeros(heads, blocks):
    model = llama(heads, 2)
    ids = texts(model, 256 * blocks + 45, 2)
    logits = []
    for packed in (True, False):
        cache = MustafarCache(model, packed=packed)
        read(model, cache, ids[:, :-3])
        assert cache.layers[0].pruned == 256 * blocks
        logits.append(torch.cat([read(model, cache, ids[:, at : at + 1]) for at in range(-3, -1)], 1))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_a_softmax_of_each_part_would_be_something_else():
    model = llama()
    ids = texts(model, 120)
    cache = MustafarCache(model, **SMALL)
    read(model, cache, ids)
    layer = cache.layers[0]
    query, seen = torch.randn(1, 4, 1, 64), torch.ones(1, 1, 1, 120, dtype=torch.bool)
    sparse, dense = (layer.sparse_keys, layer.sparse_values), (layer.dense_keys, layer.dense_values)
    keys = torch.cat([sparse[0].to_dense(), dense[0]], 2).repeat_interleave(2, 1)
    values = torch.cat([sparse[1].to_dense(), dense[1]], 2).repeat_interleave(2, 1)
    scores = query @ keys.transpose(-1, -2) / 8
    one = (scores.softmax(-1) @ values).transpose(1, 2)
    apart = torch.cat([scores[..., :64].softmax(-1), scores[..., 64:].softmax(-1)], -1) / 2 @ values
    out, weights = attend_both(query, sparse, dense, seen, 1 / 8)
    torch.testing.assert_close(out, one)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 1))
    assert (out - apart.transpose(1, 2)).abs().max() > 1e-4


@pytest.mark.parametrize("packed", [True, False])
def test_pruned_are_the_older_tokens_keys_behind_rope_and_the_window_is_untouched(model, packed):
    ids = texts(model, 150, 2)
    full, cache = DynamicCache(), MustafarCache(model, packed=packed, k_sparsity=0.5, v_sparsity=0.7, **SMALL)
    read(model, full, ids)
    read(model, cache, ids)
    for layer, whole in zip(cache.layers, full.layers, strict=True):
        assert layer.pruned == 128
        for name, x, sparsity in (("keys", whole.keys, 0.5), ("values", whole.values, 0.7)):
            sparse, dense = getattr(layer, f"sparse_{name}"), getattr(layer, f"dense_{name}")
            assert isinstance(sparse, BitmapTensor) == packed
            assert torch.equal(sparse.to_dense() if packed else sparse, prune_per_token(x[:, :, :128], sparsity))
            assert torch.equal(dense, x[:, :, 128:])


@pytest.mark.parametrize("settings", [{}, {"packed": False}, {"keys": "structured", "values": "output"}])
def test_a_prompt_is_read_as_by_the_full_cache(model, settings):
    ids = texts(model, 300, 2)
    assert torch.equal(read(model, MustafarCache(model, **settings), ids), read(model, DynamicCache(), ids))


def test_blocks_are_pruned_when_they_have_left_the_window(model):
    layer = MustafarCache(model).layers[0]
    layer.attends = False  # the schedule is that of keys alone

    def read_tokens(count):
        layer.update(*torch.randn(2, 1, 2, count, 64))
        layer._settle(count, layer.length)

    read_tokens(300)
    assert layer.pruned == 256
    for _ in range(243):
        read_tokens(1)
    assert (layer.length, layer.pruned) == (543, 256)
    read_tokens(1)
    assert (layer.length, layer.pruned, layer.dense_keys.shape[2]) == (544, 512, 32)
    assert layer.get_seq_length() == 544


@pytest.mark.parametrize(("length", "pruned"), [(5, 0), (287, 0), (288, 256), (543, 256), (544, 512)])
def test_a_prompt_leaves_window_and_less_than_a_block_dense(model, length, pruned):
    assert Mustafar().pruned_until(length) == pruned


@pytest.mark.parametrize("packed", [True, False])
def test_bytes_are_those_of_pruned_and_dense_parts_and_nothing_of_the_prompt(model, packed):
    ids = texts(model, 200, 3)
    cache = MustafarCache(model, packed=packed, **SMALL)
    read(model, cache, ids)
    window = 2 * 3 * 2 * 8 * 64 * 4  # keys and values, rows, heads, tokens
    for layer in cache.layers:
        sparse = [layer.sparse_keys, layer.sparse_values]
        parts = sum(one.nbytes() if packed else one.numel() * 4 for one in sparse)
        assert layer.nbytes() == parts + window
    ratio = cache.nbytes() / (2 * 2 * 3 * 2 * 200 * 64 * 4)
    assert ratio < 0.47 if packed else ratio == 1


@pytest.mark.parametrize("packed", [True, False])
def test_rows_with_padding_write_what_they_write_with_the_same_numbers_pruned_alone(packed):
    model = llama()
    ids = texts(model, 90, 2)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    out = written(model, MustafarCache(model, packed=packed, **SMALL), ids * mask, attention_mask=mask)
    for row in range(2):
        alone = written(
            model,
            MustafarCache(model, packed=packed, **SMALL),
            (ids * mask)[row : row + 1],
            attention_mask=mask[row : row + 1],
        )
        assert torch.equal(out[row : row + 1], alone)
    garbage = torch.where(mask == 1, ids, 7)
    assert torch.equal(
        written(model, MustafarCache(model, packed=packed, **SMALL), garbage, attention_mask=mask)[:, 90:], out[:, 90:]
    )


@pytest.mark.parametrize("packed", [True, False])
def test_beams_without_sparsity_are_those_of_the_full_cache(model, packed):
    ids, settings = texts(model, 75, 2), {"num_beams": 3, "max_new_tokens": 5}
    cache = MustafarCache(model, k_sparsity=0, v_sparsity=0, packed=packed, **SMALL)
    assert torch.equal(written(model, cache, ids, **settings), written(model, DynamicCache(), ids, **settings))


def test_chosen_and_repeated_rows_are_those_rows(model):
    ids = texts(model, 100, 3)
    cache, some = MustafarCache(model, **SMALL), MustafarCache(model, **SMALL)
    read(model, cache, ids)
    read(model, some, ids[[2, 2, 0, 0]])
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    new = texts(model, 1, 4, seed=1)
    torch.testing.assert_close(read(model, cache, new), read(model, some, new))
    assert cache.nbytes() == some.nbytes()


def test_a_copy_goes_on_and_an_emptied_cache_begins_anew(model):
    ids = texts(model, 100)
    cache = MustafarCache(model, **SMALL)
    first = written(model, cache, ids)
    ahead = copy.deepcopy(cache)
    longer = torch.cat([first, texts(model, 3, seed=2)], 1)
    assert torch.equal(written(model, ahead, longer), written(model, cache, longer))
    cache.reset()
    assert cache.nbytes() == 0
    assert torch.equal(written(model, cache, ids), first)


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_that_came_together_can_be_taken_back_over_the_end_of_a_block(model, packed):
    ids = texts(model, 80, 2)
    cache, shorter = (MustafarCache(model, packed=packed, **SMALL) for _ in range(2))
    for one in (cache, shorter):
        read(model, one, ids[:, :70])
    read(model, cache, ids[:, 70:77])  # 72 would be the end of a block
    assert cache.layers[0].pruned == 0
    cache.crop(-7)
    assert cache.nbytes() == shorter.nbytes()
    assert cache.get_seq_length() == 70
    for at in range(70, 78):
        torch.testing.assert_close(
            read(model, cache, ids[:, at : at + 1]), read(model, shorter, ids[:, at : at + 1]), rtol=0, atol=1e-6
        )
    assert cache.layers[0].pruned == shorter.layers[0].pruned == 64


def test_what_drafts_made_due_is_pruned_when_the_next_call_begins(model):
    ids = texts(model, 90)
    cache = MustafarCache(model, **SMALL)
    read(model, cache, ids[:, :70])
    read(model, cache, ids[:, 70:80])
    at_once = MustafarCache(model, **SMALL)
    read(model, at_once, ids[:, :80])
    torch.testing.assert_close(
        read(model, cache, ids[:, 80:81]), read(model, at_once, ids[:, 80:81]), rtol=0, atol=1e-5
    )
    assert cache.layers[0].pruned == 64
    assert cache.layers[0].dense_keys.shape[2] == 17
    read(model, cache, texts(model, 65, seed=3))  # no draft has more than a block
    assert cache.layers[0].pruned == 128


def test_tokens_behind_which_a_block_was_pruned_can_not_be_taken_back(model):
    cache = MustafarCache(model, **SMALL)
    read(model, cache, texts(model, 72))
    assert cache.is_croppable
    cache.crop(0)
    with pytest.raises(
        MethodError, match="1 of 72 tokens can't be taken back: 64 are pruned, and of a text of 71 only 0 would be"
    ):
        cache.crop(-1)
    with pytest.raises(MethodError, match="80 of 72 tokens can't be taken back"):
        cache.crop(-80)
    asking = MustafarCache(model, keys="output", **SMALL)
    read(model, asking, texts(model, 20))
    assert not asking.is_croppable
    with pytest.raises(MethodError, match="can't give back 1 tokens"):
        asking.crop(-1)


def test_assisted_generation_writes_the_models_own_text_without_sparsity(model):
    ids = texts(model, 60)
    cache = MustafarCache(model, k_sparsity=0, v_sparsity=0, **SMALL)
    plain = written(model, DynamicCache(), ids, max_new_tokens=20)
    assert torch.equal(written(model, cache, ids, max_new_tokens=20, prompt_lookup_num_tokens=3), plain)
    assert cache.layers[0].pruned == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_keep_sixteen_bit_numbers(dtype):
    model = llama().to(dtype)
    cache = MustafarCache(model, **SMALL)
    out = written(model, cache, texts(model, 80, 2))
    assert out.shape == (2, 86)
    assert cache.layers[0].sparse_keys.stream.dtype == cache.layers[0].dense_keys.dtype == dtype


def test_fused_projections_leave_no_prompt_behind(model):
    layer = MustafarCache(model, window=8, block=64).layers[0]
    fused = torch.randn(1, 2, 20, 2 * 64)  # keys and values in one storage, as fused projections give them
    layer.update(*fused.split(64, -1))
    layer.attend(_call(layer))
    assert layer.nbytes() == 2 * 2 * 20 * 64 * 4


def _call(layer):
    from unwrite.cache.engine.attention import AttentionCall

    query = torch.randn(1, 4, layer.length, 64)
    return AttentionCall(
        query, layer.dense_keys, layer.dense_values, None, 1 / 8, lambda keys, values, mask: (query, None)
    )


@pytest.mark.parametrize("keys", ["output", "structured", "random"])
@pytest.mark.parametrize("values", ["channel", "output", "structured", "random"])
def test_every_rule_zeroes_the_same_part(model, keys, values):
    cache = MustafarCache(model, k_sparsity=0.5, v_sparsity=0.75, keys=keys, values=values, **SMALL)
    ids = texts(model, 75, 2)
    read(model, cache, ids[:, :70])
    for at in range(70, 74):
        read(model, cache, ids[:, at : at + 1])
    layer = cache.layers[1]
    assert (layer.sparse_keys.to_dense() == 0).sum() == 0.5 * 2 * 2 * 64 * 64
    assert (layer.sparse_values.to_dense() == 0).sum() == 0.75 * 2 * 2 * 64 * 64


def test_structured_keys_lose_the_same_channels_of_every_token_of_a_block(model):
    cache = MustafarCache(model, k_sparsity=0.5, keys="structured", values="structured", **SMALL)
    read(model, cache, texts(model, 80))
    for sparse in (cache.layers[0].sparse_keys, cache.layers[0].sparse_values):
        gone = sparse.to_dense() == 0
        assert (gone.all(2) == gone.any(2)).all()


def test_output_awareness_weighs_a_channel_by_recent_queries_and_a_token_by_its_attention():
    from unwrite.cache.engine.pruning import Recent, prune_keys

    keys = torch.ones(1, 1, 64, 4)
    queries = torch.tensor([1.0, -4.0, 3.0, 0.5]).expand(1, 2, 5, 4)
    kept = prune_keys(keys, "output", 0.5, False, Recent(queries, None), 0) != 0
    assert (kept == torch.tensor([False, True, True, False])).all()
    attention = torch.arange(64.0)[None, None]
    kept = prune_values(keys, "output", 0.5, False, Recent(queries, attention), 32, 0) != 0
    assert torch.equal(kept[0, 0, :, 0], torch.arange(64) % 32 >= 16)


def test_of_one_tokens_values_attention_changes_no_order():
    values, attention = torch.randn(2, 3, 5, 64), torch.rand(2, 3, 5, 1) + 0.1
    assert torch.equal(prune_per_token(values * attention, 0.7) != 0, prune_per_token(values, 0.7) != 0)


def test_recent_attention_is_the_models_own_summed_over_queries_and_heads():
    queries, keys = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 10, 8)
    real = torch.ones(2, 10, dtype=torch.bool)
    real[1, :4] = False
    got = recent_attention(queries, keys, real, 0.3)
    causal = torch.ones(3, 10, dtype=torch.bool).tril(7) & real[:, None]
    scores = (queries @ keys.repeat_interleave(2, 1).transpose(-1, -2) * 0.3).masked_fill(~causal[:, None], -torch.inf)
    torch.testing.assert_close(got, scores.softmax(-1).sum(2).unflatten(1, (2, 2)).sum(2))
    assert (got[1, :, :4] == 0).all()
    real[1, :8] = False  # the first of the three is padding, and asks nothing
    assert recent_attention(queries, keys, real, 0.3)[1].sum() == pytest.approx(2 * 2 * 2)


def test_random_numbers_are_the_same_again_by_their_seed(model):
    ids = texts(model, 80)

    def kept(seed):
        cache = MustafarCache(model, keys="random", values="random", seed=seed, **SMALL)
        read(model, cache, ids)
        return cache.layers[0].sparse_keys.to_dense()

    assert torch.equal(kept(0), kept(0))
    assert not torch.equal(kept(0), kept(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k_sparsity": 1.0}, "k_sparsity=1.0 is no part"),
        ({"v_sparsity": -0.1}, "v_sparsity=-0.1 is no part"),
        ({"v_sparsity": float("nan")}, "v_sparsity=nan is no part"),
        ({"window": -1}, "window=-1 is no number of tokens. Choose 0"),
        ({"block": 0}, "block=0 is no number of tokens. Choose 1"),
        ({"group": 0}, "group=0 is no number"),
        ({"block": 100}, "block=100 makes no whole tiles"),
        ({"block": 1, "packed": False, "values": "channel"}, "block=1 makes no whole groups of 32"),
        ({"keys": "chanel"}, "unknown rule of keys 'chanel'"),
        ({"official_threshold": True, "keys": "random"}, "official_threshold=True is of magnitudes alone"),
    ],
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        Mustafar(**fields)


def test_dense_tensors_with_zeros_may_be_pruned_token_by_token(model):
    cache = MustafarCache(model, block=1, window=8, packed=False, k_sparsity=0.5)
    ids = texts(model, 12)
    read(model, cache, ids[:, :10])
    read(model, cache, ids[:, 10:11])
    assert cache.layers[0].pruned == 3
    assert ((cache.layers[0].sparse_keys == 0).sum(-1) == 32).all()
