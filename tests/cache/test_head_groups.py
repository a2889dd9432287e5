"""The entropy's closed forms, and how heads are calibrated by it."""

import json
from pathlib import Path

import pytest
import torch

from helpers.kept_tokens import prompt
from helpers.tiny import make_llama, make_tokenizer
from unwrite.cache import HeadGroups, UNComp, calibrate_head_entropy
from unwrite.cache.engine.entropy import matrix_entropy
from unwrite.cache.engine.head_groups import labels_of
from unwrite.errors import MethodError, ModelError, RunError

OFFICIAL = json.loads((Path(__file__).parent / "uncomp_official.json").read_text(encoding="utf-8"))
HEADS, DIM = 2, 8  # of the tiny model


@pytest.fixture(scope="module")
def model():
    return make_llama()


# Entropy


def axes(*counts):
    """States whose covariance has these shares as eigenvalues: unit vectors along the axes, to both sides."""
    rows = [sign * row for row, count in zip(torch.eye(len(counts)), counts, strict=True) for sign in (1, -1) * count]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("counts", "whole", "half"),
    [((1, 1, 1, 1), 1.0, 0.5), ((7, 2, 1, 0), 0.57839, 0.41229)],
)
def test_entropy_of_known_spectra(counts, whole, half):
    states = axes(*counts)
    assert matrix_entropy(states).item() == pytest.approx(whole, abs=1e-5)
    assert matrix_entropy(states, 2).item() == pytest.approx(half, abs=1e-5)


def test_a_flat_spectrum_over_all_directions_falls_below_one_over_few():
    assert matrix_entropy(axes(1, 1, 1, 1, 1, 1, 1, 1), 2).item() == pytest.approx(2 / 8, abs=1e-6)
    assert matrix_entropy(axes(1, 1, 0, 0, 0, 0, 0, 0), 2).item() == pytest.approx(1 / 3, abs=1e-6)


def test_entropy_is_none_on_a_line_and_whole_everywhere():
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(50, 1, generator=generator) * torch.randn(1, 16, generator=generator)
    assert matrix_entropy(line).item() == pytest.approx(0, abs=1e-6)
    assert matrix_entropy(torch.randn(20_000, 16, generator=generator)).item() == pytest.approx(1, abs=1e-3)


def test_entropy_sees_neither_axes_nor_order_nor_scale_nor_tokens_at_the_mean():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 40, 8, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    for k in (3, 8):
        entropy = matrix_entropy(states, k)
        for other in (states @ rotation, states[:, torch.randperm(40)], 7 * states):
            assert torch.allclose(matrix_entropy(other, k), entropy, atol=1e-9)
        mean = states.mean(1, keepdim=True)
        assert torch.allclose(matrix_entropy(torch.cat([states, mean, mean], 1), k), entropy, atol=1e-9)
    assert matrix_entropy(torch.ones(5, 8)).item() == pytest.approx(0, abs=1e-6)
    assert matrix_entropy(states[:, :3]).isfinite().all()  # fewer tokens than dimensions


def test_entropy_is_the_official_codes():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 4, 30, 16, generator=generator) * torch.logspace(0, -2, 16)
    for k, values in OFFICIAL["entropy"].items():
        assert matrix_entropy(states[0], int(k)).tolist() == pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize("k", [0, 9])
def test_more_eigenvalues_than_dimensions_are_refused(k):
    with pytest.raises(MethodError, match=f"k is {k}; it must be 1 to 8, the dimension of a head"):
        matrix_entropy(torch.randn(5, 8), k)


# Calibration


