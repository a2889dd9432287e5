"""CodeEraser in small: planted keys and mail addresses in Python passages that a small model knows by heart.

Claim looked at (arXiv 2509.13755): raising the loss on secrets alone, held near the model before, forgets them as gradient ascent on
whole files does, and keeps the code. Every method ends at the first epoch at which the model says no more of the secrets
than of code it has never seen. Each has the same grid of rates, chosen on a group of files of its own: of the rates that get there, the
one that keeps most of the code around. Control: as many tokens at random places of the same files, for as many epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from random import Random
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from ..audit.text.context import TextContext
from ..audit.text.memorisation import ExtractionLikelihood, MemorisationAccuracy
from ..beds.budget import Budget
from ..beds.code import CodeBed, CodeGroup, code_bed
from ..data import Example, Examples, ForgetSplit, detect_secrets
from ..forget import CodeEraser
from ..scoring import Thresholds, calibrate_threshold
from .base import Claim, figure
from .checks import Check, reason_of

RATES, EPOCHS = (1e-4, 3e-4, 1e-3), 15
NEVER = 10**6  # epochs without a better likelihood that end a training: none, so that rates differ in nothing else
WHOLE = {"on": "all", "gamma": 0.0}
METHODS: dict[str, CodeEraser] = {
    "GA": CodeEraser(**WHOLE, constraint=0.0, retain_loss="none"),  # type: ignore[arg-type]
    "CU": CodeEraser(**WHOLE),  # type: ignore[arg-type]
    "SSGA": CodeEraser(gamma=0.0, constraint=0.0, retain_loss="none"),
    "CodeEraser": CodeEraser(),
}
COLUMNS = ("secret MA", "secret EL10", "code MA", "retained MA", "unseen code nll", "epochs")


@dataclass(frozen=True)
class Erased:
    """What a model says of a group's files and of unseen code, a value a file.

    Args:
        secret, likelihood: MA and EL10 of secrets.
        around, retained: MA of the other tokens of the same files, and of retained files.
        nll: of unseen code, nats a token.
        epochs: until training ended; 0 without.
        gone: whether it ended below both thresholds.
    """

    secret: tuple[float, ...]
    likelihood: tuple[float, ...]
    around: tuple[float, ...]
    retained: tuple[float, ...]
    nll: tuple[float, ...]
    epochs: int = 0
    gone: bool = False

    def row(self) -> tuple[float, ...]:
        """Means, in the order of the columns."""
        figures = (self.secret, self.likelihood, self.around, self.retained, self.nll)
        return (*(round(fmean(values), 3) for values in figures), self.epochs)


class EpochCounter(TrainerCallback):
    """Counts passes over the forget rows."""

    epochs = 0

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.epochs += 1


def measured(bed: CodeBed, group: CodeGroup, model: Any, thresholds: Thresholds, epochs: int = 0) -> Erased:
    """Measures one model on one group."""
    split = ForgetSplit(group.forget, group.retain, evaluation={"test": bed.test})
    context = TextContext(model, split, bed.tokenizer, cached=False, batch_size=32)
    metrics = (
        MemorisationAccuracy("forget", "secrets"),
        ExtractionLikelihood(10),
        MemorisationAccuracy("forget", "rest"),
        MemorisationAccuracy("retain"),
    )
    values = [tuple(nan if one is None else one for one in metric(context).per_example) for metric in metrics]
    nll = tuple(score.mean_nll for score in context.scores(bed.test))
    gone = thresholds.met(fmean(values[0]), fmean(values[1]))
    secret, likelihood, around, retained = values
    return Erased(secret, likelihood, around, retained, nll, epochs, gone)


def erased(
    bed: CodeBed,
    group: CodeGroup,
    method: CodeEraser,
    rate: float,
    thresholds: Thresholds,
    *,
    seed: int,
    forget: Examples | None = None,
    epochs: int = EPOCHS,
) -> Erased:
    """One application to a fresh model, ended by the thresholds, and what it left."""
    method = replace(
        method,
        accuracy_below=thresholds.accuracy,
        likelihood_below=thresholds.likelihood,
        margin=0.0,
        patience=NEVER,
    )
    steps = EpochCounter()
    args = {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": max(1, len(group.forget) // 16),
        "seed": seed,
        "use_cpu": True,
    }
    model = method.apply(
        bed.load(),
        forget or group.forget,
        group.retain,
        processing_class=bed.tokenizer,
        args=args,
        callbacks=[steps],
        allow_overlap=forget is not None,
    )
    return measured(bed, group, model, thresholds, steps.epochs)


def best(tuned: Mapping[float, Erased]) -> float:
    """The rate that keeps most of the code around, of those that got below the thresholds; of none, that with the lowest secrets."""
    there = {rate: one for rate, one in tuned.items() if one.gone}
    if not there:
        return min(tuned, key=lambda rate: fmean(tuned[rate].secret))
    return max(there, key=lambda rate: fmean(there[rate].around))


def at_random(rows: Examples, tokenizer: Any, seed: int) -> Examples:
    """The same files with as many tokens marked at random places outside their secrets."""
    from ..data.text.encoding import encode_all, offsets_of
    from ..data.text.rendering import Spelling

    random, marked = Random(seed), []
    for row, encoded in zip(rows, encode_all(rows, tokenizer), strict=True):
        offsets = offsets_of(row.answer, Spelling(tokenizer))
        assert encoded.marked is not None
        free = [i for i in range(1, len(offsets)) if not encoded.marked[i] and offsets[i][0] < offsets[i][1]]
        chosen = random.sample(free, min(len(free), sum(encoded.marked)))
        marked.append(Example(row.answer, marked=tuple(offsets[i] for i in sorted(chosen))))
    return Examples(marked, "random places")


def found(rows: Examples) -> float:
    """Share of files in which the detector finds exactly what was planted."""
    exact = [sorted(row.marked) == [(one.start, one.end) for one in detect_secrets(row.answer)] for row in rows]
    return fmean(exact)


def run(budget: Budget) -> Claim:
    """Rates chosen on eight files, every method on thirty-two others, one seed; all seeds with the medium budget and up."""
    tiny = budget.size == "tiny"
    bed = code_bed(epochs=1) if tiny else code_bed()
    seeds = budget.seeds[:1] if budget.size in ("tiny", "small") else budget.seeds
    rates, epochs = (RATES[-1:], 1) if tiny else (RATES, EPOCHS)
    thresholds = calibrate_threshold(bed.load(), bed.tokenizer, bed.unseen[: 10 if tiny else None], starts=4)
    tuned = {
        name: {rate: erased(bed, bed.tuning, one, rate, thresholds, seed=100, epochs=epochs) for rate in rates}
        for name, one in METHODS.items()
    }
    chosen = {name: best(of) for name, of in tuned.items()}
    runs: dict[str, list[Erased]] = {}
    for seed in seeds:
        runs.setdefault("before", []).append(measured(bed, bed.reported, bed.load(), thresholds))
        for name, one in METHODS.items():
            of = erased(bed, bed.reported, one, chosen[name], thresholds, seed=seed, epochs=epochs)
            runs.setdefault(name, []).append(of)
        places = at_random(bed.reported.forget, bed.tokenizer, seed)
        control = replace(METHODS["CodeEraser"], stop="never")
        of = erased(
            bed, bed.reported, control, chosen["CodeEraser"], thresholds,
            seed=seed, forget=places, epochs=max(1, runs["CodeEraser"][-1].epochs),
        )  # fmt: skip
        runs.setdefault("random tokens", []).append(of)
    joined = {name: _joined(of) for name, of in runs.items()}
    rows = {name: one.row() for name, one in joined.items()}
    checks = _checks(joined, thresholds, found(bed.reported.forget))
    return Claim(
        slug="codeeraser",
        claim="erasing secrets alone, held near the model before, keeps the code better than gradient ascent with or without "
        "constraint (CodeParrot, CodeGen, Qwen2.5-Coder, arXiv 2509.13755)",
        setting=f"2.2M model, {2 * len(bed.reported.forget)} planted keys and addresses in {len(bed.reported.forget)} Python passages, "
        f"below MA {thresholds.accuracy:.2f} and EL10 {thresholds.likelihood:.3f} of {thresholds.texts} unseen ones; "
        f"{len(seeds)} seed(s), lr of {RATES}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=tuple(seeds),
        extra={
            "rates chosen": chosen,
            "thresholds": {"accuracy": thresholds.accuracy, "likelihood": thresholds.likelihood},
            "tuning": {
                name: {f"{rate:g}": [*one.row(), one.gone] for rate, one in of.items()} for name, of in tuned.items()
            },
        },
    )


def _joined(of: Sequence[Erased]) -> Erased:
    """All seeds' values one after another."""

    def values(name: str) -> tuple[float, ...]:
        return tuple(value for one in of for value in getattr(one, name))

    return Erased(
        values("secret"),
        values("likelihood"),
        values("around"),
        values("retained"),
        values("nll"),
        epochs=round(fmean(one.epochs for one in of)),
        gone=all(one.gone for one in of),
    )


