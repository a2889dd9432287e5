"""The compiled step: the same logits as the model's own forward, and the same bits for any number of rows, threads and bytes."""

import copy
import os
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from unwrite.decode import Plain, last_stats
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.transformers import compiled
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree
from unwrite.errors import Notice

pytest.importorskip("numba")

from unwrite.decode.engine.transformers.compiled.crew import Crew
from unwrite.decode.engine.transformers.compiled.exact import packed
from unwrite.decode.engine.transformers.compiled.loop import CompiledLoop

VOCAB = 77
CLOSE = 2e-4


def wide(family="llama", seed=0, **settings):
    """A random model whose heads are as wide as the compiled step wants them."""
    import transformers as hf

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 600,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    } | settings
    torch.manual_seed(seed)
    if family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, attention_bias=True, mlp_bias=True))
    elif family == "mistral":
        model = hf.MistralForCausalLM(hf.MistralConfig(**shape, sliding_window=None))
    elif family == "qwen2":
        shape.pop("head_dim")
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**shape | {"hidden_size": 128}))
    else:
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shape))
    with torch.no_grad():  # biases and norms start at 0 and 1, where a step that forgets them goes unseen
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def text(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, length)


def tree(nodes, seed=0):
    rng = np.random.default_rng(seed)
    return DraftTree.of(rng.integers(3, VOCAB, nodes), [-1, *(int(rng.integers(0, i)) for i in range(1, nodes))])


def begun(model, prompts, route="compiled"):
    forget_knowledge()  # every prompt is read by the same route: another one gives keys of other bits
    runtime = TransformersRuntime(model)
    runtime.prefill(prompts, 64)
    runtime.use(route)
    return runtime


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([list(map(int, ids))]), use_cache=False).logits[0, -1]


def branch(draft, node):
    ids = []
    while node >= 0:
        ids.append(int(draft.tokens[0, node]))
        node = int(draft.parents[0, node])
    return ids[::-1]


# The same function


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("length", [5, 128, 250])
def test_every_node_of_a_tree_is_as_its_text_read_anew(family, length):
    model, prompt, draft = wide(family), text(length), tree(11)
    output = begun(model, [prompt]).forward(draft)
    for node in range(draft.nodes):
        expected = logits_of(model, [*prompt, *branch(draft, node)])
        torch.testing.assert_close(output.logits[0, node], expected, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 64},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 128},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
)
def test_heads_of_any_number_and_width_tied_words_and_other_angles(settings):
    model, prompt, draft = wide(**settings), text(40), tree(9)
    output = begun(model, [prompt]).forward(draft)
    for node in (0, 4, 8):
        expected = logits_of(model, [*prompt, *branch(draft, node)])
        torch.testing.assert_close(output.logits[0, node], expected, atol=CLOSE, rtol=CLOSE)


def test_a_head_with_a_bias():
    model, prompt, draft = wide(), text(20), tree(3)
    model.lm_head.bias = nn.Parameter(torch.randn(VOCAB))
    output = begun(model, [prompt]).forward(draft)
    expected = logits_of(model, [*prompt, *branch(draft, 2)])
    torch.testing.assert_close(output.logits[0, 2], expected, atol=CLOSE, rtol=CLOSE)


def test_texts_of_several_lengths_side_by_side():
    """One text has more stretches of columns than another, whose keys end in the middle of one."""
    model, prompts = wide(), [text(260, 1), text(7, 2), text(129, 3)]
    drafts = [tree(6, 4), tree(3, 5), tree(6, 6)]
    runtime = begun(model, prompts)
    for _ in range(2):
        output = runtime.forward(DraftTree.stack(drafts))
        for row, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
            for node in range(draft.tokens.shape[1]):
                expected = logits_of(model, [*prompt, *branch(draft, node)])
                torch.testing.assert_close(output.logits[row, node], expected, atol=CLOSE, rtol=CLOSE)
        runtime.commit([[0], [0], [0]])
        prompts = [np.append(prompt, draft.tokens[0, 0]) for prompt, draft in zip(prompts, drafts, strict=True)]


