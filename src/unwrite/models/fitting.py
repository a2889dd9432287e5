"""Train an ordinary model once, and find it again by what made it.

Targets, oracles, half-set and shadow models, test beds: all are "this recipe, on these rows of this data, from this
seed". The hash of exactly that names a folder in the cache. Whoever asks first trains; whoever asks at the same time
waits; whoever asks later reads. A killed training goes on from the recipe's own checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DataError, ModelError
from ..runs import (
    cache_folder,
    canonical_json,
    clean,
    entry_lock,
    hash_json,
    hash_tensors,
    say_unwritable,
    seal,
    sound,
    spare_folder,
    unwritable,
    write_json,
)
from .saving import save

__all__ = ["TrainRecipe", "trained"]


@dataclass(frozen=True)
class TrainRecipe:
    """How an ordinary model is made.

    Args:
        build: `build(seed)` returns the model to train, the same for the same seed.
        fit: `fit(model, data, indices, seed, folder)` trains it in place on `data[i] for i in indices`. `folder`
            outlives a kill: a recipe may keep checkpoints there and start from them; the result must be the same
            either way.
        name: of the recipe; it and the settings stand for the code in the hash.
        settings: everything the result depends on, as JSON values.
    """

    build: Callable[[int], nn.Module]
    fit: Callable[[nn.Module, Any, list[int], int, Path], None]
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def trained(recipe: TrainRecipe, data: Any, indices: Iterable[int], seed: int) -> Path:
    """The folder of the model that `recipe` makes of `data[i] for i in indices` from `seed`; trained if it isn't there.

    The folder holds the weights (through `save_pretrained` where the model has it: read with `load_model`; otherwise
    a state dict: read with `load_state`) and `unwrite.json`, which says what made them. Torch's global random state
    is left as it was.

    Args:
        data: anything indexable that has a `.hash`, or is tensors (one, or a tuple, list or mapping of them), or
            plain values and dataclasses.
        indices: which rows, each at most once; their order doesn't matter, the recipe gets them sorted.

    Raises:
        DataError: indices that are empty, repeated, or outside the data; data that can't be hashed.
        ModelError: settings that aren't JSON.
    """
    rows = _checked(indices, data)
    try:
        settings = json.loads(canonical_json(recipe.settings))
    except TypeError as error:
        raise ModelError(f"the settings of recipe {recipe.name!r} are not plain JSON ({error}).") from error
    what = {"recipe": recipe.name, "settings": settings, "data": _data_hash(data), "seed": int(seed)}
    key = hash_json({**what, "indices": rows})
    try:
        return _trained(cache_folder("fit", key), recipe, data, rows, seed, what)
    except Exception as error:
        if not unwritable(error):
            raise
        say_unwritable(cache_folder("fit"), error)
        return _trained(spare_folder(), recipe, data, rows, seed, what)


def _trained(home: Path, recipe: TrainRecipe, data: Any, rows: list[int], seed: int, what: Mapping[str, Any]) -> Path:
    done, partial = home / "model", home / "partial"
    with entry_lock(home / "lock"):
        if not sound(done):
            clean(done)
            story = {**what, "rows": len(rows), "indices": hash_json(rows)}
            write_json(home / "made-of.json", story)
            partial.mkdir(exist_ok=True)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = recipe.build(seed)
                recipe.fit(model, data, rows, seed, partial)
            save(model, done, provenance=story)
            seal(done)
            shutil.rmtree(partial, ignore_errors=True)
    return done


def _checked(indices: Iterable[int], data: Any) -> list[int]:
    rows = sorted(int(index) for index in indices)
    if not rows:
        raise DataError("there are no indices to train on. Give at least one row.")
    twice = next((a for a, b in pairwise(rows) if a == b), None)
    if twice is not None:
        raise DataError(f"row {twice} is in the indices more than once. Give each row at most once.")
    if rows[0] < 0:
        raise DataError(f"index {rows[0]} is negative. Count rows from 0.")
    size = len(data) if isinstance(data, Sequence | torch.Tensor) and not isinstance(data, tuple) else None
    if size is not None and rows[-1] >= size:
        raise DataError(f"index {rows[-1]} is outside the data, which has {size} rows.")
    return rows


def _data_hash(data: Any) -> str:
    own = getattr(data, "hash", None)
    if isinstance(own, str):
        return own
    tensors = _tensors(data)
    if tensors:
        return hash_tensors(tensors)
    try:
        return hash_json(data)
    except TypeError as error:
        raise DataError(
            f"the data cannot be hashed ({error}). Give it a `hash` attribute: text that changes with its content."
        ) from error


def _tensors(data: Any) -> dict[str, torch.Tensor]:
    """Data made of tensors only, by name; empty for any other."""
    if isinstance(data, torch.Tensor):
        return {"": data}
    named = data if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, tuple | list) else {}
    if not all(isinstance(value, torch.Tensor) for value in named.values()):
        return {}
    return {str(name): value for name, value in named.items()}
