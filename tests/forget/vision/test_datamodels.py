"""Datamodels: what training rows add to outputs, regressed on models of parts of the rows, kept in folders, and what they refuse."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from small_toys import effects_for, small_sets

from unwrite.errors import DataError, MethodError, ModelError, RunError
from unwrite.forget import PartModels, RowEffects
from unwrite.forget.engine.images import datamodel
from unwrite.forget.engine.images.datamodel import fit_datamodel, linear_datamodel_score, part_models
from unwrite.forget.engine.images.regression_path import fitted_effects, lasso, ridge, strongest
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_mlp import SmallMLP

RECIPE = image_recipe(SmallMLP, epochs=3, num_classes=4, image_size=8, width=8)


def planted(models, rows=60, outputs=3, seed=0):
    """Models whose outputs are linear in the memberships, by few rows, with noise."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.zeros(rows, outputs)
    for output in range(outputs):
        effects[torch.randperm(rows, generator=torch.Generator().manual_seed(output))[:5], output] = 1.0
    masks = torch.rand(models, rows, generator=generator) < 0.5
    logits = 2 + masks.float() @ effects + 0.5 * torch.randn(models, outputs, generator=generator)
    index = torch.arange(rows)
    return PartModels(masks, logits[:, None], index, torch.tensor([7])), effects


@pytest.mark.parametrize("penalty", ["lasso", "ridge"])
def test_predictions_follow_true_changes_on_other_subsets_and_the_better_the_more_models(penalty):
    unseen, _ = planted(200, seed=1)
    scores = [linear_datamodel_score(planted(400)[0].first(n).regressed(penalty, least=20), unseen) for n in (30, 400)]
    assert scores[1] > 0.5
    assert scores[1] > scores[0] + 0.1


def test_a_sparse_truth_is_read_off_by_a_lasso():
    models, effects = planted(400)
    found = models.regressed("lasso").effects[:, 0]
    chosen = found.topk(5, dim=0).indices.sort(0).values
    assert torch.equal(chosen, effects.topk(5, dim=0).indices.sort(0).values)
    assert (found[effects == 0].abs() < 0.15).all()


def test_the_lasso_is_scikit_learns_for_every_output_at_its_own_strength():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(80, 100, generator=generator) < 0.5).double()
    outputs = masks[:, :3] @ torch.eye(3, 2, dtype=torch.float64) + 0.1 * torch.randn(
        80, 2, generator=generator, dtype=torch.float64
    )
    m, o = masks - masks.mean(0), outputs - outputs.mean(0)
    strengths = torch.tensor([0.02, 0.05], dtype=torch.float64)
    ours = lasso(m, o, strengths)
    for column, strength in enumerate(strengths):
        theirs = Lasso(float(strength), tol=1e-10, max_iter=100_000).fit(masks.numpy(), outputs[:, column].numpy())
        assert np.abs(ours[:, column].numpy() - theirs.coef_).max() < 2e-3
    assert not lasso(m, o, 1.001 * strongest(m, o, "lasso")).any()
    assert lasso(m, o, 0.9 * strongest(m, o, "lasso")).any(0).all()


def test_the_ridge_is_its_normal_equations():
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(30, 50, generator=generator, dtype=torch.float64)
    o = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    strength = torch.tensor([0.3, 2.0], dtype=torch.float64)
    ours = ridge(m, o, strength)
    for column in range(2):
        left = m.T @ m + 30 * strength[column] * torch.eye(50, dtype=torch.float64)
        assert torch.allclose(ours[:, column], torch.linalg.solve(left, m.T @ o[:, column]))


@pytest.mark.parametrize("penalty", ["lasso", "ridge"])
def test_intercepts_make_the_fits_mean_that_of_the_outputs(penalty):
    models, _ = planted(100)
    outputs = models.logits[:, 0]
    effects, intercepts = fitted_effects(models.masks, outputs, penalty)
    assert torch.allclose((models.masks.float() @ effects + intercepts).mean(0), outputs.mean(0), atol=1e-4)


def test_each_output_gets_the_strength_that_predicts_models_held_back_best():
    models, _ = planted(200, outputs=2)
    noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(9))
    outputs = torch.cat([models.logits[:, 0, :1], noise], 1)
    effects, _ = fitted_effects(models.masks, outputs, "lasso")
    assert (effects[:, 0].abs() > 0.1).sum() >= 5
    assert effects[:, 1].abs().max() < effects[:, 0].abs().max() / 4


