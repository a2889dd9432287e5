"""Which column of a row is the question, which the answer: by known names, or as the user says.

Three layouts: a pair (one of `QUESTIONS` and one of `ANSWERS`, or `text` and `labels`), a chat (one of `CHATS`), a
document (`text`). Names are compared without regard to case. No column that may hold an answer is left out without a
word: beside `text` only known metadata and columns without text pass; two candidates for one place are refused, and
the refusal gives the `--columns` that settles it; what else isn't read beside a pair or a chat is named in a notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import DataError, setting, unknown

# A `prompt` beside another one is often that one rendered, so it comes last.
QUESTIONS = ("question", "instruction", "query", "problem", "input", "inputs", "prompt")
ANSWERS = (
    "answer", "response", "completion", "output", "outputs", "target", "targets", "labels", "gt", "solution",
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
FURTHER = (
    "paraphrased_question", "paraphrased_answer", "perturbed_answer", "perturbed_answers", "entity", "aliases", "premises",
)  # fmt: skip
ROLES = ("question", "input", "answer", "text", "messages", "system", *FURTHER)
# Alpaca's and Dolly's names for what an instruction is about: read behind it.
INPUTS = ("input", "inputs", "context")
# What may be a part of any other question, and where in it nobody can know.
CONTEXTS = ("context", "passage", "document", "history")

METADATA = {
    "id", "ids", "idx", "index", "uid", "uuid", "guid", "hash", "sha", "sha1", "sha256", "md5", "digest", "source",
    "sources", "url", "uri", "link", "domain", "site", "website", "host", "dump", "dataset", "datasets", "corpus",
    "collection", "subset", "config", "split", "fold", "part", "file", "files", "filename", "file_name", "path",
    "file_path", "page", "pages", "chapter", "section", "volume", "issue", "dataset_name", "model_name",
    "pile_set_name", "title", "abstract", "author", "authors", "editor", "publisher", "journal", "venue", "doi",
    "isbn", "issn", "pmid", "license", "licence", "copyright", "subject", "subjects", "topic", "topics", "category",
    "categories", "genre", "tag", "tags", "keyword", "keywords", "type", "kind", "group", "cluster", "level",
    "difficulty", "task", "task_type", "tasks", "lang", "language", "languages", "date", "time", "timestamp",
    "year", "created", "created_at", "added", "updated", "updated_at", "published", "modified", "retrieved",
    "version", "meta", "metadata", "provenance", "score", "scores", "quality", "perplexity", "length", "size",
    "tokens", "n_tokens", "num_tokens", "token_count", "word_count", "char_count",
}  # fmt: skip
_METADATA = re.compile(
    r"(.*[_ -])(ids?|idx|index|ur[il]|hash|date|timestamp|path|score|prob|count|length)|unnamed: \d+|"
)


class BadRow(Exception):
    """What is wrong with a row, without its place."""


class NoColumn(DataError):
    """A column that was asked for by name is nowhere in the set; `none`: nor is any other that was asked for."""

    def __init__(self, message: str, none: bool) -> None:
        super().__init__(message)
        self.none = none


@dataclass(frozen=True)
class ColumnLayout:
    """The columns of one row by their roles; "" for a role that none has.

    further: TOFU's further columns, role to column.
    spare: candidates for a place that another column has; each must hold nothing new, as a rendering of the row.
    unread: columns with a value and no role, known metadata apart.
    """

    question: str = ""
    input: str = ""
    answer: str = ""
    text: str = ""
    messages: str = ""
    system: str = ""
    further: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def parse_columns(columns: Mapping[str, str] | str | None) -> dict[str, str] | None:
    """Role to column, from a mapping or "question=text,answer=labels".

    Raises:
        DataError: an unknown role, a role or a column named twice, or roles that make no row.
    """
    if columns is None:
        return None
    roles: dict[str, str] = {}
    for role, column in columns.items() if isinstance(columns, Mapping) else _pairs(columns):
        if role not in ROLES:
            raise DataError(f"{setting('columns')}: {unknown('role', str(role), ROLES)}")
        if not isinstance(column, str) or not column.strip():
            raise DataError(f"{setting('columns')}: {role} needs a column's name, not {column!r}.")
        if role in roles:
            raise DataError(f"{setting('columns')} names {role} twice ({roles[role]!r} and {column!r}). Name it once.")
        if other := [name for name in roles if roles[name] == column]:
            raise DataError(
                f"{setting('columns')} names the column {column!r} twice ({other[0]} and {role}). Give it one role."
            )
        roles[role] = column
    _check_roles(roles)
    return roles


def _pairs(columns: str) -> Iterator[tuple[str, str]]:
    for part in columns.split(","):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not role or not column:
            raise DataError(
                f"{setting('columns')}: {part.strip()!r} is not ROLE=COLUMN. Write question=text,answer=labels."
            )
        yield role, column


def _check_roles(roles: Mapping[str, str]) -> None:
    whole = [name for name in ("text", "messages") if name in roles]
    pair = [name for name in ("question", "answer") if name in roles]
    if (len(whole), len(pair)) not in ((1, 0), (0, 2)):
        named = " and ".join(roles) or "nothing"
        raise DataError(
            f"{setting('columns')} names {named}. Name question and answer, or messages alone, or text alone."
        )
    allowed = {"text": ("text",), "messages": ("messages", "system", *FURTHER)}.get("".join(whole), ROLES)
    if odd := [role for role in roles if role not in allowed]:
        raise DataError(f"{setting('columns')} names {odd[0]} beside {whole[0]}, which has none. Leave {odd[0]} out.")


def given_in(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns that have a value; None and NaN, pandas' missing value, count as absent."""
    missing = (value is None or (isinstance(value, float) and value != value) for value in row.values())
    return {name: row[name] for name, absent in zip(row, missing, strict=True) if isinstance(name, str) and not absent}


