"""The catalogue: complete, consistent, and never ahead of what is there."""

import dataclasses
import importlib
import json
from importlib.resources import files
from pathlib import Path

import pytest

from unwrite import catalog
from unwrite.errors import MethodError, UnwriteError

ROOT = Path(__file__).parent.parent
SYSTEMS, METHODS, STRATEGIES = catalog.systems(), catalog.methods(), catalog.strategies()
PARTS = catalog.parts()
VERDICTS = {"reproduced", "partly", "not reproduced", "needs GPU"}


def test_there_are_seventy_six_systems():
    assert len(SYSTEMS) == 76


def test_every_slug_stands_once_in_the_file():
    text = files("unwrite").joinpath("catalog.toml").read_text(encoding="utf-8")
    assert text.count("[[system]]") == len(SYSTEMS)
    assert text.count("[[method]]") == len(METHODS)
    assert text.count("[[strategy]]") == len(STRATEGIES)
    assert text.count("[[part]]") == len(PARTS)


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
    by_method = any(record.system == slug for record in METHODS.values())
    family, name = ROOT / "src" / "unwrite" / system.family, slug.replace("-", "_")
    assert by_method or [*family.rglob(f"{name}.py"), *family.rglob(f"{name}/__init__.py")], "implementation"
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


@pytest.mark.parametrize("slug", METHODS)
def test_method_has_a_class_and_a_known_system(slug):
    record = METHODS[slug]
    assert dataclasses.is_dataclass(record.load())
    assert record.system is None or record.system in SYSTEMS
    assert "forget set" in record.needs
    assert record.weights_changed == (record.kind != "guard")


@pytest.mark.parametrize("slug", STRATEGIES)
def test_strategy_has_a_class_and_a_known_system(slug):
    record = STRATEGIES[slug]
    assert dataclasses.is_dataclass(record.load())
    assert record.system is None or SYSTEMS[record.system].family == "decode"


@pytest.mark.parametrize("slug", PARTS)
def test_part_is_of_the_kind_it_says_and_of_a_known_system(slug):
    from unwrite.diffusion import base

    record = PARTS[slug]
    kind = {"propose": "Proposal", "commit": "CommitRule"}.get(record.kind, record.kind.capitalize())
    assert issubclass(record.load(), getattr(base, kind))
    assert dataclasses.is_dataclass(record.load())
    assert record.system is None or SYSTEMS[record.system].family == "diffusion"


def test_a_part_of_an_unknown_kind_is_refused():
    with pytest.raises(UnwriteError, match=r"catalog.toml: threshold: kind is 'magic'; use one of"):
        dataclasses.replace(catalog.part("threshold"), kind="magic")


@pytest.mark.parametrize(("field", "value"), [("exact", "roughly"), ("runtimes", ("abacus",))])
def test_a_strategy_with_an_unknown_word_is_refused(field, value):
    word = value[0] if isinstance(value, tuple) else value
    with pytest.raises(UnwriteError, match=f"catalog.toml: rsd: {field} is '{word}'; use one of"):
        dataclasses.replace(catalog.strategy("rsd"), **{field: value})


def test_a_record_is_found_by_its_class():
    assert catalog.record_of(catalog.method("npo").load()).slug == "npo"
    with pytest.raises(MethodError, match="int has no record"):
        catalog.record_of(int)


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
    [("kind", "trick"), ("intent", "hope"), ("guarantee", "certain"), ("needs", ("luck",))],
)
def test_a_method_with_an_unknown_word_is_refused(field, value):
    word = value[0] if isinstance(value, tuple) else value
    with pytest.raises(UnwriteError, match=f"catalog.toml: npo: {field} is '{word}'; use one of"):
        dataclasses.replace(catalog.method("npo"), **{field: value})


@pytest.mark.parametrize(("field", "value"), [("family", "magic"), ("status", "almost")])
def test_a_system_with_an_unknown_word_is_refused(field, value):
    with pytest.raises(UnwriteError, match=f"catalog.toml: npo: {field} is '{value}'; use one of"):
        dataclasses.replace(catalog.system("npo"), **{field: value})


def test_suppression_that_leaves_the_weights_can_be_undone():
    with pytest.raises(UnwriteError, match="uld suppresses without changing weights, so it is reversible"):
        dataclasses.replace(catalog.method("uld"), reversible=False)


def test_every_system_of_a_method_is_in_the_forget_family():
    for record in METHODS.values():
        if record.system is not None:
            assert SYSTEMS[record.system].family == "forget"


def test_every_entry_is_a_module_of_unwrite():
    for record in METHODS.values():
        module, name = record.entry.split(":")
        assert module.startswith("unwrite.")
        assert hasattr(importlib.import_module(module), name)
