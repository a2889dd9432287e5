"""ARC-Encoder: a text becomes a few vectors, which a frozen decoder reads where token embeddings would stand.

A language model without its last layers reads the text in both directions. In the last layer that is left, queries are the means
of some consecutive tokens each, keys and values those of all tokens; a small projector carries the result to a decoder's width.
(Pilchen, Grave, Perez, arXiv 2510.20535)

    h1 = P h + Attn(norm(P h); norm(h)),   vectors = projector(h1 + FFN(norm(h1)))

Group j stands at rotary position j. A learned vector follows the last one of every text, one for going on with it and one for
writing it out again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward, rotate_half

from ...errors import MethodError, ModelError, setting, unknown
from .pooling import PADDING, ContextGroups
from .projectors import ContextProjector, ProjectorKind
from .saving import read_arc, write_arc
from .settings import ArcSettings, Pooled, Purpose

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["FAMILIES", "ArcEncoder"]

Turn = tuple[Tensor, Tensor]  # cosines and sines of rotary positions, [batch, length, head_dim] each
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose layers `crossed` computes; SmolLM2 is a llama


class ArcEncoder(nn.Module):
    """An encoder of texts for one or several frozen decoders.

    Args:
        body: a decoder without a head, as `AutoModel` gives it; its layers become the encoder's.
        settings: see `ArcSettings`.

    Attributes:
        settings: as given; `at` returns the encoder with another pooling factor.
        base_config: configuration of the layers that are left.
        width: of its states and of vectors before the projector.

    Raises:
        ModelError: an architecture whose last layer can't be run here.
    """

    def __init__(self, body: nn.Module, settings: ArcSettings) -> None:
        super().__init__()
        parts: Any = body
        check_family(parts.config)
        self.base_config: PreTrainedConfig = parts.config
        self.settings = settings
        self.width: int = parts.config.hidden_size
        self.embed_tokens: nn.Module = parts.embed_tokens
        self.layers: nn.ModuleList = parts.layers
        self.rotary_emb: nn.Module = parts.rotary_emb
        weight = next(self.layers.parameters())
        place = {"device": weight.device, "dtype": weight.dtype}
        self.projectors = nn.ModuleList(
            ContextProjector(self.width, out, settings.projector_dim, settings.projector) for out in settings.out_dims
        ).to(**place)
        self.continuation = nn.ParameterList(torch.ones(self.width, **place) for _ in settings.out_dims)
        self.reconstruction = nn.ParameterList(torch.ones(self.width, **place) for _ in settings.out_dims)

    @classmethod
    def from_causal_lm(
        cls,
        model: PreTrainedModel,
        *,
        out_dims: Sequence[int],
        decoders: Sequence[str] = (),
        truncate: int = 2,
        pooling_factor: int = 8,
        slots: int | None = None,
        projector: ProjectorKind = "mlp",
        projector_dim: int | None = None,
        causal: bool = False,
        pooled: Pooled = "queries",
    ) -> ArcEncoder:
        """An untrained encoder with a copy of a language model's weights; projectors are drawn at random.

        The copy shares nothing with the model, so the model itself may be the decoder.

        Args:
            model: a causal language model; its final norm and its head are left out.
            truncate: last layers to leave out, 2 in the paper; at least one layer stays.
            out_dims and others: see `ArcSettings`.

        Raises:
            ModelError: an architecture that isn't served, quantised weights, an adapter, or a model that shares no layer list.
            MethodError: a setting without meaning.
        """
        settings = ArcSettings(
            tuple(out_dims), tuple(decoders), pooling_factor, slots, projector, projector_dim, causal, pooled
        )
        check_source(model, truncate)
        bare: Any = model.base_model
        config = copy.deepcopy(bare.config)
        layers = config.num_hidden_layers - truncate
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        if config._attn_implementation not in ("eager", "sdpa"):  # what takes a mask of which query sees which key
            config._attn_implementation = "sdpa"
        kept = _Body(bare.embed_tokens, nn.ModuleList(bare.layers[:layers]), bare.rotary_emb)
        body = copy.deepcopy(kept, {id(bare.config): config})
        body.config = config
        return cls(body.requires_grad_(True), settings).train(model.training)

    def at(self, pooling_factor: int, slots: int | None = None) -> ArcEncoder:
        """Itself, from now on with another pooling factor or number of slots; its weights serve all of them."""
        self.settings = replace(self.settings, pooling_factor=pooling_factor, slots=slots)
        return self

    def forward(
        self,
        input_ids: Tensor,
        text_ids: Tensor | None = None,
        *,
        decoder: int = 0,
        purpose: Purpose = "continuation",
        frozen: bool = False,
    ) -> list[Tensor]:
        """What a decoder reads in place of each text: its vectors and the learned one behind them, projected.

        Args:
            input_ids, text_ids: see `encode`.
            decoder: number of the decoder, from 0.
            purpose: which learned vector ends a text; "continuation" for all inference.
            frozen: compute no gradient of the layers and embeddings.

        Returns:
            [vectors + 1, out_dim] each, in order of rows and of texts within a row.
        """
        self.check_decoder(decoder)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            vectors = self.encode(input_ids, text_ids)
        return self.project(vectors, decoder=decoder, purpose=purpose)

    def encode(self, input_ids: Tensor, text_ids: Tensor | None = None) -> list[Tensor]:
        """The vectors of each text, without a projector: the same for every decoder.

        Args:
            input_ids: [batch, tokens].
            text_ids: [batch, tokens], 0 for padding and 1, 2, ... for the texts of a row, the tokens of each together; None where a
                row is one text without padding. No text sees another one.

        Returns:
            [vectors, width] each, in order of rows and of texts within a row.

        Raises:
            MethodError: a row without a text, or two texts of a row with one number.
            ModelError: a text longer than the encoder's positions.
        """
        texts = torch.ones_like(input_ids) if text_ids is None else text_ids
        groups = ContextGroups.of(texts, self.settings.pooling_factor, self.settings.slots)
        longest, most = int(groups.position.max()) + 1, self.base_config.max_position_embeddings
        if longest > most:
            raise ModelError(f"a text of {longest} tokens is longer than the encoder reads, {most}. Split it.")
        states = self.embed_tokens(input_ids)  # [batch, tokens, width]
        turn = self._turn(states, groups.position)
        order = groups.position[:, :, None] >= groups.position[:, None, :] if self.settings.causal else None
        mask = self._mask(texts, texts, order, states.dtype)
        for layer in self.layers[:-1]:
            states = layer(states, attention_mask=mask, position_ids=groups.position, position_embeddings=turn)
        return groups.split(self._pool(states, turn, texts, groups))

    def project(
        self, vectors: Sequence[Tensor], *, decoder: int = 0, purpose: Purpose = "continuation"
    ) -> list[Tensor]:
        """Vectors of texts as a decoder reads them, each text's with the learned one behind them.

        Args:
            vectors: [vectors, width] each, of `encode`.
            decoder, purpose: see `forward`.

        Returns:
            [vectors + 1, out_dim] each.
        """
        self.check_decoder(decoder)
        if purpose not in get_args(Purpose):
            raise MethodError(unknown("purpose", purpose, get_args(Purpose)))
        last = (self.continuation if purpose == "continuation" else self.reconstruction)[decoder][None]
        whole = torch.cat([part for text in vectors for part in (text, last)])
        return list(self.projectors[decoder](whole).split([len(text) + 1 for text in vectors]))

    def check_decoder(self, decoder: int) -> None:
        """Refuses a decoder that there is no projector for.

        Raises:
            MethodError: always, but for 0 to one less than there are.
        """
        count = len(self.settings.out_dims)
        if not 0 <= decoder < count:
            raise MethodError(
                f"there is no projector for decoder {decoder}: the encoder was made for {count}, counted from 0. Add one to "
                f"{setting('out_dims')} and train it."
            )

    def add_decoder(self, out_dim: int, name: str = "") -> int:
        """Adds an untrained projector and learned vectors for one more decoder, and returns its number."""
        known = self.settings.decoders or ("",) * len(self.settings.out_dims)
        names = (*known, name) if name or self.settings.decoders else ()
        self.settings = replace(self.settings, out_dims=(*self.settings.out_dims, out_dim), decoders=names)
        weight = next(self.layers.parameters())
        place = {"device": weight.device, "dtype": weight.dtype}
        projector = ContextProjector(self.width, out_dim, self.settings.projector_dim, self.settings.projector)
        self.projectors.append(projector.to(**place))
        for vectors in (self.continuation, self.reconstruction):
            vectors.append(nn.Parameter(torch.ones(self.width, **place)))
        return len(self.settings.out_dims) - 1

    def save_pretrained(self, folder: str | Path, **unused: Any) -> None:
        """Writes weights and settings; a decoder is no part of them. `unwrite.models.save` does it whole or not at all."""
        write_arc(Path(folder), self.base_config, self.settings, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ArcEncoder:
        """An encoder as it was saved, in evaluation mode.

        Raises:
            ModelError: a folder that isn't one of an encoder, damaged, or of another form.
        """
        config, settings, state = read_arc(Path(folder))
        encoder = cls(blank_body(config, next(iter(state.values())).dtype), settings)
        encoder.load_state(state, str(folder))
        return encoder.eval()

    def load_state(self, state: dict[str, Tensor], where: str) -> None:
        """Takes weights by name, all of them and no other."""
        expected = self.state_dict()
        odd = sorted(expected.keys() ^ state.keys()) or [
            name for name in sorted(expected) if expected[name].shape != state[name].shape
        ]
        if odd:
            raise ModelError(
                f"{where} is no encoder of these settings: {odd[0]} is missing, is of another shape, or has no place in it."
            )
        self.load_state_dict(state)

    def _pool(self, states: Tensor, turn: Turn, texts: Tensor, groups: ContextGroups) -> Tensor:
        """The last layer, [batch, vectors, width]."""
        queries = groups.mean(states)
        at = self._turn(states, groups.slot)
        if self.settings.pooled == "all":
            states, turn, texts, place = queries, at, groups.text, groups.end
        else:
            place = groups.position
        order = groups.end[:, :, None] >= place[:, None, :] if self.settings.causal else None
        mask = self._mask(groups.text, texts, order, states.dtype)
        return crossed(self.layers[-1], queries, states, at, turn, mask)

    def _turn(self, states: Tensor, positions: Tensor) -> Turn:
        return cast(Turn, self.rotary_emb(states, positions))

    @staticmethod
    def _mask(of: Tensor, texts: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Who sees whom: tokens of one text each other; padding sees padding, so that no row of the mask is empty."""
        visible = of[:, :, None] == texts[:, None, :]
        if order is not None:
            visible = visible & (order | (of == PADDING)[:, :, None])
        return hiding(visible, dtype)


