"""The pages on extending: every example runs as it stands, on tiny models."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

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


@pytest.fixture
def shown(monkeypatch):
    """A page's file as a module, with its names where the records put them."""

    def make(page):
        module, package = ModuleType(page.module), importlib.import_module(".".join(page.module.split(".")[:2]))
        monkeypatch.setitem(sys.modules, page.module, module)
        exec(compile(page.code, page.file, "exec"), vars(module))
        for entry in page.entries:
            monkeypatch.setattr(package, entry, getattr(module, entry), raising=False)
        return module

    return make


@pytest.mark.parametrize("name", KINDS)
def test_the_example_of_a_page_runs(name, shown):
    page = Page.of(name)
    shown(page)
    exec(compile(page.use, f"{name}.md", "exec"), given(name))


def test_the_objective_shown_is_its_equation_and_ascent_at_powers_of_zero(shown):
    """As the official code has it: -(p^beta1 (1 - p)^beta2 nll), one mean over the label tokens."""
    nll = torch.tensor([0.2, 1.0, 3.0], requires_grad=True)
    batch = {"forget": SimpleNamespace(token_nll=nll)}
    make = shown(Page.of("objective")).SatImp

    def value(**settings):
        return make(**settings).loss(batch).terms["forget"].total({"forget.tokens": torch.tensor(3.0)})

    p = (-nll).detach().exp()
    torch.testing.assert_close(value(), -(p**5 * (1 - p) * nll).mean())
    value().backward()
    torch.testing.assert_close(nll.grad, -(p**5 * (1 - p)) / 3)  # the weight has no gradient
    torch.testing.assert_close(value(beta1=0.0, beta2=0.0), -nll.mean())


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.0, [1]), (0.1, [1, 2]), (0.5, [0, 1, 2]), (float("inf"), [0, 1, 2, 3])]
)
def test_the_part_shown_reveals_the_longest_run_of_sure_positions_within_its_bound(gamma, expected, shown):
    """The surest first, entropies are 0.06, 0.33, 0.61 and 0.69 nats; the sums without the largest are 0, 0.06, 0.38 and 0.99."""
    p = torch.tensor([[0.3, 0.99, 0.9, 0.5, 0.9999]], dtype=torch.float64)
    step = SimpleNamespace(
        judged=torch.stack([p, 1 - p], -1).log(),
        confidence=torch.maximum(p, 1 - p),
        masked=torch.tensor([[True, True, True, True, False]]),
    )
    reveal = shown(Page.of("part")).EntropyBound(gamma=gamma).commit(step).reveal
    assert reveal[0].nonzero()[:, 0].tolist() == expected


def test_every_page_is_linked_and_tested():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {"index", *KINDS}
    assert all(f"({name}.md)" in index for name in KINDS)
