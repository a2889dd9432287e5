"""MUFAC: NoMUS and its loss attack, identities that aren't the label, what its baselines leave alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny import make_image_recipe, make_image_split, make_images
from unwrite.audit import check_identities, evaluate, loss_attack, nomus
from unwrite.audit.images import identities as who
from unwrite.audit.images.context import ImageContext
from unwrite.beds import persons as persons_bed
from unwrite.beds.images import BEDS as IMAGES
from unwrite.beds.images import GLYPHS, ImageBed
from unwrite.beds.persons import BEDS
from unwrite.bench.sweep import run_trial, trials_of
from unwrite.bench.sweep_kinds import Contender
from unwrite.bench.sweep_table import markdown, summary
from unwrite.data.images.images import Images
from unwrite.data.images.sets import TrainTest
from unwrite.data.images.splits import ImageSplit
from unwrite.errors import DataError, MethodError
from unwrite.forget.gradient_ascent import GradientAscent
from unwrite.forget.vision.fine_tuning import CFk
from unwrite.forget.vision.scrub import distillation
from unwrite.runs import hash_model

RNG = np.random.default_rng(0)


def of(persons: tuple[str, ...], seed: int) -> Images:
    rows = make_images(seed=seed)
    return replace(rows, identity=torch.arange(48) % len(persons), identities=persons)


def persons() -> ImageSplit:
    both = ("ann", "bert")
    forget, retain = (replace(of(both, seed), identity=torch.full((48,), at)) for at, seed in enumerate((0, 1)))
    return ImageSplit(forget, retain, holdout=of(("cora",), 2), test=of(("dov", "eve"), 3), name="persons")


@pytest.fixture(scope="module")
def split() -> ImageSplit:
    return persons()


def net(seed: int) -> nn.Module:
    return make_image_recipe().build(seed).eval()


# NoMUS and its attack


@pytest.mark.parametrize(
    ("accuracy", "away", "value"),
    [(0.5951, 0.2136, 0.58395), (0.4880, 0.0445, 0.6995), (0.5633, 0.0953, 0.68635), (0.9073, 0.0478, 0.90585)],
)
def test_nomus_is_that_of_the_papers_table_and_sees_no_side(accuracy: float, away: float, value: float) -> None:
    assert nomus(accuracy, 0.5 + away) == pytest.approx(value, abs=1e-9)
    assert nomus(accuracy, 0.5 - away) == pytest.approx(value, abs=1e-9)


def test_guessing_among_eight_classes_scores_nearly_as_the_model_before() -> None:
    assert nomus(0.125, 0.5) == 0.5625
    assert nomus(0.8, 1.0, lam=1.0) == pytest.approx(0.8)
    assert nomus(0.8, 0.75, lam=0.0) == pytest.approx(0.5)


def test_an_attack_on_one_distribution_is_at_chance_and_on_two_apart_certain() -> None:
    losses = RNG.exponential(size=(2, 500))
    deviation = 3 * math.sqrt(0.25 / (10 * 0.1 * 2 * 500))
    assert loss_attack(*losses) == pytest.approx(0.5, abs=deviation)
    m = loss_attack(np.zeros(60), np.full(60, 5.0))
    assert m == 1
    assert nomus(0.7, m) == pytest.approx(0.35)
    assert loss_attack(np.full(60, 5.0), np.zeros(60)) == 1  # forgotten too much tells as well


def test_an_attack_is_the_official_one_where_the_sides_are_as_long() -> None:
    """Logistic regression on the loss, ten stratified splits of seed 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    forget, unseen = RNG.exponential(size=80), RNG.exponential(size=80) + 0.4
    drawn = np.random.default_rng(42)
    inside, outside = drawn.permutation(forget), drawn.permutation(unseen)
    x, y = np.concatenate([outside, inside])[:, None], np.repeat([0, 1], 80)
    right = []
    for learned, judged in StratifiedShuffleSplit(n_splits=10, random_state=0).split(x, y):
        attack = LogisticRegression().fit(x[learned], y[learned])
        right.append((attack.predict(x[judged]) == y[judged]).mean())
    assert loss_attack(forget, unseen) == pytest.approx(np.mean(right))


