"""Membership attacks on an unlearned classifier: are the forget rows still told from rows it never saw?

An attack model learns what members (retain rows) and non-members (test rows) look like to the audited model, then
judges the forget rows. What it looks at and how it learns is the papers':

    membership_attack     SVC (C = 3, RBF) on one feature; share of forget rows called NON-members   (arXiv 2304.04934)
    entropy_attack        balanced logistic regression on entropy; share called members             (arXiv 2205.08096)
    attack_success_rate   boosted trees on sorted softmax vectors; accuracy of the attack           (arXiv 2404.00506)

All are percentages, and for all the oracle's value is the target. `lira` has the stronger attack.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ...errors import DataError, MethodError, unknown
from ..base import Score
from .arrays import (
    ArrayLike,
    Floats,
    Labelled,
    Whole,
    balanced_sample,
    labelled,
    log_complement,
    log_softmax,
    logits_of,
    same_classes,
)

Feature = Literal[
    "confidence", "correctness", "entropy", "modified_entropy", "published_modified_entropy", "probabilities"
]
FEATURES: tuple[Feature, ...] = (
    "confidence",
    "correctness",
    "entropy",
    "modified_entropy",
    "published_modified_entropy",
    "probabilities",
)


def entropy(logits: ArrayLike) -> Floats:
    """Returns -sum_i p_i log p_i in nats, [rows]; the published code is right here."""
    log_p = log_softmax(logits_of(logits, "entropy"))
    return -(np.exp(log_p) * log_p).sum(1)


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i) in nats, [rows] (Song & Mittal, arXiv 2003.10595)."""
    scores, own = labelled((logits, labels), "entropy")
    log_p = log_softmax(scores)
    log_not = log_complement(log_p)
    terms = np.exp(log_p) * log_not
    rows = np.arange(len(own))
    terms[rows, own] = np.exp(log_not[rows, own]) * log_p[rows, own]
    return -terms.sum(1)


