"""T2UE: noise from captions and the key alone, a generator that is trained once against a frozen CLIP, and what both refuse."""

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.caption_encoders import WIDTH, HashedText, LinearEncoders, tiny_generator
from helpers.pictures import contents, make_folder, make_pictures
from unwrite.errors import DataError, MethodError, ModelError, Notice, RunError
from unwrite.nets import TextNoiseGenerator
from unwrite.nets.text_noise_generator import SSACN, SSCBN, bounded, resized
from unwrite.runs import hash_model
from unwrite.shield import (
    T2UE,
    ClipEncoders,
    FolderPictures,
    GeneratorTraining,
    Protection,
    load_generator,
    protect_folder,
    save_generator,
    train_generator,
)
from unwrite.shield.engine.dual_encoders import MEAN, STD, info_nce
from unwrite.shield.engine.generator_training import CosineTraining, noise_loss
from unwrite.shield.t2ue import TEMPLATES

EPS = 8 / 255
OFFICIAL = json.loads(Path(__file__).with_name("t2ue_official.json").read_text())["numbers"]
CAPTIONS = ["a cat asleep", "two dogs", "a red bus", "a cat asleep", "the sea"]


def shield(**fields):
    given = {"key": 5, "generator": tiny_generator(), "text_encoder": HashedText()}
    return T2UE(**{**given, **fields})


def pairs(rows=48, seed=0):
    """Random pictures [rows, 3, 8, 8] and a caption for each of eight kinds."""
    pixels, _ = make_pictures(rows, seed=seed)
    return pixels, [f"kind {row % 8}" for row in range(rows)]


# 1. Noise is of captions and the key alone


def test_noise_has_no_picture_among_its_arguments_and_reads_none(monkeypatch):
    assert list(inspect.signature(T2UE.noise_of).parameters) == ["self", "captions", "size", "rows"]
    pixels, _ = make_pictures(5)
    protection = shield(eps=16 / 255).fit(pixels, CAPTIONS)
    other = 255 - pixels
    changes = [protection.transform(one, CAPTIONS).astype(int) - one for one in (pixels, other)]
    inside = (pixels > 20) & (pixels < 235)
    assert np.array_equal(changes[0][inside], changes[1][inside])


def test_the_same_caption_key_and_row_give_the_same_noise_and_another_of_each_another():
    first = shield().noise_of(CAPTIONS, 8)
    assert np.array_equal(first, shield(text_encoder=HashedText()).noise_of(CAPTIONS, 8))
    for other in (
        shield(key=6).noise_of(CAPTIONS, 8),
        shield().noise_of([f"{one} at night" for one in CAPTIONS], 8),
        shield().noise_of(CAPTIONS, 8, rows=[5, 6, 7, 8, 9]),
    ):
        assert (np.abs(other - first).max((1, 2, 3)) > 1e-5).all()


def test_a_rows_noise_is_the_same_in_any_batch_and_any_order():
    whole = shield().noise_of(CAPTIONS, 8)
    for size in (1, 2, 16):
        assert np.allclose(shield(batch_size=size).noise_of(CAPTIONS, 8), whole, atol=1e-8)
    order = [3, 0, 4]
    some = shield().noise_of([CAPTIONS[row] for row in order], 8, rows=order)
    assert np.allclose(some, whole[order], atol=1e-8)


def test_equal_captions_of_a_sample_have_noise_of_their_own_and_of_a_class_one():
    sample = shield().noise_of(CAPTIONS, 8)
    assert np.abs(sample[0] - sample[3]).max() > 1e-4
    of_class = shield(mode="class").noise_of(CAPTIONS, 8)
    assert np.array_equal(of_class[0], of_class[3])
    assert np.abs(of_class[0] - of_class[1]).max() > 1e-4
    alone = shield(mode="class").noise_of(["two dogs"], 8, rows=[77])
    assert np.allclose(alone[0], of_class[1], atol=1e-8)


def test_a_class_has_one_text_and_a_sample_its_caption_or_one_of_several():
    assert shield(mode="class").texts_of(["cat"], [0]) == ("A photo of a cat",)
    assert shield(mode="class", template="my {} {}").texts_of(["cat"], [0]) == ("my cat cat",)
    assert shield().texts_of(["a cat {}"], [0]) == ("a cat {}",)
    varied = shield(template="varied").texts_of(["cat"] * 400, range(400))
    assert {*varied} == {one.replace("{}", "cat") for one in TEMPLATES}
    assert varied[30] == shield(template="varied").texts_of(["cat"], [30])[0]


