"""Which key-value heads of a model carry much and which little, as calibration texts show it: a label a head, in a JSON file.

Every text ranks the heads of a layer by the entropy of its states (`entropy`) and gives them labels, lowest first; labels are summed
over the texts, and the heads are ranked by the sums. A key-value head's entropy is the mean over the query heads it serves.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ...errors import MethodError, ModelError, RunError, setting, unknown
from ...models import unwrap
from ...runs import hash_json, progress, read_json, write_json
from ..base import CompressedLayer, Compression
from .attention import AttentionCall
from .entropy import check_truncation, matrix_entropy
from .support import KVShape, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HeadGroups", "calibrate_head_entropy", "config_hash"]

States = Literal["query", "key", "value"]
FORM = 1  # of the file
ONE = "one"  # in place of a file: all heads in one group, for any model
PASSING = ("transformers_version", "dtype", "torch_dtype", "attn_implementation", "use_cache")


@dataclass(frozen=True)
class HeadGroups:
    """A label for every key-value head, 0 for the group of lowest entropy.

    Args:
        labels: [layers][key-value heads]; none at all puts every head of any model into one group.
        model: hash of the config of the model it was made for; empty for any.
        k: eigenvalues of the entropy.
        states: what the entropy was taken of: "query", "key" or "value".
        texts: how many were read.
        entropies: [layers][key-value heads] mean entropies, 0 to 1.
    """

    labels: tuple[tuple[int, ...], ...] = ()
    model: str = ""
    k: int = 0
    states: States = "query"
    texts: int = 0
    entropies: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def one(cls) -> HeadGroups:
        """All heads in one group, of any model: with it UNComp is SnapKV."""
        return cls()

    @classmethod
    def load(cls, file: str | Path) -> HeadGroups:
        """What `save` wrote; "one" stands for `one()` where no file has that name.

        Raises:
            RunError: no such file, or none of head groups.
        """
        if str(file) == ONE and not Path(file).exists():
            return cls.one()
        record: Any = read_json(file)
        try:
            if record.pop("form") != FORM:
                raise ValueError
            nested = {name: tuple(map(tuple, record.pop(name))) for name in ("labels", "entropies")}
            groups = cls(**record, **nested)
            groups._check()
        except (AttributeError, KeyError, TypeError, ValueError):
            raise RunError(
                f"{file} is no file of head groups of this version. Make one with calibrate_head_entropy(...).save."
            ) from None
        return groups

    def _check(self) -> None:
        """Refuses labels that aren't 0, 1, ... of equal counts of heads."""
        flat = {label for layer in self.labels for label in layer}
        widths = {len(layer) for layer in self.labels}
        if self.states not in get_args(States) or len(widths) > 1 or flat != set(range(len(flat))):
            raise ValueError(self.labels)

    def save(self, file: str | Path) -> Path:
        """Writes a JSON file."""
        path = Path(file)
        write_json(path, {"form": FORM, **asdict(self)})
        return path

    @property
    def count(self) -> int:
        """How many groups there are."""
        return 1 + max((label for layer in self.labels for label in layer), default=0)

    @property
    def reversed(self) -> HeadGroups:
        """Low for high: the same number of heads in each group of two, the other way round of the budgets."""
        top = self.count - 1
        return replace(self, labels=tuple(tuple(top - label for label in layer) for layer in self.labels))

    def shuffled(self, seed: int) -> HeadGroups:
        """The same number of heads in each group of a layer, drawn at random."""
        draw = random.Random(seed)
        return replace(self, labels=tuple(tuple(draw.sample(layer, len(layer))) for layer in self.labels))

    def of_layer(self, index: int, kv_heads: int) -> tuple[int, ...]:
        """[key-value heads] labels of a layer."""
        return self.labels[index] if self.labels else (0,) * kv_heads

    def check(self, shape: KVShape, model: PreTrainedModel) -> None:
        """Refuses a model it wasn't made for.

        Raises:
            ModelError: the hash of its config, or its number of layers and heads, is another.
        """
        if not self.labels:
            return
        sizes = (len(self.labels), len(self.labels[0]))
        if sizes != (shape.layers, shape.kv_heads) or self.model not in ("", config_hash(model)):
            raise ModelError(
                f"the head groups were calibrated for a model of {sizes[0]} layers with {sizes[1]} key-value heads and config "
                f"{self.model or 'unknown'}; this one has {shape.layers} and {shape.kv_heads} and config {config_hash(model)}. "
                "Calibrate with this model."
            )


