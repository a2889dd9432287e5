"""RSD at equal numbers of drafted nodes against a chain and against siblings drawn independently.

Claim looked at (arXiv 2402.14160): drawn without replacement, the same number of drafted tokens gives more accepted ones
than drawn with replacement (SpecInfer's and SpecTr's way), and a tree more than a single chain. Counted in tokens per
target forward (block efficiency); the memory-bound speed-up divides it by the cost of drafting, 1 + r L with r the ratio
of the two models' weights and L the draft's levels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..beds.budget import Budget
from ..decode.base import Strategy
from ..decode.draft_model import DraftModel
from ..decode.drafting import Drawn, Growing, draft_runtime, uniform
from ..decode.rsd import RSD, ConstantDrafter
from ..errors import MethodError
from ..scoring.intervals import Interval, draws, ends, spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..decode.engine.runtime import Runtime
    from ..decode.engine.sampling import Sampling
    from ..decode.engine.tree import DraftTree

    StrategyOf = Callable[[PreTrainedModel], Strategy]

# prompts at temperature 1, where the claim is judged, and at 0.3; new tokens
SIZES = {"tiny": (2, 0, 12), "small": (48, 16, 64), "medium": (50, 16, 64), "full": (80, 80, 128)}
NODES = (6, 14)
DRAFT_EPOCHS = 30
# N: shapes of constant branching, for RSD-C and for independent siblings alike; (width, depth) of RSD-S
BRANCHING = {6: ((2, 2), (2, 1, 1)), 14: ((2, 2, 2), (2, 1, 1, 1, 1, 1, 1))}
BEAMS = {6: ((3, 2), (2, 3)), 14: ((7, 2), (2, 7))}


@dataclass(frozen=True, kw_only=True)
class Independent(Strategy):
    """The control: a node's children are drawn from the draft independently, so that some are equal.

    Verified in rounds: a refused child leaves norm(max(q - p, 0)) of the target, while p stays (SpecInfer,
    arXiv 2305.09781). Equal in distribution to the target, as RSD is; sampling only.

    Args:
        branching: children of every node at each level.
    """

    draft_model: Any = None
    branching: tuple[int, ...] = (2, 2, 2)
    batched = False

    def drafter(self, runtime: Runtime, sampling: Sampling) -> IndependentDrafter:
        if not sampling.do_sample:
            raise MethodError("equal siblings make no sense without sampling. Use do_sample=True.")
        return IndependentDrafter(draft_runtime(self.draft_model, runtime, "Independent"), sampling, self.branching)


class IndependentDrafter(ConstantDrafter):
    """RSD-C's shape, its children with replacement."""

    def grow(self, growing: Growing, depth: int, shape: int) -> bool:
        frontier: list[int] = []
        for node in growing.frontier:
            p = growing.log_p[node].exp()
            tokens = torch.multinomial(p, self.branching[depth - 1], True, generator=self.sampling.generator)
            frontier += growing.add(node, tokens.tolist(), depth)
        growing.frontier = frontier
        return True

    def accept(self, tree: DraftTree, node: int, scores: Tensor, sampling: Sampling) -> tuple[int, int | None]:
        q = scores.softmax(-1).double()
        below = np.flatnonzero(tree.parents[0] == node).tolist()
        draft: Drawn = tree.draft
        for child in below:
            token, p = int(tree.tokens[0, child]), draft.log_p[node].double().exp()
            if float(uniform([1], sampling, q)) * float(p[token]) < float(q[token]):
                return token, child
            rest = (q - p).clamp_(min=0)
            total = float(rest.sum())
            q = rest / total if total > 0 else q
        return int(torch.multinomial(q, 1, generator=sampling.generator)), None


