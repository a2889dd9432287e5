"""A distilled draft beside its target in GGUF, and the files the decoding benchmark runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from ..errors import ModelError
from ..models import anatomy, load_model, model_folder
from ..models.adapters import ADAPTER
from ..models.bundled import bundled_names, gguf_file
from ..models.requantise import requantise
from ..runs import cached_files, hash_file, hash_json
from .drafts import truncated_draft

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Files:
    """What the benchmark runs on.

    Args:
        model: name of the target, as `load` takes it.
        draft: folder of the draft model.
        gguf: {number format: (target file, draft file)} for llama.cpp; empty where it is not installed.
    """

    model: str
    draft: Path
    gguf: Mapping[str, tuple[Path, Path]]


def bench_files(name: str) -> Files:
    """What the decoding benchmark runs on: the draft is distilled if it isn't there, GGUF files written where
    llama-cpp-python is installed and the target is a bundled GGUF.

    Raises:
        ModelError: the target is an adapter.
    """
    if (model_folder(name) / ADAPTER).exists():
        raise ModelError(
            f"{name} is an adapter, and a draft is cut from whole weights. Save it with its base first: "
            "unwrite.save(model, folder, merge=True)."
        )
    draft = truncated_draft(name)
    if not has_gguf(name):
        return Files(name, draft, {})
    source = gguf_file(name)
    half, small, target = "draft-f16.gguf", "draft-q8_0.gguf", "target-q8_0.gguf"

    def make(folder: Path) -> None:
        as_gguf(draft, folder / half, source)
        requantise(folder / half, "q8_0", folder / small)
        requantise(source, "q8_0", folder / target)

    def read(folder: Path) -> Path:
        absent = [name for name in (half, small, target) if not (folder / name).is_file()]
        if absent:
            raise ValueError(f"{absent[0]} is not there")
        return folder

    home = cached_files("bench-gguf", hash_json([hash_file(source), draft.name]), make, read)
    return Files(name, draft, {"q8_0": (home / target, home / small), "q4_1": (source, home / small)})


def has_gguf(name: str) -> bool:
    """Whether a model can be measured on llama.cpp here: llama-cpp-python is installed and the model is a bundled GGUF."""
    return find_spec("llama_cpp") is not None and name in bundled_names()


def as_gguf(folder: str | Path, out: str | Path, like: str | Path) -> Path:
    """Writes a Llama draft as a GGUF file in half precision, for llama.cpp; `models.requantise` makes a Q8_0 of it.

    Args:
        folder: what `truncated_draft` returned.
        out: the file, replaced if it is there.
        like: a GGUF of the target; tokenizer and all else but the depth is copied from it.

    Raises:
        ModelError: another architecture than Llama, or of another width than `like`.
    """
    import gguf

    model = load_model(folder)
    config = model.config
    if config.model_type != "llama":
        raise ModelError(f"{folder} is a {config.model_type}; only Llama drafts can be written as GGUF.")
    reader = gguf.GGUFReader(like)
    width = reader.fields.get("llama.embedding_length")
    if width is None or width.contents() != config.hidden_size:
        raise ModelError(f"{like} is not of the target {folder} was cut from: its width is not {config.hidden_size}.")
    partial = Path(out).with_name(f".{Path(out).name}")
    writer = gguf.GGUFWriter(partial, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _OWN_KEYS:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for stored, weight in _gguf_weights(model):
        writer.add_tensor(stored, weight.astype(np.float32 if weight.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)
    return Path(out)


_OWN_KEYS = (
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "general.size_label",
    "llama.block_count",
)


def _gguf_weights(model: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight under llama.cpp's name."""
    parts = anatomy(model)

    def plain(weight: Tensor) -> np.ndarray:
        return weight.detach().float().contiguous().numpy()

    def rotated(weight: Tensor, heads: int) -> np.ndarray:
        # llama.cpp rotates neighbouring columns of a head, transformers its two halves.
        out, width = weight.shape
        return plain(weight.reshape(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width))

    config: PreTrainedConfig = model.config
    yield "token_embd.weight", plain(parts.embeddings.weight)
    yield "output_norm.weight", plain(parts.final_norm.weight)
    if not parts.tied and parts.unembedding is not None:
        yield "output.weight", plain(parts.unembedding.weight)
    for block in parts.blocks:
        assert block.gate is not None
        first, second = block.norms.values()
        yield f"blk.{block.index}.attn_norm.weight", plain(first.weight)
        yield f"blk.{block.index}.ffn_norm.weight", plain(second.weight)
        yield f"blk.{block.index}.attn_q.weight", rotated(block.q.weight, config.num_attention_heads)
        yield f"blk.{block.index}.attn_k.weight", rotated(block.k.weight, config.num_key_value_heads)
        named = {
            "attn_v": block.v,
            "attn_output": block.o,
            "ffn_gate": block.gate,
            "ffn_up": block.up,
            "ffn_down": block.down,
        }
        for name, projection in named.items():
            yield f"blk.{block.index}.{name}.weight", plain(projection.weight)
