"""GGUF files, converted once to an ordinary model folder in the cache.

transformers reads GGUF, but slowly, and what it reads can't be saved or trained as it stands. So the dequantised
weights go into a fresh model of the same configuration, which is saved as safetensors under the hash of the file's
content.
"""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelError
from ..runs import cache_dir, hash_file, lock, new_folder, progress, write_json
from .checkpoints import first_line
from .quiet import quiet

__all__ = ["converted"]

_VERSION = 1  # of the conversion; a change here converts again


def converted(path: Path, *, note: Mapping[str, str] | None = None) -> Path:
    """The model folder (float32 safetensors, tokenizer, `unwrite.json`) of a GGUF file.

    Converted on the first call, which takes about half a minute for 135M parameters; many processes may ask at once.

    Raises:
        ModelError: no such file, not a GGUF, or an architecture transformers can't read from one.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist.")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not start with 'GGUF'. Download or copy it again.")
    digest = hash_file(path)
    home = cache_dir("models")
    folder = home / f"{path.stem.lower()}-{digest[:16]}-v{_VERSION}"
    if folder.is_dir():
        return folder
    with lock(home / f"{folder.name}.lock"):
        if not folder.is_dir():
            for left in home.glob(f".{folder.name}.*"):  # by a conversion that was killed
                shutil.rmtree(left, ignore_errors=True)
            shown = progress(None, f"converting {path.name} once, to {folder}")
            # transformers' GGUF reader draws a bar of its own, over everything
            with shown, new_folder(folder) as fresh, quiet(), contextlib.redirect_stderr(io.StringIO()):
                _convert(path, fresh)
                write_json(fresh / "unwrite.json", {**(note or {}), "gguf": path.name, "gguf_sha256": digest})
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    where = {"gguf_file": path.name, "local_files_only": True}
    try:
        packed = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        raise ModelError(f"{path} could not be read as a GGUF model: {first_line(error)}") from error
    config = copy.deepcopy(packed.config)
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
