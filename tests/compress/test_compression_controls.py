"""What UDFC is held against: one partner, wrong partners, data, and statistics taken anew."""

import copy

import pytest
import torch

from helpers.nets import Chain, Flattened, settled
from unwrite.compress import (
    UDFC,
    ChannelMerging,
    Damage,
    ExchangedChannels,
    LeastSquaresOnData,
    RidgeCombination,
    reestimate_norms,
)
from unwrite.errors import MethodError

PICTURE = (3, 8, 8)


def of(filters, biases, kept):
    filters, kept = torch.tensor(filters).double(), torch.tensor(kept)
    return Damage(filters, torch.tensor(biases).double(), kept, filters[kept])


def test_merging_takes_the_nearest_direction_and_the_ratio_of_lengths():
    three = of([[1.0, 0], [0, 2.0], [3.0, 0.1]], [0.0, 0, 0], [0, 1])
    s = ChannelMerging()(three)
    assert s[2].tolist() == pytest.approx([(9.01) ** 0.5, 0])
    assert not s[:2].any()  # kept channels are not repaired


def test_merging_looks_at_biases_as_much_as_it_is_told():
    """Channel 1 points a little better, channel 0's bias is right."""
    three = of([[1.0, 0.2], [1.0, 0.0], [1.0, 0.05]], [1.0, -1.0, 1.0], [0, 1])
    assert ChannelMerging(cosine_weight=1)(three)[2].argmax() == 1
    assert ChannelMerging(cosine_weight=0.85)(three)[2].argmax() == 0


def test_merging_may_ask_for_a_partner_that_points_the_same_way():
    two = of([[1.0, 0], [-1.0, 0.1]], [0.0, 0], [0])
    assert ChannelMerging(threshold=None)(two)[1, 0] > 0
    assert ChannelMerging()(two)[1, 0] == 0
    near = of([[1.0, 0], [0.2, 1]], [0.0, 0], [0])
    assert ChannelMerging()(near)[1, 0] > 0
    assert ChannelMerging(threshold=0.45)(near)[1, 0] == 0
    with pytest.raises(MethodError, match="from 0 to 1"):
        ChannelMerging(cosine_weight=2)


@pytest.mark.parametrize(
    ("gamma", "variance", "published"), [((1.0, 2.0), (1.0, 1.0), 0.5), ((1.0, 1.0), (1.0, 0.25), 0.25)]
)
def test_merging_a_double_gives_its_factor_where_the_published_code_gives_another(gamma, variance, published):
    """One filter twice, normalised to twice as much.

    `published` is what create_scaling_mat_conv_thres_bn (decompose.py of friendshipkim/neuron-merging at d25cf3e, run on a filter (1, 2)
    twice beside (-3, 1), lam 0.85, no threshold) gives: the ratio of factors upside down, with variances in the place of deviations.
    """
    net = settled(Chain(widths=(2, 4)))
    with torch.no_grad():
        net.conv1.weight[1] = net.conv1.weight[0]
        net.norm1.weight.copy_(torch.tensor(gamma))
        net.norm1.running_var.copy_(torch.tensor(variance))
        net.norm1.running_mean.zero_()
        net.norm1.bias.copy_(torch.tensor([0.5, 1.0]))
    net.norm1.eps = 0.0
    _, report = UDFC(prune_ratio=0.5, bits=None).apply(net, PICTURE, combine=ChannelMerging())
    assert report["conv1"].kept.tolist() == [0]
    assert report["conv1"].combination[1, 0].item() == pytest.approx(2)
    assert published == gamma[0] / gamma[1] * variance[1] / variance[0]


def test_exchanged_weights_are_the_same_numbers_elsewhere():
    generator = torch.Generator().manual_seed(0)
    filters, kept = torch.randn(6, 9, generator=generator).double(), torch.tensor([0, 1, 4])
    one = Damage(filters, torch.zeros(6).double(), kept, filters[kept] + 0.1)
    right, wrong = RidgeCombination()(one), ExchangedChannels(RidgeCombination(), seed=3)(one)
    assert torch.equal(right.sort(1).values, wrong.sort(1).values)
    assert not torch.equal(right, wrong)
    assert torch.equal(wrong, ExchangedChannels(RidgeCombination(), seed=3)(one))


def read_by(net, name, pixels):
    seen = []
    hook = net.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(pixels)
    hook.remove()
    return seen[0]


def test_data_leaves_the_least_error_on_that_data():
    """Of what the second convolution reads, written by the kept channels: no other combination is nearer."""
    net, pixels = settled(Flattened()), torch.rand(32, *PICTURE)
    whole = read_by(net, "conv2", pixels).transpose(0, 1).flatten(1).double()
    error = {}
    for name, combine in {"data": LeastSquaresOnData(pixels, ridge=1e-9), "weights": None}.items():
        smaller, report = UDFC(prune_ratio=0.5, bits=4).apply(net, PICTURE, combine=combine)
        left = read_by(smaller, "conv2", pixels).transpose(0, 1).flatten(1).double()
        error[name] = (whole - report["conv1"].combination @ left).square().sum(1)
    assert (error["data"] <= error["weights"] * (1 + 1e-6)).all()
    assert error["data"].sum() < 0.9 * error["weights"].sum()


def test_data_leaves_the_model_as_it_was_until_its_turn():
    net, pixels = settled(Chain()), torch.rand(8, *PICTURE)
    looked = []

    def look(damage):
        layer = damage.site.model.get_submodule(damage.site.layer.name)
        weight = layer.weight.detach().clone()
        s = LeastSquaresOnData(pixels)(damage)
        looked.append(torch.equal(layer.weight, weight) and not torch.equal(damage.site.weight, weight))
        return s

    UDFC(prune_ratio=0.5, bits=3).apply(net, PICTURE, combine=look)
    assert looked == [True, True]
    before = copy.deepcopy(net.state_dict())
    UDFC(prune_ratio=0.5, bits=None).apply(net, PICTURE, combine=LeastSquaresOnData(pixels))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    _, nothing = UDFC(prune_ratio=0, bits=None).apply(net, PICTURE, combine=LeastSquaresOnData(pixels))
    assert torch.equal(nothing["conv1"].combination, torch.eye(8).double())


def test_statistics_taken_anew_are_those_of_the_pictures():
    net, pixels = settled(Chain()), torch.rand(64, *PICTURE)
    momentum = net.norm1.momentum
    reestimate_norms(net, pixels, batch_size=16)
    y = net.conv1(pixels)
    assert torch.allclose(net.norm1.running_mean, y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net.norm1.running_var, y.var((0, 2, 3)), rtol=0.05)
    assert not any(module.training for module in net.modules())
    assert net.norm1.momentum == momentum
