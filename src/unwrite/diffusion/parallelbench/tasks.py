"""The benchmark's tasks by name, and their samples.

    waiting_line/<op>, waiting_line_n15/<op>     queues of people, 3 to 6 or 15 of them
    letters/<op>, words/<op>, letters_n6/<op>..  the same operations on plain items, 6 to 15 or exactly 6, 8, .. 16
    puzzle/latin_square_n3..5, sudoku_n4_12      squares
    words_to_sentence/easy, medium, hard         a sentence with four words in it
    extras/domino, math_op_*, cumsum             numbers

A task's seed is (sha256 of its own name + offset) mod 65535, as in ParallelBench (arXiv 2510.04767); the texts of the prompts
and the words are unwrite's. What the benchmark sorts "by last name" it judges by the whole name: `sort_fullname` asks for and
judges that, `sort_lastname` the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from ...errors import DataError, MethodError, unknown
from ...runs import parse_json
from . import generators as make
from .generators import COUNTS, Draft, Maker
from .words import LETTERS, WORDS, names

Split = Literal["test", "train"]
OFFSETS: Mapping[str, int] = {"test": 42, "train": 123}
SAMPLES: Mapping[str, int] = {"test": 100, "train": 30_000}


@dataclass(frozen=True)
class WritingTask:
    """A kind of samples.

    Args:
        name: family and own name, with a slash between them.
        metric: name of what judges it, see `score`.
        prompt: template with the fields of the drafts.
        maker: draws a sample.
        buckets: values that samples are spread over evenly.
        seed_name: what the seed is made of.
        one_shot: whether the test prompt shows another sample with its answer first.
        tokens: generated positions that an answer gets.
        samples: in the test split, where not 100.
        operation: of a list, else empty.
    """

    name: str
    metric: str
    prompt: str
    maker: Maker
    buckets: tuple[int, ...]
    seed_name: str
    one_shot: bool = False
    tokens: int = 64
    samples: int | None = None
    operation: str = ""


@dataclass(frozen=True)
class TaskSample:
    """One prompt and what judges its answer.

    Args:
        task: the task's name.
        messages: of the chat, the last from the user.
        answer: see `Draft`.
        inputs: the prompt's fields.
        size: the bucket.
        items: of a list operation's input.
        cells: items of its answer.
    """

    task: str
    messages: tuple[Mapping[str, str], ...]
    answer: str | Mapping[str, Any]
    inputs: Mapping[str, Any]
    size: int
    items: tuple[str, ...] = ()
    cells: int = 0

    @property
    def gold(self) -> str:
        """One right text."""
        return Draft({}, self.answer if isinstance(self.answer, str) else dict(self.answer), 0).gold

    @property
    def skeleton(self) -> str | None:
        """The answer of a list operation with a mask for every item; None for other tasks."""
        return make.skeleton(self.cells) if self.cells else None


def seed_of(name: str, offset: int = OFFSETS["test"]) -> int:
    """The seed of a task's own name, the part after the slash."""
    return (int(hashlib.sha256(name.encode()).hexdigest(), 16) + offset) % 65535


def load(
    name: str,
    split: Split = "test",
    samples: int | None = None,
    *,
    offset: int | None = None,
    file: str | Path | None = None,
    prompt: str | None = None,
) -> list[TaskSample]:
    """The samples of a task, in order of size.

    Args:
        name: see `TASKS`.
        split: "test", or "train" with other seeds and no examples in the prompts.
        samples: how many; None for 100 (sudoku 108), or 30,000 to train on.
        offset: added to the seed; None for the split's own.
        file: a file of samples in the benchmark's format (lines of JSON) to read instead of drawing.
        prompt: another template, with the same fields.

    Raises:
        MethodError: an unknown task or split, samples that don't spread evenly.
        DataError: a file that is no such file.
    """
    if name not in TASKS:
        raise MethodError(unknown("task", name, TASKS))
    if split not in OFFSETS:
        raise MethodError(unknown("split", split, OFFSETS))
    task = TASKS[name]
    template = task.prompt if prompt is None else prompt
    if file is not None:
        return [_sample(task, template, draft, shown) for draft, shown in _read(task, Path(file))[:samples]]
    if samples is None:
        samples = task.samples if task.samples is not None and split == "test" else SAMPLES[split]
    if samples < 1 or samples % len(task.buckets):
        raise MethodError(
            f"{name} spreads its samples over {len(task.buckets)} sizes, and {samples} is no multiple. Take one that is."
        )
    random = Random(seed_of(task.seed_name, OFFSETS[split] if offset is None else offset))
    filled: dict[int, list[Draft]] = {bucket: [] for bucket in task.buckets}
    each, missing = samples // len(filled), samples
    while missing:
        draft = task.maker(random)
        if len(filled[draft.bucket]) < each:
            filled[draft.bucket].append(draft)
            missing -= 1
    drafts = [draft for bucket in sorted(filled) for draft in filled[bucket]]
    if not task.one_shot or split == "train":
        return [_sample(task, template, draft, None) for draft in drafts]
    return [_sample(task, template, draft, _other(task, random, draft)) for draft in drafts]


