"""LAF, further: where its alignment begins, which teacher it has, and the whole training by hand with two optimisers."""

import copy
import math

import pytest
import torch
from small_toys import small_net, small_sets
from torch.nn import functional as F
from trained_toys import Log

from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.images.batch import ImagePart
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.engine.stream import epoch_order, partner
from unwrite.forget.vision.laf import LAF, Unlearning, alignment_loss
from unwrite.runs import hash_model

BATCH, SEED = 4, 5
SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": BATCH, "seed": SEED}
TAU = 2.0
FEW = {"extractor_lr": 1e-3, "alignment_lr": 3e-3, "vae_epochs": 1, "tau": TAU}


@pytest.fixture(scope="module")
def sets():
    return small_sets()


@pytest.fixture
def net():
    return small_net()


@pytest.mark.parametrize(("retain", "forget"), [(32, 32), (5, 3), (1, 7), (4, 1)])
@pytest.mark.parametrize("tau", [0.3, 20.0])
def test_where_nothing_has_moved_the_alignment_is_minus_retain_rows_log_forget_rows(retain, forget, tau):
    found = alignment_loss(torch.zeros(retain), torch.zeros(forget), tau)
    assert found.item() == pytest.approx(-retain * math.log(forget), rel=1e-6, abs=1e-6)


def test_a_training_begins_at_that_value(net, sets):
    """Without a rate for the extractor's step, which comes first, the alignment's first loss is the card's."""
    log = Log()
    LAF(**FEW | {"extractor_lr": 0.0, "alignment_lr": 0.0}).apply(net, *sets, args=SHORT, callbacks=[log])
    expected = -BATCH * math.log(BATCH)
    assert [line["alignment_loss"] for line in log.lines] == pytest.approx([expected] * 2, abs=1e-5)


def test_the_teacher_of_every_step_is_the_model_before(net, sets, monkeypatch):
    work = ImageWork(model=copy.deepcopy(net), forget=sets[0], retain=sets[1])
    features = {rows.name: work.features(work.model, rows) for rows in sets}
    gaps, inner = [], Unlearning.alignment

    def watched(self, batch):
        for rows, (name, part) in zip(sets, batch.present(), strict=True):
            assert rows.name == name
            wanted = features[name][rows.positions(part.index)]
            gaps.append(((part.reference_features - wanted).abs().max(), (part.features - wanted).abs().max()))
            assert not part.reference_features.requires_grad
        return inner(self, batch)

    monkeypatch.setattr(Unlearning, "alignment", watched)
    LAF(**FEW).apply(net, *sets, args=SHORT)
    teacher, student = (torch.stack(values) for values in zip(*gaps, strict=True))
    assert len(teacher) == 2 * 2 * 2
    assert teacher.max() == 0
    assert student.min() > 0  # the extractor's step comes before


def trained_by_hand(net, sets, losses, builds, epochs=2):
    """The training loop of the card: in every step L_UE, forwards anew, then L_RA; `builds` make their optimisers."""
    model = copy.deepcopy(net)
    layout = ImageWork(model=model, forget=sets[0], retain=sets[1]).layout
    before = ImageWork(model=net, forget=sets[0], retain=sets[1]).layout
    optimisers = builds(list(model.parameters()))
    for epoch in range(epochs):
        order = epoch_order("paired", 8, 32, SEED, epoch)
        for first in range(0, 8, BATCH):
            rows = order[first : first + BATCH]
            mine = sets[0][rows], sets[1][[partner(SEED, epoch, row, 8, 32) for row in rows]]
            for number, optimiser in enumerate(optimisers):
                parts = [ImagePart(some.index, some.pixels, some.target, epoch) for some in mine]
                for part in parts:
                    part.features = layout.observe(part.pixels).features
                optimiser.zero_grad()
                if number == 0:
                    batch = PairedBatch(forget=parts[0], retain=parts[1])
                    losses.extractor(batch).terms["extractor"].total({}).backward()
                else:
                    taught = [before.observe(part.pixels).features.detach() for part in parts]
                    forget, retain = (
                        1 - F.cosine_similarity(part.features, old) for part, old in zip(parts, taught, strict=True)
                    )
                    (retain.exp() / (forget / TAU).exp().sum()).log().sum().backward()
                optimiser.step()
    return model


def two(parameters):
    return [torch.optim.Adam(parameters, lr=FEW[name]) for name in ("extractor_lr", "alignment_lr")]


def merged(parameters):
    """One state of moments under both rates."""
    first, second = two(parameters)
    second.state = first.state
    return [first, second]


def swapped(parameters):
    return two(parameters)[::-1]


def test_the_training_is_the_one_by_hand_with_two_adams_in_turn_and_no_other(net, sets):
    work = LAF(**FEW).work(copy.deepcopy(net), *sets[:2], args=SHORT)
    losses = LAF(**FEW).phases(work)[0].loss.__self__
    found = LAF(**FEW).apply(net, *sets, args=SHORT, copy=True)

    def far(builds):
        other = trained_by_hand(net, sets, losses, builds)
        return max(
            float((a - b).detach().abs().max()) for a, b in zip(found.parameters(), other.parameters(), strict=True)
        )

    assert far(two) < 1e-5  # a hundredth of a step of Adam
    assert far(merged) > 1e-4
    assert far(swapped) > 1e-4
    assert hash_model(found) != hash_model(net)
