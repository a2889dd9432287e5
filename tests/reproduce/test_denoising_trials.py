"""Comparisons on the test bed: matched forwards, paired intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unwrite.beds import denoiser as testbed
from unwrite.beds.denoising import Arm, Curve, SamplerTrial, difference, prompts
from unwrite.diffusion import AdaBlock, LearnedSelect, MaskPredictor, Sampler, Threshold
from unwrite.errors import DataError


def arm(name, accuracy, forwards, count=1000, seed=0):
    generator = np.random.default_rng(seed)
    right = np.zeros(count)
    right[generator.permutation(count)[: round(accuracy * count)]] = 1
    return Arm(name, right, np.full(count, float(forwards)))


CURVE = Curve([arm("many", 0.9, 20), arm("few", 0.5, 10, seed=1)])


@pytest.mark.parametrize(
    ("forwards", "accuracy", "found"), [(10, 50, 10), (15, 70, 15), (20, 90, 20), (5, 50, 10), (30, 90, 20)]
)
def test_a_curve_is_mixed_between_its_arms_and_ends_at_them(forwards, accuracy, found):
    at = CURVE.at(forwards)
    assert at.accuracy == pytest.approx(accuracy)
    assert at.forwards == pytest.approx(found)


def test_an_empty_curve_is_refused():
    with pytest.raises(DataError, match="no arms"):
        Curve([]).at(3)


def test_a_difference_is_paired():
    """Two arms that differ on one prompt in fifty have a narrow interval, however noisy each is."""
    right = np.random.default_rng(0).integers(0, 2, 1000).astype(float)
    other = right.copy()
    other[:20] = 0
    lost = right[:20].sum()
    found = difference(Arm("b", other, right), Arm("a", right, right))
    assert found.points == pytest.approx(-100 * lost / 1000)
    assert found.high <= 0
    assert found.high - found.low < 2


def test_the_interval_of_unpaired_noise_covers_the_truth():
    """95 % of 60 trials with a true difference of zero: at least 50 cover it (binomial, p < 0.001 otherwise)."""
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        a, b = (Arm("x", (generator.random(300) < 0.7).astype(float), np.ones(300)) for _ in range(2))
        found = difference(a, b)
        covered += found.low <= 0 <= found.high
    assert covered >= 50


def test_arms_of_other_prompts_are_refused():
    with pytest.raises(DataError, match="1000 and 10 prompts"):
        difference(arm("a", 0.5, 1), arm("b", 0.5, 1, count=10))


AT_ONCE = Threshold(0.0)  # a block a forward: what an arm says is not looked at here


@pytest.fixture
def bed():
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model, ids = (
        AutoModelForCausalLM.from_config(testbed.config(width=16, layers=1, inner=16)).eval(),
        testbed.tokenizer(),
    )
    return testbed.TestBed(MaskPredictor.of(model, ids), ids, None)


def judged(monkeypatch):
    """A list that grows by an entry whenever the model is asked for an arm."""
    calls, judge = [], testbed.judge
    monkeypatch.setattr(
        testbed,
        "judge",
        lambda bed, sampler, *args, **more: calls.append(sampler) or judge(bed, sampler, *args, **more),
    )
    return calls


def test_an_arm_is_computed_once_for_all_trials_of_the_same_prompts(bed, monkeypatch):
    calls, sampler = judged(monkeypatch), Sampler(gen_length=testbed.ANSWER, commit=AT_ONCE)
    first = SamplerTrial(bed, prompts(4, 0)).run("a", sampler)
    again = SamplerTrial(bed, prompts(4, 0)).run("b", sampler)
    assert len(calls) == 1
    assert (first.right == again.right).all()
    assert (first.nfe == again.nfe).all()


def test_another_sampler_prompt_anchor_or_model_is_another_arm(bed, monkeypatch):
    calls, sampler = judged(monkeypatch), Sampler(gen_length=testbed.ANSWER, commit=AT_ONCE)
    SamplerTrial(bed, prompts(4, 0)).run("a", sampler)
    SamplerTrial(bed, prompts(4, 0)).run("a", replace(sampler, commit=Threshold(1e-6)))
    SamplerTrial(bed, prompts(4, 0)).run("a", replace(sampler, blocks=AdaBlock(delimiters=(3,))))
    SamplerTrial(bed, prompts(4, 1)).run("a", sampler)
    SamplerTrial(bed, prompts(4, 0)).run("a", sampler, testbed.anchor())
    with torch.no_grad():
        bed.model.lm_head.weight += 1e-3
    SamplerTrial(bed, prompts(4, 0)).run("a", sampler)
    assert len(calls) == 6


def test_what_a_repr_does_not_tell_is_computed_anew(bed, monkeypatch):
    calls = judged(monkeypatch)
    learnt = LearnedSelect(lambda confidence: confidence + 5)
    for _ in range(2):
        SamplerTrial(bed, prompts(4, 0)).run("a", Sampler(gen_length=testbed.ANSWER, commit=learnt))
    assert len(calls) == 2
