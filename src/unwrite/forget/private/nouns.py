"""The official script's way to rewrite, which is another mechanism than the paper's: nouns alone, one of ten likely words.

    p(w) ~ exp(epsilon u(w)),    u = cosine of the last four layers' states at the mask and at w in its place

The ten words are those that the text itself makes likeliest, so another text may have none of them in common, and what one drew the
other can't: no epsilon covers that. The utility lies between -1 and 1, so epsilon would need a half before it, too. And the word that
is replaced is never looked at. (DP2U-MLM.py of arXiv 2504.13774's official code)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import DataError, MethodError

if TYPE_CHECKING:
    from .rewriting import MaskedWords

__all__ = ["filled", "noun_probabilities", "nouns_by_nltk"]

_NOUNS = ("NN", "NNS", "NNP", "NNPS")
_LAYERS = 4


def filled(text: str, span: tuple[int, int], word: str) -> str:
    """The text with another word in place of the characters [start, end)."""
    return f"{text[: span[0]]}{word}{text[span[1] :]}"


def nouns_by_nltk(words: Sequence[str]) -> list[bool]:
    """Which words nltk's tagger takes for nouns.

    Raises:
        MethodError: nltk or the tagger's data are not installed.
    """
    try:
        import nltk

        return [tag in _NOUNS for _, tag in nltk.pos_tag(list(words))]
    except (ImportError, LookupError):
        raise MethodError(
            "nltk's tagger is not installed, so nouns are not known. Get it by nltk.download('averaged_perceptron_tagger_eng'), "
            "or give a function as nouns."
        ) from None


def noun_probabilities(
    text: str, span: tuple[int, int], masked: MaskedWords, candidates: int, epsilon: float
) -> tuple[list[str], Tensor]:
    """The likeliest words of letters at a place, and how likely each is drawn, in float64.

    Raises:
        DataError: the model has no word of letters.
    """
    tokenizer = masked.tokenizer
    inputs, at = masked.pairs(text, [filled(text, span, tokenizer.mask_token)])
    with torch.inference_mode():
        output = masked.model(**inputs, output_hidden_states=True)
    ranked = output.logits[0, at[0]].argsort(descending=True).tolist()
    special = {*tokenizer.all_special_ids}
    tokens = [token for token in ranked if token not in special and masked.word(token).isalpha()][:candidates]
    if not tokens:
        raise DataError("the masked language model has no word of letters, so no noun can be replaced. Load another.")
    there = _states(output, at)  # [1, 4 * width]
    changed: dict[str, Any] = {name: value.repeat(len(tokens), 1) for name, value in inputs.items()}
    changed["input_ids"][:, at[0]] = torch.tensor(tokens)
    with torch.inference_mode():
        states = _states(masked.model(**changed, output_hidden_states=True), at.repeat(len(tokens)))
    utility = torch.cosine_similarity(states.double(), there.double())  # [candidates]
    words = [masked.word(token) for token in tokens]
    if math.isinf(epsilon):
        return words, torch.nn.functional.one_hot(utility.argmax(), len(tokens)).double()
    return words, (epsilon * utility).softmax(0).clone()


def _states(output: Any, at: Tensor) -> Tensor:
    """The last layers' states at one position of each row, side by side. [rows, layers * width]"""
    rows = torch.arange(len(at))
    return torch.cat([layer[rows, at] for layer in output.hidden_states[-_LAYERS:]], dim=-1)
