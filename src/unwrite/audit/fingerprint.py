"""What a model computes, as a hash: its weights, and how it is built, so that its passes can be kept on disk.

A model of transformers says how it is built in its configuration. Any other module is described by the classes of its
parts, the code of their methods (with what of their own module that calls and reads) and their plain attributes;
where one of these can't be read, there is no hash and nothing is kept.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models.hooks import foreign_hooks
from ..runs import hash_json, hash_model, hash_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["fingerprint"]

_SCALARS = (bool, int, float, str)


class _Opaque(Exception):
    """A part of a model can't be told from another of its kind."""


def fingerprint(model: nn.Module) -> str | None:
    """What this model does, as a hash; None where its weights and its build don't say.

    A model with a `fingerprint()` of its own (a guard: same weights, other inference) is taken at its word. One with
    forward hooks and no fingerprint has none, because its weights don't say what it does; those that transformers leaves
    behind, idle, don't count.
    """
    own = getattr(model, "fingerprint", None)
    if callable(own):
        return str(own())
    if not hasattr(model, "state_dict") or any(foreign_hooks(module) for module in model.modules()):
        return None
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        build = {k: str(v) for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        return hash_json([type(model).__qualname__, build, hash_model(model)])
    try:
        return hash_json([_build(model), hash_model(model)])
    except _Opaque:
        return None


def _build(model: nn.Module) -> list[object]:
    """Every part's class and plain attributes, the code of the classes, and the tensors that no state dict has."""
    from torch import Tensor, nn

    common = vars(nn.Module())
    parts: list[object] = []
    classes: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        kind = type(module)
        own = {key: value for key, value in vars(module).items() if key not in common}
        tensors |= {f"{name}.{key}": value for key, value in own.items() if isinstance(value, Tensor)}
        plain = {key: _plain(value) for key, value in own.items() if not isinstance(value, Tensor)}
        parts.append([name, f"{kind.__module__}.{kind.__qualname__}", plain])
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            if not base.__module__.startswith("torch."):
                classes.setdefault(f"{base.__module__}.{base.__qualname__}", _methods(base))
    tensors |= dict(model.named_buffers())
    return [parts, classes, hash_tensors(tensors)]


def _methods(kind: type) -> dict[str, object]:
    """The code of a class's own methods and its plain attributes."""
    parts: dict[str, object] = {}
    for name, value in vars(kind).items():
        method = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        method = method.fget if isinstance(method, property) else method
        if isinstance(method, types.FunctionType):
            parts[name] = _function(method, set())
        elif not name.startswith("__") and isinstance(method, _SCALARS):
            parts[name] = repr(method)
    return parts


def _function(function: types.FunctionType, seen: set[types.FunctionType]) -> list[object]:
    """A function's code and defaults, what it closes over, and what of its module it calls or reads.

    Args:
        seen: functions that are already told of, which is added to.

    Raises:
        _Opaque: it closes over something that can't be told.
    """
    if function in seen:
        return [function.__qualname__]
    seen.add(function)
    code, around = function.__code__, function.__globals__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closed = {name: _cell(cell) for name, cell in cells.items() if name != "__class__"}
    used: dict[str, object] = {}
    for name in sorted(_names(code) & around.keys()):
        value = around[name]
        if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
            used[name] = _function(value, seen)
        elif isinstance(value, _SCALARS):
            used[name] = repr(value)
    return [_code(code), _plain(function.__defaults__), _plain(function.__kwdefaults__), closed, used]


def _cell(cell: types.CellType) -> object:
    try:
        return _plain(cell.cell_contents)
    except ValueError:  # it is empty as yet
        raise _Opaque("an empty cell") from None


def _names(code: types.CodeType) -> set[str]:
    """The global names that a function's code mentions, in functions inside it, too."""
    return set(code.co_names).union(*(_names(one) for one in code.co_consts if inspect.iscode(one)))


def _code(code: types.CodeType) -> list[object]:
    constants = [
        _code(one) if inspect.iscode(one) else sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one)
        for one in code.co_consts
    ]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _plain(value: object) -> object:
    """A value as something that can be hashed.

    Raises:
        _Opaque: it is none of the plain ones.
    """
    import torch

    if value is None or isinstance(value, (*_SCALARS, torch.dtype, torch.device, enum.Enum)):
        return repr(value)
    if isinstance(value, Mapping):
        return [[repr(key), _plain(one)] for key, one in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, types.FunctionType):
        return _function(value, set())
    if isinstance(value, type | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise _Opaque(type(value).__name__)
