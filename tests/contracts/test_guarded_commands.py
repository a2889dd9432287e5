"""Every guard by the commands: forgotten with, saved, talked to and audited, the weights inside beside what is said through it."""

import json

import pytest
from texts import FIELDS, of_kind

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.cli import main
from unwrite.models import load, save
from unwrite.runs import hash_model

every_guard = pytest.mark.parametrize("slug", of_kind("guard"))
LEARNT = {"uld": ["--epochs", "1"], "o3": ["--epochs", "1"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A saved tiny model, and forget and retain files."""
    folder = tmp_path_factory.mktemp("files")
    save(lively(make_llama(0, layers=2), 0.1), folder / "model", tokenizer=make_tokenizer())
    for name, count in (("forget", 16), ("retain", 20)):
        rows = [json.dumps({"question": row.question, "answer": row.answer}) for row in make_examples(name, count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def runs(files):
    """{slug: run folder}, each made when it is first asked for."""
    made = {}

    def run(slug):
        if slug not in made:
            made[slug] = files / f"run-{slug}"
            main(["forget", "--model", str(files / "model"), *rows(files), "--method", slug, *flags(slug, files), *LEARNT.get(slug, ()), "--out", str(made[slug])])  # fmt: skip
        return made[slug]

    return run


def rows(files):
    given = ["--forget", str(files / "forget.jsonl"), "--retain", str(files / "retain.jsonl")]
    return [*given, "--attacks", "none", "--device", "cpu", "--allow-overlap"]


def flags(slug, folder):
    """The fields of the contracts as the command takes them: several texts are the lines of a file."""
    given = []
    for name, value in FIELDS.get(slug, {}).items():
        if isinstance(value, tuple):
            (folder / name).write_text("\n".join(value))
            value = folder / name
        given += [f"--{name.replace('_', '-')}", str(value)]
    return given


@every_guard
def test_both_models_of_its_run_answer_side_by_side(slug, runs, files, capsys):
    folder = runs(slug)
    assert hash_model(load(folder / "model").model.bare) == hash_model(load(files / "model").model)
    capsys.readouterr()
    main(["chat", str(folder), "--question", make_examples("forget", 16)[4].question, "--max-new-tokens", "8"])
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after" in shown


def audited(model, files, out, *more):
    main(["audit", str(model), *rows(files), "--out", str(out), *more])
    return json.loads((out / "report.json").read_text())


@every_guard
def test_its_run_is_audited_and_the_figures_of_its_weights_are_those_before(slug, runs, files, tmp_path):
    report = audited(runs(slug), files, tmp_path / "audit")
    assert report["roles"] == ["before", "after"]
    assert report["provenance"]["guard"] == type(load(runs(slug) / "model").model).__name__
    assert any("What the weights still know is in the column 'before'." in notice for notice in report["notices"])


@every_guard
def test_audited_alone_its_bare_weights_have_a_column_of_their_own(slug, runs, files, tmp_path):
    report = audited(runs(slug) / "model", files, tmp_path / "audit")
    assert report["roles"] == ["after", "inside"]
    (of_target,) = audited(files / "model", files, tmp_path / "target")["columns"].values()
    inside, after = report["columns"]["inside"], report["columns"]["after"]
    assert inside == of_target
    assert after["forget_probability"]["value"] != inside["forget_probability"]["value"]
    assert (tmp_path / "audit" / "report.html").read_text().count(">inside</th>")
