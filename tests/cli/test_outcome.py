"""What a run came to is in its record, its report, the terminal and the exit status."""

import copy
import json

import pytest
import torch
from cli_runs import command, make_files, record, rows, write_rows
from peft import LoraConfig, get_peft_model

from conftest import make_llama
from unwrite import catalog
from unwrite.audit import Report
from unwrite.audit.report.parts import Verdict
from unwrite.cli import demo, main
from unwrite.cli.inputs import AuditRequest
from unwrite.cli.outcome import UNCHANGED, Moved, moved_weights, say_outcomes
from unwrite.cli.sources import DataRequest
from unwrite.models import save


def ended(arguments: list[str]) -> int:
    """The exit status."""
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


def adapted(model, weight: float):
    """A copy with an adapter on its six kinds of projection whose product is `weight` at every place of the first one."""
    model = get_peft_model(copy.deepcopy(model), LoraConfig(r=1, lora_alpha=1, target_modules="all-linear"))
    layer = next(module for module in model.modules() if hasattr(module, "get_delta_weight"))
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(1)
        layer.lora_B["default"].weight.fill_(weight)
    return model


def test_weights_that_moved_are_counted(tiny_llama):
    after = copy.deepcopy(tiny_llama)
    total = sum(parameter.numel() for parameter in tiny_llama.parameters())
    assert moved_weights(tiny_llama, after) == Moved(0, total)
    with torch.no_grad():
        after.model.layers[1].mlp.up_proj.weight[0, :3] += 1
    assert moved_weights(tiny_llama, after) == Moved(3, total)


def test_an_adapter_counts_by_what_it_does_to_the_weights(tiny_llama):
    first = tiny_llama.model.layers[0].self_attn.q_proj.weight.numel()
    total = sum(parameter.numel() for parameter in tiny_llama.parameters())
    assert moved_weights(tiny_llama, adapted(tiny_llama, 0.0)) == Moved(0, total)
    assert moved_weights(tiny_llama, adapted(tiny_llama, 0.5)) == Moved(first, total)


def test_an_adapter_that_rounds_away_in_the_weights_own_type_moves_nothing(tiny_llama):
    half = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    with torch.no_grad():
        half.model.layers[0].self_attn.q_proj.weight.fill_(1)
    assert moved_weights(half, adapted(half, 2.0**-12)).weights == 0  # the adapter itself is float32


def test_an_adapter_that_was_there_before_does_not_count(tiny_llama):
    before = adapted(tiny_llama, 0.5)
    assert moved_weights(before, copy.deepcopy(before)).weights == 0
    assert moved_weights(before, adapted(tiny_llama, 0.25)).weights > 0


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "ssd", "--alpha", "1000"),
        ("--method", "npo", "--epochs", "2", "--batch-size", "8", "--lr", "1e-30"),
    ],
    ids=["edit", "objective"],
)
def test_a_run_that_moved_no_weight_says_so_everywhere(files, capsys, flags):
    idle = ("--epochs", "--lr") if "ssd" in flags else ()
    assert ended(command(files, *flags, without=idle)) == UNCHANGED
    said = f"{flags[1]} changed none of the model's 38432 weights: nothing was forgotten."
    said = said.replace("38432", str(sum(p.numel() for p in make_llama().parameters())))
    assert said in capsys.readouterr().err
    kept = record(files / "run")
    assert (kept["status"], kept["changed"]["weights"]) == ("unchanged", 0)
    assert said in kept["notices"]
    assert said in json.loads((files / "run" / "report.json").read_text())["notices"]
    assert "changed none of the model" in (files / "run" / "report.html").read_text()
    with pytest.raises(SystemExit):
        main(["chat", str(files / "run"), "--question", "who ?"])
    assert "changed nothing: its model is the one before" in capsys.readouterr().err


def test_json_has_the_status_of_a_run_that_moved_no_weight(files, capsys):
    assert ended(command(files, "--lr", "1e-30", "--json")) == UNCHANGED
    assert json.loads(capsys.readouterr().out)["status"] == "unchanged"


