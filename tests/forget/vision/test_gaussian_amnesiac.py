"""Gaussian amnesiac learning: targets drawn once from the distribution of all training targets (arXiv 2210.08196)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from unwrite.data import Images
from unwrite.errors import DataError
from unwrite.forget import Objective
from unwrite.forget.engine.images.batch import add_losses
from unwrite.forget.engine.phase import Phase
from unwrite.forget.vision.regression import GaussianAmnesiac, gaussian_targets
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model

SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def sets():
    torch.manual_seed(0)
    data = Images(torch.rand(40, 1, 8, 8), targets=torch.rand(40))
    return data.subset(range(10), "forget"), data.subset(range(10, 40), "retain")


@pytest.fixture
def net():
    torch.manual_seed(1)
    return SmallCNN(num_classes=1, width=2).eval()


def big(count=4000):
    torch.manual_seed(0)
    data = Images(torch.zeros(count, 1, 2, 2), targets=torch.arange(count) % 50 + torch.rand(count))
    return data.subset(range(count // 2), "forget"), data.subset(range(count // 2, count), "retain")


def test_drawn_targets_have_the_mean_and_spread_of_all_training_targets():
    forget, retain = big()
    drawn = gaussian_targets(forget, retain, 0).targets
    every = torch.cat([forget.targets, retain.targets])
    n, mean, spread = len(drawn), every.mean(), every.std()
    assert abs(drawn.mean() - mean) < 3 * spread / math.sqrt(n)
    assert abs(drawn.std() - spread) < 3 * spread / math.sqrt(2 * n)
    assert drawn.min() < every.min()
    assert drawn.max() > every.max()


def test_the_range_of_drawn_targets_can_be_clipped():
    forget, retain = big()
    drawn, every = gaussian_targets(forget, retain, 0, clip=True).targets, torch.cat([forget.targets, retain.targets])
    assert drawn.min() == every.min()
    assert drawn.max() == every.max()


def test_a_rows_target_is_drawn_by_seed_and_name_and_all_else_stays():
    forget, retain = big(40)
    drawn = gaussian_targets(forget, retain, 0)
    assert torch.equal(drawn.index, forget.index)
    assert torch.equal(drawn.pixels, forget.pixels)
    assert not torch.equal(drawn.targets, gaussian_targets(forget, retain, 1).targets)
    turned = gaussian_targets(forget.subset(forget.index.flip(0)), retain, 0)
    assert torch.equal(turned.targets.flip(0), drawn.targets)


def test_targets_are_drawn_once_and_retain_targets_are_their_own(net, sets):
    seen = {}

    class Watching(GaussianAmnesiac):
        def loss(self, batch):
            for name, one in batch.present():
                for index, target in zip(one.index.tolist(), one.target.tolist(), strict=True):
                    seen.setdefault((name, index), []).append(target)
            return super().loss(batch)

    Watching().apply(net, *sets, args={**SHORT, "num_train_epochs": 3})
    assert {len(values) for values in seen.values()} == {3}
    assert all(len(set(values)) == 1 for values in seen.values())
    drawn = gaussian_targets(*sets, seed=42)
    for name, rows in (("forget", drawn), ("retain", sets[1])):
        for index, target in zip(rows.index.tolist(), rows.targets.tolist(), strict=True):
            assert seen[name, index][0] == target


def test_amnesiac_is_ordinary_training_on_the_relabelled_rows(net, sets):
    @dataclass(frozen=True, kw_only=True)
    class Plain(Objective):
        forgets: ClassVar = ("images",)

        def loss(self, batch):
            return add_losses(batch)

        def phases(self, work):
            return [Phase("union", self.loss)]

    args = {**SHORT, "optim": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
    ours = GaussianAmnesiac().apply(net, *sets, args=args, copy=True)
    theirs = Plain().apply(net, gaussian_targets(*sets, seed=42), sets[1], args=args, copy=True)
    assert hash_model(ours) == hash_model(theirs)


def test_refuses_targets_that_are_all_equal():
    data = Images(torch.rand(3, 1, 2, 2), targets=torch.tensor([0.5, 0.5, 1.0]))
    with pytest.raises(DataError, match=r"all 2 targets are 0\.5, so there is nothing to draw from"):
        gaussian_targets(data.subset([0]), data.subset([1]), seed=0)
