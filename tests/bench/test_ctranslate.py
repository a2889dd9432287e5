"""CTranslate2 as a peer: what is asked of it, and that it isn't needed."""

import os
import sys
import time
import types
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import make_tokenizer
from unwrite.bench import ctranslate
from unwrite.bench.ctranslate import OnCTranslate2, generators


class Generator:
    """Writes the prompt's words again, and notes what it was asked."""

    slow = 0  # threads that it is slow with

    def __init__(self, *where, **how):
        self.where, self.how, self.asked = where, how, {}

    def generate_batch(self, texts, callback, **options):
        self.asked = {"texts": texts, **options}
        if self.how.get("intra_threads") == self.slow:
            time.sleep(0.02)
        ids = list(range(options["max_length"]))
        assert [callback(types.SimpleNamespace(token_id=one)) for one in ids] == [False] * len(ids)
        return [types.SimpleNamespace(sequences_ids=[ids])]


@pytest.fixture
def engine(monkeypatch):
    converted = []

    class TransformersConverter:
        def __init__(self, folder):
            self.folder = folder

        def convert(self, target):
            converted.append((self.folder, target))

    package, inner, seeds = types.ModuleType("ctranslate2"), types.ModuleType("ctranslate2.converters"), []
    package.Generator, package.set_random_seed, inner.TransformersConverter = (
        Generator,
        seeds.append,
        TransformersConverter,
    )
    monkeypatch.setitem(sys.modules, "ctranslate2", package)
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", inner)
    monkeypatch.setattr(ctranslate, "find_spec", lambda name: True)
    return types.SimpleNamespace(converted=converted, seeds=seeds)


@pytest.mark.parametrize(("slow", "best"), [(1, 3), (3, 1)])
def test_it_stands_in_both_forms_on_the_same_weights_and_the_threads_it_is_fastest_with(
    engine, monkeypatch, slow, best
):
    monkeypatch.setattr(Generator, "slow", slow)
    with generators(Path("somewhere"), 3, make_tokenizer()) as found:
        assert {name: one.how["compute_type"] for name, one in found.items()} == {
            "CTranslate2, float32": "float32",
            "CTranslate2, int8": "int8",
        }
        assert all(one.how["intra_threads"] == best for one in found.values())
        ((folder, target),) = engine.converted
        assert folder == "somewhere"
        assert {one.where for one in found.values()} == {(target,)}


@pytest.mark.parametrize(("temperature", "top_k", "used"), [(0.0, 1, 1.0), (0.7, 50, 0.7)])
def test_it_writes_so_many_tokens_after_the_prompt_and_never_ends_early(engine, temperature, top_k, used):
    generator, tokenizer = Generator(), make_tokenizer()
    sample = OnCTranslate2(generator, tokenizer)([5, 6, 7], 4, temperature, seed=9)
    assert sample.ids == (0, 1, 2, 3)
    assert 0 < sample.first[0] <= sample.seconds
    assert sample.first[1] == 1
    assert engine.seeds == [9]
    assert generator.asked == {
        "texts": [tokenizer.convert_ids_to_tokens([5, 6, 7])],
        "max_length": 4,
        "end_token": [],
        "sampling_topk": top_k,
        "sampling_temperature": used,
        "include_prompt_in_result": False,
    }


def test_without_it_there_is_no_such_peer(monkeypatch):
    monkeypatch.setattr(ctranslate, "find_spec", lambda name: None)
    with ExitStack() as stack:
        assert stack.enter_context(generators(Path("somewhere"), 1, make_tokenizer())) == {}


def test_its_threads_wait_as_its_own_library_has_them_wait(engine, monkeypatch):
    class Loading(types.ModuleType):
        def __getattr__(self, name):
            if name != "Generator":
                raise AttributeError(name)
            seen.append({one: os.environ.get(one) for one in ctranslate.WAITING})
            return Generator

    seen = []
    package = Loading("ctranslate2")
    package.set_random_seed = engine.seeds.append
    monkeypatch.setitem(sys.modules, "ctranslate2", package)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with generators(Path("somewhere"), 1, make_tokenizer()):
        pass
    assert seen[0] == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None}
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "GOMP_SPINCOUNT" not in os.environ
