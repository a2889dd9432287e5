"""A trained generator of noise as a folder: `config.json` says how it is built and was trained, `model.safetensors` holds its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelError, RunError, setting
from ...nets.text_noise_generator import MOST_BLOCKS, TextNoiseGenerator
from ...runs import conforms, hash_file, new_folder, read_json, read_tensors, write_json

__all__ = ["load_generator", "need_generator_place", "save_generator"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND, FORM = "text noise generator", 1
WIDEST = 2**16
KINDS: Mapping[str, Any] = {
    "text_width": int,
    "latent_width": int,
    "channels": list[int],
    "mask": bool,
    "eps": float,
}


def save_generator(
    generator: TextNoiseGenerator,
    folder: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a generator.

    Args:
        folder: new or empty.
        training: how it was trained, JSON values.
        overwrite: replace a generator that was saved there; nothing else is ever replaced.

    Raises:
        RunError: the folder holds something.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    need_generator_place(folder, overwrite)
    with new_folder(folder) as fresh:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()}, fresh / WEIGHTS
        )
        config = {"kind": KIND, "form": FORM, "generator": generator.settings, "training": dict(training or {})}
        write_json(fresh / CONFIG, {**config, "weights": hash_file(fresh / WEIGHTS)})
    return folder


def load_generator(folder: str | Path) -> tuple[TextNoiseGenerator, dict[str, Any]]:
    """A generator that `save_generator` wrote, in evaluation mode, and how it was trained.

    Raises:
        ModelError: no such folder, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no generator of noise: it has no {CONFIG}. Train one first.")
    config = read_json(folder / CONFIG, ModelError)
    settings, training = config.get("generator"), config.get("training")
    if config.get("kind") != KIND or config.get("form") != FORM or not isinstance(training, dict):
        raise ModelError(f"{folder / CONFIG} is of no {KIND}, or of one of another version. Train one first.")
    if not (
        isinstance(settings, dict)
        and settings.keys() == KINDS.keys()
        and all(conforms(value, KINDS[name]) for name, value in settings.items())
        and len(settings["channels"]) <= MOST_BLOCKS
        and max(settings["text_width"], settings["latent_width"], *settings["channels"], 0) <= WIDEST
    ):
        raise ModelError(f"{folder / CONFIG} is damaged: it doesn't say how the generator is built. Restore it.")
    tensors, _ = read_tensors(folder / WEIGHTS, f"state of a {KIND}", ModelError)
    if hash_file(folder / WEIGHTS) != config.get("weights"):
        raise ModelError(f"{folder / WEIGHTS} is not what {CONFIG} was written for. Restore both.")
    with torch.device("meta"):  # a width that a damaged file claims takes no memory
        generator = TextNoiseGenerator(**settings)
    expected = generator.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            raise ModelError(
                f"{folder / WEIGHTS} is not of the generator that {CONFIG} tells of: see {name!r:.60}. Restore both."
            )
    generator.load_state_dict(tensors, assign=True)
    return generator.eval(), training


def need_generator_place(folder: Path, overwrite: bool) -> None:
    """Refuses to save a generator over anything but an earlier one, and over that unless asked.

    Raises:
        RunError: the folder holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file. Choose another {setting('folder')}.")
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if not entries:
        return
    if entries != [CONFIG, WEIGHTS] or read_json(folder / CONFIG).get("kind") != KIND:
        raise RunError(f"{folder} holds other files than a saved generator. Choose another {setting('folder')}.")
    if not overwrite:
        raise RunError(
            f"{folder} holds a saved generator. Choose another {setting('folder')}, or pass {setting('overwrite', True)} to replace it."
        )
