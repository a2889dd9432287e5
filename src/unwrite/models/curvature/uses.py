"""One use of a parameter in a forward, and every row's own gradient through it.

An operation that meets a parameter once knows each row's gradient from what went in and from the gradient of what
came out; no backward pass of its own is needed (Goodfellow, arXiv 1510.01799, for linear layers). For x `[rows, time,
in]` going in and g `[rows, time, out]` coming back, a linear map's weight has

    G_row = sum_t g_row,t x_row,t^T        and, where time is 1,        sum_row G_row^2 = (g^2)^T x^2,

which needs no `G_row` at all. The leading dimension of x and g is the row, or the row times something (heads, windows)
with the row outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Convolution", "Lookup", "Outer", "Power", "Summed", "Use", "accumulate", "samples"]

Power = Literal["square", "absolute"]

# Gradients made at a time, in bytes: what stays in a core's own cache, and what keeps a GPU busy.
_CACHED, _ON_GPU = 1 << 20, 256 << 20
_LONG = 16384  # weights, from which on rows are added up one by one sooner than together
_FEW = 64  # places of a convolution, below which unfolding is cheaper than its own kernel


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a weight in a forward.

    Args:
        name: of the parameter.
        shape: of the parameter, or of the view of it that was used.
        x: what went in beside it, `[rows * m, ...]`, or None where the gradient doesn't depend on it.
    """

    name: str
    shape: torch.Size
    x: Tensor | None

    def samples(self, x: Tensor | None, grad: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        """Each row's gradient, `[rows, *shape]`.

        Args:
            x: the part of `self.x` that belongs to the rows.
            grad: of what came out, `[rows * m, ...]`.
            out: memory of that shape and dtype that may be used for it.
        """
        raise NotImplementedError

    def total(self, grad: Tensor, rows: int, power: Power) -> Tensor | None:
        """`sum_row power(G_row)` in the parameter's shape without the `G_row`; None where there is no such short cut."""
        return None


@dataclass(frozen=True, eq=False)
class Outer(Use):
    """A linear map's weight `[out, in]`, or `[in, out]` if `transposed`; x `[rows * m, ..., in]`."""

    transposed: bool = False

    def _sides(self, x: Tensor, grad: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        inputs, grads = x.reshape(rows, -1, x.shape[-1]), grad.reshape(rows, -1, grad.shape[-1])
        return (inputs, grads) if self.transposed else (grads, inputs)

    def samples(self, x: Tensor | None, grad: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        assert x is not None
        left, right = self._sides(x, grad, rows)
        return torch.bmm(left.transpose(1, 2), right, out=out)

    def total(self, grad: Tensor, rows: int, power: Power) -> Tensor | None:
        assert self.x is not None
        left, right = self._sides(self.x, grad, rows)
        if left.shape[1] != 1:
            return None
        left, right = (_raised(_wide(side[:, 0]), power, inplace=False) for side in (left, right))
        return left.T @ right


@dataclass(frozen=True, eq=False)
class Summed(Use):
    """A parameter that is added to, or multiplied with, everything: biases, the scale and shift of norms, tokens.

    Args:
        aligned: the parameter's shape with ones where it is broadcast over what came out; the first is 1.
        factor: of x, what the gradient is multiplied with, `[rows * m, ...]`; None for a parameter that is added.
    """

    aligned: tuple[int, ...] = ()
    factor: Callable[[Tensor], Tensor] | None = None

    def samples(self, x: Tensor | None, grad: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        if self.factor is not None:
            assert x is not None
            grad = grad * self.factor(x)
        spread = [dim + 1 for dim, size in enumerate(self.aligned) if size == 1]  # the first of them is m
        return grad.reshape(rows, -1, *grad.shape[1:]).sum(spread).reshape(rows, *self.shape)


@dataclass(frozen=True, eq=False)
class Lookup(Use):
    """An embedding table `[entries, width]`; x are the entries looked up, `[rows * m, ...]`, grad `[..., width]`."""

    padding: int | None = None

    def samples(self, x: Tensor | None, grad: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        return self.add_samples(grad.new_zeros(rows, *self.shape), x, grad)

    def add_samples(self, into: Tensor, x: Tensor | None, grad: Tensor) -> Tensor:
        """Adds each row's gradient to `into`, `[rows, entries, width]`."""
        assert x is not None
        into.view(-1, self.shape[1]).index_add_(0, self._places(x, len(into)), self._unpadded(x, grad))
        return into

    def total(self, grad: Tensor, rows: int, power: Power) -> Tensor | None:
        assert self.x is not None
        places, where = torch.unique(self._places(self.x, rows), return_inverse=True)
        wide = _wide(self._unpadded(self.x, grad))
        sums = wide.new_zeros(len(places), self.shape[1]).index_add_(0, where, wide)
        table = wide.new_zeros(self.shape)
        return table.index_add_(0, places % self.shape[0], _raised(sums, power))

    def _places(self, x: Tensor, rows: int) -> Tensor:
        """Which of `rows` tables laid end to end, and which entry in it: `[rows * m * ...]`."""
        start = torch.arange(rows, device=x.device)[:, None] * self.shape[0]
        return (x.reshape(rows, -1) + start).flatten()

    def _unpadded(self, x: Tensor, grad: Tensor) -> Tensor:
        grad = grad.reshape(-1, self.shape[1])
        return grad if self.padding is None else grad.masked_fill((x.reshape(-1) == self.padding)[:, None], 0)


@dataclass(frozen=True, eq=False)
class Convolution(Use):
    """A convolution's weight `[out, in / groups, height, width]`; x `[rows * m, in, height, width]`, zero-padded."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def samples(self, x: Tensor | None, grad: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        assert x is not None
        if x.dim() == 3:  # over one dimension
            x, grad = x.unsqueeze(2), grad.unsqueeze(2)
        many = grad.shape[2] * grad.shape[3] >= _FEW
        one_call = many and x.is_cpu and x.dtype == torch.float32  # other kernels take a call a group
        each = self._grouped(x, grad) if one_call else self._unfolded(x, grad, out if len(x) == rows else None)
        each = each.view(len(x), *self.shape)
        return each if len(x) == rows else each.view(rows, -1, *self.shape).sum(1)

    def _kernel(self) -> tuple[int, int]:
        return (1, self.shape[2]) if len(self.shape) == 3 else (self.shape[2], self.shape[3])

    def _grouped(self, x: Tensor, grad: Tensor) -> Tensor:
        """All images as the groups of one: the weight's gradient is then every image's own."""
        count = len(x)
        weight = x.new_empty(count * self.shape[0], self.shape[1], *self._kernel())  # only its shape is read
        image, grads = x.reshape(1, -1, *x.shape[2:]), grad.reshape(1, -1, *grad.shape[2:])
        conv = (self.stride, self.padding, self.dilation, False, (0, 0), count * self.groups)
        return torch.ops.aten.convolution_backward(grads, image, weight, None, *conv, (False, True, False))[1]

    def _unfolded(self, x: Tensor, grad: Tensor, out: Tensor | None = None) -> Tensor:
        patches = F.unfold(x, self._kernel(), self.dilation, self.padding, self.stride)
        sets, places = len(x) * self.groups, patches.shape[-1]
        patches = patches.view(sets, -1, places)  # [n * groups, in * kernel, places]
        grads = grad.reshape(sets, -1, places)  # [n * groups, out, places]
        into = None if out is None else out.view(sets, grads.shape[1], -1)
        return torch.bmm(grads, patches.transpose(1, 2), out=into)


Arrived = Sequence[tuple[Use, Tensor]]  # all uses of one parameter, each with the gradient of what came out


def samples(arrived: Arrived, rows: int, first: int, count: int, out: Tensor | None = None) -> Tensor:
    """The gradient of rows `first` to `first + count` of `rows`, over all uses: `[count, *shape]` of the first of them."""
    total: Tensor | None = None
    for use, grad in sorted(arrived, key=lambda pair: isinstance(pair[0], Lookup)):
        x, grad = (None if t is None else _part(t, rows, first, count) for t in (use.x, grad))
        assert grad is not None
        if total is not None and isinstance(use, Lookup):
            use.add_samples(total, x, grad)
        else:
            each = use.samples(x, grad, count, out if total is None else None)
            total = each if total is None else total + each.view_as(total)
    assert total is not None
    return total


@torch.no_grad()
def accumulate(total: Tensor, arrived: Arrived, rows: int, power: Power) -> None:
    """Adds `sum_row power(gradient of the row)` to `total`, which has the parameter's shape."""
    if len(arrived) == 1:
        use, grad = arrived[0]
        short = use.total(grad, rows, power)
        if short is not None:
            total += short.view_as(total)
            return
    limit = _CACHED if total.is_cpu else _ON_GPU
    products = [grad.numel() // rows for use, grad in arrived if isinstance(use, Summed) and use.factor]
    at_once = max(1, limit // (max(total.numel(), *products, 1) * total.element_size()))
    one_by_one = power == "square" and total.numel() >= _LONG
    same = all(grad.dtype == total.dtype for _, grad in arrived)
    memory = total.new_empty(min(at_once, rows), *arrived[0][0].shape) if same and rows > at_once else None
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        out = (
            None if memory is None else memory[:count]
        )  # fresh memory for each would cost more than what is done in it
        each = _wide(samples(arrived, rows, first, count, out)).view(count, *total.shape)
        if one_by_one:
            for one in each:
                total.addcmul_(one, one)
        else:
            total += _raised(each, power).sum(0)


def _part(of: Tensor, rows: int, first: int, count: int) -> Tensor:
    m = len(of) // rows
    return of if count == rows else of[first * m : (first + count) * m]


def _wide(gradient: Tensor) -> Tensor:
    """Half precision as float32: its squares would underflow."""
    return gradient.float() if gradient.element_size() < 4 else gradient


def _raised(gradient: Tensor, power: Power, inplace: bool = True) -> Tensor:
    if inplace:
        return gradient.square_() if power == "square" else gradient.abs_()
    return gradient.square() if power == "square" else gradient.abs()