@dataclass
class DraftRates:
    """One contender at one temperature.

    Args:
        levels: of the draft, what the memory-bound speed-up counts.
        tokens, forwards: [seed][prompt], the prefill and its token left out.
        seconds: of whole calls; new: tokens they wrote.
    """

    levels: int
    tokens: list[list[int]] = field(default_factory=list)
    forwards: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    new: int = 0

    @property
    def by_seed(self) -> list[float]:
        """Tokens per target forward of every seed."""
        return [sum(tokens) / sum(forwards) for tokens, forwards in zip(self.tokens, self.forwards, strict=True)]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    def lead(self, other: DraftRates, resamples: int = 2000) -> tuple[float, Interval]:
        """This one's tokens per forward over the other's, with the 95 % interval of a paired bootstrap over prompts."""
        chosen = draws(len(self.tokens[0]), resamples)

        def rates(of: DraftRates, which: np.ndarray) -> np.ndarray:
            tokens, forwards = np.array(of.tokens).sum(0), np.array(of.forwards).sum(0)  # [prompts]
            per_forward: np.ndarray = tokens[which].sum(1) / forwards[which].sum(1)
            return per_forward

        everything = np.arange(len(self.tokens[0]))[None]
        value = float((rates(self, everything) / rates(other, everything))[0])
        return value, ends(rates(self, chosen) / rates(other, chosen))


@dataclass(frozen=True)
class DraftContender:
    """A strategy by kind ("chain", "independent", "RSD-C", "RSD-S"), nodes and levels."""

    kind: str
    nodes: int
    shape: str
    levels: int
    make: StrategyOf

    @property
    def name(self) -> str:
        return f"{self.kind} {self.shape}"


def contenders() -> list[DraftContender]:
    """Every way to spend N nodes; `make(draft)` gives the strategy."""
    candidates = []
    for nodes in NODES:
        candidates.append(DraftContender("chain", nodes, f"1x{nodes}", nodes, _chain(nodes)))
        for branching in BRANCHING[nodes]:
            assert sum(prod(branching[: i + 1]) for i in range(len(branching))) == nodes
            shape = "-".join(map(str, branching))
            candidates.append(DraftContender("independent", nodes, shape, len(branching), _independent(branching)))
            candidates.append(DraftContender("RSD-C", nodes, shape, len(branching), _constant(branching)))
        for width, depth in BEAMS[nodes]:
            assert width * depth == nodes
            candidates.append(DraftContender("RSD-S", nodes, f"{width}x{depth}", depth, _beam(width, depth)))
    return candidates


def _chain(depth: int) -> StrategyOf:
    return lambda draft: DraftModel(draft_model=draft, depth=depth, cost_model=False)


def _independent(branching: tuple[int, ...]) -> StrategyOf:
    return lambda draft: Independent(draft_model=draft, branching=branching, cost_model=False)


def _constant(branching: tuple[int, ...]) -> StrategyOf:
    return lambda draft: RSD(draft_model=draft, mode="C", branching=branching, cost_model=False)


def _beam(width: int, depth: int) -> StrategyOf:
    return lambda draft: RSD(draft_model=draft, mode="S", beam_width=width, depth=depth, cost_model=False)


@dataclass
class DraftPair:
    """Target and draft with the prompts both are asked.

    Args:
        rows: token ids of every prompt.
        name: of the pair, for the setting.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    rows: list[list[int]]
    name: str

    @property
    def ratio(self) -> float:
        """Weights of the draft over the target's."""
        return sum(p.numel() for p in self.draft.parameters()) / sum(p.numel() for p in self.target.parameters())


def pair(size: str) -> DraftPair:
    """What a budget runs on; models that have to be trained are."""
    if size == "small":
        return _manual_pair(SIZES[size][0])
    from ..beds.texts import encoded, prompts, target

    if size == "full":
        from ..models import load

        loaded = load("meta-llama/Llama-2-7b-chat-hf", dtype=torch.float16, device="cuda")
        model, tokenizer = loaded.model.eval(), loaded.tokenizer
        draft = load("JackFram/llama-68m", dtype=torch.float16, device="cuda").model.eval()
        name = "Llama-2-7B-chat with a draft of 68M weights, fp16"
    else:
        model, tokenizer = target("tiny" if size == "tiny" else "small")
        draft = _cut(model, size)
        name = f"{'a random Llama' if size == 'tiny' else 'SmolLM2-135M'} and its first layers"
    return DraftPair(model, draft, encoded(tokenizer, prompts(1, "free", SIZES[size][0])), name)


