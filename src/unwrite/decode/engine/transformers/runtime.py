"""Any causal model of transformers as a target, with drafts as far as they leave its text as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from transformers import Cache

from ....models import unwrap
from .limits import Support
from .model_check import check_model
from .support import able
from .tree_runtime import TreeRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TransformersRuntime"]


class TransformersRuntime(TreeRuntime):
    """A transformers model with an arena cache.

    Args:
        model, pack, cache: see `TreeRuntime`.
        support: how far trees go, where the caller knows better than `support_of`.

    Raises:
        ModelError: see `check_model` and `able`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pack: Literal["auto", "never", "always"] = "auto",
        cache: Cache | None = None,
        support: Support | None = None,
    ) -> None:
        if support is None:
            inner = unwrap(model)
            check_model(inner)
            support = able(inner)
        super().__init__(model, support, pack=pack, cache=cache)
