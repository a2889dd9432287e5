"""Samplers from one line, and the canvas that fills in the terminal."""

import json

import pytest

from unwrite.beds import denoiser as testbed
from unwrite.cli import main
from unwrite.cli.canvas import OPEN, canvas_text
from unwrite.cli.samplers import sampler_of
from unwrite.diffusion import EarlyStop, Factor, FixedBlocks, MaskPredictor, NoEnd, Sampler, Threshold, TopK
from unwrite.errors import MethodError


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("threshold", Sampler(gen_length=64)),
        ("threshold(threshold=0.8)+dual", Sampler(gen_length=64, commit=Threshold(0.8), cache="dual")),
        ("factor + fixed-blocks(size=16)", Sampler(gen_length=64, commit=Factor(), blocks=FixedBlocks(16))),
        ("fixed-blocks(size=none)", Sampler(gen_length=64, blocks=FixedBlocks(None))),
        ("no-end+early-stop", Sampler(gen_length=64, logits=NoEnd(), edit=EarlyStop())),
        ("early-stop+early-stop", Sampler(gen_length=64, edit=(EarlyStop(), EarlyStop()))),
        ("llada", Sampler.llada(64, 64)),
        ("llada+prefix", Sampler.llada(64, 64, cache="prefix")),
        ("dream+top-k(temperature=0.5)", Sampler.dream(64, 64, commit=TopK(0.5))),
    ],
)
def test_a_line_is_a_sampler(text, sampler):
    assert sampler_of(text, 64) == sampler


def test_steps_and_guidance_are_settings():
    found = sampler_of("top-k+fixed-blocks(size=none)", 64, steps=16, guidance=0.5)
    assert (found.steps, found.guidance) == (16, 0.5)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("treshold", "Did you mean 'threshold'"),
        ("threshold(bar=0.5)", "unknown field of threshold 'bar'"),
        ("threshold(threshold=high)", "it must be float"),
        ("threshold(0.5)", "'0.5' is no setting"),
        ("threshold(threshold=0.5", "is no part"),
        ("threshold+factor", "two parts for commit"),
        ("dual+prefix", "two parts for cache"),
        ("threshold+llada", "llada stands first"),
        ("", "is no part"),
        ("threshold(threshold=-1)", "use 0 or more"),
    ],
)
def test_lines_that_mean_nothing_are_refused(text, what):
    with pytest.raises(MethodError, match=what.replace("(", r"\(")):
        sampler_of(text, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The test bed's shape with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("bed")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(testbed.config(width=16, layers=1, inner=16)).save_pretrained(path)
    testbed.tokenizer().save_pretrained(path)
    return str(path)


def run(capsys, *arguments):
    main(["generate", "calc 1+2", *arguments])
    return capsys.readouterr().out


def test_generate_tells_what_a_sampler_took(capsys, folder):
    options = ("--model", folder, "--sampler", "threshold(threshold=0)", "--max-new-tokens", "32")
    found = json.loads(run(capsys, *options, "--json"))["threshold(threshold=0)"]
    assert (found["forwards"], found["positions"], found["blocks"]) == (1, 32, [32])
    assert found["columns"] == 32 + len("calc 1+2")
    shown = " ".join(run(capsys, *options).split())
    assert "1 forwards for 32 positions (32.00 a forward)" in shown


def test_temperature_and_steps_reach_the_sampler(capsys, folder):
    options = ("--model", folder, "--sampler", "top-k+fixed-blocks(size=none)", "--max-new-tokens", "32", "--json")
    cold = json.loads(run(capsys, *options, "--steps", "8"))
    warm = json.loads(run(capsys, *options, "--steps", "8", "--temperature", "2", "--seed", "3"))
    [(_, cold)], [(_, warm)] = cold.items(), warm.items()
    assert cold["forwards"] == warm["forwards"] == 8
    assert cold["text"] != warm["text"]


def test_an_unknown_setting_is_named(capsys, folder):
    with pytest.raises(SystemExit):
        main(["generate", "x", "--model", folder, "--sampler", "threshold", "--budget", "3"])
    assert "--budget is not known beside --sampler" in " ".join(capsys.readouterr().err.split())


def test_a_canvas_shows_what_is_known_and_dots_for_what_is_not():
    ids = testbed.tokenizer()
    predictor = MaskPredictor(None, ids.mask_token_id, (ids.eos_token_id,), pad_id=2, probe=False)
    tokens = ids("ab")["input_ids"] + [ids.mask_token_id] * 3 + ids("c")["input_ids"] + [ids.eos_token_id]
    assert canvas_text(ids, tokens, predictor).plain == f"ab{OPEN * 3}c"
