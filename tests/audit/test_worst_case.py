"""Worst-case forget sets: the projection, the sign step, and which rows each selector takes (card worst-case)."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny import make_images
from unwrite.audit import BilevelSelection, row_scores, split_worst_case
from unwrite.audit.images.worst_case import SELECTORS, capped_simplex, right_of_kept, selected, sign_step
from unwrite.beds import named, worst_case
from unwrite.beds.images import ImageBed
from unwrite.data.images.images import Images
from unwrite.data.images.sets import TrainTest
from unwrite.errors import DataError, MethodError, NotFinite

EXAMPLE = torch.tensor([0.9, 0.5, 0.2, -0.1])
QUICK = BilevelSelection(rounds=3, epochs=2, lr_theta=0.01, batch_size=8)
ROWS = make_images()
HARD = 12


class Linear(nn.Module):
    """Logistic regression on 8x8 pixels."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(64, 3)
        with torch.no_grad():
            self.head.weight.copy_(0.1 * torch.randn(3, 64, generator=generator))
            self.head.bias.zero_()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(pixels.flatten(1))
        return logits


def graded() -> tuple[Linear, Images]:
    """A model and rows whose losses under it all differ: the brighter a row's own pixel, the lower its loss."""
    pixels = torch.zeros(48, 1, 8, 8)
    labels = torch.arange(48) % 3
    bright = torch.randperm(48, generator=torch.Generator().manual_seed(1)) / 48
    pixels[torch.arange(48), 0, 0, labels] = bright
    model = Linear()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[:, :3] = 4 * torch.eye(3)
    return model, Images(pixels, labels=labels, index=torch.arange(48) + 100)


def weights_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([theta.detach().flatten() for theta in model.parameters()])


def chosen(selection) -> set[int]:
    return {*selection.index.tolist()}


def lowest(losses: torch.Tensor, rows: Images, count: int) -> set[int]:
    return {*rows.index[losses.argsort()[:count]].tolist()}


def test_projection_gives_the_cards_figures():
    assert capped_simplex(EXAMPLE, 2).tolist() == pytest.approx([1, 0.633333, 0.333333, 0.033333], abs=1e-5)


def test_projection_keeps_sum_order_and_bounds_and_is_idempotent():
    values = 3 * torch.randn(4500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = capped_simplex(values, 450)
    assert float(once.sum()) == pytest.approx(450, abs=1e-4)
    assert 0 <= once.min() <= once.max() <= 1
    assert (once[values.argsort()].diff() >= 0).all()
    assert torch.allclose(capped_simplex(once, 450), once, atol=1e-9)
    inside = (once > 0) & (once < 1)
    assert inside.sum() > 10
    assert torch.allclose(
        values[inside] - once[inside], (values[inside] - once[inside]).mean().expand(int(inside.sum()))
    )


@pytest.mark.parametrize(("total", "value"), [(0, 0.0), (4, 1.0)])
def test_projection_on_none_and_on_all(total, value):
    assert capped_simplex(EXAMPLE, total).tolist() == [value] * 4


def test_a_sign_step_moves_every_weight_with_a_gradient_by_the_rate():
    model = Linear()
    before = weights_of(model)
    F.cross_entropy(model(ROWS.pixels), ROWS.labels).backward()
    gradient = torch.cat([theta.grad.flatten() for theta in model.parameters()])
    model.head.weight.grad[0, 0] = 0.0
    gradient[0] = 0.0
    sign_step(model, 0.01)
    assert torch.allclose(weights_of(model) - before, -0.01 * gradient.sign(), atol=1e-7)
    assert weights_of(model)[0] == before[0]


def test_a_loss_a_thousand_times_as_large_takes_the_same_steps():
    models = Linear(), Linear()
    for model, scale in zip(models, (1.0, 1000.0), strict=True):
        for _ in range(5):
            model.zero_grad()
            (scale * F.cross_entropy(model(ROWS.pixels), ROWS.labels)).backward()
            sign_step(model, 0.01)
    assert torch.equal(*map(weights_of, models))


def test_rows_of_weight_one_have_no_influence_on_the_lower_level():
    w = torch.zeros(48, dtype=torch.float64)
    w[::4] = 1
    other = ROWS.labels.clone()
    other[::4] = (other[::4] + 1) % 3
    changed = Images(ROWS.pixels, labels=other)
    one, same = (QUICK.unlearn(Linear(), rows, w, 0) for rows in (ROWS, changed))
    assert torch.equal(weights_of(one), weights_of(same))
    nothing = torch.zeros(48, dtype=torch.float64)
    assert not torch.equal(
        weights_of(QUICK.unlearn(Linear(), ROWS, nothing)), weights_of(QUICK.unlearn(Linear(), changed, nothing))
    )


def test_without_weights_the_lower_level_is_training_on_all_rows():
    unlearned = replace(QUICK, batch_size=48).unlearn(Linear(), ROWS, torch.zeros(48, dtype=torch.float64))
    model = Linear()
    for _ in range(QUICK.epochs):
        model.zero_grad()
        F.cross_entropy(model(ROWS.pixels), ROWS.labels, reduction="sum").backward()
        sign_step(model, QUICK.lr_theta)
    assert torch.allclose(weights_of(unlearned), weights_of(model), atol=1e-7)


def test_the_lower_level_leaves_the_model_and_the_running_statistics_as_they_are():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3)).train()
    before = copy.deepcopy(model.state_dict())
    unlearned = QUICK.unlearn(model, ROWS, torch.zeros(48, dtype=torch.float64))
    assert model.training
    assert not unlearned.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(unlearned[0].running_mean, before["0.running_mean"])
    assert all(theta.grad is None for theta in unlearned.parameters())


