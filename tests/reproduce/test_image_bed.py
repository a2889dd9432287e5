"""The beds of the image experiments: who was trained on what, what is measured against whom, and what it costs."""

from dataclasses import replace

import pytest
import torch

from unwrite.beds import images as image_bed
from unwrite.beds.images import BEDS, DIGIT, ImageBed, Measured, Setting, bed_named, mean_of, rows_of
from unwrite.data.images.sets import TrainTest, digits, digits_regression
from unwrite.errors import MethodError
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.runs import hash_model


def few(seed):
    data = digits(seed=seed)
    return TrainTest(data.train.subset(data.train.index[:200]), data.test.subset(data.test.index[:100]))


@pytest.fixture(scope="module")
def bed():
    return ImageBed(replace(BEDS["digits/class"], data=few, epochs=2), 0)


def test_the_oracle_never_saw_a_forget_row_and_the_target_saw_all(monkeypatch):
    seen = {}

    def train(recipe, data, rows, seed):
        seen[len(seen)] = (data.index[list(rows)].tolist(), seed)
        return recipe.build(seed)

    monkeypatch.setattr(image_bed, "fitted", train)
    bed = ImageBed(replace(BEDS["digits/class"], data=few), 3)
    _ = bed.before, bed.oracle
    (target, first), (oracle, second) = seen.values()
    assert sorted(target) == sorted([*bed.split.forget.index.tolist(), *bed.split.retain.index.tolist()])
    assert sorted(oracle) == sorted(bed.split.retain.index.tolist())
    assert not set(oracle) & set(bed.split.holdout.index.tolist())
    assert first == second == 3
    assert (bed.split.forget.target == DIGIT).all()


def test_each_font_is_forgotten_by_another_seed():
    class Fonts:
        identities = tuple("abcd")

    chosen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_bed, "split_by_identity", lambda rows, font, **_: chosen.append(font))
        for seed in range(5):
            BEDS["glyphs/identity"].split(TrainTest(Fonts(), None), seed)
    assert chosen == ["a", "b", "c", "d", "a"]


def test_a_range_is_the_lowest_fifth_of_the_targets():
    data = digits_regression()
    parts = BEDS["digits/range"].split(data, 0)
    lowest = data.train.targets.sort().values
    assert parts.forget.targets.max() <= lowest[len(lowest) // 5]
    assert parts.retain.targets.min() >= lowest[len(lowest) // 5 - 1]


def test_unlearning_leaves_the_target_and_counts_its_cost(bed):
    before = hash_model(bed.before)
    model, forwards = bed.unlearn(FineTune(), {"num_train_epochs": 2})
    assert hash_model(bed.before) == before != hash_model(model)
    assert forwards == 3 * 2 * len(bed.split.retain)
    assert bed.measure(model, forwards).cost == pytest.approx(forwards / len(bed.split.train))


def test_the_gap_is_to_the_oracle_or_to_another_one(bed):
    assert bed.retraining()["avg_gap"] == 0
    assert bed.retraining().cost == pytest.approx(3 * 2 * len(bed.split.retain) / len(bed.split.train))
    assert bed.measure(bed.before)["avg_gap"] > 0
    assert bed.measure(bed.before, oracle=bed.before)["avg_gap"] == 0


def test_what_differs_goes_into_the_recipe(bed):
    masks = {"blocks.0.conv.weight": torch.zeros_like(bed.before.blocks[0].conv.weight, dtype=torch.bool)}
    assert bed.recipe_of().settings == bed.recipe.settings
    assert set(bed.recipe_of(masks=masks).settings) - set(bed.recipe.settings) == {"masks"}


def test_tables_have_means_spreads_and_a_dash_for_what_is_not_measured():
    found = {"m": [Measured({"UA": 1.0}, 2.0), Measured({"UA": 3.0}, 4.0)]}
    assert rows_of(found, ("UA", "TA")) == {"m": ("2 +- 1", "–", "3 +- 1")}
    assert mean_of(found, "m", "UA") == 2


def test_a_short_setting_trains_two_steps_and_an_edit_stays():
    assert Setting(FineTune(), {"learning_rate": 1.0}).short().args == {"learning_rate": 1.0, "max_steps": 2}
    assert Setting(FineTune()).short() == Setting(FineTune())


def test_an_unknown_bed_is_refused():
    with pytest.raises(MethodError, match=r"unknown bed 'digit/class'. Did you mean 'digits/class'"):
        bed_named("digit/class")
