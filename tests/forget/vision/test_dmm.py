"""Datamodel matching: exact where deletion has a closed form, nothing where nothing is forgotten, and what it refuses."""

import copy
import math
from functools import partial

import pytest
import torch
from small_toys import effects_for, small_net, small_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import DMM, DMDirect, GradientAscent, HeadInfluence, OracleMatching, RowEffects
from unwrite.forget.engine.images import head_influence
from unwrite.forget.engine.images.corrected import CorrectedModel, row_keys
from unwrite.forget.engine.images.datamodel import part_models
from unwrite.forget.engine.images.matching import matching_loss
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


def dmm(**fields):
    return DMM(**{"retain_multiplier": 2.0, **fields})


# 4: ridge regression


class WithBias(Linear):
    """The same with a bias."""

    def __init__(self, weight):
        super().__init__(weight[:, :-1])
        self.head.bias = nn.Parameter(weight[:, -1].clone())


def test_a_bias_is_moved_like_the_weights():
    forget, retain, data = regression_rows()

    def model(rows):
        x, y = nn.functional.pad(rows.pixels.flatten(1).double(), (0, 1), value=1.0), rows.target.double()
        return WithBias(torch.linalg.solve(x.T @ x + RIDGE * torch.eye(5, dtype=torch.float64), x.T @ y)[None])

    guarded = DMDirect(attributor=HeadInfluence(ridge=RIDGE)).apply(model(data), forget, retain)
    assert torch.allclose(guarded(data.pixels), model(retain)(data.pixels), rtol=0, atol=1e-8)


def test_slope_and_curvature_of_a_classifier_are_those_of_its_cross_entropy():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    for row, label, slope, curvature in zip(
        logits, labels, head_influence._slope(logits, labels), head_influence._curvature(logits, False), strict=True
    ):
        loss = partial(nn.functional.cross_entropy, target=label)
        assert torch.allclose(slope, torch.func.grad(loss)(row))
        assert torch.allclose(curvature, torch.func.hessian(loss)(row))


def test_an_influence_leaves_the_model_as_it_was_and_costs_a_forward_of_every_row():
    """Asked of a model in training mode it answers as in evaluation mode, and its running statistics stay."""
    forget, retain = small_sets()
    model = small_net()
    work = DMM().work(model, forget, retain)
    expected = HeadInfluence().change(work, forget)
    model.train()
    before, spent = hash_model(model), work.cost.forwards
    assert torch.equal(HeadInfluence().change(work, forget), expected)
    assert work.cost.forwards - spent == 8 + 32 + 8
    assert hash_model(model) == before
    assert model.training
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_without_an_attributor_the_influence_of_the_last_layer_predicts():
    forget, retain = small_sets()
    assert DMM().chosen_attributor == HeadInfluence()
    assert HeadInfluence().ridge == 1
    model = small_net()
    own, given = (
        DMDirect(**fields).apply(model, forget, retain)(forget.pixels)
        for fields in ({}, {"attributor": HeadInfluence()})
    )
    assert torch.equal(own, given)
    assert not torch.equal(own, model(forget.pixels))
    assert own.dtype == torch.float32  # the prediction is made in float64


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


# 6: oracle matching


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


def test_an_oracle_of_another_architecture_or_none_is_refused():
    forget, retain = small_sets()
    wider = image_recipe(SmallMLP, epochs=1, num_classes=4, image_size=8, width=9)
    method = OracleMatching(retain_multiplier=2.0)
    with pytest.raises(ModelError, match="SmallMLP is not built like the SmallMLP this layout is of"):
        method.apply(RECIPE.build(0), forget, retain, recipe=wider)
    with pytest.raises(MethodError, match=r"OracleMatching retrains models. Give the recipe"):
        method.targets(DMM().work(RECIPE.build(0), forget, retain), {"forget": forget})


def test_defaults_are_the_published_ones():
    """Of datamodel matching and of oracle matching on CIFAR-10, both with Adam and a rate that falls by 0.95 an epoch."""
    shared = {"optim": "adam", "weight_decay": 0.0}
    assert DMM.training == {
        **shared, "learning_rate": 1e-4, "num_train_epochs": 4, "per_device_train_batch_size": 512,
    }  # fmt: skip
    assert OracleMatching.training == {
        **shared, "learning_rate": 5e-4, "num_train_epochs": 13, "per_device_train_batch_size": 256,
    }  # fmt: skip
    for method in (DMM(), OracleMatching()):
        assert (method.retain_multiplier, method.loss_type, method.decay, method.anchor) == (20, "mse", 0.95, 0)
    assert (DMM().multiplier, DMM().forget_multiplier, DMDirect().multiplier) == (1, 5, 1)
    assert (OracleMatching().oracles, OracleMatching().forget_multiplier) == (1, 1)


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


def test_rows_that_were_never_seen_are_corrected_where_they_are_given_as_the_holdout():
    forget, retain = small_sets()
    unseen = Images(torch.rand(3, 1, 8, 8), labels=torch.arange(3), index=range(50, 53), classes=forget.classes)
    model, train = small_net(), retain.joined(forget)
    asked = torch.cat([train.index, unseen.index])
    effects = RowEffects(torch.rand(40, 43, 4), train.index, asked, train.hash)
    guarded = DMDirect(attributor=effects).apply(model, forget, retain, holdout=unseen)
    changed = guarded(unseen.pixels) - model(unseen.pixels)
    assert torch.allclose(changed, effects.predicted_change(forget.index, unseen.index), atol=1e-5)
    without = DMDirect(attributor=effects).apply(model, forget, retain)
    assert torch.equal(without(unseen.pixels), model(unseen.pixels))


# refusals


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (DMM, {"multiplier": -0.5}, "multiplier is -0.5"),
        (DMM, {"loss_type": "l1"}, "unknown loss_type 'l1'"),
        (DMM, {"decay": 0.0}, "decay is 0"),
        (DMM, {"decay": 1.1}, "decay is 1.1"),
        (DMM, {"anchor": -1.0}, "anchor is -1"),
        (DMM, {"retain_multiplier": -1.0}, "retain_multiplier is -1"),
        (DMM, {"forget_multiplier": 0.0}, "forget_multiplier is 0"),
        (DMDirect, {"multiplier": -0.5}, "multiplier is -0.5"),
        (OracleMatching, {"oracles": 0}, "oracles is 0"),
        (HeadInfluence, {"ridge": 0.0}, "ridge is 0"),
    ],
)
def test_refuses_settings_that_mean_nothing(method, fields, message):
    with pytest.raises(MethodError, match=message):
        method(**fields)


def test_refuses_a_datamodel_of_another_training_set_or_model():
    forget, retain = small_sets()
    effects = effects_for(forget, retain)
    fewer = retain.subset(retain.index[:20])
    with pytest.raises(DataError, match=r"fitted on another training set than the 28 forget and retain rows"):
        dmm(attributor=effects).apply(small_net(), forget, fewer)
    with pytest.raises(DataError, match=r"has 3 outputs and the model 4"):
        dmm(attributor=effects_for(forget, retain, outputs=3)).apply(small_net(), forget, retain)


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
