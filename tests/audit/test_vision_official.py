"""Vision metrics against the official codes' own numbers on the same inputs (official_vision.json says how they were got).

Where the official code is wrong, its number stands there too, and the test says that ours is another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unwrite.audit.attacks.relearning_time import ain, relearn, validation_loss
from unwrite.audit.images.accuracy import zero_retrain_forgetting
from unwrite.audit.images.lira import lira_scores
from unwrite.audit.images.membership import (
    entropy,
    entropy_attack,
    membership_attack,
    modified_entropy,
    published_modified_entropy,
)
from unwrite.audit.images.regression import regression_membership_attack

OFFICIAL = json.loads(Path(__file__).with_name("official_vision.json").read_text())["numbers"]
CLASSES = 5


def classified() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits [rows, 5] and labels [rows]: 60 test rows, as many retain rows that are surer, 30 forget rows between."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, rows, lift in (("retain", 60, 4.0), ("test", 60, 2.0), ("forget", 30, 3.0)):
        labels = rng.integers(0, CLASSES, rows)
        logits = rng.normal(size=(rows, CLASSES))
        logits[np.arange(rows), labels] += lift
        sets[name] = (logits, labels)
    return sets


def regressed() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions and targets [rows]: retain errors small, test errors large, forget errors between."""
    rng = np.random.default_rng(1)
    sets = {}
    for name, rows, noise in (("retain", 50, 0.5), ("test", 50, 1.5), ("forget", 25, 1.0)):
        targets = rng.normal(size=rows)
        sets[name] = (targets + noise * rng.normal(size=rows), targets)
    return sets


def shadowed() -> dict[str, np.ndarray]:
    """64 shadow models of 40 rows, each row in half of them; offsets a row, another spread for "in" than for "out"."""
    rng = np.random.default_rng(2)
    inside = np.argsort(rng.random((64, 40)), axis=0) < 32
    base = rng.normal(size=40)
    shadows = base + np.where(inside, 1.0 + 0.7 * rng.normal(size=(64, 40)), rng.normal(size=(64, 40)))
    return {"inside": inside, "shadows": shadows, "phi": base + rng.normal(size=40)}


def linear(bias: float) -> nn.Linear:
    """One weight, one bias, float64."""
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(bias)
    return model


def relearnt() -> dict[str, torch.Tensor]:
    """y = 2x + 1 at 24 points to train on and 7 to look at, [rows, 1]."""
    x, seen = torch.linspace(-1, 1, 24).double()[:, None], torch.linspace(-0.9, 0.9, 7).double()[:, None]
    return {"x": x, "y": 2 * x + 1, "seen_x": seen, "seen_y": 2 * seen + 1}


def test_entropies_agree() -> None:
    assert entropy(classified()["forget"][0])[:6] == pytest.approx(OFFICIAL["entropy"], abs=1e-5)


def test_modified_entropy_agrees_with_mia_py_where_it_is_right() -> None:
    assert modified_entropy(*classified()["forget"])[:6] == pytest.approx(
        OFFICIAL["modified entropy of MIA.py"], abs=1e-5
    )


def test_published_modified_entropy_agrees_with_svc_mia_and_is_another_number() -> None:
    logits, labels = classified()["forget"]
    published = OFFICIAL["m_entropy of SVC_MIA"]
    assert published_modified_entropy(logits, labels)[:6] == pytest.approx(published, abs=1e-5)
    assert (modified_entropy(logits, labels)[:6] < np.array(published) - 5).all()


def test_published_modified_entropy_of_a_row_depends_on_the_other_rows() -> None:
    logits, labels = classified()["forget"]
    alone = OFFICIAL["m_entropy of SVC_MIA, first two rows alone"]
    assert published_modified_entropy(logits[:2], labels[:2]) == pytest.approx(alone, abs=1e-5)
    assert alone[0] < OFFICIAL["m_entropy of SVC_MIA"][0] - 5
    assert modified_entropy(logits[:2], labels[:2]) == pytest.approx(modified_entropy(logits, labels)[:2], abs=1e-12)


@pytest.mark.parametrize("feature", list(OFFICIAL["svc"]))
def test_the_svc_attack_agrees_on_every_feature(feature: str) -> None:
    sets = classified()
    found = membership_attack(sets["forget"], sets["retain"], sets["test"], feature)  # type: ignore[arg-type]
    assert found.value == pytest.approx(100 * OFFICIAL["svc"][feature], abs=1e-5)


