"""CreditDecoding against the plain threshold, and against a lower threshold with the same number of forwards.

Claim looked at (arXiv 2510.06133): adding decayed credit for tokens that keep winning to their logits lets a threshold accept them
earlier, without loss. The sceptic's reading is that it only lowers the threshold: so the same test is made at equal forwards.
The delay of a position is the number of forwards between the first at which its final token was on top and its reveal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Trial, difference
from ..diffusion import Sampler
from ..diffusion.base import Step
from ..diffusion.parts.credit import CreditDecoding
from ..diffusion.parts.rules import FixedBlocks, Threshold
from .base import Claim, verdict_of

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
    saved, lost, ahead = [], [], []
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
    for bar in BARS:
        plain = trial.run(f"threshold {bar:g}", replace(base, commit=Threshold(bar)))
        for name, form in FORMS.items():
            arm = trial.run(f"{name}, threshold {bar:g}", replace(base, commit=Threshold(bar), logits=form))
            rows[arm.name] = trial.row(arm, curve)
            if name == "credit":
                saved.append(1 - arm.forwards / plain.forwards)
                lost.append(difference(arm, plain))
                ahead.append(difference(arm, curve.at(arm.forwards)))
    delays = {
        name: _delays(trial, replace(base, logits=logits))
        for name, logits in (("plain", None), ("credit", FORMS["credit"]))
    }
    checks = {
        "a tenth fewer forwards, on average over thresholds": float(np.mean(saved)) >= 0.1,
        "no more than a point lost, on average over thresholds": float(np.mean([d.points for d in lost])) >= -1,
        "at equal forwards not below the plain threshold": float(np.mean([d.points for d in ahead])) >= 0,
        "positions wait less for their reveal": float(delays["credit"].mean()) < float(delays["plain"].mean()),
    }
    gain = (
        f"{100 * float(np.mean(saved)):.0f} % fewer forwards at {float(np.mean([d.points for d in lost])):+.1f} points"
    )
    at_equal = ", ".join(f"{d} at {bar:g}" for d, bar in zip(ahead, BARS, strict=True))
    lifted = any(d.low > 0 for d in ahead)
    reading = "more than a lower threshold" if lifted else "no more than a lower threshold gives"
    return Claim(
        slug="credit",
        claim="5.48x speed-up and +0.48 points over eight benchmarks (LLaDA-8B, arXiv 2510.06133)",
        setting=denoising.setting(trial),
        columns=denoising.COLUMNS,
        rows=rows,
        verdict=verdict_of(checks),
        reason=f"{gain}; at equal forwards {at_equal}: {reading}. Mean wait {delays['plain'].mean():.2f} forwards, with credit "
        f"{delays['credit'].mean():.2f}",
        checks=checks,
        seeds=budget.seeds,
        extra={
            "delays": {name: np.bincount(found.astype(int), minlength=1).tolist() for name, found in delays.items()}
        },
    )


def _delays(trial: Trial, sampler: Sampler) -> np.ndarray:
    """Forwards every position waited, one number a position of the first prompts."""
    ids, found = trial.bed.tokenizer, []
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
        found += [int(order[place]) - seen for place, seen in first.items()]
    return np.array(found, dtype=float)
