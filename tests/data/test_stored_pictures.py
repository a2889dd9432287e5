"""A data set of pictures on disk becomes a folder of classes: the same bytes under the same classes, or one clear refusal."""

import io

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from unwrite.data.images.picture_folders import train_test_folders
from unwrite.data.images.stored_pictures import folder_of_pictures
from unwrite.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def encoded(level, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(buffer, form)
    return buffer.getvalue()


ROWS = [(encoded(10 * n, form), n % 2) for n, form in enumerate(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PNG"])]


def table(rows=ROWS, names=("cat", "dog"), image="image", label="label", **more):
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    columns = {image: [{"bytes": one, "path": None} for one, _ in rows], label: [two for _, two in rows]}
    return datasets.Dataset.from_dict(
        {**columns, **more},
        features=datasets.Features({**features, **{name: datasets.Value("string") for name in more}}),
    )


def written(path, kind, **splits):
    if kind == "saved":
        datasets.DatasetDict(splits).save_to_disk(path)
    elif kind == "saved alone":
        splits["train"].save_to_disk(path)
    else:
        for name, one in splits.items():
            (path / "data").mkdir(parents=True, exist_ok=True)
            one.to_parquet(path / "data" / f"{name}-00000-of-00001.parquet")
    return path


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_every_picture_lies_in_the_folder_of_its_class_with_its_own_bytes(tmp_path, kind):
    source = written(tmp_path / "set", kind, train=table(), test=table(ROWS[:2]))
    folders = train_test_folders(folder_of_pictures(source))
    assert folders.train.classes == ("cat", "dog")
    assert [row.name for row in folders.train.rows] == [
        "train/cat/0000000.png", "train/cat/0000002.bmp", "train/cat/0000004.webp",
        "train/dog/0000001.jpg", "train/dog/0000003.tif", "train/dog/0000005.png",
    ]  # fmt: skip
    for row in folders.train.rows:
        assert row.path.read_bytes() == ROWS[int(row.path.stem)][0]
    assert len(folders.test.rows) == 2


def test_a_set_without_test_rows_is_a_folder_of_classes(tmp_path):
    folder = folder_of_pictures(written(tmp_path / "set", "saved alone", train=table()))
    assert {path.name for path in folder.iterdir()} == {"cat", "dog"}
    assert train_test_folders(folder).test is None


def test_a_column_of_owners_is_whose_a_picture_is(tmp_path):
    people = ["ann", "bob", "ann", "bob", "cid", "cid"]
    folder = folder_of_pictures(written(tmp_path / "set", "parquet", train=table(identity=people)))
    assert {row.identity for row in train_test_folders(folder).train.rows} == {"ann", "bob", "cid"}


def test_the_folder_is_written_once_and_anew_for_other_rows(tmp_path):
    first = folder_of_pictures(written(tmp_path / "set", "parquet", train=table()))
    stamp = (first / "cat").stat().st_mtime_ns
    assert folder_of_pictures(tmp_path / "set") == first
    assert (first / "cat").stat().st_mtime_ns == stamp
    other = folder_of_pictures(written(tmp_path / "set", "parquet", train=table(ROWS[:4])))
    assert other != first
    assert len(list(other.rglob("*.*"))) == 4


def test_what_is_no_data_set_stays_as_it_is(tmp_path):
    (tmp_path / "plain" / "cat").mkdir(parents=True)
    assert folder_of_pictures(tmp_path / "plain") == tmp_path / "plain"
    assert folder_of_pictures(tmp_path / "nothing") == tmp_path / "nothing"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: table(names=("cat/../..", "dog")), "row 0 has the label 'cat/../..', which names no folder"),
        (lambda: table(names=("..", "dog")), "names no folder"),
        (lambda: table([(b"no picture", 0)]), "the picture of row 0 can't be read"),
        (lambda: table().rename_column("label", "kind").cast_column("kind", datasets.Value("int64")), "label"),
        (lambda: table().remove_columns("image"), "0 columns of pictures"),
        (lambda: table([(encoded(1), None)]), "row 0 has the label ''"),
    ],
)  # fmt: skip
def test_rows_that_make_no_folder_are_refused(tmp_path, made, message):
    with pytest.raises(DataError, match=message):
        folder_of_pictures(written(tmp_path / "set", "saved alone", train=made()))
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_parquet_of_others_needs_no_features_but_a_picture_in_every_row(tmp_path):
    def wrote(folder, *pictures):
        (tmp_path / folder).mkdir()
        rows = pyarrow.table(
            {"picture": [{"bytes": one, "path": "elsewhere.png"} for one in pictures], "class": [7, 3][: len(pictures)]}
        )
        pyarrow.parquet.write_table(rows, tmp_path / folder / "train.parquet")
        return folder_of_pictures(tmp_path / folder)

    assert sorted(path.parent.name for path in wrote("whole", encoded(1), encoded(2)).rglob("*.png")) == ["3", "7"]
    with pytest.raises(DataError, match="row 1 has no picture in it"):
        wrote("named", encoded(1), None)


def test_a_set_without_a_train_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="the splits test and no train"):
        folder_of_pictures(written(tmp_path / "set", "saved", test=table()))


def test_a_damaged_set_is_refused(tmp_path):
    source = written(tmp_path / "set", "parquet", train=table())
    file = next(source.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="set"):
        folder_of_pictures(source)
