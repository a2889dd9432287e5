"""RotateKV on a real small model: what does each of its steps save of the loss that two bits cost?

Claims looked at (arXiv 2501.16383): keys and values in 2 bits cost under 0.3 of perplexity (Llama-2-13B, WikiText-2); rotation before
rope, reordered channels and whole attention sinks each help; existing methods do worse at more bits. SmolLM2-135M-Instruct reads pages of
the Python manual, at once, with attention seeing what is kept, as officially. It has three key-value heads of 64, so no two heads can be
rotated together; that step is judged on planted keys. Rounding to nearest has its clip chosen from the same grid, on other pages, and
so has rounding with a scale for half as many numbers, in about the bytes that whole tokens take of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache

from ..beds.budget import Budget
from ..beds.long_texts import REPORTED, TUNING, continuation_losses, passages, prompt_loss
from ..beds.outlier_keys import KeyTrip, outlier_keys
from ..beds.two_bit_caches import KIVI, RandomSinks
from ..cache.base import CompressedCache, Compression
from ..cache.engine.key_order import KeyOrder, calibrate_key_order
from ..cache.rotatekv import Prefill, RotateKV, RotateKVCache
from ..models import anatomy, load
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL, NEAREST, CHOSEN = "full cache", "nearest, 2 bits", "nearest, 2 bits, clip chosen"
FINE = "nearest, 2 bits, 32 a scale, clip chosen"
VALUES, KEYS, ORDER, OWN = "+ values rotated", "+ keys rotated before rope", "+ channels reordered", "RotateKV, 2 bits"
BEHIND, DRAWN, PEER = "keys rotated behind rope", "tokens whole at random", "KIVI, 2 bits"
BASELINES = (CHOSEN, FINE, PEER)
COLUMNS = ("perplexity", "bytes, of half precision", "nats a token behind a prompt")
CLIPS = (0.7, 0.8, 0.9, 1.0)
PAPERS = 0.3  # of perplexity
ROOM = 0.05  # nats a token that the best baseline must cost, for the method to save something
HEAD_DIM = 64  # of planted keys


@dataclass(frozen=True)
class PageCounts:
    """How many texts, and how long.

    Args:
        rows: pages a seed.
        length: tokens of a page.
        behind: tokens that are scored behind a page with the cache as it is used; pages of all seeds in one batch.
        tuning: pages on which clips are chosen.
        calibration: pages on which channels are sorted.
    """

    rows: int
    length: int
    behind: int
    tuning: int
    calibration: int


SCALES = {"tiny": PageCounts(1, 48, 3, 1, 1), "small": PageCounts(3, 512, 16, 2, 6)}
Losses = dict[str, Tensor]  # {arm: [rows] nats a token}


@dataclass
class PageFigures:
    """What was measured on the pages.

    Args:
        losses: {arm: [seeds, rows] mean loss of a token}, the pages read at once.
        shares: {arm: bytes by those of a full cache in half precision}.
        behind: {arm: [rows] mean loss behind a page}.
        sinks: tokens kept whole, [layers], mean over rows.
        clips: {arm: the clip that was chosen}.
        whole: how far losses with nothing quantised lie from the full cache's, at most.
    """

    losses: Losses
    shares: dict[str, float]
    behind: Losses
    sinks: list[float]
    clips: dict[str, float]
    whole: float

    def perplexity(self, arm: str) -> list[float]:
        """One a seed."""
        return [exp(one) for one in self.losses[arm].double().mean(1).tolist()]

    def cost(self, arm: str) -> list[float]:
        """What it adds to the full cache's perplexity, one a seed."""
        return [one - full for one, full in zip(self.perplexity(arm), self.perplexity(FULL), strict=True)]

    def rows(self, arm: str) -> list[float]:
        """Losses, page by page."""
        values: list[float] = self.losses[arm].flatten().tolist()
        return values


def arms(order: KeyOrder, clips: Mapping[str, float]) -> dict[str, Compression]:
    """Every cache but the full one. The steps build on each other, in their order."""
    seen: Prefill = "quantised"
    own = RotateKV(order=order, clip=clips[OWN], prefill=seen)
    steps = replace(own, rotate_keys="none", order=None, sinks=0, pre_rope=False)
    return {
        NEAREST: RotateKV.nearest(prefill=seen),
        CHOSEN: RotateKV.nearest(clip=clips[CHOSEN], prefill=seen),
        FINE: RotateKV.nearest(clip=clips[FINE], prefill=seen, group_size=32),
        VALUES: steps,
        BEHIND: replace(steps, rotate_keys="head"),
        KEYS: replace(own, order=None, sinks=0),
        ORDER: replace(own, sinks=0),
        OWN: own,
        DRAWN: RandomSinks(order=order, clip=clips[OWN], prefill=seen),
        PEER: KIVI(),
    }


