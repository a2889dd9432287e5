"""Writing a model: a folder that is whole or absent, safetensors only, and says where it is from.

What was written is read back and must answer as the model in memory does, before the folder gets its name. Beside the
weights lies `unwrite.json`: what kind of thing was saved, with which versions, the hash of its weights, and the
provenance the caller gives. What brings its own `save_pretrained` (a guard) is written by that.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import hub
from ..errors import ModelError, RunError, notice
from ..runs import hash_file, hash_json, hash_model, hash_tensors, new_folder, read_tensors, unwritable, write_json
from .accounting import check_account, stored_shapes
from .agreement import allowed, differing_weight, disagreement, free_memory, outputs, short_batch
from .bundled import BUNDLED
from .checkpoints import check_weights, first_line, read_json
from .merging import merged
from .quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NOTE", "WEIGHTS", "load_state", "save"]

NOTE = "unwrite.json"
WEIGHTS = "model.safetensors"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    provenance: Mapping[str, Any] | None = None,
    merge: bool = False,
) -> Path:
    """Writes a model, and its tokenizer if given, into a folder that `load` reads.

    Args:
        model: a transformers model, a PeftModel, anything with a `save_pretrained`, or a plain module.
        folder: new, empty, or written by this function before (then it is replaced).
        provenance: goes into `unwrite.json` as it is; JSON values only.
        merge: fold a PeftModel's adapter into a copy of its base, and write that. The model itself stays as it is.

    Raises:
        ModelError: a folder with other files, `merge` without an adapter, a provenance that isn't JSON, a full disk, or
            weights that come back as another model. Then the folder is as it was before.
    """
    folder = Path(folder)
    _check_target(folder)
    if isinstance(model, nn.Module) and any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"this {type(model).__name__} has weights that are not in memory (offloaded, or never loaded). Load it whole to "
            "save it."
        )
    if merge:
        model = merged(model)
    elif hasattr(model, "get_base_model") and "default" not in model.peft_config:
        raise ModelError(
            f"the adapter is named {', '.join(map(repr, model.peft_config))}, and only one named 'default' loads again. "
            "Name it so, or pass merge=True."
        )
    try:
        json.dumps(dict(provenance or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"provenance is not plain JSON ({error}). Use text, numbers, lists and mappings.") from error
    try:
        with new_folder(folder) as fresh, quiet():
            _write(model, fresh)
            if tokenizer is not None:
                tokenizer.save_pretrained(fresh)
            written = read_json(fresh / NOTE) if (fresh / NOTE).exists() else {}
            write_json(fresh / NOTE, {**_note(model, fresh), **written, "provenance": dict(provenance or {})})
            _check_written(model, fresh, folder)
    except Exception as error:
        if isinstance(error, ModelError) or not (isinstance(error, OSError) or unwritable(error)):
            raise
        raise ModelError(f"{folder} could not be written: {' '.join(str(error).split())[:200]}.") from error
    return folder


def load_state(model: nn.Module, folder: str | Path) -> nn.Module:
    """Loads the weights `save` wrote for a plain module into one of the same shape, in place, and returns it.

    Raises:
        ModelError: weights that are missing, cut off, or of another model.
    """
    from safetensors.torch import load_model

    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist.")
    check_weights(folder, "model", allow_pickle=False)
    tensors, _ = read_tensors(folder / WEIGHTS, f"state of a {type(model).__name__}", ModelError)
    expected = model.state_dict()
    odd = next((name for name in tensors if name in expected and tensors[name].dtype != expected[name].dtype), None)
    if odd is not None:
        dtype, expected_dtype = (str(state[odd].dtype).removeprefix("torch.") for state in (tensors, expected))
        raise ModelError(
            f"{folder / WEIGHTS} is not of this {type(model).__name__}: {odd} is {dtype}, not {expected_dtype}"
        )
    try:
        load_model(model, folder / WEIGHTS)
    except Exception as error:  # torch's, and the library's own of a header
        first = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ModelError(f"{folder / WEIGHTS} is not of this {type(model).__name__}: {first}") from error
    return model


def _check_target(folder: Path) -> None:
    if folder.is_file():
        raise ModelError(f"{folder} is a file. Give a folder to save into.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTE).exists():
        raise ModelError(
            f"{folder} holds files that unwrite did not write, and would be replaced. Choose another folder."
        )


def _write(model: nn.Module, folder: Path) -> None:
    if not hasattr(model, "save_pretrained"):
        from safetensors.torch import save_model

        return save_model(model, str(folder / WEIGHTS))
    with hub.closed(), warnings.catch_warnings():  # peft would ask there what the base's vocabulary was
        warnings.filterwarnings("ignore", "Could not find a config file")
        model.save_pretrained(folder)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        config = read_json(adapter)
        base = _bundled_name(config.get("base_model_name_or_path"))
        if base:  # the cache's path is this machine's; the name means the same everywhere
            write_json(adapter, {**config, "base_model_name_or_path": base})
    return None


def _check_written(model: nn.Module, fresh: Path, folder: Path) -> None:
    """Reads `fresh`, which will be `folder`, and compares weights and outputs with the model in memory.

    Left out where nothing could be compared: a plain module (its class is the caller's), quantised weights, an adapter
    whose base is not on this machine, and, with a notice, too little memory.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        return
    if getattr(model, "is_quantized", False):
        return
    needed, free = sum(path.stat().st_size for path in fresh.iterdir() if path.is_file()), free_memory()
    if needed > free:
        notice(
            f"{folder} was not read back: that takes {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free. "
            "Load it and try it before you delete anything."
        )
        return
    try:
        with torch.random.fork_rng():
            again = _read_back(model, fresh)
    except Exception as error:  # whatever a library meets in its own file
        reason = first_line(error).replace(str(fresh), str(folder))
        raise ModelError(f"{folder} would not load again, so nothing was written: {reason}") from error
    if again is None:
        return
    several = len(getattr(model, "peft_config", ())) > 1  # then only the one in use must come back
    weight = None if several else differing_weight(model, again)
    batch = short_batch(model)
    distance = 0.0 if batch is None else disagreement(outputs(again, batch), outputs(model, batch))
    if weight is not None or not distance <= allowed(model):
        what = f"its outputs differ by {distance:.2g} of their size" if weight is None else f"{weight} differs"
        raise ModelError(
            f"{folder} would load as another model than the {type(model).__name__} in memory ({what}), so nothing was "
            "written. Are weights shared that should not be, or does its config say so?"
        )


def _read_back(model: nn.Module, fresh: Path) -> nn.Module:
    """What `fresh` loads as, on the CPU; None for an adapter whose base is not here."""
    from transformers import PreTrainedModel

    from .loading import load_model

    if (fresh / "adapter_config.json").exists():
        from peft import PeftModel

        named = (
            next(iter(model.peft_config.values())).base_model_name_or_path if hasattr(model, "peft_config") else None
        )
        if not named or not (Path(named).is_dir() or named in BUNDLED):
            return None
        return PeftModel.from_pretrained(load_model(named, dtype=model.dtype), str(fresh), local_files_only=True).eval()
    if (fresh / NOTE).exists() and "loader" in read_json(fresh / NOTE):
        return load_model(fresh, dtype=model.dtype)
    if not isinstance(model, PreTrainedModel):
        return type(model).from_pretrained(fresh) if hasattr(type(model), "from_pretrained") else None
    again, info = type(model).from_pretrained(
        fresh,
        dtype=model.dtype,
        local_files_only=True,
        attn_implementation=getattr(model.config, "_attn_implementation", None),
        output_loading_info=True,
    )
    check_account(fresh, info, again, stored_shapes(fresh.glob("*.safetensors")))
    return again


def _bundled_name(base: str | None) -> str | None:
    note = Path(base) / NOTE if base else None
    return read_json(note).get("bundled") if note and note.is_file() else None


def _note(model: nn.Module, folder: Path) -> dict[str, Any]:
    adapter = folder / "adapter_config.json"
    base = read_json(adapter).get("base_model_name_or_path") if adapter.exists() else None
    config = getattr(model, "config", None)
    origin = base or getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None)
    return {
        "kind": "adapter" if adapter.exists() else "model",
        "class": type(model).__name__,
        "base": _bundled_name(origin) or origin,
        **({"revision": revision} if revision else {}),
        "weights": _weights_hash(model, folder),
        "versions": {name: metadata.version(name) for name in ("unwrite", "torch", "transformers", "peft")},
    }


def _weights_hash(model: nn.Module, folder: Path) -> str:
    """The hash of what was written: an adapter's own tensors, a module's state, otherwise the files."""
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model_state_dict

        return hash_tensors(get_peft_model_state_dict(model, save_embedding_layers=False))
    if isinstance(model, nn.Module):
        return hash_model(model)
    return hash_json({path.name: hash_file(path) for path in sorted(folder.rglob("*.safetensors"))})
