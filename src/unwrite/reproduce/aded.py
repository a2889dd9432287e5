"""ADED against greedy decoding and prompt lookup: with and without learning, and its search against best-first expansion.

Claims looked at (arXiv 2407.12021): a trigram table that learns from the text being written drafts better than the same
table left alone, and the Monte-Carlo tree search makes good drafts of it. The control for the search is the plainest
thing the same table allows: the likeliest paths first, with as many nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..beds.budget import Budget
from ..beds.texts import COLUMNS, TimedDecoding, corpus, decoded, encoded, prompts, target
from ..decode.aded import ADED, SHARES, ADEDDrafter
from ..decode.base import Strategy
from ..decode.engine.tree import DraftTree
from ..decode.prompt_lookup import PromptLookup
from ..decode.trigrams import Successors, TrigramTable
from .base import Claim, figure
from .checks import Check, Kind, reason_of

if TYPE_CHECKING:
    from ..decode.engine.runtime import Runtime
    from ..decode.engine.sampling import Sampling

# prompts, new tokens, characters of the corpus
SIZES = {
    "tiny": (2, 16, 20_000),
    "small": (12, 96, 3_000_000),
    "medium": (30, 128, 10_000_000),
    "full": (240, 512, 10**9),
}


@dataclass(frozen=True)
class BestFirst(ADED):
    """The control: drafts the likeliest paths of the trigram table, most likely first.

    Args:
        matched: with as many nodes as the search would have drafted, or else with the whole budget.
    """

    matched: bool = False

    @property
    def key(self) -> str:
        return "BestFirst"

    def drafter(self, runtime: Runtime, sampling: Sampling) -> BestFirstDrafter:
        drafter = super().drafter(runtime, sampling)
        return BestFirstDrafter(self, drafter.table)


class BestFirstDrafter(ADEDDrafter):
    """Expands by path probability: the product of the shares of each pair's weight."""

    def _searched(self, first: int, second: int, budget: int) -> tuple[DraftTree, dict[int, Successors]]:
        own = self.settings
        assert isinstance(own, BestFirst)
        if own.matched:
            tree, read = super()._searched(first, second, budget)
            budget = tree.nodes - 1
        else:
            read = {}
        tokens, parents, kinds = [second], [-1], [0]
        queue: list[tuple[float, int, int, int, int, int, float]] = []

        def offer(node: int, depth: int, before: int, token: int, chance: float) -> None:
            key = self.table.key(before, token)
            successors = read[key] = self.table.successors(key)
            for follower in successors.tokens[:budget]:
                share = successors.share(follower)
                heapq.heappush(queue, (-chance * share, node, follower, depth + 1, token, len(queue), share))

        offer(0, 0, first, second, 1.0)
        while queue and len(tokens) <= budget:
            negative, parent, token, depth, before, _, share = heapq.heappop(queue)
            tokens.append(token)
            parents.append(parent)
            kinds.append(depth * SHARES + min(int(share * SHARES), SHARES - 1))
            if depth < own.depth:
                offer(len(tokens) - 1, depth, before, token, -negative)
        return DraftTree.of(tokens, parents, kinds), read


