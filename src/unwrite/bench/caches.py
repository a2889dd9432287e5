"""Caches in fewer bytes beside the full one: what they take, what the text loses, and what a token costs, all in one run.

Every contender reads the same pages of Python's manual and foretells what follows, token by token; then it reads lists and is asked for
one line of each. A full cache that read the same takes every step beside it, in turns, so that seconds are ratios of pairs.

    bytes       of all storages when the prompt has been read, over those of a full cache in 16 bit
    perplexity  of the tokens behind the prompt, from the cache alone
    needles     lists of which the right number is written, of those asked
    seconds     a token, over the full cache's: the median of pairs, and its middle half

Peers are there where they are installed: transformers' `QuantizedCache` on optimum-quanto or HQQ, and presses of kvpress, which asks every
attention module for a `cache_position` that transformers no longer hands on: it is handed on here.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, QuantizedCache

from ..beds.long_texts import TUNING, Needles, needles, passages
from ..cache.engine.head_groups import HeadGroups, calibrate_head_entropy
from ..cache.engine.support import attention_modules
from ..cache.mustafar import Mustafar
from ..cache.rotatekv import RotateKV
from ..cache.uncomp import UNComp
from ..catalog.records import said
from ..errors import MethodError, UnwriteError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.loading import Loaded

__all__ = ["FULL", "LENGTHS", "CacheContender", "bytes_of", "contenders", "measured", "run_bench"]

LENGTHS: Mapping[int, int] = {256: 8, 1024: 6, 4096: 2}
"""Tokens of a prompt, and how many lists are asked for at that length."""
SCORED = 128  # tokens behind the prompt
SHARE = 4  # caches that keep some of the tokens keep one in so many
CALIBRATION, CALIBRATED = 32, 256  # texts of the other half of the manual, and tokens of each
FULL = "full"


@dataclass(frozen=True)
class CacheContender:
    """A way to keep keys and values.

    Args:
        name: in the table.
        make: an empty cache for one text of this model.
        peer: whose code it is, with its version; None for ours.
        reading: what must be entered while a prompt is read.
    """

    name: str
    make: Callable[[PreTrainedModel], Cache]
    peer: str | None = None
    reading: Callable[[PreTrainedModel], AbstractContextManager[Any]] = field(default=lambda model: nullcontext())


def contenders(length: int, groups: HeadGroups) -> list[CacheContender]:
    """All of them for prompts of a length, the full cache first.

    Args:
        length: tokens of a prompt; who keeps some of them keeps a quarter.
        groups: heads of high and of low entropy, of `calibrate_head_entropy`.
    """
    capacity = max(16, length // SHARE)
    ours = {
        "rotatekv:bits=4": RotateKV(bits=4),
        "rotatekv:bits=3": RotateKV(bits=3),
        "rotatekv:bits=2": RotateKV(bits=2),
        "rounding to nearest, 2 bits": RotateKV.nearest(2),
        "mustafar:0.5": Mustafar(k_sparsity=0.5, v_sparsity=0.5, packed=True),
        "mustafar:0.7": Mustafar(k_sparsity=0.7, v_sparsity=0.7, packed=True),
        f"uncomp:capacity={capacity}": UNComp(groups=groups, capacity=capacity, normalise=True),
        f"snapkv, as uncomp of one group:capacity={capacity}": UNComp(groups=HeadGroups.one(), capacity=capacity),
    }
    return [
        CacheContender(FULL, _dynamic, "transformers"),
        *(CacheContender(name, settings.cache) for name, settings in ours.items()),
        *_quantised(),
        *_presses(),
    ]


def _dynamic(model: PreTrainedModel) -> Cache:
    return DynamicCache(config=model.config)


def _quantised() -> Iterator[CacheContender]:
    """transformers' own caches of few bits, whose last 128 tokens are whole."""
    for backend, package, module in (("quanto", "optimum-quanto", "optimum.quanto"), ("hqq", "hqq", "hqq")):
        if (version := _version(package, module)) is not None:
            for bits in (4, 2):

                def make(model: PreTrainedModel, backend: str = backend, bits: int = bits) -> Cache:
                    return QuantizedCache(backend, model.config, nbits=bits)

                yield CacheContender(f"QuantizedCache {backend}, {bits} bits", make, version)


def _presses() -> Iterator[CacheContender]:
    """What is dropped when the prompt has been read, a quarter kept; ThinK drops half of the keys' channels."""
    if (version := _version("kvpress", "kvpress")) is None:
        return
    kvpress = importlib.import_module("kvpress")
    ratio = 1 - 1 / SHARE
    presses = {
        "SnapKV": kvpress.SnapKVPress(compression_ratio=ratio, window_size=8, kernel_size=7),
        "StreamingLLM": kvpress.StreamingLLMPress(compression_ratio=ratio),
        "ThinK": kvpress.ThinKPress(key_channel_compression_ratio=0.5, window_size=8),
    }
    for name, press in presses.items():
        yield CacheContender(f"kvpress {name}", _dynamic, version, partial(_pressing, press))


