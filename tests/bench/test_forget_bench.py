"""Every text method in one table: settings are chosen on other authors, and better means better at equal utility."""

import json
from io import StringIO

import pytest
from rich.console import Console
from sweeping import lines, nothing_to_train

from helpers.small_texts import TINY_TEXT
from unwrite import catalog
from unwrite.beds.text_beds import BEDS
from unwrite.bench import forget as bench
from unwrite.bench import sweep as sweeps
from unwrite.bench.forget import TUNED_ON, Candidate, candidates, chosen, equal_utility, grid, is_better, report_of, run
from unwrite.bench.forget_report import (
    MARKS,
    cells,
    picture,
    probe_cells,
    probe_table,
    refusals,
    settings_table,
    table,
)
from unwrite.bench.sweep_kinds import Contender
from unwrite.cli import main
from unwrite.cli.comparisons import NARROW
from unwrite.cli.listing import plain_table
from unwrite.cli.sweep import contender_of
from unwrite.errors import MethodError
from unwrite.forget import NPO


def row(name, seed=0, quality=-1.0, utility=0.8, bed="b", **more):
    kind = "reference" if name in ("before", "retrained") else "method"
    both = {"forget_quality_log10": quality, "model_utility": utility}
    names = {"bed": bed, "contender": name, "kind": kind, "seed": seed}
    return {**names, "values": both, "cost": 2.0, "seconds": 1.0, **more}


def some(*names):
    return [Candidate(name.partition(":")[0], Contender(name, NPO())) for name in names]


def names(picked):
    return [one.contender.name for one in picked]


# The grid


def test_the_grid_is_of_methods_for_texts_published_settings_first():
    for slug, settings in grid().items():
        assert "text" in catalog.method(slug).forgets
        if isinstance(settings, str):
            continue
        assert settings[0] == {}
        assert 1 <= len(settings) <= bench.LARGEST


def test_a_grid_of_more_settings_is_refused(monkeypatch):
    monkeypatch.setattr(bench, "LARGEST", 1)
    with pytest.raises(MethodError, match="the grid of gradient-ascent has 5 settings; use at most 1"):
        grid.__wrapped__()


def test_a_method_that_no_bed_can_try_is_left_out_with_its_reason():
    tried, left_out = candidates(BEDS["authors/small"], ["alu", "npo"])
    assert {one.slug for one in tried} == {"npo"}
    assert "agents" in left_out["alu"]


def test_several_values_of_a_setting_are_a_tuple_and_named_as_the_sweep_reads_them():
    tried, _ = candidates(BEDS["authors/small"], ["content-filter"])
    both = tried[-1].contender
    assert (both.name, both.method.stages) == ("content-filter:stages=aliases,cosine", ("aliases", "cosine"))
    assert contender_of(both.name) == both


def test_every_text_method_of_the_catalogue_is_tried_or_left_out_with_a_reason():
    tried, left_out = candidates(BEDS["authors/small"])
    texts = {slug for slug, record in catalog.methods().items() if "text" in record.forgets}
    assert {one.slug for one in tried} | set(left_out) == texts
    assert all(left_out.values())
    assert len(set(names(tried))) == len(tried)


def test_a_setting_is_read_into_fields_and_training(monkeypatch):
    monkeypatch.setattr(bench, "grid", lambda: {"npo": [{}, {"beta": 0.5, "lr": 1e-3}]})
    (plain, tuned), _ = candidates(TINY_TEXT, ["npo"])
    assert (plain.contender.name, plain.contender.args) == ("npo", {})
    assert (tuned.contender.name, tuned.contender.method.beta) == ("npo:beta=0.5,lr=0.001", 0.5)
    assert tuned.contender.args == {"learning_rate": 1e-3}


