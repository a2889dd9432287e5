"""Forget, retain and holdout rows, texts and images: reading, checking, encoding, and the sets that ship.

Nothing here imports torch or datasets until a name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

# Not lazy: importing a module later would put it in the place of the function of the same name.
from .text.authors import authors
from .text.examples import Example, Examples, ForgetSplit
from .text.landmarks import landmarks

if TYPE_CHECKING:
    from .images.images import ImageBatch, Images
    from .images.sets import TrainTest, cifar10, cifar100, digits, digits_regression, glyphs, svhn
    from .images.splits import (
        ImageSplit,
        split_at_random,
        split_by_class,
        split_by_identity,
        split_by_index,
        split_by_target,
    )
    from .text.benchmarks import MultipleChoice, Muse, knowundo, muse, tofu, wmdp
    from .text.encoding import Encoded, encode, encode_all, pad
    from .text.general import general_rows, with_general_rows
    from .text.reading import read, split_from

_HOMES = {
    "text.benchmarks": ("MultipleChoice", "Muse", "knowundo", "muse", "tofu", "wmdp"),
    "text.encoding": ("Encoded", "encode", "encode_all", "pad"),
    "text.general": ("general_rows", "with_general_rows"),
    "images.sets": ("TrainTest", "cifar10", "cifar100", "digits", "digits_regression", "glyphs", "svhn"),
    "images.splits": (
        "ImageSplit",
        "split_at_random",
        "split_by_class",
        "split_by_identity",
        "split_by_index",
        "split_by_target",
    ),
    "images.images": ("ImageBatch", "Images"),
    "text.reading": ("read", "split_from"),
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
