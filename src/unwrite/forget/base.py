"""The one call behind which every forgetting method stands, and the three kinds of method.

    unlearned = NPO(beta=0.1).apply(model, forget, retain, processing_class=tokenizer)

Objective: a loss that training minimises. Edit: a rule that rewrites weights. Guard: the weights stay and the
inference changes. A method is a frozen dataclass: its fields are its hyper-parameters.
"""

from __future__ import annotations

import copy as copying
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..data import Examples, ForgetSplit
from ..errors import DataError, MethodError, ModelError
from .batch import KLMask, PairedBatch
from .loss import Loss, PerPosition, PerToken, Term, kl_divergence
from .stream import Stream

RetainLoss = Literal["none", "nll", "kl"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Anything that takes a forget set out of a model.

    `training` holds the training arguments that differ from `UnlearnArguments` for this method.
    """

    training: ClassVar[dict[str, Any]] = {}

    def apply(
        self,
        model: Any,
        forget: Examples,
        retain: Examples | None = None,
        *,
        holdout: Examples | None = None,
        recipe: Any = None,
        processing_class: Any,
        args: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] = (),
        copy: bool = False,
        allow_overlap: bool = False,
    ) -> Any:
        """Unlearns and returns the model (a PeftModel with a peft config; a guard returns its own model).

        Args:
            model: a causal language model of transformers; changed in place unless `copy`.
            forget, retain, holdout: the rows to remove, to keep, and never seen.
            recipe: how the model was trained, for methods that retrain; others ignore it.
            processing_class: the tokenizer.
            args: `UnlearnArguments`, or a dict of those that differ from the defaults.
            peft_config: trains adapters instead of the weights.
            callbacks: transformers TrainerCallbacks, such as `StopWhenForgotten`.
            allow_overlap: warn instead of refusing rows that are in forget and retain alike.

        Raises:
            DataError: empty or overlapping sets, rows that can't be encoded.
            ModelError: a tokenizer without a pad token.
            MethodError: a setting without meaning for this model or data.
        """
        ForgetSplit(forget, retain, holdout, allow_overlap=allow_overlap)
        if getattr(processing_class, "pad_token_id", None) is None:
            raise ModelError("the tokenizer has no pad token. Set one: tokenizer.pad_token = tokenizer.eos_token")
        self.check(forget, retain)
        if copy:
            model = copying.deepcopy(model)
        return self._apply(
            model,
            forget,
            retain,
            tokenizer=processing_class,
            args=args,
            peft_config=peft_config,
            callbacks=callbacks,
        )

    def check(self, forget: Examples, retain: Examples | None) -> None:  # noqa: B027
        """Refuses data this method has no meaning for; subclasses add to it."""

    @abstractmethod
    def _apply(
        self,
        model: Any,
        forget: Examples,
        retain: Examples | None,
        *,
        tokenizer: Any,
        args: Any,
        peft_config: Any,
        callbacks: Sequence[Any],
    ) -> Any: ...


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        stream: which rows a step brings: "forget", "retain", "paired" (both, as many of each) or "mixed".
        loss: what is minimised, a function of the batch.
        optimiser: builds an optimiser from the trainable parameters; None for the arguments' own.
        epochs: passes over the stream; None for the arguments' own.
    """

    stream: Stream
    loss: Callable[[PairedBatch], Loss]
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(Method):
    """A loss to minimise.

    Subclasses set `reads` and write `loss`. `reads` names what the loss looks at: "nll" and "logits" of the
    forget rows, "alternate nll", "retain nll", "hidden:<layer>" of forget and retain rows, and each of them of the
    model before unlearning: "reference nll", "reference alternate nll", "reference logits",
    "reference hidden:<layer>". The base computes them, caches references by row, and adds the retain term.

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
    reads: ClassVar[frozenset[str] | set[str]] = frozenset({"nll"})

    def __post_init__(self) -> None:
        if self.retain_loss not in ("none", "nll", "kl"):
            raise MethodError(f"retain_loss is {self.retain_loss!r}; use 'none', 'nll' or 'kl'.")
        if self.kl_mask not in ("attention", "labels", "all"):
            raise MethodError(f"kl_mask is {self.kl_mask!r}; use 'attention', 'labels' or 'all'.")
        for name in ("forget_weight", "retain_weight"):
            require(name, getattr(self, name), at_least=0)

    def needed(self) -> frozenset[str]:
        """What the loss looks at; methods whose reads depend on a field override this."""
        return frozenset(self.reads)

    @abstractmethod
    def loss(self, batch: PairedBatch) -> Loss:
        """The forget loss of one batch, without weights and retain term."""

    def retain_positions(self) -> KLMask | None:
        """Where retain logits are taken; None for the positions that predict a label."""
        return self.kl_mask if self.retain_loss == "kl" else None

    def phases(self) -> list[Phase]:
        """What training consists of: by default one phase on paired rows."""
        return [Phase(stream="paired", loss=self.total_loss)]

    def total_loss(self, batch: PairedBatch) -> Loss:
        """`loss`, weighted, with the retain term."""
        loss = self.loss(batch)
        terms = dict(loss.terms)
        if "forget" in terms:
            terms["forget"] = _times(terms["forget"], self.forget_weight)
        if self.retain_loss != "none" and batch.retain is not None:
            terms["retain"] = _times(self._retain_term(batch), self.retain_weight)
        return Loss(loss.logs, **terms)

    def _retain_term(self, batch: PairedBatch) -> Term:
        part = batch["retain"]
        if self.retain_loss == "nll":
            return PerToken(part.token_nll, "retain")
        assert part.logits is not None
        assert part.reference_logits is not None
        return PerPosition(kl_divergence(part.reference_logits, part.logits), "retain")

    def trainable(self, anatomy: Any) -> Sequence[Tensor] | None:
        """Parameters to train; None for all. Others are bit-identical afterwards."""
        return None

    def alternates(self, forget: Examples, seed: int) -> Examples | None:
        """Another answer for every forget row (a refusal), a function of (seed, row); None if not read."""
        return None

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if retain is not None:
            return
        if self.retain_loss != "none":
            raise DataError(
                f"{type(self).__name__} has retain_loss={self.retain_loss!r} but there is no retain set. Give one, or "
                "use retain_loss='none'."
            )
        if "retain nll" in self.needed():
            raise DataError(f"{type(self).__name__} trains on retain rows too, but there is no retain set. Give one.")

    def _apply(self, model: Any, forget: Examples, retain: Examples | None, **options: Any) -> Any:
        from .trainer import train_objective

        return train_objective(self, model, forget, retain, **options)


@dataclass(frozen=True, kw_only=True)
class Edit(Method):
    """Weights changed by a rule, after at most one training of a helper. Subclasses write `_apply`."""


@dataclass(frozen=True, kw_only=True)
class Guard(Method):
    """The weights stay, the inference changes; `_apply` returns a model that wraps the one given."""


def _times(term: Term, weight: float) -> Term:
    return Term(term.values * weight, term.counts)


def require(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuses a number that is NaN, infinite or outside its range, saying what is allowed."""
    words = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    rule = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    good = (
        isinstance(value, int | float)
        and abs(value) < float("inf")
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not good:
        raise MethodError(f"{name} is {value}; it must be a finite number, {rule}.")
