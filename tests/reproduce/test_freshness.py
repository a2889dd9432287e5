"""Stored results are of today's code, or stand in the one list of those that are not."""

import json
from importlib.resources import files
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from unwrite import catalog
from unwrite.cli import demo, main
from unwrite.cli.pages import tables
from unwrite.errors import MethodError
from unwrite.reproduce import freshness
from unwrite.reproduce.freshness import DEMO, MARK, code, footnote, hashes, marked, stale, staleness

TEXT = '''
"""What it is."""
def scaled(x, by=2):
    """Twice as much."""
    return x * by  # always
'''


def stored():
    """{system or "demo": its stored result}."""
    home = files("unwrite")
    results = {path.name[:-5]: path for path in home.joinpath("results").iterdir() if path.name.endswith(".json")}
    results[DEMO] = home.joinpath("bench", "results", "demo.json")
    return {slug: json.loads(path.read_text(encoding="utf-8")) for slug, path in results.items()}


def test_the_list_of_stale_results_is_exactly_what_is_stale():
    """Fails for a result whose code changed, and for a result in the list that was measured again: edit stale.toml."""
    why = {slug: staleness(slug, result) for slug, result in stored().items()}
    assert {slug: reason for slug, reason in why.items() if reason is not None} == stale()


def fresh(slug="ssd", **changes):
    return {"commit": "0" * 40, "hashes": hashes(slug)} | changes


def test_a_result_of_todays_code_is_fresh():
    assert staleness("ssd", fresh()) is None


@pytest.mark.parametrize("part", ["experiment", "method", "bed"])
def test_a_result_whose_code_changed_is_stale(part):
    result = fresh(hashes=hashes("ssd") | {part: "0" * 16})
    assert staleness("ssd", result) == f"its {part} changed since"


def test_a_result_without_hashes_or_from_a_changed_checkout_is_stale():
    assert staleness("ssd", fresh(hashes={})) == "before hashes were stored"
    assert staleness("ssd", fresh(commit="abcdefgh-dirty")) == "dirty checkout abcdefg"
    assert staleness("ssd", fresh(commit=None)) == "outside a checkout"


@pytest.mark.parametrize(
    ("old", "new"),
    [("  # always", ""), ('"""What it is."""', ""), ("Twice as much.", "By a factor."), ("x * by", "(x*by)")],
)
def test_comments_docstrings_and_formatting_change_no_hash(old, new):
    assert code(TEXT.replace(old, new)) == code(TEXT)


@pytest.mark.parametrize(
    ("old", "new"), [("by=2", "by=3"), ("x * by", "x + by"), ("scaled", "grown"), ("by=2", "by='2'")]
)
def test_what_a_module_does_changes_its_hash(old, new):
    assert code(TEXT.replace(old, new)) != code(TEXT)


def watched(monkeypatch, slug):
    """The modules that each hash is made of."""
    seen = []
    monkeypatch.setattr(freshness, "_hash", lambda modules: seen.append({*modules}) or "")
    hashes(slug)
    return seen


def test_a_method_is_what_the_experiment_takes_from_the_families_and_the_systems_records(monkeypatch):
    experiment, method, _ = watched(monkeypatch, "uld")
    assert experiment == {"unwrite.reproduce.uld"}
    assert {"unwrite.forget.uld", "unwrite.forget.npo"} <= method  # taken from the package, which hands them on


@pytest.mark.parametrize("slug", ["sparse", "rsd", "credit"])
def test_all_entries_of_the_catalogue_that_are_a_systems_count(monkeypatch, slug):
    """Methods, strategies and parts alike, whether the experiment imports them or not."""
    records = [*catalog.methods().values(), *catalog.strategies().values(), *catalog.parts().values()]
    recorded = {record.entry.split(":")[0] for record in records if record.system == slug}
    monkeypatch.setattr(freshness, "_imported", lambda module: ())
    _, method, _ = watched(monkeypatch, slug)
    assert method == recorded
    assert recorded


def test_a_bed_is_all_that_its_modules_take_from_beds(monkeypatch):
    _, _, bed = watched(monkeypatch, "npo")
    assert {"unwrite.beds.authors", "unwrite.beds.synthetic", "unwrite.beds.language"} <= bed
    assert all(name.startswith("unwrite.beds.") for name in bed)


