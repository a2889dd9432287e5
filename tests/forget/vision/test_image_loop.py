"""The loop that trains image models: optimisers over phases, several losses a step, lone rows, limits, and what is counted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from unwrite.data import Images
from unwrite.errors import MethodError, NotFinite
from unwrite.forget import Objective
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.images.arguments import ImageArguments
from unwrite.forget.engine.images.batch import add_losses
from unwrite.forget.engine.images.schedules import another
from unwrite.forget.engine.loss import Loss, PerRow
from unwrite.forget.engine.phase import Phase
from unwrite.forget.engine.stream import UnlearnRows, epoch_order, partner
from unwrite.runs import hash_model

PLAIN = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "per_device_train_batch_size": 4, "seed": 3}
STREAMS = ["forget", "retain", "paired", "covering", "mixed", "union"]


def images(rows: int, first: int = 0) -> Images:
    """Rows whose names begin at `first`, of three classes."""
    generator = torch.Generator().manual_seed(first)
    return Images(
        torch.rand(rows, 1, 2, 2, generator=generator),
        labels=torch.arange(rows) % 3,
        index=torch.arange(first, first + rows),
        classes=tuple("abc"),
    )


FORGET, RETAIN = images(6), images(12, first=100)


def net(statistics: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(5) if statistics else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).eval()


def running(*phases: Phase, needs: tuple[str, ...] = ("retain",)) -> Objective:
    """A method of these phases."""

    class Told(Objective):
        forgets = ("images",)
        reads = frozenset(needs)

        def loss(self, batch: Any) -> Loss:
            return add_losses(batch)

        def phases(self, work: Any) -> list[Phase]:
            return list(phases)

    return Told()


def train(*phases: Phase, model: nn.Module | None = None, forget: Images = FORGET, retain: Any = RETAIN, **more: Any):
    """The trained model; `args` differ from PLAIN."""
    args = {**PLAIN, **more.pop("args", {})}
    method = running(*phases, needs=more.pop("needs", ("retain",)))
    return method.apply(net() if model is None else model, forget, retain, args=args, **more)


class Watch(TrainerCallback):
    """What the loop tells of itself."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.rates: list[float] = []
        self.lines: list[dict[str, float]] = []
        self.limit = self.steps = 0

    def on_train_begin(self, args, state, control, **_):
        self.limit = state.max_steps

    def on_epoch_begin(self, *_, **__):
        self.events.append("epoch")

    def on_step_begin(self, *_, **__):
        self.events.append("step")

    def on_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.events.append("update")
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **_):
        self.lines.append(dict(logs))

    def on_train_end(self, args, state, control, **_):
        self.steps = state.global_step


def noting(seen: list[dict[str, list[int]]], loss: Callable[[Any], Loss] = add_losses) -> Callable[[Any], Loss]:
    """The loss, which first notes the rows of each part by name."""

    def noted(batch: Any) -> Loss:
        seen.append({name: part.index.tolist() for name, part in batch.present()})
        return loss(batch)

    return noted


