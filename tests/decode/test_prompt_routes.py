"""Prompts are read the route that has been fastest for prompts, and every route caches the same."""

import numpy as np
import pytest
import torch
from targets import CLOSE, FAMILIES, fresh_logits, make_target, prompt
from transformers import DynamicCache

from unwrite.decode.engine.planning.knowledge import forget_knowledge, knowledge_of
from unwrite.decode.engine.planning.reading import ReadingRoutes
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree

ROUTES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("fused", "stock"))
CASES = [(family, route) for family in FAMILIES for route in ROUTES.get(family, ("packed", "stock"))]


@pytest.fixture(autouse=True)
def fresh():
    forget_knowledge()
    yield
    forget_knowledge()


def reading(model, route, **options):
    """A runtime that reads its next prompt one route."""
    runtime = TransformersRuntime(model, pack="always", **options)
    knowledge_of(runtime.fingerprint, runtime.routes).reading.default = route
    return runtime


def check_next(runtime, model, texts, logits):
    """The prompts' logits, and those of one more token behind them."""
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row], fresh_logits(model, text), atol=CLOSE, rtol=CLOSE)
    output = runtime.forward(DraftTree.stack([DraftTree.of([7], [-1])] * len(texts)))
    for row, text in enumerate(texts):
        torch.testing.assert_close(output.logits[row, 0], fresh_logits(model, [*text, 7]), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(("family", "route"), CASES)
def test_prompts_of_uneven_lengths_are_cached_as_every_text_alone_would_be(family, route):
    model, rng = make_target(family), np.random.default_rng(2)
    runtime = reading(model, route)
    assert route in runtime.routes
    for sizes in ((9, 4, 12), (3, 15, 1), (1, 1, 1)):  # the second time in storage that is there already
        texts = [prompt(rng, size) for size in sizes]
        check_next(runtime, model, texts, runtime.prefill(texts, 4))


@pytest.mark.parametrize(("family", "route"), CASES)
def test_a_prompt_behind_a_filled_cache_sees_what_the_cache_holds(family, route):
    model, rng = make_target(family), np.random.default_rng(3)
    text = prompt(rng, 11)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(text[None, :6]), past_key_values=cache, use_cache=True)
    runtime = reading(model, route, cache=cache)
    check_next(runtime, model, [text], runtime.prefill([text], 4))


class Holding(DynamicCache):
    """A user's cache that holds another one, for something of the user's own."""

    def __init__(self, config):
        super().__init__(config=config)
        self.other = DynamicCache(config=config)


@pytest.mark.parametrize("route", ["fused", "stock"])
def test_a_cache_that_holds_another_one_is_filled_alone(route):
    model, text = make_target("llama"), prompt(np.random.default_rng(8), 8)
    cache = Holding(model.config)
    runtime = reading(model, route, cache=cache)
    check_next(runtime, model, [text], runtime.prefill([text], 4))
    runtime.commit([[0]])
    assert runtime.hand_back() is cache
    assert cache.get_seq_length() == 9
    assert cache.other.get_seq_length() == 0


@pytest.mark.parametrize("route", ["fused", "stock"])
def test_the_cache_handed_back_is_the_prompts(route):
    model, text = make_target("llama"), prompt(np.random.default_rng(4), 8)
    given, wanted = DynamicCache(config=model.config), DynamicCache(config=model.config)
    runtime = reading(model, route, cache=given)
    runtime.prefill([text], 4)
    assert runtime.hand_back() is given
    with torch.no_grad():
        model(input_ids=torch.from_numpy(text[None]), past_key_values=wanted, use_cache=True)
    for found, known in zip(given.layers, wanted.layers, strict=True):
        assert found.keys.shape == known.keys.shape
        torch.testing.assert_close(found.keys, known.keys, atol=CLOSE, rtol=CLOSE)
        torch.testing.assert_close(found.values, known.values, atol=CLOSE, rtol=CLOSE)


