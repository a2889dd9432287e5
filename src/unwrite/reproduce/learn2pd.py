"""Learn2PD against the plain threshold and against the oracle it learns from, each with and without cutting behind the end.

Claim looked at (arXiv 2509.25188): a filter of 2112 weights that reads a block's confidences knows which predictions are final, so it
needs far fewer forwards than one token a step, and cutting behind the end token saves the rest. If a tuned threshold does as well, the
filter learnt nothing but a threshold: so it is compared at equal forwards. The oracle, which knows the final text, is the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Difference, SamplerTrial, difference, share
from ..beds.denoising_ready import taught
from ..diffusion import EarlyStop, Sampler
from ..diffusion.base import CommitRule, Edit
from ..diffusion.parts.learn2pd import EoTP, Filter, LearnedSelect, Oracle, Records, judge
from ..diffusion.parts.rules import FixedBlocks, Threshold, TopK
from ..scoring.intervals import Interval
from .base import Claim
from .checks import Check, reason_of

BLOCK = 16
LEARNT = {"tiny": 8, "small": 500, "medium": 1500, "full": 3000}  # prompts for labels
EPOCHS = {"tiny": 20, "small": 4000, "medium": 20_000, "full": 40_000}
BARS = (0.9, 0.96)
THRESHOLDS = (0.8, 0.9, 0.95)
CUTS: dict[str, Edit] = {"early stop": EarlyStop(), "EoTP": EoTP()}
COLUMNS = ("forwards/answer", "right, %", "columns/answer", "against the threshold at equal forwards, points")


def run(budget: Budget) -> Claim:
    """The card's arms."""
    trial = denoising.trial(budget)
    items = denoising.prompts(LEARNT[budget.size], 1 + max(budget.seeds))
    records, learnt = taught(trial.bed, items, BLOCK, EPOCHS[budget.size])
    assert learnt.report is not None
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(BLOCK))
    curve = trial.curve(base=base)
    arms = _arms(trial, base, learnt, learnt.report.bar)
    one, ours, oracle = arms["one token a step"], arms["filter 0.96"], arms["oracle"]
    matched, loss = difference(ours, curve.at(ours.forwards)), difference(ours, one)
    calibrated = arms["filter, calibrated bar"]
    at_equal = difference(calibrated, curve.at(calibrated.forwards))
    saved = {
        f"{ending}, {name}": _columns(arms[name]) / _columns(arms[f"{name}, {ending}"])
        for ending in CUTS
        for name in ("one token a step", "filter 0.96", "threshold 0.9")
    }
    shorter = _shorter(trial)
    checks = _checks(arms, loss, matched, shorter)
    short, long = (_saved(ours, arms["filter 0.96, EoTP"], half)[0] for half in (shorter, ~shorter))
    rows = {name: _row(trial, arm, curve) for name, arm in arms.items()}
    verdict = "no better than a tuned threshold" if matched.low <= 0 else "more than a threshold"
    return Claim(
        slug="learn2pd",
        claim="12.2x, with EoTP 22.6x tokens a second on GSM8K at 1,024 positions, 77.3 and 79.8 against 77.6 (LLaDA-8B, arXiv 2509.25188)",
        setting=denoising.setting(trial)
        + f"; blocks of {BLOCK}, a filter of {sum(p.numel() for p in learnt.parameters())} weights from "
        f"{len(records)} records of {len(items)} other prompts",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            f"{one.forwards / ours.forwards:.1f}x fewer forwards than one token a step at {loss} points; at equal forwards {matched} "
            f"against a threshold ({verdict}), {at_equal} with the calibrated bar; the oracle takes {oracle.forwards:.1f} forwards against "
            f"{ours.forwards:.1f}; EoTP computes {saved['EoTP, filter 0.96']:.2f}x fewer columns, stopping at the first finished block "
            f"with an end token {saved['early stop, filter 0.96']:.2f}x",
        ),
        checks=checks,
        seeds=budget.seeds,
        extra={
            **_figures(learnt, records),
            "fewer columns by cutting": saved,
            "fewer forwards by EoTP, shorter and longer half of the answers": [short, long],
        },
    )


