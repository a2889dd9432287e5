"""How the memory's parts refuse a number that has no meaning."""

from __future__ import annotations

from ...errors import MethodError, setting

__all__ = ["above_zero", "share", "whole"]


def whole(name: str, value: object, at_least: int = 1) -> None:
    """Refuses what is no whole number, or is too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise MethodError(f"{setting(name)} is {value!r}; it must be a whole number, at least {at_least}.")


def share(name: str, value: float) -> None:
    """Refuses what is not from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise MethodError(f"{setting(name)} is {value!r}; it must be from 0 to 1.")


def above_zero(name: str, value: float) -> None:
    """Refuses what is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise MethodError(f"{setting(name)} is {value!r}; it must be a finite number above 0.")
