"""Inner products of a few rows of weights with a few rows of states, written in vectors.

A tile holds one accumulator for every pair of a weight row and a state row, so each weight is read once for all states of the
tile. Lane l of an accumulator adds the products of columns l, l + L, l + 2 L, ... in that order, whatever the tile's shape and
however the weights are stored; then the lanes are added by halves. So a sum is the same to the last bit for one row and for many,
for float32 weights and for those that are expanded from fewer bytes on the way.

    out[c, r] = sum over k of w[r, k] * x[c, k]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "BLOCK", "LANES", "MOST", "STEPS", "STORED", "STRIDES", "TALL", "expand", "mixture", "tile",
]  # fmt: skip

MOST = 4  # states of a tile: their rows and its weights stay in the core's own memory
BLOCK = 32  # weights that share a scale in GGUF's formats
STRIDES = {
    "float32": 128,
    "bfloat16": 64,
    "affine4": 20,
    "scaled8": 34,
}  # bytes of a block, by how its weights are stored
STORED = tuple(STRIDES)
# Rows of weights of a tile, by their form and the tile's rows of states: sums enough to keep both of a core's units busy, and no more
# than its registers hold; expanding takes some of these.
TALL = {"float32": (4, 3, 3, 3), "bfloat16": (4, 3, 3, 3), "affine4": (2, 2, 2, 2), "scaled8": (3, 3, 2, 2)}
LINE = 64  # bytes that come from memory together
STEPS = 12  # rows that every tile divides

F32, F16, I8, I16, I32, I64 = (
    ir.FloatType(), ir.HalfType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64),
)  # fmt: skip


def _lanes() -> int:
    """Floats of the processor's widest vectors; 0 where it can't multiply and add in one step, or convert half precision."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        return 8
    return 4 if features.get("neon") and features.get("fullfp16") else 0


LANES = _lanes()


def _vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


def _at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.inttoptr(builder.add(base, offset), ir.PointerType())


def _load(builder: Any, kind: ir.Type, base: Any, offset: Any) -> Any:
    """An element or vector at an address, aligned to nothing."""
    return builder.load(_at(builder, base, offset), typ=kind, align=1)


def _spread(builder: Any, value: Any) -> Any:
    """One float in every lane."""
    vector = _vector(F32)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_vector(I32), [0] * LANES))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    vector = _vector(F32)
    kind = ir.FunctionType(vector, [vector] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [a, b, c])


def _fetch(builder: Any, base: Any, offset: Any) -> None:
    """Asks for a line of memory that will be read soon."""
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [_at(builder, base, offset), I32(0), I32(3), I32(1)])


def _total(builder: Any, vector: Any) -> Any:
    """The sum of the lanes, halves added to halves."""
    size = LANES
    while size > 1:
        size //= 2
        whole = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(vector, whole, ir.Constant(ir.VectorType(I32, size), [*range(start, start + size)]))
            for start in (0, size)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, I32(0))


# Columns [LANES * step, LANES * (step + 1)) of a block of 32 weights at an address, as floats.
def _float32(builder: Any, base: Any, step: int) -> Any:
    return _load(builder, _vector(F32), base, I64(4 * LANES * step))


def _bfloat16(builder: Any, base: Any, step: int) -> Any:
    wide = builder.zext(_load(builder, _vector(I16), base, I64(2 * LANES * step)), _vector(I32))
    return builder.bitcast(builder.shl(wide, ir.Constant(_vector(I32), [16] * LANES)), _vector(F32))


def _scales(builder: Any, base: Any, count: int) -> list[Any]:
    """One or two numbers in half precision, each in every lane. Their bits go into a register that is otherwise 0: into one that is
    merged with what it held, every block would wait for the one before."""
    bits = _load(builder, I32, base, I64(0)) if count == 2 else builder.zext(_load(builder, I16, base, I64(0)), I32)
    empty = ir.Constant(ir.VectorType(I32, 4), [0] * 4)
    halves = builder.bitcast(builder.insert_element(empty, bits, I32(0)), ir.VectorType(F16, 8))
    first = builder.shuffle_vector(halves, halves, ir.Constant(ir.VectorType(I32, 4), [0, 1, 2, 3]))
    wide = builder.fpext(first, ir.VectorType(F32, 4))
    return [builder.shuffle_vector(wide, wide, ir.Constant(_vector(I32), [at] * LANES)) for at in range(count)]


