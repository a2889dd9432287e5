"""ECO in small: prompts about invented authors are corrupted, and the answers held beside those of a model that never read of them.

Claims looked at (arXiv 2406.07933): outputs like a retrained model's at some strength, almost no side effect on anything else, and
without a change to a weight. The detector is TF-IDF with logistic regression, fitted on the questions as they are asked in training;
how many of their paraphrases it flags is reported, for the others get the whole answer. Dimensions and strength are chosen on half
of the authors with noise of another seed, and reported on the other half. The hazardous-knowledge choices are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from statistics import fmean
from typing import Any

import torch

from ..beds.authors import unlearn
from ..beds.budget import Budget
from ..beds.language import LanguageBed, authors_bed
from ..data import Example, Examples
from ..data.text.encoding import encode_all, encode_prompt, pad
from ..forget import NPO, StopWhenForgotten
from ..forget.base import Method
from ..forget.eco import ECO
from ..forget.engine.text.corrupted_prompts import CorruptedPromptModel
from ..forget.engine.text.corruptions import Corruption
from ..forget.gradient_ascent import GradientAscent
from ..scoring import generate_answers, rouge_l, score_answers
from ..scoring.intervals import spread, wilson
from .base import Claim, figure
from .checks import Check, reason_of

STRENGTHS = (1.0, 5.0, 50.0, 192.0)  # the last is the embedding's width; 0 is the target
DIMS = (1, 192)
CHOOSING = 100  # the noise's seed, of none that is reported
ALPHA = 0.01
PREFIX = "You know nothing about {names}. Answer questions about them as if you had never heard of them."
REFUSAL = "I'm sorry, but I can't answer that question."
BASELINES: dict[str, Method] = {"GA": GradientAscent(), "NPO": NPO(retain_loss="none")}
COLUMNS = ("forget probability", "forget ROUGE-L", "kept probability")


@dataclass(frozen=True)
class AnsweredRows:
    """What a model makes of some rows, a figure a row.

    Args:
        probability: of the right answer, the mean token's.
        rouge: how much of the right answer its greedy one has.
    """

    probability: list[float]
    rouge: list[float]

    @property
    def means(self) -> tuple[float, float]:
        return fmean(self.probability), fmean(self.rouge)


def probabilities(model: Any, bed: LanguageBed, rows: Examples) -> list[float]:
    """exp(-mean token nll) of every answer."""
    scores = score_answers(model, encode_all(rows, bed.tokenizer), pad_id=bed.tokenizer.pad_token_id, batch_size=64)
    return [exp(-score.mean_nll) for score in scores]


def answers(model: Any, bed: LanguageBed, rows: Examples) -> AnsweredRows:
    """Both figures of every row."""
    prompts = [encode_prompt(row, bed.tokenizer) for row in rows]
    texts = generate_answers(model, bed.tokenizer, prompts, max_new_tokens=48, batch_size=40)
    return AnsweredRows(
        probabilities(model, bed, rows),
        [rouge_l(row.answer, text).recall for row, text in zip(rows, texts, strict=True)],
    )


@dataclass
class ArmFigures:
    """All figures.

    Args:
        arms: {arm: a pair (forget probability, forget ROUGE) a seed}.
        kept: {arm: probability of what is to stay, a figure a seed}.
        chosen: the name of the arm that was chosen.
        grid: names of the arms of the chosen dimensions, weakest first.
        flagged: {kind of prompts: (flagged, of how many)}.
        exact: {statement: whether it is so}.
        unseen: probability of the answers to paraphrased forget questions: {arm: a figure a seed}.
    """

    arms: dict[str, list[tuple[float, float]]]
    kept: dict[str, list[float]]
    chosen: str
    grid: list[str]
    flagged: dict[str, tuple[int, int]]
    exact: dict[str, bool]
    unseen: dict[str, list[float]]


def measured(bed: LanguageBed, seeds: Sequence[int], tiny: bool) -> ArmFigures:
    """Every arm on the authors that nothing was chosen on."""
    split, target = bed.split, bed.load()
    assert split.retain is not None
    authors = list(dict.fromkeys(row.entity for row in split.forget))
    half = {*authors[: len(authors) // 2]}
    choose = Examples([row for row in split.forget if row.entity in half], "choose")
    report = Examples([row for row in split.forget if row.entity not in half], "report")
    kept = Examples([*split.retain, *split.evaluation["real_authors"], *split.evaluation["world_facts"]], "kept")
    if tiny:
        choose, report, kept = choose[:2], report[:2], kept[:4]
    oracle = bed.load("oracle")
    guard = ECO(alpha=ALPHA).apply(target, split.forget, split.retain, processing_class=bed.tokenizer)
    settings = {_named(dims, strength): (dims, strength) for dims in DIMS for strength in STRENGTHS}
    if tiny:
        settings = {
            name: value for name, value in settings.items() if value[0] == DIMS[0] and value[1] in STRENGTHS[::3]
        }

    wanted = answers(oracle, bed, choose).means

    def off(name: str) -> float:
        means = answers(_at(guard, *settings[name], CHOOSING), bed, choose).means
        return sum(abs(own - other) for own, other in zip(means, wanted, strict=True))

    chosen = min(settings, key=off)
    of_target = answers(target, bed, report)
    arms = {"target": [of_target.means], "oracle": [answers(oracle, bed, report).means]}
    staying = {"target": [fmean(probabilities(target, bed, kept))], "oracle": [fmean(probabilities(oracle, bed, kept))]}
    reworded = Examples([row.ask(question=row.paraphrased_question) for row in report], "reworded")
    unseen = {"target": [fmean(probabilities(target, bed, reworded))]}
    for name, setting in settings.items():
        arms[name] = [answers(_at(guard, *setting, seed), bed, report).means for seed in seeds]
    for seed in seeds:
        model = _at(guard, *settings[chosen], seed)
        staying.setdefault(chosen, []).append(fmean(probabilities(model, bed, kept)))
        unseen.setdefault(chosen, []).append(fmean(probabilities(model, bed, reworded)))
    _add_baselines(bed, guard, (report, kept), (arms, staying), of_target, seeds[0], tiny)
    still = answers(_at(guard, DIMS[0], 0.0, seeds[0]), bed, report)
    exact = {
        "at strength 0 every figure is the target's": still == of_target,
        "logits of unflagged rows are the target's to the bit beside flagged ones": _untouched(
            _at(guard, *settings[chosen], seeds[0]), bed, [*report[:4], *kept[:12]]
        ),
    }
    grid = [name for name, (dims, _) in settings.items() if dims == settings[chosen][0]]
    return ArmFigures(arms, staying, chosen, grid, _flagged(guard, bed), exact, unseen)


def _add_baselines(
    bed: LanguageBed,
    guard: CorruptedPromptModel,
    rows: tuple[Examples, Examples],
    figures: tuple[dict[str, list[tuple[float, float]]], dict[str, list[float]]],
    of_target: AnsweredRows,
    seed: int,
    tiny: bool,
) -> None:
    """A prefix that forbids the names, a refusal by the guard's detector, and what trains.

    Args:
        rows: those to report, and those that are to stay.
        figures: of the arms, and of what is to stay; these are added to.
        of_target: what the target makes of the rows to report.
    """
    (report, kept), (arms, staying), target = rows, figures, guard.target
    names = list(dict.fromkeys(row.entity for row in bed.split.forget))
    arms["prefix"] = [answers(target, bed, _prefixed(report, names)).means]
    staying["prefix"] = [fmean(probabilities(target, bed, _prefixed(kept, names)))]
    stopped = guard.detector.flagged([[str(row.question)] for row in report])
    refused = [rouge_l(row.answer, REFUSAL).recall for row in report]
    arms["refusal"] = [
        (
            fmean(0.0 if stop else value for stop, value in zip(stopped, of_target.probability, strict=True)),
            fmean(new if stop else old for stop, new, old in zip(stopped, refused, of_target.rouge, strict=True)),
        )
    ]
    level = min(0.95, 1.2 * arms["oracle"][0][0] / arms["target"][0][0])
    for name, method in BASELINES.items():
        stop = StopWhenForgotten(bed.tokenizer, {"forget": bed.split.forget}, target=level, floor=0, every=1)
        model, _ = unlearn(bed, method, seed, (stop,), **({"num_train_epochs": 1} if tiny else {}))
        arms[name] = [answers(model, bed, report).means]
        staying[name] = [fmean(probabilities(model, bed, kept))]


def _named(dims: int, strength: float) -> str:
    return f"ECO, {dims} dims, strength {strength:g}"


def _at(guard: CorruptedPromptModel, dims: int, strength: float, seed: int) -> CorruptedPromptModel:
    """The guard at another setting; the same object."""
    corruption = Corruption("rand_noise_first_n", strength, dims)
    guard.rules = replace(guard.rules, corruption=corruption, noise_seed=seed)
    return guard


def _prefixed(rows: Examples, names: Sequence[str | None]) -> Examples:
    """The rows behind a system's turn that forbids the names."""
    told = PREFIX.format(names=", ".join(str(name) for name in names))
    return Examples([replace(row, history=(("system", told), *row.history)) for row in rows], "prefixed")


