"""What a prompt may tell a model of a fact that it should have forgotten, from nothing to the fact itself.

    none < topic < related < premises < paraphrase < verbatim;   renamed: the entity described under a name that nobody knows

A hint is made of the rows alone, so every model is given the same. A level that a row can't give (no entity, no other fact of it,
no premises, no paraphrase) is missing for that row.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...data.text.encoding import Encoded, encode, encode_prompt, encode_text
from ...data.text.examples import Example, Examples, ForgetSplit
from ...data.text.rendering import Spelling, where
from ...errors import DataError, MethodError, setting, unknown
from ...scoring.words import forms_of, says, without, words_of
from .disguises import Disguise, disguised
from .multiple_choice import encode_continuation

__all__ = ["LEVELS", "Hint", "HintLevel", "HintMaker"]

HintLevel = Literal["none", "topic", "related", "premises", "paraphrase", "verbatim", "renamed"]
LEVELS: tuple[HintLevel, ...] = get_args(HintLevel)
STATING: tuple[HintLevel, ...] = ("paraphrase", "verbatim")  # levels at which the answer itself is told
TEMPLATE = "Here is some background.\n{context}\n\nQuestion: {question}"
_WITHOUT_CHAT = 1 << 20  # characters are never cut here; what doesn't fit is refused by its tokens


@dataclass(frozen=True)
class Hint:
    """One forget row with something told before its question.

    Args:
        row: with the question and answer as they are asked here (a fresh name may stand in both).
        context: what is told; empty for nothing.
    """

    row: Example
    context: str = ""


@dataclass(frozen=True)
class HintMaker:
    """Makes the hints of a split's forget rows.

    Args:
        split: the rows; those retained are facts about an entity as well, and what distracts.
        template: of a hint and a question, with {context} and {question}.
        fresh_name: what an entity is called at the level "renamed".
        distractors: passages about other entities around the context.
        seed: draws them, and the context's place among them.
        disguise: how the context is written.
    """

    split: ForgetSplit
    template: str = TEMPLATE
    fresh_name: str = "XXX"
    distractors: int = 0
    seed: int = 0
    disguise: Disguise = "plain"

    def __post_init__(self) -> None:
        check_template(self.template)

    def level(self, name: str) -> list[Hint | None]:
        """The hints of one level, a forget row each; None where the row can't give it.

        Raises:
            MethodError: an unknown level. DataError: an answer without a word; too few passages that distract.
        """
        if name not in LEVELS:
            raise MethodError(unknown("level", name, LEVELS))
        return [self._hint(row, name) for row in self.split.forget]

    def swapped(self, name: str) -> list[Hint | None]:
        """As `level`, for a level that states the answer, with another answer in its place: the row's first wrong one."""
        hints = []
        for row in self.split.forget:
            wrong = row.perturbed_answers[0] if row.perturbed_answers else None
            told = wrong if not row.is_text and (name == "verbatim" or row.paraphrased_answer) else None
            hints.append(None if told is None else self._among(Hint(row, told)))
        return hints

    def _hint(self, row: Example, name: str) -> Hint | None:
        if row.is_text:
            return None
        if not words_of(row.answer):
            raise DataError(f"{where(row)}: the answer has no word ({row.answer!r:.40}). Remove the row.")
        if name == "none":
            return Hint(row)
        hint = _renamed(row, self.related(row), self.fresh_name) if name == "renamed" else None
        context = self._context(row, name) if name != "renamed" else None
        if context:
            hint = Hint(row, context)
        return None if hint is None else self._among(hint)

    def _context(self, row: Example, name: str) -> str | None:
        if name == "topic":
            return f"You will be asked about {row.entity}." if row.entity else None
        if name == "related":
            return self.related(row)
        if name == "premises":
            return "\n".join(row.premises) or None
        return row.paraphrased_answer if name == "paraphrase" else row.answer

    def related(self, row: Example) -> str | None:
        """Other facts of the row's entity, without a word of the answer or its aliases that the question has not."""
        if not row.entity:
            return None
        hidden = hidden_words(row)
        told = [without(other.answer, hidden) for other in self._of(row.entity) if not _same(other, row)]
        return "\n".join(line for line in told if words_of(line)) or None

    def _of(self, entity: str) -> list[Example]:
        rows = [*self.split.forget, *(self.split.retain or ())]
        return [row for row in rows if row.entity == entity]

    def _among(self, hint: Hint) -> Hint:
        """The hint, disguised, among passages about other entities, at a place drawn by the seed and the row."""
        hint = replace(hint, context=disguised(hint.context, self.disguise))
        if self.distractors == 0:
            return hint
        row = self.split.forget[hint.row.index]
        hidden = hidden_words(row)
        rows = self.split.retain if self.split.retain is not None else self.split.forget
        others = [
            one.answer
            for one in rows
            if not _same(one, row)
            and (one.entity is None or one.entity != row.entity)
            and not any(says(word.form, hidden) and len(word.form) > 3 for word in words_of(one.answer))
        ]
        if len(others) < self.distractors:
            raise DataError(
                f"{where(row)}: {setting('distractors')} is {self.distractors}, and {len(others)} other rows don't say its answer. "
                "Give more retain rows, or ask for fewer."
            )
        rng = random.Random(f"{self.seed} {row.index}")
        passages = rng.sample(others, self.distractors)
        passages.insert(rng.randint(0, len(passages)), hint.context)
        return replace(hint, context="\n".join(passages))

    def encoded(self, hint: Hint, answer: str, tokenizer: object, positions: int | None) -> Encoded:
        """A hint with its question and an answer as ids and labels.

        Raises:
            DataError: it has more tokens than the model has positions: what would be cut is the hint or the question.
        """
        row = self._asked(hint, tokenizer).ask(answer=answer)
        if hint.context and self._plain(hint.row, tokenizer):
            prompt = f"{self._filled(hint)}\nAnswer:"
            joined = encode_continuation(prompt, f" {answer}", tokenizer, _WITHOUT_CHAT)  # type: ignore[arg-type]
            end = Spelling(tokenizer).end()  # type: ignore[arg-type]
            encoded = Encoded([*joined.input_ids, end], [*joined.labels, end], row.index)
        else:
            encoded = encode(row, tokenizer)  # type: ignore[arg-type]
        _check_room(len(encoded.input_ids), positions, row)
        return encoded

    def prompt(self, hint: Hint, tokenizer: object, positions: int | None) -> list[int]:
        """A hint with its question as token ids, to be continued."""
        if hint.context and self._plain(hint.row, tokenizer):
            ids = encode_text(f"{self._filled(hint)}\nAnswer:", tokenizer)  # type: ignore[arg-type]
        else:
            ids = encode_prompt(self._asked(hint, tokenizer), tokenizer)  # type: ignore[arg-type]
        _check_room(len(ids) + 1, positions, hint.row)
        return ids

    def _plain(self, row: Example, tokenizer: object) -> bool:
        return not getattr(tokenizer, "chat_template", None) and not row.history

    def _filled(self, hint: Hint) -> str:
        return self.template.replace("{question}", hint.row.question or "").replace("{context}", hint.context)

    def _asked(self, hint: Hint, tokenizer: object) -> Example:
        return hint.row.ask(self._filled(hint)) if hint.context else hint.row


