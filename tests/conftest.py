"""Fixtures that every family's tests share; what they are made of is in `helpers.tiny`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from helpers.tiny import TEMPLATE, WORDS, make_examples, make_llama, make_tokenizer

__all__ = ["TEMPLATE", "WORDS", "make_examples", "make_llama", "make_tokenizer"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def tiny_llama():
    return make_llama()


@pytest.fixture
def forget():
    return make_examples("forget", 16)


@pytest.fixture
def retain():
    return make_examples("retain", 20)
