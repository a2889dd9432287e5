"""The pages on extending: every example runs as it stands, on tiny models."""

import re
from pathlib import Path

import pytest

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import END, MASK, make_image_recipe, make_image_split, make_mask_predictor
from unwrite.data import ForgetSplit
from unwrite.diffusion import MaskPredictor

PAGES = Path(__file__).parents[1] / "docs" / "extending"
CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
KINDS = ("objective", "edit", "guard", "image-method", "strategy", "part", "metric")


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


@pytest.mark.parametrize("page", KINDS)
def test_the_example_of_a_page_runs(page):
    (code,) = CODE.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    assert len(code.splitlines()) <= 45
    exec(compile(code, f"{page}.md", "exec"), {"__name__": "example", **given(page)})


def test_every_page_is_linked_and_tested():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {"index", *KINDS}
    assert all(f"({page}.md)" in index for page in KINDS)
