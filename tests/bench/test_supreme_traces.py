"""What SUPREME's import and its methods leave behind: no variable, no worker process, a model in evaluation mode."""

import copy
import inspect
import os
import sys

import pytest
import torch
from sweeping import TINY

from helpers import supreme_stub
from unwrite.beds.images import ImageBed
from unwrite.bench import supreme as supreme_module
from unwrite.bench.supreme import STOOD_IN, SupremeMethod, function_named
from unwrite.forget.engine.cost import Cost

SET_BY_IMPORT = "PYTORCH_NVML_BASED_CUDA_CHECK"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """The stub is installed, not yet imported, and no variable of an earlier import is set; gives the notes of what was called."""
    supreme_stub.installed(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in (SET_BY_IMPORT, "SCALENE"):
        monkeypatch.delenv(name, raising=False)
    with supreme_stub.forgotten_imports():
        yield lambda: sys.modules["supreme"].calls


def test_a_variable_that_an_import_sets_is_taken_back():
    before = dict(os.environ)
    function_named("finetune")
    assert "lightning.fabric" in sys.modules  # which sets one
    assert dict(os.environ) == before


def test_a_variable_that_was_set_keeps_its_value_whatever_the_import_sets(monkeypatch):
    monkeypatch.setenv(SET_BY_IMPORT, "mine")
    function_named("finetune")
    assert os.environ[SET_BY_IMPORT] == "mine"


def test_variables_come_back_as_they_were_also_after_an_error(monkeypatch):
    monkeypatch.setenv("KEPT", "before")
    before = dict(os.environ)

    def failing():
        with supreme_module._environment(SCALENE="1", KEPT="within"):
            assert (os.environ["SCALENE"], os.environ["KEPT"]) == ("1", "within")
            os.environ["NEW"] = "1"
            del os.environ["KEPT"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert dict(os.environ) == before


def test_a_loader_has_no_worker_processes_whatever_the_variable_says():
    function_named("finetune")
    fabric = supreme_module._fabric(torch.device("cpu"))
    rows = torch.utils.data.TensorDataset(torch.arange(6))
    assert "SCALENE" not in os.environ
    loader = supreme_module._loader(fabric, rows, 2)
    assert (loader.num_workers, loader.batch_size) == (0, 2)


def test_a_loader_that_a_function_makes_itself_has_none_either(package):
    one = ImageBed(TINY, 0)
    one.unlearn(SupremeMethod(function="random_labeling"))
    assert package()[0]["own"].num_workers == 0


@pytest.mark.parametrize("function", ["scrub", "finetune", "bad_teacher"])
def test_a_model_comes_back_in_evaluation_mode_however_the_function_leaves_it(function):
    """The stub's scrub and finetune end in training mode, as the originals do; the model that was given may be in it too."""
    one = ImageBed(TINY, 0)
    given = copy.deepcopy(one.before).train()
    found = SupremeMethod(function=function).apply(
        given, one.split.forget, one.split.retain, recipe=one.recipe, cost=Cost()
    )
    assert found is given
    assert not any(part.training for part in found.modules())


def test_an_empty_module_has_classes_for_names_and_no_name_of_pythons_own():
    """A module that answers to any such name would be taken for a wrapper, an array or a file by whoever asks."""
    empty = supreme_module._Empty("wandb")
    for name in ("__wrapped__", "__array__", "__file__", "__all__"):
        with pytest.raises(AttributeError, match=name):
            getattr(empty, name)
    assert inspect.unwrap(empty) is empty
    assert empty.__path__ == []
    made = empty.Settings("anything", start_method="thread")  # called during an import
    assert type(made).__name__ == "Settings"
    assert issubclass(type("Derived", (empty.Callback,), {}), empty.Callback) is False  # a new class every time
    with pytest.raises(AttributeError):
        _ = made.config


def test_a_module_within_an_empty_one_is_the_one_that_stands_in_for_it():
    with supreme_module._stood_in():
        assert sys.modules["torchvision"].datasets is sys.modules["torchvision.datasets"]
        assert all(isinstance(sys.modules[name], supreme_module._Empty) for name in STOOD_IN)
        from torchvision.datasets import CIFAR10

        assert isinstance(CIFAR10, type)
