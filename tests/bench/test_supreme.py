"""SUPREME's methods in a sweep: what they are handed, what stays as it was, and what is refused. A small package stands in for theirs.

Agreement of the numbers: `forget/vision/test_supreme_official.py`.
"""

import copy
import inspect
import os
import pickle
import random
import sys
import types
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sweeping import TINY, lines

from helpers import supreme_stub
from unwrite.beds.images import BEDS, ImageBed, _at_random, _by_class
from unwrite.beds.text_beds import BEDS as TEXTS
from unwrite.bench import supreme as supreme_module
from unwrite.bench.supreme import FUNCTIONS, GIVEN, SupremeMethod, function_named, pairs, settings_of
from unwrite.bench.sweep import sweep, trials_of
from unwrite.bench.sweep_kinds import Contender
from unwrite.cli import main
from unwrite.cli.sweep import contender_of, contenders_of
from unwrite.data.images.sets import digits_regression
from unwrite.errors import DataError, MethodError, MissingExtra, NotFinite
from unwrite.forget.engine.cost import Cost

AT_RANDOM = replace(TINY, name="tiny random", split=partial(_at_random, 0.1))
TWO = replace(TINY, name="tiny two", split=partial(_by_class, [3, 8]))


@pytest.fixture(autouse=True)
def _forgotten():
    with supreme_stub.forgotten_imports():
        yield


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The stub is installed; gives the notes of what was called."""
    supreme_stub.installed(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return lambda: sys.modules["supreme"].calls


@pytest.fixture
def missing(monkeypatch):
    def absent(name):
        raise supreme_module.PackageNotFoundError(name)

    monkeypatch.setattr(supreme_module, "version", absent)


def unlearn(function, bed=TINY, seed=0, **settings):
    one = ImageBed(bed, seed)
    return one, *one.unlearn(SupremeMethod(function=function, **settings))


def weights(model):
    return torch.cat([value.flatten() for value in model.parameters()]).detach()


def test_a_class_and_random_rows_are_handed_over_as_its_pipeline_does(package):
    for bed, strategy, label, batch in ((TINY, "fullclass", 3, 64), (AT_RANDOM, "random_", None, 128)):
        one, *_ = unlearn("random_labeling", bed)
        call = package().pop()
        split = one.split
        assert (call["type_of_unlearning_strategy"], call["kwargs"]["forget_label_id"]) == (strategy, label)
        assert (call["num_labels"], call["num_gpus"], call["wandb_logging_flag"]) == (10, 1, False)
        assert call["forget_train_dataloader"].batch_size == call["retain_train_dataloader"].batch_size == batch
        forget, retain = (call[f"{name}_train_dataloader"].dataset for name in ("forget", "retain"))
        assert (len(forget), len(retain)) == (len(split.forget), len(split.retain))
        pixels, fine, coarse = forget[1]
        assert torch.equal(pixels, split.forget.pixels[1])
        assert fine == coarse == split.forget.labels[1].item()
        full = call["kwargs"]["full_train_dataloader"]
        assert (len(full.dataset), full.batch_size) == (len(split.train), batch)
        assert len(call["retain_test_dataloader"].dataset) == 1
        assert call["kwargs"]["trainset"].targets == split.retain.joined(split.forget).labels.tolist()


def test_loaders_are_shuffled_and_have_no_worker_processes(package):
    unlearn("random_labeling", batch_size=8)
    [call] = package()
    for loader in (call["own"], call["forget_train_dataloader"], call["kwargs"]["full_train_dataloader"]):
        assert loader.num_workers == 0
        assert isinstance(loader.sampler, torch.utils.data.RandomSampler)
    assert call["retain_train_dataloader"].batch_size == 8


@pytest.mark.parametrize(("function", "of_class", "of_rows"), [("ssd", 10, 10), ("assd", 10, 10), ("lfssd", 10, 3.5)])
def test_dampening_gets_the_alpha_of_its_pipeline_unless_another_is_given(package, function, of_class, of_rows):
    for bed, alpha in ((TINY, of_class), (AT_RANDOM, of_rows)):
        unlearn(function, bed)
        unlearn(function, bed, options={"selection_weighting": 2.0, "dampening_constant": 0.5})
        own, other = package()
        assert (own["selection_weighting"], own["dampening_constant"]) == (alpha, 1)
        assert (other["selection_weighting"], other["dampening_constant"]) == (2, 0.5)
        package().clear()


def test_bad_teacher_gets_an_untrained_model_of_the_recipe(package):
    one, *_ = unlearn("bad_teacher")
    teacher = package()[0]["unlearning_teacher"]
    fresh = one.recipe.build(0)
    assert torch.equal(weights(teacher), weights(fresh))
    assert not teacher.training
    assert not any(value.requires_grad for value in teacher.parameters())
    unlearn("finetune")
    assert package()[1]["kwargs"]["unlearning_teacher"] is None


def test_passes_of_copies_and_teachers_are_counted_and_a_backward_counts_two(package):
    one, _, forwards = unlearn("finetune")
    assert forwards == 3 * len(one.split.retain)
    one, _, forwards = unlearn("bad_teacher")
    assert forwards == 2 * len(one.split.forget)
    one, _, forwards = unlearn("ssd")
    assert forwards == 3 * len(one.split.train)


def test_the_seed_says_what_comes_out_and_the_target_stays(package):
    one = ImageBed(TINY, 0)
    before = weights(one.before).clone()
    first, again, other = (
        weights(one.unlearn(SupremeMethod(function="finetune", batch_size=16), {"seed": seed})[0]) for seed in (1, 1, 2)
    )
    assert torch.equal(weights(one.before), before)
    assert not torch.equal(first, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_of_the_process_is_changed(package, capsys, monkeypatch):
    loaded = types.ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", loaded)
    monkeypatch.delitem(sys.modules, "debugpy", raising=False)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    filters, environment = list(warnings.filters), dict(os.environ)
    one = ImageBed(TINY, 0)
    one.before.head.bias.requires_grad_(False)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    for function in ("scrub", "random_labeling", "bad_teacher"):
        model, _ = one.unlearn(SupremeMethod(function=function))
    for before, after in zip(states, (random.getstate(), np.random.get_state()[1].tolist()), strict=False):
        assert before == after
    assert torch.equal(states[2], torch.random.get_rng_state())
    assert (list(warnings.filters), dict(os.environ)) == (filters, environment)
    assert sys.modules["wandb"] is loaded
    assert not {"debugpy", "torchvision", "torchvision.datasets"} & set(sys.modules)
    assert capsys.readouterr().out == ""
    scrubbed, _ = one.unlearn(SupremeMethod(function="scrub"))
    assert [name for name, value in scrubbed.named_parameters() if not value.requires_grad] == ["head.bias"]
    assert all(value.grad is None for value in scrubbed.parameters())
    assert not model.training
    monkeypatch.setenv("SCALENE", "0")
    one.unlearn(SupremeMethod(function="finetune"))
    assert os.environ["SCALENE"] == "0"


def test_using_wandb_is_an_error_and_not_a_connection(package):
    function_named("scrub")
    wandb = sys.modules["supreme.methods.unlearning_methods.scrub"].wandb
    with pytest.raises(AttributeError):
        wandb.config.update({})


def test_rows_stand_beside_ours_and_say_whose_code_it_was(package, tmp_path):
    contenders = contenders_of("fine-tune:epochs=1,supreme:finetune,supreme:ssd:dampening_constant=0.5")
    rows = sweep(trials_of(contenders, [TINY], [0]), tmp_path / "rows.jsonl", 1)
    ours, theirs, dampened = rows[3:]
    assert [row["contender"] for row in rows[3:]] == [
        "fine-tune:epochs=1", "supreme:finetune", "supreme:ssd:dampening_constant=0.5",
    ]  # fmt: skip
    assert "peer" not in ours
    assert theirs["peer"] == dampened["peer"] == "supreme-unlearning 0.1.5, lightning 2.6.6"
    assert theirs["kind"] == "method"
    assert theirs["seconds"] > 0
    assert set(theirs["values"]) == set(ours["values"])
    assert lines(tmp_path / "rows.jsonl")[-1] == dampened


def test_another_version_or_setting_is_another_trial(package, tmp_path, monkeypatch):
    def key(text):
        return trials_of([contender_of(text)], [TINY], [0])[-1].key

    keys = {key("supreme:ssd"), key("supreme:ssd:batch_size=16"), key("supreme:ssd:selection_weighting=2")}
    assert len(keys) == 3
    assert key("supreme:ssd") in keys
    monkeypatch.setattr(supreme_module, "version", lambda name: "0.1.6")
    assert key("supreme:ssd") not in keys


def test_in_another_process_it_is_imported_as_it_arrives(package, monkeypatch):
    sent, named = (
        pickle.dumps(Contender("supreme:ssd", SupremeMethod(function="ssd", options={"dampening_constant": 2.0}))),
        [],
    )
    monkeypatch.setattr(supreme_module, "function_named", named.append)
    arrived = pickle.loads(sent)
    assert named == ["ssd"]
    assert arrived.method.options == {"dampening_constant": 2.0}


def test_settings_are_the_arguments_that_are_no_data(package):
    assert settings_of("finetune") == {"batch_size": int}
    assert list(settings_of("ssd")) == ["batch_size", "dampening_constant", "selection_weighting"]
    scrub = settings_of("scrub")
    assert (scrub["sgda_epochs"], scrub["gamma"], scrub["optimizer_type"]) == (int, float, str)
    assert not GIVEN & set(scrub)


def test_a_line_names_a_function_with_its_settings(package):
    text = "supreme:scrub:sgda-epochs=3,lr_decay_epochs=5,8,batch_size=32,gamma=2,ssd,supreme:neg_grad"
    scrub, ssd, neg_grad = contenders_of(text)
    assert scrub.name == "supreme:scrub:sgda_epochs=3,lr_decay_epochs=5,8,batch_size=32,gamma=2"
    assert scrub.method.batch_size == 32
    assert scrub.method.options == {"sgda_epochs": 3, "lr_decay_epochs": (5, 8), "gamma": 2.0}
    assert (ssd.name, neg_grad.name, neg_grad.peer) == (
        "ssd", "supreme:neg_grad", "supreme-unlearning 0.1.5, lightning 2.6.6",
    )  # fmt: skip
    assert ssd.peer == ""
    assert (neg_grad.method.batch_size, neg_grad.method.options) == (None, {})


def test_one_word_gives_ours_and_theirs_side_by_side(package):
    found = contenders_of("peers")
    assert len(found) == 2 * len(FUNCTIONS)
    assert {one.method.function for one in found[1::2]} == set(FUNCTIONS)
    assert not any(one.peer for one in found[::2])
    trials_of(found, [TINY], [0])


def test_pairs_have_the_same_settings(package):
    ours = {theirs.method.function: one for one, theirs in zip(pairs()[::2], pairs()[1::2], strict=True)}
    theirs = {one.method.function: one.method for one in pairs()[1::2]}
    own = {name: one.default for name, one in inspect.signature(function_named("scrub")).parameters.items()}
    scrub, args = ours["scrub"].method, ours["scrub"].args
    assert (scrub.msteps, scrub.gamma, scrub.alpha, scrub.temperature) == tuple(
        own[name] for name in ("msteps", "gamma", "alpha", "kd_T")
    )
    assert (args["num_train_epochs"], args["learning_rate"], args["weight_decay"], args["optim"]) == tuple(
        own[name] for name in ("sgda_epochs", "sgda_learning_rate", "sgda_weight_decay", "optimizer_type")
    )
    assert scrub.forget_batch == args["per_device_train_batch_size"] == theirs["scrub"].batch_size
    for name in ("ssd", "lfssd"):
        assert theirs[name].options["selection_weighting"] == ours[name].method.alpha
    for name in ("ssd", "assd", "lfssd"):
        assert theirs[name].batch_size == ours[name].method.importance_batch
    for name in ("finetune", "neg_grad"):
        assert theirs[name].batch_size == ours[name].args["per_device_train_batch_size"]


def test_what_is_missing_is_said_with_the_line_to_type(missing, tmp_path, capsys):
    line = (
        "supreme-unlearning is not installed. Install it with: pip install 'unwrite[peers]' && "
        "pip install --no-deps supreme-unlearning==0.1.5"
    )
    for make in (lambda: SupremeMethod(function="scrub"), pairs, lambda: contenders_of("supreme:scrub:msteps=1")):
        with pytest.raises(MissingExtra) as caught:
            make()
        assert str(caught.value) == line
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--methods", "ssd,supreme:scrub", "--beds", "digits/class", "--out", str(out)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"unwrite: {line}\n"
    assert not out.exists()


def test_lightning_is_asked_for_too(package, monkeypatch):
    def without_lightning(name):
        if name == "lightning":
            raise supreme_module.PackageNotFoundError(name)
        return "0.1.5"

    monkeypatch.setattr(supreme_module, "version", without_lightning)
    with pytest.raises(MissingExtra, match=r"^lightning is not installed"):
        SupremeMethod(function="scrub")


def test_a_package_without_the_function_is_named_with_its_version(tmp_path, monkeypatch):
    supreme_stub.installed(tmp_path / "site", version="0.2.0", without="scrub")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(
        MethodError, match=r"supreme-unlearning 0\.2\.0 has no scrub that can be used .* made for 0\.1\.5"
    ):
        SupremeMethod(function="scrub")
    assert SupremeMethod(function="ssd").installed == "0.2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("supreme:scrubb", "unknown function of supreme-unlearning 'scrubb'. Did you mean 'scrub'?"),
        ("supreme:", "unknown function of supreme-unlearning ''"),
        ("supreme:jit", "unknown function of supreme-unlearning 'jit'"),
        ("supreme:scrub:gama=1", "unknown setting of supreme:scrub 'gama'. Did you mean 'gamma'?"),
        ("supreme:finetune:epochs=1", "unknown setting of supreme:finetune 'epochs'"),
        ("supreme:scrub:model=1", "unknown setting of supreme:scrub 'model'"),
        ("supreme:scrub:msteps=few", "msteps is 'few'; it must be int"),
        ("supreme:scrub:lr_decay_epochs=a", "lr_decay_epochs is 'a'; it must be int"),
        ("supreme:ssd:batch_size=0", "batch_size is 0"),
        ("supreme:ssd:", "'' in 'supreme:ssd:' is no new setting"),
    ],
)
def test_a_line_that_means_nothing_is_refused(package, text, message):
    with pytest.raises(MethodError) as caught:
        contenders_of(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("option", ["smooting", "batch_size", "fabric"])
def test_an_option_that_is_none_is_refused_in_python(package, option):
    with pytest.raises(MethodError, match=f"unknown setting of supreme:scrub '{option}'"):
        SupremeMethod(function="scrub", options={option: 1})


def test_rows_it_has_no_meaning_for_are_refused(package):
    with pytest.raises(MethodError, match=r"supreme:ssd has no meaning for text \(bed authors/small\)"):
        trials_of([contender_of("supreme:ssd")], [TEXTS["authors/small"]], [0])
    values = replace(
        BEDS["digits/range"], data=partial(digits_regression, 0.9), net={**TINY.net, "num_classes": 1}, epochs=1
    )
    with pytest.raises(DataError, match="regression targets"):
        unlearn("ssd", values)
    for bed in (TWO, AT_RANDOM):
        with pytest.raises(DataError, match="supreme:unsir forgets one whole class"):
            unlearn("unsir", bed)
    with pytest.raises(DataError, match="makes noise of 3 channels, and the pixels have 1"):
        unlearn("unsir")


def test_unsir_takes_one_class_of_pictures_of_three_channels(package):
    one = ImageBed(TINY, 0)
    sets = (one.split.forget, one.split.retain)
    coloured = [replace(rows, pixels=rows.pixels.repeat(1, 3, 1, 1)) for rows in sets]
    model = type(one.before)(channels=3, width=4)
    SupremeMethod(function="unsir").apply(model, *coloured)
    assert package()[0]["forget_label_id"] == 3


def test_a_recipe_is_asked_for_and_training_arguments_are_not_ignored(package):
    one = ImageBed(TINY, 0)
    sets = (one.split.forget, one.split.retain)
    with pytest.raises(MethodError, match="supreme:bad_teacher needs a fresh model"):
        SupremeMethod(function="bad_teacher").apply(copy.deepcopy(one.before), *sets)
    with pytest.raises(MethodError, match=r"supreme:ssd takes no training argument learning_rate.*dampening_constant"):
        one.unlearn(SupremeMethod(function="ssd"), {"learning_rate": 0.5})
    with pytest.raises(DataError, match="needs a retain set"):
        SupremeMethod(function="finetune").apply(copy.deepcopy(one.before), sets[0])


def test_weights_that_are_no_numbers_are_an_error_of_the_row(package, tmp_path):
    with pytest.raises(NotFinite, match="supreme:scrub left weights that are no numbers"):
        unlearn("scrub", options={"sgda_learning_rate": 1e30})
    [*_, row] = sweep(
        trials_of([contender_of("supreme:scrub:sgda_learning_rate=1e30")], [TINY], [0]), tmp_path / "rows.jsonl", 1
    )
    assert "no numbers" in row["error"]
    assert "fault" not in row


def test_the_cost_of_two_applications_is_apart(package):
    one, first, second = ImageBed(TINY, 0), Cost(), Cost()
    for cost in (first, second):
        SupremeMethod(function="neg_grad").apply(one.before, one.split.forget, one.split.retain, copy=True, cost=cost)
    assert first.forwards == second.forwards == 3 * len(one.split.forget)
