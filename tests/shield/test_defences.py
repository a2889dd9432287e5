"""Defences against protected pictures: each the identity where it should be one, and by hand where there is a hand's example."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F

from helpers.pictures import Linear
from unwrite.errors import Notice
from unwrite.shield import (
    JPEG,
    AdversarialTraining,
    BitDepth,
    CutMix,
    Cutout,
    DeconvolutionTraining,
    Grey,
    MixUp,
    RandomSharpening,
    Smoothing,
    TrainingMoment,
    UEraser,
    Undefended,
)
from unwrite.shield.defences import mixing
from unwrite.shield.defences.adversarial import worst_case
from unwrite.shield.defences.deconvolution import stretched
from unwrite.shield.defences.sharpening import low_frequencies
from unwrite.shield.defences.ueraser import hardest
from unwrite.shield.engine import augmenting
from unwrite.shield.engine.surrogates import frozen

ROWS = torch.arange(6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(epoch=0, epochs=10, seed=0):
    return TrainingMoment(epoch, epochs, generator(seed))


def pictures(channels=3, side=8, rows=6, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, channels, side, side))
    return torch.from_numpy(pixels).float() / 255, torch.arange(rows) % 3


def model(channels=3, side=8):
    torch.manual_seed(0)
    return Linear(3, channels, side).train()


def plain(net, pixels, labels):
    return F.cross_entropy(net(pixels), labels)


# UEraser


def test_repeats_give_the_mean_of_each_pictures_largest_loss_in_repeat_major_order():
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 4.0])  # three pictures, twice
    assert hardest(losses, 2) == pytest.approx((6 + 5 + 4) / 3)
    assert hardest(losses, 3) == pytest.approx((5 + 6) / 2)
    assert hardest(losses, 2) >= losses.mean()
    assert hardest(losses, 1) == losses.mean()


def test_each_label_stays_with_its_picture_through_the_repeats(monkeypatch):
    """Copies that differ by the repeat alone: the loss is that of the copy that is worst for each picture."""
    net, (pixels, labels) = model().eval(), pictures()
    shift = torch.tensor([0.0, 0.3, -0.2])

    def moved(self, repeated, _):
        return repeated + shift.repeat_interleave(len(pixels))[:, None, None, None]

    monkeypatch.setattr(UEraser, "augmented", moved)
    each = torch.stack([F.cross_entropy(net(pixels + by), labels, reduction="none") for by in shift])
    loss = UEraser(repeats=3, schedule="max").loss(net, pixels, labels, moment())
    assert loss.item() == pytest.approx(each.max(0).values.mean().item(), rel=1e-6)
    assert loss > each.mean()


def test_one_repeat_is_the_plain_loss_of_augmented_pictures_and_none_of_the_pictures():
    net, (pixels, labels) = model(), pictures()
    augmented = UEraser().augmented(pixels, generator(3))
    assert not torch.equal(augmented, pixels)
    assert torch.equal(UEraser(repeats=1).loss(net, pixels, labels, moment(seed=3)), plain(net, augmented, labels))
    assert torch.equal(UEraser(repeats=0).loss(net, pixels, labels, moment()), plain(net, pixels, labels))


def test_several_copies_are_for_the_first_60_of_200_epochs():
    early = [UEraser().copies(epoch, 200) for epoch in range(200)]
    assert early == [5] * 60 + [1] * 140
    assert {UEraser(schedule="max").copies(epoch, 200) for epoch in range(200)} == {5}
    assert {UEraser(schedule="lite").copies(epoch, 200) for epoch in range(200)} == {1}
    assert UEraser(repeats=0, schedule="lite").copies(0, 200) == 0
    assert [UEraser().copies(epoch, 10) for epoch in range(4)] == [5, 5, 5, 1]


def test_ueraser_compresses_its_copies_where_it_is_asked_to():
    pixels, _ = pictures()
    plain_copy = UEraser().augmented(pixels, generator(3))
    assert torch.equal(UEraser(quality=10).augmented(pixels, generator(3)), JPEG(quality=10).squeezed(plain_copy))


def test_augmentations_are_drawn_for_each_picture_and_only_for_a_part_of_them():
    same = pictures(rows=1)[0].repeat(400, 1, 1, 1)
    for operation in (augmenting.plasma_brightness, augmenting.plasma_contrast, augmenting.shuffle_channels):
        result = operation(same, generator(1), chance=0.5)
        changed = (result != same).flatten(1).any(1)
        # Of a shuffle's six orders one is the picture's own.
        expected = 0.5 * (5 / 6 if operation is augmenting.shuffle_channels else 1)
        assert changed.float().mean() == pytest.approx(expected, abs=0.08)
        assert len(result[changed].flatten(1).unique(dim=0)) > 4
        assert torch.equal(operation(same, generator(1), chance=0.0), same)
    shuffled = augmenting.shuffle_channels(same, generator(1), chance=1.0)
    assert torch.equal(shuffled.sort(1).values, same.sort(1).values)


def test_trivial_augment_draws_every_operation_about_alike(monkeypatch):
    counts = {}

    def counting(name):
        def operation(pixels, values):
            counts[name] = values
            return pixels

        return operation

    table = {name: (counting(name), low, high) for name, (_, low, high) in augmenting.OPERATIONS.items()}
    monkeypatch.setattr(augmenting, "OPERATIONS", table)
    augmenting.trivial_augment(torch.zeros(2400, 1, 2, 2), generator())
    assert len(counts) == 12
    assert all(140 < len(values) < 260 for values in counts.values())
    for name, values in counts.items():
        _, low, high = table[name]
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high >= values.max() > high - 0.1 * (high - low)


def test_clouds_are_spread_as_kornias_are():
    """Its maps of 32 x 32, 400 a roughness: mean 0.50, and 0.080, 0.080 and 0.107 within a map at 0.3, 0.5 and 0.7."""
    for roughness, spread in ((0.3, 0.080), (0.5, 0.080), (0.7, 0.107)):
        clouds = augmenting.plasma((400, 3, 32, 32), torch.full((400,), roughness), generator())
        assert clouds.shape == (400, 3, 32, 32)
        assert 0 <= clouds.min() < clouds.max() <= 1
        assert clouds.mean() == pytest.approx(0.5, abs=0.01)
        assert clouds.flatten(2).std(2).mean() == pytest.approx(spread, rel=0.2)
    assert augmenting.plasma((2, 1, 20, 33), torch.rand(2), generator()).shape == (2, 1, 20, 33)
    flat = augmenting.plasma((3, 1, 9, 9), torch.zeros(3), generator())  # no noise after the corners
    assert torch.allclose(flat[:, :, 4, 4], (flat[:, :, ::8, ::8]).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "given", "expected"),
    [
        ("contrast", 1.5, [0.2, 0.4], [0.3, 0.6]),
        ("brightness", 1.3, [0.2, 0.4], [0.5, 0.7]),
        ("solarize", 0.5, [0.2, 0.5], [0.2, 0.5]),
        ("solarize", 0.4, [0.2, 0.7], [0.2, 0.3]),
        ("posterize", 1.0, [100 / 255, 200 / 255], [0.0, 128 / 255]),
        ("posterize", 0.0, [100 / 255, 200 / 255], [0.0, 0.0]),
        ("auto contrast", 0.0, [0.2, 0.4], [0.0, 1.0]),
        ("shift across", 0.5, [0.2, 0.4], [0.0, 0.2]),
    ],
)
def test_operations_of_trivial_augment_by_hand(name, value, given, expected):
    result = augmenting.OPERATIONS[name][0](torch.tensor(given).view(1, 1, 1, 2), torch.tensor([value]))
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_pictures_are_rotated_and_sheared_in_pixels_about_their_middle():
    picture = torch.zeros(1, 1, 3, 5)
    picture[0, 0, 1, 3] = 1  # one to the right of the middle
    turned = augmenting.OPERATIONS["rotate"][0](picture, torch.tensor([90.0]))
    assert turned[0, 0].argmax().item() == 0 * 5 + 2  # one above it
    above = torch.zeros(1, 1, 5, 5)
    above[0, 0, 1, 2] = 1
    sheared = augmenting.OPERATIONS["shear across"][0](above, torch.tensor([1.0]))
    assert sheared[0, 0].argmax().item() == 1 * 5 + 1  # one up, one to the left
    beside = torch.zeros(1, 1, 5, 5)
    beside[0, 0, 2, 1] = 1
    sheared = augmenting.OPERATIONS["shear down"][0](beside, torch.tensor([1.0]))
    assert sheared[0, 0].argmax().item() == 1 * 5 + 1
    down = augmenting.OPERATIONS["shift down"][0](beside, torch.tensor([0.2]))
    assert down[0, 0].argmax().item() == 3 * 5 + 1


def test_sharpness_is_between_a_smoothed_picture_and_beyond_and_leaves_the_edge():
    pixels, _ = pictures()
    sharpen = augmenting.OPERATIONS["sharpness"][0]
    assert torch.allclose(sharpen(pixels, torch.ones(6)), pixels)
    smooth = sharpen(pixels, torch.zeros(6))
    around = pixels[:, :, 2:5, 2:5]
    assert torch.allclose(smooth[:, :, 3, 3], (around.sum((2, 3)) + 4 * pixels[:, :, 3, 3]) / 13, atol=1e-6)
    assert torch.equal(smooth[:, :, 0], pixels[:, :, 0])
    assert torch.allclose(sharpen(pixels, torch.full((6,), 2.0)), 2 * pixels - smooth, atol=1e-6)


def test_equalizing_is_pillows():
    pixels, _ = pictures()
    result = augmenting.OPERATIONS["equalize"][0](pixels, torch.zeros(6))
    plane = Image.fromarray((pixels[2, 1] * 255).round().to(torch.uint8).numpy())
    assert np.array_equal((result[2, 1] * 255).round().numpy(), np.asarray(ImageOps.equalize(plane)))


# Squeezing


def test_grey_pictures_have_three_equal_channels_of_pillows_luma():
    pixels, _ = pictures()
    grey = Grey().transform(pixels, ROWS, generator())
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 1], grey[:, 2])
    picture = Image.fromarray((pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    assert np.array_equal((grey[0, 0] * 255).round().numpy(), np.asarray(picture.convert("L")))


def test_grey_pictures_given_to_greyscale_are_noticed_and_stay():
    pixels, _ = pictures(channels=1)
    assert torch.equal(Grey().transform(pixels, ROWS, generator()), pixels)
    with pytest.warns(Notice, match="the pictures are grey already, so greyscale is no defence there"):
        Grey().check((1, 8, 8))
    Grey().check((3, 8, 8))


def test_jpeg_at_100_changes_a_smooth_picture_by_a_few_levels_and_at_10_leaves_a_constant_one_constant():
    slope = (torch.arange(32)[:, None] + torch.arange(32)) * 3.0 / 255
    smooth = torch.stack([slope, 0.9 * slope, 0.8 * slope + 0.1])[None]
    change = (JPEG(quality=100).squeezed(smooth) - smooth).abs() * 255
    assert 0 < change.max() <= 4
    constant = torch.full((2, 3, 20, 13), 90 / 255)
    constant[1, 0] = 10 / 255
    squeezed = JPEG(quality=10).squeezed(constant)
    assert torch.equal(squeezed, squeezed[:, :, :1, :1].expand_as(squeezed))
    assert ((JPEG(quality=10).squeezed(smooth) - smooth).abs() * 255).max() > change.max()


def test_jpeg_compresses_pictures_one_by_one_whatever_stands_beside_them():
    pixels, _ = pictures(side=10)
    together = JPEG().squeezed(pixels)
    assert torch.equal(together[2:3], JPEG().squeezed(pixels[2:3]))


def test_jpeg_halves_the_resolution_of_colour_as_pillow_does():
    """Red and blue columns of one brightness lose their difference; light and dark ones don't."""
    colours = torch.zeros(1, 3, 16, 16)
    colours[:, 0, :, ::2], colours[:, 2, :, 1::2] = 0.4, 1.0
    light = torch.zeros(1, 3, 16, 16)
    light[..., ::2] = 1
    red = JPEG(quality=100).squeezed(colours)[0, 0]
    assert (red[:, ::2] - red[:, 1::2]).abs().mean() < 0.2
    assert (JPEG(quality=100).squeezed(light) - light).abs().max() < 0.02


