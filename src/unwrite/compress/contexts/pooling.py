"""Consecutive tokens in groups of nearly equal size, and the mean of each group.

    h_pool = P h,   P[j, t] = 1 / |group j| where token t is in group j, else 0       (ARC-Encoder, arXiv 2510.20535)

A row may hold several texts one after another; groups never cross from one into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...errors import MethodError, setting

__all__ = ["ContextGroups", "group_sizes"]

PADDING = 0  # the number of no text


def group_sizes(length: int, factor: int = 8, slots: int | None = None) -> list[int]:
    """How many consecutive tokens each vector stands for: sizes that differ by at most 1, the larger ones first.

    Args:
        length: tokens of the text, >= 1.
        factor: the most tokens a group has, >= 1; a text shorter than that is one group.
        slots: exactly so many groups instead, or one a token where there are fewer tokens; None for `factor`.

    Raises:
        MethodError: a length, factor or number of groups below 1.

    >>> group_sizes(17, 8), group_sizes(9, 8), group_sizes(5, 8), group_sizes(9, slots=4)
    ([6, 6, 5], [5, 4], [5], [3, 2, 2, 2])
    """
    check_factor(factor, slots)
    if length < 1:
        raise MethodError(f"a text of {length} tokens has nothing to compress. Leave empty texts out.")
    count = min(slots, length) if slots is not None else -(-length // factor)
    size, larger = divmod(length, count)
    return [size + 1] * larger + [size] * (count - larger)


def check_factor(factor: int, slots: int | None) -> None:
    """Refuses a pooling factor or a number of groups that has no meaning."""
    if factor < 1:
        raise MethodError(
            f"{setting('pooling_factor', factor)} has no meaning. A vector stands for at least one token: take 4 or 8."
        )
    if slots is not None and slots < 1:
        raise MethodError(f"{setting('slots', slots)} has no meaning. Take at least one vector, or None.")


@dataclass(frozen=True)
class ContextGroups:
    """Which tokens of a batch are averaged into which vector.

    Args:
        group: [batch, tokens], the vector each token goes into; `vectors` for padding.
        position: [batch, tokens], each token's place in its text, from 0.
        text: [batch, vectors], the number of the text each vector is of; 0 for padding.
        slot: [batch, vectors], each vector's place among those of its text, from 0.
        end: [batch, vectors], the place of a group's last token in its text.
        size: [batch, vectors], tokens of each group; 1 for padding.
        counts: vectors of each text, in order of rows and of texts within a row.
    """

    group: Tensor
    position: Tensor
    text: Tensor
    slot: Tensor
    end: Tensor
    size: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, texts: Tensor, factor: int, slots: int | None = None) -> ContextGroups:
        """The groups of a batch.

        Args:
            texts: [batch, tokens], the number of the text a token is of, 0 for padding. The tokens of a text stand together.
            factor, slots: as in `group_sizes`.

        Raises:
            MethodError: a row without a text, or with two texts of one number.
        """
        rows = [_runs(row) for row in texts.tolist()]
        tables = [_row(runs, factor, slots) for runs in rows]
        widest = max(len(table["text"]) for table in tables)
        for table in tables:
            missing = widest - len(table["text"])
            for name, fill in (("text", PADDING), ("slot", 0), ("end", 0), ("size", 1)):
                table[name] += [fill] * missing
            table["group"] = [widest if one < 0 else one for one in table["group"]]

        def column(name: str) -> Tensor:
            return torch.tensor([table[name] for table in tables], device=texts.device)

        return cls(
            group=column("group"),
            position=column("position"),
            text=column("text"),
            slot=column("slot"),
            end=column("end"),
            size=column("size"),
            counts=tuple(
                len(group_sizes(length, factor, slots)) for runs in rows for number, length in runs if number != PADDING
            ),
        )

    @property
    def vectors(self) -> int:
        """Vectors of the row that has most of them."""
        return self.text.shape[1]

    def mean(self, states: Tensor) -> Tensor:
        """The mean of each group, summed in float32 at least.

        Args:
            states: [batch, tokens, dim].

        Returns:
            [batch, vectors, dim] of the same type; zeros for padding.
        """
        exact = states.to(torch.promote_types(states.dtype, torch.float32))
        total = exact.new_zeros(states.shape[0], self.vectors + 1, states.shape[2])  # the last one takes the padding
        total = total.scatter_add(1, self.group[..., None].expand_as(exact), exact)
        return (total[:, :-1] / self.size[..., None]).to(states.dtype)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """The vectors of each text, [groups of the text, dim] each, of [batch, vectors, dim]."""
        return list(vectors[self.text != PADDING].split(self.counts))


def _runs(row: Sequence[int]) -> list[tuple[int, int]]:
    """(number of the text, tokens) of a row, in order."""
    runs = [(number, len(list(members))) for number, members in groupby(row)]
    numbers = [number for number, _ in runs if number != PADDING]
    if not numbers:
        raise MethodError("a row holds no text, only padding. Leave it out.")
    if len({*numbers}) < len(numbers):
        raise MethodError("two texts of a row have one number. Number the texts of a row 1, 2, ..., and padding 0.")
    return runs


def _row(runs: Sequence[tuple[int, int]], factor: int, slots: int | None) -> dict[str, list[int]]:
    """Columns of one row; -1 for the group of padding."""
    table: dict[str, list[int]] = {name: [] for name in ("group", "position", "text", "slot", "end", "size")}
    for number, length in runs:
        table["position"] += range(length)
        if number == PADDING:
            table["group"] += [-1] * length
            continue
        end = -1
        for slot, size in enumerate(group_sizes(length, factor, slots)):
            table["group"] += [len(table["text"])] * size
            end += size
            for name, value in (("text", number), ("slot", slot), ("end", end), ("size", size)):
                table[name].append(value)
    return table
