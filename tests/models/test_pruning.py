"""Masks prune exactly what was asked, the smallest first; sparse models are retrained from an early epoch with the mask."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from unwrite.data import Images
from unwrite.errors import MethodError, ModelError
from unwrite.models.image_training import fitted, image_recipe
from unwrite.models.pruning import (
    apply_masks,
    imp,
    magnitude_masks,
    omp,
    random_masks,
    sparsity,
    synflow_masks,
    zero_masks,
)
from unwrite.nets import SmallCNN, SmallViT
from unwrite.runs import hash_model

OFFICIAL = json.loads((Path(__file__).parent / "official_pruning.json").read_text())
SHAPE = (1, 8, 8)
CONVS = [f"blocks.{number}.conv.weight" for number in range(4)]


def wave(*shape, at=0.0):
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * numbers + at).reshape(shape)


def filled():
    """The net on which the official numbers were taken."""
    net = SmallCNN(width=4)
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(0.3 * wave(*parameter.shape, at=number))
    return net


def with_statistics(net):
    """As after a training."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.running_mean.copy_(20 * wave(norm.num_features, at=number))
        norm.running_var.fill_(0.8)
    return net


def zeros(masks):
    return {name: int((~mask).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.95, 0.999])
def test_exactly_the_rounded_share_of_all_convolution_weights_is_pruned(rate):
    net = filled()
    n = sum(dict(net.named_parameters())[name].numel() for name in CONVS)
    masks = magnitude_masks(net, rate)
    assert list(masks) == CONVS
    assert sum(zeros(masks).values()) == round(rate * n)
    assert sparsity(masks) == pytest.approx(round(rate * n) / n)


def test_the_threshold_is_global_so_layers_end_up_with_different_sparsity():
    net = filled()
    masks = magnitude_masks(net, 0.9)
    weights = dict(net.named_parameters())
    pruned = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    kept = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    assert pruned.max() <= kept.min()
    with torch.no_grad():
        weights[CONVS[0]].mul_(10)
    shares = [sparsity({name: mask}) for name, mask in magnitude_masks(net, 0.9).items()]
    assert shares[0] < 0.5 < 0.9 < shares[3]


def test_linear_layers_and_norms_are_untouched():
    net = filled()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    apply_masks(net, magnitude_masks(net, 0.95))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name not in CONVS)
    assert sum(int((dict(net.named_parameters())[name] == 0).sum()) for name in CONVS) == round(0.95 * 2052)


def test_of_equal_weights_the_earlier_are_pruned():
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(-0.5)
    assert magnitude_masks(net, 0.5)["0.weight"].flatten().tolist() == [False, False, True, True]


def test_magnitude_masks_are_the_official_ones():
    official = OFFICIAL["magnitude"]
    masks = magnitude_masks(filled(), official["rate"])
    assert zeros(masks) == official["zeros"]
    assert {n: m.flatten().nonzero()[:, 0][:10].tolist() for n, m in masks.items()} == official["first kept"]


def test_scope_weights_takes_linear_layers_too():
    masks = magnitude_masks(filled(), 0.5, "weights")
    assert list(masks) == [*CONVS, "head.weight"]
    assert sum(zeros(masks).values()) == round(0.5 * sum(mask.numel() for mask in masks.values()))


def test_a_round_within_masks_prunes_its_share_of_what_is_left():
    net = filled()
    first = magnitude_masks(net, 0.2)
    second = magnitude_masks(net, 0.2, within=first)
    left = 2052 - round(0.2 * 2052)
    assert sum(zeros(second).values()) == 2052 - left + round(0.2 * left)
    assert all(not (second[name] & ~first[name]).any() for name in CONVS)
    random = random_masks(net, 0.3, 0)
    assert all(not (magnitude_masks(net, 0.2, within=random)[name] & ~random[name]).any() for name in CONVS)


