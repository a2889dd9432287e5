"""The items of the test bed: how each kind is drawn, and when a text answers it.

Prompts fill a slot of `PROMPT` characters, answers have room in `ANSWER` positions; `testbed.TASKS` names the mix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

PROMPT, ANSWER = 24, 64  # characters
ANCHOR, ANCHOR_AT = "answer is", 44  # of anchored sums; the result follows after a space
LETTERS = "abcdefghijkl"
LARGEST = 19  # number in a sum
LINES = 3  # of work at most
OPERATIONS = ("copy", "flip", "sort", "mix", "mix", "swap", "swap")  # the last two are learnt late
NAMES = (
    "ada", "amir", "anna", "bao", "ben", "carl", "cleo", "dana", "dina", "ebba", "elin", "emil", "farid", "fiona", "gita",
    "hugo", "ida", "igor", "ines", "ivan", "jana", "joel", "kofi", "lars", "lena", "lucia", "maya", "milo", "nadia", "noor",
    "omar", "otto", "petra", "rana", "rosa", "sami", "tara", "uma", "vera", "zoe",
)  # fmt: skip
CITIES = (
    "accra", "athens", "bergen", "berlin", "bogota", "boston", "cairo", "cork", "dakar", "delhi", "dublin", "essen", "fes",
    "gdansk", "geneva", "hanoi", "havana", "izmir", "kyoto", "lagos", "leeds", "lima", "lisbon", "lyon", "malmo", "miami",
    "milan", "nantes", "naples", "odesa", "osaka", "oslo", "paris", "porto", "quito", "riga", "seoul", "tunis", "turin", "york",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One prompt.

    Args:
        task: its kind.
        prompt: PROMPT characters.
        answer: a right one, without the end token; for "mix" and "swap" one of several.
    """

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of items.

    Args:
        name: of it.
        share: of the training rows.
        make: draws an item.
        right: whether a text answers an item; the strict metric.
    """

    name: str
    share: float
    make: Callable[[Random], Item]
    right: Callable[[Item, str], bool]


def exact(item: Item, text: str) -> bool:
    """The answer itself."""
    return text == item.answer


def _work(random: Random, most: int) -> tuple[str, list[str], int]:
    """A chain of sums and differences between 0 and LARGEST: the chain, its worked lines, the result."""
    value = random.randint(1, LARGEST)
    chain, lines = str(value), []
    for _ in range(random.randint(1, most)):
        operand = random.randint(1, 9)
        sign = random.choice(
            [sign for sign, after in (("+", value + operand), ("-", value - operand)) if 0 <= after <= LARGEST]
        )
        after = value + operand if sign == "+" else value - operand
        lines.append(f"{value}{sign}{operand}={after}\n")
        chain += f"{sign}{operand}"
        value = after
    return chain, lines, value


def sums(random: Random) -> Item:
    """Worked lines, and the result behind a #."""
    chain, lines, value = _work(random, LINES)
    return Item("sums", _slot(f"calc {chain}"), "".join(lines) + f"#{value}")


def anchored(random: Random) -> Item:
    """Worked lines, and the result behind `ANCHOR` at its fixed place."""
    chain, lines, value = _work(random, LINES)
    return Item("anchored", _slot(f"find {chain}"), f"{''.join(lines):<{ANCHOR_AT}}{ANCHOR} {value}")


def records(random: Random) -> Item:
    """A record as JSON."""
    name, age, city = random.choice(NAMES), random.randint(10, 99), random.choice(CITIES)
    record = {"name": name, "age": age, "city": city}
    return Item("json", _slot(f"json {name:<7}{age} {city}"), json.dumps(record, separators=(",", ":")))


def lists(random: Random) -> Item:
    """Letters in brackets, after one of `OPERATIONS`."""
    operation = random.choice(OPERATIONS)
    size = random.randint(3, 6)
    letters = random.sample(LETTERS, size + 1)
    items, new = letters[:size], letters[size]
    answer = list(items)
    if operation == "flip":
        answer.reverse()
    elif operation == "sort":
        answer.sort()
    elif operation == "mix":
        while answer == items:
            random.shuffle(answer)
    elif operation == "swap":
        answer[random.randrange(size)] = new
    extra = f"{new}:" if operation == "swap" else "  "
    return Item("lists", _slot(f"{operation:<5}{extra}{','.join(items)}"), f"[{','.join(answer)}]")


def list_is_right(item: Item, text: str) -> bool:
    """Whether a list task is solved. mix: the same items in another order; swap: one item, and only one, became the new letter; else the list itself."""
    operation, new, items = item.prompt[:5].strip(), item.prompt[5], item.prompt[7:].strip().split(",")
    if not (text.startswith("[") and text.endswith("]")):
        return False
    output = text[1:-1].split(",")
    if operation == "mix":
        return sorted(output) == sorted(items) and output != items
    if operation == "swap":
        changed = [(old, now) for old, now in zip(items, output, strict=False) if old != now]
        return len(output) == len(items) and [now for _, now in changed] == [new]
    return text == item.answer


def _slot(text: str) -> str:
    return f"{text:<{PROMPT}}"
