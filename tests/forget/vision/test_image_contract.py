"""What every method that forgets images keeps to, whatever it does inside."""

import copy
import dataclasses
import importlib
import inspect
import pickle

import pytest
import torch
from torch import nn

import unwrite
from unwrite import catalog
from unwrite.cli.forget import forget as forget_command
from unwrite.data.images.images import Images
from unwrite.data.images.splits import split_by_class, split_by_target
from unwrite.errors import DataError, MethodError, ModelError, UnwriteError
from unwrite.forget import Edit, Objective
from unwrite.forget.base import Cost
from unwrite.models.image_training import image_recipe
from unwrite.nets.small_vision import SmallCNN
from unwrite.runs import hash_model

METHODS = {slug: record for slug, record in catalog.methods().items() if "images" in record.forgets}
ONLY_IMAGES = [slug for slug, record in METHODS.items() if "text" not in record.forgets]
FOR_REGRESSORS = {"blindspot", "gaussian-amnesiac"}
OF_EITHER = """
    fine-tune cf-k eu-k retrain neg-grad-plus pruned l1-sparse laf ssd lfssd assd random-dampening influence head-only
"""
ON_TARGETS = FOR_REGRESSORS | set(OF_EITHER.split())
KINDS = {"objective": Objective, "edit": Edit}
RECIPE = image_recipe(SmallCNN, epochs=1, num_classes=3, channels=1, image_size=8, width=4)
REGRESSOR = image_recipe(SmallCNN, epochs=1, num_classes=1, channels=1, image_size=8, width=4)
FEW = {"max_steps": 2, "num_train_epochs": 1, "per_device_train_batch_size": 8}
every_method = pytest.mark.parametrize("slug", METHODS)


def rows(regression=False):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(48, 1, 8, 8, generator=generator)
    if regression:
        return Images(pixels, targets=pixels.mean((1, 2, 3)))
    return Images(pixels, labels=torch.arange(48) % 3)


def split(slug):
    if slug in FOR_REGRESSORS:
        data = rows(regression=True)
        return split_by_target(data, high=float(data.targets.quantile(0.3)), holdout=0.2)
    return split_by_class(rows(), 1, holdout=0.2)


def recipe(slug):
    return REGRESSOR if slug in FOR_REGRESSORS else RECIPE


def made(slug):
    fields = {"vae_epochs": 1} if slug == "laf" else {}
    return METHODS[slug].load()(**fields)


def apply(slug, model, **options):
    parts = split(slug)
    given = {"holdout": parts.holdout, "recipe": recipe(slug), "args": FEW, **options}
    return made(slug).apply(model, given.pop("forget", parts.forget), given.pop("retain", parts.retain), **given)


@pytest.fixture
def model(slug):
    return recipe(slug).build(0).eval()


@every_method
def test_is_a_frozen_dataclass_of_its_kind_with_its_record(slug):
    cls = METHODS[slug].load()
    assert issubclass(cls, KINDS[METHODS[slug].kind])
    assert cls.__dataclass_params__.frozen
    method = made(slug)
    assert hash(method) == hash(made(slug))
    assert pickle.loads(pickle.dumps(method)) == method
    assert cls.__name__ == METHODS[slug].name
    assert set(METHODS[slug].forgets) == set(cls.forgets)
    assert getattr(unwrite.forget, cls.__name__) is cls


@every_method
def test_every_field_has_a_default_a_line_and_a_name_of_its_own(slug):
    cls = METHODS[slug].load()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert [name for name in fields if name not in documented] == []
    assert not fields & (set(inspect.signature(forget_command).parameters) - {"fields"})


@every_method
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(METHODS[slug].entry.split(":")[0])
    assert METHODS[slug].paper.removeprefix("arXiv ").split()[0] in module.__doc__


@every_method
def test_every_number_refuses_nan(slug):
    cls = METHODS[slug].load()
    for field in dataclasses.fields(cls):
        if isinstance(field.default, float):
            with pytest.raises(MethodError, match=f"{field.name} is nan"):
                cls(**{field.name: float("nan")})


