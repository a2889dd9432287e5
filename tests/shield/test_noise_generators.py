"""Generators of noise from captions: their training against a frozen CLIP, their loss, and their parts."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import CAPTIONS, pairs, shield
from torch import nn
from torch.nn import functional as F

from helpers.caption_encoders import WIDTH, HashedText, LinearEncoders, tiny_generator
from helpers.pictures import make_pictures
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.nets import TextNoiseGenerator
from unwrite.nets.text_noise_generator import SSACN, SSCBN, resized
from unwrite.runs import hash_model
from unwrite.shield import T2UE, GeneratorTraining, train_generator
from unwrite.shield.engine.dual_encoders import info_nce
from unwrite.shield.engine.generator_training import CosineTraining, noise_loss

EPS = 8 / 255
OFFICIAL = json.loads(Path(__file__).with_name("t2ue_official.json").read_text())["numbers"]


# 3. Training


def test_training_leaves_the_encoders_and_moves_the_generator():
    pixels, captions = pairs()
    encoders, generator = LinearEncoders().train(), tiny_generator()
    before, start = hash_model(encoders), {name: one.detach().clone() for name, one in generator.named_parameters()}
    trained = train_generator(
        pixels, captions, encoders, GeneratorTraining(epochs=1, batch_size=16), generator=generator
    )
    assert hash_model(encoders) == before
    assert encoders.training
    assert encoders.drop.training
    assert all(weight.requires_grad and weight.grad is None for weight in encoders.parameters())
    assert trained is generator
    assert not trained.training
    assert all(not torch.equal(one, start[name]) for name, one in trained.named_parameters())


def test_gradients_reach_every_weight_of_the_generator():
    pixels, captions = pairs(16)
    encoders, generator = LinearEncoders().eval(), tiny_generator(mask=True).train()
    text = F.normalize(encoders.text_features(captions), dim=-1)
    noise_loss(generator, encoders, torch.from_numpy(pixels) / 255, text, torch.randn(16, 4)).backward()
    assert all(weight.grad.abs().max() > 0 for name, weight in generator.named_parameters() if "conv1.bias" not in name and "conv2.bias" not in name and "mask.0.bias" not in name)  # fmt: skip


def of_held_out(generator, encoders, pixels, captions, noise=None):
    """The loss of new pairs with their noise, or another, in evaluation mode."""
    text = F.normalize(encoders.text_features(captions), dim=-1)
    latent = torch.randn(len(captions), 4, generator=torch.Generator().manual_seed(1))
    chosen = generator if noise is None else lambda text, latent: noise
    with torch.no_grad():
        return noise_loss(chosen, encoders.eval(), torch.from_numpy(pixels) / 255, text, latent).item()


@pytest.fixture(scope="module")
def trained():
    """(encoders, a generator trained on 720 pairs, the same maximised)."""
    pixels, captions = pairs(720)
    encoders = LinearEncoders().eval()
    made = [
        train_generator(
            pixels, captions, encoders,
            GeneratorTraining(epochs=2, batch_size=24, lr=1e-2, direction=direction), generator=tiny_generator(),
        )
        for direction in ("minimise", "maximise")
    ]  # fmt: skip
    return encoders, *made


def test_on_pairs_held_out_the_loss_is_below_that_of_no_noise_and_of_random_signs(trained):
    encoders, generator, _ = trained
    pixels, captions = pairs(rows=8, seed=9)
    signs = EPS * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3)).sign()
    none, random, own = (
        of_held_out(generator, encoders, pixels, captions, noise) for noise in (torch.zeros(8, 3, 8, 8), signs, None)
    )
    assert own < 0.8 * min(none, random)


def test_maximising_is_another_mode_that_raises_the_loss(trained):
    encoders, _, generator = trained
    pixels, captions = pairs(rows=8, seed=9)
    assert of_held_out(generator, encoders, pixels, captions) > of_held_out(
        generator, encoders, pixels, captions, torch.zeros(8, 3, 8, 8)
    )
    assert GeneratorTraining().direction == "minimise"


# 6. The caption is what the noise says


def test_noise_of_another_caption_draws_the_picture_to_that_caption_and_one_that_ignores_it_does_not(trained):
    encoders, generator, _ = trained
    pixels, captions = pairs(rows=8, seed=9)
    pictures, other = torch.from_numpy(pixels) / 255, [*captions[3:], *captions[:3]]
    text = F.normalize(encoders.text_features(other), dim=-1)

    def towards(noise):
        with torch.no_grad():
            seen = F.normalize(encoders.eval().image_features((pictures + noise).clamp(0, 1)), dim=-1)
        return (seen * text).sum(-1).mean().item()

    made = T2UE(key=1, generator=generator, text_encoder=encoders)
    drawn = torch.from_numpy(made.noise_of(other, 8))
    deaf = torch.from_numpy(made.noise_of(["kind 0"] * 8, 8))
    assert towards(drawn) > towards(0) + 0.05
    assert towards(drawn) > towards(deaf) + 0.05


def test_the_rate_falls_along_half_a_cosine():
    steps = CosineTraining(1, 1e-4, 8, 0.0)
    assert [steps.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([1e-4, 5e-5, 0])
    assert steps.rate(25, 100) == pytest.approx(5e-5 * (1 + math.cos(math.pi / 4)))


def test_a_training_is_the_same_for_its_seed_goes_on_after_a_kill_and_leaves_random_numbers(tmp_path, monkeypatch):
    pixels, captions = pairs(16)
    how = GeneratorTraining(epochs=3, batch_size=8, seed=4)

    def made(folder=None):
        return train_generator(pixels, captions, LinearEncoders(), how, generator=tiny_generator(), folder=folder)

    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    whole = hash_model(made())
    assert torch.equal(torch.rand(1), expected)
    calls = []

    class Killed(LinearEncoders):
        def image_features(self, pixels):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return super().image_features(pixels)

    with pytest.raises(KeyboardInterrupt):
        train_generator(pixels, captions, Killed(), how, generator=tiny_generator(), folder=tmp_path)
    assert hash_model(made(tmp_path)) == whole
    assert hash_model(train_generator(pixels, captions, LinearEncoders(), replace(how, seed=5), generator=tiny_generator())) != whole  # fmt: skip


def test_of_several_captions_of_a_picture_each_is_drawn():
    pixels, _ = pairs(4)
    pixels = np.tile(pixels, (8, 1, 1, 1))
    encoders = LinearEncoders()
    seen = []
    features = encoders.text_features
    encoders.text_features = lambda texts, **how: (seen.extend(texts), features(texts))[1]
    several = [[f"first {row}", f"second {row}"] for row in range(4)] * 8
    train_generator(pixels, several, encoders, GeneratorTraining(epochs=1, batch_size=4), generator=tiny_generator())
    assert {*seen} == {text for texts in several for text in texts}


# 4. The loss


def test_the_loss_has_its_known_values():
    one = torch.eye(2)
    assert info_nce(one, one, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert info_nce(one, one, 1.0).item() == pytest.approx(0.31326, abs=1e-5)
    assert info_nce(one, one, 100.0).item() == pytest.approx(0, abs=1e-6)
    same = F.normalize(torch.ones(5, 3), dim=-1)
    assert info_nce(same, same, 100.0).item() == pytest.approx(math.log(5), abs=1e-4)
    assert info_nce(same[:2], same[:2], 1.0).item() == pytest.approx(0.69315, abs=1e-5)


def test_the_loss_is_symmetrical_and_does_not_saturate_in_half_precision():
    images, texts = (F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(n)), dim=-1) for n in (0, 1))
    assert info_nce(images, texts, 7.0).item() == pytest.approx(info_nce(texts, images, 7.0).item())
    rows = F.cross_entropy(7 * images @ texts.T, torch.arange(6))
    columns = F.cross_entropy((7 * images @ texts.T).T, torch.arange(6))
    assert info_nce(images, texts, 7.0).item() == pytest.approx((rows + columns).item() / 2)
    half, other = images.half(), texts.half()
    assert info_nce(half, other, 100.0).item() == pytest.approx(
        info_nce(half.float(), other.float(), 100.0).item(), rel=1e-6
    )


def test_the_loss_of_noise_is_of_pictures_cut_off_to_0_and_1_and_of_features_of_length_1():
    seen = []

    class Kept(LinearEncoders):
        def image_features(self, pixels):
            seen.append(pixels)
            return 3 * pixels.flatten(1)[:, :WIDTH]

    pixels, text = torch.rand(4, 3, 8, 8), F.normalize(torch.randn(4, WIDTH), dim=-1)
    noise = 0.9 * torch.randn(4, 3, 8, 8).sign()
    value = noise_loss(lambda text, latent: noise, Kept(), pixels, text, torch.zeros(4, 1))
    assert torch.equal(seen[0], (pixels + noise).clamp(0, 1))
    expected = info_nce(F.normalize(seen[0].flatten(1)[:, :WIDTH], dim=-1), text, 10.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_length_of_a_texts_features_does_not_count():
    class Long(HashedText):
        def text_features(self, texts, *, truncation=False):
            return 7 * super().text_features(texts)

    assert np.allclose(shield(text_encoder=Long()).noise_of(CAPTIONS, 8), shield().noise_of(CAPTIONS, 8), atol=1e-7)


# 5. The generator


def test_text_normalisation_is_plain_at_first_and_constant_where_its_scale_is_none():
    norm, h, text = SSCBN(4, WIDTH), torch.randn(3, 4, 5, 5), torch.randn(3, WIDTH)
    plain = nn.BatchNorm2d(4, affine=False, eps=1e-5)
    assert torch.equal(norm(h, text), plain(h))
    assert torch.equal(norm(h, text, torch.rand(3, 1, 5, 5)), plain(h))
    by_hand = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(norm(h, text), by_hand, atol=1e-6)
    with torch.no_grad():
        norm.gamma.bias.zero_()
        norm.beta.bias.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
    assert torch.allclose(norm(h, text), torch.tensor([1.0, -2.0, 0.5, 0.0]).view(1, 4, 1, 1).expand_as(h))


def test_a_mask_says_where_the_text_applies():
    norm, h, text = SSCBN(4, WIDTH).eval(), torch.randn(2, 4, 4, 4), torch.randn(2, WIDTH)
    with torch.no_grad():
        norm.gamma.weight.normal_()
        norm.beta.weight.normal_()
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    with torch.no_grad():
        result, full = norm(h, text, mask), norm(h, text)
    assert torch.allclose(result[:, :, :2], full[:, :, :2])
    assert torch.allclose(result[:, :, 2:], norm.norm(h)[:, :, 2:])
    block = SSACN(4, 4, WIDTH, doubles=True, mask=True)
    assert block(h, text).shape == (2, 4, 8, 8)


def test_a_block_is_a_residual_with_a_convolution_where_channels_change():
    h, text = torch.randn(2, 4, 4, 4), torch.randn(2, WIDTH)
    same, other = SSACN(4, 4, WIDTH, doubles=False, mask=False), SSACN(4, 7, WIDTH, doubles=True, mask=False)
    for block in (same, other):
        nn.init.zeros_(block.norm2.gamma.bias)
    assert torch.equal(same(h, text), F.relu(h))
    doubled = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(other(h, text), F.relu(other.shortcut(doubled)))


def seeded_weights(generator):
    """Fills a generator by numpy's old stream, whatever torch's version."""
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, value in sorted(generator.state_dict().items()):
            if value.is_floating_point():
                drawn = torch.from_numpy(random.standard_normal(tuple(value.shape)).astype(np.float32))
                offset = 1.0 if name.endswith("gamma.bias") else 0.0
                value.copy_(0.5 + drawn.abs() if name.endswith("running_var") else 0.03 * drawn + offset)
    return generator


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_with_the_same_weights_the_generator_gives_the_re_implementations_numbers(mode):
    generator = seeded_weights(TextNoiseGenerator(16, 8, (32, 256, 128, 64, 32, 32, 32))).train(mode == "batch")
    random = np.random.RandomState(1)
    text = F.normalize(torch.from_numpy(random.standard_normal((3, 16)).astype(np.float32)), dim=-1)
    latent = torch.from_numpy(random.standard_normal((3, 8)).astype(np.float32))
    with torch.no_grad():
        noise = 255 * resized(generator(text, latent), (48, 48), generator.eps).double()
    expected = OFFICIAL[mode]
    assert noise[:, :, 0, :4].flatten().tolist() == pytest.approx(expected["first"], abs=1e-4)
    assert noise[:, :, 24, 24].flatten().tolist() == pytest.approx(expected["middle"], abs=1e-4)
    assert noise.abs().mean().item() == pytest.approx(expected["abs mean"], abs=1e-5)
    assert noise.std(0).mean().item() == pytest.approx(expected["std over rows"], abs=1e-5)


def test_the_loss_is_the_re_implementations():
    images, texts = (torch.tensor(OFFICIAL["info_nce"][name]) for name in ("images", "texts"))
    for scale in (1, 100):
        assert info_nce(images, texts, scale).item() == pytest.approx(OFFICIAL["info_nce"][f"at {scale}"], rel=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (make_pictures(3)[0], None, "there are no captions. Give a list of texts, one a picture, or several each"),
        (make_pictures(3)[0], ["a", "b"], "there are 3 images and 2 captions"),
        (make_pictures(3)[0], ["a", "b", ""], "the caption of image 2 is "),
        (make_pictures(3)[0], [["a"], [], ["b"]], r"the caption of image 1 is \(\)"),
        (make_pictures(1)[0], ["a"], "has one picture. A contrast needs at least 2"),
        (make_pictures(3)[0].astype(np.float32), ["a"] * 3, "has a pixel of"),
        ("pets", ["a"], "the captions of pets are a list. Give the file of a table"),
    ],
)
def test_training_refuses_pairs_that_are_none(images, captions, message):
    with pytest.raises(DataError, match=message):
        train_generator(images, captions, LinearEncoders(), generator=tiny_generator())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number, at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be a whole number, at least 2"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        ({"direction": "up"}, "direction is 'up'; use one of 'minimise', 'maximise'"),
        ({"seed": -1}, "seed is -1; it must be a whole number, at least 0"),
    ],
)
def test_training_refuses_settings_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        GeneratorTraining(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_width": 0}, "text_width is 0; a generator needs at least 1"),
        ({"channels": ()}, "a generator of 0 blocks can't be built. Give channels for 1 to 9"),
        ({"channels": (8, 0)}, r"channels\[1\] is 0; a generator needs at least 1"),
        ({"eps": 0.0}, "eps is 0; the budget of pixels in 0..1 is above 0 and below 1"),
        ({"eps": 8.0}, "eps is 8; the budget"),
    ],
)
def test_a_generator_refuses_sizes_that_nothing_can_be_built_of(arguments, message):
    with pytest.raises(ModelError, match=message):
        TextNoiseGenerator(**{"text_width": 4, "channels": (4,), **arguments})


def test_a_budget_for_a_generator_that_has_one_is_refused():
    with pytest.raises(MethodError, match=r"this generator has its budget, 0.0313725. Leave eps out"):
        train_generator(*pairs(4), LinearEncoders(), generator=tiny_generator(), eps=0.1)


def test_without_a_generator_one_of_the_papers_size_is_trained_for_the_encoders(monkeypatch):
    from unwrite.shield.engine import generator_training

    built = []

    def small(width, eps):
        built.append((width, eps))
        return tiny_generator(eps=eps)

    monkeypatch.setattr(generator_training, "_default", small)
    train_generator(*pairs(4), LinearEncoders(), GeneratorTraining(epochs=1, batch_size=4), eps=0.1)
    train_generator(*pairs(4), LinearEncoders(), GeneratorTraining(epochs=1, batch_size=4))
    assert built == [(WIDTH, 0.1), (WIDTH, EPS)]
