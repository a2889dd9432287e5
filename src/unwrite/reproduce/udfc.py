"""Do channels that are gone come back as combinations of others? A VGG on rendered characters, twice as wide as needed.

Claim looked at (arXiv 2308.07209): pruning and rounding repaired at once, without data, keep more than repair by one partner (neuron
merging) and than none, most of all at medium compression. On planted copies of channels the repair must be whole. Control: the same
combinations at wrong channels, whose gain would be one of scale. Beside them stand what data would buy: least squares in the same
place, and statistics of normalisation taken anew; and nets of half the width, where little is said twice. The bed's ResNet stays out of
it: on a seed that is not reported it named 48 % of unseen characters after as many epochs and 59 % after twice as many, below the bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from ..beds.budget import Budget
from ..beds.wide_glyphs import NETS, SHAPE, GlyphNets, share_right, with_copies
from ..compress.nets.controls import ChannelMerging, ExchangedChannels, LeastSquaresOnData, reestimate_norms
from ..compress.nets.reconstruction import Combiner, RidgeCombination
from ..compress.nets.udfc import UDFC
from ..scoring.intervals import Interval, spread
from .base import Claim, figure
from .checks import Check, reason_of

NOTHING, PLAIN, MERGING, OWN = "nothing", "plain", "merging", "UDFC"
APART, EXCHANGED, NORMS, DATA = (
    "one after the other",
    "wrong channels",
    "plain, statistics anew",
    "least squares on data",
)
NARROW = "half the width: "
GRID_ARMS, SOME_ARMS = (PLAIN, MERGING, OWN, APART), (EXCHANGED, NORMS, DATA)
RATIOS = (0.1, 0.3, 0.5, 0.7)
MEDIUM = (0.3, 0.5)  # of the ratios
LEARNT, LOSS = 70.0, 10.0  # % right before, at least; points that plain compression to a half at 6 bits loses, at least
GAIN = 1.0  # points that wrong channels may gain, at most
WHOLE, FAR = (
    1e-3,
    0.1,
)  # of the answers' size, that repaired copies may move them at most, and that plain pruning does at least

Cell = tuple[float, int | None]  # prune ratio, bits
Cells = Mapping[Cell, float]  # % right
SHOWN: tuple[Cell, ...] = ((0.3, 6), (0.5, 6), (0.7, 6), (0.5, 3), (0.5, None))
SOME: tuple[Cell, ...] = tuple((ratio, bits) for ratio in RATIOS[1:] for bits in (6, None))
COLUMNS = tuple(f"{ratio:.0%} pruned, {bits or 'all'} bits" for ratio, bits in SHOWN)


@dataclass(frozen=True)
class GlyphScale:
    """How large the experiment is.

    Args:
        width: of the nets that are not wide.
        epochs: of every training.
        draws, test_draws: pictures of each character in each font.
        pictures: for what looks at data.
        kinds: of net.
        bits: of the grid.
    """

    width: int
    epochs: int
    draws: int
    test_draws: int
    pictures: int = 128
    kinds: tuple[str, ...] = tuple(NETS)
    bits: tuple[int | None, ...] = (8, 6, 4, 3, None)


SCALES = {
    "tiny": GlyphScale(4, 1, 1, 1, pictures=16, kinds=("VGG",), bits=(6, 3, None)),
    "small": GlyphScale(12, 12, 20, 5, kinds=("VGG",)),
}


@dataclass(frozen=True)
class NetFigures:
    """One net of one seed.

    Args:
        whole: % right before.
        arms: % right by arm and cell; the arms of `GRID_ARMS` everywhere, those of `SOME_ARMS` on the cells of `SOME`.
        narrow: the same of the net of half the width, on the cells shown at 6 bits.
        narrow_whole: % right of it before.
        repaired, pruned: how far answers move when planted copies are taken out, with and without repair, as a part of their size.
    """

    whole: float
    arms: Mapping[str, Cells]
    narrow: Mapping[str, Cells]
    narrow_whole: float
    repaired: float
    pruned: float


def run(budget: Budget) -> Claim:
    """Every net and seed: trained, compressed by every arm, tested."""
    scale = SCALES.get(budget.size, SCALES["small"])
    figures = {
        (kind, seed): measured(GlyphNets(scale.width, scale.epochs, scale.draws, scale.test_draws, seed), kind, scale)
        for kind in scale.kinds
        for seed in budget.seeds
    }
    checks, rows = checks_of(list(figures.values())), rows_of(figures)
    return Claim(
        slug="udfc",
        claim="Pruning 30 % and rounding to 6 bits, repaired at once without data, is 20.54 points above the best before (ResNet-34 on "
        "ImageNet; arXiv 2308.07209)",
        setting=f"glyphs of 32x32, % right, {' and '.join(scale.kinds)} of width {2 * scale.width} trained for {scale.epochs} epochs; half the "
        f"width: {scale.width}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(rows)),
        checks=checks,
        seeds=budget.seeds,
        extra={f"{kind}, seed {seed}": _plain(one) for (kind, seed), one in figures.items()},
    )


def measured(bed: GlyphNets, kind: str, scale: GlyphScale) -> NetFigures:
    """One net of one seed by every arm."""
    net, narrow, test = bed.net(kind), bed.net(kind, wide=False), bed.data.test
    some = bed.some(scale.pictures)
    grid = [(ratio, bits) for ratio in RATIOS for bits in scale.bits]
    cells = {arm: grid if arm in GRID_ARMS else SOME for arm in (*GRID_ARMS, *SOME_ARMS)}
    arms = {
        arm: {cell: share_right(compressed(net, arm, cell, some), test) for cell in those}
        for arm, those in cells.items()
    }
    few = [cell for cell in SHOWN if cell[1] == 6]
    by_narrow = {
        arm: {cell: share_right(compressed(narrow, arm, cell, some), test) for cell in few} for arm in (PLAIN, OWN)
    }
    return NetFigures(
        share_right(net, test), arms, by_narrow, share_right(narrow, test), *planted(net, test.pixels[:100])
    )


def compressed(net: nn.Module, arm: str, cell: Cell, pixels: Tensor) -> nn.Module:
    """A compressed copy of a net, by one arm at one point of the grid; `pixels` are for the arms that look at data."""
    method = UDFC(prune_ratio=cell[0], bits=cell[1], joint=arm != APART)
    combiners: dict[str, Combiner] = {
        PLAIN: lambda damage: torch.zeros_like(damage.selection),
        NORMS: lambda damage: torch.zeros_like(damage.selection),
        MERGING: ChannelMerging(),
        EXCHANGED: ExchangedChannels(RidgeCombination(method.alpha1, method.alpha2)),
        DATA: LeastSquaresOnData(pixels),
    }
    smaller, _ = method.apply(net, SHAPE, combine=combiners.get(arm))
    return reestimate_norms(smaller, pixels) if arm == NORMS else smaller


@torch.no_grad()
def planted(net: nn.Module, pixels: Tensor) -> tuple[float, float]:
    """How far the answers of a net with planted copies move without them: repaired, and not, as a part of their size."""
    twice = with_copies(net)
    before = twice(pixels)

    def moved(**settings: Any) -> float:
        smaller, _ = UDFC(prune_ratio=0.5, bits=None, **settings).apply(twice, SHAPE)
        return float((smaller(pixels) - before).norm() / before.norm())

    return moved(alpha2=1e-9), moved(reconstruct=False)


def two_errors(values: Sequence[float]) -> Interval:
    """Two standard errors around a mean."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values) - 2 * error, fmean(values) + 2 * error


