"""Where the head, the features and the blocks of an image model are, found by watching one forward.

Language models have a record a family (`layout.py`); image models are too many. What holds for all of them is seen in
the autograd graph of one forward: the head is what makes the logits out of `[rows, dim]`, and a model falls into
blocks where everything that reaches the logits went through one module. A residual block can't be cut further, since
its shortcut goes around whatever is inside; a chain of layers can, down to the single layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..errors import ModelError
from .layout import unwrap

__all__ = ["Observed", "VisionBlock", "VisionLayout", "logits_of", "vision_layout"]

_SIZES = (32, 8, 224, 16, 28, 64, 96, 128, 256)
_CONVOLUTIONS = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class VisionBlock:
    """One block: modules that run one after the other, and everything they own.

    Args:
        modules: paths of its modules, in the order of the forward.
        state: names of its parameters and buffers in the model's state dict.
    """

    modules: tuple[str, ...]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Observed:
    """What one forward showed, with its gradients.

    Args:
        logits: `[rows, outputs]`
        features: `[rows, dim]`, what goes into the head.
        blocks: what comes out of each block before the head.
    """

    logits: Tensor
    features: Tensor
    blocks: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class VisionLayout:
    """The parts of one image model, by path, so that they are found in copies and fresh builds of it too (`of`).

    Args:
        model: the model without wrappers.
        head: the module that takes features to logits.
        head_linears: its linear layers, in order; the last one's output are the logits.
        blocks: in the order of the forward. The last is the head; a parameter that no block's module owns (a class
            token) is the first block's, one that the forward never used is in none.
        convolutions: names of the convolutions' weights.
        norms: normalisation layers, by path.
        with_statistics: those of them that keep running statistics.
        features_dim, num_outputs: widths into and out of the head.
    """

    model: nn.Module = field(repr=False)
    head: str
    head_linears: tuple[str, ...]
    blocks: tuple[VisionBlock, ...]
    convolutions: tuple[str, ...]
    norms: tuple[str, ...]
    with_statistics: tuple[str, ...]
    features_dim: int
    num_outputs: int

    @property
    def without_statistics(self) -> tuple[str, ...]:
        """Normalisation layers that treat every row by itself, or have no running statistics."""
        return tuple(name for name in self.norms if name not in self.with_statistics)

    @property
    def head_module(self) -> nn.Module:
        return self.model.get_submodule(self.head)

    def of(self, model: nn.Module) -> VisionLayout:
        """The same places in another model of this architecture: a copy, a teacher, a fresh build.

        Raises:
            ModelError: its state dict has other names or shapes.
        """
        model = unwrap(model)
        mine, theirs = _shapes(self.model), _shapes(model)
        if mine != theirs:
            odd = next(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
            raise ModelError(
                f"{type(model).__name__} is not built like the {type(self.model).__name__} this layout is of: {odd} is "
                f"{theirs.get(odd, 'missing')}, not {mine.get(odd, 'there')}. Find its own layout."
            )
        return replace(self, model=model)

    def last(self, k: int) -> tuple[str, ...]:
        """The state names of the last k blocks, the head included; 1 is the head alone.

        Raises:
            ModelError: there are no k blocks.
        """
        if not 1 <= k <= len(self.blocks):
            raise ModelError(f"there are {len(self.blocks)} blocks, so there is no last {k}. Take 1 to that.")
        return tuple(name for block in self.blocks[-k:] for name in block.state)

    def observe(self, pixels: Tensor) -> Observed:
        """One forward on pixels `[rows, channels, height, width]` in the model's own mode; gradients flow through all."""
        features: list[Tensor] = []
        blocks: dict[str, Tensor] = {}
        ends = [block.modules[-1] for block in self.blocks[:-1]]
        hooks = [self.head_module.register_forward_pre_hook(lambda module, args: features.append(args[0]))]
        for name in ends:

            def out_of(module: nn.Module, args: object, output: object, name: str = name) -> None:
                blocks[name] = _tensors(output)[0]

            hooks.append(self.model.get_submodule(name).register_forward_hook(out_of))
        try:
            logits = logits_of(self.model, pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return Observed(logits, features[-1], tuple(blocks[name] for name in ends))


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """`[rows, outputs]`, whether the model returns a tensor, `output.logits`, or a tuple that begins with the logits.

    One value a row, `[rows]`, becomes `[rows, 1]`.

    Raises:
        ModelError: none of these.
    """
    output = model(pixels)
    if isinstance(output, Mapping):  # also transformers' outputs
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output[0] if isinstance(output, tuple | list) and output else None)
    if isinstance(output, Tensor) and output.shape == (len(pixels),):
        output = output[:, None]
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(pixels):
        what = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else "no logits"
        raise ModelError(
            f"{type(model).__name__} returns {what} for {len(pixels)} images. A classifier or regressor returns "
            "[rows, outputs], or an object with such .logits."
        )
    return output


