"""Do good answers mean forgotten features? Real digits, the two classes that a downstream set resembles most.

Claim looked at (arXiv 2503.06991): unlearners that agree with the retrained model by their answers keep the features of the model
before, or wreck them, so that ranking by answers and ranking by features are different rankings. Settings are chosen by answers (AGL)
on another seed and other classes. Target, oracle and a second oracle, which is the ceiling, begin from three seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ..beds.budget import Budget
from ..beds.images import BEDS, Bed, ImageBed, Measured, Setting, forgetting_top, mean_of, rows_of
from ..forget.gradient_ascent import GradientAscent
from ..forget.vision.fine_tuning import FineTune
from ..forget.vision.head_only import HeadOnly
from ..forget.vision.relabelling import PseudoLabel, RandomLabel
from ..forget.vision.salun import SalUn
from ..forget.vision.scrub import SCRUB
from .base import Claim, figure
from .checks import Check, reason_of

BED = "digits/top"
OTHERS, CHOOSING_SEED = (4, 9), 100  # classes and seed on which settings are chosen
SETS = ("rotated", "mosaics", "loop", "parity", "alike")
METRICS = (
    "agl", "agr", "h_lr", "forget_accuracy", "RA", "TA", "cka_oracle", "cka_before", "knn", "forget_accuracy_former_head",
)  # fmt: skip
COLUMNS = (
    "AGL", "AGR", "H-LR", "forget rows", "RA", "TA", "CKA to retrained", "CKA to before", "k-NN downstream",
    "forget rows, former head", "cost, forwards a row",
)  # fmt: skip
AGAIN, HIGH, PL = "retrained again", "gradient ascent, lr 0.03", "pseudo-labels"
WRECKED = 0.03  # a learning rate far above those to choose from
CLOSE, STILL, DIFFER = 0.1, 0.95, 0.7  # of AGL to the best; CKA to before; Kendall's tau
Measurements = dict[str, list[Measured]]


def grids(size: str) -> dict[str, dict[str, Setting]]:
    """{method: {what is set: setting}}; one point each where the budget is tiny."""
    adam = {"optim": "adam", "num_train_epochs": 5}
    grid = {
        "gradient ascent": _over(GradientAscent(), (1e-4, 3e-4, 1e-3), num_train_epochs=5),
        PL: _over(PseudoLabel(), (1e-3, 3e-3, 1e-2), num_train_epochs=5),
        "fine-tuned": _over(FineTune(), (0.02, 0.1), num_train_epochs=5),
        "random labels": _over(RandomLabel(), (1e-3, 5e-3, 2e-2)),
        "SalUn": _over(SalUn(), (1e-3, 5e-3, 2e-2)),
        "SCRUB": _over(SCRUB(), (1e-4, 5e-4, 2e-3), **adam),
    }
    if size == "tiny":
        return {name: {key: one.short() for key, one in [*settings.items()][-1:]} for name, settings in grid.items()}
    return grid


def _over(method: Any, rates: Sequence[float], **args: Any) -> dict[str, Setting]:
    return {f"lr {lr:g}": Setting(method, {"learning_rate": lr, **args}) for lr in rates}


def run(budget: Budget) -> Claim:
    """Chooses settings by answers on other classes, then measures every method by answers and by features."""
    settings = grids(budget.size)
    measurements: Measurements = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that few forget rows make few steps an epoch
        tried = _tried(replace(forgetting_top(OTHERS), metrics=("agl",)), settings)
        chosen = {name: settings[name][max(values, key=lambda key: values[key])] for name, values in tried.items()}
        wrecking = Setting(GradientAscent(), {"learning_rate": WRECKED, "num_train_epochs": 5})
        for seed in budget.seeds:
            bed = ImageBed(replace(BEDS[BED], metrics=()), seed)
            _seed(bed, {**chosen, HIGH: wrecking.short() if budget.size == "tiny" else wrecking}, measurements)
    names = [*chosen, "head only"]
    checks = _checks(measurements, names)
    rows = rows_of(measurements, METRICS)
    agreement = round(fmean(taus(measurements, names)), 3)
    return Claim(
        slug="rep-eval",
        claim="On ImageNet-1K unlearners with good answers either wreck the features or change the classifier alone, more so where the "
        "forgotten classes resemble a downstream task (ResNet-50, ConvNeXt, Swin; arXiv 2503.06991)",
        setting="scikit-learn's digits, CNN of 0.08M weights, the two classes nearest to a downstream set of 3s and 8s forgotten, five "
        f"downstream sets, seeds {', '.join(map(str, budget.seeds))}; settings chosen by AGL on 4 and 9; aggregate=library definition",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {"tau": agreement}),
        reason=reason_of(checks, _reason(measurements)),
        checks=checks,
        seeds=budget.seeds,
        extra={"tau": agreement, "AGL of settings on other classes": tried, "tau by seed": taus(measurements, names)},
    )


def _tried(bed: Bed, settings: Mapping[str, Mapping[str, Setting]]) -> dict[str, dict[str, float]]:
    """Each setting's AGL."""
    models = ImageBed(bed, CHOOSING_SEED)
    return {
        name: {key: round(models.apply(one.method, one.args)["agl"], 4) for key, one in grid.items()}
        for name, grid in settings.items()
    }


