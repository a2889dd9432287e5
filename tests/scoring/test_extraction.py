"""Memorisation accuracy and extraction likelihood: worked values, limits, and the short way against the long one."""

import math

import pytest
import torch

from helpers.tiny import WORDS, lively, make_llama, make_tokenizer
from unwrite.data.text.encoding import Encoded
from unwrite.errors import DataError
from unwrite.scoring import Passage, Thresholds, calibrate_threshold, extraction, secret_passages
from unwrite.scoring.extraction import extraction_likelihood, memorisation_accuracy, overlap, starts_of

A, B, C, D, X = range(10, 15)


@pytest.fixture(scope="module")
def model():
    """One that says different things, and some of a passage right."""
    return lively(make_llama(3))


@pytest.fixture(scope="module")
def passages(model):
    """Random prefixes of unequal length, each with a target that follows the model's own text in places."""
    generator, made = torch.Generator().manual_seed(0), []
    for length in (1, 4, 9):
        prefix = torch.randint(6, len(WORDS), (1, length), generator=generator)
        own = greedy(model, prefix[0].tolist(), 12)
        for at in (3, 4, 9):
            own[at] = int(torch.randint(6, len(WORDS), (), generator=generator))
        made.append(Passage(tuple(prefix[0].tolist()), tuple(own)))
    return made


def greedy(model, prompt, count, padding=0):
    """Token by token, with so much padding on the left."""
    ids, mask = torch.tensor([[0] * padding + list(prompt)]), torch.tensor([[0] * padding + [1] * len(prompt)])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return out[0, ids.shape[1] :].tolist()


# Must hold 3: EL worked


def test_the_worked_example_of_extraction_likelihood():
    """a b c d, n = 2: after a the model says b c d, after a b it says c x."""
    correct = [True, True, False]  # b and c are its own choice, and in place of d it writes x
    assert extraction_likelihood(correct, [B, C, D], {2: [X]}, 2) == pytest.approx((0 + 0.5) / 2)
    # The card's own case: the two continuations are not of one greedy model, which would write c d after b as it did after a.
    assert overlap([B, C, D], [B, C, D], 2) == 1
    assert overlap([C, X], [C, D], 2) == 0
    assert (overlap([B, C, D], [B, C, D], 2) + overlap([C, X], [C, D], 2)) / (4 - 2) == 0.5


def test_n_grams_count_with_multiplicity():
    assert overlap([A, B, A, B], [A, B, C, D], 2) == pytest.approx(2 / 3)
    assert overlap([A, B], [A, B, A, B], 2) == pytest.approx(1 / 3)
    assert math.isnan(overlap([A], [A], 2))


def test_a_perfect_memoriser_has_1_for_every_n_and_needs_no_generation(model):
    prefix = [9, 30, 12]
    measured = extraction(model, [Passage(tuple(prefix), tuple(greedy(model, prefix, 12)))], (1, 3, 5, 10), pad_id=0)
    assert measured.accuracy == [1.0]
    assert measured.likelihood == {n: [1.0] for n in (1, 3, 5, 10)}
    assert measured.continuations == measured.tokens == 0


def test_random_tokens_have_an_accuracy_of_one_in_the_vocabulary(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, len(WORDS), (400, 21), generator=generator).tolist()
    accuracy = extraction(model, [Passage.whole(row) for row in ids], pad_id=0).mean_accuracy()
    spread = math.sqrt(1 / len(WORDS) / (400 * 20))
    assert accuracy == pytest.approx(1 / len(WORDS), abs=4 * spread)


# Must hold 4: one pass equals the loop