def momentum(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def squared(batch: Any) -> Loss:
    """Another loss on the same rows: the mean squared logit."""
    return Loss({}, **{name: PerRow(part.logits.square().sum(1), "all") for name, part in batch.present()})


def by_hand(model: nn.Module, rows: Images, names: list[int], loss: str, optimiser: torch.optim.Optimizer) -> None:
    """One update on these rows."""
    some = rows.subset(names)
    logits = model(some.pixels)
    value = F.cross_entropy(logits, some.labels) if loss == "nll" else logits.square().sum(1).mean()
    optimiser.zero_grad()
    value.backward()
    optimiser.step()


# --- optimisers -------------------------------------------------------------------------------------------------------


def test_phases_without_an_optimiser_of_their_own_go_on_with_one_and_its_moments():
    args = {"momentum": 0.9}
    one = train(Phase("retain", add_losses, epochs=3), args=args)
    three = train(*[Phase("retain", add_losses, epochs=1)] * 3, args=args)
    assert hash_model(one) == hash_model(three)


def test_phases_of_one_function_share_its_optimiser_whatever_comes_between():
    built = []

    def counted(parameters):
        built.append(momentum(parameters))
        return built[-1]

    seen: list[dict[str, list[int]]] = []
    nll, other = Phase("retain", noting(seen), counted, epochs=1), Phase("forget", noting(seen, squared), epochs=1)
    found = train(nll, other, nll)
    assert len(built) == 1
    model = net()
    mine, between = momentum(list(model.parameters())), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in seen:
        if "retain" in step:
            by_hand(model, RETAIN, step["retain"], "nll", mine)
        else:
            by_hand(model, FORGET, step["forget"], "squares", between)
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_another_optimiser_of_the_same_kind_begins_without_moments():
    for size in (0.9, 0.0):  # without momentum there is nothing to share
        args = {**PLAIN, "momentum": size}
        phase = Phase("retain", add_losses, epochs=1)
        apart = replace(phase, optimiser=another(ImageArguments(**args)))
        shared, fresh = (hash_model(train(phase, then, args=args)) for then in (phase, apart))
        assert (shared == fresh) == (size == 0)


def test_a_phases_rate_is_a_factor_of_the_optimisers_own_and_does_not_pile_up():
    watch = Watch()
    train(*[Phase("retain", add_losses, epochs=1, lr=lr) for lr in (0.5, 1.0, 0.5)], callbacks=[watch])
    assert watch.rates == pytest.approx([0.05] * 3 + [0.1] * 3 + [0.05] * 3)


def test_gradients_of_what_an_optimiser_leaves_out_do_not_reach_the_next():
    """The first trains the head alone, so the extractor's gradients are for nobody."""

    def head(parameters):
        return torch.optim.SGD(parameters[-2:], lr=0.1)

    seen: list[dict[str, list[int]]] = []
    after = Phase("retain", squared)
    found = train(Phase("retain", noting(seen), head, epochs=1, then=after))
    model = net()
    mine, whole = head(list(model.parameters())), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in seen:
        by_hand(model, RETAIN, step["retain"], "nll", mine)
        by_hand(model, RETAIN, step["retain"], "squares", whole)
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- several losses a step --------------------------------------------------------------------------------------------


def test_what_follows_in_a_step_has_the_same_rows_and_the_weights_that_the_first_left():
    seen: list[dict[str, list[int]]] = []
    watch = Watch()
    phase = Phase("covering", noting(seen), momentum, epochs=2, then=Phase("covering", noting(seen, squared)))
    found = train(phase, callbacks=[watch])
    assert len(seen) == 2 * 2 * 3
    assert seen[0::2] == seen[1::2]
    model = net()
    first, second = momentum(list(model.parameters())), torch.optim.SGD(model.parameters(), lr=0.1)
    both = RETAIN.joined(FORGET)
    for number, step in enumerate(seen):
        names = step["forget"] + step["retain"]
        some = torch.stack([both.pixels[both.index == name][0] for name in names])
        labels = torch.cat([both.labels[both.index == name] for name in names])
        optimiser = second if number % 2 else first
        optimiser.zero_grad()
        logits = model(some)
        (logits.square().sum(1).mean() if number % 2 else F.cross_entropy(logits, labels)).backward()
        optimiser.step()
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert watch.events == (["epoch"] + ["step", "update", "update"] * 3) * 2
    assert watch.steps == 6


def test_three_losses_may_follow_one_another():
    order: list[int] = []

    def told(number: int) -> Callable[[Any], Loss]:
        def loss(batch: Any) -> Loss:
            order.append(number)
            return add_losses(batch)

        return loss

    chain = Phase("retain", told(0), epochs=1, then=Phase("retain", told(1), then=Phase("retain", told(2))))
    train(chain)
    assert order == [0, 1, 2] * 3


# --- lone rows --------------------------------------------------------------------------------------------------------


def sizes(stream: str, model: nn.Module, **more: Any) -> list[int]:
    """Rows of each step, pairs counted once."""
    seen: list[dict[str, list[int]]] = []
    train(Phase(stream, noting(seen), epochs=1), model=model, **more)  # type: ignore[arg-type]
    single = stream in ("mixed", "union")
    return [sum(map(len, step.values())) if single else len(next(iter(step.values()))) for step in seen]


@pytest.mark.parametrize("stream", ["forget", "retain", "paired", "covering", "union"])
def test_a_lone_last_row_goes_with_the_step_before_where_batch_statistics_are_taken(stream):
    forget, retain = {"union": (images(4), images(5, 100)), "retain": (images(2), images(9, 100))}.get(
        stream, (images(9), images(9, 100))
    )
    sets = {"forget": forget, "retain": retain}
    assert sizes(stream, net(statistics=True), **sets) == [4, 5]
    assert sizes(stream, net(statistics=True), **sets, args={"mode": "eval"}) == [4, 4, 1]
    assert sizes(stream, net(), **sets) == [4, 4, 1]


@pytest.mark.parametrize(("rows", "steps"), [(2, [2]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (13, [4, 4, 5])])
def test_no_row_is_lost_or_taken_twice_where_the_last_is_alone(rows, steps):
    seen: list[dict[str, list[int]]] = []
    retain = images(rows, 100)
    train(Phase("retain", noting(seen), epochs=1), model=net(statistics=True), retain=retain)
    assert [len(step["retain"]) for step in seen] == steps
    assert sorted(name for step in seen for name in step["retain"]) == retain.index.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_kinds_that_come_one_by_one_share_a_forward_so_that_a_single_row_of_one_is_not_alone(seed):
    """A step may hold one row of a kind; were it alone in a forward, it would have no statistics."""
    for stream in ("mixed", "union"):
        model = net(statistics=True)
        train(
            Phase(stream, add_losses, epochs=1),
            model=model,
            forget=images(3),
            retain=images(8, 100),
            args={"seed": seed},
        )
        assert int(model[2].num_batches_tracked) == 3  # a forward a step


def test_rows_of_pairs_have_statistics_of_their_own_and_those_of_a_union_common_ones():
    rows = {"forget": images(5), "retain": images(5, 100)}
    args = {"per_device_train_batch_size": 64, "learning_rate": 0.0}
    seen: list[dict[str, list[int]]] = []
    pairs, together = net(statistics=True), net(statistics=True)
    before = pairs[:2]
    means = {name: before(part.pixels).mean(0).detach() for name, part in rows.items()}
    train(Phase("covering", noting(seen), epochs=1), model=pairs, args=args, **rows)
    train(Phase("union", add_losses, epochs=1), model=together, args=args, **rows)
    assert list(seen[0]) == ["forget", "retain"]  # in this order, at momentum 0.1
    expected = 0.9 * 0.1 * means["forget"] + 0.1 * means["retain"]
    torch.testing.assert_close(pairs[2].running_mean, expected)
    torch.testing.assert_close(together[2].running_mean, 0.1 * (means["forget"] + means["retain"]) / 2)


def test_refuses_a_training_of_one_row_and_batches_of_one_before_anything_is_trained():
    retain, told = images(9, 100), r"a step of one row has no batch statistics.*args=\{'mode': 'eval'\}"
    for rows, args in ((retain.subset([104]), {}), (retain, {"per_device_train_batch_size": 1})):
        model = net(statistics=True)
        before = hash_model(model)
        with pytest.raises(MethodError, match=told):
            train(Phase("retain", add_losses, epochs=1), model=model, retain=rows, args=args)
        assert hash_model(model) == before
        assert sizes("retain", net(statistics=True), retain=rows, args={**args, "mode": "eval"})[-1] == 1


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "steps"), [(-1, [2, 3, 2]), (0, [0, 0, 0]), (1, [1, 0, 0]), (4, [2, 2, 0]), (99, [2, 3, 2])]
)
def test_max_steps_counts_over_all_phases(limit, steps):
    seen: list[list[dict[str, list[int]]]] = [[], [], []]
    streams, watch = ("forget", "retain", "forget"), Watch()
    phases = [Phase(stream, noting(one), epochs=1) for stream, one in zip(streams, seen, strict=True)]
    model = net()
    before = hash_model(model)
    train(*phases, model=model, args={"max_steps": limit}, callbacks=[watch])
    assert [len(one) for one in seen] == steps
    assert watch.limit == watch.steps == sum(steps)
    assert (hash_model(model) == before) == (limit == 0)