def _other(task: WritingTask, random: Random, draft: Draft) -> Draft:
    """An example that is not the draft itself."""
    while True:
        shown = task.maker(random)
        if shown.inputs != draft.inputs:
            return shown


def _sample(task: WritingTask, template: str, draft: Draft, shown: Draft | None) -> TaskSample:
    messages = []
    try:
        if shown is not None:
            messages.append({"role": "user", "content": template.format(**shown.inputs)})
            messages.append({"role": "assistant", "content": shown.gold})
        messages.append({"role": "user", "content": template.format(**draft.inputs)})
    except (KeyError, IndexError) as error:
        raise MethodError(f"the prompt asks for {error}; {task.name} has {sorted(draft.inputs)}. Use these.") from None
    return TaskSample(task.name, tuple(messages), draft.answer, draft.inputs, draft.bucket, draft.items, draft.cells)


def _read(task: WritingTask, file: Path) -> list[tuple[Draft, Draft | None]]:
    """Drafts of a stored file, each with its example."""
    drafts = []
    try:
        lines = file.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}). Check the path.") from None
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            inputs = dict(row["input"])
            examples = inputs.pop("icl_examples", None) or [None]
            shown = _stored(task, examples[0], examples[0]["input"]) if examples[0] else None
            drafts.append((_stored(task, row, inputs), shown))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} line {number} is no sample of {task.name} ({error!r}). Give one with input and answer."
            ) from None
    return drafts


def _stored(task: WritingTask, row: Mapping[str, Any], inputs: Mapping[str, Any]) -> Draft:
    if not isinstance(row["answer"], str | dict):
        raise TypeError("the answer is neither text nor an object")
    items = make.parsed(str(inputs.get("context", ""))) if task.operation else ()
    draft = Draft(dict(inputs), row["answer"], int((row.get("metadata") or {}).get("length", len(items))), items)
    cells = len(make.parsed(draft.gold)) if task.operation else 0
    return Draft(draft.inputs, draft.answer, draft.bucket, items, cells)


_END = " Provide only the final list."
_QUEUE = "You look after the queue at a help desk. "
_QUEUES = {
    "copy": "These people came in, the first one first:\n{context}\nWrite the queue down just as it stands.",
    "sort_fullname": "To call people faster, put them in alphabetical order of their whole names, first name first:\n{context}",
    "sort_lastname": "To call people faster, put them in alphabetical order of their last names:\n{context}",
    "reverse": "By mistake the queue was written from its end to its beginning:\n{context}\nTurn it around.",
    "shuffle": "To be fair, the order is drawn by lot today:\n{context}\nMix the queue into some other order than this one.",
    "insert_index": 'Now "{word}" joins at position {index}, counted from 0:\n{context}\nAdd that person there.',
    "insert_random": 'Now "{word}" joins, at whatever position you draw:\n{context}\nAdd that person somewhere.',
    "remove_index": "Whoever stood at position {index}, counted from 0, has gone home:\n{context}\nTake that person out.",
    "remove_random": "One person, you don't know which, has gone home:\n{context}\nTake somebody out.",
    "replace_index": 'At position {index}, counted from 0, "{word}" takes over:\n{context}\nChange that one name.',
    "replace_random": '"{word}" takes over the place of somebody, you choose whose:\n{context}\nChange that one name.',
}
_ITEMS = {
    "copy": "Write this list again, with every character as it is: {context}.",
    "sort": "Put this list in alphabetical order: {context}.",
    "reverse": "Turn this list around, last item first: {context}.",
    "shuffle": "Put this list in a random order, other than the one it has: {context}.",
    "insert_index": 'Put "{word}" into this list so that its index, counted from 0, is {index}: {context}.',
    "insert_random": 'Put "{word}" into this list at a random place: {context}.',
    "remove_index": "Take the item at index {index}, counted from 0, out of this list: {context}.",
    "remove_random": "Take one item, chosen at random, out of this list: {context}.",
    "replace_index": 'Put "{word}" in the place of the item at index {index}, counted from 0, of this list: {context}.',
    "replace_random": 'Put "{word}" in the place of one item, chosen at random, of this list: {context}.',
    "repeat_each": "Write every item of this list {count} times in a row, items in their order: {context}.",
    "repeat_list": "Write the items of this list from first to last {count} times over, as one list: {context}.",
}
_METRICS = {
    "shuffle": "shuffle", "insert_random": "insert_random", "remove_random": "remove_random", "replace_random": "replace_random",
}  # fmt: skip


