"""UEraser: the hardest of several augmented copies, when there are several, and the augmentations one by one."""

import numpy as np
import pytest
import torch
from defending import generator, model, moment, pictures, plain
from PIL import Image, ImageOps
from torch.nn import functional as F

from unwrite.shield import JPEG, UEraser
from unwrite.shield.defences import ueraser as module
from unwrite.shield.defences.ueraser import hardest
from unwrite.shield.engine import augmenting


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


def test_the_chain_is_brightness_contrast_channels_trivial_augment_and_jpeg_each_at_the_chance_given(monkeypatch):
    seen = []

    def noted(name):
        def operation(pixels, *given, **how):
            seen.append((name, *given[1:], how))
            return pixels + 0.01

        return operation

    for name in ("plasma_brightness", "plasma_contrast", "shuffle_channels", "trivial_augment"):
        monkeypatch.setattr(module, name, noted(name))
    monkeypatch.setattr(module, "jpeg", lambda pixels, quality: seen.append(("jpeg", quality)) or pixels + 0.01)
    pixels, _ = pictures()
    chance = {"chance": 0.2}
    expected = [
        ("plasma_brightness", chance),
        ("plasma_contrast", chance),
        ("shuffle_channels", chance),
        ("trivial_augment", {}),
    ]
    assert torch.allclose(UEraser(chance=0.2).augmented(pixels, generator()), pixels + 0.04)
    assert seen == expected
    seen.clear()
    assert torch.allclose(UEraser(chance=0.2, quality=7).augmented(pixels, generator()), pixels + 0.05)
    assert seen == [*expected, ("jpeg", 7)]
