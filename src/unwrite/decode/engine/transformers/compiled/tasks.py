"""How the threads of a step share its work: numbered tasks, and products of rows of weights with all states."""

from __future__ import annotations

import os
from typing import Any

from numba import cfunc, njit, types

from .arithmetic import EXACT
from .records import (
    BLOCK_BYTES,
    COUNTER_BYTES,
    EXPANDED_FROM,
    EXPANDED_ROWS,
    FETCHED_TO,
    MOST_ROWS,
    PARTS,
    PROMPT_ROWS,
    SPINS,
    TALL_ROWS,
    TASK_BYTES,
)  # fmt: skip
from .tiles import MOST, STEPS, expand, tile
from .words import add_one, call, cycles, integers, pause, read_now

__all__ = ["LAST_TICK", "done", "multiplier", "phases_of", "product", "take", "task_rows", "wait"]

LAST_TICK = len(PARTS)  # where the time of the last note stands

if hasattr(os, "sched_yield"):
    _yield = types.ExternalFunction("sched_yield", types.int32())

    @njit(**EXACT)
    def _offer():
        """Lets another thread have this processor."""
        _yield()

else:

    @njit(**EXACT)
    def _offer():
        pause()


def phases_of(layers: int) -> int:
    """How many phases a step has."""
    return 6 * layers + 2


@njit(**EXACT)
def task_rows(blocks: int, stored: int, states: int) -> int:
    """Rows of weights in one task, a multiple of what tiles divide; more of a prompt's, whose small loops are over them."""
    least = STEPS if states <= FETCHED_TO else PROMPT_ROWS
    return min(MOST_ROWS, max(least, TASK_BYTES // (blocks * BLOCK_BYTES[stored]) // STEPS * STEPS))


@njit(**EXACT)
def take(step, phase):
    """The number of the next task of a phase; those beyond the last are nobody's."""
    return add_one(step.counters + phase * COUNTER_BYTES)


@njit(**EXACT)
def done(step, phase):
    """One more task of a phase is finished, with all that it wrote."""
    add_one(step.counters + phase * COUNTER_BYTES + COUNTER_BYTES // 2)


@njit(**EXACT)
def wait(step, phase, tasks, thread, part):
    """Returns when every task of a phase is done; the first thread notes what its part has taken."""
    place, looks = step.counters + phase * COUNTER_BYTES + COUNTER_BYTES // 2, 0
    while read_now(place) < tasks:
        looks += 1
        if looks < SPINS:
            pause()
        else:
            _offer()
    if thread == 0:
        ticks = integers(step.ticks)
        now = cycles()
        ticks[part] += now - ticks[LAST_TICK]
        ticks[LAST_TICK] = now


def multiplier(stamp: str) -> Any:
    """The product as a C function, whose address the records hold: as a function of numba it would be compiled again into all that
    call it. The stamp is in its body, so that what is kept on disk is of this source."""

    def multiply(stored, w, row_bytes, rows, x, x_bytes, states, blocks, out, out_bytes, expanded):
        """out[state, row]: `rows` rows of weights, from address w on, with all states."""
        assert len(stamp) > 0
        form, source, stride, size = stored, w, row_bytes, rows
        if stored != 0 and states > EXPANDED_FROM:  # once for all states, not for every tile's
            form, source, stride, size = 0, expanded, blocks * BLOCK_BYTES[0], EXPANDED_ROWS
        groups = -(-states // MOST)
        few = states // groups  # of a group, or one more
        # Of few states it is the way of the weights from memory that takes the time.
        near = form == stored and states <= FETCHED_TO
        if near and groups > 1:
            size = TALL_ROWS[form * (MOST + 1) + MOST]
        for first in range(0, rows, size):
            last = min(rows, first + size)
            if form != stored:
                source = expanded - first * stride
                for row in range(first, last):
                    expand(stored, w + row * row_bytes, blocks, source + row * stride)
            begin = 0
            for group in range(groups):
                some = few + (1 if group < states - few * groups else 0)
                base, to = x + begin * x_bytes, out + begin * out_bytes
                row, tall = first, TALL_ROWS[form * (MOST + 1) + some]
                while row + tall <= last:
                    here = source + row * stride
                    if near:
                        tile(True, True, some, form, here, stride, base, x_bytes, blocks, to + 4 * row, out_bytes)
                    else:
                        tile(True, False, some, form, here, stride, base, x_bytes, blocks, to + 4 * row, out_bytes)
                    row += tall
                while row < last:
                    here = source + row * stride
                    tile(False, False, some, form, here, stride, base, x_bytes, blocks, to + 4 * row, out_bytes)
                    row += 1
                begin += some

    return cfunc(types.void(*[types.int64] * 11), cache=True)(multiply)


@njit(**EXACT)
def product(step, private, stored, w, row_bytes, rows, x, x_bytes, states, blocks, out, out_bytes):
    """out[state, row], by the compiled product; see `multiplier`. private: the thread's own memory."""
    expanded = private + step.expanded
    call(step.multiply, (stored, w, row_bytes, rows, x, x_bytes, states, blocks, out, out_bytes, expanded))
