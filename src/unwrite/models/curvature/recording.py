"""Which operation of a forward meets which parameter, and whether rows can be told apart there.

A recorder watches every torch function. An operation it knows becomes a `Use`; a parameter that goes into any other is
`unknown`, and whoever asked must do without. `check` proves the rest, on a few rows: the gradient of what came out, for
row losses weighted 1, 8, 64, ..., must be the unweighted one times the weight of the row that the leading dimension
says. A row that reaches into another's part (batch statistics, tokens sorted by expert, time before batch) breaks
that. And autograd's graph must meet each parameter exactly as often as the recorder did.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .uses import Convolution, Lookup, Outer, Summed, Use

__all__ = ["Met", "Recorder", "check"]

OperandUses = list[tuple[Tensor | None, Use]]  # what a reader finds: an operand, and the use if it is a parameter
Factor = Callable[[Tensor], Tensor]  # of what went in: what the gradient is multiplied with
_SHAPELESS = torch.Size()


@dataclass(eq=False)
class Met:
    """A use as it happened in one forward.

    Args:
        use: of which parameter, and how.
        edge: where autograd's graph holds what came out.
        lowest: nothing recorded lies beneath, so backward must be asked to come this far.
        size: of what came out.
    """

    use: Use
    edge: GradientEdge
    lowest: bool
    size: torch.Size


@dataclass(eq=False)
class Recorder(TorchFunctionMode):
    """A context in which forwards are recorded.

    Args:
        names: parameter names by `id`.
        rows: how many rows go in, if known. Position embeddings looked up once for all rows are looked up for each.
        arrived: called in backward with a use and the gradient of what came out.
    """

    names: Mapping[int, str]
    rows: int | None
    arrived: Callable[[Met, Tensor], None]
    met: list[Met] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    spread: set[str] = field(default_factory=set)  # looked up for each row instead of once

    def __post_init__(self) -> None:
        super().__init__()
        self._known = dict(self.names)  # parameters, and what is one but for its shape, dtype or a shift
        self._aliases: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((*args, *kwargs.values()))
        parameters = {id(tensor): tensor for tensor in tensors if id(tensor) in self._known}
        if not parameters:
            return func(*args, **kwargs)
        if func is F.embedding and len(args) > 1:
            args = self._for_each_row(*args)
        below = any(t.requires_grad and not t.is_leaf for t in tensors if id(t) not in parameters)
        versions = {key: tensor._version for key, tensor in parameters.items()}
        out = func(*args, **kwargs)
        changed = {self._known[key] for key, tensor in parameters.items() if tensor._version != versions[key]}
        self.unknown |= changed
        if changed or id(out) in parameters or not any(t.requires_grad for t in _tensors((out,))):
            return out
        if _is_same(func, out, args, kwargs):
            self._known[id(out)] = self._known[id(args[0])]
            self._aliases.append(out)  # so that its id stays its own
            return out
        for operand, use in _read(func, out, args, kwargs):
            if operand is not None and id(operand) in parameters:
                self._meet(replace(use, name=self._known[id(operand)], shape=operand.shape), out, not below)
                del parameters[id(operand)]
        self.unknown |= {self._known[key] for key in parameters}
        return out

    def _meet(self, use: Use, out: Tensor, lowest: bool) -> None:
        met = Met(use, get_gradient_edge(out), lowest, out.shape)
        version, place = None if use.x is None else use.x._version, len(self.met)
        me = weakref.ref(self)  # the graph holds its hooks and we hold the graph: neither would ever be freed

        def hook(grad: Tensor) -> None:
            if use.x is not None and use.x._version != version:
                raise RuntimeError(f"what went in beside {use.name} was changed in place before its gradient was taken")
            if (recorder := me()) is not None:
                recorder.arrived(recorder.met[place], grad)

        out.register_hook(hook)
        self.met.append(met)

    def _for_each_row(self, ids: Tensor, table: Tensor, *rest: Any) -> tuple[Any, ...]:
        if self.rows is not None and ids.dim() > 1 and len(ids) == 1:
            ids = ids.expand(self.rows, *ids.shape[1:])
            self.spread.add(self._known[id(table)])
        return ids, table, *rest

    def strange(self, rows: int) -> set[str]:
        """Parameters of which it isn't known what each of `rows` rows has to do with them."""
        names = set(self.unknown)
        for met in self.met:
            lengths = {met.size[0] if met.size else 1} | ({len(met.use.x)} if met.use.x is not None else set())
            if len(met.size) < 2 or len(lengths) > 1 or lengths.pop() % rows:
                names.add(met.use.name)
        return names

    def layout(self, rows: int) -> tuple[Any, ...]:
        """What `check` has to see once: the uses in order, whatever the sizes."""
        return tuple((met.use.name, type(met.use), len(met.size), met.size[0] == rows) for met in self.met)

    def lowest(self) -> list[GradientEdge]:
        return [met.edge for met in self.met if met.lowest]