def test_fewer_bits_are_pillows_posterize():
    pixels, _ = pictures()
    picture = Image.fromarray((pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    for bits in (1, 3, 8):
        expected = np.asarray(ImageOps.posterize(picture, bits)).transpose(2, 0, 1)
        assert np.array_equal((BitDepth(bits=bits).squeezed(pixels)[0] * 255).round().numpy(), expected)


def test_small_filters_by_hand():
    picture = torch.zeros(1, 1, 5, 5)
    picture[0, 0, 2, 2] = 0.9
    assert Smoothing(kind="mean").squeezed(picture)[0, 0, 1:4, 1:4].flatten().tolist() == pytest.approx([0.1] * 9)
    assert Smoothing(kind="median").squeezed(picture).abs().max() == 0
    centre = 1 / (1 + 2 * math.exp(-0.5)) ** 2
    gaussian = Smoothing(kind="gaussian").squeezed(picture)[0, 0]
    assert gaussian[2, 2].item() == pytest.approx(0.9 * centre)
    assert gaussian[1, 2].item() == pytest.approx(0.9 * centre * math.exp(-0.5))
    assert gaussian[1, 1].item() == pytest.approx(0.9 * centre * math.exp(-1))
    flat = torch.full((1, 3, 4, 4), 0.3)
    for kind in ("mean", "median", "gaussian"):
        assert torch.allclose(Smoothing(kind=kind).squeezed(flat), flat)


def test_the_official_gaussian_leaves_a_picture_as_it_is():
    pixels, _ = pictures()
    assert torch.allclose(Smoothing(sigma=0.1).squeezed(pixels), pixels, atol=1e-7)


def test_clean_test_pictures_are_squeezed_only_where_asked():
    pixels, _ = pictures()
    assert torch.equal(Grey().seen_at_test(pixels), pixels)
    assert torch.equal(Grey(at_test=True).seen_at_test(pixels), Grey().squeezed(pixels))


# Adversarial training


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


# Cutting and mixing


def test_a_hole_is_a_square_about_a_random_place_in_all_channels():
    pixels = torch.ones(500, 3, 32, 32)
    cut = Cutout(side=8).cut(pixels, generator())
    holes = (cut == 0)[:, 0]
    assert torch.equal(cut[:, 0], cut[:, 2])
    sizes = holes.flatten(1).sum(1)
    assert sizes.max() == 64
    assert sizes.min() >= 16  # at a corner a quarter is left
    for hole in holes[:50]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None])
    assert holes.float().mean(0).std() < 0.03
    assert (Cutout().cut(pixels, generator()) == 0).flatten(1).sum(1).max() == 3 * 16 * 16


