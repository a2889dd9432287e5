"""The standing control: the features keep all they know, and only the last linear layer learns not to say it.

A method that scores no better has hidden an answer and removed no knowledge. (What a look at
features, as in arXiv 2503.06991, exposes)

    b_c <- -1e4   for every class c forgotten as a whole;     else   W, b = argmin mean_{D_r} loss(W h(x) + b, y)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError, NotFinite
from ...models.curvature import evaluating
from ...models.vision_layout import logits_of
from ...runs import progress
from ..base import Edit
from ..engine.images.classes import whole_classes
from ..engine.images.work import ImageWork
from ..engine.stream import epoch_order

__all__ = ["HeadOnly"]

NEVER = -1e4  # a logit that no other falls below, also in float16


@dataclass(frozen=True, kw_only=True)
class HeadOnly(Edit[ImageWork]):
    """Edits the last linear layer alone; everything before it stays bit-identical.

    Args:
        whole_class: what is done where the retain set has no row of the forgotten classes: "bias" (their bias becomes
            -1e4, so that they are never said; the layer needs a bias) or "retrain" (as for single rows).

    For single rows the layer is trained anew from zeros on the retain set's features, which are computed once: by Adam, on
    cross-entropy or the absolute error of a regressor. From zeros, so that nothing of the old layer is left in it.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "optim": "adam",
        "learning_rate": 0.01,
        "num_train_epochs": 30,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 128,
    }
    whole_class: Literal["bias", "retrain"] = "bias"

    def __post_init__(self) -> None:
        if self.whole_class not in ("bias", "retrain"):
            raise MethodError(f"whole_class is {self.whole_class!r}; use 'bias' or 'retrain'.")

    @torch.no_grad()
    def _apply(self, work: ImageWork) -> nn.Module:
        name = work.layout.head_linears[-1]
        linear = work.layout.model.get_submodule(name)
        linear = getattr(linear, "base_layer", linear)
        assert isinstance(linear, nn.Linear)
        classes = whole_classes(work.forget, work.retained)
        if classes and self.whole_class == "bias":
            if linear.bias is None:
                raise MethodError(
                    f"the last layer {name} has no bias to close a class with. Use HeadOnly(whole_class='retrain')."
                )
            linear.bias[list(classes)] = NEVER
        else:
            weight, bias = self._trained(work, linear)
            linear.weight.copy_(weight)
            if linear.bias is not None:
                linear.bias.copy_(bias)
        return work.model.eval()

    def _trained(self, work: ImageWork, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """(weight, bias) fitted to the retain set's features from zeros; a bias of zeros where there is none."""
        features, target = _into(work, linear, work.retained), work.retained.target.to(work.device)
        weight = torch.zeros_like(linear.weight, dtype=features.dtype, requires_grad=True)
        bias = features.new_zeros(len(weight), requires_grad=linear.bias is not None)
        parameters = [weight, bias] if bias.requires_grad else [weight]
        optimiser = work.args.optimiser(parameters)
        size, steps = work.args.per_device_train_batch_size, 0
        for epoch in progress(range(math.ceil(work.args.num_train_epochs)), "training the head"):
            order = torch.tensor(epoch_order("retain", 0, len(target), work.args.seed, epoch), device=target.device)
            for rows in order.split(size):
                if 0 <= work.args.max_steps <= steps:
                    break
                with torch.enable_grad():
                    loss = _loss(F.linear(features[rows], weight, bias), target[rows])
                    if not torch.isfinite(loss):
                        raise NotFinite(
                            f"the head's loss is {loss.item()} at step {steps + 1}. Lower the learning rate."
                        )
                    loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                steps += 1
        return weight.detach(), bias.detach()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(logits[:, 0], target) if target.is_floating_point() else F.cross_entropy(logits, target)


def _into(work: ImageWork, linear: nn.Linear, rows: Images) -> Tensor:
    """`[rows, dim]`, what goes into a layer in evaluation mode, float32 or wider."""
    inputs: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    try:
        with evaluating(work.model), torch.no_grad():
            for pixels, _target, _index in work.batches(rows, 256):
                logits_of(work.model, pixels)
    finally:
        hook.remove()
    work.cost.add(len(rows))
    features = torch.cat(inputs)
    return features.float() if features.element_size() < 4 else features
