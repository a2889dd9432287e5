"""States in safetensors files, checked where they are read: names, types, dimensions, and that every number is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import UnwriteError

__all__ = ["read_tensors"]


def read_tensors(
    path: str | Path,
    what: str,
    error: Callable[[str], UnwriteError],
    kinds: Mapping[str, tuple[str, int]] | None = None,
    *,
    framework: Literal["pt", "np"] = "pt",
    finite: bool = True,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every tensor of a safetensors file by name, and the file's metadata.

    Args:
        what: the file should be, "trigram table", for messages.
        error: what to raise.
        kinds: the type ("int64") and the number of dimensions each name must have; None takes whatever is there.
        framework: torch tensors or numpy arrays.
        finite: refuse NaN and infinities.

    Raises:
        UnwriteError: as `error` makes it, in one line: the file can't be read, lacks a name or holds another one, or a tensor has
            another type or number of dimensions, or a number that is none.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework) as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as why:  # the library has its own, and passes on numpy's and torch's
        raise error(f"{path} is no {what}: {_line(why)}") from None
    if kinds is not None and (odd := sorted(kinds.keys() ^ tensors.keys())):
        does = "lacks" if odd[0] in kinds else "holds beside them"
        raise error(f"{path} is no {what}: it {does} {odd[0]!r:.60}. It needs {', '.join(kinds)}.")
    for name, tensor in tensors.items():
        layout = (str(tensor.dtype).removeprefix("torch."), tensor.ndim)
        if kinds is not None and layout != kinds[name]:
            raise error(
                f"{path} is no {what}: its {name} is {layout[0]} of {layout[1]} dimensions, not {kinds[name][0]} of {kinds[name][1]}"
            )
        if finite and not _finite(tensor, framework):
            raise error(f"{path} is damaged: {name!r:.60} holds a number that is not finite")
    return tensors, metadata


def _finite(tensor: Any, framework: str) -> bool:
    if framework == "np":
        import numpy as np

        return tensor.dtype.kind not in "fc" or bool(np.isfinite(tensor).all())
    import torch

    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
