"""What a phase may ask for on each kind of data: it counts, or it is refused by the name of its field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgetting import weights
from torch import nn
from toy_works import PICTURES, TEXTS, Plain, apply, both_kinds, loss_of, made
from transformers import TrainerCallback

from unwrite.data import Examples
from unwrite.errors import MethodError
from unwrite.forget import DPO, Phase


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"stream": "retian"}, "unknown stream 'retian'. Did you mean 'retain'"),
        ({"epochs": -1}, "epochs is -1; it must be a finite number, at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be a finite number, at least 1"),
        ({"lr": float("nan")}, "lr is nan; it must be a finite number, at least 0"),
        ({"retain": TEXTS[1]}, r"a phase of the stream 'forget' brings no retain rows\. Leave out retain\."),
        ({"stream": "retain", "forget": TEXTS[0]}, r"a phase of the stream 'retain' brings no forget rows"),
    ],
)
def test_a_phase_refuses_what_has_no_meaning_anywhere(field, message):
    with pytest.raises(MethodError, match=message):
        Phase(**{"stream": "forget", "loss": loss_of, **field})


@pytest.mark.parametrize(
    ("kind", "phase", "message"),
    [
        ("text", Phase("forget", loss_of, then=Phase("forget", loss_of)), r"Plain on text: a phase has 'then'"),
        ("text", Phase("forget", loss_of, forget=PICTURES), r"a phase's forget rows are Images\. Give Examples\."),
        ("images", Phase("union", loss_of, retain=TEXTS[1]), r"a phase's retain rows are Examples\. Give Images\."),
        (
            "images",
            Phase("forget", loss_of, then=Phase("retain", loss_of)),
            r"Plain on images: what follows in a step has the stream 'retain'.*those of 'forget'",
        ),
        *(
            (
                "images",
                Phase("union", loss_of, then=Phase("union", loss_of, then=Phase("union", loss_of, **{name: value}))),
                rf"Plain on images: what follows in a step has {name}, but its rows are those of the step",
            )
            for name, value in (("epochs", 1), ("batch_size", 2), ("forget", PICTURES), ("retain", PICTURES))
        ),
    ],
)
def test_a_phase_that_a_kind_of_data_can_not_train_is_refused_by_the_fields_name(kind, phase, message):
    model = made(kind)
    before = weights(model)
    seen: list[Any] = []
    last = Phase("forget", lambda batch: seen.append(batch) or loss_of(batch))
    with pytest.raises(MethodError, match=message):
        apply(kind, Plain(stretches=(last, phase)), model)
    assert seen == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@both_kinds
@pytest.mark.parametrize("stream", ["retain", "covering", "mixed", "union"])
def test_a_stream_of_retain_rows_needs_some(kind, stream):
    with pytest.raises(MethodError, match="Plain reads retain rows, but there is no retain set"):
        apply(kind, Plain(stretches=(Phase(stream, loss_of),)), retain=None)
    rows = TEXTS[1] if kind == "text" else PICTURES.subset(range(6, 12))
    apply(kind, Plain(stretches=(Phase(stream, loss_of, retain=rows),)), retain=None)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@both_kinds
@pytest.mark.parametrize("optimiser", [None, sgd])
def test_a_phases_lr_is_a_factor_of_the_rate(kind, optimiser):
    def trained(lr, **args):
        return apply(kind, Plain(stretches=(Phase("forget", loss_of, optimiser, lr=lr),)), args=args)

    if optimiser is None:
        assert same(trained(0.5), trained(1.0, learning_rate=0.05))
    assert not same(trained(0.5), trained(1.0))
    assert same(trained(0.0), made(kind))


def test_a_phases_lr_scales_an_optimiser_of_its_own_on_texts():
    class Rates(TrainerCallback):
        seen: list = []  # noqa: RUF012

        def on_step_begin(self, args, state, control, optimizer=None, **_):
            self.seen.append(optimizer.param_groups[0]["lr"])

    phases = tuple(Phase("forget", loss_of, sgd, lr=lr) for lr in (0.5, 1.0, 0.5))
    apply("text", Plain(stretches=phases), callbacks=[Rates()])
    assert Rates.seen == pytest.approx([0.05] * 2 + [0.1] * 2 + [0.05] * 2)


@both_kinds
def test_a_phases_batch_size_and_rows_take_the_place_of_the_arguments_and_the_works(kind):
    seen: list[dict[str, int]] = []

    def noting(batch):
        seen.append({name: len(part.index) for name, part in batch.present()})
        return loss_of(batch)

    few = (TEXTS[0][:3], TEXTS[1][:2]) if kind == "text" else (PICTURES.subset(range(3)), PICTURES.subset([6, 7]))
    phases = (
        Phase("forget", noting, batch_size=3, forget=few[0], epochs=1),
        Phase("retain", noting, retain=few[1], epochs=2),
        Phase("union", noting, batch_size=99, forget=few[0], retain=few[1], epochs=1),
        Phase("forget", noting, epochs=1, batch_size=99),
    )
    apply(kind, Plain(stretches=phases), args={"max_steps": -1})
    union = {"forget": 3, "retain": 2}
    assert seen == [{"forget": 3}, {"retain": 2}, {"retain": 2}, union, {"forget": 8 if kind == "text" else 6}]


def test_a_phases_own_rows_of_text_have_references_and_other_answers_of_their_own():
    seen: list[Any] = []

    class Told(DPO):
        def phases(self, work):
            seen.clear()
            mine = Examples([TEXTS[0][5], TEXTS[0][2]], "mine")
            return [Phase("forget", self.noting, forget=mine, batch_size=9, epochs=1)]

        def noting(self, batch):
            order = batch["forget"].index.argsort()
            seen.extend([batch["forget"].reference[order], batch["alternate"].reference[order]])
            assert torch.equal(batch["forget"].index, batch["alternate"].index)
            return self.loss(batch)

    class Whole(Told):
        def phases(self, work):
            seen.clear()
            return [Phase("forget", self.noting, batch_size=9, epochs=1)]

    apply("text", Told(retain_loss="none", refusals=("i do not know .",)), args={"max_steps": -1})
    mine = list(seen)
    apply("text", Whole(retain_loss="none", refusals=("i do not know .",)), args={"max_steps": -1})
    for own, whole in zip(mine, seen, strict=True):
        torch.testing.assert_close(own, whole[[5, 2]], rtol=1e-4, atol=1e-4)


@both_kinds
def test_a_paired_phase_brings_its_own_retain_rows_where_the_loss_reads_them(kind):
    seen: list[Any] = []

    def noting(batch):
        seen.append(None if batch.retain is None else len(batch["retain"].index.unique()))
        return loss_of(batch)

    rows = TEXTS[1][:2] if kind == "text" else PICTURES.subset([6, 7])
    phase = Phase("paired", noting, retain=rows, batch_size=4, epochs=1)
    apply(kind, Plain(stretches=(phase,), names=("nll", "retain")), retain=None)
    assert seen[0] == 2
    with pytest.raises(MethodError, match="Plain has a paired phase with retain rows, but reads nothing of them"):
        apply(kind, Plain(stretches=(phase,)))
