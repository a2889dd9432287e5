"""Where a call's seconds go: the one clock of the loop, read where one phase ends and the next begins.

Every second of a call belongs to exactly one phase of `stats.PHASES`.
"""

from __future__ import annotations

from collections.abc import Callable

from .stats import Stats

Clock = Callable[[], float]


class PhaseRecorder:
    """The seconds of a call by phase, and of the step that runs.

    Attributes:
        forward: seconds of the running step's forwards.
        entering: seconds that getting ready for its route took.
    """

    def __init__(self, clock: Clock, stats: Stats) -> None:
        self.clock, self.stats = clock, stats
        self._began = self._last = clock()
        self.forward, self.entering = 0.0, 0.0

    def begin(self) -> None:
        """A step begins; what passed since the last lap is no phase's."""
        self._began = self._last = self.clock()
        self.forward, self.entering = 0.0, 0.0

    def lap(self, phase: str) -> float:
        """Seconds since the last lap, which were this phase's."""
        now = self.clock()
        seconds, self._last = now - self._last, now
        self.stats.seconds[phase] += seconds
        if phase == "forward":
            self.forward += seconds
        return seconds

    def own(self) -> float:
        """Seconds of the step up to now, beside its forwards and getting ready for their route."""
        return self.clock() - self._began - self.forward - self.entering

    def count(self, route: str, nodes: int, steps: int = 1) -> None:
        """So many forwards of so many nodes ran by this route."""
        self.stats.forwards += steps
        self.stats.rows[nodes] += steps
        self.stats.routes[route] += steps
