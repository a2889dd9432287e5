"""ROUGE-L by the field's reference library, over words of every script.

rouge-score's own tokenizer keeps a-z and 0-9 alone, so that identical Chinese, Russian or Arabic texts score 0 and
"Müller" equals "M ller". Here a word is a run of letters, marks and digits of any script; in scripts that are written
without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, ...) each
character with its marks is one. On ASCII both give the same words.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer
    from regex import Pattern
    from rouge_score.rouge_scorer import RougeScorer

Words = Literal["unicode", "ascii"]
WORDS: dict[str, str] = {
    "unicode": "ROUGE counts words of every script; on ASCII these are rouge-score's.",
    "ascii": "ROUGE counts rouge-score's words, a-z and 0-9 alone.",
}
UNSPACED = (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Javanese", "Balinese",
    "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Yi",
)  # fmt: skip


class Rouge(NamedTuple):
    """Precision, recall and F1 of the longest common subsequence, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


@lru_cache(maxsize=1)
def _pattern() -> Pattern[str]:
    import regex

    unspaced = "".join(rf"\p{{Script={name}}}" for name in UNSPACED)
    # \p{M}, a combining mark, belongs to the letter before it.
    return regex.compile(rf"[{unspaced}]\p{{M}}*|(?:(?![{unspaced}])[\p{{L}}\p{{N}}]\p{{M}}*)+")


@lru_cache(maxsize=1)
def _stemmer() -> PorterStemmer:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


class UnicodeWords:
    """What rouge-score takes as a tokenizer: words of every script, lower case, stemmed where they are ASCII."""

    def __init__(self, stemmer: bool) -> None:
        self.stemmer = stemmer

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in order."""
        folded = unicodedata.normalize("NFC", text.casefold())
        words: list[str] = _pattern().findall(folded)
        if not self.stemmer:
            return words
        return [_stemmer().stem(word) if len(word) > 3 and word.isascii() else word for word in words]


@lru_cache(maxsize=4)
def _scorer(stemmer: bool, words: Words) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer, tokenizer=UnicodeWords(stemmer) if words == "unicode" else None)


def rouge_l(reference: str, output: str, *, stemmer: bool = True, words: Words = "unicode") -> Rouge:
    """ROUGE-L of an output against its reference (TOFU: recall with stemmer; MUSE: F1 without).

    Args:
        stemmer: reduce English words to their stems (Porter).
        words: "unicode", of every script; "ascii", rouge-score's own, for figures beside published ones.
    """
    score = _scorer(stemmer, words).score(reference, output)["rougeL"]
    return Rouge(score.precision, score.recall, score.fmeasure)
