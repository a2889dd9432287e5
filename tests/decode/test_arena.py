import numpy as np
import pytest
import torch
from targets import CLOSE, branch, fresh_logits, make_target, prompt, random_tree, start
from transformers import DynamicCache

from unwrite.decode import why_plain
from unwrite.decode.engine.transformers.arena import Arena, ArenaLayer, empty_cache, filled_length
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree
from unwrite.errors import ModelError


def states(batch, columns, heads=2, width=4, start=0):
    """[batch, heads, columns, width], every column named by a number of its own."""
    numbers = torch.arange(start, start + columns).float() + 100 * torch.arange(batch)[:, None]
    return numbers[:, None, :, None].expand(batch, heads, columns, width).clone()


def arena_of(batch, columns, layers=2, room=20):
    arena = Arena()
    cache = arena.cache(DynamicCache(), layers)
    arena.begin(batch, columns + room)
    arena.expect(columns)
    for index in range(layers):
        cache.update(states(batch, columns), -states(batch, columns), index)
    arena.settle(columns + room)
    arena.set_lengths([columns] * batch)
    return arena, cache


def step(arena, cache, nodes, start=50):
    arena.expect(nodes)
    batch = len(arena.lengths)
    return [cache.update(states(batch, nodes, start=start), -states(batch, nodes, start=start), i) for i in (0, 1)]


def column_names(layer, row, length):
    return layer.keys[row, 0, :length, 0].tolist()


def test_a_step_lies_behind_what_is_kept():
    arena, cache = arena_of(1, 3)
    for keys, values in step(arena, cache, 2):
        assert keys[0, 1, :, 2].tolist() == [0, 1, 2, 50, 51]
        assert torch.equal(values, -keys)


def test_storage_is_written_in_place():
    arena, cache = arena_of(1, 3)
    (keys, _), _ = step(arena, cache, 2)
    assert keys.untyped_storage().data_ptr() == arena.layers[0].keys.untyped_storage().data_ptr()


@pytest.mark.parametrize("path", [[0], [0, 1], [0, 2, 3], [0, 3], [1, 0], [0, 4, 1]])
def test_keeping_a_path_gathers_its_columns_in_order(path):
    arena, cache = arena_of(1, 3)
    step(arena, cache, 5)
    arena.keep([path])
    assert arena.lengths.tolist() == [3 + len(path)]
    for layer in arena.layers:
        assert column_names(layer, 0, 3 + len(path)) == [0, 1, 2, *(50 + node for node in path)]
        assert torch.equal(layer.values[:, :, : 3 + len(path)], -layer.keys[:, :, : 3 + len(path)])


def test_rows_roll_back_each_to_its_own_length():
    arena, cache = arena_of(2, 3)
    step(arena, cache, 4)
    arena.keep([[0, 2], [0, 1, 3]])
    (keys, _), _ = step(arena, cache, 2, start=70)
    assert keys.shape[2] == 8
    assert column_names(arena.layers[1], 0, 7) == [0, 1, 2, 50, 52, 70, 71]
    assert column_names(arena.layers[1], 1, 8) == [100, 101, 102, 150, 151, 153, 170, 171]


def test_growing_keeps_every_column():
    arena, cache = arena_of(1, 3, room=0)
    before = arena.capacity
    step(arena, cache, before + 5)
    assert arena.capacity > before
    assert column_names(arena.layers[0], 0, 5) == [0, 1, 2, 50, 51]


def test_bytes_are_those_of_the_storage():
    arena, _ = arena_of(2, 3)
    assert arena.nbytes() == 2 * 2 * 2 * 2 * 64 * 4 * 4  # layers, keys and values, batch, heads, columns, width, bytes
    assert arena.nbytes() == sum(b.nbytes for layer in arena.layers for b in (layer.keys, layer.values))


def test_layers_of_different_shapes_roll_back_together():
    arena = Arena()
    cache = arena.cache(DynamicCache(), 2)
    arena.begin(1, 20)
    arena.expect(3)
    cache.update(states(1, 3), states(1, 3, width=6), 0)
    cache.update(states(1, 3, heads=5), states(1, 3, heads=5), 1)
    arena.settle(20)
    arena.set_lengths([3])
    arena.expect(3)
    cache.update(states(1, 3, start=50), states(1, 3, width=6, start=50), 0)
    cache.update(states(1, 3, heads=5, start=50), states(1, 3, heads=5, start=50), 1)
    arena.keep([[0, 2]])
    for layer in arena.layers:
        assert column_names(layer, 0, 5) == [0, 1, 2, 50, 52]
        assert layer.values[0, -1, :5, -1].tolist() == [0, 1, 2, 50, 52]


def test_what_an_old_batch_left_reaches_nobody():
    arena, cache = arena_of(2, 3)
    arena.layers[0].keys.fill_(torch.nan)
    arena.begin(2, 10)
    arena.expect(3)
    cache.update(states(2, 3), states(2, 3), 0)
    assert torch.isfinite(arena.layers[0].keys).all()


