"""Training against attacks: plain training where there is no room, by hand, and by the official figures."""

import numpy as np
import pytest
import torch
from defending import generator, model, moment, pictures, plain
from torch import nn

from unwrite.errors import MethodError
from unwrite.shield import AdversarialTraining, Undefended
from unwrite.shield.defences.adversarial import worst_case
from unwrite.shield.engine.surrogates import frozen


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["normal", "uniform"])
def test_adversarial_training_with_no_room_is_plain_training_to_the_last_bit(norm, start):
    pixels, labels = pictures()
    one, two = model(), model()
    for net, defence in ((one, AdversarialTraining(eps=0.0, norm=norm, start=start, alpha=0.01)), (two, Undefended())):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
        for step in range(3):
            defence.loss(net, pixels, labels, moment(seed=step)).backward()
            optimiser.step()
            optimiser.zero_grad()
    state = two.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.7)])
def test_worst_cases_stay_within_eps_and_in_range_and_raise_the_loss(norm, eps):
    net, (pixels, labels) = model(), pictures()
    with frozen(net):
        begin = pixels + 0.01 * torch.randn(pixels.shape, generator=generator())
        moved = worst_case(net, pixels, labels, begin, eps=eps, alpha=eps / 3, steps=10, norm=norm)
        change = moved - pixels
        size = change.abs().amax((1, 2, 3)) if norm == "linf" else change.flatten(1).norm(dim=1)
        assert (size <= eps * (1 + 1e-5)).all()
        assert size.max() > 0.9 * eps
        assert 0 <= moved.min() <= moved.max() <= 1
        assert plain(net, moved, labels) > plain(net, pixels, labels) + 0.01


class Slope(nn.Module):
    """Two logits, 0 and the dot product with fixed weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, pixels):
        value = pixels.flatten(1) @ self.weights
        return torch.stack([torch.zeros_like(value), value], 1)


def test_steps_by_hand_go_along_the_sign_or_along_the_gradient_and_are_projected():
    """Of label 0 the loss rises with the dot product: up along (3, 4)."""
    pixels, labels, net = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), Slope([3.0, 4.0])
    settings = {"steps": 1, "begin": pixels}
    with frozen(net):

        def moved(**how):
            return (worst_case(net, pixels, labels, **{**settings, **how}) - pixels).flatten().tolist()

        assert moved(eps=1.0, alpha=0.1, norm="linf") == pytest.approx([0.1, 0.1])
        assert moved(eps=0.05, alpha=0.1, norm="linf") == pytest.approx([0.05, 0.05])
        assert moved(eps=1.0, alpha=0.1, norm="l2") == pytest.approx([0.06, 0.08])
        assert moved(eps=0.05, alpha=0.1, norm="l2") == pytest.approx([0.03, 0.04], rel=1e-5)
        assert moved(eps=1.0, alpha=0.1, norm="l2", steps=3) == pytest.approx([0.18, 0.24], rel=1e-5)
        assert moved(eps=1.0, alpha=0.8, norm="linf") == pytest.approx([0.5, 0.5])  # 1 is the most


def test_adversarial_training_starts_from_noise_of_its_own_and_trains_on_the_worst_case_alone():
    net, (pixels, labels) = model(), pictures()
    defence = AdversarialTraining(steps=3)
    loss = defence.loss(net, pixels, labels, moment(seed=4))
    begin = pixels + 2 / 255 * torch.randn(pixels.shape, generator=generator(4))
    twin = model()
    with frozen(twin):
        moved = worst_case(twin, pixels, labels, begin, eps=8 / 255, alpha=2 / 255, steps=3, norm="linf")
    assert torch.equal(loss, plain(twin, moved, labels))
    assert defence.loss(net, pixels, labels, moment(seed=5)) != loss
    uniform = AdversarialTraining(start="uniform", eps=0.5)._begin(torch.full((1, 1, 40, 40), 0.9), generator())
    assert uniform.max() == 1
    assert uniform.min() == pytest.approx(0.4, abs=0.01)


class Published(nn.Module):
    """The network that official figures are of."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, pixels):
        return torch.tanh(pixels.flatten(1) @ self.first.T) @ self.second.T


@pytest.mark.parametrize(
    ("eps", "alpha", "loss", "gradient"),
    [
        (8 / 255, 2 / 255, 2.634467601776123, 4.473844528198242),
        (0.031, 0.007, 2.6251111030578613, 4.482571125030518),
        (4 / 255, 2 / 255, 2.290799379348755, 4.413386821746826),
    ],
)
def test_adversarial_training_gives_the_official_figures(eps, alpha, loss, gradient):
    """MadrysLoss of HanxunH/Unlearnable-Examples at f347155 with 10 steps, its noise from torch's generator at seed 3."""
    numbers = np.random.default_rng(7)
    pixels = torch.from_numpy(numbers.random((5, 3, 6, 6))).float()
    labels = torch.from_numpy(numbers.integers(0, 4, 5))
    first, second = (torch.from_numpy(numbers.normal(size=size)).float() for size in ((8, 108), (4, 8)))
    net = Published(first * 0.2, second)
    measured = AdversarialTraining(eps=eps, alpha=alpha).loss(net, pixels, labels, moment(seed=3))
    measured.backward()
    assert measured.item() == pytest.approx(loss, rel=1e-5)
    assert net.second.grad.abs().sum().item() == pytest.approx(gradient, rel=1e-5)


def test_the_running_statistics_stay_while_a_batch_is_attacked():
    net, (pixels, labels) = model(), pictures()
    twin = model()
    AdversarialTraining(eps=0.0, steps=2).loss(net, pixels, labels, moment())
    plain(twin, pixels, labels)
    assert torch.equal(net.norm.running_mean, twin.norm.running_mean)
    assert net.norm.num_batches_tracked == 1


def test_steps_are_2_levels_and_of_length_1_5_eps_over_the_steps_in_l2():
    assert AdversarialTraining().step_size == 2 / 255
    assert AdversarialTraining(norm="l2", eps=0.5).step_size == pytest.approx(0.075)
    assert AdversarialTraining(alpha=0.3, norm="l2").step_size == 0.3


def test_a_number_behind_the_name_is_eps_in_levels_and_eps_above_one_is_for_lengths_alone():
    assert AdversarialTraining.field_of_number(8) == {"eps": 8 / 255}
    with pytest.raises(MethodError, match=r"eps is 8, and pixels are in 0..1. For 8 levels of 255 give 0.0313725"):
        AdversarialTraining(eps=8)
    assert AdversarialTraining(eps=8, norm="l2").step_size == pytest.approx(1.2)


def test_in_l2_a_picture_that_is_within_eps_is_not_pushed_to_the_rim():
    net, (pixels, labels) = model(), pictures()
    with frozen(net):
        moved = worst_case(net, pixels, labels, pixels, eps=5.0, alpha=0.1, steps=2, norm="l2")
    assert (moved - pixels).flatten(1).norm(dim=1).max() <= 0.2 + 1e-5