def run(budget: Budget) -> Claim:
    """Mean accepted tokens with whole drafts on the same prompts in the same order; wall clock beside it."""
    many, count, characters = SIZES[budget.size]
    model, tokenizer = target(budget.size)
    seed = budget.seeds[0]
    rows = encoded(tokenizer, prompts(1, "free", many, seed))
    fitted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in corpus(0, characters)]
    decodings: dict[str, TimedDecoding] = {}
    for name, strategy_of in contenders(fitted, model.config.vocab_size).items():
        decodings[name] = decoded(model, rows, count, [strategy_of() for _ in rows])
    rates = {name: one.rate for name, one in decodings.items()}
    checks = _checks(decodings)
    rows_of = {name: one.figures(decodings["greedy"]) for name, one in decodings.items()}
    search, control = rates["ADED, corpus"], rates["best-first, as many nodes"]
    return Claim(
        slug="aded",
        claim="1.91x greedy's speed on MT-Bench, up to 2.5x, from a trigram table that learns while decoding and drafts "
        "by Monte-Carlo tree search (Vicuna-7B, arXiv 2407.12021)",
        setting=f"{_name(budget.size)}, {many} prompts about docstrings, {count} new tokens, greedy; table fitted on "
        f"{sum(map(len, fitted))} tokens of other packages' docstrings; whole drafts unless said otherwise",
        columns=COLUMNS,
        rows=rows_of,
        headline=headline(rows_of, {}),
        reason=reason_of(
            checks,
            f"{search:.2f} tokens a forward learning, {rates['ADED, static']:.2f} with the table left alone, "
            f"{rates['prompt lookup']:.2f} with prompt lookup; best-first expansion of the same table with as many nodes "
            f"{control:.2f}: the tree search {'is better' if search > control else 'is no better'}",
        ),
        checks=checks,
        seeds=(seed,),
        extra={"tokens_per_forward": rates, "search_beats_best_first_at_equal_nodes": search > control},
    )


def _checks(decodings: Mapping[str, TimedDecoding]) -> tuple[Check, ...]:
    """The paper's speed-up first; drafts are compared by tokens a forward, prompt by prompt."""
    greedy, ours = decodings["greedy"], decodings["ADED, corpus"]

    def faster(text: str, name: str) -> Check:
        speed, interval = decodings[name].speed(greedy)
        return Check("claim", text, speed, ">", 1.0, interval)

    def more(kind: Kind, text: str, theirs: str) -> Check:
        return Check.paired(kind, text, ours.per_forward, decodings[theirs].per_forward)

    return (
        Check("mechanism", "every text is greedy's own", all(one.texts == greedy.texts for one in decodings.values())),
        faster("with the nodes that pay it is faster than greedy decoding", "ADED, corpus, nodes that pay"),
        faster("with whole drafts it is faster than greedy decoding", "ADED, corpus"),
        more("claim", "learning from the text accepts more than the table left alone", "ADED, static"),
        more("claim", "with a corpus it accepts more than prompt lookup", "prompt lookup"),
        more(
            "control",
            "best-first expansion of the same table with as many nodes accepts less",
            "best-first, as many nodes",
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Speed with the nodes that pay and with whole drafts, and what the whole drafts accept."""
    paying, whole, rate, lookup = (
        figure(rows, name, column)
        for name, column in (
            ("ADED, corpus, nodes that pay", 3),
            ("ADED, corpus", 3),
            ("ADED, corpus", 0),
            ("prompt lookup", 0),
        )
    )
    return f"{paying} greedy's speed (whole drafts {whole} at {rate} tokens a forward; prompt lookup {lookup})"


def contenders(fitted: list[list[int]], width: int) -> dict[str, Callable[[], Strategy | None]]:
    """What makes the strategy of every prompt, by name; greedy first, since the others are measured against it.

    Tables that learn are kept from prompt to prompt, every contender its own.
    """
    names = ("static", "corpus", "official", "matched", "whole", "paying")
    tables = {name: TrigramTable.fit(fitted, width) for name in names}
    empty = TrigramTable(width)
    return {
        "greedy": lambda: None,
        "prompt lookup": lambda: PromptLookup(ngram=3, count=10, cost_model=False),
        "ADED, static": lambda: ADED(table=tables["static"], update="none", cost_model=False),
        "ADED, empty at first": lambda: ADED(table=empty, cost_model=False),
        "ADED, corpus": lambda: ADED(table=tables["corpus"], cost_model=False),
        "ADED, corpus, official reward": lambda: ADED(table=tables["official"], reward="official", cost_model=False),
        "best-first, as many nodes": lambda: BestFirst(table=tables["matched"], matched=True, cost_model=False),
        "best-first, 64 nodes": lambda: BestFirst(table=tables["whole"], cost_model=False),
        "ADED, corpus, nodes that pay": lambda: ADED(table=tables["paying"]),
    }


def _name(size: str) -> str:
    return {"tiny": "a random Llama", "full": "Vicuna-7B-v1.3, fp16"}.get(size, "SmolLM2-135M, fp32")