def _seed(bed: ImageBed, settings: Mapping[str, Setting], measurements: Measurements) -> None:
    models = {"before": bed.measure(bed.before), "retrained": bed.retraining(), AGAIN: bed.retraining_again()}
    models["head only"] = bed.apply(HeadOnly())
    models |= {name: bed.apply(one.method, one.args) for name, one in settings.items()}
    for name, one in models.items():
        measurements.setdefault(name, []).append(_summed(one))


def _summed(one: Measured) -> Measured:
    """With means over the downstream sets; a collapsed model is like nothing."""

    def over(pattern: str) -> float:
        return fmean(one.values.get(pattern.format(name), 0.0) for name in SETS)

    means = {"cka_oracle": over("cka_{}"), "cka_before": over("cka_{}_to_before"), "knn": over("knn_{}")}
    return Measured({**one.values, **means}, one.cost)


def taus(measurements: Mapping[str, Sequence[Measured]], names: Sequence[str]) -> list[float]:
    """Kendall's tau of the rankings by AGL and by AGR, a seed."""
    seeds = range(len(measurements[names[0]]))
    return [_tau(*([measurements[name][at][metric] for name in names] for metric in ("agl", "agr"))) for at in seeds]


def _steadiness(measurements: Mapping[str, Sequence[Measured]], names: Sequence[str]) -> list[float]:
    """Kendall's tau of the ranking by AGR of a seed and that of the next one."""
    seeds = len(measurements[names[0]])
    columns = [[measurements[name][at]["agr"] for name in names] for at in range(seeds)]
    return [_tau(columns[at], columns[(at + 1) % seeds]) for at in range(seeds)]


def _tau(one: Sequence[float], other: Sequence[float]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(one, other).statistic)


def _checks(measurements: Mapping[str, Sequence[Measured]], names: Sequence[str]) -> tuple[Check, ...]:
    """The card's conditions, with the room there must be and what noise alone would do, each a figure a seed."""

    def of(name: str, metric: str) -> list[float]:
        return [one[metric] for one in measurements[name]]

    def beside(one: str, other: str, metric: str) -> list[float]:
        return [ours - theirs for ours, theirs in zip(of(one, metric), of(other, metric), strict=True)]

    best = [max(values) for values in zip(*(of(name, "agl") for name in names), strict=True)]
    behind = [top - own for top, own in zip(best, of(PL, "agl"), strict=True)]
    moved = [abs(value) for value in beside("head only", "before", "agr")]
    lost = [max(cka, knn) for cka, knn in zip(beside(HIGH, PL, "cka_oracle"), beside(HIGH, PL, "knn"), strict=True)]
    steadier = [
        own - other for own, other in zip(_steadiness(measurements, names), taus(measurements, names), strict=True)
    ]
    room = "another retrained model's features are nearer to the retrained one's than those before (forget rows' CKA)"
    return (
        Check.by_seed("set-up", room, beside(AGAIN, "before", "cka_forget"), ">", 0),
        Check.by_seed("set-up", "another retrained model agrees by answers: AGL", of(AGAIN, "agl"), ">", 0.9),
        Check.by_seed("set-up", "the model before does not: AGL", of("before", "agl"), "<", 0.1),
        Check.by_seed("mechanism", "the head alone changed: AGL", of("head only", "agl"), ">", 0.9),
        Check.by_seed("mechanism", "its features are those before: CKA", of("head only", "cka_before"), ">=", 0.9999),
        Check.by_seed("mechanism", "and its AGR that of before: difference", moved, "<=", 1e-9),
        Check.by_seed(
            "mechanism", "the retrained model agrees with itself: H-LR", of("retrained", "h_lr"), ">=", 0.9999
        ),
        Check.by_seed(
            "claim", "rankings by answers and by features differ: Kendall's tau", taus(measurements, names), "<", DIFFER
        ),
        Check.by_seed(
            "claim", "pseudo-labels agree by answers nearly as well as the best: AGL behind", behind, "<=", CLOSE
        ),
        Check.by_seed("claim", "and keep the features before: CKA", of(PL, "cka_before"), ">=", STILL),
        Check.by_seed(
            "claim",
            "which are no nearer to the retrained ones than before: CKA",
            beside(PL, "before", "cka_oracle"),
            "<=",
            0.01,
        ),
        Check.by_seed("claim", "ascent at a high rate wrecks them: CKA and k-NN beside pseudo-labels", lost, "<", 0),
        Check.by_seed(
            "control", "seeds agree better by features than answers and features do: tau ahead", steadier, ">", 0
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """How far both rankings agree, and the answers and features of pseudo-labels."""
    answers, features, before = (figure(rows, PL, COLUMNS.index(name)) for name in ("AGL", "AGR", "CKA to before"))
    return (
        f"tau {extra['tau']:.2f} of both rankings; pseudo-labels: AGL {answers}, AGR {features}, CKA to before {before}"
    )


def _reason(measurements: Mapping[str, Sequence[Measured]]) -> str:
    figures = "; ".join(
        f"{name} {mean_of(measurements, name, 'agl'):.2f}, {mean_of(measurements, name, 'agr'):.2f}, "
        f"{mean_of(measurements, name, 'cka_before'):.2f}"
        for name in measurements
    )
    return f"AGL, AGR and CKA to before: {figures}. {AGAIN} is the ceiling of AGR"
