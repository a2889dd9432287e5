"""Membership attacks on classifiers: the cards' numbers, chance where there is nothing to find, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from unwrite.audit.images.arrays import balanced_sample
from unwrite.audit.images.membership import (
    FEATURES,
    attack_features,
    attack_success_rate,
    entropy,
    entropy_attack,
    membership_attack,
    modified_entropy,
    published_modified_entropy,
)
from unwrite.errors import DataError, MethodError

CARD = np.log([[0.7, 0.2, 0.1]])


def drawn(rows: int, lift: float, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Normal logits with `lift` added to the label's."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += lift
    return logits, labels


def test_modified_entropy_of_the_card() -> None:
    assert modified_entropy(CARD, [0])[0] == pytest.approx(0.16217, abs=5e-6)


def test_entropy_of_the_card() -> None:
    assert entropy(CARD)[0] == pytest.approx(0.80182, abs=5e-6)


def test_published_modified_entropy_of_the_card_is_another_number() -> None:
    expected = -(0.3 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert published_modified_entropy(CARD, [0])[0] == pytest.approx(expected)
    assert expected == pytest.approx(0.65915, abs=5e-6)


def test_modified_entropy_falls_from_infinity_to_0_as_the_label_becomes_likely() -> None:
    values = modified_entropy([[-800.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [800.0, 0.0]], [0] * 5)
    assert (np.diff(values) < 0).all()
    assert values[0] == pytest.approx(1600)  # both terms: -log p_y and -log(1 - p_i) of the other class
    assert values[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_model_that_is_always_as_sure_does_not_crash_and_is_judged_one_way(feature: Any) -> None:
    constant = np.tile([[3.0, 0.0, 0.0]], (40, 1)), np.zeros(40, dtype=int)
    values = {membership_attack(constant, constant, constant, feature, seed).value for seed in range(3)}
    assert values in ({0.0}, {100.0})


@pytest.mark.parametrize("feature", ["confidence", "entropy", "modified_entropy", "probabilities"])
def test_forget_rows_like_test_rows_are_judged_like_test_rows(feature: Any) -> None:
    """An oracle that does not overfit: all three sets are drawn alike. 3 standard errors of a difference of shares."""
    forget, retain, test, other = (drawn(400, 2.0, seed) for seed in range(4))
    called = membership_attack(forget, retain, test, feature).value
    true_negatives = membership_attack(other, retain, test, feature).value
    assert called is not None
    assert called == pytest.approx(true_negatives, abs=3 * 100 * math.sqrt(2 * 0.25 / 400))


def test_forget_rows_like_members_are_called_members_and_like_strangers_not() -> None:
    retain, test = drawn(200, 9.0, 0), drawn(200, -9.0, 1)
    assert membership_attack(drawn(100, 9.0, 2), retain, test).value == 0.0
    assert membership_attack(drawn(100, -9.0, 3), retain, test).value == 100.0


@pytest.mark.parametrize(("wrong", "called"), [(0, {100.0}), (32, {0.0, 100.0})])
def test_a_class_never_seen_is_judged_as_a_whole_and_either_way_where_members_are_as_often_wrong(
    wrong: int, called: set[float]
) -> None:
    """Forget rows have a probability near 0. Only where hardly a member has, as in a net that knows its rows, are they sure
    to be non-members; with 8 % of members and of strangers down there, the draw of members decides."""

    def rows(count: int, low: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        sure, other = drawn(count - low, 9.0, seed), drawn(low, -2.0, seed + 50)
        return np.concatenate([sure[0], other[0]]), np.concatenate([sure[1], other[1]])

    sets = drawn(60, -20.0, 9), rows(400, wrong, 1), rows(100, 8, 2)
    assert {membership_attack(*sets, seed=seed).value for seed in range(8)} == called


def test_value_is_the_mean_of_the_rows_and_the_note_has_the_test_rows() -> None:
    score = membership_attack(drawn(50, 2.0, 0), drawn(80, 4.0, 1), drawn(60, 2.0, 2))
    assert score.value == pytest.approx(np.mean(score.per_example))  # type: ignore[arg-type]
    assert "Of the test rows it learned from" in score.note


def test_members_are_drawn_from_all_classes_however_the_rows_are_sorted() -> None:
    labels = np.repeat(np.arange(5), [100, 100, 100, 100, 4])
    sample = balanced_sample(labels, 54, seed=0)
    counts = np.bincount(labels[sample])
    assert len(set(sample.tolist())) == 54
    assert counts[4] == 4
    assert set(counts[:4]) <= {12, 13}
    assert sorted(sample.tolist()) != sample.tolist()
    assert sample.tolist() == balanced_sample(labels, 54, seed=0).tolist()
    assert sample.tolist() != balanced_sample(labels, 54, seed=1).tolist()


def test_the_attack_learns_from_all_classes_of_sorted_retain_rows() -> None:
    """Class 0 comes first and is sure, class 1 is sure to be wrong: the first rows alone would hide it from the attack."""
    (first, _), (second, _) = drawn(60, 0.0, 0), drawn(60, 0.0, 1)
    first[:, 0] += 9
    second[:, 1] -= 9
    retain = np.concatenate([first, second]), np.repeat([0, 1], 60)
    assert membership_attack(drawn(40, -9.0, 2), retain, drawn(60, 2.0, 3)).value == 0.0


def test_all_rows_are_drawn_when_all_are_asked_for() -> None:
    assert sorted(balanced_sample([0, 0, 1, 2], 4).tolist()) == [0, 1, 2, 3]


def test_confidence_is_the_labels_probability_and_correctness_a_bit() -> None:
    assert attack_features(CARD, [1], "confidence").tolist() == [[pytest.approx(0.2)]]
    assert attack_features(CARD, [1], "correctness").tolist() == [[0.0]]
    assert attack_features(CARD, [1], "probabilities").tolist() == [pytest.approx([0.7, 0.2, 0.1])]


def test_the_entropy_attack_is_fair_where_retain_rows_are_many() -> None:
    """Members and strangers alike, ten members to one: the SVC calls everything member, the balanced regression half."""
    sets = [drawn(rows, 2.0, seed)[0] for seed, rows in enumerate((400, 1000, 100))]
    assert entropy_attack(*sets, classifier="svc").value > 95  # type: ignore[operator]
    assert 20 < entropy_attack(*sets).value < 80  # type: ignore[operator]


def test_the_entropy_attack_finds_members() -> None:
    retain, test = drawn(200, 9.0, 0)[0], drawn(200, 0.0, 1)[0]
    assert entropy_attack(drawn(100, 9.0, 2)[0], retain, test).value > 95  # type: ignore[operator]
    assert entropy_attack(drawn(100, 0.0, 3)[0], retain, test).value < 15  # type: ignore[operator]


def test_asr_is_chance_where_all_are_alike_and_near_100_where_forget_rows_are_members() -> None:
    """Chance within 3 standard errors of the mean of two shares, 300 and 150 rows."""
    alike = attack_success_rate(*(drawn(300, 2.0, seed)[0] for seed in range(3)))
    assert alike.value == pytest.approx(50, abs=3 * 50 * math.sqrt(0.25 / 300 + 0.25 / 150))
    apart = attack_success_rate(drawn(300, 9.0, 0)[0], drawn(300, 9.0, 1)[0], drawn(300, 0.0, 2)[0])
    assert apart.value > 95  # type: ignore[operator]


def test_asr_is_50_where_forget_rows_are_strangers() -> None:
    """None of them is called member, and every other unseen row is rightly rejected."""
    score = attack_success_rate(drawn(100, 0.0, 0)[0], drawn(300, 9.0, 1)[0], drawn(300, 0.0, 2)[0])
    assert score.value == pytest.approx(50, abs=3)
    assert np.mean(score.per_example) < 5  # type: ignore[arg-type]


def test_asr_does_not_see_which_class_is_which() -> None:
    sets = [drawn(100, lift, seed)[0] for seed, lift in enumerate((3.0, 4.0, 2.0))]
    assert attack_success_rate(*(logits[:, ::-1] for logits in sets)).value == attack_success_rate(*sets).value


def test_fewer_retain_than_test_rows_are_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match="30 retain and 50 test rows; subsample the test rows"):
        membership_attack(drawn(10, 2.0, 0), drawn(30, 2.0, 1), drawn(50, 2.0, 2))


def test_refusals_name_the_set() -> None:
    good = drawn(30, 2.0, 0)
    with pytest.raises(DataError, match="the retain logits are empty"):
        membership_attack(good, (np.zeros((0, 4)), []), good)
    with pytest.raises(DataError, match="the test label of row 0 is 9"):
        membership_attack(good, good, (good[0], np.full(30, 9)))
    with pytest.raises(DataError, match="different numbers of classes \\(forget 4, retain 4, test 3\\)"):
        membership_attack(good, good, drawn(30, 2.0, 1, classes=3))
    with pytest.raises(DataError, match="give the forget set as a pair"):
        membership_attack(None, good, good)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"unknown attack feature 'confidnce'\. Did you mean 'confidence'"):
        membership_attack(good, good, good, "confidnce")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="unknown attack classifier"):
        entropy_attack(good[0], good[0], good[0], classifier="forest")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="ASR needs 2 test rows"):
        attack_success_rate(good[0], good[0], good[0][:1])
    with pytest.raises(DataError, match="can't draw 5 of 2 rows"):
        balanced_sample([0, 1], 5)
