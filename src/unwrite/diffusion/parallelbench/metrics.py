"""What judges an answer: 0 or 1, as it was asked for (strict) or as it can be understood (loose).

Loosely a list is what stands between the last "[" and the next "]", split at commas, quotes and spaces taken off. Strictly both
brackets are there, items are split at ", ", and each is in plain double quotes. (ParallelBench, arXiv 2510.04767)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ...errors import MethodError, unknown
from .tasks import TASKS, TaskSample

Answer = str | Mapping[str, Any]
Grammar = Callable[[str], bool]


def items_of(text: str, strict: bool = False) -> list[str] | None:
    """The items of a list in a text; None where there is strictly none."""
    if strict and ("[" not in text or "]" not in text.rsplit("[", 1)[1]):
        return None
    inner = text.rsplit("[", 1)[-1].split("]", 1)[0]
    if not strict:
        return [item.strip('" ') for item in inner.split(",") if item.strip()]
    items = inner.split(", ")
    if any(not re.fullmatch(r'"[^"]*"', item, re.DOTALL) for item in items):
        return None
    return [item[1:-1] for item in items]


def match(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The list is the right one."""
    return items_of(prediction, strict) == items_of(str(answer))


def match_numbers(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The list of numbers is the right one; strictly written as [1, 2], without quotes."""
    if not strict:
        return items_of(prediction) == items_of(str(answer))
    return prediction.strip() == str(answer)


def shuffle(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The same items in another order."""
    guess, items = items_of(prediction, strict), list(_of(answer)["input"])
    return guess is not None and sorted(guess) == sorted(items) and guess != items


def insert_random(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """Without the word, once, it is the list that was given."""
    guess, answer = items_of(prediction, strict), _of(answer)
    if guess is None or answer["word"] not in guess:
        return False
    guess.remove(answer["word"])
    return guess == list(answer["input"])


def remove_random(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """One item is gone, and the others are in their order."""
    guess, items = items_of(prediction, strict), list(_of(answer)["input"])
    if guess is None or len(guess) != len(items) - 1:
        return False
    gone = set(items) - set(guess)
    return [item for item in items if item not in gone] == guess


def replace_random(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The word stands in the place of one item, and nothing else has changed."""
    guess, answer = items_of(prediction, strict), _of(answer)
    items, word = list(answer["input"]), answer["word"]
    if guess is None or len(guess) != len(items) or word not in guess:
        return False
    items[guess.index(word)] = word
    return guess == items


def latin_square(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The first n lines that hold every symbol once make a Latin square; strict or not."""
    symbols = set(_of(answer)["symbols"])
    lines = [[cell.strip() for cell in line.split(",")] for line in prediction.split("\n")]
    rows = [line for line in lines if len(line) == len(symbols) and set(line) == symbols][: len(symbols)]
    return len(rows) == len(symbols) and all(set(column) == symbols for column in zip(*rows, strict=True))


def sudoku(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The four lines are the solution's; loosely spaces, commas and lines that don't hold four digits are skipped."""
    lines = [line.strip() for line in prediction.split("\n") if line.strip()]
    if not strict:
        digits = ["".join(re.findall(r"\d", line)) for line in lines]
        lines = [line for line in digits if len(line) == 4]
    return lines == str(answer).split("\n")


def domino(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """A chain of the right length from the right start; loosely all numbers of the text are its list."""
    answer = _of(answer)
    numbers = items_of(prediction, True) if strict else re.findall(r"\d+", prediction)
    if (
        numbers is None
        or len(numbers) != answer["length"]
        or any(not re.fullmatch("[1-9][0-9]", one) for one in numbers)
    ):
        return False
    return numbers[0] == str(answer["start"]) and all(one[1] == two[0] for one, two in pairwise(numbers))


def math_op(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """The text is the number; loosely the number is in it. Commas between digits don't matter."""
    result = str(_of(answer)["result"])
    text = prediction.replace(",", "").strip()
    return text == result if strict else result in re.findall(r"-?\d+", text)


def inclusion(prediction: str, answer: Answer, strict: bool = False) -> bool:
    """All words are in the text. Strict or not, and not the benchmark's score: see `sentence`."""
    return all(word in prediction for word in _of(answer)["words"])


METRICS: Mapping[str, Callable[[str, Answer, bool], bool]] = {
    metric.__name__: metric
    for metric in (
        match, match_numbers, shuffle, insert_random, remove_random, replace_random, latin_square, sudoku, domino, math_op, inclusion,
    )
}  # fmt: skip


def score(task: str | TaskSample, prediction: str, answer: Answer | None = None, strict: bool = False) -> float:
    """1.0 for a right answer, else 0.0.

    Args:
        task: a sample, or a task's name with the sample's `answer`.
        prediction: the text that was written.
        answer: what it is compared with.
        strict: as it was asked for, instead of as it can be understood.

    Raises:
        MethodError: an unknown task, a name without an answer.
    """
    name = task.task if isinstance(task, TaskSample) else task
    if name not in TASKS:
        raise MethodError(unknown("task", name, TASKS))
    if answer is None:
        if not isinstance(task, TaskSample):
            raise MethodError(f"{name} was given without an answer. Pass the sample, or its answer.")
        answer = task.answer
    return float(METRICS[TASKS[name].metric](prediction, answer, strict))


def sentence(prediction: str, answer: Answer, grammar: Grammar) -> dict[str, float]:
    """The benchmark's score of words_to_sentence: all words are there, and the grammar is right.

    Args:
        prediction: the text.
        answer: the sample's.
        grammar: says whether a text has no mistake, such as `language_tool()`.
    """
    both = {
        "inclusion": inclusion(prediction, answer),
        "grammar": bool(prediction.strip()) and grammar(prediction.strip()),
    }
    return {**{name: float(value) for name, value in both.items()}, "score": float(all(both.values()))}


def language_tool() -> Grammar:
    """LanguageTool's judgement, which the benchmark uses. It needs Java and the package language_tool_python.

    Raises:
        MethodError: the package is not there.
    """
    try:
        from language_tool_python import LanguageTool
    except ImportError:
        raise MethodError(
            "language_tool_python is not installed. Install it (it needs Java), pass another grammar check, or use the metric "
            "'inclusion', which asks for none."
        ) from None
    tool = LanguageTool("en-US")
    return lambda text: not tool.check(text)


def grade(samples: Sequence[TaskSample], predictions: Sequence[str], strict: bool = False) -> float:
    """Percent of the answers that are right.

    Raises:
        MethodError: none, or not as many of both.
    """
    if not samples or len(samples) != len(predictions):
        raise MethodError(f"{len(samples)} samples and {len(predictions)} answers. Give one answer for each sample.")
    right = [score(one, text, strict=strict) for one, text in zip(samples, predictions, strict=True)]
    return 100 * sum(right) / len(right)


def _of(answer: Answer) -> Mapping[str, Any]:
    if isinstance(answer, str):
        raise MethodError(
            f"the answer is the text {answer[:40]!r}, and this metric needs its parts. Pass the sample's own."
        )
    return answer
