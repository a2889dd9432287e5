"""Samplers made ready for the denoising bed: a filter taught by its model's answers, bars in its model's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..diffusion import Sampler
from ..diffusion.base import Step, Stop
from ..diffusion.parts.learn2pd import Filter, Records, collect, train
from ..diffusion.parts.prophet import Prophet, ProphetLog, calibrated_bars
from . import denoiser as testbed


@dataclass(frozen=True)
class After(Stop):
    """Fills everything at one forward: drawn for each row from `forwards`, counted from 1."""

    forwards: tuple[int, ...]

    def stop(self, step: Step) -> Tensor:
        """[rows]"""
        memory = step.memory(self)
        drawn = memory.get("drawn", fill=-1.0, dtype=torch.float64)
        drawn = torch.where(drawn < 0, step.random(), drawn)
        memory.put("drawn", drawn)
        limit = torch.tensor(self.forwards, device=drawn.device)[(drawn * len(self.forwards)).long()]
        return step.number + 1 >= limit


def taught(bed: testbed.TestBed, items: Sequence[testbed.Item], block: int, epochs: int) -> tuple[Records, Filter]:
    """What the model's own answers to these prompts teach: the records, and the filter."""
    prompts = [bed.tokenizer(item.prompt)["input_ids"] for item in items]
    records = collect(bed.predictor, None, prompts, block=block, gen_length=testbed.ANSWER, batch_size=64)
    return records, train(records, epochs=epochs)


def written(bed: testbed.TestBed, ids: Sequence[int]) -> str:
    """The text in generated ids up to their first end token; it need not be finished."""
    text: str = bed.tokenizer.decode(list(takewhile(lambda token: token not in bed.predictor.end_ids, ids)))
    return text


def calibrated(
    bed: testbed.TestBed,
    sampler: Sampler,
    items: Sequence[testbed.Item],
    prophet: Prophet,
    extract: Callable[[Sequence[int]], Any],
    fixed: Mapping[int, int] | None = None,
) -> Prophet:
    """`prophet` with bars in this model's logits, from where its answers to these prompts, as `extract` finds them, no longer
    change."""
    log = watched(bed, sampler, items, prophet, fixed)
    rows = sorted(log.gaps)
    bars = calibrated_bars([log.gaps[row] for row in rows], [log.guesses[row] for row in rows], extract)
    return replace(prophet, bars=bars)


def watched(
    bed: testbed.TestBed,
    sampler: Sampler,
    items: Sequence[testbed.Item],
    prophet: Prophet,
    fixed: Mapping[int, int] | None,
) -> ProphetLog:
    """What `prophet` would see where nothing stops."""
    log = ProphetLog(replace(prophet, bars=(float("inf"),) * 3))
    rows = [bed.tokenizer(item.prompt)["input_ids"] for item in items]
    replace(sampler, stop=log.prophet, watch=log)(bed.predictor, None, rows, fixed=fixed)
    return log