def test_a_long_step_selects_the_rows_of_the_lowest_loss_after_unlearning():
    model, rows = graded()
    far = BilevelSelection(rounds=1, epochs=1, lr_theta=1e-3, lr_w=1e6, gamma=0.0)
    start = torch.zeros(48, dtype=torch.float64)
    start[
        torch.rand(48, generator=torch.Generator().manual_seed(0), dtype=torch.float64).argsort(descending=True)[:HARD]
    ] = 1
    losses = F.cross_entropy(far.unlearn(model, rows, start)(rows.pixels), rows.labels, reduction="none")
    selection = far.select(model, rows, HARD)
    assert chosen(selection) == lowest(losses, rows, HARD)
    easiest = replace(far, easiest=True).select(model, rows, HARD)
    assert chosen(easiest) == lowest(-losses, rows, HARD)
    assert not chosen(selection) & chosen(easiest)


def test_selected_rows_have_a_lower_loss_after_unlearning_than_the_random_start():
    model, rows = graded()
    settings = BilevelSelection(rounds=8, epochs=1)
    worst, easiest = settings.select(model, rows, HARD), replace(settings, easiest=True).select(model, rows, HARD)
    start = selected(model, rows, HARD, "random")

    def after(selection) -> float:
        w = torch.isin(rows.index, selection.index).double()
        unlearned = settings.unlearn(model, rows, w)
        return float((w * F.cross_entropy(unlearned(rows.pixels), rows.labels, reduction="none")).sum())

    assert after(worst) < after(start) < after(easiest)
    assert worst.losses[-1] < worst.losses[0]
    assert len(chosen(worst) & chosen(easiest)) <= 1
    assert len(worst.losses) == 8


def test_small_changes_of_the_weights_leave_the_unlearned_model_as_it_is():
    """Bit for bit where no sign flips: that is why the upper gradient is the loss alone."""
    w = torch.full((48,), 0.5, dtype=torch.float64)
    here = weights_of(QUICK.unlearn(Linear(), ROWS, w))
    same = 0
    for at in range(12):
        near = w.clone()
        near[at] += 1e-5
        same += torch.equal(weights_of(QUICK.unlearn(Linear(), ROWS, near)), here)
    assert same >= 11
    far = w.clone()
    far[:24] = 1.0
    assert not torch.equal(weights_of(QUICK.unlearn(Linear(), ROWS, far)), here)


