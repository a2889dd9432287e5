"""The Hadamard transform, the quantiser of groups and the packing of codes."""

import pytest
import torch

from unwrite.beds.outlier_keys import KeyTrip, outlier_keys
from unwrite.cache.engine.hadamard import is_power_of_two, walsh_hadamard
from unwrite.cache.engine.quantising import Quantiser, packed, unpacked
from unwrite.errors import MethodError


def trip(numbers, *settings, **fields):
    quantiser = Quantiser(*settings, **fields)
    return quantiser.codes(torch.tensor(numbers)), quantiser.restore(quantiser.quantise(torch.tensor(numbers)))


def test_the_transform_spreads_one_number_evenly():
    assert walsh_hadamard(torch.tensor([8.0, 0, 0, 0]), 4).tolist() == [4, 4, 4, 4]
    assert walsh_hadamard(torch.tensor([0.0, 8, 0, 0]), 4).tolist() == [
        4,
        -4,
        4,
        -4,
    ]  # natural order, not by sign changes


@pytest.mark.parametrize("size", [1, 2, 64, 128, 512, 4096])
def test_twice_the_transform_is_nothing_and_lengths_stay(size):
    numbers = torch.randn(3, 2 * size, generator=torch.Generator().manual_seed(0))
    there = walsh_hadamard(numbers, size)
    torch.testing.assert_close(walsh_hadamard(there, size), numbers, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.norm(dim=1), numbers.norm(dim=1))


@pytest.mark.parametrize("size", [2, 32, 128, 8192])
def test_the_transform_is_that_of_signs_by_common_bits(size):
    """Entry (i, j) of H is (-1)^(bits that i and j share), by the root of the size."""
    row = size - 3 if size > 2 else 1
    unit = torch.zeros(size).index_fill(0, torch.tensor([row]), 1)
    signs = [(-1) ** (row & column).bit_count() for column in range(size)]
    torch.testing.assert_close(walsh_hadamard(unit, size), torch.tensor(signs) / size**0.5)


def test_other_sizes_are_refused():
    assert [one for one in range(9) if is_power_of_two(one)] == [1, 2, 4, 8]
    for numbers, size in ((12, 12), (12, 8), (4, 0)):
        with pytest.raises(MethodError, match=f"{numbers} numbers can't go by {size}"):
            walsh_hadamard(torch.zeros(numbers), size)


def test_two_bits_of_the_card():
    (codes, scale, zero), back = trip([-1, 0.1, 0.6, 2], 2, 4)
    assert (codes.tolist(), scale.tolist(), zero.tolist()) == ([0, 1, 2, 3], [1], [1])
    assert back.tolist() == [-1, 0, 1, 2]


def test_two_bits_with_a_clipped_range():
    (codes, scale, zero), back = trip([-1, 0.2, 0.9, 2.2], 2, 4, 0.8)
    assert (codes.tolist(), zero.tolist()) == ([0, 1, 2, 3], [1])
    assert scale.item() == pytest.approx(0.85333, rel=5e-4)  # 16 bits
    torch.testing.assert_close(back, torch.tensor([-0.8533, 0, 0.8533, 1.7067]), atol=1e-3, rtol=0)


def test_three_bits_of_a_ramp_have_no_error_and_the_official_steps_lose_its_end():
    ramp = [float(one) for one in range(8)]
    (codes, scale, _), back = trip(ramp, 3, 8)
    assert (codes.tolist(), scale.item(), back.tolist()) == ([*range(8)], 1, ramp)
    (_, scale, _), back = trip(ramp, 3, 8, official_levels=True)
    assert (scale.item(), back[-1].item()) == (0.875, 6.125)
    for bits in (2, 4):
        assert torch.equal(trip(ramp, bits, 8)[1], trip(ramp, bits, 8, official_levels=True)[1])


# RotateKV_fake_quant/fake_quant.py of ZunhaiSu/RotateKV at 3055e2b, `fake_quant(x, clip, bits, 4)` in float32 on these eight numbers.
NUMBERS = [0.31, -1.7, 2.42, 0.05, 5.0, 4.1, 7.7, 6.3]
OFFICIAL = {
    (2, 0.8): [0.0, -1.09867, 2.19733, 0.0, 4.8, 3.84, 5.76, 5.76],
    (3, 1.0): [0.515, -1.545, 2.06, 0.0, 4.95, 4.05, 7.2, 6.3],
    (4, 1.0): [0.27467, -1.648, 2.472, 0.0, 5.04, 4.08, 7.68, 6.24],
}


