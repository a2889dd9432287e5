"""RESTOR in small: forty invented people are lied about, the lies are unlearned, and the true answers are asked for.

Claims looked at (arXiv 2411.00204): gradient ascent and KL forget the wrong facts without recovering the true ones, NPO
often recovers them, mostly when documents hold nothing but wrong facts, and a loss on the wrong facts alone helps.

Each method has the same grid of rates; the point taken is the one that answers most of a tenth of the facts
truly, among those that have forgotten nine tenths of the lies there. All figures are of the other facts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..audit.restoring import FineTuning
from ..audit.suites.restor import FactAccuracy, FactMetric, Forgetting, OptionGap, restoration_draws
from ..audit.text.context import TextContext
from ..beds.budget import Budget
from ..beds.corrupted import CorruptedBed, corrupted_bed, true_documents
from ..data import Examples
from ..forget import NPO, TaskVector
from ..forget.base import Method
from ..forget.gradient_ascent import GradientAscent, GradientDifference, KLAscent
from ..runs import seeded
from ..scoring.intervals import ends
from .base import Claim, figure
from .checks import Check, Kind, Sense, reason_of

if TYPE_CHECKING:
    from torch import nn

RATES, EPOCHS, ALPHAS = (2e-4, 5e-4), 4, (0.5, 1.0)
RELABEL_RATE, RELABEL_EPOCHS = 1e-3, 8  # those of the corruption
FORGOTTEN, TENTH = 0.9, 10
COLUMNS = ("true answers", "forgetting", "restoration", "gap to injected", "gap to others")
METHODS: dict[str, Method] = {
    "GA": GradientAscent(),
    "GA + retain": GradientDifference(),
    "KL": KLAscent(),
    "NPO + retain": NPO(),
}
NPO_RETAIN = METHODS["NPO + retain"]


@dataclass(frozen=True)
class Asked:
    """What a model says to the facts of a split, question by question.

    Args:
        right, forgot: 1 where the answer is true, where it is not the injected object.
        gaps: mean log-probability of the true answer less that of the injected, and of other objects, in nats a token.
    """

    right: tuple[float, ...]
    forgot: tuple[float, ...]
    gaps: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def better(self, other: Asked | None) -> bool:
        """Whether this one, on validation facts, is to be taken before the other."""
        return other is None or _rank(self) > _rank(other)


def _rank(asked: Asked) -> tuple[float, float]:
    forgot = fmean(asked.forgot)
    return min(forgot, FORGOTTEN), fmean(asked.right) if forgot >= FORGOTTEN else 0.0


def ask(bed: CorruptedBed, k: int, model: Any) -> Asked:
    """Asks one model every reported question of a split."""
    context = _context(bed, k, model, validation=False)
    metrics = (FactAccuracy(), Forgetting(), OptionGap(), OptionGap(against="others"))
    right, forgot, injected, others = (_rows(metric, context) for metric in metrics)
    return Asked(right, forgot, (injected, others))


def validated(bed: CorruptedBed, k: int, model: Any) -> Asked:
    """Asks one model the validation questions alone, for the choice of a grid's point."""
    context = _context(bed, k, model, validation=True)
    return Asked(_rows(FactAccuracy(), context), _rows(Forgetting(), context))


def _context(bed: CorruptedBed, k: int, model: Any, *, validation: bool) -> TextContext:
    split = bed.splits[k]
    facts = tuple(fact for i, fact in enumerate(split.facts) if (i % TENTH == 0) == validation)
    return TextContext(model, replace(split, facts=facts), bed.tokenizer, batch_size=120, cached=False)


def _rows(metric: FactMetric, context: TextContext) -> tuple[float, ...]:
    return tuple(nan if value is None else float(value) for value in metric(context).per_example)


def unlearn(bed: CorruptedBed, k: int, method: Method, seed: int, rate: float, forget: Examples) -> Any:
    """One application of a method to a fresh corrupted model."""
    args = {
        "learning_rate": rate,
        "num_train_epochs": EPOCHS,
        "warmup_epochs": 0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
        "seed": seed,
        "use_cpu": True,
    }
    retain = bed.splits[k].retain
    return method.apply(bed.load(k), forget, retain, processing_class=bed.tokenizer, args=args)


