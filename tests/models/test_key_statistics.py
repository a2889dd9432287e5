"""Statistics of keys: what they count, which directions they leave free, and how they are kept."""

import math

import pytest
import torch

from helpers.tiny import make_examples, make_llama, make_tokenizer
from unwrite.data.text.encoding import encode_all
from unwrite.errors import ModelError
from unwrite.models import KeyStatistics, anatomy


def statistics(model):
    rows = [row.input_ids for row in encode_all(make_examples("retain", 20), make_tokenizer())]
    return KeyStatistics.fit(model, rows, (0, 1, 2))


def test_projections_are_symmetric_and_idempotent_and_take_the_least_used_directions():
    kept = statistics(make_llama())
    whole = kept.project(1, torch.eye(64), kept.threshold_of(1, 0.25))
    torch.testing.assert_close(whole, whole.T)
    torch.testing.assert_close(whole @ whole, whole, atol=1e-5, rtol=1e-5)
    assert round(float(whole.trace())) == 16 == kept.free(1, kept.threshold_of(1, 0.25))
    assert kept.free(1, 0.0) == 0
    assert kept.free(1, math.inf) == 64


def test_moments_are_those_of_every_token_and_of_no_padding():
    model, rows = make_llama(), [[3, 8, 9, 10], [3, 8], [11]]
    seen = []
    handle = anatomy(model).blocks[1].down.module.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for row in rows:
        model(input_ids=torch.tensor([row]))
    handle.remove()
    keys = torch.cat(seen).double()
    kept = KeyStatistics.fit(model, rows, (1,), batch_size=2)
    assert kept.tokens == 7
    found = kept.axes[1] @ torch.diag(kept.moments[1]) @ kept.axes[1].T
    torch.testing.assert_close(found, (keys.T @ keys / 7).float(), atol=1e-6, rtol=1e-4)


def test_statistics_are_kept_on_disk_by_what_they_depend_on_and_saved_and_read_back(tmp_path, monkeypatch):
    model = make_llama()
    once = statistics(model)
    monkeypatch.setattr(KeyStatistics, "_measured", None)  # whatever measures again, fails
    again = statistics(model)
    assert all(torch.equal(once.axes[i], again.axes[i]) for i in (0, 1, 2))
    with pytest.raises(TypeError):
        statistics(make_llama(seed=1))
    read = KeyStatistics.load(once.save(tmp_path / "keys"))
    assert all(torch.equal(once.moments[i], read.moments[i]) for i in (0, 1, 2))
    assert read.tokens == once.tokens
    (tmp_path / "keys" / "keys.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="damaged"):
        KeyStatistics.load(tmp_path / "keys")
    with pytest.raises(ModelError, match="holds no statistics of keys"):
        KeyStatistics.load(tmp_path)


def test_refuses_layers_that_are_not_there_and_no_text():
    with pytest.raises(ModelError, match="layer 9 is not one of the model's 3 blocks"):
        KeyStatistics.fit(make_llama(), [[3, 4]], (0, 9))
    with pytest.raises(ModelError, match="need text, and there is none"):
        KeyStatistics.fit(make_llama(), [[], []], (0,))
