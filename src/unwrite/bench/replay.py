"""What a sampler's decisions cost on a model of real size: its recorded forwards run again, every one for real.

The test bed decides in a millisecond what a language model takes seconds for, so its clock says nothing. Here a sampler runs on the
test bed once, and the logits it got are kept. Then it runs again on a *timing model*, SmolLM2-135M's shape on a canvas of 256
positions: each forward computes what the sampler asks for (whole canvas, the rest after a prefix, one block), the result is thrown
away, and the sampler gets the kept logits, in the timing model's vocabulary. It decides as before; forwards and its own work are timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..beds import denoiser as testbed
from ..diffusion import MaskPredictor, Sampler
from ..errors import DataError

CANVAS = 256


class Recorder:
    """A model that keeps the logits it gave, one tensor [rows, n, vocab] a forward."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.kept: list[Tensor] = []

    def __call__(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        self.kept.append(out.logits[0].clone())
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class Replayed:
    """Runs every forward on the timing model and answers from the recording."""

    def __init__(self, timing: Any, recording: Sequence[Tensor]) -> None:
        self.model, self.config = timing, timing.config
        self.recording, self.place = recording, 0

    def __call__(self, **inputs: Any) -> Any:
        real = self.model(**inputs).logits
        kept = self.recording[self.place]
        self.place += 1
        if real.shape[1] != len(kept):
            raise DataError(f"forward {self.place} asks for {real.shape[1]} columns, the recording has {len(kept)}.")
        # In the timing model's own memory: what it computed is overwritten.
        real.fill_(-1e4)
        real[0, :, : kept.shape[1]] = kept
        return SimpleNamespace(logits=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@dataclass(frozen=True)
class Timed:
    """Args:
    seconds, own: of the whole, and of the sampler's work beside the forwards.
    forwards: of all prompts.
    tokens, positions: written before the end token; all of them.
    same: whether the replay decided as the recording did.
    """

    seconds: float
    own: float
    forwards: int
    tokens: int
    positions: int
    same: bool

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def own_share(self) -> float:
        """Of the forwards' time."""
        return self.own / max(1e-12, self.seconds - self.own)


def timing_model(seed: int = 0, layers: int = 30, vocabulary: int = 49152, width: int = 576) -> Any:
    """SmolLM2-135M's shape, bidirectional, with random weights: only its cost matters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=CANVAS,
        tie_word_embeddings=True,
        is_causal=False,
    )
    return LlamaForCausalLM(config).eval()


def timed(bed: testbed.TestBed, timing: Any, sampler: Sampler, asked: Sequence[testbed.Item]) -> Timed:
    """One prompt after the other, each recorded on the test bed and replayed."""
    ids, seconds, own, forwards, tokens, same = bed.tokenizer, 0.0, 0.0, 0, 0, True
    for item in asked:
        prompt = ids(item.prompt)["input_ids"]
        recorder = Recorder(bed.model)
        small = replace(bed.predictor, model=recorder, probe=False)
        before = sampler(small, None, [prompt])
        longer = [bed.predictor.pad_id] * (CANVAS - testbed.PROMPT - testbed.ANSWER) + prompt
        large = MaskPredictor(
            Replayed(timing, recorder.kept), bed.predictor.mask_id, bed.predictor.end_ids, probe=False
        )
        start = time.perf_counter()
        after = sampler(large, None, [longer])
        seconds += time.perf_counter() - start
        own += after.trace.seconds["parts"]
        forwards += int(after.nfe[0])
        tokens += len(after.answers[0])
        same &= before.answers == after.answers and bool((before.nfe == after.nfe).all())
    return Timed(seconds, own, forwards, tokens, len(asked) * testbed.ANSWER, same)
