"""MUSE's numbers: PrivLeak and AUC closed forms, ROUGE and truncation, the two drivers (card muse)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unwrite.audit import TextContext, evaluate, muse_suite, scalability, sustainability
from unwrite.audit.suites import muse
from unwrite.audit.suites.muse import KnowMem, PrivLeak, VerbMem, cut_answer, few_shot_prompt, privleak
from unwrite.audit.text import context as context_module
from unwrite.audit.text.membership import Membership, auc, min_k
from unwrite.data.text.examples import Example, Examples, ForgetSplit
from unwrite.errors import DataError, MethodError
from unwrite.scoring import rouge_l

from .conftest import taught, tiny_llama

TEXTS = ["the cat sat on the mat", "a dog ran in the fog", "one bee flew by the sea"]
OTHERS = ["my hen ate all the oats", "two owls hid in an oak", "the ox lay in the hay"]


def corpus(name: str = "news") -> ForgetSplit:
    forget = Examples([Example(text) for text in TEXTS], "forget")
    holdout = Examples([Example(text) for text in OTHERS], "holdout")
    shots = Examples([Example("red", "Which hue?")], "icl")
    evaluation = {
        "verbmem_forget": Examples([Example(text[8:], text[:8]) for text in TEXTS]),
        "knowmem_forget": Examples([Example("Paris", "Which town?")]),
        "knowmem_forget_icl": shots,
        "knowmem_retain": Examples([Example("blue", "Which sea?"), Example("old", "Which oak?")]),
        "knowmem_retain_icl": shots,
    }
    return ForgetSplit(forget, None, holdout, evaluation, name=name)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of a few tokens: no model here ends one."""
    monkeypatch.setattr(muse, "VERBATIM_TOKENS", 16)
    monkeypatch.setattr(muse, "ANSWER_TOKENS", 8)


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every model say what a function of its prompts says."""

    def say(speak: Any) -> None:
        monkeypatch.setattr(context_module, "generate_answers", lambda m, t, prompts, **k: speak(prompts))

    return say


@pytest.mark.parametrize(
    ("unlearned", "retrain", "leak"), [(0.5, 0.5, 0.0), (0.0, 0.4772, -100.0), (1.0, 0.4772, 109.56), (0.9, 0.6, 50.0)]
)
def test_privleak_closed_form(unlearned: float, retrain: float, leak: float) -> None:
    assert privleak(unlearned, retrain) == pytest.approx(leak, abs=0.01)


def test_refuses_a_retrained_auc_near_zero() -> None:
    with pytest.raises(DataError, match=r"which is 0\.04"):
        privleak(0.5, 0.04)


def test_auc_closed_form() -> None:
    forget, holdout = [3.0, 1.0], [2.0, 0.0]
    assert auc(holdout, forget) == 0.75
    assert auc(forget, holdout) == 0.25
    assert auc([1.0, 1.0], [1.0]) == 0.5


def test_min_k_takes_the_least_likely_tokens() -> None:
    assert min_k([-5, -1, -0.5, -0.1, -2], 0.4) == 3.5


def test_min_k_of_two_tokens_takes_one_where_the_first_code_took_none() -> None:
    assert min_k([-1.0, -3.0], 0.4) == 3.0


def test_rouge_l_f1_closed_form() -> None:
    rouge = rouge_l("the cat sat on the mat", "the cat on mat", stemmer=False)
    assert rouge == pytest.approx((1, 2 / 3, 0.8))


def test_the_retrained_model_against_itself_has_privleak_zero(tokenizer: Any, model: Any) -> None:
    report = evaluate(tiny_llama(len(tokenizer), 3), corpus(), tokenizer=tokenizer, suite="muse", oracle=model)
    assert report.value("privleak", "oracle") == 0.0


def test_a_model_trained_on_the_forget_texts_is_near_minus_one_hundred(tokenizer: Any, model: Any) -> None:
    learned = taught(model, corpus().forget, tokenizer, steps=60)
    score = PrivLeak()(TextContext(learned, corpus(), tokenizer))
    assert score.value < -90
    assert score.note.startswith("Not MUSE's number")


def test_a_published_auc_stands_in_for_the_retrained_model(tokenizer: Any, model: Any) -> None:
    report = evaluate(model, corpus(), tokenizer=tokenizer, suite=muse_suite(auc_retrain=0.4772))
    assert "Against AUC 0.4772" in report.columns["after"]["privleak"].note


def test_min_k_scores_do_not_depend_on_batch_size_or_padding(tokenizer: Any, model: Any) -> None:
    rows = Examples([*corpus().forget, Example("tiny one")])
    one, many = (
        Membership("min_k").values(TextContext(model, corpus(), tokenizer, batch_size=b), rows[:4]) for b in (1, 4)
    )
    alone = Membership("min_k").values(TextContext(model, corpus(), tokenizer), Examples([rows[3]]))
    assert one == pytest.approx(many, abs=1e-5)
    assert alone[0] == pytest.approx(many[3], abs=1e-5)


def test_an_answer_is_cut_before_the_next_question(tokenizer: Any, model: Any, saying: Any) -> None:
    saying(lambda prompts: ["Paris\n\nQuestion: x"] * len(prompts))
    assert KnowMem("forget")(TextContext(model, corpus(), tokenizer)).value == 100.0
    assert rouge_l("Paris", "Paris\n\nQuestion: x", stemmer=False).f1 == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["Paris\n\nmore", "Paris\nQuestion x", "ParisQuestion: x", "Paris"])
def test_every_stop_mark_cuts(text: str) -> None:
    assert cut_answer(text) == "Paris"


def test_the_few_shot_prompt_is_the_benchmarks() -> None:
    shots = [Example("red", "Which hue?")]
    prompt = few_shot_prompt("Which town?", shots, blank=True)
    assert prompt == "Question: Which hue?\nAnswer: red\n\nQuestion: Which town?\nAnswer: "


def test_the_few_shot_prompt_leaves_the_blank_to_the_answer() -> None:
    assert few_shot_prompt("Which town?", []) == "Question: Which town?\nAnswer:"


def test_perfect_memory_has_verbmem_one_hundred(tokenizer: Any, model: Any, saying: Any) -> None:
    saying(lambda prompts: [text[8:] for text in TEXTS])
    assert VerbMem()(TextContext(model, corpus(), tokenizer)).value == 100.0


def test_random_weights_have_verbmem_near_zero(tokenizer: Any, model: Any) -> None:
    assert VerbMem()(TextContext(model, corpus(), tokenizer)).value < 10


def test_refuses_knowmem_without_its_examples(tokenizer: Any, model: Any) -> None:
    split = corpus()
    bare = ForgetSplit(split.forget, evaluation={"knowmem_forget": split.evaluation["knowmem_forget"]})
    with pytest.raises(DataError, match="'knowmem_forget_icl' is missing"):
        KnowMem("forget")(TextContext(model, bare, tokenizer))


def test_refuses_texts_in_both_forget_and_holdout(tokenizer: Any, model: Any) -> None:
    rows = corpus().forget
    split = ForgetSplit(rows, evaluation={"privleak_holdout": rows[:1]})
    with pytest.raises(DataError, match="1 rows stand in both forget and holdout"):
        PrivLeak()(TextContext(model, split, tokenizer))


def test_refuses_texts_of_two_tokens(tokenizer: Any, model: Any) -> None:
    split = ForgetSplit(Examples([Example("ab")]), holdout=Examples([Example("long enough")]))
    with pytest.raises(DataError, match="at least 3 tokens"):
        PrivLeak()(TextContext(model, split, tokenizer))


def raise_loss(model: Any, forget: Examples, retain: Examples | None) -> Any:
    """One crude unlearning step, in place: enough to tell steps apart."""
    with torch.no_grad():
        model.lm_head.weight += 0.05 * len(forget) * torch.sign(model.lm_head.weight)
    return model


def test_one_request_and_one_fold_are_the_plain_audit(tokenizer: Any, model: Any) -> None:
    fold = corpus()
    plain = evaluate(
        raise_loss(tiny_llama(len(tokenizer)), fold.forget, None), fold, tokenizer=tokenizer, suite="muse", before=model
    )
    for driver in (scalability, sustainability):
        report = driver(raise_loss, model, [fold], tokenizer=tokenizer)
        assert report.columns[report.main] == plain.columns["after"]


def test_an_unlearner_that_does_nothing_changes_no_metric_at_any_step(tokenizer: Any, model: Any) -> None:
    report = sustainability(lambda m, f, r: m, model, [corpus(), corpus(), corpus()], tokenizer=tokenizer)
    assert len(report.columns) == 4
    assert all(column == report.columns["before"] for column in report.columns.values())


def test_requests_build_on_each_other_and_folds_start_anew(tokenizer: Any, model: Any) -> None:
    seen: list[float] = []

    def record(current: Any, forget: Examples, retain: Examples | None) -> Any:
        seen.append(float(current.lm_head.weight.detach().abs().sum()))
        return raise_loss(current, forget, retain)

    scalability(record, model, [corpus()] * 3, tokenizer=tokenizer)
    assert seen[0] == seen[1] == seen[2]
    seen.clear()
    sustainability(record, model, [corpus()] * 3, tokenizer=tokenizer)
    assert seen[0] < seen[1] < seen[2]
    assert float(model.lm_head.weight.detach().abs().sum()) == seen[0]


def test_refuses_no_folds(tokenizer: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="no folds"):
        scalability(raise_loss, model, [], tokenizer=tokenizer)
