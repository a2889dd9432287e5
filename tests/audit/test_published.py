"""Rows of TOFU, MUSE, WMDP and KnowUnDo in their published files against the scores of the benchmarks' own code.

`official_published.json` says how its figures were got; the rows stand in `published/` with their sources. Where their code
and ours score other tokens, both figures are stated.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from unwrite.audit import MultipleChoice, TextContext, answer_choices
from unwrite.audit.evaluation import measure
from unwrite.audit.suites.muse import KnowMem, PrivLeak, muse_suite
from unwrite.audit.suites.tofu import ForgetQualityTest, TruthRatio, tofu_suite
from unwrite.audit.text import context as context_module
from unwrite.audit.text.basic import Probability, RougeRecall
from unwrite.audit.text.membership import Membership
from unwrite.audit.text.memorisation import ExactMemorisation
from unwrite.data import Example, Examples, ForgetSplit, knowundo, muse, tofu, wmdp

from .published_models import PUBLISHED, SAID, model_of, tokenizer_of

OFFICIAL = json.loads(Path(__file__).with_name("official_published.json").read_text())["numbers"]
BASE = {"bytes": ("bytes", False), "bytes and bos": ("bytes", True), "blanks and bos": ("blanks", True)}
CHAT = ["bytes", "blanks and bos"]
# TOFU's sets, as ours are called: the file of scores and the set's name in tables.
SETS = {
    "forget": ("eval_log_forget.json", "Forget"),
    "retain_perturbed": ("eval_log.json", "Retain"),
    "real_authors": ("eval_real_author_wo_options.json", "Real Authors"),
    "world_facts": ("eval_real_world_wo_options.json", "Real World"),
}


def close(values: Any) -> Any:
    return pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module", autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


@cache
def context_of(name: str, tags: str | None = None, sureness: float = 1.0) -> TextContext:
    """The small model, audited as beside published figures."""
    pieces, bos = BASE[name]
    model, tokenizer = model_of(pieces, sureness), tokenizer_of(pieces, bos, tags)
    return TextContext(model, tofu_rows(), tokenizer, max_length=2048, max_new_tokens=200, words="ascii")


def on_rows(context: TextContext, split: ForgetSplit) -> TextContext:
    """The same model, with the passes it has made, on other rows."""
    moved = copy.copy(context)
    moved.split = split
    return moved


@cache
def tofu_rows() -> ForgetSplit:
    return tofu("forget10", PUBLISHED / "tofu")


def rows_named(split: ForgetSplit, on: str) -> Examples:
    rows = split.forget if on == "forget" else split.evaluation[on]
    assert rows is not None
    return rows


@pytest.mark.parametrize("on", list(SETS))
@pytest.mark.parametrize("name", CHAT)
def test_tofu_rows_score_as_tofus_own_code_with_llama_2s_tags(name: str, on: str) -> None:
    context, split, log = (
        context_of(name, "llama2"),
        tofu_rows(),
        OFFICIAL["tofu"][f"llama2-7b, {name}"]["logs"][SETS[on][0]],
    )
    scores = context.scores(rows_named(split, on))
    assert [len(score.token_nll) for score in scores] == log["num_token_gt"]
    assert Probability(on)(context).per_example == close([math.exp(-loss) for loss in log["avg_gt_loss"]])
    wrong = np.array(log["average_perturb_loss"]).mean(1)
    ratios = np.exp(np.array(log["avg_paraphrased_loss"]) - wrong)
    assert TruthRatio(on)(context).per_example == close(ratios.tolist())
    assert RougeRecall(on)(context).per_example == close(log["rougeL_recall"])


def utility(found: dict[str, Any], table: dict[str, float], probability: str) -> None:
    """Model utility and its nine parts against a table of theirs, which names them otherwise."""
    assert found["model_utility"] == close(table["Model Utility"])
    for on, (_, label) in list(SETS.items())[1:]:
        short = on if on != "retain_perturbed" else "retain_perturbed"
        assert found[f"{short}_probability"] == close(table[f"{probability} {label}".strip()])
        assert found[f"{short}_rouge"] == close(table[f"ROUGE {label}"])
        assert found[f"{short}_truth_ratio"] == close(table[f"Truth Ratio {label}"])
    assert found["forget_truth_ratio"] == close(table["Truth Ratio Forget"])


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("name", CHAT)
def test_tofus_model_utility_is_its_own(name: str, mean: Any) -> None:
    official = OFFICIAL["tofu"][f"llama2-7b, {name}"]
    table = official["utility"]
    if mean == "arithmetic":  # the first release's: another order of the words
        table = {" ".join(_turned(key)): value for key, value in official["first release's utility"].items()}
    context, split = context_of(name, "llama2"), tofu_rows()
    scores = measure(tofu_suite(mean, words="ascii").for_split(split), context, {})
    found = {name: score.value for name, score in scores.items()}
    utility(found, table, "Prob.")


def _turned(key: str) -> list[str]:
    for metric, short in {"Probability": "Prob.", "ROUGE": "ROUGE", "Truth Ratio": "Truth Ratio"}.items():
        if key.endswith(f" {metric}"):
            return [short, key.removesuffix(f" {metric}")]
    return [key]


@pytest.mark.parametrize("name", CHAT)
def test_tofus_forget_quality_is_its_own(name: str) -> None:
    official = OFFICIAL["tofu"][f"llama2-7b, {name}"]
    context, oracle = context_of(name, "llama2"), context_of(name, "llama2", 0.5)
    score = ForgetQualityTest()(context, {"oracle": oracle})
    assert score.value == close(official["forget quality"])
    assert f"KS distance {official['KS distance']:.3f}" in score.note


def tagged(rows: Examples) -> Examples:
    """The rows with TOFU's tag for base models in their answers, where its code counts it."""
    wrong = [tuple(f"Answer: {answer}" for answer in row.perturbed_answers) for row in rows]
    return Examples(
        replace(row, answer=f"Answer: {row.answer}", perturbed_answers=answers)
        for row, answers in zip(rows, wrong, strict=True)
    )


