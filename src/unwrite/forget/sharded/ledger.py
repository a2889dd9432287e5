"""Which record lies in which slice, what every increment saw, and what was deleted: files that a kill leaves whole.

    plan.json        settings, orders, the base's hash; written once
    records.json     {record: [shard, slice, content hash]}; written once
    deletions.json   every deletion, in order; only ever longer
    nodes/<shard>-<slices>/    one increment: its tensors, and node.json, which says what it saw

Nothing says of an increment that it is switched off. It is active while the hash of the rows it saw is that of the rows there are
now in its slices, so the one write of deletions.json deletes, and what was trained again on the rest is active again. Then the
files of what is off are removed; a kill between the two is made up for when the folder is next opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ...errors import DataError, RunError, setting
from ...runs import Malformed, claimed, hash_json, parse_json, read_json, write_json, write_text
from ...runs.atomic import left_behind
from .nodes import AGAIN, NodeNote, node_name, read_increment
from .orders import Order, prefixes

__all__ = ["Ledger", "PlacedRecord", "ShardPlan", "placed", "shards_of"]

VERSION = 1


@dataclass(frozen=True)
class PlacedRecord:
    """Where a record lies.

    Args:
        shard, slice: its place.
        content: a hash of what it says.
    """

    shard: int
    slice: int
    content: str


def placed(record: str, seed: int, n_shards: int, n_slices: int) -> tuple[int, int]:
    """(shard, slice) of a record, by its name and the seed alone: no other record has a part in it."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{record}".encode()).digest()[:8], "big")
    return number % n_shards, number // n_shards % n_slices


@dataclass(frozen=True)
class ShardPlan:
    """All that was decided before training.

    Args:
        method: the class that planned.
        n_shards, n_slices: how the records are divided.
        orders: of the slices of every shard.
        base: hash of the model that all increments stand on.
        settings: what the training depends on, as JSON values.
        records: every record's place.
    """

    method: str
    n_shards: int
    n_slices: int
    orders: tuple[Order, ...]
    base: str
    settings: Mapping[str, Any]
    records: Mapping[str, PlacedRecord]

    def described(self) -> dict[str, Any]:
        """As plan.json holds it: the records by their hash."""
        return {
            "version": VERSION,
            "method": self.method,
            "n_shards": self.n_shards,
            "n_slices": self.n_slices,
            "orders": [list(order) for order in self.orders],
            "base": self.base,
            "settings": dict(self.settings),
            "records": hash_json(self.rows()),
        }

    def rows(self) -> dict[str, list[Any]]:
        """As records.json holds them."""
        return {name: [one.shard, one.slice, one.content] for name, one in self.records.items()}

    @cached_property
    def hash(self) -> str:
        """Of all of it."""
        return hash_json(self.described())

    @cached_property
    def prefixes(self) -> list[Order]:
        """The stages of every shard, each behind those it stands on."""
        return prefixes(self.orders)


