"""Architectures as plain modules. Nothing here imports torch until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .small_vision import SmallCNN, SmallResNet, SmallViT

_HOMES = {"small_vision": ("SmallCNN", "SmallResNet", "SmallViT")}

__all__ = ["SmallCNN", "SmallResNet", "SmallViT"]


__getattr__, __dir__ = lazily(__name__, _HOMES)
