"""Everything that is computed once and kept: a damaged entry is said, dropped and computed again, wherever it is read."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from conftest import WORDS, make_llama, make_tokenizer
from unwrite.beds import draft_files, drafts
from unwrite.data.images.sets import hub_images
from unwrite.decode.engine.llamacpp import runtime as llamacpp
from unwrite.decode.engine.llamacpp.check import Checked
from unwrite.decode.engine.llamacpp.trial import try_apart
from unwrite.decode.engine.planning.costs import SIZES
from unwrite.decode.engine.planning.curves import read_shape, write_shape
from unwrite.errors import Notice, noticing
from unwrite.models import save
from unwrite.runs import cache

SHAPE = tuple(float(1 + i) for i in range(len(SIZES)))
GOOD = {"rows": 21, "twin_from": 256, "twin_costs": 1.05, "shape": SHAPE}


@dataclass
class Kept:
    """One thing that is kept: how it is asked for, how often it was computed, and where it lies in the cache."""

    get: object
    computed: list = field(default_factory=list)
    kind: str = ""


@pytest.fixture(autouse=True)
def cache_beside(tmp_path, monkeypatch):
    """Where these tests look for what is kept."""
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def forward_costs(tmp_path, monkeypatch):
    kept = Kept(None)

    def get():
        if read_shape("some machine") is None:
            kept.computed.append(1)
            write_shape("some machine", SHAPE)
        return SHAPE

    kept.get = get
    return kept


def crash_trial(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    program = f"open({str(notes)!r}, 'a').write('ran ')"

    def get():
        try_apart(tmp_path / "some.gguf", 1, "some build", program)
        kept.computed[:] = notes.read_text().split()

    kept = Kept(get)
    return kept


def rows_check(tmp_path, monkeypatch):
    runtime = SimpleNamespace(fingerprint="f", path=Path("some.gguf"), _drop_context=lambda: None)
    monkeypatch.setattr(llamacpp, "check", lambda _: kept.computed.append(1) or Checked(**GOOD))
    kept = Kept(lambda: llamacpp.LlamaCppRuntime._checked(runtime), kind="llamacpp")
    return kept


def own_text(tmp_path, monkeypatch):
    target = save(make_llama(layers=1), tmp_path / "target", tokenizer=make_tokenizer())
    write = drafts._write
    monkeypatch.setattr(drafts, "_write", lambda *given: kept.computed.append(1) or write(*given))
    kept = Kept(lambda: drafts.own_text(target, length=4, temperature=0.0, questions=[" ".join(WORDS[6:9])]).hash)
    return kept


def draft_ggufs(tmp_path, monkeypatch):
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF of the target")
    monkeypatch.setattr(draft_files, "find_spec", lambda name: True)
    monkeypatch.setattr(draft_files, "bundled_names", lambda: ["tiny"])
    monkeypatch.setattr(draft_files, "model_folder", lambda name: tmp_path)
    monkeypatch.setattr(draft_files, "gguf_file", lambda name: source)
    monkeypatch.setattr(draft_files, "truncated_draft", lambda name: tmp_path / "draft")
    monkeypatch.setattr(draft_files, "requantise", lambda file, to, out: out.write_bytes(file.read_bytes() + b" small"))
    monkeypatch.setattr(
        draft_files,
        "as_gguf",
        lambda draft, out, like: kept.computed.append(1) or out.write_bytes(b"GGUF of the draft"),
    )

    def get():
        pairs = draft_files.bench_files("tiny").gguf
        return {name: [file.read_bytes() for file in pair] for name, pair in pairs.items()}

    kept = Kept(get)
    return kept


KEEPERS = [forward_costs, crash_trial, rows_check, own_text, draft_ggufs]
# How often one asking computes: own text asks for two batches of one row, greedy and "sampled" at 0.
TIMES = {"own_text": 2}


def entries(root: Path) -> list[Path]:
    """The files that hold values; sums and locks lie beside them."""
    return sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".lock", ".sums"))


@pytest.mark.parametrize("how", ["empty", "cut", "zeroed", "other"])
@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: keeper.__name__)
def test_a_damaged_entry_is_noticed_dropped_and_computed_again(keeper, how, tmp_path, monkeypatch):
    kept = keeper(tmp_path, monkeypatch)
    first, times = kept.get(), TIMES.get(keeper.__name__, 1)
    assert len(kept.computed) == times
    assert kept.get() == first
    assert len(kept.computed) == times
    files = entries(tmp_path / "cache" / kept.kind)
    assert files
    again = len(kept.computed)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(
            {"empty": b"", "cut": content[:-3], "zeroed": bytes(len(content)), "other": b'{"a": [1]}'}[how]
        )
        with noticing() as said, pytest.warns(Notice):
            assert kept.get() == first
        assert ["was damaged" in one for one in said] == [True]
        again += 1
        assert len(kept.computed) == again
        assert file.read_bytes() == content
        assert kept.get() == first
        assert len(kept.computed) == again


@pytest.mark.parametrize("how", ["no folder", "full"])
@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: keeper.__name__)
def test_a_cache_that_cannot_be_written_is_slow_and_no_more(keeper, how, tmp_path, monkeypatch):
    kept = keeper(tmp_path, monkeypatch)
    if how == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "file" / "cache"))
    else:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        for name in ("write_text", "new_folder"):
            monkeypatch.setattr(cache, name, full)
    with pytest.warns(Notice, match="can't be written"):
        first = kept.get()
    with pytest.warns(Notice, match="can't be written"):
        assert kept.get() == first
    assert len(kept.computed) == 2 * TIMES.get(keeper.__name__, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "rows": 0}, {**GOOD, "rows": 64}, {**GOOD, "rows": True}, {**GOOD, "rows": 2.0}, {**GOOD, "twin_from": -1},
        {**GOOD, "twin_costs": 0}, {**GOOD, "twin_costs": "inf"}, {**GOOD, "shape": SHAPE[1:]},
        {**GOOD, "shape": (0.0, *SHAPE[1:])}, {"rows": 3}, [], None,
    ],
)  # fmt: skip
def test_a_check_that_is_none_is_made_again(bad, tmp_path, monkeypatch):
    """Sealed as it should be, and yet no result: as another version may have kept."""
    kept = rows_check(tmp_path, monkeypatch)
    assert kept.get() == Checked(**GOOD)
    (file,) = (tmp_path / "cache" / "llamacpp").iterdir()
    cache.store_json(("llamacpp",), file.name.removesuffix(".sealed.json"), bad)
    with pytest.warns(Notice, match="was damaged"):
        assert kept.get() == Checked(**GOOD)
    assert len(kept.computed) == 2


@pytest.mark.parametrize(
    "bad", [{"sizes": [1, 2], "shape": SHAPE}, {"sizes": SIZES, "shape": (*SHAPE[1:], 1e999)}, {}, "no"]
)
def test_costs_that_are_none_are_dropped(bad, tmp_path):
    write_shape("some machine", SHAPE)
    (file,) = (tmp_path / "cache" / "forward-costs").iterdir()
    cache.store_json(("forward-costs",), file.name.removesuffix(".sealed.json"), bad)
    with pytest.warns(Notice, match="was damaged"):
        assert read_shape("some machine") is None
    assert not file.exists()


def test_an_entry_of_the_benchmarks_files_that_lacks_one_is_made_again(tmp_path, monkeypatch):
    kept = draft_ggufs(tmp_path, monkeypatch)
    first = kept.get()
    (home,) = [path for path in (tmp_path / "cache" / "bench-gguf").iterdir() if path.is_dir()]
    (home / "draft-q8_0.gguf").unlink()
    cache.seal(home)
    with pytest.warns(Notice, match=r"draft-q8_0\.gguf is not there"):
        assert kept.get() == first


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of pictures, and the place where the datasets library prepares it."""
    import datasets

    home = tmp_path / "prepared"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(draw.integers(255, size=(8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "set" / split / f"{i}.png"
            )
        (tmp_path / "set" / split / "metadata.csv").write_text("file_name,label\n0.png,0\n1.png,1\n")

    def get():
        made = hub_images(tmp_path / "set", label="label", size=8)
        return made.train.hash, made.test.hash

    return home, get


def test_what_the_datasets_library_prepared_is_prepared_again_when_damaged(pictures):
    home, get = pictures
    first = get()
    files = sorted(path for path in home.rglob("*") if path.suffix in (".arrow", ".json"))
    assert {path.suffix for path in files} == {".arrow", ".json"}
    for file in files:
        content = file.read_bytes()
        for bad in (b"", content[:-3], content[: len(content) // 2], bytes(len(content)), b'{"a":1}'):
            file.write_bytes(bad)
            with pytest.warns(Notice, match="can't be used .*prepared"):
                assert get() == first
        file.write_bytes(content)


def test_pictures_are_prepared_for_this_process_alone_where_the_library_cannot_write(pictures, monkeypatch):
    home, get = pictures
    first = get()
    import datasets

    (home.parent / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home.parent / "file" / "cache")
    with pytest.warns(Notice, match="each time"):
        assert get() == first


@pytest.mark.parametrize("error", [ValueError("Unknown split"), ConnectionError("no network")])
def test_rows_that_are_not_there_are_not_looked_for_twice(error, pictures, monkeypatch):
    import datasets

    from unwrite.errors import DataError

    calls = []

    def fails(*given, **options):
        calls.append(options)
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=str(error)):
        pictures[1]()
    assert len(calls) == 1
