"""What every shield keeps to: its form and words, its key, its budget, the pictures it is given, and what it saves."""

import copy
import dataclasses
import importlib
import inspect
import json
import pickle
import typing

import numpy as np
import pytest
import torch

from helpers.caption_encoders import HashedText, tiny_generator
from helpers.pictures import COLOURS, Linear, contents, make_folder, make_pictures
from unwrite import catalog
from unwrite.catalog.records import OURS
from unwrite.cli.fields import build_shield
from unwrite.cli.shield import protect as protect_command
from unwrite.data import Images
from unwrite.errors import DataError, MethodError, RunError, UnwriteError
from unwrite.shield import Additive, Protection, Shield, protect_folder

SHIELDS = catalog.shields()
KEY = 77
FREE = {"random_start", "legacy_positive_only", "truncation"}  # booleans have no range
OBJECTS = {"surrogate": Linear, "generator": tiny_generator(loud=True), "text_encoder": HashedText()}  # in no file
ADDITIVE = [slug for slug, record in SHIELDS.items() if issubclass(record.load(), Additive)]
every_shield = pytest.mark.parametrize("slug", SHIELDS)
pytestmark = pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")


def made(slug, key=KEY, **fields):
    cls = SHIELDS[slug].load()
    names = {field.name for field in dataclasses.fields(cls)}
    small = {**OBJECTS, "rounds": 2, "steps": 3, "alpha": 4 / 255, "n_clusters": 3, "width": 4, "blocks": 1}
    return cls(key=key, **{**{name: value for name, value in small.items() if name in names}, **fields})


def targets(slug, labels):
    """What the shield reads of each picture."""
    reads = SHIELDS[slug].load().reads
    return {"labels": labels, "captions": [COLOURS[label] for label in labels], "nothing": None}[reads]


def objects_of(slug):
    """What no file can hold of a shield made here."""
    return {name: value for name, value in OBJECTS.items() if hasattr(SHIELDS[slug].load(), name)}


def source_of(slug, folder, **how):
    """A folder of classes, with captions where the shield reads them; the contents of its pictures."""
    make_folder(folder, **how)
    pictures = contents(folder)
    if SHIELDS[slug].load().reads == "captions":
        (folder / "captions.csv").write_text("\n".join(["file,caption", *(f"{name},{name}" for name in pictures)]))
    return folder, pictures


def given(slug, **how):
    pixels, labels = make_pictures(**how)
    return pixels, targets(slug, labels)


@every_shield
def test_is_a_frozen_value_whose_repr_has_no_key(slug):
    cls = SHIELDS[slug].load()
    assert issubclass(cls, Shield)
    assert cls.__dataclass_params__.frozen
    shield = cls(key=123454321)
    assert shield == cls(key=123454321) != cls(key=5)
    assert hash(shield) == hash(cls(key=123454321))
    assert pickle.loads(pickle.dumps(shield)) == shield
    assert "123454321" not in repr(shield)
    assert shield.slug == slug


@every_shield
def test_every_field_has_a_default_a_line_and_a_name_that_no_flag_has(slug):
    cls = SHIELDS[slug].load()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert [name for name in fields if f" {name}: " not in documented] == []
    assert not (fields - {"key"}) & (set(inspect.signature(protect_command).parameters) - {"fields"})


@pytest.mark.parametrize("slug", [slug for slug, record in SHIELDS.items() if record.package == OURS])
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(SHIELDS[slug].module)
    assert SHIELDS[slug].paper.removeprefix("arXiv ").split()[0] in module.__doc__


@every_shield
def test_every_field_refuses_what_has_no_meaning(slug):
    cls = SHIELDS[slug].load()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = next((one for one in typing.get_args(hints[field.name]) if field.default is None), type(field.default))
        if field.name in FREE | {"key"}:
            continue
        for bad in {int: [-1], float: [float("nan"), -1.0], str: ["nonsense"]}[kind]:
            with pytest.raises(MethodError, match=field.name if kind is not str else "nonsense"):
                cls(key=KEY, **{field.name: bad})


@every_shield
def test_round_trips_through_its_flags(slug):
    shield = SHIELDS[slug].load()(key=KEY)
    flags = {
        field.name.replace("_", "-"): str(getattr(shield, field.name)).lower()
        for field in dataclasses.fields(shield)
        if field.name != "key"
    }
    assert build_shield(slug, flags, KEY) == shield


@every_shield
@pytest.mark.parametrize("key", ["7", 7.0, True, None, np.int64(7)])
def test_refuses_a_key_that_is_no_whole_number(slug, key):
    with pytest.raises(MethodError, match=r"key is of type \w+. Give a whole number"):
        SHIELDS[slug].load()(key=key)


