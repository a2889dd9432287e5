"""Every sampler on the test bed: how often it is right, for how many forwards, and what that is in tokens a second.

Accuracy and forwards are counted on the same prompts for all, each against the plain threshold at exactly its own number of
forwards. Tokens a second come from replays on a model of real size (`replay.py`), in turns with the plain threshold's.
Accuracies and forwards are the same in every run; only the clock differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..beds import denoiser as testbed
from ..beds.denoising import THRESHOLDS, Arm, Curve, difference, prompts
from ..beds.denoising_ready import After, calibrated, taught, written
from ..diffusion import EoTP, FixedBlocks, LearnedSelect, Prophet, RandomOrder, Sampler, Threshold, TopK
from ..diffusion.parts.adablock import AdaBlock, DrawnBlocks, delimiters_of
from ..diffusion.parts.credit import CreditDecoding
from ..diffusion.parts.eoser import Ascending, EOSReject, ascending_steps
from ..diffusion.parts.localleap import LocalLeap, RandomNeighbours
from ..diffusion.parts.rules import Factor

PROMPTS, TIMED = 2000, 1
CHUNK = 512  # prompts a job
CALIBRATED, LEARNT, EPOCHS = 64, 128, 1000  # prompts for Prophet's bars and for the filter; of its training
PLAIN = "threshold 0.9"


@dataclass(frozen=True)
class DenoisingContender:
    """One sampler of the comparison.

    Args:
        sampler: what writes the answers.
        kind: "curve" for the plain threshold's points, "method", "pair", "baseline" or "control".
        timed: whether it is replayed for the clock.
    """

    sampler: Sampler
    kind: str
    timed: bool = True


def contenders(bed: testbed.TestBed, seed: int = 0) -> dict[str, DenoisingContender]:
    """All of them by name. What is calibrated or trained, is so on prompts of the next seed."""
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
    lines = delimiters_of(bed.tokenizer)
    ada, credit, leap = AdaBlock(size=32, delimiters=lines), CreditDecoding.paper(), LocalLeap()
    whole, steps = FixedBlocks(None), ascending_steps(testbed.ANSWER)
    prophet, learnt = _prophet(bed, base, seed + 1), _learned(bed, seed + 1)
    named = {
        f"threshold {t:g}": DenoisingContender(replace(base, commit=Threshold(t)), "curve", t == 0.9)
        for t in THRESHOLDS
    }
    named["one by one"] = DenoisingContender(replace(base, commit=Threshold(2.0)), "curve")
    for k in (4, 8):  # two a forward is 32 forwards, where the plain threshold's curve is flat
        named[f"{k} a forward"] = DenoisingContender(
            replace(base, commit=TopK(), steps=testbed.ANSWER // k), "baseline", k == 4
        )
    named["factor 1"] = DenoisingContender(replace(base, commit=Factor(1.0)), "baseline")
    named |= {
        "AdaBlock": DenoisingContender(replace(base, blocks=ada), "method"),
        "Credit": DenoisingContender(replace(base, logits=credit), "method"),
        "Credit, adaptive": DenoisingContender(replace(base, logits=CreditDecoding.adaptive()), "method"),
        "LocalLeap": DenoisingContender(replace(base, commit=leap), "method"),
        "Prophet": DenoisingContender(replace(base, commit=TopK(), steps=testbed.ANSWER, stop=prophet), "method"),
        "Learn2PD": DenoisingContender(replace(base, commit=learnt), "method"),
        "EOSER, one block": DenoisingContender(
            replace(base, blocks=whole, commit=TopK(), steps=16, score=EOSReject()), "method"
        ),
        "one block, 16 forwards": DenoisingContender(
            replace(base, blocks=whole, commit=TopK(), steps=16), "baseline", False
        ),
        "ASS": DenoisingContender(
            replace(
                base, blocks=whole, commit=TopK(), quota=Ascending(), steps=steps, score=EOSReject(schedule="ascending")
            ),
            "method",
        ),
        f"one block, {steps} forwards": DenoisingContender(
            replace(base, blocks=whole, commit=TopK(), steps=steps), "baseline", False
        ),
        "AdaBlock + Credit": DenoisingContender(replace(base, blocks=ada, logits=credit), "pair"),
        "AdaBlock + LocalLeap": DenoisingContender(replace(base, blocks=ada, commit=leap), "pair"),
        "Credit + LocalLeap": DenoisingContender(replace(base, logits=credit, commit=leap), "pair"),
        "AdaBlock + Credit + LocalLeap": DenoisingContender(
            replace(base, blocks=ada, logits=credit, commit=leap), "pair"
        ),
        "threshold 0.9 + Prophet": DenoisingContender(replace(base, commit=Threshold(0.9), stop=prophet), "pair"),
        "AdaBlock + Prophet": DenoisingContender(replace(base, blocks=ada, stop=prophet), "pair"),
        "threshold 0.9 + EoTP": DenoisingContender(replace(base, commit=Threshold(0.9), edit=EoTP()), "pair"),
        "Learn2PD + EoTP": DenoisingContender(replace(base, commit=learnt, edit=EoTP()), "pair"),
        "threshold 0.9, prefix cache": DenoisingContender(
            replace(base, commit=Threshold(0.9), cache="prefix"), "baseline"
        ),
        "threshold 0.9, dual cache": DenoisingContender(replace(base, commit=Threshold(0.9), cache="dual"), "baseline"),
        "AdaBlock + Credit + LocalLeap, dual cache": DenoisingContender(
            replace(base, blocks=ada, logits=credit, commit=leap, cache="dual"), "pair"
        ),
        "random neighbours": DenoisingContender(replace(base, commit=RandomNeighbours()), "control", False),
        "random places, 4 a forward": DenoisingContender(
            replace(base, commit=TopK(), score=RandomOrder(), steps=testbed.ANSWER // 4), "control", False
        ),
    }
    return named


def _prophet(bed: testbed.TestBed, base: Sampler, seed: int) -> Prophet:
    """Bars in this model's logits, from where its whole answers no longer change. These answers have no place of their own, so
    all masks are looked at."""
    stepwise, everywhere = replace(base, commit=TopK(), steps=testbed.ANSWER), Prophet(region="all_masked")
    return calibrated(bed, stepwise, prompts(CALIBRATED, seed), everywhere, lambda ids: written(bed, ids))


def _learned(bed: testbed.TestBed, seed: int) -> LearnedSelect:
    """The rule with a filter of this model's own."""
    return LearnedSelect(taught(bed, prompts(LEARNT, seed), 32, EPOCHS)[1])


