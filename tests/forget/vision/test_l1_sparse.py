"""l1-sparse unlearning: the schedule, the subgradient, and that without a penalty it is fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget import Objective
from unwrite.forget.engine.images.batch import add_losses
from unwrite.forget.engine.phase import Phase
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.forget.vision.l1_sparse import L1Sparse, l1_norm, penalty_weight, small_share
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model

SETTINGS = {"learning_rate": 0.05, "num_train_epochs": 3, "per_device_train_batch_size": 8}
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


@dataclass(frozen=True, kw_only=True)
class OnRetain(Objective):
    """Fine-tuning, the tests' own."""

    forgets: ClassVar = ("images",)

    def loss(self, batch):
        return add_losses(batch)

    def phases(self, work):
        return [Phase("retain", self.loss)]


class Lines(TrainerCallback):
    """What each epoch logged."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **_):
        self.lines.append(dict(logs))


@pytest.fixture(scope="module")
def sets():
    torch.manual_seed(0)
    data = Images(torch.rand(30, 1, 8, 8), labels=torch.arange(30) % 3)
    return data.subset(range(6), "forget"), data.subset(range(6, 30), "retain")


@pytest.fixture
def net():
    torch.manual_seed(1)
    return SmallCNN(num_classes=3, width=4).eval()


def test_gamma_zero_is_fine_tuning_bit_for_bit(net, sets):
    ours = L1Sparse(gamma=0.0).apply(net, *sets, args=SETTINGS, copy=True)
    theirs = FineTune().apply(net, *sets, args=SETTINGS, copy=True)
    assert hash_model(ours) == hash_model(theirs) == hash_model(OnRetain().apply(net, *sets, args=SETTINGS, copy=True))
    assert hash_model(L1Sparse(gamma=1e-3).apply(net, *sets, args=SETTINGS, copy=True)) != hash_model(theirs)


@pytest.mark.parametrize(("epoch", "share"), [(0, 1.0), (5, 0.5), (9, 0.1), (10, 0.0)])
def test_the_penalty_fades_linearly_with_the_epochs(epoch, share):
    assert penalty_weight(5e-4, epoch, 10) == pytest.approx(5e-4 * share, rel=1e-12)


def test_the_last_epochs_may_have_no_penalty():
    assert [penalty_weight(1.0, epoch, 10, 6) for epoch in range(10)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0]
    assert penalty_weight(1.0, 0, 3, 3) == 0
    assert penalty_weight(1.0, 0, 3, 4) == 0


def test_training_takes_the_epochs_weight(net, sets):
    log = Lines()
    L1Sparse(gamma=1e-3).apply(net, *sets, args={**SETTINGS, "num_train_epochs": 10}, callbacks=[log])
    gammas = [line["gamma"] for line in log.lines]
    assert gammas == pytest.approx([1e-3 * (1 - t / 10) for t in range(10)], rel=1e-5)
    assert (gammas[5], gammas[9]) == pytest.approx((5e-4, 1e-4), rel=1e-5)


def test_the_gradient_of_the_penalty_is_exactly_gamma_times_the_sign():
    weight = torch.tensor([0.3, -2.0, 0.0, 1e-8], requires_grad=True)
    gamma = torch.tensor(penalty_weight(5e-4, 5, 10))
    (gamma * l1_norm([weight])).backward()
    assert weight.grad.tolist() == [gamma.item(), -gamma.item(), 0.0, gamma.item()]


def test_a_step_moves_every_positive_weight_down_by_the_rate_times_gamma(net, sets):
    """Against the same step without penalty, biases and the norms' weights included, whatever the number of rows."""
    args = {**SETTINGS, **PLAIN, "max_steps": 1, "per_device_train_batch_size": 7}
    gamma = 0.5
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    ours = L1Sparse(gamma=gamma).apply(net, *sets, args=args, copy=True)
    theirs = OnRetain().apply(net, *sets, args=args, copy=True)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other - 0.05 * gamma * before[name].sign(), rtol=1e-5, atol=1e-6)


def test_the_norm_is_summed_in_float32_over_all_parameters():
    half = torch.full((70_000,), 1.0, dtype=torch.float16)  # the sum has no value in half precision
    norm = l1_norm([half, torch.tensor([-2.5])])
    assert norm.dtype == torch.float32
    assert norm.item() == 70_002.5


def test_frozen_parameters_are_in_no_norm_and_do_not_move(net, sets):
    net.head.requires_grad_(False)
    log = Lines()
    before = net.head.weight.detach().clone()
    norm = l1_norm(one for one in net.parameters() if one.requires_grad).item()
    L1Sparse(gamma=1.0, cut=0.01).apply(net, *sets, args={**SETTINGS, "max_steps": 1}, callbacks=[log])
    assert log.lines[0]["penalty_loss"] == pytest.approx(norm, rel=1e-5)
    assert torch.equal(net.head.weight, before)


def test_more_weights_are_small_after_a_penalty(net, sets):
    args = {**SETTINGS, "num_train_epochs": 6}
    plain = OnRetain().apply(net, *sets, args=args, copy=True)
    sparse = L1Sparse(gamma=2e-2).apply(net, *sets, args=args, copy=True)
    assert small_share(sparse, 1e-2) > 2 * small_share(plain, 1e-2)


def test_small_share_counts_weights_below_the_bar():
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-3, -9e-4, 0.0, 5.0]]))
        layer.bias.fill_(-1.0)
    assert small_share(layer) == 2 / 5


def test_cut_sets_small_weights_to_zero_at_the_end(net, sets):
    plain = L1Sparse(gamma=1e-3).apply(net, *sets, args=SETTINGS, copy=True)
    cut = L1Sparse(gamma=1e-3, cut=0.02).apply(net, *sets, args=SETTINGS, copy=True)
    for mine, other in zip(cut.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, torch.where(other.abs() < 0.02, 0.0, other))


def test_regressors_are_trained_on_their_own_error():
    torch.manual_seed(0)
    data = Images(torch.rand(20, 1, 8, 8), targets=torch.rand(20))
    net, sets = SmallCNN(num_classes=1, width=2), (data.subset(range(5)), data.subset(range(5, 20)))
    ours = L1Sparse(gamma=0.0).apply(net, *sets, args=SETTINGS, copy=True)
    assert hash_model(ours) == hash_model(OnRetain().apply(net, *sets, args=SETTINGS, copy=True))


@pytest.mark.parametrize("field", ["gamma", "no_l1_epochs", "cut"])
def test_refuses_negative_fields(field):
    with pytest.raises(MethodError, match=rf"{field} is -1; it must be a finite number, at least 0"):
        L1Sparse(**{field: -1})


def test_refuses_to_work_without_retain_rows_and_a_retain_loss_of_pairing(net, sets):
    with pytest.raises(DataError, match="L1Sparse needs a retain set"):
        L1Sparse().apply(net, sets[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'retain_loss'"):
        L1Sparse(retain_loss="nll")
