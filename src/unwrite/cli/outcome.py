"""What a run came to: how many weights moved, what was noticed, and the status a command ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import notice
from .listing import plain_table
from .output import console, label

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..audit import Report
    from ..runs import Run

UNCHANGED = 3  # the exit status of a run that moved no weight
UNMET = 1  # and of one whose figures don't keep what was required of them


@dataclass(frozen=True)
class Moved:
    """How many of a model's weights differ from the model before."""

    weights: int
    of: int


def moved_weights(before: nn.Module, after: nn.Module) -> Moved | None:
    """Counts the weights that differ, adapters folded in; None for a guard, whose weights stay by design."""
    import torch

    if callable(getattr(after, "fingerprint", None)):
        return None
    with torch.no_grad():
        ours = _effective(after)
        moved = of = 0
        for name, old in _effective(before).items():
            weight = old()
            moved += int((weight != ours[name]().to(weight.device)).sum())
            of += weight.numel()
    return Moved(moved, of)


def _effective(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Every weight by the name it has without adapters, computed when asked for."""
    from ..models import unwrap

    inner = unwrap(model)
    adapted = {name: module for name, module in inner.named_modules() if hasattr(module, "get_delta_weight")}
    weights: dict[str, Callable[[], Tensor]] = {}
    for name, parameter in inner.named_parameters():
        layer = next((layer for layer in adapted if name.startswith(f"{layer}.")), None)
        own = name.removeprefix(f"{layer}.base_layer.")
        if layer is None:
            weights[name] = partial(_same, parameter)
        elif own == "weight":
            weights[f"{layer}.weight"] = partial(_merged, adapted[layer])
        elif own != name:
            weights[f"{layer}.{own}"] = partial(_same, parameter)
    return weights


def _same(parameter: Tensor) -> Tensor:
    return parameter


def _merged(layer: nn.Module) -> Tensor:
    """The weight of a layer with its adapters, rounded to the weight's own type as merging does."""
    weight = layer.get_base_layer().weight
    total: Tensor = weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    return total.to(weight.dtype)


def say_if_unchanged(method: str, moved: Moved | None) -> None:
    """A notice, if not one weight moved."""
    if moved is None or moved.weights:
        return
    notice(f"{method} changed none of the model's {moved.of} weights: nothing was forgotten.")


def say_outcomes(report: Report) -> None:
    """Prints the verdict and what became of the requirements, where there were any."""
    if report.verdict is not None:
        console().print(label(f"{report.verdict.label}.", then=f" {report.verdict.sentence}"))
    if report.outcomes:
        rows = [(one.text, "met" if one.met else "not met", one.figures) for one in report.outcomes]
        console().print(plain_table(("required", "", "measured"), rows))


def kept_notices(run: Run, notices: list[str]) -> list[str]:
    """What was noticed now and, in a run that was stopped and resumed, before; each message once."""
    return list(dict.fromkeys([*run.record.get("notices", ()), *notices]))


def finish(run: Run, report: Report, notices: list[str], moved: Moved | None, **fields: Any) -> Report:
    """Stores the report with all that was noticed, and marks the run as whole.

    Args:
        fields: further ones of `run.json`.
    """
    report = replace(report, notices=tuple(kept_notices(run, [*notices, *report.notices])))
    report.save(run.folder)
    status = "unchanged" if moved is not None and moved.weights == 0 else "done"
    run.update(
        status=status,
        changed=None if moved is None else vars(moved),
        notices=list(report.notices),
        max_length=report.provenance.get("max_length"),
        model=saved_hash(run.folder / "model"),
        **fields,
    )
    return report


def saved_hash(folder: Path) -> dict[str, str]:
    """The hash of a model's saved weights, by which a later command tells that it loads this model."""
    from ..models.checkpoints import read_json

    return {"weights": str(read_json(folder / "unwrite.json")["weights"])}
