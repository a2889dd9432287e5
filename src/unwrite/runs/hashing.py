"""Content hashes: the same weights, rows and settings give the same key, whatever folder they lie in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..errors import UnwriteError

if TYPE_CHECKING:
    import torch


def hash_json(value: Any) -> str:
    """16 hex digits of SHA-256 over a canonical JSON form; dataclasses and paths are allowed.

    Raises:
        UnwriteError: a text with half a character, as Python has names of files that are no UTF-8.
    """
    text = canonical_json(value)
    try:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        place = text[max(0, error.start - 40) : error.end + 20]
        raise UnwriteError(f"{place!r} is no UTF-8 text, which a record needs. Use another name or value.") from None


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, so equal values are equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "__class__": type(value).__name__,
            **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)},
        }
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"cannot hash a {type(value).__name__}")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits of SHA-256 over names, dtypes, shapes and bytes of all tensors, in name order."""
    digest = hashlib.sha256()
    for part in _parts(tensors):
        digest.update(part)
    return digest.hexdigest()[:16]


def hash_model(model: torch.nn.Module) -> str:
    """SHA-256 of a model's whole state, parameters and persistent buffers: for what is signed, shown or kept as provenance.

    It takes seconds for a model of some hundred million weights; where only a key is wanted, `model_key` says as much at once.
    """
    return hash_tensors(model.state_dict())


def model_key(model: torch.nn.Module) -> str:
    """A model's whole state as a key of the cache: 32 hex digits of xxHash, read at the memory's speed.

    Two states share a key by chance no more often than two SHA-256 hashes cut to 128 bits do; who means to can make two that
    share one, so nothing that must be proved stands on it (`hash_model`).
    """
    digest = xxhash.xxh3_128()
    for part in _parts(model.state_dict()):
        digest.update(part)
    return digest.hexdigest()


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """What a hash is taken over: each tensor's name, dtype and shape, then its bytes as they lie in memory."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
        yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def hash_file(path: str | Path) -> str:
    """Full SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