def checks_of(figures: Sequence[NetFigures]) -> tuple[Check, ...]:
    """The card's conditions; one figure a net and seed."""

    def mean(one: NetFigures, arm: str, cells: Iterable[Cell]) -> float:
        return fmean(one.arms[arm][cell] for cell in cells)

    bits = sorted({bits for _, bits in figures[0].arms[PLAIN]}, key=str)
    high = [(ratio, b) for ratio in RATIOS[1:] for b in bits]

    def ahead(arm: str, other: str, cells: Sequence[Cell] = high) -> list[float]:
        return [mean(one, arm, cells) - mean(one, other, cells) for one in figures]

    def compare(kind: Any, text: str, values: Sequence[float], sense: Any = ">", threshold: float = 0.0) -> Check:
        return Check(kind, text, fmean(values), sense, threshold, two_errors(values))

    def peak(one: NetFigures) -> float:
        rows = {ratio: [(ratio, b) for b in bits] for ratio in RATIOS}
        gap = {ratio: mean(one, OWN, cells) - mean(one, PLAIN, cells) for ratio, cells in rows.items()}
        return fmean(gap[r] for r in MEDIUM) - max(gap[r] for r in RATIOS if r not in MEDIUM)

    best = [min(pair) for pair in zip(ahead(OWN, PLAIN), ahead(OWN, MERGING), strict=True)]
    lost = [one.whole - one.arms[PLAIN][0.5, 6] for one in figures]
    wrong = f"the same combinations at wrong channels gain at most {GAIN:g} point over plain"
    return (
        Check.by_seed(
            "set-up", f"whole nets name at least {LEARNT:g} % right", [one.whole for one in figures], ">=", LEARNT
        ),
        compare(
            "set-up", f"half the channels gone and 6 bits cost at least {LOSS:g} points if plain", lost, ">=", LOSS
        ),
        Check.by_seed("mechanism", "planted copies come back", [one.repaired for one in figures], "<", WHOLE),
        Check.by_seed(
            "mechanism", "without repair their loss moves answers", [one.pruned for one in figures], ">", FAR
        ),
        compare("claim", "from 30 % on, UDFC is ahead of the better of plain and merging", best),
        compare("claim", "from 30 % on, merging is ahead of plain", ahead(MERGING, PLAIN)),
        compare("claim", "both at once are no worse than one after the other", ahead(OWN, APART), ">="),
        compare("claim", "the lead over plain is largest at medium compression", [peak(one) for one in figures]),
        compare("control", wrong, ahead(EXCHANGED, PLAIN, SOME), "<=", GAIN),
    )


