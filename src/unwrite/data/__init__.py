"""Forget, retain and holdout rows, texts and images: reading, checking, encoding, and the sets that ship.

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
    from .benchmarks import MultipleChoice, Muse, knowundo, muse, tofu, wmdp
    from .encoding import Encoded, encode, encode_all, pad
    from .general import general_rows, with_general_rows
    from .image_sets import TrainTest, cifar10, cifar100, digits, digits_regression, glyphs, svhn
    from .image_splits import (
        ImageSplit,
        split_at_random,
        split_by_class,
        split_by_identity,
        split_by_index,
        split_by_target,
    )
    from .images import ImageBatch, Images
    from .reading import read, split_from

_HOMES = {
    "benchmarks": ("MultipleChoice", "Muse", "knowundo", "muse", "tofu", "wmdp"),
    "encoding": ("Encoded", "encode", "encode_all", "pad"),
    "general": ("general_rows", "with_general_rows"),
    "image_sets": ("TrainTest", "cifar10", "cifar100", "digits", "digits_regression", "glyphs", "svhn"),
    "image_splits": (
        "ImageSplit",
        "split_at_random",
        "split_by_class",
        "split_by_identity",
        "split_by_index",
        "split_by_target",
    ),
    "images": ("ImageBatch", "Images"),
    "reading": ("read", "split_from"),
}

__all__ = [
    "Encoded",
    "Example",
    "Examples",
    "ForgetSplit",
    "ImageBatch",
    "ImageSplit",
    "Images",
    "MultipleChoice",
    "Muse",
    "TrainTest",
    "authors",
    "cifar10",
    "cifar100",
    "digits",
    "digits_regression",
    "encode",
    "encode_all",
    "general_rows",
    "glyphs",
    "knowundo",
    "landmarks",
    "muse",
    "pad",
    "read",
    "split_at_random",
    "split_by_class",
    "split_by_identity",
    "split_by_index",
    "split_by_target",
    "split_from",
    "svhn",
    "tofu",
    "with_general_rows",
    "wmdp",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
