"""unwrite sweep: one line says what to compare, what is wrong with it is said before anything is trained, and two runs agree."""

import json
from functools import partial

import pytest

from helpers.small_texts import TINY_TEXT
from unwrite.beds.images import BEDS, DIGITS, Bed, _by_class
from unwrite.beds.named import beds
from unwrite.beds.text_beds import BEDS as TEXTS
from unwrite.bench import sweep as sweeps
from unwrite.cli import main
from unwrite.cli.sweep import contenders_of, sweep
from unwrite.data.images.sets import digits
from unwrite.forget.gradient_ascent import GradientAscent
from unwrite.runs import cache_dir

TINY = Bed("tiny", partial(digits, 0.9), partial(_by_class, 3), {**DIGITS, "width": 4}, 1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(BEDS, "tiny", TINY)


def run(tmp_path, *more, methods="ssd:alpha=1,fine-tune:epochs=1", out="out.jsonl"):
    given = ("--beds", "tiny", "--seeds", "1", "--workers", "1", "--out", str(tmp_path / out))
    main(["sweep", "--methods", methods, *given, *more])


def test_a_line_is_read_into_methods_fields_and_training():
    found = contenders_of("scrub:decay=3,5,9,rewind=true, ssd:alpha=5,fine-tune:epochs=2,lr=0.01,batch-size=32,cf-k")
    assert [one.name for one in found] == [
        "scrub:decay=3,5,9,rewind=true", "ssd:alpha=5", "fine-tune:epochs=2,lr=0.01,batch_size=32", "cf-k",
    ]  # fmt: skip
    scrub, ssd, tuned, plain = found
    assert (scrub.method.decay, scrub.method.rewind) == ((3, 5, 9), True)
    assert (ssd.method.alpha, ssd.args) == (5.0, {})
    assert tuned.args == {"num_train_epochs": 2.0, "learning_rate": 0.01, "per_device_train_batch_size": 32}
    assert plain.args == {}


def test_a_method_can_be_inside_another():
    [one] = contenders_of("salient:inner=gradient-ascent,share=0.2,epochs=1")
    assert one.method.inner == GradientAscent()
    assert (one.method.share, one.args) == (0.2, {"num_train_epochs": 1.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--methods", "scrubb"), "unknown method 'scrubb'. Did you mean 'scrub'?"),
        (("--methods", "idk"), "idk has no meaning for images"),
        (("--methods", "ssd:alfa=1"), "unknown field of ssd 'alfa'. Did you mean 'alpha'?"),
        (("--methods", "ssd:alpha=much"), "alpha is 'much'; it must be float"),
        (("--methods", "ssd:alpha=-1"), "alpha is -1"),
        (("--methods", "fine-tune:epochs=-1"), "epochs is -1"),
        (("--methods", "fine-tune:batch_size=0.5"), "batch_size is '0.5'; it must be int"),
        (("--methods", "ssd:alpha"), "'alpha' in 'ssd:alpha' is no new setting"),
        (("--methods", "ssd:alpha=1,alpha=2"), "'alpha=2' in 'ssd:alpha=1,alpha=2' is no new setting"),
        (("--methods", "ssd:"), "'' in 'ssd:' is no new setting"),
        (("--methods", "ssd,ssd"), "contender 'ssd' is there twice"),
        (("--methods", ","), "0 methods, 1 beds and 1 seeds are no sweep"),
        (("--beds", "digits/clas"), "unknown bed 'digits/clas'. Did you mean 'digits/class'?"),
        (("--beds", "tiny,tiny"), "bed 'tiny' is there twice"),
        (("--seeds", "0"), "1 methods, 1 beds and 0 seeds are no sweep"),
        (("--workers", "0"), "workers is 0; use 1 or more"),
        (("--markdown", "--json"), "Choose one"),
        (("--suites", "tofu"), "suite 'tofu' is for text; bed tiny is of images"),
        (
            ("--beds", "authors/small", "--methods", "scrub"),
            "scrub has no meaning for text (bed authors/small); it forgets images",
        ),
        (
            ("--beds", "authors/small", "--methods", "npo", "--suites", "tofo"),
            "unknown suite 'tofo'. Did you mean 'tofu'?",
        ),
        (("--beds", "authors/small", "--methods", "npo", "--suites", "vision"), "suite 'vision' is for images"),
        (("--beds", "authors/small", "--methods", "npo:epochs=-1"), "epochs is -1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_before_anything_is_trained(capsys, tmp_path, given, message):
    out = tmp_path / "out.jsonl"
    defaults = {"--methods": "ssd", "--beds": "tiny", "--seeds": "1", "--out": str(out)}
    flags = [word for name, value in defaults.items() if name not in given for word in (name, value)]
    with pytest.raises(SystemExit) as error:
        main(["sweep", *flags, *given])
    assert error.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not out.exists()
    assert not list(cache_dir().iterdir())


def test_two_runs_print_the_same_and_a_third_from_what_the_first_kept(capsys, tmp_path, monkeypatch):
    run(tmp_path, "--markdown")
    first = capsys.readouterr()
    assert [line.split("|")[1:3] for line in first.out.splitlines()[4:]] == [
        [" reference ", " before "], [" reference ", " retrained "], [" control ", " head-only "],
        *([f" {rank} ", f" {name} "] for rank, name in enumerate(_ranked(first.out), 1)),
    ]  # fmt: skip
    assert set(_ranked(first.out)) == {"ssd:alpha=1", "fine-tune:epochs=1"}
    assert "trials: 4 of 5 done, about" in first.err
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "another cache"))
    run(tmp_path, "--markdown", out="again.jsonl")
    assert capsys.readouterr().out == first.out
    monkeypatch.setattr(sweeps, "run_trial", None)
    run(tmp_path, "--markdown")
    assert capsys.readouterr().out == first.out


def _ranked(out):
    return [line.split(" | ")[1] for line in out.splitlines()[7:]]


def test_json_and_the_terminal_show_the_same_models(capsys, tmp_path):
    run(tmp_path, "--json", "--seconds")
    entries = json.loads(capsys.readouterr().out)
    assert [entry["contender"] for entry in entries][:3] == ["before", "retrained", "head-only"]
    assert entries[3]["seconds"]["mean"] > 0
    run(tmp_path)
    shown = capsys.readouterr().out
    assert shown.startswith("tiny, seed 0")
    assert "seconds" not in shown


def test_a_sweep_that_is_stopped_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    whole, ran = sweeps.run_trial, []

    def stopped(trial):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(trial)
        return whole(trial)

    monkeypatch.setattr(sweeps, "run_trial", stopped)
    with pytest.raises(SystemExit) as error:
        run(tmp_path)
    assert error.value.code == 130
    said = f"What is done is in {tmp_path / 'out.jsonl'}; the same command goes on from there."
    assert said in capsys.readouterr().err.splitlines()
    monkeypatch.setattr(sweeps, "run_trial", lambda trial: ran.append(trial) or whole(trial))
    run(tmp_path)
    assert len(ran) == 5


def test_the_help_names_every_bed():
    assert [name for name in beds() if name != "tiny" and name not in sweep.__doc__] == []


def test_a_bed_of_texts_is_swept_by_the_suites_that_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(TEXTS, "tiny text", TINY_TEXT)
    given = ("--beds", "tiny text", "--suites", "tofu,basic", "--seeds", "1", "--workers", "1")
    main(["sweep", "--methods", "ssd", *given, "--json", "--out", str(tmp_path / "out.jsonl")])
    entries = json.loads(capsys.readouterr().out)
    assert [(entry["contender"], entry["rank"]) for entry in entries] == [
        ("before", None),
        ("retrained", None),
        ("ssd", 1),
    ]
    assert {"forget_quality_log10", "forget_repetition"} <= set(entries[2])


def test_fields_of_the_method_inside_stand_beside_those_of_the_one_around_it():
    [one] = contenders_of("smooth:beta=0.5,rho=0.1")
    assert (one.method.rho, one.method.inner.beta) == (0.1, 0.5)
