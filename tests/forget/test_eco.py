"""ECO: how the detector is calibrated, whose names it corrupts, and how its strength is found."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from asked_prompts import ASKED, ids
from corrupting import guarded
from transformers import BertForTokenClassification

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively, save_bert
from unwrite.beds.budget import Budget
from unwrite.beds.language import LanguageBed, small_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.text.authors import authors
from unwrite.errors import DataError, MethodError, ModelError, NotFinite, Notice
from unwrite.forget import ECO
from unwrite.forget.eco import fit_strength, strength_distance
from unwrite.forget.engine.text.prompts import turns_of
from unwrite.models import load, save
from unwrite.reproduce import eco as experiment

# --- the method


def rows(kind, count, *, entity=None):
    made = {"forget": lambda i: f"who wrote book number {i} ?", "retain": lambda i: f"where is town {i} ?"}[kind]
    return Examples([Example(answer="the red stone", question=made(i), entity=entity) for i in range(count)], kind)


def test_it_fits_and_calibrates_on_different_retain_rows():
    forget, retain = rows("forget", 20), rows("retain", 60)
    with pytest.warns(Notice, match="30 retain prompts are too few"):
        assert ECO(alpha=0.01).calibrated(forget, retain).threshold == 1
    check = ECO(alpha=0.1).calibrated(forget, retain)
    assert 0 < check.threshold < 0.5
    assert all(check.flagged([turns_of(row) for row in forget]))
    assert ECO(alpha=0.1).calibrated(forget, retain).fingerprint() == check.fingerprint()
    assert ECO(alpha=0.1, noise_seed=1).calibrated(forget, retain).threshold != check.threshold
    assert ECO(threshold=0.99).calibrated(forget, retain).threshold == 0.99


@pytest.mark.parametrize("selection", ["names", "tagger"])
def test_names_come_from_the_rows_or_from_a_tagger_and_are_saved(selection, tmp_path):
    folder = save_bert(BertForTokenClassification, tmp_path / "t", id2label={0: "O", 1: "B-PER"})
    target = lively(make_llama(0))
    forget = Examples([Example(answer="red", question=f"who was ann {one} ?", entity="Ann") for one in ("one", "two")])
    method = ECO(threshold=0.0, selection=selection, token_classifier=folder if selection == "tagger" else None)
    model = method.apply(target, forget, rows("retain", 4), processing_class=make_tokenizer())
    if selection == "names":
        assert model.rules.names == ("Ann",)
        assert model.marks(ASKED).tolist() == [token == ids("ann")[0] for token in ASKED]
    else:
        said = model.tagger(model.reader.text(ASKED))
        assert 0 < len(said) < len(ASKED)
        assert model.marks(ASKED).sum() == len(said)
    save(model, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again.marks(ASKED), model.marks(ASKED))
    (tmp_path / "saved" / "detector.json").write_text("{}")
    with pytest.raises(ModelError, match="no settings of a prompt detector"):
        load(tmp_path / "saved")


def test_a_detector_of_the_models_own_states_is_saved_with_the_guard(tmp_path):
    forget, retain = make_examples("forget", 16), make_examples("retain", 20)
    model = ECO(detector="hidden", alpha=0.5).apply(make_llama(0), forget, retain, processing_class=make_tokenizer())
    assert model.detector.detector.layer == 1
    save(model, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    texts = [turns_of(row) for row in forget]
    assert again.detector.scores(texts) == model.detector.scores(texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": math.nan}, "strength is nan"),
        ({"dims": 0}, "dims is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"noise_seed": -1}, "noise_seed is -1"),
        ({"corruption": "noise"}, "corruption: unknown corruption 'noise'"),
        ({"scope": "all"}, "scope: unknown choice 'all'"),
        ({"detector": "classifier"}, "classifier is not given"),
        ({"selection": "tagger"}, "token_classifier is not given"),
    ],
)
def test_fields_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        ECO(**fields)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ModelError, match="dims is 33, and this model's embeddings have 32"):
        guarded(dims=33)
    embeddings = {"inputs_embeds": torch.zeros(1, 3, 32)}
    for call in (guarded().forward, guarded().generate):
        with pytest.raises(ModelError, match=r"would pass it by\. Pass input_ids"):
            call(**embeddings)
    with pytest.raises(DataError, match="no forget row names one"):
        ECO(selection="names").check(make_examples("forget", 2), make_examples("retain", 2))
    with pytest.raises(MethodError, match="layer is 9; this model has blocks 1 to 3"):
        ECO(detector="hidden", layer=9).calibrated(
            make_examples("forget", 4), make_examples("retain", 4), make_llama(0), make_tokenizer()
        )


# --- the strength


def test_the_search_goes_a_fifth_nearer_with_every_step():
    fit = fit_strength(lambda s: (s - 2) ** 2, rate=0.1, epsilon=1e-3, steps=60)
    assert fit.strength == pytest.approx(2.0, abs=1e-4)
    off = [abs(strength - 2) for strength, _ in fit.steps]
    assert [after / before for before, after in pairwise(off[:21])] == pytest.approx([0.8] * 20, rel=1e-4)


def test_the_search_stops_when_near_enough_and_never_goes_below_the_least():
    assert fit_strength(lambda s: s, start=1.0, rate=100.0).strength == 1.0
    fit = fit_strength(lambda s: (s - 2) ** 2, rate=0.1, epsilon=1e-3, steps=60, enough=1.0)
    assert 1 < fit.strength < 1.5
    assert len(fit.steps) < 10
    with pytest.raises(NotFinite, match="at strength"):
        fit_strength(lambda s: math.nan)


def test_both_sides_of_a_step_have_the_same_noise_and_the_model_keeps_its_strength():
    model = guarded(strength=5.0)
    seen = []

    def metric(one):
        seen.append(one._replacement(ASKED).values[:, 0] - one._embedded(ASKED)[:-1, 0])
        return one.rules.corruption.strength

    distance = strength_distance(model, metric, retained=2.0)
    assert (distance(1.0), distance(4.0)) == (1.0, 2.0)
    assert torch.allclose(4 * seen[0], seen[1], atol=1e-5)
    assert model.rules.corruption.strength == 5.0


# --- the experiment


def test_the_experiment_runs_and_says_so(monkeypatch, tmp_path):
    split = authors()
    tokenizer = small_tokenizer([f"{row.question} {row.answer}" for row in split.forget], 400)
    for seed, name in enumerate(("target", "oracle")):
        make_llama(seed, layers=1, vocab=len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path / name)
    bed = LanguageBed(tokenizer, split, tmp_path / "target", tmp_path / "oracle")
    monkeypatch.setattr(experiment, "authors_bed", lambda **_: bed)
    monkeypatch.setattr(experiment, "BASELINES", {})  # what trains has tests of its own
    claim = experiment.run(Budget("tiny", seeds=(0,)))
    assert {check.kind for check in claim.checks} == {"set-up", "mechanism", "claim", "control"}
    assert all(check.holds for check in claim.checks if check.kind == "mechanism" and check.threshold is None)
    assert 0 < claim.extra["recall on paraphrased forget questions"] <= 1
    assert replace(claim, too_small=True).verdict == "too small for a verdict"
