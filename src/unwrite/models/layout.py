"""Where the parts of a transformer are, whatever its family calls them.

Editing, pruning and early exits need the same few places in every model: blocks, the four attention projections, the
MLP, the norms, the embeddings, the head. Each family is one record in `layouts.py`; `anatomy(model)` reads a model
through its record. Fused and transposed weights (GPT-2's Conv1D, GPT-NeoX's heads interleaved in one matrix,
ModernBERT's and Phi-3's gate and up in one) look like plain `[out, in]` matrices from here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ModelError, unknown
from .layouts import LAYOUTS, Layout, LayoutPart

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["Anatomy", "Block", "Projection", "anatomy", "unwrap"]


@dataclass(frozen=True)
class Projection:
    """One linear map, `y = x @ weight.T + bias`, which may be part of a larger module.

    Under an adapter (LoRA) it is the frozen map beneath; the adapter's own matrices are not part of it.

    Args:
        module: the module that holds it: `nn.Linear`, or GPT-2's `Conv1D`.
        rows: which of the module's outputs belong to it: all (None), a slice, or an index tensor `[out]`.
        transposed: the module stores `[in, out]`.
    """

    module: nn.Module
    rows: slice | Tensor | None = None
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """`[out, in]`, differentiable. A view of the parameter, but for index rows (GPT-NeoX) a copy: see `write_`."""
        return self._rows_of(self._stored())

    @property
    def bias(self) -> Tensor | None:
        """`[out]` or None; as `weight`, a copy for index rows."""
        bias = self.module.bias
        return None if bias is None else self._rows_of(bias)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        stored = self._stored()
        if self.rows is None:
            return stored.shape[0], stored.shape[1]
        if isinstance(self.rows, Tensor):
            return len(self.rows), stored.shape[1]
        return len(range(*self.rows.indices(stored.shape[0]))), stored.shape[1]

    def read(self) -> Tensor:
        """A detached copy of the weight, `[out, in]`, that the model never sees change."""
        return self.weight.detach().clone()

    @torch.no_grad()
    def write_(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Replaces the weight `[out, in]` and/or the bias `[out]` in the model, in its dtype and on its device.

        Raises:
            ModelError: another shape, or a bias where the module has none.
        """
        if weight is not None:
            self._replace(self._stored(), weight, "weight")
        if bias is not None:
            if self.module.bias is None:
                raise ModelError(
                    f"this {type(self.module).__name__} has no bias to write. Leave bias out, or build the model "
                    "with one."
                )
            self._replace(self.module.bias, bias, "bias")

    def _stored(self) -> Tensor:
        weight: Tensor = self.module.weight
        if not weight.is_floating_point():
            raise ModelError(
                f"the weights of this {type(self.module).__name__} are quantised ({weight.dtype}). Load the model "
                "unquantised to read or edit them."
            )
        return weight.T if self.transposed else weight

    def _rows_of(self, stored: Tensor) -> Tensor:
        return stored if self.rows is None else stored[self._index(stored)]

    def _index(self, stored: Tensor) -> slice | Tensor:
        return self.rows.to(stored.device) if isinstance(self.rows, Tensor) else self.rows or slice(None)

    def _replace(self, stored: Tensor, value: Tensor, what: str) -> None:
        shape = self.shape[: stored.ndim]
        if tuple(value.shape) != shape:
            raise ModelError(
                f"a {what} of shape {tuple(value.shape)} cannot replace one of shape {shape}. Shapes are "
                "[out, in] and [out], also where the module stores them otherwise."
            )
        stored[self._index(stored)] = value.to(stored)


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Args:
        index: 0 for the first.
        module: maps `[batch, positions, hidden]` to the same shape.
        attention, mlp: its two halves; OPT has no module for the MLP, there `mlp` is the block.
        q, k, v, o: the attention's projections; k and v have fewer rows under grouped queries.
        gate: the projection that goes through the activation, where the MLP is gated; None otherwise.
        up, down: into and out of the MLP's inner width.
        norms: every norm of the block by its path below it, in the order of the layout.
    """

    index: int
    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    gate: Projection | None
    up: Projection
    down: Projection
    norms: Mapping[str, nn.Module]


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model; all of them are the model's own modules, nothing is copied.

    Args:
        model: the transformers model itself, without wrappers.
        layout: the family's record.
        backbone: what holds the blocks.
        blocks: in order.
        embeddings: token embeddings, `[vocabulary, hidden]`.
        positions: learned absolute position embeddings (GPT-2, OPT), else None.
        final_norm: takes the last block's output to `last_hidden_state`. Where a model has something else there it
            is that (OPT-350m: the projection to the embeddings' width), and an identity where it has nothing.
        head: takes `last_hidden_state` to logits; None for a model without one. For ModernBERT it is the prediction
            head and the decoder in one. Gemma's cap is not in it: `logits` applies it.
        unembedding: the linear layer `[vocabulary, hidden]` at the end of the head, or None.
    """

    model: nn.Module
    layout: Layout
    backbone: nn.Module
    blocks: list[Block]
    embeddings: nn.Embedding
    positions: nn.Embedding | None
    final_norm: nn.Module
    head: nn.Module | None
    unembedding: nn.Module | None

    @property
    def tied(self) -> bool:
        """Whether the head shares its weight with the embeddings."""
        return self.unembedding is not None and self.unembedding.weight is self.embeddings.weight

    def logits(self, last_hidden_state: Tensor) -> Tensor:
        """`[..., hidden]`, after the final norm, to `[..., vocabulary]` exactly as the model does.

        Raises:
            ModelError: the model has no head.
        """
        if self.head is None:
            raise ModelError(f"{type(self.model).__name__} has no head. Load it with a language-modelling head.")
        logits = self.head(last_hidden_state)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden_layer(self, layer: int) -> nn.Module:
        """The module whose output is hidden state number `layer`, as in `output_hidden_states`: 1 for the first block.

        -1 is the last, whose output here is before the final norm, where transformers lists it after.

        Raises:
            ModelError: no such layer; 0, the embeddings, is not a block's output.
        """
        count = len(self.blocks)
        number = layer + count + 1 if layer < 0 else layer
        if not 1 <= number <= count:
            raise ModelError(
                f"layer {layer} is not one of the {count} blocks of {type(self.model).__name__}. Use 1 to {count}, or "
                "-1 for the last; the embeddings are `anatomy(model).embeddings`."
            )
        return self.blocks[number - 1].module

    def truncate(self, layers: int) -> nn.Module:
        """A new model with the first `layers` blocks: an early exit through the same final norm and head.

        A deep copy that shares no tensor with this model; tied weights stay tied to each other. Every per-layer list
        of the configuration is cut, so the copy saves and loads. Of a PeftModel it is the base, its adapter layers
        inside.

        Raises:
            ModelError: `layers` is not between 1 and the number of blocks.
        """
        if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= len(self.blocks):
            raise ModelError(
                f"cannot keep {layers!r} blocks of {len(self.blocks)}. Use a whole number from 1 to {len(self.blocks)}."
            )
        memo: dict[int, object] = {}
        blocks = nn.ModuleList(copy.deepcopy(block.module, memo) for block in self.blocks[:layers])
        # The rest of the copy meets this list where the full one was, and never touches the blocks left out.
        blocks.training = self.backbone.training
        memo[id(_at(self.backbone, self.layout.blocks))] = blocks
        model = copy.deepcopy(self.model, memo)
        _cut_config(model.config, len(self.blocks), layers)
        return model