def _checks(runs: Mapping[str, Erased], thresholds: Thresholds, detected: float) -> tuple[Check, ...]:
    """The card's conditions; intervals are over files."""
    before, ours, ga, cu = (runs[name] for name in ("before", "CodeEraser", "GA", "CU"))
    drops = [
        0.5 * (was - theirs) - (was - mine)
        for was, theirs, mine in zip(before.retained, ga.retained, ours.retained, strict=True)
    ]
    zeros = [0.0] * len(drops)
    return (
        Check("set-up", "the model says nine tenths of the secrets' tokens", fmean(before.secret), ">=", 0.9),
        Check("set-up", "and nine tenths of the code around them", fmean(before.around), ">=", 0.9),
        Check(
            "set-up", "of unseen code it says 0.2 less at least", fmean(before.secret) - thresholds.accuracy, ">=", 0.2
        ),
        Check(
            "set-up",
            "gradient ascent takes a tenth of the code around",
            fmean(before.around) - fmean(ga.around),
            ">=",
            0.1,
        ),
        Check("mechanism", "the detector finds all that was planted and nothing else", detected, ">=", 1.0),
        Check("mechanism", "CodeEraser ends below both thresholds", ours.gone),
        Check.paired("claim", "CodeEraser keeps more of the code around than GA", ours.around, ga.around),
        Check.paired("claim", "and than CU", ours.around, cu.around),
        Check.paired("claim", "unseen code is likelier than after GA", ga.nll, ours.nll),
        Check.paired("claim", "and than after CU", cu.nll, ours.nll),
        Check.paired("claim", "retained files lose less than half of what GA takes", drops, zeros),
        Check("claim", "every method gets below both thresholds", all(runs[name].gone for name in METHODS)),
        Check.paired(
            "control", "tokens at random places leave more of the secrets", runs["random tokens"].secret, ours.secret
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """How much of the code around the secrets three methods keep."""
    ours, ga, cu, before = (figure(rows, name, 2) for name in ("CodeEraser", "GA", "CU", "before"))
    return f"secrets gone, CodeEraser still says {ours} of the code around; GA {ga}, CU {cu}; before {before}"
