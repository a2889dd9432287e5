"""Which numbers of keys and values can go: the smallest of each token, whole channels, or any? A real small model, in the packed form.

Claim looked at (arXiv 2505.22913): zeroing 70 % of every key's and value's numbers, the smallest of each token, loses no accuracy and
leaves 45 % of the bytes, where dropping whole channels loses much. SmolLM2-135M-Instruct reads pages of the Python manual and lists of
names and numbers; how it goes on is scored, and the numbers it names. At the same part of zeros stand whole channels (ThinK), values by
channel, recent queries and attention as weights, and random numbers; at the same bytes, few tokens, whole. No setting is chosen here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..beds.budget import Budget
from ..beds.long_texts import needles, passages
from ..beds.read_once import FewTokens, ReadPrompt, filled, following, read_once
from ..cache.base import CompressedCache, Compression
from ..cache.engine.bitmap import BitmapTensor, pack_bitmap
from ..cache.engine.pruning import Recent, prune_keys, prune_per_token, prune_values
from ..cache.mustafar import Mustafar, SparseKVLayer
from ..models import load
from ..scoring.intervals import mean_interval, spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("loss behind a page, nats", "nats above the full cache", "numbers named, %", "bytes, % of full")
FULL, SIMULATED = "full cache", "Mustafar, 70 % zeros, dense with zeros"
SAFE, HARD = 50, 70  # % of zeros
ROOM = 0.1  # nats that few tokens must cost at the bytes of 70 %
UNHARMED = 0.05  # nats that count as no loss
NAMED = 10.0  # points fewer of the numbers named that count as no loss
HALF = 0.5  # of the bytes, at 70 % and 16 bits
NEAR, FAR = (
    0.2,
    0.5,
)  # of attention's output on planted keys and values: at most with the right zeros, at least with others
SAME = 1e-3  # nats between packed and dense with zeros, at most
TAIL = 44  # tokens of a list that are read from the compressed cache: about the lines that are said again


@dataclass(frozen=True)
class PruningScale:
    """How large the experiment is.

    Args:
        rows: pages and lists a seed.
        prompt: tokens of a page that are compressed; scored: that follow.
        listed: tokens of a list, at most.
        block: tokens that are pruned at once.
        steps: tokens of which the seconds are measured.
    """

    rows: int
    prompt: int
    scored: int
    listed: int
    block: int
    steps: int


SCALES = {"tiny": PruningScale(1, 110, 4, 250, 64, 1), "small": PruningScale(5, 576, 48, 620, 256, 4)}


@dataclass
class PruningFigures:
    """One seed.

    Args:
        losses: {arm: [rows] mean loss of a token behind a page}.
        named: {arm: [rows] bool, whether the list's number is named}.
        share: {arm: bytes behind the pages, by those of the full cache}.
        halves: bytes of what is pruned at 70 % in 16 bits, by dense ones.
        seconds: {how keys are kept: seconds a token}.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    named: dict[str, Tensor] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    halves: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


def own(part: int) -> str:
    """Mustafar's arm with so many % of zeros."""
    return f"Mustafar, {part} % zeros"


def structured(part: int) -> str:
    """The arm of whole channels."""
    return f"whole channels, {part} %"


def random(part: int) -> str:
    """The arm of random numbers."""
    return f"random numbers, {part} %"


def recent(part: int) -> str:
    """The arm of first and last tokens at the bytes of so many % of zeros."""
    return f"first and last tokens, bytes of {part} %"


def attended(part: int) -> str:
    """The arm of tokens that the last ones attend to."""
    return f"tokens attended to, bytes of {part} %"


def arms(block: int) -> dict[str, Compression]:
    """What is held against the full cache, but for the arms that follow another's bytes."""
    made: dict[str, Compression] = {FULL: Mustafar(k_sparsity=0, v_sparsity=0, packed=False, block=block)}
    for part in (SAFE, HARD):
        plain = Mustafar(k_sparsity=part / 100, v_sparsity=part / 100, block=block)
        made[own(part)] = plain
        made[f"values by channel, {part} %"] = replace(plain, values="channel")
        made[structured(part)] = replace(plain, keys="structured", values="structured")
        made[random(part)] = replace(plain, keys="random", values="random")
    made[f"keys by recent queries, {HARD} %"] = replace(plain, keys="output")
    made[f"values by channel and attention, {HARD} %"] = replace(plain, values="output")
    made[SIMULATED] = replace(plain, packed=False)
    return made


def run(budget: Budget) -> Claim:
    """Reads every prompt once, compresses it in every way and goes on, once a seed."""
    scale = SCALES.get(budget.size, SCALES["small"])
    loaded = load("smollm2-135m")
    loaded.model.eval()
    figures = [measured(loaded.model, loaded.tokenizer, seed, scale) for seed in budget.seeds]
    checks = checks_of(figures, planted(), gaussian_share())
    rows = rows_of(figures)
    seconds = {name: [one.seconds[name] for one in figures] for name in figures[0].seconds}
    extra = {
        "seconds a token": seconds,
        "bytes of what is pruned, 16 bits": [one.halves for one in figures],
        "error on planted keys": planted(),
    }
    return Claim(
        slug="mustafar",
        claim="70 % of keys' and values' numbers zeroed lose no accuracy on LongBench (Llama-3-8B-Instruct and others), leave 45 % of the bytes and "
        "give up to 2.23 times the tokens a second (arXiv 2505.22913)",
        setting=f"SmolLM2-135M-Instruct in 32 bits; {scale.rows} pages of {scale.prompt} tokens of the Python manual and {scale.scored} behind, and "
        f"{scale.rows} lists of {scale.listed}; 32 last tokens and less than a block of {scale.block} whole; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(
            checks,
            f"a token takes {spread(seconds['packed'])} s packed and {spread(seconds['full'])} s with a full cache (no claim: it is unpacked in torch)",
        ),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, scale: PruningScale
) -> PruningFigures:
    """Every arm on one seed's pages and lists."""
    pages = passages(tokenizer, scale.rows, scale.prompt + scale.scored + 1, seed=seed)
    page, rest = read_once(model, pages[:, : scale.prompt]), pages[:, scale.prompt :]
    asked = needles(tokenizer, scale.rows, scale.listed, seed)
    listed = read_once(model, asked.input_ids[:, :-TAIL], asked.attention_mask[:, :-TAIL])
    tail = torch.cat([asked.input_ids[:, -TAIL:], asked.answers], 1)
    figures, sizes = PruningFigures(), {}

    def measure(name: str, compression: Compression) -> CompressedCache:
        cache = filled(page, compression)
        sizes[name] = cache.nbytes()
        figures.share[name] = sizes[name] / sizes[FULL]
        scores = following(page, cache, rest[:, :-1]).log_softmax(-1)
        figures.losses[name] = -scores.gather(2, rest[:, 1:, None])[..., 0].mean(1)
        named = following(listed, filled(listed, compression), tail[:, :-1]).argmax(-1)
        figures.named[name] = (named[:, TAIL - 1 :] == asked.answers).all(1)
        return cache

    for name, compression in arms(scale.block).items():
        cache = measure(name, compression)
        if name == own(HARD):
            figures.halves = share_in_halves(cache)
    for part in (SAFE, HARD):
        tokens = round(scale.prompt * figures.share[own(part)])
        measure(recent(part), FewTokens(tokens))
        measure(attended(part), FewTokens(tokens, by="attention"))
    kinds = {"full": FULL, "packed": own(HARD), "dense with zeros": SIMULATED}
    made = arms(scale.block)
    figures.seconds = {kind: seconds_of(page, made[name], rest, scale.steps) for kind, name in kinds.items()}
    return figures


