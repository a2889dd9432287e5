"""Sparse models: whatever unlearns on them leaves every pruned weight at 0, at every step it takes and at its end."""

import math

import pytest
import torch
from trained_toys import net, nll, split, state, targets
from transformers import TrainerCallback

from unwrite import catalog
from unwrite.forget import Objective
from unwrite.forget.vision.fine_tuning import EUk
from unwrite.forget.vision.pruned import Pruned
from unwrite.models.image_training import image_recipe
from unwrite.models.pruning import apply_masks, magnitude_masks
from unwrite.nets import SmallCNN

METHODS = {
    slug: record
    for slug, record in catalog.methods().items()
    if "images" in record.forgets and slug != "pruned" and record.kind != "guard"
}
FOR_REGRESSORS = {"blindspot", "gaussian-amnesiac"}
FIELDS = {"unsir": {"noise_rows": 8, "copies": 3}, "laf": {"vae_epochs": 1}, "potion": {"tries": 3}}
FIELDS |= {key: {"retain_multiplier": 1.0} for key in ("dmm", "oracle-matching")}
FIELDS |= {slug: {"alpha": 1.5} for slug in ("ssd", "lfssd", "random-dampening")}
HARD = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.1, "num_train_epochs": 2}
HARD |= {"per_device_train_batch_size": 16, "optim": "sgd"}
RATE = 0.5


def convolutions(model):
    return {name: value for name, value in model.named_parameters() if "conv" in name}


def wrong(model, masks):
    """How many pruned weights are not 0."""
    return sum(int((value[~masks[name]] != 0).sum()) for name, value in convolutions(model).items())


class Steps(TrainerCallback):
    """How many pruned weights weren't 0 after each step."""

    def __init__(self, masks):
        self.masks, self.found = masks, []

    def on_step_end(self, args, state_, control, model=None, **_):
        self.found.append(wrong(model, self.masks))


def pruned(slug, rate=RATE, **fields):
    """(the model, its masks, what the steps left) after a method on the toy net, or on one with a single output."""
    outputs = 1 if slug in FOR_REGRESSORS else 4
    recipe = image_recipe(SmallCNN, epochs=1, batch_size=16, num_classes=outputs, width=4)
    model = recipe.build(0).eval() if slug in FOR_REGRESSORS else net()
    sets = [split().forget, split().retain]
    if slug in FOR_REGRESSORS:
        sets = [targets(rows) for rows in sets]
    masks = magnitude_masks(model, rate)
    steps = Steps(masks)
    method = METHODS[slug].load()(**FIELDS.get(slug, {}), **fields)
    before = state(model)
    Pruned(inner=method, rate=rate).apply(model, *sets, recipe=recipe, args=HARD, callbacks=[steps])
    return model, before, masks, steps.found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("slug", METHODS)
def test_every_method_leaves_exactly_what_was_pruned_at_zero(slug):
    """With momentum and weight decay. Objectives at every step; edits, which have none, at the end."""
    model, before, masks, after_steps = pruned(slug)
    assert wrong(model, masks) == 0
    assert set(after_steps) <= {0}
    assert after_steps or not (issubclass(METHODS[slug].load(), Objective) or slug == "salient")
    n = sum(mask.numel() for mask in masks.values())
    assert sum(int((value == 0).sum()) for value in convolutions(model).values()) >= round(RATE * n)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if "conv" not in name)


def test_new_weights_of_the_last_blocks_are_pruned_before_they_are_trained():
    """EU-k draws them after the pruning. Trained beside weights that are cut away in the end, they would fit nothing."""
    sets, masks, losses = (split().forget, split().retain), magnitude_masks(net(), RATE), []
    recipe = image_recipe(SmallCNN, epochs=1, num_classes=4, width=4)
    given = {"recipe": recipe, "args": {**HARD, "max_steps": 1, "mode": "eval", "per_device_train_batch_size": 500}}

    class Lines(TrainerCallback):
        def on_log(self, args, state_, control, logs=None, **_):
            losses.append(logs["retain_loss"])

    Pruned(inner=EUk(k=3), rate=RATE).apply(net(), *sets, callbacks=[Lines()], **given)
    expected = EUk(k=3).apply(net(), *sets, recipe=recipe, args={"max_steps": 0})
    dense = nll(expected, sets[1])
    apply_masks(expected, masks)
    assert losses == [pytest.approx(nll(expected, sets[1]), rel=1e-5)]
    assert losses[0] != pytest.approx(dense, rel=1e-3)  # told apart at a hundred times that tolerance


def test_a_mask_of_saliency_within_a_pruned_model_trains_at_most_its_share_of_the_survivors():
    model, before, masks, _ = pruned("salient", share=0.3)
    moved = {name: value != before[name] for name, value in model.named_parameters()}
    survivors = sum(int((one & masks.get(name, True)).sum()) for name, one in moved.items())
    assert 0 < survivors <= math.floor(0.3 * sum(value.numel() for value in model.parameters()))
