"""SCRUB: the distance and its scale, the order of passes and rates, and rewinding."""

import copy
import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from trained_toys import CLASSES, Log, accuracy, net, nll, same, split, state, targets, unlearn, work_of
from transformers import TrainerCallback

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.images.batch import ImagePart
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.forget.vision.scrub import SCRUB, _error, _like, distillation, rewind_point

STRONG = {"learning_rate": 0.02, "num_train_epochs": 3}
MAX_ONLY = {"learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0, "num_train_epochs": 1, "max_steps": 1}


class States(TrainerCallback):
    """The weights after every pass."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, args, state_, control, model=None, **_):
        self.states.append(state(model))


def test_the_distance_has_its_closed_form():
    found = distillation(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), 1.0)
    assert found.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    assert found.item() == pytest.approx(0.13081, abs=5e-6)


def test_the_distance_of_logits_times_t_is_t_squared_times_theirs():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4).unbind()
    torch.testing.assert_close(distillation(4 * student, 4 * teacher, 4.0), 16 * distillation(student, teacher, 1.0))


def test_without_max_steps_and_distance_it_is_fine_tuning_bit_for_bit():
    method = SCRUB(msteps=0, gamma=1.0, alpha=0.0, decay=())
    args = {**STRONG, "per_device_train_batch_size": 8}
    assert same(unlearn(method, args=args), unlearn(FineTune(), args=args))


def test_the_first_max_step_has_no_gradient_in_evaluation_mode():
    """Student and teacher are equal, so what begins the forgetting is batch statistics, dropout or a MIN step."""
    log, model = Log(), net()
    unlearn(SCRUB(forget_batch=500), model, args={**MAX_ONLY, "mode": "eval"}, callbacks=[log])
    assert log.lines[0]["kd"] == pytest.approx(0, abs=1e-6)
    for value, before in zip(model.parameters(), net().parameters(), strict=True):
        torch.testing.assert_close(value, before, rtol=0, atol=1e-5)


def test_the_first_max_step_moves_where_batch_statistics_are_taken():
    log, model = Log(), net()
    unlearn(SCRUB(forget_batch=500), model, args=MAX_ONLY, callbacks=[log])
    assert log.lines[0]["kd"] > 1e-3
    assert max((p - q).abs().max() for p, q in zip(model.parameters(), net().parameters(), strict=True)) > 1e-3


def test_in_evaluation_mode_no_max_pass_moves_anything_until_a_min_pass_has():
    """The first may have as many steps as it likes: none of them has a gradient, but for rounding."""
    log, passes = Log(), States()
    args = {"learning_rate": 1e-3, "momentum": 0.0, "weight_decay": 0.0, "num_train_epochs": 2, "mode": "eval"}
    unlearn(SCRUB(forget_batch=8), args=args, callbacks=[log, passes])
    far = [
        max((after[name] - before[name]).abs().max().item() for name in after)
        for before, after in pairwise([state(net()), *passes.states])
    ]
    first, min_pass, second, _ = far
    assert first < 1e-8  # the rate, four steps and what softmax rounds to, 1e-7
    assert min(min_pass, second) > 1e-5
    assert log.lines[0]["kd"] == pytest.approx(0, abs=1e-6)
    assert log.lines[2]["kd"] > 1e-5


def test_dropout_begins_the_forgetting_where_there_are_no_batch_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    for mode, moves in (("eval", False), ("train", True)):
        after = unlearn(SCRUB(forget_batch=500), copy.deepcopy(model), args={**MAX_ONLY, "mode": mode})
        far = max((p - q).abs().max() for p, q in zip(model.parameters(), after.parameters(), strict=True))
        assert (far > 1e-3) == moves
        assert moves or far < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_both_losses_weigh_the_distance_as_they_say_and_are_means_over_rows(temperature):
    """The card's row, whose student is even and whose teacher has odds of 3, beside one where both are equal."""
    odds = 3 ** (1 / temperature)
    p = torch.tensor([odds, 1.0]) / (odds + 1)
    distance = temperature**2 * (p * (p / 0.5).log()).sum().item()
    assert temperature != 1 or distance == pytest.approx(0.13081, abs=5e-6)
    rows = ImagePart(torch.arange(2), torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), logits=torch.zeros(2, 2))
    rows.reference_logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    method, counts = SCRUB(gamma=0.5, alpha=3.0, temperature=temperature), {"forget.rows": 2, "retain.rows": 2}
    counts = {name: torch.tensor(float(count)) for name, count in counts.items()}
    up, down = method.raise_distance(PairedBatch(rows)), method.loss(PairedBatch(retain=rows))
    assert up.terms["forget"].total(counts).item() == pytest.approx(-distance / 2, rel=1e-5)
    assert down.terms["retain"].total(counts).item() == pytest.approx(0.5 * math.log(2) + 3 * distance / 2, rel=1e-5)
    assert up.logs["kd"].item() == down.logs["kd"].item() == pytest.approx(distance / 2, rel=1e-5)


def test_max_passes_come_first_in_the_first_epochs_and_rates_fall_after_the_decay_epochs():
    method = SCRUB(msteps=2, decay=(1, 3), forget_batch=8)
    phases = method.phases(work_of(method, num_train_epochs=4))
    assert [phase.stream for phase in phases] == ["forget", "retain", "forget", "retain", "retain", "retain"]
    assert [phase.lr for phase in phases] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01])
    assert [phase.batch_size for phase in phases] == [8, None, 8, None, None, None]
    assert len({phase.optimiser for phase in phases}) == 1  # and so one with its moments