def test_an_attack_is_the_same_again_and_cuts_the_longer_side_whichever_it_is() -> None:
    many, few = RNG.exponential(size=200), RNG.exponential(size=40)
    assert loss_attack(many, few) == loss_attack(many, few)
    assert len({loss_attack(many, few, seed=seed) for seed in range(6)}) > 1
    for sides in ((many, few), (few, many)):  # uncut, calling all rows the larger side would be right in 5 of 6
        assert loss_attack(*sides) < 0.75


def test_losses_are_cross_entropies_and_of_attributes_their_mean() -> None:
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = F.cross_entropy(logits, labels, reduction="none").numpy()
    np.testing.assert_allclose(who.label_losses(logits, labels), expected, rtol=1e-5)
    marks = (logits.roll(1, 0) > 0).float()
    several = F.binary_cross_entropy_with_logits(logits, marks, reduction="none").mean(1).numpy()
    np.testing.assert_allclose(who.multi_label_losses(logits, marks), several, rtol=1e-5)
    assert who.multi_label_accuracy([[2.0, -0.2], [-0.2, 0.3]], [[1, 0], [1, 1]]) == 0.75


def test_top_two_counts_the_second_likeliest() -> None:
    logits = [[3.0, 2.0, 1.0]] * 3
    assert who.top_accuracy(logits, [0, 1, 2]).per_example == [100, 100, 0]
    assert who.top_accuracy(logits, [0, 1, 2], among=1).value == pytest.approx(100 / 3)


# Identities


def test_no_identity_is_in_two_sets_and_forget_and_retain_make_up_what_was_trained_on(monkeypatch: Any) -> None:
    monkeypatch.setattr(persons_bed, "DRAWS", 1)
    bed, data = BEDS["glyphs/persons"], persons_bed.persons.__wrapped__(0)
    split = bed.split(data, 0)
    check_identities(split)
    assert who.identity_overlap(split) == {}
    assert sorted([*split.forget.index.tolist(), *split.retain.index.tolist()]) == sorted(split.train.index.tolist())
    assert len(split.forget.identity.unique()) == 3  # type: ignore[union-attr]
    assert len(split.retain.identity.unique()) == 4  # type: ignore[union-attr]
    assert split.test_forget is None
    assert len(split.holdout) == len(split.test) == 2 * 10  # type: ignore[arg-type]
    characters = set(split.forget.labels.tolist())  # type: ignore[union-attr]
    assert characters == set(split.retain.labels.tolist())  # type: ignore[union-attr]
    other = bed.split(data, 1)
    assert set(other.forget.identity.tolist()) != set(split.forget.identity.tolist())  # type: ignore[union-attr]


def test_an_identity_in_two_sets_is_named(split: ImageSplit) -> None:
    assert who.identity_overlap(replace(split, test=of(("ann", "eve"), 3))) == {("forget", "test"): ["ann"]}
    for part, rows, message in (
        ("holdout", of(("dov",), 2), r"test and holdout share 1 identities \(dov\)"),
        ("test", of(("bert", "x"), 3), r"retain and test share 1 identities \(bert\)"),
        ("test", make_images(seed=3), "persons has no identities in test"),
        ("holdout", None, "persons has no such rows in holdout"),
    ):
        with pytest.raises(DataError, match=message):
            check_identities(replace(split, **{part: rows}))


# An audit


