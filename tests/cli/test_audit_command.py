"""unwrite audit checks everything before it measures, and measures what its flags say."""

import json

import pytest
from cli_runs import make_files, refused, rows, write_rows

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.cli.sources import ModelRequest
from unwrite.models import save
from unwrite.runs import claimed, write_text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def audit(files, *more: str) -> list[str]:
    """Of the tiny model on the forget rows, without attacks."""
    forget = [] if "--forget" in more else ["--forget", str(files / "forget.jsonl")]
    return ["audit", str(files / "model"), *forget, "--attacks", "none", "--device", "cpu", *more]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--max-length", "1"], "--max-length is 1; it must be at least 2"),
        (["--max-length", "129"], "--max-length is 129, but the model has positions for 128 tokens"),
        (["--suite", "tofu"], "it needs perturbed_answers in every forget row"),
        (["--suite", "vision"], "--suite vision is for images"),
        (["--columns", "answer=reply"], "--columns"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(capsys, files, monkeypatch, flags, said):
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: pytest.fail("the audit began"))
    assert said in refused(capsys, audit(files, *flags))


def test_a_suite_that_compares_models_is_refused_without_another(capsys, files, monkeypatch):
    holdout = ["--suite", "membership", "--holdout", str(files / "retain.jsonl")]
    assert "a retrained model or the model before unlearning: pass --oracle or --before" in refused(
        capsys, audit(files, *holdout)
    )
    main(audit(files, *holdout, "--oracle", str(save(make_llama(seed=1), files / "o", tokenizer=make_tokenizer()))))
    assert "reference" in capsys.readouterr().out


def test_tofu_without_paraphrases_says_whose_answers_it_takes(capsys, files, tmp_path):
    wrong = [
        {**row, "perturbed_answers": ["a red book ."]} | ({"paraphrased_answer": "a book ."} if i else {})
        for i, row in enumerate(rows("book"))
    ]
    main(audit(files, "--suite", "tofu", "--forget", write_rows(tmp_path / "tofu.jsonl", wrong), "--json"))
    said = "1 of 4 forget rows have no paraphrased_answer"
    assert any(said in line for line in json.loads(capsys.readouterr().out)["notices"])


def test_the_length_reaches_the_audit_and_what_is_cut_is_said(capsys, files, tmp_path):
    long = [{"question": "who wrote it ?", "answer": "the old book " * 20}, *rows("book")]
    forget = write_rows(tmp_path / "long.jsonl", long)
    main(audit(files, "--forget", forget, "--max-length", "24", "--out", str(tmp_path / "audit")))
    report = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert report["provenance"]["max_length"] == 24
    said = "1 of 5 answers are cut at 24 tokens"
    assert any(said in line for line in report["notices"])
    assert said in capsys.readouterr().err


def test_columns_and_turns_reach_the_rows(capsys, files, tmp_path):
    named = [{"text": row["question"], "reply": row["answer"]} for row in rows("book")]
    forget = write_rows(tmp_path / "named.jsonl", named)
    main(audit(files, "--forget", forget, "--columns", "question=text,answer=reply", "--json"))
    assert json.loads(capsys.readouterr().out)["samples"][0]["asked"] == named[0]["text"]
    turns = [(role, text) for _ in range(2) for role, text in (("user", "who ?"), ("assistant", "ann ."))]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    forget = write_rows(tmp_path / "chat.jsonl", [chat])
    for which, count in (("all", 2), ("last", 1)):
        main(audit(files, "--forget", forget, "--turns", which, "--json"))
        assert json.loads(capsys.readouterr().out)["rows"]["forget"] == count


def test_a_report_is_replaced_when_asked(files, tmp_path):
    main(audit(files, "--out", str(tmp_path / "audit")))
    main(audit(files, "--out", str(tmp_path / "audit"), "--overwrite", "--retain", str(files / "retain.jsonl")))
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["rows"]["retain"] == 4


def test_a_folder_that_another_audit_writes_to_is_refused_before_anything_is_measured(
    capsys, files, tmp_path, monkeypatch
):
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: pytest.fail("the audit began"))
    with claimed(tmp_path / "out"):
        assert "is in use by process " in refused(capsys, audit(files, "--out", str(tmp_path / "out")))


def test_a_report_that_came_while_the_model_was_loaded_is_not_replaced(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: pytest.fail("the audit began"))
    load = ModelRequest.load

    def meanwhile(self):
        write_text(tmp_path / "out" / "report.json", "{}")
        return load(self)

    monkeypatch.setattr(ModelRequest, "load", meanwhile)
    assert "exists" in refused(capsys, audit(files, "--out", str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
