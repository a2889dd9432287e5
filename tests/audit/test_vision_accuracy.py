"""UA, RA, TA, the gap to the oracle and ZRF: the papers' numbers, their limits, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from unwrite.audit.base import Score
from unwrite.audit.images.accuracy import (
    accuracies,
    accuracy,
    average_gap,
    confusion,
    gaps,
    run_time_ratio,
    unlearning_accuracy,
    zero_retrain_forgetting,
)
from unwrite.audit.images.membership import membership_attack
from unwrite.data import Images
from unwrite.data.images.sets import digits
from unwrite.errors import DataError, MethodError
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets import SmallCNN

NINE_TO_ONE, EVEN = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])


def predicting(labels: list[int], classes: int = 3) -> np.ndarray:
    return 5.0 * np.eye(classes)[labels]


def test_ua_and_forget_accuracy_are_100_together_exactly() -> None:
    for rows in range(1, 60):
        for right in range(rows + 1):
            logits, labels = predicting([0] * right + [1] * (rows - right)), [0] * rows
            ua, kept = unlearning_accuracy(logits, labels).value, accuracy(logits, labels).value
            assert ua is not None
            assert kept is not None
            assert ua + kept == 100.0


def test_the_three_accuracies_by_hand() -> None:
    forget, retain = (predicting([0, 1, 1, 1]), [0, 0, 0, 1]), (predicting([0, 1, 2, 2, 0]), [0, 1, 2, 2, 1])
    found = accuracies(forget, retain, (predicting([0, 1, 1]), [0, 1, 2]))
    assert {name: score.value for name, score in found.items()} == {
        "UA": 50.0,
        "RA": 80.0,
        "TA": pytest.approx(200 / 3),
    }
    assert found["UA"].per_example == [0.0, 100.0, 100.0, 0.0]


def test_ta_leaves_the_forgotten_class_out() -> None:
    score = accuracy(predicting([0, 1, 1]), [2, 1, 0], without=2)
    assert score.value == 50.0
    assert score.per_example == [None, 100.0, 0.0]
    with pytest.raises(DataError, match="every row is of the forgotten class 2"):
        accuracy(predicting([0]), [2], without=2)


def test_values_are_the_mean_of_their_rows_so_that_they_have_an_interval() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    labels = np.arange(50) % 4
    for score in (accuracy(logits, labels, without=1), unlearning_accuracy(logits, labels)):
        assert score.interval() is not None


def test_confusion_counts_labels_by_predictions() -> None:
    table = confusion(predicting([0, 1, 1, 2]), [0, 0, 1, 2])
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert table.sum() == 4


def test_tensors_and_arrays_are_one() -> None:
    logits, labels = torch.randn(8, 3, dtype=torch.bfloat16, requires_grad=True), torch.arange(8) % 3
    assert accuracy(logits, labels) == accuracy(logits.detach().float().numpy(), labels.numpy())


def test_gaps_are_distances_to_the_oracle_and_0_for_the_oracle() -> None:
    oracle = {"UA": 5.0, "RA": 100.0, "TA": 94.0, "MIA": 13.0}
    method: dict[str, Score | float] = {"UA": 3.0, "RA": Score("RA", 99.0), "TA": 95.0, "MIA": 17.0}
    assert gaps(method, oracle) == {"UA": 2.0, "RA": 1.0, "TA": 1.0, "MIA": 4.0}
    assert average_gap(method, oracle).value == 2.0
    assert average_gap(oracle, oracle).value == 0.0


@pytest.mark.parametrize("method", [{"UA": 3.0}, {"UA": 3.0, "RA": None}, {}])
def test_a_gap_needs_the_same_metrics_with_values(method: Any) -> None:
    with pytest.raises(DataError, match="RA"):
        average_gap(method, {"UA": 5.0, "RA": 100.0})


def test_zrf_of_nine_to_one_against_even() -> None:
    assert 1 - zero_retrain_forgetting(NINE_TO_ONE, EVEN).value == pytest.approx(0.10175, abs=5e-6)  # type: ignore[operator]
    repo = zero_retrain_forgetting(NINE_TO_ONE, EVEN, zrf="repo").value
    assert 1 - repo == pytest.approx(0.05899, abs=5e-6)  # type: ignore[operator]


def test_zrf_is_1_for_the_random_teacher_itself_and_1_less_ln_2_for_opposites() -> None:
    sure = np.array([[2000.0, 0.0]])
    assert zero_retrain_forgetting(sure, sure).value == 1.0
    assert zero_retrain_forgetting(sure, -sure).value == pytest.approx(1 - math.log(2))
    assert zero_retrain_forgetting(sure, -sure, zrf="repo").value is not None  # the authors' code gives -inf here


def test_zrf_is_symmetric() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 20, 5))
    assert zero_retrain_forgetting(p, q).value == pytest.approx(zero_retrain_forgetting(q, p).value)


def test_run_time_is_a_share_of_retraining() -> None:
    assert run_time_ratio(30, 120).value == 0.25
    with pytest.raises(DataError, match="above 0"):
        run_time_ratio(1, 0)


def test_a_model_retrained_without_a_class_has_ua_100_and_mia_of_99_or_more() -> None:
    """A net that never saw an 8 and knows all that it saw; see test_vision_membership.py for one that doesn't."""
    train, test = digits().train, digits().test
    seen = (train.labels != 8).nonzero()[:700, 0].tolist()
    net = fitted(image_recipe(SmallCNN, epochs=10, lr=5e-3, batch_size=32, width=8, num_classes=10), train, seen, 0)

    def said(rows: Images) -> tuple[torch.Tensor, torch.Tensor]:
        return net(rows.pixels), rows.labels

    forget, retain, unseen = (
        train.where(train.labels == 8),
        train.subset(train.index[seen]),
        test.where(test.labels != 8),
    )
    found = accuracies(said(forget), said(retain), said(test), without=8)
    assert (found["UA"].value, found["RA"].value) == (100.0, 100.0)
    assert found["TA"].value > 95
    for seed in range(3):
        assert membership_attack(said(forget), said(retain), said(unseen), seed=seed).value >= 99


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [2], "label of row 0 is 2; labels are whole numbers from 0 to 1"),
        ([[0.0, 1.0]], [-1], "label of row 0 is -1"),
        ([[0.0, 1.0]], [0.5], "label of row 0 is 0.5"),
        ([[0.0, 1.0]], [0, 1], "has 1 rows and labels of shape \\[2\\]"),
        ([[0.0, 1.0]], [[0]], "labels of shape \\[1, 1\\]"),
        ([[0.0, math.nan]], [0], "logits are not finite, first at \\[0, 1\\]: nan"),
        ([[0.0, math.inf]], [0], "not finite"),
        (np.zeros((0, 3)), [], "empty"),
        ([0.0, 1.0], [0], "give \\[rows, classes\\]"),
        ([[0.0]], [0], "two classes or more"),
        ([["cat"]], [0], "not an array of numbers"),
    ],
)
def test_what_can_not_be_scored_is_refused_in_a_line(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        accuracy(logits, labels)
    assert "\n" not in str(refusal.value)


def test_zrf_refuses_other_rows_other_classes_and_unknown_divergences() -> None:
    with pytest.raises(DataError, match="same rows"):
        zero_retrain_forgetting(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(DataError, match="different numbers of classes"):
        zero_retrain_forgetting(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(MethodError, match=r"unknown ZRF divergence 'jsd'\. Did you mean 'js'"):
        zero_retrain_forgetting(EVEN, EVEN, zrf="jsd")  # type: ignore[arg-type]
