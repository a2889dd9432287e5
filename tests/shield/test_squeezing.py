"""Squeezing: grey, JPEG, fewer bits and small filters, as Pillow has them or by hand."""

import math

import numpy as np
import pytest
import torch
from defending import ROWS, generator, pictures
from PIL import Image, ImageOps

from unwrite.errors import DataError, Notice
from unwrite.shield import JPEG, BitDepth, Grey, Smoothing


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


def test_beyond_the_edge_a_filter_sees_the_picture_mirrored():
    """Mirrored about the pixel at the edge: left of the first stands the second."""
    picture = torch.tensor([0.9, 0.3, 0.0, 0.0]).expand(1, 1, 4, 4).clone()
    mean = Smoothing(kind="mean").squeezed(picture)[0, 0]
    assert mean[:, 0].tolist() == pytest.approx([(0.3 + 0.9 + 0.3) / 3] * 4)
    assert mean[:, 1].tolist() == pytest.approx([0.4] * 4)
    assert Smoothing(kind="median").squeezed(picture)[0, 0, :, 0].tolist() == pytest.approx([0.3] * 4)


def test_pictures_of_one_pixel_a_side_have_nothing_to_mirror_and_are_refused():
    with pytest.raises(DataError, match=r"the pictures have 9x1 pixels, and a filter of 3 x 3 needs 2 a side"):
        Smoothing().check((3, 1, 9))
    Smoothing().check((3, 2, 2))


def test_values_between_two_levels_are_rounded_before_bits_are_dropped():
    pixels = torch.tensor([63.6, 64.4, 127.5, 191.9]).view(1, 1, 2, 2) / 255
    assert (BitDepth(bits=2).squeezed(pixels) * 255).round().flatten().tolist() == [64, 64, 128, 192]


def test_defaults_of_squeezing_are_the_papers():
    assert (JPEG().quality, BitDepth().bits, Smoothing().kind, Smoothing().sigma) == (10, 2, "gaussian", 1)
    assert not any(one().at_test for one in (Grey, JPEG, BitDepth, Smoothing))
    assert JPEG.field_of_number(30) == {"quality": 30}
    assert BitDepth.field_of_number(3) == {"bits": 3}
    assert Grey.field_of_number(3) == {}