def test_a_notice_is_one_line_without_source_code_and_once(files, capsys):
    write_rows(files / "forget.jsonl", rows("book") + rows("book")[:1])
    assert ended(command(files)) == 0
    lines = capsys.readouterr().err.splitlines()
    repeats = [line for line in lines if "repeat an earlier row" in line]
    assert len(repeats) == 1
    assert repeats[0].startswith("unwrite: 1 of 5 rows in ")
    assert not [line for line in lines if ".py" in line or "notice(" in line or "Notice" in line]
    assert repeats[0].removeprefix("unwrite: ") in record(files / "run")["notices"]


def test_warnings_that_are_not_ours_stay_as_they_are(capsys):
    import warnings

    from unwrite.cli.output import plain_notices
    from unwrite.errors import notice

    before = warnings.showwarning

    def both():
        with plain_notices():
            warnings.warn("theirs", UserWarning, stacklevel=1)
            for _ in range(2):
                notice("two\nlines")

    with pytest.warns(UserWarning, match="theirs") as seen:
        both()
    assert [str(one.message) for one in seen] == ["theirs"]
    assert capsys.readouterr().err == "unwrite: two lines\n"
    assert warnings.showwarning is before


BOTH = ["relearning", "quantisation"]
ALL = [record.load().name for record in catalog.attacks().values()]
GIVEN = {
    (): ALL,
    ("--attacks", "relearn,quantise"): BOTH,
    ("--attacks", "quantise", "--attacks", "relearn"): ["quantisation", "relearning"],
    ("--attacks", "quantise"): ["quantisation"],
    ("--attacks", "none"): [],
}


@pytest.mark.parametrize(("given", "ran"), GIVEN.items(), ids=lambda part: " ".join(part) or "none given")
def test_the_attacks_are_those_named_all_by_default_or_none(files, given, ran):
    rows = DataRequest(forget=str(files / "forget.jsonl")).read()
    request = AuditRequest(attacks=given[1::2] or None)
    assert [attack.name for attack in request.attacks_on(rows)] == ran


def test_audit_runs_the_attacks_by_default(files, capsys):
    forget = str(files / "forget.jsonl")
    assert ended(["audit", str(files / "model"), "--forget", forget, "--device", "cpu", "--json"]) == 0
    assert [attack["name"] for attack in json.loads(capsys.readouterr().out)["attacks"]] == ALL


def test_forget_runs_the_attacks_and_shows_their_figures(files, capsys):
    assert ended(command(files, without=("--attacks",))) == 0
    shown = capsys.readouterr().out
    assert all(row in shown for row in ("relearning: unseen", "relearning: shown", "quantisation: forget"))
    assert [attack["name"] for attack in json.loads((files / "run" / "report.json").read_text())["attacks"]] == ALL


def test_relearning_is_left_out_with_a_notice_where_there_is_one_row(files, capsys):
    write_rows(files / "forget.jsonl", rows("book")[:1])
    assert ended(command(files, without=("--attacks",))) == 0
    out = capsys.readouterr()
    assert "there is only 1: that attack is left out" in out.err
    assert "relearning:" not in out.out
    assert "quantisation: forget" in out.out


def test_the_demo_says_too_if_it_changed_nothing(tmp_path, capsys, monkeypatch):
    from unwrite.audit import Report
    from unwrite.errors import notice
    from unwrite.runs import Run

    def idle(run, loaded, by, seed):
        save(loaded.model, run.folder / "model", tokenizer=loaded.tokenizer)
        notice("npo changed none")
        return Report("basic", "landmarks", {}, [], {"after": {}}), Moved(0, 9), "all epochs done", {
            "unlearning": 1.0, "audit": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(demo, "_unlearn_and_audit", idle)
    monkeypatch.setattr("unwrite.cli.inputs.AuditRequest.check_rows", lambda *_, **__: None)
    files = make_files(tmp_path)
    assert ended(["demo", "--out", str(tmp_path / "demo"), "--model", str(files / "model")]) == UNCHANGED
    kept = Run.open(tmp_path / "demo").record
    assert (kept["status"], kept["notices"]) == ("unchanged", ["npo changed none"])


def test_a_verdict_is_said_below_the_table(capsys):
    verdict = Verdict("mixed", "Undecided: no attack [bold]clearly[/bold] brings it back.")
    say_outcomes(Report("removal", "rows", {}, [], {"after": {}}, verdict=verdict))
    said = " ".join(capsys.readouterr().out.split())
    assert said == "mixed. Undecided: no attack [bold]clearly[/bold] brings it back."
