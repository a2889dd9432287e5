"""Manipulated training rows: what a trigger, a confusion and a swap change, and which of them are identified."""

import re
import warnings

import pytest
import torch

from helpers.tiny import make_images
from unwrite.data.images.images import Images
from unwrite.data.images.manipulation import InterclassConfusion, LabelSwap, Poisoning, split_identified, triggered
from unwrite.errors import DataError

ROWS = make_images()
TEST = make_images(seed=1)
CONFUSION = InterclassConfusion(classes=(0, 2), share=0.5)
MANIPULATIONS = [Poisoning(share=0.25, size=2), CONFUSION, LabelSwap(share=0.5)]
every_manipulation = pytest.mark.parametrize("manipulation", MANIPULATIONS, ids=lambda one: one.name)


def split(manipulation=MANIPULATIONS[0], gamma=0.5, **options):
    return split_identified(ROWS, manipulation, gamma, **{"holdout": None, "test": TEST, **options})


def indices(rows):
    return {*rows.index.tolist()}


def coloured(rows=20):
    """Pictures of three channels, 5x7 pixels, below 0.9."""
    pixels = 0.9 * torch.rand(rows, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    return Images(pixels, labels=torch.arange(rows) % 4)


@every_manipulation
@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.5, 1.0])
def test_the_identified_share_is_forgotten_and_the_rest_of_the_manipulated_rows_stays(manipulation, gamma):
    parts = split(manipulation, gamma)
    manipulated = indices(parts.evaluation["manipulated"])
    assert len(parts.forget) == round(gamma * len(manipulated))
    assert indices(parts.forget) <= manipulated
    assert indices(parts.forget) | indices(parts.retain) == indices(ROWS)
    assert manipulated - indices(parts.forget) <= indices(parts.retain)
    assert indices(parts.evaluation["identified"]) == indices(parts.forget)


def test_at_gamma_one_what_is_kept_is_clean():
    parts = split(gamma=1.0)
    clean = ROWS.subset(parts.retain.index)
    assert torch.equal(parts.retain.pixels, clean.pixels)
    assert torch.equal(parts.retain.labels, clean.labels)


@every_manipulation
def test_the_training_set_is_the_same_at_every_gamma_and_what_is_identified_only_grows(manipulation):
    few, many = split(manipulation, 0.3), split(manipulation, 0.8)
    assert few.train.hash == many.train.hash
    assert indices(few.forget) < indices(many.forget)


@every_manipulation
def test_the_split_is_a_function_of_the_seed_and_the_holdout_stays_clean(manipulation):
    one, again, other = (split(manipulation, holdout=0.2, seed=seed) for seed in (4, 4, 5))
    assert one.hash == again.hash
    assert indices(one.evaluation["manipulated"]) != indices(other.evaluation["manipulated"])
    alone = [indices(split(manipulation, holdout=None, seed=seed).evaluation["manipulated"]) for seed in (4, 5)]
    assert alone[0] != alone[1]
    assert one.holdout.hash == ROWS.subset(one.holdout.index).hash
    assert not indices(one.holdout) & indices(one.train)


@every_manipulation
def test_rows_that_are_not_drawn_stay_as_they_are(manipulation):
    parts = split(manipulation)
    others = [index for index in ROWS.index.tolist() if index not in indices(parts.evaluation["manipulated"])]
    assert parts.train.subset(others).hash == ROWS.subset(others).hash


@every_manipulation
def test_what_is_measured_on_has_its_true_labels(manipulation):
    parts = split(manipulation)
    for name, rows in parts.evaluation.items():
        source = TEST if name.startswith(("corrected", "clean")) else ROWS
        assert torch.equal(rows.labels, source.subset(rows.index).labels)
    assert parts.test is TEST


def test_the_manipulated_rows_are_measured_as_they_look_in_training():
    parts = split()
    shown = parts.evaluation["manipulated"]
    assert torch.equal(shown.pixels, parts.train.subset(shown.index).pixels)
    assert not torch.equal(shown.labels, parts.train.subset(shown.index).labels)


