"""Concept poisoning of images: where concepts are, who lends, what is pasted and trained, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from poisoned_marks import BANK, CLASSES, SIDE, accuracy, drawn, marks, pictures, work
from torch import nn

from unwrite.audit import evaluate
from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import ConceptBank, ConceptPoison
from unwrite.forget.engine.images.concepts import ConceptCase, choose_case, donor_of
from unwrite.forget.engine.images.locating import corner, gradcam, margin_grid, peaks, peaks_of_map
from unwrite.forget.engine.images.poisoning import poisoned, some_of_each
from unwrite.models.vision_layout import vision_layout
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model

OFFICIAL = json.loads(Path(__file__).with_name("official_concepts.json").read_text(encoding="utf-8"))
TOY = torch.tensor([[5.0, 1, 0], [0, 4, 1], [2, 3, 6]])


@pytest.fixture(scope="module")
def trained():
    """(a net that knows the marks, rows to forget, rows to keep, unseen rows)."""
    torch.manual_seed(0)
    net = SmallCNN(CLASSES, 1, SIDE, 8)
    data, _ = pictures(96)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        some = torch.arange(32) + 32 * (step % 3)
        loss = nn.functional.cross_entropy(net(data.pixels[some]), data.labels[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unseen, _ = pictures(96, seed=1, first=1000)
    assert accuracy(net.eval(), unseen) > 0.95
    return net, data.where(data.labels == 2, "forget"), data.where(data.labels != 2, "retain"), unseen


@pytest.fixture
def sets():
    data, _ = pictures()
    return data.where(data.labels == 2, "forget"), data.where(data.labels != 2, "retain")


FAST = {"learning_rate": 0.05, "num_train_epochs": 8, "per_device_train_batch_size": 32}


def unlearned(trained, args=FAST, **fields):
    net, forget, retain, _ = trained
    return ConceptPoison(**{"encoder": marks, "bank": BANK, **fields}).apply(net, forget, retain, args=args, copy=True)


# 2: only the head


def test_only_the_head_changes_and_the_backbone_is_bit_identical(trained):
    after, before = unlearned(trained), trained[0].state_dict()
    moved = {name for name, value in after.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_batch_statistics_drift_unless_they_are_frozen(trained):
    before = trained[0].state_dict()
    statistics = [name for name in before if "running" in name]
    drifted, still = unlearned(trained).state_dict(), unlearned(trained, freeze_bn=True).state_dict()
    assert statistics
    assert not any(torch.equal(drifted[name], before[name]) for name in statistics)
    assert all(torch.equal(still[name], before[name]) for name in before if "head" not in name)


def test_all_weights_are_trained_where_that_is_asked_for(trained):
    after, before = unlearned(trained, head_only=False), trained[0].state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in after.named_parameters())


# 4 and 5: labels


def test_kept_labels_do_not_forget_and_targeted_labels_alone_do(trained):
    """The contrast that says what forgets: the label, not the patch."""
    _, forget, retain, unseen = trained
    for mode in ("none", "localized", "random"):
        fields = {"mode": mode, "patch_size": 3, "center_size": 3}
        kept, flipped = (unlearned(trained, labels=labels, **fields) for labels in ("keep", "targeted"))
        assert accuracy(kept, forget) >= 0.95
        assert accuracy(flipped, forget) <= 0.05
        for net in (kept, flipped):
            assert accuracy(net, retain) >= 0.95
            assert accuracy(net, unseen.where(unseen.labels != 2)) >= 0.8


def test_where_the_patch_covers_all_that_the_class_is_known_by_nothing_is_forgotten(trained):
    """Such a picture is one of the donor's class, under its own label: as a whole donor picture, it teaches nothing new."""
    _, forget, _, _ = trained
    covered = unlearned(trained, mode="full", full_size=SIDE)
    assert accuracy(covered, forget) >= 0.9


def test_random_labels_hold_the_class_itself_once_in_k_and_targeted_ones_never(sets):
    _, retain = sets
    rows = 4000
    many = Images(
        torch.zeros(rows, 1, SIDE, SIDE),
        labels=torch.full((rows,), 2),
        index=torch.arange(10_000, 10_000 + rows),
        classes=retain.classes,
    )
    job = work(many, retain)
    drawn_labels = ConceptPoison(mode="none", labels="random").poisoned_rows(job).labels
    counts = torch.bincount(drawn_labels, minlength=4) / rows
    assert torch.allclose(counts, torch.full((4,), 0.25), atol=0.03)  # four deviations
    targeted = ConceptPoison(mode="none", donor_class="row").poisoned_rows(job).labels
    assert set(targeted.tolist()) == {0}
    assert set(ConceptPoison(mode="none", labels="keep").poisoned_rows(job).labels.tolist()) == {2}


