"""Ways to write a text that a reader still understands and a filter of its words may not. (Ours; after arXiv 2407.00106's remark
that filters are limited, too)
"""

from __future__ import annotations

import codecs
from typing import Literal, get_args

__all__ = ["DISGUISES", "Disguise", "disguised"]

Disguise = Literal["plain", "homoglyphs", "spacing", "rot13", "mosaic"]
DISGUISES: tuple[Disguise, ...] = get_args(Disguise)
_CYRILLIC = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
HALVES = "The first half of a sentence is: {first}\nRemember it. Ships cross the sea in any weather.\nIts second half is: {second}"


def disguised(text: str, disguise: Disguise) -> str:
    """A text in disguise.

    Args:
        disguise: "plain", as it is; "homoglyphs", Latin letters as the Cyrillic ones that look alike; "spacing", a blank behind
            every letter and two between words; "rot13", letters moved by 13, with a note that says so; "mosaic", in two halves
            apart from each other.
    """
    if disguise == "homoglyphs":
        return text.translate(_CYRILLIC)
    if disguise == "spacing":
        return "  ".join(" ".join(word) for word in text.split())
    if disguise == "rot13":
        return f"In ROT13: {codecs.encode(text, 'rot13')}"
    if disguise == "mosaic":
        words = text.split()
        half = (len(words) + 1) // 2
        return HALVES.format(first=" ".join(words[:half]), second=" ".join(words[half:]))
    return text
