"""Between transformers' `generate` and the loop: what `custom_generate` is called with, checked and translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import StaticCache
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ...errors import MethodError
from .loop import Decoded, Decoding, check
from .runtime import Runtime
from .sampling import STATEFUL, Sampling, from_processors
from .stats import Stats
from .stopping import Stopping, from_criteria
from .transformers.arena import filled_length
from .transformers.limits import Support
from .tree import Ints

if TYPE_CHECKING:
    from transformers import (
        Cache,
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
        PreTrainedModel,
        StoppingCriteriaList,
    )
    from transformers.generation.streamers import BaseStreamer

    from ..base import Strategy
    from .transformers.runtime import TransformersRuntime

# what `generate` hands on beside the named arguments, without a say in the text
NEUTRAL = {"logits_to_keep", "cache_position", "synced_gpus", "return_dict"}
# fields of a configuration that decoding on any runtime honours, or that have no say in the text
HONOURED = {
    "max_length", "max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "do_sample", "temperature", "top_k",
    "top_p", "return_dict_in_generate", "transformers_version",
}  # fmt: skip


@dataclass
class DecodeOutput(GenerateDecoderOnlyOutput):
    """transformers' output with the call's statistics."""

    stats: Stats | None = None


def custom_generate(
    strategy: Strategy,
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool = True,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> Tensor | DecodeOutput:
    """Decodes as `model.generate` asks, with the strategy's drafts. Returns ids [batch, length], or a `DecodeOutput`.

    Raises:
        MethodError, ModelError: what can't be decoded so, before the first token.
    """
    from .transformers.prefix import check_prefix
    from .transformers.runtime import TransformersRuntime

    past_key_values = _cache_of(past_key_values, others)
    _refuse(strategy, input_ids, generation_config, use_cache, inputs_embeds)
    _refuse_inputs(strategy, input_ids, attention_mask, position_ids, others)
    sampling = from_processors(logits_processor, bool(generation_config.do_sample))
    _refuse_state(sampling, len(input_ids))
    padding = padding_of(attention_mask, len(input_ids))
    runtime = TransformersRuntime(model, cache=past_key_values, support=_plain_support(past_key_values))
    check(runtime, strategy, len(input_ids))
    own = runtime.limit is not None and input_ids.shape[1] > runtime.limit
    if not own and (filled := filled_length(past_key_values)):
        if any(padding):
            raise MethodError(
                "a filled cache does not say which of its columns are padding. Call row by row, or pass no cache."
            )
        check_prefix(runtime.model, past_key_values, input_ids[:, :filled])
    decoding = Decoding(
        runtime,
        strategy,
        sampling,
        from_criteria(stopping_criteria, generation_config.max_length, _ends(generation_config)),
        streamer=_streamer(strategy.streamer, len(input_ids)),
        keep_scores=generation_config.return_dict_in_generate and generation_config.output_scores,
        device=model.device,
    )
    decoded = decoding.run(list(input_ids.cpu().numpy().astype(np.int64)), padding)
    if past_key_values is not None and not generation_config.return_dict_in_generate:
        runtime.hand_back()
    return _result(decoded, input_ids, generation_config, runtime)


def _cache_of(cache: Cache | None, others: dict[str, Any]) -> Cache | None:
    """The cache to fill, by whatever name; None for a static one that `generate` made, as the text does not depend on it."""
    if isinstance(cache, StaticCache) and not getattr(cache, "_is_user_defined", False):
        cache = None
    state_space = others.pop("cache_params", None)  # Mamba's name for it
    return state_space if cache is None else cache


def _plain_support(cache: Cache | None) -> Support | None:
    """No tree at any length for a cache of which tokens can't be taken back, as it says itself; None for any other."""
    if not getattr(cache, "plain_only", False):
        return None
    return Support(0, f"was given a {type(cache).__name__}, which can't give drafted tokens back")


