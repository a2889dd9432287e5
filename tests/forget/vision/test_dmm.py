"""Datamodel matching: exact where deletion has a closed form, nothing where nothing is forgotten, and what it refuses."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from small_toys import small_net, small_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError, RunError
from unwrite.forget import DMM, DMDirect, GradientAscent, HeadInfluence, OracleMatching, PartModels, RowEffects
from unwrite.forget.engine.images import datamodel
from unwrite.forget.engine.images.batch import ImagePart, PairedImages
from unwrite.forget.engine.images.corrected import CorrectedModel, row_keys
from unwrite.forget.engine.images.datamodel import fit_datamodel, linear_datamodel_score, part_models
from unwrite.forget.engine.images.matching import matching_loss, repeated, retain_rows
from unwrite.forget.engine.images.regression_path import fitted_effects, lasso, ridge, strongest
from unwrite.forget.engine.loss import Loss, PerRow
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.models import load_state, save
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_mlp import SmallMLP
from unwrite.runs import hash_model

RIDGE = 0.5
RECIPE = image_recipe(SmallMLP, epochs=3, num_classes=4, image_size=8, width=8)
STILL = {"optim": "sgd", "momentum": 0.0, "weight_decay": 0.0, "mode": "eval"}


class Linear(nn.Module):
    """One linear layer in float64 on flat pixels."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        self.head.weight.data.copy_(weight)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)  # what is below a head

    def forward(self, pixels):
        return self.head(self.scale * pixels.flatten(1).double())


def regression_rows(rows=40, side=2):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(rows, 1, side, side, generator=generator)
    targets = pixels.flatten(1) @ torch.tensor([2.0, -1.0, 0.5, 3.0])[: side**2] + 0.3 * torch.randn(
        rows, generator=generator
    )
    data = Images(pixels, targets=targets)
    return data.subset(range(8), "forget"), data.subset(range(8, rows), "retain"), data


def ridge_weight(rows):
    x, y = rows.pixels.flatten(1).double(), rows.target.double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)[None]


def effects_for(forget, retain, size=0.1, outputs=4):
    """A datamodel with random effects of the rows of `small_sets`."""
    train = retain.joined(forget)
    generator = torch.Generator().manual_seed(5)
    effects = size * torch.randn(len(train), len(train), outputs, generator=generator)
    return RowEffects(effects, train.index, train.index, train.hash)


def dmm(**fields):
    return DMM(**{"retain_multiplier": 2.0, **fields})


# 4: ridge regression


def test_predicting_a_deletion_from_a_ridge_regression_is_retraining_exactly():
    forget, retain, data = regression_rows()
    model = Linear(ridge_weight(data))
    guarded = DMDirect(attributor=HeadInfluence(ridge=RIDGE)).apply(model, forget, retain)
    oracle = Linear(ridge_weight(retain))
    assert torch.allclose(guarded(data.pixels), oracle(data.pixels), rtol=0, atol=1e-8)
    assert (model(data.pixels) - oracle(data.pixels)).abs().max() > 1e-2


def test_least_squares_on_predicted_outputs_gives_the_retrained_weights():
    forget, retain, data = regression_rows()
    guarded = DMDirect(attributor=HeadInfluence(ridge=RIDGE)).apply(Linear(ridge_weight(data)), forget, retain)
    few = data.pixels[:6]
    weight = torch.linalg.lstsq(few.flatten(1).double(), guarded(few).detach()).solution
    assert torch.allclose(weight.T, ridge_weight(retain), rtol=0, atol=1e-6)


def test_matching_ends_nearer_the_retrained_weights_than_descent_at_as_many_steps():
    forget, retain, data = regression_rows()
    oracle, start = ridge_weight(retain), ridge_weight(data)
    args = {**STILL, "num_train_epochs": 60, "per_device_train_batch_size": 64}

    def distance(method, lr, **more):
        model = Linear(start)
        method.apply(model, forget, retain, args={**args, "learning_rate": lr, **more})
        return float((model.head.weight - oracle).norm().detach())

    own = HeadInfluence(ridge=RIDGE)
    ours = distance(DMM(attributor=own, retain_multiplier=2, forget_multiplier=1, decay=1.0), 0.5)
    before = float((start - oracle).norm())
    assert ours < 0.05 * before
    assert ours < min(distance(FineTune(), lr) for lr in (0.02, 0.2))


