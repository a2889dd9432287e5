"""Unified data-free compression: channels are taken out and weights rounded at once, and the next layer makes up for both.

What a lost channel said, others nearly say: it is written as a combination of the channels that stay, as they are after rounding, and
that combination is folded into the weights of the layer that reads them. No data, no gradient, one small linear system a layer.
(UDFC, arXiv 2308.07209, ICCV 2023)

    X_j ~ sum_i s_ij X^_i          W'_i <- W'_i + sum_j s_ij W'_j          s of least error: `reconstruction.RidgeCombination`

The paper's equations could not be read; these follow from the assumption that its abstract and summaries state (ours).
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ...errors import MethodError, notice, setting, unknown
from .graph import NetGraph, NetLayer, net_graph
from .quantise import QuantisedWeight, check_bits, quantise
from .reconstruction import Combiner, Damage, LayerSite, RidgeCombination
from .report import CompressedLayerReport, NetReport
from .shrinking import (
    Criterion,
    consumer_input,
    folded,
    folding,
    keep_outputs,
    kept_channels,
    kept_count,
    replace_inputs,
)

__all__ = ["UDFC"]

ASLEEP = 3.0  # deviations below 0 at which a normalised channel counts as never let through


@dataclass(frozen=True)
class UDFC:
    """Takes channels out of a trained convolutional net, rounds its weights, and repairs what that breaks, without data.

    Args:
        prune_ratio: share of the channels taken out of every layer that allows it, 0 to below 1; 0.3 in the paper's headline.
        bits: of a quantised weight, 2 to 16; None leaves weights as they are. 6 in the paper's headline.
        alpha1: weight of the biases' error, >= 0; 0.01 in the paper. That it weighs this term is ours, as is alpha2's place.
        alpha2: of the ridge, >= 0; 0.008 in the paper.
        criterion: by which channels stay (ours): "l1" or "l2" norm of the filter, "geometric-median" (far from the other filters), or
            "folded-l2", the norm after batch normalisation.
        per_channel: a step for each output channel instead of one for the layer (ours: the layer).
        reconstruct: repair; without it, channels are gone and weights rounded, and that is all.
        max_terms: kept channels that may stand for a lost one; None for all, 1 for one partner each.
        joint: repair both damages at once. Otherwise pruning is repaired with unrounded weights, and rounding not at all.
        normalise: take the scale of the filters out of the ridge (ours: off).
    """

    prune_ratio: float = 0.3
    bits: int | None = 6
    alpha1: float = 0.01
    alpha2: float = 0.008
    criterion: Criterion = "l2"
    per_channel: bool = False
    reconstruct: bool = True
    max_terms: int | None = None
    joint: bool = True
    normalise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.prune_ratio < 1:
            raise MethodError(f"{setting('prune_ratio')} is {self.prune_ratio}. Give a share from 0 to below 1.")
        check_bits(self.bits)
        for name in ("alpha1", "alpha2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise MethodError(f"{setting(name)} is {getattr(self, name)}. Give a number from 0.")
        if self.criterion not in get_args(Criterion):
            raise MethodError(unknown("criterion", str(self.criterion), get_args(Criterion)))
        if self.max_terms is not None and self.max_terms < 1:
            raise MethodError(f"{setting('max_terms')} is {self.max_terms}. Give at least 1, or none for all.")

    def apply(
        self,
        model: nn.Module,
        example_shape: tuple[int, int, int] | None = None,
        *,
        in_place: bool = False,
        combine: Combiner | None = None,
    ) -> tuple[nn.Module, NetReport]:
        """A smaller net and what was done to it.

        Args:
            model: an image net with BatchNorm2d, in evaluation mode.
            example_shape: `(channels, height, width)` of a picture it takes; None tries what the model says, then usual sizes.
            in_place: change `model` itself; otherwise it stays as it is.
            combine: another way to write lost channels by kept ones than the paper's (`controls`); None for the paper's.

        Raises:
            ModelError: a model that is in training mode, has no batch normalisation or shares modules; a shape it doesn't take.
            MethodError: a share that leaves a layer without channels; dependent channels with `alpha2=0`.
        """
        graph = net_graph(model, example_shape)
        counts = {layer.name: kept_count(layer, self.prune_ratio) for layer in graph.chains}
        if self.prune_ratio and not counts:
            notice(f"no channel of {type(model).__name__} can be taken out: {_usual_reason(graph)}")
        model = model if in_place else copy.deepcopy(model)
        before, others = _weight_counts(model, graph), _others_bits(model, graph)
        layers = []
        for layer in graph.layers:
            turn = _Turn(self, model, layer, counts.get(layer.name), combine or self._combine)
            layers.append(turn.report(before[layer.name]))
        shape = graph.example_shape
        return model, NetReport(tuple(layers), asdict(self), self.bits, _others_bits(model, graph), others, shape)

    @property
    def objective(self) -> RidgeCombination:
        """The error that combinations are judged by, and how it is made least."""
        return RidgeCombination(self.alpha1, self.alpha2, self.max_terms, self.normalise)

    def _combine(self, damage: Damage) -> Tensor:
        return self.objective(damage) if self.reconstruct else torch.zeros_like(damage.selection)


@dataclass
class _Turn:
    """One layer's turn: pruned and quantised, and its consumer repaired before that is quantised in its own turn.

    Args:
        settings, model, layer: what is done, to what, where.
        count: channels that stay; None where none may be taken out.
        combine: writes lost channels by kept ones.
    """

    settings: UDFC
    model: nn.Module
    layer: NetLayer
    count: int | None
    combine: Combiner

    @torch.no_grad()
    def report(self, weights_before: int) -> CompressedLayerReport:
        """Does it, and says what was done."""
        module: Any = self.model.get_submodule(self.layer.name)
        negative, asleep = _ill_suited(self.model, self.layer)
        facts: dict[str, Any] = dict.fromkeys(("kept", "combination", "lost", "left"))
        if self.count is None:
            codes = self._codes(module.weight)
        else:
            kept = kept_channels(self.model, self.layer, self.count, self.settings.criterion)
            codes = self._codes(module.weight[kept])
            facts |= self._repaired(kept, codes)
        if codes is not None:
            module.weight.copy_(codes.values)
        return CompressedLayerReport(
            name=self.layer.name,
            kind=self.layer.kind,
            channels=self.layer.channels,
            reason=self.layer.reason,
            negative_share=negative,
            asleep_share=asleep,
            step=None if codes is None else codes.step,
            code_bits=None if codes is None else codes.bits,
            number_bits=8 * module.weight.element_size(),
            weights=module.weight.numel(),
            weights_before=weights_before,
            positions=self.layer.positions,
            **facts,
        )

    def _repaired(self, kept: Tensor, codes: QuantisedWeight | None) -> dict[str, Any]:
        """Takes the other channels out and gives what they said to the consumer; fields of the report."""
        damage = self._damage(kept, codes)
        if self.settings.joint:
            s = self.combine(damage)
        else:
            s = self.combine(replace(damage, survivors=damage.filters[kept]))
        combination = damage.selection + s
        if len(kept) < self.layer.channels or bool(s.any()):
            inputs = consumer_input(self.model, self.layer)
            merged = torch.einsum("ocw,ck->okw", inputs.double(), combination)
            replace_inputs(self.model, self.layer, merged)
            keep_outputs(self.model, self.layer, kept)
        energy = self.settings.objective.energy
        lost, left = energy(damage, torch.zeros_like(s)), energy(damage, s)
        return {"kept": kept, "combination": combination, "lost": lost, "left": left}

    def _damage(self, kept: Tensor, codes: QuantisedWeight | None) -> Damage:
        module: Any = self.model.get_submodule(self.layer.name)
        factor, offset = folding(self.model, self.layer)
        whole = module.weight.detach().clone()
        if codes is not None:
            whole[kept] = codes.values
        survivors = folded(whole[kept], factor[kept])
        site = LayerSite(self.model, self.layer, whole)
        return Damage(folded(module.weight, factor), offset, kept, survivors, site)

    def _codes(self, weight: Tensor) -> QuantisedWeight | None:
        bits = self.settings.bits
        return None if bits is None else quantise(weight, bits, self.settings.per_channel)


def _ill_suited(model: nn.Module, layer: NetLayer) -> tuple[float, float]:
    """The shares of a layer's channels with a negative factor, and of those that ReLU lets nothing through of; 0 without a norm."""
    norm = model.get_submodule(layer.norm) if layer.norm else None
    if not isinstance(norm, nn.BatchNorm2d) or norm.weight is None:
        return 0.0, 0.0
    gamma, beta = norm.weight.detach(), norm.bias.detach()
    return (gamma < 0).double().mean().item(), (beta + ASLEEP * gamma.abs() <= 0).double().mean().item()


def _usual_reason(graph: NetGraph) -> str:
    """Why most of its convolutions keep their channels."""
    reasons = [layer.reason for layer in graph.layers if layer.kind == "convolution"]
    usual = max(reasons, key=reasons.count)
    return f"{usual} ({reasons.count(usual)} of {len(reasons)} convolutions)"


def _weight_counts(model: nn.Module, graph: NetGraph) -> dict[str, int]:
    """{layer: how many weights it has}."""
    modules = {layer.name: model.get_submodule(layer.name) for layer in graph.layers}
    return {
        name: sum(weight.numel() for key, weight in module.named_parameters() if key == "weight")
        for name, module in modules.items()
    }


def _others_bits(model: nn.Module, graph: NetGraph) -> int:
    """Bits of all numbers but the layers' weights: biases, normalisation, its statistics."""
    weights = {f"{layer.name}.weight" for layer in graph.layers}
    state = model.state_dict()
    return sum(8 * value.numel() * value.element_size() for name, value in state.items() if name not in weights)
