"""The comparison of caches: what is counted, who is beside whom, and what a refusal leaves of the rest."""

import json
import pydoc_data.topics
from dataclasses import dataclass

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import DynamicCache

from conftest import make_llama
from unwrite.beds.language import small_tokenizer
from unwrite.beds.long_texts import needles, passages
from unwrite.bench import caches
from unwrite.bench.caches import FULL, CacheContender, bytes_of, contenders, measured, run_bench
from unwrite.bench.caches_report import cells, picture
from unwrite.cache import HeadGroups
from unwrite.cli import main
from unwrite.errors import MethodError, ModelError
from unwrite.models.loading import Loaded


@pytest.fixture(scope="module")
def loaded():
    tokenizer = small_tokenizer([text[:300] for text in pydoc_data.topics.topics.values()], size=400)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = make_llama(vocab=len(tokenizer), layers=2, hidden=128, max_position_embeddings=4096, head_dim=64)
    return Loaded(model, tokenizer, "tiny")


@pytest.fixture(scope="module")
def row(loaded):
    text, lists = passages(loaded.tokenizer, 1, 80), needles(loaded.tokenizer, 2, 400)
    whole = CacheContender(FULL, caches._dynamic, "transformers")
    return measured(loaded.model, whole, text, 64, lists)


def test_the_full_cache_takes_what_its_numbers_take_and_is_as_fast_as_itself(row):
    assert row["bytes"] == 2 * 2 * 2 * 64 * 64 * 4  # keys and values, layers, heads, tokens, numbers, bytes of one
    assert row["of_16_bit"] == 2.0
    assert row["step_ratio_low"] <= row["step_ratio"] <= row["step_ratio_high"]
    assert 0.3 < row["step_ratio"] < 3


def test_perplexity_is_of_the_tokens_behind_the_prompt(row, loaded):
    text = passages(loaded.tokenizer, 1, 80)
    with torch.no_grad():
        scores = loaded.model(text).logits.log_softmax(-1)[0]
    losses = -scores[64:-1].gather(1, text[0, 65:, None])
    assert row["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)


def test_needles_are_counted_where_all_of_the_number_is_written(loaded):
    lists = needles(loaded.tokenizer, 2, 400)
    contender = CacheContender(FULL, caches._dynamic)
    wrote = []
    for ids, mask in zip(lists.input_ids, lists.attention_mask, strict=True):
        ids = ids[mask.bool()][None]
        out = loaded.model.generate(
            ids, max_new_tokens=lists.answers.shape[1], do_sample=False, pad_token_id=0, eos_token_id=None
        )
        wrote.append(out[0, ids.shape[1] :])
    known = type(lists)(lists.input_ids, lists.attention_mask, torch.stack(wrote))
    assert [caches._found(loaded.model, contender, known, one) for one in (0, 1)] == [True, True]
    known.answers[1, -1] += 1
    assert not caches._found(loaded.model, contender, known, 1)


def test_all_ours_are_beside_the_full_cache_in_fewer_bytes(loaded):
    text, lists = passages(loaded.tokenizer, 1, 336), needles(loaded.tokenizer, 1, 400)
    shape = (2, 2)
    groups = HeadGroups(tuple(tuple(range(shape[1])) for _ in range(shape[0])))
    named = [one for one in contenders(320, groups) if one.peer is None]
    assert [one.name.split(":")[0].split(",")[0] for one in named] == [
        "rotatekv", "rotatekv", "rotatekv", "rounding to nearest", "mustafar", "mustafar", "uncomp", "snapkv",
    ]  # fmt: skip
    rows = [measured(loaded.model, one, text, 320, lists) for one in named]
    sizes = {one["cache"]: one["of_16_bit"] for one in rows}
    assert all(size < 2 for size in sizes.values())
    assert sizes["rotatekv:bits=2"] < sizes["rotatekv:bits=3"] < sizes["rotatekv:bits=4"] < 1


def test_storages_are_counted_once_and_whole_whatever_wraps_them():
    cache = DynamicCache()
    base = torch.zeros(10, 10)

    @dataclass
    class Wrapped:
        inner: object

    class Layer:
        pass

    layer = Layer()
    layer.a, layer.b = base[:1], [base[1:], {"deep": (Wrapped(torch.zeros(3)), "text")}]
    layer.moment = torch.zeros(999)
    cache.layers = [layer]
    assert bytes_of(cache) == 4 * (100 + 3)


def test_a_contender_that_refuses_leaves_the_rest(loaded, monkeypatch):
    def refuse(model):
        raise ModelError("no such model")

    monkeypatch.setattr(
        caches,
        "contenders",
        lambda length, groups: [CacheContender("one", refuse), CacheContender(FULL, caches._dynamic)],
    )
    seen = []
    rows = run_bench(loaded, {256: 1}, 8, after=lambda rows: seen.append(len(rows)), calibration=2)
    assert rows[0] == {"cache": "one", "peer": None, "tokens": 256, "refused": "one: no such model"}
    assert rows[1]["cache"] == FULL
    assert seen == [1, 2]
    assert cells(rows, 256)[0] == ["one", "refused", "-", "-", "-", "-"]
    assert len(picture(rows)["data"]["values"]) == 1


def test_a_peer_that_fails_leaves_the_rest_and_one_of_ours_that_fails_does_not(loaded, monkeypatch):
    def fail(model):
        raise RuntimeError("349 must match 350\nmore")

    def beside(peer):
        monkeypatch.setattr(
            caches,
            "contenders",
            lambda length, groups: [CacheContender("one", fail, peer), CacheContender(FULL, caches._dynamic)],
        )
        return run_bench(loaded, {256: 1}, 8, calibration=2)

    rows = beside("hqq 0.2.8")
    assert rows[0]["refused"] == "one: RuntimeError: 349 must match 350"
    assert rows[1]["cache"] == FULL
    with pytest.raises(RuntimeError):
        beside(None)


def test_lengths_beyond_the_model_and_too_few_tokens_are_refused(loaded):
    with pytest.raises(MethodError, match="fits into a model of 4,096 positions"):
        run_bench(loaded, {4096: 1})
    with pytest.raises(MethodError, match="too few to time"):
        run_bench(loaded, {128: 1}, 4)


@pytest.mark.parametrize("lengths", ["many", "64", "256,"])
def test_lengths_are_whole_numbers_of_some_size(lengths, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "cache", "--lengths", lengths])
    assert "--lengths" in capsys.readouterr().err


def test_the_command_writes_its_rows_and_shows_a_table_a_length(loaded, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("unwrite.models.load", lambda *given, **more: loaded)
    monkeypatch.setattr(
        caches, "contenders", lambda length, groups: [CacheContender(FULL, caches._dynamic, "transformers")]
    )
    monkeypatch.setattr(caches, "SCORED", 8)
    monkeypatch.setattr(run_bench, "__defaults__", ({}, 8, lambda rows: None, 2))
    main(["bench", "cache", "--lengths", "512,256", "--out", str(tmp_path / "cache.json")])
    stored = json.loads((tmp_path / "cache.json").read_text())
    assert [one["tokens"] for one in stored["rows"]] == [256, 512]
    assert {"commit", "machine", "versions", "threads", "model"} <= set(stored)
    shown = capsys.readouterr().out
    assert "256 tokens" in shown
    assert "2.000" in shown
