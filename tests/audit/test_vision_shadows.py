"""LiRA's shadow models: halves, the rows of a report, and an attack that finds what a model overfitted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from unwrite import evaluate
from unwrite.audit import Report, Score
from unwrite.audit.images import shadows as vision_shadows
from unwrite.audit.images.context import ImageContext
from unwrite.audit.images.lira import lira, logit_confidence
from unwrite.audit.images.shadows import NAMES, _halves, shadow_models
from unwrite.audit.report.summary import summarise
from unwrite.audit.suites.vision import VISION
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.data.images.sets import digits, digits_regression
from unwrite.data.images.splits import split_at_random, split_by_target
from unwrite.errors import DataError, MethodError
from unwrite.forget.dampening import SSD
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_vision import SmallCNN

RECIPE = image_recipe(SmallCNN, epochs=2, num_classes=10, channels=1, image_size=8, width=4)


def few(share=0.3, holdout=0.2):
    data = digits()
    train, test = data.train.subset(data.train.index[:200]), data.test.subset(data.test.index[:60])
    return split_at_random(train, share, test=test, holdout=holdout, seed=0)


@pytest.fixture(scope="module")
def shadows():
    return shadow_models(RECIPE, few(), 4, least=4)


@pytest.mark.parametrize("rows", [10, 11])
def test_every_row_is_inside_exactly_half_of_the_models(rows):
    inside = _halves(rows, 6, 0)
    assert (inside.sum(0) == 3).all()
    assert (inside[0] != inside[1]).all()
    assert (inside[0] != inside[2]).any()
    assert not np.array_equal(inside, _halves(rows, 6, 1))


def untrained(monkeypatch):
    """Nothing is trained: a list that fills with the names of the rows each model should have had."""
    seen = []

    def train(recipe, data, jobs, tell):
        seen.extend({int(data.index[i]) for i in rows} for rows, _ in jobs)
        return [recipe.build(seed).eval() for _, seed in jobs]

    monkeypatch.setattr(vision_shadows, "fitted_many", train)
    return seen


def test_every_row_there_is_belongs_to_exactly_half_of_the_models(monkeypatch):
    seen, parts = untrained(monkeypatch), few()
    found = shadow_models(RECIPE, parts, 4, least=4)
    everything = [*parts.train.index.tolist(), *parts.holdout.index.tolist()]
    assert Counter(row for rows in seen for row in rows) == dict.fromkeys(everything, 2)
    asked = {*parts.forget.index.tolist(), *parts.holdout.index.tolist()}
    assert set(found.index.tolist()) == asked
    for inside, rows in zip(found.inside, seen, strict=True):
        assert set(found.index[inside].tolist()) == rows & asked


def test_one_set_of_shadow_models_serves_every_forget_set(monkeypatch):
    seen = untrained(monkeypatch)
    shadow_models(RECIPE, few(share=0.3), 4, least=4)
    shadow_models(RECIPE, few(share=0.1), 4, least=4)
    assert seen[:4] == seen[4:]


def test_with_halves_of_the_attacked_rows_all_models_know_all_retain_rows(monkeypatch):
    seen, parts = untrained(monkeypatch), few()
    found = shadow_models(RECIPE, parts, 4, least=4, halves="attacked")
    assert (found.inside.sum(0) == 2).all()
    for inside, rows in zip(found.inside, seen, strict=True):
        assert rows == set(parts.retain.index.tolist()) | set(found.index[inside].tolist())


@pytest.mark.parametrize("halves", ["all", "attacked"])
def test_unlearned_shadow_models_forget_the_attacked_rows_that_they_knew(monkeypatch, halves):
    """A head of zeros gives every class 1/10, so phi = log(1/9): what is attacked is what unlearning left."""
    seen, parts, asked = untrained(monkeypatch), few(), []

    def unlearn(model, forget, retain):
        asked.append((set(forget.index.tolist()), set(retain.index.tolist())))
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        return model.train()

    found = shadow_models(RECIPE, parts, 4, least=4, halves=halves, unlearn=unlearn)
    attacked = set(found.index.tolist())
    assert asked == [(rows & attacked, rows - attacked) for rows in seen]
    np.testing.assert_allclose(found.phi, -np.log(9))
    assert "unlearned shadow models" in found.metrics()[0].about
    assert "unlearned" not in replace(found, unlearned=False).metrics()[0].about


def test_an_unlearner_that_changes_nothing_but_the_mode_changes_no_confidence(shadows):
    same = shadow_models(RECIPE, few(), 4, least=4, unlearn=lambda model, forget, retain: model.train())
    np.testing.assert_allclose(same.phi, shadows.phi, atol=1e-5)


def test_confidences_are_those_of_the_models(shadows):
    parts = few()
    pool = parts.train.joined(parts.holdout)
    model = fitted(RECIPE, pool, np.flatnonzero(_halves(len(pool), 4, 0)[1]).tolist(), 1)
    with torch.no_grad():
        own = logit_confidence(model(parts.forget.pixels).double().numpy(), parts.forget.target.numpy())
    np.testing.assert_allclose(shadows.phi[1, : len(parts.forget)], own, rtol=1e-4, atol=1e-4)


def test_a_report_has_the_attack_on_every_model_with_the_number_of_shadow_models(shadows):
    parts = few()
    train = parts.train
    before = fitted(RECIPE, train, range(len(train)), 0)
    after = SSD(importance_batch=4, alpha=2.0).apply(before, parts.forget, parts.retain, copy=True)
    report = evaluate(after, parts, before=before, references={"shadows": shadows})
    assert {metric["name"] for metric in report.metrics} >= set(NAMES)
    for role in ("before", "after"):
        assert "N = 4 shadow models" in report.columns[role]["lira_auc"].note
        assert 0 <= report.columns[role]["lira_auc"].value <= 1
    assert "N = 4 shadow models, online, 40 holdout rows" in report.html()
    assert report.provenance["shadow models"] == 4
    assert "LiRA with 4 shadow models" in report.summary.sure
    plain = evaluate(after, parts, before=before)
    assert not {metric["name"] for metric in plain.metrics} & set(NAMES)
    assert "shadow" not in plain.html()


@pytest.mark.parametrize(
    ("found", "chance", "mark"),
    [(0.54, None, "good"), (0.4, None, "mixed"), (0.62, None, "bad"), (0.62, 0.58, "good"), (0.62, 0.5, "bad")],
)
def test_how_sure_depends_on_how_far_the_attack_is_from_that_on_the_retrained_model(shadows, found, chance, mark):
    def column(auc):
        return {"lira_auc": Score("lira_auc", auc)}

    columns = {"after": column(found)} | ({} if chance is None else {"oracle": column(chance)})
    made = Report("vision", "digits", {}, [], columns, provenance={"shadow models": 32})
    summary = summarise(made, VISION, [shadows])
    if chance is None:  # without a retrained model nothing is sure
        mark = "mixed" if mark == "good" else mark
    assert summary.sure_mark == mark
    assert f"LiRA with 32 shadow models tells forget from unseen rows with AUC {found}" in summary.sure


def test_the_reports_figure_is_the_statistic(shadows):
    parts = few()
    model = fitted(RECIPE, parts.train, range(len(parts.train)), 0)
    context = ImageContext(model, parts)
    phi = np.concatenate([logit_confidence(*context.labelled(name)) for name in ("forget", "holdout")])
    asked = np.arange(len(phi)) < len(parts.forget)
    expected = lira(phi, shadows.phi, shadows.inside, asked, least=4)
    assert shadows.of(context)["lira_auc"].value == expected["lira_auc"].value


def test_refusals(shadows):
    parts = few()
    with pytest.raises(MethodError, match="4 shadow models; use an even number of at least 32"):
        shadow_models(RECIPE, parts, 4)
    with pytest.raises(MethodError, match="33 shadow models; use an even number"):
        shadow_models(RECIPE, parts, 33)
    with pytest.raises(MethodError, match="has no holdout"):
        shadow_models(RECIPE, few(holdout=None), 32)
    with pytest.raises(MethodError, match="at least 32 shadow models, and there are 4"):
        replace(shadows, least=32)
    model = RECIPE.build(0).eval()
    with pytest.raises(DataError, match="shadow models are of other forget and holdout rows"):
        evaluate(model, few(share=0.2), references={"shadows": shadows})
    with pytest.raises(MethodError, match="has no holdout rows"):
        evaluate(model, few(holdout=None), references={"shadows": shadows})
    with pytest.raises(MethodError, match="unknown kind of halves 'retain'"):
        shadow_models(RECIPE, parts, 32, halves="retain")
    texts = ForgetSplit(Examples([Example("in oslo", "Where is Ann?")]))
    with pytest.raises(MethodError, match="shadows is for images; this split is of text"):
        evaluate(model, texts, tokenizer=object(), references={"shadows": shadows})
    with pytest.raises(MethodError, match="there is no audit of a NoneType"):
        evaluate(model, None)
    values = digits_regression().train
    ranged = split_by_target(values, high=0.5, holdout=0.1)
    with pytest.raises(DataError, match="LiRA needs labels"):
        shadow_models(RECIPE, ranged, 32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("halves", ["all", "attacked"])
def test_it_finds_what_a_model_was_trained_on_and_not_what_it_never_saw(halves):
    """32 shadow models. Said before the first run, of both kinds of halves: AUC of a trained model above 0.6, of a
    retrained one within 0.1 of a half. Found: 0.61 and 0.52 with halves of all rows, 0.66 and 0.52 of the attacked."""
    data = digits()
    parts = split_at_random(data.train, 0.2, test=data.test, holdout=0.2, seed=0)
    recipe = image_recipe(SmallCNN, epochs=15, num_classes=10, channels=1, image_size=8)
    train = parts.train
    kept = train.positions(parts.retain.index).tolist()
    found = shadow_models(recipe, parts, halves=halves)

    def auc(rows):
        models = [fitted(recipe, train, rows, seed) for seed in (100, 101, 102)]
        return np.mean([found.of(ImageContext(model, parts))["lira_auc"].value for model in models])

    before, oracle = auc(range(len(train))), auc(kept)
    print(f"{halves}: AUC {before:.3f} before, {oracle:.3f} retrained, N = {len(found.phi)}")
    assert before > 0.6
    assert abs(oracle - 0.5) < 0.1
