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

from ..diffusion import EarlyStop, Sampler, testbed
from ..diffusion.learn2pd import EoTP, LearnedSelect, Oracle, collect, judge, train
from ..diffusion.rules import FixedBlocks, Threshold, TopK
from . import denoising
from .claims import Budget, Claim, verdict_of
from .denoising import Arm, Trial, difference

BLOCK = 16
LEARNT = {"tiny": 8, "small": 500, "medium": 1500, "full": 3000}  # prompts for labels
EPOCHS = {"tiny": 20, "small": 4000, "medium": 20_000, "full": 40_000}
BARS = (0.9, 0.96)
THRESHOLDS = (0.8, 0.9, 0.95)
COLUMNS = ("forwards/answer", "right, %", "columns/answer", "against the threshold at equal forwards, points")


def run(budget: Budget) -> Claim:
    """The card's arms."""
    trial = denoising.trial(budget)
    works: dict[str, float] = {}
    asked = denoising.prompts(LEARNT[budget.size], 1 + max(budget.seeds))
    prompts = [trial.bed.tokenizer(item.prompt)["input_ids"] for item in asked]
    records = collect(trial.bed.predictor, None, prompts, block=BLOCK, gen_length=testbed.ANSWER, batch_size=64)
    learnt = train(records, epochs=EPOCHS[budget.size])
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(BLOCK))
    curve = trial.curve(base=base)
    one = _run(trial, works, "one token a step", replace(base, commit=TopK()))
    for bar in THRESHOLDS:
        quick = replace(base, commit=Threshold(bar))
        _run(trial, works, f"threshold {bar:g}", quick)
        _run(trial, works, f"threshold {bar:g}, early stop", replace(quick, edit=EarlyStop()))
        _run(trial, works, f"threshold {bar:g}, EoTP", replace(quick, edit=EoTP()))
    assert learnt.report is not None
    for name, accept in (*((f"filter {bar:g}", bar) for bar in BARS), ("filter, calibrated bar", learnt.report.bar)):
        chosen = replace(base, commit=LearnedSelect(learnt, accept))
        _run(trial, works, name, chosen)
        _run(trial, works, f"{name}, EoTP", replace(chosen, edit=EoTP()))
    _run(trial, works, "one token a step, EoTP", replace(base, commit=TopK(), edit=EoTP()))
    _oracle(trial, works, base)
    ours = trial.done["filter 0.96"]
    oracle, matched, loss = trial.done["oracle"], difference(ours, curve.at(ours.forwards)), difference(ours, one)
    calibrated = trial.done["filter, calibrated bar"]
    at_equal = difference(calibrated, curve.at(calibrated.forwards))
    saved = {
        name: works[name] / works[f"{name}, EoTP"] for name in ("one token a step", "filter 0.96", "threshold 0.9")
    }
    short, long = _by_length(trial, ours, trial.done["filter 0.96, EoTP"])
    checks = {
        "at least twice fewer forwards": one.forwards >= 2 * ours.forwards,
        "no more than a point lost": loss.points >= -1,
        "at equal forwards not below a threshold": matched.points >= 0,
        "the oracle is clearly faster": oracle.forwards < 0.8 * ours.forwards,
        "cutting behind the end saves work": saved["filter 0.96"] > 1,
        "and more where the answer is shorter": short > long,
    }
    rows = {name: _row(trial, works, arm, curve) for name, arm in trial.done.items() if name in works}
    wrong = judge(learnt, records.split()[2], 0.96).false_positives
    verdict = "no better than a tuned threshold" if matched.low <= 0 else "more than a threshold"
    return Claim(
        slug="learn2pd",
        claim="12.2x, with EoTP 22.6x tokens a second on GSM8K at 1,024 positions, 77.3 and 79.8 against 77.6 (LLaDA-8B, arXiv 2509.25188)",
        setting=denoising.setting(trial)
        + f"; blocks of {BLOCK}, a filter of {sum(p.numel() for p in learnt.parameters())} weights from "
        f"{len(records)} records of {len(asked)} other prompts",
        columns=COLUMNS,
        rows=rows,
        verdict=verdict_of(checks),
        reason=f"{one.forwards / ours.forwards:.1f}x fewer forwards than one token a step at {loss} points; at equal forwards {matched} "
        f"against a threshold ({verdict}), {at_equal} with the calibrated bar; the oracle takes {oracle.forwards:.1f} forwards against "
        f"{ours.forwards:.1f}; EoTP computes {saved['filter 0.96']:.2f}x fewer columns",
        checks=checks,
        seeds=budget.seeds,
        extra={
            "bar": learnt.report.bar,
            "epochs": learnt.report.epochs,
            "wrong among kept at 0.96, test records": None if np.isnan(wrong) else round(wrong, 4),
            "accuracy and base rate, test records": [learnt.report.test.accuracy, learnt.report.test.base_rate],
            "fewer columns by EoTP": saved,
            "fewer forwards by EoTP, shorter and longer half of the answers": [short, long],
        },
    )


def _run(trial: Trial, works: dict[str, float], name: str, sampler: Sampler) -> Arm:
    found = testbed.judge(trial.bed, sampler, trial.asked)
    works[name] = float(np.mean(found.work))
    trial.done[name] = Arm(name, np.array(found.right, dtype=float), np.array(found.nfe, dtype=float))
    return trial.done[name]


def _oracle(trial: Trial, works: dict[str, float], base: Sampler) -> None:
    """The ceiling: texts are those of one token a step by construction."""
    ids, nfe, work = trial.bed.tokenizer, [], []
    for start in range(0, len(trial.asked), 128):
        prompts = [ids(item.prompt)["input_ids"] for item in trial.asked[start : start + 128]]
        sequences = replace(base, commit=TopK())(trial.bed.predictor, None, prompts).sequences
        answers = torch.stack([sequences[row, len(prompt) :] for row, prompt in enumerate(prompts)])
        out = replace(base, commit=Oracle(answers))(trial.bed.predictor, None, prompts)
        assert out.nfe is not None
        assert out.trace is not None
        nfe += out.nfe.tolist()
        work += out.trace.work.tolist()
    works["oracle"] = float(np.mean(work))
    trial.done["oracle"] = Arm("oracle", trial.done["one token a step"].right, np.array(nfe, dtype=float))


def _row(trial: Trial, works: dict[str, float], arm: Arm, curve: denoising.Curve) -> tuple[Any, ...]:
    forwards, right, ahead = trial.row(arm, None if arm.name == "oracle" else curve)
    return forwards, right, f"{works[arm.name]:.0f}", ahead


def _by_length(trial: Trial, plain: Arm, cut: Arm) -> tuple[float, float]:
    """By what factor EoTP saves forwards, in the half of the prompts with shorter answers, and in the other."""
    lengths = np.array([len(item.answer) for item in trial.asked])
    shorter = lengths <= np.median(lengths)
    return plain.of(shorter).forwards / cut.of(shorter).forwards, plain.of(~shorter).forwards / cut.of(
        ~shorter
    ).forwards
