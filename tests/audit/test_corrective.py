"""The corrective benchmark: what a poisoned, a retrained and a clean model score, and how the bed trains them (card corrective)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unwrite.audit import evaluate
from unwrite.audit.images.context import ImageContext
from unwrite.audit.suites.corrective import CORRECTIVE, WrongLabels
from unwrite.beds import named
from unwrite.beds.manipulated import (
    BEDS,
    COLUMNS,
    METRICS,
    BudgetedTraining,
    ManipulatedModels,
    bed_named,
    manipulated_bed,
)
from unwrite.bench.sweep import Contender, Trial, trials_of
from unwrite.bench.sweep_kinds import sweep_kind
from unwrite.bench.sweep_table import HEADINGS, RANKED_BY
from unwrite.data import Poisoning
from unwrite.data.images.images import Images
from unwrite.data.images.sets import TrainTest, digits
from unwrite.data.images.splits import split_at_random
from unwrite.errors import MethodError
from unwrite.forget.vision.fine_tuning import Retrain

POISON = Poisoning(share=0.1, size=2)


def few(seed: int) -> TrainTest:
    data = digits(seed=seed)
    return TrainTest(data.train.subset(data.train.index[:500]), data.test.subset(data.test.index[:200]))


def short(gamma: float = 0.1) -> ManipulatedModels:
    like = replace(BEDS["digits/poisoned"], data=few, epochs=10, net={**BEDS["digits/poisoned"].net, "width": 8})
    return ManipulatedModels(manipulated_bed("few/poisoned", like, POISON, gamma), 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ManipulatedModels, ManipulatedModels, ManipulatedModels]:
    """The bed at gamma 0.1, 0.5 and 1, its models trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        some, most, whole = (short(gamma) for gamma in (0.1, 0.5, 1.0))
        for models in (some, most, whole):
            _ = models.before, models.oracle
        _ = some.clean
    return some, most, whole


def test_a_poisoned_model_gives_the_triggers_class_and_a_clean_one_does_not_see_the_trigger(trained):
    """With the trigger only the rows of the trigger's own class are right; clean rows are right either way."""
    some, *_ = trained
    before, clean = some.measure(some.before), some.measure(some.clean)
    share = 100 * float((some.split.test.labels == 0).float().mean())
    assert abs(before["corrected_accuracy"] - share) < 12
    assert before["corrected_accuracy_others"] < 12
    assert before["clean_accuracy"] > clean["clean_accuracy"] - 4 > 86
    assert clean["corrected_accuracy"] > clean["clean_accuracy"] - 5


def test_retraining_without_what_is_identified_keeps_the_backdoor_until_nearly_all_is(trained):
    some, most, whole = trained
    before = some.measure(some.before)["corrected_accuracy"]
    at = [models.measure(models.oracle) for models in (some, most, whole)]
    assert at[0]["corrected_accuracy"] < before + 10
    assert at[1]["corrected_accuracy"] < 50 < 85 < at[2]["corrected_accuracy"]
    assert all(one["clean_accuracy"] > 85 for one in at)


def test_retraining_at_gamma_one_is_training_on_what_was_never_manipulated(trained):
    some, _, whole = trained
    assert all(torch.equal(a, b) for a, b in zip(some.clean.parameters(), whole.oracle.parameters(), strict=True))
    retrained = whole.unlearn(Retrain())[0]
    assert all(torch.equal(a, b) for a, b in zip(retrained.parameters(), whole.oracle.parameters(), strict=True))


def test_the_target_is_one_for_every_gamma(trained):
    some, most, whole = trained
    for other in (most, whole):
        assert all(torch.equal(a, b) for a, b in zip(some.before.parameters(), other.before.parameters(), strict=True))


def test_the_learning_rates_are_the_papers():
    how = BudgetedTraining(epochs=1, lr=0.025, batch_size=512)
    steps, rising = 4000, 40
    assert how.rate(0, steps) == pytest.approx(0.025 / 41)
    assert how.rate(rising, steps) == 0.025
    assert how.rate(steps, steps) == pytest.approx(0.208 * 0.025)
    assert how.rate(rising - 1, steps) == pytest.approx(0.025 * 40 / 41)
    assert short().recipe.settings["rates"] == "budgeted"
    assert short().recipe.settings | {"lr": 0.025, "momentum": 0.9, "weight_decay": 5e-4} == short().recipe.settings


