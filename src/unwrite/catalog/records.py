"""What the catalogue says of a member: one frozen dataclass a kind, with its checks.

What a class can say itself is not written again: `MethodRecord.weights_changed`, `StrategyRecord.needs` and `PartRecord.kind`
are read from it. A method's `kind` and `forgets` stand in the record too, so that methods are listed without importing torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, ClassVar, Literal, Self, get_args

from ..errors import MethodError, UnwriteError
from .words import APPROACHES, NEEDS

OURS = "unwrite"
Family = Literal["forget", "audit", "shield", "decode", "diffusion", "cache", "compress", "nets", "recipes", "papers"]
FAMILIES: tuple[str, ...] = get_args(Family)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of the catalogue.

    `choices` names the words that a field may have; of a tuple, each of its values.

    Args:
        slug: its name on the command line.
        family: the part of the library it lives in: its file in the catalogue.
        package: the installed package that brings it.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    slug: str
    family: str
    package: str = OURS

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not value.strip():
                raise UnwriteError(f"{self.where}: {self.slug}: {field.name} is empty. Write it, or leave it out.")
            for word in value if isinstance(value, tuple) else (value,):
                allowed = self.choices.get(field.name)
                if allowed is not None and word not in allowed:
                    words = ", ".join(allowed)
                    raise UnwriteError(f"{self.where}: {self.slug}: {field.name} is {word!r}; use one of {words}.")

    @property
    def where(self) -> str:
        """Where the record stands, for messages."""
        return f"catalog/{self.family}.toml" if self.package == OURS else f"package {self.package}"

    @classmethod
    def of(cls, where: str, row: Mapping[str, Any]) -> Self:
        """A record from its table in a TOML file.

        Raises:
            UnwriteError: a field that is missing or that this kind doesn't have.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        slug = row.get("slug", "a record without a slug")
        if unknown := [name for name in row if name not in known]:
            raise UnwriteError(f"{where}: {slug}: {unknown[0]!r} is no field. Known: {', '.join(known)}.")
        needed = [name for name, field in known.items() if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in row]:
            raise UnwriteError(f"{where}: {slug}: {missing[0]} is missing.")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class System(Record):
    """One published system.

    Args:
        title, paper, year: where it was published.
        status: "done" once its four places exist, else "planned".
        claim: what the paper says, in one line.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"family": FAMILIES, "status": ("planned", "done")}

    title: str
    paper: str
    year: int
    status: Literal["planned", "done"]
    claim: str

    @property
    def result(self) -> dict[str, Any] | None:
        """The stored result of `unwrite reproduce`, or None."""
        path = files("unwrite").joinpath("results", f"{self.slug}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def verdict(self) -> str | None:
        """What was measured here, one of `reproduce.checks.Verdict`, or None yet."""
        return self.result["verdict"] if self.result else None


@dataclass(frozen=True, kw_only=True)
class Member(Record):
    """A record of something in Python.

    Args:
        entry: "module:name".
        system: the slug of the system it is, or None for a baseline.
    """

    entry: str
    system: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        module, colon, name = self.entry.partition(":")
        if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise UnwriteError(f"{self.where}: {self.slug}: entry is {self.entry!r}; write module:name.")

    @property
    def module(self) -> str:
        """The module it stands in."""
        return self.entry.partition(":")[0]

    @property
    def name(self) -> str:
        """Its name in that module."""
        return self.entry.partition(":")[2]

    def load(self) -> Any:
        """What it is a record of: a class, a function or an object.

        Raises:
            MethodError: a member of another package that can't be imported, or that is of another kind.
        """
        if self.package == OURS:
            return load_entry(self.entry)
        try:
            member = load_entry(self.entry)
            self.said_by(member)
        except (Exception, SystemExit) as error:
            raise MethodError(
                f"{self.slug} is of the package {self.package}, which is broken: {said(error)}."
            ) from error
        return member

    @classmethod
    def said_by(cls, member: Any) -> dict[str, Any]:
        """What a member of another package says of itself, for a record that nobody wrote.

        Raises:
            UnwriteError: it is no member of this kind.
        """
        lines = (member.__doc__ or "").strip().splitlines()
        return {"title": lines[0].rstrip(".") if lines else getattr(member, "__name__", "")}


@dataclass(frozen=True, kw_only=True)
class MethodRecord(Member):
    """One forgetting method and what helps a person choose it.

    Args:
        title, paper, year: where it was published.
        kind: objective, edit or guard; the class's own word.
        forgets: the kinds of data it has a meaning for, "text" and "images"; the class's own words.
        intent: what its authors claim: removal from the weights, or suppression of the output.
        approach: the family of methods it is of (SoK, arXiv 2506.09227).
        intervention: where it steps in.
        needs: what it takes; a subset of `NEEDS`.
        guarantee: "exact", "(epsilon, delta)", "empirical" or "none".
        cost: training and inference, in words.
        reversible: whether the change can be undone.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kind": ("objective", "edit", "guard"),
        "forgets": ("text", "images"),
        "intent": ("removal", "suppression"),
        "approach": APPROACHES,
        "intervention": ("parameters", "representations", "logits", "input", "output", "system"),
        "needs": NEEDS,
        "guarantee": ("exact", "(epsilon, delta)", "empirical", "none"),
    }

    title: str
    paper: str
    year: int
    kind: Literal["objective", "edit", "guard"]
    forgets: tuple[str, ...] = ("text",)
    intent: Literal["removal", "suppression"]
    needs: tuple[str, ...]
    guarantee: Literal["exact", "(epsilon, delta)", "empirical", "none"]
    cost: str
    approach: str = "another"
    intervention: str = "parameters"
    reversible: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights_changed and not self.reversible:
            raise UnwriteError(f"{self.where}: {self.slug} leaves the weights, so it is reversible.")

    @property
    def weights_changed(self) -> bool:
        """Whether the model given is altered: by all but guards."""
        return self.kind != "guard"

    @classmethod
    def said_by(cls, member: Any) -> dict[str, Any]:
        if getattr(member, "kind", None) not in cls.choices["kind"] or not hasattr(member, "forgets"):
            raise UnwriteError("it is no Objective, Edit or Guard of unwrite.forget")
        retain = ("retain set",) if "retain" in member.requires else ()
        recipe = ("training recipe",) if "recipe" in member.requires else ()
        return {
            **super().said_by(member),
            "paper": "not stated",
            "year": 0,
            "kind": member.kind,
            "forgets": tuple(member.forgets),
            "intent": "suppression",  # the weaker claim, where nobody makes one
            "needs": ("forget set", *retain, *recipe),
            "guarantee": "none",
            "cost": "not stated",
            "reversible": member.kind == "guard",
        }


