"""LiRA: closed forms, chance where there is nothing to find, certainty where there is, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from unwrite.audit.images.lira import lira, lira_scores, logit_confidence, tpr_threshold
from unwrite.errors import DataError, MethodError

ROWS = 600  # half forget, half holdout
FORGET = np.arange(ROWS) < ROWS // 2
# 3 standard errors of an AUC of two equal halves that are alike: sqrt((n + m + 1) / (12 n m))
CHANCE = 3 * math.sqrt((ROWS + 1) / (12 * (ROWS // 2) ** 2))


def shadows(count: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """phi [count, rows] ~ N(row's offset + shift if inside, 1), each row inside for half of them."""
    rng = np.random.default_rng(seed)
    inside = np.argsort(rng.random((count, ROWS)), axis=0) < count // 2
    return offsets() + shift * inside + rng.normal(size=(count, ROWS)), inside


def offsets() -> np.ndarray:
    return 3 * np.random.default_rng(99).normal(size=ROWS)


def attacked(shift: float, seed: int = 7) -> np.ndarray:
    """The audited model: forget rows as a model that has seen them, holdout rows not."""
    return offsets() + shift * FORGET + np.random.default_rng(seed).normal(size=ROWS)


def test_phi_is_the_log_odds_of_the_label() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.01, 0.98, 0.01]])
    assert logit_confidence(np.log(p), [0, 0]) == pytest.approx([math.log(0.7 / 0.3), math.log(0.01 / 0.99)])


def test_phi_is_exact_where_the_probability_rounds_to_1() -> None:
    assert logit_confidence([[800.0, 0.0, 0.0], [0.0, 800.0, 0.0]], [0, 0]) == pytest.approx(
        [800 - math.log(2), -800.0]
    )


@pytest.mark.parametrize("online", [True, False])
def test_auc_is_chance_where_forget_rows_are_like_holdout_rows(online: bool) -> None:
    values, inside = shadows(64, 2.0)
    found = lira(attacked(0.0), values, inside, FORGET, online=online)
    assert next(iter(found.values())).value == pytest.approx(0.5, abs=CHANCE)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("variance", ["row", "shared"])
def test_auc_and_tpr_are_near_1_where_they_are_far_apart(online: bool, variance: Any) -> None:
    values, inside = shadows(64, 8.0)
    found = lira(attacked(8.0), values, inside, FORGET, online=online, variance=variance)
    assert all(score.value > 0.98 for score in found.values())  # type: ignore[operator]


def test_auc_is_that_of_two_gaussians_at_distance_1() -> None:
    """Phi(1 / sqrt 2) = 0.760 with exact Gaussians; 64 shadow models with a shared variance come within 0.05."""
    values, inside = shadows(64, 1.0)
    found = lira(attacked(1.0), values, inside, FORGET, variance="shared")
    assert found["lira_auc"].value == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.05)


def test_it_needs_the_rows_own_gaussians_where_rows_differ() -> None:
    """Offsets have deviation 3 and membership shifts by 2: raw confidence gives Phi(2 / sqrt 20) = 0.67, LiRA 0.92."""
    values, inside = shadows(128, 2.0)
    online = lira(attacked(2.0), values, inside, FORGET)["lira_auc"].value
    raw = np.mean(attacked(2.0)[FORGET][:, None] > attacked(2.0)[~FORGET][None])
    assert raw < 0.72
    assert online > 0.88  # type: ignore[operator]


def test_the_ratio_by_hand() -> None:
    """In: 2, 4 (mean 3, variance 1); out: -1, 1 (mean 0, variance 1). At 1.5 both are as likely."""
    values, inside = np.array([[2.0], [4.0], [-1.0], [1.0]]), np.array([[True], [True], [False], [False]])
    for phi, expected in ((1.5, 0.0), (3.0, 4.5), (0.0, -4.5)):
        assert lira_scores([phi], values, inside, variance="row") == pytest.approx([expected])
    assert lira_scores([3.0], values, inside, online=False, variance="row") == pytest.approx([3.0])


