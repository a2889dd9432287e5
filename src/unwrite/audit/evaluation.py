"""One audit: every metric on the model before, the retrained one and the model after, then the attacks."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..data.images.splits import ImageSplit
from ..data.text.examples import Example, ForgetSplit
from ..errors import MethodError, ModelError, noticing
from ..runs import progress
from ..scoring import WORDS, row_length
from .base import Metric, Score, Suite, kept_sets, rows_of
from .context import Context
from .provenance import provenance
from .report.parts import AttackResult, Sample
from .report.report import Report
from .suites.known import suite_named

if TYPE_CHECKING:
    from torch import Tensor


class Attack(Protocol):
    """What `evaluate(attacks=...)` takes: `Relearn()`, `Quantise()`, or your own."""

    name: str
    about: str
    x: str
    label: str

    def __call__(self, context: Context, split: ForgetSplit) -> list[dict[str, float]]:
        """Points of a curve: key `x` (called `label` on the axis), and one key a series."""
        ...


def evaluate(
    model: Any,
    split: ForgetSplit | ImageSplit,
    *,
    tokenizer: Any = None,
    suite: str | Suite = "basic",
    before: Any = None,
    oracle: Any = None,
    control: Any = None,
    random: Any = None,
    shadows: Any = None,
    selected: Mapping[str, float | Tensor] | None = None,
    attacks: Iterable[Attack] = (),
    batch_size: int = 16,
    max_length: int | None = None,
) -> Report:
    """Measures an unlearned model beside the model it came from and one retrained without the forget set.

    Args:
        model: anything with `forward(input_ids, attention_mask)` giving logits, and `generate`; or, with an `ImageSplit`,
            a module that takes pixels to `[rows, outputs]`.
        tokenizer: of texts.
        before: the model before unlearning; must be another object than `model`.
        oracle: the model trained without the forget set, where there is one.
        control: of images, the model before with only its head changed (`HeadOnly`), in a column of its own.
        random: of images, an untrained model of the same kind, for ZRF.
        shadows: of images, `shadow_models` for LiRA.
        selected: of images, what a method selected, for a picture: by parameter name a share in 0..1, or booleans a
            weight; `changed_weights(before, model)`, or `SSD().select(before, forget, retain).shares`.
        attacks: applied to every model alike; on texts.
        batch_size: rows per pass; the scores don't depend on it.
        max_length: of texts, tokens a row may have: longer answers are cut, longer texts read in windows that cover
            them. None takes the suite's, within the model's positions.

    Returns:
        A `Report` with columns before, after and oracle. All passes are cached by the models' content.
    """
    of_images = {"control": control, "random": random, "shadows": shadows, "selected": selected}
    both: dict[str, Any] = {"suite": suite, "before": before, "oracle": oracle, "batch_size": batch_size}
    if isinstance(split, ImageSplit):
        if attacks:
            raise MethodError("these attacks are for texts. On images, use lira, ain or knn_accuracy.")
        if max_length is not None:
            raise MethodError("max_length is for texts; pictures have no tokens. Leave it out.")
        from .images.evaluation import evaluate_images

        return evaluate_images(model, split, **both, **of_images)
    given = [name for name, value in of_images.items() if value is not None]
    both["max_length"] = max_length
    if tokenizer is None or given:
        wrong = "needs a tokenizer" if tokenizer is None else f"has no {' and no '.join(given)}: for images only"
        raise MethodError(f"an audit of texts {wrong}.")
    return _evaluate_texts(model, split, tokenizer, attacks, **both)


def _evaluate_texts(
    model: Any,
    split: ForgetSplit,
    tokenizer: Any,
    attacks: Iterable[Attack],
    suite: str | Suite,
    before: Any,
    oracle: Any,
    batch_size: int,
    max_length: int | None,
) -> Report:
    suite = suite_named(suite)
    if suite.of != "text":
        raise MethodError(f"suite {suite.name!r} is for images; this split is of texts.")
    if before is model or oracle is model:
        which = "before" if before is model else "oracle"
        raise ModelError(
            f"{which} and the audited model are one object. Unlearning trains in place: pass copy=True to apply, "
            "or load the original again."
        )
    metrics = suite.for_split(split)
    if not metrics:
        raise MethodError(f"no metric of suite {suite.name!r} applies to {split.name}; it has none of the sets needed.")
    started = time.perf_counter()
    roles = {"before": before, "after": model, "oracle": oracle}
    with noticing() as notices:
        contexts = contexts_of(roles, suite, tokenizer, batch_size, max_length)
        columns = {role: measure(context, metrics, split) for role, context in contexts.items()}
        results = [
            AttackResult(a.name, a.about, a.x, a.label, {role: a(context, split) for role, context in contexts.items()})
            for a in attacks
        ]
    return Report(
        suite=suite.name,
        split=split.name,
        rows=row_counts(split),
        metrics=[metric.described() for metric in metrics],
        columns=columns,
        samples=_samples(contexts, split, {metric.name for metric in metrics}),
        attacks=results,
        axes=suite.axes,
        answers=headline_metrics(suite, metrics),
        scale=suite.scale,
        notices=tuple(notices),
        provenance={
            **provenance(split, suite),
            "max_length": contexts["after"].max_length,
            "rouge": WORDS[suite.words],
            **{f"{role} model": context.fingerprint or "not hashed" for role, context in contexts.items()},
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


def headline_metrics(suite: Suite, metrics: Iterable[Metric]) -> tuple[str, str]:
    """The suite's two, or, where the split has no such kept set, the first kept set that was asked."""
    gone, kept = suite.answers
    names = [metric.name for metric in metrics if metric.panel == "kept" and metric.name.endswith("_rouge")]
    return gone, kept if kept in names or not names else names[0]


