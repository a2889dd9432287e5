"""Replays decide as the recording did, and run every forward."""

from dataclasses import replace

import pytest
import torch

from unwrite.beds import denoiser as testbed
from unwrite.bench import replay
from unwrite.diffusion import FixedBlocks, Sampler, Threshold
from unwrite.errors import DataError


@pytest.fixture(scope="module")
def bed():
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(testbed.config(width=32, layers=2, inner=32)).eval()
    with torch.no_grad():
        model.lm_head.weight *= 30
    ids = testbed.tokenizer()
    from unwrite.diffusion import MaskPredictor

    return testbed.TestBed(MaskPredictor.of(model, ids), ids, None)


@pytest.fixture(scope="module")
def timing():
    return replay.timing_model(layers=1, vocabulary=512, width=72)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_replay_decides_as_the_recording(bed, timing, cache):
    sampler = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32), commit=Threshold(0.6), cache=cache)
    asked = testbed.items(1, 5)
    widths = []
    hook = timing.model.embed_tokens.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    found = replay.timed(bed, timing, sampler, asked)
    hook.remove()
    assert found.same
    assert found.forwards == len(widths)
    assert widths[0] == replay.CANVAS
    assert set(widths) <= {"none": {256}, "prefix": {256, 64, 32}, "dual": {256, 32}}[cache]
    assert 0 < found.own < found.seconds


def test_a_replay_of_another_sampler_is_refused(bed, timing):
    sampler = Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
    recorder = replay.LogitsRecorder(bed.model)
    prompt = [bed.tokenizer(testbed.items(1, 5)[0].prompt)["input_ids"]]
    sampler(replace(bed.predictor, model=recorder, probe=False), None, prompt)
    large = replace(bed.predictor, model=replay.Replayed(timing, recorder.recording), probe=False)
    with pytest.raises(DataError, match="forward 1 asks for 16 columns, the recording has 32"):
        replace(sampler, blocks=FixedBlocks(16))(large, None, [[2] * 168 + prompt[0]])


def test_the_timing_model_runs_on_packed_weights(timing):
    from unwrite.decode.engine.transformers.packed import PackedLinear, packable

    original = torch.nn.Linear(4, 4)
    linear = [module for module in timing.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 8
    assert all(isinstance(module, PackedLinear) == packable(original) for module in linear)
    plain = super(type(linear[0]), linear[0]).forward
    rows = torch.randn(3, linear[0].in_features)
    with torch.no_grad():
        torch.testing.assert_close(linear[0](rows), plain(rows), atol=1e-4, rtol=1e-4)


def test_laying_out_the_recording_is_nobodys_time(timing, monkeypatch):
    """A clock that moves only while logits are laid out: the forward then takes no time at all."""
    now, fill = [0.0], torch.Tensor.fill_

    def slow_fill(*arguments):
        now[0] += 5
        return fill(*arguments)

    monkeypatch.setattr(replay.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "fill_", slow_fill)
    replayed = replay.Replayed(timing, [torch.zeros(256, 60)])
    with torch.no_grad():
        replayed(input_ids=torch.zeros(1, 256, dtype=torch.long))
    assert (replayed.forward, replayed.elsewhere) == (0.0, 5.0)