def test_a_cache_inside_a_cache_gets_layers_of_the_same_arena():
    outer = DynamicCache()
    outer.other = DynamicCache()
    arena = Arena()
    twin = arena.cache(outer, 2)
    assert len(arena.layers) == 4
    assert all(type(layer) is ArenaLayer for layer in [*twin.layers, *twin.other.layers])
    assert len(outer.layers) == len(outer.other.layers) == 0


def test_the_models_own_cache_is_asked_for():
    class Asked:
        def empty_cache(self):
            return "its own"

    assert empty_cache(Asked()) == "its own"


def test_a_cache_of_another_depth_is_refused():
    arena, _ = arena_of(1, 3)
    given = DynamicCache()
    given.update(states(1, 2), states(1, 2), 0)
    assert filled_length(given) == 2
    with pytest.raises(ModelError, match="has 1 layers, the model 2"):
        arena.adopt(given, 10)


def test_lengths_start_anew():
    arena, _ = arena_of(2, 3)
    arena.begin(2, 5)
    assert arena.lengths.tolist() == [0, 0]
    assert np.issubdtype(arena.lengths.dtype, np.integer)


# Under a model


def test_a_filled_cache_saves_its_part_of_the_prompt():
    model, rng = make_target("llama"), np.random.default_rng(13)
    text = prompt(rng, 12)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([text[:7].tolist()]), past_key_values=cache)
    why_plain(model)  # the check of a kind of model runs forwards of its own
    seen = []
    handle = model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    runtime, logits = start(model, [text], cache=cache)
    handle.remove()
    assert seen == [5]
    assert (logits[0] - fresh_logits(model, text)).abs().max() < CLOSE
    assert runtime.lengths.tolist() == [12]
    assert cache.get_seq_length() == 7
    runtime.prefill([text[:5]], 10)  # it counts once: the next call has another text
    assert runtime.lengths.tolist() == [5]


def test_the_cache_given_comes_back_filled_as_generate_leaves_it():
    model, rng = make_target("llama"), np.random.default_rng(14)
    text, cache = list(prompt(rng)), DynamicCache()
    runtime, _ = start(model, [np.array(text)], cache=cache)
    tree = random_tree(rng, 12)
    runtime.forward(tree)
    kept = branch(tree, 11)
    runtime.commit([kept])
    text += tree.tokens[0, kept].tolist()
    assert runtime.hand_back() is cache
    assert cache.get_seq_length() == len(text)
    with torch.no_grad():
        logits = model(torch.tensor([[9]]), past_key_values=cache).logits[0, -1]
    assert (logits - fresh_logits(model, [*text, 9])).abs().max() < CLOSE


@pytest.mark.parametrize(("rows", "length", "message"), [(2, 4, "holds 2 rows"), (1, 9, "at least the prompt's last")])
def test_refuses_a_filled_cache_that_does_not_fit(rows, length, message):
    model, cache = make_target("llama"), DynamicCache()
    with torch.no_grad():
        model(torch.full((rows, length), 5), past_key_values=cache)
    runtime = TransformersRuntime(model, cache=cache)
    with pytest.raises(ModelError, match=message):
        runtime.prefill([np.arange(3, 12)], 10)


def test_storage_is_made_once_and_counted():
    model, rng = make_target("llama"), np.random.default_rng(15)
    runtime, _ = start(model, [prompt(rng)], room=100)
    places = [layer.keys.data_ptr() for layer in runtime._arena.layers]
    assert runtime.nbytes() == 3 * 2 * 2 * 128 * 8 * 4  # layers, keys and values, heads, columns, width, bytes
    runtime.prefill([prompt(rng, 20)], 90)
    assert [layer.keys.data_ptr() for layer in runtime._arena.layers] == places
    runtime.prefill([prompt(rng, 20)], 300)
    assert runtime.nbytes() == 3 * 2 * 2 * 320 * 8 * 4


def test_storage_grows_when_a_step_needs_more_than_the_room_asked_for():
    model, rng = make_target("llama"), np.random.default_rng(16)
    text = prompt(rng)
    runtime, _ = start(model, [text], room=1)
    tree = random_tree(rng, 80)
    logits = runtime.forward(tree).logits[0]
    ids = [*text, *tree.tokens[0, branch(tree, 79)]]
    assert (logits[79] - fresh_logits(model, ids)).abs().max() < CLOSE


def test_another_precision_makes_new_storage():
    model = make_target("llama")
    runtime, _ = start(model, [np.arange(3, 12)])
    model.to(torch.bfloat16)
    runtime.prefill([np.arange(3, 12)], 20)
    assert runtime.routes == ("stock",)
    assert runtime.forward(DraftTree.chain(5, [6])).logits.dtype is torch.bfloat16
    assert runtime._arena.layers[0].keys.dtype is torch.bfloat16
