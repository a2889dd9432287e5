"""UNSIR: the noise, what the two phases see of it and of the forgotten class, and what they do."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from trained_toys import accuracy, net, nll, same, split, state, targets, unlearn, work_of

from unwrite.data import split_at_random, split_by_class
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.cost import Cost
from unwrite.forget.vision.unsir import UNSIR, noise_loss

SMALLER = {"noise_rows": 8, "copies": 3}


def two_classes():
    return split_by_class(split().train, [1, 3], holdout=None)


def test_the_noise_loss_has_its_closed_form():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    noise = torch.ones(2, 1, 2, 2)
    noise[1] = 2
    assert noise_loss(logits, noise, 1, 0.1).item() == pytest.approx(0.1 * (4 + 16) / 2 - 0.693147, abs=1e-5)


def test_learning_the_noise_makes_its_loss_negative_and_its_cross_entropy_rise():
    model, rows = net(), split().retain
    work = work_of(UNSIR(), model)
    deviation, mean = torch.std_mean(rows.pixels, correction=0)

    def losses(steps):
        made = UNSIR(**{**SMALLER, "copies": 1}, noise_steps=steps).noise(work).pixels
        logits, noise = model(made).detach(), (made - mean) / deviation
        return noise_loss(logits, noise, 0, 0.1).item(), F.cross_entropy(
            logits, torch.zeros(8, dtype=torch.int64)
        ).item()

    start, end = losses(0), losses(40)
    assert start[0] > 0 > end[0]
    assert end[1] > start[1] + 1


def test_the_noise_begins_as_standard_normal_around_the_retain_pixels():
    work = work_of(UNSIR())
    deviation, mean = torch.std_mean(split().retain.pixels, correction=0)
    noise = (UNSIR(noise_rows=64, noise_steps=0, copies=1).noise(work).pixels - mean) / deviation
    assert noise.mean().abs() < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_the_model_is_frozen_while_noise_is_learnt():
    model = net()
    UNSIR(**SMALLER).noise(work_of(UNSIR(), model))
    assert same(model, net())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_noise_image_is_used_as_often_and_has_the_label_of_its_class():
    parts = two_classes()
    noise = UNSIR(**SMALLER, noise_steps=2).noise(work_of(UNSIR(), parts=parts))
    assert noise.labels.tolist() == [1] * 24 + [3] * 24
    different, counts = noise.pixels.flatten(1).unique(dim=0, return_counts=True)
    assert len(different) == 16
    assert counts.tolist() == [3] * 16
    assert len(noise.index.unique()) == 48
    assert not torch.isin(noise.index, parts.retain.index).any()


def test_the_impairing_set_is_the_noise_and_retain_rows_as_they_are_and_the_repairing_set_never_sees_the_class():
    parts = two_classes()
    impair, repair = UNSIR(**SMALLER, noise_steps=1).phases(work_of(UNSIR(), parts=parts))
    assert (impair.stream, repair.stream) == ("union", "retain")
    assert len(impair.forget) == 48
    for kept in (impair.retain, repair.retain):
        original = parts.retain.subset(kept.index)
        assert torch.equal(kept.pixels, original.pixels)
        assert torch.equal(kept.labels, original.labels)
        assert not torch.isin(kept.labels, torch.tensor([1, 3])).any()
    assert repair.lr == 0.5
    assert repair.optimiser is not impair.optimiser


def test_the_repair_of_a_training_sees_no_noise_and_neither_pass_a_row_of_the_class():
    seen: dict[int, list] = {0: [], 1: []}  # by epoch: the impairing one, the repairing one

    class Watching(UNSIR):
        def loss(self, batch):
            for name, part in batch.present():
                seen[part.epoch] += [
                    (name, *row) for row in zip(part.index.tolist(), part.labels.tolist(), strict=True)
                ]
            return super().loss(batch)

    unlearn(Watching(**SMALLER))
    names = {kind: [row[1] for row in rows if row[0] == "retain"] for kind, rows in seen.items()}
    assert sorted(names[0]) == sorted(names[1]) == split().retain.index.tolist()
    assert all(label != 0 for rows in seen.values() for kind, _, label in rows if kind == "retain")
    assert {kind for kind, *_ in seen[1]} == {"retain"}
    noise = [(name, label) for kind, name, label in seen[0] if kind == "forget"]
    assert len(noise) == 24
    assert all(name < 0 and label == 0 for name, label in noise)


def test_no_image_of_the_class_is_looked_at():
    other = dataclasses.replace(split().forget, pixels=1 - split().forget.pixels)
    method = UNSIR(**SMALLER)
    assert same(unlearn(method), unlearn(method, parts=dataclasses.replace(split(), forget=other)))


def test_at_most_so_many_retain_rows_of_each_class_are_drawn_by_the_seed():
    def kept(seed):
        _, repair = UNSIR(**SMALLER, noise_steps=0, per_class=10).phases(work_of(UNSIR(), seed=seed))
        return repair.retain

    assert torch.bincount(kept(0).labels).tolist() == [0, 10, 10, 10]
    assert torch.equal(kept(0).index, kept(0).index)
    assert not torch.equal(kept(0).index, kept(1).index)


def test_the_noise_costs_a_forward_and_half_a_backward_a_row_and_step():
    cost = Cost()
    work = work_of(UNSIR())
    work.cost = cost
    UNSIR(**SMALLER, noise_steps=5).noise(work)
    assert cost.forwards == 8 * 5 * 2


def test_forgets_and_the_repair_brings_the_rest_back():
    impaired = unlearn(UNSIR(**SMALLER, repair_rate=0.0))
    repaired = unlearn(UNSIR(**SMALLER))
    assert accuracy(repaired, split().forget) < 0.5
    assert accuracy(repaired, split().retain) > 0.9
    assert nll(repaired, split().retain) < nll(impaired, split().retain)
    assert nll(repaired, split().forget) > 10 * nll(net(), split().forget)


def test_refuses_a_retain_set_with_rows_of_the_forgotten_class():
    model, before = net(), state(net())
    mixed = split_at_random(split().train, 0.2, holdout=None)
    with pytest.raises(DataError, match="UNSIR forgets whole classes, and the retain set still has rows of a, b, c, d"):
        unlearn(UNSIR(), model, mixed)
    assert same(model, before)


def test_refuses_what_has_no_meaning():
    for field, value in (
        ("noise_rows", 0),
        ("copies", 0),
        ("per_class", 0),
        ("noise_steps", -1),
        ("penalty", -0.1),
        ("noise_lr", 0.0),
    ):
        with pytest.raises(MethodError, match=f"{field} is {value}"):
            UNSIR(**{field: value})
    with pytest.raises(DataError, match="has regression targets"):
        UNSIR().apply(net(), targets(split().forget), targets(split().retain))
    with pytest.raises(DataError, match="UNSIR needs a retain set"):
        UNSIR().apply(net(), split().forget)
