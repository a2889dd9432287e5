"""Every published constant stands in our code as its source gives it."""

import inspect
import re
import tomllib
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from unwrite.cli.pages import tables

GROUPS = tomllib.loads(files("unwrite").joinpath("reproduce", "constants.toml").read_text("utf-8"))["group"]
CONSTANTS = [one for group in GROUPS for one in group["constants"]]
STEP = re.compile(r"(?P<name>\w*)(?P<more>(\(\w*\)|\[[^\]]+\])*)")


def step(value, text):
    """One step of `where`: a name, then () for a call, (parameter) for its default, [key] or [number] of what it holds."""
    match = STEP.fullmatch(text)
    assert match, text
    value = getattr(value, match["name"]) if match["name"] else value
    for more in re.findall(r"\(\w*\)|\[[^\]]+\]", match["more"]):
        inside = more[1:-1]
        if more[0] == "[":
            keys = {str(key): key for key in value} if isinstance(value, dict) else {}
            value = value[keys.get(inside, int(inside) if inside.isdigit() else inside)]
        elif inside:
            value = inspect.signature(value).parameters[inside].default
        else:
            value = value()
    return value


def stands(where):
    """What stands in our code at `where`, or what is measured under that name here."""
    if ":" not in where:
        return MEASURED[where]()
    module, _, path = where.partition(":")
    value = import_module(module)
    for text in re.split(r"\.(?![^\[(]*[\])])", path):
        value = step(value, text)
    return list(value) if isinstance(value, tuple) else value


def drawn():
    """(mean, deviation) of Gaussian amnesiac's targets, from the mean and in sample deviations of all targets."""
    from unwrite.data import Images
    from unwrite.forget.engine.images.whole_step import row_normals
    from unwrite.forget.vision import regression

    torch.manual_seed(0)
    data = Images(torch.zeros(60, 1, 2, 2), targets=torch.rand(60) * 9)
    forget, retain = data.subset(range(20), "forget"), data.subset(range(20, 60), "retain")
    normals = row_normals(forget.index, 1, 0, regression._DRAW)[:, 0].double()
    targets = regression.gaussian_targets(forget, retain, 0).targets.double()
    slope = ((targets - targets.mean()) * (normals - normals.mean())).sum() / (normals - normals.mean()).square().sum()
    every = data.targets.double()
    return (targets.mean() - slope * normals.mean() - every.mean()) / every.std(), slope / every.std()


MEASURED = {"drawn_mean": lambda: float(drawn()[0]), "drawn_deviation": lambda: float(drawn()[1])}


@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda one: one["where"].split("unwrite.")[-1])
def test_a_constant_is_as_published(constant):
    near = pytest.approx(constant["value"], rel=1e-5, abs=1e-6) if constant["where"] in MEASURED else constant["value"]
    assert stands(constant["where"]) == near, f"{constant['name']}: the source has {constant['value']}"


def test_a_constant_stands_once_in_the_table():
    where = [one["where"] for one in CONSTANTS]
    assert len(where) == len({*where})


def test_the_page_is_what_the_table_says():
    page = (Path(__file__).parents[2] / "docs" / "constants.md").read_text(encoding="utf-8")
    assert page == tables.constants(), "run: unwrite docs"
    assert page.count("\n| ") == len(CONSTANTS) + len(GROUPS)  # a head each
