"""What every defence keeps to: its form and words, the shapes it returns, its random numbers, and the model it is given."""

import dataclasses
import importlib
import json
import pickle
import typing

import numpy as np
import pytest
import torch

from helpers.pictures import Linear
from unwrite import catalog
from unwrite.catalog.records import OURS
from unwrite.cli.fields import build_defence
from unwrite.errors import MethodError
from unwrite.shield import Defence, TrainingMoment

DEFENCES = catalog.defences()
SMALL = {"at": {"steps": 2}, "dat": {"steps": 2}, "ueraser": {"repeats": 2}}
every_defence = pytest.mark.parametrize("slug", DEFENCES)
every_shape = pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 7, 10), (1, 1, 9)], ids=str)


def made(slug, **fields):
    return DEFENCES[slug].load()(**{**SMALL.get(slug, {}), **fields})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(seed=0):
    return TrainingMoment(0, 10, generator(seed))


def batch(shape, rows=6):
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (rows, *shape))).float() / 255
    return pixels, torch.arange(rows) % 3


class Pooled(Linear):
    """Logits of pictures of any size."""

    def __init__(self, channels):
        super().__init__(3, channels, 2)

    def forward(self, pixels):
        return super().forward(torch.nn.functional.adaptive_avg_pool2d(pixels, 2))


@every_defence
def test_is_a_frozen_value_of_plain_fields(slug):
    cls = DEFENCES[slug].load()
    assert issubclass(cls, Defence)
    assert cls.__dataclass_params__.frozen
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    assert pickle.loads(pickle.dumps(cls())) == cls()
    assert json.loads(json.dumps(cls().settings)) == cls().settings


@every_defence
def test_every_field_has_a_line_and_round_trips_through_its_flags(slug):
    cls = DEFENCES[slug].load()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = [field.name for field in dataclasses.fields(cls)]
    assert [name for name in fields if f" {name}: " not in documented] == []
    text = ":".join([slug, *(f"{name}={str(getattr(cls(), name)).lower()}" for name in fields)])
    assert build_defence(text) == build_defence(slug) == cls()


@pytest.mark.parametrize("slug", [slug for slug, record in DEFENCES.items() if record.package == OURS and record.year])
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(DEFENCES[slug].module)
    assert DEFENCES[slug].paper.removeprefix("arXiv ") in module.__doc__


@every_defence
def test_every_field_refuses_what_has_no_meaning(slug):
    cls = DEFENCES[slug].load()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = type(field.default)
        if field.default is None:
            kind = next(one for one in typing.get_args(hints[field.name]) if one is not type(None))
        for bad in {bool: [], int: [-1, 1.5], float: [float("nan"), -1.0], str: ["nonsense"]}[kind]:
            with pytest.raises(MethodError, match=field.name if kind is not str else "nonsense"):
                cls(**{field.name: bad})


@every_defence
def test_a_number_behind_its_name_is_one_of_its_fields_or_refused(slug):
    cls = DEFENCES[slug].load()
    if fields := cls.field_of_number(3):
        assert build_defence(f"{slug}3") == cls(**fields) != cls()
    else:
        with pytest.raises(MethodError, match=f"'{slug}3' has a number, and {slug} has none"):
            build_defence(f"{slug}3")


@every_shape
@every_defence
def test_pictures_keep_their_shape_and_range_and_the_ones_given_stay(slug, shape):
    pixels, _ = batch(shape)
    before = pixels.clone()
    if slug == "filter" and min(shape[1:]) < 2:
        return
    result = made(slug).transform(pixels, torch.arange(6), generator())
    assert result.shape == pixels.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(pixels, before)
    assert torch.equal(result, made(slug).transform(pixels, torch.arange(6), generator()))
    assert torch.equal(made(slug).seen_at_test(pixels), pixels)


@every_shape
@every_defence
def test_a_loss_teaches_the_model_and_leaves_everything_else(slug, shape):
    torch.manual_seed(0)
    pixels, labels = batch(shape)
    before, model = pixels.clone(), Pooled(shape[0]).train()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    loss = made(slug).loss(model, pixels, labels, moment())
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert all(one.grad is None for one in model.parameters())
    loss.backward()
    assert any(one.grad.abs().sum() > 0 for one in model.parameters())
    assert model.training
    assert all(one.requires_grad for one in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert torch.equal(pixels, before)
    assert pixels.grad is None
    assert not pixels.requires_grad


@every_defence
def test_all_that_is_drawn_comes_from_the_generator_given(slug):
    pixels, labels = batch((3, 8, 8))

    def both(seed):
        torch.manual_seed(0)
        model = Pooled(3)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = torch.rand(2), np.random.rand(2)
        np.random.seed(seed)
        torch.manual_seed(seed)
        figures = (
            made(slug).transform(pixels, torch.arange(6), generator(5)),
            made(slug).loss(model, pixels, labels, moment(5)),
        )
        assert torch.equal(torch.rand(2), expected[0])
        assert np.array_equal(np.random.rand(2), expected[1])
        return figures

    assert all(torch.equal(one, two) for one, two in zip(both(1), both(2), strict=True))


def test_names_of_the_catalogue_are_the_classes_to_import():
    import unwrite.shield

    assert all(getattr(unwrite.shield, record.name) is record.load() for record in DEFENCES.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg10", "unknown defence 'jpg'"),
        ("jpeg:qualty=3", "unknown field of jpeg 'qualty'. Did you mean 'quality'"),
        ("jpeg10:quality=3", "unknown field of jpeg 'quality'"),
        ("jpeg:10", "'10' of 'jpeg:10' is no field. Write jpeg:name=value"),
        ("jpeg0", "quality is 0; it must be a whole number, at least 1 and at most 100"),
        ("at300", r"eps is 1.17647, and pixels are in 0..1"),
    ],
)
def test_a_text_that_names_no_defence_is_refused(text, message):
    with pytest.raises(MethodError, match=message):
        build_defence(text)