def test_every_model_is_measured_on_the_same_rows_with_and_without_the_triggers_class(trained):
    """Leaving out class 0, which a poisoned model gets right, lowers its figure by what those rows add."""
    some, most, _ = trained
    sets, others = some.split.evaluation, most.split.evaluation
    for name in ("corrected", "corrected others", "clean", "manipulated"):
        assert sets[name].hash == others[name].hash
    measured = some.measure(some.before)
    zeros = some.split.test.labels == 0
    context = ImageContext(some.before, some.split, cached=False)
    right = torch.from_numpy(context.logits("corrected").argmax(1)) == sets["corrected"].labels
    assert measured["corrected_accuracy"] == pytest.approx(100 * float(right.float().mean()))
    assert measured["corrected_accuracy_others"] == pytest.approx(100 * float(right[~zeros].float().mean()))
    assert measured["corrected_accuracy"] > measured["corrected_accuracy_others"]


def test_wrong_labels_are_counted_where_they_are_wrong():
    """Of three identified rows one has a true label, one is still given its wrong one."""
    pixels = torch.zeros(3, 1, 2, 2)
    forget = Images(pixels, labels=[0, 0, 0], classes=tuple("abc"))
    true = Images(pixels, labels=[2, 1, 0], index=[2, 1, 0], classes=tuple("abc"))

    class Answers:
        """Says a, a, b of the forget rows."""

        def labelled(self, name: str) -> tuple[Any, Any]:
            return np.eye(3)[[0, 0, 1]], forget.target.numpy()

        def set(self, name: str) -> Images:
            return {"forget": forget, "identified": true}[name]

    score = WrongLabels().measure(Answers(), {})  # type: ignore[arg-type]
    assert score.per_example == [None, 100.0, 0.0]
    assert score.value == 50.0


def test_the_suite_measures_the_sets_of_a_manipulated_split_and_no_other(trained):
    some, *_ = trained
    report = evaluate(some.before, some.split, suite="corrective", before=some.clean)
    assert [metric["name"] for metric in report.metrics] == [
        "wrong_labels", "identified_accuracy", "manipulated_accuracy", "corrected_accuracy", "corrected_accuracy_others",
        "clean_accuracy",
    ]  # fmt: skip
    plain = split_at_random(few(0).train, 0.1)
    with pytest.raises(MethodError, match="no metric of suite 'corrective' applies"):
        evaluate(some.before, plain, suite="corrective")


def test_beds_have_gamma_in_their_name():
    assert bed_named("digits/poisoned") is BEDS["digits/poisoned"]
    for name, gamma in (("digits/poisoned", 0.1), ("glyphs/confused@0.5", 0.5), ("digits/confused@1", 1.0)):
        bed = named.bed_named(name)
        assert bed.name == name
        assert bed.split.args[1] == gamma
        assert bed.metrics == METRICS
    assert {*BEDS} <= {*named.beds()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits/poisoned@2", "gamma of bed digits/poisoned is 2.0; it lies above 0, at most 1"),
        ("digits/poisoned@0", "gamma of bed digits/poisoned is 0.0"),
        ("digits/poisoned@nan", "gamma of bed digits/poisoned is nan"),
        ("digits/poisoned@half", "'half' in bed 'digits/poisoned@half' is no gamma. Write digits/poisoned@0.5"),
        ("digits/poisoned@", "'' in bed 'digits/poisoned@' is no gamma"),
        ("digits/poison", "unknown bed 'digits/poison'. Did you mean 'digits/poisoned'"),
        ("digits/class@0.5", "unknown bed 'digits/class@0.5'"),
    ],
)
def test_refuses_a_bed_that_is_none(name, message):
    with pytest.raises(MethodError, match=message):
        named.bed_named(name)
    if not name.startswith("digits/class"):
        with pytest.raises(MethodError, match=message):
            bed_named(name)


def test_a_sweep_ranks_by_what_is_corrected():
    kind = sweep_kind(BEDS["digits/confused"])
    assert kind.models is ManipulatedModels
    assert RANKED_BY["corrected_accuracy"] == "higher"
    assert [HEADINGS[name] for name in METRICS] == list(COLUMNS[:-1])
    trials = trials_of(
        [Contender("again", Retrain())], [bed_named("digits/poisoned@0.5"), bed_named("digits/poisoned")], [0]
    )
    assert len({trial.home for trial in trials}) == 2
    assert Trial(Contender("before"), bed_named("digits/poisoned@0.5"), 0).key in {trial.key for trial in trials}
    assert CORRECTIVE.requires == ("corrected_accuracy",)
