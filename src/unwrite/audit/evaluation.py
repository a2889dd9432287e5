"""One audit: every metric on the model before, the retrained one and the model after, then the attacks.

The kind of split chooses the context class (`kinds`); everything else is the same for every kind of data.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import MethodError, ModelError, noticing, setting, unknown
from ..runs import progress
from .base import Attack, Exhibit, Metric, Score, Suite, need_roles
from .context import Context, PassSettings, Split
from .kinds import context_for
from .provenance import provenance
from .report.parts import AttackResult
from .report.report import NOT_HASHED, Report
from .report.summary import summarise
from .requirements import Requirement, check_requirements, outcomes, parse_requirements
from .suites.known import DEFAULT, suite_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluate", "measure", "report_on"]

Reference = Literal["retrained", "base"]
BASE = "The oracle is the model from before it learnt any of the rows, not one retrained without the forget set."


def evaluate(
    model: object,
    split: Split,
    *,
    suite: str | Suite = DEFAULT,
    tokenizer: PreTrainedTokenizerBase | None = None,
    before: object = None,
    oracle: object = None,
    references: Mapping[str, object] | None = None,
    reference: Reference = "retrained",
    attacks: Iterable[Attack] = (),
    require: str | Sequence[Requirement] = (),
    batch_size: int = 16,
    max_length: int | None = None,
) -> Report:
    """Measures an unlearned model beside the model it came from and one retrained without the forget set.

    Args:
        model: anything with `forward(input_ids, attention_mask)` giving logits, and `generate`; or, with a split of
            images, a module that takes pixels to `[rows, outputs]`.
        split: the rows; their kind chooses what is measured.
        suite: its name, or a `Suite`; "basic" is the default suite of every kind of data.
        tokenizer: of texts.
        before: the model before unlearning; must be another object than `model`.
            Short for `references={"before": ...}`.
        oracle: the model trained without the forget set, where there is one. Short for `references={"oracle": ...}`.
        references: what else the model is measured beside, by role. Of images: "control", the model before with only
            its head changed (`HeadOnly`), in a column of its own; "random", an untrained model of the same kind, for
            ZRF; and, under any name, what is no model: `shadow_models(...)` for LiRA, a `Selection` to be drawn.
        reference: what the oracle is: "retrained", or "base", the model from before it learnt any of the rows, which may
            stand in for one and is then named so in the report.
        attacks: applied to every model alike.
        require: bounds that the figures must keep, such as "forget_probability<=0.1x,utility>=0.95x,relearn<=0.15" (x: times
            what it was before); the report's `met` says whether they do.
        batch_size: rows per pass; the scores don't depend on it.
        max_length: of texts, tokens a row may have: longer answers are cut, longer texts read in windows that cover
            them. None takes the suite's, within the model's positions.

    Returns:
        A `Report` with columns before, after and oracle. All passes are cached by the models' content.

    Raises:
        MethodError: a suite, attack, reference, requirement or argument that has no meaning for this kind of data.
        ModelError: two roles are one object; a model that doesn't fit the data.
    """
    kind = context_for(split)
    chosen = suite_for(suite, kind.kind, split)
    by_role = _by_role(model, {"before": before, "oracle": oracle}, references or {})
    exhibits = {role: one for role, one in by_role.items() if isinstance(one, Exhibit)}
    models = {role: one for role, one in by_role.items() if role not in exhibits}
    settings = PassSettings(batch_size, tokenizer, max_length)
    attacks = list(attacks)
    _check(kind, settings, models, exhibits, attacks)
    need_roles(f"suite {chosen.name!r}", chosen.roles, models)
    _check_reference(reference, models)
    metrics = [*chosen.for_split(split), *(metric for one in exhibits.values() for metric in one.metrics())]
    if not metrics:
        raise MethodError(
            f"no metric of suite {chosen.name!r} applies to {split.name}; it has none of the sets needed."
        )
    requirements = parse_requirements(require) if isinstance(require, str) else tuple(require)
    check_requirements(requirements, metrics, attacks, models)
    started = time.perf_counter()
    with noticing() as notices:
        contexts = kind.beside(models, split, chosen, settings)
        shown = {column: one for role, one in contexts.items() if (column := kind.columns[role]) is not None}
        columns = {column: measure(metrics, context, contexts) for column, context in shown.items()}
        results = [_attacked(attack, shown) for attack in attacks]
        samples = kind.samples(shown, {metric.name for metric in metrics})
        pictures = [*kind.pictures(shown), *(p for one in exhibits.values() for p in one.pictures(shown))]
    origins = _provenance(contexts, exhibits.values(), split, chosen) | {
        "seconds": round(time.perf_counter() - started, 1)
    }
    if reference == "base":
        origins["reference"] = BASE
        notices = [*notices, BASE]
    report = report_on(kind, split, chosen, metrics, columns, origins)
    report = replace(report, samples=samples, attacks=results, pictures=tuple(pictures), notices=tuple(notices))
    report = replace(report, outcomes=outcomes(requirements, report))
    report = replace(report, verdict=chosen.judge(report) if chosen.judge is not None else None)
    return replace(report, summary=summarise(report, chosen, exhibits.values()))


def measure(metrics: Iterable[Metric], context: Context, references: Mapping[str, Context]) -> dict[str, Score]:
    """Measures one model by every metric, in the metrics' order; one that lacks a reference has no value, and says which."""
    metrics = list(metrics)
    scores: dict[str, Score] = {}
    for metric in progress(sorted(metrics, key=lambda metric: not metric.goes_first), "measuring"):
        lack = metric.lack(references)
        none = Score(metric.name, None, [], metric.better, f"Needs {lack}.")
        scores[metric.name] = none if lack else metric(context, references)
    return {metric.name: scores[metric.name] for metric in metrics}


