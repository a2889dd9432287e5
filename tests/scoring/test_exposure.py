"""Exposure: how far a secret stands out among all it might have been."""

import math

import pytest
import torch

from unwrite.scoring.exposure import CHANCE, exposure


def test_the_likeliest_of_n_has_log_n_bits_and_the_least_none():
    likelihoods = torch.arange(1024.0)
    assert exposure(likelihoods, 1023) == 10
    assert exposure(likelihoods, 0) == 0
    assert exposure(likelihoods, 1022) == 9


def test_equals_share_the_middle_of_their_ranks():
    assert exposure(torch.zeros(7), 3) == pytest.approx(math.log2(7) - 2)


def test_what_nobody_knows_has_one_and_a_half_bits_on_average():
    likelihoods = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    mean = sum(exposure(likelihoods, secret) for secret in range(4096)) / 4096
    assert mean == pytest.approx(CHANCE, abs=0.01)
