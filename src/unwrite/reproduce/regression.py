"""Can a regressor forget? Real digits with a smooth target, of which the lowest fifth is forgotten.

Claim looked at (arXiv 2210.08196): after Blindspot unlearning the error on forgotten rows is near retraining's, where
fine-tuning leaves it low; and it takes longer to learn them again. Error on retain rows should be as after retraining.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import nn

from ..audit.attacks.relearning_time import Relearning, relearn, validation_loss
from ..beds.budget import Budget
from ..beds.images import BEDS, ImageBed, Measured, mean_of, rows_of
from ..forget.base import Method
from ..forget.vision.fine_tuning import FineTune
from ..forget.vision.head_only import HeadOnly
from ..forget.vision.regression import Blindspot, GaussianAmnesiac
from .base import Claim, figure
from .checks import Check, reason_of

METRICS = (
    "forget_mae",
    "test_forget_mae",
    "retain_mae",
    "test_retain_mae",
    "wasserstein",
    "mia_l1",
    "forget_cka",
    "ain",
)
COLUMNS = (
    "error on forgotten", "unseen forgotten", "error on kept", "unseen kept", "W1 to retrained", "MIA", "CKA to before", "AIN",
    "cost, forwards a row",
)  # fmt: skip
# An epoch has some 40 steps of 32, as the paper's has of 256 on AgeDB.
LR, BATCH = 1e-3, 32
EPOCHS = 10  # of relearning, at most
ADAM = {"optim": "adam", "learning_rate": LR, "weight_decay": 0.0, "per_device_train_batch_size": BATCH}
ONE, FIVE = {**ADAM, "num_train_epochs": 1}, {**ADAM, "num_train_epochs": 5}
# Five epochs, and ten of the blind model, are the paper's for STS-B, its smaller set; one, and two, those for AgeDB.
METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "head only": (HeadOnly(), {}),
    "fine-tuned": (FineTune(), FIVE),
    "Gaussian amnesiac": (GaussianAmnesiac(), FIVE),
    "Blindspot": (Blindspot(blind_epochs=10), FIVE),
    "Blindspot, outputs alone": (Blindspot(blind_epochs=10, beta=0), FIVE),
    "Gaussian amnesiac, as on AgeDB": (GaussianAmnesiac(), ONE),
    "Blindspot, as on AgeDB": (Blindspot(), ONE),
}
Measurements = dict[str, list[Measured]]


def run(budget: Budget) -> Claim:
    """The card's five models, with two controls, on every seed."""
    measurements: Measurements = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the blind model knows little, which the figures show
        for seed in budget.seeds:
            _seed(ImageBed(BEDS["digits/range"], seed), measurements, 1 if budget.size == "tiny" else EPOCHS)
    checks = _checks(measurements)
    rows = rows_of(measurements, METRICS)
    return Claim(
        slug="regression",
        claim="On AgeDB Blindspot's error on forgotten ages is 21.6, near retraining's 24.3 (before: 12.8, fine-tuned "
        "14.8), and relearning them takes longest (AIN 0.33, fine-tuned 0.007; AllCNN, arXiv 2210.08196)",
        setting="scikit-learn's digits, target = ink centroid + 2 * class / 10, the lowest fifth forgotten, CNN of 0.08M "
        f"weights, batches of 32, five epochs, seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(measurements)),
        checks=checks,
        seeds=budget.seeds,
    )


def _seed(bed: ImageBed, measurements: Measurements, epochs: int) -> None:
    theirs = relearning(bed, bed.oracle, epochs)

    def keep(name: str, one: Measured, model: nn.Module) -> None:
        ours = theirs if model is bed.oracle else relearning(bed, model, epochs)
        reached = ours.reached and theirs.reached
        again = ours.steps / theirs.steps if reached else float("nan")
        measurements.setdefault(name, []).append(Measured({**one.values, "ain": again}, one.cost))

    keep("before", bed.measure(bed.before), bed.before)
    keep("retrained", bed.retraining(), bed.oracle)
    for name, (method, args) in METHODS.items():
        model, cost = bed.unlearn(method, args)
        keep(name, bed.measure(model, cost), model)