@pytest.mark.parametrize("defence", [MixUp(), CutMix()])
def test_mixing_with_all_of_the_first_picture_is_plain_training(defence, monkeypatch):
    monkeypatch.setattr(mixing, "beta_share", lambda concentration, generator: 1.0)
    net, (pixels, labels) = model(), pictures()
    assert torch.equal(defence.loss(net, pixels, labels, moment()), plain(net, pixels, labels))


def test_mixtures_have_their_pictures_and_labels_in_the_same_shares(monkeypatch):
    seen = {}

    class Spy(Linear):
        def forward(self, pixels):
            seen["pixels"] = pixels
            return super().forward(pixels)

    torch.manual_seed(0)
    net, (pixels, labels) = Spy(3, 3, 8).eval(), pictures()
    monkeypatch.setattr(mixing, "beta_share", lambda concentration, generator: 0.7)
    partners = torch.randperm(6, generator=generator(2))
    loss = MixUp().loss(net, pixels, labels, moment(seed=2))
    assert torch.allclose(seen["pixels"], 0.7 * pixels + 0.3 * pixels[partners])
    shares = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels[partners], 3)
    assert loss.item() == pytest.approx(F.cross_entropy(net(seen["pixels"]), shares).item(), rel=1e-5)

    loss = CutMix().loss(net, pixels, labels, moment(seed=2))
    other = (seen["pixels"] == pixels[partners]).all(1) & (seen["pixels"] != pixels).any(1)
    row = next(row for row in range(6) if partners[row] != row)
    area = other[row].float().mean().item()
    assert 0 < area <= 0.3
    assert torch.equal(seen["pixels"][row][:, ~other[row]], pixels[row][:, ~other[row]])
    shares = (1 - area) * F.one_hot(labels, 3) + area * F.one_hot(labels[partners], 3)
    assert loss.item() == pytest.approx(F.cross_entropy(net(seen["pixels"]), shares).item(), rel=1e-5)


