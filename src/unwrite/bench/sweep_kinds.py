"""What stands in a line of a sweep, and what each kind of data brings to one: its beds, models, references and columns.

A new kind of data is a line in `KINDS`; nothing else of a sweep knows of kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

from ..audit.images.context import ImageContext
from ..audit.suites.known import DEFAULT, suite_for, suite_named
from ..audit.text.context import TextContext
from ..beds.images import COLUMNS, METRICS, Bed, ImageBed, Measured, by_features
from ..beds.manipulated import COLUMNS as MANIPULATED_COLUMNS
from ..beds.manipulated import METRICS as MANIPULATED_METRICS
from ..beds.manipulated import ManipulatedBed, ManipulatedModels
from ..beds.text_beds import TextBed, TextModels
from ..errors import MethodError
from ..forget.base import Method
from ..forget.engine.checks import require
from ..forget.engine.images.arguments import image_arguments
from ..forget.engine.text.arguments import training_arguments
from ..forget.vision.fine_tuning import Retrain
from ..forget.vision.head_only import HeadOnly

__all__ = ["AGAIN", "KINDS", "TRAINING", "BedModels", "Contender", "Kind", "SweepKind", "named", "sweep_kind"]

Kind = Literal["reference", "control", "method"]
Direction = Literal["lower", "higher"]
AGAIN = "retrained again"  # the retrained model of another seed
REFERENCES = ("before", "retrained", AGAIN)
# Settings that are of training and not of a method, by their short names.
TRAINING = {"epochs": "num_train_epochs", "lr": "learning_rate", "batch_size": "per_device_train_batch_size"}


@dataclass(frozen=True)
class Contender:
    """What stands in a line of the table.

    Args:
        name: its label, unique in a sweep.
        method: what unlearns; None for the references "before", "retrained" and "retrained again".
        args: training arguments that differ from the method's own; the seed is the trial's.

    Raises:
        MethodError: no method and not a reference's name.
    """

    name: str
    method: Method | None = None
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.method is None) != (self.name in REFERENCES):
            raise MethodError(
                f"contender {self.name!r} has method {self.method!r:.60}. Give one; {', '.join(REFERENCES)} have none."
            )

    @property
    def kind(self) -> Kind:
        """A reference (retraining is one too), the head-only control, or a method, which alone is ranked."""
        if self.method is None or isinstance(self.method, Retrain):
            return "reference"
        return "control" if isinstance(self.method, HeadOnly) else "method"

    @property
    def peer(self) -> str:
        """Another package and its version, where its code is what unlearns."""
        return str(getattr(self.method, "peer", ""))


class BedModels(Protocol):
    """What a sweep asks of a bed and a seed."""

    @property
    def before(self) -> Any:
        """The target."""

    @property
    def oracle(self) -> Any:
        """The retrained model."""

    def unlearn(self, method: Method, args: Mapping[str, Any] | None, model: Any) -> tuple[Any, float]:
        """An unlearned copy of the model, and its cost in forwards of one row."""

    def measure(self, model: Any, forwards: float = 0.0) -> Measured:
        """The figures of a model."""

    def retraining(self) -> Measured:
        """The figures of the retrained model, at what its training cost."""


@dataclass(frozen=True)
class SweepKind:
    """One kind of data.

    Args:
        name: as `Method.forgets` has it.
        bed: the class of its beds.
        models: gives a bed's models for a seed.
        check: refuses training arguments, of a contender and a bed.
        audited: a bed with other suites.
        always: contenders that are always there.
        ceilings: suites beside whose figures another retrained model is shown, as the nearest that a method can come.
        headings: {metric: its column's heading}, in the table's order.
        ranked_by: {metric: which way is good}; the first that a bed measures ranks.
        also_ranked: {metric: the heading of another rank by it}, where high is good.
    """

    name: str
    bed: type
    models: Callable[[Any, int], BedModels]
    check: Callable[[Contender, Any], object]
    audited: Callable[[Any, tuple[str, ...]], Any]
    always: tuple[Contender, ...]
    headings: Mapping[str, str]
    ranked_by: Mapping[str, Direction]
    ceilings: tuple[str, ...] = ()
    also_ranked: Mapping[str, str] = field(default_factory=dict)

    def references(self, bed: Any) -> tuple[Contender, ...]:
        """The contenders that are always there on this bed."""
        beside = (Contender(AGAIN),) if set(self.ceilings) & set(bed.suites) else ()
        return (*self.always[:2], *beside, *self.always[2:])

    def admit(self, contender: Contender, bed: Any) -> None:
        """Refuses what this bed's data can't be forgotten by.

        Raises:
            MethodError: a method for other data; an unknown training argument, or one outside its range.
        """
        method = contender.method
        if contender.name == AGAIN and not self.ceilings:
            raise MethodError(f"{AGAIN!r} is there for beds of images alone; bed {bed.name} is of {self.name}.")
        if method is not None and self.name not in method.forgets:
            raise MethodError(
                f"{contender.name} has no meaning for {self.name} (bed {bed.name}); it forgets "
                f"{' and '.join(method.forgets)}. Choose among: unwrite methods."
            )
        self.check(contender, bed)


def _image_check(contender: Contender, bed: Bed) -> object:
    return image_arguments(dict(contender.args))


def _corrective_alone(bed: ManipulatedBed, suites: tuple[str, ...]) -> ManipulatedBed:
    raise MethodError(
        f"bed {bed.name} is of manipulated rows, whose audit is of one suite. Choose suites for other beds alone."
    )


def _image_suites(bed: Bed, suites: tuple[str, ...]) -> Bed:
    """Refuses an unknown suite, one for other data, and one without a metric for these rows, before anything is trained."""
    for suite in suites:
        known = suite_named(suite)
        if known.of != ImageContext.kind and suite != DEFAULT:
            raise MethodError(
                f"suite {suite!r} is for {known.of}; bed {bed.name} is of images. Use vision or representation."
            )
    if suites == ("representation",):
        return by_features(bed)
    return replace(bed, suites=suites, metrics=())


def _text_check(contender: Contender, bed: TextBed) -> object:
    args = contender.args
    for name, least in (("num_train_epochs", 0), ("learning_rate", 0), ("per_device_train_batch_size", 1)):
        if name in args:
            require(name, args[name], at_least=least)
    return training_arguments(dict(bed.training) | dict(args) | {"use_cpu": True})


def _suites(bed: TextBed, suites: tuple[str, ...]) -> TextBed:
    """Refuses an unknown suite, and one for other data, before anything is trained."""
    for suite in suites:
        suite_for(suite, TextContext.kind, bed.split())
    return replace(bed, suites=suites)


KINDS = (
    SweepKind(
        name="images",
        bed=ManipulatedBed,
        models=ManipulatedModels,
        check=_image_check,
        audited=_corrective_alone,
        always=(Contender("before"), Contender("retrained"), Contender("head-only", HeadOnly())),
        headings=dict(zip(MANIPULATED_METRICS, MANIPULATED_COLUMNS, strict=False)),
        ranked_by={"corrected_accuracy": "higher"},
    ),
    SweepKind(
        name="images",
        bed=Bed,
        models=ImageBed,
        check=_image_check,
        audited=_image_suites,
        always=(Contender("before"), Contender("retrained"), Contender("head-only", HeadOnly())),
        headings={
            "forget_mae": "error, forget rows",
            "test_forget_mae": "test, forgotten range",
            "retain_mae": "error, retain rows",
            "test_retain_mae": "error, test rows",
            "wasserstein": "distance to retrained",
            "mia_l1": "MIA",
            "nomus": "NoMUS",
            "forgetting_score": "m from 0.5",
            "mia_loss": "loss attack m",
            "agl": "AGL",
            "agr": "AGR",
            "h_lr": "H-LR",
            **dict(zip((*METRICS, "cost"), COLUMNS, strict=True)),
            "forget_accuracy": "forget rows",
            "forget_accuracy_former_head": "under the former head",
            "cka_forget": "CKA to retrained",
            "cka_forget_to_before": "CKA to before, forget rows",
        },
        ranked_by={"avg_gap": "lower", "wasserstein": "lower", "h_lr": "higher", "nomus": "higher"},
        ceilings=("representation",),
        also_ranked={"agl": "rank by answers", "agr": "rank by features"},
    ),
    SweepKind(
        name="text",
        bed=TextBed,
        models=TextModels,
        check=_text_check,
        audited=_suites,
        always=(Contender("before"), Contender("retrained")),
        headings={
            "forget_quality_log10": "forget quality, log10 p",
            "model_utility": "model utility",
            "forget_truth_ratio": "truth ratio",
            "forget_probability": "P(forget)",
            "forget_paraphrase_probability": "P(paraphrase)",
            "forget_rouge": "ROUGE, forget",
            "retain_rouge": "ROUGE, retain",
        },
        ranked_by={"forget_quality_log10": "higher"},
    ),
)


def sweep_kind(bed: object) -> SweepKind:
    """The kind of data a bed is of.

    Raises:
        MethodError: it is no bed.
    """
    for kind in KINDS:
        if isinstance(bed, kind.bed):
            return kind
    known = " or ".join(kind.bed.__name__ for kind in KINDS if not issubclass(kind.bed.mro()[1], Bed))
    raise MethodError(f"{bed!r:.60} is no bed. Give a {known}.")


def named(function: Any, bed: str) -> Any:
    """What a function is, as plain values by which another process finds it.

    Raises:
        MethodError: it has no name.
    """
    if isinstance(function, partial):
        return [named(function.func, bed), function.args, function.keywords]
    name = getattr(function, "__qualname__", "<")
    if "<" in name:
        raise MethodError(
            f"bed {bed!r} is made by {function!r:.60}, which has no name that another process could find. Give a function of a "
            "module, or functools.partial of one."
        )
    return f"{function.__module__}.{name}"