def _is_text(value: object) -> bool:
    """Whether this is a text, an empty cell, or holds texts; class labels, as numbers, are none."""
    return isinstance(value, str) or _holds_text(value)


def is_blank(value: object) -> bool:
    """Whether this is an empty cell or an empty list."""
    return not value.strip() if isinstance(value, str) else isinstance(value, list | tuple | dict) and not value


def named_layout(cells: Mapping[str, Any], columns: Mapping[str, str]) -> ColumnLayout:
    """The layout the user named; TOFU's further columns are read under their own names too."""
    further = {} if "text" in columns else {name: name for name in FURTHER if name in cells}
    further |= {role: column for role, column in columns.items() if role in FURTHER}
    roles: dict[str, Any] = {role: name for role, name in columns.items() if role not in FURTHER}
    return ColumnLayout(**roles, further=further)


def layout_of(cells: Mapping[str, Any]) -> ColumnLayout:
    """The layout of a row by its columns' names.

    Raises:
        BadRow: it fits no layout, or more than one, or a column without a place may hold the answer.
    """
    names = _folded(cells)

    def among(known: Sequence[str]) -> list[str]:
        """The columns of these names: those with something in them, or all where every one is blank."""
        there = [names[name] for name in known if name in names]
        return [name for name in there if not is_blank(cells[name])] or there

    questions, answers, chats, system = (among(known) for known in (QUESTIONS, ANSWERS, CHATS, SYSTEMS))
    text = among(("text",))
    labels = among(("labels",))
    if text and labels and answers == labels and not (chats or questions) and _is_text(cells[labels[0]]):
        questions, text = text, []
    if not (chats or questions or answers):
        if not text:
            raise BadRow(f"no question and answer, messages or text ({_its_columns(cells)})")
        _check_beside_text(text[0], cells)
        return ColumnLayout(text=text[0])
    if len(system) > 1:
        raise BadRow(f"has {_listed(system)}; keep one")
    roles: dict[str, Any] = {"system": "".join(system), "further": {n: names[n] for n in FURTHER if n in names}}
    if chats:
        if len(chats) > 1:
            raise BadRow(f"mixes {' with '.join(chats)}; use one layout")
        roles |= {"messages": chats[0], "spare": (*questions, *answers, *text)}
    else:
        behind = among(INPUTS) if "instruction" in names else []
        questions = [name for name in questions if name not in behind]
        behind = [name for name in behind if not is_blank(cells[name])]
        _check_pair(questions, behind, answers, text, cells)
        _check_contexts(questions[0], behind, answers[0], among(CONTEXTS), cells)
        roles |= {"question": questions[0], "input": "".join(behind), "answer": answers[0]}
        roles["spare"] = (*questions[1:], *text)
    spare = tuple(name for name in roles.pop("spare") if not is_blank(cells[name]))
    used = {*(name for name in roles.values() if isinstance(name, str)), *roles["further"].values(), *spare}
    unread = tuple(n for n in cells if n not in used and not is_metadata(n) and not is_blank(cells[n]))
    return ColumnLayout(**roles, spare=spare, unread=unread)


