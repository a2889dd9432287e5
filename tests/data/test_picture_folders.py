"""A folder of one's own pictures: every format that Pillow writes is read, nothing comes in all black or white, and faults have names."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import contents, make_folder
from unwrite.data.images.picture_files import is_picture
from unwrite.data.images.picture_folders import PictureFolder, PictureReader, picture_images, train_test_folders
from unwrite.errors import DataError, Notice

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
# Which of Pillow's formats keep an RGB picture as it is, by the ending of a file of it.
LOSSLESS = ("png", "bmp", "tif", "tga", "ppm", "webp", "pcx", "sgi", "dib", "im", "dds", "qoi", "jp2")


def save(folder, name, picture, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def read(folder):
    rows = PictureFolder.read(folder).rows
    reader = PictureReader(rows)
    return {row.name: np.asarray(reader.picture(row)) for row in rows}


@pytest.mark.parametrize("ending", LOSSLESS)
def test_every_format_is_read_as_it_was_written(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {"irreversible": False} if ending == "jp2" else {}
    save(tmp_path, f"a/1.{ending}", Image.fromarray(COLOURS), **options)
    assert np.array_equal(read(tmp_path)[f"a/1.{ending}"], COLOURS)


def test_lossy_formats_are_near(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (1, 16, 3))
    for ending in ("jpg", "jpeg", "webp", "avif"):
        save(tmp_path, f"a/{ending}.{ending}", Image.fromarray(smooth), quality=95)
    for name, array in read(tmp_path).items():
        assert np.abs(array.astype(int) - smooth).mean() < 4, name


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_of_eight_bits_are_read_as_pillow_converts_them(tmp_path, mode):
    picture = Image.fromarray(COLOURS).convert(mode)
    ending = "png" if mode in ("1", "L", "P", "RGB") else "tif"
    save(tmp_path, f"a/1.{ending}", picture)
    array = read(tmp_path)[f"a/1.{ending}"]
    assert np.array_equal(array, np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB")))


def test_what_is_transparent_lies_over_white_and_that_is_said(tmp_path):
    colours = np.zeros((2, 2, 4), dtype=np.uint8)
    colours[0, 0] = 10, 20, 30, 255
    colours[0, 1] = 0, 0, 0, 128
    save(tmp_path, "a/1.png", Image.fromarray(colours))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9] * 256)
    save(tmp_path, "a/2.png", palette, transparency=0)
    save(tmp_path, "a/3.png", Image.fromarray(np.array([[[50, 255], [50, 0]]], dtype=np.uint8), "LA"))
    with pytest.warns(Notice, match=r"3 pictures are partly transparent, and are laid over white \(first: a/1.png\)"):
        arrays = read(tmp_path)
    first = arrays["a/1.png"]
    assert first[0, 0].tolist() == [10, 20, 30]
    assert first[0, 1, 0] in (126, 127)
    assert (first[1] == 255).all()
    assert (arrays["a/2.png"] == 255).all()
    assert arrays["a/3.png"][0, :, 0].tolist() == [50, 255]


def test_sixteen_bits_are_divided_by_their_range_and_not_cut(tmp_path):
    deep = LEVELS.astype(np.uint16) * 257
    for ending in ("png", "tif"):
        save(tmp_path, f"a/{ending}.{ending}", Image.fromarray(deep))
    save(tmp_path, "a/big.tif", Image.fromarray(deep.astype(">u2")))
    save(tmp_path, "b/dark.png", Image.fromarray((deep // 100).astype(np.uint16)))
    with pytest.warns(Notice, match="pictures of 16 bits are divided by 65535"):
        arrays = read(tmp_path)
    for name in ("a/png.png", "a/tif.tif", "a/big.tif"):
        assert np.array_equal(arrays[name], LEVELS), name
    assert arrays["b/dark.png"].max() <= 3


@pytest.mark.parametrize(("low", "high", "by"), [(0.0, 1.0, 1), (0.0, 255.0, 255)])
def test_floats_are_divided_by_the_range_that_all_of_them_have(tmp_path, low, high, by):
    levels = np.linspace(low, high, 30, dtype=np.float32).reshape(6, 5)
    save(tmp_path, "a/1.tif", Image.fromarray(levels))
    with pytest.warns(Notice, match=f"floats are divided by {by}, the range"):
        array = read(tmp_path)["a/1.tif"]
    assert np.array_equal(array, np.rint(levels / by * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.full((3, 3), 5.0, np.float32), "that may be 0..1 or 0..255"),
        (np.full((3, 3), -1.0, np.float32), "has a pixel of -1"),
        (np.full((3, 3), 1000.0, np.float32), "floats are read as 0..1 or 0..255"),
        (np.full((3, 3), np.nan, np.float32), "not finite"),
        (np.full((3, 3), 100_000, np.int32), "whole numbers are read as 0..255 or 0..65535"),
        (np.full((3, 3), 9, np.uint16), "all would be black"),
    ],
)
def test_a_range_that_is_not_known_is_refused_with_the_file(tmp_path, levels, message):
    path = save(tmp_path, "a/odd.tif", Image.fromarray(levels))
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_deep_picture_that_changes_after_it_was_measured_is_refused_and_not_shown_white(tmp_path):
    path = save(tmp_path, "a/1.tif", Image.fromarray(np.full((3, 3), 1.0, np.float32)))
    rows = PictureFolder.read(tmp_path).rows
    with pytest.warns(Notice):
        reader = PictureReader(rows)
    save(tmp_path, "a/1.tif", Image.fromarray(np.full((3, 3), 200.0, np.float32)))
    with pytest.raises(DataError, match=f"{path} has changed since it was looked at"):
        reader.picture(rows[0])


def test_a_photo_taken_sideways_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "a/1.png", Image.fromarray(COLOURS), exif=exif)
    [row] = PictureFolder.read(tmp_path).rows
    assert (row.header.width, row.header.height) == (6, 5)
    assert np.array_equal(np.asarray(PictureReader([row]).picture(row)), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    save(tmp_path, f"a/1.{ending}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.warns(Notice, match="1 pictures are animated or of several pages, of which the first is taken"):
        [array] = read(tmp_path).values()
    assert array[0, 0, 0] > 240
    assert array[0, 0, 2] < 15


def png_of(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture that can be read"),
        (b"hello", "its content is of no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture that can be read"),
        (png_of(50_000, 50_000), "has more than 67,108,864 pixels"),
        (png_of(9_000, 9_000), "has 9000x9000 pixels, of 67,108,864 at most"),
        (png_of(5, 5), "is damaged"),
    ],
)
def test_corrupt_and_huge_pictures_are_one_line_with_the_file(tmp_path, content, message):
    save(tmp_path, "a/good.png", Image.fromarray(COLOURS))
    (tmp_path / "a" / "bad.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert message in str(error.value)
    assert "bad.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_picture_is_named(tmp_path):
    path = save(tmp_path, "a/1.jpg", Image.fromarray(np.tile(COLOURS, (20, 20, 1))))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"1.jpg is damaged \(.*truncated"):
        read(tmp_path)


def test_formats_that_start_other_programs_are_no_pictures():
    assert not any(is_picture(f"x.{ending}") for ending in ("eps", "ps", "wmf", "pdf", "mpg", "txt", "npy"))
    assert all(is_picture(f"x.{ending}") for ending in ("PNG", "jpg", "webp", "avif", "tiff", "jp2", "ico"))


def test_whose_a_picture_is_says_the_folder_or_the_name(tmp_path):
    for name in ("cat/anna/1.png", "cat/bo/deep/2.png", "dog/anna_03.png", "dog/tom-a_4.png", "dog/solo.png"):
        save(tmp_path, name, Image.fromarray(COLOURS))
    found = {row.name: row.identity for row in PictureFolder.read(tmp_path).rows}
    assert list(found.values()) == ["anna", "bo", "anna", "solo", "tom-a"]


def test_train_and_test_folders_are_told_from_classes(tmp_path):
    make_folder(tmp_path / "split" / "train")
    make_folder(tmp_path / "split" / "test", seed=1)
    folders = train_test_folders(tmp_path / "split")
    assert folders.test is not None
    assert folders.train.rows[0].name == "train/amber/0.png"
    assert folders.train.classes == folders.test.classes == ("amber", "blue", "cyan")
    make_folder(tmp_path / "plain")
    assert train_test_folders(tmp_path / "plain").test is None
    save(tmp_path, "named/train/1.png", Image.fromarray(COLOURS))  # a class of trains
    save(tmp_path, "named/test/1.png", Image.fromarray(COLOURS))
    assert train_test_folders(tmp_path / "named").train.classes == ("test", "train")


def prepare(picture):
    return np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255


def test_rows_have_labels_in_the_order_asked_for_and_indices_that_count_on(tmp_path):
    folder = PictureFolder.read(make_folder(tmp_path / "in"))
    reader = PictureReader(folder.rows)
    who = sorted({row.identity for row in folder.rows})
    images = picture_images(
        folder.rows, reader, prepare, classes=("cyan", "amber", "blue", "more"), identities=who, first=7
    )
    assert images.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert images.index.tolist() == list(range(7, 13))
    assert images.classes[3] == "more"
    assert [images.identities[i] for i in images.identity] == ["0", "1"] * 3


def test_pictures_that_come_out_in_several_sizes_are_refused_with_both_files(tmp_path):
    save(tmp_path, "a/1.png", Image.fromarray(COLOURS))
    save(tmp_path, "a/2.png", Image.fromarray(COLOURS[:3]))
    folder = PictureFolder.read(tmp_path)
    with pytest.raises(DataError, match=r"2.png comes out as 5x3 of 3 channels and .*1.png as 5x6"):
        picture_images(folder.rows, PictureReader(folder.rows), prepare, classes=("a",), identities=("1", "2"))


def test_nothing_is_written_where_pictures_are_read(tmp_path):
    make_folder(tmp_path / "in")
    before = contents(tmp_path)
    read(tmp_path / "in")
    assert contents(tmp_path) == before
