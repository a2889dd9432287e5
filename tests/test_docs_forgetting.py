"""docs/forgetting.md: its commands are ones, its flags and methods exist, and what it says of defaults is so."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from unwrite import catalog
from unwrite.cli import commands
from unwrite.cli.fields import build
from unwrite.cli.forget import forget
from unwrite.cli.outcome import UNCHANGED
from unwrite.data import general_rows
from unwrite.forget import Guard, StopWhenForgotten

PAGE = Path(__file__).parents[1] / "docs" / "forgetting.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_is_understood(line):
    program, *words = shlex.split(line)
    assert program == "unwrite"
    function, bound, _ = commands().parse_args(words, exit_on_error=False, print_error=False)
    assert function.__name__ == words[0]
    if words[0] == "forget":
        given = bound.arguments | bound.kwargs
        known = set(inspect.signature(forget).parameters)
        fields = {name: value for name, value in {**given, **given.pop("fields", {})}.items() if name not in known}
        build(given.get("method", "npo"), fields)


def test_the_page_has_commands_and_is_short():
    assert len(COMMANDS) >= 8
    assert len(TEXT.splitlines()) <= 150


def test_every_flag_in_the_text_is_one():
    flags = {name.replace("_", "-") for command in ("forget", "audit", "chat") for name in _parameters(command)}
    fields = {"beta", "layer", "steering", "mask", "alpha", "inner", "by", "rho"}
    assert set(re.findall(r"--([a-z][a-z-]*)", TEXT)) <= flags | fields


def _parameters(command):
    import importlib

    return inspect.signature(getattr(importlib.import_module(f"unwrite.cli.{command}"), command)).parameters


def test_the_methods_that_are_named_do_what_is_said():
    records = catalog.methods()
    assert {name: records[name].intent for name in ("npo", "rmu", "idk", "dpo", "uld")} == {
        "npo": "removal", "rmu": "removal", "idk": "suppression", "dpo": "suppression", "uld": "suppression",
    }  # fmt: skip
    assert issubclass(records["uld"].load(), Guard)
    texts = [record for record in records.values() if "text" in record.forgets]
    assert {record.guarantee for record in texts} <= {"none", "empirical"}
    assert not records["ssd"].load().trains


def test_the_figures_of_the_page_are_the_defaults():
    assert f"{len(general_rows())} facts of general knowledge" in TEXT
    assert f"below {StopWhenForgotten.floor:g} of theirs" in TEXT
    assert f"| {UNCHANGED} | the run is whole" in TEXT
    chosen = {name for names in re.findall(r"--attacks ([a-z,-]+)", TEXT) for name in names.split(",")}
    assert {"relearn", "quantise", "none"} == chosen <= {*catalog.attacks(), "none"}


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
