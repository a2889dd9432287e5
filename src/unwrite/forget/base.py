"""The one call behind which every forgetting method stands, and the three kinds of method.

    unlearned = NPO(beta=0.1).apply(model, forget, retain, processing_class=tokenizer)    texts
    unlearned = SCRUB().apply(model, split.forget, split.retain)                          images

Objective: a loss that training minimises; one with a retain term beside it is a `Paired`. Edit: a rule that rewrites
weights. Guard: the weights stay and the inference changes. A method is a frozen dataclass: its fields are its
hyper-parameters. What an application was given is one `Work`, of its kind of data (`engine/kinds.py`).
"""

from __future__ import annotations

import copy as copying
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from torch import Tensor, nn

from ..errors import DataError, MethodError, setting
from .engine.batch import KLMask, PairedBatch
from .engine.checks import require
from .engine.cost import Cost
from .engine.kinds import kind_of
from .engine.loss import Loss, PerPosition, PerToken, Term, kl_divergence
from .engine.phase import Phase
from .engine.reads import needs_retain
from .engine.work import Work

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ..models import TrainRecipe
    from .engine.images.arguments import ImageArguments
    from .engine.text.arguments import UnlearnArguments

__all__ = ["Edit", "Guard", "Method", "Objective", "Paired", "RetainLoss"]

RetainLoss = Literal["none", "nll", "kl"]
WorkT = TypeVar("WorkT", bound=Work)