def anatomy(model: nn.Module) -> Anatomy:
    """Finds the parts of a transformers model, also inside a PeftModel, a compiled or a data-parallel wrapper.

    Raises:
        ModelError: an architecture without a record, or a model that lacks a part its record names.
    """
    model = unwrap(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        raise ModelError(f"{type(model).__name__} is not a transformers model: it has no config.model_type.")
    layout = LAYOUTS.get(kind)
    if layout is None:
        raise ModelError(
            f"{type(model).__name__}: {unknown('architecture', kind, LAYOUTS)} Known: {', '.join(sorted(LAYOUTS))}."
        )
    backbone = _at(getattr(model, model.base_model_prefix, model), layout.backbone)
    last = [_find(backbone, path) for path in layout.final]
    final = [module for module in last if module is not None]
    parts = [_at(model, path) for path in layout.head] if _find(model, layout.head[-1]) is not None else []
    return Anatomy(
        model=model,
        layout=layout,
        backbone=backbone,
        blocks=[_block(i, block, layout, model.config) for i, block in enumerate(_at(backbone, layout.blocks))],
        embeddings=_at(backbone, layout.embeddings),
        positions=_at(backbone, layout.positions) if layout.positions else None,
        final_norm=_chain(final) or nn.Identity(),
        head=_chain(parts),
        unembedding=parts[-1] if parts else None,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside peft, torch.compile and data-parallel wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def _block(index: int, module: nn.Module, layout: Layout, config: PreTrainedConfig) -> Block:
    def projection(part: LayoutPart) -> Projection:
        holder = _at(module, part.path)
        holder = getattr(holder, "base_layer", holder)  # peft keeps the original beneath its own layer
        return Projection(holder, part.rows(config), transposed=type(holder).__name__ == "Conv1D")

    norms = {path: _find(module, path) for path in layout.norms}
    return Block(
        index=index,
        module=module,
        attention=_at(module, layout.attention),
        mlp=_at(module, layout.mlp),
        q=projection(layout.q),
        k=projection(layout.k),
        v=projection(layout.v),
        o=projection(layout.o),
        gate=projection(layout.gate) if layout.gate else None,
        up=projection(layout.up),
        down=projection(layout.down),
        norms={path: norm for path, norm in norms.items() if norm is not None},
    )


def _find(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _at(module: nn.Module, path: str) -> nn.Module:
    part = _find(module, path)
    if part is None:
        raise ModelError(
            f"{type(module).__name__} has no {path!r}, where its architecture keeps that part. Is it a modified model?"
        )
    return part


def _chain(modules: list[nn.Module]) -> nn.Module | None:
    if not modules:
        return None
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _cut_config(config: PreTrainedConfig, before: int, after: int) -> None:
    """Cuts the depth and every list with one entry a layer; transformers refuses them where they disagree."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == before:
            setattr(config, name, value[:after])
    config.num_hidden_layers = after
