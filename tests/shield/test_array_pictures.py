"""Pictures in memory: which arrays are pictures, which labels are theirs, and what is refused."""

import numpy as np
import pytest

from helpers.pictures import make_pictures
from unwrite.data import Images, digits_regression
from unwrite.errors import DataError
from unwrite.shield.engine.keys import generator, is_key_of, sealed, seed_of
from unwrite.shield.engine.pictures import ArrayPictures, check_fitting

PIXELS, LABELS = make_pictures(rows=6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS[0], r"there are 3 images and labels of shape \[6\]"),
        (PIXELS[0, 0], r"have shape \[8, 8\]. Give \[rows, height, width\]"),
        (np.zeros((2, 5, 8, 8), np.uint8), r"have shape \[2, 5, 8, 8\]"),
        (np.zeros((6, 3, 8, 3), np.uint8), "can't be told which axis is the channels"),
        (np.zeros((0, 3, 8, 8), np.uint8), "which holds none"),
        (PIXELS.astype(np.int64), "the images are int64. Give uint8, or floats in 0..1"),
        (PIXELS / 254, r"image \d has a pixel of 1.00\d+. Give uint8, or floats in 0..1"),
        (np.where(np.arange(6)[:, None, None, None] == 4, np.nan, PIXELS / 255), "image 4 has a pixel of nan"),
        ([PIXELS[0], PIXELS[1, :, :4]], "are no one array of numbers, as pictures of several sizes are none"),
    ],
)
def test_what_are_no_pictures_is_refused(images, message):
    with pytest.raises(DataError, match=message):
        ArrayPictures(images, LABELS, "labels")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "there are no labels"),
        (LABELS[:5], r"there are 6 images and labels of shape \[5\]"),
        (LABELS[:, None], r"labels of shape \[6, 1\]"),
        (LABELS / 2, "the labels are float64. Give whole numbers"),
        (list("abcabc"), "the labels are <U1. Give whole numbers"),
        (LABELS - 1, "the label of image 0 is -1"),
    ],
)
def test_what_are_no_labels_is_refused(labels, message):
    with pytest.raises(DataError, match=message):
        ArrayPictures(PIXELS, labels, "labels")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (None, "there are no captions"),
        ("a cat", "there are no captions"),
        (["a cat"] * 5, "there are 6 images and 5 captions"),
        (["a cat"] * 5 + [" "], "the caption of image 5 is ' '"),
        (["a cat", 3, *["a dog"] * 4], "the caption of image 1 is 3"),
    ],
)
def test_what_are_no_captions_is_refused(captions, message):
    with pytest.raises(DataError, match=message):
        ArrayPictures(PIXELS, captions, "captions")


def test_a_batch_has_what_is_read_of_its_pictures():
    captions = [f"picture {row}" for row in range(6)]
    batch = ArrayPictures(PIXELS, captions, "captions").batch([4, 1])
    assert batch.targets == ("picture 4", "picture 1")
    assert np.array_equal(batch.pixels, PIXELS[[4, 1]])
    assert ArrayPictures(PIXELS, LABELS, "labels").batch([4, 1]).targets.tolist() == [1, 1]
    ignored = ArrayPictures(PIXELS, "anything", "nothing")
    assert (ignored.targets, ignored.classes) == (None, ())


def test_a_set_of_images_brings_its_labels_and_their_names_whatever_its_width():
    images = Images(np.full((2, 3, 8, 3), 0.5, np.float32), [1, 0], classes=("cat", "dog", "eel"))
    pictures = ArrayPictures(images, None, "labels")
    assert pictures.shape(0) == (3, 8, 3)
    assert (pictures.labels.tolist(), pictures.classes) == ([1, 0], ("cat", "dog", "eel"))
    assert ArrayPictures(images, [2, 2], "labels").labels.tolist() == [2, 2]  # unless others are given
    with pytest.raises(DataError, match="there are no labels"):
        ArrayPictures(digits_regression().train, None, "labels")


def test_floats_go_to_their_nearest_level():
    levels = np.array([0, 0.49, 0.51, 254.6]) / 255
    assert ArrayPictures(levels.reshape(1, 2, 2), [0], "labels").pixels([0]).ravel().tolist() == [0, 0, 1, 255]


def test_what_a_file_says_of_a_key_tells_it_from_others_and_never_twice_the_same():
    seal = sealed(5)
    assert is_key_of(5, seal)
    assert not is_key_of(6, seal)
    assert sealed(5) != seal
    assert not is_key_of(5, {"salt": seal["salt"]})
    assert not is_key_of(5, {**seal, "salt": 3})


def test_a_key_gives_each_purpose_its_own_numbers_by_all_its_bits():
    assert seed_of(5, "order") == seed_of(5, "order")
    assert len({seed_of(key, purpose) for key in (0, 5, 5 + 2**32, 5 + 2**255) for purpose in ("order", "start")}) == 8
    assert generator(5, "order").random() == generator(5, "order").random() != generator(5, "start").random()


@pytest.mark.parametrize("label", [0, 1, 7])
def test_one_class_alone_is_refused_whatever_its_label(label):
    pictures = ArrayPictures(PIXELS, np.full(len(PIXELS), label), "labels")
    with pytest.raises(DataError, match=r"are of one class, .*at least 2 classes"):
        check_fitting(pictures, "labels")