def check(recorder: Recorder, values: Tensor) -> set[str]:
    """Parameters whose recorded uses can't be trusted to give each row's own gradient.

    Args:
        recorder: after a forward; its `arrived` is replaced.
        values: the row losses of that forward, `[rows]`, a few of them, at least 2.
    """
    rows = len(values)
    strange = recorder.strange(rows)
    if strange or not recorder.lowest():
        return strange or set(recorder.names.values())
    weights = values.new_tensor([8.0 ** (row % 7) for row in range(rows)])  # powers of 2 scale without rounding
    passes: list[dict[int, Tensor]] = []
    recorder.arrived = lambda met, grad: passes[-1].update({id(met): grad.detach()})
    for value in (values.sum(), (values * weights).sum()):
        passes.append({})
        torch.autograd.grad(value, recorder.lowest(), retain_graph=True, allow_unused=True)
    seen: Counter[str] = Counter()
    for met in recorder.met:
        plain, weighted = (grads.get(id(met)) for grads in passes)
        if plain is None or weighted is None:  # the loss doesn't depend on it
            continue
        seen[met.use.name] += 1
        expected = plain.reshape(rows, -1) * weights[:, None]
        wrong = (weighted.reshape(rows, -1) - expected).abs().amax(1)
        if not bool((wrong <= 1e-4 * expected.abs().amax(1)).all()):
            strange.add(met.use.name)
    edges = _edges(values, recorder.names)
    return strange | {name for name in edges | seen if edges[name] != seen[name]}


def _edges(values: Tensor, names: Mapping[int, str]) -> Counter[str]:
    """How many operations that `values` depend on take each parameter, by autograd's graph."""
    counts: Counter[str] = Counter()
    waiting, known = [values.grad_fn], {values.grad_fn}
    while waiting:
        node = waiting.pop()
        for below, _ in node.next_functions if node is not None else ():
            if below is None:
                continue
            leaf = getattr(below, "variable", None)
            if leaf is not None and id(leaf) in names:
                counts[names[id(leaf)]] += 1
            elif below not in known:
                known.add(below)
                waiting.append(below)
    return counts


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in the arguments of a torch function; called for each, so it looks at plain containers only."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list):
            tensors += _tensors(value)
        elif isinstance(value, dict):
            tensors += _tensors(value.values())
    return tensors


