"""The graph of a net by watching one forward: which channels can be taken out, which can't and why."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import Chain, Flattened, Residual, settled
from unwrite.compress import UDFC, net_graph
from unwrite.errors import ModelError, Notice
from unwrite.nets import SmallCNN, SmallResNet, SmallViT

PICTURE = (3, 8, 8)


def facts(net, shape=PICTURE):
    return {layer.name: (layer.consumer, layer.block, layer.reason) for layer in net_graph(net, shape).layers}


class After(nn.Module):
    """A convolution and its normalisation, then what is given, then a convolution of 1x1 and a mean."""

    def __init__(self, between, groups=1, own=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1, groups=own), nn.BatchNorm2d(6)
        self.between, self.next = between, nn.Conv2d(6, 6, 1, groups=groups)

    def forward(self, pixels):
        return self.next(self.between(self.norm(self.conv(pixels)))).mean((2, 3))


def after(between, **options):
    return facts(After(between, **options).eval())["conv"]


def test_a_chain_is_read_to_its_head():
    assert facts(Chain().eval()) == {
        "conv1": ("conv2", 1, ""),
        "conv2": ("head", 1, ""),
        "head": ("", 1, "a linear layer has no batch normalisation"),
    }
    assert facts(Flattened().eval())["conv2"] == ("head", 4, "")


def test_in_a_residual_net_only_the_inner_convolution_can_lose_channels():
    read = facts(Residual().eval())
    assert read["block.conv1"] == ("block.conv2", 1, "")
    assert read["stem"] == ("", 1, "2 places read its output")
    assert read["block.conv2"] == ("", 1, "add joins its output with another")


def test_the_librarys_own_nets():
    assert [layer.consumer for layer in net_graph(SmallCNN(channels=3, image_size=32).eval()).chains] == [
        "blocks.1.conv", "blocks.2.conv", "blocks.3.conv", "head",
    ]  # fmt: skip
    assert net_graph(SmallCNN().eval()).example_shape == (1, 8, 8)
    assert [layer.name for layer in net_graph(SmallResNet().eval()).chains] == [f"blocks.{n}.conv1" for n in range(3)]


@pytest.mark.parametrize(
    "between",
    [
        nn.Identity(), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)), nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1)), nn.Hardtanh(0, 4),
    ],
)  # fmt: skip
def test_what_a_channel_passes_through(between):
    assert after(between)[0] == "next"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.SiLU(), "silu"), (nn.GELU(), "gelu"), (nn.Hardtanh(-1, 1), "hardtanh"), (nn.Sequential(nn.ReLU(), nn.ReLU()), "relu"),
        (nn.ConstantPad2d(1, 0.5), "pad"), (nn.BatchNorm2d(6), "normalised twice"), (nn.Softmax2d(), "softmax"),
        (nn.ChannelShuffle(2), "channel_shuffle"),
    ],
)  # fmt: skip
def test_what_it_does_not_pass_through_is_named(between, reason):
    consumer, _, why = after(between)
    assert consumer == ""
    assert reason in why


def test_grouped_convolutions_neither_lose_channels_nor_receive_them():
    assert after(nn.ReLU(), groups=6) == ("", 1, "a grouped convolution reads it")
    assert after(nn.ReLU(), own=3) == ("", 1, "a grouped convolution")


class Odd(nn.Module):
    """A chain whose last step is the test's own."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.norm, self.head, self.end = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Linear(8, 2),
            end,
        )

    def forward(self, pixels):
        return self.end(self, F.relu(self.norm(self.conv(pixels))))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda net, x: (net.head(x.mean((2, 3))), x), "2 places read"),  # the second is the caller
        (lambda net, x: x, "the model's"),
        (lambda net, x: net.head(x.mean((1, 2))), "mean"),  # a mean over channels, as many as columns
        (lambda net, x: net.head(x), "along another axis"),
        (lambda net, x: net.head(x.permute(0, 2, 1, 3)).sum(), "permute"),
        (lambda net, x: net.head(torch.cat([x, x], 1).mean((2, 3))[:, :8]), "cat"),
    ],
)
def test_ends_that_keep_every_channel(end, reason):
    consumer, _, why = facts(Odd(end).eval())["conv"]
    assert consumer == ""
    assert reason in why


def test_refuses_training_mode():
    with pytest.raises(ModelError, match=r"it is in training mode. Call model.eval"):
        net_graph(Chain(), PICTURE)
    net = Chain().eval()
    net.norm2.train()
    with pytest.raises(ModelError, match="its norm2 is in training mode"):
        net_graph(net, PICTURE)


def test_refuses_a_net_without_batch_normalisation():
    with pytest.raises(ModelError, match="SmallViT has no batch normalisation"):
        net_graph(SmallViT().eval())


def test_refuses_a_module_that_runs_twice():
    net = Chain(widths=(8, 8)).eval()
    net.norm2 = net.norm1
    with pytest.raises(ModelError, match=r"norm1 of Chain runs 2 times"):
        net_graph(net, PICTURE)
    net = Chain(widths=(3, 3)).eval()
    net.conv2.weight = net.conv1.weight  # two modules, one weight
    with pytest.raises(ModelError, match=r"conv1 of Chain runs 2 times"):
        net_graph(net, PICTURE)


def test_refuses_a_shape_that_the_net_does_not_take():
    with pytest.raises(ModelError, match=r"takes no such picture \(1x8x8: .* Give example_shape"):
        net_graph(Chain().eval(), (1, 8, 8))


def test_a_net_whose_channels_all_stay_is_rounded_and_the_user_told():
    net = settled(After(nn.SiLU()))
    with pytest.warns(Notice, match=r"no channel of After can be taken out: .*silu"):
        smaller, report = UDFC(prune_ratio=0.5, bits=4).apply(net, PICTURE)
    assert smaller.conv.out_channels == 6
    assert report["conv"].kept is None
    assert len(smaller.conv.weight.unique()) <= 15


def test_statistics_that_are_not_kept_stand_for_nothing():
    net = Chain()
    net.norm1 = nn.BatchNorm2d(8, track_running_stats=False)
    assert facts(net.eval())["conv1"] == ("", 1, "no batch normalisation of its own follows")


def test_normalisation_without_factors_folds_as_well():
    net = settled(Chain())
    net.norm1 = nn.BatchNorm2d(8, affine=False).eval()
    smaller, report = UDFC(prune_ratio=0.5).apply(net, PICTURE)
    assert report["conv1"].kept_count == 4
    assert smaller(torch.rand(2, *PICTURE)).shape == (2, 10)
