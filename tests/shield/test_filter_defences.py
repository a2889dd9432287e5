"""Defences against class-wise filters: training against filters, sharpening at random, and low frequencies."""

import math

import numpy as np
import pytest
import torch
from defending import ROWS, generator, model, moment, pictures, plain
from torch.nn import functional as F

from unwrite.errors import MethodError
from unwrite.shield import DeconvolutionTraining, RandomSharpening
from unwrite.shield.defences.deconvolution import stretched
from unwrite.shield.defences.sharpening import low_frequencies
from unwrite.shield.engine.surrogates import frozen


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


def test_pictures_are_kept_in_range_where_sharpening_or_a_cut_off_overshoots():
    """At an edge from black to white both would leave 0..1, and both are cut off before anything else."""
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1
    sharp = RandomSharpening(centre=3.0, spread=0.0).sharpened(edge, generator())
    assert sharp.unique().tolist() == [0, 1]  # -0.5 and 1.5 without
    low = low_frequencies(edge, 0.5)
    assert (low.min(), low.max()) == (0, 1)
    assert torch.equal(RandomSharpening(centre=3.0, spread=0.0, share=0.5).transform(edge, ROWS[:1], generator()), low)


def test_the_edge_is_repeated_outwards():
    slope = (torch.arange(6) / 10).expand(1, 1, 6, 6).clone()
    sharp = RandomSharpening(centre=2.0, spread=0.0).sharpened(slope, generator())[0, 0]
    assert sharp[:, 0].tolist() == pytest.approx([0] * 6)  # 0 - 0.25 * (0.1 - 0), cut off
    assert sharp[:, 5].tolist() == pytest.approx([0.5 + 0.25 * 0.1] * 6)
    assert sharp[:, 2].tolist() == pytest.approx([0.2] * 6)


def test_it_trains_on_the_filtered_pictures_and_says_the_loss_of_those():
    net, (pixels, labels) = model(), pictures()
    defence = DeconvolutionTraining(steps=2)
    filtered = defence.filtered(model(), pixels, labels, generator(3))
    assert torch.equal(defence.loss(net, pixels, labels, moment(seed=3)), plain(model(), filtered, labels))


def test_defaults_are_those_of_the_official_code():
    dat = DeconvolutionTraining()
    assert (dat.kernel_size, dat.steps, dat.step_size, dat.bound) == (7, 10, 0.1, 5)
    sharpening = RandomSharpening()
    assert (sharpening.centre, sharpening.spread, sharpening.share) == (2.5, 0.1, 0.3)
    with pytest.raises(MethodError, match="kernel_size is 6; it must be odd, such as 7"):
        DeconvolutionTraining(kernel_size=6)
