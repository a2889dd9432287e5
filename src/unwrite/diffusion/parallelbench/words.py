"""The names and words that lists are made of: ASCII, no quotes, commas or brackets in them, none twice.

There are as many of each kind as in ParallelBench's own lists, so a seed picks the same places in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _lines(file: str) -> tuple[str, ...]:
    return tuple(files("unwrite.diffusion.parallelbench").joinpath(file).read_text(encoding="utf-8").split())


FIRST = _lines("first_names.txt")  # 92
LAST = _lines("last_names.txt")  # 192
WORDS = _lines("words.txt")  # 99

# Words that one speaker would use together; a sentence is the harder, the more topics its words come from.
TOPICS: Mapping[str, tuple[str, ...]] = {
    "kitchen": ("oven", "flour", "recipe", "spoon", "bake", "butter", "plate", "sugar"),
    "harbour": ("boat", "sailor", "anchor", "wave", "dock", "net", "storm", "captain"),
    "school": ("teacher", "lesson", "pupil", "desk", "homework", "pencil", "exam", "classroom"),
    "garden": ("rose", "soil", "spade", "seed", "hedge", "water", "bloom", "lawn"),
    "hospital": ("nurse", "patient", "doctor", "ward", "fever", "bandage", "medicine", "visit"),
    "railway": ("train", "platform", "ticket", "driver", "track", "station", "delay", "luggage"),
    "music": ("violin", "concert", "melody", "singer", "stage", "rhythm", "choir", "applause"),
    "space": ("rocket", "planet", "orbit", "telescope", "astronaut", "comet", "gravity", "launch"),
    "court": ("judge", "lawyer", "verdict", "witness", "trial", "jury", "evidence", "appeal"),
    "winter": ("snow", "ice", "scarf", "sledge", "frost", "mittens", "blizzard", "fireplace"),
    "market": ("price", "stall", "customer", "coin", "bargain", "fruit", "basket", "trader"),
    "computers": ("keyboard", "screen", "program", "memory", "network", "password", "server", "file"),
}


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Every first name with every last name."""
    return tuple(f"{first} {last}" for first in FIRST for last in LAST)
