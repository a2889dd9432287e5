"""Texts that every installation has, docstrings and descriptions of the installed packages, and how strategies decode them.

Packages fall into two halves by their name, so that a corpus and the prompts never share one. What is installed decides
what there is; on one machine it is always the same, in the same order.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np

from ..scoring.intervals import Interval, draws, ends, spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..decode.base import Strategy

Kind = Literal["free", "copy"]
ASK: dict[Kind, str] = {
    "free": "Explain to a beginner, in a few sentences of your own, what this is good for: {text}",
    "copy": "Correct the spelling of this text and repeat it in full, without leaving anything out:\n\n{text}",
}
FILES, TEXTS = 40, 150  # modules looked into and texts taken per package
SHORTEST, LONGEST = 200, 900  # characters of a text
RESAMPLES = 2000


@lru_cache(maxsize=1)
def _distributions() -> tuple[metadata.Distribution, ...]:
    """All installed, once each, by name."""
    by_name = {str(d.metadata["Name"]).lower(): d for d in metadata.distributions() if d.metadata["Name"]}
    return tuple(by_name[name] for name in sorted(by_name))


def packages(half: int) -> list[str]:
    """Names of the packages of one half, 0 or 1, in order."""
    names = [str(d.metadata["Name"]).lower() for d in _distributions()]
    return [name for name in names if crc32(name.encode()) % 2 == half]


def texts(half: int) -> Iterator[str]:
    """Descriptions and docstrings of the packages of one half, some from every package in turn."""
    for name in packages(half):
        yield from islice(_texts_of(name), TEXTS)


def corpus(half: int, characters: int) -> list[str]:
    """Texts of one half, about as many characters as asked for, if there are so many."""
    chosen, length = [], 0
    for text in texts(half):
        if length >= characters:
            break
        chosen.append(text)
        length += len(text)
    return chosen


def prompts(half: int, kind: Kind, count: int, seed: int = 0) -> list[str]:
    """Questions about texts of one half, from as many packages as there are, at most one from each at first.

    Args:
        kind: "free" asks for an explanation of a text's first paragraph, "copy" for the text itself.
    """
    random = Random(seed)
    names = packages(half)
    chosen: list[str] = []
    random.shuffle(names)
    piles = {name: _shuffled(name, seed) for name in names}  # read when first asked
    while len(chosen) < count and piles:
        for name in names:
            text = next(piles[name], None) if name in piles else None
            if text is None:
                piles.pop(name, None)
            elif len(chosen) < count:
                chosen.append(text)
            else:
                break
    passages = [text.split("\n\n")[0] if kind == "free" else text for text in chosen]
    return [ASK[kind].format(text=text) for text in passages]


def _shuffled(name: str, seed: int) -> Iterator[str]:
    pile = list(islice(_docstrings(name), 6))
    Random(seed).shuffle(pile)
    yield from pile


def encoded(tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[list[int]]:
    """Token ids of questions, each as a chat of one turn where the tokenizer has a template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return [tokenizer(question)["input_ids"] for question in questions]
    rows = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in questions
    )
    return [list(row) for row in rows]


@dataclass
class TimedDecoding:
    """How one strategy decoded some prompts.

    Args:
        texts: new tokens of every prompt.
        per_forward: tokens a decoding forward committed, of every prompt (the mean accepted tokens; 1 without drafts).
        forwards, drafting: forwards and seconds of drafting, of all prompts.
        each: seconds of the whole call, of every prompt.
    """

    texts: list[list[int]] = field(default_factory=list)
    per_forward: list[float] = field(default_factory=list)
    forwards: int = 0
    drafting: float = 0.0
    each: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(self.each)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def rate(self) -> float:
        """Mean over prompts of tokens per forward."""
        return sum(self.per_forward) / len(self.per_forward)

    def speed(self, plain: TimedDecoding) -> tuple[float, Interval]:
        """Tokens a second over those without drafts, with the interval over prompts."""
        ours, theirs = (
            np.array([one.each, [float(len(text)) for text in one.texts]]).T for one in (self, plain)
        )  # [prompts, seconds and tokens]
        chosen = draws(len(ours), RESAMPLES)
        rates = [of[chosen].sum(1) for of in (ours, theirs)]  # [resamples, seconds and tokens]
        (our_rates, their_rates) = (of[:, 1] / of[:, 0] for of in rates)
        value = (self.tokens / self.seconds) / (plain.tokens / plain.seconds)
        return value, ends(our_rates / their_rates)

    def figures(self, plain: TimedDecoding) -> tuple[Any, ...]:
        """Figures for the columns in `COLUMNS`; plain: the same prompts without drafts."""
        same = sum(mine == own for mine, own in zip(self.texts, plain.texts, strict=True))
        speed, _ = self.speed(plain)
        return (
            spread(self.per_forward),
            self.forwards,
            f"{1000 * self.drafting / max(1, self.forwards):.2f}",
            f"{speed:.2f}x",
            f"{same}/{len(self.texts)}",
        )


COLUMNS = ("tokens/forward", "forwards", "draft ms/step", "speed", "texts as greedy's")


def decoded(
    model: PreTrainedModel, rows: Sequence[list[int]], count: int, strategies: Sequence[Strategy | None]
) -> TimedDecoding:
    """Decodes every prompt greedily with its strategy; None for plain `generate`.

    Args:
        rows: prompts' ids. count: new tokens at most.
        strategies: one per prompt.
    """
    import torch

    decoding = TimedDecoding()
    for row, strategy in zip(rows, strategies, strict=True):
        ids = torch.tensor([row], device=model.device)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": count}
        start = time.perf_counter()
        if strategy is None:
            new = model.generate(ids, **options)[0, len(row) :].tolist()
            decoding.forwards += len(new)
            decoding.per_forward.append(1.0)
        else:
            out = model.generate(ids, **options, custom_generate=strategy, return_dict_in_generate=True)
            new = out.sequences[0, len(row) :].tolist()
            decoding.forwards += out.stats.forwards
            decoding.per_forward.append(out.stats.tokens_per_forward)
            decoding.drafting += out.stats.seconds["draft"]
        decoding.each.append(time.perf_counter() - start)
        decoding.texts.append(new)
    return decoding


def target(size: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of an experiment's size: a random one, SmolLM2-135M, or Vicuna-7B on a GPU."""
    if size == "tiny":
        return _random_target()
    from ..models import load

    if size == "full":
        import torch

        loaded = load("lmsys/vicuna-7b-v1.3", dtype=torch.float16, device="cuda")
    else:
        loaded = load("smollm2-135m")
    return loaded.model.eval(), loaded.tokenizer


def _random_target() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import LlamaForCausalLM

    from .language import small_config, small_tokenizer

    tokenizer = small_tokenizer(corpus(0, 20_000), 512)
    config = small_config(tokenizer, layers=2, width=48)
    config.max_position_embeddings = 2048
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), tokenizer


def _texts_of(name: str) -> Iterator[str]:
    described = metadata.distribution(name).metadata
    readme = str(described.json.get("description") or "")
    if len(readme) >= SHORTEST:
        yield readme[:4000]
    yield from _docstrings(name)


def _docstrings(name: str) -> Iterator[str]:
    """Docstrings of ordinary length from a package's first modules; nothing is imported."""
    distribution = metadata.distribution(name)
    modules = sorted(
        str(file) for file in distribution.files or () if str(file).endswith(".py") and "test" not in str(file)
    )
    for module in modules[:FILES]:
        try:
            with open(str(distribution.locate_file(module)), encoding="utf-8") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and SHORTEST <= len(text) <= LONGEST:
                    yield text
