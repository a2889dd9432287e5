"""Decode: the same text in fewer forwards.

    model.generate(**inputs, custom_generate=TokenRecycling())

Nothing here imports torch until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .aded import ADED, TrigramTable
    from .base import Drafter, Strategy
    from .draft_model import DraftModel
    from .engine.bridge import DecodeOutput, generate
    from .engine.llamacpp.runtime import LlamaCppRuntime
    from .engine.loop import Decoded
    from .engine.planning.curves import calibrate
    from .engine.runtime import Output, Runtime
    from .engine.stats import Stats, last_stats
    from .engine.transformers.runtime import TransformersRuntime
    from .engine.transformers.support import why_plain
    from .engine.tree import DraftTree, Path
    from .joined import Joined
    from .plain import Plain
    from .prompt_lookup import PromptLookup
    from .rsd import RSD
    from .token_recycling import RecyclingTable, TokenRecycling, TreeTemplate

_HOMES = {
    "aded": ("ADED", "TrigramTable"),
    "base": ("Drafter", "Strategy"),
    "draft_model": ("DraftModel",),
    "engine.bridge": ("DecodeOutput", "generate"),
    "engine.planning.curves": ("calibrate",),
    "engine.llamacpp.runtime": ("LlamaCppRuntime",),
    "engine.loop": ("Decoded",),
    "engine.runtime": ("Output", "Runtime"),
    "engine.stats": ("Stats", "last_stats"),
    "engine.transformers.support": ("why_plain",),
    "engine.transformers.runtime": ("TransformersRuntime",),
    "engine.tree": ("DraftTree", "Path"),
    "joined": ("Joined",),
    "plain": ("Plain",),
    "prompt_lookup": ("PromptLookup",),
    "rsd": ("RSD",),
    "token_recycling": ("RecyclingTable", "TokenRecycling", "TreeTemplate"),
}

__all__ = [
    "ADED",
    "RSD",
    "DecodeOutput",
    "Decoded",
    "DraftModel",
    "DraftTree",
    "Drafter",
    "Joined",
    "LlamaCppRuntime",
    "Output",
    "Path",
    "Plain",
    "PromptLookup",
    "RecyclingTable",
    "Runtime",
    "Stats",
    "Strategy",
    "TokenRecycling",
    "TransformersRuntime",
    "TreeTemplate",
    "TrigramTable",
    "calibrate",
    "generate",
    "last_stats",
    "why_plain",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
