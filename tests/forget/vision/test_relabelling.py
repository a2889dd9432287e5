"""Random labels: who draws what, when, and from which classes."""

import dataclasses

import pytest
import torch
from trained_toys import accuracy, net, nll, same, split, targets, unlearn, work_of

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.images.random_labels import any_labels, wrong_labels
from unwrite.forget.vision.relabelling import Amnesiac, RandomLabel


@pytest.fixture(scope="module")
def many():
    """4000 rows of five classes; a fifth of each is a binomial whose deviation is 0.6 %."""
    return Images(torch.zeros(4000, 1, 1, 1), labels=torch.arange(4000) % 5, classes=tuple("vwxyz"))


def shares(labels, classes=5):
    return torch.bincount(labels, minlength=classes) / len(labels)


def test_labels_are_drawn_from_all_classes_alike_the_true_one_among_them(many):
    drawn = any_labels(many, 0, 0).labels
    torch.testing.assert_close(shares(drawn), torch.full((5,), 0.2), rtol=0, atol=0.025)
    assert (drawn == many.labels).float().mean().item() == pytest.approx(0.2, abs=0.025)


def test_a_wrong_label_is_never_the_own_and_all_others_alike(many):
    drawn = wrong_labels(many, 0).labels
    assert not (drawn == many.labels).any()
    others = shares(drawn[many.labels == 2])
    torch.testing.assert_close(others, torch.tensor([0.25, 0.25, 0, 0.25, 0.25]), rtol=0, atol=0.06)


def test_a_draw_is_a_function_of_seed_epoch_and_row_alone(many):
    some = many.subset([7, 3, 100])
    whole, part = any_labels(many, 1, 2), any_labels(some, 1, 2)
    assert part.labels.tolist() == whole.labels[[7, 3, 100]].tolist()
    assert not torch.equal(whole.labels, any_labels(many, 1, 3).labels)
    assert not torch.equal(whole.labels, any_labels(many, 2, 2).labels)
    torch.manual_seed(99)
    assert torch.equal(whole.labels, any_labels(many, 1, 2).labels)


def test_rows_with_negative_names_have_labels_too():
    rows = Images(torch.zeros(2, 1, 1, 1), labels=[0, 1], index=[-1, -(2**62)])
    assert wrong_labels(rows, 0).labels.tolist() == [1, 0]


def test_all_forget_rows_come_before_all_retain_rows_in_every_epoch():
    phases = RandomLabel().phases(work_of(RandomLabel(), num_train_epochs=3))
    assert [phase.stream for phase in phases] == ["forget", "retain"] * 3
    assert all(phase.retain is None for phase in phases)  # the retain set as it is


def test_both_kinds_come_in_one_order_where_shuffled():
    method = RandomLabel(order="shuffled")
    assert [phase.stream for phase in method.phases(work_of(method, num_train_epochs=2))] == ["union"] * 2


@pytest.mark.parametrize("order", ["forget first", "shuffled"])
def test_labels_are_redrawn_every_epoch(order):
    method = RandomLabel(order=order)
    drawn = [phase.forget.labels for phase in method.phases(work_of(method, num_train_epochs=3)) if phase.forget]
    assert len(drawn) == 3
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_amnesiac_labels_are_drawn_once():
    (phase,) = Amnesiac().phases(work_of(Amnesiac()))
    assert phase.stream == "union"
    assert phase.epochs is None
    assert not (phase.forget.labels == split().forget.labels).any()


def test_the_training_is_a_function_of_the_seed():
    args = {"num_train_epochs": 1, "learning_rate": 0.01}
    for method in (RandomLabel(), RandomLabel(order="shuffled"), Amnesiac()):
        first = unlearn(method, args=args)
        torch.rand(3)
        assert same(first, unlearn(method, args=args))
        assert not same(first, unlearn(method, args={**args, "seed": 1}))


def test_half_an_epoch_is_half_the_forget_rows_and_half_the_retain_rows():
    phases = RandomLabel().phases(work_of(RandomLabel(), num_train_epochs=1.5))
    assert [phase.epochs for phase in phases] == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "args"),
    [
        (RandomLabel(), {"num_train_epochs": 4}),
        (RandomLabel(order="shuffled"), {"num_train_epochs": 4}),
        (Amnesiac(), {"learning_rate": 1e-2}),
    ],
)
def test_forgets_and_keeps_the_rest(method, args):
    model = unlearn(method, args=args)
    assert nll(model, split().forget) > 5 * nll(net(), split().forget)
    assert accuracy(model, split().retain) > 0.9


@pytest.mark.parametrize("method", [RandomLabel(), Amnesiac()])
def test_refuses_regression_targets_and_a_single_class(method):
    with pytest.raises(DataError, match=r"needs labels, and .* has regression targets"):
        method.apply(net(), targets(split().forget), targets(split().retain))
    alone = [
        dataclasses.replace(rows, labels=rows.labels * 0, classes=("all",)) for rows in (split().forget, split().retain)
    ]
    with pytest.raises(DataError, match="at least 2 classes"):
        method.apply(net(), *alone)


def test_refuses_an_unknown_order():
    with pytest.raises(MethodError, match="order is 'nonsense'; use 'forget first' or 'shuffled'"):
        RandomLabel(order="nonsense")