@dataclass(frozen=True, kw_only=True)
class Method(ABC, Generic[WorkT]):
    """Anything that takes a forget set out of a model.

    `kind` says which of the three it is; `training` holds the training arguments that differ from the defaults for this
    method; `forgets`, the kinds of data it has a meaning for ("text", "images"); `requires`, what it can't do without
    ("retain", "recipe"); `trains`, whether training arguments mean anything to it. A method for one kind of data names its
    work: `Edit[ImageWork]`.
    """

    kind: ClassVar[Literal["objective", "edit", "guard"]]
    training: ClassVar[dict[str, Any]] = {}
    forgets: ClassVar[tuple[str, ...]] = ("text",)
    requires: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = True

    def apply(
        self,
        model: nn.Module,
        forget: Sized,
        retain: Sized | None = None,
        *,
        holdout: Sized | None = None,
        recipe: TrainRecipe | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        args: UnlearnArguments | ImageArguments | dict[str, Any] | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        copy: bool = False,
        allow_overlap: bool = False,
        cost: Cost | None = None,
    ) -> Any:
        """Unlearns and returns the model (a PeftModel with a peft config; a guard returns its own model).

        Args:
            model: a causal language model of transformers, or any module that takes pixels
                `[rows, channels, height, width]` to `[rows, outputs]`; changed in place unless `copy`.
            forget, retain, holdout: the rows to remove, to keep, and never seen: `Examples` of text, or `Images`.
            recipe: how the model was trained, for methods that need a fresh model or a retrained one; others ignore it.
            processing_class: the tokenizer, for texts.
            args: `UnlearnArguments` for texts or `ImageArguments` for images, or a dict of those that differ.
            peft_config: trains adapters instead of the weights; language models only.
            callbacks: transformers TrainerCallbacks, such as `StopWhenForgotten` or `KeepMask`.
            allow_overlap: warn instead of refusing rows that are in forget and retain alike; texts only.
            cost: counts what is spent, in forwards of one row; images only.

        Raises:
            DataError: empty or overlapping sets, rows that can't be encoded, data of a kind this method can't forget.
            ModelError: a tokenizer without a pad token; a model that doesn't fit the data.
            MethodError: a setting without meaning for this model or data.
        """
        self._need(kind_of(forget).name, retain, recipe)
        work = self.work(
            model,
            forget,
            retain,
            holdout=holdout,
            recipe=recipe,
            processing_class=processing_class,
            args=args,
            peft_config=peft_config,
            callbacks=callbacks,
            allow_overlap=allow_overlap,
            cost=cost or Cost(),
        )
        work.check()
        method = self.fitted(model)
        method.check(forget, retain)
        method.check_model(model, adapters=peft_config is not None)
        method.check_work(work)
        if copy:
            work = replace(work, model=copying.deepcopy(model))  # what was found of the model itself is found anew
        work.place()
        return method._apply(work)

    def work(
        self, model: nn.Module, forget: Sized, retain: Sized | None = None, *, args: Any = None, **given: Any
    ) -> WorkT:
        """What an application of this method is given, as the kind of data of its rows has it; nothing is checked.

        Args:
            given: as `apply`.
        """
        work_type: Any = kind_of(forget).load()
        arguments = work_type.arguments(args, self.defaults())
        work: WorkT = work_type(model=model, forget=forget, retain=retain, args=arguments, **given)
        return work

    def defaults(self) -> Mapping[str, Any]:
        """The training arguments that differ for this method; what wraps another method has that one's."""
        return self.training

    def _need(self, kind: str, retain: Sized | None, recipe: TrainRecipe | None) -> None:
        name = type(self).__name__
        if kind not in self.forgets:
            raise DataError(f"{name} has no meaning for {kind}; it forgets {' and '.join(self.forgets)}.")
        if "retain" in self.requires and retain is None:
            raise DataError(f"{name} needs a retain set. Give the rows to keep: {setting('retain')}.")
        if "recipe" in self.requires and recipe is None:
            raise MethodError(f"{name} needs a fresh model of the same kind. Give the recipe that trained this one.")

    @property
    def needs_retain(self) -> bool:
        """Whether it does nothing without rows to keep, with the fields as they are."""
        return "retain" in self.requires

    def fitted(self, model: nn.Module) -> Self:
        """This method with what its defaults leave to the model filled in: a depth, from how many blocks there are.

        Raises:
            MethodError: a field that this model can't have.
        """
        return self

    def check(self, forget: Any, retain: Any) -> None:
        """Refuses data this method has no meaning for; subclasses add to it."""

    def check_data(self, forget: Sized, retain: Sized | None, recipe: TrainRecipe | None = None) -> None:
        """Refuses rows as `apply` would, without a model."""
        self._need(kind_of(forget).name, retain, recipe)
        self.check(forget, retain)

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        """Refuses a model that a field doesn't fit, such as one without the layer it names; subclasses add to it.

        Args:
            adapters: whether adapters are to be trained in place of the weights.
        """
        self.fitted(model)

    def check_work(self, work: WorkT) -> None:
        """Refuses what can't be done on this kind of data, before anything is computed; subclasses add to it."""

    @abstractmethod
    def _apply(self, work: WorkT) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Objective(Method[WorkT]):
    """A loss to minimise.

    Subclasses set `reads` and write `loss`. `reads` names what the loss looks at: "nll", "logits" and "token counts" of
    the forget rows; of texts "hidden:<layer>" and "alternate nll", of images "features" and "blocks"; "retain nll",
    "retain logits", or "retain" for the retain rows whatever is read of them; and of the model before unlearning
    "reference nll" and so on. What is named is computed and handed over; references are computed once and found by row.
    `separable` says that the loss can be asked of a batch with forget rows alone and of one with retain rows alone, and gives for
    each the terms of its rows; what smooths a loss needs that.
    """

    kind = "objective"
    separable: ClassVar[bool] = False
    reads: ClassVar[frozenset[str] | set[str]] = frozenset({"nll"})

    def needed(self) -> frozenset[str]:
        """What the loss looks at; methods whose reads depend on a field add to it."""
        return frozenset(self.reads)

    @abstractmethod
    def loss(self, batch: PairedBatch) -> Loss:
        """The loss of one batch."""

    def retain_positions(self) -> KLMask | None:
        """Where logits of retain rows of text are taken; None for the positions that predict a label."""
        return None

    def phases(self, work: WorkT) -> list[Phase]:
        """What training consists of: by default one phase on paired rows."""
        return [Phase(stream="paired", loss=self.loss)]

    def trainable(self, work: WorkT) -> Sequence[Tensor] | None:
        """Parameters to train, of those that require a gradient; None for all. Others stay bit-identical.

        Adapters, where there are any, are trained instead.

        Args:
            work: knows the model's parts: `work.anatomy` of a language model, `work.layout` of one for images.
        """
        return None

    def alternates(self, forget: Any, seed: int) -> Any:
        """Another answer for every forget row (a refusal), a function of (seed, row); None if not read."""
        return None

    @property
    def needs_retain(self) -> bool:
        return super().needs_retain or needs_retain(self.needed())

    def check(self, forget: Any, retain: Any) -> None:
        if retain is None and self.needs_retain:
            raise DataError(
                f"{type(self).__name__} trains on retain rows too, but there is no retain set. Give {setting('retain')}."
            )

    def check_work(self, work: WorkT) -> None:
        super().check_work(work)
        work.check_reads(self)

    def _apply(self, work: WorkT) -> nn.Module:
        return work.train(self)


