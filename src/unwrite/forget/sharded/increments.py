"""What one stage of a sharded training adds to the model: a group of LoRA layers and a head of its own, or all weights.

Group i lies in the blocks n - 1 - (i k + j), j = 0 .. k - 1, with k = n // L: the first in the uppermost blocks, later ones below,
so that a group's inputs are what they were in its training when all later groups are off. (S3T, arXiv 2406.16257, section 3)
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError, ModelError, RunError, setting
from ...runs import seeded

__all__ = ["Increments", "LoraGroups", "WholeWeights", "block_list", "built", "default_targets", "refuse_statistics"]

_PROJECTIONS = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")
_FUSED = ("qkv", "c_attn", "query_key_value", "qkv_proj", "Wqkv")


@dataclass(frozen=True)
class Increments:
    """How a stage's tensors get into a model."""

    whole: ClassVar[bool]  # whether an increment makes those of earlier stages needless

    def start(self, base: nn.Module) -> nn.Module:
        """A model of its own, without increments."""
        raise NotImplementedError

    def grow(self, model: nn.Module, stage: int) -> dict[str, nn.Parameter]:
        """Makes room for a stage's tensors; they alone get a gradient from now on.

        New ones are drawn from torch's global generator.
        """
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """The settings as the plan holds them."""
        return {"increments": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class LoraGroups(Increments):
    """A group of LoRA layers a stage, and the head.

    Args:
        blocks: path of the list of blocks.
        groups: how many stages there are.
        count: blocks in the list.
        targets: paths of linear layers below a block.
        head: paths of modules that every stage trains for itself.
        rank, alpha, rslora, dropout: of the adapters; with rslora they are scaled by alpha / sqrt(rank).
    """

    whole: ClassVar[bool] = False

    blocks: str
    groups: int
    count: int
    targets: tuple[str, ...]
    head: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool
    dropout: float

    def places(self, stage: int) -> list[int]:
        """Numbers of a stage's blocks, from the top down."""
        size = self.count // self.groups
        return [self.count - 1 - (stage * size + one) for one in range(size)]

    def targeted(self, model: nn.Module, stage: int) -> list[str]:
        """Full paths of the layers that a stage adapts."""
        return [f"{self.blocks}.{place}.{target}" for place in self.places(stage) for target in self.targets]

    def start(self, base: nn.Module) -> nn.Module:
        """A copy that shares the base's tensors, which are never written, and has its own head."""
        memo: dict[int, Any] = {}
        head = {id(p) for path in self.head for p in base.get_submodule(path).parameters()}
        for parameter in base.parameters():
            if id(parameter) not in head:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        memo |= {id(buffer): buffer for buffer in base.buffers()}
        return copy.deepcopy(base, memo)

    def grow(self, model: nn.Module, stage: int) -> dict[str, nn.Parameter]:
        from peft import LoraConfig, inject_adapter_in_model

        names = self.targeted(model, stage)
        before = _adapted(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_rslora=self.rslora,
            lora_dropout=self.dropout,
            target_modules="|".join(map(re.escape, names)),  # a pattern must match the whole path
            fan_in_fan_out=type(model.get_submodule(names[0])).__name__ == "Conv1D",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # that of the groups before
            inject_adapter_in_model(config, model)
        _check_adapted(model, names, before)
        trained: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            of_group = "lora_" in name and any(name.startswith(f"{path}.") for path in names)
            of_head = any(name.startswith(f"{path}.") for path in self.head)
            parameter.requires_grad_(of_group or of_head)
            if of_group or of_head:
                trained[name] = parameter
        return trained


@dataclass(frozen=True)
class WholeWeights(Increments):
    """All weights of the model, at every stage: slice checkpoints."""

    whole: ClassVar[bool] = True

    def start(self, base: nn.Module) -> nn.Module:
        return copy.deepcopy(base).requires_grad_(True)

    def grow(self, model: nn.Module, stage: int) -> dict[str, nn.Parameter]:
        return dict(model.named_parameters())


@torch.no_grad()
def built(parts: Increments, base: nn.Module, increments: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """The model after so many stages as there are increments; nothing of later stages is in it.

    Raises:
        RunError: an increment with other names or shapes than its stage has.
    """
    model = parts.start(base)
    first = max(0, len(increments) - 1) if parts.whole else 0
    for stage in range(first, len(increments)):
        with seeded(0):  # what is drawn is written over
            places = parts.grow(model, stage)
        tensors = increments[stage]
        for name in sorted(places.keys() | tensors.keys()):
            if name not in places or name not in tensors or places[name].shape != tensors[name].shape:
                raise RunError(f"the increment of stage {stage} doesn't fit this {type(model).__name__}: {name}.")
            places[name].copy_(tensors[name])
    return model.eval().requires_grad_(False)


def block_list(model: nn.Module) -> tuple[str, int]:
    """Path and length of the model's list of blocks: the longest list of modules of one class that hold weights.

    Raises:
        ModelError: there is none with two blocks.
    """
    lists: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and not inside:
            one_class = len({type(block) for block in module}) == 1
            if one_class and all(_linears(block) for block in module):
                lists[name] = len(module)
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks of one class with linear layers in them.")
    path = max(lists, key=lambda name: lists[name])
    return path, lists[path]


def default_targets(model: nn.Module, blocks: str, *, all_linear: bool) -> tuple[str, ...]:
    """The paper's layers of a block: every linear one, or the query and value projections (the fused one, where they are one)."""
    linears = _linears(model.get_submodule(f"{blocks}.0"))
    if all_linear:
        return linears
    for names in (_PROJECTIONS, _FUSED):
        if chosen := tuple(path for path in linears if path.rpartition(".")[2] in names):
            return chosen
    return linears


def check_groups(model: nn.Module, blocks: str, count: int, groups: int, targets: Sequence[str]) -> None:
    """Refuses more groups than blocks, and targets that are no linear layers of every block.

    Raises:
        MethodError: it says which.
    """
    if count < groups:
        raise MethodError(
            f"{setting('n_slices')} is {groups}, and {type(model).__name__} has {count} blocks: every slice needs one of its own."
        )
    for place in range(count):
        linears = _linears(model.get_submodule(f"{blocks}.{place}"))
        if odd := [path for path in targets if path not in linears]:
            raise MethodError(
                f"{setting('targets')} has {odd[0]!r}, which is no linear layer of {blocks}.{place}. It has: {', '.join(linears)}."
            )


def refuse_statistics(model: nn.Module) -> None:
    """Refuses running statistics: they are written by every row that passes, and can't be taken back.

    Raises:
        ModelError: a layer that keeps some.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            raise ModelError(
                f"{name} of this {type(model).__name__} is a {type(module).__name__} with running statistics, which keep what "
                "every row leaves in them. Use a model with LayerNorm or GroupNorm, or without running statistics."
            )


def _linears(block: nn.Module) -> tuple[str, ...]:
    kinds = ("Linear", "Conv1D")
    return tuple(name for name, one in block.named_modules() if name and type(one).__name__ in kinds)


def _check_adapted(model: nn.Module, names: Sequence[str], before: set[str]) -> None:
    """Refuses a group of other layers than those named, or of one that an earlier group has."""
    if odd := sorted((_adapted(model) - before) ^ {*names}):
        raise ModelError(
            f"{odd[0]} of this {type(model).__name__} is in two groups, or can't be adapted by peft. Give other "
            f"{setting('targets')}."
        )


def _adapted(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
