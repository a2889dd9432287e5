"""Image sets are the same everywhere, their test rows are new, and folders of the usual formats are read."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from unwrite.data.images import sets as image_sets
from unwrite.data.images.sets import (
    celeba,
    cifar10,
    cifar100,
    digits,
    digits_regression,
    faces_by_age,
    glyphs,
    hub_images,
    installed_fonts,
    svhn,
)
from unwrite.errors import DataError, MissingExtra

PILLOW = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")
FONTS = list(installed_fonts())[:4] if importlib.util.find_spec("PIL") else []
RENDERED = pytest.mark.skipif(len(FONTS) < 4, reason="fewer than 4 fonts or no Pillow are installed")


def both(sets):
    return torch.cat([sets.train.index, sets.test.index])


def test_digits_are_real_and_split_by_class():
    sets = digits()
    assert (sets.train.shape, len(sets.train), len(sets.test)) == ((1, 8, 8), 1437, 360)
    assert sorted(both(sets).tolist()) == list(range(1797))
    assert sets.test.labels.bincount().min() >= 34
    assert float(sets.train.pixels.max()) == 1


def test_a_digit_keeps_its_name_whatever_the_seed():
    one, other = digits(seed=0), digits(seed=1)
    assert one.train.hash == digits(seed=0).train.hash != other.train.hash
    name = [n for n in one.train.index.tolist() if n in set(other.train.index.tolist())][:1]
    assert one.train.subset(name).hash == other.train.subset(name).hash


def test_the_regression_target_is_the_inks_centroid_and_the_class():
    """A digit's target by hand: sum of ink * column / 7, over the ink, plus a fifth of its class."""
    classified, valued = digits().train, digits_regression().train
    assert torch.equal(classified.index, valued.index)
    ink = classified.pixels[5, 0].double().sum(0)
    centroid = float((ink * torch.arange(8)).sum() / ink.sum() / 7)
    assert float(valued.targets[5]) == pytest.approx(centroid + 0.2 * int(classified.labels[5]), abs=1e-6)
    assert valued.num_outputs == 1


@pytest.mark.parametrize("share", [0, 1, -0.5, 1e-6])
def test_refuses_a_test_share_that_leaves_nothing(share):
    with pytest.raises(DataError, match="a test share of"):
        digits(share)


@RENDERED
def test_glyphs_are_the_same_bit_for_bit():
    def made(seed):
        return glyphs("AB", FONTS, draws=2, test_draws=1, new_fonts=1, seed=seed)

    one, again, other = made(0), made(0), made(1)
    assert one.train.hash == again.train.hash != other.train.hash
    assert one.evaluation["new fonts"].hash == again.evaluation["new fonts"].hash
    steps = one.train.pixels * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


@RENDERED
def test_class_is_the_character_and_identity_the_font():
    sets = glyphs("AKS", FONTS, draws=4, test_draws=2, new_fonts=1)
    assert (sets.train.classes, sets.train.shape, len(sets.train)) == (("A", "K", "S"), (3, 32, 32), 3 * 3 * 4)
    assert sets.train.labels.bincount().tolist() == [12, 12, 12]
    assert sets.train.identity.bincount().tolist() == [12, 12, 12]
    assert sets.test.identities == sets.train.identities


@RENDERED
def test_new_fonts_are_in_no_training_row_and_no_row_is_twice():
    sets = glyphs("AK", FONTS, draws=3, test_draws=2, new_fonts=2)
    new = sets.evaluation["new fonts"]
    assert not set(new.identities) & set(sets.train.identities)
    assert sorted([*new.identities, *sets.train.identities]) == sorted(FONTS)
    parts = [sets.train, sets.test, new]
    names = torch.cat([part.index for part in parts]).tolist()
    assert names == list(range(len(names)))
    pixels = torch.cat([part.pixels for part in parts]).flatten(1)
    assert len(pixels.unique(dim=0)) == len(pixels)


@RENDERED
def test_an_image_does_not_depend_on_other_fonts_or_draws():
    small = glyphs("A", FONTS[:2], draws=1, test_draws=1, new_fonts=0)
    large = glyphs("XA", FONTS, draws=3, test_draws=1, new_fonts=0)
    assert "new fonts" not in large.evaluation
    number = large.train.identities.index(FONTS[0])
    rows = large.train.where((large.train.identity == number) & (large.train.labels == 1))
    mine = small.train.where(small.train.identity == small.train.identities.index(FONTS[0]))
    assert torch.equal(rows.pixels[0], mine.pixels[0])


@RENDERED
def test_the_ink_stands_out_from_the_paper():
    """Its luminance differs from the paper's by a quarter at least: a flat image with noise of 0.05 has a smaller spread."""
    pixels = glyphs("AE", FONTS, draws=10, new_fonts=1).train.pixels
    assert float(pixels.std((2, 3)).amax(1).min()) > 0.07


@RENDERED
def test_refuses_unknown_fonts_and_characters_a_font_lacks():
    with pytest.raises(DataError, match=r"unknown font 'Nofont'.* pip install font-"):
        glyphs("AB", ["Nofont", *FONTS])
    with pytest.raises(DataError, match=r"font \w+ \(.*\) has no '\\U0010fffe'"):
        glyphs("A\U0010fffe", FONTS)


