"""LocalLeap against the plain threshold, a threshold with as many forwards, and neighbours drawn at random.

Claim looked at (arXiv 2510.07081): near a token that the model is sure of a lower bar is safe, so decoding takes fewer forwards
without loss. If being near matters, the rule must be right more often than random neighbours and than a lower threshold, both at
equal forwards; and a proposal must be the less often final the further away the nearest sure token is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Curve, Difference, SamplerTrial, difference, share
from ..diffusion import Sampler
from ..diffusion.base import Step
from ..diffusion.parts.localleap import LocalLeap, RandomNeighbours, Settled, settled
from ..diffusion.parts.rules import FixedBlocks
from ..scoring.intervals import Interval
from .base import Claim
from .checks import Check, reason_of

Estimate = tuple[float, Interval]
RADII, BARS = (1, 2, 4, 8), (0.6, 0.75, 0.85)
SEEN = 200  # prompts on which proposals are followed to the end
FARTHEST = 8


def run(budget: Budget) -> Claim:
    """The card's arms."""
    trial = denoising.trial(budget)
    curve = trial.curve()
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
    grid = [(radius, 0.75) for radius in RADII] + [(4, bar) for bar in BARS if bar != 0.75]
    rows: dict[str, tuple[Any, ...]] = {arm.name: trial.row(arm) for arm in curve.arms}
    for radius, bar in grid:
        arm = trial.run(f"radius {radius}, bar {bar:g}", replace(base, commit=LocalLeap(0.9, bar, radius)))
        rows[arm.name] = trial.row(arm, curve)
    drawn = {radius: [_drawn(trial, base, radius, bar) for bar in BARS] for radius in (4, 1)}
    rows |= {arm.name: trial.row(arm, curve) for arms in drawn.values() for arm in arms}
    ours, plain = trial.done["radius 4, bar 0.75"], trial.done["threshold 0.9"]
    loss, matched = difference(ours, plain), difference(ours, curve.at(ours.forwards))
    nearby, nearest = (
        difference(arm, Curve([*drawn[radius], plain]).at(arm.forwards))
        for radius, arm in ((4, ours), (1, trial.done["radius 1, bar 0.75"]))
    )
    one = trial.done["one by one"]
    followed = _settled(trial, base)
    falls = _falls(followed)
    checks = _checks(share([(ours.nfe, plain.nfe)]), {"plain": loss, "lower": matched, "random": nearby}, falls)
    return Claim(
        slug="localleap",
        claim="6.94x throughput over one token a step, steps down to 14.2 %, quality nearly unchanged (LLaDA and Dream, arXiv "
        "2510.07081)",
        setting=denoising.setting(trial),
        columns=denoising.COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            f"{ours.forwards:.1f} forwards against {plain.forwards:.1f} of the threshold and {one.forwards:.0f} one by one "
            f"({100 * ours.forwards / one.forwards:.0f} %); {loss} points against the threshold, {matched} against a lower one at equal "
            f"forwards, {nearby} against random neighbours ({nearest} with radius 1, where fewer are neighbours); P(final) changes by "
            f"{falls[0]:+.3f} a position of distance",
        ),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "final_by_confidence_and_distance": [
                [round(v, 4) if count else None for v, count in zip(*lines, strict=True)]
                for lines in zip(followed.share.tolist(), followed.seen.tolist(), strict=True)
            ],
            "seen": followed.seen.tolist(),
        },
    )


def _checks(left: Estimate, ahead: Mapping[str, Difference], falls: Estimate) -> tuple[Check, ...]:
    """The card's conditions; as many forwards spent by a lower threshold or on random neighbours are the controls.

    Args:
        left: the share of the threshold's forwards.
        ahead: points ahead of the plain threshold, of a lower one and of random neighbours at equal forwards.
        falls: how P(final) changes with distance.
    """
    plain, lower, random = ahead["plain"], ahead["lower"], ahead["random"]
    final = "proposals are less often final further from a sure token"
    return (
        Check("claim", "fewer forwards than the threshold it starts from", left[0], "<", 1, left[1]),
        Check("claim", "no more than a point lost against it", plain.points, ">=", -1, plain.interval),
        Check("control", "at equal forwards not below a lower threshold", lower.points, ">=", 0, lower.interval),
        Check("control", "at equal forwards better than random neighbours", random.points, ">", 0, random.interval),
        Check("claim", final, falls[0], "<", 0, falls[1]),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Forwards beside the threshold's, and what nearness is worth at equal forwards."""
    ours, plain = rows["radius 4, bar 0.75"], rows["threshold 0.9"]
    right, was = (row[1].split(" +- ")[0] for row in (ours, plain))
    return f"{ours[0]} forwards, {right} % right (threshold {plain[0]}, {was}); {ours[2]} over lower bars"


def _drawn(trial: SamplerTrial, base: Sampler, radius: int, bar: float) -> Arm:
    """The control: as many neighbours, at random places."""
    name = f"random neighbours as of radius {radius}, bar {bar:g}"
    return trial.run(name, replace(base, commit=RandomNeighbours(0.9, bar, radius)))


def _settled(trial: SamplerTrial, base: Sampler) -> Settled:
    """Followed one token a step: what a step reveals would be final by being revealed."""
    ids = trial.bed.tokenizer
    total: Settled | None = None
    for start in range(0, min(SEEN, len(trial.asked)), 50):
        steps: list[Step] = []
        batch = [ids(item.prompt)["input_ids"] for item in trial.asked[start : start + 50]]
        out = replace(testbed.one_by_one(), watch=steps.append)(trial.bed.predictor, None, batch)
        assert out.sequences is not None
        part = settled(steps, out.sequences, farthest=FARTHEST)
        total = part if total is None else Settled(total.final + part.final, total.seen + part.seen)
    assert total is not None
    return total


def _falls(counts: Settled) -> Estimate:
    """Slope of P(final) over distance 1 to FARTHEST, confidences between 0.5 and 0.9, weighted by what was seen.

    Its interval is two standard errors of the shares wide, each share drawn towards a half by one proposal of either kind, so
    that none and all of a few are not certain.
    """
    proposals, final = counts.seen[2:4, 1:].sum(0).double().numpy(), counts.final[2:4, 1:].sum(0).double().numpy()
    if int((proposals > 0).sum()) < 2:
        return 0.0, (0.0, 0.0)
    distance = np.arange(1, FARTHEST + 1)
    away = distance - np.average(distance, weights=proposals)
    square = (proposals * away**2).sum()
    slope = float((away * final).sum() / square)
    smooth = (final + 1) / (proposals + 2)
    error = 1.96 * float(np.sqrt((proposals * away**2 * smooth * (1 - smooth)).sum())) / float(square)
    return slope, (slope - error, slope + error)
