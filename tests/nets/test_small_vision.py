"""The small nets fit their images, are the same for the same seed, and learn the digits in seconds."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unwrite.data.images.sets import digits
from unwrite.errors import ModelError
from unwrite.nets import SmallCNN, SmallResNet, SmallViT

NETS = [SmallCNN, SmallResNet, SmallViT]


def train(net, data, epochs, lr=3e-3, seed=0):
    """AdamW with a one-cycle rate."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=5e-4)
    steps = epochs * -(-len(data) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(data), generator=generator).split(64):
            batch = data[at]
            F.cross_entropy(net(batch.pixels), batch.target).backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    return net.eval()


@torch.no_grad()
def accuracy(net, data):
    return float((net(data.pixels).argmax(1) == data.target).float().mean())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 28), (3, 32)])
@pytest.mark.parametrize("classes", [1, 10])
def test_pixels_become_logits(net, channels, size, classes):
    model = net(classes, channels, size).eval()
    logits = model(torch.rand(3, channels, size, size))
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("net", NETS)
def test_no_net_is_larger_than_a_third_of_a_million_weights(net):
    assert sum(p.numel() for p in net(10, 3, 32).parameters()) <= 300_000


@pytest.mark.parametrize("net", NETS)
def test_the_seed_before_building_decides_the_weights(net):
    def built(seed):
        torch.manual_seed(seed)
        return net().state_dict()

    one, same, other = built(0), built(0), built(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("net", "norm"), [(SmallCNN, 4), (SmallResNet, 9), (SmallViT, 0)])
def test_convolutions_are_batch_normalised(net, norm):
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net().modules()) == norm


@pytest.mark.parametrize("net", NETS)
def test_rows_do_not_see_each_other_in_evaluation(net):
    model, pixels = net().eval(), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(pixels)[:1], model(pixels[:1]), rtol=1e-4, atol=1e-5)


def test_convolutional_nets_take_other_sizes_too():
    assert SmallCNN(image_size=8)(torch.rand(2, 1, 20, 20)).shape == (2, 10)
    assert SmallResNet(image_size=8)(torch.rand(2, 1, 20, 20)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_size": 64}, r"image_size=64 \(8 to 32\)"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"channels": 0, "width": 0}, "channels=0, width=0"),
    ],
)
@pytest.mark.parametrize("net", NETS)
def test_refuses_what_has_no_meaning(net, options, told):
    with pytest.raises(ModelError, match=f"can't be built with {told}"):
        net(**options)


def test_the_transformer_refuses_other_sizes_patches_and_heads():
    with pytest.raises(ModelError, match="a patch of 3 doesn't divide images of 8"):
        SmallViT(patch=3)
    with pytest.raises(ModelError, match="takes images of 8x8, not 9x9"):
        SmallViT()(torch.rand(1, 1, 9, 9))
    with pytest.raises(ModelError, match="3 heads and 4 blocks don't fit a width of 64"):
        SmallViT(heads=3)


def test_the_cnn_learns_the_digits_by_heart_in_seconds():
    """At least 97 % on the test rows and every training row right, in at most 30 s on one thread (measured: 2 s)."""
    sets = digits()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    net = train(SmallCNN(), sets.train, epochs=10)
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    assert accuracy(net, sets.train) == 1
    assert accuracy(net, sets.test) >= 0.97
    assert seconds <= 30


def test_the_resnet_learns_the_digits():
    """Measured after 15 epochs: 98.9 to 99.4 % on the test rows; 8 are enough for 95 %."""
    sets = digits()
    torch.manual_seed(0)
    assert accuracy(train(SmallResNet(), sets.train, epochs=8), sets.test) >= 0.95