@dataclass(frozen=True, kw_only=True)
class PlanRecord(Member):
    """A training that deletion was planned into: no method for a model that is trained already.

    Args:
        title, paper, year: where it was published.
        forgets: the kinds of data that it trains on.
        needs: what a deletion takes; a subset of `NEEDS`.
        guarantee: as a method's.
        cost: training, deletion and inference, in words.
        use: the call that trains, of names in `unwrite.forget`.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: MethodRecord.choices[name] for name in ("forgets", "needs", "guarantee")
    }
    # What it is in a table of methods.
    kind: ClassVar[str] = "plan"
    intent: ClassVar[str] = "removal"
    approach: ClassVar[str] = "retraining"
    intervention: ClassVar[str] = "parameters"
    reversible: ClassVar[bool] = False

    title: str
    paper: str
    year: int
    forgets: tuple[str, ...]
    needs: tuple[str, ...]
    guarantee: Literal["exact", "(epsilon, delta)", "empirical", "none"]
    cost: str
    use: str


@dataclass(frozen=True, kw_only=True)
class StrategyRecord(Member):
    """One way to decode.

    Args:
        title, paper, year: where it was published.
        exact: what sampled text is: "identical" to plain decoding at the same seed, or equal in "distribution"; greedy
            text is identical for both.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"exact": ("identical", "distribution")}

    title: str
    paper: str
    year: int
    exact: Literal["identical", "distribution"]

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the target, by its fields."""
        names = [field.name for field in dataclasses.fields(self.load())]
        return ("draft model",) if "draft_model" in names else ()

    @classmethod
    def said_by(cls, member: Any) -> dict[str, Any]:
        if not (callable(getattr(member, "drafter", None)) and hasattr(member, "needs")):
            raise UnwriteError("it is no Strategy of unwrite.decode")
        return {**super().said_by(member), "paper": "not stated", "year": 0, "exact": "distribution"}


@dataclass(frozen=True, kw_only=True)
class PartRecord(Member):
    """One part of the denoising loop.

    Args:
        paper: where it was published.
        does: what it does, in one line.
    """

    paper: str
    does: str

    @cached_property
    def kind(self) -> str:
        """The field of `Sampler` that it fills."""
        return str(self.load().fills)

    @classmethod
    def said_by(cls, member: Any) -> dict[str, Any]:
        if not isinstance(getattr(member, "fills", None), str):
            raise UnwriteError("it is no Part of unwrite.diffusion")
        return {"does": super().said_by(member)["title"], "paper": "not stated"}


@dataclass(frozen=True, kw_only=True)
class SuiteRecord(Member):
    """A list of metrics under one name, as a benchmark publishes it; the object says what it is for."""

    @classmethod
    def said_by(cls, member: Any) -> dict[str, Any]:
        if not (hasattr(member, "metrics") and hasattr(member, "for_split")):
            raise UnwriteError("it is no Suite of unwrite.audit")
        return {}


@dataclass(frozen=True, kw_only=True)
class MetricRecord(Member):
    """What is measured on a model; the class says the rest."""


@dataclass(frozen=True, kw_only=True)
class AttackRecord(Member):
    """What is tried on a model to bring back what it should have lost; the class says the rest."""


@dataclass(frozen=True, kw_only=True)
class ShieldRecord(Member):
    """A way to make pictures useless for training; the class says its fields and its budget.

    Args:
        title, paper, year: where it was published.
        does: what it does, in one line.
        needs: what it takes beside the pictures.
        cost: in words.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"needs": ("labels", "captions", "surrogate", "text encoder")}

    title: str
    paper: str
    year: int
    does: str
    needs: tuple[str, ...]
    cost: str