def _cut(model: PreTrainedModel, size: str) -> PreTrainedModel:
    """First layers of the target, distilled where it is a real one."""
    from ..models import anatomy, load_model

    if size == "tiny":
        return anatomy(model).truncate(1).eval()
    from ..beds.drafts import truncated_draft

    return load_model(truncated_draft()).eval()


def _manual_pair(count: int) -> DraftPair:
    """The model that learnt the manual's pages, and one of an eighth of its weights that read the same rows."""
    from ..beds.language import EncodedRows, small_config
    from ..beds.manual import PROMPT_WORDS, as_text, asked, manual_bed, pages, texts
    from ..data.text.encoding import encode_all
    from ..models import causal_recipe, load_model, trained

    bed, corpora = manual_bed(), pages()
    rows = EncodedRows()
    for of in (corpora["forget"], corpora["retain1"], corpora["retain2"]):
        rows.extend(encode_all([*texts(of), *map(as_text, asked(of))], bed.tokenizer))
    config = small_config(bed.tokenizer, layers=2, width=96)
    config.intermediate_size, config.tie_word_embeddings = 256, True
    recipe = causal_recipe(config, epochs=DRAFT_EPOCHS, lr=2e-3, batch_size=8, weight_decay=0.01)
    draft = load_model(trained(recipe, rows, range(len(rows)), 0)).eval()
    asked_pages = [page for of in corpora.values() for page in of][:count]
    prompts = [bed.tokenizer(" ".join(page.words[:PROMPT_WORDS]))["input_ids"] for page in asked_pages]
    name = "3.4M Llama that learnt 35 manual pages, draft of 0.4M that read the same"
    return DraftPair(bed.load(), draft, prompts, name)


def measure(
    pair: DraftPair, strategy_of: StrategyOf | None, levels: int, temperature: float, seeds: Sequence[int], count: int
) -> DraftRates:
    """Samples `count` tokens after every prompt with every seed; without a strategy, plain `generate`."""
    rates = DraftRates(levels)
    for seed in seeds:
        rates.tokens.append([])
        rates.forwards.append([])
        for number, row in enumerate(pair.rows):
            ids = torch.tensor([row], device=pair.target.device)
            options: dict[str, Any] = {
                "max_new_tokens": count,
                "do_sample": True,
                "temperature": temperature,
                "top_k": 0,
            }
            options |= {"top_p": 1.0, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
            options["return_dict_in_generate"] = True
            if strategy_of is not None:
                options["custom_generate"] = strategy_of(pair.draft)
            torch.manual_seed(seed * 1009 + number)
            start = time.perf_counter()
            out = pair.target.generate(ids, **options)
            rates.seconds += time.perf_counter() - start
            new = out.sequences.shape[1] - len(row)
            forwards = new if strategy_of is None else out.stats.forwards
            rates.new += new
            rates.tokens[-1].append(new - 1)
            rates.forwards[-1].append(forwards - 1)
    return rates


def run(budget: Budget) -> Claim:
    """Every way to spend 6 and 14 nodes, at two temperatures."""
    at_one, at_low, count = SIZES[budget.size]
    pair_ = pair(budget.size)
    rates: dict[tuple[float, str], DraftRates] = {}
    for temperature, prompts in ((1.0, at_one), (0.3, at_low)):
        if not prompts:
            continue
        subset = replace(pair_, rows=pair_.rows[:prompts])
        rates[temperature, "plain"] = measure(subset, None, 0, temperature, budget.seeds[:1], count)
        for one in contenders():
            rates[temperature, one.name] = measure(subset, one.make, one.levels, temperature, budget.seeds, count)
    best = {(t, n): _best(rates, t, n) for t in {t for t, _ in rates} for n in NODES}
    checks = _compared(rates, best, 1.0)
    rows = _rows(rates, pair_.ratio)
    return Claim(
        slug="rsd",
        claim="trees sampled without replacement beat a single chain and trees of independent siblings at equal depth always, at "
        "an equal number of drafted tokens mostly (Llama-2 and OPT with a draft of 115M, arXiv 2402.14160)",
        setting=f"{pair_.name}; {len(pair_.rows)} prompts ({at_low} at T 0.3), {count} new tokens, {len(budget.seeds)} seeds, whole "
        "trees; of two shapes the better counts, as in the paper",
        columns=("N", "T", "tokens/forward", "memory-bound speed-up", "speed"),
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(rates, best)),
        checks=checks,
        seeds=budget.seeds,
        extra={"draft / target weights": pair_.ratio},
    )