def share_in_halves(cache: CompressedCache) -> float:
    """Bytes of a cache's packed numbers in 16 bits, by dense ones."""
    packed = whole = 0
    for layer in cache.layers:
        assert isinstance(layer, SparseKVLayer)
        for one in (layer.sparse_keys, layer.sparse_values):
            assert isinstance(one, BitmapTensor)
            dense = one.to_dense().half()
            packed, whole = packed + pack_bitmap(dense, one.axis).nbytes(), whole + 2 * dense.numel()
    return packed / whole


def seconds_of(page: ReadPrompt, compression: Compression, ids: Tensor, steps: int) -> float:
    """Seconds of one more token of every row, the least of several."""
    cache = filled(page, compression)
    seconds = []
    for at in range(steps):
        start = time.perf_counter()
        page.model(ids[:, at : at + 1], past_key_values=cache)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def gaussian_share() -> float:
    """Bytes of Gaussian keys and values of 128 numbers at 70 % in 16 bits, by dense ones; the larger of both."""
    x = torch.randn(1, 2, 1024, 128, generator=torch.Generator().manual_seed(0)).half()
    pruned = prune_per_token(x, 0.7)
    return max(pack_bitmap(pruned, axis).nbytes() for axis in ("tokens", "channels")) / (2 * x.numel())


