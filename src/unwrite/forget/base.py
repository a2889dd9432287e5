"""The one call behind which every forgetting method stands, and the three kinds of method.

    unlearned = NPO(beta=0.1).apply(model, forget, retain, processing_class=tokenizer)    texts
    unlearned = SCRUB().apply(model, split.forget, split.retain)                          images

Objective: a loss that training minimises. Edit: a rule that rewrites weights. Guard: the weights stay and the
inference changes. A method is a frozen dataclass: its fields are its hyper-parameters.
"""

from __future__ import annotations

import copy as copying
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from ..data import Examples, ForgetSplit
from ..data.images.images import Images
from ..data.images.splits import check_images
from ..errors import DataError, MethodError, ModelError, setting
from .engine.batch import KLMask, PairedBatch
from .engine.checks import require
from .engine.cost import Cost
from .engine.loss import Loss, PerPosition, PerToken, Term, kl_divergence
from .engine.phase import Phase

RetainLoss = Literal["none", "nll", "kl"]


@dataclass(kw_only=True)
class Work:
    """One application of a method: what it was given.

    Args:
        model: changed in place.
        forget, retain, holdout: rows of text (`Examples`) or `Images`.
        recipe: how the model was trained, or None.
        tokenizer: of texts.
        args: training arguments, or a dict of those that differ from the defaults.
        peft_config, callbacks: as `Method.apply`.
        cost: what is spent; counted for images.
    """

    model: Any
    forget: Any
    retain: Any = None
    holdout: Any = None
    recipe: Any = None
    tokenizer: Any = None
    args: Any = None
    peft_config: Any = None
    callbacks: Sequence[Any] = ()
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Anything that takes a forget set out of a model.

    `kind` says which of the three it is; `training` holds the training arguments that differ from the defaults for this
    method; `forgets`, the kinds of data it has a meaning for ("text", "images"); `requires`, what it can't do without
    ("retain", "recipe"); `trains`, whether training arguments mean anything to it.
    """

    kind: ClassVar[Literal["objective", "edit", "guard"]]
    training: ClassVar[dict[str, Any]] = {}
    forgets: ClassVar[tuple[str, ...]] = ("text",)
    requires: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = True

    def apply(
        self,
        model: Any,
        forget: Examples | Images,
        retain: Examples | Images | None = None,
        *,
        holdout: Examples | Images | None = None,
        recipe: Any = None,
        processing_class: Any = None,
        args: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] = (),
        copy: bool = False,
        allow_overlap: bool = False,
        cost: Cost | None = None,
    ) -> Any:
        """Unlearns and returns the model (a PeftModel with a peft config; a guard returns its own model).

        Args:
            model: a causal language model of transformers, or any module that takes pixels
                `[rows, channels, height, width]` to `[rows, outputs]`; changed in place unless `copy`.
            forget, retain, holdout: the rows to remove, to keep, and never seen.
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
        given: dict[str, Any] = {"forget": forget, "retain": retain, "holdout": holdout}
        images = isinstance(forget, Images)
        self._need("images" if images else "text", retain, recipe)
        if images:
            check_images({name: rows for name, rows in given.items() if rows is not None})
        else:
            ForgetSplit(**given, allow_overlap=allow_overlap)
            if getattr(processing_class, "pad_token_id", None) is None:
                raise ModelError("the tokenizer has no pad token. Set one: tokenizer.pad_token = tokenizer.eos_token")
        method = self.fitted(model)
        method.check(forget, retain)
        if not images:
            method.check_model(model, adapters=peft_config is not None)
        if copy:
            model = copying.deepcopy(model)
        given |= {"model": model, "recipe": recipe, "tokenizer": processing_class, "args": args}
        given |= {"peft_config": peft_config, "callbacks": callbacks, "cost": cost or Cost()}
        if not images:
            return method._apply(Work(**given))
        from .engine.images.work import ImageWork

        return method._apply(ImageWork(**given))

    def _need(self, kind: str, retain: Any, recipe: Any) -> None:
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

    def fitted(self, model: Any) -> Self:
        """This method with what its defaults leave to the model filled in: a depth, from how many blocks there are.

        Raises:
            MethodError: a field that this model can't have.
        """
        return self

    def check(self, forget: Any, retain: Any) -> None:  # noqa: B027
        """Refuses data this method has no meaning for; subclasses add to it."""

    def check_data(self, forget: Examples | Images, retain: Examples | Images | None, recipe: Any = None) -> None:
        """Refuses rows as `apply` would, without a model."""
        self._need("images" if isinstance(forget, Images) else "text", retain, recipe)
        self.check(forget, retain)

    def check_model(self, model: Any, *, adapters: bool = False) -> None:
        """Refuses a language model that a field doesn't fit, such as a layer it hasn't; subclasses add to it.

        Args:
            adapters: whether adapters are to be trained in place of the weights.
        """
        self.fitted(model)

    @abstractmethod
    def _apply(self, work: Any) -> Any: ...


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
    kind = "objective"
    reads: ClassVar[frozenset[str] | set[str]] = frozenset({"nll"})

    def __post_init__(self) -> None:
        if self.retain_loss not in ("none", "nll", "kl"):
            raise MethodError(f"{setting('retain_loss')} is {self.retain_loss!r}; use 'none', 'nll' or 'kl'.")
        if self.kl_mask not in ("attention", "labels", "all"):
            raise MethodError(f"{setting('kl_mask')} is {self.kl_mask!r}; use 'attention', 'labels' or 'all'.")
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

    def phases(self, work: Work) -> list[Phase]:
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

    def check_model(self, model: Any, *, adapters: bool = False) -> None:
        super().check_model(model, adapters=adapters)
        if type(self).trainable is not Objective.trainable:
            from ..models import anatomy

            self.fitted(model).trainable(anatomy(model))

    def alternates(self, forget: Any, seed: int) -> Any:
        """Another answer for every forget row (a refusal), a function of (seed, row); None if not read."""
        return None

    @property
    def needs_retain(self) -> bool:
        return super().needs_retain or self.retain_loss != "none" or "retain nll" in self.needed()

    def check(self, forget: Any, retain: Any) -> None:
        if retain is not None or not self.needs_retain:
            return
        if self.retain_loss != "none":
            raise DataError(
                f"{type(self).__name__} has {setting('retain_loss', self.retain_loss)} but there is no retain set. Give "
                f"{setting('retain')}, or {setting('retain_loss', 'none')}."
            )
        raise DataError(
            f"{type(self).__name__} trains on retain rows too, but there is no retain set. Give {setting('retain')}."
        )

    def _apply(self, work: Work) -> Any:
        if isinstance(work.forget, Images):
            from .engine.images.training import train_on_images

            return train_on_images(self, work)  # type: ignore[arg-type]
        from .engine.text.trainer import train_objective

        return train_objective(
            self,
            work.model,
            work.forget,
            work.retain,
            tokenizer=work.tokenizer,
            args=work.args,
            peft_config=work.peft_config,
            callbacks=work.callbacks,
        )


@dataclass(frozen=True, kw_only=True)
class Edit(Method):
    """Weights changed by a rule, after at most one training of a helper. Subclasses write `_apply`."""

    kind = "edit"


@dataclass(frozen=True, kw_only=True)
class Guard(Method):
    """The weights stay, the inference changes; `_apply` returns a model that wraps the one given."""

    kind = "guard"


def _times(term: Term, weight: float) -> Term:
    return Term(term.values * weight, term.counts)
