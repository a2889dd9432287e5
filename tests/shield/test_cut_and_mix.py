"""Cutout, MixUp and CutMix: what is hidden, what is mixed, and in which shares."""

import numpy as np
import pytest
import torch
from defending import generator, model, moment, pictures, plain
from torch.nn import functional as F

from helpers.pictures import Linear
from unwrite.shield import CutMix, Cutout, MixUp
from unwrite.shield.defences import mixing


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


@pytest.mark.parametrize("cls", [MixUp, CutMix])
def test_the_share_is_drawn_at_the_concentration_given_by_the_generator_of_the_loss(cls, monkeypatch):
    asked = []
    monkeypatch.setattr(mixing, "beta_share", lambda a, generator: asked.append((a, generator)) or 0.5)
    now = moment(seed=2)
    cls(concentration=0.3).loss(model(), *pictures(), now)
    assert asked == [(0.3, now.generator)]
    assert cls().concentration == 1


def test_it_is_trained_on_pictures_with_a_black_hole_each_at_a_place_of_its_own():
    seen = []

    class Spy(Linear):
        def forward(self, pixels):
            seen.append(pixels)
            return super().forward(pixels)

    torch.manual_seed(0)
    net, (pixels, labels) = Spy(3, 3, 8), pictures()
    pixels = pixels.clamp(min=0.01)
    loss = Cutout().loss(net, pixels, labels, moment(seed=2))
    cut = Cutout().cut(pixels, generator(2))
    assert torch.equal(seen[0], cut)
    assert torch.equal(loss, plain(net, cut, labels))
    holes = (cut == 0).all(1)
    assert torch.equal(cut[~holes[:, None].expand_as(cut)], pixels[~holes[:, None].expand_as(cut)])
    assert len(holes.flatten(1).unique(dim=0)) > 3
    assert Cutout.field_of_number(5) == {"side": 5}


def test_half_of_the_shorter_side_is_cut_out_unless_a_side_is_given():
    wide = torch.ones(300, 1, 8, 20)
    assert (Cutout().cut(wide, generator()) == 0).flatten(1).sum(1).max() == 16
    assert (Cutout(side=1).cut(wide, generator()) == 0).flatten(1).sum(1).unique().tolist() == [1]