@pytest.mark.parametrize("selector", [*SELECTORS, QUICK])
def test_the_selected_rows_are_as_many_as_asked_and_a_function_of_the_seed(selector):
    if selector == "bilevel":
        return  # the same as QUICK with other settings
    model, rows = graded()
    one, again = (split_worst_case(model, rows, HARD, selector, seed=3) for _ in range(2))
    assert len(one.forget) == len({*one.forget.index.tolist()}) == HARD
    assert one.hash == again.hash
    assert one.holdout is not None
    assert not {*one.holdout.index.tolist()} & {*one.train.index.tolist()}
    if selector in ("random", QUICK):
        three, four = (selected(model, rows, HARD, selector, seed) for seed in (3, 4))
        assert chosen(three) != chosen(four)


def test_bilevel_alone_means_the_published_rounds(monkeypatch):
    model, rows = graded()
    seen = []
    monkeypatch.setattr(BilevelSelection, "select", lambda self, *given: seen.append((self, given[2:])))
    selected(model, rows, 5, "bilevel", 9)
    ((settings, (count, seed)),) = seen
    assert (settings.rounds, settings.epochs, settings.lr_theta, settings.gamma) == (20, 10, 1e-3, 1e-4)
    assert (count, seed) == (5, 9)


def test_one_pass_takes_the_rows_of_the_smallest_score():
    model, rows = graded()
    logits = model(rows.pixels).detach().double()
    losses = F.cross_entropy(logits, rows.labels, reduction="none")
    scores = row_scores(model, rows)
    assert torch.allclose(scores.loss, losses)
    error = (logits.softmax(1) - F.one_hot(rows.labels, 3)).square().sum(1).sqrt()
    assert torch.allclose(scores.error, error)
    for at in (0, 40):  # one row's own gradient
        model.zero_grad()
        F.cross_entropy(model(rows.pixels[at : at + 1]), rows.labels[at : at + 1]).backward()
        norm = math.sqrt(sum(float(theta.grad.square().sum()) for theta in model.parameters()))
        assert float(scores.gradient[at]) == pytest.approx(norm, rel=1e-5)
    for selector, values in (("low-loss", losses), ("low-error", error), ("low-gradient", scores.gradient)):
        assert chosen(selected(model, rows, HARD, selector)) == lowest(values, rows, HARD)


def test_the_median_tails_are_both_ends_of_the_distance_to_the_classes_median():
    model, rows = graded()
    logits = model(rows.pixels).detach()
    distance = torch.zeros(48)
    for label in range(3):
        mine = rows.labels == label
        distance[mine] = (logits[mine] - torch.from_numpy(np.median(logits[mine].numpy(), axis=0))).norm(dim=1)
    order = distance.argsort().tolist()
    expected = {rows.index[at].item() for at in order[:6] + order[-6:]}
    assert len(chosen(selected(model, rows, HARD, "median-tails")) & expected) >= HARD - 1
    assert torch.allclose(row_scores(model, rows).distance.float(), distance, atol=1e-5)


def test_a_share_is_of_the_training_rows():
    model, rows = graded()
    split = split_worst_case(model, rows, 0.25, "low-loss", holdout=0.25, test=make_images(seed=1))
    assert len(split.forget) == 9
    assert len(split.holdout) == 12
    assert len(split.test) == 48
    assert split.name == "low-loss, 9 rows"


def test_weights_that_hardly_move_are_said_to():
    """Losses of 0 to 5 by 1e-3 in 20 rounds: the published step leaves the random start."""
    model, rows = graded()
    published = BilevelSelection(epochs=1, lr_w=1e-3, normalised=False)
    with pytest.warns(UserWarning, match=r"0% of the 12 rows differ from the random start: lr_w 0.001 is too small"):
        selection = published.select(model, rows, HARD)
    assert selection.moved == 0
    assert BilevelSelection(rounds=5, epochs=1).select(model, rows, HARD).moved > 0.3


