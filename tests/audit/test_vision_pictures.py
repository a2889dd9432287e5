"""What a method selected, as a picture: a bar a parameter, and the first convolution's filters with what was selected."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unwrite import evaluate
from unwrite.audit import Selection, changed_weights, selection_picture
from unwrite.audit.images import pictures as vision_pictures
from unwrite.audit.images import selection
from unwrite.audit.report.charts import Filters, _cells
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.data.images.sets import digits
from unwrite.data.images.splits import split_at_random
from unwrite.errors import MethodError, ModelError
from unwrite.forget.dampening import SSD, RandomDampening
from unwrite.nets.small_vision import SmallCNN, SmallViT


def net(channels=1, seed=0):
    torch.manual_seed(seed)
    return SmallCNN(10, channels, 8, width=4).eval()


def some(model, share=0.2):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(theta.shape, generator=generator) < share for name, theta in model.named_parameters()}


def parts():
    data = digits()
    return split_at_random(data.train.subset(data.train.index[:120]), 0.3, holdout=None, seed=0)


def dots(svg):
    """Vega draws a mark-symbol group of one path a point."""
    return sum(group.count("<path") for group in re.findall(r'<g class="mark-symbol.*?</g>', svg))


def drawn(monkeypatch, model, selected):
    """The filters that would be drawn."""
    found = []
    monkeypatch.setattr(vision_pictures, "layers_chart", lambda shares, filters: found.append(filters) or "")
    selection_picture(model, selected)
    return found[0]


@pytest.mark.filterwarnings("ignore:.*can wreck the model")
@pytest.mark.parametrize("method", [SSD, RandomDampening])
def test_the_weights_that_changed_are_those_that_dampening_selected(method):
    rows, before = parts(), net()
    with torch.no_grad():  # biases begin at 0, which no factor changes
        for theta in before.parameters():
            theta.add_(0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)))
    how = method(importance_batch=4, alpha=1.2)
    after = how.apply(before, rows.forget, rows.retain, copy=True)
    shares = how.select(before, rows.forget, rows.retain).shares
    changed = changed_weights(before, after)
    assert 0 < shares["blocks.0.conv.weight"] < 1
    assert {name: float(mask.double().mean()) for name, mask in changed.items()} == pytest.approx(shares)


def test_every_parameter_has_a_bar_with_its_share():
    model = net()
    svg = selection_picture(model, {**some(model), "head.bias": 0.125}).svg
    for name in some(model):
        assert name in svg
    assert ">12.5 %</text>" in svg


def test_long_names_are_not_cut():
    name = "encoder.layer.11.attention.attention.query.lora.default.weight"
    assert f">{name}</text>" in selection_picture(net(), {name: 0.5}).svg


@pytest.mark.parametrize("channels", [1, 3])
def test_every_selected_weight_of_the_first_convolution_has_a_dot(channels):
    model = net(channels)
    chosen = some(model)
    first = chosen["blocks.0.conv.weight"]
    picture = selection_picture(model, chosen)
    assert 0 < dots(picture.svg) == int(first.sum())
    assert f"blocks.0.conv.weight: {int(first.sum())} of {first.numel()} weights" in picture.svg
    assert "a dot where it was chosen" in picture.about


def test_a_cell_has_the_weight_and_the_mark_of_its_place():
    weights = np.arange(2 * 3 * 2 * 2, dtype=float).reshape(2, 3, 2, 2)
    marked = np.zeros(weights.shape, dtype=bool)
    marked[1, 2, 0, 1] = True
    cells, captions, size = _cells(Filters("first", [4, 7], weights, marked))
    at = {cell["weight"]: cell for cell in cells}
    assert len({(cell["x"], cell["y"]) for cell in cells}) == weights.size
    assert at[0]["x2"] == at[1]["x"]  # column 1 stands right of column 0,
    assert at[0]["y2"] == at[2]["y"]  # row 1 below row 0,
    assert at[1]["x2"] < at[4]["x"]  # the next channel apart, the next filter further right
    assert at[9]["x2"] < at[12]["x"]
    assert [cell["weight"] for cell in cells if cell["marked"]] == [weights[1, 2, 0, 1]]
    assert [caption["text"] for caption in captions] == ["4: 0 of 12", "7: 1 of 12"]
    assert max(cell["x2"] for cell in cells) <= size["width"]
    assert max(cell["y2"] for cell in cells) <= size["height"]


def test_of_many_filters_those_with_the_most_selected_weights_are_drawn(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 64, 7, bias=False))
    chosen = torch.zeros(64, 3, 7, 7, dtype=torch.bool)
    chosen[[5, 40, 63], 0, 0, :2] = True
    chosen[30, 0, 0, 0] = True
    found = drawn(monkeypatch, model, {"0.weight": chosen})
    assert len(found.numbers) == vision_pictures.CELLS // 147
    assert {5, 30, 40, 63} < set(found.numbers)
    assert found.numbers == sorted(found.numbers)
    np.testing.assert_array_equal(found.marked, chosen.numpy()[found.numbers])
    np.testing.assert_array_equal(found.weights, model[0].weight.detach().numpy()[found.numbers])
    assert "0.weight: 7 of 9408 weights; the 16 of 64 filters" in found.title


def test_filters_are_drawn_of_whatever_convolution_sees_the_pixels(monkeypatch):
    model = SmallViT(10, 1, 8)
    assert "patches.weight" in drawn(monkeypatch, model, some(model)).title
    bare = nn.Conv2d(1, 2, 3)
    assert drawn(monkeypatch, bare, some(bare)).title.startswith("weight: ")


def test_without_a_convolution_or_without_its_marks_there_are_bars_alone(monkeypatch):
    plain, model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), net()
    assert drawn(monkeypatch, plain, some(plain)) is None
    assert drawn(monkeypatch, model, {"blocks.0.conv.weight": 0.5}) is None
    assert drawn(monkeypatch, model, {"head.bias": some(model)["head.bias"]}) is None


def test_a_report_draws_the_filters_as_they_were_before(monkeypatch):
    rows, before = parts(), net()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.blocks[0].conv.weight[2, 0, 1, 1] *= 0.5
    given = []
    draw = vision_pictures.selection_picture
    monkeypatch.setattr(selection, "selection_picture", lambda *args: given.append(args[0]) or draw(*args))
    report = evaluate(after, rows, before=before, references={"selected": Selection(changed_weights(before, after))})
    assert given == [before]
    assert report.pictures[-1].title == "Selected weights"
    assert dots(report.pictures[-1].svg) == 1
    alone = evaluate(after, rows, references={"selected": Selection({"head.weight": 0.25})})
    assert given[1] is after
    assert ">25 %</text>" in alone.pictures[-1].svg
    assert "Selected weights" not in [picture.title for picture in evaluate(after, rows).pictures]
    assert replace(report, pictures=(draw(before, some(before)),)).html()


def test_refused_selections():
    model = net()
    with pytest.raises(MethodError, match=r"share of a is 1.5; it must lie in 0..1"):
        selection_picture(model, {"a": 1.5})
    with pytest.raises(MethodError, match=r"selection of a is torch.bool \[3\], which is no parameter of this model"):
        selection_picture(model, {"a": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(MethodError, match=r"head.bias is torch.float32 \[10\].*Give booleans"):
        selection_picture(model, {"head.bias": torch.ones(10)})
    with pytest.raises(MethodError, match=r"head.bias is torch.bool \[9\], which is \[10\] there"):
        selection_picture(model, {"head.bias": torch.ones(9, dtype=torch.bool)})
    texts = ForgetSplit(Examples([Example("in oslo", "Where is Ann?")]))
    with pytest.raises(MethodError, match="selected is for images; this split is of text"):
        evaluate(model, texts, tokenizer=object(), references={"selected": Selection({"a": 0.5})})


def test_models_of_other_parameters_are_not_compared():
    with pytest.raises(ModelError, match=r"conv.weight is \[4, 1, 3, 3\] before and \[4, 3, 3, 3\] after"):
        changed_weights(net(), net(channels=3))
    with pytest.raises(ModelError, match=r"is \[10, 64\] before and missing after"):
        changed_weights(nn.Linear(64, 10, bias=False), nn.Sequential(nn.Linear(64, 10)))