def measure(context: Context, metrics: Iterable[Metric], split: ForgetSplit) -> dict[str, Score]:
    """Every metric on one model, in the metrics' order."""
    metrics = list(metrics)
    # Those that read moments go first: their pass serves the others too.
    ordered = sorted(metrics, key=lambda m: not m.moments)
    found = {m.name: m(context, split) for m in progress(ordered, "measuring")}
    return {metric.name: found[metric.name] for metric in metrics}


def contexts_of(
    models: dict[str, Any], suite: Suite, tokenizer: Any, batch_size: int, max_length: int | None = None
) -> dict[str, Context]:
    """A context per model that is given, each knowing the before model and the oracle; rows are of one length for all."""
    present = [model for model in models.values() if model is not None]
    length = min(row_length(model, max_length, suite.max_length) for model in present)
    contexts = {
        role: Context(
            model,
            tokenizer,
            batch_size=batch_size,
            max_length=length,
            max_new_tokens=suite.max_new_tokens,
            words=suite.words,
        )
        for role, model in models.items()
        if model is not None
    }
    for context in contexts.values():
        context.before, context.oracle = contexts.get("before"), contexts.get("oracle")
    return contexts


def row_counts(split: ForgetSplit) -> dict[str, int]:
    """Rows of every set a split has."""
    parts = {"forget": split.forget, "retain": split.retain, "holdout": split.holdout, **split.evaluation}
    return {name: len(rows) for name, rows in parts.items() if rows is not None}


SHOWN_FORGET, SHOWN_OTHER = 200, 8


def _samples(contexts: dict[str, Context], split: ForgetSplit, measured: Container[str]) -> list[Sample]:
    """What each model says: to the forget questions, and to a few of every kept set."""
    samples = []
    for name in ["forget", *kept_sets(split)]:
        rows = rows_of(split, name, 200)
        wanted = SHOWN_FORGET if name == "forget" and "forget_rouge" in measured else SHOWN_OTHER
        picks = [i * len(rows) // wanted for i in range(wanted)] if len(rows) > wanted else list(range(len(rows)))
        if f"{name}_rouge" in measured:  # already generated: asking for all of them costs nothing
            said = {role: _pick(context.answers(rows), picks) for role, context in contexts.items()}
        else:
            said = {role: context.answers([rows[i] for i in picks]) for role, context in contexts.items()}
        for at, i in enumerate(picks):
            reference = next(iter(said.values()))[at][0]
            answers = {role: texts[at][1] for role, texts in said.items()}
            samples.append(Sample(name, _asked(rows[i], reference), reference, answers, rows[i].history))
    return samples


def _pick(texts: list[tuple[str, str]], picks: list[int]) -> list[tuple[str, str]]:
    return [texts[i] for i in picks]


def _asked(row: Example, reference: str) -> str:
    if row.question is not None:
        return row.question
    return row.answer[: max(0, len(row.answer) - len(reference))] if row.answer.endswith(reference) else row.answer
