"""`read(source)`: rows from a file, a folder, a data set in memory, or the Hub; every bad row is named by its place.

What a row may look like is in `layouts.py` and `chats.py`, what a file may be in `files.py`; docs/data.md has both
as tables, with the meaning of every refusal.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ... import hub
from ...errors import DataError, notice, setting, unknown
from ...runs import spare_folder, unwritable
from ..stored import stored_rows
from .examples import Example, Examples, ForgetSplit, excerpt, repeats
from .files import CODE, SUFFIXES, Rows, located, numbered, rows_in, stem_of, suffix_of
from .layouts import BadRow, NoColumn, parse_columns
from .rows import Parsed, parsed

if TYPE_CHECKING:
    from datasets import Dataset

Turns = Literal["all", "last"]
SHOWN = 10
_HUB_ID = re.compile(r"(?P<path>(hf:)?[\w.-]+/[\w.-]+|hf:[\w.-]+)(:(?P<config>[^@:/\\]+))?(@(?P<split>[^@/\\]+))?")


def read(
    source: Any,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | str | None = None,
    turns: Turns = "all",
) -> Examples:
    """The examples in `source`.

    Args:
        source: a file of rows (.jsonl, .json, .csv, .tsv, .parquet) or one document (.txt, .md), all but Parquet also
            as .gz; a folder of documents or of `datasets.save_to_disk`; "path@part" for a part of a folder or JSON
            file; a `datasets.Dataset`; a Hub id "org/name[:config][@split]" (the split is "train" unless given), with
            "hf:" before it where a folder `org` is here;
            `Examples`, returned as they are; or any iterable of rows (mappings) or `Example`s.
        name: the set's name in messages and reports; the file's or data set's by default.
        columns: which column is what, {"question": "text", "answer": "labels"} or "question=text,answer=labels";
            by known names unless given.
        turns: "all" makes every assistant turn that answers a user turn an example, "last" the last one alone.

    Raises:
        DataError: no such file, an unknown kind, no rows, or bad rows (ten are named, all are counted); `columns`
            that name no row or no column.
    """
    roles = parse_columns(columns)
    if turns not in get_args(Turns):
        raise DataError(unknown("turns", str(turns), get_args(Turns)))
    if isinstance(source, Examples):
        if roles:
            raise DataError(f"Examples have no columns left to name. Leave out {setting('columns')}.")
        return Examples(source, name) if name else source
    if isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        path, part = located(source)
        stem = stem_of(path) + (f"@{part}" if part else "")
        return _collect(rows_in(path, part), name or stem, str(source), roles, turns)
    if isinstance(source, str):
        return _collect(numbered(stored_rows(from_hub(source)), source), name or source, source, roles, turns)
    if isinstance(source, Mapping):
        known = ", ".join(map(str, source)) or "none"
        raise DataError(f"a mapping of sets was given, not a set; choose one of its parts (there are: {known}).")
    if isinstance(source, Iterable):
        place = name or "row"
        return _collect(numbered(source, place), name or "examples", place, roles, turns)
    raise DataError(f"can't read rows from a {type(source).__name__}. Give a path, a Hub id or a datasets.Dataset.")


def split_from(
    forget: Any,
    retain: Any = None,
    holdout: Any = None,
    allow_overlap: bool = False,
    columns: Mapping[str, str] | str | None = None,
    turns: Turns = "all",
) -> ForgetSplit:
    """A split from anything `read` accepts; "authors" or "landmarks" as `forget` alone is the shipped split.

    `columns` are those of the forget set. A retain or holdout set that has none of them is read by known names.

    Raises:
        DataError: as `read`; a shipped set given together with others; forget and retain or holdout share rows.
    """
    shipped = _shipped()
    for kind, source in (("retain", retain), ("holdout", holdout)):
        if isinstance(source, str) and source in shipped:
            raise DataError(
                f"{setting(kind)} is {source!r}, a shipped set with parts of its own. Name it as the forget set, or give a file."
            )
    if isinstance(forget, str) and forget in shipped:
        if retain is not None or holdout is not None:
            raise DataError(
                f"{forget!r} is shipped with its own retain set. Leave out {setting('retain')} and {setting('holdout')}, or give "
                "files."
            )
        if columns:
            raise DataError(f"{forget!r} is shipped and has its own columns. Leave out {setting('columns')}.")
        return shipped[forget]()
    if isinstance(forget, ForgetSplit):
        if columns:
            raise DataError(f"a split has no columns left to name. Leave out {setting('columns')}.")
        return forget
    return ForgetSplit(
        forget=read(forget, columns=columns, turns=turns),
        retain=None if retain is None else _beside(retain, columns, turns),
        holdout=None if holdout is None else _beside(holdout, columns, turns),
        allow_overlap=allow_overlap,
        name=stem_of(located(forget)[0]) if isinstance(forget, str | Path) else "split",
    )


def _beside(source: Any, columns: Mapping[str, str] | str | None, turns: Turns) -> Examples:
    """A retain or holdout set, by the forget set's columns where it has any of them."""
    if isinstance(source, Examples):
        return source
    try:
        return read(source, columns=columns, turns=turns)
    except NoColumn as error:
        if not error.none:
            raise
        return read(source, turns=turns)


