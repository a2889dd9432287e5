"""One objective with free phases, reads and choice of weights, and a short training of it on texts or on images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from forgetting import SGD
from torch import nn

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.data import Images
from unwrite.forget import Loss, Objective, PerRow, Phase

both_kinds = pytest.mark.parametrize("kind", ["text", "images"])
PIXELS = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
PICTURES = Images(PIXELS, labels=torch.arange(12) % 3, classes=tuple("abc"))
TEXTS = make_examples("forget", 8), make_examples("retain", 8)
SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.1}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()


@dataclass(frozen=True, kw_only=True)
class Plain(Objective):
    """The loss of all rows of a step, in the phases and with the reads it is made with."""

    forgets = ("text", "images")
    stretches: tuple[Phase, ...] = ()
    names: tuple[str, ...] = ("nll",)
    choose: Callable[[Any], list[torch.Tensor]] | None = None

    def needed(self) -> frozenset[str]:
        return frozenset(self.names)

    def loss(self, batch: Any) -> Loss:
        return Loss({}, **{name: PerRow(part.nll, name) for name, part in batch.present()})

    def phases(self, work: Any) -> list[Phase]:
        return list(self.stretches) or super().phases(work)

    def trainable(self, work: Any) -> list[torch.Tensor] | None:
        return None if self.choose is None else self.choose(work)


def loss_of(batch: Any) -> Loss:
    return Plain().loss(batch)


def apply(kind: str, method: Any, model: nn.Module | None = None, **given: Any) -> Any:
    """Two short steps on a kind of data; `args` differ from SHORT."""
    args = {**SHORT, **given.pop("args", {})}
    if kind == "text":
        sets = given.pop("forget", TEXTS[0]), given.pop("retain", TEXTS[1])
        given |= {"processing_class": make_tokenizer(), "args": {**SGD, **args}}
        return method.apply(model or make_llama(), *sets, **given)
    sets = given.pop("forget", PICTURES.subset(range(6))), given.pop("retain", PICTURES.subset(range(6, 12)))
    return method.apply(model or net(), *sets, args={"momentum": 0.0, "weight_decay": 0.0, **args}, **given)


def untouched(kind: str) -> nn.Module:
    """A model that fails the test if it is asked anything."""
    model = make_llama() if kind == "text" else net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked before the refusal"))
    return model


def made(kind: str) -> nn.Module:
    """A model for a kind of data."""
    return make_llama() if kind == "text" else net()
