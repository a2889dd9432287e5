"""Decoding strategies against plain decoding, by kind of prompt: seconds per token, as ratios with their intervals.

Every strategy and every peer writes the same number of tokens from the same prompts, in turns; a ratio is the peer's seconds
over ours (above 1 is faster), summed over prompts and repeats, with a 95 % bootstrap interval over prompts and, within
them, repeats. Five prompts of a kind are for tuning and warming tables; the other five are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ..beds.prompts import KINDS, prompts
from ..scoring.intervals import ratio_interval

TOKENS = 64
WIDEST = 0.06  # of an interval around 1, before measuring ends
RESAMPLES = 2000


@dataclass(frozen=True)
class BenchSample:
    """One text.

    Args:
        seconds: of the whole call, the prompt's part among them.
        ids: new tokens.
        first: seconds until the first tokens came, and how many they were.
        account: the engine's statistics where there are any.
    """

    seconds: float
    ids: tuple[int, ...]
    first: tuple[float, int] = (0.0, 0)
    account: Mapping[str, Any] | None = None

    @property
    def whole(self) -> float:
        """Seconds a token, the prompt's part among them."""
        return self.seconds / len(self.ids)

    @property
    def writing(self) -> float:
        """Seconds a token after the first ones: what drafting can change."""
        seconds, count = self.first
        return (self.seconds - seconds) / max(1, len(self.ids) - count)


class DecodeContender(Protocol):
    """Writes `count` tokens after a prompt."""

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample: ...


@dataclass
class Cell:
    """What one contender did on one kind at one temperature, beside the peer: samples [prompt][repeat]."""

    ours: list[list[BenchSample]] = field(default_factory=list)
    peer: list[list[BenchSample]] = field(default_factory=list)

    def add(self, prompt: int, ours: BenchSample, peer: BenchSample) -> None:
        while len(self.ours) <= prompt:
            self.ours.append([])
            self.peer.append([])
        self.ours[prompt].append(ours)
        self.peer[prompt].append(peer)

    @property
    def samples(self) -> list[BenchSample]:
        return [sample for repeats in self.ours for sample in repeats]

    @property
    def peers(self) -> list[BenchSample]:
        return [sample for repeats in self.peer for sample in repeats]

    def ratio(self, what: Literal["whole", "writing"] = "whole", seed: int = 0) -> tuple[float, float, float]:
        """Ratio, and the ends of its 95 % interval."""
        ours, peer = ([[getattr(s, what) for s in repeats] for repeats in side] for side in (self.ours, self.peer))
        return ratio_of(ours, peer, seed)


def ratio_of(ours: list[list[float]], peer: list[list[float]], seed: int = 0) -> tuple[float, float, float]:
    """Sum of the peer's seconds over ours, with a paired bootstrap over prompts and repeats. [prompt][repeat] each."""
    mine, theirs = np.array(ours), np.array(peer)  # [prompts, repeats]
    return float(theirs.sum() / mine.sum()), *ratio_interval(mine, theirs, seed, RESAMPLES)


def copy_rate(prompt: Sequence[int], answer: Sequence[int], size: int = 4) -> float:
    """Share of the answer's tokens that end an n-gram already in the prompt or the answer before: what can be copied."""
    text, copied = [*prompt, *answer], 0
    seen = {tuple(prompt[i : i + size]) for i in range(len(prompt) - size + 1)}
    for end in range(len(prompt) + 1, len(text) + 1):
        gram = tuple(text[end - size : end])
        copied += gram in seen
        seen.add(gram)
    return copied / max(1, len(answer))


@dataclass
class Measuring:
    """One run of the benchmark: contenders against a peer, kind by kind, until the intervals are narrow or time is up.

    Args:
        contenders: {name: contender}; `peer` is one of them.
        encode: prompt text to ids.
        deadline: perf_counter seconds after which no new repeat starts.
        tokens: of every text.
        tell: gets a line of progress.
    """

    contenders: Mapping[str, DecodeContender]
    peer: str
    encode: Callable[[str], list[int]]
    deadline: float
    runtime: str = "transformers"
    tokens: int = TOKENS
    tell: Callable[[str], None] = lambda line: None

    def run(self, temperatures: Sequence[float] = (0.0, 0.7), repeats: int = 1, most: int = 6) -> list[dict[str, Any]]:
        """A row for every cell."""
        rows: list[dict[str, Any]] = []
        cells: dict[tuple[str, float, str], Cell] = {}
        copied: dict[tuple[str, float], list[float]] = {}
        for turn in range(most):
            for kind in KINDS:
                for temperature in temperatures:
                    if turn >= repeats and (
                        self._settled(cells, kind, temperature) or time.perf_counter() > self.deadline
                    ):
                        continue
                    self.tell(f"{self.runtime}: {kind}, temperature {temperature:g}, repeat {turn + 1}")
                    self._measure(cells, copied, kind, temperature, turn)
        for (kind, temperature, name), cell in cells.items():
            rows.append(self._row(kind, temperature, name, cell, float(np.mean(copied[kind, temperature]))))
        return rows

    def _settled(self, cells: Mapping[tuple[str, float, str], Cell], kind: str, temperature: float) -> bool:
        for name in self.contenders:
            if name == self.peer:
                continue
            _, low, high = cells[kind, temperature, name].ratio()
            if low < 1 < high and high - low > WIDEST:
                return False
        return True

    def _measure(
        self,
        cells: dict[tuple[str, float, str], Cell],
        copied: dict[tuple[str, float], list[float]],
        kind: str,
        temperature: float,
        turn: int,
    ) -> None:
        for number, prompt in enumerate(row for row in prompts("report") if row.kind == kind):
            ids = self.encode(prompt.text)
            samples = {}
            for name in self._order(turn + number):
                samples[name] = self.contenders[name](ids, self.tokens, temperature, seed=turn)
            peer = samples[self.peer]
            copied.setdefault((kind, temperature), []).append(copy_rate(ids, peer.ids))
            for name, sample in samples.items():
                cells.setdefault((kind, temperature, name), Cell()).add(number, sample, peer)

    def _order(self, turn: int) -> Iterator[str]:
        """All contenders, beginning with another one each time."""
        names = list(self.contenders)
        return iter(names[turn % len(names) :] + names[: turn % len(names)])

    def _row(self, kind: str, temperature: float, name: str, cell: Cell, copied: float) -> dict[str, Any]:
        ratio, low, high = cell.ratio()
        row: dict[str, Any] = {
            "strategy": name,
            "kind": kind,
            "runtime": self.runtime,
            "temperature": temperature,
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "writing_ratio": cell.ratio("writing")[0],
            "seconds_per_token": float(np.mean([sample.whole for sample in cell.samples])),
            "tokens": self.tokens,
            "repeats": min(map(len, cell.ours)),
            "copy_rate": copied,
            "same_text": float(np.mean([a.ids == b.ids for a, b in zip(cell.samples, cell.peers, strict=True)])),
        }
        accounts = [sample.account for sample in cell.samples if sample.account is not None]
        if accounts:
            row["tokens_per_forward"] = float(np.mean([account["tokens_per_forward"] for account in accounts]))
            row["rows_per_forward"] = float(np.mean([_mean_rows(account["rows"]) for account in accounts]))
            row["seconds"] = {phase: sum(a["seconds"][phase] for a in accounts) for phase in accounts[0]["seconds"]}
        return row


def _mean_rows(counts: Mapping[str, int]) -> float:
    """Of {rows: how often}; the prefill is not among them."""
    total = sum(counts.values())
    return sum(int(rows) * count for rows, count in counts.items()) / total if total else 0.0
