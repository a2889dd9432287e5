"""The model that answers: each shard's longest whole prefix, combined as the mean of probabilities, or by vote."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...errors import ModelError
from ..engine.text.guarded_model import next_token_loss
from ..engine.text.logit_difference import PairCache

__all__ = ["Combine", "ShardEnsemble", "combined", "mean_of_probabilities"]

Combine = Literal["mean", "vote"]


def combined(probabilities: Tensor, combine: Combine) -> Tensor:
    """`[rows, classes]` from `[shards, rows, classes]`: the mean, or the share of shards that say a class."""
    if combine == "mean":
        return probabilities.mean(0)
    classes = probabilities.shape[-1]
    return nn.functional.one_hot(probabilities.argmax(-1), classes).to(probabilities.dtype).mean(0)


def mean_of_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability, in float32, [..., vocab]."""
    log_p = torch.stack([one.float().log_softmax(-1) for one in logits])
    return log_p.logsumexp(0) - torch.tensor(float(len(logits))).log()


class ShardEnsemble(PreTrainedModel, GenerationMixin):
    """Language models of several shards as one, whose next-token probabilities are the mean of theirs.

    Its logits are log-probabilities. It is made of what a folder holds, so it is not saved: open the folder again.

    Args:
        members: one a shard, of one architecture; they may share the tensors below their adapters.

    Raises:
        ModelError: no members.
    """

    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        if not members:
            raise ModelError("an ensemble of no shards has no answer. Retrain a shard first.")
        super().__init__(copy.deepcopy(members[0].config))
        self.members = nn.ModuleList(members)
        self.generation_config = copy.deepcopy(members[0].generation_config)
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the first shard; all share them."""
        first: Any = self.members[0]
        embeddings: nn.Module = first.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: the logits are not the output of one head."""
        return

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities [batch, length, vocab]."""
        if use_cache and past_key_values is None:
            past_key_values = self.empty_cache()
        shared = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": bool(use_cache),
            "logits_to_keep": logits_to_keep,
        }
        cache, logits = past_key_values, []
        for number, member in enumerate(self.members):
            if past_key_values is not None and cache is None:
                raise ModelError(f"the cache holds the keys of {number} of {len(self.members)} shards; pass none.")
            logits.append(member(past_key_values=cache, **shared).logits)
            cache = getattr(cache, "assistant", None)
        mean = mean_of_probabilities(logits)
        return CausalLMOutputWithPast(
            loss=next_token_loss(mean, labels), logits=mean, past_key_values=past_key_values if use_cache else None
        )

    def empty_cache(self) -> DynamicCache:
        """A cache for all shards, each one's within that of the one before; what the decoding engine asks for."""
        caches: list[Any] = [PairCache(self.config, self.config) for _ in self.members[1:]]
        caches.append(DynamicCache(config=self.config))
        for outer, inner in pairwise(caches):
            outer.assistant = inner
        first: DynamicCache = caches[0]
        return first

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate` with a cache for all shards."""
        if kwargs.get("use_cache", True) and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = self.empty_cache()
        return super().generate(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Refused: weights outside the ledger's folder would not be deleted with their records.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{save_directory}: an ensemble of shards is not saved apart from its ledger, or a deletion would not reach it. "
            "Open its folder with ShardedModel.open."
        )