def _affine4(builder: Any, base: Any, step: int) -> Any:
    """Step and lowest value in half precision, then sixteen bytes: columns 0 to 15 in their low halves, 16 to 31 in their high ones."""
    unit, lowest = _scales(builder, base, 2)
    at = LANES * step
    pair = builder.zext(_load(builder, _vector(I8), base, I64(4 + at % 16)), _vector(I32))
    if at < BLOCK // 2:
        code = builder.and_(pair, ir.Constant(_vector(I32), [15] * LANES))
    else:
        code = builder.lshr(pair, ir.Constant(_vector(I32), [4] * LANES))
    return _fma(builder, unit, builder.sitofp(code, _vector(F32)), lowest)


def _scaled8(builder: Any, base: Any, step: int) -> Any:
    """A step in half precision, then 32 signed bytes."""
    (unit,) = _scales(builder, base, 1)
    code = builder.sext(_load(builder, _vector(I8), base, I64(2 + LANES * step)), _vector(I32))
    return builder.fmul(unit, builder.sitofp(code, _vector(F32)))


EXPANSIONS: dict[str, Callable[[Any, Any, int], Any]] = {
    "float32": _float32, "bfloat16": _bfloat16, "affine4": _affine4, "scaled8": _scaled8,
}  # fmt: skip