def _shipped() -> dict[str, Callable[..., ForgetSplit]]:
    from .authors import authors
    from .landmarks import landmarks

    return {"authors": authors, "landmarks": landmarks}


def _is_path(source: str) -> bool:
    """A suffix we read, or something that exists or can't be a Hub id."""
    if hub.is_explicit(source):
        return False
    path, _ = located(source)
    return suffix_of(path) in (*SUFFIXES, *CODE) or os.path.exists(path) or _HUB_ID.fullmatch(source) is None


def from_hub(source: str) -> Dataset:
    """The `datasets.Dataset` behind "org/name[:config][@split]"."""
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise DataError(f"{source!r} is no data set id. Write org/name, org/name:config or org/name:config@split.")
    return load(match["path"], match["config"], match["split"] or "train")


def load(path: str, config: str | None, split: str, **options: Any) -> Dataset:
    """`datasets.load_dataset`, its many exceptions turned into one clear line.

    Args:
        path: a local folder, a format whose files are given as `data_files`, or a name of the Hub.
    """

    what = path + (f":{config}" if config else "") + f"@{split}"
    is_local = "data_files" in options or (os.path.isdir(path) and not hub.is_explicit(path))
    offline = hub.offline("HF_DATASETS_OFFLINE")
    try:
        if is_local and os.path.isdir(path):
            _need_own_files(path)
        with hub.closed() if is_local or offline else contextlib.nullcontext():
            return _prepared(path if is_local else _repository(path), config, split=split, **options)
    except DataError:
        raise
    except Exception as error:
        check = (
            "the network" if not offline else f"that it is in the cache: {hub.SWITCH} or its like forbids to fetch it"
        )
        raise DataError(
            f"can't load the data set {what}: {_in_a_line(error)}. Check the id, the configuration and {check}."
        ) from error


def _prepared(name: str, config: str | None, **options: Any) -> Dataset:
    """`datasets.load_dataset`; what it prepared earlier may be damaged by now, and where it prepares may be read-only or full."""
    import datasets

    try:
        return datasets.load_dataset(name, config, **options)
    except Exception as error:
        # A plain ValueError is a split or a configuration that isn't there.
        of_the_rows = (
            isinstance(error, datasets.exceptions.DatasetsError | ConnectionError) or type(error) is ValueError
        )
        if of_the_rows and not unwritable(error):
            raise
        # Prepared again from the same files: in its place, or, where even that fails, for this process alone.
        for in_place in (True, False):
            again = {"download_mode": "reuse_cache_if_exists"} if in_place else {"cache_dir": str(spare_folder())}
            with contextlib.suppress(Exception):
                table = datasets.load_dataset(name, config, **options, **again)
                outcome = "It was prepared again" if in_place else "It is prepared each time: make room, or remove it"
                notice(
                    f"what the datasets library keeps of {name} in {datasets.config.HF_DATASETS_CACHE} can't be used "
                    f"({_in_a_line(error)}). {outcome}."
                )
                return table
        raise


def _in_a_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _need_own_files(folder: str) -> None:
    """Refuses a folder whose card has its rows fetched from elsewhere."""
    from huggingface_hub import metadata_load

    card = os.path.join(folder, "README.md")
    stack = [(metadata_load(card) or {}).get("configs")] if os.path.isfile(card) else []
    while stack:
        item = stack.pop()
        if isinstance(item, str) and "://" in item:
            raise DataError(f"{card} has rows fetched from {item}. Fetch them yourself, and name the files.")
        stack.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())


