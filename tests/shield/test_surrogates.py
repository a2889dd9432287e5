"""The networks that noise is made against: they come back as they were given, and steps are taken where pictures may be."""

import pytest
import torch
from torch import nn

from helpers.pictures import Linear
from unwrite.errors import NotFinite
from unwrite.shield.engine.surrogates import built, frozen, signed_steps, still, training_step


def mixed():
    """A network of which one part is in evaluation mode, and one weight takes no gradient."""
    torch.manual_seed(0)
    net = Linear(3, 3, 4).train()
    net.norm.eval()
    net.norm.bias.requires_grad_(False)
    return net


def state(net):
    return [module.training for module in net.modules()], [one.requires_grad for one in net.parameters()]


@pytest.mark.parametrize("block", [frozen, still])
def test_a_network_comes_back_in_its_parts_own_modes_also_after_an_error(block):
    net = mixed()
    before = state(net)
    with block(net):
        assert not any(one.requires_grad for one in net.parameters())
    assert state(net) == before
    with pytest.raises(ZeroDivisionError), block(net):
        _ = 1 / 0
    assert state(net) == before


def test_running_statistics_move_in_training_mode_and_are_put_back():
    net = Linear(3, 3, 4).train()
    before = net.norm.running_mean.clone()
    with still(net):
        assert net.training
        net(torch.rand(6, 3, 4, 4))
        assert not torch.equal(net.norm.running_mean, before)
    assert torch.equal(net.norm.running_mean, before)
    assert net.norm.num_batches_tracked == 0
    with frozen(net):
        net(torch.rand(6, 3, 4, 4))
        assert torch.equal(net.norm.running_mean, before)


class Hill(nn.Module):
    """The logit of class 1 is highest where the pixel is 1.2, beyond what a picture may have."""

    def __init__(self):
        super().__init__()
        self.top = nn.Parameter(torch.tensor(1.2))

    def forward(self, pixels):
        value = -((pixels.flatten(1)[:, :1] - self.top) ** 2)
        return torch.cat([torch.zeros_like(value), value], 1)


@pytest.mark.parametrize(("noise", "alpha", "steps", "expected"), [(0.5, 0.1, 1, 0.2), (0.05, 0.3, 2, 0.4)])
def test_gradients_are_taken_at_pictures_and_not_beyond_them(noise, alpha, steps, expected):
    """Up to 1 the way to the hill is up; from 1.4 or 1.25 it would be down."""
    pixels, labels = torch.full((1, 1, 1, 1), 0.9), torch.tensor([1])
    net = Hill()
    with frozen(net):
        moved = signed_steps(net, pixels, labels, torch.full_like(pixels, noise), eps=1.0, alpha=alpha, steps=steps)
    assert moved.item() == pytest.approx(expected)


def test_a_loss_that_is_no_number_is_refused_and_a_step_is_in_training_mode():
    net = Linear(3, 3, 4).eval()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    training_step(net, optimiser, torch.rand(6, 3, 4, 4), torch.arange(6) % 3, 5.0)
    assert net.training
    with pytest.raises(NotFinite, match=r"the surrogate's loss is nan. Lower its learning rate"):
        training_step(net, optimiser, torch.full((6, 3, 4, 4), float("nan")), torch.arange(6) % 3, 5.0)


def test_a_networks_weights_follow_from_the_seed_alone():
    first = built(Linear, 3, (3, 4, 4), 7)
    torch.manual_seed(1)
    again, other = built(Linear, 3, (3, 4, 4), 7), built(Linear, 3, (3, 4, 4), 8)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert first.training
