"""Idx files made by hand, a Debian package made by hand, and what is wrong with them."""

import gzip
import io
import lzma
import struct
import tarfile

import numpy as np
import pytest

from unwrite.beds.fashion import BEDS
from unwrite.cli import main
from unwrite.data import fashion_mnist
from unwrite.data.images import fetched
from unwrite.data.images.fetched import add_data
from unwrite.data.images.idx import IDX_FILES, read_idx
from unwrite.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def files(rows=20, test=10):
    """The four files' contents: picture i has the level i everywhere, and the class i % 10."""
    made = {}
    for split, count in (("train", rows), ("test", test)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
        made[IDX_FILES[split, "images"]] = idx(pixels)
        made[IDX_FILES[split, "labels"]] = idx((np.arange(count) % 10).astype(np.uint8))
    return made


def folder_of(path, made=None, packed=True):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in (files() if made is None else made).items():
        (path / f"{name}.gz" if packed else path / name).write_bytes(gzip.compress(content) if packed else content)
    return path


def deb_of(path, members, ending=".xz"):
    """A .deb file as dpkg builds it, with a control archive of an odd size before the data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    data = lzma.compress(buffer.getvalue()) if ending == ".xz" else buffer.getvalue()
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar{ending}", data)]
    content = b"!<arch>\n"
    for name, part in parts:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode()
        content += header + part + b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(tmp_path, packed):
    data = fashion_mnist(folder_of(tmp_path / "f", packed=packed))
    assert data.train.shape == (1, 28, 28)
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert float(data.train.pixels[7].max()) == float(data.train.pixels[7].min()) == pytest.approx(7 / 255)
    assert data.train.classes[0] == "t-shirt"
    assert data.test.index.tolist() == list(range(20, 30))


def test_a_limit_takes_the_first_of_every_class_alike_under_the_same_names(tmp_path):
    whole = fashion_mnist(folder_of(tmp_path / "f"))
    some = fashion_mnist(tmp_path / "f", limit=10)
    assert some.train.index.tolist() == list(range(10))
    assert some.train.labels.tolist() == list(range(10))
    assert some.test.index.tolist() == whole.test.index.tolist()
    with pytest.raises(DataError, match="a limit of 9 leaves classes without rows"):
        fashion_mnist(tmp_path / "f", limit=9)


def test_a_row_keeps_its_name_where_rows_before_it_are_left_out(tmp_path):
    made = files()
    made[IDX_FILES["train", "labels"]] = idx((np.arange(20) // 2).astype(np.uint8))
    some = fashion_mnist(folder_of(tmp_path / "f", made), limit=10)
    assert some.train.index.tolist() == list(range(0, 20, 2))
    assert some.train.pixels[3, 0, 0, 0] == pytest.approx(6 / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made, name: b"", "is no idx file of bytes: it begins with nothing"),
        (lambda made, name: b"\x89PNG....", "is no idx file of bytes: it begins with 89504e47"),
        (lambda made, name: b"\0\0\x0d\x03" + made[name][4:], "is no idx file of bytes"),
        (lambda made, name: b"\0\0\x08\x01" + made[name][4:], "has 1 dimensions, and 3 are needed"),
        (lambda made, name: made[name][:10], "is cut off within its first 16 bytes"),
        (lambda made, name: made[name][:-1], "promises 20x28x28 bytes and holds 15679"),
        (lambda made, name: made[name] + b"x", "promises 20x28x28 bytes and holds 15681"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, change, message):
    made, name = files(), IDX_FILES["train", "images"]
    with pytest.raises(DataError, match=message) as error:
        fashion_mnist(folder_of(tmp_path / "f", {**made, name: change(made, name)}, packed=False))
    assert name in str(error.value)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    made = files()
    labels = IDX_FILES["train", "labels"]
    with pytest.raises(DataError, match=r"has 20 pictures and .* 19 labels"):
        fashion_mnist(folder_of(tmp_path / "a", {**made, labels: idx(np.zeros(19, np.uint8))}))
    wrong = np.zeros(20, np.uint8)
    wrong[3] = 12
    with pytest.raises(DataError, match=r"has the label 12 \(row 3\), and there are 10 classes"):
        fashion_mnist(folder_of(tmp_path / "b", {**made, labels: idx(wrong)}))
    with pytest.raises(DataError, match=r"has no train-labels-idx1-ubyte, nor train-labels-idx1-ubyte.gz"):
        fashion_mnist(tmp_path)
    packed = folder_of(tmp_path / "c") / f"{labels}.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="is damaged"):
        read_idx(packed, 1)


def test_what_was_added_is_found_and_what_was_not_says_how(tmp_path, capsys):
    with pytest.raises(DataError, match=r"fashion-mnist is not here. Run: unwrite data add fashion-mnist"):
        fashion_mnist()
    main(["data"])
    assert "not here" in capsys.readouterr().out
    source = folder_of(tmp_path / "f")
    main(["data", "add", "fashion-mnist", "--from", str(source)])
    assert "fashion-mnist is ready in" in capsys.readouterr().out
    assert len(fashion_mnist().train) == 20
    main(["data", "--json"])
    assert '"here": true' in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".xz", ""])
def test_a_debian_package_is_unpacked_by_names_alone(tmp_path, ending):
    members = {f"./usr/share/datasets/fashion-mnist/{name}.gz": gzip.compress(c) for name, c in files().items()}
    package = deb_of(tmp_path / "f.deb", {**members, "../../escape.txt": b"x", "./usr/other": b"y"}, ending)
    folder = add_data("fashion-mnist", package)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in files())
    assert not list(tmp_path.rglob("escape.txt"))
    assert len(fashion_mnist().test) == 10


def test_a_package_that_is_none_is_refused_and_what_was_there_stays(tmp_path):
    add_data("fashion-mnist", folder_of(tmp_path / "f"))
    (tmp_path / "no.deb").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"no.deb is no Debian package"):
        add_data("fashion-mnist", tmp_path / "no.deb")
    with pytest.raises(DataError, match=r"packed as .zst, which is not read here"):
        add_data("fashion-mnist", deb_of(tmp_path / "z.deb", {}, ".zst"))
    with pytest.raises(DataError, match="has no train-images"):
        add_data("fashion-mnist", deb_of(tmp_path / "e.deb", {}))
    cut = deb_of(tmp_path / "c.deb", {"a": b"x" * 5000})
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(DataError, match="can't be unpacked"):
        add_data("fashion-mnist", cut)
    with pytest.raises(DataError, match="nowhere can't be read"):
        add_data("fashion-mnist", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"unknown data set 'fashion'. Did you mean 'fashion-mnist'"):
        add_data("fashion")
    assert len(fashion_mnist().train) == 20


def test_nothing_is_fetched_offline_or_without_apt(monkeypatch):
    ran = []
    monkeypatch.setattr(fetched.subprocess, "run", lambda *given, **options: ran.append(given))
    with pytest.raises(SystemExit) as ended:
        main(["data", "add", "fashion-mnist", "--offline"])
    assert ended.value.code == 2
    monkeypatch.setattr(fetched.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="this machine has no apt-get"):
        add_data("fashion-mnist")
    assert ran == []


def test_a_bed_of_clothes_splits_what_was_added(tmp_path, monkeypatch):
    from unwrite.beds import fashion

    add_data("fashion-mnist", folder_of(tmp_path / "f", files(200, 50)))
    fashion._rows.cache_clear()
    bed = BEDS["fashion/class"]
    split = bed.split(bed.data(0), 0)
    assert set(split.forget.labels.tolist()) == {7}
    assert split.test_forget is not None
    assert len(split.holdout) == 20
    bed = BEDS["fashion/random"]
    assert len(bed.split(bed.data(1), 1).forget) == 18
    fashion._rows.cache_clear()