def narrow(model, layer, head):
    """Leaves the query heads of a key-value head one direction, that of the slowest turns of rope."""
    weight = model.model.layers[layer].self_attn.q_proj.weight
    group = weight.shape[0] // HEADS
    with torch.no_grad():
        part = weight.view(HEADS, group // DIM, DIM, -1)[head]
        part[:, torch.arange(DIM) != DIM // 2 - 1] *= 1e-3


def test_calibration_finds_heads_that_always_ask_for_the_same():
    model = make_llama(max_position_embeddings=256)
    planted = ((0, 0), (1, 1), (2, 0))
    for layer, head in planted:
        narrow(model, layer, head)
    texts = list(prompt(6, 60))
    groups = calibrate_head_entropy(model, None, texts)
    assert groups.labels == ((0, 1), (1, 0), (0, 1))
    assert (groups.k, groups.texts, groups.states, groups.count) == (2, 6, "query", 2)
    assert all(groups.entropies[layer][head] < groups.entropies[layer][1 - head] for layer, head in planted)


def test_labels_are_summed_over_texts_and_ties_go_by_the_mean():
    texts = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.4, 0.3], [0.9, 0.2, 0.1, 0.3]])
    assert labels_of(texts, 2).tolist() == [0, 0, 1, 1]  # by the mean the first would be high
    assert labels_of(texts, 4).tolist() == [1, 0, 2, 3]  # sums 3, 3, 5, 7 of labels 0 to 3; the mean decides
    tie = torch.tensor([[0.1, 0.2], [0.5, 0.1]])
    assert labels_of(tie, 2).tolist() == [1, 0]
    assert labels_of(torch.rand(5, 2, 7), 3).sum(-1).tolist() == [6, 6]  # 3, 2 and 2 heads


def test_calibration_takes_texts_of_keys_and_values_too(model):
    texts = ["who wrote the old book of ann ?", "where is the river of bert and cora ?"]
    entropies = {
        states: calibrate_head_entropy(model, make_tokenizer(), texts, k=4, states=states).entropies
        for states in ("query", "key", "value")
    }
    assert len(set(entropies.values())) == 3
    assert model.config._attn_implementation == "sdpa"


def test_a_key_value_heads_entropy_is_the_mean_of_its_query_heads(model):
    ids = prompt(1, 30)
    groups = calibrate_head_entropy(model, None, [ids[0]], k=8)
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(ids))
        query = layer.self_attn.q_proj(hidden).view(30, 4, DIM).transpose(0, 1)
        cos, sin = model.model.rotary_emb(hidden, torch.arange(30)[None])
        turned = query * cos + torch.cat([-query[..., DIM // 2 :], query[..., : DIM // 2]], -1) * sin
    assert groups.entropies[0] == pytest.approx(matrix_entropy(turned).view(2, 2).mean(-1).tolist(), abs=1e-5)


def test_groups_are_saved_and_loaded(tmp_path, model):
    groups = calibrate_head_entropy(model, None, list(prompt(2)))
    assert HeadGroups.load(groups.save(tmp_path / "heads.json")) == groups
    assert HeadGroups.load("one") == HeadGroups.one()
    for content in ('{"form": 2}', '{"form": 1, "labels": [[0, 2]], "entropies": []}', '{"labels": 3}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(RunError, match="no file of head groups"):
            HeadGroups.load(tmp_path / "bad.json")
    with pytest.raises(RunError):
        HeadGroups.load(tmp_path / "none.json")


def test_groups_of_another_model_are_refused(model):
    groups = calibrate_head_entropy(model, None, list(prompt(1)))
    UNComp(groups=groups).cache(make_llama(seed=1))  # the same config: other weights of one architecture
    for other in (make_llama(layers=2), make_llama(rms_norm_eps=0.1), make_llama(num_key_value_heads=4)):
        with pytest.raises(ModelError, match="head groups were calibrated for a model of 3 layers with 2"):
            UNComp(groups=groups).cache(other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 9}, "k is 9; it must be 1 to 8"),
        ({"groups": 3}, "groups is 3; it must be 1 to 2"),
        ({"states": "hidden"}, "unknown kind of states 'hidden'"),
        ({"texts": []}, "no text to calibrate with"),
        ({"texts": [torch.tensor([5])]}, "has 1 tokens"),
        ({"texts": ["who ?"]}, "there is no tokenizer"),
    ],
)
def test_a_calibration_without_meaning_is_refused(model, fields, message):
    with pytest.raises(MethodError, match=message):
        calibrate_head_entropy(model, None, **{"texts": list(prompt(1)), **fields})