class _Body(nn.Module):
    """The parts of a decoder that an encoder takes."""

    config: PreTrainedConfig

    def __init__(self, embed_tokens: nn.Module, layers: nn.ModuleList, rotary_emb: nn.Module) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.rotary_emb = embed_tokens, layers, rotary_emb


def blank_body(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """A decoder without a head, with random weights."""
    from transformers import AutoModel

    check_family(config)
    with torch.random.fork_rng():
        body: nn.Module = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return body


def check_family(config: PreTrainedConfig) -> None:
    """Refuses an architecture whose layers differ from those that `crossed` computes."""
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"an encoder can't be made of {config.model_type!r}: its layers aren't known here. Known: {', '.join(FAMILIES)}."
        )


def check_source(model: PreTrainedModel, truncate: int) -> None:
    """Refuses a model that no encoder can be made of."""
    if hasattr(model, "peft_config"):
        raise ModelError("the model has an adapter, which an encoder would lose. Merge it first.")
    if getattr(model, "is_quantized", False):
        raise ModelError("the model's weights are quantised and can't be trained. Load it without quantisation.")
    check_family(model.config)
    layers = model.config.num_hidden_layers
    if not 0 <= truncate < layers:
        raise MethodError(
            f"{setting('truncate', truncate)} of {layers} layers has no meaning. Leave out 0 to {layers - 1}; 2 in the paper."
        )


