"""Token Recycling against greedy decoding and prompt lookup, with a fresh table per prompt and with one for all.

Claims looked at (arXiv 2408.08696): recycled candidates give well over one token a forward without any training, more
than copying from the prompt does where the answer is no copy, and a table kept from prompt to prompt gives more still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..beds.budget import Budget
from ..beds.texts import COLUMNS, Kind, TimedDecoding, decoded, encoded, prompts, target
from ..decode.base import Strategy
from ..decode.prompt_lookup import PromptLookup
from ..decode.token_recycling import RecyclingTable, TokenRecycling, TreeTemplate
from ..scoring.intervals import mean_interval
from .base import Claim, figure
from .checks import Check, reason_of

# prompts that ask for an explanation, prompts that ask for a copy, new tokens
SIZES = {"tiny": (2, 1, 16), "small": (14, 4, 96), "medium": (30, 10, 128), "full": (240, 80, 512)}
SMALL_TREE = 16


def run(budget: Budget) -> Claim:
    """Mean accepted tokens with whole trees on the same prompts in the same order; wall clock beside it."""
    free, copy, count = SIZES[budget.size]
    model, tokenizer = target(budget.size)
    seed = budget.seeds[0]
    counts: tuple[tuple[Kind, int], ...] = (("free", free), ("copy", copy))
    rows = {kind: encoded(tokenizer, prompts(1, kind, many, seed)) for kind, many in counts}
    width = model.config.vocab_size
    rows_of: dict[str, tuple[Any, ...]] = {}
    decodings: dict[str, dict[str, TimedDecoding]] = {}
    for name, strategy_of in contenders(width).items():
        decodings[name] = {
            kind: decoded(model, rows[kind], count, [strategy_of() for _ in rows[kind]]) for kind in rows
        }
        for kind, one in decodings[name].items():
            rows_of[f"{kind}: {name}"] = one.figures(decodings["greedy"][kind])
    hot, cold, lookup = (decodings[name]["free"] for name in ("recycling, hot", "recycling, cold", "prompt lookup"))
    checks = _checks(decodings)
    return Claim(
        slug="token-recycling",
        claim="2.03x greedy's speed and 2.70 tokens a forward on Spec-Bench, without training and with less than 2 MB of "
        "state (Vicuna-7B, fp16, A100, arXiv 2408.08696)",
        setting=f"{_name(budget.size)}, {free} prompts asking for an explanation and {copy} for a copy of docstrings, "
        f"{count} new tokens, greedy; whole trees unless said otherwise",
        columns=COLUMNS,
        rows=rows_of,
        headline=headline(rows_of, {}),
        reason=reason_of(
            checks,
            f"on free prompts {hot.rate:.2f} tokens a forward with a hot table, {cold.rate:.2f} with cold ones, "
            f"{lookup.rate:.2f} with prompt lookup",
        ),
        checks=checks,
        seeds=(seed,),
        extra={
            "table_bytes": RecyclingTable(width).nbytes(),
            "free": {name: each["free"].rate for name, each in decodings.items()},
        },
    )


def _checks(decodings: Mapping[str, Mapping[str, TimedDecoding]]) -> tuple[Check, ...]:
    """The paper's speed-up first; what is accepted is compared prompt by prompt."""
    greedy = decodings["greedy"]
    paying, hot, cold, lookup = (
        decodings[name]["free"]
        for name in ("recycling, hot, nodes that pay", "recycling, hot", "recycling, cold", "prompt lookup")
    )

    def faster(text: str, one: TimedDecoding) -> Check:
        speed, interval = one.speed(greedy["free"])
        return Check("claim", text, speed, ">", 1.0, interval)

    own = all(one.texts == greedy[kind].texts for each in decodings.values() for kind, one in each.items())
    low, high = mean_interval(cold.per_forward)
    lookup_text = "hot table accepts more than prompt lookup on free prompts"
    return (
        Check("mechanism", "every text is greedy's own", own),
        faster("with the nodes that pay it is faster than greedy decoding on free prompts", paying),
        faster("with whole trees it is faster than greedy decoding on free prompts", hot),
        Check.paired("claim", "hot table accepts more than cold ones", hot.per_forward, cold.per_forward),
        Check("claim", "cold tables give more than 1.5 tokens a forward", cold.rate, ">", 1.5, (low, high)),
        Check.paired("claim", lookup_text, hot.per_forward, lookup.per_forward),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Speed with the nodes that pay and with whole trees, and what the whole trees accept."""
    hot = "free: recycling, hot"
    paying, whole, rate = figure(rows, f"{hot}, nodes that pay", 3), figure(rows, hot, 3), figure(rows, hot, 0)
    lookup = figure(rows, "free: prompt lookup", 0)
    return f"{paying} greedy's speed (whole trees {whole} at {rate} tokens a forward; prompt lookup {lookup})"


def contenders(width: int) -> dict[str, Callable[[], Strategy | None]]:
    """What makes the strategy of every prompt, by name; greedy first, since the others are measured against it."""
    hot, small, paying = (RecyclingTable(width) for _ in range(3))
    template = TreeTemplate.of("2.2.2").best(SMALL_TREE)
    return {
        "greedy": lambda: None,
        "prompt lookup": lambda: PromptLookup(ngram=3, count=10, cost_model=False),
        "recycling, cold": lambda: TokenRecycling(cost_model=False),
        "recycling, hot": lambda: TokenRecycling(table=hot, cost_model=False),
        f"recycling, hot, {SMALL_TREE} nodes": lambda: TokenRecycling(table=small, template=template, cost_model=False),
        "recycling, hot, nodes that pay": lambda: TokenRecycling(table=paying),
    }


def _name(size: str) -> str:
    return {"tiny": "a random Llama", "full": "Vicuna-7B-v1.3, fp16"}.get(size, "SmolLM2-135M, fp32")