def config_hash(model: PreTrainedModel) -> str:
    """16 hex digits of a model's config without what says nothing of its heads: its folder, precision, attention function."""
    config: dict[str, Any] = unwrap(model).config.to_dict()  # type: ignore[operator]
    return hash_json({key: value for key, value in config.items() if key not in PASSING and not key.startswith("_")})


def calibrate_head_entropy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[str] | Sequence[Tensor],
    k: int | None = None,
    *,
    groups: int = 2,
    states: States = "query",
    max_length: int | None = 2048,
) -> HeadGroups:
    """Groups a model's key-value heads by what they carry of these texts; once a model, a forward a text.

    Args:
        model: any that a compressed cache with an attention of its own serves.
        tokenizer: of the model; None where texts are ids.
        texts: of the kind that will be compressed, at least 32 of them; or their ids, [length] each.
        k: eigenvalues of the entropy; a quarter of a head's dimension without, as 32 of 128.
        groups: into how many groups the heads of a layer fall.
        states: what the entropy is taken of, turned by rope: "query" (the published default), "key" or "value".
        max_length: tokens of a text at most.

    Raises:
        MethodError: k beyond a head's dimension, more groups than heads, no texts, texts of fewer than 2 tokens.
        ModelError: see `engine.support`.
    """
    shape = shape_of(model)
    k = max(1, round(shape.head_dim / 4)) if k is None else k
    _check(shape, k, groups, states, texts)
    each = []
    for text in progress(texts, "calibrating"):
        each.append(_entropies(model, _ids(tokenizer, text, max_length), k, states))
    entropies = torch.stack(each)  # [texts, layers, kv heads]
    sums = _labels(entropies, groups).sum(0)
    labels = _labels(sums + entropies.mean(0) / 2, groups)  # of equal sums the higher mean entropy is the higher
    return HeadGroups(
        labels=tuple(map(tuple, labels.tolist())),
        model=config_hash(model),
        k=k,
        states=states,
        texts=len(texts),
        entropies=tuple(tuple(round(one, 6) for one in layer) for layer in entropies.mean(0).tolist()),
    )


def _check(shape: KVShape, k: int, groups: int, states: str, texts: Sequence[Any]) -> None:
    if states not in get_args(States):
        raise MethodError(unknown("kind of states", states, get_args(States)))
    check_truncation(k, shape.head_dim)
    if not 1 <= groups <= shape.kv_heads:
        raise MethodError(
            f"{setting('groups')} is {groups}; it must be 1 to {shape.kv_heads}, the key-value heads of a layer."
        )
    if len(texts) == 0:
        raise MethodError("there is no text to calibrate with. Give at least one, better 32 or more.")


def _ids(tokenizer: PreTrainedTokenizerBase | None, text: str | Tensor, most: int | None) -> Tensor:
    """[1, length] ids of a text."""
    if isinstance(text, str):
        if tokenizer is None:
            raise MethodError("texts are strings and there is no tokenizer. Pass the model's.")
        text = torch.tensor(tokenizer(text)["input_ids"])
    ids = text.flatten()[:most]
    if len(ids) < 2:
        raise MethodError(f"a text to calibrate with has {len(ids)} tokens. Leave out those of fewer than 2.")
    return ids[None]


def _labels(values: Tensor, groups: int) -> Tensor:
    """The group of each head by its rank in the last dimension, lowest first; the same number of heads in each, as far as it goes."""
    ranks = values.argsort(dim=-1, stable=True).argsort(-1)
    return ranks * groups // values.shape[-1]


@torch.no_grad()
def _entropies(model: PreTrainedModel, ids: Tensor, k: int, states: States) -> Tensor:
    """[layers, kv heads] of one text."""
    cache = _Observed(k, states).cache(model)
    unwrap(model)(ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return torch.stack([layer.entropies.cpu() for layer in cache.layers])


@dataclass(frozen=True)
class _Observed(Compression):
    """Keeps nothing of a text, and notes the entropies of its heads."""

    k: int
    states: States

    @property
    def attends(self) -> bool:
        return True

    def layer(self, index: int, shape: KVShape, prepared: Any) -> CompressedLayer:
        return _ObservingLayer(self, shape)


class _ObservingLayer(CompressedLayer):
    def __init__(self, settings: _Observed, shape: KVShape) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        states = {"query": call.query, "key": call.keys, "value": call.values}[self.settings.states]
        entropies = matrix_entropy(states[0], self.settings.k)
        self.entropies = entropies.view(self.shape.kv_heads, -1).mean(-1)
        return call.stock(call.keys, call.values, call.attention_mask)
