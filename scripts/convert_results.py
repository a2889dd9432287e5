"""Brings results of the first form, {statement: true or false}, into the second: checks by kind, a headline, a verdict.

    python scripts/convert_results.py [SLUG ...]

Only the form changes. Kinds and their order are those of the experiments (a test compares them); what was measured stays as it
was, so that a statement that was stored as true or false stays that, without a figure or an interval. What an experiment judges
today and did not then is taken from the stored figures where they are there, and is left out otherwise. Nothing is typed in.
The verdict of the first form is kept as `old verdict`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from unwrite.reproduce.base import FORM
from unwrite.reproduce.checks import Check, Kind, verdict_of
from unwrite.runs import write_json

Result = Mapping[str, Any]


def rate(result: Result, row: str, column: str) -> float:
    """A stored figure, "0.82x" or "1.59 +- 0.2"."""
    return float(re.match(r"[-+\d.e]+", str(result["rows"][row][result["columns"].index(column)]))[0])  # type: ignore[index]


def speed(row: str) -> Callable[[Result, str], Check]:
    return lambda result, text: Check("claim", text, rate(result, row, "speed"), ">", 1.0)


def best_first(result: Result, text: str) -> Check:
    rates = result["extra"]["tokens_per_forward"]
    return Check("control", text, rates["ADED, corpus"] - rates["best-first, as many nodes"], ">", 0.0)


def random_neighbours(result: Result, text: str) -> Check:
    points, low, high = re.search(r"(\S+) \((\S+) to (\S+)\) against random neighbours", result["reason"]).groups()  # type: ignore[union-attr]
    return Check("control", text, float(points), ">", 0.0, (float(low), float(high)))


def lead(result: Result, text: str) -> Check:
    """RSD's comparisons, whose intervals are stored; the ratio itself is that of the rows."""
    from unwrite.reproduce import rsd

    def mean(one: rsd.DraftContender) -> float:
        return rate(result, f"{one.name}, T 1", "tokens/forward")

    best: dict[int, dict[str, rsd.DraftContender]] = {nodes: {} for nodes in rsd.NODES}
    for one in sorted(rsd.contenders(), key=mean):
        best[one.nodes] |= {one.kind: one, one.kind.split("-")[0]: one}
    ours, theirs = (rate(result, f"{name}, T 1", "tokens/forward") for name in rsd.pairs(best)[text])
    low, high = result["extra"]["lead at T 1, 95 % over prompts"][text]
    return Check("claim", text, ours / theirs, ">", 1.0, (low, high))


