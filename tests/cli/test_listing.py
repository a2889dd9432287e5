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
