"""unwrite forget checks everything before it writes: a refusal is one line, and leaves no run folder behind."""

import pytest
from cli_runs import command, make_files, record, refused, rows, write_rows

from conftest import make_llama, make_tokenizer
from unwrite.models import save


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def _nothing_trained(monkeypatch):
    """No refusal may come as late as training."""
    monkeypatch.setattr("unwrite.forget.base.Method.apply", lambda *_, **__: pytest.fail("training began"))


def refusal(capsys, files, *more: str) -> str:
    line = refused(capsys, command(files, *more))
    assert not (files / "run").exists()
    return line


NUMBERS = {
    "--epochs": ["0", "-1", "nan", "inf"],
    "--lr": ["0", "-0.1", "nan", "inf"],
    "--batch-size": ["0", "-8"],
    "--accumulate": ["0", "-1"],
    "--max-length": ["1", "0", "-5"],
    "--seed": ["-1", str(2**32)],
    "--lora": ["0", "-4"],
    "--stop-at": ["0", "1", "-0.1", "nan", "2"],
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag in NUMBERS for value in NUMBERS[flag]])
def test_a_number_without_a_meaning_is_refused_by_its_flag(capsys, files, flag, value):
    line = refusal(capsys, files, flag, value)
    assert f"{flag} is {float(value):g}; it must be" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--suite", "basik"], "unknown suite 'basik'. Did you mean 'basic'?"),
        (["--suite", "vision"], "--suite vision is for images"),
        (
            ["--suite", "tofu"],
            "suite 'tofu' can't be measured on forget: it needs perturbed_answers in every forget row",
        ),
        (["--suite", "muse"], "suite 'muse' can't be measured on forget: it needs the benchmark's own question sets"),
        (["--suite", "membership"], "suite 'membership' can't be measured on forget: it needs holdout rows"),
        (["--attacks", "relern"], "unknown attack 'relern'. Did you mean 'relearn'?"),
        (["--attacks", "none,relearn"], "--attacks is none,relearn; none stands alone"),
        (
            ["--max-length", "4096"],
            "--max-length is 4096, but the model has positions for 128 tokens. Use at most 128.",
        ),
        (["--max-length", "5"], "leaves no room for the answer within 5"),
        (["--columns", "question=title,answer=reply"], "unknown column 'title'"),
        (["--method", "scrub"], "scrub forgets images"),
        (["--method", "rmu", "--layer", "7"], "layer is 7 but the model has 3 blocks"),
        (["--method", "uld", "--layers", "8"], "layers is 8 but the model has 3 blocks"),
        (["--method", "ssd", "--lora", "4"], "ssd trains nothing, so --epochs has no meaning for it"),
        (["--method", "uld", "--layers", "1", "--stop-at", "0.1"], "--stop-at watches the model while it is trained"),
        (["--method", "task-vector", "--stop-at", "0.1"], "--stop-at watches the model while it is trained"),
        (["--resume"], "holds no run to resume"),
        (["--resume", "--overwrite"], "Pass one of them"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(capsys, files, flags, said):
    assert said in refusal(capsys, files, *flags)


def test_adapters_are_refused_for_a_method_that_trains_none(capsys, files):
    arguments = command(files, "--method", "ssd", "--lora", "4", without=("--epochs", "--lr"))
    assert "ssd trains nothing, so --lora has no meaning for it" in refused(capsys, arguments)
    assert not (files / "run").exists()


def test_a_row_that_no_refusal_can_answer_is_refused(capsys, files, tmp_path):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "the old book was red ."}])
    assert "texts.jsonl:1" in refusal(capsys, files, "--method", "idk", "--forget", texts)


@pytest.mark.parametrize("part", ["check_data", "check_model", "fitted"])
def test_what_a_method_refuses_is_refused_before_anything_is_written(capsys, files, monkeypatch, part):
    from unwrite.errors import MethodError
    from unwrite.forget import NPO

    def refuse(*_, **__):
        raise MethodError(f"{part} says no")

    monkeypatch.setattr(NPO, part, refuse)
    assert refusal(capsys, files, "--method", "npo") == f"unwrite: {part} says no"


def test_adapters_need_a_linear_layer_besides_the_head(files):
    from torch import nn

    from unwrite.cli.inputs import _need_linear_layers
    from unwrite.errors import ModelError

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(3, 2), nn.Linear(2, 3)

        def get_output_embeddings(self):
            return self.head

    with pytest.raises(ModelError, match="--lora trains adapters of linear layers, and this Bare has none"):
        _need_linear_layers(Bare())
    _need_linear_layers(make_llama())


def test_adapters_are_checked_against_the_model(capsys, files, monkeypatch):
    from unwrite.errors import ModelError

    def refuse(model):
        raise ModelError("no linear layer")

    monkeypatch.setattr("unwrite.cli.inputs._need_linear_layers", refuse)
    assert refusal(capsys, files, "--lora", "2") == "unwrite: no linear layer"


def test_an_attack_that_was_asked_for_needs_its_rows(capsys, files, tmp_path):
    one = write_rows(tmp_path / "one.jsonl", rows("book")[:1])
    line = refusal(capsys, files, "--forget", one, "--attacks", "quantise,relearn")
    assert "there is only 1. Give at least 2, or leave relearn out of --attacks" in line


def test_a_row_that_only_the_audit_reads_is_checked_too(capsys, files, tmp_path):
    long = [{"question": "who " * 140, "answer": "the book ."}]
    line = refusal(capsys, files, "--holdout", write_rows(tmp_path / "holdout.jsonl", long))
    assert "holdout.jsonl:1: the prompt has" in line


def test_a_row_that_the_suite_has_room_for_and_training_has_not_is_refused(capsys, files, tmp_path, monkeypatch):
    from dataclasses import replace

    from unwrite import catalog
    from unwrite.audit.suites import known

    long_suite = replace(catalog.suite("basic").load(), name="long", max_length=2048)
    monkeypatch.setattr(known, "suite_named", lambda suite: long_suite)
    model = make_llama()
    model.config.max_position_embeddings = 1024
    save(model, tmp_path / "model", tokenizer=make_tokenizer())
    long = write_rows(tmp_path / "long.jsonl", [{"question": "who " * 600, "answer": "the book ."}])
    line = refusal(capsys, files, "--model", str(tmp_path / "model"), "--forget", long, "--suite", "long")
    assert "leaves no room for the answer within 512" in line


def test_a_failed_check_leaves_an_earlier_run_as_it_is(capsys, files, tmp_path):
    from unwrite.runs import Run

    arguments = command(files, "--overwrite", "--max-length", "4096", "--out", str(tmp_path / "run"))
    Run.start(tmp_path / "run", {}).update(status="done")
    refused(capsys, arguments)
    assert record(tmp_path / "run")["status"] == "done"
