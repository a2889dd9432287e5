"""What the models of an audit say, question by question."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...data.text.examples import Example
from ..report.parts import Sample
from .rows import kept_sets, rows_of

if TYPE_CHECKING:
    from .context import TextContext

__all__ = ["samples_of"]

SHOWN_FORGET, SHOWN_OTHER = 200, 8
SECRET = "_secret_"  # in the names of metrics of secrets


def samples_of(contexts: Mapping[str, TextContext], measured: Collection[str]) -> list[Sample]:
    """What each model says: to the forget questions, and to a few of every kept set."""
    split, samples = next(iter(contexts.values())).split, []
    secret = any(
        SECRET in name for name in measured
    )  # what is written on such files may hold them: a report shows none of it
    for name in [*([] if secret else ["forget"]), *kept_sets(split)]:
        rows = rows_of(split, name, 200)
        limit = SHOWN_FORGET if name == "forget" and "forget_rouge" in measured else SHOWN_OTHER
        picks = [i * len(rows) // limit for i in range(limit)] if len(rows) > limit else list(range(len(rows)))
        if f"{name}_rouge" in measured:  # already generated: asking for all of them costs nothing
            by_role = {role: _pick(context.answers(rows), picks) for role, context in contexts.items()}
        else:
            by_role = {role: context.answers([rows[i] for i in picks]) for role, context in contexts.items()}
        for at, i in enumerate(picks):
            reference = next(iter(by_role.values()))[at][0]
            answers = {role: texts[at][1] for role, texts in by_role.items()}
            samples.append(Sample(name, _asked(rows[i], reference), reference, answers, rows[i].history))
    return samples


def _pick(texts: list[tuple[str, str]], picks: list[int]) -> list[tuple[str, str]]:
    return [texts[i] for i in picks]


def _asked(row: Example, reference: str) -> str:
    if row.question is not None:
        return row.question
    return row.answer[: max(0, len(row.answer) - len(reference))] if row.answer.endswith(reference) else row.answer
