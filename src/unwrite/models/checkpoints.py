"""What a model folder holds, checked before anything in it is trusted.

A pickled file runs code when it is read, remote code when it is imported, and a cut-off download fails deep inside a
library. All three are found here first, from names and headers alone, and named.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, setting
from ..runs import conforms, parse_json
from ..runs import read_json as strict_json

__all__ = ["check_layers", "check_weights", "first_line", "needs_remote_code", "read_json"]

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_ALWAYS = 1000
_LFS = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        ModelError: unreadable, or not an object.
    """
    # Configurations of other tools may hold Infinity: the bounds of Mamba's time step.
    return strict_json(path, ModelError, "Download or save it again.", finite=False)


def check_layers(file: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuses a configuration that says more layers than there are tensors: each would be made before the first is missed.

    Args:
        file: the configuration, for the message.
        tensors: of the checkpoint; a thousand layers are always let through.

    Raises:
        ModelError: it names the setting.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for name in _LAYERS:
            value = part.get(name)
            if isinstance(value, int) and value > max(_ALWAYS, tensors):
                raise ModelError(
                    f"{file}: {name} is {value:,}, and the checkpoint has {tensors:,} tensors. Does the file belong to it?"
                )


def check_weights(folder: Path, stem: str, *, allow_pickle: bool) -> None:
    """Makes sure the weights of `folder` are complete safetensors, or pickled and allowed.

    Args:
        stem: the file name without its ending: `model`, or `adapter_model`.

    Raises:
        ModelError: no weights, pickled ones that are not allowed, a missing or a truncated file.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return _check_file(single)
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{index} has no weight_map. Download or save the model again.")
        for shard in sorted({str(shard) for shard in shards.values()}):
            if Path(shard).name != shard:
                raise ModelError(f"{index} names a shard outside its folder: {shard!r}. Don't load this model.")
            if not (folder / shard).exists():
                raise ModelError(
                    f"{folder / shard} is missing: {index.name} names it. Download or copy the model again."
                )
            _check_file(folder / shard)
        return None
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if not pickled:
        raise ModelError(f"{folder} holds no {stem}.safetensors. Is it a model folder, and was it copied whole?")
    if not allow_pickle:
        raise ModelError(
            f"{folder / pickled[0]} is pickled, and reading it can run any code. Get the model as safetensors, or pass "
            f"{setting('allow_pickle', True)} if you trust where it is from."
        )
    return None


def _check_file(path: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, and the bytes its last offset ends at."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights. Fetch them with: git lfs pull")
        if size < 8:
            raise ModelError(f"{path} is truncated: {size} bytes. Download or copy it again.")
        length = struct.unpack("<Q", start[:8])[0]
        if length > size - 8:
            raise ModelError(
                f"{path} is truncated or not safetensors: its header should be {length} bytes, the file has {size}. "
                "Download or copy it again."
            )
        file.seek(8)
        try:
            header = parse_json(file.read(length), finite=False)
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            if not all(conforms(tensor[name], list[int]) for tensor in tensors for name in ("shape", "data_offsets")):
                raise TypeError("a shape or an offset that is no list of whole numbers")
            whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{path} has a broken safetensors header. Download or copy it again.") from error
    if size != whole:
        raise ModelError(f"{path} is truncated: {size} bytes of {whole}. Download or copy it again.")


def needs_remote_code(config: dict[str, Any]) -> str | None:
    """The code a configuration wants imported from its own folder where transformers has no class for it, or None."""
    from transformers import CONFIG_MAPPING

    classes = config.get("auto_map")
    if not classes or config.get("model_type") in CONFIG_MAPPING:
        return None
    values = classes.values() if isinstance(classes, dict) else classes
    return ", ".join(sorted({str(value) for value in values}))


def first_line(error: BaseException) -> str:
    """What a library's error says first; some go on for a page."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
