"""One application of a method: what was given, and what every kind of data can be asked for.

A kind of data has a folder of its own with a subclass (`text`, `images`); `kinds.py` says which rows go to which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from ...errors import DataError, MethodError
from .cost import Cost
from .kinds import kind_of
from .phase import Phase
from .reads import check_reads, reads_retain

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ...models.curvature.losses import LabelledBatch
    from ..base import Objective

__all__ = ["Work"]

Rows = TypeVar("Rows", bound=Sized)
Arguments = TypeVar("Arguments")


@dataclass(kw_only=True)
class Work(ABC, Generic[Rows, Arguments]):
    """One application of a method: what it was given.

    `reads` names what a loss on this kind of data may look at, see `reads.py`.

    Args:
        model: changed in place.
        forget, retain, holdout: the rows to remove, to keep, and never seen.
        recipe: how the model was trained, or None.
        processing_class: the tokenizer, for texts.
        args: the training arguments, which `arguments` made.
        peft_config, callbacks, allow_overlap: as `Method.apply`.
        cost: what is spent.
    """

    reads: ClassVar[frozenset[str]]

    model: nn.Module
    forget: Rows
    retain: Rows | None = None
    holdout: Rows | None = None
    recipe: Any = None
    processing_class: PreTrainedTokenizerBase | None = None
    args: Arguments
    peft_config: PeftConfig | None = None
    callbacks: Sequence[TrainerCallback] = ()
    allow_overlap: bool = False
    cost: Cost = field(default_factory=Cost)

    @classmethod
    @abstractmethod
    def arguments(cls, args: Arguments | dict[str, Any] | None, defaults: Mapping[str, Any]) -> Arguments:
        """The training arguments: what was given goes before a method's own defaults.

        Raises:
            MethodError: an argument there isn't, or arguments of another kind of data.
        """

    @abstractmethod
    def check(self) -> None:
        """Refuses rows, a model, a tokenizer or adapters that don't fit together; nothing is changed.

        Raises:
            DataError, ModelError, MethodError: what doesn't fit, and what to do.
        """

    def place(self) -> None:
        """Puts the model where the arguments say, for what is computed before training."""

    @abstractmethod
    def train(self, objective: Objective) -> nn.Module:
        """Minimises the objective on these rows, phase after phase, and gives the model in evaluation mode.

        Raises:
            MethodError: a phase or a name in `reads` that this kind of data can't do.
            NotFinite: the loss is no number any more.
        """

    @abstractmethod
    def encoded(self, rows: Rows) -> Any:
        """The rows as the model reads them, for `batches`."""

    @abstractmethod
    def batches(self, rows: Any, batch_size: int) -> Iterator[Any]:
        """Tuples that begin with (inputs, target), of rows that `encoded` gave, in their own order."""

    def content(self, rows: Any) -> Any:
        """What tells such rows from others, for caches."""
        return rows

    @property
    @abstractmethod
    def row_loss(self) -> Callable[[nn.Module, LabelledBatch], Tensor]:
        """The loss a model of such rows is trained with: of a model and a batch, `[rows]`."""

    @property
    def retained(self) -> Rows:
        """The retain rows, for methods that need them.

        Raises:
            DataError: there are none.
        """
        if self.retain is None:
            raise DataError("there is no retain set. Give the rows to keep.")
        return self.retain

    def depth(self) -> int:
        """How many blocks the model has that can be read by number."""
        return 0

    def phases(self, objective: Objective) -> list[Phase]:
        """The objective's phases, once this kind of data can do all that is asked for.

        Raises:
            MethodError: a name in `reads`, or the field of a phase, that it can't do.
        """
        self.check_reads(objective)
        phases = objective.phases(self)
        for phase in phases:
            self.check_phase(phase, objective)
        return phases

    def check_reads(self, objective: Objective) -> None:
        """Refuses names in `reads` that this kind of data doesn't have.

        Raises:
            MethodError: an unknown name, with the nearest known one; a layer that the model hasn't.
        """
        check_reads(
            type(objective).__name__, objective.needed(), self.reads, kind_of(self.forget).name, depth=self.depth
        )

    def check_phase(self, phase: Phase, objective: Objective) -> None:
        """Refuses a phase that can't be trained on these rows; kinds of data add to it.

        Raises:
            MethodError: which field, of which method, and why.
        """
        method = type(objective).__name__
        if phase.stream not in ("forget", "paired") and phase.retain is None and self.retain is None:
            raise MethodError(f"{method} reads retain rows, but there is no retain set.")
        if phase.stream == "paired" and phase.retain is not None and not reads_retain(objective.needed()):
            raise MethodError(
                f"{method} has a paired phase with retain rows, but reads nothing of them. Leave out retain."
            )
        kind = kind_of(self.forget)
        for name, rows in (("forget", phase.forget), ("retain", phase.retain)):
            if rows is not None and kind_of(rows) != kind:
                raise MethodError(
                    f"{method} on {kind.name}: a phase's {name} rows are {type(rows).__name__}. "
                    f"Give {kind.rows.__name__}."
                )
