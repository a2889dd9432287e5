"""CreditDecoding against the plain threshold, and against a lower threshold with the same number of forwards.

Claim looked at (arXiv 2510.06133): adding decayed credit for tokens that keep winning to their logits lets a threshold accept them
earlier, without loss. The sceptic's reading is that it only lowers the threshold: so the same test is made at equal forwards.
The delay of a position is the number of forwards between the first at which its final token was on top and its reveal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Difference, SamplerTrial, difference, gains, share
from ..diffusion import Sampler
from ..diffusion.base import Step
from ..diffusion.parts.credit import CreditDecoding
from ..diffusion.parts.rules import FixedBlocks, Threshold
from ..scoring.intervals import Interval, draws, ends
from .base import Claim
from .checks import Check, reason_of

BARS = (0.8, 0.9, 0.95)
FORMS: Mapping[str, CreditDecoding] = {
    "credit": CreditDecoding.paper(),
    "credit, dInfer's rates": CreditDecoding.dinfer(),
    "credit, adaptive": CreditDecoding.adaptive(),
}
DELAYED = 60  # prompts on which delays are looked at


def run(budget: Budget) -> Claim:
    """The card's grid: thresholds x {plain, paper, dInfer's, adaptive}."""
    trial = denoising.trial(budget)
    curve = trial.curve()
    rows: dict[str, tuple[Any, ...]] = {arm.name: trial.row(arm) for arm in curve.arms}
    plains: list[tuple[Arm, Arm]] = []
    matched: list[tuple[Arm, Arm]] = []
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
    for bar in BARS:
        plain = trial.run(f"threshold {bar:g}", replace(base, commit=Threshold(bar)))
        for name, form in FORMS.items():
            arm = trial.run(f"{name}, threshold {bar:g}", replace(base, commit=Threshold(bar), logits=form))
            rows[arm.name] = trial.row(arm, curve)
            if name == "credit":
                plains.append((arm, plain))
                matched.append((arm, curve.at(arm.forwards)))
    delays = {
        name: _delays(trial, replace(base, logits=logits))
        for name, logits in (("plain", None), ("credit", FORMS["credit"]))
    }
    checks = _checks(plains, matched, delays)
    lost = Difference.of(gains(plains)).points
    gain = f"{100 * (1 - _left(plains)[0]):.0f} % fewer forwards at {lost:+.1f} points"
    ahead = [difference(*pair) for pair in matched]
    at_equal = ", ".join(f"{d} at {bar:g}" for d, bar in zip(ahead, BARS, strict=True))
    lifted = any(d.low > 0 for d in ahead)
    reading = "more than a lower threshold" if lifted else "no more than a lower threshold gives"
    return Claim(
        slug="credit",
        claim="5.48x speed-up and +0.48 points over eight benchmarks (LLaDA-8B, arXiv 2510.06133)",
        setting=denoising.setting(trial),
        columns=denoising.COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            f"{gain}; at equal forwards {at_equal}: {reading}. Mean wait {delays['plain'].mean():.2f} forwards, with credit "
            f"{delays['credit'].mean():.2f}",
        ),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "delays": {name: np.bincount(waits.astype(int), minlength=1).tolist() for name, waits in delays.items()}
        },
    )


def _left(plains: Sequence[tuple[Arm, Arm]]) -> tuple[float, Interval]:
    """The share of the forwards that credit leaves, on average over thresholds."""
    return share([(ours.nfe, plain.nfe) for ours, plain in plains])


def _checks(
    plains: Sequence[tuple[Arm, Arm]], matched: Sequence[tuple[Arm, Arm]], delays: Mapping[str, np.ndarray]
) -> tuple[Check, ...]:
    """The card's conditions; a lower threshold that does as well is the control.

    Args:
        plains: credit beside the same threshold without it.
        matched: credit beside the threshold with as many forwards.
        delays: forwards that positions waited.
    """
    (left, interval), lost, ahead = _left(plains), Difference.of(gains(plains)), Difference.of(gains(matched))
    waits = {name: waited[draws(len(waited), 1000)].mean(1) for name, waited in delays.items()}
    waited = float(delays["credit"].mean() - delays["plain"].mean())
    tenth = "a tenth fewer forwards, on average over thresholds"
    point = "no more than a point lost, on average over thresholds"
    less = ends(waits["credit"] - waits["plain"])
    return (
        Check("claim", tenth, left, "<=", 0.9, interval),
        Check("claim", point, lost.points, ">=", -1, lost.interval),
        Check("control", "at equal forwards not below the plain threshold", ahead.points, ">=", 0, ahead.interval),
        Check("claim", "positions wait less for their reveal", waited, "<", 0, less),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What credit is worth beside a lower threshold with as many forwards, at the middle threshold."""
    bar = BARS[len(BARS) // 2]
    ours = rows[f"credit, threshold {bar:g}"]
    return f"{ours[2]} points over a lower threshold with as many forwards, {ours[0]}"


def _delays(trial: SamplerTrial, sampler: Sampler) -> np.ndarray:
    """Forwards every position waited, one number a position of the first prompts."""
    ids, delays = trial.bed.tokenizer, []
    for item in trial.asked[:DELAYED]:
        steps: list[Step] = []
        prompt = ids(item.prompt)["input_ids"]
        out = replace(sampler, watch=steps.append)(trial.bed.predictor, None, [prompt])
        assert out.trace is not None
        order, final = out.trace.order[0], out.sequences[0, len(prompt) :]
        first: dict[int, int] = {}
        for step in steps:
            for place, token in zip(
                (step.columns[0] - len(prompt)).tolist(), step.clean[0].argmax(-1).tolist(), strict=True
            ):
                if token == int(final[place]):
                    first.setdefault(place, int(step.number))
        delays += [int(order[place]) - on_top for place, on_top in first.items()]
    return np.array(delays, dtype=float)
