"""UDFC: lost channels as combinations of kept ones, in closed form, given to the layer that reads them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.nets import Chain, Flattened, Residual, settled
from unwrite.compress import UDFC, Damage, RidgeCombination, quantise
from unwrite.compress.nets.graph import net_graph
from unwrite.compress.nets.shrinking import consumer_input, folded, folding, kept_channels
from unwrite.errors import MethodError

PICTURE = (3, 8, 8)


def damage(filters, biases, kept, survivors=None):
    filters, biases, kept = torch.tensor(filters).double(), torch.tensor(biases).double(), torch.tensor(kept)
    return Damage(filters, biases, kept, filters[kept] if survivors is None else survivors)


def random_damage(channels=7, inputs=9, kept=(0, 2, 3, 5), noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(channels, inputs, generator=generator).double()
    kept = torch.tensor(kept)
    rounded = filters[kept] + noise * torch.randn(len(kept), inputs, generator=generator).double()
    return Damage(filters, torch.randn(channels, generator=generator).double(), kept, rounded)


def same_state(one, other):
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def with_a_copy(net):
    """The net with channel 1 of its first convolution twice channel 0 after normalisation, in a shorter filter."""
    with torch.no_grad():
        net.conv1.weight[1] = 0.5 * net.conv1.weight[0]
        net.norm1.running_var[1] = net.norm1.running_var[0]
        net.norm1.running_mean[1] = 0.5 * net.norm1.running_mean[0]
        net.norm1.weight[1] = 4 * net.norm1.weight[0]
        net.norm1.bias[1] = 2 * net.norm1.bias[0]
    return net


# Must hold 1


def test_a_double_comes_out_as_twice_the_other_and_the_net_answers_as_before():
    net = with_a_copy(settled(Chain(widths=(2, 4))))
    smaller, report = UDFC(prune_ratio=0.5, bits=None, alpha2=1e-12).apply(net, PICTURE)
    pixels = torch.rand(5, *PICTURE)
    assert report["conv1"].kept.tolist() == [0]
    assert report["conv1"].combination[1].item() == pytest.approx(2, abs=1e-9)
    halved, _ = UDFC(prune_ratio=0.5, bits=None, reconstruct=False).apply(net, PICTURE)
    first, rest = nn.Sequential(net.conv1, net.norm1, net.act), copy.deepcopy(net)
    assert first(pixels)[:, 1].max() > 0  # the double says something
    rest.conv1, rest.norm1, rest.conv2 = smaller.conv1, smaller.norm1, _merged_reader(net, report)
    assert torch.allclose(rest(pixels), net(pixels), atol=1e-5)
    assert not torch.allclose(halved(pixels), net(pixels), atol=1e-2)


def _merged_reader(net, report):
    """The second convolution as the first one's repair leaves it, all its outputs kept."""
    reader = nn.Conv2d(1, net.conv2.out_channels, 3, padding=1, bias=False)
    merged = torch.einsum("ocxy,ck->okxy", net.conv2.weight.double(), report["conv1"].combination)
    reader.weight = nn.Parameter(merged.float())
    return reader


def test_a_double_with_the_papers_weights_is_1_99602():
    one = damage([[2.0, 0.0], [4.0, 0.0]], [1.0, 2.0], [0])
    s = RidgeCombination(alpha1=0.01, alpha2=0.008)(one)
    assert s[1].item() == pytest.approx(2 * 4.01 / 4.018, abs=1e-12)
    assert s[1].item() == pytest.approx(1.99602, abs=5e-6)


# Must hold 2


def test_two_kept_channels_solve_to_the_cards_numbers():
    three = damage([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1, 1]], [0.5, -0.5, 1.0], [0, 1])
    plain = RidgeCombination(alpha1=0, alpha2=0)
    s = plain(three)
    assert torch.allclose(s[2], torch.ones(2).double())
    weight, bias = plain.errors(three, s)
    assert (weight[2].item(), bias[2].item()) == pytest.approx((1.0, 1.0))
    assert RidgeCombination(0.01, 0.008)(three)[2].tolist() == pytest.approx([0.99700, 0.98713], abs=5e-6)


# Must hold 3


def test_a_huge_ridge_is_plain_pruning_and_rounding():
    net = settled(Chain())
    ridged, report = UDFC(prune_ratio=0.5, bits=4, alpha2=1e30).apply(net, PICTURE)
    plain, _ = UDFC(prune_ratio=0.5, bits=4, reconstruct=False).apply(net, PICTURE)
    assert same_state(ridged, plain)
    assert (report["conv1"].combination.abs().sum(1) - 1).abs().max() < 1.001  # a 1 or next to nothing in each row


