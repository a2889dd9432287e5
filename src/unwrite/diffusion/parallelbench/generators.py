"""What is drawn for one sample of each kind: the fields of its prompt, and what its metric compares with.

A maker takes a `random.Random` and draws in the benchmark's own order, so that a seed gives the same sample as there
(ParallelBench, arXiv 2510.04767, section 4 and appendix D).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from ...errors import MethodError, unknown
from ...runs import parse_json
from .words import LETTERS, TOPICS

MASK_WORD = "[MASK]"  # what stands for a cell in a skeleton
OPERATIONS = (
    "copy", "sort", "sort_fullname", "sort_lastname", "reverse", "shuffle", "insert_index", "insert_random", "remove_index",
    "remove_random", "replace_index", "replace_random", "repeat_each", "repeat_list",
)  # fmt: skip
COUNTS = (2, 3, 4, 5, 6)  # of repetitions


@dataclass(frozen=True)
class Draft:
    """One drawn sample.

    Args:
        inputs: the fields of the prompt.
        answer: the text that is right, or what the metric needs, with one right text under "example" or "result".
        bucket: samples are spread evenly over the values of this: items, or repetitions, or digits.
        items: of a list operation's input.
        cells: items of a list operation's answer.
    """

    inputs: dict[str, Any]
    answer: str | dict[str, Any]
    bucket: int
    items: tuple[str, ...] = ()
    cells: int = 0

    @property
    def gold(self) -> str:
        """One right text."""
        if isinstance(self.answer, str):
            return self.answer
        return str(self.answer.get("example", self.answer.get("result")))


Maker = Callable[[Random], Draft]


def list_text(items: Iterable[Any], quoted: bool = True) -> str:
    """["a", "b"], or [a, b]."""
    return "[" + ", ".join(f'"{item}"' if quoted else str(item) for item in items) + "]"


def skeleton(cells: int) -> str:
    """The list with a mask for every item."""
    return list_text([MASK_WORD] * cells)


def list_operation(operation: str, words: Sequence[str], low: int, high: int) -> Maker:
    """Lists of low to high distinct words. For the repeats these bound the answer's length, not the list's.

    Raises:
        MethodError: an unknown operation, lists that cannot be drawn, words that a list's text could not hold.
    """
    if operation not in OPERATIONS:
        raise MethodError(unknown("operation", operation, OPERATIONS))
    least = 2 if operation in ("shuffle", "remove_index", "remove_random") else 1
    spare = len(words) - operation.startswith(("insert", "replace"))
    if not least <= low <= high <= spare:
        raise MethodError(f"{operation} with {low} to {high} of {len(words)} words; use {least} to {spare}, low first.")
    check_words(tuple(words))
    if operation.startswith("repeat"):
        return lambda random: _repeated(random, operation, words, low, high)
    return lambda random: _operated(random, operation, words, low, high)


@lru_cache(maxsize=8)
def check_words(words: tuple[str, ...]) -> None:
    """Refuses what the text of a list could not hold, and words that are there twice."""
    bad = next((word for word in words if not word or any(sign in word for sign in '",[]')), None)
    if bad is not None:
        raise MethodError(f"the word {bad!r} is empty or holds a quote, comma or bracket. Leave it out.")
    if len(set(words)) < len(words):
        raise MethodError("a word is there twice, so lists could hold it twice. Leave one out.")


def _operated(random: Random, operation: str, words: Sequence[str], low: int, high: int) -> Draft:
    length = random.randint(low, high)
    items = random.sample(words, length)
    while _share_a_part(items):
        items = random.sample(words, length)
    inputs: dict[str, Any] = {"context": list_text(items)}
    kind, _, how = operation.partition("_")
    if kind in ("insert", "replace"):
        taken = set(items)
        inputs["word"] = random.choice([word for word in words if word not in taken])
    result = list(items)
    if kind == "sort":
        result.sort(key=_last_name if how == "lastname" else None)
    elif kind == "reverse":
        result.reverse()
    elif kind == "shuffle":
        while result == items:
            random.shuffle(result)
    elif kind == "insert":
        index = random.randint(0, len(items))
        result.insert(index, inputs["word"])
    elif kind == "remove":
        index = random.randint(0, len(items) - 1)
        result.pop(index)
    elif kind == "replace":
        index = random.randint(0, len(items) - 1)
        result[index] = inputs["word"]
    answer: str | dict[str, Any] = list_text(result)
    if how == "index":
        inputs["index"] = index
    elif how == "random" or kind == "shuffle":
        word = {"word": inputs["word"]} if "word" in inputs else {}
        answer = {"input": items, **word, "example": answer}
    return Draft(inputs, answer, len(items), tuple(items), len(result))


def _repeated(random: Random, operation: str, words: Sequence[str], low: int, high: int) -> Draft:
    count = random.choice(COUNTS)
    items = random.sample(words, random.randint(low, high // count))
    result = [item for item in items for _ in range(count)] if operation == "repeat_each" else items * count
    return Draft({"context": list_text(items), "count": count}, list_text(result), count, tuple(items), len(result))


def _share_a_part(items: Sequence[str]) -> bool:
    """Whether two of several people have a first or a last name in common."""
    parts = list(zip(*(item.split() for item in items), strict=True))
    return len(parts) > 1 and any(len(set(part)) < len(items) for part in parts)


def _last_name(name: str) -> tuple[str, str]:
    return name.split()[-1], name


def domino(low: int = 3, high: int = 12) -> Maker:
    """Two-digit numbers, each beginning with the last digit of the one before; no zeros."""

    def make(random: Random) -> Draft:
        length = random.randint(low, high)
        start = random.randint(1, 9) * 10 + random.randint(1, 9)
        row = [start]
        while len(row) < length:
            row.append(row[-1] % 10 * 10 + random.randint(1, 9))
        inputs = {"length": length, "start": start}
        return Draft(inputs, {**inputs, "example": list_text(row)}, length)

    return make


def arithmetic(operators: Sequence[str] = ("+", "-", "*"), numbers: int = 2, digits: Sequence[int] = (5,)) -> Maker:
    """A chain of operations on `numbers` numbers whose result has about that many digits."""

    def make(random: Random) -> Draft:
        length = random.choice(digits)
        text, value = _chain(random, operators, numbers, length)
        return Draft({"equation": f"{text[1:-1]} = ?"}, {"result": str(value)}, length)

    return make


def _chain(random: Random, operators: Sequence[str], numbers: int, digits: int) -> tuple[str, int]:
    """Text in parentheses, and value."""
    sign = random.choice(operators)
    if numbers > 2:
        text, first = _chain(random, operators, numbers - 1, digits)
    else:
        first = _number(random, digits // 2 if sign == "*" else digits - 1)
        text = str(first)
    second = _number(random, max(digits - len(str(abs(first))), 1) if sign == "*" else digits - 1)
    value = first + second if sign == "+" else first - second if sign == "-" else first * second
    return f"({text} {sign} {second})", value


def _number(random: Random, digits: int) -> int:
    return int("".join(str(random.randint(int(place == 0), 9)) for place in range(digits)))


def cumulative(lengths: Sequence[int] = tuple(range(3, 13))) -> Maker:
    """The running sums of a list of digits."""

    def make(random: Random) -> Draft:
        numbers = random.choices(range(1, 10), k=random.choice(lengths))
        sums = list_text(itertools.accumulate(numbers), quoted=False)
        return Draft({"list": list_text(numbers, quoted=False)}, sums, len(numbers))

    return make


def latin_square(size: int) -> Maker:
    """A square of symbols, each once in every row and column; the example is a cyclic one with rows and columns mixed."""

    def make(random: Random) -> Draft:
        symbols = random.sample((*LETTERS, *map(str, range(10))), size)
        rows = [symbols[shift:] + symbols[:shift] for shift in range(size)]
        random.shuffle(rows)
        columns = list(zip(*rows, strict=True))
        random.shuffle(columns)
        example = "\n".join(",".join(row) for row in zip(*columns, strict=True))
        inputs = {"size": size, "symbols": list_text(symbols, quoted=False)}
        return Draft(inputs, {"symbols": symbols, "example": example}, size)

    return make


def sudoku(given: int = 12) -> Maker:
    """A 4x4 grid with that many of its 16 cells given, 0 for the others, which has one solution."""
    if not 4 <= given <= 15:
        raise MethodError(f"sudoku with {given} cells given; use 4 to 15, fewer are never unique.")

    def make(random: Random) -> Draft:
        while True:
            grid, hidden = random.choice(_grids()), set(random.sample(range(16), 16 - given))
            puzzle = [0 if place in hidden else value for place, value in enumerate(grid)]
            fitting = (all(p in (0, v) for p, v in zip(puzzle, other, strict=True)) for other in _grids())
            if sum(fitting) == 1:
                return Draft({"sudoku": _square(puzzle)}, _square(grid), given)

    return make


@lru_cache(maxsize=1)
def _grids() -> list[tuple[int, ...]]:
    """All 288 filled grids."""
    grids: list[tuple[int, ...]] = [()]
    for row in range(4):
        longer = (grid + line for grid in grids for line in itertools.permutations((1, 2, 3, 4)))
        grids = [grid for grid in longer if _fits(grid, row)]
    return grids


def _fits(grid: tuple[int, ...], row: int) -> bool:
    """Whether the rows down to this one repeat nothing in a column, or in a corner that is full."""
    parts = [grid[column::4] for column in range(4)]
    if row % 2:
        upper, lower = grid[-8:-4], grid[-4:]
        parts += [upper[:2] + lower[:2], upper[2:] + lower[2:]]
    return all(len(set(part)) == len(part) for part in parts)


def _square(grid: Sequence[int]) -> str:
    return "\n".join("".join(map(str, grid[row : row + 4])) for row in range(0, 16, 4))


def sentence(topics: int) -> Maker:
    """Four words from that many topics; the benchmark's own sets were written by a language model."""

    def make(random: Random) -> Draft:
        chosen = random.sample(list(TOPICS), topics)
        words = [word for topic in chosen for word in random.sample(TOPICS[topic], 4 // topics)]
        *first, last = words
        example = f"The words on the card were {', '.join(first)} and {last}."
        return Draft({"words": f"{', '.join(first)}, and {last}"}, {"words": words, "example": example}, 4)

    return make


def parsed(context: str) -> tuple[str, ...]:
    """The items of a list's text; none where it is not one."""
    try:
        items = parse_json(context)
    except ValueError:
        return ()
    return tuple(map(str, items)) if isinstance(items, list) else ()
