"""DP2Unlearning in small: 200 passwords among 2,000 records, forgotten by going back to a base that read them privately.

Claim looked at (arXiv 2504.13774): fine-tuned from a private base, a model forgets as one retrained from the start does, keeps its
utility, and takes about half the steps. Four bases read the same records in the same way, with noise for epsilon 1, 8 and 100 of a record,
and without any. Controls: the base without noise, and an ordinary fine-tuned model that goes on without the forgotten records.
How much of a password is left is its exposure, how far its loss lies below that of passwords nobody saw, and a membership attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf, isinf, log, log2
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..audit.text.membership import auc
from ..beds.budget import Budget
from ..beds.canaries import (
    POSSIBLE,
    WORDS,
    CanaryBed,
    CanarySizes,
    canary_bed,
    exposures,
    losses,
    password,
    probabilities,
    public_model,
)
from ..data import Examples
from ..data.text.encoding import encode_all
from ..forget.gradient_ascent import GradientAscent
from ..forget.private.dp2unlearning import DPBase
from ..forget.private.dp_sgd import DPSGD
from ..forget.private.tuning import DeploymentTuning
from ..models import load_model
from ..runs import hash_model, scratch_folder
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPSILONS = (1.0, 8.0, 100.0, inf)
BASE = DPSGD(epochs=10, batch=200, rate=2e-3, decay=0.01, clip=1.0, optimiser="adamw", together=50)
TUNING = DeploymentTuning(epochs=10, rate=2e-3, batch=32, retraining_epochs=20)
ASCENT_RATES, ASCENT_EPOCHS = (1e-4, 1e-3), 3
FEW = CanarySizes(forget=8, retained=12, unseen=10, ordinary=40, public=10)
COLUMNS = ("epsilon of a record", "exposure, bits", "loss gap, nats", "membership AUC", "utility", "steps / retraining")
RETRAINED, ORDINARY, DEPLOYED = "retrained (RFS)", "no private base", "deployed (FDM)"
TENTH = 0.1  # of what there is to know: how close to the retrained model counts as close


def unlearned(epsilon: float) -> str:
    """The row of a model unlearned from a base."""
    return "unlearned, base without noise" if isinf(epsilon) else f"unlearned, base of epsilon {epsilon:g}"


@dataclass(frozen=True)
class Left:
    """What a model says of passwords that it should not know, and of what it should.

    Args:
        exposure, forget: of the forgotten passwords, each.
        unseen: losses of passwords that nobody saw.
        useful: probabilities of retained passwords and of the rule's answers to new questions.
        epsilon: that its base spent on a record; infinite without noise.
        cost: steps over those of retraining.
    """

    exposure: list[float]
    forget: list[float]
    unseen: list[float]
    useful: list[float]
    epsilon: float | None = None
    cost: float | None = None

    @property
    def gaps(self) -> list[float]:
        """How far each forgotten password's loss lies below the mean of unseen ones."""
        mean = fmean(self.unseen)
        return [mean - one for one in self.forget]

    @property
    def membership(self) -> float:
        """The chance that an unseen password has a higher loss than a forgotten one."""
        return auc(self.forget, self.unseen)

    def row(self) -> tuple[Any, ...]:
        """The figures, in the order of the columns."""
        spent = "-" if self.epsilon is None else "none" if isinf(self.epsilon) else f"{self.epsilon:.3g}"
        cost = "-" if self.cost is None else f"{self.cost:.2f}"
        figures = (fmean(self.exposure), fmean(self.gaps), self.membership, fmean(self.useful))
        return (spent, *(f"{value:.3f}" for value in figures), cost)


@dataclass
class PrivacyTrial:
    """All models of one seed, and what else was seen.

    Args:
        left: {row: what a model says}.
        learnt: by epsilon, how much likelier the rule's answers are after the base than before it.
        spent: by epsilon, what the base's ledger says.
        same: whether forgotten records that became noise leave the unlearned model as it was.
        statement: of the certificate at epsilon 8.
    """

    left: dict[str, Left] = field(default_factory=dict)
    learnt: dict[float, float] = field(default_factory=dict)
    spent: dict[float, float] = field(default_factory=dict)
    same: bool = False
    statement: str = ""


def measured(model: PreTrainedModel, bed: CanaryBed, epsilon: float | None = None, cost: float | None = None) -> Left:
    """Measures one model."""
    useful = [*probabilities(model, bed, bed.known), *probabilities(model, bed, bed.test)]
    forget, unseen = losses(model, bed, bed.forget), losses(model, bed, bed.unseen)
    return Left(exposures(model, bed, bed.forget), forget, unseen, useful, epsilon, cost)


