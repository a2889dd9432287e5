"""Training with the weights, gradients and moments shared out over the processes: torch's FSDP2, through accelerate.

What is sharded is a second tree of modules over the same weights; the model that was given rests in main memory until its
weights are gathered back into it. So it stays one model, with its class, its parameters and no hooks, whatever becomes of
the training, and the next phase begins from it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer
from transformers.training_args import ParallelMode

from ....errors import MethodError, ModelError, setting
from ..shards import whole

if TYPE_CHECKING:
    from .arguments import UnlearnArguments

__all__ = ["ShardingTrainer", "check", "sharded", "wanted"]

_SWITCH = "ACCELERATE_USE_FSDP"


def wanted(args: UnlearnArguments) -> bool:
    """Whether the arguments or `accelerate launch` ask for FSDP."""
    return bool(args.fsdp) or os.environ.get(_SWITCH, "false").lower() == "true"


def check(args: UnlearnArguments, model: nn.Module) -> None:
    """Refuses, where FSDP is wanted, what it can't be had with.

    Raises:
        MethodError: one process; FSDP of version 1; processors beside a GPU that torch would take.
        ModelError: weights that this process has not loaded.
    """
    if not wanted(args):
        return
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise MethodError(
            f"{setting('fsdp')} shares a training out over several processes, and this is one alone. Start them with "
            "accelerate launch or torchrun, or leave it out."
        )
    version = (args.fsdp_config or {}).get("version", 2) if args.fsdp else os.environ.get("FSDP_VERSION", 1)
    if int(version) != 2:
        raise MethodError(
            f"FSDP of version {version} is not supported. Set the version to 2: in {setting('fsdp_config')}, or FSDP_VERSION where "
            "accelerate launch asks for it."
        )
    if args.device.type == "cpu" and torch.accelerator.is_available():
        raise MethodError(
            "FSDP on processors can't be had where torch sees a GPU. Hide it by an empty CUDA_VISIBLE_DEVICES, or train on it."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            "this process has not loaded the model's weights, which are needed before training too. Load them in every "
            "process: set FSDP_CPU_RAM_EFFICIENT_LOADING to false."
        )


class ShardingTrainer(Trainer):
    """transformers' Trainer, which shards on processors too where FSDP is wanted."""

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does.

        accelerate has FSDP on GPUs only: on processors it trains whole copies without a word, unless it takes them for
        GPUs when it is set up. It also leaves its switch on for later trainings of the process.
        """
        state, switch = self.args.distributed_state, os.environ.get(_SWITCH)
        kind = None if state is None else state.distributed_type
        if state is not None and kind == DistributedType.MULTI_CPU and wanted(self.args):
            state.distributed_type = DistributedType.MULTI_GPU
        try:
            super().create_accelerator_and_postprocess()
        finally:
            if state is not None and state.distributed_type == DistributedType.MULTI_GPU:
                state.distributed_type = kind
            if switch is None:
                os.environ.pop(_SWITCH, None)
            else:
                os.environ[_SWITCH] = switch


@contextmanager
def sharded(model: nn.Module, args: UnlearnArguments) -> Iterator[nn.Module]:
    """What to train inside: the model itself or, where FSDP is wanted, a tree that may be sharded and is gathered at the end.

    If training fails, the model keeps the weights it had.
    """
    if not wanted(args):
        yield model
        return
    device = next(model.parameters()).device
    model.to("cpu")  # whole copies on every GPU are what sharding is to avoid
    tree = _second_tree(model)
    yield tree
    with torch.no_grad():
        for mine, trained in zip(_tensors(model), _tensors(tree), strict=True):
            if trained.requires_grad or not isinstance(mine, nn.Parameter):
                mine.copy_(whole(trained))
    model.to(device)


def _second_tree(model: nn.Module) -> nn.Module:
    """Other modules over the same weights, whose parameters may be replaced and moved."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        alias = tensor.detach()
        memo[id(tensor)] = nn.Parameter(alias, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else alias
    return copy.deepcopy(model, memo)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
