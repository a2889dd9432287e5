"""Hands in skin tones: what of a set is whose, and what is no font of coloured pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unwrite.beds.emoji import BEDS
from unwrite.data import emoji as emoji_set
from unwrite.data.images import emoji, fetched
from unwrite.data.images.emoji import EMOJI_FONT, GESTURES, TONES, check_font
from unwrite.data.images.fetched import add_data, data_folder
from unwrite.data.images.sets import installed_fonts
from unwrite.errors import DataError
from unwrite.runs import cache_dir
from unwrite.runs.jobs import one_thread

HERE = data_folder("emoji") / EMOJI_FONT if fetched.fetched_dir("data").joinpath("emoji").is_dir() else None


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_font(monkeypatch):
    """Discs in place of hands: the tone is their colour, the gesture their width."""

    def disc(face, gesture, tone):
        picture = Image.new("RGBA", (40 + 4 * GESTURES.index(gesture), 60))
        level = 40 * list(TONES).index(tone)
        ImageDraw.Draw(picture).ellipse((0, 0, picture.width - 1, 59), fill=(255 - level, level, 0, 255))
        return picture

    monkeypatch.setattr(emoji, "_drawn", disc)
    monkeypatch.setattr(emoji, "_opened", lambda path: None)


def test_the_gesture_is_the_label_and_the_tone_the_identity(no_font):
    data = emoji_set("any", GESTURES[:3], ["light", "dark"], draws=4, test_draws=2)
    assert (len(data.train), len(data.test)) == (24, 12)
    assert data.train.classes == ("waving hand sign", "raised hand with fingers splayed", "raised hand")
    assert data.train.identities == ("light", "dark")
    assert data.train.labels.tolist() == [j for _ in range(2) for j in range(3) for _ in range(4)]
    middle = data.train.pixels[:, :, 14:18, 14:18].mean((2, 3))  # [rows, 3]
    light, dark = (middle[data.train.identity == i].mean(0) for i in range(2))
    assert light[0] > dark[0]
    assert light[1] < dark[1]
    assert data.test.index.tolist() == list(range(24, 36))


def test_a_picture_depends_on_seed_gesture_tone_and_draw_alone(no_font):
    few, many = (
        emoji_set("any", GESTURES[:2], tones, draws=draws, seed=5) for tones, draws in ((["dark"], 3), (list(TONES), 4))
    )
    dark = many.train.where(many.train.identity == list(TONES).index("dark"), "dark")
    for row in range(3):
        assert np.array_equal(few.train.pixels[row], dark.pixels[row])
    other = emoji_set("any", GESTURES[:2], ["dark"], draws=3, seed=6)
    assert not np.array_equal(other.train.pixels[0], few.train.pixels[0])


def test_pixels_are_steps_of_255_within_the_canvas(no_font):
    pixels = emoji_set("any", GESTURES[:2], draws=2).train.pixels.numpy()
    assert pixels.shape[1:] == (3, 32, 32)
    assert np.allclose(pixels * 255, np.rint(pixels * 255), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gestures": GESTURES[:1]}, "1 gestures of 1"),
        ({"gestures": GESTURES[0] * 2}, "1 gestures of 2"),
        ({"draws": 0}, "0 draws"),
        ({"tones": ["green"]}, "no skin tone 'green'"),
    ],
)
def test_what_makes_no_set_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        emoji_set("any", **arguments)


def test_what_is_no_font_of_coloured_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        check_font(tmp_path / EMOJI_FONT)
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    with pytest.raises(DataError, match=r"broken.ttf can't be read as a font"):
        check_font(broken)
    plain = next(iter(installed_fonts().values()))[0]
    with pytest.raises(DataError, match="coloured picture"):
        check_font(plain)


def test_a_folder_without_the_font_adds_nothing(tmp_path):
    with pytest.raises(DataError, match=EMOJI_FONT):
        add_data("emoji", tmp_path)
    with pytest.raises(DataError, match="unwrite data add emoji"):
        data_folder("emoji")


def test_what_was_fetched_is_found_by_jobs_of_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "_opened", lambda path: None)
    monkeypatch.setattr(emoji, "_drawn", lambda *given: None)
    (tmp_path / EMOJI_FONT).write_bytes(b"a font")
    folder = add_data("emoji", tmp_path)
    with one_thread():
        assert data_folder("emoji") == folder
        assert cache_dir("fit") == folder.parents[1] / "one-thread" / "fit"


def test_without_the_font_a_bed_says_how_to_fetch_it():
    bed = BEDS["emoji/identity"]
    with pytest.raises(DataError, match="unwrite data add emoji"):
        bed.data(0)


@pytest.mark.skipif(HERE is None, reason="the font was not fetched")
def test_the_font_draws_every_gesture_in_every_tone_differently():
    face = emoji._opened(HERE)
    hands = {(g, t): emoji._drawn(face, g, t).resize((8, 8)).tobytes() for g in GESTURES for t in TONES}
    assert len(set(hands.values())) == len(hands)
    with pytest.raises(DataError, match="side by side"):
        emoji._drawn(face, "\U0001f600", "dark")  # a smiling face has one colour
