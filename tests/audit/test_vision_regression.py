"""Regression audits: distances and attacks by hand, relearning that leaves the models alone, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unwrite.audit.attacks.relearning_time import ain, relearn, validation_loss
from unwrite.audit.images.regression import (
    histogram,
    regression_error,
    regression_membership_attack,
    relative_difference,
    wasserstein,
)
from unwrite.errors import DataError, MethodError, NotFinite

FAST: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 8}
DRAWS = np.random.default_rng(0).normal(size=300)
X = torch.linspace(-1, 1, 33)[:, None]
TRAIN, VALIDATION = (X, 2 * X + 1), (X[::4], 2 * X[::4] + 1)


def fitted(bias: float) -> nn.Sequential:
    """A small net with batch normalisation and dropout; weights from a seed, the last bias as given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1)).eval()
    with torch.no_grad():
        model[-1].bias.fill_(bias)
    return model


def errors(scale: float, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets with normal errors of that deviation."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=rows)
    return targets + scale * rng.normal(size=rows), targets


def test_errors_by_hand() -> None:
    assert regression_error([1.0, 2.0, 4.0], [1.0, 4.0, 1.0]).value == pytest.approx(5 / 3)
    assert regression_error([1.0, 2.0, 4.0], [1.0, 4.0, 1.0], error="mse").value == pytest.approx(13 / 3)
    assert regression_error([1.0], [1.0], "retain").name == "retain_mae"


def test_a_column_and_a_row_of_targets_are_the_same_and_nothing_broadcasts() -> None:
    flat, tall = DRAWS, DRAWS[:, None]
    for error in ("mae", "mse"):
        values = {regression_error(a, -b, error=error).value for a in (flat, tall) for b in (flat, tall)}
        assert len(values) == 1
    assert len(regression_error(tall, flat).per_example) == 300
    losses = {validation_loss(fitted(0.0), (X, y)) for y in (TRAIN[1], TRAIN[1][:, 0])}
    assert len(losses) == 1


def test_w1_of_a_model_with_itself_is_0_and_of_a_shift_its_size() -> None:
    assert wasserstein(DRAWS, DRAWS).value == 0.0
    for c in (-2.5, 0.25, 3.0):
        assert wasserstein(DRAWS + c, DRAWS[::-1]).value == pytest.approx(abs(c))


def test_relative_difference_takes_the_targets_size_and_leaves_out_zeros() -> None:
    score = relative_difference([1.0, 2.0, 3.0], [2.0, 2.0, 9.0], [-2.0, 4.0, 0.0])
    assert score.per_example == [0.5, 0.0, None]
    assert score.value == 0.25
    assert "1 of 3 rows" in score.note


def test_the_histogram_loses_no_row() -> None:
    values = [*np.abs(2 * DRAWS).tolist(), None, 2.0]
    found = histogram(values)
    assert found.counts.sum() + found.beyond == 301
    assert found.edges[[0, -1]].tolist() == [0.0, 2.0]


def test_rows_with_members_errors_are_called_members_and_strangers_not() -> None:
    retain, test = errors(0.05, 300, 0), errors(3.0, 300, 1)
    assert regression_membership_attack(errors(0.05, 200, 2), retain, test).value > 95  # type: ignore[operator]
    assert regression_membership_attack(errors(3.0, 200, 3), retain, test).value < 15  # type: ignore[operator]


def test_members_learned_from_forget_rows_turn_the_answer_round() -> None:
    """Forget errors are near 5, as a fifth of the test errors and no retain error are: only the repo's members differ."""
    forget = np.full(200, 5.0) + DRAWS[:200] / 50, np.zeros(200)
    retain, test = errors(0.3, 200, 1), errors(0.3, 400, 2)
    test[0][:80] = test[1][:80] + 5 + DRAWS[:80] / 50
    assert regression_membership_attack(forget, retain, test).value == 0.0
    assert regression_membership_attack(forget, retain, test, members="repo").value == 100.0


def test_the_attack_draws_as_many_rows_a_side_by_its_seed() -> None:
    sets = errors(1.0, 50, 0), errors(0.5, 300, 1), errors(1.5, 120, 2)
    score = regression_membership_attack(*sets, rows=80)
    assert score.note == "Learnt from 80 rows a side."
    assert regression_membership_attack(*sets).note == "Learnt from 120 rows a side."
    assert score == regression_membership_attack(*sets, rows=80)


def test_ain_of_the_oracle_is_1() -> None:
    oracle, original = fitted(-3.0), fitted(1.0)
    score = ain(oracle, oracle, original, TRAIN, VALIDATION, **FAST)
    assert score.value == 1.0
    assert "did not get there" not in score.note


def test_ain_of_the_original_is_one_step_of_the_oracles() -> None:
    oracle, original = fitted(-3.0), fitted(1.0)
    bar = 1.05 * validation_loss(original, VALIDATION)
    gold = relearn(oracle, TRAIN, VALIDATION, bar, **FAST)
    assert gold.reached
    assert gold.steps > 3
    assert relearn(original, TRAIN, VALIDATION, bar, **FAST).steps == 1
    assert ain(original, oracle, original, TRAIN, VALIDATION, **FAST).value == 1 / gold.steps


def test_a_model_further_away_needs_more_steps() -> None:
    original = fitted(1.0)
    near, far = (ain(fitted(bias), fitted(-3.0), original, TRAIN, VALIDATION, **FAST).value for bias in (0.0, -1.0))
    assert near < far < 1  # type: ignore[operator]


def test_relearning_leaves_models_modes_and_random_state_alone() -> None:
    models = [fitted(bias) for bias in (0.0, -3.0, 1.0)]
    models[0][0].requires_grad_(False)
    models[1].train()
    before = [copy.deepcopy(model.state_dict()) for model in models]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ain(models[0], models[1], models[2], TRAIN, VALIDATION, batch_size=8)
    assert torch.equal(torch.rand(3), expected)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert not models[0][0].weight.requires_grad
    assert models[1].training
    assert models[1][1].training
    assert not models[2].training


def test_relearning_is_the_same_twice_and_stops_at_the_first_step_below_the_bar() -> None:
    first, second = (relearn(fitted(-3.0), TRAIN, VALIDATION, 1.0, **FAST) for _ in range(2))
    assert first == second
    assert first.reached
    assert first.losses[-1] <= 1.0 < min(first.losses[:-1])
    assert len(first.losses) == first.steps


def test_relearning_takes_a_function_of_batches_and_a_function_for_the_loss() -> None:
    def batches(epoch: int) -> list[Any]:
        return [(X, 2 * X + 1)]

    by_name = relearn(fitted(-3.0), batches, VALIDATION, 1.0, loss="mse", epochs=30)
    by_function = relearn(
        fitted(-3.0), batches, VALIDATION, 1.0, loss=lambda output, y: ((output - y) ** 2).mean(), epochs=30
    )
    assert by_name.steps == by_function.steps > 1


def test_steps_are_taken_in_training_mode_and_judged_in_evaluation_mode() -> None:
    modes: list[tuple[bool, bool]] = []

    def watched(module: nn.Module, _inputs: Any, _output: Any) -> None:
        modes.append((module.training, torch.is_grad_enabled()))

    model = fitted(-3.0)
    model[3].register_forward_hook(watched)
    relearn(model, TRAIN, VALIDATION, 0.0, epochs=2, batch_size=64)
    assert modes == [(True, True), (False, False)] * 2


def test_a_single_last_row_joins_the_batch_before_it() -> None:
    assert relearn(fitted(-3.0), TRAIN, VALIDATION, 0.0, batch_size=16, epochs=1).steps == 2  # 16 and 17 of 33 rows


def test_giving_up_makes_ain_a_bound_and_on_both_sides_none() -> None:
    original, far = fitted(1.0), fitted(-30.0)
    late = ain(far, fitted(0.9), original, TRAIN, VALIDATION, epochs=2)
    assert late.value is not None
    assert "at least this value" in late.note
    assert "at most this value" in ain(fitted(0.9), far, original, TRAIN, VALIDATION, epochs=2).note
    never = ain(far, far, original, TRAIN, VALIDATION, epochs=2)
    assert never.value is None
    assert "train longer" in never.note


def test_a_classifier_relearns_by_cross_entropy() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 2)
    rows = X, (X[:, 0] > 0).long()
    assert relearn(model, rows, rows, 0.3, loss="cross_entropy", epochs=200, learning_rate=0.1).reached


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: regression_error([1.0], [np.nan]), DataError, "forget targets are not finite"),
        (lambda: regression_error([], []), DataError, "empty"),
        (lambda: regression_error([1.0, 2.0], [1.0]), DataError, "2 predictions for 1 targets"),
        (lambda: regression_error(np.ones((3, 2)), [1.0] * 3), DataError, "one number a row"),
        (lambda: regression_error([1.0], [1.0], error="rmse"), MethodError, "unknown regression error"),  # type: ignore[arg-type]
        (lambda: relative_difference([1.0], [1.0, 2.0], [1.0]), DataError, "same rows"),
        (lambda: histogram([1.0], bins=0), MethodError, "at least 1 bin"),
        (
            lambda: regression_membership_attack(*[errors(1, 9, 0)] * 3, members="all"),  # type: ignore[arg-type]
            MethodError,
            "unknown member rows",
        ),
        (lambda: relearn(fitted(0.0), TRAIN, VALIDATION, 1.0, learning_rate=0), MethodError, "learning rate above 0"),
        (lambda: relearn(fitted(0.0), TRAIN, VALIDATION, float("nan")), MethodError, "at least 0, not nan"),
        (lambda: relearn(fitted(0.0), (X, X[:3]), VALIDATION, 1.0), DataError, "same rows"),
        (lambda: relearn(fitted(0.0), (X, X / 0), VALIDATION, 1.0), DataError, "targets to relearn are not finite"),
        (lambda: relearn(fitted(0.0), lambda epoch: [], VALIDATION, 1.0), DataError, "no batch to train on"),
        (lambda: relearn(nn.ReLU(), TRAIN, VALIDATION, 1.0), DataError, "without parameters"),
        (lambda: relearn(fitted(0.0), TRAIN, (X, torch.ones(33, 2)), 1.0), DataError, "a regressor gives one a row"),
        (lambda: relearn(fitted(0.0), TRAIN, VALIDATION, 1.0, loss="l3"), MethodError, "unknown relearning loss"),  # type: ignore[arg-type]
        (lambda: relearn(fitted(0.0), TRAIN, VALIDATION, 0.0, learning_rate=1e30), NotFinite, "lower it"),
        (lambda: ain(*[fitted(0.0)] * 3, TRAIN, VALIDATION, slack=-1), MethodError, "slack"),  # type: ignore[arg-type, misc]
    ],
)
def test_refusals(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
