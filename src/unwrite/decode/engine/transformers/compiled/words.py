"""Words that numba has none for: memory at an address, numbers by their bits, counters that threads share."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "add_one", "as_float", "call", "cycles", "float_of", "floats", "half_of", "integers", "pause", "read_now",
]  # fmt: skip

F32, F16, I16, I64 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(64)


@intrinsic
def call(typingctx: Any, function: Any, arguments: Any) -> Any:
    """Calls the C function at an address with integers. arguments: a tuple of them."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, together = values
        several = cgutils.unpack_tuple(builder, together)
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(several))
        builder.call(builder.inttoptr(place, kind.as_pointer()), several)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), build


@intrinsic
def half_of(typingctx: Any, value: Any) -> Any:
    """The 16 bits of the half-precision number nearest to a float32."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], F16), I16)

    return types.int16(types.float32), build


@intrinsic
def float_of(typingctx: Any, half: Any) -> Any:
    """The float32 that 16 bits of half precision stand for."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], F16), F32)

    return types.float32(types.int16), build


@intrinsic
def as_float(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], F32)

    return types.float32(types.int32), build


def _pointer(element: Any, words: str) -> Any:
    def typed(typingctx: Any, place: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), build

    typed.__doc__ = f"""The {words} at an address, as a pointer to index."""
    return intrinsic(typed)


floats, integers = _pointer(types.float32, "float32 values"), _pointer(types.int64, "64-bit integers")


@intrinsic
def add_one(typingctx: Any, place: Any) -> Any:
    """Adds 1 to the integer at an address, for all threads at once; returns what it was."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(values[0], ir.PointerType(I64)), I64(1), "seq_cst")

    return types.int64(types.int64), build


@intrinsic
def read_now(typingctx: Any, place: Any) -> Any:
    """The integer at an address, as other threads have left it, with all that they wrote before."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], ir.PointerType(I64))
        return builder.load_atomic(pointer, "acquire", 8, typ=I64)

    return types.int64(types.int64), build


@intrinsic
def pause(typingctx: Any) -> Any:
    """Lets the processor know that this thread only waits."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if context.target_data and binding.get_process_triple().startswith(("x86", "i686", "amd64")):
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def cycles(typingctx: Any) -> Any:
    """The processor's counter of cycles."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I64, []), "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), build