def vision_layout(model: nn.Module, pixels: Tensor | None = None) -> VisionLayout:
    """Finds the parts of an image classifier or regressor: an own module, one of transformers, one of timm.

    One forward and one walk through its graph, in evaluation mode; weights, buffers, gradients, mode and random state
    stay as they are.

    Args:
        model: wrappers (peft, compiled, data-parallel) are looked through.
        pixels: `[rows, channels, height, width]`, an input the model takes; guessed from the model if None.

    Raises:
        ModelError: no input could be guessed, or nothing that takes `[rows, dim]` through linear layers makes the logits.
    """
    model = unwrap(model)
    trace = _traced(model, pixels)
    head = _head(model, trace)
    linears = sorted(
        (name for name, module in model.named_modules() if _within(name, head) and _is_linear(module)),
        key=lambda name: trace.order.get(name, len(trace.order)),
    )
    own = {name: module for name, module in model.named_modules() if name in trace.order}
    norms = [name for name, module in own.items() if _is_norm(module)]
    return VisionLayout(
        model=model,
        head=head,
        head_linears=tuple(linears),
        blocks=_blocks(model, trace, head),
        convolutions=tuple(f"{name}.weight" for name, module in own.items() if isinstance(module, _CONVOLUTIONS)),
        norms=tuple(norms),
        with_statistics=tuple(name for name in norms if getattr(own[name], "running_mean", None) is not None),
        features_dim=trace.inputs[head][0].shape[1],
        num_outputs=trace.logits.shape[1],
    )


