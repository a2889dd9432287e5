"""An ARC encoder on disk: weights as safetensors, and one JSON file that says what they are. The decoder is never written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ...errors import ModelError, UnwriteError
from ...runs import conforms, read_json, read_tensors, write_json
from .settings import ArcSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["NOTE", "WEIGHTS", "read_arc", "write_arc"]

NOTE, WEIGHTS = "arc_encoder.json", "arc_encoder.safetensors"
FORM = 1


def write_arc(folder: Path, config: PreTrainedConfig, settings: ArcSettings, state: dict[str, Tensor]) -> None:
    """Writes both files into a folder, which is made if it isn't there."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.detach().cpu().contiguous() for name, one in state.items()}, folder / WEIGHTS)
    write_json(folder / NOTE, {"form": FORM, "settings": asdict(settings), "base": config.to_dict()})


def read_arc(folder: Path) -> tuple[PreTrainedConfig, ArcSettings, dict[str, Tensor]]:
    """Configuration of the layers, settings and weights.

    Raises:
        ModelError: files that are missing, damaged, of another form, or of settings without meaning.
    """
    if not (folder / NOTE).is_file():
        raise ModelError(f"{folder} holds no ARC encoder (no {NOTE}). Give the folder that one was saved in.")
    note = read_json(folder / NOTE, ModelError)
    base = note.get("base")
    if note.get("form") != FORM or not conforms(base, dict[str, Any]):
        raise ModelError(f"{folder / NOTE} is of another form than this version reads. Save the encoder again.")
    try:
        settings = _settings(note.get("settings"))
        config = _config(cast(dict[str, Any], base))
    except (TypeError, ValueError, KeyError, AttributeError, UnwriteError) as error:
        raise ModelError(
            f"{folder / NOTE} is no note of an ARC encoder: {' '.join(str(error).split())[:200]}"
        ) from None
    state, _ = read_tensors(folder / WEIGHTS, "weights of an ARC encoder", ModelError)
    if not state:
        raise ModelError(f"{folder / WEIGHTS} is empty. Restore it.")
    return config, settings, state


def _settings(record: Any) -> ArcSettings:
    fields = {**record, "out_dims": tuple(record["out_dims"]), "decoders": tuple(record["decoders"])}
    if not conforms(list(fields["out_dims"]), list[int]) or not conforms(list(fields["decoders"]), list[str]):
        raise TypeError("widths are whole numbers and names are text")
    return ArcSettings(**fields)


def _config(record: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    known = {name: value for name, value in record.items() if name != "transformers_version"}
    return AutoConfig.for_model(known.pop("model_type"), **known)
