"""One row of a table to its examples: one for a question and answer or a document, one a turn for a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import setting
from .chats import Chat, Turn, examples_in, is_chat, turns_of, with_system
from .examples import Example
from .layouts import BadRow, ColumnLayout, given_in, is_blank, layout_of, named_layout
from .values import strings_of, text_of


@dataclass(frozen=True)
class Parsed:
    """What one row gave.

    unasked, open_ended: as `Chat` has them; 0 and False for rows that are no chats.
    """

    examples: tuple[Example, ...]
    layout: ColumnLayout
    unasked: int = 0
    open_ended: bool = False


def parsed(row: Mapping[Any, Any], source: str, columns: Mapping[str, str] | None, turns: str) -> Parsed:
    """The examples in one row.

    Args:
        row: column to value; None, and pandas' NaN, count as absent.
        source: the row's place, "forget.jsonl:3"; an example from a chat adds its turn, "chat.jsonl:3 turn 4".
        columns: role to column, as the user names them; None goes by known names.
        turns: "all" or the "last" assistant turn of a chat.

    Raises:
        BadRow: it fits no layout, or more than one; a value isn't a string, or is blank.
    """
    cells = given_in(row)
    layout = layout_of(cells) if columns is None else named_layout(cells, columns)
    if layout.text:
        return Parsed((Example(answer=_cell(cells, layout.text), source=source),), layout)
    if layout.messages:
        chat = turns_of(_value(cells, layout.messages), layout.messages)
    elif is_chat(cells.get(layout.question)) or is_chat(cells.get(layout.answer)):
        chat = _prompt_and_completion(cells, layout)
    else:
        return Parsed((_pair(cells, layout, source),), layout)
    return _chat(chat, cells, layout, source, turns)


def _pair(cells: Mapping[str, Any], layout: ColumnLayout, source: str) -> Example:
    question, answer = _cell(cells, layout.question), _cell(cells, layout.answer)
    _check_spare(cells, layout, [question, answer])
    if layout.input and not is_blank(cells.get(layout.input, "")):
        question = f"{question}\n\n{_cell(cells, layout.input)}"
    system = _system(cells, layout)
    history = (("system", system),) if system else ()
    return Example(answer=answer, question=question, history=history, source=source, **_further(cells, layout))


def _prompt_and_completion(cells: Mapping[str, Any], layout: ColumnLayout) -> tuple[Turn, ...]:
    """TRL's form of a chat: only the completion is learnt. Either half may be a string, a turn of its own."""
    if layout.input and not is_blank(cells.get(layout.input, "")):
        raise BadRow(f"{layout.input!r} stands beside a list of turns; write it into one of them")
    halves = []
    for name, role in ((layout.question, "user"), (layout.answer, "assistant")):
        value = _value(cells, name)
        halves.append(turns_of(value, name) if is_chat(value) else (Turn(role, text_of(value, name)),))
    return (*(replace(turn, learnable=False) for turn in halves[0]), *halves[1])


def _chat(turns: tuple[Turn, ...], cells: Mapping[str, Any], layout: ColumnLayout, source: str, which: str) -> Parsed:
    _check_spare(cells, layout, [turn.text for turn in turns])
    system = _system(cells, layout)
    chat = Chat(with_system(turns, system) if system else turns)
    before = len(chat.turns) - len(turns)  # turns are numbered as they stand in the row
    answered = examples_in(chat, which)
    examples = [
        Example(one.answer, one.question, one.history, source=f"{source} turn {one.number - before}")
        for one in answered
    ]
    if further := _further(cells, layout):
        last = max(number for number, turn in enumerate(chat.turns, start=1) if turn.role == "assistant")
        if answered[-1].number != last:
            raise BadRow(f"{' and '.join(further)} belong to the last assistant turn, which is no example")
        examples[-1] = replace(examples[-1], **further)
    if which == "last":
        return Parsed((replace(examples[-1], source=source),), layout)
    return Parsed(tuple(examples), layout, chat.unasked, chat.open_ended)


def _check_spare(cells: Mapping[str, Any], layout: ColumnLayout, texts: Sequence[str]) -> None:
    """A candidate for a place that another column has may only say again what is read: one text, or all in one."""
    for name in layout.spare:
        again = cells[name]
        if not isinstance(again, str) or not (again in texts or all(text.strip() in again for text in texts)):
            used = layout.messages or f"{layout.question} and {layout.answer}"
            raise BadRow(f"mixes {used} with {name}; use one layout, or say with {setting('columns')} what to read")


def _system(cells: Mapping[str, Any], layout: ColumnLayout) -> str:
    value = cells.get(layout.system, "") if layout.system else ""
    return "" if is_blank(value) else text_of(value, layout.system)


def _further(cells: Mapping[str, Any], layout: ColumnLayout) -> dict[str, Any]:
    """TOFU's further columns; an empty cell of a CSV file is an absent value."""
    further: dict[str, Any] = {}
    for role, name in layout.further.items():
        value = cells.get(name, "")
        if isinstance(value, str) and value == "":
            continue
        if role.startswith("perturbed"):
            if "perturbed_answers" in further:
                raise BadRow("has perturbed_answer and perturbed_answers; keep one")
            further["perturbed_answers"] = strings_of(value, name)
        elif role in ("aliases", "premises"):
            further[role] = strings_of(value, name)
        else:
            further[role] = text_of(value, name)
    return further


def _value(cells: Mapping[str, Any], name: str) -> Any:
    if name not in cells:
        raise BadRow(f"no {name}")
    return cells[name]


def _cell(cells: Mapping[str, Any], name: str) -> str:
    return text_of(_value(cells, name), name)