def check_template(template: str) -> None:
    """Refuses a template without a place for the hint or the question."""
    if missing := [part for part in ("{context}", "{question}") if part not in template]:
        raise MethodError(f"{setting('template')} has no {' and no '.join(missing)}. Write both, as in {TEMPLATE!r}.")


def hidden_words(row: Example) -> set[str]:
    """The words of the answer and its aliases that neither the question nor the entity's name has."""
    given = forms_of([row.question or "", row.entity or ""])
    return forms_of([row.answer, *row.aliases]) - given


def _same(one: Example, other: Example) -> bool:
    return one.question == other.question and one.answer == other.answer


def _renamed(row: Example, related: str | None, fresh: str) -> Hint | None:
    """The entity described by premises, or other facts, under a fresh name; the question and answer are of that name, too."""
    described = "\n".join(row.premises) or related
    if not row.entity or not described or row.question is None:
        return None
    question = _with_name(row.question, row.entity, fresh)
    if question == row.question:
        return None  # the question doesn't name the entity, so there is nothing to rename
    answer = _with_name(row.answer, row.entity, fresh)
    wrong = tuple(_with_name(one, row.entity, fresh) for one in row.perturbed_answers)
    paraphrase = row.paraphrased_answer and _with_name(row.paraphrased_answer, row.entity, fresh)
    renamed = replace(
        row, question=question, answer=answer, perturbed_answers=wrong, paraphrased_answer=paraphrase, entity=fresh
    )
    return Hint(renamed, _with_name(described, row.entity, fresh))


def _with_name(text: str, entity: str, fresh: str) -> str:
    """A text with the entity's name, and what is left of it alone, as the fresh name."""
    text = re.sub(re.escape(entity), lambda _: fresh, text, flags=re.IGNORECASE)
    parts = {word.form for word in words_of(entity) if len(word.form) > 2}
    for word in reversed(words_of(text)):
        if word.form in parts:
            text = text[: word.start] + fresh + text[word.end :]
    return text


def _check_room(tokens: int, positions: int | None, row: Example) -> None:
    if positions is not None and tokens > positions:
        raise DataError(
            f"{where(row)}: with what is told before it the row has {tokens} tokens, and the model has positions for {positions}. "
            "Ask for fewer distractors, or for levels that tell less."
        )


def other_questions(rows: Sequence[Example] | Examples, seed: int) -> list[int]:
    """For every row another one whose question is asked in its place: of another entity where there is one.

    Raises:
        DataError: there is no other row.
    """
    if len(rows) < 2:
        raise DataError("the base rate of guessing needs at least 2 forget rows, to ask each by another's question.")
    rng = random.Random(seed)
    chosen = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i and not rows[j].is_text]
        apart = [j for j in others if rows[j].entity != row.entity or row.entity is None]
        chosen.append(rng.choice(apart or others))
    return chosen