def hiding(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention scores, [batch, 1, queries, keys], of True where a query sees a key."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def crossed(layer: nn.Module, queries: Tensor, states: Tensor, at: Turn, of: Turn, mask: Tensor) -> Tensor:
    """A layer's output for `queries` that attend to `states`.

    Args:
        layer: a decoder layer of transformers' Llama, Mistral, Qwen2 or Qwen3.
        queries: [batch, vectors, dim], what the residual stream goes on from.
        states: [batch, tokens, dim], what keys and values are made of.
        at, of: rotary positions of the queries and of the states.
        mask: [batch, 1, vectors, tokens], see `hiding`.

    Returns:
        [batch, vectors, dim].
    """
    block: Any = layer
    attention = block.self_attn
    query = _heads(attention, block.input_layernorm(queries), "q")  # [batch, heads, vectors, head_dim]
    normed = block.input_layernorm(states)
    key, value = _heads(attention, normed, "k"), _heads(attention, normed, "v")  # [batch, kv heads, tokens, head_dim]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    output, _ = attend(
        attention,
        _turned(query, at),
        _turned(key, of),
        value,
        mask,
        dropout=attention.attention_dropout if layer.training else 0.0,
        scaling=attention.scaling,
    )  # [batch, vectors, heads, head_dim]
    states = queries + attention.o_proj(output.flatten(2))
    return cast(Tensor, states + block.mlp(block.post_attention_layernorm(states)))


def _heads(attention: Any, states: Tensor, part: str) -> Tensor:
    projected = getattr(attention, f"{part}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{part}_norm", None)  # Qwen3 norms each head's queries and keys
    return cast(Tensor, projected if norm is None else norm(projected)).transpose(1, 2)


def _turned(heads: Tensor, turn: Turn) -> Tensor:
    cos, sin = (part[:, None] for part in turn)
    return cast(Tensor, heads * cos + rotate_half(heads) * sin)