def test_a_prompt_follows_an_edit_of_the_weights():
    model, text = make_target("llama"), prompt(np.random.default_rng(5), 8)
    runtime = reading(model, "fused")
    before = runtime.prefill([text], 4)
    model.lm_head.weight.data.mul_(-1)
    model.model.layers[0].mlp.down_proj.weight.data.add_(0.1)
    after = runtime.prefill([text], 4)
    torch.testing.assert_close(after[0], fresh_logits(model, text), atol=CLOSE, rtol=CLOSE)
    assert not torch.allclose(after, before, atol=0.1)


def test_a_long_prompt_is_not_read_by_a_mask_of_its_square():
    model, text = make_target("llama"), prompt(np.random.default_rng(6), 90)
    runtime = reading(model, "fused")
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention
    try:
        torch.nn.functional.scaled_dot_product_attention = lambda *a, **k: (
            seen.append((k["attn_mask"], k["is_causal"])) or attend(*a, **k)
        )
        runtime.prefill([text], 4)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend
    assert seen
    assert all(mask is None and causal for mask, causal in seen)


def read_prompts(sizes, seconds):
    """Ways that prompts of some sizes are read. seconds(route, tokens) -> of one."""
    reading_routes, routes = knowledge_of("prompts", ("fused", "stock")).reading, []
    for size in sizes:
        paths = reading_routes.of(size)
        paths.begin(size, 1, size)
        route = paths.next()
        paths.entered(route, 0.02 if route == "fused" else 0.0)
        paths.observe(route, size, 1, seconds(route, size) / size)
        routes.append(route)
    return routes


def sizes_of(count):
    return np.random.default_rng(7).integers(60, 400, count).tolist()


def test_a_faster_way_keeps_reading_prompts_of_all_lengths():
    routes = read_prompts(sizes_of(200), lambda route, size: max(0.02, 0.001 * size) * (1 if route == "fused" else 1.8))
    assert routes.count("stock") <= 8


def test_a_slower_way_is_left_and_comes_back_when_it_is_faster():
    routes = read_prompts(sizes_of(100), lambda route, size: max(0.02, 0.001 * size) * (2 if route == "fused" else 1))
    assert routes[20:].count("fused") <= 5
    routes = read_prompts(sizes_of(400), lambda route, size: max(0.02, 0.001 * size) * (0.5 if route == "fused" else 1))
    assert routes[-100:].count("fused") > 90


def test_short_prompts_do_not_enter_a_way_that_gains_less_than_it_takes():
    routes = read_prompts([10] * 200, lambda route, size: 0.1 * (0.97 if route == "fused" else 1))
    assert routes[12:].count("fused") <= 3


def test_every_length_is_read_by_the_route_that_is_faster_there():
    """Fused saves calls in short prompts and loses in long ones: both are read the faster way from the fifth of a length on."""
    rng = np.random.default_rng(8)
    sizes = rng.permutation([64] * 40 + [512] * 40 + [2000] * 40 + [8000] * 40).tolist()
    routes = read_prompts(sizes, lambda route, size: 0.01 * size * (1 if (route == "fused") == (size < 1000) else 1.15))
    for size in (64, 512, 2000, 8000):
        late = [route for route, other in zip(routes, sizes, strict=True) if other == size][5:]
        assert late.count("fused" if size < 1000 else "stock") >= len(late) - 4, size


def test_a_length_that_was_never_read_begins_with_the_nearest_ones_route():
    reading_routes = knowledge_of("prompts", ("fused", "stock")).reading
    reading_routes.of(2000).current = "stock"
    assert reading_routes.of(9000).current == "stock"
    reading_routes.of(20).current = "fused"
    assert reading_routes.of(64).current == "fused"
    assert reading_routes.of(10**6).current == "stock"


def test_the_route_of_a_batch_is_that_of_its_prompts_and_not_of_their_sum(monkeypatch):
    model, rng, seen = make_target("llama"), np.random.default_rng(9), []
    runtime = reading(model, "fused")
    of = ReadingRoutes.of
    monkeypatch.setattr(ReadingRoutes, "of", lambda self, tokens: seen.append(tokens) or of(self, tokens))
    runtime.prefill([prompt(rng, 12) for _ in range(3)], 4)
    assert seen == [12]
