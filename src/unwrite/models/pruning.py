"""Pruning: which weights of a model survive, and the sparse models that are trained on what survives.

A mask is a boolean tensor a parameter, true where the weight stays; a set of masks prunes a whole model, the smallest
scores over all its layers together. One-shot and iterative pruning train, prune, go back to the weights of an early
epoch and train again with the mask held. (Sparse MU, arXiv 2304.04934; lottery tickets with rewinding, 1912.05671;
SynFlow, 2006.05467, eq. 3)

    magnitude   |theta_i|        synflow   |theta_i * dR/dtheta_i|,   R = 1^T (prod_l |theta_l|) 1
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import MethodError, ModelError, unknown
from .fitting import TrainRecipe
from .image_training import fitted
from .vision_layout import logits_of

__all__ = [
    "Masks",
    "Scope",
    "SparseModel",
    "apply_masks",
    "imp",
    "magnitude_masks",
    "omp",
    "random_masks",
    "sparsity",
    "synflow_masks",
    "zero_masks",
]

Masks = dict[str, Tensor]
Scope = Literal["conv", "weights"]
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "weights": (nn.modules.conv._ConvNd, nn.Linear),
}


@dataclass(frozen=True, eq=False)
class SparseModel:
    """A pruned model with the masks of what survived.

    Args:
        model: trained, in evaluation mode; its weights outside the masks are 0.
        masks: booleans by parameter name, true where a weight survived.
    """

    model: nn.Module
    masks: Masks


def magnitude_masks(
    model: nn.Module, rate: float, scope: Scope = "conv", *, within: Mapping[str, Tensor] | None = None
) -> Masks:
    """Prunes the smallest weights over all layers together. Of equal ones the earlier goes first.

    Args:
        rate: share to prune, in [0, 1); exactly round(rate * n) of the n weights.
        scope: "conv" (the weights of convolutions) or "weights" (those of linear layers too). Never biases or norms.
        within: masks of an earlier round: n counts their survivors, and what they pruned stays pruned.

    Raises:
        MethodError: a rate or scope without meaning, or one that leaves no weight.
        ModelError: no weights in the scope; weights that are no numbers; masks that don't fit.
    """
    return _pruned({name: weight.abs() for name, weight in _weights(model, scope).items()}, rate, within)


def random_masks(model: nn.Module, rate: float, seed: int, scope: Scope = "conv") -> Masks:
    """As many weights as `magnitude_masks` prunes, at random places: a function of the seed and the weights' shapes."""
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(model, scope)
    return _pruned({n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in weights.items()}, rate)


def synflow_masks(
    model: nn.Module, rate: float, shape: Iterable[int], iterations: int = 100, scope: Scope = "conv"
) -> Masks:
    """Prunes what carries the least synaptic flow; needs no data. For nets of convolutions, linear layers and ReLU.

    In float64 on absolute weights, scored anew each iteration; after iteration k of N about (1 - rate)^(k / N)
    survive, at the end exactly n - round(rate * n). Batch normalisation acts by its running statistics, folded into a
    scale and a shift whose absolute values are taken, so that nothing is ever negative.

    Args:
        rate, scope: as `magnitude_masks`.
        shape: of one image, (channels, height, width); the net sees ones.
        iterations: N, at least 1; 100 in the paper.

    Raises:
        MethodError, ModelError: as `magnitude_masks`; fewer than one iteration.
    """
    if iterations < 1:
        raise MethodError(f"iterations is {iterations}; it must be at least 1.")
    count = sum(weight.numel() for weight in _weights(model, scope).values())
    _checked_rate(rate, count)
    positive = _positive(model)
    weights = _weights(positive, scope)
    whole = {name: weight.detach().clone() for name, weight in weights.items()}
    masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    pixels = torch.ones(1, *shape, dtype=torch.float64, device=next(positive.parameters()).device)
    for k in range(1, iterations + 1):
        target = round(count * (1 - (1 - rate) ** (k / iterations))) if k < iterations else round(rate * count)
        masks = _smallest(_flow(positive, weights, pixels), target, masks)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(whole[name] * masks[name])
    return {name: mask.cpu() for name, mask in masks.items()}


def zero_masks(model: nn.Module, scope: Scope = "conv") -> Masks:
    """The masks of a model that is pruned already: false where a weight is exactly 0.

    Raises:
        ModelError: there are no weights in the scope, or none of them is 0.
    """
    masks = {name: (weight != 0).cpu() for name, weight in _weights(model, scope).items()}
    if all(bool(mask.all()) for mask in masks.values()):
        raise ModelError(f"no weight of {type(model).__name__} is exactly 0: it isn't pruned. Give a rate to prune at.")
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets every weight outside its mask to 0, in place.

    Raises:
        ModelError: masks that don't fit the model.
    """
    parameters = dict(model.named_parameters())
    _fitting(parameters, masks)
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Share of weights that are pruned, 0 to 1."""
    return sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def omp(
    recipe_of: Callable[..., TrainRecipe],
    data: Any,
    indices: Iterable[int],
    seed: int,
    rate: float = 0.95,
    rewind_epochs: int = 8,
    scope: Scope = "conv",
) -> SparseModel:
    """One-shot magnitude pruning: train, prune the trained weights, go back to an early epoch, train on with the mask.

    The retrained baseline of a sparse model is `fitted(recipe_of(masks=masks), data, retain, seed)`.

    Args:
        recipe_of: the net with its training settings, such as `partial(image_recipe, SmallCNN, epochs=30)`; called
            with what differs: `start`, `masks`, `begin`, `stop_after`.
        data, indices, seed: as `fitted`; every training is done once per content hash.
        rate, scope: as `magnitude_masks`; 0.95 in the paper.
        rewind_epochs: which epoch's weights are gone back to, on the learning rates from there on; 0 for new weights.

    Raises:
        MethodError: a rate without meaning; an epoch that isn't before the last.
        ModelError: as `magnitude_masks`.
    """
    return imp(recipe_of, data, indices, seed, rate, 1, rewind_epochs, scope)


