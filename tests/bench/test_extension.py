"""A stored comparison is extended by further methods: the others stay as they were, and all are compared anew."""

import copy
import json

import pytest
from sweeping import nothing_to_train

from helpers.small_texts import TINY_TEXT
from unwrite.beds.text_beds import BEDS
from unwrite.bench import forget as bench
from unwrite.bench import sweep as sweeps
from unwrite.bench.extension import extend, extendable
from unwrite.bench.forget import QUALITY, UTILITY, run
from unwrite.bench.forget_report import settings_table, table
from unwrite.cli import main
from unwrite.cli.pages import compared
from unwrite.errors import MethodError, RunError

FIGURES = {
    "before": (-6.0, 0.8),
    "retrained": (0.0, 0.8),
    "npo": (-3.0, 0.79),
    "wga": (-2.0, 0.78),
    "uld": (-1.0, 0.77),
}
SUITES = ("tofu",)


@pytest.fixture
def counted(monkeypatch):
    """Trials whose figures are known, and which ran."""
    ran = []

    def row(trial):
        one = trial.contender
        ran.append(one.name)
        quality, utility = FIGURES[one.name.partition(":")[0]]
        values = {"forget_quality_log10": quality + trial.seed / 8, "model_utility": utility, "forget_rouge": 0.5}
        if trial.contender.kind == "reference":
            values["forget_quality_log10"] = quality
        names = {"key": trial.key, "bed": trial.bed.name, "contender": one.name, "kind": one.kind, "seed": trial.seed}
        return names | {"values": values, "cost": 1.0, "seconds": None if one.method is None else 0.5}

    monkeypatch.setattr(sweeps, "_prepare", nothing_to_train)
    monkeypatch.setattr(sweeps, "run_trial", row)
    monkeypatch.setattr(bench, "grid", lambda: {"npo": [{}, {"rate": 2.5}], "alu": "it is left out"})
    return ran


def compared_on(tmp_path, *methods, seeds=2):
    return run(TINY_TEXT, seeds, tmp_path / f"{'-'.join(methods)}.jsonl", methods, suites=SUITES)


def stored(report):
    """As it is read from a file."""
    return json.loads(json.dumps(report))


def added(report, tmp_path, *methods, seeds=2, **options):
    return extend(report, TINY_TEXT, seeds, tmp_path / "added.jsonl", methods, suites=SUITES, **options)


def test_it_comes_out_as_if_all_had_been_compared_at_once(counted, tmp_path):
    whole = stored(compared_on(tmp_path, "npo", "wga", "uld"))
    first = stored(compared_on(tmp_path, "npo", "wga"))
    counted.clear()
    report = stored(added(first, tmp_path, "uld"))
    assert {name.partition(":")[0] for name in counted} == {"before", "retrained", "uld"}
    (extension,) = report.pop("extensions")
    assert extension["methods"] == ["uld"]
    assert {**report, "seconds": 0} == {**whole, "seconds": 0}
    best = next(entry for entry in report["entries"] if entry["method"] == "uld")
    assert (best["rank"], best["better_than"]) == (1, ["npo", "wga"])