def test_a_box_has_the_area_that_was_drawn_where_no_edge_cuts_it():
    boxes = [mixing.box_of(32, 20, 0.75, generator(seed)) for seed in range(300)]
    areas = [(bottom - top) * (right - left) for top, bottom, left, right in boxes]
    assert max(areas) == 16 * 10
    assert all(0 <= top <= bottom <= 32 and 0 <= left <= right <= 20 for top, bottom, left, right in boxes)
    assert {top for top, *_ in boxes} >= {0, 10, 20}
    assert mixing.box_of(32, 20, 1.0, generator())[0] == mixing.box_of(32, 20, 1.0, generator())[1]


def test_shares_are_of_the_beta_distribution():
    draws = [mixing.beta_share(0.5, generator(seed)) for seed in range(400)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.06)
    assert np.var(draws) == pytest.approx(1 / 8, abs=0.02)


# Against CUDA


def test_filters_are_clamped_before_each_step_and_not_after_the_last():
    net, (pixels, labels) = model().eval(), pictures()
    weights, bias = torch.full((3, 1, 7, 7), 9.0), torch.full((3,), -9.0)
    with frozen(net):

        def ascended(scale=1.0, **fields):
            return DeconvolutionTraining(**fields).ascended(net, pixels, labels, labels, weights * scale, bias * scale)

        still = ascended(steps=1, step_size=0.0)
        assert still[0].unique().tolist() == [5.0]
        assert still[1].unique().tolist() == [-5.0]
        assert torch.equal(ascended(steps=0)[0], weights)
        assert ascended(0.01, steps=1, step_size=1e4)[0].abs().max() > 5
        once = ascended(0.001, steps=1, step_size=1e4, bound=0.1)[0].clamp(-0.1, 0.1)
        twice = ascended(0.001, steps=2, step_size=1e-9, bound=0.1)[0]
        assert once.abs().max() == pytest.approx(0.1)
        assert twice.abs().max() < 0.1


