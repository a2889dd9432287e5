"""Long prompts for caches: pages of the Python manual to go on with, and lists in which one line is asked for.

    passages    a page as it stands; what is scored is how well the model, its prompt in a compressed cache, foretells the rest
    needles     `amber kettle: 4821`, line after line, then four of them again and the name of the fifth; what is scored is its number

Both come with Python alone. The model is SmolLM2-135M-Instruct, which nobody trained for this, or any other. Pages fall into two halves
by their name: one for what is reported, one for calibration and for choosing settings.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import torch
from torch import Tensor

from ..errors import MethodError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REPORTED", "TUNING", "Needles", "continuation_losses", "needle_hits", "needles", "passages", "prompt_loss"]

Half = Literal[0, 1]
REPORTED: Half = 0
TUNING: Half = 1
ADJECTIVES = (
    "amber", "broken", "clever", "distant", "early", "foreign", "gentle", "hollow", "icy", "jolly", "knotted", "lazy", "modern", "narrow",
    "orange", "polite", "quiet", "rusty", "silver", "tender",
)  # fmt: skip
THINGS = (
    "anchor", "basket", "candle", "drum", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle", "ladder", "mirror",
    "needle", "organ", "pencil", "quilt", "ribbon", "saddle", "ticket",
)  # fmt: skip
DIGITS = 4
LEAD = 4  # lines that are said again before the one asked for: without them the small model knows one number in four


@lru_cache
def _pages(half: Half) -> tuple[str, ...]:
    topics = pydoc_data.topics.topics
    return tuple(topics[name] for name in sorted(topics) if crc32(name.encode()) % 2 == half)


def passages(
    tokenizer: PreTrainedTokenizerBase, rows: int, length: int, half: Half = REPORTED, seed: int = 0
) -> Tensor:
    """Manual pages, joined where one is too short, no page in two rows. Returns [rows, length] token ids.

    Raises:
        MethodError: the pages of this half are fewer tokens.
    """
    order = list(_pages(half))
    Random(seed).shuffle(order)
    chosen: list[list[int]] = []
    row: list[int] = []
    for page in order:
        if len(chosen) == rows:
            break
        row += tokenizer(page[: 12 * length] + "\n\n", add_special_tokens=False)["input_ids"]
        if len(row) >= length:
            chosen.append(row[:length])
            row = []
    if len(chosen) < rows:
        raise MethodError(
            f"half of the manual has {len(chosen)} texts of {length} tokens, and {rows} are asked for. Ask for shorter ones."
        )
    return torch.tensor(chosen)


@dataclass(frozen=True)
class Needles:
    """Lists of names and numbers, padded on the left, and the number of the name that stands at the very end.

    Args:
        input_ids, attention_mask: [rows, length].
        answers: [rows, tokens of the number].
    """

    input_ids: Tensor
    attention_mask: Tensor
    answers: Tensor


def needles(tokenizer: PreTrainedTokenizerBase, rows: int, length: int, seed: int = 0) -> Needles:
    """Lists of at most so many tokens; the line that is asked for stands anywhere in the first three quarters.

    Raises:
        MethodError: no room for eight lines; a tokenizer that writes numbers in differing counts of tokens.
    """
    random = Random(seed)
    texts, answers = zip(*(_needle(tokenizer, length, random) for _ in range(rows)), strict=True)
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    numbers = [_answer_ids(tokenizer, text, answer) for text, answer in zip(texts, answers, strict=True)]
    if len({len(one) for one in numbers}) > 1:
        raise MethodError(
            "the tokenizer writes numbers of four digits in differing counts of tokens. Use another model."
        )
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
    return Needles(padded, mask, torch.tensor(numbers))


def _needle(tokenizer: PreTrainedTokenizerBase, length: int, random: Random) -> tuple[str, str]:
    names = [f"{adjective} {thing}" for adjective in ADJECTIVES for thing in THINGS]
    random.shuffle(names)
    lines = [f"{name}: {random.randrange(10**DIGITS):0{DIGITS}d}" for name in names]
    each = len(tokenizer("\n".join(lines))["input_ids"]) / len(lines)
    count = min(len(lines), int(length / each) - LEAD - 2)
    if count < 2 * LEAD:
        raise MethodError(f"{length} tokens have no room for {2 * LEAD} lines. Ask for longer lists.")
    asked = random.randrange(LEAD, count * 3 // 4)
    name, answer = lines[asked].split(": ")
    return "\n".join([*lines[:count], "", *lines[asked - LEAD : asked], f"{name}:"]), answer


def _answer_ids(tokenizer: PreTrainedTokenizerBase, text: str, answer: str) -> list[int]:
    """Ids of the number where it follows the text."""
    whole = tokenizer(f"{text} {answer}")["input_ids"]
    return list(whole[len(tokenizer(text)["input_ids"]) :])


MakeCache = Callable[[], "Cache | None"]


@torch.no_grad()
def continuation_losses(
    model: PreTrainedModel, make_cache: MakeCache, ids: Tensor, prompt: int
) -> tuple[Tensor, Cache]:
    """How badly the rest of each text is foretold, token by token, its prompt read at once into a cache.

    Args:
        make_cache: of one batch; None for the model's own.
        ids: [rows, length].
        prompt: tokens that are read at once; the rest is scored, from the second token behind the prompt on, so that
            all scores come from the cache.

    Returns:
        [rows] mean loss of a token in nats, and the cache when it held the whole text but its last token.
    """
    out = model(ids[:, :prompt], past_key_values=make_cache(), use_cache=True, logits_to_keep=1)
    losses = []
    for at in range(prompt, ids.shape[1] - 1):
        out = model(ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
        scores = out.logits[:, -1].float().log_softmax(-1)
        losses.append(-scores.gather(1, ids[:, at + 1 : at + 2])[:, 0])
    return torch.stack(losses, 1).mean(1), out.past_key_values


@torch.no_grad()
def prompt_loss(model: PreTrainedModel, make_cache: MakeCache, ids: Tensor) -> Tensor:
    """[rows] mean loss of a text read at once, for caches whose reading of a prompt is lossy itself. ids: [rows, length]."""
    logits = model(ids, past_key_values=make_cache(), use_cache=True).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def needle_hits(
    model: PreTrainedModel, make_cache: MakeCache, asked: Needles, rows: Sequence[int] | None = None
) -> Tensor:
    """[rows] bool: whether the number that the model writes is the one of the list. rows: which lists; all without."""
    some = slice(None) if rows is None else torch.tensor(list(rows))
    answers = asked.answers[some]
    written = model.generate(
        input_ids=asked.input_ids[some],
        attention_mask=asked.attention_mask[some],
        past_key_values=make_cache(),
        max_new_tokens=answers.shape[1],
        min_new_tokens=answers.shape[1],
        do_sample=False,
        pad_token_id=model.generation_config.eos_token_id if model.generation_config.pad_token_id is None else None,
    )
    return (written[:, -answers.shape[1] :] == answers).all(1)