def test_a_stopped_extension_goes_on(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    once = added(first, tmp_path, "wga")
    counted.clear()
    again = added(first, tmp_path, "wga")
    assert counted == []
    assert [entry["method"] for entry in again["entries"]] == [entry["method"] for entry in once["entries"]]


def test_what_was_stored_stays_as_it_was_and_can_be_extended_again(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    kept = copy.deepcopy(first)
    second = added(first, tmp_path, "wga")
    assert first == kept
    third = added(stored(second), tmp_path, "uld")
    assert [one["methods"] for one in third["extensions"]] == [["wga"], ["uld"]]
    before, now = ({row["contender"]: row for row in one["tuning"]} for one in (first, third))
    assert {name: now[name] for name in before} == before
    assert {*now} - {*before} == {"wga", "uld"}
    assert len(table(third)) == 2 + 5
    assert len(settings_table(third)) == 2 + len(now)


def test_reasons_for_which_methods_are_left_out_are_brought_up_to_date(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo")) | {"left_out": {"wga": "it was refused", "rocr": "no name"}}
    then = {"contender": "wga", "chosen": False, "error": "it was refused", QUALITY: None, UTILITY: None}
    first["tuning"] = [*first["tuning"], then]
    report = added(first, tmp_path, "wga", "alu")
    (now,) = (row for row in report["tuning"] if row["contender"] == "wga")
    assert "error" not in now
    assert report["left_out"] == {"rocr": "no name", "alu": "it is left out"}
    assert report["extensions"][0]["methods"] == ["wga"]


def test_without_names_all_that_are_not_in_it_are_tried(counted, tmp_path, monkeypatch):
    monkeypatch.setattr("unwrite.catalog.methods", lambda: {n: METHODS[n] for n in ("npo", "wga", "uld", "scrub")})
    report = extend(stored(compared_on(tmp_path, "npo")), TINY_TEXT, 2, tmp_path / "a.jsonl", suites=SUITES)
    assert report["extensions"][0]["methods"] == ["wga", "uld"]


METHODS = bench.catalog.methods()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bed": "elsewhere"}, "compared on elsewhere, and the bed is tiny text"),
        ({"suites": ["tofu", "removal"]}, "audited by tofu, removal"),
        ({"seeds": [0]}, "seeds is 2, and what is stored was compared with seeds 0. Give those"),
        (
            {"rule": "the best, on elsewhere"},
            'chosen by "the best, on elsewhere", and these would be by "best forget quality',
        ),
    ],
)
def test_another_bed_suites_seeds_or_rule_are_refused_before_anything_is_measured(counted, tmp_path, changed, said):
    first = stored(compared_on(tmp_path, "npo")) | changed
    counted.clear()
    with pytest.raises(MethodError, match=said):
        added(first, tmp_path, "wga")
    assert counted == []


def test_another_bound_for_equal_utilities_is_refused(counted, tmp_path):
    with pytest.raises(RunError, match=r"within 0\.1 for equal, and today's bound is 0\.03"):
        added(stored(compared_on(tmp_path, "npo")) | {"equal": 0.1}, tmp_path, "wga")


def test_a_method_that_is_in_it_is_refused(counted, tmp_path):
    with pytest.raises(MethodError, match="npo is in what is stored already"):
        added(stored(compared_on(tmp_path, "npo")), tmp_path, "wga", "npo")


def test_references_that_differ_are_refused_before_any_method_runs_and_the_first_is_named(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    entry = next(one for one in first["entries"] if one["contender"] == "retrained")
    entry["model_utility"]["mean"] *= 1 + 1e-12  # the rounding of a mean
    added(first, tmp_path, "wga")
    entry["model_utility"]["mean"] = 0.8001
    counted.clear()
    said = r"model_utility of the reference retrained is 0\.8, and what is stored has 0\.8001"
    with pytest.raises(RunError, match=said):
        extend(first, TINY_TEXT, 2, tmp_path / "other.jsonl", ["wga"], suites=SUITES)
    assert {*counted} == {"before", "retrained"}


def test_a_figure_that_one_of_the_two_has_not_is_refused(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    for name, value, said in (
        ("forget_rouge", None, r"forget_rouge of the reference before is 0\.5, and what is stored has not there"),
        ("begun", {"mean": 0.1, "sd": 0.0}, r"begun of the reference before is not there, and what is stored has 0\.1"),
    ):
        changed = copy.deepcopy(first)
        changed["entries"][0][name] = value
        with pytest.raises(RunError, match=said):
            added(changed, tmp_path, "wga")


def test_references_on_the_tuning_authors_that_differ_are_refused(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    next(row for row in first["tuning"] if row["contender"] == "before")["model_utility"] = 0.81
    with pytest.raises(RunError, match="model_utility of the reference before on the tuning authors"):
        added(first, tmp_path, "wga")


def test_settings_taken_over_are_extended_by_settings_taken_over(counted, tmp_path):
    entries = [{"contender": name} for name in ("npo:rate=2.5", "wga")]
    other = {"bed": "elsewhere", "rule": "the best", "entries": entries}
    options = {"suites": SUITES, "settings": other}
    first = stored(run(TINY_TEXT, 1, tmp_path / "rows.jsonl", ["npo"], **options))
    report = extend(first, TINY_TEXT, 1, tmp_path / "more.jsonl", ["wga"], **options)
    assert report["rule"] == "the best, on elsewhere"
    assert report["tuning"] == []
    assert [entry["contender"] for entry in report["entries"]][2:] == ["wga", "npo:rate=2.5"]


def test_a_file_without_figures_of_each_seed_cannot_be_extended(counted, tmp_path):
    first = stored(compared_on(tmp_path, "npo"))
    assert extendable(first)
    for part in ("seeds", "suites", "tuning", "left_out", "equal"):
        assert not extendable({name: value for name, value in first.items() if name != part})
    for part, value in (("per_seed", {}), ("seeds", "0"), ("model_utility", {"sd": 0.0}), ("method", None)):
        changed = copy.deepcopy(first)
        changed["entries"][2][part] = value
        assert not extendable(changed)
    assert not extendable(first | {"entries": first["entries"][1:]})


def test_the_shipped_comparisons_can_be_extended_and_keep_their_ranks():
    for report in compared.comparisons().values():
        assert extendable(report)
        again = {entry["contender"]: entry for entry in bench.placed(report["entries"])}
        for entry in report["entries"]:
            now = again[entry["contender"]]
            assert (now["rank"], now["useful"]) == (entry["rank"], entry["useful"])
            assert [{*now[name]} for name in ("equal", "better_than")] == [
                {*entry[name]} for name in ("equal", "better_than")
            ]


def test_the_command_extends_a_file_and_keeps_both_commits(counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BEDS, "tiny", TINY_TEXT)
    monkeypatch.setattr("unwrite.runs.provenance.commit", lambda: "a" * 40)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    given = ["bench", "forget", "--bed", "tiny", "--seeds", "2"]
    main([*given, "--methods", "npo", "--out", str(first)])
    monkeypatch.setattr("unwrite.runs.provenance.commit", lambda: "b" * 40)
    main([*given, "--methods", "wga", "--extend", str(first), "--out", str(second)])
    report = json.loads(second.read_text())
    assert report["commit"] == "a" * 40
    (extension,) = report["extensions"]
    assert (extension["methods"], extension["commit"]) == (["wga"], "b" * 40)
    assert {"machine", "versions", "seconds"} <= {*extension}
    capsys.readouterr()
    page = compared._compared("forget", report)
    assert "commit aaaaaaa; `wga` added at commit bbbbbbb in 0 minutes" in page
    old = json.loads(first.read_text())
    for entry in old["entries"]:
        del entry["per_seed"]
    first.write_text(json.dumps(old))
    with pytest.raises(SystemExit):
        main([*given, "--methods", "wga", "--extend", str(first)])
    assert "first.json lacks figures of each seed" in capsys.readouterr().err
