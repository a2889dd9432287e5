"""UNComp: what each head keeps of a text, the official code's choices, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from helpers.kept_tokens import GROUPS, prompt, read, tokens_of, written
from helpers.tiny import make_llama
from unwrite.cache import HeadGroups, UNComp, UNCompCache
from unwrite.cache.engine.attention import AttentionCall
from unwrite.cache.engine.budgets import capacities
from unwrite.cache.engine.slots import Slots, attended
from unwrite.cache.engine.support import KVShape
from unwrite.errors import MethodError

OFFICIAL = json.loads((Path(__file__).parent / "uncomp_official.json").read_text(encoding="utf-8"))
LAYERS, HEADS, DIM = 3, 2, 8  # of the tiny model


@pytest.fixture(scope="module")
def model():
    return make_llama()


# Budgets


@pytest.mark.parametrize(
    ("capacity", "labels", "normalise", "expected"),
    [
        (512, (0, 1), False, (384, 768)),
        (512, (0, 1), True, (341, 682)),
        (512, (0, 0, 1), True, (384, 768)),  # two low heads and a high one: the mean over heads is the capacity
        (500, (0, 0, 0, 1), True, (400, 800)),
        (512, (0, 1, 2), False, (384, 576, 768)),
        (100, (0,), False, (100,)),
        (101, (0, 1), False, (75, 151)),
    ],
)
def test_high_heads_keep_twice_what_low_ones_keep(capacity, labels, normalise, expected):
    assert capacities(capacity, labels, len(set(labels)), normalise) == expected


def test_heads_keep_what_their_group_may_of_a_long_prompt(model):
    """The published 768 and 384 of 4,096 tokens at a capacity of 512, in 64ths: 12 and 6 of 64 at 8; the mean is 14 %."""
    cache = UNCompCache(model, groups=GROUPS, capacity=8, window=2, kernel=3)
    read(model, cache, prompt(length=64))
    sizes = [{head: len(tokens) for head, tokens in tokens_of(layer).items()} for layer in cache.layers]
    assert sizes == [{0: 6, 1: 12}, {0: 12, 1: 6}, {0: 6, 1: 12}]
    mean = sum(sum(one.values()) for one in sizes) / (LAYERS * HEADS)
    assert mean / 64 == pytest.approx(576 / 4096) == pytest.approx(0.140625)
    number = 4 * (2 * DIM + 1 + 2)  # bytes: keys and values, the column, the weights of two queries
    assert cache.nbytes() == number * mean * LAYERS * HEADS
    assert capacities(512, (0, 1), 2, False) == (384, 768)


def test_kept_tokens_are_sorted_unique_and_hold_the_last_ones(model):
    cache = UNCompCache(model, groups=GROUPS, capacity=12, window=4, kernel=3, n_sink=2)
    read(model, cache, prompt(length=50))
    for layer in cache.layers:
        for tokens in tokens_of(layer).values():
            assert tokens == sorted(set(tokens))
            assert {0, 1, 46, 47, 48, 49} <= set(tokens)
    chosen = [tokens_of(layer) for layer in cache.layers]
    assert len({tuple(tokens) for layer in chosen for tokens in layer.values()}) == LAYERS * HEADS  # each its own


def test_a_prompt_within_the_capacity_is_kept_whole_but_by_the_published_rule(model):
    ids = prompt(length=20)
    library = UNCompCache(model, groups=GROUPS, capacity=20, window=4)
    assert torch.equal(
        written(model, library, ids, max_new_tokens=1), written(model, DynamicCache(), ids, max_new_tokens=1)
    )
    assert {len(tokens) for tokens in tokens_of(library.layers[0]).values()} == {20}
    official = UNCompCache(model, groups=GROUPS, capacity=20, window=4, official_budget=True)
    written(model, official, ids)
    assert {head: len(tokens) for head, tokens in tokens_of(official.layers[0]).items()} == {0: 10, 1: 20}


def test_a_text_that_outgrows_the_capacity_is_thinned_then(model):
    cache = UNCompCache(model, groups=GROUPS, capacity=16, window=4)
    ids = prompt(length=40)
    for at, token in enumerate(ids.split(1, 1), 1):
        read(model, cache, token)
        sizes = {head: len(tokens) for head, tokens in tokens_of(cache.layers[0]).items()}
        low, high = (at, at) if at <= 16 else (min(at, 24) // 2, min(at, 24))
        assert sizes == {0: low, 1: high}


@pytest.mark.parametrize("budgets", [(6, 20), (6, 12)])
def test_sizes_may_be_given_by_group(model, budgets):
    cache = UNCompCache(model, groups=GROUPS, budgets=budgets, window=4)
    read(model, cache, prompt(length=50))
    assert {head: len(tokens) for head, tokens in tokens_of(cache.layers[1]).items()} == {0: budgets[1], 1: budgets[0]}


# Choice


def snapkv(weights, window, kernel, size):
    """[heads][tokens] by a plain reading of SnapKV: weights [heads, window, tokens] of the last queries."""
    votes = F.max_pool1d(weights[..., :-window].sum(1)[:, None], kernel, 1, kernel // 2)[:, 0]
    kept = []
    for head in votes:
        order = sorted(range(len(head)), key=lambda token: (-head[token].item(), token))
        kept.append(sorted(order[: size - window]) + list(range(len(head), len(head) + window)))
    return kept


@pytest.mark.parametrize("kernel", [1, 5])
def test_one_group_keeps_what_snapkv_keeps(kernel):
    model = make_llama(attn_implementation="eager", num_key_value_heads=4)
    cache = UNCompCache(model, groups=HeadGroups.one(), capacity=14, window=4, kernel=kernel)
    ids = prompt(length=50)
    read(model, cache, ids)
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    for layer, weights in zip(cache.layers, attentions, strict=True):
        assert list(tokens_of(layer).values()) == snapkv(weights[0, :, -4:], 4, kernel, 14)


def test_a_key_value_heads_scores_are_the_mean_of_its_query_heads():
    model = make_llama(attn_implementation="eager")
    cache = UNCompCache(model, groups=HeadGroups.one(), capacity=14, window=4, kernel=3)
    ids = prompt(length=50)
    read(model, cache, ids)
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[0][0].view(2, 2, 50, 50).mean(1)
    assert list(tokens_of(cache.layers[0]).values()) == snapkv(weights[:, -4:], 4, 3, 14)


def official_layer(capacity=16, kernel=1, **fields):
    """Four heads with a key each, 1 and 3 high, window 4."""
    settings = UNComp(groups=HeadGroups(((0, 1, 0, 1),)), capacity=capacity, window=4, kernel=kernel, **fields)
    layer = settings.layer(0, KVShape(1, 4, 4, 8), None)
    layer.attends = True
    return layer


def states():
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 4, 30, 16, generator=generator)
    return [torch.randn(1, 4, 46, 8, generator=generator) for _ in range(2)]


def attend(layer, query, key, start, stop):
    """The layer reads these tokens, all at once."""
    keys, values = layer.update(key[:, :, start:stop], key[:, :, start:stop])

    def stock(keys, values, mask):
        return F.scaled_dot_product_attention(query[:, :, start:stop], keys, values, is_causal=True).transpose(
            1, 2
        ), None

    return layer.attend(AttentionCall(query[:, :, start:stop], keys, values, None, 8**-0.5, stock))[0]


def published_order(layer):
    tokens = tokens_of(layer)
    return [tokens[head] for head in (1, 3, 0, 2)]


def test_choices_are_the_official_codes_at_the_prompt_and_token_by_token():
    query, key = states()
    layer = official_layer()
    attend(layer, query, key, 0, 40)
    steps = OFFICIAL["prompt and 6 tokens, kernel 1"]
    assert published_order(layer) == steps[0]
    for at, expected in enumerate(steps[1:], 40):
        attend(layer, query, key, at, at + 1)
        assert published_order(layer) == expected
    short = official_layer(official_budget=True)
    attend(short, query, key, 0, 20)
    assert published_order(short) == OFFICIAL["prompt of 20, kernel 1"]


def test_pooled_choices_differ_from_the_official_ones_in_equal_scores_alone():
    query, key = states()
    layer = official_layer(kernel=7)
    attend(layer, query, key, 0, 40)
    mask = torch.ones(4, 40, dtype=torch.bool).tril(36)
    weights = (query[0, :, 36:40] @ key[0, :, :40].mT * 8**-0.5).masked_fill(~mask, -1e30).softmax(-1)
    votes = F.max_pool1d(weights[..., :-4].sum(1)[:, None], 7, 1, 3)[:, 0]
    for ours, theirs, head in zip(published_order(layer), OFFICIAL["prompt, kernel 7"], (1, 3, 0, 2), strict=True):
        kept = [sorted(votes[head, token].item() for token in one[:-4]) for one in (ours, theirs)]
        assert kept[0] == pytest.approx(kept[1])


def test_attention_is_that_over_the_kept_tokens():
    query, key = states()
    layer = official_layer()
    attend(layer, query, key, 0, 40)
    before = tokens_of(layer)
    output = attend(layer, query, key, 40, 42)  # two at once: the first must not see the second
    for head, tokens in before.items():
        for at in (0, 1):
            seen = [*tokens, *range(40, 41 + at)]
            expected = F.scaled_dot_product_attention(query[0, head, [40 + at]], key[0, head, seen], key[0, head, seen])
            assert torch.allclose(output[0, at, head], expected[0], atol=1e-5)


def test_a_query_that_sees_nothing_attends_to_nothing():
    states = torch.ones(1, 1, 3, 2)
    slots = Slots(states, states, torch.tensor([[[-1, 0, 1]]]), None)
    seen = torch.tensor([[[False, False], [True, False]]])
    output, weights = attended(slots, torch.ones(1, 1, 1, 2, 2), seen, 1.0)
    assert weights.tolist() == [[[[[0, 0, 0], [0, 1, 0]]]]]
    assert output.tolist() == [[[[[0, 0], [1, 1]]]]]


# Decoding


@pytest.mark.parametrize(("policy", "growth"), [("fixed", 0), ("grow", 50)])
def test_heads_keep_their_size_over_fifty_tokens_or_grow(model, policy, growth):
    cache = UNCompCache(model, groups=GROUPS, capacity=12, window=4, decode_policy=policy)
    read(model, cache, prompt(length=40))
    before = [{head: len(tokens) for head, tokens in tokens_of(layer).items()} for layer in cache.layers]
    nbytes = cache.nbytes()
    for token in prompt(length=50, seed=3).split(1, 1):
        read(model, cache, token)
    for layer, sizes in zip(cache.layers, before, strict=True):
        assert {head: len(tokens) for head, tokens in tokens_of(layer).items()} == {
            head: size + growth for head, size in sizes.items()
        }
    assert (cache.nbytes() == nbytes) == (growth == 0)
    assert cache.get_seq_length() == 90


def test_new_keys_stand_at_their_place_in_the_text(model):
    """Not behind as many tokens as are kept: the key of token 40 is that of a full cache."""
    ids = prompt(length=41)
    cache, full = UNCompCache(model, groups=GROUPS, capacity=12, window=4), DynamicCache()
    for one in (cache, full):
        read(model, one, ids[:, :40])
        read(model, one, ids[:, 40:])
    for at, heads in enumerate(cache.layers[0].heads.values()):
        assert torch.allclose(cache.layers[0].keys[at][0, :, -1], full.layers[0].keys[0, heads, -1], atol=1e-5)
    assert all(tokens[-1] == 40 for tokens in tokens_of(cache.layers[0]).values())


def test_reversed_groups_keep_as_much_and_write_another_text(model):
    caches = [UNCompCache(model, groups=GROUPS, capacity=10, window=2, reversed=way) for way in (False, True)]
    logits = [read(model, cache, prompt(length=60)) for cache in caches]
    assert torch.equal(*logits)  # the prompt itself is read whole
    logits = [read(model, cache, prompt(length=1, seed=1)) for cache in caches]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert caches[0].nbytes() == caches[1].nbytes()
    sizes = [{head: len(one) for head, one in tokens_of(cache.layers[0]).items()} for cache in caches]
    assert sizes == [{0: 7, 1: 15}, {0: 15, 1: 7}]


def test_random_groups_keep_as_many_high_heads_a_layer():
    groups = HeadGroups(((0, 0, 1, 1, 0, 1),) * 8)
    drawn = groups.shuffled(1)
    assert all(sorted(layer) == [0, 0, 0, 1, 1, 1] for layer in drawn.labels)
    assert drawn == groups.shuffled(1) != groups.shuffled(2)
    assert len({*drawn.labels}) > 1
    assert groups.reversed.reversed == groups


@pytest.mark.parametrize("policy", ["fixed", "grow"])
def test_a_padded_row_keeps_what_it_keeps_alone(model, policy):
    ids = prompt(2, 48)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    together = UNCompCache(model, groups=GROUPS, capacity=12, window=4, decode_policy=policy, n_sink=1)
    alone = UNCompCache(model, groups=GROUPS, capacity=12, window=4, decode_policy=policy, n_sink=1)
    first = read(model, together, ids, mask)[:1]
    assert torch.allclose(first, read(model, alone, ids[:1, 20:]), atol=1e-4)
    for token in prompt(2, 6, seed=2).split(1, 1):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        both = read(model, together, token, mask)[:1]
        assert torch.allclose(both, read(model, alone, token[:1]), atol=1e-4)
    for one, other in zip(together.layers, alone.layers, strict=True):
        moved = {head: [token + 20 for token in tokens] for head, tokens in tokens_of(other).items()}
        assert tokens_of(one) == moved
        assert 20 in tokens_of(one)[0]  # its own first token is the sink


def test_a_short_row_beside_a_long_one_is_kept_whole(model):
    ids = prompt(2, 48)
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    cache = UNCompCache(model, groups=GROUPS, capacity=12, window=4)
    read(model, cache, ids, mask)
    assert set(map(tuple, tokens_of(cache.layers[0]).values())) == {tuple(range(40, 48))}
    for token in prompt(2, 3, seed=2).split(1, 1):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        logits = read(model, cache, token, mask)
    full = DynamicCache()
    read(model, full, ids[:1, 40:])
    for token in prompt(2, 3, seed=2).split(1, 1):
        expected = read(model, full, token[:1])
    assert torch.allclose(logits[:1], expected, atol=1e-4)


def test_padding_between_two_turns_is_no_token(model):
    ids, more = prompt(2, 40), prompt(2, 6, seed=4)
    mask = torch.ones(2, 46, dtype=torch.long)
    mask[0, 40:43] = 0
    cache, alone = (UNCompCache(model, groups=GROUPS, capacity=12, window=4) for _ in range(2))
    read(model, cache, ids, mask[:, :40])
    read(model, cache, more, mask)
    for tokens in (tokens for layer in cache.layers for tokens in tokens_of(layer).values()):
        assert not {40, 41, 42} & set(tokens)
        assert {39, 43, 44, 45} <= set(tokens)  # the window of four goes on before the padding
        assert tokens == sorted(tokens)
    read(model, alone, ids[1:])
    read(model, alone, more[1:])
    assert cache.layers[0].columns[1][1].tolist() == alone.layers[0].columns[1][0].tolist()


def test_tokens_since_the_prompt_are_given_back_where_all_are_kept(model):
    ids, more = prompt(length=40), prompt(length=4, seed=2)
    cache = UNCompCache(model, groups=GROUPS, capacity=12, window=4, decode_policy="grow")
    read(model, cache, ids)
    before, nbytes = tokens_of(cache.layers[0]), cache.nbytes()
    read(model, cache, more)
    cache.crop(-4)
    assert (tokens_of(cache.layers[0]), cache.nbytes(), cache.get_seq_length()) == (before, nbytes, 40)
    with pytest.raises(MethodError, match="can't give back 1 tokens"):
        cache.crop(-1)


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"capacity": 8}, "capacity is 8 and window is 8: nothing could be chosen"),
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"n_sink": -1}, "n_sink is -1; it must be at least 0"),
        ({"least_length": 0}, "least_length is 0; it must be at least 1"),
        ({"decode_policy": "shrink"}, "unknown decode_policy 'shrink'"),
        ({"budgets": (8, 16), "normalise": True}, "budgets says what every group keeps, and normalise too"),
        ({"budgets": (8, 16), "official_budget": True}, "and official_budget too"),
    ],
)
def test_a_setting_without_meaning_is_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        UNComp(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": None}, "there are no groups of heads. Calibrate"),
        ({"budgets": (9, 16, 20)}, "budgets has 3 sizes, and there are 2 groups"),
        ({"budgets": (8, 16)}, "the group of fewest tokens keeps 8 of them, of which window and n_sink take 8"),
        ({"capacity": 12, "n_sink": 1}, "keeps 9 of them, of which window and n_sink take 9"),
    ],
)
def test_settings_that_dont_fit_the_model_are_refused_before_any_token(model, fields, message):
    with pytest.raises(MethodError, match=message):
        UNComp(**{"groups": GROUPS, **fields}).cache(model)


def test_padding_on_the_right_is_refused(model):
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 15:] = 0
    cache = UNCompCache(model, groups=GROUPS, capacity=12, window=4)
    with pytest.raises(MethodError, match="padded on the right"):
        read(model, cache, prompt(2, 20), mask)
    own = torch.zeros(1, 4, 6, 6)
    with pytest.raises(MethodError, match="heads have masks of their own"):
        read(model, UNCompCache(model, groups=GROUPS, capacity=12, window=4), prompt(1, 6), own)
