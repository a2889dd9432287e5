"""The registry of kinds of data: each kind of rows has its work, and a third kind is a work and a line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from conftest import make_examples, make_llama
from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget import NPO, Loss, Objective, PerRow
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.engine.kinds import KINDS, DataKind, kind_of
from unwrite.forget.engine.text.work import TextWork
from unwrite.forget.engine.work import Work

TEXTS = make_examples("forget", 8)
PICTURES = Images(torch.rand(6, 1, 2, 2), labels=torch.arange(6) % 3)


class Notes(list):
    """Rows of a third kind: numbers to be remembered by one weight."""


@dataclass(kw_only=True)
class NotesWork(Work[Notes, dict]):
    reads = frozenset({"values"})

    @classmethod
    def arguments(cls, args, defaults):
        return {"learning_rate": 0.5, **defaults, **(args or {})}

    def check(self):
        if not self.forget:
            raise DataError("no notes")

    def train(self, objective):
        for phase in self.phases(objective):
            (term,) = phase.loss(torch.tensor(self.forget) - self.model.weight).terms.values()
            (grad,) = torch.autograd.grad(term.values.mean(), [self.model.weight])
            self.model.weight.data -= self.args["learning_rate"] * grad
        return self.model

    def encoded(self, rows):
        return rows

    def batches(self, rows, batch_size):
        yield torch.tensor(rows), None

    @property
    def row_loss(self):
        return lambda model, batch: (batch[0] - model.weight) ** 2


@dataclass(frozen=True, kw_only=True)
class Unremember(Objective):
    forgets = ("notes",)
    reads = frozenset({"values"})
    training = {"learning_rate": 0.25}  # noqa: RUF012

    def loss(self, batch):
        return Loss(forget=PerRow(-(batch**2)))


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


def test_a_third_kind_of_data_is_a_work_and_a_line_of_the_registry(monkeypatch):
    with pytest.raises(DataError, match=r"the rows to forget are Notes\. Give Examples or Images\."):
        Unremember().apply(Weight(), Notes([2.0, 4.0]))
    monkeypatch.setitem(KINDS, "notes", DataKind("notes", Notes, f"{__name__}:NotesWork"))
    before = Weight()
    after = Unremember().apply(before, Notes([2.0, 4.0]), copy=True)
    assert after.weight.item() == 1.0 - 0.25 * 4.0  # d/dw of -mean (x - w)^2 is 2 mean (x - w)
    assert before.weight.item() == 1.0
    assert Unremember().apply(Weight(), Notes([2.0, 4.0]), args={"learning_rate": 0.0}).weight.item() == 1.0
    with pytest.raises(DataError, match="no notes"):
        Unremember().apply(Weight(), Notes())
    with pytest.raises(DataError, match="Unremember has no meaning for text; it forgets notes"):
        Unremember().apply(make_llama(), TEXTS)
    with pytest.raises(DataError, match="NPO has no meaning for notes; it forgets text and images"):
        NPO().apply(Weight(), Notes([2.0]))
    with pytest.raises(MethodError, match=r"Misread on notes: unknown name in reads 'valuez'. Did you mean 'values'"):
        type("Misread", (Unremember,), {"reads": frozenset({"valuez"})})().apply(Weight(), Notes([2.0]))


def test_each_kind_of_rows_has_its_work():
    assert kind_of(TEXTS).load() is TextWork
    assert kind_of(PICTURES).load() is ImageWork
    with pytest.raises(DataError, match=r"the rows to forget are list\. Give Examples or Images\."):
        NPO().apply(nn.Flatten(), [1, 2])