@contextmanager
def _pressing(press: Any, model: PreTrainedModel) -> Iterator[None]:
    def hand_on(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return args, {"cache_position": torch.arange(hidden.shape[1]), **kwargs}

    hooks = [one.register_forward_pre_hook(hand_on, with_kwargs=True) for _, one in attention_modules(model)]
    try:
        with press(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _version(package: str, module: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    try:
        return f"{package} {version(package)}" if found is not None else None
    except PackageNotFoundError:
        return None


def bytes_of(cache: Cache) -> int:
    """Bytes of the storages of all tensors that a cache's layers hold, each counted once, whatever wraps them."""
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for layer in cache.layers
        for name, value in vars(layer).items()
        if name != "moment"
        for one in _plain(value)
    }
    return sum(storages.values())


def _plain(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if type(value) is Tensor or not hasattr(value, "__tensor_flatten__"):
            yield value
        else:
            for name in value.__tensor_flatten__()[0]:
                yield from _plain(getattr(value, name))
    elif isinstance(value, Mapping):
        yield from (one for inner in value.values() for one in _plain(inner))
    elif isinstance(value, list | tuple):
        yield from (one for inner in value for one in _plain(inner))
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module | type):
        yield from (one for inner in vars(value).values() for one in _plain(inner))


class _Reader:
    """One text and its cache: read at once, then a token at a time at its true position."""

    def __init__(self, model: PreTrainedModel, contender: CacheContender, ids: Tensor) -> None:
        self.model, self.cache, self.length = model, contender.make(model), ids.shape[1]
        with contender.reading(model):
            positions = torch.arange(self.length)[None]
            out = model(ids, past_key_values=self.cache, position_ids=positions, use_cache=True, logits_to_keep=1)
        self.logits: Tensor = out.logits[:, -1]

    def step(self, token: Tensor) -> float:
        """Reads one more token, [1, 1]. Returns seconds."""
        start = time.perf_counter()
        positions = torch.tensor([[self.length]])
        out = self.model(token, past_key_values=self.cache, position_ids=positions, use_cache=True)
        self.logits, self.length = out.logits[:, -1], self.length + 1
        return time.perf_counter() - start


@torch.no_grad()
def measured(
    model: PreTrainedModel, contender: CacheContender, text: Tensor, length: int, lists: Needles
) -> dict[str, Any]:
    """A row of the table.

    Args:
        text: [1, length + scored] ids.
        length: tokens that are read at once.
        lists: of about that length.
    """
    one = _Reader(model, contender, text[:, :length])
    size = bytes_of(one.cache)
    full = _Reader(model, CacheContender(FULL, _dynamic), text[:, :length])
    losses, ratios, seconds = [], [], []
    for at in range(length, text.shape[1] - 1):
        token = text[:, at : at + 1]
        pair = (one, full) if at % 2 else (full, one)
        took = {reader: reader.step(token) for reader in pair}
        losses.append(-float(one.logits.float().log_softmax(-1)[0, text[0, at + 1]]))
        ratios.append(took[one] / took[full])
        seconds.append(took[one])
    low, middle, high = quantiles(ratios, n=4)
    return {
        "cache": contender.name,
        "peer": contender.peer,
        "tokens": length,
        "bytes": size,
        "of_16_bit": size / _sixteen_bit(full.cache, length),
        "perplexity": math.exp(sum(losses) / len(losses)),
        "right": sum(_found(model, contender, lists, row) for row in range(len(lists.answers))),
        "asked": len(lists.answers),
        "step_ratio": middle,
        "step_ratio_low": low,
        "step_ratio_high": high,
        "step_s": sorted(seconds)[len(seconds) // 2],
    }


def _sixteen_bit(full: Cache, length: int) -> int:
    """Bytes of keys and values of the first tokens in 16 bit."""
    return sum(2 * one[..., :length, :].numel() for layer in full.layers for one in (layer.keys, layer.values))


def _found(model: PreTrainedModel, contender: CacheContender, lists: Needles, row: int) -> bool:
    ids = lists.input_ids[row][lists.attention_mask[row].bool()][None]
    reader = _Reader(model, contender, ids)
    for wanted in lists.answers[row]:
        if int(reader.logits.argmax()) != int(wanted):
            return False
        reader.step(wanted.view(1, 1))
    return True


def run_bench(
    loaded: Loaded,
    lengths: Mapping[int, int] = LENGTHS,
    scored: int = SCORED,
    after: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    calibration: int = CALIBRATION,
) -> list[dict[str, Any]]:
    """Every contender at every length; a dict each, with `refused` in place of figures where one can't serve the model.

    Args:
        loaded: a language model and its tokenizer.
        lengths: tokens of a prompt, and how many lists are asked for; lengths beyond the model's positions are left out.
        scored: tokens behind a prompt, at least 8.
        after: gets all rows so far after each.
        calibration: texts that tell heads of high entropy from others.

    Raises:
        MethodError: no length fits, or too few tokens to time.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    if scored < 8:
        raise MethodError(f"{scored} tokens behind a prompt are too few to time. Score 8 or more.")
    room = getattr(model.config, "max_position_embeddings", max(lengths) + scored)
    fitting = {length: asked for length, asked in lengths.items() if length + scored <= room}
    if not fitting:
        raise MethodError(
            f"no prompt of {min(lengths):,} tokens fits into a model of {room:,} positions. Ask for less."
        )
    groups = calibrate_head_entropy(model, tokenizer, _texts(loaded, calibration))
    rows: list[dict[str, Any]] = []
    for length, asked in fitting.items():
        text, lists = passages(tokenizer, 1, length + scored), needles(tokenizer, asked, length)
        for contender in contenders(length, groups):
            rows.append(_row(model, contender, text, length, lists))
            after(rows)
    return rows


def _row(
    model: PreTrainedModel, contender: CacheContender, text: Tensor, length: int, lists: Needles
) -> dict[str, Any]:
    """Its figures, or why there are none: what refuses the model, and a peer that fails on it, leaves the others."""
    try:
        return measured(model, contender, text, length, lists)
    except Exception as error:
        if contender.peer is None and not isinstance(error, UnwriteError):
            raise
        why = said(error)
    return {"cache": contender.name, "peer": contender.peer, "tokens": length, "refused": f"{contender.name}: {why}"}


def _texts(loaded: Loaded, count: int) -> Sequence[str]:
    return [str(loaded.tokenizer.decode(row)) for row in passages(loaded.tokenizer, count, CALIBRATED, TUNING)]
