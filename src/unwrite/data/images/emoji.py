"""Hands that someone drew, in six skin tones: class = the gesture, identity = the tone, from a font of coloured pictures.

The font is Noto Color Emoji, 136x128 pictures, which `unwrite data add emoji` fetches. A picture depends on seed, gesture, tone and draw
alone: it is scaled, turned, moved and laid over a coloured ground with noise.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import torch

from ...errors import DataError, MissingExtra
from ...runs import progress
from .images import Images
from .sets import TrainTest

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

__all__ = ["EMOJI_FONT", "GESTURES", "TONES", "check_font", "emoji"]

EMOJI_FONT = "NotoColorEmoji.ttf"
STRIKE = 109  # the one size of the font's pictures
SIDE = 32
GESTURES = "\U0001f44b\U0001f590\u270b\U0001f44c\u270c\U0001f91e\U0001f918\U0001f448\U0001f446\U0001f44d\U0001f44e\u270a\U0001f44a\U0001f44f\U0001f450\U0001f4aa"
TONES = {
    "yellow": "",
    "light": "\U0001f3fb",
    "medium-light": "\U0001f3fc",
    "medium": "\U0001f3fd",
    "medium-dark": "\U0001f3fe",
    "dark": "\U0001f3ff",
}
_EMOJI = crc32(b"emoji")  # another set drawn from the same seed draws other numbers


def emoji(
    font: str | Path,
    gestures: str = GESTURES,
    tones: Sequence[str] = tuple(TONES),
    *,
    draws: int = 12,
    test_draws: int = 4,
    seed: int = 0,
) -> TrainTest:
    """Drawn hands, `[rows, 3, 32, 32]`; class = gesture by its Unicode name, identity = skin tone.

    Args:
        font: the file of Noto Color Emoji.
        gestures: characters that take a skin tone, each once.
        tones: names from `TONES`.
        draws, test_draws: pictures of each gesture in each tone.
        seed: of everything.

    Raises:
        DataError: no such font, or one without coloured pictures of this size; a character or tone that it can't draw; no draws.
        MissingExtra: Pillow isn't installed, or was built without complex text layout, which joins a hand and its tone.
    """
    if len(set(gestures)) < max(2, len(gestures)) or draws < 1 or test_draws < 1:
        raise DataError(
            f"{len(set(gestures))} gestures of {len(gestures)} with {draws} draws and {test_draws} test draws make no set. Give two "
            "or more, each once, and at least one draw of each kind."
        )
    if absent := [name for name in tones if name not in TONES]:
        raise DataError(f"there is no skin tone {absent[0]!r}. Use some of {', '.join(TONES)}.")
    face = _opened(Path(font))
    hands = [[_drawn(face, gesture, tone) for gesture in gestures] for tone in tones]
    names = tuple(unicodedata.name(gesture).lower() for gesture in gestures)
    sets, first = [], 0
    for part, numbers in (("train", range(draws)), ("test", range(draws, draws + test_draws))):
        rows = [(i, j, draw) for i in range(len(tones)) for j in range(len(gestures)) for draw in numbers]
        pixels = np.empty((len(rows), 3, SIDE, SIDE), dtype=np.float32)
        for at, (i, j, draw) in enumerate(progress(rows, f"drawing emoji, {part}")):
            key = [seed, _EMOJI, crc32(tones[i].encode()), ord(gestures[j]), draw]
            pixels[at] = _picture(hands[i][j], np.random.default_rng(key))
        sets.append(
            Images(
                pixels,
                labels=torch.tensor([j for _, j, _ in rows]),
                index=torch.arange(first, first + len(rows)),
                identity=torch.tensor([i for i, _, _ in rows]),
                classes=names,
                identities=tuple(tones),
                name=f"emoji {part}",
            )
        )
        first += len(rows)
    train, test = sets
    return TrainTest(train, test)


def check_font(path: Path) -> None:
    """Refuses a file that isn't the font.

    Raises:
        DataError: it isn't there, is damaged, or has no coloured picture of a waving hand in a tone.
    """
    _drawn(_opened(path), GESTURES[0], "dark")


def _opened(path: Path) -> FreeTypeFont:
    try:
        from PIL import ImageFont, features
    except ImportError:
        raise MissingExtra("pillow", "vision") from None
    if not features.check("raqm"):
        raise DataError(
            "this Pillow was built without raqm, which joins a hand and its skin tone. Install Pillow from its wheel."
        )
    try:
        return ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        reason = "is not there" if not path.is_file() else f"can't be read as a font of coloured pictures ({error})"
        raise DataError(f"{path} {reason}. Run: unwrite data add emoji") from None


def _drawn(face: FreeTypeFont, gesture: str, tone: str) -> Picture:
    """A hand as the font has it, cut out. Returns an RGBA picture."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (4 * STRIKE, 2 * STRIKE))
    pen = ImageDraw.Draw(picture)
    pen.text((0, 0), gesture + TONES[tone], font=face, embedded_color=True)
    box = picture.getbbox()
    colours = np.asarray(picture)[..., :3].reshape(-1, 3)
    if box is None or not (colours.max(1) - colours.min(1)).any():
        raise DataError(f"{_name(face)} has no coloured picture of {gesture!r}. Give the file {EMOJI_FONT}.")
    if face.getlength(gesture + TONES[tone]) > 1.5 * face.getlength(gesture):
        raise DataError(
            f"{_name(face)} draws {gesture!r} and its {tone} tone side by side: it takes no skin tone. Leave it out."
        )
    return picture.crop(box)


def _name(face: FreeTypeFont) -> str:
    return str(Path(os.fsdecode(face.path)))  # type: ignore[arg-type]


def _picture(hand: Picture, rng: np.random.Generator) -> np.ndarray:
    """One picture, `[3, 32, 32]` in steps of 1/255."""
    from PIL import Image

    canvas = 2 * SIDE  # twice the size, for smooth edges
    scale = canvas * rng.uniform(0.6, 0.85) / max(hand.size)
    small = hand.resize(
        (max(1, round(hand.width * scale)), max(1, round(hand.height * scale))), Image.Resampling.LANCZOS
    )
    small = small.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BICUBIC, expand=True)
    ground = Image.new("RGBA", (canvas, canvas), (*rng.integers(0, 256, 3).tolist(), 255))
    room = [(canvas - side) / 2 for side in small.size]
    left, top = (round(half + rng.uniform(-0.15, 0.15) * canvas) for half in room)
    layer = Image.new("RGBA", ground.size)
    layer.paste(small, (left, top))
    mixed = Image.alpha_composite(ground, layer).convert("RGB").reduce(2)
    image = np.asarray(mixed, dtype=np.float64) / 255
    image = np.clip(image + rng.normal(0, 0.05, image.shape), 0, 1)
    return (np.rint(image * 255) / 255).astype(np.float32).transpose(2, 0, 1)
