"""The image methods of SUPREME as contenders of a sweep: its own functions, on our targets, rows and recipes.

    unwrite sweep --methods scrub,supreme:scrub --beds digits/class --seconds --out rows.jsonl

SUPREME (supreme-unlearning 0.1.5, MIT) is a framework on Lightning Fabric. Its pipeline trains and stores models of its own; here
each function is called alone, with the bed's target and split, a Fabric on the model's device and SUPREME's own shuffled loaders.
What its pipeline chooses for a function it still has (batches of 64 for a class and 128 for random rows, alpha). Three things
are not as in its pipeline, and none of them changes a weight: loaders have no worker processes, as ours have none; between
epochs one row is evaluated and not the test set; wandb, of which these functions need nothing, is never loaded.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from ..data.images.images import Images
from ..errors import DataError, MethodError, MissingExtra, NotFinite, unknown
from ..forget.base import Edit
from ..forget.dampening import ASSD, LFSSD, SSD
from ..forget.engine.checks import require
from ..forget.engine.cost import Cost
from ..forget.engine.images.arguments import ImageArguments
from ..forget.engine.images.classes import need_classes, whole_classes
from ..forget.engine.images.work import ImageWork, frozen
from ..forget.gradient_ascent import GradientAscent
from ..forget.vision.bad_teacher import BadTeacher
from ..forget.vision.fine_tuning import FineTune
from ..forget.vision.relabelling import Amnesiac
from ..forget.vision.scrub import SCRUB
from ..forget.vision.unsir import UNSIR
from ..models.vision_layout import logits_of
from ..runs import seeded
from .sweep_kinds import TRAINING, Contender

__all__ = ["FUNCTIONS", "PREFIX", "SupremeMethod", "pairs", "settings_of"]

PREFIX = "supreme:"
FUNCTIONS = (
    "assd", "bad_teacher", "finetune", "lfssd", "neg_grad", "random_labeling", "scrub", "ssd", "unsir",
)  # fmt: skip
PACKAGE, MADE_FOR = "supreme-unlearning", "0.1.5"
MODULE = "supreme.methods.unlearning_methods"
# Imported at the head of its files for what these functions don't do: logging on a server, a debugger, sets of pictures.
STOOD_IN = (
    "wandb",
    "debugpy",
    "torchvision",
    "torchvision.datasets",
    "torchvision.datasets.utils",
    "torchvision.transforms",
)
# What its pipeline gives functions that have no defaults: (of a whole class, of random rows).
LAMBDA, ALPHA = "dampening_constant", "selection_weighting"
CHOSEN: dict[str, dict[str, tuple[float, float]]] = {
    "ssd": {LAMBDA: (1.0, 1.0), ALPHA: (10.0, 10.0)},
    "assd": {LAMBDA: (1.0, 1.0), ALPHA: (10.0, 10.0)},
    "lfssd": {LAMBDA: (1.0, 1.0), ALPHA: (10.0, 3.5)},
}
BATCH = (64, 128)
UNSIR_CHANNELS = 3
# What it is handed by `SupremeMethod`; every other argument of a function is a setting.
GIVEN = frozenset({
    "fabric", "num_gpus", "wandb_logging_flag", "type_of_unlearning_strategy", "num_labels", "forget_label_id", "model", "trainset",
    "retain_train_dataloader", "retain_test_dataloader", "forget_train_dataloader", "forget_test_dataloader",
    "full_train_dataloader", "unlearning_teacher",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SupremeMethod(Edit[ImageWork]):
    """One function of supreme-unlearning, applied as any method of this library.

    Args:
        function: its name there, of `FUNCTIONS`.
        batch_size: rows a batch of the loaders that it is handed; None for its pipeline's, 64 where a whole class is forgotten and
            128 otherwise. random_labeling, bad_teacher and unsir make loaders of their own size.
        options: arguments of the function that are no data, such as {"sgda_epochs": 5}; see `settings_of`.
        installed: the version that is installed.

    Raises:
        MissingExtra: the package isn't installed.
        MethodError: an unknown function or option; a package without the function.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False
    function: str
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    installed: str = field(init=False)

    def __post_init__(self) -> None:
        known = settings_of(self.function)
        if odd := next((name for name in self.options if name not in known or name == "batch_size"), None):
            raise MethodError(unknown(f"setting of {self.name}", odd, sorted(known)))
        if self.batch_size is not None:
            require("batch_size", self.batch_size, at_least=1)
        object.__setattr__(self, "installed", version(PACKAGE))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process its files are imported when the method arrives, and not on the method's clock."""
        self.__dict__.update(state)
        function_named(self.function)

    @property
    def name(self) -> str:
        """Its label in a sweep."""
        return PREFIX + self.function

    @property
    def peer(self) -> str:
        """Whose code unlearns, for the rows of a sweep."""
        return f"{PACKAGE} {self.installed}, lightning {version('lightning')}"

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        need_classes(self, forget)
        if self.function != "unsir":
            return
        if _only_class(forget, retain) is None:
            raise DataError(f"{self.name} forgets one whole class. Split by one class, or take another method.")
        if forget.shape[0] != UNSIR_CHANNELS:
            raise DataError(
                f"{self.name} makes noise of {UNSIR_CHANNELS} channels, and the pixels have {forget.shape[0]}. Take pictures of "
                f"{UNSIR_CHANNELS} channels, or unsir."
            )

    def check_work(self, work: ImageWork) -> None:
        super().check_work(work)
        if self.function == "bad_teacher" and work.recipe is None:
            raise MethodError(
                f"{self.name} needs a fresh model of the same kind. Give the recipe that trained this one."
            )
        plain = ImageArguments()
        for one in fields(plain):
            if one.name not in ("seed", "device") and getattr(work.args, one.name) != getattr(plain, one.name):
                raise MethodError(
                    f"{self.name} takes no training argument {one.name}. Its settings are options: "
                    f"{', '.join(settings_of(self.function))}."
                )

    def _apply(self, work: ImageWork) -> nn.Module:
        """Calls the function; weights, running statistics and nothing else of the model are changed.

        Raises:
            NotFinite: it left weights that are no numbers.
        """
        function, net = function_named(self.function), _Net(work.model, work.cost)
        gradients = [parameter.requires_grad for parameter in work.model.parameters()]
        with seeded(work.args.seed), _environment(SCALENE="1"):  # its switch for loaders without worker processes
            function(**self._given(work, net))
        for parameter, needed in zip(work.model.parameters(), gradients, strict=True):
            parameter.requires_grad_(needed).grad = None
        if not all(bool(torch.isfinite(value).all()) for value in work.model.parameters()):
            raise NotFinite(f"{self.name} left weights that are no numbers.")
        return work.model.eval()

    def _given(self, work: ImageWork, net: nn.Module) -> dict[str, Any]:
        """Every function gets all of it, and takes what it knows."""
        label, fabric = _only_class(work.forget, work.retained), _fabric(work.device)
        of_class = label is not None
        batch = self.batch_size or BATCH[not of_class]
        retain, forget = _Rows(work.retained), _Rows(work.forget)
        chosen = {name: values[not of_class] for name, values in CHOSEN.get(self.function, {}).items()}
        return {
            "fabric": fabric,
            "num_gpus": 1,
            "wandb_logging_flag": False,
            "type_of_unlearning_strategy": "fullclass" if of_class else "random_",
            "num_labels": len(work.forget.classes),
            "forget_label_id": label,
            "model": net,
            "trainset": _Rows(work.retained.joined(work.forget)),
            "retain_train_dataloader": _loader(fabric, retain, batch),
            "retain_test_dataloader": _loader(fabric, Subset(retain, [0]), 1),
            "forget_train_dataloader": _loader(fabric, forget, batch),
            "forget_test_dataloader": _loader(fabric, Subset(forget, [0]), 1),
            "full_train_dataloader": _loader(fabric, ConcatDataset([retain, forget]), batch),
            "unlearning_teacher": self._teacher(work),
            **chosen,
            **self.options,
        }

    def _teacher(self, work: ImageWork) -> nn.Module | None:
        """The untrained model that one function imitates."""
        return frozen(_Net(work.fresh(work.args.seed), work.cost)) if self.function == "bad_teacher" else None


