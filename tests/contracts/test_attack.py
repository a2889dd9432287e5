"""What every attack keeps to: a frozen value that names its axis, leaves the model alone, and gives a curve, the same again."""

import dataclasses
import math

import pytest
from audits import NEW, suite_of

from conftest import make_examples, make_llama, make_tokenizer
from unwrite import catalog
from unwrite.audit import evaluate
from unwrite.data import ForgetSplit
from unwrite.runs import hash_model

ATTACKS = catalog.attacks()
FIELDS = {  # short; everything else is as it comes
    "relearn": {"steps": 2, "every": 1, "rows": 4},
    "reintroduce": {"max_new_tokens": NEW},
}
every_attack = pytest.mark.parametrize("slug", ATTACKS)


def attacked(slug, models):
    attack = ATTACKS[slug].load()(**FIELDS.get(slug, {}))
    split = ForgetSplit(make_examples("forget", 8), make_examples("retain", 4), name="tiny")
    report = evaluate(split=split, suite=suite_of("basic"), tokenizer=make_tokenizer(), attacks=[attack], **models)
    (result,) = report.attacks
    return attack, result


def models_of():
    return {"model": make_llama(0, layers=2), "before": make_llama(1, layers=2)}


@every_attack
def test_is_a_frozen_value_with_defaults_and_documented_fields(slug):
    cls = ATTACKS[slug].load()
    assert cls.__dataclass_params__.frozen
    assert hash(cls()) == hash(cls())
    assert [field.name for field in dataclasses.fields(cls) if field.name not in (cls.__doc__ or "")] == []
    assert all((cls().name, cls().about, cls().x, cls().label))


@every_attack
def test_gives_every_model_a_curve_and_leaves_the_models_alone(slug):
    models = models_of()
    before = {name: hash_model(model) for name, model in models.items()}
    attack, result = attacked(slug, models)
    assert set(result.curves) == {"before", "after"}
    for points in result.curves.values():
        assert len(points) >= 2
        for point in points:
            assert attack.x in point
            assert len(point) >= 2
            assert set(point) <= {attack.x, *attack.series}
            assert all(map(math.isfinite, point.values()))
    assert result.judged == attack.judged
    assert attack.judged == "" or all(attack.judged in point for points in result.curves.values() for point in points)
    assert result.curves["after"] != result.curves["before"]
    assert {name: hash_model(model) for name, model in models.items()} == before
    assert not any(model.training for model in models.values())


@every_attack
def test_the_same_attack_gives_the_same_curve(slug, monkeypatch, tmp_path):
    first = attacked(slug, models_of())[1]
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "another"))
    assert attacked(slug, models_of())[1].curves == first.curves
