"""A model that decodes with the difference of two: the target's logits minus what an assistant knows.

It is a transformers model: `generate` (greedy, sampling, beams, left padding), `forward`, `save_pretrained` and
`load` work, and each of the two keeps its own key-value cache inside one cache object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ....errors import ModelError, notice
from ....models import load_model
from ....models.guarded import is_guarded, load_guarded
from ....runs import hash_json, hash_model
from ..checks import require
from .guarded_model import GuardedModel, next_token_loss

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class PairCache(DynamicCache):
    """The target's cache, with the assistant's inside; whatever reorders or cuts one does it to both."""

    def __init__(self, config: PreTrainedConfig, assistant_config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.assistant = DynamicCache(config=assistant_config)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.assistant.reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.assistant.crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.assistant.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.assistant.batch_select_indices(indices)

    def reset(self) -> None:
        super().reset()
        self.assistant.reset()


def kept_tokens(logits: Tensor, top_filter: float) -> Tensor:
    """Tokens the filter keeps: p >= top_filter * max p, and at least the int(top_filter * V) most likely ones.

    (The official code reads index -1 where int(top_filter * V) is 0, and so keeps everything on small vocabularies;
    here at least one token is kept by rank.) logits, result: [..., vocab].
    """
    if top_filter == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    log_p = logits.float().log_softmax(-1)
    fewest = max(1, int(top_filter * logits.shape[-1]))
    by_rank = log_p.topk(fewest, dim=-1).values[..., -1:]
    by_share = log_p.max(-1, keepdim=True).values + math.log(top_filter)
    return log_p >= torch.minimum(by_rank, by_share)


def subtract(target: Tensor, assistant: Tensor, alpha: float, top_filter: float, *, drop: bool, raw: bool) -> Tensor:
    """Combined logits in float32, [..., vocab].

    Args:
        drop: tokens outside the filter become -inf (generation); else they keep the target's logit (scoring).
        raw: use raw assistant logits instead of log-probabilities centred at uniform.
    """
    target = target.float()
    centred = assistant.float() if raw else assistant.float().log_softmax(-1) + math.log(assistant.shape[-1])
    outside = torch.full_like(target, -torch.inf) if drop else target
    return torch.where(kept_tokens(target, top_filter), target - alpha * centred, outside)


class LogitDifferenceModel(GuardedModel):
    """target - alpha * assistant, as one model.

    Args:
        target: the model whose knowledge is suppressed; never changed.
        assistant: knows what must not be said; the same vocabulary.
        alpha, top_filter, raw: see `ULD`.

    Raises:
        ModelError: the two have vocabularies of different size.
    """

    loader: ClassVar[str] = "logit-difference"
    settings: ClassVar[frozenset[str]] = frozenset({"alpha", "top_filter", "raw"})
    also: ClassVar[tuple[str, ...]] = ("assistant",)

    def __init__(
        self,
        target: PreTrainedModel,
        assistant: PreTrainedModel,
        alpha: float = 0.8,
        top_filter: float = 0.01,
        raw: bool = False,
    ):
        sizes = target.get_input_embeddings().num_embeddings, assistant.get_input_embeddings().num_embeddings
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"target and assistant have vocabularies of {sizes[0]} and {sizes[1]} tokens; they must agree."
            )
        require("alpha", alpha, at_least=0)
        require("top_filter", top_filter, at_least=0, below=1)
        super().__init__(target)
        self.assistant = assistant
        self.alpha, self.top_filter, self.raw = alpha, top_filter, raw
        self.eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PairCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        drop_filtered: bool = False,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Combined logits [batch, length, vocab]; `generate` asks for the filtered tokens to be dropped."""
        if use_cache and past_key_values is None:
            past_key_values = self.empty_cache()
        if past_key_values is not None and not isinstance(past_key_values, PairCache):
            raise ModelError(f"a {type(past_key_values).__name__} holds one model's keys; pass a PairCache, or none.")
        shared = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": bool(use_cache),
            "logits_to_keep": logits_to_keep,
        }
        inner = past_key_values.assistant if past_key_values is not None else None
        target = self.target(past_key_values=past_key_values, **shared).logits
        if self.alpha == 0:
            logits = target.float()
        else:
            assistant = self.assistant(past_key_values=inner, **shared).logits
            logits = subtract(target, assistant, self.alpha, self.top_filter, drop=drop_filtered, raw=self.raw)
        loss = next_token_loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers prepares them, with the filter made strict."""
        return super().prepare_inputs_for_generation(*args, **kwargs) | {"drop_filtered": self.alpha > 0}

    def empty_cache(self) -> PairCache:
        """A cache for both models; what the decoding engine asks for."""
        return PairCache(self.target.config, self.assistant.config)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate` with a cache for both models."""
        if kwargs.get("use_cache", True) and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = self.empty_cache()
        return super().generate(*args, **kwargs)

    def fingerprint(self) -> str:
        """Content hash of both models and the settings."""
        settings = [self.alpha, self.top_filter, self.raw]
        return hash_json([hash_model(self.target), hash_model(self.assistant), settings])

    def noted(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "top_filter": self.top_filter, "raw": self.raw}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As every guard; not into a folder of the form that any tool loads as the target.

        Raises:
            ModelError: such a folder; `push_to_hub`.
        """
        if _loadable_by_all(Path(save_directory)):
            raise ModelError(
                f"{save_directory} holds a guard in the old form (target/, assistant/). Choose another folder."
            )
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        reader: Callable[..., Any] = load_guarded
        if _loadable_by_all(folder):
            notice(
                f"{folder} stores its guard in an old form: other tools load {folder / 'target'} as a model, which is "
                "the one before forgetting. Load it and save it to another folder."
            )
            reader = _load_open
        target, assistant = (reader(folder, name, **options) for name in ("target", "assistant"))
        return cls(target, assistant, **settings)


def _load_open(folder: Path, name: str, **options: Any) -> Any:
    return load_model(folder / name, **options)


def _loadable_by_all(folder: Path) -> bool:
    """Whether a folder holds the two models as ordinary ones, as earlier versions wrote them."""
    return (folder / "target" / "config.json").is_file() and not is_guarded(folder, "target")


load_folder = LogitDifferenceModel.load_folder  # what `unwrite.models.load` calls
