"""One face for every mask predictor: LLaDA, Dream, DiffuCoder, masked encoders, and decoders made bidirectional.

A mask predictor says for every position of a canvas which token belongs there, given all others:

    model(input_ids [rows, length], attention_mask) -> logits [rows, length, vocab],   full attention, no time input

Models converted from autoregressive ones (Dream, DiffuCoder) predict position i at output i - 1; `shift` undoes that. Rows
of a batch are padded on the right, so positions need no correction. Whether a model is bidirectional and whether padding
leaks into it is tried out once, not assumed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..scoring import head_at

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["MaskPredictor"]

# What the models' own repositories use; their configurations don't say all of it.
_LLADA = {"mask_id": 126336, "end_ids": (126081, 126348), "shift": False}
_DREAM = {"shift": True}
_KNOWN: dict[str, dict[str, Any]] = {"llada": _LLADA, "dream": _DREAM, "diffucoder": _DREAM}
_PROBED: weakref.WeakKeyDictionary[nn.Module, dict[str, bool]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class MaskPredictor:
    """A model with what the loop must know of it.

    Args:
        model: called as model(input_ids=, attention_mask=) and returns an object with `.logits`.
        mask_id: id of the mask token.
        end_ids: ids that end an answer; the first is the one that pads it.
        shift: whether the logits for position i are at output i - 1.
        pad_id: what fills rows that are shorter than others; any id that is not mask_id.
        probe: try out that the model is bidirectional; off for models whose logits don't depend on the canvas.

    Raises:
        ModelError: mask_id missing or equal to an end or pad id; a causal model.
    """

    model: nn.Module
    mask_id: int
    end_ids: tuple[int, ...] = ()
    shift: bool = False
    pad_id: int = 0
    probe: bool = True

    def __post_init__(self) -> None:
        if self.mask_id is None:
            raise ModelError("the model has no mask token. Pass MaskPredictor(model, mask_id=...).")
        for name, ids in (("end_ids", self.end_ids), ("pad_id", (self.pad_id,))):
            if self.mask_id in ids:
                raise ModelError(f"mask_id and {name} are both {self.mask_id}. The mask token must be one of its own.")
        causal = getattr(getattr(self.model, "config", None), "is_causal", None)
        # Tried again where the setting changed: the advice below may have been taken.
        if self.probe and not self._tried(f"bidirectional, is_causal {causal}", self._is_bidirectional):
            raise ModelError(
                f"{type(self.model).__name__} is causal: what comes later in the canvas changes nothing before it. Set "
                "config.is_causal = False and train it as a mask predictor, or decode it with unwrite.decode."
            )

    @classmethod
    def of(
        cls,
        model: nn.Module | MaskPredictor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        mask_id: int | None = None,
        end_ids: Iterable[int] | None = None,
        shift: bool | None = None,
        probe: bool = True,
    ) -> MaskPredictor:
        """Finds out the rest from the model's and the tokenizer's configuration; what is given wins."""
        if isinstance(model, MaskPredictor):
            return model
        config = getattr(model, "config", None)
        known = _KNOWN.get(str(getattr(config, "model_type", "")).lower(), {})

        def configured(name: str) -> int | None:
            value = getattr(tokenizer, name, None)
            return value if value is not None else getattr(config, name, None)

        mask = next((m for m in (mask_id, configured("mask_token_id"), known.get("mask_id")) if m is not None), None)
        if mask is None:
            raise ModelError(
                "neither the tokenizer nor the configuration names a mask token. Pass MaskPredictor(model, mask_id=...)."
            )
        ends = tuple(end_ids) if end_ids is not None else known.get("end_ids") or _ends(configured("eos_token_id"))
        pad = configured("pad_token_id")
        if pad is None or pad == mask:
            pad = ends[0] if ends else int(mask == 0)
        return cls(model, mask, tuple(ends), bool(known.get("shift", False)) if shift is None else shift, pad, probe)

    @property
    def device(self) -> torch.device:
        parameter = next(iter(self.model.parameters()), None) if hasattr(self.model, "parameters") else None
        return parameter.device if parameter is not None else torch.device("cpu")

    @property
    def longest(self) -> int | None:
        """Columns a canvas may have, or None where the model names no limit."""
        return getattr(getattr(self.model, "config", None), "max_position_embeddings", None)

    def logits(self, canvas: Tensor, lengths: Tensor, where: Tensor, **more: Any) -> Tensor:
        """One forward.

        Args:
            canvas: [rows, length] ids, padded on the right.
            lengths: [rows] of each row.
            where: [rows, n] columns whose logits are wanted.
            more: further arguments of the model, such as a cache.

        Returns:
            [rows, n, vocab], where [.., i, :] is for the token at column where[.., i].
        """
        equal = bool((lengths == canvas.shape[1]).all())
        if equal or self._tried("padding", self._ignores_padding):
            return self._forward(canvas, None if equal else lengths, where, more)
        result: Tensor | None = None  # padding leaks: rows of one length at a time
        for length in lengths.unique().tolist():
            rows = torch.nonzero(lengths == length)[:, 0]
            part = self._forward(canvas[rows, :length], None, where[rows].clamp(max=length - 1), more)
            result = part.new_zeros(len(canvas), *part.shape[1:]) if result is None else result
            result[rows] = part
        assert result is not None
        return result

    def at_outputs(self, where: Tensor) -> Tensor:
        """Outputs that predict these columns; column 0 of a shifted model has only its own, which mean nothing."""
        return (where - 1).clamp(min=0) if self.shift else where

    def _forward(self, canvas: Tensor, lengths: Tensor | None, where: Tensor, more: dict[str, Any]) -> Tensor:
        if lengths is not None and "attention_mask" not in more:
            more = {**more, "attention_mask": torch.arange(canvas.shape[1], device=canvas.device) < lengths[:, None]}
            more["attention_mask"] = more["attention_mask"].long()
        if "past_key_values" not in more and getattr(getattr(self.model, "config", None), "is_causal", None) is False:
            more = {**more, "use_cache": False}  # a decoder would fill a cache that nobody reads
        with head_at(self.model, self.at_outputs(where), tuple(canvas.shape)) as tap:
            logits: Tensor = self.model(input_ids=canvas, **more).logits
        if tap.hidden is None:
            places = self.at_outputs(where)[..., None].expand(-1, -1, logits.shape[-1])
            logits = logits.gather(1, places)
        return logits

    def _tried(self, what: str, trial: Callable[[], bool]) -> bool:
        try:
            known = _PROBED.setdefault(self.model, {})
        except TypeError:  # not a kind of object that can be remembered weakly
            known = {}
        if what not in known:
            with _without_dropout(self.model):
                known[what] = trial()
        return known[what]

    @torch.no_grad()
    def _is_bidirectional(self) -> bool:
        """Whether another last token changes the first output."""
        canvas = self._canvas(2, 8)
        canvas[1] = canvas[0]
        canvas[1, -1] = self._other(int(canvas[0, -1]))
        logits = self.model(input_ids=canvas).logits
        return bool((logits[0, 0] != logits[1, 0]).any())

    @torch.no_grad()
    def _ignores_padding(self) -> bool:
        """Whether a token that the mask hides changes nothing."""
        canvas = self._canvas(1, 8).repeat(2, 1)
        canvas[1, -1] = self._other(int(canvas[0, -1]))
        mask = torch.ones_like(canvas)
        mask[:, -1] = 0
        try:
            logits = self.model(input_ids=canvas, attention_mask=mask).logits[:, :-1]
        except TypeError:  # takes no mask
            return False
        return bool(torch.allclose(logits[0], logits[1], atol=1e-4, rtol=1e-4))

    def _canvas(self, rows: int, length: int) -> Tensor:
        vocab = int(getattr(getattr(self.model, "config", None), "vocab_size", 0) or self.mask_id + 1)
        drawn = torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(0))
        return drawn.to(self.device)

    def _other(self, token: int) -> int:
        return 1 if token == 0 else 0


def _ends(eos: Any) -> tuple[int, ...]:
    if eos is None:
        return ()
    return tuple(int(one) for one in eos) if isinstance(eos, list | tuple) else (int(eos),)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block: chance alone would make two forwards differ."""
    training = [module for module in getattr(model, "modules", list)() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