@every_shield
@pytest.mark.parametrize(("key", "why"), [(-1, "is negative"), (2**256, "has more than 256 bits")])
def test_refuses_a_key_out_of_range_without_repeating_it(slug, key, why):
    with pytest.raises(MethodError, match=why) as error:
        SHIELDS[slug].load()(key=key)
    assert str(key) not in str(error.value)


@every_shield
def test_the_same_key_gives_the_same_bits_and_another_key_others(slug):
    pixels, told = given(slug)
    first = made(slug).fit(pixels, told)
    np.random.seed(9)
    torch.manual_seed(9)
    again = made(slug).fit(pixels, told)
    other = made(slug, key=KEY + 1).fit(pixels, told)
    assert first.state.keys() == again.state.keys()
    assert all(np.array_equal(first.state[name], again.state[name]) for name in first.state)
    assert np.array_equal(first.transform(pixels, told), again.transform(pixels, told))
    assert not np.array_equal(first.transform(pixels, told), other.transform(pixels, told))


@every_shield
def test_leaves_pictures_and_the_processs_random_state_alone(slug):
    pixels, told = given(slug)
    before = pixels.copy()
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.rand(2), torch.rand(2)
    np.random.seed(3)
    torch.manual_seed(3)
    protected = made(slug).fit_transform(pixels, told)
    assert np.array_equal(np.random.rand(2), expected[0])
    assert torch.equal(torch.rand(2), expected[1])
    assert np.array_equal(pixels, before)
    assert not np.array_equal(protected, pixels)
    assert not np.shares_memory(protected, pixels)


@pytest.mark.parametrize("eps", [8 / 255, 0.03, 2.5 / 255])
@pytest.mark.parametrize("slug", ADDITIVE)
def test_eight_bits_stay_within_the_budget_and_it_is_used(slug, eps):
    pixels, told = given(slug)
    protected = made(slug, eps=eps).fit_transform(pixels, told)
    change = np.abs(protected.astype(int) - pixels)
    assert change.max() == int(eps * 255 + 1e-9) == made(slug, eps=eps).budget


@pytest.mark.parametrize("slug", ADDITIVE)
def test_no_budget_gives_the_pictures_and_one_in_levels_is_refused(slug):
    pixels, told = given(slug)
    assert np.array_equal(made(slug, eps=0.0).fit_transform(pixels, told), pixels)
    with pytest.raises(MethodError, match=r"eps is 8, and pixels are in 0..1. For 8 levels of 255 give 0.0313725"):
        made(slug, eps=8)


@every_shield
def test_every_form_of_the_pictures_comes_back_in_that_form_with_the_same_pixels(slug):
    pixels, told = given(slug)
    protection = made(slug).fit(pixels, told)
    expected = protection.transform(pixels, told)
    last = protection.transform(pixels.transpose(0, 2, 3, 1), told)
    assert np.array_equal(last.transpose(0, 3, 1, 2), expected)
    tensor = protection.transform(torch.from_numpy(pixels), told)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), expected)
    floats = protection.transform(torch.from_numpy(pixels).float() / 255, told)
    assert floats.dtype == torch.float32
    assert np.array_equal(np.rint(floats.numpy() * 255), expected)
    if protection.shield.reads == "labels":
        images = Images(pixels.astype(np.float32) / 255, told, name="mine")
        result = protection.transform(images)
        assert (result.name, result.labels.tolist()) == ("mine", told.tolist())
        assert np.array_equal(np.rint(result.pixels.numpy() * 255), expected)


@every_shield
def test_grey_pictures_need_no_axis_of_channels(slug):
    pixels, told = given(slug, channels=1)
    shield = made(slug)
    assert np.array_equal(shield.fit_transform(pixels[:, 0], told), shield.fit_transform(pixels, told)[:, 0])


@every_shield
def test_batches_of_a_set_are_the_set(slug, monkeypatch):
    from unwrite.shield.engine import pictures as engine

    pixels, told = given(slug)
    protection = made(slug).fit(pixels, told)
    whole = protection.transform(pixels, told)
    monkeypatch.setattr(engine, "MOST_ROWS", 5)
    assert np.array_equal(protection.transform(pixels, told), whole)


@every_shield
def test_saves_and_loads_with_its_key_alone(slug, tmp_path):
    pixels, told = given(slug)
    protection = made(slug, key=123454321).fit(pixels, told)
    folder = protection.save(tmp_path / "kept")
    objects = objects_of(slug)
    loaded = Protection.load(folder, 123454321, **objects)
    assert loaded.shield == protection.shield
    assert loaded.facts == protection.facts
    assert np.array_equal(loaded.transform(pixels, told), protection.transform(pixels, told))
    assert all(b"123454321" not in content for content in contents(folder).values())
    with pytest.raises(RunError, match=r"made with another key"):
        Protection.load(folder, 123454322, **objects)
    if objects:
        with pytest.raises(RunError, match=r"holds \w+ by its name alone, '\w+'. Pass it to load"):
            Protection.load(folder, 123454321)