class Ledger:
    """The ledger of one folder.

    Args:
        folder: of the training.
        plan: what was decided before.
    """

    def __init__(self, folder: Path, plan: ShardPlan) -> None:
        self.folder, self.plan = folder, plan
        self.notes: dict[tuple[int, Order], NodeNote] = {}
        self.deleted: dict[str, int] = {}  # record: number of its deletion, from 0
        self.deletions: list[dict[str, Any]] = []
        self._read: tuple[int, int] | None = None
        self._members: dict[tuple[int, int], list[str]] = {}
        for name in sorted(plan.records):
            one = plan.records[name]
            self._members.setdefault((one.shard, one.slice), []).append(name)
        self._digests: dict[tuple[int, int, int], str] = {}

    @classmethod
    def create(cls, folder: Path, plan: ShardPlan) -> Self:
        """Begins a ledger; what a killed beginning left is written anew."""
        write_text(folder / "records.json", _one_a_line(plan.rows()))
        write_json(folder / "plan.json", plan.described())
        return cls(folder, plan)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The ledger of a folder, once plan, records and increments agree.

        Raises:
            RunError: there is none, or they don't agree; it names the file.
        """
        file = folder / "plan.json"
        if not file.is_file():
            raise RunError(f"{folder} holds no sharded training (no plan.json). Fit into it first.")
        told = read_json(file, RunError, AGAIN)
        if told.get("version") != VERSION:
            raise RunError(f"{file} is of version {told.get('version')!r:.20}; this unwrite reads {VERSION}.")
        rows = read_json(folder / "records.json", RunError, AGAIN)
        try:
            records = {name: PlacedRecord(*row) for name, row in rows.items()}
            orders = tuple(tuple(order) for order in told["orders"])
            names = ("method", "n_shards", "n_slices", "base", "settings")
            plan = ShardPlan(orders=orders, records=records, **{name: told[name] for name in names})
        except (KeyError, TypeError) as error:
            raise RunError(f"{file} or records.json beside it is damaged ({error}). {AGAIN}") from None
        if plan.described() != told:
            raise RunError(f"{folder / 'records.json'} is not the one that {file} was written with. {AGAIN}")
        ledger = cls(folder, plan)
        ledger.refresh()
        if ledger.remnants():
            with claimed(folder):
                ledger.finish()
        ledger.check()
        return ledger

    def refresh(self) -> None:
        """Reads deletions that another process has noted since, and the notes of increments."""
        file = self.folder / "deletions.json"
        if file.is_file() and (seen := (file.stat().st_mtime_ns, file.stat().st_size)) != self._read:
            try:
                deletions = parse_json(file.read_bytes())
                self.deleted = {name: at for at, one in enumerate(deletions) for name in one["records"]}
                if not {*self.deleted} <= self.plan.records.keys() or len(deletions) < len(self.deletions):
                    raise ValueError("it is of other records")
            except (Malformed, ValueError, KeyError, TypeError) as error:
                raise RunError(f"{file} is damaged ({error}). {AGAIN}") from None
            self.deletions, self._read = deletions, seen
        home = self.folder / "nodes"
        there = {path.name: path for path in home.iterdir() if path.name[0] != "."} if home.is_dir() else {}
        known = {node_name(*key): note for key, note in self.notes.items()}
        notes = [known.get(name) or NodeNote.read(path) for name, path in sorted(there.items())]
        self.notes = {note.key: note for note in notes}

    def remaining(self, shard: int, part: int, deletions: int | None = None) -> list[str]:
        """The records of a slice that are not deleted, by name.

        Args:
            deletions: as of so many; None for all.
        """
        until = len(self.deletions) if deletions is None else deletions
        return [
            name
            for name in self._members.get((shard, part), [])
            if self.deleted.get(name, len(self.deletions)) >= until
        ]

    def digest(self, shard: int, part: int, deletions: int | None = None) -> str:
        """A hash of a slice's remaining records and their contents."""
        key = (shard, part, len(self.deletions) if deletions is None else deletions)
        if key not in self._digests:
            self._digests[key] = hash_json([[one, self.plan.records[one].content] for one in self.remaining(*key)])
        return self._digests[key]

    def saw(self, shard: int, prefix: Order, deletions: int | None = None) -> dict[str, str]:
        """What an increment on these slices sees."""
        return {str(part): self.digest(shard, part, deletions) for part in prefix}

    def active(self, shard: int) -> list[Order]:
        """The stages of a shard that saw no deleted record, each with all that it stands on; in the plan's order."""
        alive: dict[Order, str] = {(): ""}
        for prefix in self.plan.prefixes:
            note = self.notes.get((shard, prefix))
            if note is not None and note.saw == self.saw(shard, prefix) and alive.get(prefix[:-1]) == note.parent:
                alive[prefix] = note.weights
        return [prefix for prefix in alive if prefix]

    def missing(self, shard: int) -> list[Order]:
        """The stages of a shard to train, in order; none that would see an empty slice."""
        alive = {*self.active(shard)}
        empty = {part for part in range(self.plan.n_slices) if not self.remaining(shard, part)}
        return [prefix for prefix in self.plan.prefixes if prefix not in alive and not empty & {*prefix}]

    def served(self, shard: int) -> Order | None:
        """The longest active stage, the best on the validation rows among equals; None where there is none."""

        def rank(prefix: Order) -> tuple[int, float]:
            score = self.notes[shard, prefix].score
            return len(prefix), float("-inf") if score is None else score

        return max(self.active(shard), key=rank, default=None)

    def check_records(self, names: Collection[str]) -> None:
        """Refuses records that nobody knows, that are deleted, or that are named twice.

        Raises:
            DataError: it names the first.
        """
        if not names:
            raise DataError("no records are given to delete. Name at least one.")
        listed = list(names)
        if unknown := [name for name in listed if name not in self.plan.records]:
            raise DataError(
                f"{len(unknown)} of {len(listed)} records are in no slice (first: {unknown[0]!r:.60}). Take names from "
                f"{self.folder / 'records.json'}."
            )
        if gone := [name for name in listed if name in self.deleted]:
            when = self.deletions[self.deleted[gone[0]]].get("when")
            raise DataError(
                f"{len(gone)} of {len(listed)} records are deleted already (first: {gone[0]!r:.60}, on {when}). Leave them out."
            )
        if len({*listed}) < len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise DataError(f"the record {twice!r:.60} is named more than once. Name each once.")

    def delete(self, names: Sequence[str]) -> list[tuple[int, Order]]:
        """Notes a deletion and removes what saw the records; gives the stages that are off by it.

        Raises:
            DataError: as `check_records`; nothing is changed.
            RunError: another process trains or deletes in this folder.
        """
        with claimed(self.folder):
            self.refresh()
            self.check_records(names)
            before = {(shard, prefix) for shard in range(self.plan.n_shards) for prefix in self.active(shard)}
            entry = {"records": sorted(names), "when": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(self.folder / "deletions.json", [*self.deletions, entry])
            self.refresh()
            after = {(shard, prefix) for shard in range(self.plan.n_shards) for prefix in self.active(shard)}
            self.finish()
        return sorted(before - after)

    def remnants(self) -> list[Path]:
        """What is on the disk and has seen a deleted record, or may have: increments, and what a killed training left."""
        stale = [note for note in self.notes.values() if note.saw != self.saw(*note.key) and self._explained(note)]
        paths = [self.folder / "nodes" / node_name(*note.key) for note in stale]
        hit = {*shards_of(self.deleted, self.plan)}
        current = {
            self.partial(shard, prefix).name for shard in range(self.plan.n_shards) for prefix in self.plan.prefixes
        }
        for place in (self.folder / "partial", self.folder / "nodes"):
            for path in place.iterdir() if place.is_dir() else ():
                if path.name not in current and (place.name == "partial" or path.name[0] == ".") and left_behind(path):
                    shard, _, parts = path.name.lstrip(".").partition("-")
                    slices = [part for part in parts.partition("-")[0].split(".") if part.isdigit()]
                    if shard.isdigit() and any((int(shard), int(part)) in hit for part in slices):
                        paths.append(path)
        return paths

    def partial(self, shard: int, prefix: Order) -> Path:
        """Where a stage's training keeps its epochs, by what it sees."""
        return self.folder / "partial" / f"{node_name(shard, prefix)}-{hash_json(self.saw(shard, prefix))}"

    def _explained(self, note: NodeNote) -> bool:
        """Whether an increment saw what there was to see when it was trained."""
        return dict(note.saw) == self.saw(*note.key, note.deletions)

    def finish(self) -> None:
        """Removes the files of what deletions have switched off; the folder must be claimed."""
        for path in self.remnants():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.refresh()

    def check(self) -> None:
        """Refuses increments that are not those the ledger is of.

        Raises:
            RunError: one of another plan, of other records, on another increment, or changed since.
        """
        for key, note in self.notes.items():
            name = self.folder / "nodes" / node_name(*key)
            below = self.notes.get((note.shard, note.prefix[:-1]))
            wrong = {
                "it is of another plan": note.plan != self.plan.hash,
                "the plan has no such stage": note.prefix not in self.plan.prefixes or note.shard >= self.plan.n_shards,
                "it saw other records than the ledger has": not self._explained(note),
                "it stands on another increment": below is not None and below.weights != note.parent,
            }
            if why := [words for words, holds in wrong.items() if holds]:
                raise RunError(f"{name} doesn't match its ledger: {why[0]}. {AGAIN}")
            read_increment(self.folder, note)

    def check_rows(self, ids: Sequence[str], contents: Sequence[str]) -> None:
        """Refuses rows that aren't the plan's; deleted ones may be missing.

        Raises:
            DataError: it names the first.
        """
        given = dict(zip(ids, contents, strict=True))
        expected = {name: one.content for name, one in self.plan.records.items()}
        for name in dict.fromkeys([*given, *expected]):
            if name not in expected or (name not in self.deleted and given.get(name) != expected[name]):
                what = (
                    "is new" if name not in expected else "is missing" if name not in given else "says something else"
                )
                raise DataError(
                    f"the record {name!r:.60} {what}, and {self.folder} was planned for others. Give the same rows, or fit "
                    f"into another {setting('folder')}."
                )


def _one_a_line(rows: Mapping[str, list[Any]]) -> str:
    """A JSON object, a record a line, so that a person and `grep` find one."""

    def lines() -> Iterator[str]:
        for name in sorted(rows):
            yield f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(rows[name], ensure_ascii=False)}"

    return "{\n" + ",\n".join(lines()) + "\n}\n"


def shards_of(names: Iterable[str], plan: ShardPlan) -> list[tuple[int, int]]:
    """(shard, slice) of each record, sorted, each once."""
    return sorted({(plan.records[name].shard, plan.records[name].slice) for name in names})