class _Loop:
    """A counted loop with values that go round, as LLVM wants it."""

    def __init__(self, builder: Any, count: Any, carried: list[Any]) -> None:
        self.builder, self.count = builder, count
        before, self.body, self.after = (
            builder.block, builder.append_basic_block("body"), builder.append_basic_block("after"),
        )  # fmt: skip
        builder.cbranch(builder.icmp_signed(">", count, I64(0)), self.body, self.after)
        builder.position_at_end(self.body)
        self.index = builder.phi(I64)
        self.index.add_incoming(I64(0), before)
        self.carried = [builder.phi(value.type) for value in carried]
        for phi, value in zip(self.carried, carried, strict=True):
            phi.add_incoming(value, before)
        self._before, self._first = before, carried

    def close(self, carried: list[Any]) -> list[Any]:
        """Ends the body; returns the values after the loop."""
        builder, last = self.builder, self.builder.block
        following = builder.add(self.index, I64(1))
        self.index.add_incoming(following, last)
        for phi, value in zip(self.carried, carried, strict=True):
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", following, self.count), self.body, self.after)
        builder.position_at_end(self.after)
        results = []
        for first, value in zip(self._first, carried, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(first, self._before)
            phi.add_incoming(value, last)
            results.append(phi)
        return results


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any, tall: Any, fetch: Any, states: Any, stored: Any, w: Any, w_stride: Any, x: Any, x_stride: Any,
    blocks: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """Inner products of rows of weights with 1 to `MOST` rows of states; all but the first two are integers of the running program.

    Args:
        tall: a constant: so many rows of weights as `TALL` says; else one.
        fetch: a constant: ask for the rows behind these, which the next tile takes, as they are read.
        states: rows of states.
        stored: how the weights are, the place in `STORED`.
        w, x, out: addresses; out is float32, [states, rows].
        w_stride, x_stride, out_stride: bytes from row to row.
        blocks: of 32 columns.
    """

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        after = builder.append_basic_block("multiplied")
        choice = builder.switch(builder.add(builder.mul(values[2], I64(len(STORED))), values[3]), after)
        for number, name in enumerate(STORED):
            for count, rows in enumerate(TALL[name], 1):
                block = builder.append_basic_block(f"{name}.{count}")
                choice.add_case(I64(len(STORED) * count + number), block)
                builder.position_at_end(block)
                _multiply(builder, name, rows if tall.literal_value else 1, count, fetch.literal_value, *values[4:])
                builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(tall, fetch, *[types.int64] * 9), build


def _multiply(
    builder: Any, stored: str, rows: int, columns: int, fetch: bool, w: Any, w_stride: Any, x: Any, x_stride: Any, blocks: Any,
    out: Any, out_stride: Any,
) -> None:  # fmt: skip
    weights = [builder.add(w, builder.mul(w_stride, I64(r))) for r in range(rows)]
    states = [builder.add(x, builder.mul(x_stride, I64(c))) for c in range(columns)]
    loop = _Loop(builder, blocks, [ir.Constant(_vector(F32), [0.0] * LANES)] * (rows * columns))
    sums = list(loop.carried)
    offset, place = (builder.mul(loop.index, I64(size)) for size in (STRIDES[stored], STRIDES["float32"]))
    places = [builder.add(base, offset) for base in weights]
    if fetch:
        for base in weights:
            ahead = builder.add(base, builder.mul(w_stride, I64(rows)))
            for line in range(0, STRIDES[stored], LINE):
                _fetch(builder, ahead, builder.add(offset, I64(line)))
    for step in range(BLOCK // LANES):
        parts = [EXPANSIONS[stored](builder, base, step) for base in places]
        for c, base in enumerate(states):
            state = _load(builder, _vector(F32), base, builder.add(place, I64(4 * LANES * step)))
            for r in range(rows):
                sums[r * columns + c] = _fma(builder, parts[r], state, sums[r * columns + c])
    sums = loop.close(sums)
    for c in range(columns):
        base = builder.add(out, builder.mul(out_stride, I64(c)))
        for r in range(rows):
            builder.store(_total(builder, sums[r * columns + c]), _at(builder, base, I64(4 * r)), align=4)


@intrinsic
def expand(typingctx: Any, stored: Any, w: Any, blocks: Any, out: Any) -> Any:
    """A row of weights as float32; of float32 there is nothing to expand.

    Args:
        stored: how the weights are, the place in `STORED`.
        w, out: addresses.
        blocks: of 32 columns.
    """

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        form, w, blocks, out = values
        after = builder.append_basic_block("expanded")
        choice = builder.switch(form, after)
        for number, name in enumerate(STORED[1:], 1):
            block = builder.append_basic_block(name)
            choice.add_case(I64(number), block)
            builder.position_at_end(block)
            loop = _Loop(builder, blocks, [])
            base, to = (
                builder.add(start, builder.mul(loop.index, I64(size)))
                for start, size in ((w, STRIDES[name]), (out, STRIDES["float32"]))
            )
            for step in range(BLOCK // LANES):
                builder.store(EXPANSIONS[name](builder, base, step), _at(builder, to, I64(4 * LANES * step)), align=4)
            loop.close([])
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@intrinsic(prefer_literal=True)
def mixture(
    typingctx: Any, rows: Any, vectors: Any, p: Any, p_stride: Any, v: Any, v_stride: Any, count: Any, out: Any,
    out_stride: Any,
) -> Any:  # fmt: skip
    """out[r] = sum over i < count of p[r, i] v[i], for `vectors * LANES` columns; addresses and bytes as in `tile`."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        several, wide = rows.literal_value, vectors.literal_value
        p, p_stride, v, v_stride, count, out, out_stride = values[2:]
        loop = _Loop(builder, count, [ir.Constant(_vector(F32), [0.0] * LANES)] * (several * wide))
        sums = list(loop.carried)
        place, base = builder.mul(loop.index, I64(4)), builder.add(v, builder.mul(loop.index, v_stride))
        shares = [
            _spread(builder, _load(builder, F32, builder.add(p, builder.mul(p_stride, I64(r))), place))
            for r in range(several)
        ]
        for at in range(wide):
            part = _load(builder, _vector(F32), base, I64(4 * LANES * at))
            for r in range(several):
                sums[r * wide + at] = _fma(builder, shares[r], part, sums[r * wide + at])
        sums = loop.close(sums)
        for r in range(several):
            row = builder.add(out, builder.mul(out_stride, I64(r)))
            for at in range(wide):
                builder.store(sums[r * wide + at], _at(builder, row, I64(4 * LANES * at)), align=4)
        return context.get_dummy_value()

    return types.void(rows, vectors, *[types.int64] * 7), build
