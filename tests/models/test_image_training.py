"""Image models are trained once for what makes them; masks, rewinding and kills change nothing that they shouldn't."""

from functools import partial

import pytest
import torch

from unwrite.data.images.images import Images
from unwrite.errors import MethodError, ModelError
from unwrite.models import recipe as loop
from unwrite.models.image_training import fitted, fitted_many, image_recipe
from unwrite.nets.small_vision import SmallCNN, SmallViT
from unwrite.runs import hash_model

RECIPE = partial(image_recipe, SmallCNN, epochs=3, batch_size=8, num_classes=3, channels=1, image_size=8, width=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def rows(regression=False):
    pixels = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if regression:
        return Images(pixels, targets=pixels.mean((1, 2, 3)))
    return Images(pixels, labels=torch.arange(24) % 3)


def test_a_model_is_trained_once_and_comes_back_in_evaluation_mode(monkeypatch):
    first = fitted(RECIPE(), rows(), range(24), 0)
    monkeypatch.setattr(loop, "_step", None)  # a second training would fail
    again = fitted(RECIPE(), rows(), range(24), 0)
    assert hash_model(first) == hash_model(again)
    assert not again.training


def test_every_setting_and_every_argument_of_the_net_makes_another_model():
    base = RECIPE().settings
    for change in (
        {"lr": 1e-3},
        {"momentum": 0.5},
        {"width": 5},
        {"stop_after": 1},
        {"regression": "mse"},
        {"begin": 1},
    ):
        assert RECIPE(**change).settings != base, change
    assert (
        image_recipe(SmallViT, epochs=3, batch_size=8).settings
        != image_recipe(SmallCNN, epochs=3, batch_size=8).settings
    )
    state = RECIPE().build(0).state_dict()
    masks = {"head.bias": torch.tensor([True, False, True])}
    assert RECIPE(start=state).settings != base
    assert RECIPE(masks=masks).settings != base


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "lr": 0.05}])
def test_a_killed_training_goes_on_to_the_same_weights_and_running_statistics(monkeypatch, tmp_path, settings):
    whole = fitted(RECIPE(**settings), rows(), range(20), 1)
    step, calls = loop._step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 8:  # in the last of three epochs of three steps
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "_step", killed)
    other = Images(rows().pixels, labels=rows().labels, name="other name, same content")
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "second"))
    with pytest.raises(KeyboardInterrupt):
        fitted(RECIPE(**settings), other, range(20), 1)
    monkeypatch.setattr(loop, "_step", step)
    again = fitted(RECIPE(**settings), other, range(20), 1)
    for name, value in whole.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_stopping_after_all_epochs_is_the_whole_training():
    whole = fitted(RECIPE(), rows(), range(24), 0)
    assert hash_model(fitted(RECIPE(stop_after=3), rows(), range(24), 0)) == hash_model(whole)
    assert hash_model(fitted(RECIPE(stop_after=1), rows(), range(24), 0)) != hash_model(whole)


def test_a_stopped_training_can_be_gone_on_with_where_the_optimiser_remembers_nothing():
    plain = {"momentum": 0.0, "lr": 0.05}
    whole = fitted(RECIPE(**plain), rows(), range(24), 0)
    half = fitted(RECIPE(**plain, stop_after=1), rows(), range(24), 0)
    rest = fitted(RECIPE(**plain, start=half.state_dict(), begin=1), rows(), range(24), 0)
    for ours, theirs in zip(rest.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_weights_outside_the_masks_are_exactly_zero(momentum):
    mask = torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    model = fitted(RECIPE(masks={"blocks.1.conv.weight": mask}, momentum=momentum), rows(), range(24), 0)
    weight = model.blocks[1].conv.weight.detach()
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).any()


def test_regressors_learn_the_median_or_the_mean():
    data = Images(torch.zeros(30, 1, 8, 8), targets=torch.tensor([0.0] * 20 + [3.0] * 10))
    how = {"num_classes": 1, "epochs": 40, "lr": 0.03, "batch_size": 30}
    l1, mse = (
        fitted(RECIPE(**how, regression=kind), data, range(30), 0)(data.pixels)[0, 0].item() for kind in ("l1", "mse")
    )
    assert l1 == pytest.approx(0.0, abs=0.15)
    assert mse == pytest.approx(1.0, abs=0.15)


def test_a_configuration_of_transformers_makes_its_classifier():
    from transformers import ViTConfig

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    model = fitted(image_recipe(config, epochs=1), rows(), range(24), 0)
    assert model(rows().pixels).logits.shape == (24, 3)


def test_many_are_what_each_is():
    jobs = [(range(12), 0), (range(12, 24), 1)]
    told = []
    found = fitted_many(RECIPE(), rows(), jobs, told.append)
    assert told == [1, 2]
    assert [hash_model(m) for m in found] == [hash_model(fitted(RECIPE(), rows(), r, s)) for r, s in jobs]


def test_what_has_no_name_and_what_has_no_meaning_is_refused():
    with pytest.raises(ModelError, match="a name of its own"):
        image_recipe(lambda: SmallCNN(), epochs=1)
    with pytest.raises(MethodError, match="unknown regression loss 'l3'"):
        RECIPE(regression="l3")
    with pytest.raises(ModelError, match="momentum=2"):
        RECIPE(momentum=2)