def published_modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The modified entropy that Unlearn-Sparse's code computes (SVC_MIA.py, m_entropy), [rows]; not one of the row alone.

    Two things differ from its formula. A row's label column is picked by `[:, labels]`, which is every column whose
    class occurs anywhere in the set, in every row. And log p stands where log(1 - p) belongs. So

        -sum_{i in L} (1 - p_i) log p_i - sum_{i not in L} p_i log p_i,   L = all classes among the set's labels

    A probability that rounds to 0 counts as 1e-30 there; here none does.
    """
    scores, own = labelled((logits, labels), "entropy")
    log_p = log_softmax(scores)
    weight = np.exp(log_p)
    present = np.unique(own)
    weight[:, present] = np.exp(log_complement(log_p))[:, present]
    return -(weight * log_p).sum(1)


def attack_features(logits: ArrayLike, labels: ArrayLike, feature: Feature = "confidence") -> Floats:
    """What the attack sees of a set, [rows, 1] ([rows, classes] for probabilities)."""
    if feature not in FEATURES:
        raise MethodError(unknown("attack feature", feature, FEATURES))
    scores, own = labelled((logits, labels), "attacked")
    if feature == "probabilities":
        return np.exp(log_softmax(scores))
    if feature == "confidence":
        return np.exp(log_softmax(scores)[np.arange(len(own)), own])[:, None]
    if feature == "correctness":
        return (scores.argmax(1) == own).astype(np.float64)[:, None]
    if feature == "entropy":
        return entropy(scores)[:, None]
    if feature == "modified_entropy":
        return modified_entropy(scores, own)[:, None]
    return published_modified_entropy(scores, own)[:, None]


def membership_attack(
    forget: Labelled, retain: Labelled, test: Labelled, feature: Feature = "confidence", seed: int = 0
) -> Score:
    """Returns the percentage of forget rows that an SVC calls non-members ("MIA-efficacy"; the papers report `confidence`).

    The members it learns from are a shuffled sample of retain rows, as many as there are test rows and as many of each
    class as there are (the official code takes the first ones, which in sorted data are one class). The note says what
    it makes of the test rows themselves: where forget rows are like any unseen row, the value is near that.

    Args:
        forget, retain, test: (logits [rows, classes], labels [rows]) of the audited model; without the forgotten class
            in `test` when a class was forgotten.
        seed: draws the members.
    """
    sets = {"forget": labelled(forget, "forget"), "retain": labelled(retain, "retain"), "test": labelled(test, "test")}
    same_classes(**{name: logits for name, (logits, _) in sets.items()})
    count, members = len(sets["test"][1]), len(sets["retain"][1])
    if members < count:
        raise DataError(
            f"the attack needs as many members as non-members, and there are {members} retain and {count} test rows; "
            f"subsample the test rows: balanced_sample(test_labels, {members})."
        )
    drawn = balanced_sample(sets["retain"][1], count, seed)
    inside = attack_features(sets["retain"][0][drawn], sets["retain"][1][drawn], feature)
    outside, judged = attack_features(*sets["test"], feature), attack_features(*sets["forget"], feature)
    called, also = svc_calls(inside, outside, judged, outside)
    note = f"Of the test rows it learned from, {100 * np.mean(also == 0):.1f} % are called non-members."
    return Score.mean(f"mia_{feature}", (100.0 * (called == 0)).tolist(), "toward_reference", note)


def svc_calls(members: Floats, others: Floats, *judged: Floats) -> list[Whole]:
    """Trains an SVC and returns 1 for member, 0 for not, for each judged array [rows, features]."""
    from sklearn.svm import SVC

    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(np.concatenate([members, others]), _sides(members, others))
    return [attack.predict(rows) for rows in judged]


def _sides(members: Floats, others: Floats) -> Whole:
    return np.concatenate([np.ones(len(members), dtype=np.int64), np.zeros(len(others), dtype=np.int64)])


def entropy_attack(
    forget: ArrayLike,
    retain: ArrayLike,
    test: ArrayLike,
    *,
    classifier: Literal["logistic", "svc"] = "logistic",
) -> Score:
    """Returns the percentage of forget rows called members, by entropy alone; every argument is logits [rows, classes].

    Args:
        classifier: "logistic" weighs both sides alike; "svc" is what the Bad Teacher code runs, unweighted, so that a
            retain set much larger than the test set makes nearly every row a member.
    """
    if classifier not in ("logistic", "svc"):
        raise MethodError(unknown("attack classifier", classifier, ("logistic", "svc")))
    sets = {
        "forget": logits_of(forget, "forget"),
        "retain": logits_of(retain, "retain"),
        "test": logits_of(test, "test"),
    }
    same_classes(**sets)
    judged, inside, outside = (entropy(logits)[:, None] for logits in sets.values())
    if classifier == "svc":
        [called] = svc_calls(inside, outside, judged)
    else:
        from sklearn.linear_model import LogisticRegression

        attack = LogisticRegression(class_weight="balanced")
        attack.fit(np.concatenate([inside, outside]), _sides(inside, outside))
        called = attack.predict(judged)
    name = "mia_entropy_members" if classifier == "logistic" else "mia_entropy_members_svc"
    return Score.mean(name, (100.0 * called).tolist(), "toward_reference")


def attack_success_rate(
    forget: ArrayLike, retain: ArrayLike, test: ArrayLike, *, seed: int = 0, most: int = 5000
) -> Score:
    """Returns ASR, the accuracy in percent of boosted trees at calling forget rows members and unseen test rows non-members.

    The trees (scikit-learn's HistGradientBoosting with XGBoost's defaults: 100 trees, rate 0.3, depth 6, L2 1) learn
    from one half of the test rows and as many retain rows, drawn at random, at most `most` of each; the forget rows
    and the other half judge. Forget and test rows count alike however many there are of each. 50 is chance;
    `per_example` holds the forget rows (100 for "member"), so `value` is not its mean.

    Args:
        forget, retain, test: logits [rows, classes]; labels are not needed.
        seed: draws the rows.
        most: rows to learn from on each side.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    sets = {"forget": logits_of(forget, "forget"), "retain": logits_of(retain, "retain")}
    unseen = logits_of(test, "test")
    same_classes(**sets, test=unseen)
    if len(unseen) < 2 or most < 1:
        raise DataError(f"ASR needs 2 test rows or more and most of at least 1, not {len(unseen)} and {most}.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(unseen))
    count = min(len(unseen) // 2, len(sets["retain"]), most)
    learned, held = unseen[order[:count]], unseen[order[len(unseen) // 2 :]]
    members = sets["retain"][rng.permutation(len(sets["retain"]))[:count]]
    attack = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.3,
        max_depth=6,
        max_leaf_nodes=None,
        min_samples_leaf=4,  # XGBoost's least hessian of 1 is four rows at p = 1/2
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    attack.fit(_sorted_softmax(np.concatenate([members, learned])), _sides(members, learned))
    calls = attack.predict(_sorted_softmax(sets["forget"]))
    rejected = 1 - attack.predict(_sorted_softmax(held))
    value = 50 * float(calls.mean() + rejected.mean())
    note = (
        f"{100 * calls.mean():.1f} % of forget rows called members, {100 * rejected.mean():.1f} % of unseen rows not."
    )
    return Score("asr", value, (100.0 * calls).tolist(), "toward_reference", note)


def _sorted_softmax(logits: Floats) -> Floats:
    return np.sort(np.exp(log_softmax(logits)), axis=1)
