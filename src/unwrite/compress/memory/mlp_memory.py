"""MLP Memory: a network of feed-forward blocks that maps one state of a frozen language model to a next-token distribution.

It is trained to answer as a nearest-neighbour search in the whole training set would, and then stands in its place: no index, and a
cost that doesn't grow with the texts. (MLP Memory, arXiv 2508.01832)

    x_0 = h (or W h),   x_b = x_{b-1} + FFN_b(norm_b(x_{b-1})),   logits = head(norm(x_B))

No block looks at another position. Parameters have the names of the published checkpoints, which `MLPMemory.load` reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ...errors import MethodError, ModelError, setting
from ...models.checkpoints import check_weights
from ...runs import new_folder, read_json, read_tensors, write_json
from .checks import above_zero, share, whole

__all__ = ["MLPMemory", "MemoryShape"]

_NOTE, _WEIGHTS = "memory.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class MemoryShape:
    """How large a memory is, and of which style.

    Args:
        vocabulary: tokens of the language model's head.
        width: of the blocks; the language model's.
        blocks: how many; 18, 36 and 54 for GPT-2 small, medium and large, 8 for models of 7 to 8 billion weights.
        style: "gpt2" (LayerNorm, GELU, biases) or "llama" (RMSNorm, SwiGLU), as the language model is.
        inner: width inside a block; None takes 4 times the width (ours for "llama", whose models say theirs).
        input_width: of the states, where it is another than the width: then a linear map comes first.
        dropout: behind every block of style "gpt2", 0 to 1.
        activation: transformers' name for it; None takes the style's, "gelu_new" or "silu".
        epsilon: of the norms; None takes the style's, 1e-5 or 1e-6.
        bias: whether the maps of style "llama" have biases.
        std: of the normal distribution of first weights.
    """

    vocabulary: int
    width: int
    blocks: int = 36
    style: Literal["gpt2", "llama"] = "gpt2"
    inner: int | None = None
    input_width: int | None = None
    dropout: float = 0.1
    activation: str | None = None
    epsilon: float | None = None
    bias: bool = False
    std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "blocks"):
            whole(name, getattr(self, name))
        for name in ("inner", "input_width"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        share("dropout", self.dropout)
        above_zero("std", self.std)
        if self.epsilon is not None:
            above_zero("epsilon", self.epsilon)
        if self.style not in ("gpt2", "llama"):
            raise MethodError(f"{setting('style')} is {self.style!r}; use 'gpt2' or 'llama'.")
        if self.activation is not None and self.activation not in ACT2FN:
            raise MethodError(f"{setting('activation')} is {self.activation!r}, which transformers doesn't know.")

    @property
    def inner_width(self) -> int:
        """Inside a block."""
        return self.inner or 4 * self.width

    @classmethod
    def of_config(cls, config: Mapping[str, Any], input_width: int | None = None) -> MemoryShape:
        """The shape that a published checkpoint's `config.json` describes: a GPT-2, Llama or Mistral configuration.

        Raises:
            ModelError: another architecture.
        """
        kind = config.get("model_type")
        common: dict[str, Any] = {"vocabulary": config.get("vocab_size"), "input_width": input_width}
        common["std"] = config.get("initializer_range", 0.02)
        if kind == "gpt2":
            return cls(
                width=config["n_embd"],
                blocks=config["n_layer"],
                dropout=config.get("resid_pdrop", 0.1),
                activation=config.get("activation_function", "gelu_new"),
                epsilon=config.get("layer_norm_epsilon", 1e-5),
                **common,
            )
        if kind in ("llama", "mistral"):
            return cls(
                style="llama",
                width=config["hidden_size"],
                blocks=config["num_hidden_layers"],
                inner=config["intermediate_size"],
                activation=config.get("hidden_act", "silu"),
                epsilon=config.get("rms_norm_eps", 1e-6),
                bias=bool(config.get("mlp_bias")),
                **common,
            )
        raise ModelError(f"a memory of architecture {kind!r} is not known. Use gpt2, llama or mistral.")


class _GPT2Inner(nn.Module):
    """Up, GELU, down, dropout, with GPT-2's names."""

    def __init__(self, shape: MemoryShape) -> None:
        super().__init__()
        self.c_fc = Conv1D(shape.inner_width, shape.width)
        self.c_proj = Conv1D(shape.width, shape.inner_width)
        self.act = ACT2FN[shape.activation or "gelu_new"]
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor) -> Tensor:
        hidden: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(states))))
        return hidden


