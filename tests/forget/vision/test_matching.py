"""Matching outputs: which rows stand in an epoch and how often, what they are compared by, and what is added to that."""

import math

import pytest
import torch
from small_toys import effects_for, small_net, small_sets

from unwrite.errors import DataError, NotFinite
from unwrite.forget import DMM
from unwrite.forget.engine.images.batch import ImagePart, PairedImages
from unwrite.forget.engine.images.matching import Matching, matching_loss, repeated, retain_rows
from unwrite.runs import hash_model


def dmm(**fields):
    return DMM(**{"retain_multiplier": 2.0, **fields})


def test_the_retain_subset_is_a_function_of_the_seed_and_of_published_size():
    _, retain = small_sets()
    first, again, other = (retain_rows(retain, 2, 10.7, seed).index for seed in (42, 42, 1))
    assert torch.equal(first, again)
    assert len(first) == int(10.7 * 2) == len(first.unique())
    assert not torch.equal(first.sort().values, other.sort().values)
    assert retain_rows(retain, 1, 0.5, 0) is None
    assert len(retain_rows(retain, 2, 10.8, 0)) == 21  # cut off, not rounded


def test_the_retain_rows_of_a_training_follow_from_its_seed_and_without_any_forget_rows_go_alone():
    forget, retain = small_sets()
    method = dmm(attributor=effects_for(forget, retain))
    rows = [
        method.phases(method.work(small_net(), forget, retain, args={"seed": seed}))[0].retain.index.tolist()
        for seed in (5, 5, 6)
    ]
    assert rows[0] == rows[1]
    assert sorted(rows[0]) != sorted(rows[2])
    alone = dmm(attributor=effects_for(forget, retain), retain_multiplier=0.0)
    phases = alone.phases(alone.work(small_net(), forget, retain))
    assert {(phase.stream, phase.retain) for phase in phases} == {("forget", None)}


def test_ten_rows_taken_two_and_a_half_times_are_twenty_five_the_first_five_thrice():
    counts = repeated(10, 2.5).bincount()
    assert counts.tolist() == [3] * 5 + [2] * 5
    assert repeated(10, 0.3).tolist() == [0, 1, 2]
    assert len(repeated(10, 2.3)) == 23  # 0.3 * 10 is below 3 in binary


def test_every_copy_of_a_forget_row_has_the_targets_of_that_row_and_every_epoch_all_copies():
    forget, retain = small_sets()
    effects = effects_for(forget, retain)
    method = dmm(attributor=effects, forget_multiplier=2.5)
    work = method.work(small_net(), forget, retain, args={"num_train_epochs": 2.5})
    targets = method.targets(work, {"forget": forget})["forget"]
    phases = method.phases(work)
    assert [phase.epochs for phase in phases] == [1, 1, 0.5]
    assert [phase.lr for phase in phases] == pytest.approx([1, 0.95, 0.95**2])
    copies = phases[0].forget
    assert len(copies) == 20
    assert not set(copies.index.tolist()) & set(retain.index.tolist())
    assert len(phases[0].retain) == 16
    model = small_net()
    row = [int((forget.pixels == one).flatten(1).all(1).nonzero()[0]) for one in copies.pixels]
    for at in (0, 7, 19):
        one = copies.subset(copies.index[[at]])
        part = method_part(one, model(one.pixels))
        loss = phases[0].loss(batch_of(forget=part)).terms["forget"].values
        assert torch.allclose(loss, matching_loss(part.logits, targets[[row[at]]]))


def method_part(rows, logits):
    return ImagePart(rows.index, rows.pixels, rows.target, 0, logits)


def batch_of(**parts):
    return PairedImages(**parts)


def test_losses_are_means_over_outputs_or_cross_entropy_to_the_softmax_of_the_targets():
    logits, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert matching_loss(logits, target).tolist() == [2.5]
    q = math.e / (1 + math.e)
    expected = -((1 - q) * math.log(1 / (1 + math.e**2)) + q * math.log(math.e**2 / (1 + math.e**2)))
    assert matching_loss(logits, target, "ce").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["mse", "ce"])
def test_forget_and_retain_rows_are_in_one_mean(loss_type):
    forget, retain = small_sets()
    model = small_net()
    method = dmm(attributor=effects_for(forget, retain), loss_type=loss_type)
    work = method.work(model, forget, retain)
    phase = method.phases(work)[0]
    parts, losses = {}, []
    for name, rows in (("forget", phase.forget[:3]), ("retain", phase.retain[:5])):
        parts[name] = method_part(rows, model(rows.pixels))
        own = forget if name == "forget" else retain
        same = [int((own.pixels == one).flatten(1).all(1).nonzero()[0]) for one in rows.pixels]
        targets = method.targets(work, {name: own.subset(own.index[same])})[name]
        losses.append(matching_loss(parts[name].logits, targets, loss_type))
    terms = phase.loss(PairedImages(**parts)).terms
    counts = {"all.rows": torch.tensor(8), "forget.rows": torch.tensor(3), "retain.rows": torch.tensor(5)}
    total = sum(term.total(counts) for term in terms.values())
    assert total.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_targets_that_are_no_numbers_are_refused_before_training():
    class Told(Matching):
        def targets(self, work, rows):
            return {name: torch.full((len(one), 4), torch.inf) for name, one in rows.items()}

    model = small_net()
    before = hash_model(model)
    with pytest.raises(NotFinite, match="the targets of forget rows are not finite"):
        Told(retain_multiplier=1.0).apply(model, *small_sets())
    assert hash_model(model) == before


def test_the_anchor_adds_the_squared_distance_to_the_weights_before():
    forget, retain = small_sets()
    model = small_net()
    method = dmm(attributor=effects_for(forget, retain), anchor=2.0)
    phase = method.phases(method.work(model, forget, retain))[0]
    with torch.no_grad():
        model.head.weight += 0.5
    one = phase.forget.subset(phase.forget.index[:1])
    anchor = phase.loss(batch_of(forget=method_part(one, model(one.pixels)))).terms["anchor"]
    assert anchor.total({}).item() == pytest.approx(2 * 0.25 * model.head.weight.numel(), rel=1e-4)


def test_refuses_more_retain_rows_than_there_are_and_less_than_one_forget_row():
    forget, retain = small_sets()
    with pytest.raises(DataError, match=r"retain_multiplier is 20, which asks for 160 retain rows .* and there are 32"):
        DMM().apply(small_net(), forget, retain)
    with pytest.raises(DataError, match=r"forget_multiplier is 0\.1, which takes none of 8 forget rows"):
        dmm(forget_multiplier=0.1).apply(small_net(), forget, retain)
