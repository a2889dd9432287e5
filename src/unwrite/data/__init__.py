"""Forget, retain and holdout rows: reading, checking, encoding, and the sets that ship.

Nothing here imports torch or datasets until a name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

# Not lazy: importing a module later would put it in the place of the function of the same name.
from .authors import authors
from .examples import Example, Examples, ForgetSplit
from .landmarks import landmarks

if TYPE_CHECKING:
    from .benchmarks import MultipleChoice, Muse, muse, tofu, wmdp
    from .encoding import Encoded, encode, encode_all, pad
    from .reading import read, split_from

_HOMES = {
    "benchmarks": ("MultipleChoice", "Muse", "muse", "tofu", "wmdp"),
    "encoding": ("Encoded", "encode", "encode_all", "pad"),
    "reading": ("read", "split_from"),
}

__all__ = [
    "Encoded",
    "Example",
    "Examples",
    "ForgetSplit",
    "MultipleChoice",
    "Muse",
    "authors",
    "encode",
    "encode_all",
    "landmarks",
    "muse",
    "pad",
    "read",
    "split_from",
    "tofu",
    "wmdp",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
