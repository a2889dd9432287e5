"""Pictures come in by the range they are stored in, and what is damaged or missing is named by file and row."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings

import numpy as np
import pytest
import torch

from unwrite.data.images.sets import faces_by_age, hub_images
from unwrite.errors import DataError, Notice

pytestmark = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")
RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # of the pixels' true values
BYTES = np.rint(RAMP * 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def picture(mode):
    """The ramp in a mode, and the RGB values in 0..1 that it stands for."""
    from PIL import Image

    grey = Image.fromarray(BYTES)
    three = np.repeat((BYTES / 255)[None], 3, 0)
    coloured = np.stack([BYTES, BYTES[::-1], BYTES.T], -1)
    if mode == "1":
        return Image.fromarray(BYTES > 127), np.repeat((BYTES > 127)[None].astype(float), 3, 0)
    if mode == "L":
        return grey, three
    if mode == "P":
        return grey.convert("P"), three
    if mode == "LA":
        clear = Image.new("L", (8, 8), 7)  # nearly transparent: what lies under it counts all the same
        return Image.merge("LA", (grey, clear)), three
    if mode in ("RGB", "RGBA"):
        made = Image.fromarray(coloured)
        if mode == "RGBA":
            made.putalpha(Image.new("L", (8, 8), 7))
        return made, coloured.transpose(2, 0, 1) / 255
    if mode == "CMYK":
        ink = np.stack([255 - BYTES, BYTES, 0 * BYTES, 0 * BYTES], -1)
        rgb = np.stack([BYTES, 255 - BYTES, 0 * BYTES + 255]) / 255
        return Image.fromarray(ink, "CMYK"), rgb
    sixteen = np.rint(RAMP * 65535)
    if mode == "16 bits":
        return Image.fromarray(sixteen.astype(np.uint16)), np.repeat(sixteen[None] / 65535, 3, 0)
    if mode == "whole numbers to 65535":
        return Image.fromarray(sixteen.astype(np.int32)), np.repeat(sixteen[None] / 65535, 3, 0)
    if mode == "whole numbers to 255":
        return Image.fromarray(BYTES.astype(np.int32)), three
    if mode == "floats to 1":
        return Image.fromarray(RAMP.astype(np.float32)), np.repeat(RAMP[None], 3, 0)
    assert mode == "floats to 255"
    return Image.fromarray((RAMP * 255).astype(np.float32)), np.repeat(RAMP[None], 3, 0)


MODES = {
    "1": "png",
    "L": "png",
    "P": "png",
    "LA": "png",
    "RGB": "png",
    "RGBA": "png",
    "CMYK": "tiff",
    "16 bits": "png",
    "16 bits in TIFF": "tiff",
    "whole numbers to 65535": "tiff",
    "whole numbers to 255": "tiff",
    "floats to 1": "tiff",
    "floats to 255": "tiff",
}


def lay_out(root, pictures, ending, form):
    """Train and test rows of the same pictures, as files beside metadata, or as bytes in Parquet."""
    import datasets

    for split in ("train", "test"):
        folder = root / split
        if form == "folder":
            folder.mkdir(parents=True)
            rows = []
            for i, one in enumerate(pictures):
                name = f"{i}.{ending}"
                (folder / name).write_bytes(one) if isinstance(one, bytes) else one.save(folder / name)
                rows.append({"file_name": name, "kind": i % 2})
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            continue
        root.mkdir(exist_ok=True)
        values = [one if isinstance(one, bytes) else encoded(one, ending) for one in pictures]
        columns = {
            "image": values if form == "bytes" else [{"bytes": value, "path": None} for value in values],
            "kind": [i % 2 for i in range(len(values))],
        }
        features = {"image": datasets.Image() if form == "pictures" else datasets.Value("binary")}
        if form == "structs":
            features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
        table = datasets.Dataset.from_dict(
            columns, features=datasets.Features({**features, "kind": datasets.Value("int64")})
        )
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def encoded(one, ending):
    buffer = io.BytesIO()
    one.save(buffer, ending)
    return buffer.getvalue()


def read(root, size=8):
    return hub_images(root, image="image", label="kind", size=size).train.pixels


FORMS = ("folder", "pictures", "structs", "bytes")
IN_EVERY_FORM = (
    "L",
    "RGBA",
    "16 bits in TIFF",
    "floats to 255",
)  # a picture is read the same way wherever its bytes lie


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        pytest.param(mode, form, marks=() if form == "folder" or mode in IN_EVERY_FORM else (pytest.mark.slow,))
        for mode in MODES
        for form in FORMS
    ],
)
def test_every_kind_of_picture_has_the_values_it_stands_for(tmp_path, mode, form):
    one, expected = picture(mode.removesuffix(" in TIFF"))
    pixels = read(lay_out(tmp_path / "set", [one, one], MODES[mode], form))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[1], torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "16 bits", "whole numbers to 65535", "floats to 1", "floats to 255"])
def test_other_sizes_are_cut_and_scaled_alike_in_every_kind(tmp_path, mode):
    """To within a byte's rounding, as a byte picture of the same values."""
    from PIL import Image

    def wide(one):
        return Image.fromarray(np.concatenate([np.asarray(one)] * 2, 1)[:, 3:15])

    one, plain = wide(picture(mode)[0]), wide(picture("L")[0])
    mine = read(lay_out(tmp_path / "a", [one], MODES[mode], "folder"), 4)
    torch.testing.assert_close(
        mine, read(lay_out(tmp_path / "b", [plain], "png", "folder"), 4), rtol=0, atol=1.01 / 255
    )


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_square_is_taken(tmp_path, dtype, most, upright):
    from PIL import Image

    wide = (np.linspace(0, 1, 96).reshape(8, 12) * most).astype(dtype)
    one = Image.fromarray(wide.T.copy() if upright else wide)
    pixels = read(lay_out(tmp_path / "set", [one], "tiff", "folder"))
    middle = wide[:, 2:10] / np.float32(most)
    torch.testing.assert_close(
        pixels[0, 0].numpy(), (middle.T if upright else middle).astype(np.float32), rtol=0, atol=1e-6
    )


