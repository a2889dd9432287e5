"""Models inside a guard, stored so that only the guard loads them.

A guard's weights are those of the model that still knows. In an ordinary folder any tool would load them as a model,
and nothing would say that it is the one before forgetting. So each file of such a model gets the model's name in front
and `.guarded` behind, side by side in the guard's folder, whose own `config.json` has a model type that transformers
and what reads its folders don't know:

    config.json                          {"model_type": "unwrite-guard"}
    target.config.json.guarded           what save_pretrained wrote as config.json
    target.model.safetensors.guarded     the same bytes as model.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import ModelError
from ..runs import scratch_folder, write_json
from .loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MODEL_TYPE", "is_guarded", "load_guarded", "save_guarded"]

MODEL_TYPE = "unwrite-guard"
_ENDING = ".guarded"


def save_guarded(folder: Path, guard: str, **models: PreTrainedModel) -> None:
    """Writes each model of a guard under its name.

    Args:
        folder: the guard's, made if it isn't there.
        guard: the class that loads them, for the folder's `config.json`.

    Raises:
        ModelError: a model that writes more than files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        with scratch_folder(f".{name}.", folder) as place:
            model.save_pretrained(place)
            for path in sorted(place.iterdir()):
                if path.is_dir():
                    raise ModelError(
                        f"the {name} of this {guard} has a part of its own ({path.name}/), which a guard has no place "
                        "for. Merge its adapters first."
                    )
                path.replace(folder / f"{name}.{path.name}{_ENDING}")
    about = "A guard: unwrite.models.load reads it. The weights beside are of the model before forgetting."
    write_json(folder / "config.json", {"model_type": MODEL_TYPE, "architectures": [guard], "about": about})


def is_guarded(folder: Path, name: str) -> bool:
    """Whether the folder holds a model of that name as `save_guarded` writes it."""
    return (folder / f"{name}.config.json{_ENDING}").is_file()


def load_guarded(folder: Path, name: str, **options: Any) -> nn.Module:
    """The model that `save_guarded` wrote under that name; `options` are those of `load`.

    Raises:
        ModelError: as `load`, with the names the files have here.
    """
    names = {path.name[len(name) + 1 : -len(_ENDING)]: path for path in sorted(folder.glob(f"{name}.*{_ENDING}"))}
    if not names:
        raise ModelError(f"{folder} holds no {name} (files {name}.*{_ENDING}). Copy the guard's folder whole.")
    with scratch_folder() as place:
        for own, path in names.items():
            (place / own).symlink_to(path.resolve())
        try:
            return load_model(place, **options)
        except ModelError as error:
            message = str(error)
            for own in sorted(names, key=len, reverse=True):
                message = message.replace(str(place / own), str(names[own]))
            raise ModelError(message.replace(str(place), f"{folder} ({name})")) from error