class _GPT2Block(nn.Module):
    def __init__(self, shape: MemoryShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width, eps=shape.epsilon or 1e-5)
        self.mlp = _GPT2Inner(shape)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.mlp(self.ln_1(states))


class _LlamaInner(nn.Module):
    """A gated feed-forward part, with Llama's names."""

    def __init__(self, shape: MemoryShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner_width, bias=shape.bias)
        self.up_proj = nn.Linear(shape.width, shape.inner_width, bias=shape.bias)
        self.down_proj = nn.Linear(shape.inner_width, shape.width, bias=shape.bias)
        self.act_fn = ACT2FN[shape.activation or "silu"]

    def forward(self, states: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))
        return hidden


class _LlamaBlock(nn.Module):
    def __init__(self, shape: MemoryShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon or 1e-6)
        self.mlp = _LlamaInner(shape)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.mlp(self.input_layernorm(states))


class MLPMemory(nn.Module):
    """The memory: states in, next-token logits out, each position alone.

    Args:
        shape: how large, and of which style.
        seed: of the first weights; torch's global state stays as it was.
    """

    def __init__(self, shape: MemoryShape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if shape.input_width not in (None, shape.width):
                self.embedding_transform = nn.Linear(shape.input_width, shape.width)
            if shape.style == "gpt2":
                self.h = nn.ModuleList(_GPT2Block(shape) for _ in range(shape.blocks))
                self.ln_f = nn.LayerNorm(shape.width, eps=shape.epsilon or 1e-5)
            else:
                self.layers = nn.ModuleList(_LlamaBlock(shape) for _ in range(shape.blocks))
                self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon or 1e-6)
            self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
            self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """First weights as GPT-2's and Llama's: normal, no biases, and what is added to the stream by GPT-2's blocks smaller."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                smaller = math.sqrt(2 * self.shape.blocks) if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=self.shape.std / smaller)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.shape.vocabulary

    @property
    def input_width(self) -> int:
        """Of a state."""
        return self.shape.input_width or self.shape.width

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., vocabulary] at states [..., width].

        Raises:
            ModelError: states of another width.
        """
        if states.shape[-1] != self.input_width:
            raise ModelError(
                f"states are {states.shape[-1]} wide, and this memory reads {self.input_width}. Make it with "
                f"{setting('input_width', states.shape[-1])}."
            )
        states = states.to(self.lm_head.weight.dtype)
        if hasattr(self, "embedding_transform"):
            states = self.embedding_transform(states)
        blocks, norm = (self.h, self.ln_f) if self.shape.style == "gpt2" else (self.layers, self.norm)
        for block in blocks:
            states = block(states)
        logits: Tensor = self.lm_head(norm(states))
        return logits

    def log_probs(self, states: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [..., vocabulary] in float32 at states [..., width]; the logits are divided by the temperature."""
        return F.log_softmax(self(states).float() / temperature, dim=-1)

    def save(self, folder: str | Path) -> None:
        """Writes weights and shape into a folder, whole or not at all."""
        with new_folder(folder) as fresh:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, fresh / _WEIGHTS)
            write_json(fresh / _NOTE, {"form": 1, "shape": asdict(self.shape)})

    @classmethod
    def load(cls, folder: str | Path) -> MLPMemory:
        """Reads what `save` wrote, or a published checkpoint with its GPT-2, Llama or Mistral `config.json`.

        Raises:
            ModelError: it isn't there, is damaged or pickled, or its weights are of another shape.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelError(f"{folder} does not exist.")
        ours = (folder / _NOTE).exists()
        about = read_json(folder / (_NOTE if ours else "config.json"), ModelError)
        check_weights(folder, "model", allow_pickle=False)
        tensors, _ = read_tensors(folder / _WEIGHTS, "memory", ModelError)
        if ours:
            try:
                shape = MemoryShape(**about["shape"])
            except (KeyError, TypeError, MethodError) as error:
                raise ModelError(f"{folder / _NOTE} describes no memory: {error}") from None
        else:
            first = tensors.get("embedding_transform.weight")
            shape = MemoryShape.of_config(about, None if first is None else first.shape[1])
        memory = cls(shape)
        expected = {name: tuple(value.shape) for name, value in memory.state_dict().items()}
        stored = {name: tuple(value.shape) for name, value in tensors.items()}
        if odd := sorted(name for name in {*expected, *stored} if expected.get(name) != stored.get(name)):
            raise ModelError(
                f"{folder / _WEIGHTS} is not of this memory: {odd[0]} is {stored.get(odd[0])}, not {expected.get(odd[0])}."
            )
        memory.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
        return memory.eval()