def test_a_dark_picture_is_dark_beside_a_light_one_and_not_scaled_up(tmp_path):
    from PIL import Image

    dark, light = (Image.fromarray(np.full((8, 8), value, np.float32)) for value in (0.5, 255))
    pixels = read(lay_out(tmp_path / "set", [dark, light], "tiff", "folder"))
    assert pixels.amax((1, 2, 3)).tolist() == pytest.approx([0.5 / 255, 1])


def test_kinds_may_be_mixed_in_a_set(tmp_path):
    ones = [picture(mode)[0] for mode in ("L", "16 bits", "floats to 1")]
    pixels = read(lay_out(tmp_path / "set", ones, "tiff", "folder"))
    torch.testing.assert_close(pixels, pixels[2].expand_as(pixels), rtol=0, atol=0.51 / 255)


def of(values, dtype):
    from PIL import Image

    return Image.fromarray(np.broadcast_to(np.array(values, dtype), (8, 8)).copy())


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (
            3.5,
            np.float32,
            r"set@train row 1 \(1\.tiff\), a picture of floats, has a pixel of 3\.5: .*0\.\.1 or 0\.\.255",
        ),
        (1.5, np.float32, "a pixel of 1.5: the largest of all"),
        (256.5, np.float32, r"a pixel of 256\.5: floats are read as 0\.\.1 or 0\.\.255"),
        (-0.25, np.float32, r"a pixel of -0\.25: pixels are 0 or more"),
        (-3, np.int32, "a picture of whole numbers, has a pixel of -3: pixels are 0 or more"),
        (65536, np.int32, r"a pixel of 65536: whole numbers are read as 0\.\.255 or 0\.\.65535"),
        (1, np.int32, "a pixel of 1: the largest of all, so all would be black"),
        (255, np.uint16, "a 16-bit picture, has a pixel of 255: the largest of all, so all would be black"),
        (
            np.nan,
            np.float32,
            r"1 of 2 pictures in set@train can't be used: row 1 \(1\.tiff\) has a pixel that is not finite",
        ),
        (np.inf, np.float32, "has a pixel that is not finite"),
    ],
)
def test_refuses_a_range_that_could_be_another_in_one_line(tmp_path, values, dtype, message):
    root = lay_out(tmp_path / "set", [of(0, dtype), of(values, dtype)], "tiff", "folder")
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [(1, np.float32, 1), (17, np.float32, 17 / 255), (255, np.float32, 1), (0, np.float32, 0), (2, np.int32, 2 / 255),
     (255, np.int32, 1), (65535, np.int32, 1), (65535, np.uint16, 1)],
)  # fmt: skip
def test_ranges_end_where_they_say(tmp_path, values, dtype, expected):
    pixels = read(lay_out(tmp_path / "set", [of(0, dtype), of(values, dtype)], "tiff", "folder"))
    assert pixels.amax().item() == pytest.approx(expected)


