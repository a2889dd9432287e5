"""Crossed settings of a test: `make test` has every pair of two settings' values at least once, `make test-all` all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

SLOW = (pytest.mark.slow,)


def crossed(**settings: Sequence[Any]) -> pytest.MarkDecorator:
    """A test for all combinations of the settings' values; those that hold no new pair of values are slow."""
    choices = list(product(*(range(len(values)) for values in settings.values())))
    names = list(settings)
    kept = set(_spread(choices))
    params = []
    for at, choice in enumerate(choices):
        values = [settings[name][number] for name, number in zip(names, choice, strict=True)]
        shown = [_shown(name, number, value) for name, number, value in zip(names, choice, values, strict=True)]
        params.append(pytest.param(*values, id="-".join(shown), marks=() if at in kept else SLOW))
    return pytest.mark.parametrize(names if len(names) > 1 else names[0], params)


def spread(
    cases: Iterable[Any], settings: Callable[[Any], Sequence[Hashable]], named: Callable[[Any], str] | None = None
) -> list[Any]:
    """The cases as parameters, a tuple as several; those that hold no new pair of values of their settings are slow.

    settings: of a case, as many values for every case, in the same order. named: the case in the test's name.
    """
    cases = list(cases)
    kept = set(_spread([tuple(settings(case)) for case in cases]))
    params = []
    for at, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        params.append(pytest.param(*values, id=named(case) if named else None, marks=() if at in kept else SLOW))
    return params


def _shown(name: str, number: int, value: Any) -> str:
    return str(value) if value is None or isinstance(value, (str, int, float, bool)) else f"{name}{number}"


def _pairs(values: Sequence[Hashable]) -> set[Any]:
    """(place, value) of every two settings; of one setting alone, of that."""
    return set(combinations(enumerate(values), min(2, len(values))))


def _spread(rows: list[tuple[Hashable, ...]]) -> list[int]:
    """The numbers of rows that hold every pair of values that any row holds: each time the one with most that are new."""
    pairs = [_pairs(row) for row in rows]
    left: set[Any] = set().union(*pairs)
    kept = []
    while left:
        best = max(range(len(rows)), key=lambda at: len(pairs[at] & left))
        kept.append(best)
        left -= pairs[best]
    return kept
