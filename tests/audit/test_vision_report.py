"""The audit of an image model: one report of the model before, after and retrained, and of the head-only control."""

import copy
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from unwrite.audit import Report, evaluate
from unwrite.audit.images.context import ImageContext
from unwrite.audit.images.pictures import data_uri, layers_picture
from unwrite.audit.report.charts import trade_off
from unwrite.audit.report.page import _panels
from unwrite.data.images.images import Images
from unwrite.data.images.splits import split_by_class, split_by_target
from unwrite.errors import MethodError, ModelError
from unwrite.nets.small_vision import SmallCNN


def images(regression=False):
    """Three kinds of noise, told apart by where they are bright."""
    pixels = 0.4 * torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kind = torch.arange(90) % 3
    for row, which in enumerate(kind.tolist()):
        pixels[row, :, :, 2 * which : 2 * which + 3] += 0.5
    return Images(pixels, targets=pixels.mean((1, 2, 3))) if regression else Images(pixels, labels=kind)


def split(regression=False):
    data = images(regression)
    train, test = data.subset(range(60)), data.subset(range(60, 90))
    if regression:
        return split_by_target(train, high=float(train.targets.median()), test=test, holdout=None)
    return split_by_class(train, 1, test=test, holdout=None)


@lru_cache
def trained(kept_only=False, regression=False):
    torch.manual_seed(int(kept_only))
    net, parts = SmallCNN(1 if regression else 3, 1, 8, 4), split(regression)
    rows = parts.retain if kept_only else parts.train
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(25):
        out = net(rows.pixels)
        loss = (out[:, 0] - rows.target).abs().mean() if regression else nn.functional.cross_entropy(out, rows.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def head_only():
    control = copy.deepcopy(trained())
    with torch.no_grad():
        control.head.bias[1] = -1e4
    return control


def report(**changes):
    return measured(**changes) if changes else usual()


@lru_cache
def usual():
    """The report without changes, which no test alters."""
    return measured()


def measured(**changes):
    beside = {"control": head_only()} | ({"random": changes.pop("random")} if "random" in changes else {})
    given = {"before": copy.deepcopy(trained()), "oracle": trained(kept_only=True), "references": beside, **changes}
    return evaluate(given.pop("model", trained()), split(), **given)


def test_all_models_stand_side_by_side_with_the_control():
    assert report().roles == ["before", "after", "oracle", "head only"]


def test_an_untrained_model_is_compared_with_and_has_no_column():
    found = report(random=SmallCNN(3, 1, 8, 4))
    assert "random" not in found.roles
    assert 0 < found.value("zrf", "oracle") <= 1
    assert report().value("zrf") is None


def test_ua_and_accuracy_on_forget_rows_make_a_hundred():
    found = report()
    for role in found.roles:
        assert found.value("UA", role) + found.value("forget_accuracy", role) == 100


def test_the_oracle_has_no_distance_to_itself_and_the_model_before_one():
    found = report()
    assert found.value("avg_gap", "oracle") == 0
    assert found.value("avg_gap", "before") > 10


def test_the_head_only_control_passes_the_accuracies_and_is_seen_in_the_features():
    found = report()
    assert found.value("UA", "head only") == 100
    assert found.value("avg_gap", "head only") < found.value("avg_gap", "before")
    assert found.value("forget_cka", "head only") == pytest.approx(1)
    assert found.value("forget_cka", "oracle") < 0.999
    assert found.value("forget_knn", "head only") == found.value("forget_knn", "before")


def test_the_headline_says_that_only_the_head_forgot():
    alone = evaluate(head_only(), split(), before=trained(), oracle=trained(kept_only=True))
    assert "only the head forgot" in alone.summary.sure
    assert alone.summary.sure_mark == "bad"


def test_forgetting_is_judged_by_the_retrained_model_and_not_by_zero():
    same = evaluate(copy.deepcopy(trained(kept_only=True)), split(), before=trained(), oracle=trained(kept_only=True))
    assert same.summary.removed_mark == "good"
    assert report().summary.removed_mark == "bad"
    assert evaluate(trained(), split()).summary.removed_mark == "unknown"


def test_batch_size_changes_no_score():
    large, small = (ImageContext(trained(), split(), batch_size=size, cached=False) for size in (256, 7))
    for name in ("forget", "retain", "test"):
        np.testing.assert_allclose(large.logits(name), small.logits(name), atol=1e-5)
        np.testing.assert_allclose(large.features(name), small.features(name), atol=1e-5)


def test_features_are_what_goes_into_the_head():
    net = trained()
    context = ImageContext(net, split())
    seen = net.head(torch.tensor(context.features("forget"), dtype=torch.float32))
    np.testing.assert_allclose(seen.detach().numpy(), context.logits("forget"), atol=1e-5)


def test_the_audit_leaves_mode_and_weights_alone():
    net = copy.deepcopy(trained()).train()
    state = copy.deepcopy(net.state_dict())
    evaluate(net, split())
    assert net.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_a_report_comes_back_from_its_folder(tmp_path):
    found = report()
    found.save(tmp_path)
    assert Report.load(tmp_path).json() == found.json()


def test_the_page_shows_confusion_and_neighbours_and_runs_nothing(tmp_path):
    page = report().html()
    assert page.count("data:image/png;base64,") > 20
    assert "data:image/svg+xml;base64," in page
    assert "Nearest neighbours of forgotten rows" in page
    assert "head only" in page
    assert "<script" not in page


def test_names_of_points_that_lie_together_do_not_cover_each_other():
    """Models that forgot alike lie on one point of the trade-off; names are 13 pixels high."""
    twin = copy.deepcopy(trained(kept_only=True))
    svg = trade_off(evaluate(twin, split(), before=trained(), oracle=trained(kept_only=True)))
    found = re.findall(r"translate\(([\d.]+),([\d.]+)\)[^>]*>(before|after|oracle)<", svg)
    at = {name: (float(x), float(y)) for x, y, name in found}
    assert at["after"][0] == at["oracle"][0]
    assert at["oracle"][1] - at["after"][1] >= 13
    assert at["before"][1] < at["oracle"][1]


def test_only_figures_between_0_and_1_have_a_bar():
    bars = {
        row["label"]: [cell["bar"] for cell in row["cells"]] for panel in _panels(report()) for row in panel["rows"]
    }
    assert bars["UA"] == [None] * 4
    assert bars["forget cka"][0] == 100
    assert None not in bars["forget cka"]


def test_a_drawing_in_a_stored_report_cannot_run():
    hostile = layers_picture("x", "y", {"a": 0.5})
    found = evaluate(trained(), split())
    page = Report(
        **{**vars(found), "pictures": (type(hostile)("x", "y", "<svg onload='alert(1)'><script>1</script>"),)}
    ).html()
    assert "<script" not in page
    assert "onload" not in page


def test_a_png_holds_the_pixels():
    import base64
    import io

    from PIL import Image

    pixels = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).numpy()
    data = base64.b64decode(data_uri(pixels).split(",")[1])
    back = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(back, pixels, atol=1 / 255)