def test_a_step_of_several_losses_is_one_of_max_steps():
    seen: list[dict[str, list[int]]] = []
    train(Phase("retain", noting(seen), then=Phase("retain", noting(seen))), args={"max_steps": 2})
    assert len(seen) == 4


def test_training_that_is_cut_short_is_the_beginning_of_the_whole():
    class At(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            hashes.append(hash_model(model))

    hashes: list[str] = []
    phases = [Phase("forget", add_losses, epochs=1), Phase("retain", squared, epochs=1)]
    train(*phases, callbacks=[At()])
    for limit in (1, 4):
        assert hash_model(train(*phases, args={"max_steps": limit})) == hashes[limit - 1]


def test_a_callback_stops_all_phases():
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    watch = Watch()
    train(*[Phase("retain", add_losses, epochs=2)] * 2, callbacks=[Stop(), watch])
    assert watch.steps == 2


@pytest.mark.parametrize(("epochs", "steps"), [(0, []), (0.4, [2]), (1, [3]), (1.5, [3, 2]), (2, [3, 3])])
def test_a_part_of_an_epoch_is_that_share_of_its_steps_rounded_up(epochs, steps):
    watch = Watch()
    train(Phase("retain", add_losses, epochs=epochs), callbacks=[watch])
    ends = [at for at, event in enumerate([*watch.events, "epoch"]) if event == "epoch"]
    assert [watch.events[a:b].count("step") for a, b in pairwise(ends)] == steps
    assert watch.limit == watch.steps == sum(steps)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
def test_a_step_has_the_rows_that_a_text_with_their_numbers_has(stream):
    """The loop for texts goes by `UnlearnRows`; both are functions of (seed, epoch, row)."""
    seen: list[dict[str, list[int]]] = []
    train(Phase(stream, noting(seen), epochs=2))
    texts: Any = UnlearnRows(stream, FORGET.index.tolist(), RETAIN.index.tolist(), seed=PLAIN["seed"])
    expected = []
    for epoch in range(2):
        items = [texts[(epoch, row)] for row in texts.order(epoch)]
        for first in range(0, len(items), 4):
            parts: dict[str, list[int]] = {}
            for item in items[first : first + 4]:
                for name, row in item.items():
                    parts.setdefault(name, []).append(row)
            expected.append(parts)
    assert seen == expected


def test_epochs_are_counted_over_phases_so_that_each_has_an_order_of_its_own():
    seen: list[dict[str, list[int]]] = []
    epochs: list[int] = []

    def loss(batch: Any) -> Loss:
        epochs.append(batch["retain"].epoch)
        return add_losses(batch)

    train(*[Phase("retain", noting(seen, loss), epochs=1)] * 2, args={"per_device_train_batch_size": 99})
    assert epochs == [0, 1]
    for epoch, step in enumerate(seen):
        assert step["retain"] == RETAIN.index[epoch_order("retain", 6, 12, 3, epoch)].tolist()
    assert seen[0] != seen[1]


def test_a_phase_may_bring_other_rows_and_batches_than_the_arguments():
    seen: list[dict[str, list[int]]] = []
    other, labels = images(3, 500), []

    def loss(batch: Any) -> Loss:
        labels.append(batch["forget"].labels.tolist())
        return add_losses(batch)

    train(
        Phase("forget", noting(seen, loss), epochs=1, forget=other, batch_size=2),
        Phase("forget", noting(seen), epochs=1),
    )
    assert [len(step["forget"]) for step in seen] == [2, 1, 4, 2]
    assert sorted(seen[0]["forget"] + seen[1]["forget"]) == other.index.tolist()
    assert sorted(seen[2]["forget"] + seen[3]["forget"]) == FORGET.index.tolist()
    assert sorted(labels[0] + labels[1]) == [0, 1, 2]


def test_a_paired_step_brings_retain_rows_only_where_they_are_read():
    seen: list[dict[str, list[int]]] = []
    phase = Phase("paired", noting(seen), epochs=1, batch_size=99)
    train(phase)
    names = seen[0]["forget"]
    assert seen[0]["retain"] == [RETAIN.index[partner(3, 0, name, 6, 12)].item() for name in names]
    train(phase, needs=("nll",))
    train(phase, retain=None)
    assert [list(step) for step in seen[1:]] == [["forget"], ["forget"]]


@pytest.mark.parametrize("stream", ["retain", "covering", "mixed", "union"])
def test_refuses_a_stream_of_retain_rows_without_any(stream):
    model = net()
    before = hash_model(model)
    with pytest.raises(MethodError, match="Told reads retain rows, but there is no retain set"):
        train(Phase(stream, add_losses), model=model, retain=None)
    assert hash_model(model) == before


# --- what the model before said ---------------------------------------------------------------------------------------


def test_references_are_of_the_model_before_the_first_phase_and_found_by_name():
    before, gaps = net(), []

    def compare(batch: Any) -> Loss:
        for name, part in batch.present():
            expected = before({"forget": FORGET, "retain": RETAIN}[name].subset(part.index).pixels)
            gaps.append((part.reference_logits - expected).abs().max().item())
            assert not part.reference_logits.requires_grad
        return add_losses(batch)

    moves = Phase("retain", add_losses, epochs=2)
    train(moves, Phase("covering", compare, epochs=1), needs=("retain", "reference logits"))
    assert len(gaps) == 6
    assert max(gaps) < 1e-6  # in one batch of all rows and in batches of four


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phases", "rows"),
    [
        ([Phase("forget", add_losses, epochs=1)], 6),
        ([Phase("retain", add_losses, epochs=2)], 24),
        ([Phase("covering", add_losses, epochs=1)], 24),
        ([Phase("paired", add_losses, epochs=1)], 12),
        ([Phase("union", add_losses, epochs=1)], 18),
        ([Phase("union", add_losses, epochs=1, then=Phase("union", squared))], 36),
        ([Phase("retain", add_losses, epochs=1), Phase("forget", add_losses, epochs=1)], 18),
        ([Phase("retain", add_losses, epochs=0.5)], 8),
    ],
)
def test_every_update_costs_a_forward_and_a_backward_a_row(phases, rows):
    cost = Cost()
    train(*phases, cost=cost)
    assert cost.forwards == 3 * rows


