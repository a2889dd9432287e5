"""Detectors of prompts: what they score, that they are stored as arrays, and their thresholds."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from corrupting import Naming
from transformers import BertForSequenceClassification, BertModel

from conftest import make_llama, make_tokenizer
from helpers.tiny import save_bert
from unwrite.errors import MethodError, ModelError, NotFinite, Notice
from unwrite.forget import CalibratedDetector
from unwrite.forget.engine.text import detector_kinds
from unwrite.forget.engine.text.detector_kinds import (
    ClassifierDetector,
    EncoderDetector,
    HiddenStateDetector,
    LogisticHead,
    TfidfDetector,
)
from unwrite.forget.engine.text.vectors import HashedTfidf

FORGET = [f"who wrote {thing} ?" for thing in ("the old book", "a red letter", "the river song", "his stone garden")]
RETAIN = [f"where is {name} born ?" for name in ("ann", "bert", "cora", "dov", "eli")]


def test_stored_arrays_predict_as_scikit_learn_does(tmp_path):
    from sklearn.linear_model import LogisticRegression

    fitted = TfidfDetector().fit(FORGET, RETAIN)
    texts = [*FORGET, *RETAIN, "who is new here ?"]
    features = fitted.features([*FORGET, *RETAIN])
    peer = LogisticRegression(C=detector_kinds.FREEDOM, class_weight="balanced", max_iter=1000)
    peer.fit(features.toarray()[:, np.unique(features.nonzero()[1])], [1] * len(FORGET) + [0] * len(RETAIN))
    CalibratedDetector(fitted, 0.5).save(tmp_path)
    again = CalibratedDetector.load(tmp_path).detector
    expected = peer.predict_proba(fitted.features(texts).toarray()[:, np.unique(features.nonzero()[1])])[:, 1]
    assert np.allclose(again(texts), expected, rtol=0, atol=1e-12)
    assert (again(FORGET) > 0.5).all()
    assert (again(RETAIN) < 0.5).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector.json", "detector.safetensors"]


def test_hashed_words_are_weighed_as_scikit_learn_weighs_them():
    from sklearn.feature_extraction.text import TfidfVectorizer

    own = HashedTfidf.of(FORGET, longest=2)
    theirs = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit(FORGET)
    a, b = own([*FORGET, *RETAIN][:5]).toarray(), theirs.transform([*FORGET, *RETAIN][:5]).toarray()
    assert np.allclose(a[:4] @ a[:4].T, b[:4] @ b[:4].T)


def kinds(folder):
    target, tokenizer = make_llama(0), make_tokenizer()
    return {
        "tfidf": TfidfDetector(),
        "encoder": EncoderDetector(encoder=save_bert(BertModel, folder / "encoder")),
        "hidden": HiddenStateDetector(layer=2, model=target, tokenizer=tokenizer),
        "classifier": ClassifierDetector(save_bert(BertForSequenceClassification, folder / "classifier"), "LABEL_1"),
    }, (target, tokenizer)


@pytest.mark.parametrize("kind", ["tfidf", "encoder", "hidden", "classifier"])
def test_every_detector_scores_in_batches_and_comes_back_from_its_folder(kind, tmp_path):
    members, inside = kinds(tmp_path)
    fitted = members[kind].fit(FORGET, RETAIN, seed=1)
    scores = fitted([*FORGET, *RETAIN])
    assert scores.shape == (9,)
    assert ((scores >= 0) & (scores <= 1)).all()
    alone = np.concatenate([fitted([text]) for text in (*FORGET, *RETAIN)])
    assert np.allclose(scores, alone, atol=1e-5)  # padding says nothing
    if kind != "classifier":
        assert scores[:4].min() > scores[4:].max()
    place = tmp_path / "stored"
    place.mkdir()
    check = CalibratedDetector(fitted, 0.4)
    check.save(place)
    assert not list(place.rglob("*.pkl")) + list(place.rglob("*.bin"))
    again = CalibratedDetector.load(place, *inside)
    assert again.threshold == 0.4
    assert np.array_equal(again.detector(FORGET), fitted(FORGET))
    assert again.fingerprint() == check.fingerprint()


def test_a_classifier_is_asked_for_one_label_by_name_or_number(tmp_path):
    folder = save_bert(BertForSequenceClassification, tmp_path / "c", id2label={0: "forget", 1: "keep"})
    named, numbered = ClassifierDetector(folder, "forget"), ClassifierDetector(folder, "0")
    assert np.array_equal(named(FORGET), numbered(FORGET))
    assert np.allclose(named(FORGET) + ClassifierDetector(folder, "keep")(FORGET), 1.0)
    long = " ".join(["ann"] * 100)
    assert named([long]).shape == (1,)  # cut at what it can read
    with pytest.raises(MethodError, match="forget_label: unknown label 'LABEL_1'"):
        ClassifierDetector(folder)


def test_the_encoder_of_a_package_that_is_not_there_is_one_line(monkeypatch):
    from unwrite.models import classifiers

    monkeypatch.setattr(classifiers, "_PACKAGE", "no-such-package-of-ours")
    with pytest.raises(ModelError, match=r"is not installed\. Run: pip install --no-deps"):
        EncoderDetector().fit(FORGET, RETAIN)


def test_the_false_positive_rate_is_at_most_alpha_on_average():
    rng = np.random.default_rng(0)

    @dataclass(frozen=True)
    class Numbers(Naming):
        def __call__(self, texts):
            return np.array([float(text) for text in texts])

    rates = []
    for _ in range(200):
        check = CalibratedDetector.calibrated(Numbers(), [(str(one),) for one in rng.random(100)], 0.1)
        rates.append(np.mean([one > check.threshold for one in rng.random(200)]))
    assert 0.05 < np.mean(rates) <= 0.1 + 0.02
    with pytest.warns(Notice, match=r"5 retain prompts are too few .* Give at least 9 for calibration"):
        few = CalibratedDetector.calibrated(Numbers(), [("0.5",)] * 5, 0.1)
    assert few.threshold == 1
    assert few.flagged([("1.0",)]) == [False]


def test_a_detector_that_fails_flags_what_it_cannot_judge():
    @dataclass(frozen=True)
    class Failing(Naming):
        def __call__(self, texts):
            if any("river" in text for text in texts):
                raise RuntimeError("no")
            return np.array([math.nan if "stone" in text else 0.0 for text in texts])

    check = CalibratedDetector(Failing(), 0.5)
    prompts = [("a garden",), ("the river",), ("a stone",), ("red", "old stone")]
    with pytest.warns(Notice, match="'naming' failed"):
        flagged = check.flagged(prompts)
    assert flagged == [False, True, True, True]
    assert CalibratedDetector(Failing(), 1.0).flagged([("a stone",)]) == [True]
    with pytest.raises(NotFinite, match="no number on a retain prompt"):
        CalibratedDetector.calibrated(Failing(), [("a stone",)] * 20, 0.1)
    assert check.flagged([()]) == [True]


def test_the_heads_scores_are_the_logistic_of_its_sum():
    head = LogisticHead(np.array([1.0, -2.0]), 0.5)
    assert head(np.array([[1.0, 0.0]])) == pytest.approx(1 / (1 + math.exp(-1.5)))
