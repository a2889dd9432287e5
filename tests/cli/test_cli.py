"""The command line: one clear line for every refusal, flags from the dataclass, lists from the catalogue."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unwrite import catalog
from unwrite.cli import COMMANDS, main
from unwrite.cli.fields import build
from unwrite.cli.pages.tables import unbroken
from unwrite.errors import MethodError
from unwrite.forget import NPO, UNDIAL, WGA, Smooth


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_an_unknown_method_is_refused_with_the_nearest_name(capsys, tmp_path):
    line = refused(capsys, "forget", "--model", "m", "--forget", "f", "--out", str(tmp_path / "r"), "--method", "npoo")
    assert "'npo'" in line
    assert not (tmp_path / "r").exists()


def test_an_unknown_field_is_refused_with_the_nearest_name(capsys, tmp_path):
    line = refused(capsys, "forget", "--model", "m", "--forget", "f", "--out", str(tmp_path / "r"), "--beeta", "1")
    assert "beta" in line


def test_a_beta_of_zero_is_refused_before_anything_is_written(capsys, tmp_path):
    line = refused(capsys, "forget", "--model", "m", "--forget", "f", "--out", str(tmp_path / "r"), "--beta", "0")
    assert "beta is 0" in line
    assert not (tmp_path / "r").exists()


def test_an_unknown_attack_is_refused(capsys):
    assert "relearn" in refused(capsys, "audit", "m", "--forget", "f", "--attacks", "relern")


def test_a_planned_system_has_no_experiment_yet(capsys):
    assert "planned" in refused(capsys, "reproduce", "clover")


def test_chat_refuses_a_folder_without_a_run(capsys, tmp_path):
    assert "no run.json" in refused(capsys, "chat", str(tmp_path))


@pytest.mark.parametrize("slug", list(catalog.methods()))
def test_every_method_round_trips_through_its_flags(slug):
    import dataclasses

    plain = build(slug, {})
    flags = {
        field.name.replace("_", "-"): str(getattr(plain, field.name)).lower()
        if isinstance(getattr(plain, field.name), bool) or getattr(plain, field.name) is None
        else str(getattr(plain, field.name))
        for field in dataclasses.fields(plain)
        if not isinstance(getattr(plain, field.name), tuple)
    }
    assert build(slug, flags) == plain


def test_a_value_of_another_type_is_refused():
    with pytest.raises(MethodError, match="must be float"):
        build("npo", {"beta": "much"})
    with pytest.raises(MethodError, match="use one of"):
        build("npo", {"retain-loss": "sometimes"})


def test_what_a_method_around_another_has_no_field_for_is_of_the_one_inside():
    assert build("smooth", {}) == Smooth()
    assert build("smooth", {"rho": "0.1"}) == Smooth(rho=0.1)
    assert build("smooth", {"retain-weight": "3", "rho": "0.1"}) == Smooth(NPO(retain_weight=3.0), rho=0.1)
    assert build("smooth", {"inner": "wga", "beta": "2"}) == Smooth(WGA(beta=2.0))
    assert build("smooth", {"strength": "2", "inner": "undial"}) == Smooth(UNDIAL(), strength=2.0)  # both have it


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"betta": "1"}, "unknown field of smooth or the NPO in it 'betta'. Did you mean 'beta'"),
        ({"inner": "wga", "margin": "1"}, "unknown field of smooth or the WGA in it 'margin'"),
        ({"beta": "much"}, "must be float"),
        ({"beta": "-1"}, "beta is -1"),
        ({"inner": "uld", "alpha": "1"}, "is ULD"),
    ],
)
def test_a_field_that_neither_has_is_refused(flags, message):
    with pytest.raises(MethodError, match=message):
        build("smooth", flags)


def test_the_help_of_a_method_around_another_shows_the_flags_of_both(capsys):
    main(["forget", "--method", "smooth", "--help"])
    shown = capsys.readouterr().out
    assert "--rho" in shown
    assert "Flags of the method in it, NPO unless --inner names another:" in shown
    assert "--retain-weight" in shown


def test_systems_lists_all_76_as_json(capsys):
    main(["systems", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 76
    assert all(row["verdict"] is not None for row in rows if row["status"] == "done")


def test_methods_lists_what_helps_to_choose(capsys):
    main(["methods", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 11
    assert {"intent", "needs", "guarantee", "cost"} <= set(rows[0])


def test_help_names_every_command_without_importing_torch():
    code = "import sys; from unwrite.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in COMMANDS)


ROOT = Path(__file__).parents[2]


def test_what_is_generated_is_up_to_date(capsys):
    main(["docs", "--check", "--root", str(ROOT)])
    assert "up to date" in capsys.readouterr().out


def test_readme_is_a_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]
    assert max(map(len, cells)) <= 100


def test_every_link_between_pages_leads_somewhere():
    link = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in link.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_line_end_parts_an_interval_or_a_spread():
    assert unbroken("1.20 (1.10 to 1.30) and 4 +- 0.5") == "1.20 (1.10\u00a0to\u00a01.30) and 4\u00a0±\u00a00.5"
    assert unbroken("from 1 to 2 (a note)") == "from 1 to 2 (a note)"
