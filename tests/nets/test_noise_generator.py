"""The generator of noise: its shape, its normalisation, and agreement with the official one."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.formula import filled
from unwrite.errors import ModelError
from unwrite.nets.noise_generator import NoiseGenerator

OFFICIAL = json.loads((Path(__file__).parents[1] / "shield" / "official_uc.json").read_text(encoding="utf-8"))


def test_draws_what_the_official_generator_draws_with_the_same_weights():
    generator = filled(NoiseGenerator(3, width=4, blocks=2))
    drawn = generator((torch.arange(3 * 16 * 20) * 37 % 101 / 101).view(1, 3, 16, 20))
    official = OFFICIAL["numbers"]["generator"]
    values = [drawn[0, c, y, x].item() for c, y, x in ((0, 0, 0), (1, 7, 11), (2, 15, 19), (0, 3, 15))]
    assert values == pytest.approx(official["values"], abs=1e-5)
    assert drawn.mean().item() == pytest.approx(official["mean"], abs=1e-5)
    assert sum(p.numel() for p in generator.parameters()) == official["parameters"]
    assert sum(p.numel() for p in NoiseGenerator().parameters()) == OFFICIAL["numbers"]["parameters of the full one"]


def test_evaluation_mode_draws_the_same_noise_and_keeps_no_statistics():
    generator = NoiseGenerator(1, 4, 1)
    z = torch.rand(1, 1, 12, 12)
    trained = generator(z)
    assert torch.equal(generator.eval()(z), trained)
    assert list(generator.buffers()) == []


@pytest.mark.parametrize("size", [(5, 5), (8, 8), (9, 14), (30, 31), (32, 32)])
def test_every_size_comes_back_as_it_went_in(size):
    drawn = NoiseGenerator(3, 2, 1)(torch.rand(1, 3, *size))
    assert drawn.shape == (1, 3, *size)
    assert drawn.abs().max() <= 1


def test_fields_say_how_large_it_is():
    generator = NoiseGenerator(3, width=6, blocks=3, downsamplings=1)
    convolutions = [part for part in generator.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    assert [part.out_channels for part in convolutions] == [6, 12, *[12] * 6, 6, 3]
    assert [part.bias is not None for part in convolutions] == [*[False] * 9, True]


@pytest.mark.parametrize("name", ["channels", "width", "blocks", "downsamplings"])
def test_refuses_numbers_that_build_nothing(name):
    with pytest.raises(ModelError, match=f"{name} is -1; a generator needs at least"):
        NoiseGenerator(**{name: -1})


def test_refuses_pictures_that_can_not_be_reflected():
    with pytest.raises(ModelError, match="draws 5x5 pixels and more, not 4x8"):
        NoiseGenerator(3, 2, 1)(torch.rand(1, 3, 8, 4))