def test_data_that_lies_beside_a_bed_counts(monkeypatch):
    counted = []
    monkeypatch.setattr(freshness, "hash_file", lambda path: counted.append(path.name) or "")
    hashes("ssd")
    assert counted == []
    hashes("credit")
    assert "model.safetensors" in counted


def test_a_planned_system_has_no_hashes():
    planned = next(
        slug
        for slug, system in catalog.systems().items()
        if system.status == "planned" and find_spec(f"unwrite.reproduce.{slug.replace('-', '_')}") is None
    )
    with pytest.raises(MethodError, match=f"{planned} is planned"):
        hashes(planned)


def test_tables_mark_what_is_to_be_measured_again(monkeypatch):
    monkeypatch.setattr(freshness, "stale", lambda: {"ssd": "its bed changed since"})
    assert marked("ssd", "partly") == f"partly {MARK}"
    assert marked("npo", "partly") == "partly"
    assert footnote(["npo"]) is None
    assert footnote(["npo", "ssd"]).startswith(MARK)
    table = tables.measured()
    assert table.count(MARK) == 2
    assert table.splitlines()[-1] == footnote(["ssd"])


def test_the_demos_table_is_marked_too(monkeypatch):
    monkeypatch.setattr(freshness, "stale", lambda: {"demo": "before hashes were stored"})
    assert tables.demo().splitlines()[-1] == footnote(["demo"])
    monkeypatch.setattr(freshness, "stale", dict)
    assert MARK not in tables.demo()


def test_the_lists_of_systems_and_methods_mark_them_too(monkeypatch, capsys):
    monkeypatch.setattr(freshness, "stale", lambda: {"ssd": "its bed changed since"})
    main(["systems"])
    out = capsys.readouterr().out
    assert out.count(MARK) == 2
    assert footnote(["ssd"]) in out
    for command in (["methods"], ["methods", "ssd"]):
        main(command)
        out = capsys.readouterr().out
        assert f"partly {MARK}" in out
        assert footnote(["ssd"]) in out
    main(["methods", "npo"])
    assert MARK not in capsys.readouterr().out
    main(["systems", "--json"])
    rows = {row["slug"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["ssd"]["stale"], rows["npo"]["stale"]) == ("its bed changed since", None)


def test_a_stored_demo_says_what_code_made_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    report = SimpleNamespace(columns={"after": []}, json=lambda: {"attacks": []})
    demo._store(report, "npo", "target reached", {"unlearning": 2.0})
    demo._store(report, "smooth", "target reached", {"unlearning": 1.0})
    second = json.loads((tmp_path / "bench" / "results" / "demo-npo.json").read_text())
    assert (second["method"], second["seconds"]) == ("npo", {"unlearning": 2.0})
    result = json.loads((tmp_path / "bench" / "results" / "demo.json").read_text())
    assert (result["method"], result["seconds"]) == ("smooth", {"unlearning": 1.0})
    monkeypatch.undo()
    assert staleness(DEMO, result | {"commit": "0" * 40}) is None


def test_the_demos_figures_stand_beside_their_aims_and_the_second_best(monkeypatch):
    def record(paraphrases, relearned, seconds):
        figures = {name: {"before": 0.5, "after": 0.96} for name in tables.DEMO if name not in ("relearned", "minutes")}
        figures["forget_paraphrase_probability"] = {"before": 0.4, "after": paraphrases}
        curves = {role: [{"unseen": 0.0}, {"unseen": relearned}] for role in ("before", "after")}
        return {"figures": figures, "attacks": [{"curves": curves}], "seconds": {"audit": seconds, "unlearning": 60.0}}

    results = {"demo": record(0.039, 0.15, 300.0), "demo-npo": record(0.041, 0.2, 30.0)}
    monkeypatch.setattr(tables, "stored_result", results.get)
    shown = tables.demo_short()
    assert "| the same, asked in other words | 0.400 | 0.039 | ≤ 0.040 | 0.041 |" in shown
    assert "| minutes on two cores |  | 6.000 | ≤ 6.000 | 1.500 |" in shown
    assert "Every aim is met." in shown
    results["demo"] = record(0.041, 0.151, 301.0)
    assert "3 of 5 aims are missed." in tables.demo_short()
    results["demo"]["figures"]["general_rouge"]["after"] = 0.949
    del results["demo-npo"]
    assert "4 of 5 aims are missed." in tables.demo_short()