def pairs() -> list[Contender]:
    """Ours and theirs of every method that both have, with the same settings: SUPREME's own, most of which can't be changed.

    Only dampening has others, batches of 16 and an alpha as small sets need it: at its own, 10, ours can select no weight of them.

    Raises:
        MissingExtra: the package isn't installed.
    """
    plain = {TRAINING["epochs"]: 5.0, TRAINING["lr"]: 0.02, TRAINING["batch_size"]: 64}
    adam = {
        "optim": "adam",
        TRAINING["batch_size"]: 64,
        TRAINING["epochs"]: 10.0,
        TRAINING["lr"]: 5e-4,
        "weight_decay": 0.1,
    }
    scrub = SCRUB(msteps=3, gamma=1.0, alpha=0.5, temperature=2.0, decay=(5, 8, 9), forget_batch=64)
    unsir = UNSIR(noise_rows=32, noise_steps=25, copies=80, per_class=500, repair_rate=1.0)
    slow = {TRAINING["lr"]: 1e-4, TRAINING["batch_size"]: 32}
    few = {"batch_size": 16}
    rows: list[tuple[Contender, str, dict[str, Any]]] = [
        (Contender("fine-tune", FineTune(), plain), "finetune", {"batch_size": 64}),
        (Contender("gradient-ascent", GradientAscent(), plain), "neg_grad", {"batch_size": 64}),
        (Contender("amnesiac", Amnesiac()), "random_labeling", {}),
        (Contender("scrub", scrub, adam), "scrub", {"batch_size": 64}),
        (Contender("bad-teacher", BadTeacher()), "bad_teacher", {}),
        (Contender("unsir", unsir, slow), "unsir", {}),
        (Contender("ssd", SSD(alpha=8.0, importance_batch=16)), "ssd", {**few, "options": {ALPHA: 8.0}}),
        (Contender("assd", ASSD(importance_batch=16)), "assd", few),
        (Contender("lfssd", LFSSD(alpha=5.0, importance_batch=16)), "lfssd", {**few, "options": {ALPHA: 5.0}}),
    ]
    peers = [SupremeMethod(function=function, **settings) for _, function, settings in rows]
    return [one for (ours, *_), peer in zip(rows, peers, strict=True) for one in (ours, Contender(peer.name, peer))]