def test_latents_are_standard_normal_from_the_key():
    latents = shield().latents_of(["x"] * 2000, range(2000))
    assert latents.mean().abs() < 0.05
    assert latents.std() == pytest.approx(1, abs=0.05)
    assert torch.equal(latents[7], shield().latents_of(["y"], [7])[0])


@pytest.mark.parametrize("mask", [False, True])
def test_statistics_of_the_batch_count_only_where_asked_for_and_change_nothing(mask):
    generator = tiny_generator(mask=mask)
    before = hash_model(generator)
    running, batch = (shield(generator=generator, bn_mode=mode) for mode in ("running", "batch"))
    of_two, of_all = batch.noise_of(CAPTIONS[:2], 8), batch.noise_of(CAPTIONS, 8)
    assert np.abs(of_two - of_all[:2]).max() > 1e-4
    assert np.abs(running.noise_of(CAPTIONS, 8) - of_all).max() > 1e-4
    assert hash_model(generator) == before
    with pytest.raises(DataError, match=r"there is one caption, which has no statistics of a batch.*bn_mode='running'"):
        batch.noise_of(CAPTIONS[:1], 8)


def test_a_module_in_training_mode_makes_the_same_noise_and_stays_in_it():
    generator = tiny_generator()
    expected = shield(generator=generator).noise_of(CAPTIONS, 8)
    generator.train()
    before = hash_model(generator)
    assert np.array_equal(shield(generator=generator).noise_of(CAPTIONS, 8), expected)
    assert generator.training
    assert hash_model(generator) == before
    assert all(weight.requires_grad and weight.grad is None for weight in generator.parameters())


# 2. The budget


@pytest.mark.parametrize("size", [8, 5, (13, 30)])
@pytest.mark.parametrize("eps", [8 / 255, 0.03, 1 / 3])
def test_noise_is_within_the_budget_exactly_before_and_after_it_is_resized(eps, size):
    generator = tiny_generator(loud=True, eps=eps)
    text, latent = torch.randn(4, WIDTH), torch.randn(4, 4)
    noise = generator(text, latent)
    assert 0.999 * eps < noise.abs().max().double().item() <= eps
    made = shield(generator=generator, eps=eps).noise_of(CAPTIONS, size)
    assert made.shape == (5, 3, *((size, size) if isinstance(size, int) else size))
    assert 0.9 * eps < np.abs(made).max().astype(np.float64) <= eps


def test_noise_is_in_pixel_space_and_in_clips_normalised_space_it_has_the_bounds_of_each_channel():
    noise = tiny_generator(loud=True)(torch.randn(8, WIDTH), torch.randn(8, 4))
    bounds = noise.abs().amax((0, 2, 3)) / torch.tensor(STD)
    assert bounds.tolist() == pytest.approx([0.11679, 0.12006, 0.11376], abs=1e-5)


def test_resizing_is_bilinear_and_clamps_again():
    noise = torch.randn(2, 3, 4, 4)
    expected = F.interpolate(noise, (7, 5), mode="bilinear", align_corners=False).clamp(-0.5, 0.5)
    assert torch.equal(resized(noise, (7, 5), 0.5), expected)
    assert torch.equal(resized(noise, (4, 4), 9.0), noise)
    assert bounded(torch.tensor([2.0, -2.0]), 8 / 255).double().abs().max() <= 8 / 255


def test_grey_pictures_get_the_mean_of_the_channels_and_pictures_of_any_size_theirs():
    pixels, _ = make_pictures(5, channels=1, side=12)
    middle = np.full_like(pixels, 128)
    one = shield()
    change = one.fit(middle, CAPTIONS).transform(middle, CAPTIONS).astype(int) - 128
    noise = one.noise_of(CAPTIONS, 12).mean(1, keepdims=True)
    assert np.array_equal(change, np.rint(noise.astype(np.float64) * 255))


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


# 7. Limits