def test_the_order_of_the_rows_stays():
    turned = ROWS.subset(ROWS.index.flip(0))
    manipulation = MANIPULATIONS[0]
    assert torch.equal(manipulation.applied(turned, manipulation.draw(turned, 0), 0).index, turned.index)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_trigger_changes_the_last_pixels_of_every_channel_and_nothing_else(size):
    rows = coloured()
    marked = triggered(rows, size, 0.95)
    changed = rows.pixels != marked.pixels
    assert changed.flatten(1).sum(1).tolist() == [size * size * 3] * len(rows)
    assert changed[:, :, -size:, -size:].all()
    assert (marked.pixels[:, :, -size:, -size:] == torch.tensor(0.95)).all()
    assert (rows.pixels < 0.9).all()


def test_a_trigger_set_after_a_flip_or_a_shift_stands_where_it_did():
    """Augmentation comes before it: what training reads has the patch in the corner, whole."""
    rows = coloured()
    moved = [rows.pixels.flip(-1), rows.pixels.roll(1, -1)]
    corners = [triggered(Images(pixels, labels=rows.labels), 3, 1.0).pixels[:, :, -3:, -3:] for pixels in moved]
    assert all((corner == 1).all() for corner in corners)
    poisoned = split(Poisoning(share=0.25, size=3), 1.0, test=None).forget
    batch = poisoned[[0, 1, 2]]
    assert (batch.pixels[:, :, -3:, -3:] == ROWS.pixels.max()).all()
    assert (batch.target == 0).all()


def test_poisoned_rows_are_of_any_class_and_all_get_the_label():
    manipulation = Poisoning(share=0.5, size=2, label="2", value=1.0)
    chosen = manipulation.draw(ROWS, 0)
    assert len(chosen) == round(0.5 * len(ROWS))
    assert ROWS.subset(chosen).labels.unique().tolist() == [0, 1, 2]
    assert (manipulation.applied(ROWS, chosen, 0).subset(chosen).labels == 2).all()


def test_the_patch_of_the_test_rows_is_that_of_the_training_rows():
    dark = Images(0.5 * ROWS.pixels, labels=ROWS.labels)
    parts = split_identified(dark, Poisoning(share=0.25, size=2), 0.5, test=TEST, holdout=None)
    assert (parts.evaluation["corrected"].pixels[:, :, -2:, -2:] == dark.pixels.max()).all()
    assert torch.equal(parts.evaluation["clean"].pixels, TEST.pixels)


def test_rows_of_the_triggers_class_are_left_out_of_a_set_of_their_own():
    parts = split(Poisoning(share=0.25, size=2, label=1))
    others = parts.evaluation["corrected others"]
    assert indices(others) == indices(TEST.where(TEST.labels != 1))
    assert torch.equal(others.pixels, parts.evaluation["corrected"].subset(others.index).pixels)


def test_a_confusion_takes_as_many_of_each_class_and_changes_two_labels_only():
    uneven = ROWS.where(torch.tensor([not (label == 2 and at > 30) for at, label in enumerate(ROWS.labels.tolist())]))
    chosen = CONFUSION.draw(uneven, 0)
    before = uneven.subset(chosen).labels
    after = CONFUSION.applied(uneven, chosen, 0).subset(chosen).labels
    smaller = min((uneven.labels == 0).sum(), (uneven.labels == 2).sum())
    assert (before == 0).sum() == (before == 2).sum() == round(0.5 * int(smaller))
    assert torch.equal(after, 2 - before)
    assert torch.equal(CONFUSION.applied(uneven, chosen, 0).labels.bincount(), uneven.labels.bincount())


def test_a_confusion_twice_restores_the_labels():
    chosen = CONFUSION.draw(ROWS, 0)
    once = CONFUSION.applied(ROWS, chosen, 0)
    assert once.hash != ROWS.hash == CONFUSION.applied(once, chosen, 0).hash