def test_the_model_before_is_asked_once_for_a_row_whatever_the_phases():
    cost = Cost()
    relabelled = copy.copy(FORGET)
    phases = [Phase("covering", add_losses, epochs=1), Phase("covering", add_losses, epochs=1, forget=relabelled)]
    train(*phases, needs=("retain", "reference logits", "reference nll"), cost=cost)
    assert cost.forwards == 18 + 2 * 3 * 24
    cost = Cost()
    train(*phases, needs=("retain", "features", "reference logits", "reference features"), cost=cost)
    assert cost.forwards == 2 * 18 + 2 * 3 * 24  # features are a pass of their own


def test_a_line_an_epoch_is_logged_with_the_means_of_its_steps():
    watch, values = Watch(), []

    def loss(batch: Any) -> Loss:
        found = add_losses(batch)
        values.append(batch["retain"].nll.mean().item())
        return Loss({"number": float(len(values))}, **found.terms)

    train(Phase("retain", loss, epochs=2), callbacks=[watch])
    assert [line["number"] for line in watch.lines] == [2.0, 5.0]
    assert [line["retain_loss"] for line in watch.lines] == pytest.approx([sum(values[:3]) / 3, sum(values[3:]) / 3])


# --- what is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [False, True])
def test_flags_gradients_and_the_callers_random_state_come_back(breaks):
    model = net(dropout=0.5)
    model[1].bias.requires_grad_(False)
    bias = model[1].bias.detach().clone()
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    if breaks:
        with pytest.raises(NotFinite, match=r"stopped being finite at step \d \(retain .*\)\. Lower the learning rate"):
            train(Phase("retain", squared, epochs=9), model=model, args={"learning_rate": 1e20})
    else:
        train(Phase("retain", add_losses), model=model)
        assert not model.training
    assert torch.equal(torch.rand(3), expected)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model[1].bias, bias)


def test_dropout_is_a_function_of_the_seed():
    found = []
    for seed in (3, 3, 4):
        torch.rand(5)
        phase = Phase("retain", add_losses, epochs=1, batch_size=99)  # one step, so the order plays no part
        found.append(hash_model(train(phase, model=net(dropout=0.5), args={"seed": seed})))
    assert found[0] == found[1] != found[2]
    phase = Phase("retain", add_losses, epochs=1)
    off, none = (hash_model(train(phase, model=net(dropout=p), args={"mode": "eval"})) for p in (0.5, 0.0))
    assert off == none


def test_refuses_a_model_with_nothing_to_train():
    with pytest.raises(MethodError, match="no parameter of this model is to be trained"):
        train(Phase("retain", add_losses), model=net().requires_grad_(False))
