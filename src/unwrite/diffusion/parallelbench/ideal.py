"""A mask predictor that knows the lists exactly, so that what goes wrong is the sampler's doing alone.

Its logits are ln p(cell = item | prompt, revealed cells) of the uniform distribution over a list operation's right answers
(ParallelBench, arXiv 2510.04767, section 3). A canvas is one token for every thing:

    [operation, index, word, item 1 .. item n ; cell 1 .. cell m],     blank where an operation has no index or word

Shuffle is a formula (an item not yet used is as likely as another); of every other operation all answers are compared with what
is revealed. Where that can no longer become right, the nearest answers count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import MethodError, ModelError, unknown
from .generators import check_words, list_text
from .tasks import TASKS, TaskSample
from .words import LETTERS

NEVER = -1e4  # exp of it is 0, and unlike -inf it may be subtracted
_KINDS: Mapping[str, int] = {  # operation -> cells of the answer beyond the items
    "copy": 0, "sort": 0, "reverse": 0, "shuffle": 0, "insert_index": 1, "insert_random": 1, "remove_index": -1,
    "remove_random": -1, "replace_index": 0, "replace_random": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """What is written for one sample.

    Args:
        prompt: ids.
        length: positions of the answer.
        fixed: {position: id} that are given.
    """

    prompt: list[int]
    length: int
    fixed: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ListTokens:
    """One token for each item: the vocabulary of the ideal model, and of small ones trained on lists.

    Args:
        items: in alphabetical order, none twice.
        longest: indices go from 0 to this.

    Raises:
        MethodError: items out of order, or such that a list's text could not hold them.
    """

    items: tuple[str, ...] = LETTERS
    longest: int = 16

    def __post_init__(self) -> None:
        if list(self.items) != sorted(set(self.items)):
            raise MethodError(
                "the items are not in alphabetical order, or one is there twice. Pass sorted(set(items))."
            )
        check_words(self.items)

    blank = 0
    mask_id = 1

    @property
    def operations(self) -> dict[str, int]:
        """{operation: id}"""
        return {name: 2 + place for place, name in enumerate(_KINDS)}

    @property
    def first_index(self) -> int:
        """The id of index 0."""
        return 2 + len(_KINDS)

    @property
    def first_item(self) -> int:
        """The id of the first item."""
        return self.first_index + self.longest + 1

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.first_item + len(self.items)

    def frame(self, sample: TaskSample) -> Frame:
        """The sample's prompt; all cells of its answer are masks.

        Raises:
            MethodError: no list operation that has one answer length, items that are not in the vocabulary.
        """
        operation = TASKS[sample.task].operation
        if operation == "sort_fullname":
            operation = "sort"
        if operation not in _KINDS:
            raise MethodError(f"{sample.task} is not written in list tokens. Take one of {', '.join(_KINDS)}.")
        word = sample.inputs.get("word")
        return self.prompt(operation, sample.items, word, sample.inputs.get("index"))

    def prompt(self, operation: str, items: Sequence[str], word: str | None = None, index: int | None = None) -> Frame:
        """The same from its parts.

        Raises:
            MethodError: an operation without its word or index, or with one that it has no place for; too few items.
        """
        if operation not in _KINDS:
            raise MethodError(unknown("operation", operation, _KINDS))
        kind, _, how = operation.partition("_")
        least = 2 if kind in ("shuffle", "remove") else 1
        if len(items) < least:
            raise MethodError(f"{operation} of {len(items)} items; use at least {least}.")
        if (word is not None) != (kind in ("insert", "replace")):
            raise MethodError(
                f"{operation} with the word {word!r}; insert and replace take one, and nothing else does."
            )
        if (index is not None) != (how == "index"):
            raise MethodError(f"{operation} with the index {index}; operations that end in _index take one, no others.")
        last = min(self.longest, len(items) - (kind != "insert"))
        if index is not None and not 0 <= index <= last:
            raise MethodError(f"the index {index} is outside 0 to {last}. Move it, or raise ListTokens.longest.")
        place = self.blank if index is None else self.first_index + index
        ids = [self.operations[operation], place, self.blank if word is None else self._id(word), *map(self._id, items)]
        return Frame(ids, len(items) + _KINDS[operation])

    def _id(self, item: str) -> int:
        if item not in self.items:
            raise MethodError(
                f"{item!r} has no token of its own. Cells hold one token each: use letters, or add it to the items."
            )
        return self.first_item + self.items.index(item)

    def ids(self, items: Sequence[str]) -> list[int]:
        """Ids of an answer's items."""
        return [self._id(item) for item in items]

    def text(self, ids: Sequence[int]) -> str:
        """The list of these ids; "?" stands for what is no item."""
        return list_text(self.items[i - self.first_item] if i >= self.first_item else "?" for i in ids)


