"""Twelve methods on rendered characters: a class, a random tenth and a font forgotten, at most five seconds a method.

Their settings were chosen on another seed (`TUNED_ON`) than any that is reported. Targets and oracles are trained first, or
found in the cache, and their time is told apart. Every trial runs in this process on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..beds.images import BEDS, Bed, ImageBed
from ..forget.dampening import SSD
from ..forget.gradient_ascent import GradientAscent
from ..forget.vision.bad_teacher import BadTeacher
from ..forget.vision.boundary import BoundaryShrink
from ..forget.vision.fine_tuning import CFk, FineTune
from ..forget.vision.l1_sparse import L1Sparse
from ..forget.vision.laf import LAF
from ..forget.vision.neg_grad import NegGradPlus
from ..forget.vision.relabelling import RandomLabel
from ..forget.vision.salun import SalUn
from ..forget.vision.scrub import SCRUB
from ..runs.jobs import one_thread
from .sweep import sweep, trials_of
from .sweep_kinds import Contender

__all__ = ["BED_NAMES", "CONTENDERS", "LIMIT", "Trained", "over_limit", "run", "train"]

LIMIT = 5.0  # seconds a method
TUNED_ON = 7  # the seed on which settings were chosen
BED_NAMES = ("glyphs/class", "glyphs/random", "glyphs/identity")


def _training(epochs: float, lr: float, **others: Any) -> dict[str, Any]:
    return {"num_train_epochs": epochs, "learning_rate": lr, **others}


CONTENDERS = (
    Contender("fine-tune", FineTune(), _training(2, 0.02)),
    Contender("cf-k", CFk(), _training(2, 0.1)),
    Contender("l1-sparse", L1Sparse(gamma=1e-3), _training(2, 0.02, per_device_train_batch_size=64)),
    Contender("gradient-ascent", GradientAscent(), _training(3, 2e-4)),
    Contender("neg-grad-plus", NegGradPlus(), _training(1, 0.01)),
    Contender("random-label", RandomLabel(), _training(2, 5e-3)),
    Contender("salun", SalUn(), _training(2, 5e-3)),
    Contender("scrub", SCRUB(msteps=1, decay=(2,)), _training(2, 2e-4, optim="adam")),
    Contender("bad-teacher", BadTeacher(), _training(1, 2e-4)),
    Contender("boundary-shrink", BoundaryShrink(), _training(5, 1e-4)),
    Contender("ssd", SSD(alpha=7, importance_batch=16)),
    Contender("laf", LAF(extractor_lr=5e-4, alignment_lr=1e-3, tau=5, vae_epochs=3), {"num_train_epochs": 3}),
)


@dataclass(frozen=True)
class Trained:
    """What a bed's models took.

    Args:
        bed: its name.
        seconds: to train the target and the oracle, or to find them.
    """

    bed: str
    seconds: float


def train(beds: Iterable[Bed], seed: int, tell: Callable[[str], None] = lambda line: None) -> list[Trained]:
    """Trains targets and oracles that the cache doesn't have; the data are made before the clock starts."""
    trained = []
    for bed in beds:
        tell(f"target and oracle of {bed.name}")
        with one_thread():
            image_bed = ImageBed(bed, seed)
            _ = image_bed.split
            start = time.perf_counter()
            _ = image_bed.before, image_bed.oracle
        trained.append(Trained(bed.name, time.perf_counter() - start))
    return trained


def run(
    out: Path,
    seed: int = 0,
    beds: Iterable[Bed] | None = None,
    contenders: Iterable[Contender] = CONTENDERS,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[dict[str, Any]], list[Trained]]:
    """The rows of all trials, see `sweep`, and what their targets and oracles took.

    Args:
        out: JSON lines, where a stopped run goes on.
        seed: of everything.
        beds: those of `BED_NAMES` by default.
    """
    chosen = [BEDS[name] for name in BED_NAMES] if beds is None else list(beds)
    trials = trials_of(contenders, chosen, [seed])
    trained = train(chosen, seed, tell)
    return sweep(trials, out, 1, tell), trained


def over_limit(rows: Iterable[dict[str, Any]], limit: float = LIMIT) -> list[str]:
    """The methods that took longer, with their seconds."""
    return [
        f"{row['contender']} on {row['bed']}: {row['seconds']:.1f} s"
        for row in rows
        if row["kind"] == "method" and (row.get("seconds") or 0.0) > limit
    ]
