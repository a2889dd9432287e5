"""The catalogue: complete, consistent, and never ahead of what is there."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import get_args

import pytest

from unwrite import catalog
from unwrite.catalog import reading
from unwrite.catalog.reading import SECTIONS, Kind
from unwrite.catalog.records import NetRecord
from unwrite.errors import MethodError, UnwriteError
from unwrite.reproduce.checks import Verdict

ROOT = Path(__file__).parent.parent
SYSTEMS, METHODS, STRATEGIES = catalog.systems(), catalog.methods(), catalog.strategies()
PARTS = catalog.parts()
MEMBERS = [(kind, record) for kind in catalog.KINDS[1:] for record in kind.own().values()]
VERDICTS = {*get_args(Verdict)} - {"too small for a verdict"}


def test_no_system_is_lost():
    """A new one adds to them."""
    assert len(SYSTEMS) >= 76


@pytest.mark.parametrize("path", sorted((ROOT / "src/unwrite/catalog").glob("*.toml")), ids=lambda path: path.stem)
def test_every_table_of_a_file_is_a_kind_and_every_file_is_read(path):
    """What the reader doesn't know it doesn't read."""
    assert path.stem in catalog.FILES
    assert set(catalog.tables(path.stem)) <= {*SECTIONS, *(kind.name for kind in catalog.KINDS)}


def test_a_slug_that_stands_twice_is_refused(monkeypatch):
    row = {"slug": "once", "entry": "unwrite.nets.small_vision:SmallCNN"}
    monkeypatch.setattr(reading, "tables", lambda name: {"twin": [row, row]} if name == "nets" else {})
    with pytest.raises(UnwriteError, match=r"catalog/nets.toml: the twin once stands twice. Rename one"):
        Kind("twin", NetRecord).own()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"entry": "a:b", "colour": "red"},
            r"catalog/nets.toml: x: 'colour' is no field. Known: slug, family, package, entry",
        ),
        ({}, r"catalog/nets.toml: x: entry is missing"),
        ({"entry": "a.b"}, r"catalog/nets.toml: x: entry is 'a.b'; write module:name"),
        ({"entry": "a:b:c"}, r"catalog/nets.toml: x: entry is 'a:b:c'; write module:name"),
        ({"entry": "a:b", "system": " "}, r"catalog/nets.toml: x: system is empty"),
    ],
)
def test_a_row_with_a_mistake_is_refused_with_its_file(row, message):
    with pytest.raises(UnwriteError, match=message):
        NetRecord.of("catalog/nets.toml", {"slug": "x", "family": "nets", **row})


def test_lists_become_tuples_and_so_a_record_can_be_a_key():
    assert len(set(METHODS.values())) == len(METHODS)


@pytest.mark.parametrize("slug", SYSTEMS)
def test_system_says_what_it_is_and_what_it_claims(slug):
    system = SYSTEMS[slug]
    assert all(isinstance(value, str) and value.strip() for value in (system.title, system.paper, system.claim))
    assert 2005 <= system.year <= 2030
    assert slug == slug.lower()
    assert " " not in slug


@pytest.mark.parametrize("slug", [slug for slug, system in SYSTEMS.items() if system.status == "done"])
def test_a_done_system_has_its_four_places(slug):
    system = SYSTEMS[slug]
    member = any(record.system == slug for _, record in MEMBERS)
    assert member or list((ROOT / "src/unwrite" / system.family).glob(f"**/{slug.replace('-', '_')}*")), (
        "implementation"
    )
    assert list(ROOT.glob(f"tests/**/test_{slug.replace('-', '_')}.py")), "tests"
    assert (ROOT / "src" / "unwrite" / "reproduce" / f"{slug.replace('-', '_')}.py").exists(), "experiment"
    assert system.verdict in VERDICTS, "result"


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "unwrite" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_every_stored_result_is_of_a_system_and_has_a_verdict(path):
    assert path.stem in SYSTEMS
    assert json.loads(path.read_text(encoding="utf-8"))["verdict"] in VERDICTS


def test_a_system_without_a_result_has_no_verdict():
    planned = next(system for system in SYSTEMS.values() if system.status == "planned" and system.result is None)
    assert planned.verdict is None


@pytest.mark.parametrize(("kind", "record"), MEMBERS, ids=lambda value: getattr(value, "slug", ""))
def test_a_member_is_there_and_of_a_known_system_of_its_family(kind, record):
    assert record.module.startswith("unwrite.")
    assert record.load() is getattr(importlib.import_module(record.module), record.name)
    assert record.system is None or SYSTEMS[record.system].family == record.family


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_is_what_its_record_says_without_importing_it(slug):
    record = METHODS[slug]
    cls = record.load()
    assert dataclasses.is_dataclass(cls)
    assert (record.kind, set(record.forgets)) == (cls.kind, set(cls.forgets))
    assert "forget set" in record.needs
    assert record.weights_changed == (record.kind != "guard")


def test_a_strategy_says_by_its_fields_whether_it_needs_a_draft_model():
    needs = {slug: record.needs for slug, record in STRATEGIES.items()}
    assert needs["draft-model"] == needs["rsd"] == ("draft model",)
    assert needs["prompt-lookup"] == needs["token-recycling"] == ()


@pytest.mark.parametrize("slug", PARTS)
def test_a_part_says_which_field_of_the_sampler_it_fills(slug):
    from unwrite.diffusion import base

    record = PARTS[slug]
    kind = {"propose": "Proposal", "commit": "CommitRule"}.get(record.kind, record.kind.capitalize())
    assert issubclass(record.load(), getattr(base, kind))
    assert dataclasses.is_dataclass(record.load())


@pytest.mark.parametrize(("field", "value"), [("exact", "roughly")])
def test_a_strategy_with_an_unknown_word_is_refused(field, value):
    with pytest.raises(UnwriteError, match=f"catalog/decode.toml: rsd: {field} is '{value}'; use one of"):
        dataclasses.replace(catalog.strategy("rsd"), **{field: value})


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(MethodError, match=r"unknown method 'npoo'. Did you mean 'npo'"):
        catalog.method("npoo")
    with pytest.raises(MethodError, match=r"unknown system 'uldd'. Did you mean 'uld'"):
        catalog.system("uldd")
    with pytest.raises(MethodError, match=r"unknown strategy 'token-recyling'. Did you mean 'token-recycling'"):
        catalog.strategy("token-recyling")
    with pytest.raises(MethodError, match=r"unknown method 'zzzz'. Known: "):
        catalog.method("zzzz")


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "trick"), ("forgets", ("smells",)), ("intent", "hope"), ("guarantee", "certain"), ("needs", ("luck",))],
)
def test_a_method_with_an_unknown_word_is_refused(field, value):
    word = value[0] if isinstance(value, tuple) else value
    with pytest.raises(UnwriteError, match=f"catalog/forget.toml: npo: {field} is '{word}'; use one of"):
        dataclasses.replace(catalog.method("npo"), **{field: value})


@pytest.mark.parametrize(("field", "value"), [("family", "magic"), ("status", "almost")])
def test_a_system_with_an_unknown_word_is_refused(field, value):
    with pytest.raises(UnwriteError, match=f": npo: {field} is '{value}'; use one of"):
        dataclasses.replace(catalog.system("npo"), **{field: value})


def test_what_leaves_the_weights_can_be_undone():
    with pytest.raises(UnwriteError, match=r"catalog/forget.toml: uld leaves the weights, so it is reversible"):
        dataclasses.replace(catalog.method("uld"), reversible=False)


@pytest.mark.parametrize("slug", catalog.benches())
def test_a_benchmark_is_a_sub_command_of_its_own(slug, capsys):
    from unwrite.cli import main

    main(["bench", slug, "--help"])
    assert f"unwrite bench {slug}" in capsys.readouterr().out
    main(["bench"])
    assert slug in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused_with_the_nearest():
    from unwrite.cli.bench import benches

    with pytest.raises(MethodError, match=r"unknown bench 'decoed'. Did you mean 'decode'"):
        benches("decoed")
