"""The catalogue: every system and every method, read from `catalog.toml`.

The command line, the documentation, the web page and the tests list from here, never by hand. Verdicts are not
in it: they are read from the stored results.
"""

from __future__ import annotations

import importlib
import json
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

from .errors import MethodError, UnwriteError, unknown

Family = Literal["forget", "audit", "shield", "decode", "diffusion", "cache", "nets", "recipes", "papers"]
Kind = Literal["objective", "edit", "guard"]
Intent = Literal["removal", "suppression"]
NEEDS = (
    "forget set",
    "retain set",
    "paraphrases",
    "wrong answers",
    "classifier",
    "gradient access",
    "logits only",
    "text only",
    "retrain reference",
    "labels",
    "original training data",
    "training recipe",
)


@dataclass(frozen=True)
class System:
    """One published system.

    Args:
        slug, title, paper, year: its short name here, and where it was published.
        family: the part of the library it lives in.
        status: "done" once its four places exist, else "planned".
        claim: what the paper says, in one line.
    """

    slug: str
    title: str
    paper: str
    year: int
    family: Family
    status: Literal["planned", "done"]
    claim: str

    def __post_init__(self) -> None:
        _one_of(self.slug, "family", self.family, get_args(Family))
        _one_of(self.slug, "status", self.status, ("planned", "done"))

    @property
    def result(self) -> dict[str, Any] | None:
        """The stored result of `unwrite reproduce`, or None."""
        path = files("unwrite").joinpath("results", f"{self.slug}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def verdict(self) -> str | None:
        """What was measured here: "reproduced", "partly", "not reproduced", "needs GPU", or None yet."""
        return self.result["verdict"] if self.result else None


@dataclass(frozen=True)
class MethodRecord:
    """One forgetting method and what helps a person choose it.

    Args:
        slug: its name on the command line.
        entry: "module:Class".
        kind: objective, edit or guard.
        intent: what its authors claim: removal from the weights, or suppression of the output.
        needs: what it takes; a subset of `NEEDS`.
        guarantee: "exact", "(epsilon, delta)", "empirical" or "none".
        cost: training and inference, in words.
        weights_changed, reversible: whether the model given is altered, and whether that can be undone.
        system: the slug of the system it is, or None for a baseline.
        forgets: the kinds of data it has a meaning for, "text" and "images".
    """

    slug: str
    title: str
    paper: str
    year: int
    entry: str
    kind: Kind
    intent: Intent
    needs: tuple[str, ...]
    guarantee: Literal["exact", "(epsilon, delta)", "empirical", "none"]
    cost: str
    weights_changed: bool
    reversible: bool
    system: str | None = None
    forgets: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        _one_of(self.slug, "kind", self.kind, get_args(Kind))
        _one_of(self.slug, "intent", self.intent, get_args(Intent))
        _one_of(self.slug, "guarantee", self.guarantee, ("exact", "(epsilon, delta)", "empirical", "none"))
        for need in self.needs:
            _one_of(self.slug, "needs", need, NEEDS)
        for kind in self.forgets:
            _one_of(self.slug, "forgets", kind, ("text", "images"))
        if self.intent == "suppression" and not self.weights_changed and not self.reversible:
            raise UnwriteError(f"catalog.toml: {self.slug} suppresses without changing weights, so it is reversible.")

    def load(self) -> Any:
        """The method's class."""
        return load_entry(self.entry)


@dataclass(frozen=True)
class StrategyRecord:
    """One way to decode.

    Args:
        slug: its name on the command line.
        entry: "module:Class".
        exact: what sampled text is: "identical" to plain decoding at the same seed, or equal in "distribution"; greedy
            text is identical for both.
        needs: what it takes beside the target.
        runtimes: where it runs: "transformers", "llama.cpp".
        system: the slug of the system it is, or None for a baseline.
    """

    slug: str
    title: str
    paper: str
    year: int
    entry: str
    exact: Literal["identical", "distribution"]
    needs: tuple[str, ...]
    runtimes: tuple[str, ...]
    system: str | None = None

    def __post_init__(self) -> None:
        _one_of(self.slug, "exact", self.exact, ("identical", "distribution"))
        for runtime in self.runtimes:
            _one_of(self.slug, "runtimes", runtime, ("transformers", "llama.cpp"))

    def load(self) -> Any:
        """The strategy's class."""
        return load_entry(self.entry)


PART_KINDS = ("blocks", "logits", "propose", "score", "quota", "commit", "constraint", "edit", "stop")


@dataclass(frozen=True)
class PartRecord:
    """One part of the denoising loop.

    Args:
        slug: its name on the command line.
        entry: "module:Class".
        kind: the field of `Sampler` that it fills.
        does: what it does, in one line.
        system: the slug of the system it is, or None for a baseline.
    """

    slug: str
    paper: str
    entry: str
    kind: str
    does: str
    system: str | None = None

    def __post_init__(self) -> None:
        _one_of(self.slug, "kind", self.kind, PART_KINDS)

    def load(self) -> Any:
        """The part's class."""
        return load_entry(self.entry)


def _one_of(slug: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UnwriteError(f"catalog.toml: {slug}: {name} is {value!r}; use one of {', '.join(allowed)}.")


def load_entry(entry: str) -> Any:
    """What "module:name" names."""
    module, name = entry.split(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class _Catalogue:
    systems: dict[str, System]
    methods: dict[str, MethodRecord]
    strategies: dict[str, StrategyRecord]
    parts: dict[str, PartRecord]
    loaders: dict[str, str]


@lru_cache(maxsize=1)
def _read() -> _Catalogue:
    data = tomllib.loads(files("unwrite").joinpath("catalog.toml").read_text(encoding="utf-8"))
    return _Catalogue(
        {row["slug"]: System(**row) for row in data["system"]},
        {row["slug"]: MethodRecord(**_tuples(row)) for row in data["method"]},
        {row["slug"]: StrategyRecord(**_tuples(row)) for row in data.get("strategy", ())},
        {row["slug"]: PartRecord(**row) for row in data.get("part", ())},
        data.get("loader", {}),
    )


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def systems() -> dict[str, System]:
    """All systems by slug, in the catalogue's order."""
    return _read().systems


def methods() -> dict[str, MethodRecord]:
    """All forgetting methods by slug, in the catalogue's order."""
    return _read().methods


def system(slug: str) -> System:
    """One system; an unknown slug is refused with the nearest one."""
    if slug not in systems():
        raise MethodError(unknown("system", slug, systems()))
    return systems()[slug]


def method(slug: str) -> MethodRecord:
    """One method; an unknown slug is refused with the nearest one."""
    if slug not in methods():
        raise MethodError(unknown("method", slug, methods()))
    return methods()[slug]


def strategies() -> dict[str, StrategyRecord]:
    """All decoding strategies by slug, in the catalogue's order."""
    return _read().strategies


def strategy(slug: str) -> StrategyRecord:
    """One strategy; an unknown slug is refused with the nearest one."""
    if slug not in strategies():
        raise MethodError(unknown("strategy", slug, strategies()))
    return strategies()[slug]


def parts() -> dict[str, PartRecord]:
    """All parts of the denoising loop by slug, in the catalogue's order."""
    return _read().parts


def part(slug: str) -> PartRecord:
    """One part; an unknown slug is refused with the nearest one."""
    if slug not in parts():
        raise MethodError(unknown("part", slug, parts()))
    return parts()[slug]


def loader(name: str) -> Any | None:
    """The function that reads back a folder saved by a guard, or None if the catalogue names none."""
    entry = _read().loaders.get(name)
    return load_entry(entry) if entry else None


def record_of(cls: type) -> MethodRecord:
    """The record of a method's class."""
    entry = f"{cls.__module__}:{cls.__name__}"
    for record in methods().values():
        if record.entry == entry:
            return record
    raise MethodError(f"{cls.__name__} has no record in catalog.toml.")
