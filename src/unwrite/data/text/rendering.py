"""What a row looks like as text: the prompt, the answer as a chat template writes it, and the token that ends it.

A template is asked rather than known: the conversation is rendered with a placeholder in the answer's place, so that
whatever stands before it is the prompt (Qwen 3's empty think block included) and whatever follows it holds the end.
Without a template a row reads "Question: ...\\nAnswer: ...".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import DataError, ModelError
from .examples import Example, flaw
from .templates import bounded_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACEHOLDER = "QxzAnswerzxQ"
_MARK = re.compile("\U000f5e01([0-9]+)\U000f5e02")  # private-use characters: a literal special token's number
_ANCHORS = ("\n", ":", "a")


@dataclass(frozen=True)
class Rendered:
    """One row as text.

    Args:
        prompt: what the model reads before it writes; blanks at its end belong to the answer, as tokenizers have it.
        answer: what it should write, those blanks included.
        end: id of the token that ends the answer.
    """

    prompt: str
    answer: str
    end: int


class Spelling:
    """How a tokenizer spells rows: special tokens in front, literal ones in a text, text that continues another.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow, with or without a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens by their text; the unknown token is none, for it stands for other text."""
        added = {str(t): i for i, t in self.tokenizer.added_tokens_decoder.items() if getattr(t, "special", False)}
        named = zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        return {text: i for text, i in {**added, **dict(named)}.items() if i != self.tokenizer.unk_token_id and text}

    @cached_property
    def _literals(self) -> list[str]:
        return list(self.special)

    @cached_property
    def _literal(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._literals))) if self._literals else None

    @cached_property
    def leading(self) -> list[int]:
        """What the tokenizer itself puts before a text, such as BOS. What it puts behind one is never part of a row."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
        return list(whole[: next(starts, 0)])

    def escaped(self, text: str) -> str:
        """`text` with every literal special token marked, to be spelt as the characters it is made of."""
        if self._literal is None or _MARK.search(text):
            return text
        return self._literal.sub(lambda match: f"\U000f5e01{self._literals.index(match[0])}\U000f5e02", text)

    def unescaped(self, text: str) -> str:
        """`text` without marks, to be read by people."""
        return _MARK.sub(lambda match: self._literals[int(match[1])], text)

    def ids(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of an escaped text, nothing added: its special tokens are special, marked ones are text.

        Args:
            continues: the text stands behind another, so it gets no blank that a tokenizer puts before a text.
        """
        pieces = _MARK.split(text)  # text, number, text, number, ..., text
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            literal = bool(i % 2)
            part = self._literals[int(piece)] if literal else piece
            if part:
                ids += self._behind(part, literal) if ids or continues else self._plain(part, literal)
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where the tokens that `ids` gives of an escaped text stand in the text as it is, [start, end) in characters.

        A fast tokenizer's own account; special tokens have their characters, tokens without any an empty range.
        """
        at, offsets = 0, list[tuple[int, int]]()
        for i, piece in enumerate(_MARK.split(text)):
            literal = bool(i % 2)
            part = self._literals[int(piece)] if literal else piece
            if part:
                offsets += [(at + start, at + end) for start, end in self._offsets(part, literal, behind=bool(offsets))]
            at += len(part)
        return offsets

    def _offsets(self, text: str, literal: bool, *, behind: bool) -> list[tuple[int, int]]:
        def plain(text: str) -> tuple[list[int], list[tuple[int, int]]]:
            options = {"add_special_tokens": False, "split_special_tokens": literal, "return_offsets_mapping": True}
            encoded = self.tokenizer(text, **options)
            return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]

        for anchor in _ANCHORS if behind else ():
            before, (both, offsets) = self._plain(anchor, literal), plain(anchor + text)
            if both[: len(before)] == before:
                skipped = len(anchor)
                return [(max(0, start - skipped), max(0, end - skipped)) for start, end in offsets[len(before) :]]
        return plain(text)[1]

    def _behind(self, text: str, literal: bool) -> list[int]:
        for anchor in _ANCHORS:
            before, both = self._plain(anchor, literal), self._plain(anchor + text, literal)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._plain(text, literal)

    def _plain(self, text: str, literal: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"])

    def render(self, example: Example) -> Rendered:
        """Prompt, answer and end of a row.

        Raises:
            DataError: the chat template refuses the conversation.
            ModelError: a template that does not show the answer, or a tokenizer without an end token.
        """
        answer = self.escaped(example.answer)
        if not self.tokenizer.chat_template:
            lines = [f"{role.capitalize()}: {self.escaped(text)}\n" for role, text in example.history]
            before, behind = f"{''.join(lines)}Question: {self.escaped(example.question or '')}\nAnswer: ", ""
        else:
            before, behind = self.around(example)
            whole = self._apply(example, answer)
            if whole.startswith(before) and whole.endswith(behind) and len(whole) >= len(before) + len(behind):
                answer = whole[len(before) : len(whole) - len(behind)]  # a template may strip it
        prompt = before.rstrip(" ")
        return Rendered(prompt, before[len(prompt) :] + answer, self._end(behind))

    def end(self) -> int:
        """The token that ends an answer."""
        return self.render(Example(answer="a", question="a")).end

    def around(self, example: Example) -> tuple[str, str]:
        """What a chat template writes before a row's answer and behind it, literal special tokens of the row's texts marked.

        Raises:
            as `render`.
        """
        whole = self._apply(example, _PLACEHOLDER)
        before, placeholder, behind = whole.partition(_PLACEHOLDER)
        if not placeholder or _PLACEHOLDER in behind:
            raise ModelError(
                "the chat template does not show an assistant's last turn once, as it is, so there is nothing to train "
                "on or to score. Set tokenizer.chat_template to one that does, or to None."
            )
        return before, behind

    def _apply(self, example: Example, answer: str) -> str:
        turns = [{"role": role, "content": self.escaped(text)} for role, text in example.history]
        turns.append({"role": "user", "content": self.escaped(example.question or "")})
        turns.append({"role": "assistant", "content": answer})
        try:
            # Where a template knows two manners of answering, the one without thoughts before the answer.
            with bounded_template(self.tokenizer.chat_template):
                text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False))
        except ModelError:
            raise
        except Exception as error:  # a template is a program of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise DataError(
                f"{where(example)}: the chat template refuses this conversation: {reason}. Change its turns, or set "
                "tokenizer.chat_template to one that takes them."
            ) from error
        if why := flaw(text):
            raise ModelError(f"the chat template writes {why}. Set tokenizer.chat_template to one that doesn't.")
        return text

    def _end(self, behind: str) -> int:
        special = set(self.special.values())
        end = next((i for i in self.ids(behind) if i in special), self.tokenizer.eos_token_id) if behind else None
        end = self.tokenizer.eos_token_id if end is None else end
        if end is None:
            raise ModelError("the tokenizer has no eos token, so an answer's end can't be scored. Set eos_token.")
        return int(end)


def where(example: Example) -> str:
    """The row's place, for messages."""
    return example.source or f"row {example.index}"
