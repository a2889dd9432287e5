"""Six membership attacks: each sees what a model was trained on, and none sees anything in one that wasn't."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from unwrite.audit import TextContext, evaluate
from unwrite.audit.text.membership import ATTACKS, Membership, auc, gradient_norm, min_k
from unwrite.data.text.examples import ForgetSplit
from unwrite.errors import DataError, MethodError


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_sees_what_the_target_was_trained_on(
    attack: Any, tokenizer: Any, split: Any, target: Any, oracle: Any
) -> None:
    context, other = (TextContext(model, split, tokenizer) for model in (target, oracle))
    assert Membership(attack)(context, {"oracle": other}).value == 1.0


def test_the_membership_suite_reports_all_six(tokenizer: Any, split: Any, target: Any, oracle: Any) -> None:
    report = evaluate(target, split, tokenizer=tokenizer, oracle=oracle, suite="membership")
    assert len(report.columns["after"]) == 6


def test_auc_agrees_with_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30).tolist(), rng.integers(0, 6, 20).tolist()
    pairs = np.mean([(y > x) + 0.5 * (y == x) for x in a for y in b])
    assert auc(a, b) == pytest.approx(pairs)


def test_min_k_plus_plus_standardises_under_the_models_own_distribution(tokenizer: Any, split: Any, model: Any) -> None:
    row = TextContext(model, split, tokenizer).encoded(split.forget[:1])[0][0]
    with torch.no_grad():
        log_p = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
    z = []
    for at in range(row.prompt_length, len(row.input_ids) - 1):  # the end token is left out
        here = log_p[at - 1]
        mean = (here.exp() * here).sum()
        deviation = ((here.exp() * here**2).sum() - mean**2).sqrt()
        z.append(float((here[row.input_ids[at]] - mean) / deviation))
    found = Membership("min_k++", 0.2).values(TextContext(model, split, tokenizer), split.forget)[0]
    assert found == pytest.approx(min_k(z, 0.2), abs=1e-3)  # a float32 variance of near-uniform log p


def test_zlib_divides_by_the_compressed_length(tokenizer: Any, split: Any, model: Any) -> None:
    context = TextContext(model, split, tokenizer)
    loss = Membership("loss").values(context, split.forget)[0]
    size = len(zlib.compress(b"in oslo"))
    assert Membership("zlib").values(context, split.forget)[0] == pytest.approx(loss / size)


def test_the_gradient_norm_leaves_the_model_without_gradients(tokenizer: Any, split: Any, model: Any) -> None:
    assert math.isfinite(gradient_norm(TextContext(model, split, tokenizer), split.forget[0]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_does_not_apply_without_a_holdout(split: Any) -> None:
    assert not Membership().applies(ForgetSplit(split.forget))


def test_the_reference_attack_without_reference_says_what_to_pass(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="pass oracle or before"):
        Membership("reference")(TextContext(model, split, tokenizer))


def test_the_reference_attack_takes_the_oracle_and_else_the_model_before(
    tokenizer: Any, split: Any, model: Any, target: Any, oracle: Any
) -> None:
    context, before, retrained = (TextContext(one, split, tokenizer) for one in (model, target, oracle))
    attack = Membership("reference")
    assert attack(context, {"before": before, "oracle": retrained}) == attack(context, {"oracle": retrained})
    assert attack(context, {"before": before}) == attack(context, {"before": before, "random": retrained})
    assert attack(context, {"before": before}) != attack(context, {"oracle": retrained})
    assert Membership("reference", reference=target)(context) == attack(context, {"before": before})


def test_refuses_an_unknown_attack() -> None:
    with pytest.raises(MethodError, match="unknown membership attack 'min_k\\+'"):
        Membership("min_k+")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -0.1, 1.5])
def test_refuses_a_fraction_of_tokens_outside_zero_to_one(k: float) -> None:
    with pytest.raises(MethodError, match="fraction of the tokens"):
        min_k([-1.0], k)


def test_refuses_an_auc_with_an_empty_side() -> None:
    with pytest.raises(DataError, match="both sides"):
        auc([], [1.0])
