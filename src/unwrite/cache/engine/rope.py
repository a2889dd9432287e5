"""Keys before rope from keys behind it, and back, at any position.

Rope turns pairs of a key's numbers by angles that grow with the position, and may stretch them (yarn). In which pairs is the model's own
matter: its `apply_rotary_pos_emb` turns here too, with other cosines and sines to undo a turn.

    turned(k) = s R(angle) k,  by c = s cos and d = s sin;    k = the same function by c / s^2 and -d / s^2,  s^2 = c^2 + d^2
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import ModelError, setting
from ...models import unwrap
from .support import attention_modules

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from .attention import Moment

__all__ = ["Rope", "turn_of"]

Turn = tuple[Tensor, Tensor]
"""Cosines and sines, [batch or 1, tokens, turned numbers] each."""
TURNS = "apply_rotary_pos_emb"
_TABLE = "unwrite_turns"  # attribute of a call's cosines: what all layers of the call need of earlier positions


class Rope:
    """How one model turns keys.

    Args:
        apply: its function, (queries, keys, cosines, sines) to turned ones.
        angles: its module of (numbers of the wanted type, position ids) to cosines and sines.
    """

    def __init__(self, apply: Callable[..., tuple[Tensor, Tensor]], angles: nn.Module) -> None:
        self.apply, self.angles = apply, angles

    @classmethod
    def of(cls, model: PreTrainedModel) -> Rope:
        """Finds them, and tries whether a turn can be undone.

        Raises:
            ModelError: keys are turned otherwise, or not at all.
        """
        bare: Any = unwrap(model)
        _, module = next(attention_modules(bare))
        apply = getattr(sys.modules[type(module).__module__], TURNS, None)
        config: Any = module.config
        angles = next((one for one in bare.modules() if _makes_angles(one, config)), None)
        told = "position_embeddings" in inspect.signature(module.forward).parameters
        several = "mrope_section" in str(getattr(config, "rope_parameters", None))
        if apply is None or angles is None or not told or several:
            raise ModelError(
                f"{type(bare).__name__} doesn't turn keys by one position a token, as rope does. Use {setting('pre_rope', False)}."
            )
        rope = cls(apply, angles)
        rope._try()
        return rope

    def _try(self) -> None:
        device = next(iter(self.angles.buffers()), torch.zeros(0)).device
        like = torch.zeros(0, device=device)
        turn = self._angles(like, torch.arange(4, device=device)[None])
        keys = torch.arange(4.0 * turn[0].shape[-1], device=device).reshape(1, 1, 4, -1)
        if not torch.allclose(self.unturned(self.turned(keys, turn), turn), keys, rtol=1e-4, atol=1e-3):
            raise ModelError(f"the model's rope can't be undone. Use {setting('pre_rope', False)}.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Rope:
        return self  # a copied cache serves the same model

    def turned(self, keys: Tensor, turn: Turn) -> Tensor:
        """Keys as attention compares them. keys: [batch, kv_heads, tokens, dim]; float32 of the same shape."""
        width = turn[0].shape[-1]
        part = keys[..., :width].float()
        turned = self.apply(part, part, turn[0].float(), turn[1].float())[1]
        return torch.cat([turned, keys[..., width:].float()], -1) if width < keys.shape[-1] else turned

    def unturned(self, keys: Tensor, turn: Turn) -> Tensor:
        """Keys as they were before `turned`."""
        cosines, sines = turn[0].float(), turn[1].float()
        square = cosines.square() + sines.square()
        return self.turned(keys, (cosines / square, -sines / square))

    def at(self, positions: Tensor, turn: Turn) -> Turn:
        """Cosines and sines of other positions, in the type of the call's own; computed once for all layers of a call.

        Args:
            positions: [batch, tokens].
            turn: what the call was given, the same tensors in each layer.
        """
        known = getattr(turn[0], _TABLE, None)
        if known is None or not torch.equal(known[0], positions):
            known = (positions, self._angles(turn[0], positions))
            setattr(turn[0], _TABLE, known)  # gone with the call
        found: Turn = known[1]
        return found

    def _angles(self, like: Tensor, positions: Tensor) -> Turn:
        with torch.no_grad():
            cosines, sines = self.angles(like, position_ids=positions)
        return cosines, sines


def turn_of(moment: Moment) -> Turn | None:
    """By what this call's keys were turned; None where the layer is one of those without rope (SmolLM3)."""
    return moment.rope if getattr(moment.module, "use_rope", True) else None


def _makes_angles(module: nn.Module, config: Any) -> bool:
    """Whether a module gives the cosines and sines of an attention with this configuration."""
    if not type(module).__name__.endswith("RotaryEmbedding") or getattr(module, "config", config) is not config:
        return False
    needed = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    return len(needed) == 2 and needed[1] == "position_ids"