def _lists(
    family: str, operation: str, words: Sequence[str], low: int, high: int, prompt: str, tokens: int
) -> WritingTask:
    own = f"{operation}_list" if operation.startswith(("insert", "remove", "replace")) else operation
    return WritingTask(
        name=f"{family}/{operation}",
        metric=_METRICS.get(operation, "match"),
        prompt=prompt + _END,
        maker=make.list_operation(operation, words, 1 if operation.startswith("repeat") else low, high),
        buckets=COUNTS if operation.startswith("repeat") else tuple(range(low, high + 1)),
        seed_name="sort" if operation.startswith("sort") else own,
        one_shot=True,
        tokens=tokens,
        operation=operation,
    )


def _registry() -> dict[str, WritingTask]:
    tasks: list[WritingTask] = []
    for operation, story in _QUEUES.items():
        tasks.append(_lists("waiting_line", operation, names(), 3, 6, _QUEUE + story, 32))
        tasks.append(_lists("waiting_line_n15", operation, names(), 15, 15, _QUEUE + story, 128))
    for family, words in (("letters", LETTERS), ("words", WORDS)):
        for operation, text in _ITEMS.items():
            tasks.append(_lists(family, operation, words, 6, 15, text, 64))
            tasks += [_lists(f"{family}_n{n}", operation, words, n, n, text, 64) for n in range(6, 17, 2)]
    latin = (
        "Fill a {size} x {size} Latin square with the symbols {symbols}. Answer with its rows as CSV and nothing else."
    )
    for size in (3, 4, 5):
        own = f"latin_square_n{size}"
        tasks.append(
            WritingTask(f"puzzle/{own}", "latin_square", latin, make.latin_square(size), (size,), own, one_shot=True)
        )
    grid = (
        "Replace every 0 in this 4x4 grid by a digit from 1 to 4, so that no row, no column and none of the four 2x2 corners "
        "holds a digit twice. Answer with the grid's four lines and nothing else.\n{sudoku}"
    )
    tasks.append(
        WritingTask("puzzle/sudoku_n4_12", "sudoku", grid, make.sudoku(12), (12,), "sudoku_n4_12", True, samples=108)
    )
    words_text = "Write one sentence that makes sense and uses the words {words}."
    for level, topics in (("easy", 1), ("medium", 2), ("hard", 4)):
        tasks.append(
            WritingTask(f"words_to_sentence/{level}", "inclusion", words_text, make.sentence(topics), (4,), level)
        )
    domino = (
        "Write a list of {length} numbers of two digits that begins with {start}. Every number begins with the digit that the "
        "one before it ends with." + _END
    )
    tasks.append(WritingTask("extras/domino", "domino", domino, make.domino(3, 12), tuple(range(3, 13)), "domino"))
    digits = tuple(range(5, 51, 5))
    kinds = {"l2_plus": ("+", 2), "l2_minus": ("-", 2), "l2_multiply": ("*", 2), "l3": ("+-*", 3), "l4": ("+-*", 4)}
    for kind, (operators, numbers) in kinds.items():
        maker = make.arithmetic(tuple(operators), numbers, digits)
        text = "{equation} Provide only the resulting number."
        tasks.append(WritingTask(f"extras/math_op_{kind}", "math_op", text, maker, digits, f"math_op_{kind}"))
    sums = "Replace every number of the list {list} by the sum of it and all numbers before it." + _END
    tasks.append(WritingTask("extras/cumsum", "match_numbers", sums, make.cumulative(), tuple(range(3, 13)), "cumsum"))
    return {task.name: task for task in tasks}


TASKS: Mapping[str, WritingTask] = _registry()
