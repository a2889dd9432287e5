"""One model under audit on one split: what every kind of data shares, and what a kind of its own adds.

A kind of data (texts, images) is one class: it says which splits it reads, which of `evaluate`'s arguments and
references mean something for it, and what of a model is computed once and kept on disk by the content of weights and
rows, so that a second audit of the same model reads files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from ..runs import cached_json, hash_json
from .fingerprint import fingerprint

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from .base import Suite
    from .report.parts import Picture, Sample

FORMAT = 1  # raise it when a cached value changes its meaning

T = TypeVar("T")


class Split(Protocol):
    """What an audit asks of any split."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


S = TypeVar("S", bound=Split)


@dataclass(frozen=True)
class PassSettings:
    """How the passes of an audit are run.

    Args:
        batch_size: rows a pass.
        tokenizer: of texts; None where none was given.
        max_length: tokens a row may have; None where none was given.
    """

    batch_size: int = 16
    tokenizer: PreTrainedTokenizerBase | None = None
    max_length: int | None = None


class Context(ABC, Generic[S]):
    """One model on one split; metrics and attacks ask it for outputs, which it computes once.

    Class attributes:
        kind: the name of this kind of data.
        takes: arguments of `evaluate` that mean something for it, of "tokenizer" and "max_length".
        columns: the models there can be, by role, with the name of their column in the report; None for no column.
        manner: how the models were asked, for the report.

    Args:
        model: what is audited.
        split: the rows.
        role: what the model is in the audit: "after" for the audited one, "before", "oracle", ...
        batch_size: rows a pass; the scores don't depend on it.
        cached: whether what is computed is kept on disk.
    """

    kind: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[Mapping[str, str | None]] = {"before": "before", "after": "after", "oracle": "oracle"}
    manner: ClassVar[str] = "Every model saw the same rows."

    def __init__(
        self, model: nn.Module, split: S, *, role: str = "after", batch_size: int = 16, cached: bool = True
    ) -> None:
        self.model, self.split, self.role = model, split, role
        self.batch_size, self.cached = batch_size, cached
        self._memory: dict[str, Any] = {}
        self._held: dict[Hashable, Any] = {}

    @classmethod
    @abstractmethod
    def holds(cls, split: object) -> bool:
        """Whether a split is of this kind of data."""

    @classmethod
    @abstractmethod
    def sets(cls, split: S) -> Mapping[str, Sized]:
        """The sets of rows that a split has, by name, in the report's order."""

    @classmethod
    def rows_named(cls, split: S, name: str) -> Sized | None:
        """The rows a metric asks for by this name; None where the split has none."""
        return cls.sets(split).get(name)

    @classmethod
    def beside(cls, models: Mapping[str, Any], split: S, suite: Suite, settings: PassSettings) -> dict[str, Self]:
        """The contexts of all models of one audit by role, which are asked alike.

        Raises:
            ModelError, MethodError: a model that doesn't fit the data, or a setting that is missing.
        """
        return {role: cls(model, split, role=role, batch_size=settings.batch_size) for role, model in models.items()}

    @classmethod
    def samples(cls, contexts: Mapping[str, Self], measured: Collection[str]) -> list[Sample]:
        """What each model says, row by row, for the report.

        Args:
            contexts: the models with a column, by its name.
            measured: names of the metrics, whose passes cost nothing now.
        """
        return []

    @classmethod
    def pictures(cls, contexts: Mapping[str, Self]) -> tuple[Picture, ...]:
        """What there is to see of the models, for the report."""
        return ()

    def provenance(self) -> dict[str, str | float]:
        """What the figures depend on besides data, suite, models and versions."""
        return {}

    @cached_property
    def fingerprint(self) -> str | None:
        """What this model does, as a hash; None where nothing may be kept of it on disk."""
        return fingerprint(self.model)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """A value of any kind by key, computed once and kept in memory alone."""
        if key not in self._held:
            self._held[key] = compute()
        value: T = self._held[key]
        return value

    def remember(self, kind: str, key: object, compute: Callable[[], T]) -> T:
        """A JSON value by key: from memory, from the disk, or computed and kept in both."""
        name = hash_json([FORMAT, kind, key])
        if name not in self._memory:
            keep = self.cached and self.fingerprint
            place = ("scores", self.fingerprint or "")
            self._memory[name] = cached_json(place, f"{kind}-{name}", compute) if keep else compute()
        value: T = self._memory[name]
        return value
