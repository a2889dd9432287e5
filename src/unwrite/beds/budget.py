"""How much an experiment may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["tiny", "small", "medium", "full"]


@dataclass(frozen=True)
class Budget:
    """How much may be spent: tiny (seconds), small (minutes, small models), medium (hours), full (GPU)."""

    size: Size = "small"
    seeds: tuple[int, ...] = (0, 1, 2)
