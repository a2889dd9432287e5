"""ParallelBench's list operations: a perfect model against the theory, and the test bed's model against the perfect one.

Claim looked at (arXiv 2510.04767): what breaks when several tokens are written at once is not the model but the data: positions that
depend on each other cannot be drawn apart. So a perfect model's accuracy follows from the total correlation alone, and a trained model's
should lie on the same curve: flat for copy, flip and sort, falling for swap (replace one at random) and mix (shuffle).
Only the six items of a list are written, everything else is given; the model has never seen that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..diffusion import Confidence, FixedBlocks, Gumbel, LeftToRight, RandomOrder, Sampler, Threshold, TopK, testbed
from ..diffusion.adapter import MaskPredictor
from ..diffusion.parallelbench import IdealListModel, ListTokens, accuracy, bound
from ..diffusion.parallelbench.ideal import Frame
from . import denoising
from .claims import Budget, Claim, verdict_of
from .denoising import Trial

N, STEPS = 6, (1, 2, 3, 6)
OPERATIONS = {"copy": "copy", "flip": "reverse", "sort": "sort", "swap": "replace_random", "mix": "shuffle"}
DEPENDENT = ("swap", "mix")
ORDERS = {"random": RandomOrder(), "confidence": Confidence(), "left to right": LeftToRight()}
RUNS = {"tiny": 20, "small": 4000, "medium": 20_000, "full": 20_000}  # of the perfect model, for each figure
NEAR, FLAT = 5.0, 95.0  # points
COLUMNS = ("bits lost", "perfect, theory %", "perfect, measured %", *(f"test bed, {order} %" for order in ORDERS))


def run(budget: Budget) -> Claim:
    """Every operation, one to six items a step."""
    trial = denoising.trial(budget, ("lists",))
    rows: dict[str, tuple[Any, ...]] = {}
    ideal_off, learnt_off, flat = [], [], []
    for operation, name in OPERATIONS.items():
        asked = _six(trial, operation)
        for k in STEPS:
            theory = 100 * accuracy(name, N, k, greedy=True) if name in ("shuffle", "replace_random") else 100.0
            measured = _ideal(name, k, RUNS[budget.size])
            learnt = {order: _learnt(trial, asked, score, k) for order, score in ORDERS.items()}
            lost = bound(name, N, k) if operation in DEPENDENT else 0.0
            rows[f"{operation}, {k} a step"] = (
                f"{lost:.2f}", f"{theory:.1f}", f"{measured:.1f}", *(f"{learnt[order]:.1f}" for order in ORDERS)
            )  # fmt: skip
            ideal_off.append(abs(measured - theory))
            if operation in DEPENDENT:
                learnt_off.append(abs(learnt["random"] - theory))
            elif k == N:
                flat.append(learnt["confidence"])
    sure = _threshold(trial, _six(trial, "mix"))
    rows["mix, threshold 0.9"] = ("0.00", "100.0", "", "", f"{sure[0]:.1f} at {sure[1]:.2f} a step", "")
    checks = {
        "the perfect model's accuracies are the theory's": max(ideal_off)
        <= 3 * 100 * np.sqrt(0.25 / RUNS[budget.size]),
        "the trained model lies within 5 points of the perfect one where positions depend on each other": max(
            learnt_off
        )
        <= NEAR,
        "and stays above 95 with all six at once where they don't": min(flat) > FLAT,
        "a threshold of 0.9 shuffles one item a step, rightly": sure[0] > FLAT and sure[1] < 1.5,
    }
    return Claim(
        slug="parallelbench",
        claim="tasks without dependence between tokens stay right at any parallelism, Replace-Random and Shuffle collapse, also after "
        "fine-tuning (LLaDA-1.5, arXiv 2510.04767)",
        setting=denoising.setting(trial)
        + f"; lists of {N}, only the items are written; the perfect model over {RUNS[budget.size]} lists",
        columns=COLUMNS,
        rows=rows,
        verdict=verdict_of(checks),
        reason=f"the perfect model is at most {max(ideal_off):.1f} points off the theory; the trained one at most {max(learnt_off):.1f} off the "
        f"perfect one on swap and mix, and at least {min(flat):.1f} % right on copy, flip and sort with six items at once; threshold 0.9 on mix: "
        f"{sure[0]:.1f} % at {sure[1]:.2f} items a step",
        checks=checks,
        seeds=budget.seeds,
    )


def _six(trial: Trial, operation: str) -> list[testbed.Item]:
    """Prompts of one operation with lists of six."""
    found = [item for item in trial.asked if item.prompt.startswith(operation) and item.prompt.count(",") == N - 1]
    seed = 0
    while len(found) < min(100, len(trial.asked)):  # few of the budget's prompts are
        seed += 1
        more = denoising.prompts(len(trial.asked), 500 + seed, ("lists",))
        found += [item for item in more if item.prompt.startswith(operation) and item.prompt.count(",") == N - 1]
    return found


def _sampler(k: int, score: Any, length: int) -> Sampler:
    return Sampler(gen_length=length, steps=N // k, blocks=FixedBlocks(None), commit=TopK(), score=score)


def _ideal(name: str, k: int, runs: int) -> float:
    """Percent right of the perfect model, greedily and in random order."""
    tokens = ListTokens()
    predictor = MaskPredictor(IdealListModel(tokens), tokens.mask_id, probe=False)
    letters = tokens.items[:N]
    frame: Frame = tokens.prompt(name, letters, tokens.items[N] if name == "replace_random" else None)
    sampler = replace(_sampler(k, RandomOrder(), N), propose=Gumbel(0.0))
    good = 0
    for start in range(0, runs, 500):
        count = min(500, runs - start)
        out = replace(sampler, seed=start)(predictor, None, [frame.prompt] * count)
        assert out.answers is not None
        good += sum(
            _right(name, letters, tokens.items[N], [tokens.items[i - tokens.first_item] for i in ids])
            for ids in out.answers
        )
    return 100 * good / runs


def _right(name: str, items: Any, new: str, found: list[str]) -> bool:
    """Whether a list has positive probability under the operation; the closed forms keep a shuffle that changes nothing."""
    items = list(items)
    if name == "shuffle":
        return sorted(found) == sorted(items)
    if name == "replace_random":
        changed = [now for old, now in zip(items, found, strict=True) if old != now]
        return changed == [new]
    return found == {"copy": items, "reverse": items[::-1], "sort": sorted(items)}[name]


def _frames(trial: Trial, asked: list[testbed.Item]) -> tuple[list[list[int]], list[dict[int, int]]]:
    """Prompts, and all of each answer but its items."""
    ids = trial.bed.tokenizer
    prompts, fixed = [], []
    for item in asked:
        tokens = ids(item.answer)["input_ids"] + [ids.eos_token_id] * testbed.ANSWER
        fixed.append({place: tokens[place] for place in range(testbed.ANSWER) if place >= 2 * N or place % 2 == 0})
        prompts.append(ids(item.prompt)["input_ids"])
    return prompts, fixed


def _learnt(trial: Trial, asked: list[testbed.Item], score: Any, k: int) -> float:
    """Percent right of the test bed's model."""
    return _asked(trial, asked, _sampler(k, score, testbed.ANSWER))[0]


def _threshold(trial: Trial, asked: list[testbed.Item]) -> tuple[float, float]:
    """Percent right, and items a step."""
    return _asked(trial, asked, Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(None), commit=Threshold(0.9)))


def _asked(trial: Trial, asked: list[testbed.Item], sampler: Sampler) -> tuple[float, float]:
    prompts, fixed = _frames(trial, asked)
    out = sampler(trial.bed.predictor, None, prompts, fixed=fixed)
    assert out.answers is not None
    assert out.nfe is not None
    good = [testbed.right(item, trial.bed.tokenizer.decode(ids)) for item, ids in zip(asked, out.answers, strict=True)]
    return 100 * float(np.mean(good)), N / float(out.nfe.double().mean())
