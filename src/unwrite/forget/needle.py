"""Needle: destroy the few MLP value vectors in which a concept lies, and leave every other weight as it is.

It is the oracle of the ConceptVectors benchmark: told where the knowledge is, what would removing it look like?
(Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614)

    v <- v + eps,  eps ~ N(0, noise^2 I)      then, on request, gradient ascent on the forget rows over v alone

The official code can also train the vectors by NPO or DPO and stop at a loss; only the ascent is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data import Examples
from ..data.text.encoding import IGNORE
from ..errors import DataError, MethodError, setting
from ..models.layout import anatomy
from ..models.value_vectors import VectorPlace, noise_scale, rank_by_tokens, value_vector, write_value_vector
from .base import Edit, Objective
from .engine.batch import BatchPart, PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerToken

if TYPE_CHECKING:
    from .engine.text.work import TextWork

OFFICIAL_DECAY = 0.01
PRIME = 1_000_003  # keeps the seeds of places apart


@dataclass(frozen=True, kw_only=True)
class Needle(Edit["TextWork"]):
    """Noise on chosen value vectors, and gradient ascent on them where asked for.

    Args:
        layers, units: the vectors, pair by pair, counted from 0. Both empty: they are found, by their projections onto
            the vocabulary, as those that name most of the tokens of the forget answers (ours; without those that retain
            answers have, where there are any).
        count: how many are found, >= 1.
        top: tokens of a projection that are looked at for that, >= 1; 200 in the paper.
        noise: standard deviation of the noise on each entry, >= 0; 0.1 in the paper, where vectors have 4,096 entries.
            With `scale="relative"`, the expected length of the noise in lengths of the vector.
        scale: "absolute" as in the paper, or "relative" (ours): an absolute figure means something else in every model.
        noise_seed: of the noise, >= 0; a function of (seed, layer, unit).
        after_noise: "nothing" as in the paper's text, or "ascent" as in its code: gradient ascent on the forget rows over
            these vectors alone, by the training arguments. The code's learning rate is 0.2.
        official: with "ascent", also decay weights as the official code does (0.01), which shrinks all other vectors of
            the same matrices at every step. Without it nothing else changes by a bit.
    """

    training: ClassVar[dict[str, Any]] = {"learning_rate": 0.2, "weight_decay": 0.0, "num_train_epochs": 1.0}
    layers: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    count: int = 1
    top: int = 200
    noise: float = 0.1
    scale: Literal["absolute", "relative"] = "absolute"
    noise_seed: int = 0
    after_noise: Literal["nothing", "ascent"] = "nothing"
    official: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "units"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(type(one) is int and one >= 0 for one in value):
                raise MethodError(f"{setting(name)} is {value!r}; give whole numbers from 0, one a vector.")
        if len(self.layers) != len(self.units):
            raise MethodError(
                f"{setting('layers')} has {len(self.layers)} entries and {setting('units')} {len(self.units)}; a "
                "vector needs one of each."
            )
        require("count", self.count, at_least=1)
        require("top", self.top, at_least=1)
        require("noise", self.noise, at_least=0)
        require("noise_seed", self.noise_seed, at_least=0)
        if self.scale not in ("absolute", "relative"):
            raise MethodError(f"{setting('scale')} is {self.scale!r}; use 'absolute' or 'relative'.")
        if self.after_noise not in ("nothing", "ascent"):
            raise MethodError(f"{setting('after_noise')} is {self.after_noise!r}; use 'nothing' or 'ascent'.")
        if not isinstance(self.official, bool):
            raise MethodError(f"{setting('official')} is {self.official!r}; use True or False.")

    @property
    def places(self) -> tuple[VectorPlace, ...]:
        """The vectors that were named; none where they are to be found."""
        return tuple(map(VectorPlace, self.layers, self.units))

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        """Refuses a place that the model doesn't have, and adapters, which hold no value vectors."""
        super().check_model(model, adapters=adapters)
        if adapters:
            raise MethodError(f"Needle rewrites weights and trains no adapters. Leave out {setting('peft_config')}.")
        for place in self.places:
            value_vector(model, place)

    def check_work(self, work: TextWork) -> None:
        super().check_work(work)
        if self.after_noise == "ascent" and work.args.weight_decay and not self.official:
            raise MethodError(
                f"{setting('weight_decay', work.args.weight_decay)} would shrink every other vector of the same matrices. "
                f"Set it to 0, or {setting('official', True)} for what the official code does."
            )

    def find(self, work: TextWork) -> tuple[VectorPlace, ...]:
        """The value vectors whose projections name most of the tokens that forget answers have and retain answers don't.

        Raises:
            DataError: no vector names any of them.
        """
        tokens = _answer_tokens(work, work.forget)
        if work.retain is not None:
            tokens = (tokens - _answer_tokens(work, work.retain)) or tokens
        vectors = rank_by_tokens(work.model, [tokens], k=self.top, count=self.count)[0]
        if not vectors:
            raise DataError(
                f"no value vector has a token of the forget answers among its {self.top} first ones. Name the vectors: "
                f"{setting('layers')} and {setting('units')}."
            )
        return tuple(vector.place for vector in vectors)

    def _apply(self, work: TextWork) -> nn.Module:
        places = self.places or self.find(work)
        for place in dict.fromkeys(places):
            vector = value_vector(work.model, place)
            write_value_vector(work.model, place, vector + self.disturbance(vector, place))
        if self.after_noise == "ascent":
            self._ascend(work, places)
        return work.model.eval()

    def disturbance(self, vector: Tensor, place: VectorPlace) -> Tensor:
        """The noise that is added to a vector, `[hidden]`; the same for the same seed and place on every device."""
        seed = (self.noise_seed * PRIME + place.layer) * PRIME + place.unit
        generator = torch.Generator().manual_seed(seed % 2**63)
        noise = torch.randn(vector.shape, generator=generator)
        return (noise * noise_scale(vector, self.noise, relative=self.scale == "relative")).to(vector)

    def _ascend(self, work: TextWork, places: Sequence[VectorPlace]) -> None:
        if self.official:
            work.args.weight_decay = OFFICIAL_DECAY
        with _gradient_at(work.model, places):
            work.train(_Ascent(layers=tuple(sorted({place.layer for place in places}))))


@dataclass(frozen=True, kw_only=True)
class _Ascent(Objective["TextWork"]):
    """Raises the mean token nll of forget answers over the MLP outputs of some blocks."""

    layers: tuple[int, ...]

    def trainable(self, work: TextWork) -> Sequence[Tensor]:
        return [work.anatomy.blocks[layer].down.module.weight for layer in self.layers]

    def loss(self, batch: PairedBatch[BatchPart]) -> Loss:
        """Ascent on the forget answers. batch.forget.token_nll: [label tokens], in nats."""
        return Loss(forget=PerToken(-batch["forget"].token_nll, "forget"))


@contextmanager
def _gradient_at(model: nn.Module, places: Sequence[VectorPlace]) -> Iterator[None]:
    """Within the block only these vectors of their matrices get a gradient."""
    blocks, hooks = anatomy(model).blocks, []
    for layer in {place.layer for place in places}:
        down = blocks[layer].down
        mask = torch.zeros_like(down.module.weight)
        for place in places:
            if place.layer == layer:
                (mask if down.transposed else mask.T)[place.unit] = 1
        hooks.append(down.module.weight.register_hook(mask.mul))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _answer_tokens(work: TextWork, rows: Examples) -> set[int]:
    special = set(work.tokenizer.all_special_ids)
    labels = {label for row in work.encoded(rows) for label in row.labels}
    return labels - special - {IGNORE}
