"""Bad-T: which teacher a row has, the loss and its scale, and the authors' own numbers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from trained_inputs import wave_logits
from trained_toys import RECIPE, Log, accuracy, net, nll, same, split, state, targets, unlearn, work_of

from unwrite.audit.images.accuracy import zero_retrain_forgetting
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.images.batch import ImagePart
from unwrite.forget.vision.bad_teacher import BadTeacher, imitation
from unwrite.models.image_training import image_recipe
from unwrite.nets import SmallResNet

OFFICIAL = json.loads((Path(__file__).parent / "official_trained.json").read_text())
LOOK = {"learning_rate": 0.0, "mode": "eval", "per_device_train_batch_size": 500}
STRONG = {"learning_rate": 0.01, "num_train_epochs": 10}


def part(logits, teacher):
    index = torch.arange(len(logits))
    return ImagePart(index, torch.zeros(len(logits), 1, 1, 1), index % 4, logits=logits, reference_logits=teacher)


def loss_of(batch, **fields):
    terms = BadTeacher(**fields).loss(batch).terms
    count = sum(len(one.index) for _, one in batch.present())
    return sum(term.total({"all.rows": torch.tensor(float(count))}) for term in terms.values())


def test_a_student_equal_to_the_model_before_has_no_loss_on_retain_rows():
    before = wave_logits(1)
    assert imitation(before, before, 1.0).abs().max() < 1e-6
    log = Log()
    unlearn(BadTeacher(), args=LOOK, callbacks=[log])
    assert log.lines[0]["retain_loss"] == pytest.approx(0, abs=1e-6)


def test_the_loss_of_forget_rows_is_the_divergence_from_the_random_teacher():
    log, model = Log(), net()
    unlearn(BadTeacher(), model, args={**LOOK, "seed": 5}, callbacks=[log])
    fresh, rows = work_of(BadTeacher()).fresh(5).eval(), split().forget.pixels
    p, q = fresh(rows).softmax(1), model(rows).softmax(1)
    together = len(rows) + int(0.3 * len(split().retain))
    assert log.lines[0]["forget_loss"] == pytest.approx(((p * (p / q).log()).sum() / together).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_where_all_rows_have_one_teacher_the_loss_is_the_divergence_from_it(kind):
    student, teacher = wave_logits(0), wave_logits(1)
    p = teacher.softmax(1)
    expected = (p * (p / student.softmax(1)).log()).sum() / 6
    torch.testing.assert_close(loss_of(PairedBatch(**{kind: part(student, teacher)})), expected)
    assert loss_of(PairedBatch(**{kind: part(teacher, teacher)})).abs() < 1e-7  # rounding in float32


def test_each_row_has_one_teacher_so_targets_sum_to_one():
    student, before, random = (wave_logits(number) for number in range(3))
    u = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])[:, None]
    mixed = u * random.softmax(1) + (1 - u) * before.softmax(1)
    torch.testing.assert_close(mixed.sum(1), torch.ones(6))
    forget, kept = u[:, 0] == 1, u[:, 0] == 0
    ours = loss_of(PairedBatch(forget=part(student[forget], random[forget]), retain=part(student[kept], before[kept])))
    torch.testing.assert_close(ours, F.kl_div(student.log_softmax(1), mixed, reduction="batchmean"))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_official_loss_is_ours_over_the_number_of_classes(temperature):
    student, before, random = (wave_logits(number) for number in range(3))
    forget = torch.tensor(OFFICIAL["bad_teacher"]["forget"]).bool()
    batch = PairedBatch(forget=part(student[forget], random[forget]), retain=part(student[~forget], before[~forget]))
    theirs = OFFICIAL["bad_teacher"]["losses"][str(temperature)]
    assert loss_of(batch, temperature=temperature).item() / 4 == pytest.approx(theirs, rel=1e-5)


def test_the_official_zrf_is_the_option_of_that_name():
    found = zero_retrain_forgetting(wave_logits(0).numpy(), wave_logits(2).numpy(), zrf="repo")
    assert found.value == pytest.approx(OFFICIAL["zrf"]["value"], rel=1e-5)


def test_a_share_of_the_retain_set_is_drawn_once_by_the_seed():
    def kept(share, **args):
        (phase,) = BadTeacher(share=share).phases(work_of(BadTeacher(), **args))
        assert phase.stream == "union"
        assert phase.forget is None  # the forget set as it is
        return set(phase.retain.index.tolist())

    assert len(kept(0.3)) == int(0.3 * len(split().retain))
    assert kept(0.3) == kept(0.3)
    assert kept(0.3) != kept(0.3, seed=1)
    assert len(kept(1e-6)) == 1
    assert kept(1.0) == set(split().retain.index.tolist())


def test_teachers_are_asked_once_and_the_one_before_stays():
    model, cost = net(), Cost()
    unlearn(BadTeacher(), model, args={"num_train_epochs": 2}, cost=cost)
    rows = len(split().forget) + int(0.3 * len(split().retain))
    assert cost.forwards == rows + 2 * 3 * rows
    assert not same(model, net())


def test_no_label_is_read():
    other = dataclasses.replace(split().forget, labels=(split().forget.labels + 1) % 4)
    parts = dataclasses.replace(split(), forget=other)
    assert same(unlearn(BadTeacher(), parts=parts), unlearn(BadTeacher()))


def test_forgets_and_keeps_the_rest():
    model = unlearn(BadTeacher(), args=STRONG)
    random = work_of(BadTeacher()).fresh(42).eval()
    rows = split().forget.pixels
    with torch.no_grad():
        before, after = (zero_retrain_forgetting(m(rows).numpy(), random(rows).numpy()).value for m in (net(), model))
    assert after > before + 0.1
    assert nll(model, split().forget) > 10 * nll(net(), split().forget)
    assert accuracy(model, split().retain) > 0.9


def test_refuses_what_has_no_meaning():
    for fields, told in (
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"temperature": 0}, "temperature is 0"),
    ):
        with pytest.raises(MethodError, match=told):
            BadTeacher(**fields)
    with pytest.raises(MethodError, match="BadTeacher needs a fresh model of the same kind"):
        unlearn(BadTeacher(), recipe=None)
    with pytest.raises(DataError, match="has regression targets"):
        BadTeacher().apply(net(), targets(split().forget), targets(split().retain), recipe=RECIPE)
    model, before = net(), state(net())
    with pytest.raises(ModelError, match="is not built like the SmallCNN"):
        unlearn(BadTeacher(), model, recipe=image_recipe(SmallResNet, epochs=1, num_classes=4, width=4))
    assert same(before, model)
    with pytest.raises(MethodError, match="forget rows have no teacher"):
        BadTeacher().loss(PairedBatch(forget=part(wave_logits(0), None)))