def test_a_newton_step_of_a_trained_classifiers_head_is_near_the_retrained_head():
    forget, retain = small_sets()
    train = retain.joined(forget)

    def trained_head(rows):
        model = Linear(torch.zeros(4, 64))
        optimiser = torch.optim.LBFGS([model.head.weight], max_iter=200, tolerance_grad=1e-10)

        def closure():
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(rows.pixels), rows.labels, reduction="sum")
            loss = loss + 0.5 * model.head.weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return model

    before, oracle = trained_head(train), trained_head(retain)
    guarded = DMDirect(attributor=HeadInfluence(ridge=1.0)).apply(before, forget, retain)
    now, true, was = (model(train.pixels).detach() for model in (guarded, oracle, before))
    assert (now - true).norm() < 0.3 * (was - true).norm()


# 5: nothing forgotten


def test_without_forget_rows_nothing_is_predicted_to_change():
    forget, retain = small_sets()
    effects = effects_for(forget, retain)
    assert not effects.predicted_change([], retain.index).any()
    assert effects.predicted_change([], retain.index).shape == (32, 4)


def test_with_multiplier_0_targets_are_the_models_own_outputs_and_a_step_has_no_gradient():
    forget, retain = small_sets()
    model = small_net()
    method = dmm(multiplier=0.0, attributor=effects_for(forget, retain))
    work = method.work(model, forget, retain, args={**STILL, "learning_rate": 1.0})
    found = method.targets(work, {"forget": forget})["forget"]
    assert torch.equal(found, work.outputs(model, forget))
    losses = matching_loss(model(forget.pixels), found)
    assert losses.max() < 1e-10
    gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
    assert max(float(one.abs().max()) for one in gradients) < 1e-5
    before = copy.deepcopy(model.state_dict())
    method.apply(model, forget, retain, args={**STILL, "learning_rate": 1.0, "num_train_epochs": 2})
    for name, value in model.state_dict().items():
        assert torch.allclose(value.float(), before[name].float(), atol=1e-5), name


def test_the_targets_are_the_outputs_before_less_the_multiplied_effects_of_forget_rows():
    forget, retain = small_sets()
    model, effects = small_net(), effects_for(forget, retain)
    method = dmm(multiplier=3.0, attributor=effects)
    work = method.work(model, forget, retain)
    found = method.targets(work, {"retain": retain})["retain"]
    by_hand = work.outputs(model, retain) - 3 * effects.effects[:8, 8:].double().sum(0).float()
    assert torch.allclose(found, by_hand, atol=1e-6)


# 6: oracle matching, the retain subset


def test_matching_a_retrained_model_leaves_less_than_a_hundredth_of_the_error():
    forget, retain = small_sets()
    recipe = image_recipe(SmallMLP, epochs=8, lr=5e-3, num_classes=4, image_size=8, width=64)
    train = retain.joined(forget)
    model = fitted(recipe, train, range(len(train)), 3)
    oracle = fitted(recipe, retain, range(len(retain)), 42)
    method = OracleMatching(retain_multiplier=4.0, decay=1.0)
    before = matching_loss(model(train.pixels), oracle(train.pixels)).mean()
    args = {"num_train_epochs": 80, "learning_rate": 5e-3}
    after = method.apply(model, forget, retain, recipe=recipe, args=args)
    assert matching_loss(after(train.pixels), oracle(train.pixels)).mean() < 0.01 * before


def test_several_oracles_are_averaged_from_seeds_that_follow_one_another():
    forget, retain = small_sets()
    method = OracleMatching(oracles=2)
    work = method.work(RECIPE.build(0).eval(), forget, retain, recipe=RECIPE, args={"seed": 7})
    found = method.targets(work, {"forget": forget})["forget"]
    both = [fitted(RECIPE, retain, range(32), seed)(forget.pixels) for seed in (7, 8)]
    assert torch.allclose(found, torch.stack(both).mean(0), atol=1e-6)