def test_a_budget_of_nothing_is_no_noise():
    assert np.abs(shield(eps=0.0).noise_of(CAPTIONS, 8)).max() == 0


def test_a_generator_that_maximises_is_said_to_be_no_t2ue(tmp_path):
    pixels, _ = make_pictures(5)
    save_generator(tiny_generator(), tmp_path / "g", training={"direction": "maximise"})
    with pytest.warns(
        Notice, match=r"was trained to maximise the loss: its noise is adversarial, and not that of T2UE"
    ):
        protection = shield(generator=str(tmp_path / "g")).fit(pixels, CAPTIONS)
    assert protection.training_ == {"direction": "maximise"}
    with pytest.warns(Notice, match=r"trained for a budget of 0.03137; its noise is scaled to 0.06275"):
        shield(eps=16 / 255).fit(pixels, CAPTIONS)


# 8. Cost


def test_noise_costs_one_forward_pass_a_caption_without_a_graph_or_a_search(monkeypatch):
    rows = []
    pattern = TextNoiseGenerator.pattern
    monkeypatch.setattr(
        TextNoiseGenerator, "pattern", lambda self, text, z: rows.append(len(text)) or pattern(self, text, z)
    )
    monkeypatch.setattr(torch.autograd, "grad", None)
    made = shield(batch_size=2).noise_of(CAPTIONS, 8)
    assert sum(rows) == 5
    assert max(rows) == 2
    assert isinstance(made, np.ndarray)
    rows.clear()
    shield(mode="class").noise_of(CAPTIONS * 10, 8)
    assert sum(rows) == 4


def test_the_papers_generator_has_seven_blocks_and_as_many_weights_as_the_re_implementation():
    with torch.device("meta"):
        generator = TextNoiseGenerator()
    assert len(generator.blocks) == 7
    assert generator.side == 256
    assert sum(weight.numel() for weight in generator.parameters()) == OFFICIAL["weights of the default plan"]


# A real CLIP of transformers, from its configuration


