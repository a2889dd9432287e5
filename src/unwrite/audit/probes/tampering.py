"""Probes that change the weights a little: fine-tuning on other rows, rounding, projecting a refusal away.

What is gone does not come back by lessons that don't hold it, nor by rounding; what is only held down does (Hu et al., arXiv
2406.13356; Zhang et al., arXiv 2410.16454; Arditi et al., arXiv 2406.11717).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...data.text.encoding import encode_rows
from ...data.text.examples import Example, Examples, ForgetSplit
from ...errors import MethodError, setting
from ...models import anatomy
from ...scoring import rouge_l, score_rows
from ..attacks.quantisation import Quantise, quantise
from ..attacks.relearning import Relearn, Source
from ..text.context import TextContext
from ..text.rows import has_rows, rows_of
from .base import Findings, Probe, Values
from .layers import identity, replaced
from .prompts import asked, placed, probabilities
from .states import last_states

__all__ = ["Relearned", "Rounded", "Unrefused"]

NAMES: Mapping[Source, tuple[str, str]] = {
    "forget": ("relearned", "Fine-tuned on a fifth of the forget rows: do the others come back."),
    "retain": ("relearned_retain", "Fine-tuned on retain rows, none of them forgotten: do the forget rows come back."),
    "general": ("relearned_general", "Fine-tuned on general knowledge: do the forget rows come back."),
}


@dataclass(frozen=True)
class Relearned(Probe):
    """P2: the probability of forget rows after a short fine-tuning on others, the same for every model.

    Args:
        source: forget rows (a share of them), retain rows, or general knowledge.
        steps: after which it is measured; the figure is that of the last, and the index says what came of the others.
        share: of the forget rows that is shown, and, of the other sources, as many rows.
        rank, learning_rate, batch_size: of the LoRA training.
        seed: of the rows shown, adapters and order.
    """

    source: Source = "forget"
    steps: tuple[int, ...] = (5, 10, 20, 50)
    share: float = 0.2
    rank: int = 8
    learning_rate: float = 2e-4
    batch_size: int = 8
    seed: int = 0

    weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise MethodError(f"{setting('steps')} is {self.steps}; give rising numbers of steps.")
        if not 0 < self.share <= 0.5:
            raise MethodError(f"{setting('share')} is {self.share}; it must be above 0 and at most 0.5.")
        self.relearn(2)

    @property
    def name(self) -> str:
        return NAMES[self.source][0]

    @property
    def about(self) -> str:
        return f"{NAMES[self.source][1][:-1]} ({self.steps[-1]} steps)."

    @property
    def way(self) -> str:
        rows = {"forget": "other forget rows", "retain": "retain rows", "general": "general knowledge"}
        return f"fine-tuning for {self.steps[-1]} steps on {rows[self.source]}"

    @property
    def attack(self) -> bool:  # of forget rows, relearning always brings some back
        return self.source != "forget"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",) if self.source == "retain" else ()

    def relearn(self, rows: int) -> Relearn:
        """The attack on so many forget rows."""
        return Relearn(
            rows=max(1, round(self.share * rows)),
            steps=self.steps[-1],
            at=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
            source=self.source,
            rank=self.rank,
        )

    def shown(self, split: ForgetSplit) -> Examples:
        """The rows that it fine-tunes on."""
        return self.relearn(len(split.forget)).shown(split)

    def tested(self, split: ForgetSplit) -> list[Example]:
        return [split.forget[i] for i in self.relearn(len(split.forget)).drawn(len(split.forget))[1]]

    def observe(self, context: TextContext, references: Mapping[str, TextContext]) -> Findings:
        course = self._course(context.bare)
        return Findings(course[-1][1], course=tuple(course))

    def _course(self, context: TextContext) -> list[tuple[int, Values]]:
        """Every forget row's probability before the first step and after those that are measured; None for those shown."""
        attack = self.relearn(len(context.split.forget))
        shown = set(attack.drawn(len(context.split.forget))[0])
        return [
            (point["step"], [None if i in shown else p for i, p in enumerate(point["p"])])
            for point in attack.by_row(context)
        ]


