"""Fixtures that every family's tests share; what they are made of is in `helpers.tiny`."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from itertools import count
from pathlib import Path

import pytest

from helpers.collecting import keep
from helpers.short_answers import TextContext, room
from helpers.tiny import TEMPLATE, WORDS, make_examples, make_llama, make_tokenizer

__all__ = ["TEMPLATE", "WORDS", "make_examples", "make_llama", "make_tokenizer"]


LONG = Path(__file__).with_name("long.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks what `long.txt` names as slow; a name that is no test's is an error, or a test renamed would be in `make test` again."""
    named = {line for line in LONG.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
    found = {item.nodeid: item for item in items}
    for name in named & set(found):
        found[name].add_marker(pytest.mark.slow)
    read = {name.partition("::")[0] for name in found}
    gone = [
        name
        for name in sorted(named - set(found))
        if (file := name.partition("::")[0]) in read or not Path(file).exists()
    ]
    if gone and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"tests/long.txt names what is no test: {', '.join(gone)}. Rename or remove it there.")


def pytest_collection_finish():
    keep()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What the tests of a file have imported stays too."""
    if nextitem is None or nextitem.path != item.path:
        keep()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    folder, numbers = tmp_path_factory.mktemp("caches"), count()
    return lambda: folder / str(next(numbers))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """A cache for the fixtures of a module, which are made before a test has its own and would see the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("shared")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch):
    """A cache of the test's own, in a folder that only a test which caches something makes."""
    monkeypatch.setenv("UNWRITE_CACHE", str(_caches()))


@pytest.fixture(scope="session", autouse=True)
def _short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextContext, "room", room)
        yield


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
