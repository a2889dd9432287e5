"""CTranslate2 as a peer: the same weights, converted, in its own engine (`pip install ctranslate2`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .decode import BenchSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FORMS", "OnCTranslate2", "generators"]

FORMS = {"CTranslate2, float32": "float32", "CTranslate2, int8": "int8"}
TOP_K = 50  # transformers' own default when it samples


@contextmanager
def generators(folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """{name: its generator} of a model's folder in both forms; empty where CTranslate2 isn't installed."""
    if find_spec("ctranslate2") is None:
        yield {}
        return
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as home:
        target = str(Path(home) / "model")
        TransformersConverter(str(folder)).convert(target)
        yield {
            name: Generator(target, device="cpu", compute_type=form, intra_threads=threads)
            for name, form in FORMS.items()
        }


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