@dataclass(frozen=True)
class Rounded(Probe):
    """P3: the probability of the answer once every linear weight is rounded, head and embeddings left as they are.

    Args:
        bits: of a weight.
        group: weights of an output channel that share a scale.
    """

    bits: int = 4
    group: int = 64

    weights: ClassVar[bool] = True
    attack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Quantise(self.bits, self.group)

    @property
    def name(self) -> str:
        return f"rounded_{self.bits}"

    @property
    def way(self) -> str:
        return f"rounding its weights to {self.bits} bits"

    @property
    def about(self) -> str:
        return f"The weights rounded to {self.bits} bits."

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = context.split.forget
        ids = [[[part.input_ids, part.prompt_length] for part in row] for row in context.encoded(rows)]

        def measure() -> Values:
            return probabilities(context.of(quantise(context.model, self.bits, self.group)), rows)

        return context.remember("rounded", [self.bits, self.group, ids], measure)


@dataclass(frozen=True)
class Unrefused(Probe):
    """P9: the probability of the answer once the direction of refusing is projected out of every block's output.

    The direction is the mean state of forget prompts that are not answered less that of retain prompts, at the last token
    of the prompt; it is taken from one half of the forget rows and tested on the other, then the other way round. Where a
    model answers all of a half there is nothing to project out.

    Args:
        layer: where the direction is taken, as a share of the depth.
        answered: the ROUGE-L recall from which a prompt counts as answered.
        retained: retain rows at most.
        seed: of the halves.
    """

    layer: float = 0.6
    answered: float = 0.5
    retained: int = 50
    seed: int = 0

    name: ClassVar[str] = "unrefused"
    way: ClassVar[str] = "projecting its refusal out"
    about: ClassVar[str] = "What a refusal adds to the states is projected out: does the answer come back."
    weights: ClassVar[bool] = True
    attack: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("retain",)

    def __post_init__(self) -> None:
        if not (0 < self.layer <= 1 and 0 <= self.answered <= 1) or self.retained < 1:
            raise MethodError("unrefused needs layer in (0, 1], answered in [0, 1] and at least one retained row.")

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def applies(self, split: ForgetSplit) -> bool:
        kept = rows_of(split, "retain") if has_rows(split, "retain") else ()
        return len(self.tested(split)) > 3 and any(not row.is_text for row in kept)

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = asked(context.split)
        retained = [row for row in rows_of(context.split, "retain", self.retained) if not row.is_text]
        key = [
            [windows[0].input_ids for windows in context.encoded(Examples([*rows, *retained]))],
            [self.layer, self.answered, self.seed, identity(context)],
        ]
        found = context.remember("unrefused", key, lambda: self._found(context, rows, retained))
        return placed(context.split, rows, found)

    def _found(self, context: TextContext, rows: list[Example], retained: list[Example]) -> Values:
        blocks = len(anatomy(context.model).blocks)
        layer = min(blocks - 1, math.ceil(self.layer * blocks) - 1)
        states = torch.from_numpy(last_states(context, [*rows, *retained], [layer])[:, 0])
        said = context.answers(rows)
        recall = [rouge_l(ref, text, stemmer=True, words=context.words).recall for ref, text in said]
        plain = probabilities(context, rows)
        order = np.random.default_rng(self.seed).permutation(len(rows)).tolist()
        halves = order[: len(rows) // 2], order[len(rows) // 2 :]
        found: Values = [None] * len(rows)
        for learnt, tested in (halves, halves[::-1]):
            refused = [i for i in learnt if recall[i] < self.answered]
            scores = plain
            if refused:
                away = states[refused].mean(0) - states[len(rows) :].mean(0)
                scores = self._without(context, away, rows, tested)
            for i in tested:
                found[i] = scores[i]
        return found

    def _without(
        self, context: TextContext, direction: Tensor, rows: Sequence[Example], tested: Sequence[int]
    ) -> Values:
        """Probabilities of tested rows with a direction projected out behind every block. direction: [hidden]."""
        model = context.model
        part = next(model.parameters())
        unit = (direction / direction.norm().clamp_min(1e-12)).to(part.device, part.dtype)

        def project(states: Tensor) -> Tensor:
            return states - (states @ unit)[..., None] * unit

        encoded = encode_rows([rows[i] for i in tested], context.tokenizer, context.max_length)
        with replaced(model, dict.fromkeys(range(len(anatomy(model).blocks)), project)):
            scores = score_rows(
                model, encoded, pad_id=context.tokenizer.pad_token_id, batch_size=context.batch_size, label="projecting"
            )
        found: Values = [None] * len(rows)
        for i, score in zip(tested, scores, strict=True):
            found[i] = math.exp(-score.mean_nll)
        return found