@every_shield
def test_a_saved_protection_is_replaced_only_when_asked_and_nothing_else_ever(slug, tmp_path):
    protection = made(slug).fit(*given(slug))
    protection.save(tmp_path / "kept")
    with pytest.raises(RunError, match=r"kept holds a saved protection. .* overwrite=True to replace it"):
        protection.save(tmp_path / "kept")
    protection.save(tmp_path / "kept", overwrite=True)
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(RunError, match="holds other files than a saved protection"):
        protection.save(tmp_path / "kept", overwrite=True)


@every_shield
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(form=9), "no record of a protection, or one of another version"),
        (lambda r: r.update(by="cudda"), "unknown shield 'cudda'. Did you mean 'cuda'"),
        (lambda r: r.update(facts={}), "doesn't say what the protection was fitted to"),
        (lambda r: r.update(key={"salt": "zz"}), "made with another key"),
        (lambda r: r.update(state="0"), "is not the state that protection.json was written for"),
        (lambda r: r["fields"].update({next(iter(r["fields"])): ["x"]}), "is damaged: "),
    ],
)
def test_a_damaged_record_is_refused(slug, change, message, tmp_path):
    folder = made(slug).fit(*given(slug)).save(tmp_path / "kept")
    record = json.loads((folder / "protection.json").read_text())
    change(record)
    (folder / "protection.json").write_text(json.dumps(record))
    with pytest.raises(UnwriteError, match=message):
        Protection.load(folder, KEY, **objects_of(slug))


@every_shield
def test_a_protection_is_copied_and_says_what_it_has(slug):
    protection = made(slug).fit(*given(slug))
    assert copy.deepcopy(protection).facts == protection.facts
    assert f"{type(protection.shield).__name__}(" in repr(protection)
    assert str(KEY) not in repr(protection)
    for name in (*protection.state, *protection.facts):
        assert getattr(protection, f"{name}_") is {**protection.facts, **protection.state}[name]
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing_'"):
        _ = protection.nothing_


@every_shield
def test_transform_before_fit_says_that_fit_returns_what_is_fitted(slug):
    with pytest.raises(MethodError, match=r"is not fitted: fit returns what is. Write protection = \w+\(...\).fit"):
        made(slug).transform(*given(slug))


@every_shield
def test_a_folder_is_protected_as_its_arrays_are_and_stays_as_it_was(slug, tmp_path):
    source, before = source_of(slug, tmp_path / "pets", rows=3)
    whole = contents(source)
    release = protect_folder(made(slug, key=123454321), source, tmp_path / "safe")
    assert contents(source) == whole
    written = contents(tmp_path / "safe")
    assert written.keys() == before.keys() | {"protection.json"}
    again = protect_folder(made(slug, key=123454321), source, tmp_path / "again")
    same = contents(tmp_path / "again")
    assert all(written[name] == same[name] for name in before)
    assert again.change == release.change > 0
    text = written["protection.json"].decode()
    assert json.loads(text)["by"] == slug
    assert "123454321" not in text
    if release.protection.shield.budget is not None:
        assert release.change <= release.protection.shield.budget


@every_shield
def test_protected_pictures_are_not_protected_again(slug, tmp_path):
    source, _ = source_of(slug, tmp_path / "pets")
    protect_folder(made(slug), source, tmp_path / "safe")
    for captions in source.glob("*.csv"):
        (tmp_path / "safe" / captions.name).write_bytes(captions.read_bytes())
    with pytest.raises(DataError, match=r"0.png is protected already, as .*protection.json says"):
        protect_folder(made(slug), tmp_path / "safe", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@every_shield
def test_refuses_one_picture_and_one_class(slug):
    pixels, told = given(slug)
    with pytest.raises(DataError, match=r"has one picture. .*at least 2 pictures"):
        made(slug).fit(pixels[:1], told if told is None else told[:1])
    if SHIELDS[slug].load().reads == "labels":
        with pytest.raises(DataError, match=r"are of one class, .*at least 2 classes"):
            made(slug).fit(pixels, np.zeros(len(pixels), dtype=int))


@every_shield
def test_refuses_labels_of_another_number_and_a_class_it_was_not_fitted_to(slug):
    pixels, told = given(slug)
    if SHIELDS[slug].load().reads == "nothing":
        return
    with pytest.raises(DataError, match=r"there are 12 images and .*11"):
        made(slug).fit(pixels, told[:-1])
    if SHIELDS[slug].load().reads == "labels":
        protection = made(slug).fit(pixels, told)
        with pytest.raises(
            DataError, match=r"the label of image 1 is 3, and the protection was fitted to 3 classes, 0 to 2"
        ):
            protection.transform(pixels, np.where(np.arange(12) == 1, 3, told))


def test_shield_is_no_class_to_make():
    with pytest.raises(TypeError, match="abstract"):
        Shield(key=1)