def test_filters_are_steps_up_the_mean_loss_of_their_class():
    net, (pixels, labels) = model().eval(), pictures(rows=7)
    defence = DeconvolutionTraining(steps=1)
    with frozen(net):
        weights, bias = defence.drawn(3, generator())
        found = defence.ascended(net, pixels, labels, labels, weights, bias)
        longer = DeconvolutionTraining(steps=10).ascended(net, pixels, labels, labels, weights, bias)
        for label in range(3):
            rows = labels == label
            free = [one[label : label + 1].clone().requires_grad_(True) for one in (weights, bias)]
            filtered = F.conv_transpose2d(pixels[rows].flatten(0, 1)[:, None], *free, padding=3).view_as(pixels[rows])
            loss = plain(net, filtered, labels[rows])
            up = torch.autograd.grad(loss, free)
            assert torch.allclose(found[0][label], weights[label] + 0.1 * up[0][0], atol=1e-6)
            assert torch.allclose(found[1][label], bias[label] + 0.1 * up[1][0], atol=1e-6)
            after = defence.applied(pixels, labels, *longer)[rows]
            assert plain(net, after, labels[rows]) > loss


def test_fresh_filters_are_within_one_over_their_side():
    weights, bias = DeconvolutionTraining().drawn(20, generator())
    assert (weights.shape, bias.shape) == ((20, 1, 7, 7), (20,))
    assert weights.abs().max() <= 1 / 7
    assert weights.abs().max() > 0.95 / 7
    assert weights.mean().abs() < 0.01
    assert 0.05 < bias.abs().max() <= 1 / 7