def _check_pair(
    questions: list[str], behind: list[str], answers: list[str], text: list[str], cells: Mapping[str, Any]
) -> None:
    if not questions and text:
        raise _beside(text[0], answers[0])
    if not questions:
        raise BadRow(f"no question ({_its_columns(cells)})")
    if not answers:
        raise BadRow(f"no answer ({_its_columns(cells)})")
    if len(answers) > 1:
        choices = " or ".join(_columns(question=questions[0], answer=name) for name in answers)
        raise BadRow(f"{_listed(answers)} may each be the answer; write {choices}")
    if len(behind) > 1:
        choices = " or ".join(_columns(question=questions[0], input=name, answer=answers[0]) for name in behind)
        raise BadRow(f"{_listed(behind)} may each be the instruction's input; write {choices}")


def _check_contexts(
    question: str, behind: list[str], answer: str, contexts: list[str], cells: Mapping[str, Any]
) -> None:
    for name in contexts:
        if name not in behind and not is_blank(cells[name]):
            with_it = _columns(question=question, input=name, answer=answer)
            raise BadRow(
                f"{name!r} may belong to the question; write {with_it} to read it behind {question!r}, or "
                f"{_columns(question=question, answer=answer)} to leave it out"
            )


def _check_beside_text(text: str, cells: Mapping[str, Any]) -> None:
    for name, value in cells.items():
        if name != text and not is_metadata(name) and _holds_text(value):
            raise _beside(text, name)


def _beside(text: str, other: str) -> BadRow:
    return BadRow(
        f"{other!r} stands beside {text!r} and may be its answer; write {_columns(question=text, answer=other)}, or "
        f"{_columns(text=text)} to leave it out"
    )


def is_metadata(name: str) -> bool:
    """Whether a column of this name says something of the row, and is no part of it."""
    folded = name.strip().casefold()
    return folded in METADATA or _METADATA.fullmatch(folded) is not None


def _holds_text(value: object) -> bool:
    """Whether there is a string with something in it, at any depth."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and item.strip():
            return True
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif hasattr(item, "tolist"):
            stack.append(item.tolist())
    return False


def _folded(cells: Mapping[str, Any]) -> dict[str, str]:
    """Lower-case name to column."""
    names: dict[str, str] = {}
    for column in cells:
        name = column.strip().casefold()
        if name in names:
            raise BadRow(f"has the columns {names[name]!r} and {column!r}; rename one")
        names[name] = column
    return names


def _its_columns(cells: Mapping[str, Any]) -> str:
    return f"its columns: {', '.join(map(repr, list(cells)[:8])) or 'none'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def _columns(**roles: str) -> str:
    return setting("columns", ",".join(f"{role}={column}" for role, column in roles.items()))
