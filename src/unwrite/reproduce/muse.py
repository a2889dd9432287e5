"""MUSE in small: GA, NPO, their retain variants and the task vector on pages of the Python manual.

Claims looked at (arXiv 2407.06460): most methods stop memorisation, but leak privacy and lose utility, and utility
sinks with every further request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..audit import evaluate, sustainability
from ..beds.authors import unlearn
from ..beds.budget import Budget
from ..beds.language import LanguageBed
from ..beds.manual import manual_bed
from ..data import Examples, ForgetSplit
from ..forget import NPO, TaskVector
from ..forget.base import Method
from ..forget.gradient_ascent import GradientAscent, GradientDifference
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from torch import nn

METHODS: dict[str, Method] = {
    "GA": GradientAscent(),
    "GA_GDR": GradientDifference(),
    "NPO": NPO(retain_loss="none"),
    "NPO_GDR": NPO(),
    "Task vector": TaskVector(),
}
NAMES = ("verbmem_f", "knowmem_f", "privleak", "knowmem_r")
FOLDS = 4


def figures(report: Any, role: str | None = None) -> dict[str, float]:
    """MUSE's four numbers."""
    return {name: report.value(name, role) for name in NAMES}


def folds(split: ForgetSplit) -> list[ForgetSplit]:
    """The forget pages in four requests."""
    size = len(split.forget) // FOLDS
    return [ForgetSplit(split.forget[i * size : (i + 1) * size], split.retain) for i in range(FOLDS)]


def series(bed: LanguageBed, method: Method, seed: int, epochs: int) -> list[float]:
    """Utility after each of the four requests, one after another."""

    def unlearn_fn(model: nn.Module, forget: Examples, retain: Examples | None) -> nn.Module:
        args = {
            "learning_rate": 2e-4,
            "num_train_epochs": epochs,
            "warmup_epochs": 0,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 3,
            "seed": seed,
            "use_cpu": True,
        }
        return method.apply(model, forget, retain, processing_class=bed.tokenizer, args=args)

    report = sustainability(
        unlearn_fn, bed.load(), folds(bed.split), tokenizer=bed.tokenizer, on=bed.split, oracle=bed.load("oracle")
    )
    requests = [role for role in report.columns if role.startswith("request")]
    return [report.value("knowmem_r", role) or 0.0 for role in requests]


def run(budget: Budget) -> Claim:
    """Four properties for five methods, and four requests in a row for GA and NPO."""
    tiny = budget.size == "tiny"
    bed = manual_bed(epochs=1) if tiny else manual_bed()
    seeds = budget.seeds[:1] if tiny else budget.seeds
    epochs = 1 if tiny else 10
    measurements: dict[str, list[dict[str, float]]] = {}
    utilities: dict[str, list[list[float]]] = {}
    oracle = bed.load("oracle")
    for seed in seeds:
        for name, method in METHODS.items():
            model, _ = unlearn(bed, method, seed, num_train_epochs=epochs, per_device_train_batch_size=4)
            report = evaluate(model, bed.split, tokenizer=bed.tokenizer, suite="muse", before=bed.load(), oracle=oracle)
            measurements.setdefault(name, []).append(figures(report))
            if seed == seeds[0]:
                measurements.setdefault("target", []).append(figures(report, "before"))
                measurements.setdefault("retrain", []).append(figures(report, "oracle"))
        for name in ("GA", "NPO"):
            utilities.setdefault(name, []).append(series(bed, METHODS[name], seed, max(1, epochs // 3)))
    measurements["target"], measurements["retrain"] = measurements["target"][:1], measurements["retrain"][:1]
    return _claim(measurements, utilities, seeds, epochs)


def _claim(
    measurements: dict[str, list[dict[str, float]]],
    utilities: dict[str, list[list[float]]],
    seeds: tuple[int, ...],
    epochs: int,
) -> Claim:
    checks = _checks(measurements, utilities)
    order = ("target", "retrain", *METHODS)
    rows = {name: tuple(spread([run[key] for run in measurements[name]]) for key in NAMES) for name in order}
    return Claim(
        slug="muse",
        claim="most unlearning methods stop verbatim and knowledge memorisation, but leak privacy, lose utility, and do not "
        "sustain a series of requests (arXiv 2407.06460)",
        setting=f"3.4M model on pages of the Python manual, 12 to forget, {epochs} epochs, lr 2e-4, {len(seeds)} seeds",
        columns=NAMES,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=seeds,
        extra={
            "utility after each of four requests": {
                name: [spread([k[i] for k in runs]) for i in range(FOLDS)] for name, runs in utilities.items()
            }
        },
    )


def _checks(
    measurements: dict[str, list[dict[str, float]]], utilities: dict[str, list[list[float]]]
) -> tuple[Check, ...]:
    """What the paper says of its methods, each a figure a seed; targets and shares are of the one target."""
    (target,), (retrained,) = measurements["target"], measurements["retrain"]

    def of(name: str, metric: str) -> list[float]:
        return [run[metric] for run in measurements[name]]

    def gained(name: str) -> list[float]:
        pairs = zip(of(f"{name}_GDR", "knowmem_r"), of(name, "knowmem_r"), strict=True)
        return [both - alone for both, alone in pairs]

    verbatim, utility = 0.2 * target["verbmem_f"], 0.5 * target["knowmem_r"]
    checks = [
        Check("set-up", "the target leaks: PrivLeak below -50", target["privleak"], "<", -50),
        Check("mechanism", "the retrained model's PrivLeak is 0", retrained["privleak"] == 0),
        Check.by_seed("claim", "GA brings VerbMem below a fifth of the target's", of("GA", "verbmem_f"), "<", verbatim),
        Check.by_seed("claim", "GA loses over half of the utility", of("GA", "knowmem_r"), "<", utility),
    ]
    for name in ("GA", "NPO"):
        checks.append(Check.by_seed("claim", f"a retain term keeps more utility for {name}", gained(name), ">", 0))
    for name in ("GA", "NPO"):
        lost = [one[-1] - one[0] for one in utilities[name]]
        text = f"{name}: utility after four requests is below that after one"
        checks.append(Check.by_seed("claim", text, lost, "<", 0))
    return tuple(checks)


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What gradient ascent does to memory and to utility."""
    (was, _, _, useful), (left, _, _, utility) = (
        [figure(rows, name, column) for column in range(len(NAMES))] for name in ("target", "GA")
    )
    return f"GA: VerbMem {was} to {left}, utility (KnowMem of retain pages) {useful} to {utility}"
