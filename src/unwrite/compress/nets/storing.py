"""A compressed net on disk: packed codes and their steps in one safetensors file, and how to build what they belong to.

FOLDER/compressed.safetensors    NAME.weight.codes (packed bytes) and NAME.weight.step of quantised layers, all else as it is
FOLDER/unwrite.json              bits, shapes, settings
FOLDER/config.json               of a transformers model, so that it can be built again
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, RunError, setting
from ...runs import Malformed, new_folder, parse_json, read_tensors, write_json
from .quantise import HIGHEST, LOWEST, pack, unpack
from .report import NetReport

__all__ = ["load_compressed", "need_compressed_place", "save_compressed"]

WEIGHTS, NOTE, KIND = "compressed.safetensors", "unwrite.json", "compressed net"
CODES, STEP = ".codes", ".step"


def save_compressed(
    model: nn.Module, report: NetReport, folder: str | Path, *, overwrite: bool = False, processor: Any = None
) -> Path:
    """Writes what `UDFC.apply` returned: packed codes where there are some. The folder is whole or absent.

    Args:
        overwrite: replace an earlier compressed net in the folder; nothing else is ever replaced.
        processor: transformers' image processor, written beside it.

    Raises:
        RunError: the folder holds something.
        ModelError: weights that have changed since they were quantised.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    need_compressed_place(folder, overwrite)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    shapes: dict[str, list[int]] = {}
    for layer in report.layers:
        if layer.step is None:
            continue
        name, step = f"{layer.name}.weight", layer.step.cpu()
        weight = tensors.pop(name)
        codes = torch.round(weight / step).to(torch.int32)
        if not torch.equal(codes.to(step.dtype) * step, weight):
            raise ModelError(
                f"{name} is no longer what was quantised. Save the net that was compressed, as it came back."
            )
        tensors |= {name + CODES: pack(codes, _bits(report)), name + STEP: step.clone()}
        shapes[name] = list(weight.shape)
    note = {
        "kind": KIND,
        "class": type(model).__name__,
        "bits": report.bits,
        "shapes": shapes,
        "settings": report.settings,
    }
    with new_folder(folder) as fresh:
        save_file(tensors, str(fresh / WEIGHTS))
        write_json(fresh / NOTE, {**note, "example_shape": list(report.example_shape)})
        if hasattr(model, "config") and hasattr(model.config, "save_pretrained"):
            model.config.save_pretrained(fresh)
        if processor is not None:
            processor.save_pretrained(fresh)
    return folder


def load_compressed(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The net that `save_compressed` wrote, in evaluation mode; its weights are those it had, bit for bit.

    Args:
        model: a new one as it was before compression, made smaller in place; None builds the transformers model of the folder's config.

    Raises:
        ModelError: a folder that holds no such net, or one of another architecture.
    """
    folder = Path(folder)
    note = _note(folder)
    tensors, _ = read_tensors(folder / WEIGHTS, KIND, ModelError)
    state = _decoded(folder, tensors, note)
    if model is None:
        model = _built(folder)
    wanted = model.state_dict()
    odd = next((name for name in [*wanted, *state] if not _fits(state.get(name), wanted.get(name))), None)
    if odd is not None:
        there = "it lacks" if odd not in state else "the net has no" if odd not in wanted else "the net can't take"
        raise ModelError(f"{folder} is not of this {type(model).__name__}: {there} {odd!r:.80}.")
    for name, module in model.named_modules():
        _resize(
            module, {key.rpartition(".")[2]: value for key, value in state.items() if key.rpartition(".")[0] == name}
        )
    model.load_state_dict(state)
    return model.eval()


def need_compressed_place(folder: Path, overwrite: bool) -> None:
    """Refuses to save over anything but an earlier compressed net, and over that unless asked.

    Raises:
        RunError: the folder holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file. Choose another {setting('folder')}.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder} holds other files than a compressed net. Choose another {setting('folder')}.")
    if not overwrite:
        replace = setting("overwrite", True)
        raise RunError(
            f"{folder} holds a compressed net. Choose another {setting('folder')}, or pass {replace} to replace it."
        )


def _bits(report: NetReport) -> int:
    assert report.bits is not None
    return report.bits


def _note(folder: Path) -> Mapping[str, Any]:
    if not (folder / NOTE).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no compressed net. Give a folder that was written by compression.")
    try:
        note = parse_json((folder / NOTE).read_bytes())
    except Malformed as error:
        raise ModelError(f"{folder / NOTE} can't be read: {error}.") from None
    shapes, bits = (note.get(name) for name in ("shapes", "bits")) if isinstance(note, dict) else (None, None)
    whole = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape)
        for shape in shapes.values()
    )
    if not whole or not (bits is None or (isinstance(bits, int) and LOWEST <= bits <= HIGHEST)):
        raise ModelError(f"{folder / NOTE} is not of a compressed net: its bits or shapes are not such.")
    checked: Mapping[str, Any] = note
    return checked


def _decoded(folder: Path, tensors: dict[str, Tensor], note: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state that the codes stand for."""
    state = dict(tensors)
    for name, shape in note["shapes"].items():
        codes, step = state.pop(name + CODES, None), state.pop(name + STEP, None)
        count = 1
        for n in shape:
            count *= n
        sound = codes is not None and step is not None and note["bits"] is not None and step.is_floating_point()
        if not sound or codes.dtype != torch.uint8 or codes.numel() != (count * note["bits"] + 7) // 8:
            raise ModelError(
                f"{folder / WEIGHTS} is damaged: the codes of {name!r:.80} are missing or not as many as its shape says."
            )
        if step.ndim not in (0, len(shape)) or step.numel() not in (1, shape[0]):
            raise ModelError(f"{folder / WEIGHTS} is damaged: the steps of {name!r:.80} don't fit its shape.")
        state[name] = unpack(codes, note["bits"], count).reshape(shape).to(step.dtype) * step
    return state


def _built(folder: Path) -> nn.Module:
    """A new transformers model by the folder's own config."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} says not how to build its net. Pass {setting('model')}, a new one as it was before compression."
        )
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with torch.random.fork_rng():
            model: nn.Module = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the library meets in a folder
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} could not be built as an image classifier: {first[:200]}") from error
    return model


def _fits(stored: Tensor | None, wanted: Tensor | None) -> bool:
    """Whether a stored tensor is one of the net's with no more channels than it has there."""
    if stored is None or wanted is None or stored.dtype != wanted.dtype or stored.ndim != wanted.ndim:
        return False
    smaller = all(n <= most for n, most in zip(stored.shape, wanted.shape, strict=True))
    return smaller and stored.shape[2:] == wanted.shape[2:]


def _resize(module: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Gives a module parameters and buffers of the stored shapes, and says so in its sizes."""
    for name, value in own.items():
        before = getattr(module, name, None)
        if not isinstance(before, Tensor) or before.shape == value.shape:
            continue
        fresh = torch.empty_like(value, device=before.device)
        if isinstance(before, nn.Parameter):
            setattr(module, name, nn.Parameter(fresh, requires_grad=before.requires_grad))
        else:
            setattr(module, name, fresh)
    weight = own.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape[0], weight.shape[1]
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(weight)