def generate(
    runtime: Runtime,
    input_ids: Tensor | Sequence[Any] | Ints,
    strategy: Strategy,
    generation_config: GenerationConfig | None = None,
    *,
    streamer: BaseStreamer | None = None,
    sampling: Sampling | None = None,
    stopping: Stopping | None = None,
) -> Decoded:
    """Decodes on any runtime.

    Args:
        runtime: the target with its cache.
        input_ids: [length] or [batch, length] ids without padding, or a list of such rows.
        strategy: how to draft.
        generation_config: transformers' GenerationConfig: maximal lengths, end tokens, do_sample, temperature, top_k,
            top_p; None for greedy decoding of 20 tokens.
        streamer: gets the prompt and every token; its `put` and `end` are called as `generate` calls them.
        sampling, stopping: in place of what generation_config says.

    Raises:
        MethodError: what can't be decoded so, before the first token.
    """
    from transformers import GenerationConfig

    config = generation_config or GenerationConfig(max_new_tokens=20)
    _refuse_config(config)
    prompts = _rows(input_ids, runtime.vocab)
    check(runtime, strategy, len(prompts))
    longest = max(len(prompt) for prompt in prompts)
    stopping = stopping or Stopping(_limit(config, longest), _ends(config))
    if stopping.max_length <= longest:
        raise MethodError(
            f"max_length is {stopping.max_length}, and the longest prompt has {longest} tokens already. Set max_new_tokens."
        )
    sampling = sampling or from_processors(_warpers(config), bool(config.do_sample), runtime.inverts)
    _refuse_state(sampling, len(prompts))
    decoding = Decoding(
        runtime,
        strategy,
        sampling,
        stopping,
        streamer=_streamer(streamer or strategy.streamer, len(prompts)),
    )
    return decoding.run(prompts)


def padding_of(attention_mask: Tensor | None, batch: int) -> list[int]:
    """[batch] ids of left padding. attention_mask: [batch, length]."""
    if attention_mask is None:
        return [0] * batch
    mask = attention_mask.cpu().numpy().astype(bool)
    if not (np.diff(mask.astype(int), axis=1) >= 0).all() or not mask[:, -1].all():
        raise MethodError(
            "attention_mask has holes or padding on the right; pad on the left: tokenizer.padding_side = 'left'."
        )
    counts: list[int] = (~mask).sum(1).tolist()
    return counts


def _rows(input_ids: Tensor | Sequence[Any] | Ints, vocab: int) -> list[Ints]:
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.cpu().numpy()
    if isinstance(input_ids, Sequence) and input_ids and not np.isscalar(input_ids[0]):
        prompts = [np.asarray(row, dtype=np.int64) for row in input_ids]
    else:
        array = np.asarray(input_ids, dtype=np.int64)
        prompts = [array] if array.ndim == 1 else list(array)
    if not prompts or any(len(row) == 0 for row in prompts):
        raise MethodError("a prompt has no token. Give at least one, such as the tokenizer's bos_token_id.")
    for row in prompts:
        if row.min() < 0 or row.max() >= vocab:
            wrong = int(row.min() if row.min() < 0 else row.max())
            raise MethodError(
                f"a prompt holds the id {wrong}, outside the model's vocabulary of {vocab}. Use its tokenizer."
            )
    return prompts


def _limit(config: GenerationConfig, longest: int) -> int:
    """The maximal length of prompt and answer."""
    if config.max_new_tokens is None and config.max_length is None:
        raise MethodError("generation_config sets no length. Set max_new_tokens.")
    return int(config.max_length if config.max_new_tokens is None else longest + config.max_new_tokens)


