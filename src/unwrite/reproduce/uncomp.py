"""Do heads of high matrix entropy need more of a prompt than the others? SmolLM2 goes on with manual pages it keeps a tenth of.

Claim looked at (arXiv 2410.03090): at the same mean size of the cache, giving heads of high truncated matrix entropy twice what the
others get is better than giving all the same (SnapKV). The controls give the same sizes to the wrong heads: reversed, and drawn at
random. Beside them stand groups by the whole entropy, the first and last tokens alone, and the full cache. Heads are calibrated on the
other half of the manual; all settings are the published ones, so nothing is chosen on what is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ..beds.budget import Budget
from ..beds.language import small_tokenizer
from ..beds.long_texts import REPORTED, TUNING, continuation_losses, needle_hits, needles, passages
from ..cache.engine.attention import AttentionCall
from ..cache.engine.entropy import matrix_entropy
from ..cache.engine.head_groups import HeadGroups, calibrate_head_entropy
from ..cache.engine.slots import Slots
from ..cache.engine.support import KVShape, shape_of
from ..cache.uncomp import UNComp, UNCompLayer
from ..models.loading import load
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

MODEL = "smollm2-135m"
FULL, SNAP, OWN, REVERSED, RANDOM = (
    "full cache",
    "SnapKV",
    "UNComp",
    "UNComp, groups reversed",
    "UNComp, groups at random",
)
WHOLE, RECENT = "UNComp, groups by the whole entropy", "first and last tokens"
COMPRESSED = (SNAP, OWN, WHOLE, REVERSED, RANDOM, RECENT)
COLUMNS = ("loss, nats", "numbers found, %", "bytes, % of full")
WINDOW, SINKS = 8, 4
GATE = 0.02  # nats by which the full cache must foretell better than first and last tokens


@dataclass(frozen=True)
class CacheScale:
    """How large the experiment is.

    Args:
        rows, lists: pages to go on with, and lists of which a number is asked for, a seed.
        prompt, scored, listed: tokens of a prompt, of what is foretold, of a list.
        capacity: tokens a head keeps in the mean; a multiple of 60, so that every arm keeps as many of three heads.
        calibration, calibrated: texts and tokens of each.
    """

    rows: int
    lists: int
    prompt: int
    scored: int
    listed: int
    capacity: int
    calibration: int
    calibrated: int


SCALES = {"tiny": CacheScale(1, 1, 48, 3, 260, 30, 2, 32), "small": CacheScale(7, 4, 512, 48, 480, 60, 32, 256)}


@dataclass(frozen=True)
class CacheFigures:
    """One arm.

    Args:
        losses, hits: of every row, all seeds one after another.
        share: bytes in % of a full cache's, by seed.
    """

    losses: list[float]
    hits: list[float]
    share: list[float]


@dataclass(frozen=True)
class FirstAndLast(UNComp):
    """Keeps `n_sink` first tokens and the last ones of a text, `capacity` in all, as StreamingLLM does; nothing is chosen."""

    def layer(self, index: int, shape: KVShape, prepared: Any) -> UNCompLayer:
        return _FirstAndLastLayer(self, shape, self.labels(index, shape), self.capacities(index, shape))


class _FirstAndLastLayer(UNCompLayer):
    def _chosen(self, slots: Slots, weights: Tensor, sizes: Tensor, begins: Tensor, reading: bool) -> Slots:
        first = slots.filled & (slots.columns < (begins + self.settings.n_sink)[:, None, None])
        behind = slots.columns.shape[2] - torch.arange(slots.columns.shape[2], device=begins.device)
        last = slots.filled & (behind <= (sizes - self.settings.n_sink)[:, None, None])
        return slots.limited(first | last)


def run(budget: Budget) -> Claim:
    """Calibrates once, then goes on with every page and list in every cache."""
    scale = SCALES.get(budget.size, SCALES["small"])
    model, tokenizer = untrained() if budget.size == "tiny" else _loaded()
    groups = calibrated(model, tokenizer, scale)
    figures = measured(model, tokenizer, scale, groups, budget.seeds)
    planted = [planted_errors(seed) for seed in budget.seeds]
    checks, rows = checks_of(figures, planted), rows_of(figures)
    labels = zip(groups[OWN].labels, groups[WHOLE].labels, strict=True)
    extra = {
        "high heads by layer": ["".join(map(str, layer)) for layer in groups[OWN].labels],
        "layers in which the whole entropy groups otherwise": sum(one != other for one, other in labels),
        "planted errors": planted,
    }
    return Claim(
        slug="uncomp",
        claim="Sizes by truncated matrix entropy beat one size for all heads at the same mean (Llama-2 and 3, Mistral on LongBench, "
        "down to 4.74 % of the cache; arXiv 2410.03090)",
        setting=f"SmolLM2-135M, manual pages of {scale.prompt} tokens and {scale.scored} to foretell, lists of {scale.listed}; "
        f"{scale.capacity} tokens a head in the mean; {scale.rows} + {scale.lists} rows a seed; calibrated on {scale.calibration} other pages",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, _reason(rows)),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def _loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loaded = load(MODEL)
    return loaded.model, loaded.tokenizer


def untrained() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of random weights with heads as SmolLM2's, and a tokenizer of one token a digit, to see whether it runs."""
    tokenizer = small_tokenizer([text[:300] for text in topics.values()], size=400)
    digits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizers(digits)
    sizes = {"hidden_size": 72, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads))
    return model.eval(), tokenizer


