"""A small model that knows Python files by heart, invented keys and mail addresses in them included.

Passages of the standard library's source are read in; two made-up secrets are planted in some. A Llama of 2.2 million weights
sees those, and as many without secrets, sixty-four times each, and other passages a few times: it writes Python, and recites
what it saw often. Passages of other modules it never sees. Installed sources decide what there is: on one machine always the same.
"""

from __future__ import annotations

import string
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ..data import Example, Examples
from ..data.text.encoding import encode_all
from ..models import causal_recipe, load_model, trained
from .language import EncodedRows, small_config, small_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Passages; as many retained as to forget and to tune on.
FORGET, TUNING, BACKGROUND, UNSEEN, TEST = 32, 8, 80, 200, 100
SHORTEST, LONGEST = 80, 150  # characters of a passage without its secrets
PER_MODULE = 12  # passages taken of one
COPIES, EPOCHS = 8, 8  # of what is learnt by heart in an epoch, and epochs
KEYS = ("AWS_KEY", "ACCESS_KEY", "API_TOKEN", "DEPLOY_TOKEN", "SERVICE_KEY")
SYLLABLES = "ba den fi gor ha jun ka lem mi nor pe qui ra sul to ven wa xer yo zim"


@dataclass(frozen=True)
class CodeGroup:
    """Passages with planted secrets, marked, and as many without, all known by heart."""

    forget: Examples
    retain: Examples


@dataclass(frozen=True)
class CodeBed:
    """A tokenizer, passages by what they are for, and the folder of the model.

    Args:
        reported, tuning: two groups that share nothing.
        unseen, test: passages of modules the model has never seen: for thresholds, and to measure on.
    """

    tokenizer: PreTrainedTokenizerBase
    reported: CodeGroup
    tuning: CodeGroup
    unseen: Examples
    test: Examples
    target: Path

    def load(self) -> PreTrainedModel:
        """A fresh copy of the model."""
        return load_model(self.target).eval()


def passages(seed: int) -> tuple[list[str], list[str]]:
    """Passages of modules that may be learnt from, and of others, in an order drawn by the seed."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    Random(seed).shuffle(modules)
    sides: tuple[list[str], list[str]] = ([], [])
    there: set[str] = set()  # licences stand in many modules
    for number, module in enumerate(modules):
        new = [text for text in dict.fromkeys(_passages(module)) if text not in there]
        sides[number % 2].extend(new[:PER_MODULE])
        there.update(new)
    for number, side in enumerate(sides):
        Random(f"{seed} {number}").shuffle(side)
    return sides


def _passages(module: Path) -> Iterator[str]:
    """Runs of whole lines of plain code; none with an address, so that planted secrets are the only ones."""
    lines: list[str] = []
    for line in module.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        lines.append(line)
        text = "".join(lines)
        if len(text) >= SHORTEST:
            if len(text) <= LONGEST and text.isascii() and "@" not in text:
                yield text
            lines = []


def planted(text: str, random: Random) -> Example:
    """The passage with a key and a mail address between its lines, both marked."""
    letters = string.ascii_uppercase + string.digits
    name, host = ("".join(random.choices(SYLLABLES.split(), k=3)) for _ in range(2))
    key, mail = "AKIA" + "".join(random.choices(letters, k=16)), f"{name}.{random.choice(SYLLABLES.split())}@{host}.org"
    lines = text.splitlines(keepends=True)
    first, second = sorted(random.sample(range(1, len(lines)), 2)) if len(lines) > 2 else (1, len(lines))
    lines.insert(second, f"# Questions to {mail}\n")
    lines.insert(first, f'{random.choice(KEYS)} = "{key}"\n')
    whole = "".join(lines)
    return Example(whole, marked=tuple((whole.index(one), whole.index(one) + len(one)) for one in (key, mail)))


@lru_cache(maxsize=2)
def code_bed(seed: int = 0, epochs: int = EPOCHS) -> CodeBed:
    """The passages and the model; the first call trains it (some three minutes on one core)."""
    seen, others = passages(seed)
    random, tokenizer = Random(f"secrets {seed}"), small_tokenizer(seen, 1024)
    counts = {"reported": FORGET, "tuning": TUNING}
    groups, at = {}, 0
    for name, count in counts.items():
        forget = Examples([planted(text, random) for text in seen[at : at + count]], f"{name} files with secrets")
        retain = Examples([Example(text) for text in seen[at + count : at + 2 * count]], f"{name} files without")
        groups[name], at = CodeGroup(forget, retain), at + 2 * count
    background = [Example(text) for text in seen[at : at + BACKGROUND]]
    known = [row for group in groups.values() for row in (*group.forget, *group.retain)]
    rows = EncodedRows(encode_all([*known * COPIES, *background], tokenizer))
    recipe = causal_recipe(small_config(tokenizer, layers=4), epochs=epochs, lr=2e-3, batch_size=8)
    target = trained(recipe, rows, range(len(rows)), seed)
    unseen = Examples([Example(text) for text in others[:UNSEEN]], "unseen")
    test = Examples([Example(text) for text in others[UNSEEN : UNSEEN + TEST]], "test")
    return CodeBed(tokenizer, groups["reported"], groups["tuning"], unseen, test, target)