def test_random_masks_have_the_same_size_and_follow_the_seed_alone():
    masks = random_masks(filled(), 0.9, 3)
    assert sum(zeros(masks).values()) == round(0.9 * 2052)
    torch.manual_seed(5)
    again, other = random_masks(SmallCNN(width=4), 0.9, 3), random_masks(filled(), 0.9, 4)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)


def test_synaptic_flow_is_the_official_one_where_norms_are_new():
    """With one iteration the mask is the order of the scores, which are official to 1e-5."""
    from unwrite.models.pruning import _flow, _positive, _weights

    positive = _positive(filled())
    scores = _flow(positive, _weights(positive, "conv"), torch.ones(1, *SHAPE, dtype=torch.float64))
    for name, official in OFFICIAL["synflow"]["scores"].items():
        assert float(scores[name].sum()) == pytest.approx(official["sum"], rel=1e-5)
        assert scores[name].flatten()[:5].tolist() == pytest.approx(official["first"], rel=1e-5)


def test_synaptic_flow_is_conserved_from_layer_to_layer_also_after_training():
    """What biases add comes on top, so they are left out; the official sums differ from layer to layer."""
    from unwrite.models.pruning import _flow, _positive, _weights

    net = with_statistics(filled())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                # A bias that makes up for the mean, so that folded norms are scales.
                module.bias.copy_(module.weight * module.running_mean / (module.running_var + module.eps).sqrt())
        net.head.bias.zero_()
    positive = _positive(net)
    scores = _flow(positive, _weights(positive, "conv"), torch.ones(1, *SHAPE, dtype=torch.float64))
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-5)


def test_a_trained_norm_cannot_make_the_flow_negative_as_the_official_one_can():
    from unwrite.models.pruning import _flow, _positive, _weights

    net = with_statistics(filled())
    positive = _positive(net)
    outputs = []
    for module in positive.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, output: outputs.append(float(output.detach().min())))
    scores = _flow(positive, _weights(positive, "conv"), torch.ones(1, *SHAPE, dtype=torch.float64))
    assert len(outputs) == 4
    assert min(outputs) >= 0
    assert all(float(score.sum()) > 1 for score in scores.values())
    assert set(OFFICIAL["synflow"]["moved"].values()) == {0.0}  # a mean made positive is subtracted, and ReLU cuts all


def test_synflow_prunes_exactly_the_share_where_the_official_rounding_drifts():
    official = OFFICIAL["synflow"]
    masks = synflow_masks(filled(), 0.9, SHAPE)
    assert sum(zeros(masks).values()) == round(0.9 * 2052) == 1847
    assert sum(official["zeros"].values()) == 1846
    ours = {(name, int(i)) for name, mask in masks.items() for i in mask.flatten().nonzero()[:, 0]}
    theirs = {(name, i) for name, kept in official["kept"].items() for i in kept}
    assert len(ours & theirs) >= 0.98 * len(theirs)