def planted() -> dict[str, float]:
    """{how 70 % are zeroed: error of attention's output, by its size}, where three numbers in ten are large, at places of each token's own."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(2, 1, 4, 512, 64, generator=generator).argsort(-1)
    signs = torch.rand(2, 1, 4, 512, 64, generator=generator).round() * 2 - 1
    keys, values = torch.where(ranks < 20, signs, 0.05 * signs)
    queries = torch.randn(1, 4, 32, 64, generator=generator)

    def attended_to(k: Tensor, v: Tensor) -> Tensor:
        return (queries @ k.transpose(-1, -2) / 8).softmax(-1) @ v

    truth, seen = attended_to(keys, values), Recent(queries, None)
    errors = {}
    for rule in ("token", "structured", "random"):
        zeroed = prune_keys(keys, rule, 0.7, False, seen, 0), prune_values(values, rule, 0.7, False, seen, 32, 1)
        errors[rule] = float((attended_to(*zeroed) - truth).norm() / truth.norm())
    return errors


def checks_of(figures: Sequence[PruningFigures], errors: Mapping[str, float], gaussian: float) -> tuple[Check, ...]:
    """The card's conditions: row by row where arms are compared, by seed where a figure is held against a bound."""

    def losses(arm: str) -> list[float]:
        values: list[float] = torch.cat([one.losses[arm] for one in figures]).tolist()
        return values

    def above(arm: str) -> list[float]:
        return [float((one.losses[arm] - one.losses[FULL]).mean()) for one in figures]

    def less(than: str, part: int, text: str, kind: Any) -> Check:
        return Check.paired(kind, text, losses(than), losses(own(part)))

    apart = [float((one.losses[own(HARD)] - one.losses[SIMULATED]).abs().max()) for one in figures]
    fewer = 100 * torch.cat([one.named[FULL].float() - one.named[own(HARD)].float() for one in figures])
    unnamed = Check(
        "claim", f"at {HARD} % at most {NAMED:g} points fewer numbers are named", float(fewer.mean()), "<=", NAMED, mean_interval(fewer.tolist())
    )  # fmt: skip
    rise = f"the loss rises by at most {UNHARMED} nats"
    return (
        Check.by_seed("set-up", f"few tokens cost {ROOM} nats at the bytes of {HARD} %", above(recent(HARD)), ">=", ROOM),
        Check("mechanism", "zeros at each token's small numbers leave attention to planted keys", errors["token"], "<=", NEAR),
        Check("mechanism", "other zeros do not", min(errors["structured"], errors["random"]), ">=", FAR),
        Check.by_seed("mechanism", "packed and dense with zeros give the same loss", apart, "<=", SAME),
        Check("mechanism", "Gaussian numbers take at most half the bytes", gaussian, "<=", HALF),
        less(structured(HARD), HARD, f"whole channels cost more at {HARD} %", "claim"),
        less(structured(SAFE), SAFE, f"whole channels cost more at {SAFE} %", "claim"),
        Check.by_seed("claim", f"at {SAFE} % {rise}", above(own(SAFE)), "<=", UNHARMED),
        Check.by_seed("claim", f"at {HARD} % {rise}", above(own(HARD)), "<=", UNHARMED),
        unnamed,
        Check.by_seed("claim", f"at {HARD} % and 16 bits half the bytes are left", [one.halves for one in figures], "<=", HALF),
        less(random(HARD), HARD, f"random numbers cost more at {HARD} %", "control"),
        less(random(SAFE), SAFE, f"random numbers cost more at {SAFE} %", "control"),
    )  # fmt: skip


def rows_of(figures: Sequence[PruningFigures]) -> dict[str, tuple[str, ...]]:
    """The table: mean and deviation over the seeds."""
    return {
        arm: (
            spread([float(one.losses[arm].mean()) for one in figures]),
            spread([float((one.losses[arm] - one.losses[FULL]).mean()) for one in figures]),
            spread([100 * float(one.named[arm].float().mean()) for one in figures]),
            spread([100 * one.share[arm] for one in figures]),
        )
        for arm in figures[0].losses
    }


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What 70 % of zeros cost in each way, and the bytes that are left in 16 bits."""
    tokens, channels, chance = (figure(rows, name, 1) for name in (own(HARD), structured(HARD), random(HARD)))
    return f"70 % zeros cost {tokens} nats (whole channels {channels}, random {chance})"
