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
from torch import Tensor, nn

from ..beds import denoiser as testbed
from ..diffusion import MaskPredictor, Sampler
from ..errors import DataError

CANVAS = 256


class LogitsRecorder:
    """A model that keeps the logits it gave, one tensor [rows, n, vocab] a forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, model.config
        self.recording: list[Tensor] = []

    def __call__(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        self.recording.append(out.logits[0].clone())
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class Replayed:
    """Runs every forward on the timing model and answers from the recording.

    Attributes:
        forward: seconds of the timing model's forwards.
        elsewhere: seconds that laying the recorded logits into their place took, which are nobody's.
    """

    def __init__(self, timing: nn.Module, recording: Sequence[Tensor]) -> None:
        self.model, self.config = timing, timing.config
        self.recording, self.place = recording, 0
        self.forward = self.elsewhere = 0.0

    def __call__(self, **inputs: Any) -> Any:
        start = time.perf_counter()
        real = self.model(**inputs).logits
        ran = time.perf_counter()
        logits = self.recording[self.place]
        self.place += 1
        if real.shape[1] != len(logits):
            raise DataError(f"forward {self.place} asks for {real.shape[1]} columns, the recording has {len(logits)}.")
        # In the timing model's own memory: what it computed is overwritten.
        real.fill_(-1e4)
        real[0, :, : logits.shape[1]] = logits
        self.forward += ran - start
        self.elsewhere += time.perf_counter() - ran
        return SimpleNamespace(logits=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@dataclass(frozen=True)
class Timed:
    """What replays took.

    Args:
        seconds: of the whole: forwards and the sampler's work.
        own: seconds of all that is not the timing model's forward.
        forwards: number of forwards, of all prompts.
        tokens: tokens written before the end token.
        positions: positions written.
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
        """The sampler's own work as a share of the forwards' time."""
        return self.own / max(1e-12, self.seconds - self.own)


def timing_model(seed: int = 0, layers: int = 30, vocabulary: int = 49152, width: int = 576) -> nn.Module:
    """SmolLM2-135M's shape, bidirectional, with random weights: only its cost matters. Its linear layers run on packed weights where
    this processor has them, as decoding's do: a sampler is measured against the fastest forward we have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..decode.engine.transformers.packed import packed_copy

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
    return packed_copy(LlamaForCausalLM(config).eval())[0]


def timed(bed: testbed.TestBed, timing: nn.Module, sampler: Sampler, items: Sequence[testbed.Item]) -> Timed:
    """One prompt after the other, each recorded on the test bed and replayed."""
    ids, seconds, own, forwards, tokens, same = bed.tokenizer, 0.0, 0.0, 0, 0, True
    for item in items:
        prompt = ids(item.prompt)["input_ids"]
        recorder = LogitsRecorder(bed.model)
        small = replace(bed.predictor, model=recorder, probe=False)
        before = sampler(small, None, [prompt])
        longer = [bed.predictor.pad_id] * (CANVAS - testbed.PROMPT - testbed.ANSWER) + prompt
        replayed = Replayed(timing, recorder.recording)
        large = MaskPredictor(replayed, bed.predictor.mask_id, bed.predictor.end_ids, probe=False)
        start = time.perf_counter()
        after = sampler(large, None, [longer])
        whole = time.perf_counter() - start - replayed.elsewhere
        seconds += whole
        own += whole - replayed.forward
        forwards += int(after.nfe[0])
        tokens += len(after.answers[0])
        same &= before.answers == after.answers and bool((before.nfe == after.nfe).all())
    return Timed(seconds, own, forwards, tokens, len(items) * testbed.ANSWER, same)