def test_nothing_asked_for_leaves_every_bit():
    net = settled(Residual())
    same, report = UDFC(prune_ratio=0, bits=None).apply(net, PICTURE)
    assert same_state(same, net)
    assert same is not net
    assert (report.nbytes, report.flops) == (report.nbytes_before, report.flops_before)


# Must hold 4


def test_the_combination_is_where_the_gradient_vanishes_and_anything_else_is_worse():
    objective, one = RidgeCombination(0.01, 0.008), random_damage()
    s = objective(one).requires_grad_()
    (gradient,) = torch.autograd.grad(objective.energy(one, s).sum(), s)
    free = ~one.selection.bool()
    assert gradient[free].abs().max() < 1e-8
    assert gradient[~free].abs().max() > 1e-3  # a kept channel would rather be itself, and must not
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-1, 10):
        other = s.detach() + scale * torch.randn(s.shape, generator=generator).double() * free
        assert (objective.energy(one, other) > objective.energy(one, s)).all()


def test_a_kept_channel_is_repaired_as_if_its_own_filter_were_not_there():
    one = random_damage()
    s = RidgeCombination(0.01, 0.008)(one)
    others, column = [0, 1, 3], one.survivors[[0, 1, 3]].T  # without channel 3, the third that is kept
    biases = one.biases[one.kept][others]
    gram = column.T @ column + 0.01 * torch.outer(biases, biases) + 0.008 * torch.eye(3)
    expected = torch.linalg.solve(gram, column.T @ (one.filters[3] - one.survivors[2]))
    assert torch.allclose(s[3][others], expected)
    assert s[3][2] == 0


# Must hold 5


def test_no_channels_error_grows():
    _, report = UDFC(prune_ratio=0.5, bits=3).apply(settled(Flattened()), PICTURE)
    for layer in report.prunable:
        assert (layer.left <= layer.lost * (1 + 1e-12)).all()
        assert layer.left.sum() < layer.lost.sum()


def test_a_single_channels_error_falls_by_the_ratio_of_the_weight_terms():
    """White noise through a linear layer: its mean squared answer is the sum over unit inputs."""
    net = settled(Chain(widths=(4, 3), kernel=1, act=False))
    units = torch.zeros(4, 3, 1, 1)
    units[1:, :, 0, 0] = torch.eye(3)
    shape = (3, 1, 1)

    def error(method):
        smaller, report = method.apply(net, shape)
        reader = nn.Conv2d(3, 3, 1, bias=False)
        reader.weight = nn.Parameter(
            torch.einsum("ocxy,ck->okxy", net.conv2.weight.double(), report["conv1"].combination).float()
        )
        now = reader(smaller.norm1(smaller.conv1(units)))
        gap = now - net.conv2(net.norm1(net.conv1(units)))
        lost = next(n for n in range(4) if n not in report["conv1"].kept.tolist())
        return (gap[1:] - gap[:1]).square().sum().item(), report["conv1"], lost

    plain, _, _ = error(UDFC(prune_ratio=0.25, bits=None, reconstruct=False))
    repaired, layer, lost = error(UDFC(prune_ratio=0.25, bits=None))
    factor, _ = folding(net, net_graph(net, shape).layers[0])
    filters = folded(net.conv1.weight, factor)
    left = filters[lost] - layer.combination[lost] @ filters[layer.kept]
    assert plain / repaired == pytest.approx((filters[lost].square().sum() / left.square().sum()).item(), rel=1e-4)
    assert plain > repaired


# Must hold 6


@pytest.mark.parametrize("net", [Chain, Flattened, Residual])
def test_layers_become_smaller_and_their_cost_is_what_a_counter_says(net):
    whole = settled(net())
    with FlopCounterMode(display=False) as counter:
        whole(torch.rand(1, *PICTURE))
    smaller, report = UDFC(prune_ratio=0.5, bits=6).apply(whole, PICTURE)
    assert counter.get_total_flops() == report.flops_before
    with FlopCounterMode(display=False) as counter:
        smaller(torch.rand(1, *PICTURE))
    assert counter.get_total_flops() == report.flops < report.flops_before
    assert report.prunable
    for layer in report.prunable:
        conv = smaller.get_submodule(layer.name)
        assert conv.out_channels == len(conv.weight) == layer.kept_count == layer.channels // 2