def relearning(bed: ImageBed, model: nn.Module, epochs: int = EPOCHS) -> Relearning:
    """How long a model learns until the unseen rows of the forgotten range have 1.05 times the error before.

    It gives up after so many epochs. At the methods' own learning rate and batch size: at the paper's 0.01 and 256 not even the
    model before comes back to its own error in ten epochs here.
    """
    train, unseen = bed.split.train, bed.split.test_forget
    assert unseen is not None
    training, evaluation = (train.pixels, train.target), (unseen.pixels, unseen.target)
    bar = 1.05 * validation_loss(bed.before, evaluation)
    return relearn(model, training, evaluation, bar, learning_rate=LR, batch_size=BATCH, epochs=epochs, seed=bed.seed)


def _checks(measurements: Measurements) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def of(name: str, metric: str) -> list[float]:
        return [one[metric] for one in measurements[name]]

    def off(name: str) -> list[float]:
        """How far the error on forgotten rows is from retraining's."""
        return [
            abs(own - oracle) for own, oracle in zip(of(name, "forget_mae"), of("retrained", "forget_mae"), strict=True)
        ]

    def nearer(ours: list[float], others: Sequence[list[float]]) -> list[float]:
        """By how much the nearest of the others is further away."""
        return [min(rest) - own for own, *rest in zip(ours, *others, strict=True)]

    others = ("fine-tuned", "Gaussian amnesiac")
    shares = zip(of("Blindspot", "test_retain_mae"), of("retrained", "test_retain_mae"), strict=True)
    longer = [own - tuned for own, tuned in zip(of("Blindspot", "ain"), of("fine-tuned", "ain"), strict=True)]
    distances = nearer(of("Blindspot", "wasserstein"), [of(name, "wasserstein") for name in others])
    retained = "its error on unseen kept rows is within 10 % of retraining's"
    return (
        Check.by_seed(
            "claim",
            "Blindspot's error on forgotten rows is nearest to retraining's",
            nearer(off("Blindspot"), [off(name) for name in others]),
            ">",
            0,
        ),
        Check.by_seed("claim", "its predictions there are nearest to retraining's (W1)", distances, ">", 0),
        Check.by_seed("claim", retained, [own / oracle for own, oracle in shares], "<=", 1.1),
        Check.by_seed("claim", "relearning takes longer than after fine-tuning (AIN)", longer, ">", 0),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """The error on forgotten rows, which should be as after retraining."""
    blind, tuned, oracle, before = (figure(rows, n, 0) for n in ("Blindspot", "fine-tuned", "retrained", "before"))
    return f"error on forgotten rows {blind} (retrained {oracle}, fine-tuned {tuned}, before {before})"


def _reason(measurements: Measurements) -> str:
    names = ("before", "fine-tuned", "Gaussian amnesiac", "Blindspot", "retrained", "head only")
    errors = ", ".join(f"{mean_of(measurements, name, 'forget_mae'):.2f} {name}" for name in names)
    again = ", ".join(f"{mean_of(measurements, name, 'ain'):.2f} {name}" for name in names if name != "retrained")
    cost = ", ".join(
        f"{fmean(one.cost for one in measurements[n]):.0f} {n}" for n in ("Blindspot", "retrained", "fine-tuned")
    )
    short = "Blindspot, as on AgeDB"
    return (
        f"Error on forgotten rows: {errors}; AIN: {again}, so a model that forgot nothing isn't relearnt at once either. "
        f"Cost in forwards a row: {cost}. {short} costs {fmean(one.cost for one in measurements[short]):.0f}: error "
        f"{mean_of(measurements, short, 'forget_mae'):.2f} on forgotten rows, "
        f"{mean_of(measurements, short, 'test_retain_mae'):.3f} on unseen kept ones "
        f"(retrained {mean_of(measurements, 'retrained', 'test_retain_mae'):.3f})"
    )
