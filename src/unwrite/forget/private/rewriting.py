"""Differentially private rewriting: each word is replaced by one that a masked language model might put there.

The replacement is drawn by the exponential mechanism: a word's utility is its logit at the mask, clipped to a fixed range, so that no
text can move it by more than the range is wide. (DP-MLM, as the base of arXiv 2504.13774)

    p(w) ~ exp(clip(logit_w, low, high) / T),    T = 2 (high - low) / epsilon

Each replaced word spends epsilon, whatever stood in the text; a record of m such words spends m epsilon. The mechanism covers the
words it replaces: how many there are, the words that are kept, and capitals where they are kept stand there as they were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...data import Example, Examples
from ...errors import DataError, MethodError, ModelError, setting, unknown
from ...runs import progress
from ..engine.checks import require
from .chance import Chance
from .nouns import filled, noun_probabilities, nouns_by_nltk

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["MaskedWords", "Rewriting", "Rewritten", "temperature", "word_probabilities"]

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BATCH = 32


def temperature(epsilon: float, low: float, high: float) -> float:
    """T = 2 (high - low) / epsilon; 0 for an infinite epsilon."""
    return 2 * (high - low) / epsilon


def word_probabilities(logits: Tensor, epsilon: float, low: float, high: float) -> Tensor:
    """How likely each token of the vocabulary is drawn, in float64. logits, result: [..., vocab]."""
    utility = logits.double().clamp(low, high)
    if math.isinf(epsilon):
        return torch.nn.functional.one_hot(utility.argmax(-1), utility.shape[-1]).double()
    return (utility / temperature(epsilon, low, high)).softmax(-1)


@dataclass(frozen=True)
class Rewritten:
    """A text after rewriting.

    Args:
        text: what it says now.
        words: how many words were drawn anew.
    """

    text: str
    words: int


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """How training text is rewritten before a base is trained on it.

    Args:
        epsilon: of a word, > 0; infinite takes the likeliest word.
        variant: "dp_mlm", or "dp2u_nouns", the official script's: nouns alone, one of ten words that the text itself chooses.
            The latter has no formal guarantee.
        low, high: the range logits are clipped to.
        words: "content" rewrites all but stop words, as the paper does; "all" rewrites every word (ours).
        keep_case: give a replacement the capitals of the word before, which tells of it.
        special_tokens: let the vocabulary's special tokens be drawn, too (a fixed set, so leaving them out costs no privacy).
        candidates: words that "dp2u_nouns" chooses from.
        nouns: for "dp2u_nouns", says of a text's words which are nouns; None asks nltk.
        secure: draw from the operating system instead of a seed; see `DPSGD.secure`.
    """

    epsilon: float = 10.0
    variant: Literal["dp_mlm", "dp2u_nouns"] = "dp_mlm"
    low: float = -5.2093127
    high: float = 20.304797887802124
    words: Literal["content", "all"] = "content"
    keep_case: bool = True
    special_tokens: bool = False
    candidates: int = 10
    nouns: Callable[[Sequence[str]], Sequence[bool]] | None = None
    secure: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise MethodError(
                f"{setting('epsilon')} is {self.epsilon}; it must be above 0, of every word that is rewritten."
            )
        for name, allowed in (("variant", ("dp_mlm", "dp2u_nouns")), ("words", ("content", "all"))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(name, getattr(self, name), allowed))
        require("low", self.low)
        require("high", self.high, above=self.low)
        require("candidates", self.candidates, at_least=2)

    @property
    def formal(self) -> bool:
        """Whether the mechanism gives epsilon at all."""
        return self.variant == "dp_mlm" and math.isfinite(self.epsilon)

    def rewritten(self, text: str, masked: MaskedWords, chance: Chance) -> Rewritten:
        """One text, every word drawn with the text itself as context.

        Raises:
            DataError: a text that is too long for the model, or that holds its mask token.
        """
        spans = self._spans(text)
        if not spans:
            return Rewritten(text, 0)
        if self.variant == "dp2u_nouns":
            chosen = [self._noun(text, span, masked, chance) for span in spans]
        else:
            outcomes = masked.outcomes(self.special_tokens)
            logits = masked.logits(text, spans)[:, outcomes]  # [words, outcomes]
            probabilities = word_probabilities(logits, self.epsilon, self.low, self.high)
            chosen = [masked.word(int(outcomes[chance.one_of(row)])) for row in probabilities]
        parts, end = [], 0
        for (start, stop), word in zip(spans, chosen, strict=True):
            parts += [text[end:start], _cased(word, text[start:stop]) if self.keep_case else word]
            end = stop
        return Rewritten("".join([*parts, text[end:]]), len(spans))

    def rows(self, rows: Examples, masked: MaskedWords, seed: int = 0) -> tuple[Examples, list[int]]:
        """Every row rewritten, and how many words of each were drawn.

        Nothing else of a row is taken over: its paraphrases and wrong answers would give away what it said.
        """
        chance, new, counts = Chance(seed, self.secure), [], []
        for row in progress(rows, "rewriting", total=len(rows)):
            texts = [row.answer, *([] if row.question is None else [row.question]), *(turn for _, turn in row.history)]
            said = [self.rewritten(text, masked, chance) for text in texts]
            turns = said[len(said) - len(row.history) :]
            new.append(
                Example(
                    said[0].text,
                    question=None if row.question is None else said[1].text,
                    history=tuple((role, turn.text) for (role, _), turn in zip(row.history, turns, strict=True)),
                    source=row.source,
                )
            )
            counts.append(sum(one.words for one in said))
        return Examples(new, f"{rows.name}, rewritten"), counts

    def mapper(
        self, masked: MaskedWords, columns: Sequence[str] = ("text",), seed: int = 0
    ) -> Callable[[Mapping[str, Any]], dict[str, str]]:
        """A function for `datasets.Dataset.map` that rewrites columns; rows come in their order, in one process."""
        chance = Chance(seed, self.secure)
        return lambda row: {name: self.rewritten(row[name], masked, chance).text for name in columns}

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """The words to rewrite, as characters."""
        found = list(_WORD.finditer(text))
        if self.variant == "dp2u_nouns":
            noun = (self.nouns or nouns_by_nltk)([one.group() for one in found])
            first: dict[str, Any] = {}
            for one, is_noun in zip(found, noun, strict=True):
                if is_noun:
                    first.setdefault(one.group(), one)
            return [one.span() for one in first.values()]
        if self.words == "all":
            return [one.span() for one in found]
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return [one.span() for one in found if one.group().lower() not in ENGLISH_STOP_WORDS]

    def _noun(self, text: str, span: tuple[int, int], masked: MaskedWords, chance: Chance) -> str:
        words, probabilities = noun_probabilities(text, span, masked, self.candidates, self.epsilon)
        return words[chance.one_of(probabilities)]


class MaskedWords:
    """A masked language model as rewriting asks it.

    Args:
        model: with logits for every position, such as RoBERTa.
        tokenizer: with a mask token and a pad token.

    Raises:
        ModelError: a tokenizer without a mask token or a pad token.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        for name in ("mask", "pad"):
            if getattr(tokenizer, f"{name}_token_id", None) is None:
                raise ModelError(
                    f"the tokenizer has no {name} token, so it is of no masked language model. Load another."
                )
        self.model, self.tokenizer = model.eval(), tokenizer

    def outcomes(self, special_tokens: bool) -> Tensor:
        """The tokens that can be drawn, the same for every text."""
        special = set() if special_tokens else {*self.tokenizer.all_special_ids}
        return torch.tensor([token for token in range(len(self.tokenizer)) if token not in special])

    def word(self, token: int) -> str:
        """A token as it is written into a text."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        return self.tokenizer.decode([token]).strip().removeprefix("##") or str(name)

    def logits(self, text: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """What the model says at each word's place, of the text and the text with that word masked. [words, vocab]"""
        parts = []
        for first in range(0, len(spans), _BATCH):
            some = [filled(text, span, self.tokenizer.mask_token) for span in spans[first : first + _BATCH]]
            inputs, at = self.pairs(text, some)
            with torch.inference_mode():
                output = self.model(**inputs).logits
            parts.append(output[torch.arange(len(some)), at])
        return torch.cat(parts).clone()

    def pairs(self, text: str, masked: Sequence[str]) -> tuple[Any, Tensor]:
        """The encoded pairs of a text and each of its masked forms, and where the mask stands in each.

        Raises:
            DataError: too long for the model; a text that holds the mask token itself.
        """
        if self.tokenizer.mask_token in text:
            raise DataError(f"a text holds {self.tokenizer.mask_token}, the model's mask token. Take it out.")
        inputs = self.tokenizer([text] * len(masked), list(masked), return_tensors="pt", padding=True)
        room, length = getattr(self.model.config, "max_position_embeddings", math.inf) - 2, inputs["input_ids"].shape[1]
        if length > room:
            raise DataError(
                f"a text and its masked form have {length} tokens together, and the model has room for {room}. Split it."
            )
        place = (inputs["input_ids"] == self.tokenizer.mask_token_id).long().argmax(1)
        return inputs, place


def _cased(word: str, before: str) -> str:
    if before.isupper() and len(before) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if before[:1].isupper() else word