def test_a_rate_multiplies_the_beds_or_the_methods_own(monkeypatch):
    monkeypatch.setattr(bench, "grid", lambda: {"npo": [{"rate": 2.5}], "uld": [{"rate": 2.5, "alpha": 1.2}]})
    (of_bed, of_method), _ = candidates(BEDS["authors/small"], ["npo", "uld"])
    assert of_bed.contender.args == {"learning_rate": 2.5 * BEDS["authors/small"].training["learning_rate"]}
    assert of_method.contender.args == {"learning_rate": 2.5 * 1e-3}
    assert (of_method.contender.name, of_method.contender.method.alpha) == ("uld:rate=2.5,alpha=1.2", 1.2)


@pytest.mark.parametrize("setting", [{"betta": 1.0}, {"beta": -1.0}, {"epochs": -1}])
def test_a_method_that_cannot_be_made_is_left_out_and_says_why(monkeypatch, setting):
    monkeypatch.setattr(bench, "grid", lambda: {"npo": [setting]})
    tried, left_out = candidates(TINY_TEXT, ["npo", "wga"])
    assert names(tried) == ["wga"]
    assert next(iter(setting)) in left_out["npo"]


def test_an_unknown_method_and_one_for_images_are_refused():
    for slug in ("npoo", "scrub"):
        with pytest.raises(MethodError, match=f"unknown method for texts '{slug}'"):
            candidates(TINY_TEXT, [slug])


# The choice


def test_the_best_forget_quality_is_taken_of_what_keeps_the_utility():
    rows = [row("before", utility=0.8), row("a", quality=-3), row("a:x", quality=-1, utility=0.761), row("a:y", quality=-0.1, utility=0.75)]  # fmt: skip
    assert names(chosen(some("a", "a:x", "a:y"), rows)[0]) == ["a:x"]


def test_where_none_keeps_it_the_highest_utility_is_taken():
    rows = [row("before", utility=0.8), row("a", quality=-0.1, utility=0.1), row("a:x", quality=-3, utility=0.5)]
    assert names(chosen(some("a", "a:x"), rows)[0]) == ["a:x"]


def test_of_equals_the_published_setting_is_taken():
    rows = [row("before"), row("a"), row("a:x")]
    assert names(chosen(some("a", "a:x"), rows)[0]) == ["a"]


def test_what_was_refused_is_left_out_by_setting_and_by_method():
    refused = {"bed": "b", "kind": "method", "seed": 0, "error": "needs labels"}
    rows = [row("before"), refused | {"contender": "a"}, row("a:x", quality=None), refused | {"contender": "b"}]
    picked, left_out = chosen(some("a", "a:x", "b"), rows)
    assert names(picked) == ["a:x"]
    assert left_out == {"b": "needs labels"}


# Better


def test_better_is_a_higher_forget_quality_with_every_seed_at_equal_utility():
    base = {0: (-2.0, 0.80), 1: (-2.0, 0.80)}
    assert is_better({0: (-1.0, 0.77), 1: (-1.0, 0.77)}, base)
    assert not is_better({0: (-1.0, 0.77), 1: (-2.0, 0.77)}, base)
    assert not is_better(base, base)
    assert is_better({0: (-1.0, 0.74), 1: (-1.0, 0.80)}, base)  # the mean utility counts
    for utility in (0.76, 0.84):
        assert not is_better({0: (-1.0, utility), 1: (-1.0, utility)}, base)
        assert not equal_utility({0: (-1.0, utility), 1: (-1.0, utility)}, base)
    assert not equal_utility({0: (-1.0, 0.8)}, base)
    assert not equal_utility({}, {})


@pytest.fixture
def report():
    rows = [
        *(row("before", seed, -6.0, 0.8) for seed in (0, 1)),
        *(row("retrained", seed, 0.0, 0.8) for seed in (0, 1)),
        *(row("mild", seed, -5.0 + seed, 0.79) for seed in (0, 1)),
        *(row("good:lr=1", seed, -1.0, 0.77, verdict="removal-like") for seed in (0, 1)),
        *(row("broken", seed, -0.1, 0.2) for seed in (0, 1)),
        *(row("halfway", seed, -2.0, 0.5) for seed in (0, 1)),
    ]
    picked = some("mild", "good:lr=1", "broken", "halfway")
    return report_of(TINY_TEXT, picked, rows, [*rows[::2], row("mild:x", 0, -9.0)]) | {"seeds": [0, 1], "left_out": {}}


