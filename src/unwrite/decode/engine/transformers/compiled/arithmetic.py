"""What a step computes on rows of floats at addresses, beside products; compiled into the step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .words import as_float, floats

__all__ = ["EXACT", "FAST", "NEVER", "add", "copy", "exponential", "gated", "norm_row", "soften", "turn"]

# Called from compiled code alone. FAST may add in another order, the same in every call.
EXACT: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
FAST = {**EXACT, "fastmath": {"reassoc", "contract", "nsz"}}
NEVER = np.float32(-3.0e38)  # the score of what isn't seen


@njit(**FAST)
def norm_row(x, weight, width, epsilon, out):
    """out = x / sqrt(mean(x^2) + epsilon) * weight; addresses of `width` floats."""
    a, w, y = floats(x), floats(weight), floats(out)
    total = np.float32(0)
    for i in range(width):
        total += a[i] * a[i]
    inverse = np.float32(1) / np.float32(np.sqrt(total / np.float32(width) + epsilon))
    for i in range(width):
        y[i] = a[i] * inverse * w[i]


@njit(**FAST)
def exponential(x):
    """e^x, to two units in the last place; 0 below -87."""
    bounded = min(max(x, np.float32(-87)), np.float32(88))
    power = np.float32(np.floor(bounded * np.float32(1.44269504) + np.float32(0.5)))
    rest = bounded - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + np.float32(1)
    scaled = series * as_float(np.int32((np.int32(power) + np.int32(127)) << np.int32(23)))
    return scaled if x >= np.float32(-87) else np.float32(0)


@njit(**FAST)
def gated(gate, up, count, out):
    """out = silu(gate) * up."""
    g, u, y = floats(gate), floats(up), floats(out)
    for i in range(count):
        y[i] = g[i] / (np.float32(1) + exponential(-g[i])) * u[i]


@njit(**FAST)
def add(a, count, out):
    """out += a, `count` floats."""
    values, sums = floats(a), floats(out)
    for i in range(count):
        sums[i] += values[i]


@njit(**FAST)
def copy(a, count, out):
    """out = a, `count` floats."""
    values, copies = floats(a), floats(out)
    for i in range(count):
        copies[i] = values[i]


@njit(**FAST)
def turn(x, cosines, sines, width, scale, out):
    """Rotary embedding of one head: pairs (i, i + width / 2) turned by their angle, then scaled."""
    a, cos, sin, y = floats(x), floats(cosines), floats(sines), floats(out)
    half = width // 2
    for i in range(half):
        low, high = a[i], a[i + half]
        y[i] = (low * cos[i] - high * sin[i]) * scale
        y[i + half] = (high * cos[i + half] + low * sin[i + half]) * scale


@njit(**FAST)
def soften(scores, count, size, out):
    """The first `count` of `size` scores become e^(score - largest), the others 0; out = the largest and the sum.

    All sums are over `size`, so that columns which aren't seen change nothing in how they are grouped. Where no score is finite, the
    sum is 0.
    """
    s, y = floats(scores), floats(out)
    for i in range(count, size):
        s[i] = NEVER
    largest = NEVER
    for i in range(size):
        largest = max(largest, s[i])
    shift = largest if largest > np.float32(-1.0e38) else np.float32(0)
    for i in range(size):
        s[i] = exponential(s[i] - shift)
    total = np.float32(0)
    for i in range(size):
        total += s[i]
    y[0], y[1] = largest, total
