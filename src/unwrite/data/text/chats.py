"""Chats to examples: every assistant turn that answers a user turn, each with the turns before it as its history.

Read are OpenAI's `messages` (role and content, a string or text parts) and ShareGPT's `conversations` (from and
value). What an example can't carry is refused by name: a picture, a tool call, a thought beside the content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layouts import BadRow
from .values import json_list, plain, shown, text_of

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "function_call": "assistant",
    "function": "tool", "observation": "tool",
}  # fmt: skip
# Parts of a turn that the model wrote or is to write, and that a string can't carry.
CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """One turn of a chat. `learnable`: an assistant turn may become an example's answer."""

    role: str
    text: str
    learnable: bool = True


@dataclass(frozen=True)
class Answered:
    """An assistant turn that answers a user turn. `number`: its place in the chat, from 1."""

    number: int
    question: str
    answer: str
    history: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chat:
    """The turns of one chat, at least one."""

    turns: tuple[Turn, ...]

    @property
    def answered(self) -> list[Answered]:
        """The assistant turns that directly follow a user turn, but for those of weight 0."""
        return [
            Answered(i + 1, before.text, turn.text, tuple((t.role, t.text) for t in self.turns[: i - 1]))
            for i, (before, turn) in enumerate(zip(self.turns, self.turns[1:], strict=False), start=1)
            if turn.role == "assistant" and turn.learnable and before.role == "user"
        ]

    @property
    def unasked(self) -> int:
        """How many assistant turns are only context: they follow no user turn, or have a weight of 0."""
        return sum(turn.role == "assistant" for turn in self.turns) - len(self.answered)

    @property
    def open_ended(self) -> bool:
        """Whether the chat goes on behind its last assistant turn."""
        return self.turns[-1].role != "assistant"


def is_chat(value: object) -> bool:
    """Whether this is a list of turns, as TRL has them in `prompt` and `completion`."""
    value = plain(value)
    return bool(
        isinstance(value, list | tuple)
        and value
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def turns_of(value: object, name: str) -> tuple[Turn, ...]:
    """The turns in a column; a cell of a CSV file may hold them as JSON.

    Raises:
        BadRow: no list of turns, or a turn without a known role and a text; it is named by its number.
    """
    value = json_list(value, name) if isinstance(value, str) else plain(value)
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{name} must be a list of turns, not {shown(value)}")
    return tuple(_turn(turn, number) for number, turn in enumerate(value, start=1))


def _turn(turn: Any, number: int) -> Turn:
    speaker = _first(turn, ("role", "from")) if isinstance(turn, Mapping) else None
    if speaker is None or not any(name in turn for name in ("content", "value")):
        raise BadRow(f"turn {number} needs a role and a content, not {shown(turn)}")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(f"turn {number} has the role {shown(speaker)}; known: {', '.join(SPEAKERS)}")
    where = f"turn {number} ({speaker})"
    if called := [name for name in CALLS if turn.get(name)]:
        raise BadRow(f"{where} has {called[0]}, which can't be read; write the call into the content")
    if thought := [name for name in THOUGHTS if turn.get(name)]:
        raise BadRow(f"{where} has {thought[0]} beside its content; write it into the content, or remove it")
    content = _first(turn, ("content", "value"))
    if content is None or content == "" or content == []:
        raise BadRow(f"{where} has no text but {shown(content)}")
    return Turn(role, text_of(content, where), turn.get("weight") != 0)


def _first(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def with_system(turns: tuple[Turn, ...], system: str) -> tuple[Turn, ...]:
    """The chat behind a system prompt that stands in a column of its own."""
    if any(turn.role == "system" for turn in turns):
        if turns[0].role == "system" and turns[0].text == system:
            return turns
        raise BadRow("has a system prompt in a column and another one in a turn; keep one")
    return (Turn("system", system), *turns)


def examples_in(chat: Chat, which: str) -> list[Answered]:
    """The answers of a chat that become examples: all of them, or the last ("last").

    Raises:
        BadRow: there are none.
    """
    if not any(turn.role == "assistant" for turn in chat.turns):
        raise BadRow("the chat has no assistant turn")
    if which == "all":
        if not chat.answered:
            raise BadRow("no assistant turn to learn has a user turn before it")
        return chat.answered
    if chat.open_ended:
        raise BadRow(f"the chat ends with a {chat.turns[-1].role} turn")
    if not chat.answered or chat.answered[-1].number != len(chat.turns):
        raise BadRow("the last assistant turn has no user turn before it")
    return chat.answered[-1:]