@dataclass
class _Trace:
    """What one watched forward showed.

    Args:
        order: {module that ran: how many had begun before it}.
        inputs, outputs: {module: its tensors}, as they were last.
        ends: {module: the graph nodes of its outputs}; all of them, where it ran more than once.
        start: the node of the pixels.
    """

    order: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    ends: dict[str, set[Node]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    start: Node | None = None


def _traced(model: nn.Module, pixels: Tensor | None) -> _Trace:
    """Watches one forward. Nodes are read off at once: a tensor changed in place later has another."""
    refusal = ""
    for candidate in _candidates(model) if pixels is None else [pixels]:
        trace = _Trace()
        try:
            with _watched(model, trace), _as_before(model), torch.enable_grad():
                leaf = candidate.detach().clone().requires_grad_()
                own = leaf * 1  # not a leaf, so that it has a node
                trace.start = own.grad_fn
                trace.logits = logits_of(model, own)
            return trace
        except (RuntimeError, ValueError, TypeError, IndexError, ModelError) as error:
            if pixels is not None:
                raise ModelError(
                    f"{type(model).__name__} doesn't take the pixels {list(candidate.shape)}: {_first_line(error)}"
                ) from error
            refusal = refusal or f"{list(candidate.shape)}: {_first_line(error)}"
    raise ModelError(
        f"no input for {type(model).__name__} could be guessed ({refusal}). Pass pixels [rows, channels, height, width] "
        "that it takes."
    )


def _candidates(model: nn.Module) -> Iterator[Tensor]:
    """Two images a size, of what the model says of itself, then of the usual sizes."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None)
    config = getattr(model, "config", None)
    numbers = [getattr(model, "channels", None), getattr(config, "num_channels", None), first]
    channels = [number for number in numbers if isinstance(number, int)][:1] or [1, 3]
    sizes = [getattr(model, "image_size", None), getattr(config, "image_size", None)]
    sizes += list((getattr(model, "default_cfg", None) or {}).get("input_size", ())[-1:])  # timm's
    generator = torch.Generator().manual_seed(0)
    for size in dict.fromkeys([*(size for size in sizes if isinstance(size, int)), *_SIZES]):
        for number in channels:
            pixels = torch.rand(2, number, size, size, generator=generator)
            yield next((pixels.to(p.device, p.dtype) for p in model.parameters()), pixels)


@contextmanager
def _watched(model: nn.Module, trace: _Trace) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}

    def begins(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        trace.order.setdefault(names[module], len(trace.order))
        trace.inputs[names[module]] = _tensors([*args, *kwargs.values()])

    def ends(module: nn.Module, args: object, output: object) -> None:
        tensors = trace.outputs[names[module]] = _tensors(output)
        nodes = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
        trace.ends[names[module]] = trace.ends.get(names[module], set()) | nodes

    hooks = []
    try:
        for module in names:
            hooks.append(module.register_forward_pre_hook(begins, with_kwargs=True))
            hooks.append(module.register_forward_hook(ends))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode, and the random state as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _head(model: nn.Module, trace: _Trace) -> str:
    """The largest module, short of the whole model, that takes `[rows, dim]` to the logits and is no feature extractor."""
    logits = trace.logits.detach()
    heads: list[str] = []
    for name, module in model.named_modules():
        inputs, outputs = trace.inputs.get(name), trace.outputs.get(name)
        if not name or not inputs or not outputs or inputs[0].ndim != 2 or outputs[0].numel() != logits.numel():
            continue
        same_rows = len(inputs[0]) == len(logits)
        if same_rows and _plain(module) and torch.equal(outputs[0].detach().reshape_as(logits), logits):
            heads.append(name)
    heads = [name for name in heads if any(not _within(parameter, name) for parameter, _ in model.named_parameters())]
    if not heads:
        raise ModelError(
            f"no linear layer of {type(model).__name__} takes [rows, dim] to its logits {list(logits.shape)}. Give a model "
            "whose forward ends in its head, without a softmax or scaling after it."
        )
    return min(heads, key=lambda name: (name.count("."), trace.order[name]))


def _plain(module: nn.Module) -> bool:
    """Whether it is made of linear layers, norms, activations and dropout, at least one of them linear."""
    parts = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return any(map(_is_linear, parts)) and all(_is_linear(part) or _is_norm(part) for part in parts)


def _blocks(model: nn.Module, trace: _Trace, head: str) -> tuple[VisionBlock, ...]:
    """The units in groups: a norm on its own belongs to what it follows, or, as the first, to what it precedes."""
    groups: list[list[str]] = []
    for name in _units(model, "", trace, head):
        lone = [_is_norm(model.get_submodule(other)) for other in (*(groups[-1] if groups else ()), name)]
        if groups and name != head and (lone[-1] or all(lone[:-1])):
            groups[-1].append(name)
        else:
            groups.append([name])
    state = list(_shapes(model))
    owned = [[entry for entry in state if any(_within(entry, name) for name in group)] for group in groups]
    taken = {entry for entries in owned for entry in entries}
    left = {entry for entry in state if entry not in taken and entry.rpartition(".")[0] in trace.order}
    owned[0] = [entry for entry in state if entry in owned[0] or entry in left]
    return tuple(VisionBlock(tuple(g), tuple(entries)) for g, entries in zip(groups, owned, strict=True))


def _units(model: nn.Module, name: str, trace: _Trace, head: str) -> list[str]:
    """The modules below this one that can't be cut further, in the order of the forward."""
    inside = _children(model, name, trace) if name != head else []
    if not inside or not (name == "" or _within(head, name) or _is_chain(model, name, inside, trace)):
        return [name]
    return [unit for child in inside for unit in _units(model, child, trace, head)]


def _children(model: nn.Module, name: str, trace: _Trace) -> list[str]:
    """Those with weights that ran, in order; a list of modules that is never called stands for its members."""
    children: list[str] = []
    for short, child in model.get_submodule(name).named_children():
        path = f"{name}.{short}" if name else short
        if not any(True for _ in child.parameters()):
            continue
        children += [path] if path in trace.order else _children(model, path, trace)
    return sorted(dict.fromkeys(children), key=lambda path: trace.order[path])


def _is_chain(model: nn.Module, name: str, inside: list[str], trace: _Trace) -> bool:
    """Whether it has several layers, one child after the other. A convolution with its norm is one and stays whole."""
    module = model.get_submodule(name)
    layers = sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())
    if layers < 2 or any(True for _ in module.parameters(recurse=False)):
        return False
    return not any(_goes_around(trace, child) for child in inside)


def _goes_around(trace: _Trace, name: str) -> bool:
    """Whether a path in the graph leads from the logits to the pixels without this module's output."""
    ahead, seen = [trace.logits.grad_fn], set(trace.ends[name])
    while ahead:
        node = ahead.pop()
        if node is trace.start:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [further for further, _ in node.next_functions]
    return False


def _is_linear(module: nn.Module) -> bool:
    return isinstance(getattr(module, "base_layer", module), nn.Linear)  # peft keeps the original beneath its own


def _is_norm(module: nn.Module) -> bool:
    named = "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
    return isinstance(module, _NORMS) or named


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def _tensors(value: object) -> list[Tensor]:
    """All tensors in a value of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
