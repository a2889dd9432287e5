"""Do a few vectors stand in for a context? A small frozen decoder goes on with texts whose first half an encoder has compressed.

Claim looked at (arXiv 2510.20535): an encoder that reads both ways and pools its last layer's queries gives a frozen decoder vectors
that serve it nearly as the text would. Beside it stand no context, the whole one, as many tokens of it, means of token embeddings, and
an encoder that is causal or pools keys and values too. Controls: another text's vectors, and an untrained encoder's. That vectors
carry what was compressed is held on planted texts, whose second half nothing but the first half tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..beds.budget import Budget
from ..beds.compressed_contexts import CompressedContexts, Pieces
from ..beds.package_texts import SCALES as TEXT_SCALES
from ..beds.package_texts import PackageScale, PackageTexts
from ..compress.contexts.arc_encoder import ArcEncoder
from ..compress.contexts.inputs import MixedRow
from ..compress.contexts.pipeline import padded
from ..compress.contexts.pooling import ContextGroups, group_sizes
from ..compress.contexts.settings import Pooled
from ..compress.contexts.training import ArcTraining, train_arc
from ..models import TrainRecipe, trained
from ..models.recipe import Start
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

ROOM = 0.1  # nats a token, at least, by which the whole context helps the decoder
CARRIED = 0.5  # nats a token, at least, by which planted texts are likelier after their own vectors
COLUMNS = ("loss, nats a token", "perplexity", "written out right, %")
NOTHING, WHOLE = "no context", "the whole context"
LAST, CHOSEN, MEANS = "its last tokens, as many", "its tokens drawn at random, as many", "means of 4 token embeddings"
OWN, HALF_WAY, EIGHT = "ARC, factor 4", "ARC, factor 4, half the steps", "ARC, factor 8, half the steps"
CAUSAL, ALL = "causal, half the steps", "keys and values pooled too, half the steps"
OTHER, UNTRAINED = "ARC, factor 4, of another text", "ARC, factor 4, untrained"
ABLATIONS = (CAUSAL, ALL)  # of the first seed alone: they decide nothing
BATCH = 8
LADDER = (
    (3e-4, 1.5e-3),
    (1e-3, 5e-3),
    (3e-3, 1e-2),
)  # rates of encoder and projector, the chosen pair first; see `choose`
CHOOSING = 97  # the seed that rates are chosen by, on validation texts


@dataclass(frozen=True)
class ContextScale:
    """How large the experiment is.

    Args:
        texts: of `package_texts`.
        half: tokens that are compressed, and of the text after them.
        counted: of these, the first ones, whose loss counts.
        pieces: test texts of a seed.
        steps: of the encoder at factor 4; the shorter ones have half of them.
        planted_steps, planted_pieces: of the encoder of planted texts, and texts it is trained on.
    """

    texts: PackageScale
    half: int
    counted: int
    pieces: int
    steps: int
    planted_steps: int
    planted_pieces: int


SCALES = {
    "tiny": ContextScale(TEXT_SCALES["tiny"], 8, 4, 12, 2, 2, 32),
    "small": ContextScale(PackageScale(train=1_500_000, vocabulary=2048, epochs=2), 64, 16, 160, 480, 300, 2000),
}
PLANTED_HALF, PLANTED_WORDS = 4, 16  # tokens of a planted context, of so many that there are


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder is.

    Args:
        factor: tokens a vector stands for.
        causal, pooled: see `ArcSettings`.
    """

    factor: int = 4
    causal: bool = False
    pooled: Pooled = "queries"


FOUR = EncoderShape()
SHORTER = {HALF_WAY: FOUR, EIGHT: EncoderShape(8), CAUSAL: EncoderShape(causal=True), ALL: EncoderShape(pooled="all")}


@dataclass(frozen=True)
class ContextFigures:
    """One seed.

    Args:
        loss: {arm: mean loss, in nats a token}.
        right: {arm: % of the context's tokens that are written out right}; encoders alone.
        carried: by how many nats a token planted texts are likelier after their own vectors than after another's.
    """

    loss: Mapping[str, float]
    right: Mapping[str, float]
    carried: float


