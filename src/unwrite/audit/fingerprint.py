"""What a model computes, as a hash: its weights, and how it is built, so that its passes can be kept on disk.

A model of transformers says how it is built in its configuration. Any other module is described by the classes of its parts, the
code of their methods and their plain attributes; where one of these can't be read, there is no hash and nothing is kept.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..runs import hash_json, hash_model, hash_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["fingerprint"]


class _Opaque(Exception):
    """Something that can't be told from another of its kind."""


def fingerprint(model: Any) -> str | None:
    """What this model does, as a hash; None where its weights and its build don't say.

    A model with a `fingerprint()` of its own (a guard: same weights, other inference) is taken at its word. One with forward hooks
    and no fingerprint has none, because its weights don't say what it does.
    """
    own = getattr(model, "fingerprint", None)
    if callable(own):
        return str(own())
    if not hasattr(model, "state_dict") or any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    ):
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
    found: dict[str, object] = {}
    for name, value in vars(kind).items():
        method = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        method = method.fget if isinstance(method, property) else method
        if isinstance(method, types.FunctionType):
            found[name] = [_code(method.__code__), _plain(method.__defaults__), _plain(method.__kwdefaults__)]
        elif not name.startswith("__") and isinstance(method, bool | int | float | str | tuple):
            found[name] = _plain(method)
    return found


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

    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device | enum.Enum):
        return repr(value)
    if isinstance(value, Mapping):
        return [[repr(key), _plain(one)] for key, one in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, types.FunctionType) and not value.__closure__:
        return [_code(value.__code__), _plain(value.__defaults__), _plain(value.__kwdefaults__)]
    if isinstance(value, type | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise _Opaque(type(value).__name__)