def _repository(name: str) -> str:
    """The Hub's id of a data set.

    Raises:
        DataError: it is a path, or no id.
    """
    known = hub.repository(name)
    if (reason := hub.path_reason(name)) is not None:
        example = name if known is not None else "org/name"
        raise DataError(
            f"there are no rows {name} ({reason}, so it is not looked up on the Hub). Check the path, or write "
            f"{hub.PREFIX}{example} for a data set of the Hub."
        )
    if known is None:
        raise DataError(f"{name!r} is no data set id. Write org/name, or {hub.PREFIX}org/name.")
    if os.path.exists(known):  # the library would read what is here
        raise DataError(f"{known} is here, and {name} can't be told from it. Start in another folder, or rename it.")
    return known


class _Bad:
    """Bad rows, those with the same fault together."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, place: str, reason: str) -> None:
        # A column's name may hold a line break; the message is one line.
        self.places.setdefault(" ".join(reason.split()), []).append(place)

    def refuse(self, rows: int, place: str) -> None:
        """Raises one error for all bad rows: ten places are named, all are counted."""
        total = sum(map(len, self.places.values()))
        if not total:
            return
        room, faults = SHOWN, []
        for reason, places in self.places.items():
            if not room:
                break
            here = places[:room]
            room -= len(here)
            more = f" and {len(places) - len(here)} more" if len(places) > len(here) else ""
            faults.append(f"{', '.join(here)}{more}: {reason}")
        hidden = len(self.places) - len(faults)
        also = f"; and {hidden} more faults" if hidden else ""
        raise DataError(
            f"{total} of {rows} rows in {place} can't be used: {'; '.join(faults)}{also}. Mend or remove them."
        )


def _collect(rows: Rows, name: str, place: str, columns: dict[str, str] | None, turns: Turns) -> Examples:
    """Examples from (place, row or BadRow) pairs; all bad rows in one error."""
    table = list(rows)
    if columns:
        _check_named(columns, table, place)
    bad, good, results = _Bad(), [], []
    for where, row in table:
        try:
            if isinstance(row, BadRow):
                raise row
            if isinstance(row, Example):
                good.append(row)
            elif isinstance(row, Mapping):
                results.append((where, parsed(row, where, columns, turns)))
                good.extend(results[-1][1].examples)
            else:
                raise BadRow(f"is not a row with named columns but a {type(row).__name__}")
        except BadRow as error:
            bad.add(where, str(error))
    if any(result.layout.question.casefold() == "text" for _, result in results) and not columns:
        for where in [where for where, result in results if result.layout.text]:
            bad.add(where, "text stands without labels, which other rows have")
    bad.refuse(len(table), place)
    if not good:
        raise DataError(f"{place} has no rows. Give at least one.")
    examples = Examples(good, name)
    _notice_chats(results, place)
    _notice_unread([result for _, result in results], place)
    _notice_repeats(examples, place)
    return examples


def _check_named(columns: Mapping[str, str], table: list[tuple[str, Any]], place: str) -> None:
    there = dict.fromkeys(name for _, row in table if isinstance(row, Mapping) for name in row if isinstance(name, str))
    missing = [column for column in columns.values() if column not in there]
    if missing and there:
        correction = " ".join(unknown("column", missing[0], there).split())
        raise NoColumn(f"{setting('columns')} for {place}: {correction}", none=len(missing) == len(columns))


def _notice_chats(results: list[tuple[str, Parsed]], place: str) -> None:
    unasked = [(where, result.unasked) for where, result in results if result.unasked]
    if unasked:
        notice(
            f"Assistant turns of {place} that are only context: {sum(count for _, count in unasked)} (first: "
            f"{unasked[0][0]}). They answer no user turn, stand in a prompt, or have a weight of 0."
        )
    if ends := [where for where, result in results if result.open_ended]:
        notice(
            f"Chats of {place} that go on behind their last assistant turn: {len(ends)} (first: {ends[0]}). What stands "
            "there is not used."
        )


def _notice_unread(results: list[Parsed], place: str) -> None:
    unread = dict.fromkeys(name for result in results for name in result.layout.unread)
    if unread:
        more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
        notice(f"Columns of {place} that are not read: {', '.join(map(repr, list(unread)[:SHOWN]))}{more}.")


def _notice_repeats(examples: Examples, place: str) -> None:
    if pairs := repeats(examples):
        row, first = pairs[0]
        notice(
            f"{len(pairs)} of {len(examples)} rows in {place} repeat an earlier row (first: "
            f"{row.source or f'row {row.index}'} repeats {first.source or f'row {first.index}'}, "
            f'"{excerpt(row.question or row.answer)}"). All are used, so what stands twice counts twice.'
        )
