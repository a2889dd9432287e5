"""What a call did: forwards, tokens, drafts, and where the seconds went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PHASES = ("prefill", "draft", "forward", "verify", "other")


@dataclass
class Stats:
    """What one call did, counted.

    Args:
        forwards: of the target, the prefill among them.
        tokens: new ones, over all rows.
        drafted, accepted: nodes beside the root that ran, and those that were kept.
        rows: {nodes a forward had: how often}: what the cost model chose.
        routes: {the route a forward took: how often}.
        seconds: by phase: prefill, draft, forward, verify (walk, rollback, learning), other.
        batch: rows of the batch.
        cache: (bytes of a compressed cache, bytes of a full one of the same texts); None where there is none.
    """

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: Counter[int] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    batch: int = 1
    cache: tuple[int, int] | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Mean tokens a decoding forward commits in a row of the batch; the prefill and its token apart. 1 without drafts."""
        steps = self.forwards - 1
        return (self.tokens / self.batch - 1) / steps if steps > 0 else 1.0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def seconds_per_token(self) -> float:
        return self.total_seconds / max(1, self.tokens)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "forwards": self.forwards,
            "tokens": self.tokens,
            "tokens_per_forward": self.tokens_per_forward,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "rows": {str(rows): count for rows, count in sorted(self.rows.items())},
            "routes": dict(self.routes),
            "seconds": dict(self.seconds),
            **({} if self.cache is None else {"cache_bytes": self.cache[0], "full_cache_bytes": self.cache[1]}),
        }

    def line(self) -> str:
        """One line for a terminal."""
        share = {name: value / max(1e-9, self.total_seconds) for name, value in self.seconds.items()}
        return (
            f"{self.tokens} tokens in {self.total_seconds:.2f} s, {self.tokens / max(1e-9, self.total_seconds):.1f} a "
            f"second; {self.forwards} forwards, {self.tokens_per_forward:.2f} tokens each; {self.accepted} of "
            f"{self.drafted} drafted tokens kept; forward {share['forward']:.0%}, draft {share['draft']:.0%}{self._held()}"
        )

    def _held(self) -> str:
        """What the cache held, for `line`."""
        if self.cache is None:
            return ""
        held, full = self.cache
        return f"; cache {held / 1e6:.2f} MB of {full / 1e6:.2f} MB, {held / max(1, full):.0%}"


_last: list[Stats] = []


def last_stats() -> Stats | None:
    """Of the last call in this process."""
    return _last[0] if _last else None


def remember(stats: Stats) -> Stats:
    """Makes it what `last_stats` returns."""
    _last[:] = [stats]
    return stats