def settings_of(function: str) -> dict[str, Any]:
    """{name: type} of what can be set of a function: the size of its loaders' batches, and its arguments that are no data.

    Raises:
        as `SupremeMethod`.
    """
    if function not in FUNCTIONS:
        raise MethodError(unknown("function of supreme-unlearning", function, FUNCTIONS))
    parameters = inspect.signature(function_named(function)).parameters.values()
    named = [one for one in parameters if one.kind is not one.VAR_KEYWORD and one.name not in GIVEN]
    return {"batch_size": int, **{one.name: _hint(one.annotation) for one in named}}


def _hint(annotation: Any) -> Any:
    return tuple[int, ...] if annotation is list or get_args(annotation) else annotation


def function_named(name: str) -> Callable[..., Any]:
    """The function of the installed package, imported with what it doesn't need stood in for.

    Raises:
        MissingExtra: the package or Lightning isn't installed.
        MethodError: it can't be imported, or has no such function.
    """
    try:
        at = version(PACKAGE)
        version("lightning")
    except PackageNotFoundError as error:
        raise MissingExtra(error.name, "peers", also=f" && pip install --no-deps {PACKAGE}=={MADE_FOR}") from None
    try:
        with warnings.catch_warnings(), _environment():  # Lightning adds to filters and variables
            importlib.import_module("lightning.fabric")
            with _stood_in():
                module = importlib.import_module(f"{MODULE}.{name}")
        function: Callable[..., Any] = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise MethodError(
            f"{PACKAGE} {at} has no {name} that can be used ({error}). This was made for {MADE_FOR}: pip install --no-deps "
            f"{PACKAGE}=={MADE_FOR}"
        ) from error
    return function


@contextmanager
def _stood_in() -> Iterator[None]:
    """Empty modules in the place of those it doesn't need; afterwards the interpreter's are those it had."""
    before = {name: sys.modules.get(name) for name in STOOD_IN}
    sys.modules.update({name: _Empty(name) for name in STOOD_IN})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Empty(ModuleType):
    """A module whose every name is another such, or a class that does nothing: to be called or derived from during an import."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # as a package has it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (inside := f"{self.__name__}.{name}") in STOOD_IN:
            return sys.modules[inside]
        return type(name, (), {"__init__": lambda self, *args, **options: None})


@contextmanager
def _environment(**differs: str) -> Iterator[None]:
    """With these variables; afterwards all are as they were."""
    before = dict(os.environ)
    os.environ.update(differs)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _fabric(device: torch.device) -> Any:
    """A Fabric on this device alone that prints nothing."""
    fabric_class: Any = importlib.import_module("lightning.fabric").Fabric
    fabric = fabric_class(accelerator=device.type, devices=1 if device.index is None else [device.index])
    fabric.print = lambda *args, **options: None
    return fabric


def _loader(fabric: Any, rows: Dataset[Any], batch_size: int) -> Any:
    """As its pipeline makes one for training: by its own function, in an order drawn anew every epoch."""
    utilities = importlib.import_module("supreme.utils.generic_utils")
    return fabric.setup_dataloaders(utilities.create_dataloader(rows, batch_size, is_training=True, num_workers=0))


def _only_class(forget: Images, retain: Images) -> int | None:
    """The class of all forget rows, if no retain row has it."""
    classes = whole_classes(forget, retain)
    return classes[0] if len(classes) == 1 else None


class _Rows(Dataset[Any]):
    """(pixels, label, label) a row, as its data sets give them; `targets` spares it a look at every picture."""

    def __init__(self, rows: Images) -> None:
        assert rows.labels is not None
        self.pixels, self.targets = rows.pixels, rows.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: int) -> tuple[Tensor, int, int]:
        return self.pixels[at], self.targets[at], self.targets[at]


class _Net(nn.Module):
    """A model that answers with logits alone, and whose forwards and backwards are counted, those of its copies too."""

    def __init__(self, net: nn.Module, cost: Cost) -> None:
        super().__init__()
        self.net = net

        def count(rows: int, backwards: int) -> None:  # a function is not copied with a module, an object is
            cost.add(rows, 1, backwards)

        self.count = count

    def forward(self, pixels: Tensor) -> Tensor:
        logits = logits_of(self.net, pixels)
        self.count(len(pixels), int(logits.requires_grad))
        return logits
