"""The forward of a stock Llama-family model as one compiled call: see `step.py`.

Float32 weights are read where the model has them, so an edited weight is read as it is now; packs of fewer bytes are compared with
the weights they were made from once a text, as those of `packed.py` are.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...runtime import Output
from ...tree import DraftTree, Ints
from ..arena import Arena
from ..packed import digest_of
from .crew import crew, settle
from .exact import packed
from .records import COUNTER_BYTES, EXPANDED_ROWS, LAYER, LINEARS, MOST_ROWS, PARTS, SPLIT, STEP
from .step import kernel
from .tasks import phases_of
from .tiles import STORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CompiledLoop"]

AHEAD = 2048  # positions that rotary tables are made for at once
LINE = 64  # bytes that belong to one thread alone
# Of a prompt read at once: tokens at most, rows of all texts together, and tokens at least, however many texts there are.
STRETCH, STRETCH_ROWS, LEAST = 192, 512, 16


@dataclass(frozen=True)
class ExactPack:
    """A matrix in fewer bytes.

    Args:
        digest: of the weights it was made from.
        stored: a name of `STORED`.
        bytes_: [out, bytes of a row]; None where no form gives the weights back.
    """

    digest: int
    stored: str
    bytes_: NDArray[np.uint8] | None


_PACKS: weakref.WeakKeyDictionary[nn.Module, ExactPack] = weakref.WeakKeyDictionary()


def exact_packs(modules: Sequence[nn.Linear]) -> dict[nn.Module, ExactPack]:
    """The packs of linear layers: those held, where weights are as they were, else new ones. As many threads as torch uses compare."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = list(pool.map(lambda module: digest_of([module]), modules))
    packs = {}
    for module, digest in zip(modules, digests, strict=True):
        pack = _PACKS.get(module)
        if pack is None or pack.digest != digest:
            made = packed(module.weight.detach().numpy())
            pack = _PACKS[module] = ExactPack(digest, *(made or ("float32", None)))
        packs[module] = pack
    return packs


