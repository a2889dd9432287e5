"""Models: load and save them, find their parts, train ordinary ones once.

Nothing here imports torch until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .bundled import BUNDLED, add, bundled_names
    from .fitting import TrainRecipe, trained
    from .layout import Anatomy, Block, Projection, anatomy, unwrap
    from .loading import Loaded, load, load_model, model_folder, register_loader
    from .recipe import causal_recipe
    from .saving import load_state, save

_HOMES = {
    "bundled": ("BUNDLED", "add", "bundled_names"),
    "fitting": ("TrainRecipe", "trained"),
    "layout": ("Anatomy", "Block", "Projection", "anatomy", "unwrap"),
    "loading": ("Loaded", "load", "load_model", "model_folder", "register_loader"),
    "recipe": ("causal_recipe",),
    "saving": ("load_state", "save"),
}

__all__ = [
    "BUNDLED",
    "Anatomy",
    "Block",
    "Loaded",
    "Projection",
    "TrainRecipe",
    "add",
    "anatomy",
    "bundled_names",
    "causal_recipe",
    "load",
    "load_model",
    "load_state",
    "model_folder",
    "register_loader",
    "save",
    "trained",
    "unwrap",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
