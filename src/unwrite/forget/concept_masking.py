"""Concept masking: teach the model its own answers with the words masked that carry them.

Integrated gradients say which words of an entity's answers the model leans on; they are masked in what the model itself says, and it is
fine-tuned on that, together with answers to keep. The text side of concept inference and poisoning. (arXiv 2405.15662, after its authors'
revised code; masking is a style, "idk" teaches refusals in its place)

    L = mean_t nll(mask(a, top-k_w sum_a A_w(a)) | q) over masked answers, and nll of retain answers, in one mean over all tokens

What is said changes, and what the weights know need not: this suppresses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch

from ..data import Example, Examples
from ..data.text.encoding import encode_prompt
from ..data.text.examples import is_visible
from ..errors import DataError, MethodError, notice, setting, unknown
from ..runs import progress
from ..scoring import generate_answers
from ..scoring.integrated_gradients import PathRule, attribute_answer, path_points
from ..scoring.word_masks import (
    MASK,
    answer_offsets,
    content_words,
    mask_words,
    ranked_words,
    said_words,
    word_scores,
)
from ..scoring.words import words_of
from .base import Objective
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerToken
from .engine.phase import Phase
from .engine.stream import permutation
from .engine.text.refusals import default_refusals, refuse

if TYPE_CHECKING:
    from .engine.text.work import TextWork

__all__ = ["ConceptMasking"]

Style = Literal["mask", "idk"]
ChosenBy = Literal["gradients", "frequency", "random"]
Baseline = Literal["pad", "zero"]
NAME_PART = 4  # letters from which a part of a name is masked
_ANCHORS, _WORDS = 21, 22  # keep these draws apart from others of the same seed


@dataclass(frozen=True, kw_only=True)
class ConceptMasking(Objective["TextWork"]):
    """Fine-tunes on the model's own answers with their most telling words masked, and on retain answers beside them.

    Adapters as in the paper: peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]);
    its rows have up to 1024 tokens: args={"max_length": 1024}.

    Args:
        style: "mask", or "idk" for refusals, which looks at no words.
        chosen_by: "gradients" (integrated, ranked over all answers of an entity), or as controls "frequency" (in how many of them a
            word stands) and "random". (frequency is ours)
        k: words masked in an answer, at most; at least 0.
        names: also mask what is left of the entity's name, parts of four letters or more.
        mask: what stands in a word's place; None for three asterisks.
        own_answers: mask what the model says, not the rows' own answers.
        answer_tokens: of what it says, at most.
        anchors: retain rows a masked one, >= 0; whole entities, drawn by the seed.
        points: of the line that gradients are taken on.
        rule: "endpoints" (the paper's mean), "trapezoid" or "midpoint", see `scoring.integrated_gradients`.
        baseline: what stands for nothing: the embedding of padding ("pad") or "zero".
        refusals: of "idk"; empty for the hundred that ship.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"nll", "retain nll"})
    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "per_device_train_batch_size": 2,
        "warmup_epochs": 0.3,  # 3 % of ten epochs
    }
    style: Style = "mask"
    chosen_by: ChosenBy = "gradients"
    k: int = 5
    names: bool = True
    mask: str | None = None
    own_answers: bool = True
    answer_tokens: int = 128
    anchors: float = 1.0
    points: int = 32
    rule: PathRule = "endpoints"
    baseline: Baseline = "pad"
    refusals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("style", Style), ("chosen_by", ChosenBy), ("baseline", Baseline)):
            if getattr(self, name) not in get_args(allowed):
                raise MethodError(unknown(name, str(getattr(self, name)), get_args(allowed)))
        require("k", self.k, at_least=0)
        require("answer_tokens", self.answer_tokens, at_least=1)
        require("anchors", self.anchors, at_least=0)
        path_points(self.points, self.rule)
        for name in ("names", "own_answers"):
            if not isinstance(getattr(self, name), bool):
                raise MethodError(f"{setting(name)} is {getattr(self, name)!r}; use True or False.")
        if self.mask is not None and not is_visible(self.mask):
            raise MethodError(f"{setting('mask')} is {self.mask!r}, which can't be seen. Give a sign or a word.")

    def needed(self) -> frozenset[str]:
        return super().needed() if self.anchors else frozenset({"nll"})

    def check(self, forget: Examples, retain: Examples | None) -> None:
        super().check(forget, retain)
        if text := next((row for row in forget if row.is_text), None):
            raise DataError(
                f"{text.source or f'row {text.index}'}: a plain text answers no question, so no answer of it can be masked. Give "
                "questions and answers."
            )

    def loss(self, batch: PairedBatch) -> Loss:
        """One mean over masked answers and retain answers. batch.forget, batch.retain: token_nll [label tokens]."""
        values = torch.cat([part.token_nll for _, part in batch.present()])
        return Loss(
            answers=PerToken(values, "forget", "retain")
        )  # of both, also where a part of the step has rows of one

    def phases(self, work: TextWork) -> list[Phase]:
        """One, on masked answers and anchors in one order."""
        masked = self.poisoned(work)
        if not self.anchors:
            return [Phase("forget", self.loss, forget=masked)]
        return [Phase("union", self.loss, forget=masked, retain=self.anchor_rows(work))]

    def poisoned(self, work: TextWork) -> Examples:
        """The forget rows with the answers that are taught in place of theirs."""
        if self.style == "idk":
            return refuse(work.forget, self.refusals or default_refusals(), work.args.seed)
        rows = self.answered(work)
        if self.chosen_by == "random":
            chosen = [self._drawn(row, work.args.seed) for row in rows]
        else:
            rankings = self.rankings(work, rows)
            chosen = [said_words(row.answer, rankings[row.entity], self.k) for row in rows]
        return Examples([self._masked(row, words) for row, words in zip(rows, chosen, strict=True)], "masked answers")

    def answered(self, work: TextWork) -> Examples:
        """The forget rows with what the model says to them; where it says nothing, with their own answers."""
        if not self.own_answers:
            return work.forget
        prompts = [encode_prompt(row, work.tokenizer) for row in work.forget]
        size = max(1, work.args.per_device_train_batch_size)
        model: Any = work.model
        said = generate_answers(
            model,
            work.tokenizer,
            prompts,
            max_new_tokens=self.answer_tokens,
            batch_size=max(8, size),
            label="asking what is to be masked",
        )
        if silent := sum(not is_visible(text) for text in said):
            notice(f"the model says nothing to {silent} of {len(said)} forget rows; their own answers are masked.")
        answers = [
            text.strip() if is_visible(text) else row.answer for row, text in zip(work.forget, said, strict=True)
        ]
        return Examples(
            [row.ask(answer=answer) for row, answer in zip(work.forget, answers, strict=True)], "own answers"
        )

    def rankings(self, work: TextWork, rows: Examples) -> Mapping[str | None, Mapping[str, float]]:
        """{entity: its words by what they carry in its answers, or by how many hold them}; rows that name no entity are one."""
        if self.chosen_by == "frequency":
            counts: dict[str | None, Counter[str]] = {}
            for row in rows:
                counts.setdefault(row.entity, Counter()).update(content_words(row.answer))
            return {entity: dict(words.most_common()) for entity, words in counts.items()}
        model: Any = work.model
        pad = work.tokenizer.pad_token_id if self.baseline == "pad" else None
        answers: dict[str | None, list[Any]] = {}
        for row, encoded in progress([*zip(rows, work.encoded(rows), strict=True)], "integrating gradients"):
            found = attribute_answer(model, encoded, pad, self.points, self.rule)
            values = found.values[list(found.positions)].tolist()
            scored = word_scores(row.answer, answer_offsets(row, encoded, work.tokenizer), values)
            answers.setdefault(row.entity, []).append(scored)
        return {entity: ranked_words(scored) for entity, scored in answers.items()}

    def _drawn(self, row: Example, seed: int) -> list[str]:
        """Words of the answer at random, as many as gradients would choose."""
        words = content_words(row.answer)
        order = np.random.default_rng([abs(seed), _WORDS, row.index]).permutation(len(words))
        return [words[at] for at in order[: self.k]]

    def _masked(self, row: Example, words: list[str]) -> Example:
        name = [word.form for word in words_of(row.entity or "") if len(word.form) >= NAME_PART]
        return row.ask(answer=mask_words(row.answer, [*words, *(name if self.names else ())], self.mask or MASK))

    def anchor_rows(self, work: TextWork) -> Examples:
        """Retain rows with their own answers, entity by entity in an order drawn, until there are enough."""
        retain = work.retained
        groups: dict[object, list[Example]] = {}
        for row in retain:
            groups.setdefault(row.entity or row.index, []).append(row)
        blocks = [*groups.values()]
        drawn = [row for at in permutation(len(blocks), work.args.seed, _ANCHORS) for row in blocks[at]]
        return Examples(drawn[: max(1, round(self.anchors * len(work.forget)))], "anchors")
