"""One decoding step of a Llama-family model as one compiled call that all threads run together.

Work is dealt out in small tasks, a counter a phase: whoever is free takes the next one, and a phase ends when all its tasks are
done. A thread that wakes late finds less left to do and keeps nobody waiting. What is cheap (norms, and putting attention's parts
together) every thread does for itself, so that a layer has five phases.

    q, k, v = W n(x)  |  attention over stretches of 128 columns  |  x += O a  |  h = silu(G n(x)) * U n(x)  |  x += D h
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, typeof, types

from .....runs import hash_json
from .arithmetic import EXACT, add, copy, gated, norm_row
from .attention import attend, join_parts
from .records import BLOCK_BYTES, LAYER, MOST_ROWS, STEP
from .tasks import LAST_TICK, done, multiplier, product, take, task_rows, wait
from .words import cycles, integers

__all__ = ["StepKernel", "kernel"]


@njit(**EXACT)
def norm_rows(step, weight, out):
    """out = n(x), every row of the step; [rows, width]."""
    for row in range(step.batch * step.nodes):
        norm_row(step.x + 4 * row * step.width, weight, step.width, step.epsilon, out + 4 * row * step.width)


@njit(**EXACT)
def _projected(step, layer, phase, private, thread):
    """qkv = W n(x), biases added, one task a few rows of q, k or v."""
    normed = private + step.normed
    norm_rows(step, layer.norm, normed)
    blocks, rows = step.width // 32, step.batch * step.nodes
    q, kv = step.heads * step.head_width, step.groups * step.head_width
    whole = q + 2 * kv
    sizes = (
        task_rows(blocks, layer.q_stored, rows),
        task_rows(blocks, layer.k_stored, rows),
        task_rows(blocks, layer.v_stored, rows),
    )
    counts = (-(-q // sizes[0]), -(-kv // sizes[1]), -(-kv // sizes[2]))
    tasks = counts[0] + counts[1] + counts[2]
    task = take(step, phase)
    while task < tasks:
        if task < counts[0]:
            w, bias, stored, size, most, place = layer.q, layer.q_bias, layer.q_stored, sizes[0], q, 0
        elif task < counts[0] + counts[1]:
            w, bias, stored, size, most, place = layer.k, layer.k_bias, layer.k_stored, sizes[1], kv, q
            task -= counts[0]
        else:
            w, bias, stored, size, most, place = layer.v, layer.v_bias, layer.v_stored, sizes[2], kv, q + kv
            task -= counts[0] + counts[1]
        first, last = task * size, min(most, task * size + size)
        out = step.qkv + 4 * (place + first)
        row_bytes = blocks * BLOCK_BYTES[stored]
        here = w + first * row_bytes
        product(
            step, private, stored, here, row_bytes, last - first, normed, 4 * step.width, rows, blocks, out, 4 * whole
        )
        if bias != 0:
            for row in range(rows):
                add(bias + 4 * first, last - first, out + 4 * row * whole)
        done(step, phase)
        task = take(step, phase)
    wait(step, phase, tasks, thread, 1)


@njit(**EXACT)
def _into_x(step, stored, w, bias, inputs, columns, phase, private, thread, part):
    """x += W inputs + bias, one task a few rows of W; inputs: [rows, columns]."""
    blocks, rows, products = columns // 32, step.batch * step.nodes, private + step.products
    size, row_bytes = task_rows(blocks, stored, rows), blocks * BLOCK_BYTES[stored]
    tasks = -(-step.width // size)
    task = take(step, phase)
    while task < tasks:
        first, last = task * size, min(step.width, task * size + size)
        here = w + first * row_bytes
        product(
            step,
            private,
            stored,
            here,
            row_bytes,
            last - first,
            inputs,
            4 * columns,
            rows,
            blocks,
            products,
            4 * MOST_ROWS,
        )
        for row in range(rows):
            there = step.x + 4 * (row * step.width + first)
            if bias != 0:
                add(bias + 4 * first, last - first, there)
            add(products + 4 * MOST_ROWS * row, last - first, there)
        done(step, phase)
        task = take(step, phase)
    wait(step, phase, tasks, thread, part)


@njit(**EXACT)
def _gates(step, layer, phase, private, thread):
    """hidden = silu(G n(x)) * U n(x), one task a few rows of G and U."""
    normed, gates = private + step.normed, private + step.products
    ups = gates + 4 * MOST_ROWS * step.batch * step.nodes
    norm_rows(step, layer.post_norm, normed)
    blocks, rows = step.width // 32, step.batch * step.nodes
    size = min(task_rows(blocks, layer.gate_stored, rows), task_rows(blocks, layer.up_stored, rows))
    gate_bytes, up_bytes = blocks * BLOCK_BYTES[layer.gate_stored], blocks * BLOCK_BYTES[layer.up_stored]
    tasks = -(-step.inner // size)
    task = take(step, phase)
    while task < tasks:
        first, last = task * size, min(step.inner, task * size + size)
        count, x_bytes, out_bytes = last - first, 4 * step.width, 4 * MOST_ROWS
        gate, up = layer.gate + first * gate_bytes, layer.up + first * up_bytes
        product(
            step, private, layer.gate_stored, gate, gate_bytes, count, normed, x_bytes, rows, blocks, gates, out_bytes
        )
        product(step, private, layer.up_stored, up, up_bytes, count, normed, x_bytes, rows, blocks, ups, out_bytes)
        for row in range(rows):
            at = out_bytes * row
            if layer.gate_bias != 0:
                add(layer.gate_bias + 4 * first, count, gates + at)
            if layer.up_bias != 0:
                add(layer.up_bias + 4 * first, count, ups + at)
            gated(gates + at, ups + at, count, step.hidden + 4 * (row * step.inner + first))
        done(step, phase)
        task = take(step, phase)
    wait(step, phase, tasks, thread, 4)


@njit(**EXACT)
def _head(step, phase, private, thread):
    """Logits of the rows that are wanted, one task a few words."""
    normed, blocks, rows = private + step.normed, step.width // 32, step.outputs
    for place in range(rows):
        source = step.x + 4 * integers(step.wanted)[place] * step.width
        norm_row(source, step.final_norm, step.width, step.epsilon, normed + 4 * place * step.width)
    size, row_bytes = task_rows(blocks, step.head_stored, rows), blocks * BLOCK_BYTES[step.head_stored]
    tasks = -(-step.vocabulary // size) if rows > 0 else 0
    task = take(step, phase)
    if task == 0 and step.final != 0:
        copy(normed, rows * step.width, step.final)
    while task < tasks:
        first, last = task * size, min(step.vocabulary, task * size + size)
        here, out = step.head + first * row_bytes, step.logits + 4 * first
        product(
            step,
            private,
            step.head_stored,
            here,
            row_bytes,
            last - first,
            normed,
            4 * step.width,
            rows,
            blocks,
            out,
            4 * step.vocabulary,
        )
        if step.head_bias != 0:
            for row in range(rows):
                add(step.head_bias + 4 * first, last - first, out + 4 * row * step.vocabulary)
        done(step, phase)
        task = take(step, phase)
    wait(step, phase, tasks, thread, 6)


@njit(**EXACT)
def _rows_copied(step, source, out, phase, embed, thread):
    """Embeddings into x, or x to where a layer's states are wanted; one task."""
    task = take(step, phase)
    if task == 0:
        rows, width = step.batch * step.nodes, step.width
        for row in range(rows):
            place = integers(step.tokens)[row] if embed else row
            copy(source + 4 * place * width, width, out + 4 * row * width)
        done(step, phase)
    wait(step, phase, 1, thread, 0)