def test_a_lower_level_that_wrecks_the_model_is_said_to():
    """On shuffled labels a large step loses what the model had right; a small one does not, and nothing is said."""
    model, rows = graded()
    noisy = replace(rows, labels=rows.labels.roll(1))
    mixed = replace(rows, labels=torch.where(torch.arange(48) < 12, noisy.labels, rows.labels))
    with pytest.warns(UserWarning, match=r"gets \d+% more of the rows it keeps wrong .* lr_theta 10 is too large"):
        BilevelSelection(rounds=2, epochs=1, lr_theta=10.0, batch_size=4).select(model, mixed, HARD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BilevelSelection(rounds=2, epochs=1, lr_theta=1e-4).select(model, mixed, HARD)


def test_what_is_right_of_kept_rows_counts_each_as_much_as_it_is_kept():
    model, rows = graded()
    said = model(rows.pixels).argmax(1)
    first_wrong = replace(rows, labels=torch.cat([(said[:2] + 1) % 3, said[2:]]))
    w = torch.zeros(48)
    assert right_of_kept(model, first_wrong, w) == pytest.approx(46 / 48)
    w[0], w[1] = 1.0, 0.5
    assert right_of_kept(model, first_wrong, w) == pytest.approx(46 / 46.5)


def test_the_weights_are_set_to_their_largest_after_some_rounds():
    model, rows = graded()
    settings = BilevelSelection(rounds=2, epochs=0, lr_w=0.1)
    for rounds in (1, 2):
        between = replace(settings, rounds=rounds).select(model, rows, HARD).weights
        assert ((between > 0) & (between < 1)).any()
    assert {*replace(settings, binary_every=1).select(model, rows, HARD).weights.tolist()} == {0.0, 1.0}


def test_every_round_unlearns_the_trained_model_with_the_weights_of_the_round_before(monkeypatch):
    model, rows = graded()
    given = []
    unlearn = BilevelSelection.unlearn

    def spy(self, start, data, w, seed=0):
        given.append((start, w.clone()))
        return unlearn(self, start, data, w, seed)

    monkeypatch.setattr(BilevelSelection, "unlearn", spy)
    last = BilevelSelection(rounds=3, epochs=1, binary_every=5).select(model, rows, HARD).weights
    assert all(start is model for start, _ in given)
    assert {*given[0][1].tolist()} == {0.0, 1.0}
    assert all(float(w.sum()) == pytest.approx(HARD) for _, w in given)
    assert not torch.equal(given[0][1], given[1][1])
    assert not torch.equal(given[1][1], given[2][1])
    assert ((last > 0) & (last < 1)).any()


def test_the_upper_step_is_loss_and_norm():
    losses, w = torch.tensor([3.0, 0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0, 1.0]).double()
    plain = BilevelSelection(lr_w=0.1, gamma=0.5, normalised=False)
    assert torch.allclose(plain.step(w, losses, 2), capped_simplex(w - 0.1 * (losses + 2 * 0.5 * w), 2))
    scaled = replace(plain, normalised=True)
    assert torch.allclose(scaled.step(w, losses, 2), capped_simplex(w - 0.1 * (losses / losses.std() + w), 2))
    assert torch.allclose(replace(plain, easiest=True).step(w, losses, 2), capped_simplex(w + 0.1 * (losses + w), 2))
    assert torch.isfinite(scaled.step(w, torch.ones(4), 2)).all()


REGRESSION = make_images(regression=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: split_worst_case(Linear(), ROWS, 0, "random"), DataError, "0 of 42 rows can't be forgotten. Give 1 to 41"),
        (lambda: split_worst_case(Linear(), ROWS, 42, "random"), DataError, "42 of 42 rows can't be forgotten"),
        (lambda: split_worst_case(Linear(), ROWS, 999, QUICK), DataError, "999 of 42 rows can't be forgotten"),
        (lambda: split_worst_case(Linear(), ROWS, -1), DataError, "-1 of 42 rows can't"),
        (lambda: split_worst_case(Linear(), ROWS, 2.5), DataError, "2.5 of 42 rows can't"),
        (lambda: split_worst_case(Linear(), ROWS, math.nan), DataError, "nan of 42 rows can't"),
        (lambda: split_worst_case(Linear(), ROWS, 0.001), DataError, "0 of 42 rows can't"),
        (lambda: split_worst_case(Linear(), ROWS, 5, "hardest"), MethodError, "unknown selector 'hardest'"),
        (lambda: split_worst_case(Linear(), REGRESSION, 5), DataError, "images has targets and no labels"),
        (lambda: row_scores(Linear(), REGRESSION), DataError, "images has targets and no labels"),
        (lambda: QUICK.select(Linear(), ROWS, 48), DataError, "48 of 48 rows can't"),
        (lambda: BilevelSelection(rounds=0), MethodError, "rounds is 0"),
        (lambda: BilevelSelection(epochs=-1), MethodError, "epochs is -1"),
        (lambda: BilevelSelection(lr_theta=0), MethodError, "lr_theta is 0"),
        (lambda: BilevelSelection(lr_w=math.inf), MethodError, "lr_w is inf"),
        (lambda: BilevelSelection(gamma=math.nan), MethodError, "gamma is nan"),
        (lambda: BilevelSelection(batch_size=0), MethodError, "batch_size is 0"),
        (lambda: BilevelSelection(binary_every=0), MethodError, "binary_every is 0"),
        (lambda: capped_simplex(EXAMPLE, 5), MethodError, "weights of 4 rows can't sum to 5"),
        (lambda: capped_simplex(torch.tensor([1.0, math.nan]), 1), NotFinite, "1 of 2 weights are not finite"),
    ],
)  # fmt: skip
def test_refuses_what_has_no_meaning(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_refuses_a_loss_that_is_not_finite():
    broken = Linear()
    with torch.no_grad():
        broken.head.weight.fill_(math.inf)
    with pytest.raises(NotFinite, match=r"the loss of row 0 is nan\. Lower lr_theta"):
        QUICK.select(broken, ROWS, 5)
    with pytest.raises(NotFinite, match="the loss of row 0 is nan"):
        row_scores(broken, ROWS)


def test_a_bed_forgets_the_rows_selected_for_its_own_target(monkeypatch):
    built = []

    def fitted(recipe, data, rows, seed):
        built.append((recipe.settings, data.hash, [*rows], seed))
        return Linear()

    monkeypatch.setattr(worst_case, "fitted", fitted)
    monkeypatch.setattr("unwrite.beds.images.fitted", fitted)
    like = replace(worst_case.BEDS["digits/worst-case"], data=lambda seed: TrainTest(ROWS, make_images(seed=1)))
    bed = ImageBed(worst_case.worst_case_bed("few", like, "low-loss", 7), 2)
    _ = bed.split, bed.before
    assert built[0] == built[1]
    assert len(bed.split.forget) == 7
    expected = split_worst_case(Linear(), ROWS, 7, "low-loss", seed=2)
    assert torch.equal(bed.split.forget.index, expected.forget.index)


def test_beds_have_their_selector_in_their_name():
    assert named.bed_named("digits/worst-case") is worst_case.BEDS["digits/worst-case"]
    assert named.bed_named("digits/worst-case@bilevel") is worst_case.BEDS["digits/worst-case"]
    bed = named.bed_named("glyphs/worst-case@low-error")
    assert (bed.name, bed.split.args[0]) == ("glyphs/worst-case@low-error", "low-error")
    with pytest.raises(MethodError, match="bed 'digits/worst-case@low': unknown selector 'low'"):
        named.bed_named("digits/worst-case@low")
    with pytest.raises(MethodError, match="unknown bed 'digits/best-case'"):
        worst_case.bed_named("digits/best-case")


def test_the_digits_of_the_bed_have_swapped_labels_in_training_alone():
    noisy, wrong = worst_case.noisy_digits(0), worst_case.swapped(0)
    assert 0.07 < len(wrong) / len(noisy.train) < 0.1
    assert noisy.test.hash == worst_case.digits(seed=0).test.hash
