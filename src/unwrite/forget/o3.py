"""O3: deletion requests one after another without retained data, each an adapter and a detector of what it is about.

The adapter learns other answers to the request's questions, pushed away from the directions of the requests before; the detector says
of a prompt how strongly the adapter is to answer, so that all other prompts run on the untouched model. (O3, arXiv 2407.10223)

    L = CE(other answers) + lambda * mean over layers of sum over modules and earlier requests k of || A_k A' ||_F^2

It suppresses: the weights are those of before, and a prompt that the detector takes for another gets the whole answer. What is stored
of a detector are vectors of the deleted texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Examples
from ..errors import DataError, MethodError, setting, unknown
from ..runs import seeded
from .base import Guard, Objective
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerRow, PerToken
from .engine.phase import Phase
from .engine.text.adapted_rows import AdaptedRowsModel, DeletionRequest
from .engine.text.masked_encoder import MaskedEncoder
from .engine.text.novelty import FEWEST, LayerStates, NoveltyDetector, WeightMode, parted
from .engine.text.prompts import turns_of
from .engine.text.refusals import default_refusals, refuse
from .engine.text.row_adapter import RowAdapter
from .engine.text.row_states import RowStates

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from .engine.text.work import TextWork

__all__ = ["O3", "orthogonality"]

Earlier = Literal["all", "prev"]
Answers = Literal["refusals", "wrong"]
Encoder = Literal["states", "masked"]


def orthogonality(trained: Mapping[str, Tensor], earlier: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Sum over earlier adapters and modules of || A_k A' ||_F^2, a scalar.

    Args:
        trained: A of every module, [rank, inputs].
        earlier: the same of each earlier adapter.
    """
    parts = [(before[name] @ a.T).square().sum() for before in earlier for name, a in trained.items()]
    return torch.stack(parts).sum() if parts else torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class _Request(Objective["TextWork"]):
    """Cross-entropy on the request's other answers, with the penalty.

    Args:
        weight: lambda.
        earlier: A of every module, of each earlier adapter.
    """

    weight: float
    earlier: tuple[Mapping[str, Tensor], ...] = ()

    def phases(self, work: TextWork) -> list[Phase]:
        model: Any = work.model
        trained = {
            path: module.lora_A["default"].weight
            for path, module in model.base_model.model.named_modules()
            if "default" in getattr(module, "lora_A", ())
        }
        depth = work.depth()

        def loss(batch: PairedBatch) -> Loss:
            return self.penalised(batch, trained, depth)

        return [Phase(stream="forget", loss=loss)]

    def loss(self, batch: PairedBatch) -> Loss:
        """The cross-entropy alone. batch.forget: token_nll [label tokens]."""
        return Loss(other=PerToken(batch["forget"].token_nll, "forget"))

    def penalised(self, batch: PairedBatch, trained: Mapping[str, Tensor], depth: int) -> Loss:
        """With lambda times the penalty, which counts once a step however the step's rows are divided."""
        terms = dict(self.loss(batch).terms)
        if self.weight and self.earlier:
            penalty = self.weight * orthogonality(trained, self.earlier) / depth
            terms["orthogonality"] = PerRow(penalty.expand(batch["forget"].nll.shape[0]), "forget")
        return Loss({}, **terms)


