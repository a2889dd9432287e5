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
    from .engine.curves import calibrate
    from .engine.llamacpp import LlamaCppRuntime
    from .engine.loop import Decoded
    from .engine.runtime import Output, Runtime
    from .engine.stats import Stats, last_stats
    from .engine.support import why_plain
    from .engine.transformers_runtime import TransformersRuntime
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
    "engine.curves": ("calibrate",),
    "engine.llamacpp": ("LlamaCppRuntime",),
    "engine.loop": ("Decoded",),
    "engine.runtime": ("Output", "Runtime"),
    "engine.stats": ("Stats", "last_stats"),
    "engine.support": ("why_plain",),
    "engine.transformers_runtime": ("TransformersRuntime",),
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
