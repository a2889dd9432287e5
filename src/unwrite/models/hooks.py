"""Which hooks of a model change or watch what it computes, and which transformers leaves behind, idle.

A forward that is asked for hidden states or attentions puts hooks on the model that collect them. They stay there, and do nothing
unless a later forward asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HOOKS", "foreign_hooks"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def foreign_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """The forward hooks and pre-hooks of one module, without those of its parts, that aren't transformers' own for collecting outputs."""
    hooks = [hook for name in HOOKS for hook in getattr(module, name).values()]
    return [hook for hook in hooks if getattr(hook, "__module__", "") != "transformers.utils.output_capturing"]
