"""UNDIAL: distil the model into itself with the forgotten token's logit lowered.

The target is the model's own distribution before unlearning, except that each answer token gets `strength` less;
the rest keeps its mutual ratios, so the loss is bounded and needs no retain set. (UNDIAL, NAACL 2025)

    q = softmax(z_before - strength * onehot(y));   L = mean_t - sum_v q_v log p_v,   label positions only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import Paired
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerToken


def undial_targets(logits: Tensor, targets: Tensor, strength: float) -> Tensor:
    """The lowered distribution. logits: [positions, vocab] before unlearning; targets: [positions]."""
    lowered = logits.float().clone()
    lowered[range(len(targets)), targets] -= strength
    return lowered.softmax(-1)


@dataclass(frozen=True, kw_only=True)
class UNDIAL(Paired):
    """Self-distillation with adjusted logits.

    Args:
        strength: how much each answer token's logit is lowered, >= 0; 0 is plain self-distillation, 10 is
            open-unlearning's value. The usual learning rate is 1e-4.
    """

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")
    strength: float = 10.0
    reads: ClassVar[frozenset[str]] = frozenset({"logits", "reference logits"})
    training: ClassVar[dict[str, Any]] = {"learning_rate": 1e-4}

    def __post_init__(self) -> None:
        super().__post_init__()
        require("strength", self.strength, at_least=0)

    def loss(self, batch: PairedBatch) -> Loss:
        """Cross-entropy to the lowered targets. batch.forget.logits, .reference_logits: [positions, vocab]."""
        forget = batch["forget"]
        assert forget.logits is not None
        assert forget.reference_logits is not None
        q = undial_targets(forget.reference_logits, forget.targets, self.strength)
        return Loss(forget=PerToken(-(q * forget.logits.float().log_softmax(-1)).sum(-1), "forget"))
