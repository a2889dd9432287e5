"""What a strategy may read beside logits: the states that pass through some modules of a model."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ....errors import ModelError
from ....models import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["listening", "observed_modules"]


def observed_modules(model: PreTrainedModel) -> dict[str, tuple[nn.Module, str]]:
    """{"final_hidden" or "layer:<index>": (module, whether its "input" or "output" is meant)}."""
    head = model.get_output_embeddings()
    if head is None:
        return {}
    modules: dict[str, tuple[nn.Module, str]] = {"final_hidden": (head, "input")}
    try:
        blocks = anatomy(model).blocks
    except ModelError:
        return modules
    return modules | {f"layer:{block.index}": (block.module, "output") for block in blocks}


@contextmanager
def listening(modules: dict[str, tuple[nn.Module, str]]) -> Iterator[dict[str, Tensor]]:
    """Collects what passes through some modules of a copy. Yields {name: states}, filled by the forward."""
    states: dict[str, Tensor] = {}

    def before(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        states[name] = args[0]

    def after(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states[name] = output[0] if isinstance(output, tuple) else output

    handles = [
        module.register_forward_pre_hook(functools.partial(before, name))
        if kind == "input"
        else module.register_forward_hook(functools.partial(after, name))
        for name, (module, kind) in modules.items()
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