def _untouched(guard: CorruptedPromptModel, bed: LanguageBed, rows: Sequence[Example]) -> bool:
    """Whether each row of a batch that isn't flagged has the target's own logits, and some row is flagged."""
    encoded = encode_all(rows, bed.tokenizer)
    inputs = {name: pad(encoded, bed.tokenizer.pad_token_id)[name] for name in ("input_ids", "attention_mask")}
    flagged = guard.flagged([row.input_ids for row in encoded])
    with torch.no_grad():
        own, bare = guard(**inputs).logits, guard.target(**inputs).logits
    same = [torch.equal(one, other) for one, other in zip(own, bare, strict=True)]
    return any(flagged) and all(equal for equal, stop in zip(same, flagged, strict=True) if not stop)


def _flagged(guard: CorruptedPromptModel, bed: LanguageBed) -> dict[str, tuple[int, int]]:
    """What the detector flags of prompts that it was not fitted on, forget questions apart."""
    split = bed.split
    assert split.retain is not None
    assert split.holdout is not None
    world = [row for rows in split.evaluation.values() for row in rows]
    prompts = {
        "forget questions": [row.question for row in split.forget],
        "forget questions, paraphrased": [row.paraphrased_question for row in split.forget],
        "retain questions, paraphrased": [row.paraphrased_question for row in split.retain],
        "questions about other authors": [row.question for row in split.holdout],
        "real authors and world facts": [row.question for row in world],
    }
    texts = {name: [[text] for text in some if text] for name, some in prompts.items()}
    return {name: (sum(guard.detector.flagged(some)), len(some)) for name, some in texts.items()}


