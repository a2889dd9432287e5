"""Against numbers open-unlearning's own metric code gave on the same weights and rows (parity.json says how)."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from unwrite.audit import TextContext
from unwrite.audit.suites.muse import privleak
from unwrite.audit.suites.tofu import OptionProbability, aggregate, truth_ratios
from unwrite.audit.text.membership import Membership, auc
from unwrite.audit.text.memorisation import exact_memorisation, extraction_strength
from unwrite.data.text.encoding import IGNORE, Encoded
from unwrite.data.text.examples import Example, Examples, ForgetSplit

from .conftest import tiny_llama, waves

STORED = json.loads(Path(__file__).with_name("parity.json").read_text())
EXPECTED = STORED["expected"]
FORGET = Examples(
    [
        Example(
            row["answer"],
            row["question"],
            paraphrased_answer=row["paraphrased_answer"],
            perturbed_answers=tuple(row["perturbed"]),
        )
        for row in STORED["rows"]
    ]
)
HOLDOUT = Examples([Example(row["answer"], row["question"]) for row in STORED["holdout"]])


def close(values: Any) -> Any:
    return pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def contexts(tokenizer: Any) -> tuple[TextContext, TextContext]:
    """The model, and the one that the reference attack compares with."""
    model = waves(tiny_llama(len(tokenizer)))
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)
    split = ForgetSplit(HOLDOUT, evaluation={"real_authors": FORGET})
    return TextContext(model, split, tokenizer), TextContext(reference, split, tokenizer)


@pytest.fixture(scope="module")
def context(contexts: tuple[TextContext, TextContext]) -> TextContext:
    return contexts[0]


def test_answer_probabilities_agree(context: TextContext) -> None:
    found = [math.exp(-score.mean_nll) for score in context.scores(FORGET)]
    assert found == pytest.approx(EXPECTED["probability"], rel=1e-5)


def test_truth_ratios_and_their_aggregates_agree(context: TextContext) -> None:
    found = truth_ratios(context, FORGET)
    assert found.tolist() == close(EXPECTED["truth_ratio"]["ratios"])
    for how in ("closer_to_1_better", "true_better"):
        assert aggregate(found, how) == close(EXPECTED["truth_ratio"][how])  # type: ignore[arg-type]


def test_option_probabilities_agree(context: TextContext) -> None:
    assert OptionProbability("real_authors")(context).per_example == close(EXPECTED["option_probability"])


@pytest.mark.parametrize("metric", [extraction_strength, exact_memorisation])
def test_memorisation_agrees(context: TextContext, metric: Any) -> None:
    rows = []
    for row in STORED["id_rows"]:
        start = row["prompt_length"]
        rows.append(Encoded(row["input_ids"], [IGNORE] * start + row["input_ids"][start:]))
    found = [metric(score.correct[:-1]) for score in context.score_encoded(rows)]
    assert found == close(EXPECTED[metric.__name__])


@pytest.mark.parametrize("attack", ["loss", "zlib", "reference", "gradnorm", "min_k", "min_k++"])
def test_membership_attacks_agree(contexts: tuple[TextContext, TextContext], attack: Any) -> None:
    context, references = contexts[0], {"oracle": contexts[1]}
    expected = EXPECTED["membership"][attack]
    metric = Membership(attack, 0.2 if attack == "min_k++" else 0.4)
    forget, holdout = metric.values(context, FORGET, references), metric.values(context, HOLDOUT, references)
    assert forget == close(expected["forget"])
    assert holdout == close(expected["holdout"])
    assert auc(forget, holdout) == close(expected["auc"])


def test_privleak_agrees_through_the_complement_of_the_auc() -> None:
    conventional = EXPECTED["membership"]["min_k"]["auc"]
    assert privleak(1 - conventional, 1 - 0.6) == close(EXPECTED["privleak_against_auc_0.6"])