def test_part_models_are_trained_once_on_their_halves_and_say_what_those_models_say(monkeypatch):
    forget, retain = small_sets()
    train = retain.joined(forget)
    models = part_models(RECIPE, train, [train], 3, seed=5)
    assert models.masks.sum(1).tolist() == [20] * 3
    assert not torch.equal(models.masks[0], models.masks[1])
    second = fitted(RECIPE, train, models.masks[1].nonzero()[:, 0].tolist(), 6)
    assert torch.allclose(models.logits[1], second(train.pixels), atol=1e-6)
    monkeypatch.setattr(datamodel, "fitted", partial(_only_read, datamodel.fitted))
    again = part_models(RECIPE, train, [train], 3, seed=5)
    assert torch.equal(again.logits, models.logits)


def _only_read(fitted_of, recipe, data, rows, seed):
    def refuse(*_):
        raise AssertionError("trained again")

    return fitted_of(replace(recipe, fit=refuse), data, rows, seed)


@pytest.mark.slow
def test_several_processes_train_what_one_trains():
    forget, retain = small_sets()
    train = retain.joined(forget)
    recipe = partial(image_recipe, SmallMLP, epochs=3, num_classes=4, image_size=8, width=8)
    several = part_models(recipe, train, [train], 3, workers=2)
    assert torch.allclose(several.logits, part_models(RECIPE, train, [train], 3).logits, atol=1e-5)


def test_a_datamodel_comes_back_from_its_folder(tmp_path):
    effects = effects_for(*small_sets())
    again = RowEffects.load(effects.save(tmp_path / "dm"))
    assert torch.equal(again.effects, effects.effects)
    assert again.data_hash == effects.data_hash
    with pytest.raises(RunError, match=r"dm exists, and nothing is overwritten"):
        effects.save(tmp_path / "dm")
    with pytest.raises(ModelError, match="is no datamodel"):
        RowEffects.load(tmp_path)


def test_refuses_forget_rows_that_are_unknown_twice_or_too_many():
    effects = effects_for(*small_sets())
    with pytest.raises(DataError, match=r"no training rows of the names 99\."):
        effects.predicted_change([0, 99], [0])
    with pytest.raises(DataError, match=r"no rows of the names 77\."):
        effects.predicted_change([0], [77])
    with pytest.raises(DataError, match="stand more than once"):
        effects.predicted_change([1, 1], [0])
    with pytest.raises(DataError, match=r"41 rows are to be forgotten and the datamodel has 40 training rows"):
        effects.predicted_change(range(41), [0])


def test_refuses_masks_that_do_not_match_and_too_few_models():
    models, _ = planted(40)
    with pytest.raises(MethodError, match=r"regressed on 40 models; it takes at least 50"):
        models.regressed()
    with pytest.raises(MethodError, match=r"on 3 models; it takes at least 50"):
        fit_datamodel(RECIPE, small_sets()[1], count=3)
    with pytest.raises(DataError, match=r"masks are bool of 60 rows, and there are 59 training rows"):
        PartModels(models.masks, models.logits, models.train_index[1:], models.row_index)
    with pytest.raises(DataError, match=r"logits have shape \[39, 1, 3\], and there are 40 models and 1 rows"):
        PartModels(models.masks, models.logits[1:], models.train_index, models.row_index)
    with pytest.raises(DataError, match=r"masks have shape \[39, 60\] and outputs \[40, 3\]"):
        fitted_effects(models.masks[1:], models.logits[:, 0])
    never = models.masks.clone()
    never[:, 4] = False
    with pytest.raises(DataError, match=r"training row 4 is in none of the 40 models"):
        fitted_effects(never, models.logits[:, 0])
    broken = models.logits[:, 0].clone()
    broken[6, 1] = math.nan
    with pytest.raises(DataError, match=r"outputs of model 6 are not finite"):
        fitted_effects(models.masks, broken)
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(MethodError, match=f"validation is {share:g}"):
            fitted_effects(models.masks, models.logits[:, 0], validation=share)


def test_all_models_train_what_was_chosen_on_some():
    """With one strength there is nothing to choose: it is the regression on all models, centred by all."""
    models, _ = planted(60)
    outputs = models.logits[:, 0]
    values = models.masks.to(outputs.dtype)
    m, o = values - values.mean(0), outputs - outputs.mean(0)
    for penalty, solver in (("ridge", ridge), ("lasso", lasso)):
        effects, intercepts = fitted_effects(models.masks, outputs, penalty, strengths=(0.3,))
        expected = solver(m, o, 0.3 * strongest(m, o, penalty))
        assert torch.allclose(effects, expected, atol=1e-4)
        assert torch.allclose(intercepts, outputs.mean(0) - values.mean(0) @ expected, atol=1e-3)