def report_on(
    kind: type[Context],
    split: Split,
    suite: Suite,
    metrics: Sequence[Metric],
    columns: Mapping[str, Mapping[str, Score]],
    origins: Mapping[str, str | float],
) -> Report:
    """Puts figures into a report, which has no sentences yet.

    Args:
        origins: where the figures come from.
    """
    return Report(
        suite=suite.name,
        split=split.name,
        rows={name: len(rows) for name, rows in kind.sets(split).items()},
        metrics=[metric.described() for metric in metrics],
        columns=columns,
        axes=suite.on_axes(),
        scale=suite.scale,
        manner=kind.manner,
        provenance=origins,
    )


def _by_role(model: object, short: Mapping[str, object], references: Mapping[str, object]) -> dict[str, object]:
    """Joins the audited model and what it is measured beside, by role, in the report's order."""
    for role in ("after", *(role for role, one in short.items() if one is not None)):
        if role in references:
            raise MethodError(f"{role!r} is given twice: leave it out of {setting('references')}.")
    by_role: dict[str, object] = {"before": None, "after": model, "oracle": None}
    for role, one in [*short.items(), *references.items()]:
        by_role[role] = by_role.get(role) if one is None else one
    return {role: one for role, one in by_role.items() if one is not None}


def _check(
    kind: type[Context],
    settings: PassSettings,
    models: Mapping[str, object],
    exhibits: Mapping[str, Exhibit],
    attacks: Iterable[Attack],
) -> None:
    """Refuses what has no meaning for this kind of data, before the first forward.

    Raises:
        MethodError: an argument, role, exhibit or attack for other data.
        ModelError: two roles are one object.
    """
    for name in ("tokenizer", "max_length"):
        if getattr(settings, name) is not None and name not in kind.takes:
            raise MethodError(f"{setting(name)} has no meaning for {kind.kind}. Leave it out.")
    for role, exhibit in exhibits.items():
        if not issubclass(kind, exhibit.reads):
            raise MethodError(f"{role} is for {exhibit.reads.kind}; this split is of {kind.kind}. Leave it out.")
    for role in models:
        if role not in kind.columns:
            raise MethodError(f"{unknown('reference', role, kind.columns)} An audit of {kind.kind} has no {role}.")
    for attack in attacks:
        reads = getattr(attack, "reads", None)
        if reads is None or not issubclass(kind, reads):
            name, of = getattr(attack, "name", type(attack).__name__), "no data" if reads is None else reads.kind
            raise MethodError(f"the attack {name} is for {of}; this split is of {kind.kind}. Leave it out.")
    for role, one in models.items():
        twin = next((other for other, model in models.items() if model is one and other != role), None)
        if twin is not None:
            raise ModelError(
                f"{role} and {twin} are one object. Unlearning changes a model in place: pass copy=True to apply, or load "
                "the original again."
            )


def _check_reference(reference: str, models: Mapping[str, object]) -> None:
    """Refuses a word for the oracle that isn't one, or that has no oracle to be said of.

    Raises:
        MethodError: which.
    """
    if reference not in get_args(Reference):
        raise MethodError(unknown("reference", reference, get_args(Reference)))
    if reference == "base" and "oracle" not in models:
        raise MethodError(f"{setting('reference', 'base')} says what the oracle is: pass {setting('oracle')}, too.")


def _attacked(attack: Attack, shown: Mapping[str, Context]) -> AttackResult:
    """Attacks every model, and notes what the attack says of the one that the report is about."""
    curves = {column: attack(context) for column, context in shown.items()}
    remark = attack.remark(curves, "after")
    return AttackResult(attack.name, attack.about, attack.x, attack.label, curves, remark, attack.judged)


def _provenance(
    contexts: Mapping[str, Context], exhibits: Iterable[Exhibit], split: Split, suite: Suite
) -> dict[str, str | float]:
    """Collects what the figures depend on: data, suite, versions, settings, models and exhibits."""
    origins = provenance(split, suite) | contexts["after"].provenance()
    for role, context in contexts.items():
        origins[f"{context.columns.get(role) or role} model"] = context.fingerprint or NOT_HASHED
    for exhibit in exhibits:
        origins |= exhibit.provenance()
    return origins
