"""GGUF files, converted once to an ordinary model folder in the cache.

transformers reads GGUF, but slowly, and what it reads can't be saved or trained as it stands. So the dequantised
weights go into a fresh model of the same configuration, which is saved as safetensors under the hash of the file's
content.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelError
from ..runs import cache_folder, clean, entry_lock, hash_file, new_folder, progress, seal, sound, write_json
from .accounting import check_account, gguf_left_over
from .checkpoints import first_line
from .gguf_parts import join_parts, opened, parts_of, whole_stem
from .gguf_rope import TABLE, rope_parameters
from .quiet import quiet

__all__ = ["converted"]

_VERSION = 2  # of the conversion; a change here converts again


def converted(path: Path, *, note: Mapping[str, str] | None = None) -> Path:
    """The model folder (float32 safetensors, tokenizer, `unwrite.json`) of a GGUF file.

    Converted on the first call, which takes about half a minute for 135M parameters; many processes may ask at once.

    Args:
        path: the file; of a model in several (`NAME-00001-of-00003.gguf`) any, with the others beside it.
        note: goes into the folder's `unwrite.json`.

    Raises:
        ModelError: no such file or part, not a GGUF, an architecture transformers can't read from one, or tensors that
            are missing, left over, or of another shape.
    """
    parts = parts_of(path)
    digests = [hash_file(part) for part in parts]
    digest = digests[0] if len(parts) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    home = cache_folder("models")
    folder = home / f"{whole_stem(parts[0]).lower()}-{digest[:16]}-v{_VERSION}"
    with entry_lock(home / f"{folder.name}.lock"):
        if not sound(folder):
            clean(folder)
            shown = progress(None, f"converting {path.name} once, to {folder}")
            # transformers' GGUF reader draws a bar of its own, over everything
            with shown, new_folder(folder) as fresh, quiet(), contextlib.redirect_stderr(io.StringIO()):
                _convert(parts, fresh)
                write_json(fresh / "unwrite.json", {**(note or {}), "gguf": parts[0].name, "gguf_sha256": digest})
            seal(folder)
    return folder


def _convert(parts: list[Path], folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    readers = opened(parts)
    whole = parts[0]
    if len(parts) > 1:
        whole = folder / "whole.gguf"
        join_parts(readers, whole)
    where = {"gguf_file": whole.name, "local_files_only": True}
    try:
        packed, info = AutoModelForCausalLM.from_pretrained(
            whole.parent,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **where,
        )
        tokenizer = AutoTokenizer.from_pretrained(whole.parent, **where)
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        raise ModelError(f"{parts[0]} could not be read as a GGUF model: {first_line(error)}") from error
    config = copy.deepcopy(packed.config)
    unexpected = {*info["unexpected_keys"], *gguf_left_over(readers, packed)}
    if unexpected == {TABLE}:
        table = next(tensor.data for reader in readers for tensor in reader.tensors if tensor.name == TABLE)
        scaled = rope_parameters(table, config)
        if scaled is not None:
            config.rope_parameters, unexpected = scaled, set()
    advice = " transformers does not read these from a GGUF: get the model as safetensors."
    check_account(parts[0], {**info, "unexpected_keys": unexpected}, packed, {}, advice)
    if len(parts) > 1:
        whole.unlink()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
