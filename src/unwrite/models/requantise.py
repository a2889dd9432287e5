"""GGUF files in another number format, by llama.cpp's own quantiser.

Drafting pays only where several rows cost little more than one. On a CPU that is so for Q8_0 and F16, hardly for Q4_1.
What 4 bits have lost does not come back: the new file computes the same weights, at another speed.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal, get_args

from ..errors import MissingExtra, ModelError, setting, unknown
from ..runs import need_free
from .gguf_header import check_header
from .gguf_parts import parts_of, whole_stem

__all__ = ["Format", "requantise"]

Format = Literal["q8_0", "f16"]


def requantise(path: str | Path, to: Format, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Writes a GGUF file in another number format and returns where.

    Args:
        path: the file to read; it stays as it is. Of a model in parts any part; what is written is one file.
        to: "q8_0" (half of f16's size) or "f16".
        out: the file to write; by default beside `path`, or in the working folder where
            `path` belongs to an installed package, named for the format.

    Raises:
        MissingExtra: llama-cpp-python isn't installed.
        ModelError: an unknown format, no GGUF at `path`, a missing part, `out` is `path`, or llama.cpp's refusal.
    """
    source = Path(path).expanduser()
    if to not in get_args(Format):
        raise ModelError(unknown("number format", to, get_args(Format)))
    parts = parts_of(source)
    for part in parts:
        check_header(part)
    source = parts[0]  # llama.cpp finds the others
    target = Path(out).expanduser() if out is not None else _beside(source, to)
    if target.exists() and any(target.samefile(part) for part in parts):
        raise ModelError(f"{target} is the file to read. Name another: {setting('out')}.")
    need_free(target, overwrite=overwrite)
    if not target.parent.is_dir():
        raise ModelError(f"{target.parent} is not a folder. Make it, or name another file: {setting('out')}.")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        _quantise(source, Path(temporary), to)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return target


def _quantise(source: Path, target: Path, to: Format) -> None:
    logger = logging.getLogger("llama-cpp-python")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtra("llama-cpp-python", "llamacpp") from error
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16}[to]
    settings.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise ModelError(f"llama.cpp could not convert {source} to {to}: damaged, or an architecture it doesn't know.")


def _beside(source: Path, to: str) -> Path:
    name = f"{whole_stem(source)}.{to.upper()}.gguf"
    return Path(name) if "site-packages" in source.parts else source.with_name(name)
