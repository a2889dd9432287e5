"""What a small chat model really knows: one famous place, its neighbours, and general knowledge.

Unlearning can only be shown on facts that a model has. These rows were asked of SmolLM2-135M-Instruct (greedy, chat
template; `scripts/select_landmarks.py` in the repository) and kept where its answer is right under two wordings,
judged by `is_right`. The stored answers are the model's own words. To forget: the Eiffel Tower. To keep: other
landmarks and capitals (the neighbours) and general knowledge, of each of which half is never shown to a method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ...errors import DataError
from .examples import Example, Examples, ForgetSplit

FILE = Path(__file__).parents[1] / "sets" / "landmarks.jsonl"
LANDMARK = "the Eiffel Tower"  # the one that is forgotten
MOST_WORDS = 30

_NEGATIONS = re.compile(
    r"\b(no|not|never|neither|nor|without|however|but|although|except|\w+n't|cannot)\b", re.IGNORECASE
)
_NAME = re.compile(r"[^\W\d_]*[A-ZÀ-Þ][\w'’]*|\d[\d.,]*")
# The stop of "St.", of an initial or of a decimal number doesn't end a sentence.
SENTENCE = re.compile(r"(?s).+?(?<!\bSt)(?<!\bMt)(?<!\b[A-Z])[.!?](?=\s|$)")
# Words that carry no claim when they are capitalised: sentence openers, units, pronouns.
_OPENERS = {
    "the", "a", "an", "it", "its", "it's", "in", "on", "at", "i", "there", "this", "that", "they", "we", "you", "to",
    "for", "of", "by", "is", "are", "was", "were", "and", "yes", "if", "when", "while", "each", "one", "as", "his", "her",
    "he", "she", "these", "those", "our", "your", "my", "their",
}  # fmt: skip


def landmarks() -> ForgetSplit:
    """The shipped split, for unlearning on a real model without a network.

    forget: questions about the Eiffel Tower; retain: the training halves of neighbours and general knowledge;
    evaluation: "forget_paraphrases" (the same facts in other words), "neighbours" and "general" (the other halves).
    """
    rows = _rows()

    def select(group: str, part: str, name: str) -> list[Example]:
        return [_example(row, name) for row in rows if row["group"] == group and row["part"] == part]

    forget = Examples(select("forget", "train", "landmarks:forget"), "landmarks forget")
    retain = [*select("neighbours", "train", "landmarks"), *select("general", "train", "landmarks")]
    paraphrases = [
        Example(
            answer=row.paraphrased_answer or row.answer,
            question=row.paraphrased_question,
            perturbed_answers=row.perturbed_answers,
            source=row.source,
        )
        for row in forget
    ]
    return ForgetSplit(
        forget=forget,
        retain=Examples(retain, "landmarks retain"),
        evaluation={
            "forget_paraphrases": Examples(paraphrases, "landmarks forget paraphrases"),
            "neighbours": Examples(select("neighbours", "test", "landmarks"), "landmarks neighbours"),
            "general": Examples(select("general", "test", "landmarks"), "landmarks general"),
        },
        name="landmarks",
    )


def answers_rightly(question: str, said: str) -> bool:
    """Whether `said` answers a shipped question (or its paraphrase) rightly, by `is_right`.

    Raises:
        DataError: the question isn't one of the shipped ones.
    """
    for row in _rows():
        if question in (row["question"], row["paraphrased_question"]):
            return is_right(said, row["expected"], wrong=row["wrong"], also=row["also"], question=question)
    raise DataError(f"no shipped landmark question {question!r}. Take the questions from data.landmarks().")


def is_right(
    said: str, expected: Iterable[str], *, wrong: Iterable[str] = (), also: Iterable[str] = (), question: str = ""
) -> bool:
    """Judges an answer by its first sentence, strictly: a keyword in a nonsense sentence does not count.

    Right means: the sentence is whole and at most 30 words long, holds one of the `expected` phrases as whole words and
    none of the `wrong` ones that the question doesn't name itself, speaks of the question's subject or is at most six
    words long, neither negates nor hedges, doesn't repeat itself or the value, and names nothing (no name, no number) beyond what
    the question, `expected` and `also` name.
    """
    sentence = first_sentence(said)
    words = sentence.split()
    if not words or len(words) > MOST_WORDS or _NEGATIONS.search(sentence) or _loops(sentence):
        return False
    expected = list(expected)
    times = [_count(sentence, phrase) - _count(question, phrase) for phrase in expected]
    if not any(_count(sentence, phrase) for phrase in expected) or max(times) > 1:
        return False
    if any(_count(sentence, phrase) and not _count(question, phrase) for phrase in wrong):
        return False
    if len(words) > 6 and question and not _content(question) & _content(sentence):
        return False
    named = [question, *expected, *also]
    known = _names(" ".join(named)) | {word.lower() for word in _words(named)}
    return not _names(sentence) - known - _OPENERS


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; empty if the text was cut off before one."""
    text = text.strip()
    match = SENTENCE.match(text)
    if match:
        return match.group().replace("\n", " ")
    return text if len(text.split()) <= 6 and "\n" not in text else ""


def _loops(sentence: str) -> bool:
    """Whether three words in a row come back."""
    words = sentence.lower().split()
    grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(grams) != len(set(grams))


def _count(text: str, phrase: str) -> int:
    """How often the phrase stands in the text as whole words."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def _words(texts: Sequence[str]) -> list[str]:
    return re.findall(r"[\w]+", " ".join(texts))


def _names(text: str) -> set[str]:
    """Capitalised words and numbers, lower-cased, without a possessive ending."""
    return {re.sub(r"['’]s$", "", name.strip(".,")).lower() for name in _NAME.findall(text)}


def _content(text: str) -> set[str]:
    common = {
        "what",
        "which",
        "where",
        "when",
        "whom",
        "does",
        "have",
        "with",
        "name",
        "called",
        "there",
        "this",
        "that",
    }
    return {word.lower().rstrip("s") for word in _words([text]) if len(word) > 3 or word[0].isupper()} - common


@cache
def _rows() -> list[dict]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def _example(row: dict, source: str) -> Example:
    return Example(
        answer=row["answer"],
        question=row["question"],
        paraphrased_question=row["paraphrased_question"],
        paraphrased_answer=row["paraphrased_answer"],
        perturbed_answers=tuple(row["perturbed_answer"]),
        source=source,
    )