@dataclass(frozen=True, kw_only=True)
class O3(Guard["TextWork"]):
    """One request of a stream: applied to a model, it begins a stream; applied to what it returned, it adds a request.

    The loss is over the other answers alone (ours; the released code takes the prompts in), and the rate rises over the first epoch
    (ours; a hundred steps there, more than a small request has).

    Args:
        answers: what the adapter learns to say: "refusals", or one of the row's "wrong" answers, drawn by (seed, row).
        refusals: sentences to refuse with; empty for the hundred that ship.
        orthogonality: lambda, factor of the penalty, at least 0.
        earlier: the penalty is over "all" earlier adapters, as the released code has it, or the "prev" one, as the paper writes it.
        fresh: every request gets an adapter of its own and all are added up, in place of one that goes on (ours).
        rank, alpha, dropout: of the adapters, on all linear layers of the blocks.
        encoder: what the detector reads: "states", the mean states of the model's own layers (ours), or "masked", those of a masked
            language model that is fitted to the request, as in the paper.
        masked_model: the folder or Hub id of that model; roberta-large in the paper.
        layers: of the encoder, whose states count.
        held: share of the request's rows that set the detector's scale, in (0, 1).
        outside: nu of the detector's one-class SVM, in (0, 1].
        zeta: of the weight, > 0.
        mode: how a weight follows; see `NoveltyWeight`.
        official_statistics: covariances and scores as the released code has them; see `NoveltyDetector.fit`.
        fewest: texts of a request, at least 4; the paper's sets have hundreds.
    """

    answers: Answers = "refusals"
    refusals: tuple[str, ...] = ()
    orthogonality: float = 0.1
    earlier: Earlier = "all"
    fresh: bool = False
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    encoder: Encoder = "states"
    masked_model: str | None = None
    layers: int = 12
    held: float = 0.2
    outside: float = 0.1
    zeta: float = 10.0
    mode: WeightMode = "floor"
    official_statistics: bool = False
    fewest: int = FEWEST

    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-4,
        "num_train_epochs": 15,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 16,
        "lr_scheduler_type": "linear",
    }

    def __post_init__(self) -> None:
        for name, known in (("answers", Answers), ("earlier", Earlier), ("encoder", Encoder), ("mode", WeightMode)):
            if getattr(self, name) not in get_args(known):
                raise MethodError(f"{setting(name)}: {unknown('choice', str(getattr(self, name)), get_args(known))}")
        if (self.encoder == "masked") != bool(self.masked_model):
            raise MethodError(
                f"{setting('masked_model')} is {self.masked_model!r}, and {setting('encoder')} is {self.encoder!r}. Name a folder or Hub id "
                f"with {setting('encoder', 'masked')}, and only there."
            )
        require("orthogonality", self.orthogonality, at_least=0)
        require("dropout", self.dropout, at_least=0, below=1)
        require("held", self.held, above=0, below=1)
        require("outside", self.outside, above=0, at_most=1)
        require("zeta", self.zeta, above=0)
        for name, least in (("rank", 1), ("alpha", 1), ("layers", 1), ("fewest", 4)):
            require(name, getattr(self, name), at_least=least)

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if self.answers == "wrong" and (bad := next((row for row in forget if not row.perturbed_answers), None)):
            raise DataError(
                f"{bad.source or f'row {bad.index}'} has no wrong answers to learn. Give some, or use {setting('answers', 'refusals')}."
            )

    def check_work(self, work: TextWork) -> None:
        super().check_work(work)
        work.encoded(self.relabelled(work.forget, work.args.seed))  # a row that can't be asked is refused first
        if len(work.forget) < self.fewest:
            raise DataError(
                f"a detector of what a request is about needs {self.fewest} texts, and the forget set has {len(work.forget)}. Give more "
                f"rows, put requests together, or lower {setting('fewest')}."
            )

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        super().check_model(model, adapters=adapters)
        if adapters:
            raise MethodError(
                f"O3 has adapters of its own, set by {setting('rank')}. Leave {setting('peft_config')} out."
            )
        if isinstance(model, AdaptedRowsModel) and model.requests and model.fresh != self.fresh:
            raise MethodError(
                f"the requests before were made with {setting('fresh', str(model.fresh))}; a stream keeps to one way."
            )

    def _apply(self, work: TextWork) -> AdaptedRowsModel:
        given: Any = work.model
        stream = (
            given if isinstance(given, AdaptedRowsModel) else AdaptedRowsModel(given, work.tokenizer, fresh=self.fresh)
        )
        target: Any = stream.target
        inside = replace(work, model=target, forget=self.relabelled(work.forget, work.args.seed), retain=None)
        texts = [turns_of(row)[-1] for row in work.forget]
        encode = self._encoder(target, inside, texts)
        detector = NoveltyDetector.fit(
            texts,
            encode,
            held=self.held,
            nu=self.outside,
            zeta=self.zeta,
            mode=self.mode,
            official=self.official_statistics,
            seed=work.args.seed,
            fewest=self.fewest,
        )
        adapter = self.adapter(inside, stream)
        request = DeletionRequest(adapter, detector, encode)
        return AdaptedRowsModel(target, work.tokenizer, (*stream.requests, request), fresh=self.fresh)

    def relabelled(self, forget: Examples, seed: int) -> Examples:
        """The rows with the answers that the adapter learns."""
        if self.answers == "refusals":
            return refuse(forget, self.refusals or default_refusals(), seed)
        picks = [np.random.default_rng([seed, 29, row.index]).integers(len(row.perturbed_answers)) for row in forget]
        return Examples(
            (row.ask(answer=row.perturbed_answers[pick]) for row, pick in zip(forget, picks, strict=True)), "relabelled"
        )

    def adapter(self, work: TextWork, stream: AdaptedRowsModel) -> RowAdapter:
        """Trains this request's adapter; the target is given back as it was.

        Args:
            work: on the target, with the rows as they are to be answered.
            stream: the requests before.
        """
        from peft import LoraConfig, get_peft_model

        before = [request.adapter for request in stream.requests]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            bias="none",
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        target: Any = work.model
        flags = [(parameter, parameter.requires_grad) for parameter in target.parameters()]
        with seeded(work.args.seed):
            adapted: PeftModel = get_peft_model(target, config)  # type: ignore[assignment]
        try:
            if before and not self.fresh:
                before[-1].put_into(adapted)
            objective = _Request(weight=self.orthogonality, earlier=self.compared(before))
            tuned: Any = replace(work, model=adapted).train(objective)
            return RowAdapter.of(tuned)
        finally:
            adapted.unload()  # type: ignore[operator]
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def compared(self, before: Sequence[RowAdapter]) -> tuple[Mapping[str, Tensor], ...]:
        """A of the earlier adapters that the penalty is over."""
        return tuple(one.down for one in (before if self.earlier == "all" else before[-1:]))

    def _encoder(self, target: PreTrainedModel, work: TextWork, texts: Sequence[str]) -> LayerStates:
        if self.masked_model is None:
            return RowStates(target, work.tokenizer, self.layers)
        return MaskedEncoder.load(self.masked_model, layers=self.layers).fitted(
            [texts[i] for i in parted(len(texts), self.held, work.args.seed)[0]], work.args.seed
        )
