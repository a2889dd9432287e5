"""Rows to token ids: a prompt that carries no label, the whole answer, and the one token that ends it.

The ids of a prompt are the beginning of its row's ids, whatever the tokenizer merges, so what is trained and scored is
what the model would write when asked: behind "Answer:" the first token is " Paris", blank included. Plain texts are
labelled throughout; a long one becomes several windows that predict each of its tokens exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...errors import DataError, ModelError, notice, setting
from .examples import Example
from .rendering import Spelling, where

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
MAX_LENGTH = 512


@dataclass(frozen=True)
class Encoded:
    """One row, or one window of a long text, as token ids.

    Args:
        input_ids, labels: equally long; labels are -100 on the prompt and equal to input_ids on the answer and its
            end token (plain text: from its first token; position 0 never has a prediction).
        index: the row's number.
        cut: tokens of the answer that did not fit and are missing here.
        marked: one truth value a token, whether it holds characters that the row marks; None for rows without marks.
    """

    input_ids: list[int]
    labels: list[int]
    index: int = 0
    cut: int = 0
    marked: list[bool] | None = None

    @property
    def prompt_length(self) -> int:
        """How many leading tokens carry no label."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE), len(self.labels))

    @property
    def targets(self) -> int:
        """How many labels are predicted (a label at position 0 has nothing before it)."""
        return sum(label != IGNORE for label in self.labels[1:])


def prompt_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text up to where the answer starts; the blank before an answer's first word is part of the answer."""
    spelling = Spelling(tokenizer)
    return spelling.unescaped(spelling.render(example).prompt)


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt alone, ready for generation; the row's ids begin with them."""
    spelling = Spelling(tokenizer)
    return _prompt_ids(spelling, spelling.render(example).prompt)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a plain text or of a prompt as it stands: with what the tokenizer puts before a text (BOS), not behind."""
    spelling = Spelling(tokenizer)
    return spelling.leading + spelling.ids(spelling.escaped(text))


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Encoded:
    """One row as ids and labels.

    Args:
        max_length: a longer answer is cut at so many tokens of prompt and answer, and `cut` says by how many. Plain
            text stays whole; see `windows`.

    Raises:
        DataError: the prompt alone fills `max_length`, no answer token is left to predict, or the chat template
            refuses the conversation.
        ModelError: no end token, or a template that does not show the answer.
    """
    return _encode(example, Spelling(tokenizer), max_length)


def _encode(example: Example, spelling: Spelling, max_length: int | None) -> Encoded:
    if example.is_text:
        ids = spelling.leading + spelling.ids(spelling.escaped(example.answer))
        if len(ids) < 2:
            raise DataError(f"{where(example)}: the text has {len(ids)} token(s); at least 2 are needed.")
        marked = token_mask(offsets_of(example.answer, spelling), example.marked) if example.marked else None
        return Encoded(ids, list(ids), example.index, marked=marked)
    if example.marked:
        raise DataError(f"{where(example)} marks characters of an answer; only plain texts can have marks.")
    rendered = spelling.render(example)
    prompt = _prompt_ids(spelling, rendered.prompt)
    ids = [*_row_ids(spelling, prompt, rendered.prompt, rendered.answer), rendered.end]
    room = len(ids) if max_length is None else max_length
    if len(prompt) >= room:
        raise DataError(
            f"{where(example)}: the prompt has {len(prompt)} tokens and leaves no room for the answer within "
            f"{room}. Shorten it, or raise the maximum length."
        )
    shown, start = ids[:room], len(prompt)
    labels = [IGNORE] * start + shown[start:]
    if not example.answer.strip() or len(ids) - start < 2 or all(label == IGNORE for label in labels[1:]):
        raise DataError(f"{where(example)}: no answer token is left to score. Give a longer answer.")
    return Encoded(shown, labels, example.index, len(ids) - len(shown))


def offsets_of(text: str, spelling: Spelling) -> list[tuple[int, int]]:
    """The characters [start, end) of every token of a plain text as `encode` has it; (0, 0) for what is put before it.

    Raises:
        ModelError: a slow tokenizer, which does not say where its tokens stand.
    """
    if not getattr(spelling.tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(spelling.tokenizer).__name__} is a slow tokenizer, which does not say which characters a token holds. Load "
            "the fast one."
        )
    return [(0, 0)] * len(spelling.leading) + spelling.offsets(spelling.escaped(text))


def token_mask(
    offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]], *, inclusive: bool = False
) -> list[bool]:
    """Which tokens hold a character of a span: one truth value a token.

    Args:
        offsets: [start, end) in characters of every token, as a fast tokenizer gives them.
        spans: [start, end) in characters.
        inclusive: also tokens that touch a span without sharing a character, as CodeEraser's official code marks them. A
            token without characters of its own, such as padding or a special token, is never marked (that code marks all
            padding where a secret begins a text).
    """
    spans, more = list(spans), int(inclusive)
    return [
        end > start and any(start < high + more and end > low - more for low, high in spans) for start, end in offsets
    ]


def _prompt_ids(spelling: Spelling, prompt: str) -> list[int]:
    # A rendered chat template already holds its own special tokens.
    leading = [] if spelling.tokenizer.chat_template else spelling.leading
    return leading + spelling.ids(prompt)


def _row_ids(spelling: Spelling, prompt: list[int], text: str, answer: str) -> list[int]:
    """Prompt and answer together as the tokenizer has them; apart where it would merge across the border."""
    together = _prompt_ids(spelling, text + answer)
    if together[: len(prompt)] == prompt:
        return together
    return prompt + spelling.ids(answer, continues=True)


def windows(row: Encoded, max_length: int, leading: Sequence[int] = ()) -> list[Encoded]:
    """A long text in windows of `max_length` tokens, each token (but the first) predicted exactly once.

    A window begins with the last token of the one before; the last one reaches back to be full, too, with labels on
    what is new alone (as lm-evaluation-harness rolls over a text). Rows that fit come back as they are.

    Args:
        row: a plain text, as `encode` gives it.
        leading: what every window starts with, such as BOS; the row starts with it already.
    """
    count, width = len(row.input_ids), max_length - len(leading)
    if count <= max_length:
        return [row]
    marked = row.marked
    if width < 2:
        raise DataError(f"a maximum length of {max_length} leaves no room for text. Raise it to {len(leading) + 2}.")
    first = marked and marked[:max_length]
    parts = [Encoded(row.input_ids[:max_length], row.labels[:max_length], row.index, marked=first)]
    done = max_length
    while done < count:
        end = min(done + width - 1, count)
        start = end - width
        ids = [*leading, *row.input_ids[start:end]]
        labels = [IGNORE] * (len(leading) + done - start) + row.labels[done:end]
        shown = marked and [False] * len(leading) + marked[start:end]
        parts.append(Encoded(ids, labels, row.index, marked=shown))
        done = end
    return parts


def encode_rows(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH
) -> list[list[Encoded]]:
    """Every row, long texts in windows. One list a row; what is cut or split is counted in a notice."""
    spelling = Spelling(tokenizer)
    examples = list(examples)
    rows = []
    for example in examples:
        row = _encode(example, spelling, max_length)
        rows.append(windows(row, max_length, spelling.leading) if example.is_text else [row])
    _say_what_did_not_fit(examples, rows, max_length)
    return rows


def encode_all(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH
) -> list[Encoded]:
    """As `encode_rows`, one after the other: windows of a long text are rows of their own with the text's index."""
    return [window for row in encode_rows(examples, tokenizer, max_length) for window in row]