def imp(
    recipe_of: Callable[..., TrainRecipe],
    data: Any,
    indices: Iterable[int],
    seed: int,
    rate: float = 0.2,
    rounds: int = 10,
    rewind_epochs: int = 8,
    scope: Scope = "conv",
) -> SparseModel:
    """Iterative magnitude pruning: as many rounds of `omp`, each pruning a share of what the last one left.

    Args:
        rate: share of the survivors that a round prunes; 0.2 in the paper.
        rounds: at least 1; ten rounds of 0.2 prune 89 %.
        others: as `omp`.

    Raises:
        MethodError, ModelError: as `omp`; fewer than one round.
    """
    if rounds < 1:
        raise MethodError(f"rounds is {rounds}; it must be at least 1.")
    epochs = recipe_of().settings["epochs"]
    if not 0 <= rewind_epochs < epochs:
        raise MethodError(f"rewind_epochs is {rewind_epochs} of {epochs} epochs; it must be 0 to {epochs - 1}.")
    rows = list(indices)
    early = fitted(recipe_of(stop_after=rewind_epochs), data, rows, seed).cpu().state_dict()
    model, masks = fitted(recipe_of(), data, rows, seed), None
    for _ in range(rounds):
        masks = magnitude_masks(model, rate, scope, within=masks)
        model = fitted(recipe_of(start=early, masks=masks, begin=rewind_epochs), data, rows, seed)
    assert masks is not None
    return SparseModel(model, masks)


def _weights(model: nn.Module, scope: str) -> dict[str, Tensor]:
    """The weights in the scope by the names `named_parameters` gives them; a shared one once."""
    if scope not in _KINDS:
        raise MethodError(unknown("scope", str(scope), _KINDS))
    ids = {id(module.weight) for module in model.modules() if isinstance(module, _KINDS[scope])}
    weights: dict[str, Tensor] = {name: one for name, one in model.named_parameters() if id(one) in ids}
    if not weights:
        raise ModelError(
            f"{type(model).__name__} has no {'convolutions' if scope == 'conv' else 'layers'} to prune. "
            "Take scope='weights' to prune linear layers."
        )
    for name, parameter in weights.items():
        if not bool(parameter.isfinite().all()):
            raise ModelError(f"{name} has weights that are not finite. Give a model that was trained well.")
    return weights


def _checked_rate(rate: float, count: int) -> None:
    if not 0 <= rate < 1:
        raise MethodError(f"rate is {rate}; it must be a number in [0, 1).")
    if round(rate * count) == count:
        raise MethodError(f"a rate of {rate} prunes all {count} weights. Lower it.")


def _pruned(scores: Mapping[str, Tensor], rate: float, within: Mapping[str, Tensor] | None = None) -> Masks:
    masks = {name: torch.ones_like(score, dtype=torch.bool, device="cpu") for name, score in scores.items()}
    if within is not None:
        _fitting(scores, within)
        masks |= {name: mask.cpu() for name, mask in within.items()}
    count = sum(int(mask.sum()) for mask in masks.values())
    _checked_rate(rate, count)
    gone = sum(mask.numel() for mask in masks.values()) - count
    return _smallest({name: score.detach().cpu() for name, score in scores.items()}, gone + round(rate * count), masks)


def _smallest(scores: Mapping[str, Tensor], count: int, within: Mapping[str, Tensor]) -> Masks:
    """Prunes so many in all: first what is pruned already, then the smallest scores, of equal ones the earlier."""
    flat = torch.cat([scores[name].masked_fill(~within[name], -1).flatten() for name in scores])
    keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    keep[torch.argsort(flat, stable=True)[:count]] = False
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _fitting(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape or mask.dtype != torch.bool:
            have = f"has shape {list(parameters[name].shape)}" if name in parameters else "is not there"
            raise ModelError(f"the mask names {name} ({mask.dtype}, {list(mask.shape)}), which {have} in this model.")


@torch.no_grad()
def _positive(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode that maps what is positive to what is positive."""
    positive = copy.deepcopy(model).double().eval().requires_grad_(True)
    for module in positive.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            scale = 1 if module.weight is None else module.weight
            shift = -scale * module.running_mean / (module.running_var + module.eps).sqrt()
            # What a norm adds is its bias less the scaled mean; without a bias, it stands in the mean itself.
            if module.bias is not None:
                module.bias += shift
                module.running_mean.zero_()
            else:
                module.running_mean.copy_(-module.running_mean.abs())
    for parameter in positive.parameters():
        parameter.abs_()
    return positive


def _flow(positive: nn.Module, weights: Mapping[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """|theta * dR / dtheta| of every weight, float64."""
    gradients = torch.autograd.grad(logits_of(positive, pixels).sum(), list(weights.values()))
    return {
        name: (weight * gradient).abs().detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