def run(budget: Budget) -> Claim:
    """Trains encoders and measures every arm, once a seed."""
    scale = SCALES.get(budget.size, SCALES["small"])
    bed = made(scale)
    seeds = [measured(bed, scale, seed, ablated=seed == budget.seeds[0]) for seed in budget.seeds]
    checks = checks_of(seeds)
    rows = rows_of(seeds)
    extra = {
        "carried by planted vectors, nats": [one.carried for one in seeds],
        "loss": {arm: [one.loss[arm] for one in seeds if arm in one.loss] for arm in rows},
    }
    return Claim(
        slug="arc-encoder",
        claim="a Llama-3.2-3B encoder puts texts into 4 or 8 times fewer vectors for a frozen Llama-3.1-8B or Mistral-7B; best of the "
        "compressors for frozen decoders on several benchmarks (arXiv 2510.20535; its tables were not read)",
        setting=f"texts of installed packages, {scale.half} tokens compressed and the next {scale.counted} predicted, {scale.pieces} test texts a seed; "
        f"decoder of {bed.texts.scale.layers} layers and width {bed.texts.scale.width}, encoder a copy without the last layer, "
        f"{scale.steps} steps; ablations of one seed; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, f"loss {', '.join(f'{figure(rows, arm, 0)} {arm}' for arm in rows)}"),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def made(scale: ContextScale) -> CompressedContexts:
    """The bed; its decoder is of seed 0 for all seeds, which encoders and test texts are drawn by."""
    return CompressedContexts(PackageTexts(scale.texts), scale.half, scale.counted)


def measured(bed: CompressedContexts, scale: ContextScale, seed: int, *, ablated: bool = True) -> ContextFigures:
    """Every arm on one seed."""
    pieces = drawn(bed.pieces("test"), scale.pieces, seed)
    loss = plain(bed, pieces, seed)
    train, shorter = bed.pieces("train"), max(1, scale.steps // 2)
    encoders = {OWN: fitted(bed, FOUR, training(bed, scale.steps, seed), train), UNTRAINED: blank(bed, FOUR, seed)}
    for arm, shape in SHORTER.items():
        if ablated or arm not in ABLATIONS:
            encoders[arm] = fitted(bed, shape, training(bed, shorter, seed), train)
    vectors = {arm: compressed(bed, encoder, pieces) for arm, encoder in encoders.items()}
    vectors[OTHER] = turned(vectors[OWN])
    loss |= {arm: float(np.mean(bed.after_vectors(pieces, each))) for arm, each in vectors.items()}
    right = {arm: written_out(bed, encoder, pieces) for arm, encoder in encoders.items()}
    return ContextFigures(loss, right, carried(bed, scale, seed))


def training(bed: CompressedContexts, steps: int, seed: int, rates: tuple[float, float] = LADDER[0]) -> ArcTraining:
    """How an encoder is trained here: the paper's way, at rates for a small one."""
    lr, projector_lr = rates
    return ArcTraining(
        steps=steps,
        batch_size=BATCH,
        seq_len=bed.half,
        lr=lr,
        projector_lr=projector_lr,
        warmup=steps // 20,
        seed=seed,
    )


def blank(bed: CompressedContexts, shape: EncoderShape, seed: int) -> ArcEncoder:
    """An untrained encoder, a copy of the decoder without its last layer; projectors by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ArcEncoder.from_causal_lm(
            bed.decoder,
            out_dims=[bed.decoder.config.hidden_size],
            truncate=1,
            pooling_factor=shape.factor,
            causal=shape.causal,
            pooled=shape.pooled,
        ).eval()


def fitted(bed: CompressedContexts, shape: EncoderShape, how: ArcTraining, pieces: Pieces) -> ArcEncoder:
    """An encoder trained on pieces; trained if it isn't there. The decoder is in its hash by its weights."""

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        encoder: Any = model
        train_arc(encoder, [bed.decoder], [data[at] for at in indices], how, encoder_tokenizer=bed.texts.tokenizer)

    settings = {"version": 1, "decoder": Start(bed.texts.base).origin, "shape": asdict(shape), "how": asdict(how)}
    recipe = TrainRecipe(lambda seed: blank(bed, shape, seed), fit, name="arc encoder", settings=settings)
    return ArcEncoder.from_pretrained(trained(recipe, pieces, range(len(pieces)), how.seed))


@torch.no_grad()
def compressed(
    bed: CompressedContexts, encoder: ArcEncoder, pieces: Sequence[Sequence[int]], **purpose: Any
) -> list[Tensor]:
    """The vectors of each piece's context, as the decoder takes them."""
    vectors: list[Tensor] = []
    for start in range(0, len(pieces), 40):
        ids = [bed.context(piece) for piece in pieces[start : start + 40]]
        vectors += encoder(*padded(ids, torch.device("cpu")), **purpose)
    return vectors


def written_out(bed: CompressedContexts, encoder: ArcEncoder, pieces: Sequence[Sequence[int]]) -> float:
    """% of a context's tokens that are the decoder's likeliest one, after the context's vectors and the tokens before."""
    vectors = compressed(bed, encoder, pieces, purpose="reconstruction")
    return bed.right([MixedRow(bed.context(piece), [one], [0]) for piece, one in zip(pieces, vectors, strict=True)])


@torch.no_grad()
def averaged(bed: CompressedContexts, pieces: Sequence[Sequence[int]], factor: int) -> list[Tensor]:
    """Means of the decoder's own token embeddings, which nothing is trained for."""
    ids, texts = padded([bed.context(piece) for piece in pieces], torch.device("cpu"))
    groups = ContextGroups.of(texts, factor)
    return groups.split(groups.mean(bed.embeddings(ids)))


def plain(bed: CompressedContexts, pieces: Sequence[Sequence[int]], seed: int) -> dict[str, float]:
    """The arms that nothing is trained for; those with part of a context have as many inputs as ARC at factor 4."""
    slots = len(group_sizes(bed.half, FOUR.factor)) + 1
    generator = np.random.default_rng(seed)
    places: dict[str, list[Any]] = {
        NOTHING: [()] * len(pieces),
        WHOLE: [range(bed.half)] * len(pieces),
        LAST: [range(bed.half - slots, bed.half)] * len(pieces),
        CHOSEN: [sorted(generator.permutation(bed.half)[:slots].tolist()) for _ in pieces],
    }
    losses = {arm: bed.after_tokens(pieces, kept) for arm, kept in places.items()}
    losses[MEANS] = bed.after_vectors(pieces, averaged(bed, pieces, FOUR.factor))
    return {arm: float(np.mean(each)) for arm, each in losses.items()}


def drawn(pieces: Sequence[list[int]], count: int, seed: int) -> list[list[int]]:
    """Test texts of a seed, in an order in which neighbours aren't of one document."""
    order = np.random.default_rng(seed).permutation(len(pieces))
    return [pieces[at] for at in order[:count]]


def turned(vectors: Sequence[Any]) -> list[Any]:
    """Each text's vectors at the next text."""
    return [*vectors[1:], vectors[0]]


def carried(bed: CompressedContexts, scale: ContextScale, seed: int) -> float:
    """By how much planted texts are likelier after their own vectors than after another's, in nats a token.

    Contexts are random tokens, and the text after them is a full stop and the same tokens again.
    """
    planted = CompressedContexts(bed.texts, PLANTED_HALF)
    how = replace(training(planted, scale.planted_steps, seed), continuation=1.0)
    encoder = fitted(planted, EncoderShape(2), how, planted_pieces(scale.planted_pieces, 2 * seed))
    pieces = planted_pieces(200, 2 * seed + 1)
    vectors = compressed(planted, encoder, pieces)
    own, other = (np.mean(planted.after_vectors(pieces, each)) for each in (vectors, turned(vectors)))
    return float(other - own)


def planted_pieces(count: int, seed: int) -> Pieces:
    """Texts whose second half is the first one again."""
    first = 20  # below are special tokens and single signs of every tokenizer here
    drawn = np.random.default_rng(seed).integers(first, first + PLANTED_WORDS, (count, PLANTED_HALF)).tolist()
    return Pieces([*row, first - 1, *row] for row in drawn)


def choose() -> dict[tuple[float, float], float]:
    """Validation loss of each pair of rates, by a seed that isn't reported and a quarter of the steps."""
    scale = SCALES["small"]
    bed = made(scale)
    pieces, losses = drawn(bed.pieces("validation"), scale.pieces, CHOOSING), {}
    for rates in LADDER:
        how = training(bed, scale.steps // 4, CHOOSING, rates)
        vectors = compressed(bed, fitted(bed, FOUR, how, bed.pieces("train")), pieces)
        losses[rates] = float(np.mean(bed.after_vectors(pieces, vectors)))
    return losses


def rows_of(seeds: Sequence[ContextFigures]) -> dict[str, tuple[str, ...]]:
    """Every arm that the first seed has."""
    rows: dict[str, tuple[str, ...]] = {}
    for arm in seeds[0].loss:
        losses = [one.loss[arm] for one in seeds if arm in one.loss]
        right = [one.right[arm] for one in seeds if arm in one.right]
        rows[arm] = (spread(losses, 4), spread(np.exp(losses).tolist()), spread(right) if right else "")
    return rows


def checks_of(seeds: Sequence[ContextFigures]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def above(worse: str, better: str) -> list[float]:
        return [one.loss[worse] - one.loss[better] for one in seeds]

    def rises(later: str, earlier: str) -> list[float]:
        return [one.right[later] - one.right[earlier] for one in seeds]

    growth = [min(pair) for pair in zip(rises(HALF_WAY, UNTRAINED), rises(OWN, HALF_WAY), strict=True)]
    return (
        Check.by_seed(
            "set-up", f"the whole context helps the decoder by {ROOM:g} nats", above(NOTHING, WHOLE), ">=", ROOM
        ),
        Check.by_seed(
            "mechanism",
            "planted texts are likelier after their own vectors than after another's",
            [one.carried for one in seeds],
            ">=",
            CARRIED,
        ),
        Check.by_seed("claim", "vectors lower the loss below that without context", above(NOTHING, OWN), ">", 0),
        Check.by_seed("claim", "they lie above the whole context", above(OWN, WHOLE), ">", 0),
        Check.by_seed("claim", "they lie below means of token embeddings", above(MEANS, OWN), ">", 0),
        Check.by_seed("claim", "they lie not above as many last tokens", above(LAST, OWN), ">=", 0),
        Check.by_seed("claim", "more is written out right with more steps", growth, ">", 0),
        Check.by_seed("claim", "factor 4 lies below factor 8 at equal steps", above(EIGHT, HALF_WAY), ">", 0),
        Check.by_seed("control", "another text's vectors do worse", above(OTHER, OWN), ">", 0),
        Check.by_seed("control", "an untrained encoder's vectors do worse", above(UNTRAINED, OWN), ">", 0),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """The loss after vectors, without and with the context, and after as many tokens."""
    own, nothing, whole, last = (figure(rows, arm, 0) for arm in (OWN, NOTHING, WHOLE, LAST))
    return f"loss {own} with 4x fewer vectors (none {nothing}, whole {whole}, as many tokens {last})"
