"""NPO: the authors' synthetic experiment in full, and NPO against the baselines on invented authors with an oracle.

Claims looked at (arXiv 2404.05868): at its closest to the retrained model NPO has disturbed the retain data less than
gradient ascent has, and NPO with a retain term less than gradient difference; and gradient ascent goes on to collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..beds.budget import Budget
from ..beds.synthetic import RowKind, Track, fit, make, nll, unlearn
from ..forget.npo import npo_loss
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from ..beds.authors import Ends

# (gap of the two kinds, learning rates and beta of the authors' configuration)
SETTINGS: dict[float, dict[str, float]] = {
    1.0: {"ascent": 5e-4, "npo": 5e-3, "beta": 1.0},
    0.0: {"ascent": 1e-4, "npo": 5e-2, "beta": 10.0},
}


def losses(kinds: dict[str, RowKind], start: Tensor, beta: float) -> dict[str, Callable[[Tensor], Tensor]]:
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
    ways = {}
    for name, loss in losses(kinds, start, setting["beta"]).items():
        rate = setting["npo" if name.startswith("NPO") else "ascent"]
        ways[name] = unlearn(kinds, start, oracle, loss, rate, steps)
    return ways


def run(budget: Budget) -> Claim:
    """Synthetic experiment; with the small budget and up also the invented authors."""
    tiny = budget.size == "tiny"
    fit_steps, steps = (400, 200) if tiny else (20_000, 2_000)
    seeds = budget.seeds[:1] if tiny else tuple(range(max(5, len(budget.seeds))))
    torch.set_num_threads(1)  # the matrices are too small to share
    rows: dict[str, tuple[Any, ...]] = {}
    checks: list[Check] = []
    for gap in SETTINGS:
        runs = [tracks(seed, gap, fit_steps, steps) for seed in seeds]
        for name in runs[0]:
            ways = [by_name[name] for by_name in runs]
            rows[f"gap {gap:g}: {name}"] = (
                spread([way.forget[way.best] for way in ways]),
                spread([way.retain[way.best] for way in ways]),
                spread([way.retain[-1] for way in ways]),
            )
        checks += _checks(gap, runs)
    extra: dict[str, Any] = {}
    if not tiny:
        from ..beds.authors import npo_on_authors

        extra, ends = npo_on_authors(budget)
        checks += _on_authors(ends)
    return Claim(
        slug="npo",
        claim="NPO unlearns without the collapse of gradient ascent; it reaches the retrained model's neighbourhood "
        "with less damage to what is kept (random-feature model and TOFU, arXiv 2404.05868)",
        setting=f"random-feature classifier, {len(seeds)} seeds, {steps} steps; KL to the retrained model, in nats",
        columns=("forget, at its closest", "retain, there", "retain, at the end"),
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks),
        checks=tuple(checks),
        seeds=seeds,
        extra=extra,
    )


def _checks(gap: float, runs: Sequence[dict[str, Track]]) -> list[Check]:
    """The authors' comparisons, each a figure a seed: differences in nats, and by what factor GA's distance grows."""

    def at_best(name: str) -> list[float]:
        return [by_name[name].retain[by_name[name].best] for by_name in runs]

    def less(ours: str, theirs: str) -> list[float]:
        return [own - other for own, other in zip(at_best(ours), at_best(theirs), strict=True)]

    grown = [by_name["GA"].retain[-1] / best for by_name, best in zip(runs, at_best("GA"), strict=True)]
    at = f"gap {gap:g}"
    return [
        Check.by_seed(
            "claim", f"{at}: NPO disturbs the retain data less than GA at its closest", less("NPO", "GA"), "<", 0
        ),
        Check.by_seed(
            "claim", f"{at}: NPO+RT disturbs it less than GradDiff at its closest", less("NPO+RT", "GradDiff"), "<", 0
        ),
        Check.by_seed("claim", f"{at}: GA's retain distance keeps growing after its closest", grown, ">", 1.2),
    ]


def _on_authors(ends: Ends) -> list[Check]:
    """The card's conditions on the invented authors, each a figure a seed."""

    def end(name: str, part: str) -> list[float]:
        return [getattr(point, part) for point in ends.points[name]]

    both, difference = end("NPO+RT", "quality"), end("GradDiff", "quality")
    quality = [min(own - 0.05, own - other) for own, other in zip(both, difference, strict=True)]
    shares = [rouge / ends.start_rouge for rouge in ends.rouge["NPO+RT"]]
    off = [abs(value - ends.twin) for value in end("NPO+RT", "forget")]
    return [
        Check.by_seed(
            "claim", "authors: NPO+RT's forget quality ends above 0.05, and above GradDiff's", quality, ">", 0
        ),
        Check.by_seed("claim", "authors: GA's retain probability collapses below 0.1", end("GA", "retain"), "<", 0.1),
        Check.by_seed(
            "claim", "authors: GradDiff's retain probability collapses below 0.1", end("GradDiff", "retain"), "<", 0.1
        ),
        Check.by_seed("claim", "authors: NPO+RT keeps 0.7 of the retain ROUGE", shares, ">=", 0.7),
        Check.by_seed("claim", "authors: NPO+RT's forget probability ends within 0.1 of the oracle's", off, "<=", 0.1),
    ]


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """How far the retain data is from the retrained model's at each method's closest."""
    npo, ga, both, difference = (figure(rows, f"gap 1: {name}", 1) for name in ("NPO", "GA", "NPO+RT", "GradDiff"))
    return f"KL to retraining on retain data: {npo} NPO, {ga} GA; {both} NPO+RT, {difference} GradDiff"
