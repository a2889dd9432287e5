"""What the calls of one process leave for the next: the costs of forwards, how often drafts are accepted, what drafting takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .costs import Acceptance, DraftCosts
from .curves import read_shape
from .reading import ReadingRoutes
from .routes import ForwardRoutes

COMPILED = ("compiled", "compact")  # the routes of one compiled call


@dataclass
class Knowledge:
    """What calls on one runtime leave for the next.

    Args:
        routes: the routes of a step's forward and their costs.
        reading: the routes of a prompt's, timed by the token.
        acceptance, drafting: by strategy.
    """

    routes: ForwardRoutes
    reading: ReadingRoutes
    acceptance: dict[str, Acceptance] = field(default_factory=dict)
    drafting: dict[str, DraftCosts] = field(default_factory=dict)


_known: dict[str, Knowledge] = {}


def knowledge_of(fingerprint: str, names: Sequence[str]) -> Knowledge:
    """This process's knowledge of a runtime; the first time with the cost shape kept on disk."""
    key = f"{fingerprint}|{'|'.join(names)}"
    if key not in _known:
        # The first prompt is for "compiled", which needs nothing but the weights as they lie.
        reading = sorted(names, key=lambda name: name not in COMPILED)
        _known[key] = Knowledge(ForwardRoutes(names, read_shape(fingerprint)), ReadingRoutes(reading))
    return _known[key]


def forget_knowledge() -> None:
    """Starts anew, as a fresh process does."""
    _known.clear()