def test_normalisation_keeps_its_own_statistics_and_two_runs_are_one():
    net = settled(Residual())
    before = copy.deepcopy(net.state_dict())
    one, report = UDFC(prune_ratio=0.4, bits=5).apply(net, PICTURE)
    again, _ = UDFC(prune_ratio=0.4, bits=5).apply(net, PICTURE)
    assert same_state(one, again)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    kept = report["block.conv1"].kept
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert torch.equal(getattr(one.block.norm1, name), getattr(net.block.norm1, name)[kept])
        assert torch.equal(getattr(one.block.norm2, name), getattr(net.block.norm2, name))


def test_in_place_changes_the_net_itself():
    net = settled(Chain())
    smaller, _ = UDFC(prune_ratio=0.5).apply(net, PICTURE, in_place=True)
    assert smaller is net
    assert net.conv1.out_channels == 4


# Must hold 7


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_a_step_has_at_most_so_many_values(bits, per_channel):
    smaller, report = UDFC(prune_ratio=0.25, bits=bits, per_channel=per_channel).apply(settled(Flattened()), PICTURE)
    for layer in report.layers:
        weight = smaller.get_submodule(layer.name).weight
        groups = weight if per_channel else weight[None]
        assert all(len(group.unique()) <= 2**bits - 1 for group in groups)
        assert layer.step.numel() == (len(weight) if per_channel else 1)


def test_the_next_layer_is_rounded_after_it_made_up_for_the_last():
    net = settled(Flattened())
    smaller, report = UDFC(prune_ratio=0.5, bits=4).apply(net, PICTURE)
    repaired = torch.einsum("ocw,ck->okw", net.head.weight.reshape(10, 6, -1).double(), report["conv2"].combination)
    assert torch.equal(smaller.head.weight, quantise(repaired.flatten(1).float(), 4).values)
    assert not torch.equal(repaired.flatten(1).float(), smaller.head.weight)


# Must hold 8


def test_both_damages_at_once_leave_less_than_one_after_the_other():
    net = settled(Residual())
    _, joint = UDFC(prune_ratio=0.5, bits=3).apply(net, PICTURE)
    _, apart = UDFC(prune_ratio=0.5, bits=3, joint=False).apply(net, PICTURE)
    one, other = joint["block.conv1"], apart["block.conv1"]
    assert torch.equal(one.lost, other.lost)
    assert (one.left < other.left).all()
    assert torch.equal(other.combination[other.kept], torch.eye(len(other.kept)).double())  # rounding is not repaired


# Settings


def test_one_term_is_the_best_single_partner():
    one = random_damage()
    objective = RidgeCombination(0.01, 0.008, max_terms=1)
    s, free = objective(one), ~one.selection.bool()
    assert ((s != 0).sum(1) == 1).all()
    for partner in range(4):
        column = one.survivors[partner]
        filters, biases = one.missing
        bias = one.biases[one.kept[partner]]
        best = (filters @ column + 0.01 * biases * bias) / (column @ column + 0.01 * bias**2 + 0.008)
        single = torch.zeros_like(s)
        single[:, partner] = best * free[:, partner]
        assert (objective.energy(one, s) <= objective.energy(one, single) + 1e-12).all()


def test_more_terms_leave_less_and_all_are_the_closed_form():
    one = random_damage()
    left = [
        RidgeCombination(max_terms=terms).energy(one, RidgeCombination(max_terms=terms)(one)).sum()
        for terms in (1, 2, 3)
    ]
    full = RidgeCombination()(one)
    assert left[0] > left[1] > left[2] > RidgeCombination().energy(one, full).sum() - 1e-12
    assert torch.equal(RidgeCombination(max_terms=4)(one), full)
    three = RidgeCombination(max_terms=3)(one)
    assert torch.allclose(three[one.kept], full[one.kept])  # three others are all that a kept channel has


def test_what_is_whole_takes_no_terms():
    one = random_damage(noise=0)
    s = RidgeCombination(max_terms=2)(one)
    assert not s[one.kept].any()
    assert ((s != 0).sum(1) == 2).sum() == 3  # the pruned ones


