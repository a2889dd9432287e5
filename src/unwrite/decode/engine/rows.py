"""The texts of a call while they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .planning.planner import Planner
from .sampling import Sampling
from .tree import DraftTree, Ints

if TYPE_CHECKING:
    from ..base import Drafter

__all__ = ["DecodingRow", "Text", "padded"]


class Text:
    """One row's committed ids, in a buffer that drafters, processors and criteria read without copying.

    Args:
        row: the prompt with its left padding.
        room: tokens that may follow.
        padding: leading ids of the row that are padding.
        missing: ids by which the row is shorter than the batch is wide; they count for lengths alone.
    """

    def __init__(
        self, row: Ints, room: int, device: torch.device | str = "cpu", padding: int = 0, missing: int = 0
    ) -> None:
        self._ids = np.empty(len(row) + room, dtype=np.int64)
        self._ids[: len(row)] = row
        self._tensor = torch.from_numpy(self._ids)[None]
        self.device = torch.device(device)
        self._prompt, self._end, self._padding, self._missing = len(row), len(row), padding, missing

    def append(self, token: int) -> None:
        self._ids[self._end] = token
        self._end += 1

    @property
    def length(self) -> int:
        """Tokens, without padding."""
        return self._end - self._padding

    @property
    def padded_length(self) -> int:
        """The length as `generate` counts it."""
        return self._end + self._missing

    @property
    def ids(self) -> Ints:
        """[length], a view: what drafters and the runtime see."""
        return self._ids[self._padding : self._end]

    @property
    def tensor(self) -> Tensor:
        """[1, padding + length], a view where the model is on the CPU: what processors and criteria see."""
        view = self._tensor[:, : self._end]
        return view if self.device.type == "cpu" else view.to(self.device)

    @property
    def padded(self) -> Ints:
        """[padded_length], as a row of a batch of `generate`; zeros for padding that the prompt came without."""
        return np.concatenate([np.zeros(self._missing, dtype=np.int64), self._ids[: self._end]])

    @property
    def padding(self) -> int:
        """Ids before the first token of `padded`."""
        return self._padding + self._missing

    @property
    def new(self) -> list[int]:
        """The tokens after the prompt."""
        ids: list[int] = self._ids[self._prompt : self._end].tolist()
        return ids


@dataclass
class DecodingRow:
    """One text being written.

    Args:
        deepest: levels that its next draft may have.
        run: plain steps that may follow at a stretch before anything is looked at.
    """

    text: Text
    drafter: Drafter
    planner: Planner
    sampling: Sampling
    done: bool = False
    deepest: int = 0
    run: int = 1

    def root(self) -> DraftTree:
        """Nothing but the last token."""
        return DraftTree.of([int(self.text.ids[-1])], [-1])


def padded(texts: Sequence[Text], length: int) -> Ints:
    """[batch, length] ids as `generate` holds them: padding on the left, and on the right of rows that ended before."""
    ids = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in enumerate(texts):
        own = text.padded[:length]
        ids[row, : len(own)] = own
    return ids
