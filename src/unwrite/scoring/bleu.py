"""BLEU of one text against one reference, by NLTK."""

from __future__ import annotations


def bleu(reference: str, output: str) -> float:
    """Sentence BLEU up to four words, over words split at blanks, in [0, 1].

    Counts of n-grams that don't occur are smoothed by NLTK's third method, a geometric sequence. A text of fewer than
    four words has no 4-grams: its BLEU with itself is then below 1 (0.35 for one word), and 0 where a text is empty.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not reference.split() or not output.split():
        return 0.0
    return float(sentence_bleu([reference.split()], output.split(), smoothing_function=SmoothingFunction().method3))
