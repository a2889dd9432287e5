"""How methods refuse a number that has no meaning."""

from __future__ import annotations

from ...errors import MethodError, setting

__all__ = ["require"]


def require(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuses a number that is NaN, infinite or outside its range, saying what is allowed."""
    words = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    rule = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    good = (
        isinstance(value, int | float)
        and abs(value) < float("inf")
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not good:
        raise MethodError(f"{setting(name)} is {value}; it must be a finite number, {rule}.")
