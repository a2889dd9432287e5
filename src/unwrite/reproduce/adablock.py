"""AdaBlock against blocks of one size, and against its own block sizes at random boundaries.

Claim looked at (arXiv 2509.26432): blocks that end where the model expects a line to end are more accurate at the same threshold, most
of all with a dual cache, and take fewer forwards where the usual block is small. The control draws block sizes from AdaBlock's own:
what is gained by it has nothing to do with where lines end. Asked are worked sums, whose lines differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoising
from ..beds.budget import Budget
from ..beds.denoising import Arm, Curve, Difference, SamplerTrial, difference, gains, share
from ..diffusion import Sampler
from ..diffusion.base import Blocks, Step
from ..diffusion.parts.adablock import AdaBlock, DrawnBlocks, WholeCanvas, delimiters_of, late, premature
from ..diffusion.parts.rules import FixedBlocks, Threshold
from .base import Claim
from .checks import Check, reason_of

SIZES, BARS = (4, 8, 16, 32), (0.7, 0.8, 0.9)
CACHES: tuple[Literal["none", "dual"], ...] = ("none", "dual")
SHARE = 3  # of the usual number of prompts, one in so many: the grid is large
WATCHED = 60
POINTS = "points at equal forwards"
COLUMNS = ("forwards/answer", "right, %", "against fixed blocks at equal forwards, points")


def run(budget: Budget) -> Claim:
    """The card's grid: block size x threshold x cache, each with fixed, AdaBlock's and drawn blocks."""
    trial = denoising.trial(budget, ("sums", "anchored"))
    trial.asked = _thinned(trial)
    rows: dict[str, tuple[Any, ...]] = {}
    compared: dict[tuple[str, str], list[tuple[Arm, Arm]]] = {}
    small: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {size: [] for size in SIZES if size <= 8}
    for cache in CACHES:
        for size in SIZES:
            fixed = Curve([_arm(trial, f"fixed {size}", FixedBlocks(size), bar, cache) for bar in BARS])
            for place, bar in enumerate(BARS):
                ours, sizes = _ada(trial, size, bar, cache)
                drawn = _arm(trial, f"drawn {size}", DrawnBlocks(sizes), bar, cache)
                plain = fixed.arms[place]
                rows[plain.name] = trial.row(plain)
                for kind, arm in (("ada", ours), ("drawn", drawn)):
                    rows[arm.name] = trial.row(arm, fixed)
                    compared.setdefault((kind, cache), []).append((arm, fixed.at(arm.forwards)))
                if size in small:
                    small[size].append((ours.nfe, plain.nfe))
    ahead = {key: gains(pairs) for key, pairs in compared.items()}
    mean = {key: float(points.mean()) for key, points in ahead.items()}
    checks = _checks(ahead, [pair for pairs in small.values() for pair in pairs])
    rates = {
        kind: _rates(trial, blocks) for kind, blocks in (("fixed", FixedBlocks(32)), ("adaptive", _blocks(trial, 32)))
    }
    extra = {"late_steps_and_premature_tokens": rates, POINTS: {", ".join(key): mean[key] for key in mean}}
    return Claim(
        slug="adablock",
        claim="+5.3 points at an equal budget with blocks of 64 and a cache (LLaDA-8B, GSM8K, arXiv 2509.26432)",
        setting=denoising.setting(trial) + "; worked sums only",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(
            checks,
            f"against fixed blocks at equal forwards {mean['ada', 'none']:+.1f} points without a cache and "
            f"{mean['ada', 'dual']:+.1f} with a dual one (drawn boundaries {mean['drawn', 'none']:+.1f} and {mean['drawn', 'dual']:+.1f}); "
            f"{_against_any_size(trial):+.1f} against fixed blocks of any size at equal forwards; forwards saved: "
            + ", ".join(f"{100 * (1 - share(of)[0]):.0f} % with blocks of {size}" for size, of in small.items()),
        ),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def _checks(
    ahead: Mapping[tuple[str, str], np.ndarray], small: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[Check, ...]:
    """The card's conditions; the paper's largest gain is with a cache.

    Args:
        ahead: {(whose blocks, cache): points ahead of fixed blocks at equal forwards}, [prompts] each.
        small: forwards of ours and of fixed blocks where blocks are small.
    """
    checks = []
    for cache, words in (("dual", "with a dual cache"), ("none", "without a cache")):
        gain = Difference.of(ahead["ada", cache])
        text = f"at equal forwards not below fixed blocks, {words}"
        checks.append(Check("claim", text, gain.points, ">=", 0, gain.interval))
    more = Difference.of(ahead["ada", "dual"] - ahead["ada", "none"])
    drawn = Difference.of(sum(ahead["ada", cache] - ahead["drawn", cache] for cache in CACHES) / len(CACHES))
    left, interval = share(small)
    return (
        *checks,
        Check("claim", "more gained with a dual cache than without", more.points, ">", 0, more.interval),
        Check("claim", "fewer forwards where the usual block is 4 or 8", left, "<", 1, interval),
        Check("control", "drawn boundaries gain less", drawn.points, ">", 0, drawn.interval),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Mean points ahead of fixed blocks at equal forwards, with a dual cache and without, and of drawn blocks."""
    points = extra[POINTS]
    dual, none, drawn = (f"{points[name]:+.1f}" for name in ("ada, dual", "ada, none", "drawn, dual"))
    return f"{dual} points at equal forwards with a dual cache, {none} without; drawn boundaries {drawn}"


