"""ULD: train a small assistant to remember what must go and nothing else, and subtract it while decoding.

The assistant is the target's own first K blocks with LoRA, trained with the objectives reversed: cross-entropy on
the forget answers, uniform on everything else. The target's weights never change. (ULD, arXiv 2406.08607)

    assistant:  L = CE(forget answers) + retain_weight * mean KL(U || p_assistant) on retain and wrong answers
    decoding:   z - alpha * (log_softmax(z_assistant) + log V)   on tokens that pass the filter, others dropped
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from ..data import Examples
from ..errors import DataError, MethodError, setting
from ..models import anatomy
from ..models.merging import merged
from .base import Guard, Objective
from .engine.batch import BatchPart, KLMask, PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerPosition, PerToken, Term
from .engine.phase import Phase
from .engine.stream import permutation
from .engine.text.logit_difference import LogitDifferenceModel

if TYPE_CHECKING:
    from peft import LoraConfig

    from .engine.text.work import TextWork


def uniform_divergence(logits: Tensor) -> Tensor:
    """KL(U || p) of each position, in nats: -log V - mean_v log p_v. logits: [positions, vocab]."""
    return -math.log(logits.shape[-1]) - logits.float().log_softmax(-1).mean(-1)


@dataclass(frozen=True, kw_only=True)
class _ReversedObjective(Objective["TextWork"]):
    """Remembers the forget rows, and is uniform on the retain rows.

    Args:
        retain_weight, positions: of the uniform term, see `ULD`.
    """

    retain_weight: float = 1.0
    positions: KLMask = "attention"

    def retain_positions(self) -> KLMask:
        return self.positions

    def phases(self, work: TextWork) -> list[Phase]:
        return [Phase(stream="mixed", loss=self.loss)]

    def loss(self, batch: PairedBatch[BatchPart]) -> Loss:
        """A batch without rows of one kind has no term for it."""
        terms: dict[str, Term] = {}
        if batch.forget is not None:
            terms["remember"] = PerToken(batch.forget.token_nll, "forget")
        if batch.retain is not None:
            assert batch.retain.logits is not None
            terms["uniform"] = PerPosition(self.retain_weight * uniform_divergence(batch.retain.logits), "retain")
        return Loss({}, **terms)


@dataclass(frozen=True, kw_only=True)
class ULD(Guard["TextWork"]):
    """Unlearning from logit difference.

    Args:
        layers: blocks of the target that the assistant keeps. None takes the first quarter: 8 of 32 blocks, as the
            paper does.
        alpha: how much of the assistant is subtracted, >= 0; 0 gives the target itself.
        top_filter: tokens below this share of the most likely one are dropped, in [0, 1); 0 keeps all.
        retain_weight: factor of the uniform term.
        paraphrases: extra paraphrased rows per forget row, where the data has them.
        wrong_answers: wrong answers per forget question on which the assistant must be uniform.
        rank: of the assistant's LoRA adapters (scaled by 2, dropout 0.05).
        positions: positions of the uniform term: "attention" (all but padding), "labels", or "all" (with padding, as
            the official code averages).
        raw: subtract raw assistant logits, as the official code does; they carry an arbitrary offset.
    """

    layers: int | None = None
    alpha: float = 0.8
    top_filter: float = 0.01
    retain_weight: float = 5.0
    paraphrases: int = 2
    wrong_answers: int = 2
    rank: int = 16
    positions: KLMask = "attention"
    raw: bool = False
    training: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3, "gradient_accumulation_steps": 2}

    def __post_init__(self) -> None:
        require("alpha", self.alpha, at_least=0)
        require("top_filter", self.top_filter, at_least=0, below=1)
        require("retain_weight", self.retain_weight, at_least=0)
        if self.layers is not None:
            require("layers", self.layers, at_least=1)
        require("rank", self.rank, at_least=1)
        require("paraphrases", self.paraphrases, at_least=0)
        require("wrong_answers", self.wrong_answers, at_least=0)
        if self.positions not in ("attention", "labels", "all"):
            raise MethodError(f"{setting('positions')} is {self.positions!r}; use 'attention', 'labels' or 'all'.")

    def fitted(self, model: nn.Module) -> Self:
        """With the assistant's depth chosen by the model's."""
        if isinstance(model, LogitDifferenceModel):
            raise MethodError("the model is already wrapped by ULD. Apply it to the model inside: model.target")
        depth = len(anatomy(model).blocks)
        quarter = math.ceil(depth / 4)
        if self.layers is not None and self.layers > depth:
            raise MethodError(
                f"{setting('layers')} is {self.layers} but the model has {depth} blocks. Use 1 to {depth}, or leave it out for {quarter}."
            )
        return self if self.layers is not None else replace(self, layers=quarter)

    @property
    def needs_retain(self) -> bool:
        return True

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if retain is None:
            raise DataError(
                "ULD needs a retain set: without one the assistant would suppress everything. "
                f"Give {setting('retain')}."
            )

    def _apply(self, work: TextWork) -> LogitDifferenceModel:
        assert self.layers is not None
        assistant = work.anatomy.truncate(self.layers)
        assistant.requires_grad_(False)
        assisting = replace(
            work,
            model=assistant,
            forget=remember_rows(work.forget, self.paraphrases),
            retain=uniform_rows(work.forget, work.retained, self.wrong_answers, work.args.seed),
            peft_config=work.peft_config or self._lora(),
        )
        tuned = assisting.train(_ReversedObjective(retain_weight=self.retain_weight, positions=self.positions))
        return LogitDifferenceModel(work.model, merged(tuned, in_place=True), self.alpha, self.top_filter, self.raw)

    def _lora(self) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.05,
            bias="none",
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )


def remember_rows(forget: Examples, paraphrases: int) -> Examples:
    """The forget rows, each followed by up to `paraphrases` rewordings of it."""
    rows = []
    for row in forget:
        rows.append(row)
        questions = [q for q in (row.paraphrased_question, row.question) if q]
        answers = [a for a in (row.paraphrased_answer, row.answer) if a]
        reworded = [row.ask(q, a) for q, a in itertools.product(questions, answers)]
        rows += [new for new in reworded if (new.question, new.answer) != (row.question, row.answer)][:paraphrases]
    return Examples(rows, "remember")


def uniform_rows(forget: Examples, retain: Examples, wrong: int, seed: int) -> Examples:
    """As many retain rows as forget rows, and wrong answers to the forget questions.

    Where the data has no wrong answers, other rows' answers are given to the questions.
    """
    some = [retain[int(i)] for i in permutation(len(retain), seed, 7)[: max(1, min(400, len(forget)))]]
    rows = list(some)
    for i, row in enumerate(forget):
        if row.is_text:
            continue
        answers = row.perturbed_answers or tuple(
            forget[(i + step) % len(forget)].answer for step in range(1, min(wrong + 1, len(forget)))
        )
        rows += [row.ask(answer=answer) for answer in answers[:wrong] if answer != row.answer]
    return Examples(rows, "uniform")
