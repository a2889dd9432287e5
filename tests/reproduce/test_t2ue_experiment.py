"""T2UE's experiment: each check can fail for its own reason, the halves share words and no caption, and arms differ in what they say."""

import numpy as np
import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.beds.captioned_shapes import CAPTIONS, WORDS, CaptionedShapes, Retrieval, hits, uniform_noise
from unwrite.errors import DataError, ModelError
from unwrite.nets.small_dual_encoder import SmallDualEncoder
from unwrite.reproduce import t2ue
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

FOUND = {t2ue.PLAIN: 99.0, t2ue.UNIFORM: 98.0, t2ue.SIGNS: 50.0, t2ue.EM: 30.0, t2ue.DEALT: 95.0, t2ue.TIED: 40.0}
RIGHT = {**FOUND, t2ue.UNIFORM: 90.0, t2ue.TIED: 20.0}
LOSS = {t2ue.PLAIN: 1.0, t2ue.UNIFORM: 1.1, t2ue.DEALT: 3.0, t2ue.TIED: 0.2}


def seed_of(found=(), right=(), loss=(), towards=0.3):
    def changed(base, changes):
        return {**base, **{getattr(t2ue, name): value for name, value in dict(changes).items()}}

    texts = {name: Retrieval(value, value) for name, value in changed(FOUND, found).items()}
    return t2ue.CaptionFigures(texts, changed(RIGHT, right), changed(LOSS, loss), towards)


@pytest.mark.parametrize(
    ("one", "fails"),
    [
        (seed_of(), []),
        (seed_of(found={"PLAIN": 59.0, "UNIFORM": 58.0}), ["a dual encoder learns"]),
        (seed_of(right={"PLAIN": 59.0}), ["a classifier learns"]),
        (seed_of(found={"UNIFORM": 88.0}), ["uniform noise costs retrieval little"]),
        (seed_of(loss={"TIED": 1.05}), ["lowers the surrogate's loss"]),
        (seed_of(towards=-0.01), ["draws a picture to it"]),
        (seed_of(found={"TIED": 89.0}), ["retrieval is 10 points below", "dealt at random"]),
        (seed_of(right={"TIED": 81.0}), ["accuracy is 10 points below"]),
        (seed_of(found={"DEALT": 45.0}), ["dealt at random"]),
    ],
)
def test_each_check_fails_for_its_own_reason(one, fails):
    checks = t2ue.checks_of([one, one])
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails)
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)


def test_halves_share_words_and_no_caption_and_tests_are_of_the_published_half():
    bed = CaptionedShapes.of(3, 2, 1, 1)
    assert len(CAPTIONS) == len({*CAPTIONS}) == 120
    assert not {*bed.known.classes} & {*bed.published.classes}
    assert {*bed.known.classes} | {*bed.published.classes} == {*CAPTIONS}
    assert bed.test.classes == bed.published.classes
    for half in (bed.known, bed.published):
        assert {word for caption in half.classes for word in caption.split()} == {*WORDS}
    assert not torch.equal(bed.published.pixels[::2], bed.test.pixels)
    assert torch.equal(CaptionedShapes.of(3, 2, 1, 1).test.pixels, bed.test.pixels)


def test_a_picture_shows_the_colour_at_its_place():
    bed = CaptionedShapes.of(0, 3, 1, 1)
    for label, caption in enumerate(bed.published.classes):
        if "red" in caption and "disc" in caption:
            mean = bed.published.pixels[bed.published.target == label].mean(0)
            red = mean[0] - mean[1:].mean(0)
            row, column = divmod(int(red.argmax()), 32)
            assert ("bottom" in caption) == (row > 15)
            assert ("right" in caption) == (column > 15)


def test_uniform_noise_is_each_pictures_own_and_within_its_levels():
    pictures = CaptionedShapes.of(0, 2, 1, 1).published
    change = torch.round((uniform_noise(pictures, 16, 0).pixels - pictures.pixels) * 255)
    assert change.abs().max() == 16
    assert not torch.equal(change[0], change[1])


def test_hits_are_counted_among_the_nearest():
    class Known(SmallDualEncoder):
        def image_features(self, pixels):
            return torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8]])

        def text_features(self, texts, *, truncation=False):
            return torch.eye(3)

    pictures = CaptionedShapes.of(0, 1, 1, 1).test
    four = type(pictures)(pictures.pixels[:4], torch.tensor([0, 1, 1, 0]), classes=("a", "b", "c"))
    result = hits(Known(["a"]), four)
    assert result.text == 50.0  # the second is nearest to "a" and the last to "c"
    assert result.picture == pytest.approx(200 / 3)  # nearest to "c" is a picture of "a"
    assert hits(Known(["a"]), four, nearest=2).text == 75.0


def test_the_small_dual_encoder_reads_words_in_any_order_and_refuses_others():
    torch.manual_seed(0)
    model = SmallDualEncoder(["a", "cat", "red"], features=5, width=8, image_size=8).eval()
    texts = model.text_features(["a red cat", "Cat a red", "a"])
    assert torch.allclose(texts[0], texts[1], atol=1e-6)
    assert texts.shape == (3, 5)
    assert model.image_features(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert model.scale == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model.scale == pytest.approx(100)
    for text, word in (("a dog", "dog"), (" ", "")):
        with pytest.raises(DataError, match=f"has the word '{word}', which this encoder doesn't know"):
            model.text_features(["a", text])
    for words in ([], ["a", "a"]):
        with pytest.raises(ModelError, match="are no vocabulary"):
            SmallDualEncoder(words)


def test_the_loss_of_a_batch_has_a_picture_of_each_caption():
    bed = CaptionedShapes.of(0, 2, 1, 1)
    torch.manual_seed(0)
    model = SmallDualEncoder(WORDS, 64, 8, 32).eval()
    swapped = bed.published.subset(np.arange(120).reshape(60, 2)[:, ::-1].ravel().copy())
    assert t2ue.loss_of(model, swapped) == pytest.approx(t2ue.loss_of(model, bed.published), rel=1e-5)
    assert t2ue.towards(model, bed.published, t2ue.captions_of(bed.published)) <= 1


def test_a_headline_fits_its_cell():
    rows = dict.fromkeys(FOUND, ("100.0 +- 10.0",) * 3)
    assert len(t2ue.headline(rows, {})) <= HEADLINE


@pytest.mark.slow
def test_it_runs_tiny():
    claim, record = run("t2ue", Budget("tiny", (0,)))
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert len(claim.rows) == 6
    assert t2ue.headline(record["rows"], record["extra"]) == record["headline"]
