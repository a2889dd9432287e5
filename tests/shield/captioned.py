"""What tests of noise from captions share: a small shield, captions, and pairs of pictures and captions."""

from helpers.caption_encoders import HashedText, tiny_generator
from helpers.pictures import make_pictures
from unwrite.shield import T2UE

CAPTIONS = ["a cat asleep", "two dogs", "a red bus", "a cat asleep", "the sea"]


def shield(**fields):
    given = {"key": 5, "generator": tiny_generator(), "text_encoder": HashedText()}
    return T2UE(**{**given, **fields})


def pairs(rows=48, seed=0):
    """Random pictures [rows, 3, 8, 8] and a caption for each of eight kinds."""
    pixels, _ = make_pictures(rows, seed=seed)
    return pixels, [f"kind {row % 8}" for row in range(rows)]