@dataclass(frozen=True, kw_only=True)
class Paired(Objective[WorkT]):
    """A loss on forget rows with a retain term beside it, each step on pairs of both.

    Subclasses write `loss`, whose term named "forget" is weighted here; the retain term is added here too.

    Args:
        forget_weight: factor of the forget term.
        retain_loss: "none", "nll" (cross-entropy on retain answers) or "kl" (to the model before, on retain rows).
        retain_weight: factor of the retain term.
        kl_mask: positions of the KL term: "attention" (all but padding), "labels", or "all" (with padding,
            as the official code averages).
    """

    forget_weight: float = 1.0
    retain_loss: RetainLoss = "none"
    retain_weight: float = 1.0
    kl_mask: KLMask = "attention"
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.retain_loss not in ("none", "nll", "kl"):
            raise MethodError(f"{setting('retain_loss')} is {self.retain_loss!r}; use 'none', 'nll' or 'kl'.")
        if self.kl_mask not in ("attention", "labels", "all"):
            raise MethodError(f"{setting('kl_mask')} is {self.kl_mask!r}; use 'attention', 'labels' or 'all'.")
        for name in ("forget_weight", "retain_weight"):
            require(name, getattr(self, name), at_least=0)

    def needed(self) -> frozenset[str]:
        """What the loss looks at, and what the retain term does."""
        term = {"none": (), "nll": ("retain nll",), "kl": ("retain logits", "reference retain logits")}
        return super().needed() | frozenset(term[self.retain_loss])

    def retain_positions(self) -> KLMask | None:
        return self.kl_mask if self.retain_loss == "kl" else None

    def phases(self, work: WorkT) -> list[Phase]:
        return [Phase(stream="paired", loss=self.total_loss)]

    def total_loss(self, batch: PairedBatch) -> Loss:
        """`loss`, weighted, with the retain term; of retain rows alone, that term alone."""
        loss = self._loss_of_present(batch)
        terms = dict(loss.terms)
        if "forget" in terms:
            terms["forget"] = _times(terms["forget"], self.forget_weight)
        if self.retain_loss != "none" and batch.retain is not None:
            terms["retain"] = _times(self._retain_term(batch), self.retain_weight)
        return Loss(loss.logs, **terms)

    def _loss_of_present(self, batch: PairedBatch) -> Loss:
        return self.loss(batch) if batch.forget is not None else Loss()

    def _retain_term(self, batch: PairedBatch) -> Term:
        part = batch["retain"]
        if self.retain_loss == "nll":
            return PerToken(part.token_nll, "retain")
        assert part.logits is not None
        assert part.reference_logits is not None
        return PerPosition(kl_divergence(part.reference_logits, part.logits), "retain")

    @property
    def needs_retain(self) -> bool:
        return super().needs_retain or self.retain_loss != "none"

    def check(self, forget: Any, retain: Any) -> None:
        if retain is None and self.retain_loss != "none":
            raise DataError(
                f"{type(self).__name__} has {setting('retain_loss', self.retain_loss)} but there is no retain set. Give "
                f"{setting('retain')}, or {setting('retain_loss', 'none')}."
            )
        super().check(forget, retain)


@dataclass(frozen=True, kw_only=True)
class Edit(Method[WorkT]):
    """Weights changed by a rule, after at most one training of a helper. Subclasses write `_apply`."""

    kind = "edit"


@dataclass(frozen=True, kw_only=True)
class Guard(Method[WorkT]):
    """The weights stay, the inference changes; `_apply` returns a model that wraps the one given."""

    kind = "guard"


def _times(term: Term, weight: float) -> Term:
    return Term(term.values * weight, term.counts)
