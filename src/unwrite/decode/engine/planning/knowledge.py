"""What the calls of one process leave for the next: the costs of forwards, how often drafts are accepted, what drafting takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .costs import SHAPE, SIZES, Acceptance, DraftCosts
from .curves import read_shape
from .routes import ForwardRoutes


@dataclass
class Knowledge:
    """What calls on one runtime leave for the next.

    Args:
        routes: the routes of a step's forward and their costs.
        reading: the routes of a prompt's, timed by the token.
        acceptance, drafting: by strategy.
    """

    routes: ForwardRoutes
    reading: ForwardRoutes
    acceptance: dict[str, Acceptance] = field(default_factory=dict)
    drafting: dict[str, DraftCosts] = field(default_factory=dict)


_known: dict[str, Knowledge] = {}


def knowledge_of(fingerprint: str, names: Sequence[str]) -> Knowledge:
    """This process's knowledge of a runtime; the first time with the cost shape kept on disk."""
    key = f"{fingerprint}|{'|'.join(names)}"
    if key not in _known:
        by_token = tuple(seconds / rows for seconds, rows in zip(SHAPE, SIZES, strict=True))
        # Prompts of all lengths come in turn: one that takes longer than the last ones is no sign of anything.
        reading = ForwardRoutes(names, by_token, rarest=64, dear=math.inf)
        _known[key] = Knowledge(ForwardRoutes(names, read_shape(fingerprint)), reading)
    return _known[key]


def forget_knowledge() -> None:
    """Starts anew, as a fresh process does."""
    _known.clear()