def test_a_shared_variance_is_one_a_side_and_unbiased() -> None:
    """In: 1, 5 (mean 3, variance 8); out: -1, 1 (mean 0, variance 2)."""
    values, inside = np.array([[1.0], [5.0], [-1.0], [1.0]]), np.array([[True], [True], [False], [False]])
    expected = -0.5 * math.log(8 / 2) - 0.5 * (2 - 3) ** 2 / 8 + 0.5 * 2**2 / 2
    assert lira_scores([2.0], values, inside, variance="shared") == pytest.approx([expected])


def test_shadow_models_that_agree_exactly_give_finite_scores() -> None:
    values, inside = np.zeros((32, 4)), np.arange(128).reshape(32, 4) % 8 < 4
    assert np.isfinite(lira_scores([0.0, 1.0, -1.0, 0.0], values, inside)).all()


def test_n_stands_beside_every_value() -> None:
    values, inside = shadows(40, 2.0)
    found = lira(attacked(2.0), values, inside, FORGET)
    assert list(found) == ["lira_auc", "lira_tpr_at_0.01", "lira_tpr_at_0.001"]
    assert all("N = 40 shadow models" in score.note for score in found.values())
    assert "no false positive was allowed" in found["lira_tpr_at_0.001"].note
    assert len(found["lira_auc"].per_example) == FORGET.sum()


def test_no_more_than_the_rate_of_negatives_exceeds_the_threshold() -> None:
    scores = np.random.default_rng(0).integers(0, 10, 200).astype(float)  # with ties
    for rate in (0.0, 0.005, 0.1, 0.25, 1.0):
        assert np.mean(scores > tpr_threshold(scores, rate)) <= rate
    assert tpr_threshold(np.arange(100.0), 0.01) == 98.0
    assert tpr_threshold(np.arange(100.0), 0.125) == 87.0  # 12 may exceed it, not 13
    assert tpr_threshold([1.0, 2.0], 1.0) == -math.inf


def test_fewer_than_32_shadow_models_are_refused_unless_said() -> None:
    values, inside = shadows(16, 2.0)
    with pytest.raises(MethodError, match="at least 32 shadow models, and there are 16"):
        lira(attacked(2.0), values, inside, FORGET)
    assert lira(attacked(2.0), values, inside, FORGET, least=16)["lira_auc"].value > 0.8  # type: ignore[operator]


def test_a_row_that_no_model_has_seen_is_refused_online_only() -> None:
    values, inside = shadows(32, 2.0)
    inside[:, 5] = False
    with pytest.raises(DataError, match='row 5 is "in" for 0 of 32 shadow models'):
        lira(attacked(2.0), values, inside, FORGET)
    assert lira(attacked(2.0), values, inside, FORGET, online=False)


def test_refusals() -> None:
    values, inside = shadows(32, 2.0)
    phi = attacked(2.0)
    with pytest.raises(DataError, match="inside \\[shadows, rows\\]"):
        lira(phi[:-1], values, inside, FORGET)
    with pytest.raises(DataError, match="needs both: 600 of 600"):
        lira(phi, values, inside, np.ones(ROWS))
    with pytest.raises(DataError, match="memberships must be true or false, not 2"):
        lira(phi, values, inside + 1, FORGET)
    with pytest.raises(DataError, match="not finite"):
        lira(phi * np.inf, values, inside, FORGET)
    with pytest.raises(MethodError, match="false-positive rate"):
        lira(phi, values, inside, FORGET, fpr=[1.5])
    with pytest.raises(MethodError, match="unknown LiRA variance"):
        lira_scores(phi, values, inside, variance="rows")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="unknown LiRA centre"):
        lira_scores(phi, values, inside, centre="mode")  # type: ignore[arg-type]
