"""Blindspot and Gaussian amnesiac unlearning: the batch algebra, attention maps, what the blind model sees, the draws."""

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import Objective
from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.images.batch import ImagePart, add_losses
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.engine.phase import Phase
from unwrite.forget.engine.stream import epoch_order
from unwrite.forget.vision.regression import (
    Blindspot,
    GaussianAmnesiac,
    attention_gap,
    attention_map,
    residual,
)
from unwrite.models import TrainRecipe
from unwrite.models.vision_layout import Observed
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model

OFFICIAL = json.loads((Path(__file__).parent / "official_regression.json").read_text())
SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": 8}


def wave(*shape, at=0.0):
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * numbers + at).reshape(shape).float()


class Recording(nn.Module):
    """A regressor that remembers the pixels it was trained on."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 1)

    def forward(self, pixels):
        if self.training:
            Recording.seen.append(pixels.detach().clone())
        return self.head(torch.relu(self.conv(pixels)).mean((2, 3)))


class Column(nn.Module):
    """A regressor that returns `[rows]`."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixels):
        return self.inner(pixels)[:, 0]


def recipe(build):
    return TrainRecipe(lambda seed: build(), lambda *_: None, name="untrained")


SMALL = recipe(lambda: SmallCNN(num_classes=1, width=2))


@pytest.fixture(scope="module")
def sets():
    torch.manual_seed(0)
    pixels = torch.rand(40, 1, 8, 8)
    data = Images(pixels, targets=10 * pixels.mean((1, 2, 3)) + torch.rand(40))
    low = data.targets.argsort()[:10]
    return data.subset(data.index[low], "forget"), data.subset(data.index[data.targets.argsort()[10:]], "retain")


@pytest.fixture
def net():
    torch.manual_seed(1)
    return SmallCNN(num_classes=1, width=2).eval()


@dataclass
class Blind:
    """What a blind model says, without one."""

    logits: torch.Tensor
    blocks: tuple = ()

    def observe(self, pixels):
        return Observed(self.logits, torch.empty(0), self.blocks)


def part(outputs, target, blocks=()):
    rows = len(outputs)
    outputs, target = torch.as_tensor(outputs).reshape(rows, 1), torch.as_tensor(target)
    return ImagePart(torch.arange(rows), torch.zeros(rows, 1, 1, 1), target, logits=outputs, blocks=blocks)


def total(batch, loss):
    sizes = {f"{name}.rows": torch.tensor(float(len(one.index))) for name, one in batch.present()}
    sizes["all.rows"] = torch.stack(list(sizes.values())).sum()
    return torch.stack([term.total(sizes) for term in loss.terms.values()]).sum()


def blindspot(batch, blind=None, **fields):
    """The loss of one batch, a scalar."""
    work = ImageWork(model=nn.Identity(), forget=None)
    return total(batch, Blindspot(**fields).blindspot(work, blind, batch))


def test_a_batch_weighs_forget_and_retain_rows_by_their_numbers():
    """The card's numbers: L_f = 0.5, L_r = 1, so the loss is 0.75."""
    forget, retain = part([1.0, 2.0], [9.0, 9.0]), part([3.0, 4.0], [3.0, 6.0])
    blind = Blind(torch.tensor([[2.0], [2.0]]))
    assert blindspot(PairedBatch(forget, None, retain), blind, beta=0.0).item() == 0.75
    assert blindspot(PairedBatch(forget), blind, beta=0.0).item() == 0.5
    assert blindspot(PairedBatch(retain=retain), beta=0.0).item() == 1.0
    # One forget row and two retain rows: (1 + 0 + 2) / 3.
    one = PairedBatch(part([1.0], [9.0]), None, retain)
    assert blindspot(one, Blind(torch.tensor([[2.0]])), beta=0.0).item() == pytest.approx(1.0)
    assert blindspot(PairedBatch(forget, None, retain), blind, beta=0.0, error="mse").item() == 0.25 + 1.0


def test_a_batch_of_retain_rows_is_plain_training_bit_for_bit():
    outputs = wave(7, at=1.0).requires_grad_()
    batch = PairedBatch(retain=part(outputs, wave(7, at=2.0)))
    ours, theirs = blindspot(batch), total(batch, add_losses(batch))
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, outputs, retain_graph=True)[0] for loss in (ours, theirs)))