def _runner(stamp: str) -> Any:
    def run(steps, layers, thread):
        """A thread's part of one step; every thread calls it with the same records, whose counters are 0.

        Args:
            steps: [1] of `STEP`.
            layers: [layers] of `LAYER`.
            thread: 0, 1, ...; the first notes the time.
        """
        assert len(stamp) > 0
        step = steps[0]
        private = step.private + thread * step.private_bytes
        if thread == 0:
            integers(step.ticks)[LAST_TICK] = cycles()
        _rows_copied(step, step.embedding, step.x, 0, True, thread)
        phase = 1
        for index in range(step.layers):
            layer = layers[index]
            _projected(step, layer, phase, private, thread)
            attend(step, layer, phase + 1, private, thread)
            attended = private + step.normed
            join_parts(step, attended)
            inner = step.heads * step.head_width
            _into_x(step, layer.o_stored, layer.o, layer.o_bias, attended, inner, phase + 2, private, thread, 3)
            _gates(step, layer, phase + 3, private, thread)
            _into_x(
                step,
                layer.down_stored,
                layer.down,
                layer.down_bias,
                step.hidden,
                step.inner,
                phase + 4,
                private,
                thread,
                5,
            )
            if layer.tap != 0:
                _rows_copied(step, step.x, layer.tap, phase + 5, False, thread)
            phase += 6
        _head(step, phase, private, thread)

    return njit(cache=True, nogil=True, error_model="numpy")(run)


@dataclass(frozen=True)
class StepKernel:
    """The compiled step.

    Args:
        run: run(steps, layers, thread), a thread's part of one step.
        multiply: address of the product that it calls.
        held: what that address belongs to.
    """

    run: Any
    multiply: int
    held: Any


@functools.cache
def kernel() -> StepKernel:
    """Compiled once for a processor and a version of this source, about ten seconds, and kept on disk by numba; loaded in half of one."""
    stamp = hash_json([path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))])
    run, product = _runner(stamp), multiplier(stamp)
    run.compile((typeof(np.zeros(1, STEP)), typeof(np.zeros(1, LAYER)), types.int64))
    return StepKernel(run, product.address, product)