def tuned(
    start: Any, rows: Examples, bed: CanaryBed, training: DeploymentTuning, seed: int, folder: Path
) -> PreTrainedModel:
    """Ordinary fine-tuning; the folder is scratch."""
    recipe, encoded = training.recipe(start), encode_all(rows, bed.tokenizer)
    model: Any = recipe.build(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe.fit(model, encoded, list(range(len(encoded))), seed, folder)
    return model


def trial(
    bed: CanaryBed, seed: int, home: Path, how: DPSGD = BASE, training: DeploymentTuning = TUNING
) -> PrivacyTrial:
    """Every model of one seed."""
    made = PrivacyTrial()
    longer = replace(training, epochs=training.retraining_epochs)
    made.left[RETRAINED] = measured(tuned(bed.start, bed.retain, bed, longer, seed, home / "rfs"), bed, cost=1.0)
    before = fmean(probabilities(public_model(bed), bed, bed.test))
    for epsilon in EPSILONS:
        base = DPBase.fit(
            bed.start,
            bed.data,
            home / f"base {epsilon}",
            tokenizer=bed.tokenizer,
            mechanism=replace(how, epsilon=epsilon),
            seed=seed,
        )
        made.learnt[epsilon] = fmean(probabilities(load_model(base.folder), bed, bed.test)) - before
        made.spent[epsilon] = inf if base.ledger.epsilon is None else base.ledger.epsilon
        after = base.unlearn(
            bed.data, bed.forget_ids, home / f"um {epsilon}", training, certify=not isinf(epsilon), seed=seed
        )
        cost = (
            training.epochs / training.retraining_epochs if after.certificate is None else after.certificate.cost_ratio
        )
        made.left[unlearned(epsilon)] = measured(after.load(), bed, made.spent[epsilon], cost)
        if epsilon == 8.0:
            assert after.certificate is not None
            made.statement = after.certificate.statement
            made.same = same_without(base, bed, home, training, seed)
            deployed = load_model(base.deploy(bed.data, home / "fdm", training, seed=seed))
            made.left[DEPLOYED] = measured(deployed, bed, made.spent[epsilon])
            made.left |= ascended(deployed, bed, seed)
    whole = tuned(bed.start, bed.data, bed, longer, seed, home / "whole")
    whole.save_pretrained(home / "whole model")
    made.left[ORDINARY] = measured(
        tuned(home / "whole model", bed.retain, bed, training, seed, home / "went on"),
        bed,
        inf,
        training.epochs / longer.epochs,
    )
    return made


def same_without(base: DPBase, bed: CanaryBed, home: Path, training: DeploymentTuning, seed: int) -> bool:
    """Whether an epoch from the base gives the same weights when each forgotten record says something else."""
    random, rows, short = Random(seed), list(bed.data), replace(training, epochs=1)
    for number in bed.forget_ids:
        rows[number] = password(random.choice(WORDS), random)
    made = [
        base.unlearn(data, bed.forget_ids, home / f"twin {i}", short, certify=False, seed=seed)
        for i, data in enumerate((bed.data, Examples(rows, "noise")))
    ]
    first, second = (hash_model(one.load()) for one in made)
    return first == second


def ascended(deployed: PreTrainedModel, bed: CanaryBed, seed: int) -> dict[str, Left]:
    """Gradient ascent on the deployed model, at each rate."""
    left = {}
    for rate in ASCENT_RATES:
        args = {
            "learning_rate": rate,
            "num_train_epochs": ASCENT_EPOCHS,
            "seed": seed,
            "use_cpu": True,
            "per_device_train_batch_size": 32,
        }
        model = GradientAscent().apply(deepcopy(deployed), bed.forget, processing_class=bed.tokenizer, args=args)
        left[f"gradient ascent, lr {rate:g}"] = measured(model, bed)
    return left


def run(budget: Budget) -> Claim:
    """One seed; all seeds with the medium budget and up."""
    tiny = budget.size == "tiny"
    seeds = budget.seeds[:1] if budget.size in ("tiny", "small") else budget.seeds
    how, training = BASE, TUNING
    if tiny:
        how, training = replace(BASE, epochs=1, batch=10), replace(TUNING, epochs=1, retraining_epochs=2)
    trials = []
    for seed in seeds:
        bed = canary_bed(seed, FEW, 1) if tiny else canary_bed(seed)
        with scratch_folder() as home:
            trials.append(trial(bed, seed, home, how, training))
    left = {name: joined([one.left[name] for one in trials]) for name in trials[0].left}
    rows = {name: one.row() for name, one in left.items()}
    checks = _checks(left, trials)
    return Claim(
        slug="dp2unlearning",
        claim="fine-tuned from a private base, a model forgets with a formal guarantee, near a retrained one in forgetting and utility, "
        "at about half of retraining's cost (TOFU, Phi-1.5 and Llama-2-7b, arXiv 2504.13774)",
        setting=f"0.2M model, {len(bed.data)} records, {len(bed.forget_ids)} passwords of {POSSIBLE} possible ones to forget; bases by DP-SGD, "
        f"{how.epochs:g} epochs; {training.epochs} epochs from them, {training.retraining_epochs} retraining; {len(seeds)} seed(s)",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, f"What the certificate says at epsilon 8: {trials[0].statement}"),
        checks=checks,
        seeds=tuple(seeds),
        extra={
            "delta": how.delta_of(len(bed.data)),
            "learnt by the base": {f"{epsilon:g}": round(value, 4) for epsilon, value in trials[0].learnt.items()},
        },
    )


