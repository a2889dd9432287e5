"""Which of the routes a runtime can run a forward is fastest, for this text.

One runs; now and then a step runs another route, ever more rarely, and the faster of the two stays. A route may have to be
entered, once a text: packs are compared with the weights they were made from. A short text does not enter one whose
steps would not make up for it. Prompts have routes of their own, timed by the token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from statistics import median

from .costs import ForwardCosts

__all__ = ["ForwardRoutes"]

FASTER = 0.95  # of the other route's seconds, twice in a row: then a route takes its place
KEPT = 3  # of a route's last tries and entries


class ForwardRoutes:
    """The routes of one runtime.

    Args:
        names: of the routes, the default first.
        shape: of the forward costs, as kept on disk.
        rarest: forwards between two tries of the other routes, at most.
        dear: a forward that takes so many times its estimate, twice in a row, and the other routes are tried again.
    """

    FIRST = 4  # forwards until the first try

    def __init__(
        self, names: Sequence[str], shape: tuple[float, ...] | None = None, rarest: int = 512, dear: float = 2.0
    ) -> None:
        self.costs = {name: ForwardCosts(shape) if shape else ForwardCosts() for name in names}
        self.names, self.current = tuple(names), names[0]
        self.rarest, self.dear = rarest, dear
        self._step, self._gap = 0, self.FIRST
        self._due = self.FIRST
        self._rival = 0
        self._surprises = 0
        self._wins: dict[str, int] = {}
        self._ratios: dict[str, deque[float]] = {}  # seconds of a rival's tries over those of the current route
        self._entries: dict[str, deque[float]] = {}
        self._entered: set[str] = set()
        self._sunk: frozenset[str] = frozenset()
        # Of the text: tokens yet to be forwarded, rows of a forward, cached tokens before it.
        self._left, self._rows, self._length = 0.0, 1, 1

    def follow(self, other: ForwardRoutes) -> None:
        """Begins where another choice stands, and tries a rival as soon as there is something to compare it with."""
        self.current, self._gap, self._due = other.current, other._gap, 1

    def begin(self, tokens: int, length: int, rows: int = 1, sunk: Collection[str] = ()) -> str:
        """At most so many tokens are to be forwarded behind `length` cached ones. Returns the route that pays for them.

        Args:
            rows: of the forwards, where their seconds are given by the token.
            sunk: routes that this text enters, or has entered, whatever is decided here.
        """
        self._sunk = frozenset(sunk)
        self._entered, self._left, self._rows, self._length = set(), float(tokens), rows, length
        gains = {name: self._gain(name) for name in self.names if name != self.current}
        best = max(gains, key=lambda name: gains[name], default=self.current)
        if gains and gains[best] > 0:
            self._replace(best)
        return self.current

    def entered(self, route: str, seconds: float) -> None:
        """A route is taken, and getting ready for it took so many seconds in this text; only the first time counts."""
        if route in self._entered:
            return
        self._entered.add(route)
        if route in self._entries:
            self._entries[route].append(seconds)
        else:
            self._entries[route] = deque(maxlen=KEPT)  # the first is no measure: packs are made then

    def next(self) -> str:
        """The route for the next forward."""
        self._step += 1
        self._left -= 1
        if len(self.names) == 1 or self._step < self._due:
            return self.current
        if self._rows > 1 and not self.costs[self.current].knows(self._rows, self._length):
            return self.current  # there is nothing to compare a try with
        rivals = [name for name in self.names if name != self.current]
        rival = rivals[self._rival % len(rivals)]
        if rival not in self._entered and self._gap < self.rarest and self._gain(rival) < 0:
            self._put_off()
            return self.current
        return rival

    def passed(self, steps: int) -> None:
        """So many more forwards ran the route that `next` named last."""
        self._step += steps
        self._left -= steps

    def observe(self, route: str, rows: int, length: int, seconds: float) -> None:
        """Learns; after a rival's forward, decides."""
        dear = self.knows_plain and seconds > self.dear * self.estimate(rows, length)
        self.costs[route].observe(rows, length, seconds)
        if route == self.current:
            self._surprises = self._surprises + 1 if dear else 0
            if self._surprises == 2:  # once is noise
                self._gap = self.FIRST
                self._due = min(self._due, self._step + 1)
            return
        ratio = seconds / max(1e-9, self.costs[self.current].estimate(rows, length))
        tries = self._ratios.setdefault(route, deque(maxlen=KEPT))
        if ratio < FASTER and tries and median(tries) >= FASTER:
            tries.clear()  # something has changed, or this is noise: the next try tells
        tries.append(ratio)
        self._wins[route] = self._wins.get(route, 0) + 1 if ratio < FASTER else 0
        if self._wins[route] >= 2:
            self._replace(route)
            self._gap = self.FIRST
        elif ratio < FASTER:
            self._gap = self.FIRST
        else:
            self._put_off()
        self._due = self._step + self._gap

    def estimate(self, rows: int, length: int) -> float:
        """Seconds of a forward on the current route."""
        return self.costs[self.current].estimate(rows, length)

    @property
    def knows_plain(self) -> bool:
        """Whether a first step, which is plain, was timed: without it, nothing says what a draft must beat."""
        return self.costs[self.current].steps > 0

    def _gain(self, rival: str) -> float:
        """Seconds that the rest of the text would save on another route; 0 where it was not tried often enough to tell."""
        ratios = self._ratios.get(rival, ())
        if len(ratios) < 2 or not self.knows_plain:
            return 0.0
        steps = self._left * self.estimate(self._rows, self._length) * (1 - median(ratios))
        return steps - self._entry(rival) + self._entry(self.current)

    def _entry(self, route: str) -> float:
        """Seconds that using a route would yet take."""
        known = self._entries.get(route, ())
        return median(known) if known and route not in self._entered | self._sunk else 0.0

    def _replace(self, route: str) -> None:
        """Another route is the current one; what was known of it is known of the old one, turned round."""
        ratios = [1 / ratio for ratio in self._ratios.get(route, ()) if ratio > 0]
        self._ratios = {self.current: deque(ratios, maxlen=KEPT)}
        self.current, self._wins = route, {}

    def _put_off(self) -> None:
        self._gap = min(2 * self._gap, self.rarest)
        self._rival += 1
        self._due = self._step + self._gap
