"""Stopping early: both reasons, the start values, and what is refused."""

from math import exp

import pytest
from forgetting import train

from conftest import make_llama
from unwrite.data.text.encoding import encode_all
from unwrite.errors import MethodError
from unwrite.forget import GradientAscent, StopWhenForgotten
from unwrite.forget.engine.text.stopping import answer_probability
from unwrite.scoring import score_answers

FAST = {"learning_rate": 0.5, "max_steps": 40, "max_grad_norm": 1.0}


def test_stops_when_the_forget_answers_are_unlikely_enough(forget, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": forget}, target=0.5, every=1)
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], **FAST)
    last, before = stop.history[-1], stop.history[-2]
    assert stop.reason == f"forgotten at step {last['step']:g}"
    assert last["step"] < 40
    assert last["forget"] <= 0.5 * stop.history[0]["forget"] < before["forget"]


def test_stops_when_what_must_stay_starts_to_go(forget, retain, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": forget}, {"retain": retain}, target=1e-9, floor=0.9, every=1)
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], **FAST)
    last = stop.history[-1]
    assert stop.reason == f"retain fell below 0.9 of its start at step {last['step']:g}"
    assert last["retain"] < 0.9 * stop.history[0]["retain"]


def test_all_named_forget_sets_must_be_gone(forget, retain, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"asked": forget, "never trained": retain}, target=0.5, every=1)
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], **FAST)
    assert all(stop.history[-1][name] <= 0.5 * stop.history[0][name] for name in ("asked", "never trained"))


def test_runs_to_the_end_when_neither_happens(forget, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": forget}, target=0.1, every=1)
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], max_steps=2, learning_rate=1e-6)
    assert stop.reason == "all epochs done"
    assert [row["step"] for row in stop.history] == [0, 1, 2]


def test_start_values_are_of_the_model_before_unlearning(forget, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": forget})
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], max_steps=1)
    assert stop.history[0]["forget"] == pytest.approx(answer_probability(make_llama(), tokenizer, forget))


def test_start_values_of_a_resumed_run_are_those_of_the_whole_run(forget, tokenizer, tmp_path):
    options = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1, **FAST, "max_steps": 3}
    train(GradientAscent(), make_llama(), forget, None, tokenizer, **options)
    stop = StopWhenForgotten(tokenizer, {"forget": forget}, every=1, target=0.01)
    train(
        GradientAscent(), make_llama(), forget, None, tokenizer,
        callbacks=[stop], resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **options,
    )  # fmt: skip
    assert stop.history[0]["forget"] == pytest.approx(answer_probability(make_llama(), tokenizer, forget))


def test_is_checked_every_so_many_steps(forget, tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": forget}, every=2)
    train(GradientAscent(), tiny_llama, forget, None, tokenizer, callbacks=[stop], max_steps=5, learning_rate=1e-6)
    assert [row["step"] for row in stop.history] == [0, 2, 4]


def test_answer_probability_is_tofus(forget, tokenizer, tiny_llama):
    scores = score_answers(tiny_llama, encode_all(forget, tokenizer), pad_id=0)
    expected = sum(exp(-score.nll / len(score.token_nll)) for score in scores) / len(scores)
    assert answer_probability(tiny_llama, tokenizer, forget) == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields",
    [{"target": 0.0}, {"target": 1.0}, {"floor": -0.1}, {"floor": 1.0}, {"every": 0}, {"target": float("nan")}],
)
def test_refuses_a_share_without_meaning(fields, tokenizer, forget):
    with pytest.raises(MethodError, match=f"{next(iter(fields))} is"):
        StopWhenForgotten(tokenizer, {"forget": forget}, **fields)
