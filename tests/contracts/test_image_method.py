"""What every method keeps to on images, whatever it does inside; its form and its words are in test_method.py."""

import copy
import re

import pytest
import torch
from torch import nn

import unwrite
from helpers.tiny import make_image_recipe, make_image_split
from unwrite import catalog
from unwrite.cli.forget import forget as forget_command
from unwrite.errors import DataError, MethodError, ModelError, UnwriteError
from unwrite.forget import Cost
from unwrite.nets.small_vision import SmallCNN
from unwrite.runs import hash_model

METHODS = {slug: record for slug, record in catalog.methods().items() if "images" in record.forgets}
ONLY_IMAGES = [slug for slug, record in METHODS.items() if "text" not in record.forgets]
FOR_REGRESSORS = {"blindspot", "gaussian-amnesiac"}
OF_EITHER = """
    fine-tune cf-k eu-k retrain neg-grad-plus pruned l1-sparse laf ssd lfssd assd random-dampening influence head-only dmm
    oracle-matching dm-direct
"""
ON_TARGETS = FOR_REGRESSORS | set(OF_EITHER.split())
# Eight forget rows and few others: as many retain rows as there are forget rows, where a default asks for twenty times as many.
SHORT = {"laf": {"vae_epochs": 1}, "dmm": {"retain_multiplier": 1.0}, "oracle-matching": {"retain_multiplier": 1.0}}
FEW = {"max_steps": 2, "num_train_epochs": 1, "per_device_train_batch_size": 8}
every_method = pytest.mark.parametrize("slug", METHODS)


def split(slug):
    return make_image_split(regression=slug in FOR_REGRESSORS)


def recipe(slug):
    return make_image_recipe(regression=slug in FOR_REGRESSORS)


def made(slug):
    return METHODS[slug].load()(**SHORT.get(slug, {}))


def apply(slug, model, **options):
    parts = split(slug)
    given = {"holdout": parts.holdout, "recipe": recipe(slug), "args": FEW, **options}
    return made(slug).apply(model, given.pop("forget", parts.forget), given.pop("retain", parts.retain), **given)


@pytest.fixture
def model(slug):
    return recipe(slug).build(0).eval()


@every_method
def test_gives_a_model_in_evaluation_mode_and_counts_its_cost(slug, model):
    cost = Cost()
    unlearned = apply(slug, model, cost=cost)
    parts = split(slug)
    assert (unlearned is model) == (METHODS[slug].kind != "guard")
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
    parts, model = split("blindspot"), recipe("blindspot").build(0).eval()
    given = {"holdout": parts.holdout, "recipe": recipe("blindspot"), "args": FEW}
    refusal, after = "", None
    try:
        after = made(slug).apply(model, parts.forget, parts.retain, **given)
    except (DataError, MethodError) as error:
        refusal = str(error)
    if after is not None:
        assert all(parameter.isfinite().all() for parameter in after.parameters())
    else:
        assert slug not in ON_TARGETS
        assert re.search("label|class|regression targets", refusal)


@pytest.mark.parametrize("slug", ONLY_IMAGES)
def test_a_method_for_images_refuses_texts(slug, forget, retain, tokenizer, tiny_llama):
    with pytest.raises(DataError, match=r"has no meaning for text; it forgets images"):
        METHODS[slug].load()().apply(tiny_llama, forget, retain, processing_class=tokenizer)


def test_a_method_for_texts_refuses_images():
    parts = split("npo")
    with pytest.raises(DataError, match=r"RMU has no meaning for images; it forgets text"):
        unwrite.RMU(layer=1).apply(nn.Linear(1, 1), parts.forget, parts.retain)


def test_the_command_line_refuses_a_method_for_images_before_anything_is_written(tmp_path):
    with pytest.raises(UnwriteError, match="scrub forgets images: unwrite forget --images FOLDER"):
        forget_command(model="m", forget="f", out=tmp_path / "run", method="scrub")
    assert not (tmp_path / "run").exists()