How = Kind | Callable[[Result, str], Check]
CHECKS: dict[str, dict[str, How]] = {
    "npo": {
        "gap 1: NPO disturbs the retain data less than GA at its closest": "claim",
        "gap 1: NPO+RT disturbs it less than GradDiff at its closest": "claim",
        "gap 1: GA's retain distance keeps growing after its closest": "claim",
        "gap 0: NPO disturbs the retain data less than GA at its closest": "claim",
        "gap 0: NPO+RT disturbs it less than GradDiff at its closest": "claim",
        "gap 0: GA's retain distance keeps growing after its closest": "claim",
        "authors: NPO+RT's forget quality ends above 0.05, and above GradDiff's": "claim",
        "authors: GA's retain probability collapses below 0.1": "claim",
        "authors: GradDiff's retain probability collapses below 0.1": "claim",
        "authors: NPO+RT keeps 0.7 of the retain ROUGE": "claim",
        "authors: NPO+RT's forget probability ends within 0.1 of the oracle's": "claim",
    },
    "muse": {
        "the target leaks: PrivLeak below -50": "set-up",
        "the retrained model's PrivLeak is 0": "mechanism",
        "GA brings VerbMem below a fifth of the target's": "claim",
        "GA loses over half of the utility": "claim",
        "a retain term keeps more utility for GA": "claim",
        "a retain term keeps more utility for NPO": "claim",
        "GA: utility after four requests is below that after one": "claim",
        "NPO: utility after four requests is below that after one": "claim",
    },
    "uld": {
        "ULD's forget probability is within 20 % of the oracle's, or below": "claim",
        "ULD's forget ROUGE is within 20 % of the oracle's": "claim",
        "ULD keeps 0.97 of the target's utility": "claim",
        "GA loses at least a tenth of the utility at the same forget level": "control",
        "NPO loses at least a tenth of the utility at the same forget level": "control",
        "an epoch of the assistant takes at most half of NPO+KL's": "claim",
    },
    "aded": {
        "every text is greedy's own": "mechanism",
        "with the nodes that pay it is faster than greedy decoding": speed("ADED, corpus, nodes that pay"),
        "with whole drafts it is faster than greedy decoding": speed("ADED, corpus"),
        "learning from the text accepts more than the table left alone": "claim",
        "with a corpus it accepts more than prompt lookup": "claim",
        "best-first expansion of the same table with as many nodes accepts less": best_first,
    },
    "token-recycling": {
        "every text is greedy's own": "mechanism",
        "with the nodes that pay it is faster than greedy decoding on free prompts": speed(
            "free: recycling, hot, nodes that pay"
        ),
        "with whole trees it is faster than greedy decoding on free prompts": speed("free: recycling, hot"),
        "hot table accepts more than cold ones": "claim",
        "cold tables give more than 1.5 tokens a forward": "claim",
        "hot table accepts more than prompt lookup on free prompts": "claim",
    },
    "rsd": {
        **{f"N {nodes}: RSD over a chain": lead for nodes in (6, 14)},
        **{f"N {nodes}: RSD over independent siblings": lead for nodes in (6, 14)},
        **{f"N {nodes}: independent siblings over a chain": lead for nodes in (6, 14)},
        **{
            f"{shape}: RSD-C over independent siblings, same shape": lead
            for shape in ("2-2", "2-1-1", "2-2-2", "2-1-1-1-1-1-1")
        },
    },
    "sparse": {
        "fine-tuning forgets more of the class on the net pruned to 95 %": "claim",
        "l1-sparse forgets 20 points more of the class than fine-tuning, retain rows within 3 points": "claim",
        "l1-sparse is closer to retraining than fine-tuning, for the class and at random": "claim",
    },
    "ssd": {
        "below 10 % on the forgotten class, others within 3 points of retraining": "claim",
        "as much dampening at random places does not do it": "control",
        "at most a tenth of fine-tuning's passes, nothing stored": "claim",
    },
    "laf": {
        "below 15 % on unseen rows of the class, others within 6 points of retraining, without labels": "claim",
        "the repair closes half of the gap on other unseen rows": "claim",
        "without the extractor's loss 50 points more of the forgotten rows stay right": "claim",
        "without alignment kept rows lose 10 points": "claim",
    },
    "regression": {
        "Blindspot's error on forgotten rows is nearest to retraining's": "claim",
        "its predictions there are nearest to retraining's (W1)": "claim",
        "its error on unseen kept rows is within 10 % of retraining's": "claim",
        "relearning takes longer than after fine-tuning (AIN)": "claim",
    },
    "adablock": {
        "at equal forwards not below fixed blocks, with a dual cache": "claim",
        "at equal forwards not below fixed blocks, without a cache": "claim",
        "more gained with a dual cache than without": "claim",
        "fewer forwards where the usual block is 4 or 8": "claim",
        "drawn boundaries gain less": "control",
    },
    "credit": {
        "a tenth fewer forwards, on average over thresholds": "claim",
        "no more than a point lost, on average over thresholds": "claim",
        "at equal forwards not below the plain threshold": "control",
        "positions wait less for their reveal": "claim",
    },
    "localleap": {
        "fewer forwards than the threshold it starts from": "claim",
        "no more than a point lost against it": "claim",
        "at equal forwards not below a lower threshold": "control",
        "at equal forwards better than random neighbours": random_neighbours,
        "proposals are less often final further from a sure token": "claim",
    },
    "learn2pd": {
        "the oracle is clearly faster than both": "set-up",
        "at least twice fewer forwards": "claim",
        "no more than a point lost": "claim",
        "at equal forwards not below a threshold": "control",
        "cutting behind the end saves work": "claim",
        "and more where the answer is shorter": "claim",
    },
    "prophet": {
        "at most 70 % of the steps": "claim",
        "no more than a point lost": "claim",
        "better than stopping after as many steps": "control",
        "better than stopping at random": "control",
        "more than half of the answers are settled by half of the steps": "claim",
        "and more with the anchor than without": "claim",
    },
    "parallelbench": {
        "the perfect model's accuracies are the theory's": "mechanism",
        **{
            f"where items depend on each other the trained model is within 5 points of it {way}": "claim"
            for way in ("in random order", "by confidence", "from left to right", "with thresholds")
        },
        "where they don't it stays above 95 with all six at once": "claim",
        "greedily it never swaps rightly with three or six a step": "claim",
        "a threshold of 0.9 shuffles one item a step, rightly": "claim",
    },
}


def points_ahead(result: Result) -> dict[str, float]:
    """AdaBlock's mean points over fixed blocks, which only the reason has."""
    number = r"([-+][\d.]+)"
    pattern = f"{number} points without a cache and {number} with a dual one .drawn boundaries {number} and {number}"
    names = ("ada, none", "ada, dual", "drawn, none", "drawn, dual")
    return dict(zip(names, map(float, re.search(pattern, result["reason"]).groups()), strict=True))  # type: ignore[union-attr]


EXTRA = {"adablock": ("points at equal forwards", points_ahead)}  # what a headline is made of and stood elsewhere
REPLACED = {"localleap": {"at equal forwards not below random neighbours"}}  # judged more strictly today


def converted(result: Result) -> dict[str, Any]:
    """The result in the second form.

    Raises:
        ValueError: the result has a statement that the experiment no longer makes.
    """
    slug, old = result["slug"], result["checks"]
    lost = {*old} - {*CHECKS[slug]} - REPLACED.get(slug, set())
    if lost:
        raise ValueError(f"{slug}: no kind is known of {'; '.join(sorted(lost))}")
    checks = [
        Check(how, text, old[text]) if isinstance(how, str) else how(result, text) for text, how in CHECKS[slug].items()
    ]
    extra = dict(result["extra"])
    if slug in EXTRA:
        name, read = EXTRA[slug]
        extra[name] = read(result)
    headline = import_module(f"unwrite.reproduce.{slug.replace('-', '_')}").headline(result["rows"], extra)
    return {
        **result,
        "form": FORM,
        "headline": headline,
        "extra": extra,
        "checks": [check.record() for check in checks],
        "verdict": verdict_of(checks),
        "old verdict": result["verdict"],
    }


def main(slugs: list[str]) -> None:
    """Converts the stored results that are still in the first form."""
    home = Path(str(files("unwrite").joinpath("results")))
    for path in sorted(home.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "form" in result or (slugs and result["slug"] not in slugs):
            continue
        new = converted(result)
        write_json(path, new)
        print(f"{new['slug']}: {new['old verdict']} -> {new['verdict']}. {new['headline']} ({len(new['headline'])})")


if __name__ == "__main__":
    main(sys.argv[1:])
