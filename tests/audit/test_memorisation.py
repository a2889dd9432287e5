"""Extraction strength and exact memorisation on given hits and misses (card tofu, step 10)."""

from __future__ import annotations

import pytest

from unwrite.audit.text.memorisation import exact_memorisation, extraction_strength

Y, N = True, False


@pytest.mark.parametrize(
    ("correct", "strength"),
    [([Y, Y, Y, Y], 1.0), ([N, Y, Y, Y], 0.75), ([Y, N, Y, Y], 0.5), ([N, N, N, Y], 0.25), ([Y, Y, Y, N], 0.25)],
)
def test_extraction_strength_is_the_share_completed_alone(correct: list[bool], strength: float) -> None:
    assert extraction_strength(correct) == strength


def test_a_fully_wrong_answer_scores_one_over_n() -> None:
    assert extraction_strength([N] * 5) == pytest.approx(0.2)


def test_exact_memorisation_is_the_share_of_first_choices() -> None:
    assert exact_memorisation([Y, N, Y, Y]) == 0.75


def test_an_answer_that_is_only_its_end_token_has_no_score() -> None:
    assert extraction_strength([]) is None
    assert exact_memorisation([]) is None