def test_regressors_have_their_own_suite():
    before, oracle = trained(regression=True), trained(kept_only=True, regression=True)
    found = evaluate(copy.deepcopy(before), split(True), before=before, oracle=oracle)
    assert found.suite == "vision-regression"
    assert found.value("wasserstein", "oracle") == 0
    assert found.value("wasserstein") > 0
    forget = split(True).forget
    error = (before(forget.pixels)[:, 0] - forget.target).abs().mean().item()
    assert found.value("forget_mae") == pytest.approx(error, rel=1e-4)
    assert "error" in found.summary.kept
    assert found.html()


def test_one_object_in_two_roles_is_refused():
    with pytest.raises(ModelError, match="before and after are one object"):
        evaluate(trained(), split(), before=trained())


def test_a_suite_for_texts_and_attacks_for_texts_are_refused():
    with pytest.raises(MethodError, match="'tofu' is for text; this split is of images"):
        evaluate(trained(), split(), suite="tofu")
    with pytest.raises(MethodError, match="the attack object is for no data"):
        evaluate(trained(), split(), attacks=[object()])


def test_a_text_audit_needs_its_tokenizer(forget, tiny_llama):
    from unwrite.data import ForgetSplit

    with pytest.raises(MethodError, match="needs a tokenizer"):
        evaluate(tiny_llama, ForgetSplit(forget))


def test_outputs_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="the after model has 7 outputs and the data 3"):
        evaluate(SmallCNN(7, 1, 8, 4), split())


def test_a_model_that_collapsed_has_its_other_figures():
    dead = copy.deepcopy(trained())
    with torch.no_grad():
        dead.blocks[-1].norm.weight.zero_()
        dead.blocks[-1].norm.bias.zero_()
    found = evaluate(dead, split(), before=trained()).columns["after"]
    assert found["forget_cka"].value is None
    assert "collapsed" in found["forget_cka"].note
    assert found["UA"].value is not None