def test_the_retain_subset_is_a_function_of_the_seed_and_of_published_size():
    _, retain = small_sets()
    first, again, other = (retain_rows(retain, 2, 10.7, seed).index for seed in (42, 42, 1))
    assert torch.equal(first, again)
    assert len(first) == int(10.7 * 2) == len(first.unique())
    assert not torch.equal(first.sort().values, other.sort().values)
    assert retain_rows(retain, 1, 0.5, 0) is None


# 7: repeated forget rows


def test_ten_rows_taken_two_and_a_half_times_are_twenty_five_the_first_five_thrice():
    counts = repeated(10, 2.5).bincount()
    assert counts.tolist() == [3] * 5 + [2] * 5
    assert repeated(10, 0.3).tolist() == [0, 1, 2]
    assert len(repeated(10, 2.3)) == 23  # 0.3 * 10 is below 3 in binary


def test_every_copy_of_a_forget_row_has_the_targets_of_that_row_and_every_epoch_all_copies():
    forget, retain = small_sets()
    effects = effects_for(forget, retain)
    method = dmm(attributor=effects, forget_multiplier=2.5)
    work = method.work(small_net(), forget, retain, args={"num_train_epochs": 2.5})
    targets = method.targets(work, {"forget": forget})["forget"]
    phases = method.phases(work)
    assert [phase.epochs for phase in phases] == [1, 1, 0.5]
    assert [phase.lr for phase in phases] == pytest.approx([1, 0.95, 0.95**2])
    copies = phases[0].forget
    assert len(copies) == 20
    assert not set(copies.index.tolist()) & set(retain.index.tolist())
    assert len(phases[0].retain) == 16
    model = small_net()
    row = [int((forget.pixels == one).flatten(1).all(1).nonzero()[0]) for one in copies.pixels]
    for at in (0, 7, 19):
        one = copies.subset(copies.index[[at]])
        part = method_part(one, model(one.pixels))
        loss = phases[0].loss(batch_of(forget=part)).terms["forget"].values
        assert torch.allclose(loss, matching_loss(part.logits, targets[[row[at]]]))


def method_part(rows, logits):
    return ImagePart(rows.index, rows.pixels, rows.target, 0, logits)


def batch_of(**parts):
    return PairedImages(**parts)


def test_losses_are_means_over_outputs_or_cross_entropy_to_the_softmax_of_the_targets():
    logits, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert matching_loss(logits, target).tolist() == [2.5]
    q = math.e / (1 + math.e)
    expected = -((1 - q) * math.log(1 / (1 + math.e**2)) + q * math.log(math.e**2 / (1 + math.e**2)))
    assert matching_loss(logits, target, "ce").item() == pytest.approx(expected, rel=1e-5)


def test_the_anchor_adds_the_squared_distance_to_the_weights_before():
    forget, retain = small_sets()
    model = small_net()
    method = dmm(attributor=effects_for(forget, retain), anchor=2.0)
    phase = method.phases(method.work(model, forget, retain))[0]
    with torch.no_grad():
        model.head.weight += 0.5
    one = phase.forget.subset(phase.forget.index[:1])
    anchor = phase.loss(batch_of(forget=method_part(one, model(one.pixels)))).terms["anchor"]
    assert anchor.total({}).item() == pytest.approx(2 * 0.25 * model.head.weight.numel(), rel=1e-4)


# 8: datamodels


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


# the guard


def test_the_prediction_corrects_known_rows_alone_and_leaves_the_weights(tmp_path):
    forget, retain = small_sets()
    model, effects = small_net(), effects_for(forget, retain)
    before = hash_model(model)
    guarded = DMDirect(attributor=effects, multiplier=2.0).apply(model, forget, retain)
    assert isinstance(guarded, CorrectedModel)
    assert guarded.bare is model
    assert hash_model(model) == before
    mixed = torch.cat([retain.pixels[:1], torch.rand(1, 1, 8, 8), forget.pixels[:1]])
    changed = guarded(mixed) - model(mixed)
    by_hand = 2 * effects.predicted_change(forget.index, torch.tensor([8, 0]))
    assert torch.allclose(changed[[0, 2]], by_hand, atol=1e-5)
    assert not changed[1].any()
    save(guarded, tmp_path / "guarded")
    again = load_state(CorrectedModel(small_net()), tmp_path / "guarded").eval()
    assert torch.equal(again(mixed), guarded(mixed))
    assert torch.equal(row_keys(mixed.double()), row_keys(mixed))


