"""Samples that the benchmark's own generator can't be asked for: the same in every process and on every machine."""

import json
import zlib
from random import Random

import pytest

from unwrite.diffusion.parallelbench import TASKS, load


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("waiting_line/", 3072953110),
        ("waiting_line_n15/", 812194814),
        ("puzzle/sudoku", 3936569773),
        ("words_to_sentence/", 1220112804),
    ],
)
def test_a_seed_draws_what_it_always_drew(family, expected):
    """CRC-32 of all fields, examples and answers, without the prompts' words; equal under two seeds of Python's hash."""
    drawn = []
    for name in sorted(name for name in TASKS if name.startswith(family)):
        fields = sorted(TASKS[name].maker(Random(0)).inputs)
        samples = load(name, prompt="|".join(f"{field}={{{field}}}" for field in fields))
        drawn += [[name, *(message["content"] for message in sample.messages), sample.gold] for sample in samples]
    assert zlib.crc32(json.dumps(drawn).encode()) == expected
