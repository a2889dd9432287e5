"""A package's public names: all there, found by the catalogue alone, and known to type checkers."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import unwrite
from unwrite import catalog
from unwrite.catalog import packages as naming
from unwrite.catalog.packages import lazily, names_of, packages, stubs
from unwrite.errors import UnwriteError

SOURCE = Path(__file__).parent.parent / "src"


@pytest.mark.parametrize("package", packages())
def test_every_name_is_what_its_module_has(package):
    for name, module in names_of(package).items():
        value = getattr(importlib.import_module(package), name)
        assert value is getattr(importlib.import_module(module), name)
        assert not inspect.ismodule(value)


@pytest.mark.parametrize("package", packages())
def test_a_package_lists_its_names_and_star_imports_them(package):
    module = importlib.import_module(package)
    assert set(names_of(package)) == set(module.__all__) <= set(dir(module))
    found = {}
    exec(f"from {package} import *", found)
    assert set(names_of(package)) <= set(found)


def test_every_method_stands_at_the_top_and_in_its_family():
    names = {record.name for record in catalog.METHOD.own().values()}
    assert names <= set(names_of("unwrite"))
    assert names <= set(names_of("unwrite.forget"))


def test_a_member_needs_no_line_beside_its_record():
    """Names come from records, so the tables of other names have none of them."""
    for file in catalog.FILES:
        members = {record.entry for kind in catalog.KINDS[1:] for record in kind.in_file(file)}
        for package, homes in catalog.tables(file).get("names", {}).items():
            assert not members & {f"{package}.{home}:{name}" for home, names in homes.items() for name in names}


@pytest.mark.parametrize(("path", "text"), stubs(SOURCE).items(), ids=lambda value: str(value)[-40:])
def test_the_stub_is_current(path, text):
    assert path.read_text(encoding="utf-8") == text, "run: unwrite docs"


def test_no_stub_is_left_of_a_package_that_has_none():
    assert set(SOURCE.glob("unwrite/**/*.pyi")) == set(stubs(SOURCE))


def test_a_function_stays_where_a_module_of_its_name_is_imported_later():
    code = (
        "import unwrite.data.text.authors, unwrite.data.text.landmarks; from unwrite.data import authors, landmarks; "
    )
    code += "assert callable(authors) and callable(landmarks)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_name_for_two_modules_is_refused(monkeypatch):
    homes = {"one": ["Same"], "two": ["Same"]}
    monkeypatch.setattr(naming, "tables", lambda file: {"names": {"unwrite.nets": homes}})
    with pytest.raises(UnwriteError, match=r"unwrite.nets.Same would be of unwrite.nets.one and of unwrite.nets.two"):
        names_of.__wrapped__("unwrite.nets")


def test_an_unknown_name_and_a_dunder_are_attribute_errors():
    find, _ = lazily("unwrite.nets")
    for name in ("Nonsense", "__path_of_nothing__"):
        with pytest.raises(AttributeError, match=f"module 'unwrite.nets' has no attribute '{name}'"):
            find(name)


def test_a_name_is_looked_up_once():
    module = importlib.import_module("unwrite.nets")
    vars(module).pop("SmallCNN", None)
    assert module.SmallCNN is vars(module)["SmallCNN"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unwrite.nonsense
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = unwrite.Nonsense


def family_packages():
    """unwrite and its packages, but for the thin ones on top."""
    return [unwrite, *(
        importlib.import_module(f"unwrite.{module.name}")
        for module in pkgutil.iter_modules(unwrite.__path__)
        if module.ispkg and module.name not in ("cli", "web")
    )]  # fmt: skip


@pytest.mark.parametrize("package", family_packages(), ids=lambda package: package.__name__)
def test_no_module_takes_the_place_of_a_public_name(package):
    """Importing a module binds it in its package, over a function of the same name unless that is bound first."""
    for module in pkgutil.iter_modules(package.__path__):
        if module.name in getattr(package, "__all__", ()):
            importlib.import_module(f"{package.__name__}.{module.name}")
            assert not inspect.ismodule(getattr(package, module.name))


def test_no_public_function_has_the_name_of_a_family():
    families = {module.name for module in pkgutil.iter_modules(unwrite.__path__) if module.ispkg}
    for package in family_packages():
        assert not families & set(getattr(package, "__all__", ())), package.__name__