def run(budget: Budget) -> Claim:
    """Chooses clips on pages that aren't reported, then reads the reported ones with every cache."""
    tiny = budget.size == "tiny"
    counts = SCALES["tiny" if tiny else "small"]
    found = load("smollm2-135m")
    model: Any = anatomy(found.model).truncate(2) if tiny else found.model
    pages = passages(found.tokenizer, counts.tuning + counts.calibration, counts.length, TUNING)
    texts = found.tokenizer.batch_decode(pages[counts.tuning :])
    order = calibrate_key_order(model, found.tokenizer, texts)
    clips = chosen_clips(model, order, pages[: counts.tuning])
    total = counts.rows * len(budget.seeds)
    ids = passages(found.tokenizer, total, counts.length + counts.behind + 1, REPORTED, budget.seeds[0])
    figures = measured(model, arms(order, clips), ids, counts, clips)
    planted = planted_errors(budget.seeds)
    checks = checks_of(figures, planted)
    rows = rows_of(figures)
    extra = {
        "clips": clips,
        "tokens kept whole, by layer": [round(one, 1) for one in figures.sinks],
        "pages": total,
        "planted errors of the worst head": planted[0],
    }
    return Claim(
        slug="rotatekv",
        claim="Keys and values rotated, reordered and quantised to 2 bits, attention sinks whole, cost under 0.3 of perplexity, less than "
        "existing methods at more bits (Llama-2-13B, WikiText-2, arXiv 2501.16383)",
        setting=f"SmolLM2-135M-Instruct, {total} pages of the Python manual of {counts.length} tokens read at once, attention seeing what "
        f"is kept; {counts.behind} tokens behind each with the cache in use; one head a rotation, 64 numbers a scale",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, _reason(figures)),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def chosen_clips(model: PreTrainedModel, order: KeyOrder, pages: Tensor) -> dict[str, float]:
    """For both ways of rounding and for the method alike, the clip with the least loss on these pages."""
    made: dict[str, Callable[[float], Compression]] = {
        CHOSEN: lambda clip: RotateKV.nearest(clip=clip, prefill="quantised"),
        FINE: lambda clip: RotateKV.nearest(clip=clip, prefill="quantised", group_size=32),
        OWN: lambda clip: RotateKV(order=order, clip=clip, prefill="quantised"),
    }
    losses = {
        arm: {clip: float(prompt_loss(model, partial(make(clip).cache, model), pages).mean()) for clip in CLIPS}
        for arm, make in made.items()
    }
    return {arm: min(of, key=of.__getitem__) for arm, of in losses.items()}


def measured(
    model: PreTrainedModel,
    caches: Mapping[str, Compression],
    ids: Tensor,
    counts: PageCounts,
    clips: dict[str, float],
) -> PageFigures:
    """All arms on the same pages."""
    pages, seeds = ids[:, : counts.length], len(ids) // counts.rows
    losses = {FULL: prompt_loss(model, DynamicCache, pages)}
    shares, sinks = {FULL: 1.0}, []
    for name, compression in caches.items():
        made: list[CompressedCache] = []

        def make(compression: Compression = compression, made: list[CompressedCache] = made) -> CompressedCache:
            made.append(compression.cache(model))
            return made[-1]

        losses[name] = prompt_loss(model, make, pages)
        shares[name] = made[0].nbytes() / half_precision(made[0], pages)
        if name == OWN:
            sinks = [fmean(rows) if rows else 0.0 for rows in _sinks(made[0])]
    whole = prompt_loss(model, partial(RotateKV(bits=16, prefill="quantised").cache, model), pages[:1])
    behind = {}
    for name in (FULL, CHOSEN, OWN):
        make_cache = DynamicCache if name == FULL else partial(_in_use(caches[name]).cache, model)
        behind[name] = continuation_losses(model, make_cache, ids, counts.length)[0]
    by_seed = {name: of.reshape(seeds, counts.rows) for name, of in losses.items()}
    return PageFigures(by_seed, shares, behind, sinks, clips, float((whole - losses[FULL][:1]).abs().max()))


def _in_use(compression: Compression) -> Compression:
    """The same as it is used: a prompt's own attention is exact."""
    return replace(compression, prefill="exact") if isinstance(compression, RotateKV) else compression


def _sinks(cache: CompressedCache) -> list[list[int]]:
    return cache.sink_tokens() if isinstance(cache, RotateKVCache) else []


def half_precision(cache: CompressedCache, pages: Tensor) -> int:
    """Bytes of a full cache of these pages in half precision."""
    shape = cache.shape
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim * pages.numel()


