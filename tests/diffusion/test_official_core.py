"""LLaDA's, Fast-dLLM's and Dream's own loops, run on the same small model: the same tokens and forwards."""

import json
from pathlib import Path

import pytest
from masks import lively, prompts_of

from helpers.grids import spread
from unwrite.diffusion import Confidence, FixedBlocks, Margin, NegativeEntropy, Nucleus, Sampler, Threshold, TopK

CASES = json.loads(Path(__file__).with_name("official_core.json").read_text(encoding="utf-8"))["cases"]
SCORES = {"maskgit_plus": Confidence(), "topk_margin": Margin(), "entropy": NegativeEntropy()}


def sampler_of(case):
    if case["code"] == "Dream _sample":
        parts = {"score": SCORES[case["alg"]], "propose": Nucleus(0.0, case["top_p"])}
        return Sampler.dream(16, case["steps"], 0.0, **parts)
    if "threshold" in case:
        return Sampler(gen_length=16, blocks=FixedBlocks(8), commit=Threshold(case["threshold"]), cache=case["cache"])
    guidance = case.get("guidance", 0.0)
    return Sampler(gen_length=16, steps=case["steps"], blocks=FixedBlocks(8), commit=TopK(), guidance=guidance)


def name_of(case):
    return "-".join(str(case[key]) for key in case if key not in ("tokens", "nfe", "extra"))


SETTINGS = ("code", "steps", "guidance", "threshold", "cache", "alg", "top_p")


@pytest.mark.parametrize("case", spread(CASES, lambda case: [case.get(name) for name in SETTINGS]), ids=name_of)
def test_tokens_and_forwards_are_the_official_codes(case):
    predictor = lively(case["seed"], shift=case["code"] == "Dream _sample")
    out = sampler_of(case)(predictor, None, prompts_of(6, seed=case["seed"]))
    assert out.sequences[0].tolist() == case["tokens"]
    assert int(out.nfe) == case["nfe"] - case.get("extra", 0)


def test_the_cases_differ_in_their_forwards():
    """Or agreement would mean little."""
    assert len({case["nfe"] for case in CASES if "threshold" in case}) > 6