def rows_of(figures: Mapping[tuple[str, int], NetFigures]) -> dict[str, tuple[str, ...]]:
    """Each arm's % right on the cells shown, mean of both nets, over seeds."""
    seeds = sorted({seed for _, seed in figures})

    def row(arm: str, narrow: bool = False) -> tuple[str, ...]:
        return tuple(_cell(figures, seeds, arm, cell, narrow) for cell in SHOWN)

    rows = {arm: row(arm) for arm in (NOTHING, *GRID_ARMS, *SOME_ARMS)}
    return rows | {NARROW + arm: row(arm, narrow=True) for arm in (NOTHING, PLAIN, OWN)}


def _cell(
    figures: Mapping[tuple[str, int], NetFigures], seeds: Sequence[int], arm: str, cell: Cell, narrow: bool
) -> str:
    """One arm on one cell; a dash where it was not measured."""

    def value(one: NetFigures) -> float | None:
        if arm == NOTHING:
            return one.narrow_whole if narrow else one.whole
        return (one.narrow if narrow else one.arms)[arm].get(cell)

    values = [[value(one) for (_, of), one in figures.items() if of == seed] for seed in seeds]
    known = [[one for one in pair if one is not None] for pair in values]
    return spread([fmean(pair) for pair in known]) if all(known) else "–"


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """% right at a half of the channels and 6 bits of UDFC, its rivals and the whole nets."""
    own, merging, plain, whole = (figure(rows, name, 1) for name in (OWN, MERGING, PLAIN, NOTHING))
    return f"50 % pruned, 6 bits: {own} % right (merging {merging}, plain {plain}, whole {whole})"


def _reason(rows: Mapping[str, Sequence[Any]]) -> str:
    return "; ".join(
        f"{column}: {', '.join(f'{figure(rows, name, at)} {name}' for name in rows if figure(rows, name, at) != '–')}"
        for at, column in enumerate(COLUMNS)
        if SHOWN[at] in ((0.3, 6), (0.5, 6))
    )


def _plain(one: NetFigures) -> dict[str, Any]:
    """For the stored record."""

    def grid(cells: Cells) -> dict[str, float]:
        return {f"{ratio:g} {bits or 'all'}": round(value, 2) for (ratio, bits), value in cells.items()}

    return {
        "whole": round(one.whole, 2),
        "whole, half the width": round(one.narrow_whole, 2),
        "planted copies, repaired": one.repaired,
        "planted copies, plain": one.pruned,
        **{arm: grid(cells) for arm, cells in one.arms.items()},
        **{NARROW + arm: grid(cells) for arm, cells in one.narrow.items()},
    }
