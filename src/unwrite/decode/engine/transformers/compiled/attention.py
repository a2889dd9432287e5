"""Attention of a step's nodes over the cached columns and each other, in stretches whose parts are put together afterwards.

part: m = max s, l = sum e^(s - m), o = sum e^(s - m) v;   whole: sum e^(m - M) o / sum e^(m - M) l,  M the largest m
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .arithmetic import EXACT, FAST, NEVER, copy, exponential, norm_row, soften, turn
from .records import SPLIT
from .tasks import done, product, take, wait
from .tiles import LANES, mixture
from .words import floats, integers

__all__ = ["attend", "join_parts"]


@njit(**EXACT)
def _head_turned(step, x, norm, position, scale, out):
    """A query's or key's head as attention takes it: normed where the model norms it, then turned."""
    width = step.head_width
    if norm != 0:
        norm_row(x, norm, width, step.epsilon, out)
        x = out
    at = 4 * position * width
    turn(x, step.cosines + at, step.sines + at, width, scale, out)


@njit(**EXACT)
def _mixed(step, scores, values, states, count, out):
    """out[state] = the weighted sum of `count` values."""
    width_bytes = 4 * step.head_width
    for begin in range(0, states, 2):
        p, y = scores + 4 * SPLIT * begin, out + width_bytes * begin
        at = 0
        while at + 4 * LANES <= step.head_width:
            if begin + 1 < states:
                mixture(2, 4, p, 4 * SPLIT, values + 4 * at, step.column_bytes, count, y + 4 * at, width_bytes)
            else:
                mixture(1, 4, p, 4 * SPLIT, values + 4 * at, step.column_bytes, count, y + 4 * at, width_bytes)
            at += 4 * LANES
        while at < step.head_width:
            if begin + 1 < states:
                mixture(2, 1, p, 4 * SPLIT, values + 4 * at, step.column_bytes, count, y + 4 * at, width_bytes)
            else:
                mixture(1, 1, p, 4 * SPLIT, values + 4 * at, step.column_bytes, count, y + 4 * at, width_bytes)
            at += LANES


@njit(**EXACT)
def _hide(step, scores, text, first, last, length, states):
    """Of the columns of the step itself, a node sees those of the nodes above it, and its own."""
    seen = floats(step.ancestors)
    for column in range(max(first, length), last):
        for state in range(states):
            node = state % step.nodes
            if seen[(text * step.nodes + node) * step.nodes + column - length] == np.float32(0):
                floats(scores)[state * SPLIT + column - first] = NEVER


@njit(**EXACT)
def attend(step, layer, phase, private, thread):
    """Attention, one task the queries of a group of heads over at most `SPLIT` columns of a text.

    The task that has a new token's column writes its key and value.
    """
    width, nodes = step.head_width, step.nodes
    several = step.heads // step.groups
    states, whole = several * nodes, (step.heads + 2 * step.groups) * width
    queries, scores = private + step.queries, private + step.scores
    tasks = step.batch * step.groups * step.splits
    task = take(step, phase)
    while task < tasks:
        text, group, split = task // (step.groups * step.splits), task // step.splits % step.groups, task % step.splits
        length = integers(step.lengths)[text]
        first, last = split * SPLIT, min(split * SPLIT + SPLIT, length + nodes)
        if first < last:
            cached = text * step.row_bytes + group * step.head_bytes
            keys, values = layer.keys + cached, layer.values + cached
            for column in range(max(first, length), last):
                row = text * nodes + column - length
                position = integers(step.positions)[row]
                source = step.qkv + 4 * (row * whole + (step.heads + group) * width)
                there = column * step.column_bytes
                _head_turned(step, source, layer.k_norm, position, np.float32(1), keys + there)
                copy(source + 4 * step.groups * width, width, values + there)
            for head in range(several):
                for node in range(nodes):
                    row = text * nodes + node
                    source = step.qkv + 4 * (row * whole + (group * several + head) * width)
                    there = queries + 4 * (head * nodes + node) * width
                    _head_turned(step, source, layer.q_norm, integers(step.positions)[row], step.scale, there)
            count = last - first
            first_key = keys + first * step.column_bytes
            product(
                step,
                private,
                0,
                first_key,
                step.column_bytes,
                count,
                queries,
                4 * width,
                states,
                width // 32,
                scores,
                4 * SPLIT,
            )
            _hide(step, scores, text, first, last, length, states)
            for state in range(states):
                soften(scores + 4 * SPLIT * state, count, SPLIT, step.maxima + 8 * (task * states + state))
            out = step.partial + 4 * task * states * width
            _mixed(step, scores, values + first * step.column_bytes, states, count, out)
        done(step, phase)
        task = take(step, phase)
    wait(step, phase, tasks, thread, 2)


@njit(**FAST)
def join_parts(step, out):
    """out[row, head]: the parts that tasks of attention have left, each weighted by what it has of the sum."""
    width, nodes = step.head_width, step.nodes
    several = step.heads // step.groups
    states = several * nodes
    for text in range(step.batch):
        splits = (integers(step.lengths)[text] + nodes + SPLIT - 1) // SPLIT
        for group in range(step.groups):
            task = (text * step.groups + group) * step.splits
            for state in range(states):
                head, node = group * several + state // nodes, state % nodes
                y = floats(out + 4 * ((text * nodes + node) * step.heads + head) * width)
                largest = NEVER
                for split in range(splits):
                    largest = max(largest, floats(step.maxima)[2 * ((task + split) * states + state)])
                total = np.float32(0)
                for i in range(width):
                    y[i] = np.float32(0)
                for split in range(splits):
                    place = (task + split) * states + state
                    share = exponential(floats(step.maxima)[2 * place] - largest)
                    total += share * floats(step.maxima)[2 * place + 1]
                    part = floats(step.partial + 4 * place * width)
                    for i in range(width):
                        y[i] += share * part[i]
                for i in range(width):
                    y[i] /= total