def calibrated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scale: CacheScale) -> dict[str, HeadGroups]:
    """Groups by the truncated and by the whole entropy, of pages that are not reported."""
    texts = list(passages(tokenizer, scale.calibration, scale.calibrated, TUNING))
    dim = shape_of(model).head_dim
    return {OWN: calibrate_head_entropy(model, None, texts), WHOLE: calibrate_head_entropy(model, None, texts, dim)}


def settings_of(groups: Mapping[str, HeadGroups], scale: CacheScale, seed: int) -> dict[str, UNComp]:
    """Every compressed arm at the same bytes; of first and last tokens more fit in, for no weights of a window are kept."""
    same: dict[str, Any] = {"capacity": scale.capacity, "window": WINDOW, "normalise": True}
    return {
        SNAP: UNComp(HeadGroups.one(), **same),
        OWN: UNComp(groups[OWN], **same),
        WHOLE: UNComp(groups[WHOLE], **same),
        REVERSED: UNComp(groups[OWN], reversed=True, **same),
        RANDOM: UNComp(groups[OWN].shuffled(seed), **same),
        RECENT: FirstAndLast(HeadGroups.one(), capacity=more_tokens(scale.capacity), window=WINDOW, n_sink=SINKS),
    }


def more_tokens(capacity: int, dim: int = 64, itemsize: int = 4) -> int:
    """Tokens without a window's weights that take the bytes of `capacity` tokens with them."""
    bare = 2 * dim * itemsize + 4  # keys, values, the column
    return capacity * (bare + WINDOW * itemsize) // bare


def measured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scale: CacheScale,
    groups: Mapping[str, HeadGroups],
    seeds: Sequence[int],
) -> dict[str, CacheFigures]:
    """Every arm on the rows of every seed."""
    figures = {name: CacheFigures([], [], []) for name in (FULL, *COMPRESSED)}
    for seed in seeds:
        ids = passages(tokenizer, scale.rows, scale.prompt + scale.scored + 1, REPORTED, seed)
        asked = needles(tokenizer, scale.lists, scale.listed, seed)
        arms: dict[str, Callable[[], Cache | None]] = {FULL: lambda: None}
        for name, one in settings_of(groups, scale, seed).items():
            arms[name] = _maker(one, model)
        for name, make in arms.items():
            losses, cache = continuation_losses(model, make, ids, scale.prompt)
            figures[name].losses.extend(losses.tolist())
            figures[name].hits.extend(needle_hits(model, make, asked).float().tolist())
            figures[name].share.append(100.0 if name == FULL else 100 * cache.nbytes() / cache.full_nbytes())  # type: ignore[attr-defined]
    return figures


def _maker(settings: UNComp, model: PreTrainedModel) -> Callable[[], Cache | None]:
    return lambda: settings.cache(model)


