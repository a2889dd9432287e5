"""A folder of classes: read a few pictures at a time, refused by the file's name, and written whole or not at all."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import COLOURS, contents, make_folder
from unwrite.errors import DataError, MethodError, Notice, RunError
from unwrite.shield import CUDA, EMNoise, FolderPictures, protect_folder
from unwrite.shield.engine import folders, pictures, releasing

SHIELD = CUDA(key=6)


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path / "pets", rows=3)


def picture(folder, name, size=(5, 4), mode="RGB", **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path, **options)
    return path


def test_classes_files_and_folders_in_them_keep_their_names_and_end_in_png(pets, tmp_path):
    picture(pets, "amber/deep/er/one.two.jpg")
    picture(pets, "amber/BIG.JPEG")
    release = protect_folder(SHIELD, pets, tmp_path / "safe")
    names = {f"{colour}/{number}.png" for colour in COLOURS for number in range(3)}
    assert contents(release.folder).keys() == names | {"amber/deep/er/one.two.png", "amber/BIG.png", "protection.json"}
    assert release.pictures == 11
    assert all(Image.open(path).format == "PNG" for path in release.folder.rglob("*.png"))


def test_saved_pixels_are_those_of_the_array(pets, tmp_path):
    rows = FolderPictures(pets)
    expected = SHIELD.fit(rows).transform(rows.pixels(range(9)), rows.labels)
    protect_folder(SHIELD, pets, tmp_path / "safe")
    saved = FolderPictures(tmp_path / "safe")
    assert np.array_equal(saved.pixels(range(9)), expected)
    assert np.array_equal(saved.labels, rows.labels)
    assert rows.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_record_has_every_files_sum_and_what_made_it(pets, tmp_path):
    from unwrite.runs import hash_file

    protect_folder(replace(SHIELD, blur=0.2), pets, tmp_path / "safe")
    record = json.loads((tmp_path / "safe" / "protection.json").read_text())
    assert record["by"] == "cuda"
    assert record["fields"] == {"kernel_size": 3, "blur": 0.2, "centre": 1.0, "mix": 1.0}
    assert record["facts"]["classes"] == list(COLOURS)
    assert record["budget"] is None
    assert set(record["key"]) == {"salt", "scrypt"}
    assert record["files"] == {name: hash_file(tmp_path / "safe" / name) for name in record["files"]}
    assert len(record["files"]) == 9


def test_pictures_of_several_sizes_keep_them_or_are_refused_where_noise_has_one(pets, tmp_path):
    other = picture(pets, "blue/wide.png", size=(11, 7))
    protect_folder(SHIELD, pets, tmp_path / "safe")
    assert Image.open(tmp_path / "safe/blue/wide.png").size == (11, 7)
    with pytest.raises(
        DataError, match=rf"{other} has 11x7 pixels of 3 channels and .*amber/0.png 8x8 .*one size first"
    ):
        protect_folder(EMNoise(key=1), pets, tmp_path / "noisy")
    assert not (tmp_path / "noisy").exists()


def test_a_few_pictures_are_in_memory_at_a_time(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_ROWS", 2)
    most, decoded = [], FolderPictures.pixels
    monkeypatch.setattr(FolderPictures, "pixels", lambda self, rows: most.append(len(rows)) or decoded(self, rows))
    protect_folder(SHIELD, pets, tmp_path / "safe")
    assert most == [2, 2, 2, 2, 1]
    monkeypatch.setattr(pictures, "MOST_VALUES", 8 * 8 * 3)
    assert [len(batch.pixels) for batch in FolderPictures(pets).batches()] == [1] * 9


@pytest.mark.parametrize(("modes", "channels"), [(("L", "1", "LA"), 1), (("L", "RGB"), 3), (("P", "CMYK", "RGBA"), 3)])
@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_all_grey_pictures_stay_grey_and_others_get_three_channels(tmp_path, modes, channels):
    for number, mode in enumerate(modes):
        for colour in ("a", "b"):
            picture(tmp_path / "in", f"{colour}/{number}.{'tif' if mode == 'CMYK' else 'png'}", mode=mode)
    rows = FolderPictures(tmp_path / "in")
    assert rows.shape(0) == (channels, 4, 5)
    protect_folder(SHIELD, tmp_path / "in", tmp_path / "out")
    assert {Image.open(path).mode for path in (tmp_path / "out").rglob("*.png")} == {"L" if channels == 1 else "RGB"}


def test_transparency_is_left_out_and_told_and_so_are_files_that_are_no_pictures(pets, tmp_path):
    picture(pets, "cyan/clear.png", mode="RGBA")
    (pets / "cyan" / "notes.txt").touch()
    (pets / "cyan" / ".DS_Store").touch()
    (pets / ".git").mkdir()
    with pytest.warns(Notice) as notices:
        rows = FolderPictures(pets)
    told = [str(one.message) for one in notices]
    assert f"1 files in {pets} are no pictures by their ending and are passed over." in told
    assert "1 pictures have transparency, which is left out (first: cyan/clear.png)." in told
    assert rows.classes == COLOURS


def test_hidden_folders_in_a_class_are_passed_over_as_those_beside_the_classes_are(pets):
    picture(pets, "amber/.thumbnails/small.png")
    picture(pets, ".trash/old.png")
    picture(pets, "amber/.hidden.png")
    rows = FolderPictures(pets)
    assert rows.classes == tuple(COLOURS)
    assert not any(".thumbnails" in rows.relative(row) or "hidden" in rows.relative(row) for row in range(len(rows)))
    assert len(rows) == 9


def test_one_colour_that_stands_for_transparency_is_told_too(pets):
    picture(pets, "amber/holes.png", transparency=(1, 2, 3))
    with pytest.warns(Notice, match=r"1 pictures have transparency, which is left out \(first: amber/holes.png\)"):
        FolderPictures(pets)


def test_a_name_that_is_no_text_is_refused(pets):
    """A file system may hold any bytes; the record of what was written is JSON."""
    (pets / "amber" / "0.png").rename(pets / "amber" / "bad\udcff.png")
    with pytest.raises(DataError, match=r"bad\\udcff.png' has a name with .*Rename it"):
        FolderPictures(pets)


def test_a_photo_taken_sideways_is_read_upright_and_metadata_is_left_out(pets, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a secret camera"
    path = picture(pets, "blue/side.jpg", size=(10, 4), exif=exif)
    rows = FolderPictures(pets)
    row = next(row for row in range(len(rows)) if rows.relative(row) == "blue/side.jpg")
    assert rows.shape(row) == (3, 10, 4)
    upright = np.asarray(Image.open(path)).transpose(2, 0, 1)
    assert np.array_equal(rows.pixels([row])[0], np.rot90(upright, -1, axes=(1, 2)))
    protect_folder(SHIELD, pets, tmp_path / "safe")
    assert b"secret camera" not in (tmp_path / "safe/blue/side.png").read_bytes()


def png_of(width, height):
    """A PNG whose header promises this size, and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad.png is no picture that can be read \(its content is of no known format\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "bad.png is no picture that can be read"),
        (png_of(9000, 9000), "bad.png has 9000x9000 pixels, of 67,108,864 at most"),
        (png_of(40000, 40000), "bad.png has more than 67,108,864 pixels"),
        (png_of(5, 5), r"bad.png is damaged \("),
    ],
)
def test_a_damaged_or_huge_picture_is_refused_by_name_and_nothing_is_written(pets, tmp_path, content, message):
    (pets / "cyan" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        protect_folder(SHIELD, pets, tmp_path / "safe")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


def test_animations_and_sixteen_bits_are_refused_by_name(pets):
    path = pets / "cyan" / "deep.png"
    Image.fromarray(np.full((4, 4), 999, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"deep.png has the mode I;16, and what is protected has 8 bits"):
        FolderPictures(pets)
    path.unlink()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(pets / "cyan" / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"moving.gif is animated \(2 frames\)"):
        FolderPictures(pets)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        FolderPictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no folders of classes"):
        FolderPictures(tmp_path)
    stray = picture(tmp_path, "stray.png")
    with pytest.raises(DataError, match=r"stray.png lies in no class"):
        FolderPictures(tmp_path)
    stray.unlink()
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat holds no pictures"):
        FolderPictures(tmp_path)
    picture(tmp_path, "cat/1.png")
    with pytest.raises(DataError, match=r"has one picture"):
        protect_folder(SHIELD, tmp_path, tmp_path.with_name("safe"))


def test_two_pictures_of_one_name_are_refused(pets, tmp_path):
    picture(pets, "blue/0.jpg")
    with pytest.raises(DataError, match=r"blue/0.jpg and .*blue/0.png would both be saved as blue/0.png"):
        protect_folder(SHIELD, pets, tmp_path / "safe")


@pytest.mark.parametrize("out", ["pets", "pets/safe", "."])
def test_what_lies_in_the_source_or_around_it_is_refused(pets, tmp_path, out):
    before = contents(tmp_path)
    with pytest.raises(RunError, match="lie in one another, and pictures are never written where they are read"):
        protect_folder(SHIELD, pets, tmp_path / out, overwrite=True)
    assert contents(tmp_path) == before


def test_a_link_into_the_source_is_the_source(pets, tmp_path):
    (tmp_path / "elsewhere").symlink_to(pets)
    before = contents(tmp_path)
    for out in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "safe"):
        with pytest.raises(RunError, match="lie in one another"):
            protect_folder(SHIELD, pets, out, overwrite=True)
    assert contents(tmp_path) == before


def test_a_copy_is_replaced_only_when_asked_and_with_nothing_else_in_it(pets, tmp_path):
    out = tmp_path / "safe"
    protect_folder(SHIELD, pets, out)
    first = contents(out)
    with pytest.raises(RunError, match=r"safe holds protected pictures. .*overwrite=True to replace them"):
        protect_folder(replace(SHIELD, key=7), pets, out)
    assert contents(out) == first
    protect_folder(replace(SHIELD, key=7), pets, out, overwrite=True)
    second = contents(out)
    assert second.keys() == first.keys()
    assert second["cyan/0.png"] != first["cyan/0.png"]
    (out / "cyan" / "mine.txt").touch()
    with pytest.raises(RunError, match=r"mine.txt is none of the protected pictures in .*so it is not removed"):
        protect_folder(SHIELD, pets, out, overwrite=True)


def test_a_folder_of_other_things_and_a_file_are_never_replaced(pets, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="is not empty and holds no protected pictures"):
        protect_folder(SHIELD, pets, tmp_path / "mine", overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        protect_folder(SHIELD, pets, tmp_path / "mine" / "notes.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    protect_folder(SHIELD, pets, tmp_path / "empty")


def test_new_pictures_beside_an_old_record_are_protected(pets, tmp_path):
    """What counts is the pictures' content, not that a record lies there."""
    protect_folder(SHIELD, pets, tmp_path / "safe")
    (pets / "protection.json").write_bytes((tmp_path / "safe" / "protection.json").read_bytes())
    assert protect_folder(SHIELD, pets, tmp_path / "again").pictures == 9


def test_a_failure_half_way_leaves_nothing(pets, tmp_path, monkeypatch):
    written = releasing._written
    calls = []

    def fail(*given):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return written(*given)

    monkeypatch.setattr(pictures, "MOST_ROWS", 4)
    monkeypatch.setattr(releasing, "_written", fail)
    with pytest.raises(OSError, match="full"):
        protect_folder(SHIELD, pets, tmp_path / "safe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


@pytest.mark.parametrize("eps", [0.0, 0.9 / 255])
def test_a_budget_that_eight_bits_leave_nothing_of_is_refused(pets, tmp_path, eps):
    with pytest.raises(MethodError, match=r"of which 8 bits leave nothing: one level is 0.0039"):
        protect_folder(EMNoise(key=1, eps=eps), pets, tmp_path / "safe")


def test_a_fitted_protection_finds_its_classes_by_their_names(pets, tmp_path):
    protection = SHIELD.fit(pets)
    (pets / "amber").rename(tmp_path / "gone")
    protect_folder(protection, pets, tmp_path / "safe")
    rows, saved = FolderPictures(pets), FolderPictures(tmp_path / "safe")
    assert np.array_equal(saved.pixels(range(6)), protection.transform(rows.pixels(range(6)), rows.labels + 1))
    (pets / "blue").rename(pets / "beige")
    with pytest.raises(DataError, match=r"was not fitted to the class 'beige' of .*, but to amber, blue, cyan"):
        protect_folder(protection, pets, tmp_path / "other")


def test_a_picture_that_changes_while_it_is_read_is_refused(pets):
    rows = FolderPictures(pets)
    picture(pets, "blue/0.png", size=(3, 3))
    with pytest.raises(DataError, match="has changed since it was looked at"):
        rows.pixels([3])


def test_a_class_is_a_caption_for_who_reads_captions(pets):
    assert FolderPictures(pets, "captions").targets == ("amber",) * 3 + ("blue",) * 3 + ("cyan",) * 3
    assert FolderPictures(pets, "nothing").targets is None
    assert folders.MOST_PIXELS == 8192**2