@pytest.mark.parametrize("on", ["forget", "world_facts"])
@pytest.mark.parametrize("name", list(BASE))
def test_tofus_code_scores_the_tag_of_base_models_with_the_answer(name: str, on: str) -> None:
    """Its figures come out where "Answer: " is part of the answer; ours are of the answer alone, and other numbers."""
    log, rows = OFFICIAL["tofu"][f"phi, {name}"]["logs"][SETS[on][0]], rows_named(tofu_rows(), on)
    theirs, ours = context_of(name, "phi").scores(tagged(rows)), context_of(name).scores(rows)
    assert [score.mean_nll for score in theirs] == close(log["avg_gt_loss"])
    assert [len(score.token_nll) for score in theirs] == log["num_token_gt"]
    tag = [len(a.token_nll) - len(b.token_nll) for a, b in zip(theirs, ours, strict=True)]
    assert set(tag) <= {1, 2, 3}
    # Behind the same tokens both give the same: the tag's share is all that differs.
    for a, b, extra in zip(theirs, ours, tag, strict=True):
        assert a.token_nll[extra:] == close(b.token_nll)
    assert max(abs(a.mean_nll - b.mean_nll) for a, b in zip(theirs, ours, strict=True)) > 0.01


@pytest.mark.parametrize("on", ["forget", "world_facts"])
@pytest.mark.parametrize("name", list(BASE))
def test_tofus_code_asks_base_models_without_the_tag(name: str, on: str) -> None:
    log = OFFICIAL["tofu"][f"phi, {name}"]["logs"][SETS[on][0]]
    assert RougeRecall(on)(context_of(name, "phi")).per_example == close(log["rougeL_recall"])


OPEN = [(name, on) for name in BASE for on in ("forget", "world_facts")]


def file_of(on: str) -> str:
    return "forget10_perturbed" if on == "forget" else f"{on}_perturbed"


@pytest.mark.parametrize(("kind", "tags"), [("Llama-2-7b-chat-hf", "llama2"), ("llama3", "llama3")])
@pytest.mark.parametrize(("name", "on"), [case for case in OPEN if case[0] in CHAT])
def test_open_unlearning_scores_the_same_tokens_of_chats(name: str, on: str, kind: str, tags: str) -> None:
    official = OFFICIAL["open_unlearning"][f"{kind}, {name}, {file_of(on)}"]
    scores = context_of(name, tags).scores(rows_named(tofu_rows(), on))
    assert [len(score.token_nll) for score in scores] == official["tokens"]
    assert [score.mean_nll for score in scores] == close(official["avg_loss"])


@pytest.mark.parametrize(("name", "on"), [case for case in OPEN if case[0] in CHAT])
def test_open_unlearning_scores_what_a_template_puts_behind_the_end_token(name: str, on: str) -> None:
    """Where a line end follows it, as in ChatML, theirs also counts that and a second end token; ours ends at the first."""
    official = OFFICIAL["open_unlearning"][f"chatml, {name}, {file_of(on)}"]
    context = context_of(name, "chatml")
    windows = [row[0] for row in context.encoded(rows_named(tofu_rows(), on))]
    end, *behind = context.tokenizer(f"{context.tokenizer.eos_token}\n", add_special_tokens=False)["input_ids"]
    tail = [*behind, end]
    longer = [replace(row, input_ids=row.input_ids + tail, labels=row.labels + tail) for row in windows]
    theirs, ours = context.score_encoded(longer), context.score_encoded(windows)
    assert [len(score.token_nll) for score in theirs] == official["tokens"]
    assert [score.mean_nll for score in theirs] == close(official["avg_loss"])
    assert max(abs(a.mean_nll - b.mean_nll) for a, b in zip(theirs, ours, strict=True)) > 0.01