def _checks(arms: Mapping[str, Arm], loss: Difference, matched: Difference, shorter: np.ndarray) -> tuple[Check, ...]:
    """The card's conditions; a threshold with as many forwards is the control, and without room below it the bed can't tell.

    Args:
        loss, matched: points behind one token a step, and ahead of the threshold at equal forwards.
        shorter: which prompts have the shorter answers. [prompts]
    """
    one, ours, cut, oracle = (arms[name] for name in ("one token a step", "filter 0.96", "filter 0.96, EoTP", "oracle"))
    quickest = min((ours, *(arms[f"threshold {bar:g}"] for bar in THRESHOLDS)), key=lambda arm: arm.forwards)
    (left, of_one), (room, of_both) = (share([(a.nfe, b.nfe)]) for a, b in ((ours, one), (oracle, quickest)))
    assert ours.work is not None
    assert cut.work is not None
    work, of_work = share([(cut.work, ours.work)])
    (short, short_range), (long, long_range) = (_saved(ours, cut, half) for half in (shorter, ~shorter))
    apart = (short_range[0] - long_range[1], short_range[1] - long_range[0])
    return (
        Check("set-up", "the oracle is clearly faster than both", room, "<", 0.8, of_both),
        Check("claim", "at least twice fewer forwards", left, "<=", 0.5, of_one),
        Check("claim", "no more than a point lost", loss.points, ">=", -1, loss.interval),
        Check("control", "at equal forwards not below a threshold", matched.points, ">=", 0, matched.interval),
        Check("claim", "cutting behind the end saves work", work, "<", 1, of_work),
        Check("claim", "and more where the answer is shorter", short - long, ">", 0, apart),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Forwards beside one token a step, the oracle's, and what the filter is worth beside a threshold."""
    one, ours, oracle = (rows[name] for name in ("one token a step", "filter 0.96", "oracle"))
    return f"{ours[0]} forwards (one by one {one[0]}, oracle {oracle[0]}); {ours[3]} points over a threshold"


def _arms(trial: SamplerTrial, base: Sampler, learnt: Filter, calibrated: float) -> dict[str, Arm]:
    """Every rule plain, with early stop and with EoTP; the oracle last."""
    rules: dict[str, CommitRule] = {"one token a step": Threshold(2.0)}  # the surest alone, as the curve's
    rules |= {f"threshold {bar:g}": Threshold(bar) for bar in THRESHOLDS}
    rules |= {f"filter {bar:g}": LearnedSelect(learnt, bar) for bar in BARS}
    rules["filter, calibrated bar"] = LearnedSelect(learnt, calibrated)
    arms: dict[str, Arm] = {}
    for name, rule in rules.items():
        arms[name] = trial.run(name, replace(base, commit=rule))
        for ending, edit in CUTS.items():
            cut = f"{name}, {ending}"
            arms[cut] = trial.run(cut, replace(base, commit=rule, edit=edit))
    return arms | _oracles(trial, base, arms["one token a step"])


def _figures(learnt: Filter, records: Records) -> dict[str, Any]:
    """Of the filter's training."""
    assert learnt.report is not None
    wrong = judge(learnt, records.split()[2], 0.96).false_positives
    return {
        "bar": learnt.report.bar,
        "epochs": learnt.report.epochs,
        "wrong among kept at 0.96, test records": None if np.isnan(wrong) else round(wrong, 4),
        "accuracy and base rate, test records": [learnt.report.test.accuracy, learnt.report.test.base_rate],
    }


def _oracles(trial: SamplerTrial, base: Sampler, one: Arm) -> dict[str, Arm]:
    """The ceiling: texts are those of one token a step by construction, up to the end token."""
    arms = {"oracle": base} | {f"oracle, {ending}": replace(base, edit=edit) for ending, edit in CUTS.items()}
    nfe: dict[str, list[int]] = {name: [] for name in arms}
    work: dict[str, list[int]] = {name: [] for name in arms}
    for start in range(0, len(trial.asked), 128):
        prompts = [trial.bed.tokenizer(item.prompt)["input_ids"] for item in trial.asked[start : start + 128]]
        sequences = replace(base, commit=TopK())(trial.bed.predictor, None, prompts).sequences
        answers = torch.stack([sequences[row, len(prompt) :] for row, prompt in enumerate(prompts)])
        for name, sampler in arms.items():
            out = replace(sampler, commit=Oracle(answers))(trial.bed.predictor, None, prompts)
            nfe[name] += out.nfe.tolist()
            work[name] += out.trace.work.tolist()
    return {
        name: Arm(name, one.right, np.array(nfe[name], dtype=float), np.array(work[name], dtype=float)) for name in arms
    }


def _columns(arm: Arm) -> float:
    """Computed for a prompt, on average."""
    assert arm.work is not None
    return float(arm.work.mean())


def _row(trial: SamplerTrial, arm: Arm, curve: denoising.Curve) -> tuple[Any, ...]:
    forwards, right, ahead = trial.row(arm, None if arm.name.startswith("oracle") else curve)
    return forwards, right, f"{_columns(arm):.0f}", ahead


def _shorter(trial: SamplerTrial) -> np.ndarray:
    """Which prompts are in the half with the shorter answers. [prompts]"""
    lengths = np.array([len(item.answer) for item in trial.asked])
    shorter: np.ndarray = lengths <= np.median(lengths)
    return shorter


def _saved(plain: Arm, cut: Arm, which: np.ndarray) -> tuple[float, Interval]:
    """By what factor cutting saves forwards on some of the prompts; 1 where there are none."""
    return share([(plain.nfe[which], cut.nfe[which])]) if which.any() else (1.0, (1.0, 1.0))
