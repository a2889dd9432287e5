"""A conversation read back from the token ids of a prompt, by what the chat template writes around each turn.

A template is asked, not known: conversations of placeholders are rendered, and what stands around those are the marks of the turns.
Where a prompt isn't one that the template writes, all of it is one message of the user, so nothing of it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .....data.text.examples import Example
from .....data.text.rendering import Spelling
from .....errors import UnwriteError
from .chat import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DialogueReader"]

_QUESTION, _SAID, _REPLY = "QzQuestionQz", "QzSaidQz", "QzReplyQz"


@dataclass(frozen=True)
class _Marks:
    """What stands before a question, behind it, and around turns before it; blanks at their ends cut.

    Args:
        lead, tail: around a question alone.
        first: before a user's turn that others follow.
        to_reply, to_user: from a user's turn to the reply, and from that to the user's next.
        system, from_system: before a system message, and from it to the user's turn; empty where the template has none of its own.
    """

    lead: str
    tail: str
    first: str
    to_reply: str
    to_user: str
    system: str
    from_system: str


class DialogueReader:
    """Reads token ids as messages.

    Args:
        tokenizer: with or without a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _marks(self) -> _Marks | None:
        spelling = Spelling(self.tokenizer)

        def rendered(*history: tuple[str, str]) -> str:
            return spelling.render(Example(answer="a", question=_QUESTION, history=history)).prompt

        try:
            lead, tail = _around(rendered(), _QUESTION)
            first, rest = _around(rendered(("user", _SAID), ("assistant", _REPLY)), _SAID)
            to_reply, rest = _around(rest, _REPLY)
            to_user, _ = _around(rest, _QUESTION)
        except (UnwriteError, ValueError):
            return None
        try:
            system, rest = _around(rendered(("system", _SAID)), _SAID)
            from_system, _ = _around(rest, _QUESTION)
        except (UnwriteError, ValueError):
            system = from_system = ""
        if system in (first, lead):  # no mark of its own
            system = from_system = ""
        return _Marks(lead, tail, first, to_reply, to_user, system, from_system)

    def read(self, ids: Sequence[int]) -> list[Message]:
        """The messages of a prompt; the last is the user's."""
        whole = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        marks, text = self._marks, self._text(ids)
        messages = None if marks is None else _split(text, marks)
        return messages or [{"role": "user", "content": str(whole).strip()}]

    def _text(self, ids: Sequence[int]) -> str:
        """With special tokens, but for what a tokenizer itself puts in front."""
        marks, text = self._marks, str(self.tokenizer.decode(list(ids), skip_special_tokens=False)).strip()
        begin = self.tokenizer.bos_token
        if begin and marks is not None and not marks.lead.startswith(begin):
            text = text.removeprefix(begin).strip()
        return text


def _around(text: str, placeholder: str) -> tuple[str, str]:
    before, found, behind = text.partition(placeholder)
    if not found:
        raise ValueError
    return before.strip(), behind.strip()


def _split(text: str, marks: _Marks) -> list[Message] | None:
    """The turns of a text, None where it is not of the template's form."""
    messages: list[Message] = []
    rest: str | None = None
    if marks.system and text.startswith(marks.system) and not (marks.lead and text.startswith(marks.lead)):
        said, found, behind = text.removeprefix(marks.system).partition(marks.from_system)
        if marks.from_system and found:
            messages, rest = [{"role": "system", "content": said.strip()}], behind
    for lead in (marks.lead, marks.first):
        if rest is None and lead and text.startswith(lead):
            rest = text.removeprefix(lead)
    if rest is None or not (marks.tail and marks.to_reply and marks.to_user):
        return None
    rest = rest.strip().removesuffix(marks.tail)
    while True:
        said, replied, behind = rest.partition(marks.to_reply)
        reply, asked, after = behind.partition(marks.to_user)
        if not (replied and asked):
            break
        messages += [{"role": "user", "content": said.strip()}, {"role": "assistant", "content": reply.strip()}]
        rest = after
    messages.append({"role": "user", "content": rest.strip()})
    return messages if messages[-1]["content"] else None
