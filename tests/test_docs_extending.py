"""The pages on extending: every example runs as it stands, on tiny models."""

import importlib
import sys
from types import ModuleType

import pytest

from conftest import make_examples, make_llama, make_tokenizer
from helpers.extending import KINDS, PAGES, Page
from helpers.tiny import END, MASK, make_image_recipe, make_image_split, make_mask_predictor
from unwrite.data import ForgetSplit
from unwrite.diffusion import MaskPredictor


def given(page):
    """What an example finds there: a model, rows, and so on."""
    if page == "image-method":
        return {"classifier": make_image_recipe().build(0), "split": make_image_split()}
    if page == "part":
        return {"mask_predictor": MaskPredictor(make_mask_predictor(0), MASK, (END,)), "prompt": [3, 4, 5]}
    tokenizer, forget, retain = make_tokenizer(), make_examples("forget", 8), make_examples("retain", 8)
    model = make_llama(layers=2)
    names = {"model": model, "tokenizer": tokenizer, "forget": forget, "retain": retain}
    return names | {
        "split": ForgetSplit(forget, retain),
        "inputs": tokenizer("who wrote the book", return_tensors="pt"),
    }


@pytest.mark.parametrize("name", KINDS)
def test_the_example_of_a_page_runs(name, monkeypatch):
    page = Page.of(name)
    module, package = ModuleType(page.module), importlib.import_module(".".join(page.module.split(".")[:2]))
    monkeypatch.setitem(sys.modules, page.module, module)
    exec(compile(page.code, page.file, "exec"), vars(module))
    for entry in page.entries:  # as the records make it known
        monkeypatch.setattr(package, entry, getattr(module, entry), raising=False)
    exec(compile(page.use, f"{name}.md", "exec"), given(name))


def test_every_page_is_linked_and_tested():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {"index", *KINDS}
    assert all(f"({name}.md)" in index for name in KINDS)