def test_a_confusion_is_measured_on_its_classes_and_on_the_others():
    sets = CONFUSION.measured(TEST)
    assert indices(sets["corrected"]) == indices(TEST.where(TEST.labels != 1))
    assert indices(sets["clean"]) == indices(TEST.where(TEST.labels == 1))


def test_a_swap_keeps_how_many_rows_a_label_has():
    swap = LabelSwap(share=0.5)
    chosen = swap.draw(ROWS, 0)
    swapped = swap.applied(ROWS, chosen, 0)
    assert len(chosen) == len(ROWS) // 2
    assert torch.equal(swapped.subset(chosen).labels.bincount(), ROWS.subset(chosen).labels.bincount())
    assert (swapped.labels != ROWS.labels).sum() > len(chosen) // 3
    assert torch.equal(swapped.pixels, ROWS.pixels)


@pytest.mark.parametrize("gamma", [0, -0.1, 1.1, float("nan"), float("inf")])
def test_refuses_a_gamma_outside_its_range(gamma):
    with pytest.raises(DataError, match=f"gamma is {re.escape(str(gamma))}: the identified share"):
        split(gamma=gamma)


ONE_CLASS = Images(ROWS.pixels, labels=torch.ones(48, dtype=torch.long))
REGRESSION = make_images(regression=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisoning(share=0), "a share of 0 can't be manipulated"),
        (lambda: LabelSwap(share=1.5), "a share of 1.5 can't be manipulated"),
        (lambda: Poisoning(share=float("nan")), "a share of nan can't be"),
        (lambda: Poisoning(size=0), "a patch of 0 pixels is none"),
        (lambda: Poisoning(size=2.0), "a patch of 2.0 pixels is none"),
        (lambda: Poisoning(value=1.5), "a patch's pixels can't be 1.5"),
        (lambda: split(Poisoning(share=0.2, size=9)), "a patch of 9x9 is larger than the 8x8 pictures of images"),
        (lambda: triggered(coloured(), 6, 1.0), "a patch of 6x6 is larger than the 5x7 pictures"),
        (lambda: split(Poisoning(share=0.2, size=2, label="9")), "unknown class '9'"),
        (lambda: split(Poisoning(share=0.2, size=2), 0.01), "gamma 0.01 of 10 manipulated rows identifies none"),
        (lambda: split(Poisoning(share=0.001, size=2)), "a share of 0.001 of the 48 rows of images is none"),
        (lambda: split(InterclassConfusion(classes=(0, 1), share=0.01)), "0.01 of the 16 rows of class 0 is none"),
        (lambda: split(Poisoning(share=1.0, size=2), 1.0), "all 48 rows of images are manipulated and identified"),
        (lambda: split(InterclassConfusion(classes=(1, 1))), r"classes \(1, 1\) can't be confused"),
        (lambda: split(InterclassConfusion(classes=(0, 1, 2))), r"classes \(0, 1, 2\) can't be confused"),
        (lambda: split(InterclassConfusion(classes=(0, 7))), "unknown class '7'"),
        (lambda: CONFUSION.relabelled(ROWS, 0), "16 rows are of neither class"),
        (lambda: split_identified(ONE_CLASS, LabelSwap(), 0.5), "all 43 rows of images are of class 1"),
        (lambda: split_identified(ONE_CLASS, Poisoning(size=2), 0.5), "all 43 rows of images are of class 1"),
        (lambda: split_identified(REGRESSION, Poisoning(size=2), 0.5), "images has targets and no labels"),
        (lambda: split_identified(REGRESSION, CONFUSION, 0.5), "images has targets and no labels"),
    ],
)  # fmt: skip
def test_refuses_what_has_no_meaning(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_warns_of_a_patch_that_clean_pictures_may_have_too():
    with pytest.warns(UserWarning, match=r"a patch of 0.5 lies within the pixels of images, which reach 0\.99"):
        split(Poisoning(share=0.25, size=2, value=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(Poisoning(share=0.25, size=2, value=1.0))