def joined(of: Sequence[Left]) -> Left:
    """All seeds' passwords one after another."""

    def values(name: str) -> list[float]:
        return [value for one in of for value in getattr(one, name)]

    return replace(
        of[0], exposure=values("exposure"), forget=values("forget"), unseen=values("unseen"), useful=values("useful")
    )


def _checks(left: Mapping[str, Left], trials: Sequence[PrivacyTrial]) -> tuple[Check, ...]:
    """The card's conditions; intervals are over passwords, or over the questions utility is measured on."""
    retrained, deployed, ordinary, noiseless = (left[name] for name in (RETRAINED, DEPLOYED, ORDINARY, unlearned(inf)))
    bits = TENTH * log2(POSSIBLE)

    def stands_out(kind: Any, text: str, ours: Left) -> Check:
        return Check.paired(kind, text, ours.exposure, [value + bits for value in retrained.exposure])

    return (
        stands_out(
            "set-up",
            "the deployed model knows the passwords: a tenth of all bits more than the retrained one",
            deployed,
        ),
        Check("set-up", "the retrained model is of use", fmean(retrained.useful), ">=", 0.5),
        Check("set-up", "a base of epsilon 8 learns the rule", min(trial.learnt[8.0] for trial in trials), ">", 0.0),
        Check(
            "mechanism",
            "what forgotten records became leaves the unlearned model as it was, to the bit",
            all(t.same for t in trials),
        ),
        Check(
            "mechanism",
            "a base spends what was asked for, within a percent",
            all(0.99 * wanted <= trial.spent[wanted] <= wanted for trial in trials for wanted in (1.0, 8.0, 100.0)),
        ),
        *_claims(left),
        stands_out(
            "control", "from a base that was trained in the same way without noise they stand out more", noiseless
        ),
        stands_out(
            "control", "going on from an ordinary model without the records leaves them standing out more", ordinary
        ),
    )


def _claims(left: Mapping[str, Left]) -> tuple[Check, ...]:
    """What the paper says of unlearning from a base of epsilon 8 or 1."""
    retrained, eight, one = (left[name] for name in (RETRAINED, unlearned(8.0), unlearned(1.0)))
    bits, nats, zeros = TENTH * log2(POSSIBLE), TENTH * log(len(WORDS)), [0.0] * len(retrained.exposure)

    def beyond(ours: list[float], theirs: list[float], by: float) -> list[float]:
        """What is left of a tenth once the difference is taken off."""
        return [by - (mine - other) for mine, other in zip(ours, theirs, strict=True)]

    return (
        Check.paired(
            "claim",
            "from a base of epsilon 8, passwords stand out less than a tenth of all bits more than after retraining",
            beyond(eight.exposure, retrained.exposure, bits),
            zeros,
        ),
        Check.paired(
            "claim", "so they do from a base of epsilon 1", beyond(one.exposure, retrained.exposure, bits), zeros
        ),
        Check.paired(
            "claim",
            "at epsilon 8 their loss gap is less than a tenth of a word's more",
            beyond(eight.gaps, retrained.gaps, nats),
            zeros,
        ),
        Check.paired("claim", "so it is at epsilon 1", beyond(one.gaps, retrained.gaps, nats), zeros),
        Check(
            "claim",
            "membership AUC lies within 0.05 of chance at epsilon 1 and 8, as the figure is",
            max(abs(eight.membership - 0.5), abs(one.membership - 0.5)),
            "<=",
            0.05,
        ),
        Check.paired(
            "claim",
            "at epsilon 8 it keeps 0.9 of the utility",
            eight.useful,
            [0.9 * value for value in retrained.useful],
            ">=",
        ),
        Check("claim", "unlearning takes at most 0.55 of retraining's steps", eight.cost or inf, "<=", 0.55),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is left of the passwords, from the base of epsilon 8, retrained and without noise."""
    ours, retrained, noiseless = (figure(rows, name, 1) for name in (unlearned(8.0), RETRAINED, unlearned(inf)))
    return f"exposure {ours} bits from a base of epsilon 8; retrained {retrained}; base without noise {noiseless}"