def test_each_class_of_a_batch_has_its_filter_and_pictures_are_stretched_to_their_range():
    net, (pixels, labels) = model(), pictures()
    labels = torch.tensor([2, 0, 2, 0, 0, 2])  # none of class 1
    defence = DeconvolutionTraining(steps=2)
    result = defence.filtered(net, pixels, labels, generator())
    assert torch.allclose(result.amin((1, 2, 3)), torch.zeros(6))
    assert torch.allclose(result.amax((1, 2, 3)), torch.ones(6))
    weights, bias = defence.drawn(2, generator())
    found = defence.ascended(model(), pixels, labels, labels // 2, weights, bias)
    for row, label in enumerate(labels.tolist()):
        one = F.conv_transpose2d(
            pixels[row][:, None], found[0][label // 2][None], found[1][label // 2][None], padding=3
        )
        assert torch.allclose(result[row], stretched(one.transpose(0, 1))[0], atol=1e-5)
    assert net.training
    assert torch.equal(net.norm.running_mean, model().norm.running_mean)
    assert net.norm.num_batches_tracked == 0
    assert all(one.requires_grad and one.grad is None for one in net.parameters())
    rows = labels == 2
    assert not torch.equal(defence.filtered(net.eval(), pixels, labels, generator())[rows], result[rows])


def test_a_picture_is_stretched_whole_and_a_flat_one_is_black():
    pixels = torch.tensor([[[[1.0, 3.0]], [[2.0, 5.0]]], [[[4.0, 4.0]], [[4.0, 4.0]]]])
    assert stretched(pixels)[0].flatten().tolist() == [0.0, 0.5, 0.25, 1.0]
    assert stretched(pixels)[1].abs().max() == 0


def test_a_transposed_filter_that_is_one_in_the_middle_is_the_picture():
    pixels, _ = pictures()
    weights, which = torch.zeros(1, 1, 7, 7), torch.zeros(6, dtype=torch.int64)
    weights[0, 0, 3, 3] = 1
    defence = DeconvolutionTraining()
    assert torch.equal(defence.applied(pixels, which, weights, torch.zeros(1)), pixels)
    weights[0, 0, 3, 3], weights[0, 0, 3, 4] = 0, 1
    moved = defence.applied(pixels, which, weights, torch.zeros(1))
    assert torch.equal(moved[..., 1:], pixels[..., :-1])


def test_sharpening_kernels_add_up_to_one_on_average_about_the_centre_given():
    kernels = RandomSharpening(centre=2.5).kernels(4000, generator())
    assert kernels[:, [0, 0, 2, 2], [0, 2, 0, 2]].abs().max() == 0
    assert kernels[:, 1, 1].mean() == pytest.approx(2.5, abs=0.01)
    assert kernels[:, 1, 1].std() == pytest.approx(0.1, abs=0.01)
    assert kernels[:, 0, 1].mean() == pytest.approx(-0.375, abs=0.01)
    assert kernels.sum((1, 2)).mean() == pytest.approx(1, abs=0.02)
    assert kernels[:, 0, 1].std() == pytest.approx(math.hypot(0.1, 0.1 / 4), abs=0.01)
    still = RandomSharpening(centre=3.0, spread=0.0).kernels(1, generator())[0]
    assert still.tolist() == [[0, -0.5, 0], [-0.5, 3, -0.5], [0, -0.5, 0]]


def test_sharpening_by_none_and_keeping_all_frequencies_is_the_picture():
    pixels, _ = pictures()
    defence = RandomSharpening(centre=1.0, spread=0.0, share=1.0)
    assert torch.equal(defence.transform(pixels, ROWS, generator()), pixels)
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert torch.allclose(RandomSharpening(spread=0.0).transform(flat, ROWS[:2], generator()), flat, atol=1e-6)


def test_each_picture_is_sharpened_by_a_kernel_of_its_own_in_all_its_channels():
    pixels = pictures(rows=1)[0].repeat(4, 1, 1, 1)
    pixels[:, 1] = pixels[:, 0]
    sharp = RandomSharpening(centre=1.5).sharpened(pixels, generator())
    assert torch.equal(sharp[:, 0], sharp[:, 1])
    assert not torch.equal(sharp[0], sharp[1])
    kernel = RandomSharpening(centre=1.5).kernels(4, generator())[2]
    expected = (kernel * pixels[2, 0, 2:5, 3:6]).sum().clamp(0, 1)
    assert sharp[2, 0, 3, 4].item() == pytest.approx(expected.item(), abs=1e-6)


def test_low_frequencies_are_those_of_the_cosine_transform():
    from scipy.fft import dctn, idctn

    pixels, _ = pictures(side=10)
    kept = dctn(pixels.numpy(), axes=(2, 3), norm="ortho")
    kept[:, :, 3:], kept[:, :, :, 3:] = 0, 0
    expected = np.clip(idctn(kept, axes=(2, 3), norm="ortho"), 0, 1)
    assert np.allclose(low_frequencies(pixels, 0.3).numpy(), expected, atol=1e-5)
    assert torch.allclose(low_frequencies(pixels, 0.01), pixels.mean((2, 3), keepdim=True).expand_as(pixels), atol=1e-5)
    wide = torch.rand(1, 1, 6, 20, generator=generator())
    assert low_frequencies(wide, 0.5).shape == wide.shape
