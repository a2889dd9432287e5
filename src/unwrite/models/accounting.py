"""Every tensor of a checkpoint has its place in the model, and every place its tensor.

A weight that a file lacks would be filled with random numbers, one the model has no place for would be dropped, and
both give answers that nobody can tell from the model's own. What may differ: weights that are tied to another, buffers
that are computed from the configuration, and heads of a training that the model's class doesn't have.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["adapter_account", "check_account", "gguf_left_over", "stored_shapes"]

# Attention masks and rotary tables that older versions stored with the weights, always with these shapes.
_COMPUTED = {
    re.compile(r"(^|\.)attn(ention)?\.(attention\.)?bias$"): (4,),
    re.compile(r"(^|\.)attn(ention)?\.(attention\.)?masked_bias$"): (0, 1),
    re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"): (1, 2, 4),
    re.compile(r"(^|\.)position_ids$"): (1, 2),
}
# What BERT and its kin were trained with beside the masked words.
_OTHER_HEADS = re.compile(r"(^|\.)(pooler\.|cls\.seq_relationship\.)")


def check_account(
    where: str | Path,
    info: Mapping[str, Any],
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    if_left: str = " Does its config name the class it was saved from?",
) -> None:
    """Refuses a checkpoint whose tensors are not the model's.

    Args:
        where: what was read, for the message.
        info: transformers' loading info: `missing_keys`, `unexpected_keys`, `mismatched_keys`, `error_msgs`.
        model: what came out.
        shapes: of the tensors in the files, by name, as far as known.
        if_left: what to do about tensors that are left over.

    Raises:
        ModelError: one line with how many tensors are missing, of another shape, or left over, and the first of them.
    """
    name = type(model).__name__
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} of its model's weights (first: {missing[0]}). "
            "Was it saved for another class, or cut?"
        )
    other = sorted(info.get("mismatched_keys", ()))
    if other:
        weight, stored, expected = other[0]
        raise ModelError(
            f"{where} has {_weights(other)} of another shape than its {name} (first: {weight}, {list(stored)} for "
            f"{list(expected)}). Does its config belong to it?"
        )
    left = [key for key in sorted(info.get("unexpected_keys", ())) if not _without_effect(key, name, shapes)]
    if left:
        raise ModelError(
            f"{where} holds {_weights(left)} that its {name} has no place for (first: {left[0]}).{if_left}"
        )
    if info.get("error_msgs"):
        raise ModelError(f"{where} could not be loaded: {str(next(iter(info['error_msgs']))).splitlines()[0]}")


def _weights(of: Sequence[object]) -> str:
    return "1 weight" if len(of) == 1 else f"{len(of)} weights"


def _without_effect(key: str, name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the model would answer the same with that tensor."""
    if name.endswith("ForMaskedLM") and _OTHER_HEADS.search(key):
        return True
    dimensions = len(shapes[key]) if key in shapes else None
    return any(pattern.search(key) and dimensions in sizes for pattern, sizes in _COMPUTED.items())


def stored_shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """The shapes in safetensors files, by name, from their headers."""
    shapes: dict[str, list[int]] = {}
    for path in files:
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return shapes


def adapter_account(folder: Path, adapted: PeftModel) -> dict[str, Any]:
    """The loading info of an adapter: names of its file against those peft would write."""
    from peft import get_peft_model_state_dict

    stored = stored_shapes(folder.glob("adapter_model.safetensors"))
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if not stored:  # pickled, and allowed: there peft's own check is all there is
        return {}
    embeddings = re.compile(r"\.(embed_tokens|lm_head|wte|word_embeddings|embed_in|embed_out)\.")
    return {
        "missing_keys": expected.keys() - stored.keys(),
        "unexpected_keys": {key for key in stored.keys() - expected.keys() if not embeddings.search(key)},
    }


def gguf_left_over(readers: Sequence[GGUFReader], model: nn.Module) -> list[str]:
    """Names of tensors in GGUF files that are nowhere in the model read from them.

    transformers drops what it has no name for. Numbers don't lie: together the tensors hold as many as the model.
    """
    tensors = {tensor.name: int(tensor.n_elements) for reader in readers for tensor in reader.tensors}
    count = sum({weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}.values())
    if sum(tensors.values()) == count:
        return []
    known = _gguf_names(model)
    left = [name for name in tensors if name not in known]
    return left or [f"{sum(tensors.values()):,} numbers in all, of which the model has {count:,}"]


def _gguf_names(model: PreTrainedModel) -> set[str]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architectures = {name.replace("-", "_"): arch for arch, name in MODEL_ARCH_NAMES.items()}
    arch = architectures.get(model.config.model_type.removesuffix("_text"))
    if arch is None:
        return set()
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    known = set()
    for key in model.state_dict():
        stem, _, suffix = key.rpartition(".")
        name = names.get_name(stem)
        known.add(f"{name}.{suffix}" if name else "")
    return known