def run(
    where: Path | None = None,
    count: int = PROMPTS,
    seed: int = 0,
    workers: int = 2,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Everything.

    Args:
        where: folder of the test bed, or None for the default one.
        count, seed: of the prompts.
        workers: processes that count; clocks run alone.
        tell: gets a line of progress.

    Returns:
        {"rows": a row a contender, "prompts", "seed", "gate", "seconds"}
    """
    start = time.perf_counter()
    bed = testbed.load(where)
    passed = testbed.gate(bed)
    items = prompts(count, seed)
    with _one_thread():
        tell("calibrating Prophet, training Learn2PD's filter")
        everyone = contenders(bed, seed)
        arms = _counted(bed, everyone, count, seed, workers, tell)
        controls = _controls(bed, everyone, arms, items)
        arms |= _counted(bed, controls, count, seed, workers, tell)
        everyone |= controls
    curve = Curve([arms[name] for name, one in everyone.items() if one.kind == "curve"])
    clocks = _clocks(bed, {name: one.sampler for name, one in everyone.items() if one.timed}, items[:TIMED], tell)
    rows = []
    for name, one in everyone.items():
        arm = arms[name]
        ahead = difference(arm, curve.at(arm.forwards))
        rows.append(
            {
                "sampler": name,
                "kind": one.kind,
                "forwards": arm.forwards,
                "right": arm.accuracy,
                "ahead": {"points": ahead.points, "low": ahead.low, "high": ahead.high},
                "against_one_by_one": vars(difference(arm, arms["one by one"])),
                "by_task": _by_task(arm, items),
                **clocks.get(name, {}),
            }
        )
    return {"rows": rows, "prompts": count, "seed": seed, "gate": passed, "seconds": time.perf_counter() - start}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order would train another filter and now and then choose another token. Clocks run with all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _counted(
    bed: testbed.TestBed,
    everyone: Mapping[str, DenoisingContender],
    count: int,
    seed: int,
    workers: int,
    tell: Callable[[str], None],
) -> dict[str, Arm]:
    """Right answers, forwards and work: `CHUNK` prompts a job, the longest arms first, so that the workers end together."""
    names = sorted(everyone, key=lambda name: name not in ("one by one", "Prophet"))
    jobs = []
    for name in names:
        plain = everyone[name].sampler
        for place, start in enumerate(range(0, count, CHUNK)):  # each job draws random numbers of its own
            part = slice(start, start + CHUNK)
            jobs.append((str(bed.folder), name, replace(plain, seed=plain.seed + place), count, seed, part))
    arms: dict[str, Arm] = {}
    with ExitStack() as stack:
        counted: Iterator[Arm] = map(_count, jobs)
        if workers > 1:
            counted = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map(_count, jobs)
        for arm in counted:
            tell(f"counting: {arm.name}")
            arms[arm.name] = arms[arm.name].joined(arm) if arm.name in arms else arm
    return arms


def _count(job: tuple[str, str, Sampler, int, int, slice]) -> Arm:
    """A part of one arm."""
    folder, name, sampler, count, seed, part = job
    torch.set_num_threads(1)
    items = prompts(count, seed)[part]
    return Arm.judged(name, testbed.judge(testbed.load(Path(folder)), sampler, items, batch_size=64))


def _controls(
    bed: testbed.TestBed,
    everyone: Mapping[str, DenoisingContender],
    arms: Mapping[str, Arm],
    items: Sequence[testbed.Item],
) -> dict[str, DenoisingContender]:
    """AdaBlock's block sizes at boundaries that are drawn; Prophet's numbers of forwards, given to rows by chance."""
    ada, prophet = everyone["AdaBlock"].sampler, everyone["Prophet"].sampler
    few = [bed.tokenizer(item.prompt)["input_ids"] for item in items[:100]]
    sizes = tuple(size for row in ada(bed.predictor, None, few).trace.blocks for size in row)
    after = After(tuple(int(forwards) for forwards in arms["Prophet"].nfe))
    return {
        "drawn blocks": DenoisingContender(replace(ada, blocks=DrawnBlocks(sizes)), "control", False),
        "stop at random": DenoisingContender(replace(prophet, stop=after), "control", False),
    }


def _clocks(
    bed: testbed.TestBed, samplers: Mapping[str, Sampler], items: Sequence[testbed.Item], tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Replays of each sampler, a prompt at a time in turns, with the plain threshold's as the peer."""
    from .replay import Timed, timed, timing_model

    timing = timing_model()
    replays: dict[str, list[Timed]] = {name: [] for name in samplers}
    timed(bed, timing, samplers[PLAIN], items[:1])  # what only a first call pays is nobody's
    for number, item in enumerate(items):
        for name, sampler in samplers.items():
            tell(f"replaying prompt {number + 1} of {len(items)}: {name}")
            replays[name].append(timed(bed, timing, sampler, [item]))
    peer = sum(one.seconds for one in replays[PLAIN])
    rows = {}
    for name, times in replays.items():
        seconds = sum(one.seconds for one in times)
        rows[name] = {
            "positions_per_second": sum(one.positions for one in times) / seconds,
            "tokens_per_second": sum(one.tokens for one in times) / seconds,
            "seconds_against_threshold": peer / seconds,
            "own_share": sum(one.own for one in times) / max(1e-12, seconds - sum(one.own for one in times)),
            "replayed_alike": all(one.same for one in times),
        }
    return rows


def _by_task(arm: Arm, items: Sequence[testbed.Item]) -> dict[str, float]:
    tasks = np.array([item.task for item in items])
    return {task.name: arm.of(tasks == task.name).accuracy for task in testbed.TASKS if (tasks == task.name).any()}
