"""CKA and neighbours: what a change of the head leaves alone, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unwrite.audit.images.features import knn_accuracy, linear_cka, neighbours
from unwrite.errors import DataError, MethodError

X = np.random.default_rng(0).normal(size=(200, 8))
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]


def clusters(rows: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Corners ten apart, unit noise."""
    labels = np.arange(rows) % classes
    return 10 * np.eye(classes, 6)[labels] + np.random.default_rng(seed).normal(size=(rows, 6)), labels


def test_cka_of_features_with_themselves_is_1() -> None:
    assert linear_cka(X, X).value == pytest.approx(1)


def test_cka_does_not_see_rotation_scale_or_offset() -> None:
    assert linear_cka(X, X @ ROTATION).value == pytest.approx(1)
    assert linear_cka(X, -3 * X @ ROTATION + 7).value == pytest.approx(1)


def test_cka_sees_a_stretched_direction_and_unrelated_features() -> None:
    assert linear_cka(X, X * ([30] + [1] * 7)).value < 0.5  # type: ignore[operator]
    unrelated = linear_cka(X, np.random.default_rng(2).normal(size=(200, 8))).value
    assert unrelated < 0.1  # type: ignore[operator]


def test_cka_is_symmetric_and_its_two_ways_of_computing_agree() -> None:
    wide = np.random.default_rng(3).normal(size=(20, 30))
    narrow = wide[:, :5]
    assert linear_cka(wide, narrow).value == pytest.approx(linear_cka(narrow, wide).value)
    padded = np.pad(narrow, ((0, 0), (0, 30)))  # the same features by rows instead of dimensions
    assert linear_cka(padded, X[:20]).value == pytest.approx(linear_cka(narrow, X[:20]).value)


def test_cka_warns_of_fewer_rows_than_dimensions() -> None:
    rng = np.random.default_rng(4)
    score = linear_cka(rng.normal(size=(10, 500)), rng.normal(size=(10, 500)))
    assert score.value > 0.9  # type: ignore[operator]
    assert "high even for unrelated features" in score.note


def test_knn_is_right_on_separated_clusters_and_chance_on_noise() -> None:
    rows, labels = clusters(80, 0)
    reference, known = clusters(400, 1)
    assert knn_accuracy(rows, labels, reference, known).value == 100.0
    noise = np.random.default_rng(5).normal(size=(400, 6))
    chance = knn_accuracy(noise, np.arange(400) % 4, reference, known).value
    assert chance == pytest.approx(25, abs=6.5)  # 3 standard errors


def test_a_forgotten_class_without_reference_rows_can_not_win() -> None:
    rows, labels = clusters(80, 0)
    reference, known = clusters(400, 1)
    kept, queried = known != 2, labels == 2
    assert knn_accuracy(rows[queried], labels[queried], reference[kept], known[kept]).value == 0.0


def test_rows_are_not_their_own_neighbours() -> None:
    found = neighbours(X, k=3)
    assert not (found.index == np.arange(200)[:, None]).any()
    assert (np.diff(found.distance, axis=1) >= 0).all()
    assert (neighbours(X, X, k=1).index[:, 0] == np.arange(200)).all()


def test_leaving_one_out_needs_no_reference() -> None:
    rows, labels = clusters(60, 0)
    assert knn_accuracy(rows, labels).value == 100.0


def test_the_larger_class_wins_over_the_nearest_row() -> None:
    assert knn_accuracy([[0.0]], [0], [[1.0], [2.0], [3.0]], [1, 0, 0], k=3).value == 100.0


def test_the_nearer_class_wins_a_tie() -> None:
    reference = [[1.0], [2.0], [-3.0], [-4.0]]
    assert knn_accuracy([[0.0]], [1], reference, [1, 1, 0, 0], k=4).value == 100.0


def test_neighbours_by_hand_and_by_direction() -> None:
    reference = [[10.0, 0.0], [0.0, 1.0], [1.5, 1.5]]
    assert neighbours([[1.0, 0.0]], reference, k=3).index.tolist() == [[1, 2, 0]]
    assert neighbours([[1.0, 0.0]], reference, k=3, distance="cosine").index.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_cka(X, X[:5]), DataError, "same rows \\(before 200, after 5\\)"),
        (lambda: linear_cka(X, np.ones((200, 3))), DataError, "the after features are the same for all 200 rows"),
        (lambda: linear_cka(X[:, :, None], X), DataError, "pool or flatten"),
        (lambda: linear_cka(X * np.nan, X), DataError, "before features are not finite"),
        (lambda: neighbours(X, k=200), MethodError, "take 1 to 199"),
        (lambda: neighbours(X, X[:3], k=4), MethodError, "take 1 to 3"),
        (lambda: neighbours(X, X[:, :3]), DataError, "8 dimensions, reference features 3"),
        (lambda: neighbours(X, distance="cosin"), MethodError, "Did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: knn_accuracy(X, [0] * 200, X), DataError, "or neither"),
        (lambda: knn_accuracy(X, [-1] * 200), DataError, "query label of row 0 is -1"),
    ],
)
def test_refusals(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