def test_what_lost_its_utility_has_no_rank_and_stands_below(report):
    found = [(entry["method"], entry["rank"], entry["useful"]) for entry in report["entries"]]
    assert found == [
        ("before", None, True), ("retrained", None, True), ("good", 1, True), ("mild", 2, True), ("halfway", None, False), ("broken", None, False),
    ]  # fmt: skip
    good, mild = report["entries"][2:4]
    assert (good["setting"], good["equal"], good["better_than"], good["verdict"]) == (
        "lr=1",
        ["mild"],
        ["mild"],
        "removal-like",
    )
    assert (mild["equal"], mild["better_than"], mild["verdict"]) == (["good"], [], None)


def test_the_table_fits_in_80_columns_and_cuts_nothing(report):
    longest = max((slug for slug, record in catalog.methods().items() if "text" in record.forgets), key=len)
    for entry in report["entries"]:
        entry["method"] = longest
        entry["equal"] = entry["better_than"] = [longest] * 25
        entry["cost"] = {"mean": 110.0, "sd": 0.0}
        entry["rank"] = 25
    console = Console(width=80, record=True, file=StringIO())
    console.print(plain_table(NARROW, cells(report)))
    shown = console.export_text().splitlines()
    assert len(shown) == 1 + len(report["entries"])
    assert all(longest in line for line in shown[1:])
    assert "…" not in "".join(shown)


def test_markdown_has_a_line_an_entry_and_marks_the_settings_chosen(report):
    assert table(report)[4] == "| 1 | `good` | -1.0±0.0 | 0.77±0.00 | – | – | – | – | 2.0 | 1/1 |"
    settings = settings_table(report)
    assert "| **mild** | -5.00 | 0.79 |" in settings
    assert "| mild:x | -9.00 | 0.80 |" in settings


def test_the_picture_has_a_point_a_method_marked_by_its_verdict(report):
    drawn = picture(report)
    values = {value["method"]: value for value in drawn["data"]["values"]}
    assert (values["good"]["x"], values["good"]["y"], values["good"]["useful"]) == (-1.0, 0.77, True)
    assert not values["broken"]["useful"]
    assert "pale: utility lost" in drawn["title"]["subtitle"]
    assert values["before"]["verdict"] == "the model before"
    for mark in ("color", "shape"):
        scale = drawn["layer"][1]["encoding"][mark]["scale"]
        assert scale["domain"] == ["retrained without the forget set", "the model before", "removal-like", "no verdict"]
        assert len(scale["range"]) == 4


def test_a_verdict_that_differs_between_seeds_is_marked_as_the_worst_of_them(report):
    for entry in report["entries"]:
        if entry["method"] == "mild":
            entry["verdict"] = "removal-like or not forgotten"
    scale = picture(report)["layer"][1]["encoding"]["color"]["scale"]
    marks = dict(zip(scale["domain"], scale["range"], strict=True))
    assert marks["removal-like or not forgotten"] == MARKS["not forgotten"][0]
    assert marks["removal-like"] == MARKS["removal-like"][0]


def test_the_pictures_axis_of_utility_begins_below_the_least(report):
    y = picture(report)["layer"][1]["encoding"]["y"]["scale"]["domain"]
    assert y == [0.1, 1.0]  # the least is 0.2
    for entry in report["entries"]:
        entry["model_utility"]["mean"] = 0.81
    assert picture(report)["layer"][1]["encoding"]["y"]["scale"]["domain"] == [0.7, 1.0]


# The run