@dataclass(eq=False)
class IdealListModel:
    """What `MaskPredictor(model, model.tokens.mask_id, probe=False)` wraps.

    Args:
        tokens: the vocabulary; the operation and everything else is read from the canvas, row by row.
        noise: standard deviation of what is added to the logits, with the mean 0, to break ties; drawn anew in every call.
        changed: leave the unchanged list out of Shuffle's answers, as the benchmark's metric does. The closed forms keep it.
        seed: of the noise.
    """

    tokens: ListTokens = ListTokens()
    noise: float = 1e-6
    changed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1e-3:
            raise MethodError(f"noise is {self.noise}; use 0 to 1e-3, so that it breaks ties and nothing else.")
        self.config = SimpleNamespace(vocab_size=self.tokens.size)
        self._generator = torch.Generator().manual_seed(self.seed)

    # It takes no attention mask: rows of different lengths come to it one length at a time.
    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        """input_ids: [rows, length]. Returns .logits [rows, length, size] in float64; zeros at the prompt."""
        logits = torch.zeros(*input_ids.shape, self.tokens.size, dtype=torch.float64)
        names = {place: name for name, place in self.tokens.operations.items()}
        for place in input_ids[:, 0].unique().tolist():
            if place not in names:
                raise ModelError(
                    f"a row begins with {place}, which is no list operation. Write prompts with ListTokens."
                )
            rows = input_ids[:, 0] == place
            n, odd = divmod(input_ids.shape[1] - 3 - _KINDS[names[place]], 2)
            if odd or n < 1:
                raise ModelError(
                    f"{names[place]} has no list that makes {input_ids.shape[1]} columns. Check gen_length."
                )
            cells = self._conditionals(names[place], input_ids[rows], n).log().clamp(min=NEVER)  # [rows, m, size]
            if self.noise:
                cells += self.noise * torch.randn(cells.shape, dtype=torch.float64, generator=self._generator)
            logits[rows, 3 + n :] = cells
        return SimpleNamespace(logits=logits)

    def _conditionals(self, operation: str, canvas: Tensor, n: int) -> Tensor:
        """[rows, m, size] probabilities, for rows of one operation."""
        items, cells = canvas[:, 3 : 3 + n], canvas[:, 3 + n :]
        if operation == "shuffle":
            return self._shuffled(items, cells)
        answers = self._answers(
            operation, items, canvas[:, 2], canvas[:, 1] - self.tokens.first_index
        )  # [rows, answers, m]
        agree = (answers == cells[:, None]).sum(-1)  # a mask agrees with nothing
        weight = (agree == agree.amax(1, keepdim=True)).double()
        weight = weight / weight.sum(1, keepdim=True)
        p = torch.zeros(*cells.shape, self.tokens.size, dtype=torch.float64)
        return p.scatter_add_(2, answers.transpose(1, 2), weight[:, None].expand(-1, cells.shape[1], -1))

    def _answers(self, operation: str, items: Tensor, word: Tensor, index: Tensor) -> Tensor:
        """[rows, answers, m] every right answer. items: [rows, n]; word, index: [rows]."""
        kind, _, how = operation.partition("_")
        if kind == "copy":
            return items[:, None]
        if kind == "reverse":
            return items.flip(1)[:, None]
        if kind == "sort":
            return items.sort(1).values[:, None]
        n = items.shape[1]
        m = n + _KINDS[operation]
        where, cell = torch.arange(max(n, m))[:, None], torch.arange(m)  # [answers, 1], [m]: one answer for each place
        if kind == "insert":
            source = (cell - (cell > where).long()).clamp(max=n - 1)
        elif kind == "remove":
            source = cell + (cell >= where).long()
        else:
            source = cell.expand(n, m)
        answers = items[:, source]
        if kind != "remove":
            answers = torch.where(cell == where, word[:, None, None], answers)
        if how == "random":
            return answers
        chosen = index.clamp(0, answers.shape[1] - 1)
        return answers[torch.arange(len(items)), chosen][:, None]

    def _shuffled(self, items: Tensor, cells: Tensor) -> Tensor:
        """[rows, m, size]: items not yet used are equally likely at every cell."""
        used = F.one_hot(cells, self.tokens.size).sum(1)
        left = (F.one_hot(items, self.tokens.size).sum(1) - used).clamp(min=0).double()  # [rows, size]
        p = left[:, None].expand(-1, cells.shape[1], -1)
        if self.changed:
            # Of the (masks - 1)! ways to go on from each choice, one may be the list itself.
            masks = (cells == self.tokens.mask_id).sum(1)
            alike = ((cells == items) | (cells == self.tokens.mask_id)).all(1)
            ways = torch.lgamma(masks.double().clamp(min=1)).exp()
            itself = F.one_hot(items, self.tokens.size).double() * alike[:, None, None]
            fewer = (p * ways[:, None, None] - itself).clamp(min=0)
            p = torch.where(fewer.sum(-1, keepdim=True) > 0.5, fewer, p)
        return p / p.sum(-1, keepdim=True).clamp(min=0.5)