def test_some_models_are_the_first_ones_and_some_rows_those_of_the_names():
    models, _ = planted(60)
    few = models.first(20)
    assert torch.equal(few.masks, models.masks[:20])
    assert torch.equal(few.logits, models.logits[:20])
    for count in (0, 61):
        with pytest.raises(MethodError, match=f"there are 60 models and no first {count}"):
            models.first(count)
    _, retain = small_sets()
    logits = torch.rand(60, 32, 4)
    asked = PartModels(models.masks, logits, models.train_index, retain.index, "hash")
    some = retain.subset([30, 9])
    assert torch.equal(asked.of(some).logits, logits[:, [30 - 8, 1]] if some.index[0] == 30 else logits[:, [1, 30 - 8]])
    assert torch.equal(asked.of(some).row_index, some.index)
    assert asked.of(some).data_hash == "hash"
    with pytest.raises(DataError, match="the models were not asked of row 0"):
        asked.of(small_sets()[0])


def test_a_datamodel_says_of_how_many_models_and_of_which_training_set_it_is(tmp_path):
    _, retain = small_sets()
    models = part_models(RECIPE, retain, [retain], 4, share=0.25)
    assert models.masks.sum(1).tolist() == [8] * 4
    assert models.data_hash == retain.hash
    assert torch.equal(models.train_index, retain.index)
    effects = planted(60)[0].regressed()
    assert effects.models == 60
    assert RowEffects.load(effects.save(tmp_path / "dm")).models == 60


def test_fitting_hands_all_of_its_arguments_on(monkeypatch):
    calls = []

    class Regressed:
        def regressed(self, penalty, *, least):
            calls.append({"penalty": penalty, "least": least})
            return "effects"

    monkeypatch.setattr(
        datamodel, "part_models", lambda *given, **how: calls.append({"given": given, **how}) or Regressed()
    )
    forget, retain = small_sets()
    how = {"share": 0.3, "seed": 4, "workers": None}
    assert fit_datamodel(RECIPE, retain, [forget], 7, penalty="ridge", least=5, **how) == "effects"
    assert calls == [{"given": (RECIPE, retain, [forget], 7), **how}, {"penalty": "ridge", "least": 5}]
    calls.clear()
    fit_datamodel(RECIPE, retain)
    assert calls[0] == {"given": (RECIPE, retain, [retain], 1000), "share": 0.5, "seed": 0, "workers": 1}
    with pytest.raises(MethodError, match="unknown penalty 'elastic'"):
        fit_datamodel(RECIPE, retain, penalty="elastic")
    assert len(calls) == 2


def test_the_score_is_a_correlation_that_intercepts_have_no_part_in():
    models, effects = planted(80)
    truth = RowEffects(effects[:, None], models.train_index, models.row_index)
    exact = replace(models, logits=(models.masks.float() @ effects)[:, None])
    assert linear_datamodel_score(truth, exact) == pytest.approx(1, abs=1e-6)
    moved = replace(models, logits=-3 * models.logits + torch.tensor([100.0, -50.0, 7.0]))
    assert linear_datamodel_score(truth, moved) == pytest.approx(-linear_datamodel_score(truth, models), abs=1e-5)
    for name in ("train_index", "row_index"):
        other = replace(models, **{name: getattr(models, name) + 1})
        with pytest.raises(DataError, match=f"the datamodel and the models differ in {name}"):
            linear_datamodel_score(truth, other)


def test_effects_are_summed_in_double_precision():
    effects = torch.tensor([1e8, 1.0, -1e8]).view(3, 1, 1)
    model = RowEffects(effects, torch.arange(3), torch.tensor([0]))
    assert model.predicted_change([0, 1, 2], [0]).item() == -1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"effects": torch.zeros(3, 2)}, r"effects have shape \[3, 2\]; give \[training rows, rows, outputs\]"),
        ({"train_index": torch.arange(4)}, "train_index has 4 names and the effects 3 rows along axis 0"),
        ({"row_index": torch.arange(3)}, "row_index has 3 names and the effects 2 rows along axis 1"),
        ({"row_index": torch.tensor([5, 5])}, "row_index has names that stand more than once"),
        ({"effects": torch.full((3, 2, 1), math.inf)}, "the effects hold a number that is not finite"),
    ],
)
def test_refuses_effects_that_do_not_fit_their_names(fields, message):
    given = {"effects": torch.zeros(3, 2, 1), "train_index": torch.arange(3), "row_index": torch.arange(2), **fields}
    with pytest.raises(DataError, match=message):
        RowEffects(**given)
