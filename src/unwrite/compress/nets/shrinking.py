"""Channels chosen, and taken out of a convolution, its normalisation and the layer that reads it: the modules become smaller.

Modules are changed where they stand, weights by new parameters, so that whatever holds the module sees the smaller one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import MethodError, setting
from .graph import NetLayer

__all__ = [
    "Criterion",
    "consumer_input",
    "folded",
    "folding",
    "keep_outputs",
    "kept_channels",
    "kept_count",
    "replace_inputs",
]

Criterion = Literal["l1", "l2", "geometric-median", "folded-l2"]


def kept_count(layer: NetLayer, prune_ratio: float) -> int:
    """Channels that stay of a layer.

    Raises:
        MethodError: none would.
    """
    count = layer.channels - round(prune_ratio * layer.channels)
    if count < 1:
        raise MethodError(
            f"{setting('prune_ratio')} of {prune_ratio:g} leaves none of the {layer.channels} channels of {layer.name}. Give a lower one."
        )
    return count


def kept_channels(model: nn.Module, layer: NetLayer, count: int, criterion: Criterion) -> Tensor:
    """The `count` channels that matter most by a criterion on weights, int64 `[count]` in order; of equal ones the first."""
    filters = _convolution(model, layer.name).weight.detach().double().flatten(1)
    if criterion == "folded-l2":
        filters = filters * folding(model, layer)[0][:, None]
    if criterion == "l1":
        scores = filters.abs().sum(1)
    elif criterion == "geometric-median":
        scores = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    else:
        scores = filters.square().sum(1)
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def folding(model: nn.Module, layer: NetLayer) -> tuple[Tensor, Tensor]:
    """What normalisation does to a channel in evaluation: factor gamma / sigma and offset, each float64 `[channels]`.

    sigma is the root of the running variance plus epsilon; the offset holds the convolution's own bias.
    """
    norm, conv = _norm(model, layer.norm), _convolution(model, layer.name)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    offset = -norm.running_mean.double() * factor
    if norm.bias is not None:
        offset = offset + norm.bias.detach().double()
    if conv.bias is not None:
        offset = offset + conv.bias.detach().double() * factor
    return factor, offset


def folded(weight: Tensor, factor: Tensor) -> Tensor:
    """Filters `[channels, inputs]` in float64, each times its channel's factor."""
    return weight.detach().double().flatten(1) * factor[:, None]


def consumer_input(model: nn.Module, layer: NetLayer) -> Tensor:
    """The weights that read the layer's channels, `[outputs, channels, weights of one channel]`."""
    weight = _module(model, layer.consumer).weight.detach()
    return weight.reshape(len(weight), layer.channels, -1)


def replace_inputs(model: nn.Module, layer: NetLayer, weights: Tensor) -> None:
    """Makes the consumer read other channels: `weights`, `[outputs, kept, weights of one channel]`."""
    reader = _module(model, layer.consumer)
    if isinstance(reader, nn.Conv2d):
        reader.in_channels = weights.shape[1]
        _set(reader, "weight", weights.reshape(len(weights), weights.shape[1], *reader.kernel_size))
    else:
        reader.in_features = weights.shape[1] * weights.shape[2]
        _set(reader, "weight", weights.flatten(1))


def keep_outputs(model: nn.Module, layer: NetLayer, kept: Tensor) -> None:
    """Takes the other channels out of the convolution and its normalisation, statistics included."""
    conv, norm = _convolution(model, layer.name), _norm(model, layer.norm)
    conv.out_channels = norm.num_features = len(kept)
    for module, names in ((conv, ("weight", "bias")), (norm, ("weight", "bias"))):
        for name in names:
            if getattr(module, name) is not None:
                _set(module, name, getattr(module, name).detach()[kept])
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[kept].clone())


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """A new parameter in the place of one, of its type and with its own flag for gradients."""
    before = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(before.dtype).contiguous().clone(), requires_grad=before.requires_grad))


def _module(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    return module


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _norm(model: nn.Module, name: str) -> nn.BatchNorm2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    return module