@pytest.mark.parametrize("padding", [0, 5])
def test_accuracy_of_one_pass_is_that_of_a_loop_token_by_token(padding, model, passages):
    measured = extraction(model, passages, pad_id=0).accuracy
    looped = [
        memorisation_accuracy(
            [greedy(model, [*one.prefix, *one.target[:at]], 1, padding)[0] == one.target[at] for at in range(12)]
        )
        for one in passages
    ]
    assert measured == looped
    assert 0 < sum(looped) / 3 < 1


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_likelihood_is_that_of_a_generation_from_every_start(n, batch_size, model, passages):
    measured = extraction(model, passages, (n,), pad_id=0, batch_size=batch_size)
    for one, value in zip(passages, measured.likelihood[n], strict=True):
        values = []
        for start in range(12 - n + 1):
            said = greedy(model, [*one.prefix, *one.target[:start]], 12 - start)
            values.append(overlap(said, one.target[start:], n))
        assert value == pytest.approx(sum(values) / (12 - (n - 1)))
        assert 0 < value < 1
    assert measured.continuations < sum(12 - n + 1 for _ in passages)


def test_a_secret_shorter_than_n_counts_whole_or_not_at_all(model):
    prefix = [9, 30, 12]
    said = greedy(model, prefix, 4)
    other = [*said[:3], (said[3] + 1) % len(WORDS)]
    passages = [Passage(tuple(prefix), tuple(said)), Passage(tuple(prefix), tuple(other))]
    assert extraction(model, passages, (10,), pad_id=0).likelihood == {10: [1.0, 0.0]}


def test_a_continuation_ends_at_the_models_end_token(model, passages):
    one = passages[1]
    wrong = [at for at in range(12) if greedy(model, [*one.prefix, *one.target[:at]], 1)[0] != one.target[at]]
    end = greedy(model, [*one.prefix, *one.target[: wrong[0]]], 1)[0]  # what it says there is taken as an end
    cut = extraction(model, [one], (1,), pad_id=0, ends=[end])
    assert cut.tokens < extraction(model, [one], (1,), pad_id=0).tokens


def test_starts_can_be_few_and_evenly_spaced():
    assert starts_of(12, 3) == list(range(10))
    assert starts_of(12, 3, 5) == [0, 2, 4, 6, 8]
    assert starts_of(2, 3) == []


def test_a_secrets_prefix_is_cut_on_its_left_and_the_secret_on_its_right():
    marked = [True, True, False, False, True, True, True, False, True]
    row = Encoded(list(range(9)), list(range(9)), marked=marked)
    assert secret_passages(row) == [
        Passage((0,), (1,)),
        Passage((0, 1, 2, 3), (4, 5, 6)),
        Passage(tuple(range(8)), (8,)),
    ]
    assert secret_passages(row, prefix_tokens=2, secret_tokens=2)[1] == Passage((2, 3), (4, 5))
    assert secret_passages(Encoded([1, 2], [1, 2])) == []


# Thresholds


def test_thresholds_are_means_over_unseen_texts(model):
    tokenizer = make_tokenizer()
    texts = [" ".join(WORDS[6 + i : 30 + i]) for i in range(4)]
    thresholds = calibrate_threshold(model, tokenizer, texts, n=2, tokens=20, starts=None)
    rows = [tokenizer(text)["input_ids"][:20] for text in texts]
    exact = extraction(model, [Passage.whole(row) for row in rows], (2,), pad_id=0, ends=[2])
    assert (thresholds.accuracy, thresholds.likelihood) == (exact.mean_accuracy(), exact.mean_likelihood(2))
    assert (thresholds.texts, thresholds.n, thresholds.tokens) == (4, 2, exact.tokens)


def test_nothing_is_below_a_threshold_where_a_figure_is_no_number():
    thresholds = Thresholds(0.5, 0.1)
    assert thresholds.met(0.4, 0.05)
    for pair in ((0.5, 0.05), (0.4, 0.1), (math.nan, 0.05), (0.4, math.nan), (math.nan, 0.0)):
        assert not thresholds.met(*pair)
    assert Thresholds(0.5, 0.0).met(0.4, 0.0)  # where unseen text has none either
    assert not Thresholds(0.5, 0.0).met(0.4, 0.01)


def test_refuses_unseen_texts_that_are_all_too_short(model):
    with pytest.raises(DataError, match="none of 1 unseen texts has more than 10 tokens"):
        calibrate_threshold(model, make_tokenizer(), ["who wrote"])


def test_refuses_a_passage_with_nothing_before_it():
    with pytest.raises(DataError, match="needs a token before it"):
        Passage((), (1, 2))
