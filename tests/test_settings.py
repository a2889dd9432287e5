"""Messages name a setting as their reader writes it: flags on the command line, fields in Python."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

import unwrite
from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.cli.audit import audit as audit_command
from unwrite.cli.fields import build, build_strategy
from unwrite.cli.forget import forget as forget_command
from unwrite.data import Example, Examples, ForgetSplit, read, split_from, with_general_rows
from unwrite.data.text.layouts import parse_columns
from unwrite.errors import _ON_COMMAND_LINE, SWITCHES, UnwriteError, naming, noticing, setting
from unwrite.forget import NPO, RMU, SSD, ULD
from unwrite.models import load
from unwrite.runs import Run, write_json
from unwrite.scoring import row_length

ROOT = Path(unwrite.__file__).parent
ROWS = Examples([Example(question="who wrote it ?", answer="the old book .", source="a.jsonl:1")], "forget")
OTHERS = Examples([Example(question="who was it ?", answer="the river .")], "retain")


@pytest.mark.parametrize(
    ("given", "python", "flags", "settings"),
    [
        (("layers",), "layers", "--layers", "layers"),
        (("hold_weight", 0), "hold_weight=0", "--hold-weight 0", "hold_weight=0"),
        (("retain_loss", "none"), "retain_loss='none'", "--retain-loss none", "retain_loss=none"),
        (
            ("columns", "answer=my label"),
            "columns='answer=my label'",
            "--columns 'answer=my label'",
            "columns='answer=my label'",
        ),
        (("raw", True), "raw=True", "--raw true", "raw=true"),
        (("overwrite", True), "overwrite=True", "--overwrite", "overwrite=true"),
        (("resume_from_checkpoint", True), "resume_from_checkpoint=True", "--resume", "resume=true"),
        (("peft_config",), "peft_config", "--lora", "lora"),
        (("learning_rate", 0.1), "learning_rate=0.1", "--lr 0.1", "lr=0.1"),
        (("folder",), "folder", "--out", "out"),
    ],
)
def test_a_setting_has_three_ways_to_be_written(given, python, flags, settings):
    assert setting(*given) == python
    with naming("flags"):
        assert setting(*given) == flags
        with naming("settings"):
            assert setting(*given) == settings
        assert setting(*given) == flags
    assert setting(*given) == python


def test_flags_that_stand_for_another_name_and_switches_are_those_of_the_commands():
    flags = {**inspect.signature(audit_command).parameters, **inspect.signature(forget_command).parameters}
    assert {_ON_COMMAND_LINE[name] for name in _ON_COMMAND_LINE} <= set(flags)
    # "json" is the only other switch, and no message names it.
    assert {name for name, flag in flags.items() if flag.default is False} == {*SWITCHES, "json"}


def _finished(folder):
    Run.start(folder, {}).update(status="done")
    return folder


def _pickled(folder):
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "llama"})
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return folder


def _apply(method, **more):
    return method.apply(make_llama(), ROWS, OTHERS, processing_class=make_tokenizer(), **more)


# What goes wrong, and the words that name the setting: in Python, on the command line.
REFUSALS = {
    "a number out of range": (lambda _: NPO(beta=0.0), "beta is 0.0;", "--beta is 0.0;"),
    "a choice": (lambda _: NPO(retain_loss="x"), "retain_loss is 'x'", "--retain-loss is 'x'"),
    "a choice of ULD": (lambda _: ULD(positions="x"), "positions is 'x'", "--positions is 'x'"),
    "a layer too deep": (lambda _: RMU(layer=9).fitted(make_llama()), "layer is 9 but", "--layer is 9 but"),
    "too many layers": (lambda _: ULD(layers=9).fitted(make_llama()), "layers is 9 but", "--layers is 9 but"),
    "no rows to keep": (
        lambda _: NPO().check_data(ROWS, None),
        "NPO has retain_loss='nll' but there is no retain set. Give retain, or retain_loss='none'.",
        "NPO has --retain-loss nll but there is no retain set. Give --retain, or --retain-loss none.",
    ),
    "nothing held": (
        lambda _: RMU().check_data(ROWS, None),
        "(hold_weight=1.0) but there is no retain set. Give retain, or hold_weight=0.",
        "(--hold-weight 1.0) but there is no retain set. Give --retain, or --hold-weight 0.",
    ),
    "no retain set for a guard": (lambda _: ULD().check_data(ROWS, None), "Give retain.", "Give --retain."),
    "no retain set for an edit": (
        lambda _: SSD().check_data(ROWS, None),
        "Give retain, or stored importances: stored='folder'.",
        "Give --retain, or stored importances: --stored folder.",
    ),
    "adapters of an edit": (
        lambda _: SSD().check_model(make_llama(), adapters=True),
        "Leave out peft_config.",
        "Leave out --lora.",
    ),
    "an unknown field": (
        lambda _: build("npo", {"betta": "1"}),
        "unknown field of npo 'betta'. Did you mean 'beta'?",
        "unknown field of npo '--betta'. Did you mean '--beta'?",
    ),
    "a value of another type": (lambda _: build("npo", {"beta": "x"}), "beta is 'x'", "--beta is 'x'"),
    "a strategy's field": (
        lambda _: build_strategy("token-recycling", {"budgt": "1"}),
        "Did you mean 'budget'?",
        "Did you mean '--budget'?",
    ),
    "shared rows": (lambda _: ForgetSplit(ROWS, ROWS), "or pass allow_overlap=True.", "or pass --allow-overlap."),
    "columns": (lambda _: parse_columns("a"), "columns: 'a' is not", "--columns: 'a' is not"),
    "columns that settle it": (
        lambda _: read([{"text": "a", "reply": "b"}], name="set"),
        "write columns='question=text,answer=reply'",
        "write --columns question=text,answer=reply",
    ),
    "a shipped set": (
        lambda _: split_from("authors", "rows.jsonl"),
        "Leave out retain and holdout",
        "Leave out --retain and --holdout",
    ),
    "a finished run": (
        lambda path: Run.start(_finished(path / "run"), {}),
        "Choose another folder, or pass overwrite=True.",
        "Choose another --out, or pass --overwrite.",
    ),
    "pickled weights": (
        lambda path: load(_pickled(path / "model")),
        "or pass allow_pickle=True if you trust",
        "or pass --allow-pickle if you trust",
    ),
    "a row too long": (lambda _: row_length(make_llama(), 999), "max_length is 999", "--max-length is 999"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_names_flags_on_the_command_line_and_fields_in_python(what, tmp_path):
    wrong, python, flags = REFUSALS[what]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(UnwriteError) as caught:
        wrong(tmp_path / "a")
    assert python in str(caught.value)
    assert not re.search(r"(?<!\w)--[a-z]", str(caught.value))
    with naming("flags"), pytest.raises(UnwriteError) as caught:
        wrong(tmp_path / "b")
    assert flags in str(caught.value)
    assert not re.search(r"\w+_\w+=|peft_config", str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_command_line_names_flags(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["forget", "--model", "m", "--forget", "f.jsonl", "--out", str(tmp_path / "run"), "--beta", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "unwrite: --beta is 0.0; it must be a finite number, above 0.\n"
    assert setting("beta") == "beta"


def test_a_notice_is_named_alike():
    with noticing() as python:
        with_general_rows(ForgetSplit(ROWS))
    with naming("flags"), noticing() as flags:
        with_general_rows(ForgetSplit(ROWS))
    assert python[0].endswith("give them with retain.")
    assert flags[0].endswith("give them with --retain.")


# Every message of the source, not only those above

RAISED = re.compile(r"(Error|NotFinite|BadRow|NoColumn|MissingExtra)$")
FLAG = re.compile(r"(?<![\w-])--[a-z]")
FIELD = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b|\b[a-z]\w*=(?!\w*\b,)|(?:^|[.;:(] ?)[a-z]\w* is $")
# Interfaces of Python alone: nothing of them is set by a flag.
PYTHON_ALONE = (
    "bench/", "beds/", "cache/base.py", "cache/engine/", "catalog/", "compress/", "nets/", "reproduce/", "diffusion/", "forget/vision/", "forget/engine/images/", "audit/images/",
    "audit/attacks/relearning_time.py", "data/images/", "models/image", "models/curvature/", "models/pruning.py",
    "decode/engine/bridge.py", "decode/engine/transformers/tree_runtime.py",
    "decode/engine/llamacpp", "audit/restoring.py", "audit/suites/restor.py", "data/text/facts.py", "forget/private/", "forget/sharded/",
)  # fmt: skip
# Names of a file's or a tokenizer's own, and what only Python can bring about.
OTHERS_NAMES = (
    "pad_token", "eos_token", "input_ids", "chat_template", "weight_map", "model_type", "tokenizer_config", "adapter_config",
    "base_model_name_or_path", "paraphrased_answer", "perturbed_answer", "target_modules", "copy=True", "merge=True",
    "load_model", "importances_of", "closer_to_1_better", "merge=False", "lira, ain or knn_accuracy", "setting=value", "max_length is for texts", "forget is ", "is not ROLE=COLUMN", "name=value",
)  # fmt: skip


@cache
def messages():
    """(file, line, text) of every literal in a message that a user may get."""
    return list(_messages())


def _messages():
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call):
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            if RAISED.search(name) or name == "notice":
                named = [part for part in ast.walk(call) if isinstance(part, ast.Call) and part is not call]
                inside = {id(leaf) for part in named for leaf in ast.walk(part)}
                for leaf in ast.walk(call):
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and id(leaf) not in inside:
                        yield file, leaf.lineno, leaf.value


def test_the_messages_of_the_source_are_found():
    assert len(messages()) > 800
    assert any("is not a folder. Make it, or name another file" in text for _, _, text in messages())


def test_no_message_of_the_library_names_a_flag():
    found = [
        (file, line, text)
        for file, line, text in messages()
        if not file.startswith("cli/") and FLAG.search(text) and "pip install" not in text
    ]
    assert found == []


def test_no_message_names_a_field_where_a_flag_may_stand_for_it():
    found = [
        (file, line, text)
        for file, line, text in messages()
        if not file.startswith(PYTHON_ALONE) and FIELD.search(text) and not any(name in text for name in OTHERS_NAMES)
    ]
    assert found == []
