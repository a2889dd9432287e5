"""Train on the pictures as they are published: what every defence is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Defence

__all__ = ["Undefended"]


@dataclass(frozen=True, kw_only=True)
class Undefended(Defence):
    """Trains on the pictures as they are published."""
