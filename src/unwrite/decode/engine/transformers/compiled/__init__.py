"""The compiled step, where numba is installed and works, and the processor has the vectors it is written in; else None, with one notice.

loop = compiled_loop(model)   # None: run what runs without it
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .....errors import notice
from .....runs import progress
from ...planning.knowledge import COMPILED
from .sizes import is_regular, may_be_packed, packs_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .loop import CompiledLoop

__all__ = ["compiled_loop", "compiled_routes", "installed"]

_broken: list[str] = []  # why no step is compiled in this process; said once


@functools.cache
def _found() -> bool:
    return find_spec("numba") is not None


def installed() -> bool:
    """Whether numba is there, and hasn't failed in this process."""
    return _found() and not _broken


def compiled_routes(model: PreTrainedModel, pack: str) -> tuple[str, ...]:
    """Of `COMPILED` those that a stock model has; packs of fewer bytes only where it has weights for them, and memory.

    Args:
        pack: "auto", "always" (whatever they take) or "never".
    """
    if not (installed() and is_regular(model)):
        return ()
    packs = pack == "always" or (pack == "auto" and packs_fit(model))
    return COMPILED if packs and may_be_packed(model) else COMPILED[:1]


def compiled_loop(model: PreTrainedModel, compact: bool = False) -> CompiledLoop | None:
    """The compiled forward of a stock model; None where it can't be had.

    Args:
        model: see `fused.is_stock`.
        compact: read weights from packs of fewer bytes where they fit exactly.
    """
    if not installed():
        return None
    try:
        with progress(None, "loading the compiled step (about ten seconds the first time on a machine)"):
            from .tiles import LANES

            if not LANES:
                raise ImportError("this processor can't multiply and add vectors in one step")
            from .loop import CompiledLoop
            from .step import kernel

            kernel()
        return CompiledLoop(model, compact)
    except Exception as error:  # numba, llvmlite, or what the two load: whatever it is, text goes on without them
        _broken.append(str(error))
        notice(f"steps aren't compiled in this process, and run as they do without numba: {error}")
        return None
