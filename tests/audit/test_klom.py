"""KLoM: closed forms, its floor, and what a report says of a method by many models."""

import math

import numpy as np
import pytest
import torch

from helpers.tiny import make_image_recipe, make_image_split
from unwrite import evaluate
from unwrite.audit.images import klom as klom_module
from unwrite.audit.images.context import ImageContext
from unwrite.audit.images.klom import KLoM, MarginModels, klom, margin_models, margins_of
from unwrite.audit.images.lira import logit_confidence
from unwrite.audit.suites.vision import VISION
from unwrite.errors import DataError, MethodError


def draws(n, rows=400, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, (n, rows))


def test_a_margin_is_the_log_odds_of_the_label_and_the_same_for_shifted_logits():
    logits = np.random.default_rng(0).normal(size=(50, 10)) * 3
    labels = np.arange(50) % 10
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = chances[np.arange(50), labels]
    assert np.allclose(logit_confidence(logits, labels), np.log(own / (1 - own)), atol=1e-5)
    assert np.allclose(logit_confidence(logits + 7, labels), logit_confidence(logits, labels), atol=1e-5)


def test_the_same_margins_are_at_distance_0_also_where_all_are_equal():
    assert np.abs(klom(draws(30), draws(30))).max() < 1e-12
    assert np.abs(klom(np.full((5, 2), 3.0), np.full((5, 2), 3.0))).max() < 1e-12


def test_margins_that_never_meet_are_at_the_logarithm_of_a_hundred_thousand_and_it_is_not_symmetric():
    apart, spread = np.full((10, 1), 5.0), np.linspace(-5, 0, 10)[:, None]
    assert klom(apart, spread)[0] == pytest.approx(math.log(1e5), abs=2e-5)
    assert klom(spread, apart)[0] != pytest.approx(klom(apart, spread)[0], abs=0.1)


def test_the_divergence_is_that_of_the_two_histograms():
    p, q = np.array([0, 0, 0, 20.0])[:, None], np.array([0, 0, 20, 20.0])[:, None]
    assert klom(p, q)[0] == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_the_largest_margin_counts():
    """The official digitising drops what equals the right end of the last bin."""
    p, q = np.array([0.0, 20.0])[:, None], np.array([0.0, 0.0])[:, None]
    assert klom(p, q)[0] == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-5), abs=1e-4)


def test_margins_are_clipped_to_a_hundred():
    far, near = np.array([1e6, 0.0])[:, None], np.array([100.0, 0.0])[:, None]
    assert klom(far, near)[0] == 0
    assert klom(-far, -near)[0] == 0


@pytest.mark.parametrize(("n", "floor"), [(20, 2.98), (50, 0.85), (100, 0.32), (200, 0.14), (1000, 0.022)])
def test_the_floor_falls_with_the_number_of_models(n, floor):
    assert klom(draws(n), draws(n, seed=1)).mean() == pytest.approx(floor, rel=0.1)


@pytest.mark.parametrize(("n", "value"), [(100, 1.20), (1000, 0.56)])
def test_a_shift_by_a_deviation_lies_above_the_floor(n, value):
    assert klom(draws(n, mean=1.0), draws(n, seed=1)).mean() == pytest.approx(value, rel=0.1)


def nothing(model, forget, retain):
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield margin_models(make_image_recipe(), make_image_split(), nothing, 3)


def test_a_report_has_the_method_doing_nothing_and_the_floor_side_by_side(models):
    split, recipe = make_image_split(), make_image_recipe()
    roles = {"before": recipe.build(1).eval(), "oracle": recipe.build(2).eval()}
    report = evaluate(recipe.build(0).eval(), split, suite=VISION, references={"klom": models}, **roles)
    floor = models.floor("forget")
    after, before, oracle = (report.columns[role]["klom_forget"] for role in ("after", "before", "oracle"))
    assert oracle.value == pytest.approx(floor.mean())
    assert after.value == before.value == pytest.approx(models.of("forget").mean())  # nothing was unlearned
    assert after.per_example == pytest.approx(models.of("forget").tolist())
    assert f"Floor (retrained models against others) {floor.mean():.3g}" in after.note
    assert after.note.endswith("at N = 3.")
    control = ImageContext(recipe.build(3).eval(), split, role="control", cached=False)
    assert KLoM(models)(control).value is None
    assert report.provenance["models of a kind for KLoM"] == 3


def test_models_before_and_retrained_ones_come_from_different_seeds_and_rows(models, monkeypatch):
    seen, split, recipe = [], make_image_split(), make_image_recipe()

    def train(recipe, data, jobs, tell):
        seen.extend((len(rows), seed) for rows, seed in jobs)
        return [recipe.build(seed).eval() for _, seed in jobs]

    monkeypatch.setattr(klom_module, "fitted_many", train)
    margin_models(recipe, split, nothing, 2, seed=10)
    rows, kept = len(split.train), len(split.retain)
    assert seen == [(rows, 10), (rows, 11), (kept, 12), (kept, 13), (kept, 14), (kept, 15)]


def test_the_unlearned_models_are_those_before_after_the_method(monkeypatch):
    split, recipe = make_image_split(), make_image_recipe()
    monkeypatch.setattr(klom_module, "fitted_many", lambda r, d, jobs, tell: [recipe.build(s).eval() for _, s in jobs])

    def closed(model, forget, retain):
        assert (forget, retain) == (split.forget, split.retain)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        return model

    found = margin_models(recipe, split, closed, 2)
    classes = split.forget.num_outputs
    assert np.allclose(found.unlearned["forget"], -math.log(classes - 1))
    assert not np.allclose(found.before["forget"], found.unlearned["forget"])
    assert np.allclose(found.before["forget"][1], margins_of(recipe.build(1), split.forget))


def test_refuses_margins_that_cannot_be_compared(models):
    with pytest.raises(DataError, match=r"\[3, 4\] of unlearned and \[2, 4\] of retrained models"):
        klom(np.zeros((3, 4)), np.zeros((2, 4)))
    with pytest.raises(MethodError, match="there is 1 model of a kind"):
        klom(np.zeros((1, 4)), np.zeros((1, 4)))
    broken = np.zeros((3, 4))
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="margin of row 2 under retrained model 1 is nan"):
        klom(np.zeros((3, 4)), broken)
    with pytest.raises(MethodError, match="bins is 0"):
        klom(np.zeros((3, 4)), np.zeros((3, 4)), bins=0)
    with pytest.raises(MethodError, match="1 models of a kind"):
        margin_models(make_image_recipe(), make_image_split(), nothing, 1)
    with pytest.raises(DataError, match="regression targets"):
        margin_models(make_image_recipe(regression=True), make_image_split(regression=True), nothing, 2)
    parts = (models.before, {"forget": models.before["forget"][:2]}, models.oracles, models.others)
    with pytest.raises(DataError, match="as many models of either kind"):
        MarginModels(*parts, {"forget": models.index["forget"]})


def test_refuses_margins_of_other_rows(models):
    split = make_image_split()
    index = {**models.index, "forget": [*models.index["forget"][:-1], 10**6]}
    other = MarginModels(models.before, models.unlearned, models.oracles, models.others, index)
    with pytest.raises(DataError, match="margins are of other forget rows"):
        KLoM(other)(ImageContext(make_image_recipe().build(0).eval(), split, cached=False))