@pytest.fixture(scope="module")
def clip():
    """A tiny CLIPModel with a tokenizer of whole words that holds 12 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{number}" for number in range(40))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<start>", eos_token="<end>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=12,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 44, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=10,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    return model, tokenizer


def test_a_clip_of_transformers_trains_a_generator_and_protects_by_it(clip, tmp_path):
    model, tokenizer = clip
    before = hash_model(model)
    encoders = ClipEncoders(model, tokenizer)
    assert (encoders.image_size, encoders.most_tokens) == (16, 12)
    assert encoders.scale == pytest.approx(math.exp(model.logit_scale.item()))
    pixels, _ = make_pictures(12, side=20)
    captions = [f"word{row} word{row + 1} word7" for row in range(12)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TextNoiseGenerator(10, 4, (8, 8, 6))
    how = GeneratorTraining(epochs=2, batch_size=12, lr=2e-2)
    text = F.normalize(encoders.text_features(captions), dim=-1)

    def loss():
        with torch.no_grad():
            small = torch.from_numpy(pixels[:, :, 2:18, 2:18] / 255).float()
            return noise_loss(generator.eval(), encoders, small, text, torch.zeros(12, 4)).item()

    first = loss()
    train_generator(np.tile(pixels, (20, 1, 1, 1)), captions * 20, encoders, how, generator=generator)
    assert loss() < 0.95 * first
    assert hash_model(model) == before
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    save_generator(generator, tmp_path / "generator")
    stored = T2UE(key=3, generator=str(tmp_path / "generator"), text_encoder=str(tmp_path / "clip"))
    given = T2UE(key=3, generator=generator, text_encoder=encoders)
    assert np.allclose(stored.noise_of(captions, 20), given.noise_of(captions, 20), atol=1e-6)
    folder = stored.fit(pixels, captions).save(tmp_path / "kept")
    assert np.array_equal(
        Protection.load(folder, 3).transform(pixels, captions), stored.fit(pixels, captions).transform(pixels, captions)
    )


def test_features_of_a_clip_are_the_projected_ones_of_normalised_pictures_and_of_texts_of_any_padding(clip):
    model, tokenizer = clip
    encoders = ClipEncoders(model, tokenizer)
    pixels = torch.rand(2, 3, 16, 16)
    normal = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        both = model(input_ids=tokenizer(["word1 word2"], return_tensors="pt")["input_ids"], pixel_values=normal)
        assert torch.allclose(F.normalize(encoders.image_features(pixels), dim=-1), both.image_embeds, atol=1e-5)
        padded = encoders.text_features(["word1 word2", "word3 word4 word5 word6"])
        assert torch.allclose(F.normalize(padded[:1], dim=-1), both.text_embeds, atol=1e-5)

    class Processor:
        image_processor = type("Pictures", (), {"image_mean": [0.0] * 3, "image_std": [1.0] * 3})

    Processor.tokenizer = tokenizer
    own = ClipEncoders(model, Processor)
    with torch.no_grad():
        assert torch.equal(own.image_features(pixels), model.get_image_features(pixel_values=pixels).pooler_output)


def test_a_caption_that_is_too_long_is_refused_unless_it_may_be_cut(clip):
    model, tokenizer = clip
    encoders = ClipEncoders(model, tokenizer)
    generator = TextNoiseGenerator(10, 4, (4, 4))
    long = " ".join(f"word{number}" for number in range(11))
    message = r"the caption 'word0 word1 .*\.\.\. has 13 tokens, and the text encoder takes 12. Shorten it, or pass truncation=True"
    pixels, _ = make_pictures(2)
    for call in (
        lambda: T2UE(key=1, generator=generator, text_encoder=encoders).fit(pixels, ["word1", long]),
        lambda: T2UE(key=1, generator=generator, text_encoder=encoders).noise_of([long], 8),
        lambda: train_generator(pixels, [long, "word1"], encoders, generator=generator),
    ):
        with pytest.raises(DataError, match=message):
            call()
    cut = T2UE(key=1, generator=generator, text_encoder=encoders, truncation=True)
    assert np.allclose(cut.noise_of([long], 8), cut.noise_of([long.rsplit(" ", 1)[0]], 8), atol=1e-7)


def test_a_model_that_encodes_no_texts_and_pictures_is_refused(tmp_path):
    from conftest import make_llama, make_tokenizer

    make_llama().save_pretrained(tmp_path / "llama")
    make_tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match=r"llama is a LlamaForCausalLM, which has no text features. Give a CLIP model"):
        ClipEncoders.load(tmp_path / "llama")


# Generators in folders


def test_a_saved_generator_is_the_same_and_is_replaced_only_when_asked(tmp_path):
    generator = tiny_generator(mask=True, eps=0.05)
    folder = save_generator(generator, tmp_path / "g", training={"epochs": 3})
    again, training = load_generator(folder)
    assert hash_model(again) == hash_model(generator)
    assert (again.settings, training) == (generator.settings, {"epochs": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(RunError, match=r"holds a saved generator. Choose another folder, or pass overwrite=True"):
        save_generator(generator, folder)
    save_generator(generator, folder, overwrite=True)
    (folder / "mine.txt").touch()
    with pytest.raises(RunError, match="holds other files than a saved generator"):
        save_generator(generator, folder, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file"):
        save_generator(generator, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(form=2), "is of no text noise generator, or of one of another version"),
        (lambda c: c.update(training=3), "is of no text noise generator"),
        (lambda c: c["generator"].update(channels="8"), "doesn't say how the generator is built"),
        (lambda c: c["generator"].update(text_width=2**40), "doesn't say how the generator is built"),
        (lambda c: c["generator"].update(channels=[8] * 40), "doesn't say how the generator is built"),
        (lambda c: c["generator"].pop("mask"), "doesn't say how the generator is built"),
        (
            lambda c: c["generator"].update(text_width=7),
            "is not of the generator that config.json tells of: see 'blocks",
        ),
        (lambda c: c["generator"].update(channels=[8]), "is not of the generator that config.json tells of"),
        (lambda c: c.update(weights="0"), "is not what config.json was written for"),
    ],
)
def test_a_damaged_generator_is_refused(change, message, tmp_path):
    folder = save_generator(tiny_generator(), tmp_path / "g")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_generator(folder)


def test_a_folder_without_a_generator_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no generator of noise: it has no config.json. Train one first"):
        load_generator(tmp_path)
    assert shield(generator=str(tmp_path)).generator == str(tmp_path)
    with pytest.raises(ModelError, match="holds no generator of noise"):
        shield(generator=tmp_path).noise_of(CAPTIONS, 8)


def test_a_protection_knows_the_generator_it_was_fitted_with(tmp_path):
    pixels, _ = make_pictures(5)
    folder = shield().fit(pixels, CAPTIONS).save(tmp_path / "kept")
    assert (
        Protection.load(folder, 5, generator=tiny_generator(), text_encoder=HashedText())
        .transform(pixels, CAPTIONS)
        .any()
    )
    other = Protection.load(folder, 5, generator=tiny_generator(seed=1), text_encoder=HashedText())
    with pytest.raises(RunError, match=r"was fitted with another generator than the one at hand"):
        other.transform(pixels, CAPTIONS)


# Captions in a folder


def test_a_table_and_files_beside_the_pictures_are_captions_and_class_names_where_asked_for(tmp_path):
    pets = make_folder(tmp_path / "pets")
    names = [FolderPictures(pets).relative(row) for row in range(6)]
    for name in names:
        (pets / name).with_suffix(".txt").write_text(f" seen {name}\n twice ")
    beside = shield().pictures_of(pets)
    assert beside.targets == tuple(f"seen {name} twice" for name in names)
    assert beside.classes == ()
    table = tmp_path / "mine.csv"
    table.write_text("\ufeffFile,Caption\n" + "\n".join(f'{name},"table, {name}"' for name in names), encoding="utf-8")
    assert shield().pictures_of(pets, table).targets == tuple(f"table, {name}" for name in names)
    (pets / "captions.csv").write_text(table.read_text())
    assert shield().pictures_of(pets).targets[0] == f"table, {names[0]}"
    assert shield(mode="class").pictures_of(pets).targets == ("amber",) * 2 + ("blue",) * 2 + ("cyan",) * 2
    assert shield(template="varied").pictures_of(pets).targets[0] == "amber"


def test_pictures_with_captions_may_lie_anywhere_and_a_release_is_that_of_the_arrays(tmp_path):
    source = tmp_path / "pairs"
    pets = make_folder(tmp_path / "pets")
    (source / "deep").mkdir(parents=True)
    (pets / "amber/0.png").rename(source / "one.png")
    (pets / "blue/0.png").rename(source / "deep/two.png")
    (source / "captions.csv").write_text("image,text\none.png,a cat\n./deep/two.png,a dog\n")
    release = protect_folder(shield(), source, tmp_path / "safe")
    assert contents(release.folder).keys() == {"one.png", "deep/two.png", "protection.json"}
    rows = FolderPictures(source, "captions", names=False)
    assert rows.targets == ("a dog", "a cat")
    pixels = rows.pixels([0, 1])
    expected = shield().fit(pixels, rows.targets).transform(pixels, rows.targets)
    safe = FolderPictures(tmp_path / "safe", "captions", source / "captions.csv")
    assert np.array_equal(safe.pixels([0, 1]), expected)
    fitted = shield().fit(source, source / "captions.csv")
    assert np.array_equal(fitted.transform(pixels, rows.targets), expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"amber/0.png has no caption: there is neither .*captions.csv nor .*amber/0.txt. Write one of them"),
        ("file,caption\namber/0.png,a cat\n", r"amber/1.png has no caption: .*captions.csv doesn't name it \(5 of 6"),
        ("a,b\n", r"captions.csv has the columns a, b. Its first line must name file and caption"),
        ("", r"captions.csv has the columns none"),
        ("file,caption\namber/0.png,  \n", r"captions.csv, line 2: the caption of amber/0.png is empty"),
        ("file,caption\n,a cat\n", r"captions.csv, line 2: the file is empty"),
        ('file,caption\na,"x', r"captions.csv is no table that can be read"),
    ],
)
def test_a_picture_without_a_caption_is_refused_by_its_file(table, message, tmp_path):
    pets = make_folder(tmp_path / "pets")
    if table is not None:
        (pets / "captions.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        protect_folder(shield(), pets, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_an_empty_file_a_second_caption_and_a_missing_table_are_refused_and_files_of_no_picture_told(tmp_path):
    pets = make_folder(tmp_path / "pets", rows=1)
    (pets / "amber/0.txt").touch()
    with pytest.raises(DataError, match=r"amber/0.txt is empty, and so .*amber/0.png has no caption"):
        shield().pictures_of(pets)
    rows = "".join(f"{colour}/0.png,x\n" for colour in ("amber", "blue", "cyan"))
    table = tmp_path / "t.csv"
    table.write_text(f"file,caption\n{rows}amber/0.png,y\n")
    with pytest.raises(DataError, match=r"amber/0.png has 2 captions, and its noise is made from one. Leave one"):
        shield().pictures_of(pets, table)
    several = FolderPictures(pets, "captions", table, several=True)
    assert several.captions == (("x", "y"), ("x",), ("x",))
    with pytest.raises(DataError, match=r"there is no file .*nowhere.csv"):
        shield().pictures_of(pets, tmp_path / "nowhere.csv")
    table.write_text(f"file,caption\n{rows}dog/9.png,y\n")
    with pytest.warns(Notice, match=r"names 1 files that are no pictures of .* \(first: dog/9.png\)"):
        shield().pictures_of(pets, table)


def test_a_generator_is_trained_on_a_folder_with_several_captions_a_picture(tmp_path):
    pets = make_folder(tmp_path / "pets", side=11)
    table = "".join(f"{name},{text} of {name}\n" for name in contents(pets) for text in ("one", "two"))
    (pets / "captions.csv").write_text(f"file,caption\n{table}")
    how = GeneratorTraining(epochs=1, batch_size=4)
    generator = train_generator(pets, None, LinearEncoders(), how, generator=tiny_generator())
    same = train_generator(pets, pets / "captions.csv", LinearEncoders(), how, generator=tiny_generator())
    assert hash_model(generator) == hash_model(same) != hash_model(tiny_generator())


def test_a_set_of_images_has_its_classes_names_for_captions():
    from unwrite.data import Images

    pixels, labels = make_pictures(6)
    images = Images(pixels.astype(np.float32) / 255, labels, classes=("cat", "dog", "bus"))
    made = shield(mode="class").fit_transform(images)
    expected = shield(mode="class").fit_transform(pixels, ["cat", "dog", "bus"] * 2)
    assert np.array_equal(np.rint(made.pixels.numpy() * 255), expected)


# From the shell


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_the_shell_trains_a_generator_and_protects_by_it_as_the_library_does(clip, tmp_path, capsys, monkeypatch):
    from unwrite.cli import main
    from unwrite.shield.engine import generator_training

    model, tokenizer = clip
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(
        generator_training, "_default", lambda width, eps: TextNoiseGenerator(width, 4, (6, 4), eps=eps)
    )
    pets = make_folder(tmp_path / "pets")
    table = tmp_path / "mine.csv"
    table.write_text("file,caption\n" + "".join(f"{name},word{row}\n" for row, name in enumerate(contents(pets))))
    given = ["--captions", str(table)]
    training = [
        "shield",
        "train-generator",
        str(pets),
        *given,
        "--encoders",
        str(tmp_path / "clip"),
        "--out",
        str(tmp_path / "g"),
    ]
    main(
        [
            *training,
            "--epochs",
            "2",
            "--batch-size",
            "3",
            "--eps",
            "0.05",
            "--checkpoints",
            str(tmp_path / "checkpoints"),
        ]
    )
    assert "weights for a budget of 0.05, 8 x 8 pixels" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "epoch-1").is_dir()
    generator, told = load_generator(tmp_path / "g")
    assert generator.eps == 0.05
    assert (told["epochs"], told["batch_size"], told["direction"]) == (2, 3, "minimise")
    assert "device" not in told
    with pytest.raises(SystemExit):
        main(training)
    assert "holds a saved generator. Choose another --out, or pass --overwrite to replace it" in capsys.readouterr().err
    made = ["--generator", str(tmp_path / "g"), "--text-encoder", str(tmp_path / "clip"), "--key", "9"]
    main(["shield", "protect", str(pets), "--by", "t2ue", *given, *made, "--out", str(tmp_path / "safe")])
    assert "6 pictures, protected by t2ue" in capsys.readouterr().out
    fields = {"key": 9, "generator": str(tmp_path / "g"), "text_encoder": str(tmp_path / "clip")}
    protect_folder(T2UE(**fields), pets, tmp_path / "again", captions=table)
    first, again = contents(tmp_path / "safe"), contents(tmp_path / "again")
    assert all(first[name] == again[name] for name in contents(pets))
    with pytest.raises(SystemExit):
        main(["shield", "protect", str(pets), "--by", "t2ue", *made, "--out", str(tmp_path / "none")])
    assert "amber/0.png has no caption" in capsys.readouterr().err


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "both"}, "mode is 'both'; use one of 'sample', 'class'"),
        ({"bn_mode": "none"}, "bn_mode is 'none'; use one of 'running', 'batch'"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, at least 1"),
        ({"template": "a cat"}, "template is 'a cat', in which no class's name has a place. Write {} for it"),
        (
            {"template": "varied", "mode": "class"},
            "template is 'varied', which gives pictures of one class several texts",
        ),
        ({"generator": "nowhere"}, "generator is 'nowhere', and there is no such folder"),
        ({"generator": 3}, "generator is 3. Give a folder, or a TextNoiseGenerator"),
        ({"text_encoder": "nowhere"}, "text_encoder is 'nowhere', and there is no such folder. Give the CLIP model"),
        ({"text_encoder": 3}, "text_encoder is 3. Give a folder, an id of the Hub, or an object that encodes texts"),
        ({"device": "tpu9"}, "device is 'tpu9'; it must be a device of torch"),
        ({"eps": 1.5}, "eps is 1.5, and pixels are in 0..1"),
        ({"eps": -0.1}, "eps is -0.1; it must be at least 0"),
    ],
)
def test_refuses_fields_without_meaning(fields, message):
    with pytest.raises(MethodError) as error:
        shield(**fields)
    assert message in str(error.value)


def test_refuses_to_make_noise_without_a_generator_or_its_text_encoder():
    with pytest.raises(MethodError, match=r"T2UE has no generator. Train one first, and give it by"):
        T2UE(key=1).noise_of(CAPTIONS, 8)
    with pytest.raises(
        MethodError, match=r"T2UE has no text encoder. Give the one that the generator was trained with"
    ):
        T2UE(key=1, generator=tiny_generator()).fit(*pairs())


def test_refuses_a_text_encoder_of_another_width():
    message = r"the text encoder gives 9 features, and the generator takes 6. Use the text encoder that"
    pixels, _ = make_pictures(5)
    for call in (
        lambda: shield(text_encoder=HashedText(9)).fit(pixels, CAPTIONS),
        lambda: shield(text_encoder=HashedText(9)).noise_of(CAPTIONS, 8),
    ):
        with pytest.raises(ModelError, match=message):
            call()
    wide = LinearEncoders()
    wide.texts = HashedText(9)
    with pytest.raises(ModelError, match=message):
        train_generator(pixels, CAPTIONS, wide, generator=tiny_generator())


@pytest.mark.parametrize(
    ("captions", "rows", "size", "message"),
    [
        (["a cat", " "], None, 8, "caption 1 is ' '. Give a text"),
        (["a cat", 3], None, 8, "caption 1 is 3. Give a text"),
        ("a cat", None, 8, "there are no captions. Give a list of texts"),
        ([], None, 8, "there are no captions"),
        (["a cat"], [1, 2], 8, "there are 1 captions and 2 rows. Give one each"),
        (["a cat"], [-1], 8, "row -1 is negative. Count rows from 0"),
        (["a cat"], None, (8, 0), r"size is \(8, 0\), of which there are no pictures"),
    ],
)
def test_refuses_captions_rows_and_sizes_without_meaning(captions, rows, size, message):
    with pytest.raises(DataError, match=message):
        shield().noise_of(captions, size, rows=rows)


def test_refuses_captions_for_classes_and_for_a_shield_that_reads_none(tmp_path):
    from unwrite.shield import CUDA

    pets = make_folder(tmp_path / "pets")
    with pytest.raises(MethodError, match=r"mode='class' makes noise from classes' names. Leave captions out"):
        protect_folder(shield(mode="class"), pets, tmp_path / "safe", captions=tmp_path / "t.csv")
    with pytest.raises(MethodError, match=r"cuda reads no captions. Leave captions out"):
        protect_folder(CUDA(key=1), pets, tmp_path / "safe", captions=tmp_path / "t.csv")


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
