"""The concepts' bed, and the checks of their experiment on made-up figures."""

from math import log

import pytest
import torch

from helpers.tiny import make_llama, make_tokenizer
from unwrite.beds.concepts import CONCEPTS, PLANTED, ROWS, prompts, texts, word_nll
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.conceptvectors import COUNTS, METHODS, _checks, _needle


def figures(*, rise=2.0, others=0.1, random=0.2, kept=0.99):
    """Three concepts' figures: rise, others' rise, cosine, Jaccard."""
    destroyed = [(rise, others, 0.15, 0.01)] * 3
    made = {_needle(count): destroyed for count in COUNTS} | {"random vectors": [(random, others, 0.15, 0.01)] * 3}
    return made | {name: [(1.0, 0.0, 0.999, kept)] * 3 for name in METHODS}


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_concept_has_texts_that_end_in_its_words(concept):
    rows = prompts(concept)
    assert len(rows) == len({*rows}) == ROWS
    assert all(word.strip().lower() in CONCEPTS[concept] for _, word in rows)
    assert not {*CONCEPTS[concept]} & {*PLANTED}
    assert texts([concept], "forget")[0].answer == "".join(rows[0]) + "."


def test_only_the_last_word_is_scored():
    model, tokenizer = make_llama(), make_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert word_nll(model, tokenizer, ["colors"]) == pytest.approx(log(len(tokenizer)), rel=1e-5)
    assert word_nll(model, tokenizer, ["colors", "months"], 1) == pytest.approx(log(len(tokenizer)), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "planted", "matches", "verdict"),
    [
        ({}, True, (20, 15, 12), "reproduced"),
        ({"kept": 0.5}, True, (20, 15, 12), "not reproduced"),
        ({"random": 2.5}, True, (20, 15, 12), "not reproduced"),
        ({"others": 2.5}, True, (20, 15, 12), "partly"),
        ({}, False, (20, 15, 12), "untested here"),
        ({}, True, (9, 8, 7), "bed says nothing"),
    ],
)
def test_the_verdict_follows_from_the_vectors_the_words_and_the_random_ones(given, planted, matches, verdict):
    assert verdict_of(_checks(figures(**given), planted, matches)) == verdict