def test_features_are_what_they_were_so_a_probe_finds_the_class_again(trained):
    net, _, _, unseen = trained
    after = unlearned(trained, freeze_bn=True)
    before, now = (vision_layout(one, unseen.pixels[:2]).observe(unseen.pixels).features for one in (net, after))
    assert torch.equal(before, now)


# 6: who lends


def test_the_donor_rule_on_the_toy_weights():
    """Concept 0 is the strongest of class 0 alone; class 2 has most of it otherwise, but another strongest one."""
    assert choose_case(TOY, 0) == ConceptCase(0, 1, 1, "confusion")


def test_donors_agree_with_the_official_code():
    weights = drawn()[0]
    for theirs, matrix in ((OFFICIAL["donor"], TOY), (OFFICIAL["donor_random"], weights)):
        ours = [choose_case(matrix, c) for c in range(len(matrix))]
        assert [[one.target_concept, one.donor_class, one.donor_concept, one.rule] for one in ours] == theirs


def test_where_no_class_is_confused_the_strongest_concept_is_shared():
    weights = torch.tensor([[3.0, 0, 0], [2, 5, 0], [1, 5, 0]])
    assert choose_case(weights, 0, top=1) == ConceptCase(0, 1, 0, "shared")
    assert donor_of(weights, 1, 0) == 0


def test_what_is_given_goes_before_the_rule(sets):
    job = work(*sets)
    maker = ConceptPoison(encoder=marks, bank=BANK).poisoner(job)
    assert maker.case(target_concept="box").target_concept == 3
    given = maker.case(donor_class=1)
    assert (given.donor_class, given.donor_concept, given.rule) == (1, maker.bottleneck.strongest(1)[0], "given")
    lent = maker.case(donor_concept="row")
    assert (lent.donor_class, lent.donor_concept) == (donor_of(maker.bottleneck.weights, 2, 0), 0)
    assert maker.case(donor_concept="row", donor_class=3).donor_class == 3


# Encoders and locators


def test_without_an_encoder_the_models_own_features_and_clusters_serve(trained):
    net, forget, retain, _ = trained
    method = ConceptPoison(clusters=6)
    maker = method.poisoner(work(forget, retain, net))
    assert maker.bank.vectors.shape == (6, maker.work.layout.features_dim)
    case = method.case(maker)
    assert case.donor_class != 2
    after = method.apply(net, forget, retain, args=FAST, copy=True)
    assert accuracy(after, forget) <= 0.05


@pytest.mark.parametrize("locator", ["margin", "gradcam"])
def test_other_locators_move_the_place_and_not_the_donor(locator, sets, trained):
    forget, retain = sets
    job = work(forget, retain, trained[0])
    fields = {"encoder": marks, "bank": BANK, "patch_size": 5, "stride": 1}
    maker = ConceptPoison(**fields).poisoner(job)
    case = ConceptCase(2, 3, 3, "given")
    other = maker.pixels(forget, case, "localized", locator)
    if locator == "margin":
        expected = peaks(margin_grid(marks, forget.pixels, maker.bottleneck, 2, 5, 1), 5, 1)
    else:
        expected = peaks_of_map(gradcam(job.layout, forget.pixels, 2), SIDE, SIDE)
    assert maker.places(forget.pixels, 2, locator) == expected
    for row, place in enumerate(expected):
        top, left = corner(place, 5, SIDE, SIDE)
        changed = other[row, 0] != forget.pixels[row, 0]
        changed[top : top + 5, left : left + 5] = False
        assert not changed.any()


