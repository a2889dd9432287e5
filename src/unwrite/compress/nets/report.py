"""What was done to each layer of a compressed net, and what it takes before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["CompressedLayerReport", "NetReport"]


@dataclass(frozen=True, eq=False)
class CompressedLayerReport:
    """One convolution or linear layer.

    Args:
        name: path of its module.
        kind: "convolution" or "linear".
        channels: outputs before.
        kept: int64, the outputs that stayed; None where all did because none may be taken out.
        reason: why none may.
        combination: float64 `[channels, kept]`: each channel by the kept ones, a kept one by itself and more; None if nothing reads them.
        lost, left: the error of each channel, `[channels]`, without and with the combination; None likewise.
        negative_share: of the channels, whose normalisation has a negative factor, so that the combination says less.
        asleep_share: of the channels, whose normalised output lies below 0 by three deviations: ReLU lets nothing through.
        step: what one code of the quantised weights is worth; None where they are as they were.
        code_bits: bits of a code; None likewise.
        number_bits: bits of a number before, 32 for float32.
        weights, weights_before: how many there are, now and before.
        positions: places in one picture that they are applied at.
    """

    name: str
    kind: str
    channels: int
    kept: Tensor | None
    reason: str
    combination: Tensor | None
    lost: Tensor | None
    left: Tensor | None
    negative_share: float
    asleep_share: float
    step: Tensor | None
    code_bits: int | None
    number_bits: int
    weights: int
    weights_before: int
    positions: int

    @property
    def bits(self) -> int:
        """Of storage of weights and steps."""
        if self.step is None or self.code_bits is None:
            return self.weights * self.number_bits
        return self.weights * self.code_bits + self.step.numel() * self.number_bits

    @property
    def bits_before(self) -> int:
        """Of storage before."""
        return self.weights_before * self.number_bits

    @property
    def flops(self) -> int:
        """For one picture: two, a multiplication and an addition, for each weight and position."""
        return 2 * self.weights * self.positions

    @property
    def flops_before(self) -> int:
        """The same before."""
        return 2 * self.weights_before * self.positions

    @property
    def kept_count(self) -> int:
        """Outputs that stayed."""
        return self.channels if self.kept is None else len(self.kept)


@dataclass(frozen=True)
class NetReport:
    """All layers of a compressed net.

    Args:
        layers: convolutions and linear layers in the order they run.
        settings: of the method.
        bits: of a code; None where nothing was quantised.
        others_bits, others_bits_before: of storage of everything else, biases and normalisation, now and before.
        example_shape: of the picture that figures are for.
    """

    layers: tuple[CompressedLayerReport, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    bits: int | None = None
    others_bits: int = 0
    others_bits_before: int = 0
    example_shape: tuple[int, int, int] = (3, 224, 224)

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed net's numbers, packed."""
        return (sum(layer.bits for layer in self.layers) + self.others_bits + 7) // 8

    @property
    def nbytes_before(self) -> int:
        """Bytes of the net's numbers before."""
        return (sum(layer.bits_before for layer in self.layers) + self.others_bits_before + 7) // 8

    @property
    def flops(self) -> int:
        """Of convolutions and linear layers for one picture."""
        return sum(layer.flops for layer in self.layers)

    @property
    def flops_before(self) -> int:
        """The same of the net before."""
        return sum(layer.flops_before for layer in self.layers)

    @property
    def prunable(self) -> tuple[CompressedLayerReport, ...]:
        """The layers that channels could be taken out of."""
        return tuple(layer for layer in self.layers if layer.kept is not None)

    def __getitem__(self, name: str) -> CompressedLayerReport:
        return next(layer for layer in self.layers if layer.name == name)