def planted_errors(seed: int) -> dict[str, float]:
    """Mean squared error of the attention of later queries, of two heads of which one looks at three tokens and one everywhere.

    Groups are made as a calibration makes them, from the entropy of the prompt's queries.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, later, dim = 256, 16, 16
    key, value, query = (torch.randn(1, 2, tokens + later, dim, generator=generator) for _ in range(3))
    places = torch.randperm(tokens - 32, generator=generator)[:3]
    key[:, 0, :, 0] = 0
    key[:, 0, places, 0] = 8
    along = 8 + torch.rand(tokens + later, generator=generator)
    query[:, 0] = torch.nn.functional.one_hot(torch.tensor(0), dim) * along[:, None]
    entropies = matrix_entropy(query[0, :, :tokens], dim // 4)
    groups = HeadGroups((tuple(entropies.argsort().argsort().tolist()),))
    same: dict[str, Any] = {"capacity": 48, "window": WINDOW, "normalise": True}
    arms = {
        SNAP: UNComp(HeadGroups.one(), **same),
        OWN: UNComp(groups, **same),
        REVERSED: UNComp(groups, reversed=True, **same),
    }
    exact = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, tokens:], key[:, :, :tokens], value[:, :, :tokens]
    )
    return {name: float((_later(one, query, key, value, tokens) - exact).square().mean()) for name, one in arms.items()}


def _later(settings: UNComp, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
    """[1, heads, later, dim] attention of later queries to what a layer keeps of a prompt."""
    shape = KVShape(1, 2, 2, query.shape[-1])
    layer = settings.layer(0, shape, None)
    layer.attends = True
    states = [one[:, :, :tokens] for one in (query, key, value)]
    keys, values = layer.update(states[1], states[2])
    layer.attend(AttentionCall(states[0], keys, values, None, query.shape[-1] ** -0.5, lambda keys, *_: (keys, None)))
    assert layer.keys is not None
    assert layer.values is not None
    output = torch.empty_like(query[:, :, tokens:])
    for at, heads in enumerate(layer.heads.values()):
        output[:, heads] = torch.nn.functional.scaled_dot_product_attention(
            query[:, heads, tokens:], layer.keys[at], layer.values[at]
        )
    return output


def checks_of(figures: Mapping[str, CacheFigures], planted: Sequence[Mapping[str, float]]) -> tuple[Check, ...]:
    """Differences on the same rows, all seeds together."""
    losses = {name: one.losses for name, one in figures.items()}
    beside = [one[SNAP] - one[OWN] for one in planted]
    shares = [max(figures[name].share) for name in COMPRESSED], [min(figures[name].share) for name in COMPRESSED]
    room = [one - other - GATE for one, other in zip(losses[RECENT], losses[FULL], strict=True)]
    return (
        Check.paired("set-up", f"the full cache foretells {GATE} nats better than first and last tokens", room, [0.0] * len(room)),
        Check("set-up", "all caches take the same bytes, within a fiftieth", max(shares[0]) <= 1.02 * min(shares[1])),
        Check.by_seed("mechanism", "where one head looks everywhere, its planted error is less than SnapKV's", beside, ">", 0.0),
        Check.by_seed(
            "mechanism", "and reversed groups err more", [one[REVERSED] - one[SNAP] for one in planted], ">", 0.0
        ),
        Check.paired("claim", "the rest is foretold at least as well as by SnapKV", losses[SNAP], losses[OWN], ">="),
        Check.paired("claim", "numbers are found at least as often as by SnapKV", figures[OWN].hits, figures[SNAP].hits, ">="),
        Check.paired("control", "reversed groups foretell worse", losses[REVERSED], losses[OWN]),
        Check.paired("control", "groups at random foretell worse", losses[RANDOM], losses[OWN]),
    )  # fmt: skip


def rows_of(figures: Mapping[str, CacheFigures]) -> dict[str, tuple[str, ...]]:
    """The table: means over rows."""
    rows = {}
    for name, one in figures.items():
        seeds = len(one.share)
        by_seed = [_means(values, seeds) for values in (one.losses, [100 * hit for hit in one.hits])]
        rows[name] = (*(spread(values) for values in by_seed), spread(one.share))
    return rows


def _means(values: Sequence[float], seeds: int) -> list[float]:
    each = len(values) // seeds
    return [sum(values[at * each : (at + 1) * each]) / each for at in range(seeds)]


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """The loss of the method, of SnapKV, of reversed groups and of the full cache."""
    own, snap, other, full = (figure(rows, name, 0) for name in (OWN, SNAP, REVERSED, FULL))
    return f"loss {own} at {figure(rows, OWN, 2)} % of bytes (SnapKV {snap}, reversed {other}, full {full})"


def _reason(rows: Mapping[str, Sequence[Any]]) -> str:
    losses = ", ".join(f"{figure(rows, name, 0)} {name}" for name in rows)
    hits = ", ".join(f"{figure(rows, name, 1)} {name}" for name in rows)
    return f"loss in nats: {losses}. Numbers found in %: {hits}"