def _refuse_config(config: GenerationConfig) -> None:
    """Refuses what would change the text and isn't done here."""
    from transformers import GenerationConfig

    unset = vars(GenerationConfig())
    neutral: dict[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
    for name, default in unset.items():
        value = getattr(config, name, default)
        if name in HONOURED or name.startswith("_") or value is None or value in (default, neutral.get(name)):
            continue
        raise MethodError(
            f"{name} is {value!r}, and on a bare runtime only lengths, ends, do_sample, temperature, top_k and top_p are "
            "honoured. Leave it out, or pass what it means as sampling= or stopping=."
        )


def _refuse_inputs(
    strategy: Strategy, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, others: Mapping[str, Any]
) -> None:
    """Refuses model inputs that would be lost."""
    name = type(strategy).__name__
    lost = [key for key, value in others.items() if key not in NEUTRAL and not _says_nothing(value)]
    if lost:
        raise MethodError(f"{name} gives the model token ids only, and {lost[0]} is passed. Leave it out.")
    if position_ids is not None:
        shown = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device).long()
        counted = shown.cumsum(-1) - 1
        places = position_ids.to(input_ids.device)
        if places.shape[-1] != counted.shape[-1] or ((places != counted) & shown.bool()).any():
            raise MethodError(f"{name} counts positions from the first token, and position_ids differ. Leave them out.")


def _says_nothing(value: Any) -> bool:
    """Whether an input is none: what a model that sees or hears gets beside a text alone is an empty mapping."""
    return value is None or value is False or (isinstance(value, Mapping) and not value)


def _refuse_state(sampling: Sampling, batch: int) -> None:
    stateful = [type(one).__name__ for one in sampling.processors if type(one).__name__ in STATEFUL]
    if stateful and batch > 1:
        raise MethodError(f"{stateful[0]} keeps the state of one text, and the batch has {batch}. Call it row by row.")


def _refuse(
    strategy: Strategy, input_ids: Tensor, config: GenerationConfig, use_cache: bool, inputs_embeds: Tensor | None
) -> None:
    name = type(strategy).__name__
    if inputs_embeds is not None or input_ids.shape[1] == 0:
        raise MethodError(f"{name} drafts token ids, and inputs_embeds has none. Pass input_ids.")
    if (config.num_beams or 1) > 1:
        raise MethodError(
            f"{name} has no beams, and num_beams is {config.num_beams}. Use num_beams=1, or leave custom_generate out."
        )
    if (config.num_return_sequences or 1) > 1:
        raise MethodError(
            f"{name} returns one text a prompt, and num_return_sequences is {config.num_return_sequences}. Repeat the prompt in the batch."
        )
    if not use_cache:
        raise MethodError(f"{name} rolls a key-value cache back, and use_cache is False. Leave it at True.")
    for option in ("output_attentions", "output_hidden_states", "output_logits"):
        if getattr(config, option, None):
            raise MethodError(f"{option} is not kept while drafting. Run the finished text through the model once.")
    if config.output_scores and len(input_ids) > 1:
        raise MethodError("output_scores is kept for one text at a time. Call it row by row.")


def _ends(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(
        int(end) for end in (ends if isinstance(ends, list | tuple) else torch.as_tensor(ends).flatten().tolist())
    )


def _streamer(streamer: BaseStreamer | None, batch: int) -> BaseStreamer | None:
    if streamer is not None and batch > 1:
        raise MethodError(f"a streamer shows one text, and the batch has {batch}.")
    return streamer


def _warpers(config: GenerationConfig) -> list[LogitsProcessor]:
    """transformers' own warpers for a configuration without a model."""
    from transformers.generation import logits_process as warp

    if not config.do_sample:
        return []
    warpers: list[LogitsProcessor] = []
    if config.temperature not in (None, 1.0):
        warpers.append(warp.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        warpers.append(warp.TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        warpers.append(warp.TopPLogitsWarper(config.top_p))
    return warpers


def _result(
    decoded: Decoded, input_ids: Tensor, config: GenerationConfig, runtime: TransformersRuntime
) -> Tensor | DecodeOutput:
    width = max(len(new) for new in decoded.sequences)
    fill = config.pad_token_id if config.pad_token_id is not None else 0
    rows = [new + [fill] * (width - len(new)) for new in decoded.sequences]
    sequences = torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    scores = None if decoded.scores is None else tuple(row[None] for row in decoded.scores)
    return DecodeOutput(sequences=sequences, scores=scores, past_key_values=runtime.hand_back(), stats=decoded.stats)
