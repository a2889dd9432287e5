"""UNComp: heads whose states spread over many directions keep many tokens of a prompt, the others few.

How far a head's queries spread, their truncated matrix entropy, is measured once a model on texts of the kind; it tells the heads that
look everywhere from those that always look at the same. Each head keeps its last tokens and the ones that these attend to most, as SnapKV
does, within a budget of its group. (UNComp, arXiv 2410.03090)

    H_k = - sum_{i <= k} s_i ln s_i / ln d;     high groups keep 3/2 of the capacity, low ones 3/4, each of its own choice

With one group it is SnapKV (arXiv 2404.14469), with `stages` it also reads a prompt with fewer tokens in deeper layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import MethodError, setting, unknown
from .base import CompressedCache, CompressedLayer, Compression
from .engine.attention import AttentionCall, visible
from .engine.budgets import capacities, sizes_of
from .engine.head_groups import HeadGroups, calibrate_head_entropy
from .engine.slots import EMPTY, Pooling, Slots, attended, chosen, newest
from .engine.support import KVShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HeadGroups", "UNComp", "UNCompCache", "calibrate_head_entropy"]

DecodePolicy = Literal["fixed", "grow"]


@dataclass(frozen=True)
class UNComp(Compression):
    """Keeps few tokens a key-value head, and in heads of high entropy more than in others.

    Args:
        groups: which heads are high and low, of `calibrate_head_entropy`; on a command line its JSON file. `HeadGroups.one()`, on a
            command line "one", is SnapKV.
        capacity: tokens a head keeps where all keep the same, above the window. A shorter text is kept whole.
        window: last tokens, always kept, whose queries choose among those before them (8 in the published runs).
        kernel: odd width of the pooling of scores, so that neighbours of a token that counts stay with it.
        pooling: "max" or "avg".
        decode_policy: "fixed" chooses again after every new token, so that heads keep their size; "grow" keeps all new ones.
        reversed: low for high: the control that must do worse.
        n_sink: first tokens of a text that every head keeps (ours; the published code leaves them to their scores).
        normalise: makes the mean over the heads `capacity` (ours; the published rule keeps 9/8 of it where half of the heads are high).
        official_budget: low heads keep half of a prompt even where it is within `capacity`, and sizes stay those of the prompt.
        budgets: tokens a head of each group keeps, lowest entropy first, in place of the rule: (16, 112) in the published extreme.
    """

    groups: HeadGroups | None = None
    capacity: int = 512
    window: int = 8
    kernel: int = 7
    pooling: Pooling = "max"
    decode_policy: DecodePolicy = "fixed"
    reversed: bool = False
    n_sink: int = 0
    normalise: bool = False
    official_budget: bool = False
    budgets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise MethodError(unknown(setting("pooling"), self.pooling, get_args(Pooling)))
        if self.decode_policy not in get_args(DecodePolicy):
            raise MethodError(unknown(setting("decode_policy"), self.decode_policy, get_args(DecodePolicy)))
        for name, least in (("capacity", 1), ("window", 1), ("kernel", 1), ("n_sink", 0)):
            if getattr(self, name) < least:
                raise MethodError(f"{setting(name)} is {getattr(self, name)}; it must be at least {least}.")
        if self.kernel % 2 == 0:
            raise MethodError(f"{setting('kernel')} is {self.kernel}; it must be odd, so that it has a middle.")
        if self.capacity <= self.window:
            raise MethodError(
                f"{setting('capacity')} is {self.capacity} and {setting('window')} is {self.window}: nothing could be chosen. "
                "Raise the first above the second."
            )
        if self.budgets is not None and (self.normalise or self.official_budget):
            rule = setting("normalise" if self.normalise else "official_budget")
            raise MethodError(f"{setting('budgets')} says what every group keeps, and {rule} too. Leave one out.")

    @property
    def attends(self) -> bool:
        """Always: heads hold differing tokens."""
        return True

    def check(self, shape: KVShape, model: PreTrainedModel) -> None:
        """Refuses a model without head groups of its own, and budgets that leave no room beside the window.

        Raises:
            ModelError: see `Compression.check`; groups of another model.
            MethodError: no groups; budgets of another number of groups, or within window and sinks.
        """
        super().check(shape, model)
        if self.groups is None:
            raise MethodError(
                f"UNComp is given no {setting('groups')}. Calibrate: calibrate_head_entropy(model, tokenizer, texts), or take "
                f"HeadGroups.one() ({setting('groups', 'one')}), which is SnapKV."
            )
        self.groups.check(shape, model)
        if self.budgets is not None and len(self.budgets) != self.groups.count:
            raise MethodError(
                f"{setting('budgets')} has {len(self.budgets)} sizes, and there are {self.groups.count} groups of heads. Give one each."
            )
        least = min(min(self.capacities(index, shape)) for index in range(shape.layers))
        if least <= self.window + self.n_sink:
            raise MethodError(
                f"the group of fewest tokens keeps {least} of them, of which {setting('window')} and {setting('n_sink')} take "
                f"{self.window + self.n_sink}. Raise {setting('capacity')}, or lower these."
            )

    def labels(self, index: int, shape: KVShape) -> tuple[int, ...]:
        """[key-value heads] the group by whose budget each head of a layer keeps tokens."""
        assert self.groups is not None
        groups = self.groups.reversed if self.reversed else self.groups
        return groups.of_layer(index, shape.kv_heads)

    def capacities(self, index: int, shape: KVShape) -> tuple[int, ...]:
        """[groups] tokens a head of each group keeps of a long text."""
        assert self.groups is not None
        if self.budgets is not None:
            return self.budgets
        return capacities(self.capacity, self.labels(index, shape), self.groups.count, self.normalise)

    def layer(self, index: int, shape: KVShape, prepared: Any) -> UNCompLayer:
        return UNCompLayer(self, shape, self.labels(index, shape), self.capacities(index, shape))


class UNCompCache(CompressedCache):
    """A cache of `UNComp`: UNCompCache(model, groups=groups, capacity=256)."""

    settings = UNComp


class UNCompLayer(CompressedLayer):
    """Keys and values of one layer, in slots of each group of heads.

    Attributes:
        heads: {group: indices of its key-value heads}.
        keys, values, columns, window: as `Slots`, a tensor a group; None where the layer is empty.
        prompts: [rows] tokens of each prompt, where budgets are the published ones.
    """

    stored = ("keys", "values", "columns", "window", "prompts")

    def __init__(self, settings: UNComp, shape: KVShape, labels: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, self.group, self.is_croppable = settings, shape.group, settings.decode_policy == "grow"
        self.sizes = {group: size for group, size in enumerate(sizes) if group in labels}
        self.heads = {group: [head for head, one in enumerate(labels) if one == group] for group in self.sizes}
        self.keys: list[Tensor] | None = None  # type: ignore[assignment]
        self.values: list[Tensor] | None = None  # type: ignore[assignment]
        self.columns: list[Tensor] | None = None
        self.window: list[Tensor] | None = None
        self.prompts: Tensor | None = None
        self.grown = 0  # tokens kept whole since the last choice, which can be given back

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Hands on what is new: what is kept of it is decided by `attend`, which knows the queries."""
        return keys, values

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Attention over all that is kept and new; then every head chooses what it keeps."""
        rows, _, new, _ = call.query.shape
        seen = _one_mask(visible(call.attention_mask, new, self.length, call.query.device)).expand(rows, -1, -1)
        known = seen[:, -1]  # [rows, columns] bool: the text without its padding
        text = known.sum(-1)
        begins = known.int().argmax(-1)  # [rows] first column of each text
        if self.settings.official_budget and self.prompts is None:
            self.prompts = text.clone()
        reading = self.keys is None
        whole = call.stock(call.keys, call.values, call.attention_mask)[0] if reading else None
        output = torch.empty_like(call.query) if whole is None else None
        kept = []
        for group, heads in self.heads.items():
            slots = self._joined(len(kept), heads, call, known)
            query = call.query.unflatten(1, (-1, self.group))[:, heads]  # [rows, heads, group, new, dim]
            if output is None:  # the model's own attention has read it; only the window's queries are computed again
                last = self.settings.window
                _, weights = attended(slots, query[..., -last:, :], seen[:, -last:], call.scaling)
            else:
                attention, weights = attended(slots, query, seen, call.scaling)
                output.unflatten(1, (-1, self.group))[:, heads] = attention
            sizes = self._sizes(group, text)
            kept.append(self._chosen(slots, weights, sizes, begins, reading))
        self._keep(kept)
        self.grown = 0 if reading or not self.is_croppable else self.grown + new
        return (whole if output is None else output.transpose(1, 2)), None

    def _joined(self, at: int, heads: list[int], call: AttentionCall, known: Tensor) -> Slots:
        """What a group holds, with the new tokens behind it."""
        new = call.keys.shape[2]
        columns = torch.arange(self.length - new, self.length, device=known.device)
        columns = torch.where(known[:, -new:], columns, EMPTY).int()[:, None].expand(-1, len(heads), -1)
        keys, values = call.keys[:, heads], call.values[:, heads]
        if self.keys is None:
            return Slots(keys, values, columns.contiguous(), None)
        return self._slots(at).joined(keys, values, columns)

    def _slots(self, at: int) -> Slots:
        assert self.keys is not None
        assert self.values is not None
        assert self.columns is not None
        return Slots(self.keys[at], self.values[at], self.columns[at], None if self.window is None else self.window[at])

    def _sizes(self, group: int, text: Tensor) -> Tensor:
        """[rows] tokens a head of this group may keep of texts of so many."""
        settings, size = self.settings, self.sizes[group]
        if settings.budgets is not None:
            return text.clamp(max=size)
        text = text if self.prompts is None else self.prompts
        sizes = sizes_of(size, max(self.sizes.values()), text)
        sizes = torch.maximum(sizes, text.clamp(max=settings.window + settings.n_sink))
        return sizes if settings.official_budget else torch.where(text <= settings.capacity, text, sizes)

    def _chosen(self, slots: Slots, weights: Tensor, sizes: Tensor, begins: Tensor, reading: bool) -> Slots:
        """The slots with their window, of which every head keeps its share."""
        settings = self.settings
        if settings.decode_policy == "grow" and not reading:
            return slots
        slots = newest(slots, weights, settings.window)
        if reading or bool((slots.filled.sum(-1) > sizes[:, None]).any()):
            stays = chosen(slots, sizes, settings.kernel, settings.pooling, begins + settings.n_sink)
            slots = slots.limited(stays)
        return slots.without_window() if settings.decode_policy == "grow" else slots

    def _keep(self, kept: list[Slots]) -> None:
        self.keys, self.values = [one.keys for one in kept], [one.values for one in kept]
        self.columns = [one.columns for one in kept]
        windows = [one.window for one in kept if one.window is not None]
        self.window = windows or None

    def crop(self, tokens_to_remove: int) -> None:
        """Gives back tokens that were added since the prompt, where all of those are kept.

        Raises:
            MethodError: more tokens than that, or heads that chose again after every token.
        """
        count = abs(tokens_to_remove)
        if not count or not self.is_croppable or count > self.grown:
            super().crop(tokens_to_remove)
            return
        assert self.keys is not None
        self._keep([self._shortened(at, count) for at in range(len(self.keys))])
        self.length, self.grown = self.length - count, self.grown - count

    def _shortened(self, at: int, count: int) -> Slots:
        slots = self._slots(at)
        return slots.limited(slots.filled & (slots.columns < self.length - count))

    def reset(self) -> None:
        """Empties the layer."""
        super().reset()
        self.grown = 0


def _one_mask(seen: Tensor) -> Tensor:
    """[rows or 1, new, columns], the one mask of all heads.

    Raises:
        MethodError: heads have masks of their own, or texts are padded on the right.
    """
    if seen.shape[1] != 1:
        raise MethodError(
            "heads have masks of their own, and this cache chooses tokens by one of all. Use DynamicCache."
        )
    if not seen[:, 0, -1, -1].all():
        raise MethodError("a text is padded on the right, where its last tokens belong. Pad on the left.")
    return seen[:, 0]