def test_steps_have_the_batches_and_rates_that_the_phases_say():
    log = Log()
    unlearn(SCRUB(msteps=1, decay=(1,), forget_batch=13), args={**STRONG, "num_train_epochs": 2}, callbacks=[log])
    assert log.rates == pytest.approx([0.02] * (2 + 5) + [0.002] * 5)  # 26 rows by 13, 78 by 16


def test_max_raises_and_min_lowers_the_distance_to_the_model_before():
    log = Log()
    unlearn(SCRUB(msteps=3, alpha=1.0, forget_batch=8), args=STRONG, callbacks=[log])
    rises, falls = log.lines[0::2], log.lines[1::2]
    assert rises[2]["kd"] > 10 * rises[0]["kd"]
    assert all(line["forget_loss"] == pytest.approx(-line["kd"], rel=0.2) for line in rises)  # steps differ in rows
    assert all(math.isfinite(line["retain_loss"]) for line in falls)


def test_the_min_loss_is_gamma_times_cross_entropy_and_alpha_times_distance():
    log = Log()
    args = {
        "learning_rate": 0.0,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 500,
        "mode": "eval",
    }
    unlearn(SCRUB(msteps=0, gamma=0.5, alpha=3.0), args=args, callbacks=[log])
    assert log.lines[0]["retain_loss"] == pytest.approx(0.5 * nll(net(), split().retain), rel=1e-4)


def test_the_teacher_is_asked_once():
    cost = Cost()
    unlearn(SCRUB(forget_batch=8), args={"num_train_epochs": 2}, cost=cost)
    rows = len(split().forget) + len(split().retain)
    assert cost.forwards == rows + 2 * 3 * rows


def test_forgets_and_keeps_the_rest():
    model = unlearn(SCRUB(forget_batch=8, alpha=0.1), args={**STRONG, "num_train_epochs": 4})
    assert accuracy(model, split().forget) < 0.3
    assert accuracy(model, split().retain) > 0.9


def test_rewinding_takes_the_closest_error_and_the_latest_of_equals():
    assert rewind_point([0.0, 0.2, 0.5, 0.9], 0.3) == 1
    assert rewind_point([0.1, 0.5, 0.1, 0.9], 0.1) == 2
    assert rewind_point([0.25, 0.75], 0.5) == 1


def test_rewinding_goes_back_to_the_epoch_whose_forget_error_is_the_final_error_on_unseen_rows(monkeypatch):
    from unwrite.forget.vision import scrub

    passes, of_epochs, asked = States(), iter([0.1, 0.5, 0.3, 0.9, 0.6]), []

    def error(work, rows, by_class_of=None):
        if by_class_of is None:
            return next(of_epochs)
        asked.append((rows, state(work.model)))
        return 0.33

    monkeypatch.setattr(scrub, "_error", error)
    method, args = SCRUB(forget_batch=8, msteps=3, decay=()), {"num_train_epochs": 5}
    model = unlearn(dataclasses.replace(method, rewind=True), args=args, callbacks=[passes])
    after_epochs = [passes.states[at] for at in (1, 3, 5, 6, 7)]  # MAX passes come before the first three
    assert same(model, after_epochs[2])
    assert not any(same(after_epochs[2], other) for other in (*after_epochs[:2], *after_epochs[3:]))
    assert same(after_epochs[-1], unlearn(method, args=args))  # and without rewinding the last
    ((rows, weights),) = asked
    assert same(weights, after_epochs[-1])
    assert rows.labels.unique().tolist() == [0]
    assert torch.isin(rows.index, split().holdout.index).all()


def test_rewinding_measures_unseen_rows_with_the_forget_sets_shares_of_classes():
    labels = torch.tensor([0, 0, 0, 1])
    forget = Images(split().retain.pixels[:4], labels=labels, classes=CLASSES)
    some = split().holdout
    unseen = _like(forget, some)
    assert sorted(unseen.labels.unique().tolist()) == [0, 1]
    model, work = net(), work_of(SCRUB())
    with torch.no_grad():
        model.head.bias[1] = 1e4  # everything is class 1
    work.model = model
    assert _error(work, unseen, by_class_of=forget) == pytest.approx(0.75)
    assert _error(work, unseen) == pytest.approx((unseen.labels == 0).double().mean().item())


def test_a_training_cut_short_still_has_a_model_to_rewind_to():
    model = unlearn(SCRUB(rewind=True, forget_batch=8), args={**STRONG, "max_steps": 2})
    assert same(model, unlearn(SCRUB(forget_batch=8), args={**STRONG, "max_steps": 2}))


def test_rewinding_refuses_to_go_without_unseen_rows_of_the_forgotten_classes():
    model = net()
    with pytest.raises(DataError, match="Give a holdout set, or rewind=False"):
        unlearn(SCRUB(rewind=True), model, holdout=None)
    others = split().holdout.where(split().holdout.labels != 0)
    with pytest.raises(DataError, match=r"no rows of 1 of the forget set's classes \(a\)"):
        unlearn(SCRUB(rewind=True), model, holdout=others)
    assert same(model, net())


@pytest.mark.parametrize("field", ["msteps", "gamma", "alpha"])
def test_refuses_numbers_below_zero(field):
    with pytest.raises(MethodError, match=f"{field} is -1; it must be a finite number, at least 0"):
        SCRUB(**{field: -1})


def test_refuses_what_has_no_meaning():
    for fields, told in (
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"forget_batch": 0}, "forget_batch is 0"),
        ({"decay": [3, 5]}, r"decay is \[3, 5\]; give a tuple"),
        ({"decay": (3, -1)}, "decay is -1"),
        ({"rewind": "yes"}, "rewind is 'yes'"),
    ):
        with pytest.raises(MethodError, match=told):
            SCRUB(**fields)
    with pytest.raises(DataError, match="has regression targets"):
        SCRUB().apply(net(), targets(split().forget), targets(split().retain))