def test_normalised_a_scale_of_the_filters_changes_nothing():
    small, large = random_damage(), random_damage()
    large = Damage(100 * large.filters, 100 * large.biases, large.kept, 100 * large.survivors)
    level = RidgeCombination(alpha2=0.5, normalise=True)
    assert torch.allclose(level(large), level(small))
    assert not torch.allclose(RidgeCombination(alpha2=0.5)(large), RidgeCombination(alpha2=0.5)(small))
    assert torch.allclose(
        RidgeCombination(alpha2=0.5 * small.survivors.norm(dim=1).mean().item() ** 2)(small), level(small)
    )


def test_which_channels_stay_by_each_criterion():
    net = settled(Chain(widths=(4, 3), kernel=1))
    with torch.no_grad():
        rows = [[3.0, 0, 0], [1.7, 1.7, 1.7], [3.1, 0.1, 0], [-2.0, 0, 0]]
        net.conv1.weight.copy_(torch.tensor(rows)[:, :, None, None])
        net.norm1.weight.copy_(torch.tensor([9.0, 0.1, 0.1, -9.0]))
        net.norm1.running_var.fill_(1)
    layer = net_graph(net, PICTURE).layers[0]
    stay = {name: kept_channels(net, layer, 2, name).tolist() for name in ("l1", "l2", "geometric-median", "folded-l2")}
    assert stay == {"l1": [1, 2], "l2": [0, 2], "geometric-median": [1, 3], "folded-l2": [0, 3]}


def test_folding_is_what_normalisation_computes():
    net = settled(Chain(bias=True))
    net.norm1.eps = 0.3
    layer, pixels = net_graph(net, PICTURE).layers[0], torch.rand(2, *PICTURE)
    factor, offset = folding(net, layer)
    conv = nn.functional.conv2d(
        pixels.double(), folded(net.conv1.weight, factor).reshape(net.conv1.weight.shape), padding=1
    )
    assert torch.allclose(conv + offset[:, None, None], net.norm1(net.conv1(pixels)).double(), atol=1e-5)


def test_a_flattened_picture_is_a_block_of_inputs_a_channel():
    net = settled(Flattened())
    layer = next(one for one in net_graph(net, PICTURE).layers if one.name == "conv2")
    assert (layer.consumer, layer.block) == ("head", 4)
    assert torch.equal(consumer_input(net, layer)[:, 2], net.head.weight[:, 8:12])
    smaller, _ = UDFC(prune_ratio=0.5, bits=None, reconstruct=False).apply(net, PICTURE)
    assert smaller.head.in_features == 12


def test_the_report_says_where_the_assumption_is_weak():
    net = settled(Chain())
    with torch.no_grad():
        net.norm1.weight.copy_(torch.tensor([-1.0, -1, 1, 1, 1, 1, 1, 1]))
        net.norm1.bias.copy_(torch.tensor([0.0, -4, -4, -2, 0, 0, 0, 0]))
    _, report = UDFC().apply(net, PICTURE)
    assert (report["conv1"].negative_share, report["conv1"].asleep_share) == (0.25, 0.25)


# Refusals


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan")])
def test_refuses_a_share_outside_0_to_1(ratio):
    with pytest.raises(MethodError, match=r"prune_ratio is .* from 0 to below 1"):
        UDFC(prune_ratio=ratio)


@pytest.mark.parametrize("bits", [0, 1, 17, 4.0, True])
def test_refuses_bits_outside_2_to_16(bits):
    with pytest.raises(MethodError, match="from 2 to 16"):
        UDFC(bits=bits)


@pytest.mark.parametrize(
    "field", [{"alpha1": -1}, {"alpha2": float("nan")}, {"alpha2": float("inf")}, {"criterion": "l3"}, {"max_terms": 0}]
)
def test_refuses_fields_without_meaning(field):
    with pytest.raises(MethodError):
        UDFC(**field)


def test_refuses_a_share_that_leaves_a_layer_empty_before_it_changes_anything():
    net = settled(Chain())
    before = copy.deepcopy(net)
    with pytest.raises(MethodError, match="leaves none of the 8 channels of conv1"):
        UDFC(prune_ratio=0.97).apply(net, PICTURE, in_place=True)
    assert same_state(net, before)


@pytest.mark.parametrize("terms", [None, 2])
def test_refuses_dependent_channels_without_a_ridge(terms):
    one = damage([[1.0, 0], [1.0, 0], [1.0, 0], [0.5, 1]], [1.0, 1, 1, 0], [0, 1, 2])
    with pytest.raises(MethodError, match="alpha2"):
        RidgeCombination(alpha1=0.01, alpha2=0, max_terms=terms)(one)