def test_sixteen_bits_that_hold_twelve_are_dark_and_said_to_be(tmp_path):
    with pytest.warns(Notice, match=r"4 pictures of up to 65535 reach 4095 only \(first: set@train row 0"):
        pixels = read(lay_out(tmp_path / "a", [of(4095, np.uint16)] * 2, "png", "folder").rename(tmp_path / "set"))
    assert pixels.amax().item() == pytest.approx(4095 / 65535)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        read(lay_out(tmp_path / "b", [of(4096, np.uint16)], "png", "folder"))


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    Image.fromarray(BYTES).save(buffer, "png", exif=exif)
    pixels = read(lay_out(tmp_path / "set", [buffer.getvalue()], "png", "folder"))
    torch.testing.assert_close(pixels[0, 0], torch.from_numpy(BYTES[::-1, ::-1] / 255).float(), rtol=0, atol=1e-6)


def noise(ending):
    from PIL import Image

    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), ending)


@pytest.mark.parametrize("ending", ["png", "jpeg", "bmp", "webp", "tiff", "gif"])
@pytest.mark.parametrize("form", ["folder", "pictures", "structs"])
def test_refuses_a_truncated_picture_by_file_and_row(tmp_path, ending, form):
    good = noise(ending)
    root = lay_out(tmp_path / "set", [good, good[: len(good) // 2], good], ending, form)
    named = rf"row 1 \(1\.{ending}\)" if form == "folder" else "row 1"
    with pytest.raises(DataError, match=rf"1 of 3 pictures in set@train can't be used: {named} is ") as caught:
        read(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["folder", "pictures", "structs", "bytes"])
@pytest.mark.parametrize(("content", "fault"), [(b"", "is empty"), (b"hello", "is no picture")])
def test_refuses_what_is_no_picture_by_file_and_row(tmp_path, form, content, fault):
    root = lay_out(tmp_path / "set", [noise("png"), content], "png", form)
    with pytest.raises(DataError, match=rf"row 1( \(1\.png\))? {fault}"):
        read(root)


def test_counts_all_damaged_pictures_and_names_the_first_few(tmp_path):
    root = lay_out(tmp_path / "set", [b"x"] * 7 + [noise("png")], "png", "folder")
    with pytest.raises(
        DataError, match=r"7 of 8 pictures .*row 4 \(4\.png\) is no picture; and 2 more\. Mend"
    ) as caught:
        read(root)
    assert "row 5" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "value", "fault"),
    [
        ("pictures", None, "row 1 has no picture"),
        ("structs", None, "row 1 has no picture"),
        ("structs", {"bytes": None, "path": None}, "row 1 has no picture"),
        ("structs", {"bytes": None, "path": "gone.png"}, r"row 1 \(gone\.png\) is not there"),
    ],
)
def test_refuses_a_row_without_a_picture_in_a_table(tmp_path, form, value, fault):
    import datasets

    root = tmp_path / "set"
    root.mkdir()
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = {"image": struct if form == "structs" else datasets.Image(), "kind": datasets.Value("int64")}
    for split in ("train", "test"):
        rows = {"image": [{"bytes": noise("png"), "path": None}, value], "kind": [0, 1]}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=fault):
        read(root)


