"""MUSE in small: GA, NPO, their retain variants and the task vector on pages of the Python manual.

Claims looked at (arXiv 2407.06460): most methods stop memorisation, but leak privacy and lose utility, and utility
sinks with every further request.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ..audit import evaluate, sustainability
from ..beds.authors import unlearn
from ..beds.budget import Budget
from ..beds.language import Bed
from ..beds.manual import manual_bed
from ..data import ForgetSplit
from ..forget import NPO, TaskVector
from ..forget.base import Method
from ..forget.gradient_ascent import GradientAscent, GradientDifference
from ..scoring.intervals import spread
from .base import Claim, verdict_of

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


def series(bed: Bed, method: Method, seed: int, epochs: int) -> list[float]:
    """Utility after each of the four requests, one after another."""

    def unlearn_fn(model: Any, forget: Any, retain: Any) -> Any:
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
    found: dict[str, list[dict[str, float]]] = {}
    kept: dict[str, list[list[float]]] = {}
    oracle = bed.load("oracle")
    for seed in seeds:
        for name, method in METHODS.items():
            model, _ = unlearn(bed, method, seed, num_train_epochs=epochs, per_device_train_batch_size=4)
            report = evaluate(model, bed.split, tokenizer=bed.tokenizer, suite="muse", before=bed.load(), oracle=oracle)
            found.setdefault(name, []).append(figures(report))
            if seed == seeds[0]:
                found.setdefault("target", []).append(figures(report, "before"))
                found.setdefault("retrain", []).append(figures(report, "oracle"))
        for name in ("GA", "NPO"):
            kept.setdefault(name, []).append(series(bed, METHODS[name], seed, max(1, epochs // 3)))
    found["target"], found["retrain"] = found["target"][:1], found["retrain"][:1]
    return _claim(found, kept, seeds, epochs)


def _claim(
    found: dict[str, list[dict[str, float]]], kept: dict[str, list[list[float]]], seeds: tuple[int, ...], epochs: int
) -> Claim:
    mean = {name: {key: fmean(run[key] for run in runs) for key in NAMES} for name, runs in found.items()}
    target, ga = mean["target"], mean["GA"]
    checks = {
        "the target leaks: PrivLeak below -50": target["privleak"] < -50,
        "the retrained model's PrivLeak is 0": mean["retrain"]["privleak"] == 0,
        "GA brings VerbMem below a fifth of the target's": ga["verbmem_f"] < 0.2 * target["verbmem_f"],
        "GA loses over half of the utility": ga["knowmem_r"] < 0.5 * target["knowmem_r"],
        "a retain term keeps more utility for GA": mean["GA_GDR"]["knowmem_r"] > ga["knowmem_r"],
        "a retain term keeps more utility for NPO": mean["NPO_GDR"]["knowmem_r"] > mean["NPO"]["knowmem_r"],
        "GA: utility after four requests is below that after one": fmean(k[-1] for k in kept["GA"])
        < fmean(k[0] for k in kept["GA"]),
        "NPO: utility after four requests is below that after one": fmean(k[-1] for k in kept["NPO"])
        < fmean(k[0] for k in kept["NPO"]),
    }
    order = ("target", "retrain", *METHODS)
    failed = [name for name, held in checks.items() if not held]
    return Claim(
        slug="muse",
        claim="most unlearning methods stop verbatim and knowledge memorisation, but leak privacy, lose utility, and do not "
        "sustain a series of requests (arXiv 2407.06460)",
        setting=f"3.4M model on pages of the Python manual, 12 to forget, {epochs} epochs, lr 2e-4, {len(seeds)} seeds",
        columns=NAMES,
        rows={name: tuple(spread([run[key] for run in found[name]]) for key in NAMES) for name in order},
        verdict=verdict_of(checks),
        reason="every statement holds" if not failed else "does not hold here: " + "; ".join(failed),
        checks=checks,
        seeds=seeds,
        extra={
            "utility after each of four requests": {
                name: [spread([k[i] for k in runs]) for i in range(FOLDS)] for name, runs in kept.items()
            }
        },
    )
