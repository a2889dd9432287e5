"""Where in a row of token ids the prompt ends, and what the user says in it, whatever the chat template.

A template is asked rather than known: a conversation of placeholders is written by it, and what stands around them are its marks.

    ... <opens a user's turn> what is asked <leads to an answer> the answer ...
                                            ^ the prompt ends here, at the last one

Without a template the rows that this library writes ("Question: ...\\nAnswer: ...") are known; any other text is a prompt as a whole.
Only what users say is read: a system's turn and earlier answers are not. Marks that a user spells in characters are no marks, where
the template's are special tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ....data import Example
from ....data.text.rendering import Spelling
from ....errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptParts", "PromptReader", "turns_of", "unpadded"]

_ASKED, _SAID = ("QxzAskedOnezxQ", "QxzAskedTwozxQ"), "QxzSaidzxQ"


@dataclass(frozen=True)
class PromptParts:
    """What a row of ids consists of.

    Args:
        length: of its tokens, how many from the first are the prompt; the others are its answer.
        turns: what users say, turn by turn, without the chat's own marks.
    """

    length: int
    turns: tuple[str, ...]


@dataclass(frozen=True)
class _Marks:
    opens: re.Pattern[str]
    closes: re.Pattern[str]


class PromptReader:
    """Reads rows of one tokenizer.

    Args:
        tokenizer: of the model, with or without a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)

    def read(self, ids: Sequence[int], length: int | None = None) -> PromptParts:
        """The parts of one row without padding.

        Args:
            ids: its tokens.
            length: of the prompt, where it is known.
        """
        ids = list(ids)
        text = self.text(ids)
        marks = self._marks
        opens = self._found(marks.opens, ids, text) if marks and self._is_chat(text) else []
        closes = self._found(marks.closes, ids, text) if opens and marks else []
        if length is None:
            length = len(ids)
            if closes and opens[-1].start() < closes[-1].end():  # else somebody still asks
                length = self._tokens_until(ids, closes[-1].end())
        if not opens:
            return PromptParts(length, (self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip(),))
        turns = []
        for start, until in pairwise([*(one.end() for one in opens), len(text)]):
            ends = [one.start() for one in closes if start <= one.start() < until]
            turns.append(text[start : ends[-1] if ends else until].strip())  # a user may write such a mark, too
        return PromptParts(length, tuple(turns))

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The characters [start, end) of each token in the row's `text`; a character of several tokens is each one's."""
        offsets: list[tuple[int, int]] = []
        start = 0
        for count in range(1, len(ids) + 1):
            end = len(self.text(ids[:count]))
            offsets.append((start, end) if end > start or not offsets else offsets[-1])
            start = end
        return offsets

    def _found(self, mark: re.Pattern[str], ids: list[int], text: str) -> list[re.Match[str]]:
        """Where a mark stands; not where somebody spelt its special tokens as ordinary characters."""
        matches = list(mark.finditer(text))
        special = set(self._spelling._special.values())
        written = list(self._literal.finditer(text)) if self._literal else []
        if not matches or len(written) == sum(token in special for token in ids):
            return matches
        places = [span for span, token in zip(self.offsets(ids), ids, strict=True) if token in special]
        spelt = [one.start() for one in written if not any(start <= one.start() < end for start, end in places)]
        return [one for one in matches if not any(one.start() <= place < one.end() for place in spelt)]

    @cached_property
    def _literal(self) -> re.Pattern[str] | None:
        special = sorted(self._spelling._special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, special))) if special else None

    def _tokens_until(self, ids: list[int], end: int) -> int:
        """How many tokens from the first cover the text up to a character."""
        return 1 + bisect_left(range(1, len(ids)), end, key=lambda count: len(self.text(ids[:count])))

    @cached_property
    def _marks(self) -> _Marks | None:
        if not self.tokenizer.chat_template:
            return _Marks(re.compile(r"(?:User|Question):"), re.compile(r"\s(?:Assistant|Answer):"))
        for history in ((("user", _ASKED[0]), ("assistant", _SAID)), ()):
            example = Example(answer=_SAID, question=_ASKED[1], history=history)
            try:
                before, behind = self._spelling._around(example)
            except (DataError, ModelError):  # a template for one turn
                continue
            return self._marks_of(before, behind)
        return None

    def _marks_of(self, before: str, behind: str) -> _Marks | None:
        """From what a template writes up to the last answer, and behind it."""
        earlier, second, leads = before.partition(_ASKED[1])
        start, first, between = earlier.partition(_ASKED[0])
        lead, said, opens = between.partition(_SAID)
        if not second or (first and not said):
            return None
        opens = opens.removeprefix(behind) if first else start
        closes = {leads, lead} if first else {leads}
        patterns = [self._pattern(one) for one in sorted(closes, key=len, reverse=True)]
        opening = self._pattern(opens)
        if not opening or not all(patterns):
            return None
        return _Marks(re.compile(opening), re.compile("|".join(patterns)))

    def _pattern(self, mark: str) -> str:
        """A mark as it may be spelt once it was tokens: blanks around its pieces, its newlines or none at its end."""
        special = rf"({self._literal.pattern})|" if self._literal else ""
        pieces = [piece for piece in re.split(rf"{special}\s+", mark) if piece]
        newlines = len(mark.rstrip(" ")) - len(mark.rstrip(" ").rstrip("\n"))
        return r"\s*".join(map(re.escape, pieces)) + (rf"\n{{0,{newlines}}}" if pieces and newlines else "")

    def _is_chat(self, text: str) -> bool:
        """Whether a text has the form of rows; where there is a template, its marks say so."""
        if self.tokenizer.chat_template:
            return True
        for special in self.tokenizer.all_special_tokens:
            text = text.removeprefix(special).lstrip()
        return re.match(r"(?:User|Question|System|Assistant):", text.lstrip()) is not None


def turns_of(row: Example) -> tuple[str, ...]:
    """What users say in a row, as `PromptReader` reads it out of the row's tokens; a plain text is a turn."""
    if row.question is None:
        return (row.answer,)
    return (*(text.strip() for role, text in row.history if role == "user"), row.question.strip())


def unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The rows' tokens without padding. ids, mask: [rows, length]."""
    if mask is None:
        return [row.tolist() for row in ids]
    return [row[shown.bool()].tolist() for row, shown in zip(ids, mask, strict=True)]
