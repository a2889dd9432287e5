"""What an application of a method computes, counted in a unit that no machine changes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass
class Cost:
    """What was computed, in forwards of one row; a backward counts two."""

    forwards: float = 0.0

    def add(self, rows: int, forwards: float = 1, backwards: float = 0) -> None:
        """Counts so many passes of each of `rows` rows."""
        self.forwards += rows * (forwards + 2 * backwards)
