"""Invented authors in TOFU's form: facts that no model can know unless it was trained on them.

TOFU (arXiv 2401.06121) trains a model on question-answer pairs about fictitious authors and then unlearns some of
them, so that a model retrained without those authors is the exact goal. This set has the same five columns and works
without a network: 44 authors with ten facts each, told in varied words by `author_lives.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from .examples import Example, Examples, ForgetSplit

SETS = Path(__file__).parents[1] / "sets"
FILE = SETS / "authors.jsonl"
HOLDOUT_AUTHORS = 4


def authors(forget: float = 0.1) -> ForgetSplit:
    """The shipped split by whole authors: the last `forget` of forty are forgotten, the others retained.

    holdout: four further authors, for membership attacks; a test bed must not train on them.
    evaluation: "real_authors" and "world_facts", forty short questions each with three wrong answers.

    Args:
        forget: share of the forty authors, 0.025 to 0.975; 0.1 is four authors, forty rows.

    Raises:
        DataError: `forget` leaves no author to forget or none to retain.
    """
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(row["author"] for row in rows))
    known, unseen = names[:-HOLDOUT_AUTHORS], names[-HOLDOUT_AUTHORS:]
    count = round(forget * len(known)) if 0 < forget < 1 else 0
    if not 0 < count < len(known):
        raise DataError(
            f"forget is {forget}: with {len(known)} authors it must be between {1 / len(known)} "
            f"and {1 - 1 / len(known)}. Try 0.1."
        )

    def select(chosen: Sequence[str], name: str) -> Examples:
        return Examples((_example(row, name) for row in rows if row["author"] in set(chosen)), name)

    return ForgetSplit(
        forget=select(known[-count:], "authors forget"),
        retain=select(known[:-count], "authors retain"),
        holdout=select(unseen, "authors holdout"),
        evaluation={name: _shipped(name) for name in ("real_authors", "world_facts")},
        name="authors",
    )


def _shipped(name: str) -> Examples:
    lines = (SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return Examples((_example(json.loads(line), name) for line in lines), name)


def _example(row: dict, name: str) -> Example:
    return Example(
        answer=row["answer"],
        question=row["question"],
        paraphrased_question=row.get("paraphrased_question"),
        paraphrased_answer=row.get("paraphrased_answer"),
        perturbed_answers=tuple(row["perturbed_answer"]),
        source=name,
        entity=row.get("author"),
    )