@pytest.fixture
def counted(monkeypatch):
    """Trials that only say that they ran."""
    ran = []

    def trial_row(trial):
        ran.append((trial.contender.name, trial.bed.name, trial.seed))
        return row(trial.contender.name, trial.seed, bed=trial.bed.name, key=trial.key)

    monkeypatch.setattr(sweeps, "_prepare", nothing_to_train)
    monkeypatch.setattr(sweeps, "run_trial", trial_row)
    return ran


def test_settings_are_tried_on_other_rows_with_another_seed_and_a_stopped_run_goes_on(counted, tmp_path):
    out = tmp_path / "rows.jsonl"
    first = run(TINY_TEXT, 2, out, ["npo", "wga"], suites=("tofu",))
    tuned = {one for one in counted if one[1] == "tiny text, tuning"}
    assert {seed for _, _, seed in tuned} == {TUNED_ON}
    assert {name for name, _, _ in tuned} == {
        "before",
        "retrained",
        "npo",
        "npo:rate=0.4",
        "npo:rate=2.5",
        "npo:rate=5.0",
    } | {f"wga{end}" for end in ("", ":rate=0.4", ":rate=2.5", ":rate=5.0")}
    assert {one for one in counted if one not in tuned} == {
        (name, "tiny text", seed) for name in ("before", "retrained", "npo", "wga") for seed in (0, 1)
    }
    done = len(counted)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:-3]))  # as a kill leaves it
    again = run(TINY_TEXT, 2, out, ["npo", "wga"], suites=("tofu",))
    assert len(counted) == done + 3
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_what_is_reported_is_judged_by_the_battery_and_settings_are_not_chosen_by_it(counted, monkeypatch, tmp_path):
    suites = []
    monkeypatch.setattr(bench, "trials_of", lambda some, beds, seeds: suites.append(beds[0].suites) or [])
    monkeypatch.setattr(
        bench, "sweep", lambda *_: [row("before"), row("npo"), *(row(f"npo:rate={rate}") for rate in (0.4, 2.5, 5.0))]
    )
    run(TINY_TEXT, 1, tmp_path / "rows.jsonl", ["npo"])
    assert suites == [("tofu",), ("tofu", "removal-quick")]


def test_verdicts_and_indices_have_a_table_of_their_own():
    rows = [row(name, seed) for name in ("before", "retrained") for seed in (0, 1)]
    judged = [{**row("npo", seed), "verdict": label} for seed, label in enumerate(("mixed", "suppression-like"))]
    for one in judged:
        one["values"]["recovery_direct"] = 0.25
    report = report_of(TINY_TEXT, some("npo"), [*rows, *judged], [])
    (entry,) = [one for one in report["entries"] if one["method"] == "npo"]
    assert entry["verdict"] == "mixed or suppression-like"
    assert probe_cells(report) == [("npo", "0.25", *["–"] * 6, "mixed or suppression-like")]
    assert probe_table(report_of(TINY_TEXT, some("npo"), rows, [])) == []


def test_settings_of_another_bed_are_taken_over_and_nothing_is_chosen(counted, tmp_path):
    entries = [{"contender": name} for name in ("before", "retrained", "npo:rate=2.5", "removed-since:x=1")]
    other = {"bed": "elsewhere", "rule": "the best", "entries": entries}
    report = run(TINY_TEXT, 1, tmp_path / "rows.jsonl", ["npo", "wga"], suites=("tofu",), settings=other)
    assert counted == [(name, "tiny text", 0) for name in ("before", "retrained", "npo:rate=2.5")]
    assert report["rule"] == "the best, on elsewhere"
    assert report["left_out"] == {"wga": "no setting was chosen on elsewhere"}
    assert report["tuning"] == []


def test_no_setting_to_take_over_is_refused(counted, tmp_path):
    nothing = {"bed": "elsewhere", "rule": "", "entries": []}
    with pytest.raises(MethodError, match="0 methods"):
        run(TINY_TEXT, 1, tmp_path / "rows.jsonl", ["npo"], settings=nothing)


