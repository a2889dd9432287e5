"""Learn2PD against the plain threshold and against the oracle it learns from, each with and without cutting behind the end.

Claim looked at (arXiv 2509.25188): a filter of 2112 weights that reads a block's confidences knows which predictions are final, so it
needs far fewer forwards than one token a step, and cutting behind the end token saves the rest. If a tuned threshold does as well, the
filter learnt nothing but a threshold: so it is compared at equal forwards. The oracle, which knows the final text, is the ceiling.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Trial, difference
from ..beds.denoising_ready import taught
from ..diffusion import EarlyStop, Sampler
from ..diffusion.base import CommitRule, Edit
from ..diffusion.parts.learn2pd import EoTP, Filter, LearnedSelect, Oracle, Records, judge
from ..diffusion.parts.rules import FixedBlocks, Threshold, TopK
from .base import Claim, verdict_of

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
    asked = denoising.prompts(LEARNT[budget.size], 1 + max(budget.seeds))
    records, learnt = taught(trial.bed, asked, BLOCK, EPOCHS[budget.size])
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
    quickest = min(arms[f"threshold {bar:g}"].forwards for bar in THRESHOLDS)
    short, long = _by_length(trial, ours, arms["filter 0.96, EoTP"])
    checks = {
        "at least twice fewer forwards": one.forwards >= 2 * ours.forwards,
        "no more than a point lost": loss.points >= -1,
        "at equal forwards not below a threshold": matched.points >= 0,
        "the oracle is clearly faster than both": oracle.forwards < 0.8 * min(ours.forwards, quickest),
        "cutting behind the end saves work": saved["EoTP, filter 0.96"] > 1,
        "and more where the answer is shorter": short > long,
    }
    verdict = "no better than a tuned threshold" if matched.low <= 0 else "more than a threshold"
    return Claim(
        slug="learn2pd",
        claim="12.2x, with EoTP 22.6x tokens a second on GSM8K at 1,024 positions, 77.3 and 79.8 against 77.6 (LLaDA-8B, arXiv 2509.25188)",
        setting=denoising.setting(trial)
        + f"; blocks of {BLOCK}, a filter of {sum(p.numel() for p in learnt.parameters())} weights from "
        f"{len(records)} records of {len(asked)} other prompts",
        columns=COLUMNS,
        rows={name: _row(trial, arm, curve) for name, arm in arms.items()},
        verdict=verdict_of(checks),
        reason=f"{one.forwards / ours.forwards:.1f}x fewer forwards than one token a step at {loss} points; at equal forwards {matched} "
        f"against a threshold ({verdict}), {at_equal} with the calibrated bar; the oracle takes {oracle.forwards:.1f} forwards against "
        f"{ours.forwards:.1f}; EoTP computes {saved['EoTP, filter 0.96']:.2f}x fewer columns, stopping at the first finished block "
        f"with an end token {saved['early stop, filter 0.96']:.2f}x",
        checks=checks,
        seeds=budget.seeds,
        extra={
            **_figures(learnt, records),
            "fewer columns by cutting": saved,
            "fewer forwards by EoTP, shorter and longer half of the answers": [short, long],
        },
    )


def _arms(trial: Trial, base: Sampler, learnt: Filter, calibrated: float) -> dict[str, Arm]:
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


def _oracles(trial: Trial, base: Sampler, one: Arm) -> dict[str, Arm]:
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


def _row(trial: Trial, arm: Arm, curve: denoising.Curve) -> tuple[Any, ...]:
    forwards, right, ahead = trial.row(arm, None if arm.name.startswith("oracle") else curve)
    return forwards, right, f"{_columns(arm):.0f}", ahead


def _by_length(trial: Trial, plain: Arm, cut: Arm) -> tuple[float, float]:
    """By what factor EoTP saves forwards, in the half of the prompts with shorter answers, and in the other."""
    lengths = np.array([len(item.answer) for item in trial.asked])
    shorter = lengths <= np.median(lengths)
    return plain.of(shorter).forwards / cut.of(shorter).forwards, plain.of(~shorter).forwards / cut.of(
        ~shorter
    ).forwards
