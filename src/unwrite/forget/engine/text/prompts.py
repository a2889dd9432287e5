"""Where in a row of token ids the prompt ends, and what the user says in it, whatever the chat template.

A template is asked rather than known: a conversation of placeholders is written by it, and what stands around them are its marks.

    ... <opens a user's turn> what is asked <leads to an answer> the answer ...
                                            ^ the prompt ends here, at the last one

Without a template the rows that this library writes ("Question: ...\\nAnswer: ...") are known; any other text is a prompt as a whole.
`read` takes only what users say, `messages` the system's turn and earlier answers too. Marks that a user spells in characters are no
marks, where the template's are special tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """What a template writes around turns.

    Args:
        opens, closes: around what a user asks; the second leads to the answer.
        ends: behind an answer.
        system: a system's turn as a whole, its text the group; None where it has no place of its own before the first question.
        head: what stands before the first question where no system's turn does, its blanks taken out.
    """

    opens: re.Pattern[str]
    closes: re.Pattern[str]
    ends: re.Pattern[str]
    system: re.Pattern[str] | None = None
    head: str = ""


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
        opens, closes = self._standing(ids, text)
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

    def messages(self, ids: Sequence[int]) -> list[tuple[str, str]]:
        """(role, text) of each turn of a prompt; the last is the user's, with what there is of an answer to it.

        Where the row isn't one that the template writes, all of it is one message of the user, so nothing of it is left out.
        """
        ids = list(ids)
        text = self.text(ids)
        opens, closes = self._standing(ids, text)
        said = self._system_in(text[: opens[0].start()]) if opens else None
        if said is None:
            return [("user", str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip())]
        messages = [("system", said)] if said else []
        assert self._marks is not None
        for one, following in pairwise([*opens, None]):
            assert one is not None
            until = following.start() if following else len(text)
            lead = next((mark for mark in reversed(closes) if one.end() <= mark.start() < until), None)
            if lead is None or (following is None and text[lead.end() :].strip()):
                messages.append(("user", text[one.end() : until].strip()))
                continue
            messages.append(("user", text[one.end() : lead.start()].strip()))
            if following is not None:
                messages.append(("assistant", self._marks.ends.sub("", text[lead.end() : until]).strip()))
        return messages

    def _system_in(self, head: str) -> str | None:
        """What a system's turn says in what stands before the first question; "" for none, None where it is something else."""
        marks, head = self._marks, self._without_bos(head)
        if marks is None or _bare(head) in ("", marks.head):
            return ""
        found = marks.system and marks.system.fullmatch(head)
        return found[1].strip() if found else None

    def _without_bos(self, text: str) -> str:
        return text.strip().removeprefix(self.tokenizer.bos_token or "").strip()

    def _standing(self, ids: list[int], text: str) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
        """The marks around what users ask, in the row's order; none where it is no chat."""
        marks = self._marks
        opens = self._found(marks.opens, ids, text) if marks and self._is_chat(text) else []
        return opens, self._found(marks.closes, ids, text) if opens and marks else []

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
        special = set(self._spelling.special.values())
        written = list(self._literal.finditer(text)) if self._literal else []
        if not matches or len(written) == sum(token in special for token in ids):
            return matches
        places = [span for span, token in zip(self.offsets(ids), ids, strict=True) if token in special]
        spelt = [one.start() for one in written if not any(start <= one.start() < end for start, end in places)]
        return [one for one in matches if not any(one.start() <= place < one.end() for place in spelt)]

    @cached_property
    def _literal(self) -> re.Pattern[str] | None:
        special = sorted(self._spelling.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, special))) if special else None

    def _tokens_until(self, ids: list[int], end: int) -> int:
        """How many tokens from the first cover the text up to a character."""
        return 1 + bisect_left(range(1, len(ids)), end, key=lambda count: len(self.text(ids[:count])))

    @cached_property
    def _marks(self) -> _Marks | None:
        if not self.tokenizer.chat_template:
            system = re.compile(r"System:(.*)", re.DOTALL)
            opens, closes = re.compile(r"(?:User|Question):"), re.compile(r"\s(?:Assistant|Answer):")
            return _Marks(opens, closes, re.compile(r"\s+\Z"), system)
        for history in ((("user", _ASKED[0]), ("assistant", _SAID)), ()):
            example = Example(answer=_SAID, question=_ASKED[1], history=history)
            try:
                before, behind = self._spelling.around(example)
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
        ends = re.compile(rf"\s*{self._pattern(behind)}\s*\Z")
        marks = _Marks(re.compile(opening), re.compile("|".join(patterns)), ends)
        return replace(marks, head=_bare(self._head(marks) or ""), system=self._system(marks))

    def _head(self, marks: _Marks, *history: tuple[str, str]) -> str | None:
        """What a template writes before it opens a question's turn; None where it refuses, or opens none."""
        try:
            before, _ = self._spelling.around(Example(answer=_SAID, question=_ASKED[1], history=history))
        except (DataError, ModelError):
            return None
        head, asked, _ = before.partition(_ASKED[1])
        opens = list(marks.opens.finditer(head)) if asked else []
        return self._without_bos(head[: opens[-1].start()]) if opens else None

    def _system(self, marks: _Marks) -> re.Pattern[str] | None:
        before, said, behind = (self._head(marks, ("system", _SAID)) or "").partition(_SAID)
        if not said or not before.strip() or marks.opens.search(before):
            return None
        return re.compile(rf"{self._pattern(before)}(.*?){self._pattern(behind)}\s*", re.DOTALL)

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


def _bare(text: str) -> str:
    return "".join(text.split())


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
