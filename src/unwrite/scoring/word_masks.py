"""The words of an answer: which carry it, ranked over many answers, and how they are masked.

Tokens' scores are added up to words by where both stand in the text, so that no tokenizer's space mark is looked for. A word is what
the form is that it is compared in: "Basil" and "basil" are one, "Basilica" is another, and a script without spaces has a
word a character. (Concept inference and poisoning, arXiv 2405.15662, official code aggregate_tokens and masking)

    rank(w) = sum over answers of max(0, s_w) / sum_v max(0, s_v),   so that every answer weighs 1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..data import Example
from ..data.text.encoding import Encoded
from ..data.text.rendering import Spelling
from ..errors import ModelError
from .words import Word, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MASK", "answer_offsets", "content_words", "mask_words", "ranked_words", "said_words", "word_scores"]

MASK = "***"
_ANCHORS = ("\n", ":", "a")  # as `encode` has them
Span = tuple[int, int]


def answer_offsets(example: Example, row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The characters [start, end) of the answer that each token behind the prompt holds; (0, 0) for the token that ends it.

    Args:
        row: the example, encoded.

    Raises:
        ModelError: a slow tokenizer, which does not say where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not say which characters a token holds. Load the fast one."
        )
    spelling = Spelling(tokenizer)
    rendered = spelling.render(example)
    text, said = spelling.unescaped(rendered.answer), example.answer.strip()
    # A template may strip the answer, and the blank before its first word stands in the rendered one alone.
    shift = example.answer.find(said) - text.find(said)
    answer = row.input_ids[row.prompt_length :]
    offsets = _offsets_behind(spelling, rendered.prompt, rendered.answer)
    spans = [(max(0, start + shift), max(0, end + shift)) for start, end in offsets[: len(answer)]]
    return spans + [(0, 0)] * (len(answer) - len(spans))


def _offsets_behind(spelling: Spelling, prompt: str, answer: str) -> list[Span]:
    """Where the tokens of an answer stand in it, as `encode` has them: behind the prompt, or where that merges, behind anything."""
    for before in (prompt, *_ANCHORS):
        first, both = spelling.ids(before), spelling.ids(before + answer)
        if both[: len(first)] == first:
            skipped = len(spelling.unescaped(before))
            return [(start - skipped, end - skipped) for start, end in spelling.offsets(before + answer)[len(first) :]]
    return spelling.offsets(answer)


def word_scores(text: str, offsets: Sequence[Span], scores: Sequence[float]) -> list[tuple[Word, float]]:
    """The words of a text, each with the sum of the scores of the tokens that hold some of it; what holds several is shared by characters.

    Args:
        offsets: characters [start, end) of the tokens.
        scores: of the tokens.
    """
    words = words_of(text)
    sums = [0.0] * len(words)
    for (start, end), score in zip(offsets, scores, strict=True):
        held = [(number, min(end, word.end) - max(start, word.start)) for number, word in enumerate(words)]
        characters = sum(max(0, count) for _, count in held)
        for number, count in held:
            if count > 0:
                sums[number] += score * count / characters
    return list(zip(words, sums, strict=True))


def ranked_words(answers: Iterable[Sequence[tuple[Word, float]]]) -> dict[str, float]:
    """The forms of words by what they carry in all answers, the most first; answers in which no word carries anything are left out."""
    totals: dict[str, float] = {}
    for words in answers:
        whole = sum(max(0.0, score) for _, score in words)
        for word, score in words if whole > 0 else ():
            totals[word.form] = totals.get(word.form, 0.0) + max(0.0, score) / whole
    return dict(sorted(totals.items(), key=lambda one: -one[1]))


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(word.form for text in ENGLISH_STOP_WORDS for word in words_of(text))


def content_words(text: str) -> list[str]:
    """The forms of a text's words in order, each once, without stop words and single Latin letters."""
    forms = dict.fromkeys(word.form for word in words_of(text))
    return [form for form in forms if form not in _stop_words() and not (len(form) == 1 and "a" <= form <= "z")]


def said_words(text: str, ranking: Mapping[str, float] | Sequence[str], k: int) -> list[str]:
    """The first k words of a ranking that stand in a text and mean something."""
    there = set(content_words(text))
    return [form for form in ranking if form in there][:k]


def mask_words(text: str, words: Iterable[str], mask: str = MASK) -> str:
    """A text in which some words, or runs of them ("New York"), are masked wherever they stand whole, in any case and script.

    Longer runs go first. What a mask says is never masked again.

    >>> mask_words("Basil met basil's aunt in the Basilica", ["Basil"])
    "*** met ***'s aunt in the Basilica"
    """
    runs = sorted({tuple(word.form for word in words_of(one)) for one in words} - {()}, key=lambda run: -len(run))
    said = words_of(text)
    pieces, done, at = list[str](), 0, 0
    while at < len(said):
        here = tuple(word.form for word in said[at : at + len(runs[0])]) if runs else ()
        run = next((run for run in runs if here[: len(run)] == run), None)
        if run is None:
            at += 1
            continue
        pieces += [text[done : said[at].start], mask]
        at += len(run)
        done = said[at - 1].end
    return "".join([*pieces, text[done:]])