def test_refuses_too_few_fonts_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(image_sets, "_need_pillow", lambda: None)
    monkeypatch.setattr(image_sets, "installed_fonts", dict)
    with pytest.raises(DataError, match=r"at least 4 fonts and 0 are there \(none\). Run: pip install font-amatic-sc"):
        glyphs()


@pytest.mark.parametrize("options", [{"characters": ""}, {"characters": "AA"}, {"draws": 0}, {"new_fonts": -1}])
def test_refuses_glyphs_that_cannot_be_drawn(monkeypatch, options):
    monkeypatch.setattr(image_sets, "_need_pillow", lambda: None)
    with pytest.raises(DataError, match="can't be made"):
        glyphs(**options)


def test_without_pillow_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(image_sets.importlib.util, "find_spec", lambda name: None)
    for make in (glyphs, cifar10):
        with pytest.raises(MissingExtra, match=r"pip install 'unwrite\[vision\]'"):
            make()


@pytest.fixture
def own_datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def parquet(folder, columns, rows=6, size=(32, 32)):
    """A folder like the Hub's: Parquet files of pictures, one a split; test rows are other pictures."""
    import datasets
    from PIL import Image

    folder.mkdir()
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        pictures = [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(rows)]
        (picture, features), *others = columns(rows, datasets).items()
        table = datasets.Dataset.from_dict(
            {picture: pictures} | {name: values for name, (values, _) in others},
            features=datasets.Features({picture: features} | {name: feature for name, (_, feature) in others}),
        )
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def labelled(picture, label, names):
    def columns(rows, datasets):
        values = [i % len(names) for i in range(rows)]
        return {picture: datasets.Image(), label: (values, datasets.ClassLabel(names=names))}

    return columns


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
@pytest.mark.parametrize(
    ("load", "picture", "label"),
    [
        (cifar10, "img", "label"),
        (cifar100, "img", "fine_label"),
        (lambda root: cifar100(root, coarse=True), "img", "coarse_label"),
        (svhn, "image", "label"),
    ],
)
def test_the_usual_sets_are_read_from_a_folder_of_their_format(tmp_path, load, picture, label):
    sets = load(parquet(tmp_path / "set", labelled(picture, label, ["cat", "dog", "ship"])))
    assert (sets.train.shape, sets.train.classes) == ((3, 32, 32), ("cat", "dog", "ship"))
    assert sets.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert both(sets).tolist() == list(range(12))
    first = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.equal(sets.train.pixels[0], torch.from_numpy(first.transpose(2, 0, 1).astype(np.float32) / 255))


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
def test_faces_have_a_person_and_are_cut_to_their_middle(tmp_path):
    def columns(rows, datasets):
        people = [[2880, 17, 2880, 5, 17, 5][i] for i in range(rows)]
        smiles = [i % 2 == 0 for i in range(rows)]
        return {
            "image": datasets.Image(),
            "celeb_id": (people, datasets.Value("int64")),
            "Smiling": (smiles, datasets.Value("bool")),
        }

    sets = celeba(parquet(tmp_path / "celeba", columns, size=(40, 60)), size=20)
    assert (sets.train.shape, sets.train.classes) == ((3, 20, 20), ("False", "True"))
    assert sets.train.identities == ("5", "17", "2880")
    assert sets.train.identity.tolist() == [2, 1, 2, 0, 1, 0]


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
def test_ages_are_targets_and_pictures_may_lie_beside_a_table(tmp_path):
    from PIL import Image

    for number, split in enumerate(("train", "test")):
        home = tmp_path / "ages" / split
        home.mkdir(parents=True)
        rows = []
        for i, age in enumerate((20, 35, 61)):
            Image.new("L", (24, 24), 40 * i + number).save(home / f"{i}.png")
            rows.append({"file_name": f"{i}.png", "age": age, "identity": ["ann", "bert"][i % 2]})
        (home / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = faces_by_age(tmp_path / "ages", size=16)
    assert sets.train.targets.tolist() == [20, 35, 61]
    assert sets.test.identities == ("ann", "bert")
    assert sets.train.pixels[1].unique().tolist() == pytest.approx([40 / 255])


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
def test_only_so_many_rows_are_read(tmp_path):
    root = parquet(tmp_path / "set", labelled("img", "label", ["a", "b"]))
    sets = cifar10(root, limit=4)
    assert (len(sets.train), len(sets.test), both(sets).tolist()) == (4, 4, list(range(8)))
    with pytest.raises(DataError, match="a limit of 0 leaves no rows"):
        cifar10(root, limit=0)


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
def test_refuses_a_missing_column_and_names_the_others(tmp_path):
    root = parquet(tmp_path / "set", labelled("img", "label", ["a", "b"]))
    with pytest.raises(DataError, match=r"set@train: unknown column 'labels'\. Did you mean 'label'"):
        hub_images(root, image="img", label="labels")
    with pytest.raises(DataError, match="an image is a int, not a picture"):
        hub_images(root, image="label", label="label")


@PILLOW
@pytest.mark.usefixtures("own_datasets_cache")
def test_refuses_a_folder_it_cannot_load(tmp_path):
    with pytest.raises(DataError, match=r"there are no rows .*Check the path"):
        cifar10(tmp_path / "none")
