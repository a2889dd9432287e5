"""The quantisation attack: round the weights to 4 bits and see whether the knowledge comes back.

Unlearning that moves weights only a little can vanish in the rounding: model and original fall into the same 4-bit
cells (Zhang et al., "Catastrophic failure of LLM unlearning via quantization", arXiv 2410.16454).

    q = s * clamp(round(w / s), -L, L),   s = max|w| / L,   L = 2^(bits-1) - 1,   per output channel and group

so |w - q| <= s/2, and quantising twice changes nothing.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import MethodError, ModelError
from ...models.merging import merged
from ..base import Attack, Point
from ..context import Context
from ..text.context import TextContext
from ..text.rows import has_rows, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Quantise(Attack[TextContext]):
    """Round-to-nearest quantisation of every linear weight; head and embeddings stay.

    Args:
        bits: width of a weight, 2 to 16.
        group: weights of one output channel that share a scale.
    """

    bits: int = 4
    group: int = 64

    reads: ClassVar[type[Context]] = TextContext
    name: ClassVar[str] = "quantisation"
    x: ClassVar[str] = "bits"
    label: ClassVar[str] = "bits per weight"
    series: ClassVar[tuple[str, ...]] = ("forget", "kept")
    judged: ClassVar[str] = "forget"
    about: ClassVar[str] = "The weights are rounded to few bits; do the forget answers come back?"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise MethodError(f"quantisation takes 2 to 16 bits, not {self.bits}.")
        if self.group < 1:
            raise MethodError(f"quantisation needs groups of at least 1 weight, not {self.group}.")

    def __call__(self, context: TextContext) -> list[Point]:
        """Measures the mean probability of the forget answers (and the retained ones) before and after rounding."""
        split = context.split
        sets = {"forget": rows_of(split, "forget")}
        if has_rows(split, "retain"):
            sets["kept"] = rows_of(split, "retain", 200)
        ids = {
            name: [[[part.input_ids, part.prompt_length] for part in row] for row in context.encoded(rows)]
            for name, rows in sets.items()
        }

        def measure(subject: TextContext, bits: float) -> Point:
            means = {n: float(np.mean([math.exp(-s.mean_nll) for s in subject.scores(r)])) for n, r in sets.items()}
            return {"bits": bits, **means}

        def attack() -> list[Point]:
            width = 8.0 * next(context.model.parameters()).element_size()
            small = context.of(quantise(context.model, self.bits, self.group))
            return [measure(context, width), measure(small, float(self.bits))]

        return context.remember("quantisation", [asdict(self), ids], attack)


def quantise(model: PreTrainedModel, bits: int = 4, group: int = 64) -> PreTrainedModel:
    """Returns a copy of the model whose linear weights (nn.Linear and transformers' Conv1D) lie on a `bits`-bit grid.

    Raises:
        ModelError: there is no linear weight to round besides the head.
    """
    from transformers.pytorch_utils import Conv1D

    Quantise(bits, group)
    # an adapter is rounded with the weights it is folded into, as a quantised model is shipped
    rounded = merged(model) if hasattr(model, "merge_and_unload") else copy.deepcopy(model)
    head = rounded.get_output_embeddings() if hasattr(rounded, "get_output_embeddings") else None
    layers = [m for m in rounded.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if not layers:
        raise ModelError(f"a {type(model).__name__} has no linear weight to quantise.")
    with torch.no_grad():
        for layer in layers:
            weight = layer.weight
            if isinstance(layer, Conv1D):  # stored [in, out]
                weight.copy_(round_to_grid(weight.T, bits, group).T)
            else:
                weight.copy_(round_to_grid(weight, bits, group))
    return rounded


def round_to_grid(weight: Tensor, bits: int = 4, group: int = 64) -> Tensor:
    """Rounds a weight [out, in]; each run of `group` inputs of an output channel has its own scale."""
    levels = 2 ** (bits - 1) - 1
    out, width = weight.shape
    # In float64 the largest weight maps to itself exactly, so a second rounding finds the same scale.
    padded = nn.functional.pad(weight.double(), (0, -width % group)).view(out, -1, group)
    scale = padded.abs().amax(-1, keepdim=True) / levels
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    grid = (padded / safe).round().clamp(-levels, levels) * scale
    return grid.view(out, -1)[:, :width].to(weight.dtype)