def numbered(rows: Iterable[Encoded]) -> list[Encoded]:
    """The rows with their position as index, so that windows of one text are told apart."""
    return [replace(row, index=i) if row.index != i else row for i, row in enumerate(rows)]


def _say_what_did_not_fit(examples: list[Example], rows: list[list[Encoded]], max_length: int) -> None:
    pairs = list(zip(examples, rows, strict=True))
    if cut := [(example, row[0].cut) for example, row in pairs if row[0].cut]:
        notice(
            f"{len(cut)} of {len(rows)} answers are cut at {max_length} tokens, {sum(n for _, n in cut)} tokens in all "
            f"(first: {where(cut[0][0])}). Raise {setting('max_length')} to use all of them."
        )
    if long := [(example, len(row)) for example, row in pairs if len(row) > 1]:
        notice(
            f"{len(long)} of {len(rows)} texts are longer than {max_length} tokens and are read in "
            f"{sum(n for _, n in long)} windows (first: {where(long[0][0])})."
        )


def pad(rows: Sequence[Encoded], pad_id: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Stacks rows: input_ids, attention_mask, labels, each [rows, longest], and index [rows]; `marked` where rows have marks.

    The mask comes from lengths, not from comparing ids with `pad_id`: a real end token may equal the pad token.
    """
    longest = max(len(row.input_ids) for row in rows)
    shape = (len(rows), longest)
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        at = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[i, at] = torch.tensor(row.input_ids)
        mask[i, at] = 1
        labels[i, at] = torch.tensor(row.labels)
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "index": torch.tensor([row.index for row in rows]),
    }
    if any(row.marked is not None for row in rows):
        tensors["marked"] = _stacked_marks(rows, longest, side)
    return tensors


def _stacked_marks(rows: Sequence[Encoded], longest: int, side: str) -> torch.Tensor:
    marks = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row.marked is not None:
            length = len(row.input_ids)
            marks[i, :length] = torch.tensor(row.marked)
            if side == "left":
                marks[i] = marks[i].roll(longest - length)
    return marks