def test_an_audit_has_nomus_its_parts_its_floor_and_its_distances(split: ImageSplit) -> None:
    model, oracle = net(0), net(1)
    report = evaluate(model, split, suite="mufac", before=net(2), oracle=oracle)
    logits = {name: model(split.parts[name].pixels).detach() for name in ("forget", "test", "holdout")}
    right = float((logits["test"].argmax(1) == split.test.labels).double().mean())  # type: ignore[union-attr]
    losses = [
        F.cross_entropy(logits[n].double(), split.parts[n].labels, reduction="none") for n in ("forget", "holdout")
    ]
    m = loss_attack(*losses)
    value = {name: report.value(name) for name in report.columns["after"]}
    assert value["mia_loss"] == pytest.approx(m)
    assert value["forgetting_score"] == pytest.approx(abs(m - 0.5))
    assert value["nomus"] == pytest.approx(nomus(right, m))
    assert value["TA"] == pytest.approx(100 * right)
    note = report.columns["after"]["nomus"].note
    assert f"Guessing has {nomus(1 / 3, 0.5):.4g}" in note
    assert "still known" in note or "forgotten too much" in note
    for name in ("utility_gap", "mia_gap", "forget_gap", "forget_kl"):
        assert report.value(name, "oracle") == 0
    theirs = oracle(split.test.pixels).argmax(1) == split.test.labels  # type: ignore[union-attr]
    assert value["utility_gap"] == pytest.approx(100 * abs(right - float(theirs.double().mean())))
    assert value["mia_gap"] == pytest.approx(abs(m - report.value("mia_loss", "oracle")))  # type: ignore[operator]
    log_q = oracle(split.forget.pixels).detach().log_softmax(1)
    kl = F.kl_div(logits["forget"].log_softmax(1), log_q, log_target=True, reduction="batchmean")
    assert value["forget_kl"] == pytest.approx(float(kl), rel=1e-4)


def test_an_attack_says_on_which_side_it_works(split: ImageSplit) -> None:
    class Sure(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3, bias=False)
            self.labels = {
                float(p.sum()): int(y) for p, y in zip(split.forget.pixels, split.forget.labels, strict=True)
            }  # type: ignore[arg-type]
            self.sign = sign

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features = torch.zeros(len(pixels), 4)
            for row, one in enumerate(pixels):
                if (label := self.labels.get(float(one.sum()))) is not None:
                    features[row, label] = self.sign * 10
            return F.linear(features, torch.eye(3, 4)) + 0 * self.head(features)

    for sign, says in ((1.0, "still known"), (-1.0, "forgotten too much")):
        assert says in who._direction(_Fixed(Sure(sign), split))


class _Fixed(ImageContext):
    """Its logits by a plain forward, so that a model without a layout will do."""

    def __init__(self, model: nn.Module, split: ImageSplit) -> None:
        super().__init__(model, split, cached=False)

    def logits(self, name: str) -> Any:
        with torch.no_grad():
            return self.model(self.set(name).pixels).double().numpy()


class _Answering(ImageContext):
    """Says so many of four labels rightly, by the name of the set."""

    def __init__(self, **right: int) -> None:
        self.right = right

    def labelled(self, name: str) -> Any:
        said = np.arange(4) >= self.right[name]  # label 0 is right
        return np.eye(2)[said.astype(int)], np.zeros(4, int)


def test_a_gap_is_of_the_rows_it_is_named_for() -> None:
    ours, theirs = _Answering(test=4, forget=1), {"oracle": _Answering(test=3, forget=3)}
    assert who.RetrainGap("utility_gap").measure(ours, theirs).value == 25
    assert who.RetrainGap("forget_gap").measure(ours, theirs).value == 50


def test_losses_are_computed_in_evaluation_mode_without_gradients(split: ImageSplit) -> None:
    model = net(0)
    model.train()
    before = hash_model(model)
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append((module.training, out.requires_grad)))
    context = ImageContext(model, split, cached=False)
    _ = context.layout  # finds the head by a forward with gradients
    seen.clear()
    who.IdentityAttack()(context)
    assert seen
    assert set(seen) == {(False, False)}
    assert hash_model(model) == before
    assert model.training


def test_attacks_of_several_seeds_on_one_context_are_each_their_own(split: ImageSplit) -> None:
    model = net(0)
    context = ImageContext(model, split, cached=False)
    together = [who.IdentityAttack(seed)(context).value for seed in range(3)]
    assert together == [who.IdentityAttack(seed)(ImageContext(model, split, cached=False)).value for seed in range(3)]
    assert len({*together}) > 1


# Baselines


def test_cf_3_leaves_all_but_the_last_three_blocks_bit_identical_with_their_statistics(split: ImageSplit) -> None:
    before = net(0)
    model = CFk(k=3).apply(before, split.forget, split.retain, copy=True, args={"num_train_epochs": 1})
    names = ImageContext(before, split, cached=False).layout.last(3)
    old, new = before.state_dict(), model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert changed <= set(names)
    assert any(name not in names and "running_mean" in name for name in old)