def test_the_command_takes_settings_from_a_file_and_refuses_others(counted, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BEDS, "tiny", TINY_TEXT)
    first, file = tmp_path / "first.json", tmp_path / "other.json"
    main(["bench", "forget", "--bed", "tiny", "--seeds", "1", "--methods", "wga", "--out", str(first)])
    counted.clear()
    main(["bench", "forget", "--bed", "tiny", "--seeds", "1", "--methods", "wga", "--settings", str(first)])
    assert [name for name, _, _ in counted] == ["before", "retrained", "wga"]
    for content, said in (
        ("{", "other.json can't be read"),
        ("[]", "holds no comparison"),
        ('{"bed": "a", "entries": []}', "holds no comparison"),
        ('{"bed": "a", "rule": "b", "entries": [{}]}', "an entry without a contender's name"),
    ):
        file.write_text(content)
        with pytest.raises(SystemExit):
            main(["bench", "forget", "--bed", "tiny", "--settings", str(file)])
        assert said in capsys.readouterr().err


def test_a_method_that_is_refused_on_the_reported_rows_says_so(monkeypatch, tmp_path):
    """With every seed it is left out with the reason; with some it stands without a number, and the reason below."""

    def trial_row(trial):
        one, kept = trial.contender, trial.bed.name.endswith("tuning") or trial.contender.kind == "reference"
        found = row(one.name, trial.seed, bed=trial.bed.name, key=trial.key)
        if kept or (one.name == "npo" and trial.seed == 1):
            return found
        return {name: value for name, value in found.items() if name != "values"} | {
            "error": "no factor tells them apart"
        }

    monkeypatch.setattr(sweeps, "_prepare", nothing_to_train)
    monkeypatch.setattr(sweeps, "run_trial", trial_row)
    monkeypatch.setattr(bench, "grid", dict)
    report = run(TINY_TEXT, 2, tmp_path / "rows.jsonl", ["npo", "wga"], suites=("tofu",))
    assert report["left_out"] == {"wga": "no factor tells them apart"}
    assert [entry["method"] for entry in report["entries"]] == ["before", "retrained", "npo"]
    assert (report["entries"][2]["rank"], report["entries"][2]["seeds"]) == (None, [1])
    assert refusals(report) == ["npo with seed 0: no factor tells them apart"]


@pytest.mark.parametrize("seeds", [0, TUNED_ON + 1])
def test_no_seed_and_the_seed_of_the_choice_are_refused(tmp_path, seeds):
    with pytest.raises(MethodError, match=f"seeds is {seeds}; use 1 to {TUNED_ON}"):
        run(TINY_TEXT, seeds, tmp_path / "rows.jsonl")


def test_the_command_writes_figures_and_rows_and_shows_a_table(counted, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BEDS, "tiny", TINY_TEXT)
    out = tmp_path / "forget.json"
    given = ["bench", "forget", "--bed", "tiny", "--seeds", "1", "--methods", "gradient-ascent,ssd", "--out", str(out)]
    main(given)
    shown = capsys.readouterr().out
    assert "gradient-ascent" in shown
    stored = json.loads(out.read_text())
    assert [entry["method"] for entry in stored["entries"]][:2] == ["before", "retrained"]
    assert {"machine", "commit", "versions", "left_out", "rule", "bed"} <= set(stored)
    assert len(lines(out.with_suffix(".jsonl"))) == 1 + 2 + 5 + 4 + 2 + 2
    with pytest.raises(SystemExit):
        main(given)
    assert str(out) in capsys.readouterr().err


def test_figures_are_never_written_over_the_rows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "forget", "--out", str(tmp_path / "forget.jsonl")])
    assert "End it in .json." in capsys.readouterr().err
    assert not list(tmp_path.glob("*.jsonl"))


def test_an_unknown_bed_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "forget", "--bed", "authors/smal"])
    assert "unknown bed of texts 'authors/smal'. Did you mean 'authors/small'?" in capsys.readouterr().err
