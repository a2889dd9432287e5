"""TOFU's numbers: closed forms, KS anchors of the published table, refusals (card tofu)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unwrite.audit import TextContext, evaluate, tofu_suite
from unwrite.audit.suites.tofu import (
    ForgetQualityTest,
    TruthRatio,
    aggregate,
    forget_quality,
    model_utility,
    read_retain_scores,
    row_ids,
    save_retain_scores,
    truth_ratio,
    truth_ratios,
)
from unwrite.data.text.examples import ForgetSplit
from unwrite.errors import DataError, MethodError
from unwrite.runs import write_json

SHORT = replace(tofu_suite(), max_new_tokens=8)  # of answers that no test here reads


def named(values: Any) -> dict[str, float]:
    return {str(i): float(v) for i, v in enumerate(values)}


def test_geometric_truth_ratio_closed_form() -> None:
    assert truth_ratio([[1, 2, 3]], [1.5])[0] == pytest.approx(0.606531, abs=1e-6)


def test_arithmetic_truth_ratio_closed_form() -> None:
    assert truth_ratio([[1, 2, 3]], [1.5], "arithmetic")[0] == pytest.approx(0.826127, abs=1e-6)


def test_aggregators_closed_form() -> None:
    ratios = truth_ratio([[1, 2, 3]], [1.5])
    assert aggregate(ratios, "closer_to_1_better") == pytest.approx(0.606531, abs=1e-6)
    assert aggregate(ratios, "true_better") == pytest.approx(0.393469, abs=1e-6)
    assert aggregate(ratios, "prob_mean") == pytest.approx(1 / 1.606531, abs=1e-6)


def test_each_row_may_have_its_own_number_of_wrong_answers() -> None:
    assert truth_ratio([[1.0], [1.0, 1.0, 1.0]], [1.0, 1.0]) == pytest.approx([1, 1])


def test_huge_losses_neither_overflow_nor_vanish() -> None:
    assert np.isfinite(truth_ratio([[2000.0], [1.0]], [1.0, 2000.0])).all()


@pytest.mark.parametrize(
    ("parts", "utility"),
    [([0.5, 0.5, 1.0], 0.6), ([0.9] * 8 + [0.0], 0.0), ([0.9] * 8 + [0.1], 0.476471)],
)
def test_model_utility_is_a_harmonic_mean(parts: list[float], utility: float) -> None:
    assert model_utility(parts) == pytest.approx(utility, abs=1e-6)


def test_identical_samples_have_forget_quality_one() -> None:
    same = named([0.1, 0.5, 0.9])
    assert forget_quality(same, same).p == 1.0


def test_forget_quality_of_half_shifted_samples() -> None:
    quality = forget_quality(named([1, 2, 3, 4]), named([3, 4, 5, 6]))
    assert quality.distance == 0.5
    assert quality.p == pytest.approx(0.771429, abs=1e-6)


@pytest.mark.parametrize(("n", "p"), [(40, 1.8603e-23), (200, 1.9426e-119), (400, 1.0636e-239)])
def test_fully_separated_samples_give_the_published_gradient_ascent_rows(n: int, p: float) -> None:
    quality = forget_quality(named(range(n)), named(range(1000, 1000 + n)))
    assert quality.p == pytest.approx(p, rel=1e-4)
    assert quality.log10_p == pytest.approx(math.log10(p), abs=1e-4)


def test_log10_p_goes_on_where_p_underflows() -> None:
    quality = forget_quality(named(range(600)), named(range(1000, 1600)))
    assert quality.p == 0.0
    assert quality.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(1200, 600)))


@pytest.mark.parametrize("change", [np.log, lambda x: 1 / x])
def test_forget_quality_does_not_change_under_monotone_maps(change: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 2, 50), rng.uniform(0.3, 2, 50)
    assert forget_quality(named(change(a)), named(change(b))).p == forget_quality(named(a), named(b)).p


def test_the_sign_says_on_which_side_of_the_oracle() -> None:
    assert forget_quality(named([2, 3, 4]), named([1, 1, 1])).sign == 2
    assert forget_quality(named([0, 0, 0]), named([1, 1, 1])).sign == -1


def test_refuses_forget_quality_when_lengths_differ() -> None:
    with pytest.raises(DataError, match="3 here, 2 in the retrained"):
        forget_quality(named([1, 2, 3]), named([1, 2]))


def test_refuses_forget_quality_when_ids_differ_and_names_the_row() -> None:
    with pytest.raises(DataError, match="row b is not among"):
        forget_quality({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0})


def test_refuses_a_row_without_wrong_answers() -> None:
    with pytest.raises(DataError, match="row 1 has no wrong answer"):
        truth_ratio([[1.0], []], [1.0, 1.0])


def test_refuses_losses_that_are_not_finite() -> None:
    with pytest.raises(DataError, match="row 0 has a loss that is not finite"):
        truth_ratio([[float("nan")]], [1.0])


def test_refuses_an_unknown_mean() -> None:
    with pytest.raises(MethodError, match="'harmonic'"):
        truth_ratio([[1.0]], [1.0], "harmonic")  # type: ignore[arg-type]


def test_a_model_with_constant_logits_has_truth_ratio_one_and_no_utility(
    tokenizer: Any, split: Any, model: Any
) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    report = evaluate(model, split, tokenizer=tokenizer, suite=SHORT)
    assert report.columns["after"]["forget_truth_ratio"].per_example == pytest.approx([1.0] * 4, abs=1e-5)
    assert report.value("forget_truth_ratio") == pytest.approx(1, abs=1e-5)
    assert report.value("retain_truth_ratio") == pytest.approx(0, abs=1e-5)
    assert report.value("model_utility") == pytest.approx(0, abs=1e-5)


def test_forget_and_retain_take_the_paraphrase_and_world_facts_the_answer(
    tokenizer: Any, split: Any, target: Any
) -> None:
    context = TextContext(target, split, tokenizer)
    world = split.evaluation["world_facts"]
    assert TruthRatio("forget")(context).per_example == truth_ratios(context, split.forget).tolist()
    plain = truth_ratios(context, world, paraphrase=False).tolist()
    assert TruthRatio("world_facts")(context).per_example == plain


def test_forget_quality_without_an_oracle_has_no_value_and_says_why(tokenizer: Any, split: Any, model: Any) -> None:
    score = evaluate(model, split, tokenizer=tokenizer, suite=SHORT).columns["after"]["forget_quality"]
    assert score.value is None
    assert score.note == "Needs a retrained model."


def test_the_oracle_against_itself_has_forget_quality_one(tokenizer: Any, split: Any, target: Any, oracle: Any) -> None:
    report = evaluate(target, split, tokenizer=tokenizer, oracle=oracle, suite=SHORT)
    assert report.value("forget_quality", "oracle") == 1.0
    assert report.value("forget_quality") < 0.05
    assert "4 rows; KS distance 1.000; median truth ratio +" in report.columns["after"]["forget_quality"].note


def test_stored_oracle_scores_give_the_same_forget_quality(
    tokenizer: Any, split: Any, target: Any, oracle: Any, tmp_path: Any
) -> None:
    live = evaluate(target, split, tokenizer=tokenizer, oracle=oracle, suite=SHORT)
    save_retain_scores(tmp_path / "oracle.json", TextContext(oracle, split, tokenizer), split.forget)
    suite = replace(tofu_suite(retain_scores=tmp_path / "oracle.json"), max_new_tokens=8)
    stored = evaluate(target, split, tokenizer=tokenizer, suite=suite)
    assert stored.value("forget_quality") == live.value("forget_quality")


def test_refuses_stored_scores_of_other_rows(tokenizer: Any, split: Any, oracle: Any, tmp_path: Any) -> None:
    save_retain_scores(tmp_path / "oracle.json", TextContext(oracle, split, tokenizer), split.retain)
    other = ForgetSplit(split.forget[:2])
    metric = ForgetQualityTest(tmp_path / "oracle.json")
    with pytest.raises(DataError, match="is not among the retrained"):
        metric(TextContext(oracle, other, tokenizer))


def test_refuses_stored_scores_of_the_other_mean(tokenizer: Any, split: Any, oracle: Any, tmp_path: Any) -> None:
    save_retain_scores(tmp_path / "oracle.json", TextContext(oracle, split, tokenizer), split.forget, "arithmetic")
    with pytest.raises(DataError, match="scores use the 'arithmetic' mean, this audit the geometric"):
        read_retain_scores(tmp_path / "oracle.json", split.forget)


def test_reads_an_open_unlearning_result_file(split: Any, tmp_path: Any) -> None:
    entries = {str(i): {"score": 0.5 + i} for i in range(4)}
    write_json(tmp_path / "TOFU_EVAL.json", {"forget_truth_ratio": {"value_by_index": entries}})
    scores = read_retain_scores(tmp_path / "TOFU_EVAL.json", split.forget)
    assert scores == dict(zip(row_ids(split.forget), [0.5, 1.5, 2.5, 3.5], strict=True))


def test_refuses_a_file_that_is_no_score_file(split: Any, tmp_path: Any) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(DataError, match=r"x\.json: neither"):
        read_retain_scores(tmp_path / "x.json", split.forget)


def test_model_utility_says_when_it_is_not_over_nine_numbers(tokenizer: Any, split: Any, target: Any) -> None:
    report = evaluate(target, split, tokenizer=tokenizer, suite=SHORT)
    assert "Over 6 numbers" in report.columns["after"]["model_utility"].note
