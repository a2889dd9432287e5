"""What every metric keeps to: a frozen value with documented fields, and a score with a value for every row."""

import dataclasses
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from audits import NEW, audited, split_for, suite_of, text_split

from conftest import make_llama, make_tokenizer
from helpers.tiny import make_image_recipe, make_image_split
from unwrite import catalog
from unwrite.audit import Metric, Suite, evaluate
from unwrite.audit.images.context import ImageContext
from unwrite.audit.images.klom import MarginModels
from unwrite.data.text.benchmarks import ChoiceQuestion as Item

METRICS = catalog.metrics()
ITEMS = (Item("where is ann ?", ("in town", "near the river", "in the garden", "by the harbour"), 1),)
SPLIT = make_image_split()
SETS = {"forget": len(SPLIT.forget), "retain": len(SPLIT.retain)}
MARGINS = [
    {name: np.random.default_rng([seed, rows]).normal(size=(3, rows)) for name, rows in SETS.items()}
    for seed in range(4)
]
MODELS = MarginModels(*MARGINS, {name: SPLIT.parts[name].index.tolist() for name in SETS})
GIVEN = {"multiple-choice": {"items": ITEMS}, "klom": {"models": MODELS}}  # what some can't measure without
# Made of other scores, of two models' rows together, or of all rows at once.
WITHOUT_ROWS = {
    "utility",
    "model-utility",
    "forget-quality",
    "feature-likeness",
    "average-gap",
    "loss-gap",
    "prediction-distance",
    "weight-distance",
    "agreement-of-logits",
    "agreement-of-features",
    "logits-and-features",
    "downstream-likeness",
    "nomus",
    "identity-attack",
    "forgetting-score",
    "retrain-gap",
}
every_metric = pytest.mark.parametrize("slug", METRICS)


@cache
def measured(slug):
    """(metric, its score on the model after) in every suite that has it, or in one of its own."""
    cls, found = METRICS[slug].load(), []
    for name in catalog.suites():
        metrics = suite_of(name).for_split(split_for(name))
        found += [(m, audited(name).columns["after"][m.name]) for m in metrics if type(m) is cls]
    if not found:
        metric = cls(**GIVEN.get(slug, {}))
        suite = Suite("own", [metric], "A suite of one.")
        if cls.reads is ImageContext:
            suite = replace(suite, of="images")
            report = evaluate(make_image_recipe().build(0).eval(), SPLIT, suite=suite)
            return [(metric, report.columns["after"][metric.name])]
        models = {"model": make_llama(0, layers=2), "before": make_llama(1, layers=2)}
        suite = replace(suite, max_new_tokens=NEW)
        report = evaluate(split=text_split(), suite=suite, tokenizer=make_tokenizer(), **models)
        found = [(metric, report.columns["after"][metric.name])]
    return found


@every_metric
def test_is_a_frozen_value_with_documented_fields(slug):
    cls = METRICS[slug].load()
    assert issubclass(cls, Metric)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    given = GIVEN.get(slug, {})
    assert cls(**given) == cls(**given)
    assert hash(cls(**given)) == hash(cls(**given))
    assert {field.name for field in dataclasses.fields(cls)} >= set(given)


@every_metric
def test_its_score_has_its_name_its_direction_and_finite_values(slug):
    for metric, score in measured(slug):
        assert (score.name, score.better) == (metric.name, metric.better)
        assert score.value is not None, score.note
        assert math.isfinite(score.value)
        assert all(value is None or math.isfinite(value) for value in score.per_example)


@every_metric
def test_its_score_says_what_every_row_gave_unless_no_row_gave_any(slug):
    for _, score in measured(slug):
        rows = [value for value in score.per_example if value is not None]
        assert bool(rows) != (slug in WITHOUT_ROWS)
