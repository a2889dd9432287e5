"""LiRA's shadow models: halves, the rows of a report, and an attack that finds what a model overfitted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unwrite import evaluate
from unwrite.audit.vision import ImageContext
from unwrite.audit.vision_lira import lira, logit_confidence
from unwrite.audit.vision_shadows import NAMES, Shadows, _halves, shadow_models
from unwrite.data.image_sets import digits, digits_regression
from unwrite.data.image_splits import split_at_random, split_by_target
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


def test_shadow_models_know_all_retain_rows_and_their_own_half(monkeypatch):
    from unwrite.audit import vision_shadows

    seen = []

    def train(recipe, data, jobs, tell):
        seen.extend({int(data.index[i]) for i in rows} for rows, _ in jobs)
        return [recipe.build(seed).eval() for _, seed in jobs]

    monkeypatch.setattr(vision_shadows, "fitted_many", train)
    parts = few()
    found = shadow_models(RECIPE, parts, 4, least=4)
    for inside, rows in zip(found.inside, seen, strict=True):
        assert rows == set(parts.retain.index.tolist()) | set(found.index[inside].tolist())
    assert set(found.index.tolist()) == set(parts.forget.index.tolist()) | set(parts.holdout.index.tolist())


def test_confidences_are_those_of_the_models(shadows):
    parts = few()
    data = parts.train.joined(parts.holdout)
    rows = [*parts.retain.index.tolist(), *shadows.index[shadows.inside[1]].tolist()]
    model = fitted(RECIPE, data, sorted(data.positions(torch.tensor(rows)).tolist()), 1)
    with torch.no_grad():
        own = logit_confidence(model(parts.forget.pixels).double().numpy(), parts.forget.target.numpy())
    np.testing.assert_allclose(shadows.phi[1, : len(parts.forget)], own, rtol=1e-4, atol=1e-4)


def test_a_report_has_the_attack_on_every_model_with_the_number_of_shadow_models(shadows):
    parts = few()
    train = parts.train
    before = fitted(RECIPE, train, range(len(train)), 0)
    after = SSD(importance_batch=4, alpha=2.0).apply(before, parts.forget, parts.retain, copy=True)
    report = evaluate(after, parts, before=before, shadows=shadows)
    assert {metric["name"] for metric in report.metrics} >= set(NAMES)
    for role in ("before", "after"):
        assert "N = 4 shadow models" in report.columns[role]["lira_auc"].note
        assert 0 <= report.columns[role]["lira_auc"].value <= 1
    plain = evaluate(after, parts, before=before)
    assert not {metric["name"] for metric in plain.metrics} & set(NAMES)


def test_the_reports_figure_is_the_statistic(shadows):
    parts = few()
    model = fitted(RECIPE, parts.train, range(len(parts.train)), 0)
    context = ImageContext(model, parts)
    phi = np.concatenate([logit_confidence(*context.labelled(name)) for name in ("forget", "holdout")])
    asked = np.arange(len(phi)) < len(parts.forget)
    expected = lira(phi, shadows.phi, shadows.inside, asked, least=4)
    assert shadows.of(context)["lira_auc"].value == expected["lira_auc"].value


def test_the_selected_weights_are_drawn(shadows):
    parts = few()
    before = fitted(RECIPE, parts.train, range(len(parts.train)), 0)
    chosen = SSD(importance_batch=4, alpha=2.0).select(before, parts.forget, parts.retain)
    assert set(chosen.shares) == {name for name, _ in before.named_parameters()}
    total = sum(share * layer.weights for share, layer in zip(chosen.shares.values(), chosen.layers, strict=True))
    assert total == pytest.approx(chosen.selected)
    report = evaluate(before, parts, selected=chosen.shares)
    assert [picture.title for picture in report.pictures][-1] == "Selected weights"
    with pytest.raises(MethodError, match=r"share of a is 1.5"):
        evaluate(before, parts, selected={"a": 1.5})


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
        evaluate(model, few(share=0.2), shadows=shadows)
    with pytest.raises(MethodError, match="has no shadows: for images only"):
        evaluate(model, None, tokenizer=object(), shadows=shadows)
    values = digits_regression().train
    ranged = split_by_target(values, high=0.5, holdout=0.1)
    with pytest.raises(DataError, match="LiRA needs labels"):
        shadow_models(RECIPE, ranged, 32)


@pytest.mark.slow
def test_it_finds_what_a_model_was_trained_on_and_not_what_it_never_saw():
    """32 shadow models. Said before the first run: AUC of the trained model above 0.6, of the oracle within 0.1 of a half."""
    data = digits()
    parts = split_at_random(data.train, 0.2, test=data.test, holdout=0.2, seed=0)
    recipe = image_recipe(SmallCNN, epochs=15, num_classes=10, channels=1, image_size=8)
    train = parts.train
    before = fitted(recipe, train, range(len(train)), 100)
    oracle = fitted(recipe, train, train.positions(parts.retain.index).tolist(), 100)
    found = shadow_models(recipe, parts)
    assert isinstance(found, Shadows)
    auc = {name: found.of(ImageContext(model, parts))["lira_auc"].value for name, model in
           {"before": before, "oracle": oracle}.items()}  # fmt: skip
    assert auc["before"] > 0.6
    assert abs(auc["oracle"] - 0.5) < 0.1