@every_method
def test_every_choice_refuses_an_unknown_word(slug):
    cls = METHODS[slug].load()
    for field in dataclasses.fields(cls):
        if isinstance(field.default, str):
            with pytest.raises(MethodError, match="'nonsense'"):
                cls(**{field.name: "nonsense"})


@every_method
def test_gives_a_model_in_evaluation_mode_and_counts_its_cost(slug, model):
    cost = Cost()
    unlearned = apply(slug, model, cost=cost)
    parts = split(slug)
    assert unlearned is model
    assert not any(module.training for module in unlearned.modules())
    assert torch.isfinite(unlearned(parts.forget.pixels)).all()
    assert cost.forwards > 0 or slug == "head-only"  # a class is closed by its bias


@every_method
def test_a_copy_leaves_the_model_bit_identical_and_the_random_state_alone(slug, model):
    before = hash_model(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    unlearned = apply(slug, model, copy=True)
    assert torch.equal(torch.rand(3), expected)
    assert hash_model(model) == before
    assert not {p.data_ptr() for p in unlearned.parameters()} & {p.data_ptr() for p in model.parameters()}


@every_method
def test_the_same_seed_gives_the_same_weights(slug, model):
    assert hash_model(apply(slug, copy.deepcopy(model))) == hash_model(apply(slug, copy.deepcopy(model)))


@every_method
def test_refuses_rows_in_both_sets(slug, model):
    parts = split(slug)
    with pytest.raises(DataError, match="forget and retain share"):
        apply(slug, model, retain=parts.forget)


@every_method
def test_needs_a_retain_set_exactly_if_the_catalogue_says_so(slug, model):
    if "retain set" in METHODS[slug].needs:
        with pytest.raises(DataError, match="retain set"):
            apply(slug, model, retain=None)
    else:
        apply(slug, model, retain=None)


@every_method
def test_needs_a_recipe_exactly_if_the_catalogue_says_so(slug, model):
    if "training recipe" in METHODS[slug].needs:
        with pytest.raises(MethodError, match="recipe"):
            apply(slug, model, recipe=None)
    else:
        apply(slug, model, recipe=None)


@every_method
def test_refuses_a_model_whose_outputs_do_not_fit_the_data(slug):
    wrong = SmallCNN(7, 1, 8, 4)
    with pytest.raises((ModelError, MethodError), match="output"):
        apply(slug, wrong)


@every_method
def test_refuses_adapters_and_unknown_arguments(slug, model):
    with pytest.raises(MethodError, match="adapters"):
        apply(slug, model, peft_config=object())


@pytest.mark.filterwarnings("ignore::UserWarning")  # that so few rows select nothing
@every_method
def test_forgets_regression_rows_or_says_that_it_needs_labels(slug):
    parts, model = split("blindspot"), REGRESSOR.build(0).eval()
    given = {"holdout": parts.holdout, "recipe": REGRESSOR, "args": FEW}
    if slug in ON_TARGETS:
        after = made(slug).apply(model, parts.forget, parts.retain, **given)
        assert all(parameter.isfinite().all() for parameter in after.parameters())
    else:
        with pytest.raises((DataError, MethodError), match=r"label|class|regression targets"):
            made(slug).apply(model, parts.forget, parts.retain, **given)


@pytest.mark.parametrize("slug", ONLY_IMAGES)
def test_a_method_for_images_refuses_texts(slug, forget, retain, tokenizer, tiny_llama):
    with pytest.raises(DataError, match=r"has no meaning for text; it forgets images"):
        METHODS[slug].load()().apply(tiny_llama, forget, retain, processing_class=tokenizer)


def test_a_method_for_texts_refuses_images():
    parts = split("npo")
    with pytest.raises(DataError, match=r"RMU has no meaning for images; it forgets text"):
        unwrite.RMU(layer=1).apply(nn.Linear(1, 1), parts.forget, parts.retain)


def test_the_command_line_refuses_a_method_for_images_before_anything_is_written(tmp_path):
    with pytest.raises(UnwriteError, match=r"scrub forgets images, by SCRUB\(\).apply"):
        forget_command(model="m", forget="f", out=tmp_path / "run", method="scrub")
    assert not (tmp_path / "run").exists()
