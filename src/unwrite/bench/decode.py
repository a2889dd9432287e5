"""Decoding strategies against plain decoding, by kind of prompt: seconds per token, as ratios with their intervals.

Every strategy and every peer writes the same number of tokens from the same prompts, in turns; a ratio is the peer's seconds
over ours (above 1 is faster), summed over prompts and repeats, with a 95 % bootstrap interval over prompts and, within
them, repeats. Five prompts of a kind are for tuning and warming tables; the other five are reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runs import hash_json, write_json

KINDS = ("chat", "summarise", "edit", "code", "extract", "translate")
TOKENS = 64
WIDEST = 0.06  # of an interval around 1, before measuring ends
RESAMPLES = 2000


@dataclass(frozen=True)
class Prompt:
    """One user message. use: "tune" or "report"."""

    kind: str
    use: str
    text: str


def prompts(use: str) -> list[Prompt]:
    """The shipped prompts of a use, in the order of `KINDS`."""
    lines = files("unwrite.bench").joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Prompt(**json.loads(line)) for line in lines if line.strip()]
    return [row for kind in KINDS for row in rows if row.kind == kind and row.use == use]


def prompts_hash() -> str:
    """Of all prompts, tuning ones too."""
    return hash_json([vars(row) for use in ("tune", "report") for row in prompts(use)])


@dataclass(frozen=True)
class Sample:
    """One text: wall seconds, tokens, and the engine's account where there is one."""

    seconds: float
    ids: tuple[int, ...]
    account: Mapping[str, Any] | None = None


class Contender(Protocol):
    """Writes `count` tokens after a prompt."""

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> Sample: ...


class OnTransformers:
    """`model.generate` with some arguments; `strategy` makes a fresh one for every text, from warmed state."""

    def __init__(self, model: Any, strategy: Callable[[], Any] | None = None, **options: Any) -> None:
        self.model, self.strategy, self.options = model, strategy, options

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> Sample:
        import torch

        inputs = torch.tensor([list(ids)])
        options = {"max_new_tokens": count, "do_sample": temperature > 0, "pad_token_id": 0, **self.options}
        if temperature > 0:
            options["temperature"] = temperature
        if self.strategy is not None:
            options |= {"custom_generate": self.strategy(), "return_dict_in_generate": True}
        torch.manual_seed(seed)
        start = time.perf_counter()
        out = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
        seconds = time.perf_counter() - start
        sequences = out if self.strategy is None else out.sequences
        account = None if self.strategy is None else out.stats.json()
        return Sample(seconds, tuple(sequences[0, len(ids) :].tolist()), account)


@dataclass
class Cell:
    """What one contender did on one kind at one temperature: seconds [prompt][repeat] beside the peer's."""

    ours: list[list[float]] = field(default_factory=list)
    peer: list[list[float]] = field(default_factory=list)
    accounts: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, prompt: int, ours: float, peer: float, account: Mapping[str, Any] | None) -> None:
        while len(self.ours) <= prompt:
            self.ours.append([])
            self.peer.append([])
        self.ours[prompt].append(ours)
        self.peer[prompt].append(peer)
        if account is not None:
            self.accounts.append(account)

    def ratio(self, seed: int = 0) -> tuple[float, float, float]:
        """Ratio, and the ends of its 95 % interval."""
        return ratio_of(self.ours, self.peer, seed)


def ratio_of(ours: list[list[float]], peer: list[list[float]], seed: int = 0) -> tuple[float, float, float]:
    """Sum of the peer's seconds over ours, with a paired bootstrap over prompts and repeats. [prompt][repeat] each."""
    generator = np.random.default_rng(seed)
    mine, theirs = np.array(ours), np.array(peer)  # [prompts, repeats]
    chosen = generator.integers(mine.shape[0], size=(RESAMPLES, mine.shape[0], 1))
    picks = generator.integers(mine.shape[1], size=(RESAMPLES, *mine.shape))
    found = theirs[chosen, picks].sum((1, 2)) / mine[chosen, picks].sum((1, 2))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(theirs.sum() / mine.sum()), float(low), float(high)


def copy_rate(prompt: Sequence[int], answer: Sequence[int], size: int = 4) -> float:
    """Share of the answer's tokens that end an n-gram already in the prompt or the answer before: what can be copied."""
    text, found = [*prompt, *answer], 0
    seen = {tuple(prompt[i : i + size]) for i in range(len(prompt) - size + 1)}
    for end in range(len(prompt) + 1, len(text) + 1):
        gram = tuple(text[end - size : end])
        found += gram in seen
        seen.add(gram)
    return found / max(1, len(answer))


@dataclass
class Measuring:
    """One run of the benchmark: contenders against a peer, kind by kind, until the intervals are narrow or time is up.

    Args:
        contenders: {name: contender}; `peer` is one of them.
        encode: prompt text to ids.
        deadline: perf_counter seconds after which no new repeat starts.
        out: samples are kept there after every prompt.
    """

    contenders: Mapping[str, Contender]
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
                cell = cells.setdefault((kind, temperature, name), Cell())
                cell.add(number, sample.seconds, peer.seconds, sample.account)

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
            "seconds_per_token": float(np.mean([np.mean(times) for times in cell.ours])) / self.tokens,
            "repeats": min(map(len, cell.ours)),
            "copy_rate": copied,
        }
        if cell.accounts:
            phases = cell.accounts[0]["seconds"]
            row["tokens_per_forward"] = float(np.mean([account["tokens_per_forward"] for account in cell.accounts]))
            row["seconds"] = {phase: sum(a["seconds"][phase] for a in cell.accounts) for phase in phases}
        return row


def store(path: Path, rows: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]) -> None:
    """Writes rows with the setting that made them."""
    write_json(path, {"rows": list(rows), "prompts": prompts_hash(), "tokens": TOKENS, **setting})
