"""What one decoding step costs: rows of a draft behind a prompt, by who computes it, against what the machine allows.

Every contender forwards the same tokens behind the same prompt, in turns; a ratio is transformers' own forward over a contender's
(above 1 is faster). The floor is what memory allows, or what arithmetic does where that is more, both measured beside: bytes that a step
reads, weights and cached keys and values, and the products of every weight with every row. CTranslate2 has no trees, so it stands at one
row: seconds a token of a greedy text.

    floor = max((bytes of the weights + columns * bytes of a column) / (bytes read in a second),
                2 * weights * rows / (operations in a second))
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..decode import TransformersRuntime
from ..decode.engine.planning.knowledge import COMPILED as COMPILED_ROUTES
from ..decode.engine.transformers.fused import FusedLoop
from ..decode.engine.tree import DraftTree
from ..errors import ModelError
from .ctranslate import FORMS, OnCTranslate2, generators
from .prompt import prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.loading import Loaded

__all__ = ["PEER", "PROMPTS", "ROWS", "multiply_rate", "read_bandwidth", "run_bench"]

ROWS = (1, 2, 4, 8, 16, 32)
PROMPTS = (64, 512, 2048)
PEER = "transformers"
FUSED, COMPILED, EXACT, BF16 = "fused", "compiled, float32", "compiled, fewest exact bytes", "compiled, exact bfloat16"
ROUTES = {PEER: "stock", FUSED: "fused", COMPILED: "compiled", EXACT: "compact"}
READ = 1 << 29  # bytes that the bandwidth is measured over
SIDE = 1024  # of the matrices whose product tells the arithmetic
WRITTEN, TEXTS = 24, 3  # tokens of a text of CTranslate2's, each of which reads the prompt anew, and how many texts


@dataclass
class StepContender:
    """One way to compute a step.

    Args:
        step: forwards a draft of so many rows, keeps nothing, and returns seconds.
        weights: bytes of the weights that a step reads.
        most: rows that it can take.
        times: steps of it that are timed, at most.
        spent: {part: seconds}, where it can tell, of all steps since it was asked last.
        seconds: of every step, by rows.
        parts: {rows: {part: seconds of a step}}.
    """

    step: Callable[[int], float]
    weights: int
    most: int | None = None
    times: int | None = None
    spent: Callable[[], dict[str, float]] = dict
    seconds: dict[int, list[float]] = field(default_factory=dict)
    parts: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepMachine:
    """What bounds a step on some threads.

    Args:
        bandwidth: bytes read in a second.
        rate: operations in a second.
        column: bytes of a cached token's keys and values.
        weights: that every row is multiplied with.
    """

    bandwidth: float
    rate: float
    column: int
    weights: int


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes that all of torch's threads read in a second, at best: the sum of half a GiB."""
    block = torch.ones(READ // 4)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return READ / min(seconds)


def multiply_rate(repeats: int = 5) -> float:
    """Operations in a second, at best, of torch's own product of two large matrices on all of its threads: 2 n^3 of [n, n]."""
    square = torch.ones(SIDE, SIDE)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def run_bench(
    loaded: Loaded,
    rows: Sequence[int] = ROWS,
    prompts: Sequence[int] = PROMPTS,
    threads: Sequence[int] | None = None,
    repeats: int = 11,
    after: Callable[[list[dict[str, Any]]], None] = lambda found: None,
) -> list[dict[str, Any]]:
    """Every contender at every number of threads, prompt and draft; a dict each.

    Args:
        loaded: a language model and its tokenizer.
        rows: of a draft.
        prompts: tokens; those that leave the model no room are left out.
        threads: numbers of torch's threads; one, and as many as it has, unless given.
        repeats: of a step.
        after: gets all rows so far after each prompt.

    Raises:
        ModelError: no prompt fits.
    """
    room = getattr(loaded.model.config, "max_position_embeddings", None) or max(prompts) + max(rows)
    fitting = [length for length in prompts if length + max(rows, default=0) + WRITTEN <= room]
    if not fitting:
        raise ModelError(f"no prompt of {min(prompts):,} tokens fits into a model of {room:,} positions: ask for less.")
    before, found = torch.get_num_threads(), list[dict[str, Any]]()
    rounded = _rounded(loaded.model)
    try:
        for count in threads or sorted({1, before}):
            torch.set_num_threads(count)
            machine = StepMachine(read_bandwidth(), multiply_rate(), _column(loaded.model), _weights(loaded.model) // 4)
            for length in fitting:
                ids = prompt_of(loaded.tokenizer, length)[0].numpy()
                with _contenders(loaded, rounded, ids, count) as several:
                    for size in rows:
                        _measure(several, size, repeats)
                    found += _found(several, rows, length, count, machine)
                after(found)
    finally:
        torch.set_num_threads(before)
    return found


def _measure(several: Mapping[str, StepContender], size: int, repeats: int) -> None:
    """Steps of one size in turns, beginning with another contender each time; the first of each isn't counted."""
    able = [one for one in several.values() if one.most is None or size <= one.most]
    for one in able:
        one.step(size)
        one.spent()
    for turn in range(repeats):
        some = [one for one in able if one.times is None or turn < one.times]
        for number in range(len(some)):
            one = some[(turn + number) % len(some)]
            one.seconds.setdefault(size, []).append(one.step(size))
    for one in able:
        parts = {part: seconds / repeats for part, seconds in one.spent().items()}
        if parts:
            parts["Python between"] = sum(one.seconds[size]) / repeats - sum(parts.values())
            one.parts[size] = parts


def _found(
    several: Mapping[str, StepContender], rows: Sequence[int], length: int, threads: int, machine: StepMachine
) -> list[dict[str, Any]]:
    found = []
    for name, one in several.items():
        for size in rows:
            if size not in one.seconds:
                continue
            ours = one.seconds[size]
            ratios = np.divide(several[PEER].seconds[size][: len(ours)], ours)
            low, high = np.quantile(ratios, [0.25, 0.75])
            read = one.weights + machine.column * (length + size)
            work = 2 * machine.weights * size
            found.append(
                {
                    "contender": name,
                    "threads": threads,
                    "prompt": length,
                    "rows": size,
                    "seconds": median(ours),
                    "ratio": float(median(ratios)),
                    "ratio_low": float(low),
                    "ratio_high": float(high),
                    "bytes": read,
                    "floor": max(read / machine.bandwidth, work / machine.rate),
                    "bandwidth": machine.bandwidth,
                    "rate": machine.rate,
                    "parts": one.parts.get(size),
                }
            )
    return found


@contextmanager
def _contenders(loaded: Loaded, rounded: PreTrainedModel, ids: Any, threads: int) -> Iterator[dict[str, StepContender]]:
    several: dict[str, StepContender] = {}
    for name, route in ROUTES.items():
        _enter(several, name, loaded.model, route, ids)
    _enter(several, BF16, rounded, "compact", ids)
    with generators(Path(loaded.source["folder"]), threads, loaded.tokenizer) as native:
        yield several | _native(loaded, native, ids)


def _enter(several: dict[str, StepContender], name: str, model: PreTrainedModel, route: str, ids: Any) -> None:
    """A route of our runtime, where the model has it."""
    runtime = TransformersRuntime(model)
    runtime.prefill([ids], max(ROWS) + 1)
    if route not in runtime.routes:
        return
    runtime.use(route)
    body: Any = runtime.body
    if route in COMPILED_ROUTES and isinstance(body, FusedLoop):
        return  # nothing is compiled here

    def step(size: int) -> float:
        # a chain's tokens cost what a tree's do
        draft = DraftTree.chain(int(ids[0]), ids[1:size] if size > 1 else [])
        start = time.perf_counter()
        runtime.forward(draft)
        seconds = time.perf_counter() - start
        runtime.commit([[]])
        return seconds

    if hasattr(body, "spent"):
        several[name] = StepContender(step, body.reads, spent=body.spent)
    else:
        several[name] = StepContender(step, _weights(model))


def _native(loaded: Loaded, several: Mapping[str, Any], ids: Any) -> dict[str, StepContender]:
    """CTranslate2's greedy text, a token at a time: seconds behind the first token by the tokens written then."""
    weights = _weights(loaded.model)

    def step(size: int, write: OnCTranslate2) -> float:
        return write(ids.tolist(), 1 + WRITTEN, 0.0, 0).writing

    return {
        name: StepContender(
            partial(step, write=OnCTranslate2(generator, loaded.tokenizer)),
            weights if FORMS[name] == "float32" else weights // 4,
            1,
            TEXTS,
        )
        for name, generator in several.items()
    }


def _rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with linear weights that bfloat16 holds exactly: another model's numbers, and a checkpoint's usual form."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.bfloat16())
    return twin


def _weights(model: PreTrainedModel) -> int:
    """Bytes of the linear layers, each of which a step reads once."""
    return sum(module.weight.numel() * 4 for module in model.modules() if isinstance(module, nn.Linear))


def _column(model: PreTrainedModel) -> int:
    """Bytes of a cached token's keys and values."""
    layers = model.model.layers if hasattr(model, "model") and hasattr(model.model, "layers") else []
    return sum(8 * getattr(layer.self_attn.k_proj, "out_features", 0) for layer in layers)