@pytest.mark.parametrize("kind", ["int64", "float64", "string", "class"])
def test_refuses_a_row_without_a_label_in_a_table(tmp_path, kind):
    import datasets

    (tmp_path / "set").mkdir()
    feature = datasets.ClassLabel(names=["a", "b"]) if kind == "class" else datasets.Value(kind)
    values = {"int64": [0, None], "float64": [0.5, float("nan")], "string": ["a", ""], "class": [0, None]}[kind]
    for split in ("train", "test"):
        features = datasets.Features({"image": datasets.Image(), "kind": feature})
        rows = {"image": [{"bytes": noise("png"), "path": None}] * 2, "kind": values}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"set@train: 1 of 2 rows have no kind \(first: row 1\)"):
        read(tmp_path / "set")


def beside(tmp_path, ending, change):
    """A folder of pictures with ages and people, whose training metadata are changed."""
    for split in ("train", "test"):
        folder = tmp_path / "ages" / split
        folder.mkdir(parents=True)
        rows = []
        for i, age in enumerate((20, 35, 61)):
            (folder / f"{i}.png").write_bytes(encoded(picture("L")[0], "png"))
            rows.append({"file_name": f"{i}.png", "age": age, "identity": ["ann", "bert"][i % 2]})
        if split == "train":
            change(rows)
        if ending == "jsonl":
            text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        else:
            keys = ["file_name", "age", "identity"]
            lines = [r if isinstance(r, str) else ",".join(str(r.get(k) or "") for k in keys) + "\n" for r in rows]
            text = ",".join(keys) + "\n" + "".join(lines)
        (folder / f"metadata.{ending}").write_text(text)
    return tmp_path / "ages"


METADATA = {
    "no value": (lambda rows: rows[1].update(age=None), "has no age"),
    "no key": (lambda rows: rows[1].pop("identity"), "has no identity"),
    "two values": (lambda rows: rows[1].update(age=None, identity=None), "has no age and no identity"),
    "no file name": (lambda rows: rows[1].update(file_name=None), "has no file_name"),
    "no such file": (lambda rows: rows[1].update(file_name="9.png"), "names '9.png', which is not there"),
    "a word": (lambda rows: rows[1].update(age="old"), "age is 'old', not a finite number"),
    "not finite": (lambda rows: rows[1].update(age="inf"), "age is 'inf', not a finite number"),
}


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("fault", METADATA)
def test_refuses_metadata_by_file_and_line(tmp_path, fault, ending):
    change, message = METADATA[fault]
    root = beside(tmp_path, ending, change)
    line = 2 if ending == "jsonl" else 3
    with pytest.raises(DataError, match=rf"train/metadata\.{ending}:{line}: {message}\. Mend or remove") as caught:
        faces_by_age(root, size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "row", "message"),
    [
        ("jsonl", "{'file_name'\n", r"metadata\.jsonl:4: is no JSON"),
        ("jsonl", "[1, 2]\n", r"metadata\.jsonl:4: is a JSON list, not an object"),
        ("jsonl", "[" * 100_000 + "\n", r"metadata\.jsonl:4: is no JSON"),
        ("jsonl", '{"file_name": "0.png", "age": NaN, "identity": "ann"}\n', r"metadata\.jsonl:4: has no age"),
        ("csv", "0.png,20,ann,more,and more\n", r"metadata\.csv:5: has 2 values more than there are columns"),
    ],
)
def test_refuses_lines_that_are_no_rows(tmp_path, ending, row, message):
    root = beside(tmp_path, ending, lambda rows: rows.append(row))
    with pytest.raises(DataError, match=message) as caught:
        faces_by_age(root, size=8)
    assert "\n" not in str(caught.value)


def test_names_the_first_few_faulty_lines_and_counts_the_others(tmp_path):
    root = beside(tmp_path, "jsonl", lambda rows: rows.extend({"file_name": "0.png"} for _ in range(8)))
    with pytest.raises(DataError, match=r"jsonl:8: has no age and no identity; and 3 more"):
        faces_by_age(root, size=8)


def test_whole_metadata_are_read_in_both_forms(tmp_path):
    for ending in ("jsonl", "csv"):
        sets = faces_by_age(beside(tmp_path / ending, ending, lambda rows: None), size=8)
        assert sets.train.targets.tolist() == [20, 35, 61]
        assert sets.train.identities == ("ann", "bert")
