"""What is said of a forgotten class by attacks: the forgetting rate, which is transferred, and the gap of the loss."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import recall_score

from unwrite.audit import ForgettingRate, LossGap, TransferredAttack, forgetting_rate, loss_gap
from unwrite.audit.images import transferred
from unwrite.errors import DataError

OFFICIAL = json.loads(Path(__file__).with_name("official_concepts.json").read_text(encoding="utf-8"))


def class_logits():
    draws = np.random.default_rng(0)
    ahead = ((60, [1.2, 0, 0, 0]), (45, [0.0, 0, 0, 0]), (60, [0.3, 0.5, 0, 0]))
    return [draws.normal(size=(rows, 4)) + shift for rows, shift in ahead]


def test_the_forgetting_rate_and_the_loss_gap_agree_with_the_official_code():
    members, others, after = class_logits()
    attack = TransferredAttack.fit(members, others)
    assert forgetting_rate(attack, members).value == pytest.approx(100 * OFFICIAL["fr"]["own"])
    assert forgetting_rate(attack, after).value == pytest.approx(100 * OFFICIAL["fr"]["other"])
    zeros = np.zeros(60, dtype=int)
    gap = loss_gap((members, zeros), (others, zeros[:45]))
    assert gap.value == pytest.approx(100 * abs(OFFICIAL["mia"] - 0.5))


def test_the_forgetting_rate_of_the_original_model_is_one_less_the_svms_recall():
    members, others, _ = class_logits()
    attack = TransferredAttack.fit(members, others)
    recall = recall_score(np.ones(len(members)), attack.members(members))
    assert forgetting_rate(attack, members).value == pytest.approx(100 * (1 - recall))


def test_a_loss_that_says_nothing_leaves_no_gap_and_one_that_tells_leaves_fifty():
    labels = np.zeros(50, dtype=int)
    sure, unsure = np.tile([9.0, 0.0], (50, 1)), np.tile([0.0, 9.0], (50, 1))
    assert loss_gap((sure, labels), (unsure, labels)).value == 50
    assert loss_gap((sure, labels), (sure, labels)).value == 0


def test_refuses_attacks_on_other_classes_and_on_few_rows():
    members, others, _ = class_logits()
    with pytest.raises(DataError, match="the judged logits have 3 classes and the attack 4"):
        TransferredAttack.fit(members, others).members(members[:, :3])
    labels = np.zeros(9, dtype=int)
    with pytest.raises(DataError, match=r"9 members and 9 others. The attack takes 10"):
        loss_gap((members[:9], labels), (others[:9], labels))


class Answers:
    """What a metric asks a context of: the logits that a model gives sets of rows, all of class 0."""

    def __init__(self, forget, unseen):
        self.by_name = {"forget": forget, "test forget": unseen}

    def logits(self, name):
        return self.by_name[name]

    set = logits

    def labelled(self, name):
        return self.by_name[name], np.zeros(len(self.by_name[name]), dtype=int)


def test_the_rate_of_a_report_is_fitted_to_the_model_before_and_asked_of_forget_rows_by_now():
    members, others, after = class_logits()
    before, now = Answers(members, others), Answers(after, -others)
    attack = TransferredAttack.fit(members, others)
    score = ForgettingRate().measure(now, {"before": before})
    assert score.value == forgetting_rate(attack, after).value
    other = forgetting_rate(attack, members).value, forgetting_rate(TransferredAttack.fit(after, -others), after).value
    assert score.value not in other
    assert ForgettingRate.roles == ("before",)


def test_the_gap_of_a_report_is_of_forget_rows_and_unseen_ones_and_of_few_rows_there_is_none():
    members, others, _ = class_logits()
    score = LossGap().measure(Answers(members, others), {})
    zeros = np.zeros(60, dtype=int)
    assert score.value == loss_gap((members, zeros), (others, zeros[:45])).value
    for sides in ((members[:9], others), (members, others[:9])):
        few = LossGap().measure(Answers(*sides), {})
        assert few.value is None
        assert few.note == "There are fewer than 10 rows of a side."


def test_an_attack_that_is_wrong_more_often_than_a_coin_has_a_gap_too():
    values, notes = [], []
    for seed in range(6):
        draws = np.random.default_rng(seed).normal(size=(2, 20, 3))
        score = loss_gap(*((one, np.zeros(20, dtype=int)) for one in draws))
        values.append(score.value)
        notes.append(float(re.search(r"is right on ([\d.]+) %", score.note)[1]))
    assert min(values) >= 0
    assert min(notes) < 49
    assert values == pytest.approx([abs(one - 50) for one in notes], abs=0.06)


def test_as_many_rows_of_either_side_are_taken_and_all_of_the_smaller():
    inside, outside = np.arange(30.0)[:, None], 100 + np.arange(12.0)[:, None]
    first, second = transferred._balanced(inside, outside, 42)
    assert np.array_equal(second, outside)
    assert len(first) == len(np.unique(first)) == 12
    expected = inside[np.random.RandomState(42).choice(30, 12, replace=False)]
    assert np.array_equal(first, expected)
    assert np.array_equal(transferred._balanced(outside, inside, 42)[1], expected)