@pytest.mark.parametrize(("bits", "clip"), OFFICIAL)
def test_numbers_are_the_official_codes(bits, clip):
    _, back = trip(NUMBERS, bits, 4, clip, official_levels=True)
    torch.testing.assert_close(back, torch.tensor(OFFICIAL[bits, clip]), atol=0, rtol=1e-3)  # scales of 16 bits


@pytest.mark.parametrize("constant", [0.0, 3.0, -0.125, 1000.0])
@pytest.mark.parametrize("clip", [0.8, 1.0])
def test_a_constant_group_comes_back_as_it_is(constant, clip):
    (_, scale, _), back = trip([constant] * 4 + [0.0, 1, 2, 3], 2, 4, clip)
    assert scale[0] == 0
    assert back[:4].tolist() == [constant] * 4
    assert back.isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("low", "high"), [(5.0, 6.0), (-9.0, -8.5), (100.0, 101.0), (-1.0, 1.0)])
def test_a_group_on_one_side_of_zero_is_off_by_half_a_step_at_most(bits, low, high):
    numbers = torch.empty(64, 16).uniform_(low, high, generator=torch.Generator().manual_seed(bits))
    quantiser = Quantiser(bits, 16)
    kept = quantiser.quantise(numbers)
    steps = kept[1].float().repeat_interleave(16, -1)
    off = (quantiser.restore(kept) - numbers).abs()
    assert (off <= 0.51 * steps).all()  # scales of 16 bits make the last hundredth
    assert (kept[2] < 0).all() == (low > 0)


def test_a_group_hardly_wider_than_its_distance_from_zero_is_a_constant():
    _, back = trip([1000.0, 1000.001, 1000.002, 1000.0], 2, 4)
    torch.testing.assert_close(back, torch.full((4,), 1000.0), atol=1, rtol=0)


def test_huge_ranges_stay_finite():
    assert trip([-3e5, 0.0, 1.0, 3e5], 2, 4)[1].isfinite().all()


@pytest.mark.parametrize(("bits", "size"), [(2, 6), (3, 9), (4, 12)])
def test_codes_are_packed_without_gaps_and_come_back(bits, size):
    codes = torch.randint(2**bits, (2, 3, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    words = packed(codes, bits)
    assert (words.shape, words.dtype) == ((2, 3, size), torch.uint8)
    assert torch.equal(unpacked(words, bits, 24), codes)
    odd = codes[..., :5]
    assert torch.equal(unpacked(packed(odd, bits), bits, 5), odd)


def test_the_first_code_is_in_the_lowest_bits():
    assert packed(torch.tensor([1, 0, 3, 2], dtype=torch.uint8), 2).tolist() == [0b10_11_00_01]
    assert packed(torch.tensor([7, 0, 1, 0, 0, 0, 0, 4], dtype=torch.uint8), 3).tolist() == [
        0b01_000_111,
        0,
        0b100_000_00,
    ]


def test_planted_outliers_cost_the_worst_head_less_with_every_step():
    """RTN, by head, across heads, reordered; at 3 bits. At 2 rounding loses whole channels, and errors end at their size."""
    trips = (KeyTrip(), KeyTrip(64), KeyTrip(256), KeyTrip(256, True))
    errors = torch.stack([torch.stack([trip.errors(outlier_keys(seed), 64) for seed in range(5)]) for trip in trips])
    worst = errors.amax(2).mean(1).tolist()
    assert worst == sorted(worst, reverse=True)
    mean = errors.mean((1, 2)).tolist()
    assert mean[0] > max(mean[1:3]) > min(mean[1:3]) > mean[3]


def test_all_steps_more_than_halve_the_error_of_two_bits():
    two = {"bits": 2, "clip": 0.8}
    for seed in range(3):
        keys = outlier_keys(seed)
        rounded, turned = (KeyTrip(size, size > 1, **two).errors(keys, 64).mean() for size in (1, 256))
        assert turned < 0.5 * rounded