def test_synflow_leaves_the_model_and_never_disconnects_a_layer():
    torch.manual_seed(0)
    net = SmallCNN(width=4)  # new: biases, which bring flow of their own past the first layers, are 0
    before = hash_model(net)
    masks = synflow_masks(net, 0.97, SHAPE)
    assert hash_model(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(bool(mask.any()) for mask in masks.values())


def test_zeros_of_a_pruned_model_are_found_again():
    net = filled()
    masks = magnitude_masks(net, 0.9)
    apply_masks(net, masks)
    found = zero_masks(net)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_refuses_a_rate_outside_its_range(rate):
    with pytest.raises(MethodError, match=r"rate is .*; it must be a number in \[0, 1\)"):
        magnitude_masks(filled(), rate)


def test_refuses_what_cannot_be_pruned():
    with pytest.raises(MethodError, match=r"prunes all 4 weights\. Lower it"):
        magnitude_masks(nn.Sequential(nn.Conv2d(1, 4, 1)), 0.99)
    with pytest.raises(MethodError, match=r"unknown scope 'convs'. Did you mean 'conv'\?"):
        magnitude_masks(filled(), 0.5, "convs")
    with pytest.raises(ModelError, match=r"no convolutions to prune. Take scope='weights'"):
        magnitude_masks(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), 0.5)
    with pytest.raises(ModelError, match="no weight of SmallCNN is exactly 0"):
        zero_masks(SmallCNN(width=4))
    with pytest.raises(ModelError, match="the mask names head"):
        apply_masks(filled(), {"head": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(MethodError, match="iterations is 0"):
        synflow_masks(filled(), 0.5, SHAPE, 0)
    broken = filled()
    with torch.no_grad():
        broken.blocks[1].conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"blocks.1.conv.weight has weights that are not finite"):
        magnitude_masks(broken, 0.5)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return Images(torch.rand(40, 1, 8, 8), labels=torch.arange(40) % 4)


# Plain SGD has no moments, which a rewound training can't get back.
RECIPE = partial(image_recipe, SmallCNN, epochs=4, batch_size=20, lr=0.05, momentum=0.0, width=2, num_classes=4)
ROWS = range(36)


def test_rewinding_without_pruning_is_the_dense_training_bit_for_bit(data):
    """So the retrained epochs have the learning rates and the order of rows of those that follow the early weights."""
    sparse = omp(RECIPE, data, ROWS, 1, rate=0.0, rewind_epochs=2)
    assert hash_model(sparse.model) == hash_model(fitted(RECIPE(), data, ROWS, 1))


def test_one_shot_pruning_takes_its_mask_from_the_trained_weights_and_holds_it(data):
    sparse = omp(RECIPE, data, ROWS, 1, rate=0.9, rewind_epochs=2)
    dense = fitted(RECIPE(), data, ROWS, 1)
    expected = magnitude_masks(dense, 0.9)
    assert all(torch.equal(sparse.masks[name], expected[name]) for name in expected)
    weights = dict(sparse.model.named_parameters())
    assert all((weights[name][~mask] == 0).all() for name, mask in sparse.masks.items())
    assert not torch.equal(weights["head.weight"], dense.head.weight)
    assert not sparse.model.training


def test_a_mask_taken_from_adamw_training_with_weight_decay_holds_too(data):
    sparse = omp(partial(RECIPE, momentum=None, lr=0.01, weight_decay=0.1), data, ROWS, 1, rate=0.95, rewind_epochs=0)
    weights = dict(sparse.model.named_parameters())
    assert all((weights[name][~mask] == 0).all() for name, mask in sparse.masks.items())


def test_iterative_pruning_takes_its_share_of_the_survivors_each_round(data):
    sparse = imp(RECIPE, data, ROWS, 1, rate=0.5, rounds=3, rewind_epochs=1)
    n, left = sum(mask.numel() for mask in sparse.masks.values()), 0
    left = n
    for _ in range(3):
        left -= round(0.5 * left)
    assert sum(int(mask.sum()) for mask in sparse.masks.values()) == left
    assert all(torch.equal(zero_masks(sparse.model)[name], mask) for name, mask in sparse.masks.items())


def test_refuses_rewinding_to_an_epoch_that_is_not_before_the_last(data):
    with pytest.raises(MethodError, match="rewind_epochs is 4 of 4 epochs; it must be 0 to 3"):
        omp(RECIPE, data, ROWS, 1, rewind_epochs=4)
    with pytest.raises(MethodError, match="rounds is 0"):
        imp(RECIPE, data, ROWS, 1, rounds=0)
    with pytest.raises(ModelError, match="begin=4 leaves no epoch of 4"):
        RECIPE(begin=4)


def test_a_vision_transformer_is_pruned_at_its_patches_or_as_a_whole():
    net = SmallViT(width=8, depth=1, heads=2)
    assert list(magnitude_masks(net, 0.5)) == ["patches.weight"]
    assert len(magnitude_masks(net, 0.5, "weights")) == 6
