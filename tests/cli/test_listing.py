"""unwrite methods and systems: readable at 80 columns and piped; one method with its fields, defaults and what they mean."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError

import pytest

from unwrite import catalog
from unwrite.cli import main
from unwrite.cli.describe import described
from unwrite.cli.pages import stored

METHODS = catalog.methods()
doctor = import_module("unwrite.cli.doctor")


def piped(*arguments):
    """Lines of a command whose output is no terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "unwrite.cli", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def test_every_method_has_one_line_of_at_most_80_characters_when_piped():
    lines = piped("methods")
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    (npo,) = [line.split() for line in lines if line.startswith("npo ")]
    assert npo[1:4] == ["both", "objective", "removal"]


def test_no_system_is_cut_when_piped():
    lines = piped("systems")
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:] if not line.startswith((" ", "†"))] == list(catalog.systems())


def test_one_method_shows_its_fields_defaults_and_needs(capsys):
    main(["methods", "npo"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--beta 0.1 inverse temperature",
        "--retain-loss nll",
        "retain set",
        "arXiv 2404.05868",
        "not possible",
    ):
        assert words in said


def test_one_method_as_json_has_the_record_and_the_fields(capsys):
    main(["methods", "rmu", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["slug"] == "rmu"
    assert {one["flag"]: one["default"] for one in record["fields"]}["--layer"] == "none"


@pytest.mark.parametrize("slug", METHODS)
def test_every_field_of_every_method_is_documented(slug):
    assert [one.flag for one in described(METHODS[slug].load()) if not one.meaning] == []


def test_the_help_of_forget_shows_the_flags_of_the_method_that_is_named(capsys):
    main(["forget", "--method", "rmu", "--help"])
    said = capsys.readouterr().out
    assert "--stop-at" in said
    assert "Flags of rmu:" in said
    assert "--steering" in said
    main(["forget", "--method=npo", "--help"])
    assert "--beta" in capsys.readouterr().out


def test_an_unknown_method_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["methods", "npoo"])
    assert "Did you mean 'npo'?" in capsys.readouterr().err


def test_doctor_names_what_to_install_in_one_piece(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "version", absent)
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert "llama-cpp-python: pip install 'unwrite[llamacpp]'" in lines
    assert sum(" missing " in line for line in lines) == len(doctor.PARTS)


def absent(package):
    raise PackageNotFoundError(package)


# What the comparisons saw


@pytest.fixture
def compared(monkeypatch):
    """Two stored comparisons, as `unwrite bench forget` writes them."""

    def entry(method, verdict, rank=None, quality=None, kind="method"):
        figures = {} if quality is None else {"forget_quality_log10": {"mean": quality}, "model_utility": {"mean": 0.8}}
        return {"method": method, "kind": kind, "verdict": verdict, "setting": "rate=2.5", "rank": rank, **figures}

    references = [entry("before", "not forgotten", kind="reference")]
    other = [
        *references,
        entry("npo", "mixed or suppression-like", 1, -0.62),
        entry("undial", "not forgotten", 2, -1.0),
    ]
    other.append(entry("kl-ascent", "untested"))
    own = [*references, entry("undial", "suppression-like", 1, -0.31), entry("wga", None, 2, -3.0)]
    reports = {"forget": {"bed": "own", "entries": own}, "forget-smollm2": {"bed": "other", "entries": other}}
    monkeypatch.setattr(stored, "stored_result", reports.get)


def test_a_method_is_listed_with_what_was_observed_of_it_by_settings_of_the_bed_first(compared, capsys):
    main(["methods"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1 : 1 + len(METHODS)]}
    assert "suppression " in lines["undial"]
    assert "varies " in lines["npo"]
    assert max(map(len, lines.values())) <= 80


def test_one_method_tells_its_place_and_its_forget_quality_on_every_bed(compared, capsys):
    main(["methods", "undial"])
    said = " ".join(capsys.readouterr().out.split())
    assert "suppression-like on own: 1 of 2, forget quality -0.3 (log10 p); not forgotten on other: 2 of 2" in said
    main(["methods", "kl-ascent"])
    assert "untested on other: without a place, for utility is lost" in " ".join(capsys.readouterr().out.split())


def test_what_no_audit_judged_was_not_observed(compared, capsys):
    main(["methods", "wga"])
    assert "observed" not in capsys.readouterr().out
    main(["methods", "--json"])
    seen = {one["slug"]: one["observed"] for one in json.loads(capsys.readouterr().out)}
    assert seen["wga"] == []
    assert seen["undial"][0] == {
        "bed": "own", "verdict": "suppression-like", "setting": "rate=2.5", "forget_quality": -0.31, "utility": 0.8, "rank": 1, "of": 2,
    }  # fmt: skip
