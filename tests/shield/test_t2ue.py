"""T2UE: noise from captions and the key alone, within the budget, in one pass a caption; and what it refuses."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import CAPTIONS, pairs, shield
from torch.nn import functional as F

from helpers.caption_encoders import WIDTH, HashedText, LinearEncoders, tiny_generator
from helpers.pictures import COLOURS, Linear, make_folder, make_pictures
from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError, Notice
from unwrite.nets import TextNoiseGenerator
from unwrite.nets.text_noise_generator import bounded, resized
from unwrite.runs import hash_model
from unwrite.shield import (
    T2UE,
    Attacker,
    protect_folder,
    save_generator,
    train_attacker,
    train_generator,
)
from unwrite.shield.engine.dual_encoders import STD
from unwrite.shield.t2ue import TEMPLATES

OFFICIAL = json.loads(Path(__file__).with_name("t2ue_official.json").read_text())["numbers"]


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


# 7. Limits


def test_a_budget_of_nothing_is_no_noise():
    assert np.abs(shield(eps=0.0).noise_of(CAPTIONS, 8)).max() == 0


def test_without_a_budget_pictures_and_who_trains_on_them_are_as_without_protection(monkeypatch, tmp_path):
    """Byte for byte and bit for bit, both with noise of pictures and of classes; with a budget neither."""
    pixels, labels = make_pictures(24)
    plain = Images(torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels), classes=COLOURS)

    def trained_on(pictures, name):
        monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / name))  # nothing is found of another training
        model = train_attacker(pictures, None, Attacker(net=Linear, epochs=2, batch_size=8, lr=0.05), seed=3)
        return hash_model(model)

    expected = trained_on(plain, "plain")
    for mode in ("sample", "class"):
        protected = {eps: shield(mode=mode, eps=eps).fit_transform(plain) for eps in (0.0, 0.4 / 255, 32 / 255)}
        for eps in (0.0, 0.4 / 255):  # less than half a level is none
            assert torch.equal((protected[eps].pixels * 255).round(), (plain.pixels * 255).round())
        assert trained_on(protected[0.0], f"{mode} none") == expected
        assert trained_on(protected[32 / 255], f"{mode} some") != expected


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