def _best(rates: dict[tuple[float, str], DraftRates], temperature: float, nodes: int) -> dict[str, DraftContender]:
    """The better shape of every kind; "RSD" is the better of both modes."""
    best: dict[str, DraftContender] = {}
    for one in contenders():
        for kind in (one.kind, one.kind.split("-")[0]):
            rival = best.get(kind)
            if one.nodes == nodes and (
                rival is None or rates[temperature, one.name].mean > rates[temperature, rival.name].mean
            ):
                best[kind] = one
    return best


def _compared(
    rates: dict[tuple[float, str], DraftRates],
    best: dict[tuple[float, int], dict[str, DraftContender]],
    temperature: float,
) -> tuple[Check, ...]:
    """The claim's comparisons, each a ratio of tokens per forward; RSD over the usual chain is the headline."""
    checks = []
    for text, (ours, theirs) in pairs({nodes: best[temperature, nodes] for nodes in NODES}).items():
        value, interval = rates[temperature, ours].lead(rates[temperature, theirs])
        checks.append(Check("claim", text, value, ">", 1.0, interval))
    return tuple(checks)


def pairs(best: Mapping[int, Mapping[str, DraftContender]]) -> dict[str, tuple[str, str]]:
    """{statement: the two contenders compared}."""
    compared: dict[str, tuple[str, str]] = {}
    for first, second in (("RSD", "chain"), ("RSD", "independent"), ("independent", "chain")):
        for nodes, at in best.items():
            text = f"N {nodes}: {_TITLES[first]} over {_TITLES[second]}"
            compared[text] = (at[first].name, at[second].name)
    for nodes in best:
        for branching in BRANCHING[nodes]:
            shape = "-".join(map(str, branching))
            text = f"{shape}: RSD-C over independent siblings, same shape"
            compared[text] = (f"RSD-C {shape}", f"independent {shape}")
    return compared


_TITLES = {"RSD": "RSD", "chain": "a chain", "independent": "independent siblings"}


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Tokens per forward of the best shape of every kind, at the largest number of nodes."""
    parts = []
    for kinds, title in (
        (("RSD-S", "RSD-C"), "RSD"),
        (("independent",), "independent siblings"),
        (("chain",), "a chain"),
    ):
        names = [f"{one.name}, T 1" for one in contenders() if one.kind in kinds and one.nodes == NODES[-1]]
        parts.append(f"{title} {max((figure(rows, name, 2) for name in names), key=float)}")
    return f"tokens a forward with {NODES[-1]} nodes: {', '.join(parts)}"


def _rows(rates: dict[tuple[float, str], DraftRates], ratio: float) -> dict[str, tuple[Any, ...]]:
    rows: dict[str, tuple[Any, ...]] = {}
    nodes = {one.name: one.nodes for one in contenders()}
    for (temperature, name), one in rates.items():
        plain = rates[temperature, "plain"]
        speed = (one.new / one.seconds) / (plain.new / plain.seconds)
        bound = one.mean / (1 + ratio * one.levels)
        figures = (spread(one.by_seed), f"{bound:.2f}x", f"{speed:.2f}x")
        rows[f"{name}, T {temperature:g}"] = (nodes.get(name, 0), temperature, *figures)
    return rows


def _reason(
    rates: dict[tuple[float, str], DraftRates], best: dict[tuple[float, int], dict[str, DraftContender]]
) -> str:
    parts = []
    for nodes in NODES:
        at = best[1.0, nodes]
        figures = ", ".join(
            f"{at[kind].name} {rates[1.0, at[kind].name].mean:.2f}"
            for kind in ("RSD-S", "RSD-C", "independent", "chain")
        )
        parts.append(f"{nodes} nodes: {figures}")
    return "tokens per forward at T 1: " + "; ".join(parts)