def test_what_is_wanted_beside_logits_is_what_the_models_own_forward_shows():
    model, prompt, draft = wide("qwen3"), text(20), tree(5)
    want = frozenset({"logits", "final_hidden", "layer:0", "layer:2"})
    ours = begun(model, [prompt]).forward(draft, want)
    theirs = begun(model, [prompt], "stock").forward(draft, want)
    torch.testing.assert_close(ours.final_hidden, theirs.final_hidden, atol=CLOSE, rtol=CLOSE)
    assert sorted(ours.layers) == sorted(theirs.layers) == [0, 2]
    for index in (0, 2):
        torch.testing.assert_close(ours.layers[index], theirs.layers[index], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("route", ["compiled", "compact"])
def test_texts_are_those_of_generate_token_by_token(route):
    for seed in range(3):
        model, ids = in_form(wide(seed=seed), "affine4"), torch.from_numpy(text(30, seed))[None]
        expected = model.generate(ids, max_new_tokens=60, do_sample=False)
        runtime = begun(model, [ids[0].numpy()], route)
        tokens = [int(expected[0, 30])]
        while len(tokens) < 60:
            tokens.append(int(runtime.step(tokens[-1]).argmax()))
        assert tokens == expected[0, 30:].tolist()


def test_generate_takes_the_compiled_step_by_itself_where_it_is_faster():
    forget_knowledge()
    model, ids = wide(num_hidden_layers=12), torch.from_numpy(text(30))[None]
    expected = model.generate(ids, max_new_tokens=120, do_sample=False)
    for _ in range(3):
        assert torch.equal(model.generate(ids, max_new_tokens=120, do_sample=False, custom_generate=Plain()), expected)
    assert {"compiled", "compact"} & {*last_stats().routes}


# The same bits


def test_a_chain_in_one_step_gives_the_bits_of_its_tokens_one_by_one():
    """Also over the edge of a stretch of columns, and for every number of rows that has a kernel of its own."""
    model, prompt = wide(), text(120)
    chain = text(11, 9)
    runtime, single = begun(model, [prompt]), []
    for token in chain:
        single.append(runtime.step(int(token)).clone())
    for rows in range(2, 12):
        output = begun(model, [prompt]).forward(DraftTree.chain(int(chain[0]), chain[1:rows]))
        assert torch.equal(output.logits[0], torch.stack(single[:rows]))


def test_threads_change_no_bit(monkeypatch):
    from unwrite.decode.engine.transformers.compiled import crew, loop

    model, prompt, draft = wide(), text(300), tree(13)
    results = []
    for threads in (1, 2, 3):
        team = Crew(threads)
        monkeypatch.setattr(loop, "crew", lambda team=team: team)
        runtime = begun(model, [prompt])
        for _ in range(20):
            results.append(runtime.forward(draft).logits)
            runtime.commit([[]])
    assert crew.crew() is crew.crew()
    assert all(torch.equal(one, results[0]) for one in results)


def test_another_number_of_threads_waits_for_the_late_ones_of_the_last_step():
    """A thread that is still at the last step must not meet counters that begin anew."""
    from unwrite.decode.engine.transformers.compiled import crew

    before, order = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        first = crew.crew()
        torch.set_num_threads(3)
        second = crew.crew()
        runtime, draft = begun(wide(), [text(20)]), tree(5)
        with pytest.MonkeyPatch.context() as patch:
            for team in (first, second):
                patch.setattr(team, "join", lambda team=team, join=team.join: order.append(team) or join())
            runtime.forward(draft)
        assert {first, second} <= {*order}
    finally:
        torch.set_num_threads(before)


def test_more_threads_within_a_text_get_room_of_their_own(monkeypatch):
    from unwrite.decode.engine.transformers.compiled import loop

    runtime, draft, results = begun(wide(), [text(20)]), tree(5), []
    for threads in (1, 3):
        team = Crew(threads)
        monkeypatch.setattr(loop, "crew", lambda team=team: team)
        results.append(runtime.forward(draft).logits)
        runtime.commit([[]])
        assert runtime.body._private.nbytes >= threads * int(runtime.body.steps[0]["private_bytes"])
    assert torch.equal(*results)


def test_a_text_that_outgrows_its_storage_goes_on():
    model, prompt = wide(), text(30)
    expected = model.generate(torch.from_numpy(prompt)[None], max_new_tokens=120, do_sample=False)[0, 30:].tolist()
    runtime = TransformersRuntime(model)
    runtime.prefill([prompt], 1)
    runtime.use("compiled")
    tokens = expected[:1]
    while len(tokens) < 120:
        tokens.append(int(runtime.step(tokens[-1]).argmax()))
    assert tokens == expected


def test_several_texts_at_once_from_several_threads():
    model = wide()
    expected = [begun(model, [text(30, seed)]).forward(tree(7, seed)).logits for seed in range(4)]
    found: dict[int, list[torch.Tensor]] = {}

    def work(seed, runtime):
        found[seed] = []
        for _ in range(15):
            found[seed].append(runtime.forward(tree(7, seed)).logits)
            runtime.commit([[]])

    # Begun one after the other: what is known of routes is everybody's, and another thread's prompt would change this one's.
    begins = [(seed, begun(model, [text(30, seed)])) for seed in range(4)]
    threads = [threading.Thread(target=work, args=begin) for begin in begins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected[seed]) for seed, several in found.items() for one in several)