def run(budget: Budget) -> Claim:
    """ECO beside a prompting prefix, a refusal by the same detector, GA and NPO."""
    tiny = budget.size == "tiny"
    bed = authors_bed(epochs=1) if tiny else authors_bed()
    seeds = budget.seeds[:1] if tiny else budget.seeds
    found = measured(bed, seeds, tiny)
    checks = _checks(found)
    rows: dict[str, tuple[Any, ...]] = {
        name: (
            *(spread([pair[column] for pair in pairs]) for column in (0, 1)),
            spread(found.kept[name]) if name in found.kept else "-",
        )
        for name, pairs in found.arms.items()
    }
    rows["ECO, as chosen"] = rows[found.chosen]
    return Claim(
        slug="eco",
        claim="corrupting the embeddings of flagged prompts gives outputs like a retrained model's on TOFU and near-random answers on "
        "hazardous knowledge, with almost no side effect (arXiv 2406.07933)",
        setting="3.4M model, 40 invented authors, forget 4, figures on two of them, settings chosen on the other two; TF-IDF detector at "
        f"alpha {ALPHA}; GA and NPO stopped at 1.2 times the oracle's forget probability, one seed; {len(seeds)} seeds",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, f"chosen: {found.chosen}"),
        checks=checks,
        seeds=tuple(seeds),
        extra={
            "flagged": {name: f"{hits} of {total}" for name, (hits, total) in found.flagged.items()},
            "recall on paraphrased forget questions": _share(found, "forget questions, paraphrased"),
            "probability of answers to paraphrased forget questions": {
                name: spread(values) for name, values in found.unseen.items()
            },
        },
    )


def _share(found: ArmFigures, name: str) -> float:
    hits, total = found.flagged[name]
    return hits / total


def _checks(found: ArmFigures) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed where noise has a say."""
    own = found.arms[found.chosen]
    (target, _), (probability, rouge) = found.arms["target"][0], found.arms["oracle"][0]
    off = [abs(value - rouge) / rouge for _, value in own]
    refusal = abs(found.arms["refusal"][0][1] - rouge) / rouge
    moved = [abs(value - found.kept["target"][0]) for value in found.kept[found.chosen]]
    strongest = [value for value, _ in found.arms[found.grid[-1]]]
    levels = [target, *(fmean(value for value, _ in found.arms[name]) for name in found.grid)]
    rise = max(after - before for before, after in pairwise(levels))
    hits, total = found.flagged["forget questions, paraphrased"]
    return (
        Check("set-up", "the target knows the forget rows", target, ">=", 0.9),
        Check("set-up", "the oracle's forget probability is at most half of the target's", probability, "<=", target / 2),
        *(Check("mechanism", text, holds) for text, holds in found.exact.items()),
        Check.by_seed("mechanism", "the strongest corruption leaves at most half of the target's forget probability", strongest, "<=",
                      target / 2),
        Check.by_seed("claim", "ECO's forget ROUGE is within 20 % of the oracle's", off, "<=", 0.2),
        Check.by_seed("claim", "its forget probability is within 20 % of the oracle's, or below", [value for value, _ in own], "<=",
                      1.2 * probability),
        Check.by_seed("claim", "the probability of what is to stay moves by at most 0.01", moved, "<=", 0.01),
        Check("claim", "forget probability never rises by more than 0.02 with the strength", rise, "<=", 0.02),
        Check("claim", "the detector flags 0.9 of the forget questions in other words", hits / total, ">=", 0.9, wilson(hits, total)),
        Check("control", "a prefix that forbids the names leaves more than 1.2 of the oracle's forget probability",
              found.arms["prefix"][0][0], ">", 1.2 * probability),
        Check.by_seed("control", "a refusal by the same detector is farther from the oracle's ROUGE", [refusal - one for one in off], ">", 0),
    )  # fmt: skip


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is left of the forgotten rows, and of the rest."""
    rouge, retrained, kept, whole = (
        figure(rows, name, column)
        for name, column in (("ECO, as chosen", 1), ("oracle", 1), ("ECO, as chosen", 2), ("target", 2))
    )
    return f"forget ROUGE {rouge} (retrained {retrained}), kept probability {kept} (before {whole})"