def test_of_rows_with_the_same_pixels_the_forget_row_is_corrected():
    forget, retain = small_sets()
    twin = Images(
        torch.cat([forget.pixels[:1], retain.pixels]), torch.cat([forget.labels[:1], retain.labels]), index=range(8, 41)
    )
    effects = effects_for(forget, twin)
    guarded = DMDirect(attributor=effects).apply(small_net(), forget, twin)
    changed = guarded(forget.pixels[:1]) - small_net()(forget.pixels[:1])
    assert torch.allclose(changed, effects.predicted_change(forget.index, [0]), atol=1e-5)


# refusals


def test_refuses_a_datamodel_of_another_training_set_or_model():
    forget, retain = small_sets()
    effects = effects_for(forget, retain)
    fewer = retain.subset(retain.index[:20])
    with pytest.raises(DataError, match=r"fitted on another training set than the 28 forget and retain rows"):
        dmm(attributor=effects).apply(small_net(), forget, fewer)
    with pytest.raises(DataError, match=r"has 3 outputs and the model 4"):
        dmm(attributor=effects_for(forget, retain, outputs=3)).apply(small_net(), forget, retain)


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


def test_refuses_more_retain_rows_than_there_are_and_less_than_one_forget_row():
    forget, retain = small_sets()
    with pytest.raises(DataError, match=r"retain_multiplier is 20, which asks for 160 retain rows .* and there are 32"):
        DMM().apply(small_net(), forget, retain)
    with pytest.raises(DataError, match=r"forget_multiplier is 0\.1, which takes none of 8 forget rows"):
        dmm(forget_multiplier=0.1).apply(small_net(), forget, retain)


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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (torch.zeros(3, 4), r"Odd predicts a change of shape \[3, 4\]"),
        (torch.full((8, 4), math.nan), "Odd predicts a change that is not finite"),
    ],
)
def test_refuses_an_attributor_whose_prediction_does_not_fit(change, says):
    class Odd:
        def change(self, work, rows):
            return change

    with pytest.raises(DataError, match=says):
        dmm(attributor=Odd(), retain_multiplier=0.0).apply(small_net(), *small_sets())
    with pytest.raises(DataError, match=says):
        DMDirect(attributor=Odd()).apply(small_net(), *small_sets())


def test_refuses_an_attributor_that_is_none_and_settings_without_meaning():
    for cls in (DMM, DMDirect):
        with pytest.raises(MethodError, match=r"attributor is 'dm', which has no change"):
            cls(attributor="dm")
    with pytest.raises(MethodError, match=r"share is 1\.0, which leaves 32 of 32 rows"):
        part_models(RECIPE, small_sets()[1], [small_sets()[1]], 2, share=1.0)
    with pytest.raises(MethodError, match="can't be sent to other processes"):
        part_models(RECIPE, small_sets()[1], [small_sets()[1]], 2, workers=2)
    with pytest.raises(DataError, match="share names"):
        part_models(RECIPE, small_sets()[1], [small_sets()[1], small_sets()[1]], 2)
    forget, retain, _ = regression_rows()
    with pytest.raises(DataError, match="compares classes"):
        DMM(loss_type="ce", retain_multiplier=1).apply(Linear(torch.ones(1, 4)), forget, retain)


def test_gradient_ascent_leaves_a_ridge_regression_farther_from_retraining():
    forget, retain, data = regression_rows()
    model, oracle = Linear(ridge_weight(data)), ridge_weight(retain)

    class Ascent(GradientAscent):
        def loss(self, batch):
            return Loss({}, forget=PerRow(-(batch["forget"].outputs - batch["forget"].target).square()))

    args = {**STILL, "num_train_epochs": 60, "learning_rate": 1e-3}
    Ascent.apply(Ascent(), model, forget, retain, args=args)
    matched = Linear(ridge_weight(data))
    method = DMM(attributor=HeadInfluence(ridge=RIDGE), retain_multiplier=2, forget_multiplier=1, decay=1.0)
    method.apply(matched, forget, retain, args={**args, "learning_rate": 0.5})
    assert (matched.head.weight - oracle).norm() < (model.head.weight - oracle).norm()