def test_a_forked_process_has_threads_of_its_own():
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runtime, draft = begun(wide(), [text(30)]), tree(7)
        expected = runtime.forward(draft).logits
        runtime.commit([[]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process with threads is forked is what is tested
            child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(runtime.forward(draft).logits, expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


# The same weights in fewer bytes


def blocks_of(name, rows=24, columns=96, seed=0):
    """Weights that a format gives exactly."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns // 32)
    if name == "bfloat16":
        return (rng.standard_normal((rows, columns), dtype=np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    step = (rng.random(shape) / 50 + 1e-3).astype(np.float16).astype(np.float32)[..., None]
    if name == "scaled8":
        codes = rng.integers(-127, 128, (*shape, 32))
        codes[..., 5] = rng.choice([-127, 127], shape)
        return (step * codes.astype(np.float32)).reshape(rows, columns)
    if name == "q4_0":
        codes = rng.integers(0, 16, (*shape, 32))
        codes[..., 7] = 0
        sign = rng.choice([-1, 1], (*shape, 1)).astype(np.float32)
        return (sign * step * (codes - 8).astype(np.float32)).reshape(rows, columns)
    codes = rng.integers(0, 16, (*shape, 32))
    codes[..., 3], codes[..., 4] = 0, 15
    lowest = (-rng.random(shape)).astype(np.float16).astype(np.float32)[..., None]
    return (step * codes.astype(np.float32) + lowest).reshape(rows, columns)


FORMATS = {"affine4": "affine4", "q4_0": "affine4", "scaled8": "scaled8", "bfloat16": "bfloat16"}


def expanded(stored, weights, bytes_):
    """What a model's step makes of the packed rows: their product with one-hot states."""
    import ctypes

    from unwrite.decode.engine.transformers.compiled.records import EXPANDED_ROWS
    from unwrite.decode.engine.transformers.compiled.step import kernel
    from unwrite.decode.engine.transformers.compiled.tiles import STORED, STRIDES

    rows, columns = weights.shape
    out, states = np.zeros((2, columns, rows), np.float32), np.eye(columns, dtype=np.float32)
    scratch = np.empty((EXPANDED_ROWS, columns), np.float32)
    multiply = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11)(kernel().multiply)
    row_bytes = columns // 32 * STRIDES[stored]
    for way, together in enumerate((1, columns)):  # expanded in registers, and ahead
        for first in range(0, columns, together):
            multiply(
                STORED.index(stored), bytes_.ctypes.data, row_bytes, rows, states[first].ctypes.data, 4 * columns, together,
                columns // 32, out[way, first].ctypes.data, 4 * rows, scratch.ctypes.data,
            )  # fmt: skip
    assert (out[0].view(np.uint32) == out[1].view(np.uint32)).all()
    return out[0].T


@pytest.mark.parametrize("name", FORMATS)
def test_a_pack_is_the_smallest_form_and_gives_every_weight_back(name):
    weights = blocks_of(name)
    stored, bytes_ = packed(weights)
    assert stored == FORMATS[name]
    assert np.array_equal(expanded(stored, weights, bytes_), weights)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_that_is_one_bit_off_is_not_packed_so(name):
    weights = blocks_of(name)
    weights.view(np.uint32)[11, 40] ^= 1
    found = packed(weights)
    assert found is None or found[0] != FORMATS[name]
    if found is not None:
        assert np.array_equal(expanded(*found[:1], weights, found[1]), weights)


def test_the_sign_of_a_zero_changes_no_logits():
    """As q4_0 has it in every block whose step is negative."""
    model, prompt, draft = in_form(wide(), "q4_0"), text(40), tree(5)
    assert any((m.weight.signbit() & (m.weight == 0)).any() for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(
        begun(model, [prompt], "compact").forward(draft).logits, begun(model, [prompt]).forward(draft).logits
    )


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_number_is_left_as_it_is_or_given_back(name, value):
    weights = blocks_of(name)
    weights[0, 0] = value
    found = packed(weights)
    assert found is None or found[0] == "bfloat16"


def test_constant_and_empty_blocks_fit():
    weights = blocks_of("affine4")
    weights[0, :32], weights[1, 32:64] = 0.0, 0.25
    stored, bytes_ = packed(weights)
    assert stored == "affine4"
    assert np.array_equal(expanded(stored, weights, bytes_), weights)


def in_form(model, name):
    """The model with linear weights of a form."""
    for number, module in enumerate(m for m in model.modules() if isinstance(m, nn.Linear)):
        module.weight.data = torch.from_numpy(blocks_of(name, *module.weight.shape, seed=number))
    return model


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 19])
def test_logits_have_the_same_bits_whatever_the_weights_are_kept_in(name, rows):
    model, prompt, draft = in_form(wide(), name), text(40), tree(rows)
    compact = begun(model, [prompt], "compact")
    body = compact._bodies["compact"]
    assert isinstance(body, CompiledLoop)
    assert body.nbytes < 0.6 * sum(4 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(compact.forward(draft).logits, begun(model, [prompt]).forward(draft).logits)


def test_an_edited_weight_is_read_as_it_is_now_and_no_longer_packed():
    model, prompt = in_form(wide(), "bfloat16"), text(40)
    draft = tree(3)
    before = {route: begun(model, [prompt], route).forward(draft).logits for route in ("compiled", "compact")}
    weight = model.model.layers[1].mlp.down_proj.weight
    packs = begun(model, [prompt], "compact")._bodies["compact"].nbytes
    with torch.no_grad():
        weight.data[3, 5] += 1 / 3  # no bfloat16
    for route in ("compiled", "compact"):
        runtime = begun(model, [prompt], route)
        after = runtime.forward(draft).logits
        assert not torch.equal(after, before[route])
        expected = logits_of(model, [*prompt, *branch(draft, 0)])
        torch.testing.assert_close(after[0, 0], expected, atol=CLOSE, rtol=CLOSE)
    assert packs - runtime._bodies["compact"].nbytes == 2 * weight.numel()
    with torch.no_grad():
        weight.data[3, 5] = 0.5
    assert begun(model, [prompt], "compact")._bodies["compact"].nbytes == packs


def test_weights_as_training_leaves_them_have_no_route_of_packs():
    """Nor has a model that was asked to pack nothing, or one for whose packs there is no memory."""
    trained, packable = wide(), in_form(wide(), "affine4")
    assert "compact" not in TransformersRuntime(trained).routes
    assert "compiled" in TransformersRuntime(trained).routes
    assert "compact" in TransformersRuntime(packable).routes
    assert "compact" not in TransformersRuntime(packable, pack="never").routes


@pytest.mark.parametrize("name", FORMATS)
def test_one_matrix_in_a_form_is_enough_for_packs(name):
    model = wide()
    model.model.layers[-1].mlp.down_proj.weight.data = torch.from_numpy(blocks_of(name, 96, 160))
    body = begun(model, [text(9)], "compact")._bodies["compact"]
    assert 0 < body.nbytes <= 2 * 96 * 160


def test_packs_wait_for_memory(monkeypatch):
    from unwrite.decode.engine.transformers.compiled import sizes

    model = in_form(wide(), "affine4")
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    for free, there in ((8 * linear, True), (8 * linear - 1, False)):
        monkeypatch.setattr(sizes.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert ("compact" in TransformersRuntime(model).routes) is there
    assert "compact" in TransformersRuntime(model, pack="always").routes


def test_a_weight_that_is_given_another_storage_within_a_text_is_read_as_it_was():
    model, prompt, draft = wide(), text(20), tree(3)
    runtime = begun(model, [prompt])
    expected = runtime.forward(draft).logits
    runtime.commit([[]])
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(runtime.forward(draft).logits, expected)


def test_weights_beyond_half_precision_make_no_noise():
    model = wide()
    model.lm_head.weight.data[0, :32] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "compiled" in TransformersRuntime(model).routes


# Where it isn't to be had


@pytest.mark.parametrize(
    "settings",
    [
        {"head_dim": 48},
        {"intermediate_size": 100},
        {"hidden_size": 80},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}},
    ],
)
def test_other_sizes_activations_and_angles_run_as_before(settings):
    model = wide(**settings)
    assert "compiled" not in begun(model, [text(20)], "fused").routes


def test_layers_that_differ_run_as_before():
    model = wide()
    model.model.layers[1].input_layernorm.variance_epsilon = 1e-3
    assert "compiled" not in begun(model, [text(20)], "fused").routes


def test_weights_that_lie_otherwise_run_as_before():
    model = wide()
    weight = model.lm_head.weight
    weight.data = weight.data.T.contiguous().T
    assert "compiled" not in TransformersRuntime(model).routes


def test_models_that_arent_stock_run_as_before():
    model = wide()
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert "compiled" not in TransformersRuntime(model).routes
    assert "compiled" not in TransformersRuntime(copy.deepcopy(wide()).bfloat16()).routes


@pytest.fixture
def unbroken(monkeypatch):
    monkeypatch.setattr(compiled, "_broken", [])


def test_without_numba_nothing_is_said_and_nothing_changes(monkeypatch, unbroken):
    monkeypatch.setattr(compiled, "_found", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert begun(wide(), [text(20)], "fused").routes == ("fused", "stock")


@pytest.mark.parametrize("fault", ["import", "processor"])
def test_numba_that_fails_costs_one_notice_and_no_text(monkeypatch, unbroken, fault):
    from unwrite.decode.engine.transformers.compiled import step, tiles

    def broken():
        raise OSError("llvmlite: cannot open shared object")

    if fault == "import":
        monkeypatch.setattr(step, "kernel", broken)
    else:
        monkeypatch.setattr(tiles, "LANES", 0)
    forget_knowledge()
    model, ids = wide(), torch.from_numpy(text(30))[None]
    expected = model.generate(ids, max_new_tokens=40, do_sample=False)
    with pytest.warns(Notice, match="steps aren't compiled") as said:
        assert torch.equal(model.generate(ids, max_new_tokens=40, do_sample=False, custom_generate=Plain()), expected)
    assert len(said) == 1
    model.generate(ids, max_new_tokens=40, do_sample=False, custom_generate=Plain())
    assert {*last_stats().routes} <= {"fused", "stock"}