def test_the_entropy_attack_by_svc_agrees_with_bad_teachers() -> None:
    sets = {name: logits for name, (logits, _) in classified().items()}
    found = entropy_attack(sets["forget"], sets["retain"], sets["test"], classifier="svc")
    assert found.value == pytest.approx(100 * OFFICIAL["get_membership_attack_prob"], abs=1e-5)


def test_zrf_agrees_in_repo_mode_and_differs_in_the_papers() -> None:
    logits, _ = classified()["forget"]
    teacher = logits[:, ::-1] * 0.3
    repo = zero_retrain_forgetting(logits, teacher, zrf="repo").value
    assert repo == pytest.approx(OFFICIAL["UnLearningScore"], abs=1e-5)
    paper = zero_retrain_forgetting(logits, teacher).value
    assert paper is not None
    assert paper < OFFICIAL["UnLearningScore"] - 0.05


def test_the_regression_attack_agrees() -> None:
    sets, expected = regressed(), OFFICIAL["regression get_membership_attack_prob"]
    for on, share in {"forget": expected["forget"], "retain": expected["train"], "test": expected["test"]}.items():
        found = regression_membership_attack(sets[on], sets["retain"], sets["test"])
        assert found.value == pytest.approx(100 * share, abs=1e-5)


def test_validation_loss_agrees_in_one_batch_and_does_not_depend_on_batches() -> None:
    data, model = relearnt(), linear(0.9)
    seen = data["seen_x"], data["seen_y"]
    whole = validation_loss(model, seen)
    assert whole == pytest.approx(OFFICIAL["evaluate"]["one batch"], abs=1e-5)
    assert validation_loss(model, seen, batch_size=4) == pytest.approx(whole, abs=1e-12)
    assert OFFICIAL["evaluate"]["batches of 4"] > whole + 0.02  # there the last three rows weigh as much as four


def test_relearn_steps_and_ain_agree_and_a_second_call_gives_the_same() -> None:
    data = relearnt()
    train, seen = (data["x"], data["y"]), (data["seen_x"], data["seen_y"])
    unlearned, oracle, original = linear(0.2), linear(-0.5), linear(0.9)
    bar = 1.05 * validation_loss(original, seen)
    assert relearn(unlearned, train, seen, bar, learning_rate=0.05).steps == OFFICIAL["relearn_time"]["unlearned"]
    assert relearn(oracle, train, seen, bar, learning_rate=0.05).steps == OFFICIAL["relearn_time"]["oracle"]
    first, second = (ain(unlearned, oracle, original, train, seen, learning_rate=0.05).value for _ in range(2))
    assert first == second == pytest.approx(OFFICIAL["ain"][0])
    assert OFFICIAL["ain"][1] != OFFICIAL["ain"][0]  # there the models were trained by the first call


def test_online_lira_agrees_with_variances_a_row() -> None:
    data = shadowed()
    found = lira_scores(data["phi"], data["shadows"], data["inside"], variance="row", centre="median")
    assert -found[:6] == pytest.approx(OFFICIAL["lira"]["generate_ours fix_variance=False"], abs=1e-5)


def test_shared_variances_are_within_rows_and_one_a_side() -> None:
    """There one variance, over all rows and of the "in" models, stands for both sides."""
    data = shadowed()
    data["shadows"] = data["shadows"] + 100 * np.arange(40)  # rows far apart from one another
    data["phi"] = data["phi"] + 100 * np.arange(40)
    here = lira_scores(data["phi"], data["shadows"], data["inside"], variance="shared", centre="median")
    before = shadowed()
    there = lira_scores(before["phi"], before["shadows"], before["inside"], variance="shared", centre="median")
    assert here == pytest.approx(there, abs=1e-8)
    assert not np.allclose(-there[:6], OFFICIAL["lira"]["generate_ours fix_variance=True"], atol=0.1)


def test_offline_lira_is_one_sided() -> None:
    """There it is the density of "out", which calls a row member for being less confident than "out" models are."""
    data = shadowed()
    z = lira_scores(data["phi"], data["shadows"], data["inside"], online=False, variance="row", centre="median")
    spread = np.array([data["shadows"][~data["inside"][:, row], row].std() for row in range(6)])
    density = -0.5 * z[:6] ** 2 - np.log(spread * np.sqrt(2 * np.pi))
    assert density == pytest.approx(OFFICIAL["lira"]["generate_ours_offline fix_variance=False"], abs=1e-5)
    low = lira_scores(data["phi"] - 50, data["shadows"], data["inside"], online=False)
    assert (low < z - 10).all()
