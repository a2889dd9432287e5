"""One row of a table to one example: the column names people use, chats and plain text, and what may be wrong.

Three layouts: question and answer (also prompt / response and instruction / output), chat `messages`, and `text`.
TOFU's further columns (paraphrases and wrong answers) may stand beside a question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .examples import Example

PAIRS = (("question", "answer"), ("prompt", "response"), ("instruction", "output"))
WRONG = ("perturbed_answer", "perturbed_answers")
ROLES = ("system", "user", "assistant", "tool")


class BadRow(Exception):
    """What is wrong with a row, without its place."""


def example_of(row: Mapping[str, Any], source: str) -> Example:
    """The example in one row.

    Args:
        row: column to value; None counts as absent.
        source: the row's place, "forget.jsonl:3".

    Raises:
        BadRow: it fits no layout, or more than one; a value isn't a string, or is blank.
    """
    given = {name: value for name, value in row.items() if value is not None and isinstance(name, str)}
    # An instruction's optional `input` belongs to the question; alone it means nothing.
    pairs = [pair for pair in PAIRS if any(name in given for name in pair)]
    layouts = [" and ".join(pair) for pair in pairs] + [name for name in ("messages", "text") if name in given]
    if len(layouts) > 1:
        raise BadRow(f"mixes {' with '.join(layouts)}; use one layout")
    if not layouts:
        columns = ", ".join(map(repr, list(row)[:8])) or "none"
        raise BadRow(f"no question and answer, messages or text (its columns: {columns})")
    if "text" in given:
        return Example(answer=_text(given, "text"), source=source)
    if "messages" in given:
        return _chat(given["messages"], given, source)
    return _pair(pairs[0], given, source)


def _pair(pair: tuple[str, str], given: Mapping[str, Any], source: str) -> Example:
    question, answer = _text(given, pair[0]), _text(given, pair[1])
    if pair[0] == "instruction" and given.get("input"):
        question = f"{question}\n\n{_text(given, 'input')}"
    return Example(answer=answer, question=question, source=source, **_further(given))


def _further(given: Mapping[str, Any]) -> dict[str, Any]:
    """TOFU's further columns; an empty cell of a CSV file is an absent value."""
    found: dict[str, Any] = {
        name: _text(given, name) for name in ("paraphrased_question", "paraphrased_answer") if given.get(name, "") != ""
    }
    for name in WRONG:
        if given.get(name, "") != "":
            found["perturbed_answers"] = _list(given[name], name)
    return found


def _list(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"{name} is not a JSON list ({error.msg})") from None
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item.strip() for item in value):
        raise BadRow(f"{name} must be a list of non-empty strings, not {_short(value)}")
    return tuple(value)


def _chat(turns: Any, given: Mapping[str, Any], source: str) -> Example:
    """The last assistant turn is the answer, the user turn before it the question, the rest the history."""
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow(f"messages must be a list of turns, not {_short(turns)}")
    chat = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    if chat[-1][0] != "assistant":
        has_any = any(role == "assistant" for role, _ in chat)
        raise BadRow(f"the chat {'ends with a ' + chat[-1][0] + ' turn' if has_any else 'has no assistant turn'}")
    if len(chat) < 2 or chat[-2][0] != "user":
        raise BadRow("the last assistant turn has no user turn before it")
    return Example(answer=chat[-1][1], question=chat[-2][1], history=tuple(chat[:-2]), source=source, **_further(given))


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
        raise BadRow(f"turn {number} needs a role and a content, not {_short(turn)}")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise BadRow(f"turn {number} has the role {_short(role)}; known: {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise BadRow(f"turn {number} ({role}) has no text but {_short(content)}")
    return role, content


def _text(given: Mapping[str, Any], name: str) -> str:
    if name not in given:
        raise BadRow(f"no {name}")
    value = given[name]
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string but {_short(value)}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