def _against_any_size(trial: SamplerTrial) -> float:
    """Points, on average. Where AdaBlock takes more forwards than fixed blocks of its own size ever do, no threshold of theirs is a
    match, but smaller blocks are."""

    def arms(kind: str, cache: str) -> list[Arm]:
        names = (f"{kind} {size}, threshold {bar:g}, cache {cache}" for size in SIZES for bar in BARS)
        return [trial.done[name] for name in names]

    points = []
    for cache in CACHES:
        fixed = Curve(arms("fixed", cache))
        points += [difference(arm, fixed.at(arm.forwards)).points for arm in arms("adaptive", cache)]
    return float(np.mean(points))


def _thinned(trial: SamplerTrial) -> list[testbed.Item]:
    """Every third prompt of each seed."""
    each = len(trial.asked) // trial.seeds
    return [item for seed in range(trial.seeds) for item in trial.asked[seed * each : (seed + 1) * each][::SHARE]]


def _blocks(trial: SamplerTrial, size: int) -> AdaBlock:
    return AdaBlock(size=size, delimiters=delimiters_of(trial.bed.tokenizer))


def _sampler(blocks: Blocks, bar: float, cache: Literal["none", "dual"]) -> Sampler:
    return Sampler(gen_length=testbed.ANSWER, blocks=blocks, commit=Threshold(bar), cache=cache)


def _arm(trial: SamplerTrial, kind: str, blocks: Blocks, bar: float, cache: Literal["none", "dual"]) -> Arm:
    return trial.run(f"{kind}, threshold {bar:g}, cache {cache}", _sampler(blocks, bar, cache))


def _ada(trial: SamplerTrial, size: int, bar: float, cache: Literal["none", "dual"]) -> tuple[Arm, tuple[int, ...]]:
    """The arm, and the sizes of its blocks on the first prompts."""
    blocks = _blocks(trial, size)
    arm = _arm(trial, f"adaptive {size}", blocks, bar, cache)
    prompts = [trial.bed.tokenizer(item.prompt)["input_ids"] for item in trial.asked[:WATCHED]]
    out = _sampler(blocks, bar, cache)(trial.bed.predictor, None, prompts)
    assert out.trace is not None
    return arm, tuple(size for row in out.trace.blocks for size in row)


def _rates(trial: SamplerTrial, blocks: Blocks) -> dict[str, float]:
    """Shares of steps that were late, and of tokens that were premature, at threshold .9."""
    prompts = [trial.bed.tokenizer(item.prompt)["input_ids"] for item in trial.asked[:WATCHED]]
    reference = testbed.one_by_one()(trial.bed.predictor, None, prompts).sequences
    steps: list[Step] = []
    watched = replace(_sampler(blocks, 0.9, "none"), edit=WholeCanvas(), watch=steps.append)
    watched(trial.bed.predictor, None, prompts)
    number = sum(len(step.rows) for step in steps)
    tokens = len(prompts) * testbed.ANSWER
    return {
        "late": round(sum(int(late(step).sum()) for step in steps) / number, 4),
        "premature": round(sum(int(premature(step, reference).sum()) for step in steps) / tokens, 4),
    }