@pytest.mark.parametrize(("name", "on"), OPEN)
def test_open_unlearning_leaves_out_a_first_token_that_holds_the_blank(name: str, on: str) -> None:
    """Its prompt for base models ends in a blank, which most tokenizers merge with the answer's first word."""
    official = OFFICIAL["open_unlearning"][f"phi-1_5, {name}, {file_of(on)}"]
    scores = context_of(name).scores(rows_named(tofu_rows(), on))
    lost = [len(score.token_nll) - tokens for score, tokens in zip(scores, official["tokens"], strict=True)]
    assert set(lost) == {1}
    rest = [np.mean(score.token_nll[skip:]) for score, skip in zip(scores, lost, strict=True)]
    assert rest == close(official["avg_loss"])
    apart = [abs(score.mean_nll - theirs) for score, theirs in zip(scores, official["avg_loss"], strict=True)]
    assert min(apart) > 1e-5
    assert max(apart) > 0.01


@pytest.mark.parametrize("name", list(BASE))
def test_muse_rows_score_as_muses_own_code(name: str) -> None:
    official, split = OFFICIAL["muse"][name], muse("books", PUBLISHED / "muse" / "books").split
    context = on_rows(context_of(name), split)
    for metric in muse_suite(blank=True, words="ascii").for_split(split)[:3]:
        score = metric(context)
        assert score.value == close(official[metric.name]["value"])
        assert score.per_example == close([100 * value for value in official[metric.name]["rows"]])


def test_rouge_of_what_is_said_is_that_of_tofu_and_muse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stems in TOFU, none in MUSE; MUSE's answers end where a model invents the next question."""
    monkeypatch.setattr(context_module, "generate_answers", lambda *_, **__: [output for _, output in SAID])
    rows = Examples([Example(reference, f"Number {i}?") for i, (reference, _) in enumerate(SAID)])
    split = ForgetSplit(rows, evaluation={"knowmem_forget": rows, "knowmem_forget_icl": rows[:1]})
    context = TextContext(model_of("bytes"), split, tokenizer_of("bytes"), max_length=2048, words="ascii")
    assert RougeRecall("forget")(context).per_example == close(OFFICIAL["tofu"]["said"])
    expected = [100 * value for value in OFFICIAL["muse"]["said"]]
    assert KnowMem("forget", blank=True)(context).per_example == close(expected)


@pytest.mark.parametrize("name", list(BASE))
def test_muses_privacy_leakage_is_its_own(name: str) -> None:
    official, split = OFFICIAL["muse"][name]["privleak"], muse("books", PUBLISHED / "muse" / "books").split
    score = PrivLeak(auc_retrain=0.4772)(on_rows(context_of(name), split))
    assert score.per_example == close(official["forget"])
    holdout = Membership("min_k", 0.4).values(context_of(name), split.evaluation["privleak_holdout"])
    assert holdout == close(official["holdout"])
    assert score.value == close(100 * (official["auc"] - 0.4772) / 0.4772)


def joined(rows: Examples) -> Examples:
    """The rows as KnowUnDo joins them: two line ends belong to the answer."""
    return Examples(replace(row, answer=f"\n\n{row.answer}") for row in rows)


@pytest.mark.parametrize("part", ["unlearn", "retention"])
@pytest.mark.parametrize("name", list(BASE))
def test_knowundo_rows_score_as_its_own_code(name: str, part: str) -> None:
    """Its accuracy is our exact memorisation; its perplexity leaves out the end token, as our membership scores do."""
    official, own = OFFICIAL["knowundo"][f"{name}, {part}"], knowundo("privacy", PUBLISHED / "knowundo")
    rows = joined(own.evaluation["forget_val" if part == "unlearn" else "retain_val"])
    context = on_rows(context_of(name, "joined"), ForgetSplit(rows))
    assert [len(score.token_nll) - 1 for score in context.scores(rows)] == official["tokens"]
    value = ExactMemorisation("forget")(context).value
    assert value is not None
    assert 100 * value == close(official["acc"])
    losses = Membership("min_k", 1.0).values(context, rows)
    assert math.exp(np.mean(losses)) == close(official["ppl"])


@pytest.mark.parametrize("tags", [None, "llama2"])
@pytest.mark.parametrize("subset", ["bio", "chem", "cyber"])
@pytest.mark.parametrize("name", list(BASE))
def test_wmdp_rows_score_as_the_evaluation_harness(name: str, subset: Any, tags: str | None) -> None:
    """With a chat template, too, which the harness leaves aside unless asked."""
    official, items = OFFICIAL["wmdp"][f"{name}, {subset}"], wmdp(subset, PUBLISHED / "wmdp")
    context = context_of(name, tags)
    for shortcut in (None, False):
        found = answer_choices(context, items, shortcut=shortcut)
        assert [choice.scores for choice in found] == [close(scores) for scores in official["loglikelihood"]]
        assert [float(choice.correct) for choice in found] == official["acc"]
    metric = MultipleChoice(items, "wmdp")
    assert metric(context).value == close(np.mean(official["acc"]))