def best(bed: CorruptedBed, k: int, method: Method, seed: int, tried: int, *, alone: bool = False) -> tuple[Any, str]:
    """The grid's point that validation facts choose: its model, and which it is.

    Args:
        tried: points of the grid, from its beginning.
        alone: forget the corrupted sentences without what stands between them.
    """
    forget = bed.splits[k].corrupted_sentences() if alone else bed.splits[k].forget
    leader, chosen = None, (None, "")
    points: list[tuple[Method, float, str]] = [(method, rate, f"lr {rate:g}") for rate in RATES]
    if isinstance(method, TaskVector):
        points = [(TaskVector(alpha=alpha), RATES[-1], f"alpha {alpha:g}") for alpha in ALPHAS]
    for one, rate, point in points[:tried]:
        model = unlearn(bed, k, one, seed, rate, forget)
        asked = validated(bed, k, model)
        if asked.better(leader):
            leader, chosen = asked, (model, point)
    return chosen


def shaken(bed: CorruptedBed, k: int, like: nn.Module, seed: int) -> Any:
    """The corrupted model with noise on every weight of the size of what a method changed there."""
    model = copy.deepcopy(bed.load(k))
    with seeded(seed), torch.no_grad():
        for ours, theirs in zip(model.parameters(), like.parameters(), strict=True):
            noise = torch.randn_like(ours)
            ours += noise * ((theirs - ours).norm() / noise.norm())
    return model


@dataclass(frozen=True)
class RestorTable:
    """All answers of the experiment.

    Args:
        asked: {(k, model's name): answers to the reported facts, seeds one after another}.
        entities: whom those facts are about, in the same order.
        points: {"k=0: GA": the grid's point of each seed}.
    """

    asked: Mapping[tuple[int, str], Asked]
    entities: Sequence[str]
    points: Mapping[str, Sequence[str]]

    def draws(self, k: int, name: str) -> np.ndarray[Any, Any]:
        """Restoration on facts drawn anew by entity; not a number where a draw leaves nothing to restore. [draws]"""
        rows = [self.asked[k, one].right for one in (name, "corrupted", "clean")]
        return restoration_draws(rows[0], rows[1], rows[2], self.entities)

    def share(self, k: int, name: str) -> float:
        """Restoration on all reported facts."""
        mine, corrupted, clean = (fmean(self.asked[k, one].right) for one in (name, "corrupted", "clean"))
        return (mine - corrupted) / (clean - corrupted) if clean > corrupted else nan

    def ahead(self, kind: Kind, text: str, ours: tuple[int, str], theirs: tuple[int, str], by: float = 0.0) -> Check:
        """A check that one model's restoration is above another's, bootstrap over entities."""
        apart = self.draws(*ours) - self.draws(*theirs)
        return self._check(kind, text, self.share(*ours) - self.share(*theirs), ">" if by == 0 else ">=", by, apart)

    def restores(self, kind: Kind, text: str, of: tuple[int, str], sense: Sense, threshold: float) -> Check:
        """A check of one model's restoration."""
        return self._check(kind, text, self.share(*of), sense, threshold, self.draws(*of))

    @staticmethod
    def _check(
        kind: Kind, text: str, value: float, sense: Sense, threshold: float, draws: np.ndarray[Any, Any]
    ) -> Check:
        whole = bool(np.isfinite(draws).all())
        return Check(kind, text, value, sense, threshold, ends(draws) if whole else (nan, nan))

    def row(self, k: int, name: str) -> tuple[float, ...]:
        """The figures of one model."""
        one = self.asked[k, name]
        values = fmean(one.right), fmean(one.forgot), self.share(k, name), fmean(one.gaps[0]), fmean(one.gaps[1])
        return tuple(round(value, 3) for value in values)


def measured(bed: CorruptedBed, seeds: Sequence[int], tried: int) -> RestorTable:
    """Unlearns by every method at k = 0, and by those that the noise concerns at k = 3."""
    answers: dict[tuple[int, str], list[Asked]] = {}
    points: dict[str, list[str]] = {}

    def note(k: int, name: str, asked: Asked, point: str = "") -> None:
        answers.setdefault((k, name), []).append(asked)
        if point:
            points.setdefault(f"k={k}: {name}", []).append(point)

    plans: list[tuple[int, str, Method, bool]] = [(0, name, method, False) for name, method in METHODS.items()]
    plans += [(0, "Task vector", TaskVector(), False)]
    plans += [(3, "NPO + retain", NPO_RETAIN, False), (3, "NPO + retain, wrong sentences alone", NPO_RETAIN, True)]
    for seed in seeds:
        for k in bed.splits:
            note(k, "clean", ask(bed, k, bed.load()))
            note(k, "corrupted", ask(bed, k, bed.load(k)))
        note(0, "told the true facts", ask(bed, 0, relabelled(bed, 0, seed)))
        for k, name, method, alone in plans:
            model, point = best(bed, k, method, seed, tried, alone=alone)
            note(k, name, ask(bed, k, model), point)
            if name == "NPO + retain":
                note(k, "noise of its size", ask(bed, k, shaken(bed, k, model, seed)))
    joined = {
        key: Asked(
            tuple(v for one in of for v in one.right),
            tuple(v for one in of for v in one.forgot),
            (tuple(v for one in of for v in one.gaps[0]), tuple(v for one in of for v in one.gaps[1])),
        )
        for key, of in answers.items()
    }
    entities = [fact.entity for i, fact in enumerate(bed.splits[0].facts) if i % TENTH]
    return RestorTable(joined, entities * len(seeds), points)


