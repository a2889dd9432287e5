"""Prompts that the compiled step reads: the bits of its tokens one by one, wherever the prompt is cut."""

import threading

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from unwrite.decode.engine.planning.knowledge import forget_knowledge, knowledge_of
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree

pytest.importorskip("numba")

from test_compiled_step import CLOSE, in_form, logits_of, text, wide

from unwrite.decode.engine.transformers.compiled import loop


@pytest.fixture(autouse=True)
def fresh():
    forget_knowledge()
    yield
    forget_knowledge()


def read(model, texts, **options):
    """A runtime that has read prompts by the compiled step, and their last tokens' logits."""
    forget_knowledge()  # else the second prompt tries another route
    runtime = TransformersRuntime(model, **options)
    knowledge_of(runtime.fingerprint, runtime.routes).reading.default = "compiled"
    logits = runtime.prefill(texts, 8)
    assert "compiled" in runtime.entered
    return runtime, logits


def cached(runtime, length, row=0):
    """[2 x layers] keys and values of a text."""
    stores = [store for layer in runtime._arena.layers for store in (layer.keys, layer.values)]
    return [store[row, :, :length].clone() for store in stores]


@pytest.mark.parametrize("length", [1, 5, 131, 300])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_prompt_is_as_the_models_own_forward_reads_it(family, length):
    model, ids = wide(family), text(length)
    _, logits = read(model, [ids])
    torch.testing.assert_close(logits[0], logits_of(model, ids), atol=CLOSE, rtol=CLOSE)


def test_cut_anywhere_it_has_the_bits_of_its_tokens_one_by_one(monkeypatch):
    """Parts end within stretches of columns, at their ends and behind them."""
    model, ids = wide(), text(300)
    runtime, _ = read(model, [ids[:1]])
    runtime.use("compiled")
    for token in ids[1:]:
        last = runtime.step(int(token)).clone()
    expected = cached(runtime, 300)
    for most in (7, 128, 192, 1000):
        monkeypatch.setattr(loop, "STRETCH", most)
        runtime, logits = read(model, [ids])
        assert torch.equal(logits[0], last), most
        assert all(torch.equal(*pair) for pair in zip(cached(runtime, 300), expected, strict=True)), most


@pytest.mark.parametrize("rows", [512, 40])
def test_texts_of_uneven_lengths_have_the_bits_of_each_alone(monkeypatch, rows):
    """Where so many rows at once make parts short, some texts end parts before others."""
    model, texts = wide(), [text(70, 1), text(1, 2), text(33, 3), text(16, 4)]
    alone = []
    for one in texts:
        runtime, logits = read(model, [one])
        alone.append((logits[0], cached(runtime, len(one))))
    monkeypatch.setattr(loop, "STRETCH_ROWS", rows)
    runtime, logits = read(model, texts)
    assert runtime.lengths.tolist() == [70, 1, 33, 16]
    for row, (one, (expected, store)) in enumerate(zip(texts, alone, strict=True)):
        assert torch.equal(logits[row], expected)
        assert all(torch.equal(*pair) for pair in zip(cached(runtime, len(one), row), store, strict=True))


def test_parts_are_of_equal_size_and_of_no_more_rows_than_told(monkeypatch):
    model, seen = wide(), []
    TransformersRuntime(model)  # the first of a kind is tried out
    run = loop.CompiledLoop._run
    monkeypatch.setattr(
        loop.CompiledLoop, "_run", lambda self, ids, *rest: seen.append(ids.shape) or run(self, ids, *rest)
    )
    read(model, [text(200)])
    read(model, [text(200), text(90)] * 4)
    read(model, [text(40)] * 40)
    assert seen == [(1, 100)] * 2 + [(8, 50)] * 4 + [(40, 14)] * 2 + [(40, 12)]


def test_only_last_tokens_have_logits(monkeypatch):
    """Words take a fifth of a small model's products."""
    model, sizes = wide(), []
    TransformersRuntime(model)  # the first of a kind is tried out
    run = loop.CompiledLoop._run
    monkeypatch.setattr(loop.CompiledLoop, "_run", lambda self, *rest: sizes.append(len(rest[3])) or run(self, *rest))
    read(model, [text(250), text(3), text(126)])  # the last ends with the first token of the second part
    assert sizes == [1, 2]


def test_behind_a_filled_cache_it_sees_what_the_cache_holds():
    model, ids = wide(), text(40)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids[None, :25]), past_key_values=cache, use_cache=True)
    runtime, logits = read(model, [ids], cache=cache)
    torch.testing.assert_close(logits[0], logits_of(model, ids), atol=CLOSE, rtol=CLOSE)
    runtime.commit([[]])
    assert runtime.hand_back() is cache
    assert cache.get_seq_length() == 40
    wanted = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids[None]), past_key_values=wanted, use_cache=True)
    for found, known in zip(cache.layers, wanted.layers, strict=True):
        torch.testing.assert_close(found.keys, known.keys, atol=CLOSE, rtol=CLOSE)
        torch.testing.assert_close(found.values, known.values, atol=CLOSE, rtol=CLOSE)


def test_the_compiled_step_reads_the_first_prompt():
    """It reads the weights as they lie: nothing has to be packed for one text."""
    runtime = TransformersRuntime(in_form(wide(), "affine4"), pack="always")
    assert runtime.routes == ("fused", "compiled", "compact", "stock")
    runtime.prefill([text(20)], 8)
    assert [*runtime.entered] == ["compiled"]


def test_packs_read_a_prompt_to_the_same_bits():
    model, ids = in_form(wide(), "affine4"), text(150)
    runtime, expected = read(model, [ids], pack="always")
    store = cached(runtime, 150)
    forget_knowledge()
    runtime = TransformersRuntime(model, pack="always")
    knowledge_of(runtime.fingerprint, runtime.routes).reading.default = "compact"
    assert torch.equal(runtime.prefill([ids], 8), expected)
    assert [*runtime.entered] == ["compact"]
    assert all(torch.equal(*pair) for pair in zip(cached(runtime, 150), store, strict=True))


def test_prompts_of_several_threads_have_the_bits_of_each_alone():
    model = wide()
    alone = [read(model, [text(200, seed)])[1] for seed in range(4)]
    loops = [TransformersRuntime(model) for _ in range(4)]
    found = {}

    def work(seed):
        runtime = loops[seed]
        runtime._lay_out(208)
        body = loop.CompiledLoop(model)
        found[seed] = body.read(text(200, seed)[None], np.array([199]), runtime._arena)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], alone[seed]) for seed in range(4))


def test_a_batch_goes_on_as_generate_does():
    model = wide()
    ids = torch.from_numpy(np.stack([text(30, 1), text(30, 2)]))
    expected = model.generate(ids, max_new_tokens=40, do_sample=False)[:, 30:]
    runtime, logits = read(model, list(ids.numpy()))
    found = [logits.argmax(-1)]
    while len(found) < 40:
        output = runtime.forward(DraftTree.stack([DraftTree.chain(int(token), []) for token in found[-1]]))
        runtime.commit([[0], [0]])
        found.append(output.logits[:, 0].argmax(-1))
    assert torch.equal(torch.stack(found, 1), expected)