def _is_same(func: Callable[..., Any], out: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the gradient of `out` is that of the first operand, in another shape or dtype at most."""
    if not (args and isinstance(out, Tensor) and isinstance(args[0], Tensor) and out.device == args[0].device):
        return False
    shifted = func in _ADDITIONS and len(args) == 2 and isinstance(args[1], int | float) and not kwargs
    return out.numel() == args[0].numel() and (shifted or func in _RESHAPED)


def _read(func: Callable[..., Any], out: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OperandUses:
    reader = _READERS.get(func)
    if reader is None or not isinstance(out, Tensor):
        return []
    try:
        with torch.no_grad():
            return reader(out, *args, **kwargs)
    except TypeError:  # called in a way that the reader doesn't know
        return []


def _trailing(out: Tensor, parameter: Tensor) -> tuple[int, ...]:
    """The parameter's shape as it is broadcast against what came out."""
    return (1,) * (out.dim() - parameter.dim()) + tuple(parameter.shape)


def _per_channel(out: Tensor, parameter: Tensor) -> tuple[int, ...]:
    return 1, len(parameter), *(1,) * (out.dim() - 2)


def _added(out: Tensor, parameter: Tensor | None, x: Tensor | None = None, factor: Factor | None = None) -> OperandUses:
    """A parameter broadcast from the right, of which no row has a part of its own."""
    if parameter is None or parameter.dim() > out.dim():
        return []
    aligned = _trailing(out, parameter)
    return [(parameter, Summed("", _SHAPELESS, x, aligned, factor))] if aligned[:1] == (1,) else []


def _linear(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> OperandUses:
    return [(weight, Outer("", _SHAPELESS, input)), *_added(out, bias)]


def _addmm(out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> OperandUses:
    if beta != 1 or alpha != 1:
        return []
    return [(mat2, Outer("", _SHAPELESS, mat1, transposed=True)), *_added(out, input)]


def _matmul(out: Tensor, input: Tensor, other: Tensor) -> OperandUses:
    return [(other, Outer("", _SHAPELESS, input, transposed=True))] if other.dim() == 2 and input.dim() > 1 else []


def _conv(
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> OperandUses:
    over = weight.dim() - 2
    if input.dim() != weight.dim():  # one image without a leading dimension
        return []
    wide = _pairs(dilation, over)
    steps, kernel = _pairs(stride, over), (1, *weight.shape[2:])[-2:]
    x = input
    if padding == "same":
        around = [d * (k - 1) for d, k in zip(wide, kernel, strict=True)][-over:]
        x = F.pad(input, [side for total in reversed(around) for side in (total // 2, total - total // 2)])
        padding = 0
    zeros = (0, 0) if padding == "valid" else _pairs(padding, over, nothing=0)
    use = Convolution("", _SHAPELESS, x, steps, zeros, wide, groups)
    return [(weight, use)] + (
        [(bias, Summed("", _SHAPELESS, None, _per_channel(out, bias)))] if bias is not None else []
    )


def _pairs(value: int | str | Sequence[int], over: int, nothing: int = 1) -> tuple[int, int]:
    values = [int(part) for part in value] if isinstance(value, Iterable) else [int(value)]
    values = values * over if len(values) == 1 else values
    return (values[0], values[1]) if over == 2 else (nothing, values[0])


def _embedding(
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> OperandUses:
    if max_norm is not None or scale_grad_by_freq or sparse:
        return []
    padding = padding_idx if padding_idx is None or padding_idx >= 0 else len(weight) + padding_idx
    return [(weight, Lookup("", _SHAPELESS, input, padding))]


def _normed(
    x: Tensor,
    aligned: Callable[[Tensor, Tensor], tuple[int, ...]],
    weight: Tensor | None,
    bias: Tensor | None,
    factor: Factor | None,
) -> OperandUses:
    uses: OperandUses = [] if weight is None else [(weight, Summed("", _SHAPELESS, x, aligned(x, weight), factor))]
    return uses + ([] if bias is None else [(bias, Summed("", _SHAPELESS, None, aligned(x, bias)))])


def _layer_norm(
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> OperandUses:
    shape = tuple(normalized_shape)
    return _normed(input, _trailing, weight, bias, lambda x: F.layer_norm(x, shape, None, None, eps))


def _rms_norm(
    out: Tensor, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> OperandUses:
    shape = tuple(normalized_shape)
    return _normed(input, _trailing, weight, None, lambda x: F.rms_norm(x, shape, None, eps))


def _group_norm(
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> OperandUses:
    return _normed(input, _per_channel, weight, bias, lambda x: F.group_norm(x, num_groups, None, None, eps))


def _batch_norm(
    out: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> OperandUses:
    if training:  # statistics of the batch: rows are not on their own
        return []
    stay = (running_mean, running_var)
    return _normed(input, _per_channel, weight, bias, lambda x: F.batch_norm(x, *stay, None, None, False, 0.0, eps))


def _add(out: Tensor, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> OperandUses:
    operands = [operand for operand in (input, other) if isinstance(operand, Tensor)]
    return [pair for operand in operands for pair in _added(out, operand)] if alpha == 1 else []


def _mul(out: Tensor, input: Tensor | float, other: Tensor | float) -> OperandUses:
    pairs = [(input, other), (other, input)]
    uses: OperandUses = []
    for parameter, x in pairs:
        if isinstance(parameter, Tensor):
            x = x.expand_as(out) if isinstance(x, Tensor) else out.new_full((1,), x).expand_as(out)
            uses += _added(out, parameter, x, lambda part: part)
    return uses


def _expand(out: Tensor, input: Tensor, *sizes: Any) -> OperandUses:
    return _added(out, input)


def _repeat(out: Tensor, input: Tensor, *repeats: Any) -> OperandUses:
    times = repeats[0] if len(repeats) == 1 and not isinstance(repeats[0], int) else repeats
    return _added(out, input) if len(times) == input.dim() and all(n == 1 for n in times[1:]) else []


_ADDITIONS = (torch.add, Tensor.add, Tensor.__radd__)
_RESHAPED = (
    *(Tensor.float, Tensor.double, Tensor.bfloat16, Tensor.half, Tensor.to, Tensor.type_as, Tensor.contiguous),
    *(Tensor.view, Tensor.reshape, Tensor.unsqueeze, Tensor.flatten, torch.unsqueeze, torch.flatten, torch.reshape),
)
_READERS: dict[Callable[..., Any], Callable[..., OperandUses]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((*_ADDITIONS, Tensor.add_, Tensor.__iadd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__rmul__), _mul),
    **dict.fromkeys((Tensor.expand, Tensor.expand_as, torch.broadcast_to), _expand),
    Tensor.repeat: _repeat,
}
