"""The experiments of the diffusion systems run whole on a tiny random test bed; what they find there means nothing."""

from importlib import import_module
from typing import get_args

import numpy as np
import pytest
import torch
from stored import same_kinds

from unwrite.beds import denoiser as testbed
from unwrite.beds import denoising
from unwrite.beds.budget import Budget
from unwrite.diffusion import FixedBlocks, MaskPredictor, Sampler
from unwrite.reproduce import adablock, learn2pd
from unwrite.reproduce.base import store
from unwrite.reproduce.checks import Verdict

# {system: its grid, made small}
SYSTEMS = {
    "adablock": {"SIZES": (8,), "BARS": (0.5,)},
    "credit": {"BARS": (0.5,)},
    "prophet": {"TRUNCATED": (4, 32)},
    "learn2pd": {"THRESHOLDS": (0.9,), "BARS": (0.96,)},
    "parallelbench": {"STEPS": (1, 6)},
    "localleap": {"RADII": (1, 4), "BARS": (0.75,)},
}


@pytest.fixture(scope="module")
def bed():
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(testbed.config(width=16, layers=1, inner=16)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight *= 40.0 if name.startswith("lm_head") else 10.0
    ids = testbed.tokenizer()
    return testbed.TestBed(MaskPredictor.of(model, ids), ids, None)


@pytest.mark.parametrize("slug", SYSTEMS)
def test_an_experiment_runs_tiny(slug, bed, monkeypatch, tmp_path):
    monkeypatch.setattr(testbed, "load", lambda where=None: bed)
    monkeypatch.setitem(denoising.SIZES, "tiny", 3)
    monkeypatch.setattr(denoising, "THRESHOLDS", (0.3, 0.9))
    module = import_module(f"unwrite.reproduce.{slug}")
    for name, value in SYSTEMS[slug].items():
        monkeypatch.setattr(module, name, value)
    claim = module.run(Budget("tiny", seeds=(0, 1)))
    assert claim.slug == slug
    assert claim.verdict in get_args(Verdict)
    assert same_kinds(claim)
    assert {"claim", "control" if slug != "parallelbench" else "mechanism"} <= {check.kind for check in claim.checks}
    assert len(claim.checks) >= 3
    assert all(len(row) == len(claim.columns) for row in claim.rows.values())
    assert "2 seeds" in claim.setting
    assert store(claim.record(), tmp_path).exists()


def test_adablock_is_held_against_the_fixed_blocks_with_as_many_forwards(monkeypatch):
    """Of its own size none takes four forwards; of blocks of 4 one does, and is as often right."""
    monkeypatch.setattr(adablock, "SIZES", (4, 8))
    monkeypatch.setattr(adablock, "BARS", (0.5,))
    figures = {"fixed 4": (4, 0.9), "fixed 8": (2, 0.5), "adaptive 4": (4, 0.9), "adaptive 8": (4, 0.9)}
    trial = denoising.SamplerTrial(None, [])
    for kind, (forwards, right) in figures.items():
        for cache in adablock.CACHES:
            name = f"{kind}, threshold 0.5, cache {cache}"
            trial.done[name] = denoising.Arm(name, np.full(5, right), np.full(5, forwards))
    assert adablock._against_any_size(trial) == pytest.approx(0.0)


def test_a_trial_runs_an_arm_once_and_spreads_over_seeds(bed):
    trial = denoising.SamplerTrial(bed, denoising.prompts(3, 0) + denoising.prompts(3, 1), 2)
    first = trial.run("a", testbed.one_by_one())
    assert trial.run("a", testbed.one_by_one(4)) is first
    forwards, accuracy, ahead = trial.row(first, denoising.Curve([first]))
    assert forwards == "64.0"
    assert accuracy == "0.0 +- 0.0"
    assert ahead == "+0.0 (+0.0 to +0.0)"


def test_the_curve_goes_from_few_forwards_to_one_by_one(bed):
    trial = denoising.SamplerTrial(bed, denoising.prompts(3, 0))
    curve = trial.curve(thresholds=(0.0, 0.5))
    assert [arm.forwards for arm in curve.arms][0::2] == [2.0, 64.0]


def test_learn2pds_arms_count_what_they_compute(bed):
    """Where nothing is cut every forward computes the whole canvas; a cut computes no more, and the oracle needs no more
    forwards than one token a step."""
    trial = denoising.SamplerTrial(bed, denoising.prompts(3, 0))
    base = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(learn2pd.BLOCK))
    _, learnt = learn2pd.taught(bed, denoising.prompts(6, 1), learn2pd.BLOCK, 5)
    arms = learn2pd._arms(trial, base, learnt, 0.5)
    whole = testbed.PROMPT + testbed.ANSWER
    plain = [name for name in arms if not name.endswith(tuple(learn2pd.CUTS))]
    assert len(plain) == 1 + len(learn2pd.THRESHOLDS) + len(learn2pd.BARS) + 2
    for name in plain:
        assert (arms[name].work == whole * arms[name].nfe).all()
        for ending in learn2pd.CUTS:
            assert (arms[f"{name}, {ending}"].work <= whole * testbed.ANSWER).all()
    assert arms["one token a step"].nfe.tolist() == [testbed.ANSWER] * 3
    assert (arms["oracle"].nfe <= testbed.ANSWER).all()
    assert (arms["oracle, EoTP"].work <= arms["oracle"].work).all()