def test_the_suite_reports_accuracies_first(trained):
    from unwrite.data.images.splits import split_by_class

    net, forget, retain, unseen = trained
    split = split_by_class(forget.joined(retain), 2, test=unseen)
    report = evaluate(unlearned(trained, mode="none"), split, suite="class-membership", before=net)
    values = {name: score.value for name, score in report.columns["after"].items()}
    assert [*values][:2] == ["forget_accuracy", "test_forget_accuracy"]
    assert values["forget_accuracy"] <= 5
    assert values["forget_cka"] > 0.9
    assert 0 <= values["forgetting_rate"] <= 100


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "everywhere"}, "unknown mode 'everywhere'"),
        ({"labels": "wrong"}, "unknown labels 'wrong'"),
        ({"locator": "guess"}, "unknown locator 'guess'"),
        ({"top": 0}, "top is 0"),
        ({"share": 0.0}, "share is 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"head_only": 1}, "head_only is 1; use True or False"),
        ({"top": 2, "mode": "center"}, "top is 2, .* there is one place"),
        ({"top": 2, "locator": "gradcam"}, "top is 2, .* there is one place"),
    ],
)
def test_refuses_fields_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        ConceptPoison(**fields)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"donor_class": "slash"}, MethodError, "donor_class is 'slash', which is the class to forget"),
        ({"donor_class": "dot"}, MethodError, "unknown class 'dot'"),
        ({"target_concept": "antler", "bank": BANK, "encoder": marks}, MethodError, "unknown concept 'antler'"),
        ({"donor_concept": "boxx", "bank": BANK, "encoder": marks}, MethodError, "Did you mean 'box'"),
        ({"top": 5, "bank": BANK, "encoder": marks}, MethodError, "top is 5, and the bank has 4 concepts"),
        ({"patch_size": 17}, MethodError, "patch_size is 17, and the pictures have 16x16 pixels. Give at most 16"),
        ({"center_size": 17, "mode": "random"}, MethodError, "center_size is 17"),
        (
            {"bank": ConceptBank(("a",), torch.ones(1, 3)), "encoder": marks},
            ModelError,
            "5 features and the bank's vectors 3",
        ),
        ({"encoder": lambda pixels: pixels}, ModelError, r"the encoder gives \[\d+, 1, 16, 16\]"),
        ({"encoder": lambda pixels: pixels.flatten(1) / 0}, ModelError, "not finite"),
    ],
)
def test_refuses_what_does_not_fit_these_rows_before_anything_changes(fields, error, message, sets):
    job = work(*sets)
    before = hash_model(job.model)
    with pytest.raises(error, match=message):
        ConceptPoison(**fields).apply(job.model, *sets)
    assert hash_model(job.model) == before


def test_refuses_a_class_that_is_not_forgotten_whole_and_several_classes(sets):
    forget, retain = sets
    with pytest.raises(DataError, match="forgets a whole class, and the retain set still has rows of slash"):
        ConceptPoison().apply(
            work(*sets).model, forget.subset(forget.index[:5]), retain.joined(forget.subset(forget.index[5:]))
        )
    data, _ = pictures()
    with pytest.raises(DataError, match=r"forgets at most 1 class, and .* has rows of 2"):
        ConceptPoison().apply(work(*sets).model, data.where(data.labels < 2), data.where(data.labels >= 2))


def test_refuses_classes_without_training_rows(sets):
    forget, retain = sets
    fewer = retain.where(retain.labels != 3)
    with pytest.raises(DataError, match="box has no training rows, so nothing is known of its concepts"):
        ConceptPoison(encoder=marks, bank=BANK).apply(work(*sets).model, forget, fewer)
    with pytest.raises(DataError, match="the class 'box' has no rows to keep, so it can lend nothing"):
        ConceptPoison(donor_class="box").apply(work(*sets).model, forget, fewer)


def test_refuses_another_number_of_poisoned_pictures_or_labels_than_there_are_rows(sets):
    forget, _ = sets
    with pytest.raises(DataError, match="there are 11 poisoned pictures for the 12 rows of forget"):
        poisoned(forget, forget.pixels[1:], forget.labels)
    with pytest.raises(DataError, match="there are 13 poisoned labels for the 12 rows"):
        poisoned(forget, forget.pixels, torch.zeros(13, dtype=torch.int64))


def test_half_of_every_class_is_drawn_by_the_seed_and_poisoned_alone(sets):
    forget, retain = sets
    half = some_of_each(retain, 0.5, 3)
    assert torch.equal(torch.bincount(half.labels, minlength=4), torch.bincount(retain.labels, minlength=4) // 2)
    assert torch.equal(half.index, some_of_each(retain, 0.5, 3).index)
    assert not torch.equal(half.index, some_of_each(retain, 0.5, 4).index)
    method = ConceptPoison(mode="none", donor_class="row", share=0.5)
    [phase] = method.phases(work(forget, retain))
    assert (len(phase.forget), len(phase.retain)) == (len(forget) // 2, len(half))