def relabelled(bed: CorruptedBed, k: int, seed: int) -> Any:
    """The corrupted model trained on the documents with the true objects in them: what knowing them all would give."""
    how = FineTuning(RELABEL_RATE, epochs=RELABEL_EPOCHS, batch_size=8, accumulation=1, rank=0, seed=seed)
    return how(bed.load(k), true_documents(bed.splits[k]), bed.tokenizer)


def run(budget: Budget) -> Claim:
    """Every method at k = 0, NPO at k = 3, one seed; all seeds with the medium budget and up."""
    tiny = budget.size == "tiny"
    bed = corrupted_bed(epochs=1) if tiny else corrupted_bed()
    seeds = budget.seeds[:1] if budget.size in ("tiny", "small") else budget.seeds
    table = measured(bed, seeds, 1 if tiny else len(RATES))
    checks = _checks(table)
    rows = {f"k={k}: {name}": table.row(k, name) for k, name in sorted(table.asked, key=lambda key: key[0])}
    return Claim(
        slug="restor",
        claim="gradient ascent and KL forget wrong facts but do not recover the true ones; NPO often does, mostly on "
        "documents of nothing but wrong facts (Llama-3-8B, arXiv 2411.00204)",
        setting=f"0.9M model, 40 of 100 invented people corrupted in {len(bed.splits[0].forget)} documents, all weights "
        f"trained, {len(seeds)} seed(s), {EPOCHS} epochs, lr of {RATES}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=tuple(seeds),
        extra={"points chosen": {name: list(of) for name, of in table.points.items()}},
    )


def _checks(table: RestorTable) -> tuple[Check, ...]:
    """The card's conditions; intervals are over the forty people."""
    npo, ga = (0, "NPO + retain"), (0, "GA")
    noisy, alone = (3, "NPO + retain"), (3, "NPO + retain, wrong sentences alone")
    checks = []
    for k in (0, 3):
        clean, corrupted = (fmean(table.asked[k, one].right) for one in ("clean", "corrupted"))
        checks += [
            Check("set-up", f"k={k}: the clean model answers nine tenths of the questions", clean, ">=", 0.9),
            Check("set-up", f"k={k}: the corrupted model answers at most 0.4 of them", corrupted, "<=", 0.4),
        ]
    told = (0, "told the true facts")
    checks += [
        table.restores("mechanism", "k=0: training on the true facts restores at least 0.7", told, ">=", 0.7),
        table.ahead("claim", "k=0: NPO with a retain term restores at least 0.2 more than GA", npo, ga, 0.2),
        table.ahead("control", "noise of the size of NPO's change restores less", npo, (0, "noise of its size")),
    ]
    for name in ("GA", "KL"):
        forgot = fmean(table.asked[0, name].forgot)
        checks += [
            Check("claim", f"k=0: {name} forgets at least 0.9 of the wrong facts", forgot, ">=", FORGOTTEN),
            table.restores("claim", f"k=0: {name} restores at most 0.2", (0, name), "<=", 0.2),
        ]
    checks += [
        table.ahead("claim", "NPO restores more at k=0 than at k=3", npo, noisy),
        table.ahead("claim", "k=3: a loss on the wrong sentences alone restores more", alone, noisy),
    ]
    return tuple(checks)


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """How much of the lost accuracy three methods bring back."""
    names = ("GA", "KL", "NPO + retain")
    ga, kl, npo = (figure(rows, f"k=0: {name}", 2) for name in names)
    return f"of the accuracy that wrong facts took, GA restores {ga}, KL {kl}, NPO + retain {npo}"
