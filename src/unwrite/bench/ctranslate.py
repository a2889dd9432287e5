"""CTranslate2 as a peer: the same weights, converted, in its own engine (`pip install ctranslate2`)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .decode import BenchSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FORMS", "OnCTranslate2", "generators"]

FORMS = {"CTranslate2, float32": "float32", "CTranslate2, int8": "int8"}
TOP_K = 50  # transformers' own default when it samples
TRIES, TRIED = 3, 16  # texts that a number of threads is judged by, and tokens of each
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@contextmanager
def generators(folder: Path, threads: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """{name: its generator} of a model's folder in both forms; empty where CTranslate2 isn't installed.

    Each is at its best: on one thread or on all, whichever writes faster here, and with threads that wait as its own OpenMP library
    has them wait. That library is a copy of its own, so nothing else in the process is changed.

    Args:
        folder: of the model.
        threads: at most.
        tokenizer: the model's.
    """
    if find_spec("ctranslate2") is None:
        yield {}
        return
    with _own_waiting():
        from ctranslate2 import Generator
        from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as home:
        target = str(Path(home) / "model")
        TransformersConverter(str(folder)).convert(target)
        yield {
            name: _fastest(
                [
                    Generator(target, device="cpu", compute_type=form, intra_threads=count)
                    for count in sorted({1, threads})
                ],
                tokenizer,
            )
            for name, form in FORMS.items()
        }


@contextmanager
def _own_waiting() -> Iterator[None]:
    """Takes out of the environment how OpenMP's threads wait: a library reads it once, when it is loaded."""
    before = {name: os.environ.pop(name) for name in WAITING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _fastest(several: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    """The generator that writes a short text in the least time, by the median of some texts in turns."""
    seconds: dict[int, list[float]] = {number: [] for number in range(len(several))}
    for turn in range(1 + TRIES):  # the first of each only warms up
        for number, generator in enumerate(several):
            sample = OnCTranslate2(generator, tokenizer)([1, 2, 3], TRIED, 0.0, 0)
            if turn:
                seconds[number].append(sample.seconds)
    return several[min(seconds, key=lambda number: median(seconds[number]))]


class OnCTranslate2:
    """Its `generate_batch`, one text at a time, that never ends early."""

    def __init__(self, generator: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.generator, self.tokenizer = generator, tokenizer

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample:
        import ctranslate2

        first: list[float] = []

        def note(result: Any) -> bool:
            if not first:
                first.append(time.perf_counter() - start)
            return False

        ctranslate2.set_random_seed(seed)
        words = self.tokenizer.convert_ids_to_tokens(list(ids))
        start = time.perf_counter()
        (written,) = self.generator.generate_batch(
            [words],
            max_length=count,
            end_token=[],
            sampling_topk=TOP_K if temperature > 0 else 1,
            sampling_temperature=temperature or 1.0,
            include_prompt_in_result=False,
            callback=note,
        )
        seconds = time.perf_counter() - start
        return BenchSample(seconds, tuple(written.sequences_ids[0]), (first[0], 1))