@dataclass(frozen=True, kw_only=True)
class DefenceRecord(Member):
    """What an attacker does against protected pictures; the class says its fields.

    Args:
        title, paper, year: where it was published.
        does: what it does, in one line.
        cost: in words, beside plain training.
    """

    title: str
    paper: str
    year: int
    does: str
    cost: str


@dataclass(frozen=True, kw_only=True)
class CacheRecord(Member):
    """A cache of keys and values, handed to a model as `past_key_values`; the class says its fields.

    Args:
        title, paper, year: where it was published.
        does: how it keeps them in fewer bytes, in one line.
        needs: what it takes beside the model.
        cost: in words, beside a full cache.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"needs": ("calibration texts",)}

    title: str
    paper: str
    year: int
    does: str
    needs: tuple[str, ...] = ()
    cost: str


@dataclass(frozen=True, kw_only=True)
class NetRecord(Member):
    """An architecture as a plain module."""


@dataclass(frozen=True, kw_only=True)
class RecipeRecord(Member):
    """A way to train a model from scratch or further."""

    title: str
    paper: str


@dataclass(frozen=True, kw_only=True)
class BenchRecord(Member):
    """A benchmark of speed.

    Args:
        does: what is compared with what, in one line.
    """

    does: str


def load_entry(entry: str) -> Any:
    """What "module:name" names."""
    module, name = entry.split(":")
    return getattr(importlib.import_module(module), name)


def said(error: BaseException) -> str:
    """An error of foreign code in one line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UnwriteError):
        return str(error).removesuffix(".")
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
