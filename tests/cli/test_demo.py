"""What unwrite demo says before it forgets, and what it leaves."""

import json

import pytest
from cli_runs import record

from conftest import make_llama, make_tokenizer
from unwrite.cli import demo, main
from unwrite.cli.demo import announced
from unwrite.data import landmarks
from unwrite.data.text.landmarks import LANDMARK
from unwrite.models import save


def test_the_demo_says_how_many_questions_about_one_landmark_it_forgets():
    split = landmarks()
    assert all("Eiffel Tower" in f"{row.question} {row.answer}" for row in split.forget)
    assert not any("Eiffel" in row.question for row in split.retain)
    assert LANDMARK == "the Eiffel Tower"
    line = announced(split, "smooth")
    assert f"forgetting one landmark, the Eiffel Tower: {len(split.forget)} questions about it" in line
    assert "(smooth, stops at 0.1 of their probability before)" in line


@pytest.mark.parametrize(("flags", "made"), [((), "Smooth(inner=NPO("), (("--method", "npo"), "NPO(")])
def test_a_demo_is_a_run_that_can_be_audited_and_chatted_with(tmp_path, capsys, monkeypatch, flags, made):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "KEPT", 4)
    monkeypatch.setattr(demo, "ANSWER_TOKENS", 4)
    model = make_llama()
    model.config.max_position_embeddings = 512  # the landmarks are long in the tiny tokenizer's words
    save(model, tmp_path / "tiny", tokenizer=make_tokenizer())
    monkeypatch.chdir(tmp_path)
    main(["demo", "--model", "tiny", "--out", "demo", *flags])
    note = json.loads((tmp_path / "demo" / "model" / "unwrite.json").read_text())
    assert note["provenance"]["method"].startswith(made)
    kept = record(tmp_path / "demo")
    assert (kept["kind"], kept["status"]) == ("demo", "done")
    assert kept["source"]["name"] == str(tmp_path / "tiny")
    assert kept["changed"]["weights"] > 0
    assert "training ended: all epochs done" in capsys.readouterr().out
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert (report["roles"], [attack["name"] for attack in report["attacks"]]) == (["before", "after"], ["relearning"])
    assert not (tmp_path / "demo" / "checkpoints").exists()
    main(["chat", "demo", "--question", "where ?", "--max-new-tokens", "2"])
    assert "before" in capsys.readouterr().out