class CompiledLoop:
    """The forward of one stock model.

    Args:
        model: see `sizes.is_regular`.
        compact: read weights from packs where they fit exactly; else all of them as they are.
    """

    def __init__(self, model: PreTrainedModel, compact: bool = False) -> None:
        self.model = model
        self.reads = 0  # bytes of the weights that a step reads
        self._held: list[Any] = []  # what the records point to
        backbone = model.model
        layers = backbone.layers[: model.config.num_hidden_layers]
        own = layers[0].self_attn
        linears = [_linear_of(layer, name) for layer in layers for name in LINEARS] + [model.lm_head]
        self._packs = exact_packs(linears) if compact else {}
        self.layers = np.zeros(len(layers), dtype=LAYER)
        self.steps = np.zeros(1, dtype=STEP)
        step = self.steps[0]
        step["multiply"] = kernel().multiply
        step["layers"], step["width"] = len(layers), model.config.hidden_size
        step["head_width"] = own.head_dim
        step["heads"], step["groups"] = own.q_proj.out_features // own.head_dim, own.k_proj.out_features // own.head_dim
        step["inner"], step["vocabulary"] = layers[0].mlp.gate_proj.out_features, model.lm_head.out_features
        step["epsilon"], step["scale"] = backbone.norm.variance_epsilon, own.scaling
        step["embedding"], step["final_norm"] = (
            self._place(backbone.embed_tokens.weight),
            self._place(backbone.norm.weight),
        )
        self._linear(step, "head", model.lm_head)
        for record, layer in zip(self.layers, layers, strict=True):
            attention = layer.self_attn
            record["norm"] = self._place(layer.input_layernorm.weight)
            record["post_norm"] = self._place(layer.post_attention_layernorm.weight)
            for name in ("q_norm", "k_norm"):
                norm = getattr(attention, name, None)
                record[name] = 0 if norm is None else self._place(norm.weight)
            for name in LINEARS:
                self._linear(record, name, _linear_of(layer, name))
        self._shape: tuple[int, ...] = ()
        self._counters = np.zeros(phases_of(len(layers)) * COUNTER_BYTES // 8, dtype=np.int64)
        step["counters"] = self._counters.ctypes.data
        self._table: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._ticks, self._inside = np.zeros(len(PARTS) + 1, dtype=np.int64), 0.0
        step["ticks"] = self._ticks.ctypes.data

    @property
    def nbytes(self) -> int:
        """Bytes of the packs."""
        return sum(one.nbytes for one in self._held if isinstance(one, np.ndarray) and one.dtype == np.uint8)

    def spent(self) -> dict[str, float]:
        """{part: seconds} of all steps since this was asked last, as the first thread saw them; Python's own are not among them."""
        ticks = self._ticks[: len(PARTS)].tolist()
        second = sum(ticks) / self._inside if self._inside else 1.0
        parts = {part: count / second for part, count in zip(PARTS, ticks, strict=True)}
        self._ticks[:], self._inside = 0, 0.0
        return parts

    def __call__(self, trees: DraftTree, positions: Ints, arena: Arena, want: frozenset[str]) -> Output:
        """One forward; its keys go where `arena.expect` said.

        Args:
            positions: [batch, nodes].
        """
        batch, nodes = trees.tokens.shape
        every = np.arange(batch * nodes)
        logits = torch.empty(batch, nodes, int(self.steps[0]["vocabulary"]))
        shape = batch, nodes, int(self.steps[0]["width"])
        final = torch.empty(shape) if "final_hidden" in want else None
        layers = {index: torch.empty(shape) for index in range(len(self.layers)) if f"layer:{index}" in want}
        self._run(trees.tokens, positions, trees.ancestors, every, arena, logits, final, layers)
        return Output(logits, final, layers or None)

    def read(self, tokens: Ints, ends: Ints, arena: Arena) -> Tensor:
        """A prompt's forward behind what the arena holds, in parts of equal size; sums don't depend on where it is cut.

        Args:
            tokens: [batch, nodes].
            ends: [batch] the one node of every row whose logits are wanted.

        Returns:
            [batch, vocabulary]
        """
        batch, nodes = tokens.shape
        logits = torch.empty(batch, int(self.steps[0]["vocabulary"]))
        most = min(STRETCH, max(LEAST, STRETCH_ROWS // batch))
        size = -(-nodes // -(-nodes // most))
        for first in range(0, nodes, size):
            part = tokens[:, first : first + size]
            count = part.shape[1]
            arena.expect(count)
            there = np.flatnonzero((first <= ends) & (ends < first + count))  # texts that end here
            found = torch.empty(len(there), logits.shape[1])
            positions = arena.lengths[:, None] + np.arange(count)
            chain = np.tri(count, dtype=np.float32)[None].repeat(batch, 0)
            self._run(part, positions, chain, there * count + ends[there] - first, arena, found)
            logits[there] = found
            arena.set_lengths(arena.lengths + count)
        return logits

    def _run(
        self,
        tokens: Ints,
        positions: Ints,
        ancestors: NDArray[Any],
        wanted: Ints,
        arena: Arena,
        logits: Tensor,
        final: Tensor | None = None,
        layers: Mapping[int, Tensor] | None = None,
    ) -> None:
        """One compiled call.

        Args:
            tokens, positions: [batch, nodes].
            ancestors: [batch, nodes, nodes], not 0 where a node sees another.
            wanted: [outputs] the rows, text by text, whose logits are wanted.
            logits: filled, [outputs, vocabulary].
            final: filled where there is one, [outputs, width].
            layers: {layer: filled with all rows' states behind it, [batch, nodes, width]}.
        """
        batch, nodes = tokens.shape
        step, lengths = self.steps[0], arena.lengths
        settle(crew())  # a thread that woke late may still look at the last step's counters
        self._counters[:] = 0
        self._make_room(batch, nodes, -(-(int(lengths.max()) + nodes) // SPLIT))
        self._turns(int(positions.max()))
        self._point(arena)
        seen = np.ascontiguousarray(ancestors, dtype=np.float32)
        inputs = {"tokens": tokens, "positions": positions, "lengths": lengths, "wanted": wanted}
        kept: list[Any] = [seen]
        for name, values in inputs.items():
            flat = np.ascontiguousarray(values, dtype=np.int64)
            step[name] = flat.ctypes.data
            kept.append(flat)
        step["ancestors"], step["outputs"] = seen.ctypes.data, len(wanted)
        step["logits"], step["final"] = logits.data_ptr(), 0 if final is None else final.data_ptr()
        for index, record in enumerate(self.layers):
            record["tap"] = layers[index].data_ptr() if layers and index in layers else 0
        start = time.perf_counter()
        crew().run(self.steps, self.layers, (self, kept, logits, final, layers))
        self._inside += time.perf_counter() - start

    def _place(self, tensor: Tensor) -> int:
        self._held.append(tensor.detach())  # not the parameter, which may be given another storage before the text ends
        return tensor.data_ptr()

    def _linear(self, record: Any, name: str, module: nn.Linear) -> None:
        pack = self._packs.get(module)
        if pack is not None and pack.bytes_ is not None:
            self._held.append(pack.bytes_)
            self.reads += pack.bytes_.nbytes
            record[name], record[f"{name}_stored"] = pack.bytes_.ctypes.data, STORED.index(pack.stored)
        else:
            self.reads += 4 * module.weight.numel()
            record[name], record[f"{name}_stored"] = self._place(module.weight), STORED.index("float32")
        record[f"{name}_bias"] = 0 if module.bias is None else self._place(module.bias)

    def _make_room(self, batch: int, nodes: int, splits: int) -> None:
        """Buffers for so many rows and stretches of columns; kept while they are large enough."""
        step, threads = self.steps[0], crew().threads
        known = self._shape
        if known and (batch, threads) == known[:2] and nodes <= known[2] and splits <= known[3]:
            step["nodes"], step["splits"] = nodes, splits
            return
        nodes_room, splits_room = 1 << (nodes - 1).bit_length(), 1 << (splits - 1).bit_length()
        self._shape = batch, threads, nodes_room, splits_room
        rows, width, inner = batch * nodes_room, int(step["width"]), int(step["inner"])
        heads, groups, head_width = int(step["heads"]), int(step["groups"]), int(step["head_width"])
        states = heads // groups * nodes_room
        tasks = batch * groups * splits_room
        shared = {
            "x": rows * width,
            "qkv": rows * (heads + 2 * groups) * head_width,
            "hidden": rows * inner,
            "partial": tasks * states * head_width,
            "maxima": 2 * tasks * states,
        }
        private = {
            "normed": rows * max(width, heads * head_width),
            "queries": states * head_width,
            "scores": states * SPLIT,
            "products": 2 * rows * MOST_ROWS,
            "expanded": EXPANDED_ROWS * max(width, heads * head_width, inner),
        }
        self._buffers = {name: _zeros(count) for name, count in shared.items()}
        for name, buffer in self._buffers.items():
            step[name] = buffer.data_ptr()
        offset = 0
        for name, count in private.items():
            step[name] = offset
            offset += -(-4 * count // LINE) * LINE
        self._private = _zeros(offset // 4 * threads)
        step["private"], step["private_bytes"] = self._private.data_ptr(), offset
        step["batch"], step["nodes"], step["splits"] = batch, nodes, splits

    def _turns(self, last: int) -> None:
        """The rotary tables up to a position, as the model makes them."""
        if self._table is not None and last < len(self._table[0]):
            return
        backbone = self.model.model
        places = torch.arange(last + AHEAD)[None]
        cos, sin = backbone.rotary_emb(backbone.norm.weight, places)
        self._table = cos[0].contiguous().numpy(), sin[0].contiguous().numpy()
        self.steps[0]["cosines"], self.steps[0]["sines"] = (one.ctypes.data for one in self._table)

    def _point(self, arena: Arena) -> None:
        """Where the cache lies; it may have moved to make room."""
        step = self.steps[0]
        first = arena.layers[0].keys
        if self.layers[0]["keys"] == first.data_ptr() and step["column_bytes"] == 4 * first.stride(2):
            return
        step["row_bytes"], step["head_bytes"], step["column_bytes"] = (4 * first.stride(axis) for axis in range(3))
        for record, layer in zip(self.layers, arena.layers, strict=False):
            record["keys"], record["values"] = layer.keys.data_ptr(), layer.values.data_ptr()


def _linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """One of a layer's `LINEARS`."""
    return getattr(layer.self_attn if name in "qkvo" else layer.mlp, f"{name}_proj")


def _zeros(count: int) -> Tensor:
    """Floats from the beginning of a cache line on: a vector that lies over two takes two reads."""
    return torch.zeros(count)