PLANTED = ("nearest", "rotated by head", "rotated across heads", "and reordered")


def planted_errors(seeds: Sequence[int]) -> tuple[dict[str, list[float]], list[float]]:
    """On planted keys of 8 heads: {way: worst head's error at 3 bits, a seed}; all steps' mean error at 2 bits by rounding's."""
    worst: dict[str, list[float]] = {name: [] for name in PLANTED}
    ratios = []
    trips = (KeyTrip(), KeyTrip(HEAD_DIM), KeyTrip(4 * HEAD_DIM), KeyTrip(4 * HEAD_DIM, True))
    for seed in seeds:
        keys = outlier_keys(seed)
        for name, trip in zip(PLANTED, trips, strict=True):
            worst[name].append(float(trip.errors(keys, HEAD_DIM).max()))
        few = [replace(trip, bits=2, clip=0.8).errors(keys, HEAD_DIM).mean() for trip in (trips[-1], trips[0])]
        ratios.append(float(few[0] / few[1]))
    return worst, ratios


def checks_of(figures: PageFigures, planted: tuple[dict[str, list[float]], list[float]]) -> tuple[Check, ...]:
    """The card's conditions."""
    worst, ratios = planted
    falls = [[a - b for a, b in zip(worst[x], worst[y], strict=True)] for x, y in pairwise(PLANTED)]
    best = min(BASELINES, key=lambda name: float(figures.losses[name].mean()))
    lost: list[float] = (figures.losses[best] - figures.losses[FULL]).mean(1).tolist()
    halves = [a - 2 * b for a, b in zip(figures.cost(CHOSEN), figures.cost(OWN), strict=True)]

    def less(kind: Any, text: str, better: str, worse: str) -> Check:
        return Check.paired(kind, text, figures.rows(worse), figures.rows(better))

    behind = Check.paired(
        "claim",
        "behind a prompt, too, loss is less than by rounding",
        figures.behind[CHOSEN].tolist(),
        figures.behind[OWN].tolist(),
    )
    return (
        Check.by_seed("set-up", f"the best baseline costs {ROOM} nats a token", lost, ">=", ROOM),
        Check("mechanism", "with nothing quantised the loss is the full cache's", figures.whole, "<=", 1e-3),
        *(
            Check.by_seed("mechanism", f"planted keys: the worst head is better off {name}", fall, ">", 0)
            for name, fall in zip(PLANTED[1:], falls, strict=True)
        ),
        Check.by_seed("mechanism", "planted keys: all steps halve the error of 2 bits", ratios, "<=", 0.5),
        Check.by_seed("claim", "perplexity rises by less than half of what rounding costs", halves, ">", 0),
        less("claim", "rotated values lower the loss of rounding at its best clip", VALUES, CHOSEN),
        less("claim", "rotating keys before rope lowers the loss", KEYS, VALUES),
        less("claim", "before rope is better than behind it", KEYS, BEHIND),
        less("claim", "reordering channels lowers the loss", ORDER, KEYS),
        less("claim", "whole sink tokens lower the loss", OWN, ORDER),
        less("claim", "loss is less than by rounding with a scale for 32 numbers", OWN, FINE),
        less("claim", "loss is less than by keys quantised along channels with a whole window", OWN, PEER),
        Check("claim", "and bytes are fewer than those", figures.shares[OWN], "<", figures.shares[PEER]),
        behind,
        Check.by_seed("claim", f"perplexity rises by at most {PAPERS}", figures.cost(OWN), "<=", PAPERS),
        less("control", "tokens whole at random save less", OWN, DRAWN),
    )


def rows_of(figures: PageFigures) -> dict[str, tuple[str, ...]]:
    """The table."""
    return {
        name: (
            spread(figures.perplexity(name)),
            f"{figures.shares[name]:.3f}",
            f"{float(figures.behind[name].mean()):.3f}" if name in figures.behind else "-",
        )
        for name in figures.losses
    }


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Perplexity of the method, of rounding and of nothing done, and the bytes."""
    own, chosen, full = (figure(rows, name, 0) for name in (OWN, CHOSEN, FULL))
    return f"perplexity {own} in {figure(rows, OWN, 1)} of the bytes (rounded {chosen}, full {full})"


def _reason(figures: PageFigures) -> str:
    costs = ", ".join(f"{fmean(figures.perplexity(name)):.4g} {name}" for name in figures.losses)
    return (
        f"Perplexity: {costs}. Tokens kept whole in a layer and page: {min(figures.sinks):.1f} to {max(figures.sinks):.1f}, "
        f"mean {fmean(figures.sinks):.1f}"
    )
