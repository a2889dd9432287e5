"""Rows to token ids: the chat template as the model wants it, the prompt masked, exactly one end token.

TOFU's scoring (arXiv 2401.06121) needs the loss over the answer *and* its end-of-sequence token. Templates
differ in what follows that token (ChatML adds a newline) and in whether they write one at all, so the rendered
text is cut after the first end token past the prompt and one is added where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError, ModelError
from .examples import Example

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """One row as token ids.

    input_ids, labels: equally long; labels are -100 on the prompt and equal to input_ids on the answer and its
    end token (plain text: from its first token; position 0 never has a prediction).
    """

    input_ids: list[int]
    labels: list[int]
    index: int = 0

    @property
    def prompt_length(self) -> int:
        """How many leading tokens carry no label."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE), len(self.labels))

    @property
    def targets(self) -> int:
        """How many labels are predicted (a label at position 0 has nothing before it)."""
        return sum(label != IGNORE for label in self.labels[1:])


def messages(example: Example, answer: bool) -> list[dict[str, str]]:
    """The chat turns of a row, with or without its answer."""
    turns = [{"role": role, "content": text} for role, text in example.history]
    turns.append({"role": "user", "content": example.question or ""})
    if answer:
        turns.append({"role": "assistant", "content": example.answer})
    return turns


def prompt_text(example: Example, tokenizer: Any) -> str:
    """The rendered text up to where the answer starts. Without a chat template: 'Question: ...\\nAnswer: '."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(
            messages(example, answer=False), tokenize=False, add_generation_prompt=True
        )
    lines = [f"{role.capitalize()}: {text}\n" for role, text in example.history]
    return f"{''.join(lines)}Question: {example.question}\nAnswer: "


def encode_prompt(example: Example, tokenizer: Any) -> list[int]:
    """Token ids of the prompt alone, ready for generation."""
    return _ids(prompt_text(example, tokenizer), tokenizer)


def encode(example: Example, tokenizer: Any, max_length: int = 512) -> Encoded:
    """One row as ids and labels.

    Raises:
        DataError: the prompt alone fills `max_length`, or no answer token is left to predict.
    """
    if example.is_text:
        ids = tokenizer(example.answer, truncation=True, max_length=max_length)["input_ids"]
        if len(ids) < 2:
            raise DataError(f"{_where(example)}: the text has {len(ids)} token(s); at least 2 are needed.")
        return Encoded(ids, list(ids), example.index)
    prompt = encode_prompt(example, tokenizer)
    if len(prompt) >= max_length:
        raise DataError(
            f"{_where(example)}: the prompt has {len(prompt)} tokens and leaves no room for the answer within "
            f"{max_length}. Shorten it, or raise the maximum length."
        )
    ids = _full_ids(example, tokenizer, prompt)
    # A merge across the border can change the last prompt token; what the model is fed is `ids`.
    start = min(len(prompt), len(ids) - 1)
    ids = ids[:max_length]
    labels = [IGNORE] * start + ids[start:]
    if not example.answer.strip() or all(label == IGNORE for label in labels[1:]):
        raise DataError(f"{_where(example)}: no answer token is left to score. Give a longer answer.")
    return Encoded(ids, labels, example.index)


def _full_ids(example: Example, tokenizer: Any, prompt: list[int]) -> list[int]:
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError("the tokenizer has no eos token, so an answer's end can't be scored. Set eos_token.")
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages(example, answer=True), tokenize=False)
    else:
        text = prompt_text(example, tokenizer) + example.answer
    ids = _ids(text, tokenizer)
    tail = ids[len(prompt) :]
    if end in tail:
        return ids[: len(prompt) + tail.index(end) + 1]
    return [*ids, end]


def _ids(text: str, tokenizer: Any) -> list[int]:
    # A rendered chat template already holds its own special tokens.
    return tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]


def _where(example: Example) -> str:
    return example.source or f"row {example.index}"


def encode_all(examples: Iterable[Example], tokenizer: Any, max_length: int = 512) -> list[Encoded]:
    """`encode` for every row."""
    return [encode(example, tokenizer, max_length) for example in examples]


def pad(rows: Sequence[Encoded], pad_id: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Stacks rows: input_ids, attention_mask, labels, each [rows, longest], and index [rows].

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
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "index": torch.tensor([row.index for row in rows]),
    }