def test_scrubs_distance_is_zero_at_first_and_has_the_temperature_squared() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    assert float(distillation(student, student, 4.0)) == pytest.approx(0, abs=1e-6)
    at_four = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="sum")
    assert float(distillation(student, teacher, 4.0)) == pytest.approx(16 * float(at_four), rel=1e-5)


def test_neg_grad_of_no_steps_is_the_model_before(split: ImageSplit) -> None:
    before = net(0)
    model = GradientAscent().apply(before, split.forget, split.retain, copy=True, args={"max_steps": 0})
    assert hash_model(model) == hash_model(before)


# The sweep


def tiny_persons(seed: int) -> TrainTest:
    train = of(("ann", "bert", "cora"), 0)
    return TrainTest(train, of(("dov",), 1), {"unseen": of(("eve",), 2)})


def test_a_sweep_ranks_persons_by_nomus_and_shows_its_floor_beside_the_gaps(monkeypatch: Any) -> None:
    split = persons_bed.by_persons(2, tiny_persons(0), 0)
    net_of = {"num_classes": 3, "channels": 1, "image_size": 8, "width": 4}
    bed = replace(BEDS["glyphs/persons"], name="persons", data=tiny_persons, net=net_of, epochs=1)
    assert len(split.forget) == 32
    rows = [
        run_trial(trial)
        for trial in trials_of([Contender("cf-k", CFk(), {"max_steps": 2})], [replace(bed, split=two)], [0])
    ]
    assert [row.get("error") for row in rows] == [None] * 4
    assert {"nomus", "forgetting_score", "mia_loss", "forget_kl"} <= set(rows[0]["values"])
    entries = {one["contender"]: one for one in summary(rows)}
    assert entries["cf-k"]["rank"] == 1
    assert entries["retrained"]["utility_gap"]["mean"] == 0
    assert "| NoMUS |" in "\n".join(markdown(rows))


def two(data: TrainTest, seed: int) -> ImageSplit:
    return persons_bed.by_persons(2, data, seed)


def test_the_bed_trains_without_weight_decay() -> None:
    assert ImageBed(BEDS["glyphs/persons"], 0).recipe.settings["weight_decay"] == 0
    assert ImageBed(IMAGES["glyphs/identity"], 0).recipe.settings["weight_decay"] > 0
    assert BEDS["glyphs/persons"].net == {**GLYPHS, "weight_decay": 0}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: nomus(1.2, 0.5), MethodError, "accuracy is 1.2"),
        (lambda s: nomus(0.5, -0.1), MethodError, "m is -0.1"),
        (lambda s: who.NoMUS(lam=2.0), MethodError, "lam is 2"),
        (lambda s: who.RetrainGap("gap"), MethodError, "of is 'gap'; take utility_gap"),
        (lambda s: loss_attack(np.zeros(19), np.zeros(30)), DataError, "20 rows a side, and there are 19 forget rows"),
        (lambda s: loss_attack(np.zeros(30), np.zeros(19)), DataError, "there are 19 unseen rows"),
        (lambda s: loss_attack([math.inf] * 30, np.zeros(30)), DataError, "forget losses are not finite"),
        (lambda s: loss_attack([], np.zeros(30)), DataError, "forget losses are empty"),
        (lambda s: who.multi_label_losses([[0.0, 1.0]], [[0, 2]]), DataError, "labels 0 or 1"),
        (lambda s: who.top_accuracy([[0.0, 1.0]], [0], among=3), MethodError, "among is 3, and there are 2 classes"),
        (
            lambda s: evaluate(net(0), make_image_split(test=make_images(seed=1)), suite="mufac"),
            DataError,
            "no identities",
        ),
    ],
)
def test_refusals_name_the_value(call: Any, error: Any, message: str, split: ImageSplit) -> None:
    with pytest.raises(error, match=message):
        call(split)


def test_a_copy_is_measured_alike(split: ImageSplit) -> None:
    one, other = (ImageContext(model, split, cached=False) for model in (net(0), copy.deepcopy(net(0))))
    assert who.NoMUS()(one).value == who.NoMUS()(other).value
