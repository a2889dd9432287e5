"""NPO: the authors' synthetic experiment in full, and NPO against the baselines on invented authors with an oracle.

Claims looked at (arXiv 2404.05868): at its closest to the retrained model NPO has disturbed the retain data less than
gradient ascent has, and NPO with a retain term less than gradient difference; and gradient ascent goes on to collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..beds.budget import Budget
from ..beds.synthetic import Kind, Track, fit, make, nll, unlearn
from ..forget.npo import npo_loss
from ..scoring.intervals import spread
from .base import Claim, verdict_of

# (gap of the two kinds, learning rates and beta of the authors' configuration)
SETTINGS: dict[float, dict[str, float]] = {
    1.0: {"ascent": 5e-4, "npo": 5e-3, "beta": 1.0},
    0.0: {"ascent": 1e-4, "npo": 5e-2, "beta": 10.0},
}


def losses(kinds: dict[str, Kind], start: Tensor, beta: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """The objectives compared, as functions of the second layer."""
    forget, retain = kinds["forget"], kinds["retain"]
    reference = nll(forget, start)

    def npo(weight: Tensor) -> Tensor:
        return npo_loss(nll(forget, weight), reference, beta).mean()

    return {
        "GA": lambda w: -nll(forget, w).mean(),
        "GradDiff": lambda w: -nll(forget, w).mean() + nll(retain, w).mean(),
        "NPO": npo,
        "NPO+RT": lambda w: npo(w) + nll(retain, w).mean(),
    }


def tracks(seed: int, gap: float, fit_steps: int, steps: int) -> dict[str, Track]:
    """Every objective's way, for one seed."""
    setting = SETTINGS[gap]
    kinds = make(seed, gap)
    start, oracle = fit([kinds["retain"], kinds["forget"]], fit_steps), fit([kinds["retain"]], fit_steps)
    found = {}
    for name, loss in losses(kinds, start, setting["beta"]).items():
        rate = setting["npo" if name.startswith("NPO") else "ascent"]
        found[name] = unlearn(kinds, start, oracle, loss, rate, steps)
    return found


def run(budget: Budget) -> Claim:
    """Synthetic experiment; with the small budget and up also the invented authors."""
    tiny = budget.size == "tiny"
    fit_steps, steps = (400, 200) if tiny else (20_000, 2_000)
    seeds = budget.seeds[:1] if tiny else tuple(range(max(5, len(budget.seeds))))
    torch.set_num_threads(1)  # the matrices are too small to share
    rows: dict[str, tuple[Any, ...]] = {}
    checks: dict[str, bool] = {}
    for gap in SETTINGS:
        runs = [tracks(seed, gap, fit_steps, steps) for seed in seeds]
        for name in runs[0]:
            ways = [found[name] for found in runs]
            rows[f"gap {gap:g}: {name}"] = (
                spread([way.forget[way.best] for way in ways]),
                spread([way.retain[way.best] for way in ways]),
                spread([way.retain[-1] for way in ways]),
            )

        def at_best(name: str, runs: list[dict[str, Track]] = runs) -> float:
            return fmean(found[name].retain[found[name].best] for found in runs)

        checks[f"gap {gap:g}: NPO disturbs the retain data less than GA at its closest"] = at_best("NPO") < at_best(
            "GA"
        )
        checks[f"gap {gap:g}: NPO+RT disturbs it less than GradDiff at its closest"] = at_best("NPO+RT") < at_best(
            "GradDiff"
        )
        checks[f"gap {gap:g}: GA's retain distance keeps growing after its closest"] = all(
            found["GA"].retain[-1] > 1.2 * found["GA"].retain[found["GA"].best] for found in runs
        )
    extra: dict[str, Any] = {}
    if not tiny:
        from ..beds.authors import npo_on_authors

        extra, more = npo_on_authors(budget)
        checks |= more
    verdict = verdict_of(checks)
    failed = [name for name, held in checks.items() if not held]
    return Claim(
        slug="npo",
        claim="NPO unlearns without the collapse of gradient ascent; it reaches the retrained model's neighbourhood "
        "with less damage to what is kept (random-feature model and TOFU, arXiv 2404.05868)",
        setting=f"random-feature classifier, {len(seeds)} seeds, {steps} steps; KL to the retrained model, in nats",
        columns=("forget, at its closest", "retain, there", "retain, at the end"),
        rows=rows,
        verdict=verdict,
        reason="every statement above holds" if not failed else "does not hold here: " + "; ".join(failed),
        checks=checks,
        seeds=seeds,
        extra=extra,
    )
