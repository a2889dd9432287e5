"""Prophet against running all steps, stopping after a fixed number of them, and stopping at random.

Claim looked at (arXiv 2508.19982): the answer is known long before decoding ends, and the gap of the two largest logits where it will
stand tells when; stopping then halves the steps without loss. Asked are worked sums whose result stands at a fixed place behind an
anchor; right is the result, since what else was not yet written is filled from a single look. Bars are calibrated on other prompts,
as the paper's are in units of another model's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Curve, Difference, SamplerTrial, difference, share
from ..beds.denoising_ready import After, calibrated, watched, written
from ..diffusion import Sampler
from ..diffusion.parts.prophet import Convergence, Prophet, answer_convergence
from ..diffusion.parts.rules import FixedBlocks, Threshold, TopK
from ..scoring.intervals import Interval, wilson
from .base import Claim
from .checks import Check, reason_of

CALIBRATED, LOOKED = 100, 100  # prompts for the bars, and for the histogram of when answers are known
TRUNCATED = (2, 4, 8, 16, 24, 32, 40, 48, 56)
COLUMNS = ("forwards/answer", "right results, %", "Prophet against it, points")


def run(budget: Budget) -> Claim:
    """The card's arms, all with the same anchor."""
    trial = denoising.trial(budget, ("anchored",))
    whole = Sampler(gen_length=testbed.ANSWER, steps=testbed.ANSWER, blocks=FixedBlocks(32), commit=TopK())
    others = denoising.prompts(min(CALIBRATED, len(trial.asked)), 1 + max(budget.seeds), ("anchored",))
    prophet = calibrated(trial.bed, whole, others, Prophet(), _extract(trial.bed), testbed.anchor())
    full = _run(trial, "all steps", whole)
    ours = _run(trial, "Prophet", replace(whole, stop=prophet))
    fixed = Curve([full, *(_run(trial, f"stop after {n}", replace(whole, stop=After((n,)))) for n in TRUNCATED)])
    drawn = _run(trial, "stop at random", replace(whole, stop=After(tuple(int(n) for n in ours.nfe))))
    quick = replace(whole, steps=None, commit=Threshold(0.9))
    plain = _run(trial, "threshold 0.9", quick)
    both = _run(trial, "threshold 0.9 + Prophet", replace(quick, stop=prophet))
    same = fixed.at(ours.forwards)
    loss, truncated, by_chance = difference(ours, full), difference(ours, same), difference(ours, drawn)
    places: tuple[tuple[str, Mapping[int, int]], ...] = (("anchor", testbed.anchor()), ("no anchor", {}))
    convergences = {name: _convergence(trial, whole, anchor) for name, anchor in places}
    known = {name: _known(results) for name, results in convergences.items()}
    settled = {name: [float(one.by(0.5, True)) for one in results] for name, results in convergences.items()}
    checks = _checks(share([(ours.nfe, full.nfe)]), loss, {"after": truncated, "random": by_chance}, settled)
    rows: dict[str, tuple[Any, ...]] = {}
    for arm in (full, ours, same, drawn, plain, both, *fixed.arms[1:]):
        ahead = "" if arm is ours else str(difference(ours, arm))
        rows["stop after as many steps" if arm is same else arm.name] = (*trial.row(arm)[:2], ahead)
    return Claim(
        slug="prophet",
        claim="up to 3.4x fewer steps; 97 % (GSM8K) and 99 % (MMLU) of answers right with half the steps (LLaDA-8B, arXiv "
        "2508.19982)",
        setting=denoising.setting(trial) + "; sums with an anchored result, which alone is judged",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            f"{ours.forwards:.1f} of {full.forwards:.0f} steps at {loss} points; {truncated} against stopping after as many steps, "
            f"{by_chance} against stopping at random; {100 * known['anchor']['stable by 50 %']:.0f} % of results are settled by half of the "
            f"steps, {100 * known['no anchor']['stable by 50 %']:.0f} % without the anchor",
        ),
        checks=checks,
        seeds=budget.seeds,
        extra={"bars": prophet.bars, "known": known},
    )


def _checks(
    left: tuple[float, Interval],
    loss: Difference,
    ahead: Mapping[str, Difference],
    settled: Mapping[str, Sequence[float]],
) -> tuple[Check, ...]:
    """The card's conditions; stopping blindly after as many steps, all at one or at random, is the control.

    Args:
        left: the share of all steps.
        loss: points behind all steps.
        ahead: points ahead of stopping after as many steps, and at random.
        settled: whether a prompt's result is settled by half of the steps, with the anchor and without. [prompts] each
    """
    after, random, known = ahead["after"], ahead["random"], settled["anchor"]
    half = "more than half of the answers are settled by half of the steps"
    anchored = "and more with the anchor than without"
    share_known = wilson(int(sum(known)), len(known))
    return (
        Check("claim", "at most 70 % of the steps", left[0], "<=", 0.7, left[1]),
        Check("claim", "no more than a point lost", loss.points, ">=", -1, loss.interval),
        Check("control", "better than stopping after as many steps", after.points, ">", 0, after.interval),
        Check("control", "better than stopping at random", random.points, ">", 0, random.interval),
        Check("claim", half, fmean(known), ">", 0.5, share_known),
        Check.paired("claim", anchored, known, settled["no anchor"]),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Steps beside all of them, and what Prophet is worth beside stopping after as many."""
    ours, full, after = (rows[name] for name in ("Prophet", "all steps", "stop after as many steps"))
    return f"{ours[0]} of {full[0]} steps; {after[2]} points over stopping after as many steps"


def result(text: str) -> str:
    """What stands behind the anchor."""
    return text[testbed.ANCHOR_AT + len(testbed.ANCHOR) :].strip()


def _run(trial: SamplerTrial, name: str, sampler: Sampler) -> Arm:
    """An arm that is right where its result is."""
    judged = testbed.judge(trial.bed, sampler, trial.asked, fixed=testbed.anchor())
    right = [result(text) == result(item.answer) for text, item in zip(judged.texts, trial.asked, strict=True)]
    trial.done[name] = Arm(name, np.array(right, dtype=float), np.array(judged.nfe, dtype=float))
    return trial.done[name]


def _extract(bed: testbed.TestBed) -> Callable[[Sequence[int]], str]:
    """The result in generated ids."""
    return lambda ids: result(written(bed, ids))


def _convergence(trial: SamplerTrial, sampler: Sampler, fixed: Mapping[int, int]) -> list[Convergence]:
    """When each of the first prompts' results was known."""
    items = list(trial.asked[:LOOKED])
    there = Prophet(start=testbed.ANCHOR_AT + len(testbed.ANCHOR) + 1)
    log, extract = watched(trial.bed, sampler, items, there, fixed), _extract(trial.bed)
    return [answer_convergence(log.guesses[row], extract, result(item.answer)) for row, item in enumerate(items)]


def _known(convergences: Sequence[Convergence]) -> dict[str, float]:
    """Shares of prompts whose result was right, once or from then on, by a quarter and by half of the steps."""
    return {
        f"{kind} by {100 * share:.0f} %": float(np.mean([one.by(share, kind == "stable") for one in convergences]))
        for kind in ("right", "stable")
        for share in (0.25, 0.5)
    }