@dataclass(frozen=True, kw_only=True)
class Plain(Objective):
    """Ordinary training on all rows, in the order that Blindspot has."""

    forgets: ClassVar = ("images",)
    training: ClassVar = Blindspot.training

    def loss(self, batch):
        return add_losses(batch)

    def phases(self, work):
        return [Phase("union", self.loss)]


def test_steps_without_forget_rows_are_plain_training_bit_for_bit(net, sets):
    """Up to the step that brings the only forget row, which is number 0; that step differs."""
    forget, retain = sets[0].subset(sets[0].index[:1]), sets[1]
    places = {seed: epoch_order("union", 1, len(retain), seed, 0).index(0) for seed in range(20)}
    seed = next(seed for seed, place in places.items() if place >= 16)
    for steps, same in ((places[seed] // 8, True), (places[seed] // 8 + 1, False)):
        args = {**SHORT, "max_steps": steps, "seed": seed}
        ours, theirs = (
            hash_model(method.apply(net, forget, retain, recipe=SMALL, args=args, copy=True))
            for method in (Blindspot(), Plain())
        )
        assert (ours == theirs) == same
        assert ours != hash_model(net)


def test_a_batch_of_forget_rows_is_distillation_and_reads_no_target():
    outputs, wanted = wave(5, at=1.0), wave(5, 1, at=2.0)
    for target in (wave(5), wave(5, at=9.0)):
        loss = blindspot(PairedBatch(part(outputs, target)), Blind(wanted), beta=0.0)
        assert loss.item() == pytest.approx(nn.functional.l1_loss(outputs[:, None], wanted).item())


def test_attention_map_is_the_normalised_mean_square_over_channels():
    activation = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # two channels, two positions
    assert activation.square().mean(1).flatten().tolist() == [0.5, 2.0]
    assert attention_map(activation)[0].tolist() == pytest.approx([0.2425, 0.9701], abs=1e-4)
    torch.testing.assert_close(attention_map(-37 * activation), attention_map(activation))
    assert torch.equal(attention_map(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 16))


def test_attention_of_sequences_takes_the_mean_over_dimension_one():
    activation = wave(2, 3, 5)
    expected = nn.functional.normalize(activation.square().mean(1))
    assert attention_map(activation).shape == (2, 5)
    torch.testing.assert_close(attention_map(activation), expected)


def test_layers_without_positions_add_nothing():
    mine, theirs = (wave(2, 3, 2, 2), wave(2, 6)), (wave(2, 3, 2, 2, at=1.0), wave(2, 6, at=1.0))
    assert torch.equal(attention_gap(mine, theirs), attention_gap(mine[:1], theirs[:1]))


def test_loss_is_the_official_one():
    ours = [wave(5, 3, 4, 4, at=2.0), wave(5, 2, 2, 2, at=3.0)]
    blind = [wave(5, 3, 4, 4, at=4.0), wave(5, 2, 2, 2, at=5.0)]
    forget, retain = [0, 2], [1, 3, 4]
    outputs, proxy, target = wave(5, 1), wave(5, 1, at=1.0), wave(5, 1, at=6.0)[:, 0]
    assert attention_map(ours[1])[0].tolist() == pytest.approx(OFFICIAL["attention"], rel=1e-5)
    assert attention_gap(ours[:1], blind[:1]).mean().item() == pytest.approx(OFFICIAL["gap"], rel=1e-5)
    said = Blind(proxy[forget], tuple(block[forget] for block in blind))
    batch = PairedBatch(
        part(outputs[forget], target[forget], tuple(block[forget] for block in ours)),
        None,
        part(outputs[retain], target[retain]),
    )
    assert blindspot(PairedBatch(batch.forget), said).item() == pytest.approx(OFFICIAL["forget"], rel=1e-5)
    assert blindspot(batch, said).item() == pytest.approx(OFFICIAL["total"], rel=1e-5)


@pytest.mark.parametrize("error", ["l1", "mse"])
def test_a_student_that_is_the_blind_model_has_no_loss_and_no_gradient(net, sets, error):
    work = ImageWork(model=net, forget=sets[0], retain=sets[1])
    pixels = sets[0].pixels
    seen = work.layout.observe(pixels)
    batch = PairedBatch(ImagePart(sets[0].index, pixels, sets[0].target, logits=seen.logits, blocks=seen.blocks))
    assert torch.equal(attention_gap(seen.blocks, seen.blocks), torch.zeros(len(pixels)))
    loss = total(batch, Blindspot(error=error).blindspot(work, work.layout, batch))
    assert loss.item() == 0
    grads = torch.autograd.grad(loss, list(net.parameters()))
    assert all((grad == 0).all() for grad in grads)


def test_the_blind_model_never_sees_forget_rows_and_gets_no_gradient_afterwards(sets):
    """Every row of pixels in a training forward is looked up by its content."""
    torch.manual_seed(1)
    work = ImageWork(model=SmallCNN(num_classes=1, width=2).eval(), forget=sets[0], retain=sets[1])
    Recording.seen = []
    blind = Blindspot(blind_epochs=3).blind_model(work, Recording(), 0, 8)
    rows = torch.cat(Recording.seen)
    assert len(rows) == 3 * len(sets[1])
    assert not any((rows == image).flatten(1).all(1).any() for image in sets[0].pixels)
    assert all((rows == image).flatten(1).all(1).sum() == 3 for image in sets[1].pixels)
    assert not blind.training
    assert not any(parameter.requires_grad for parameter in blind.parameters())


def test_the_blind_model_stays_as_it_was_while_the_student_trains(net, sets):
    kept = []

    class Keeping(Blindspot):
        def phases(self, work):
            found = super().phases(work)
            blind = found[0].loss.args[1].model
            kept.append((blind, hash_model(blind)))
            return found

    unlearned = Keeping().apply(net, *sets, recipe=SMALL, args=SHORT, copy=True)
    ((blind, before),) = kept
    assert hash_model(blind) == before
    assert not blind.training
    assert all(parameter.grad is None for parameter in blind.parameters())
    assert hash_model(unlearned) != hash_model(net)


def test_of_the_blind_epochs_the_best_on_retain_rows_is_taken(net, sets):
    work = ImageWork(model=net, forget=sets[0], retain=sets[1])
    told, states = iter([3.0, 1.0, 2.0]), []

    class Scripted(Blindspot):
        def _error(self, work, model):
            states.append(hash_model(model))
            return next(told)

    blind = Scripted(blind_epochs=3).blind_model(work, SMALL.build(0), 0, 8)
    assert len(set(states)) == 3
    assert hash_model(blind) == states[1]


def test_blindspot_is_a_function_of_the_seed_whatever_the_random_state(net, sets):
    hashes = []
    for seed in (0, 0, 1):
        torch.rand(5)
        args = {**SHORT, "seed": seed}
        hashes.append(hash_model(Blindspot().apply(net, *sets, recipe=SMALL, args=args, copy=True)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_blindspot_moves_forget_outputs_toward_the_blind_model(net, sets):
    forget, retain = sets
    optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    net.train()
    data = retain.joined(forget)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.l1_loss(net(data.pixels)[:, 0], data.targets).backward()
        optimiser.step()
    net.eval()
    args = {"num_train_epochs": 12, "learning_rate": 5e-3, "per_device_train_batch_size": 16}
    unlearned = Blindspot(blind_epochs=8, blind_lr=0.03).apply(net, *sets, recipe=SMALL, args=args, copy=True)
    with torch.no_grad():
        off = [[float((m(r.pixels)[:, 0] - r.targets).abs().mean()) for r in sets] for m in (net, unlearned)]
    assert off[1][0] > 1.3 * off[0][0]
    assert off[1][1] < off[1][0]


def test_warns_where_the_blind_model_guesses(net, sets):
    class Linear(nn.Module):
        """Its best weights, below, can be written down."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 8)
            self.head = nn.Linear(1, 1)

        def forward(self, pixels):
            return self.head(self.conv(pixels).flatten(1))

    perfect = Linear()
    with torch.no_grad():
        perfect.conv.weight.fill_(10 / 64)
        perfect.conv.bias.zero_()
        perfect.head.weight.fill_(1.0)
        perfect.head.bias.fill_(0.5)
    with pytest.warns(UserWarning, match=r"the blind model's error on retain rows is .* Raise blind_epochs"):
        Blindspot(blind_epochs=1, blind_lr=1e-6).apply(perfect, *sets, recipe=recipe(Linear), args=SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Blindspot(blind_epochs=20, blind_lr=0.05).apply(net, *sets, recipe=SMALL, args=SHORT)


@pytest.mark.parametrize("method", [Blindspot(), GaussianAmnesiac(), GaussianAmnesiac(error="mse")])
def test_targets_and_outputs_of_a_row_or_a_column_give_the_same_weights(net, sets, method):
    columns = [Images(rows.pixels, targets=rows.targets[:, None], index=rows.index) for rows in sets]
    ours = method.apply(net, *sets, recipe=SMALL, args=SHORT, copy=True)
    theirs = method.apply(net, *columns, recipe=SMALL, args=SHORT, copy=True)
    assert hash_model(ours) == hash_model(theirs)
    wrapped = recipe(lambda: Column(SmallCNN(num_classes=1, width=2)))
    flat = method.apply(Column(net), *sets, recipe=wrapped, args=SHORT, copy=True)
    assert hash_model(flat.inner) == hash_model(ours)


def test_a_column_against_a_row_is_refused_where_it_would_broadcast():
    with pytest.raises(MethodError, match=r"outputs \[3, 1\] and targets \[3\] are not both \[rows\]"):
        residual(torch.zeros(3, 1), torch.zeros(3))


def test_one_forget_row_can_be_forgotten(net, sets):
    one = sets[0].subset(sets[0].index[:1])
    for method in (Blindspot(), GaussianAmnesiac()):
        before = hash_model(net)
        assert hash_model(method.apply(net, one, sets[1], recipe=SMALL, args=SHORT, copy=True)) != before


def test_cost_counts_the_blind_model_and_its_looks(net, sets):
    cost = Cost()
    Blindspot(blind_epochs=2).apply(net, *sets, recipe=SMALL, args={**SHORT, "num_train_epochs": 1}, cost=cost)
    forget, retain = map(len, sets)
    blind = 2 * retain * (3 + 1) + 2 * retain  # trained and measured twice; then compared with the model
    assert cost.forwards == blind + 3 * (forget + retain) + forget


def test_refuses_what_has_no_meaning(net, sets):
    forget, retain = sets
    labelled = Images(torch.rand(8, 1, 8, 8), labels=torch.arange(8) % 2)
    parts = labelled.subset(range(4)), labelled.subset(range(4, 8))
    for method in (Blindspot(), GaussianAmnesiac()):
        with pytest.raises(DataError, match=r"needs regression targets, and .* has labels"):
            method.apply(SmallCNN(num_classes=2, width=2), *parts, recipe=SMALL)
        with pytest.raises(DataError, match="needs a retain set"):
            method.apply(net, forget, recipe=SMALL)
    with pytest.raises(MethodError, match="Blindspot needs a fresh model of the same kind"):
        Blindspot().apply(net, forget, retain)
    with pytest.raises(ModelError, match="not built like"):
        Blindspot().apply(net, forget, retain, recipe=recipe(lambda: SmallCNN(num_classes=1, width=4)))
    for fields, message in (
        ({"beta": -1.0}, "beta is -1"),
        ({"blind_epochs": 0}, "blind_epochs is 0"),
        ({"blind_lr": 0.0}, "blind_lr is 0"),
        ({"error": "huber"}, "unknown error 'huber'"),
    ):
        with pytest.raises(MethodError, match=message):
            Blindspot(**fields)


def test_refuses_attention_maps_of_a_model_without_positions(sets):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 1))

    with pytest.raises(MethodError, match=r"no attention maps to compare\. Set beta=0"):
        Blindspot().apply(build(), *sets, recipe=recipe(build), args=SHORT)
    Blindspot(beta=0.0).apply(build(), *sets, recipe=recipe(build), args=SHORT)
