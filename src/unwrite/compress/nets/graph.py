"""Which layer of a net reads which: found by watching one forward, so that any module that runs can be read.

Every torch function that the forward calls is noted with what it was given and what it made. Symbolic tracing would need each
model's control flow to be traceable; what is noted here is what ran. In that graph lie the chains that a channel can be taken
out of:

    convolution -> batch normalisation -> activation -> (pooling, flattening) -> one convolution or linear layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import ModelError, setting

__all__ = ["NetGraph", "NetLayer", "net_graph"]

# Where a sum of channels, or a positive multiple of one, comes out as the same sum or multiple, at least on one side of a bend.
_ACTIVATIONS = {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_"}
_CHANNELWISE = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout", "dropout2d", "contiguous",
}  # fmt: skip
_FLATTENING = {"flatten", "view", "reshape", "squeeze"}
_SIDES = (32, 64, 224, 28, 16, 8)  # tried where nothing says how large a picture is


@dataclass(frozen=True)
class NetLayer:
    """A convolution or linear layer that ran, and who reads it.

    Args:
        name: path of its module.
        kind: which of the two.
        channels: outputs.
        groups: of a convolution; 1 for a linear layer.
        positions: places in one row's output that the weights are applied at, height times width.
        norm: path of the batch normalisation that alone reads it; empty if there is none.
        activation: name of the function between normalisation and consumer; empty if there is none.
        consumer: path of the one layer that reads its channels, and they can be taken out of; empty if there is none.
        block: inputs of the consumer a channel, above 1 where a flattened picture goes into a linear layer.
        reason: why there is no consumer.
    """

    name: str
    kind: Literal["convolution", "linear"]
    channels: int
    groups: int
    positions: int
    norm: str = ""
    activation: str = ""
    consumer: str = ""
    block: int = 1
    reason: str = ""


@dataclass(frozen=True)
class NetGraph:
    """The layers of a net in the order they ran, for pictures of one shape.

    Args:
        layers: convolutions and linear layers.
        example_shape: `(channels, height, width)` of the picture.
    """

    layers: tuple[NetLayer, ...]
    example_shape: tuple[int, int, int]

    @property
    def chains(self) -> tuple[NetLayer, ...]:
        """The layers that channels can be taken out of."""
        return tuple(layer for layer in self.layers if layer.consumer)


def net_graph(model: nn.Module, example_shape: tuple[int, int, int] | None = None) -> NetGraph:
    """Watches one forward of a convolutional net on two blank pictures; the model stays as it is.

    Args:
        example_shape: `(channels, height, width)` of a picture; None tries what the model says of itself, then usual sizes.

    Raises:
        ModelError: a model in training mode, without batch normalisation, or with a layer that runs more than once; a shape it
            doesn't take.
    """
    busy = next((name for name, module in model.named_modules() if module.training), None)
    if busy is not None:
        where = f"its {busy} is" if busy else "it is"
        raise ModelError(
            f"{type(model).__name__} can't be compressed: {where} in training mode. Call model.eval() first."
        )
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} has no batch normalisation, whose statistics stand in for data. Only convolutional nets "
            "with BatchNorm2d can be compressed."
        )
    shape, ops = _watched(model, example_shape)
    _need_each_once(model, ops)
    layers = tuple(_layer(model, ops, number) for number, op in enumerate(ops) if op.weight)
    return NetGraph(layers, shape)


@dataclass
class _Op:
    """One call: what it was, which earlier calls it reads, which later ones read it (-1: the caller of the model)."""

    name: str
    reads: list[int]
    shape: tuple[int, ...]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: str = ""
    norm: str = ""
    readers: list[int] = field(default_factory=list)


class _Watch(TorchFunctionMode):
    """Notes every call that makes a tensor of one that came from the pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ops: list[_Op] = []
        self.made: dict[int, int] = {}  # {id of a tensor: the call that made it, or changed it last}
        self.alive: list[Tensor] = []  # so that no id is given twice
        self.weights: dict[int, str] = {}
        self.norms: dict[int, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.weights.setdefault(id(module.weight), name)
            elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                self.norms.setdefault(id(module.running_mean), name)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the call as it is, and notes it."""
        options = dict(kwargs or {})
        out = func(*args, **options)
        given = list(_tensors([*args, *options.values()]))
        reads = list(dict.fromkeys(self.made[id(one)] for one in given if id(one) in self.made))
        if reads and any(True for _ in _tensors(out)):
            self.note(getattr(func, "__name__", str(func)), reads, out, args, options, given)
        return out

    def note(
        self,
        name: str,
        reads: list[int],
        out: Any,
        args: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
        given: Iterable[Tensor] = (),
    ) -> None:
        """Adds a call."""
        plain = tuple(None if isinstance(one, Tensor) else one for one in args)
        first = next(_tensors(out))
        op = _Op(name, reads, tuple(first.shape), plain, options or {})
        op.weight = next((self.weights[id(one)] for one in given if id(one) in self.weights), "")
        op.norm = next((self.norms[id(one)] for one in given if id(one) in self.norms), "")
        for number in reads:
            self.ops[number].readers.append(len(self.ops))
        for tensor in _tensors(out):
            self.made[id(tensor)] = len(self.ops)
            self.alive.append(tensor)
        self.ops.append(op)


def _watched(model: nn.Module, example_shape: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], list[_Op]]:
    like = next(model.parameters())
    refusal = ""
    for shape in _shapes(model) if example_shape is None else [example_shape]:
        watch = _Watch(model)
        try:
            with torch.no_grad():
                pixels = torch.full((2, *shape), 0.5, dtype=like.dtype, device=like.device)
                watch.note("pixels", [], pixels)
                with watch:
                    out = model(pixels)
        except Exception as error:  # whatever the model's own code meets
            refusal = (
                refusal
                or f"{'x'.join(map(str, shape))}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            )
            continue
        for tensor in _tensors(out):
            if id(tensor) in watch.made:
                watch.ops[watch.made[id(tensor)]].readers.append(-1)
        return shape, watch.ops
    raise ModelError(
        f"{type(model).__name__} takes no such picture ({refusal[:200]}). Give {setting('example_shape')}: channels, height, width."
    )


def _shapes(model: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Pictures that the model may take, by what it says of itself."""
    config = getattr(model, "config", None)
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    own = [getattr(model, "image_size", None), getattr(config, "image_size", None)]
    for side in dict.fromkeys([*(side for side in own if isinstance(side, int)), *_SIDES]):
        yield first, side, side


def _need_each_once(model: nn.Module, ops: list[_Op]) -> None:
    """Refuses a module, or a weight of two modules, that several calls use: what is repaired for one would break the other."""
    for what in ("weight", "norm"):
        names = [getattr(op, what) for op in ops if getattr(op, what)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ModelError(
                f"{twice} of {type(model).__name__} runs {names.count(twice)} times in one forward, and a shared module can't be "
                "compressed. Give each place a module of its own."
            )


def _layer(model: nn.Module, ops: list[_Op], number: int) -> NetLayer:
    op, module = ops[number], model.get_submodule(ops[number].weight)
    if isinstance(module, nn.Linear):
        positions = prod(op.shape[1:-1])
        return NetLayer(
            op.weight, "linear", module.out_features, 1, positions, reason="a linear layer has no batch normalisation"
        )
    assert isinstance(module, nn.Conv2d)
    after: dict[str, Any] = {"reason": "a grouped convolution"} if module.groups > 1 else _chain(model, ops, number)
    return NetLayer(op.weight, "convolution", module.out_channels, module.groups, prod(op.shape[2:]), **after)


def _chain(model: nn.Module, ops: list[_Op], number: int) -> dict[str, Any]:
    """What follows a convolution, as fields of its `NetLayer`."""
    after = _only_reader(ops, number)
    if after is None or not ops[after].norm:
        return {"reason": "no batch normalisation of its own follows"}
    found: dict[str, Any] = {"norm": ops[after].norm}
    at, spread = after, 1
    while True:
        readers = ops[at].readers
        if len(readers) != 1:
            return {**found, "reason": f"{len(readers)} places read its output"}
        if readers[0] < 0:
            return {**found, "reason": "its output is the model's"}
        before, at = at, readers[0]
        op = ops[at]
        if op.weight:
            return {**found, **_consumer(model, op, ops[before], spread)}
        if op.norm or len(op.reads) > 1:
            why = "it is normalised twice" if op.norm else f"{op.name.strip('_')} joins its output with another"
            return {**found, "reason": why}
        if "activation" not in found and at == _only_reader(ops, after) and _bends(op):
            found["activation"] = op.name.strip("_")
        elif _flattens(op, ops[before]):
            spread = prod(ops[before].shape[2:])
        elif not (op.name in _CHANNELWISE or _pads(op) or _averages(op, ops[before])):
            return {**found, "reason": f"its output goes into {op.name.strip('_')}"}


def _consumer(model: nn.Module, op: _Op, before: _Op, spread: int) -> dict[str, Any]:
    reader = model.get_submodule(op.weight)
    if isinstance(reader, nn.Conv2d):
        if reader.groups > 1:
            return {"reason": "a grouped convolution reads it"}
        return {"consumer": op.weight}
    if len(before.shape) != 2:
        return {"reason": "a linear layer reads it along another axis"}
    return {"consumer": op.weight, "block": spread}


def _only_reader(ops: list[_Op], number: int) -> int | None:
    readers = ops[number].readers
    return readers[0] if len(readers) == 1 and readers[0] >= 0 else None


def _bends(op: _Op) -> bool:
    """Whether it is an activation that a positive factor passes through, below a ceiling if it has one."""
    lowest = op.options.get("min_val", op.arguments[1] if len(op.arguments) > 1 else None)
    return op.name in _ACTIVATIONS or (op.name == "hardtanh" and lowest == 0)


def _flattens(op: _Op, before: _Op) -> bool:
    """Whether `[rows, channels, height, width]` becomes `[rows, channels * height * width]`."""
    if op.name not in _FLATTENING or len(before.shape) != 4:
        return False
    return op.shape == (before.shape[0], prod(before.shape[1:]))


def _pads(op: _Op) -> bool:
    """Whether it sets zeros around the picture."""
    if op.name != "pad":
        return False
    names = ("pad", "mode", "value")
    given = {**dict(zip(names, op.arguments[1:], strict=False)), **op.options}
    return len(given.get("pad", ())) <= 4 and given.get("mode", "constant") == "constant" and not given.get("value")


def _averages(op: _Op, before: _Op) -> bool:
    """Whether it is a mean over height and width."""
    if op.name != "mean" or len(before.shape) != 4:
        return False
    axes = op.options.get("dim", op.arguments[1] if len(op.arguments) > 1 else ())
    return isinstance(axes, tuple | list) and {axis % 4 for axis in axes} == {2, 3}


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
