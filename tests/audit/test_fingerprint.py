"""A model's fingerprint tells what it computes, or there is none: no pass is ever read back for another model."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from unwrite.audit.fingerprint import fingerprint
from unwrite.nets.small_vision import SmallCNN, SmallViT


class Scaled(nn.Module):
    """A layer with everything a layer can have besides weights."""

    power = 2

    def __init__(self, times: Any = 2.0, act: Any = None, mask: Any = None, buffer: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.times, self.act, self.mask = times, act, mask
        self.register_buffer("hidden", torch.zeros(2) if buffer is None else buffer, persistent=False)

    def forward(self, x: Any) -> Any:
        return self.times * self.linear(x) ** self.power


class Shifted(Scaled):
    def forward(self, x: Any) -> Any:
        return self.times + self.linear(x) ** self.power


class Cubed(Scaled):
    power = 3


def made(kind: type[Scaled] = Scaled, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(**settings), nn.ReLU())


FACTOR = 1.0


def factor() -> float:
    return FACTOR


class Reading(Scaled):
    def forward(self, x: Any) -> Any:
        return factor() * self.linear(x)


def edited(**own: Any) -> str | None:
    """The fingerprint with the class's attributes as an edited notebook cell leaves them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setattr(Scaled, name, value)
        return fingerprint(made())


def with_factor(value: float) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "FACTOR", value)
        return fingerprint(made(Reading))


def closed(factor: Any) -> Any:
    return lambda x: factor * x


OTHERS = {
    "a weight": lambda: _nudged(made()),
    "a module": lambda: nn.Sequential(made()[0], nn.GELU()),
    "a plain attribute": lambda: made(times=3.0),
    "an attribute in a list": lambda: made(times=[2.0]),
    "an attribute in a mapping": lambda: made(times={"a": 2.0}),
    "a function": lambda: made(act=torch.relu),
    "another function": lambda: made(act=torch.tanh),
    "a lambda": lambda: made(act=lambda x: x + 1),
    "another lambda": lambda: made(act=lambda x: x + 2),
    "a tensor that is no buffer": lambda: made(mask=torch.ones(2)),
    "other values of it": lambda: made(mask=torch.zeros(2)),
    "a buffer that is not saved": lambda: made(buffer=torch.ones(2)),
    "a subclass's forward": lambda: made(Shifted),
    "a subclass's attribute": lambda: made(Cubed),
    "a closure": lambda: made(act=closed(2.0)),
    "another closure": lambda: made(act=closed(3.0)),
    "a type": lambda: made(act=float),
    "a precision": lambda: made().double(),
    "a set": lambda: made(act={"a", "b"}),
}  # fmt: skip


def _nudged(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    return model


def test_whatever_changes_what_a_model_computes_changes_its_fingerprint() -> None:
    prints = {name: fingerprint(make()) for name, make in OTHERS.items()} | {
        "itself": fingerprint(made()),
        "another forward of the class": edited(forward=lambda self, x: x),
        "another attribute of the class": edited(power=4),
        "a constant two calls away": with_factor(1.0),
        "another constant there": with_factor(2.0),
    }
    assert None not in prints.values()
    seen: dict[Any, str] = {}
    for name, value in prints.items():
        assert value not in seen, f"{name} and {seen[value]}"
        seen[value] = name


@pytest.mark.parametrize(
    "opaque",
    [closed(object()), partial(torch.mul, other=2), object(), [object()]],
    ids=["closure", "partial", "object", "list"],
)
def test_what_cannot_be_read_has_no_fingerprint(opaque: Any) -> None:
    assert fingerprint(made(act=opaque)) is None


def test_a_replaced_forward_is_another_model() -> None:
    model = made()
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert fingerprint(model) not in (None, fingerprint(made()))
    model.forward = closed(object())  # type: ignore[method-assign]
    assert fingerprint(model) is None


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_leaves_none(hook: str) -> None:
    model = made()
    getattr(model[0], hook)(lambda *args: None)  # type: ignore[index]
    assert fingerprint(model) is None


@pytest.mark.parametrize("build", [lambda: SmallCNN(10, 1, 8, 4), lambda: SmallViT(10, 1, 8)], ids=["cnn", "vit"])
def test_the_packages_own_nets_have_one(build: Any) -> None:
    torch.manual_seed(0)
    assert fingerprint(build()) is not None
