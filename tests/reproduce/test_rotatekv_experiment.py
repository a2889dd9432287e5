"""RotateKV's experiment: each check can fail for its own reason, and the caches it is held against are what they are said to be."""

import pydoc_data.topics
from types import SimpleNamespace

import pytest
import torch
from tests.helpers.tiny import make_llama
from transformers import DynamicCache

from unwrite.beds.budget import Budget
from unwrite.beds.language import small_tokenizer
from unwrite.beds.outlier_keys import outlier_keys
from unwrite.beds.two_bit_caches import KIVI, RandomSinks
from unwrite.cache import RotateKVCache
from unwrite.reproduce import rotatekv
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

LOSS = {
    "FULL": 2.0, "NEAREST": 3.0, "CHOSEN": 2.8, "FINE": 2.3, "VALUES": 2.6, "BEHIND": 2.5, "KEYS": 2.3, "ORDER": 2.2, "OWN": 2.01,
    "DRAWN": 2.19, "PEER": 2.25,
}  # fmt: skip
WORST = {"nearest": 1.2, "rotated by head": 0.6, "rotated across heads": 0.4, "and reordered": 0.1}


def figures(loss=(), share=0.2, behind=2.1, whole=1e-5):
    values = {getattr(rotatekv, name): value for name, value in {**LOSS, **dict(loss)}.items()}
    jitter = 0.001 * torch.arange(6.0).reshape(3, 2)
    return rotatekv.PageFigures(
        {name: value + jitter for name, value in values.items()},
        {name: 1.0 if name == rotatekv.FULL else share if name == rotatekv.OWN else 0.3 for name in values},
        {
            name: torch.full((6,), value)
            for name, value in ((rotatekv.FULL, 2.0), (rotatekv.CHOSEN, 2.9), (rotatekv.OWN, behind))
        },
        [1.0, 3.0],
        {},
        whole,
    )


def planted(ratio=0.3, **worst):
    return {name: [value] * 3 for name, value in {**WORST, **worst}.items()}, [ratio] * 3


@pytest.mark.parametrize(
    ("one", "other", "fails"),
    [
        (figures(), planted(), []),
        (figures({"FINE": 2.04}), planted(), ["the best baseline costs"]),
        (figures(whole=0.01), planted(), ["nothing quantised"]),
        (figures(), planted(**{"rotated by head": 1.3}), ["better off rotated by head"]),
        (figures(), planted(**{"rotated across heads": 0.7}), ["better off rotated across heads"]),
        (figures(), planted(**{"and reordered": 0.5}), ["better off and reordered"]),
        (figures(), planted(0.6), ["all steps halve"]),
        (figures({"CHOSEN": 2.62, "OWN": 2.2, "ORDER": 2.6, "KEYS": 2.605, "FULL": 1.2, "DRAWN": 2.6, "VALUES": 2.61, "BEHIND": 2.61, "PEER": 2.6}), planted(), ["less than half", "at most 0.3"]),
        (figures({"VALUES": 2.85}), planted(), ["rotated values"]),
        (figures({"KEYS": 2.55, "VALUES": 2.54, "BEHIND": 2.56}), planted(), ["rotating keys before rope lowers"]),
        (figures({"BEHIND": 2.25}), planted(), ["better than behind"]),
        (figures({"ORDER": 2.35}), planted(), ["reordering channels"]),
        (figures({"ORDER": 2.005}), planted(), ["whole sink tokens"]),
        (figures({"PEER": 2.0}), planted(), ["the best baseline", "keys quantised along channels"]),
        (figures(share=0.31), planted(), ["bytes are fewer"]),
        (figures(behind=2.95), planted(), ["behind a prompt"]),
        (figures({"OWN": 2.1}), planted(), ["at most 0.3"]),
        (figures({"DRAWN": 2.0}), planted(), ["at random save less"]),
    ],
)  # fmt: skip
def test_each_check_fails_for_its_own_reason(one, other, fails):
    checks = rotatekv.checks_of(one, other)
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails), failed
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)


def test_planted_errors_fall_with_every_step():
    checks = rotatekv.checks_of(figures(), rotatekv.planted_errors((0, 1, 2)))
    assert all(check.holds for check in checks if check.kind == "mechanism")


def test_planted_channels_are_large_with_one_sign():
    keys = outlier_keys(0)
    large = keys.mean(0).abs() > 10
    assert large.sum() == 10
    assert torch.equal(large, keys.std(0) > 3)
    assert not torch.equal(keys, outlier_keys(1))


def test_steps_build_on_each_other():
    made = rotatekv.arms(None, {rotatekv.CHOSEN: 0.9, rotatekv.FINE: 1.0, rotatekv.OWN: 0.8})
    assert {one.prefill for name, one in made.items() if name != rotatekv.PEER} == {"quantised"}
    assert made[rotatekv.NEAREST].clip == 1.0
    assert (made[rotatekv.CHOSEN].clip, made[rotatekv.OWN].clip) == (0.9, 0.8)
    assert (made[rotatekv.VALUES].rotate_values, made[rotatekv.VALUES].rotate_keys) == (True, "none")
    assert (made[rotatekv.KEYS].pre_rope, made[rotatekv.BEHIND].pre_rope) == (True, False)
    assert (made[rotatekv.ORDER].sinks, made[rotatekv.OWN].sinks, made[rotatekv.DRAWN].sinks) == (0, 20, 20)


@pytest.fixture(scope="module")
def model():
    return make_llama(layers=2, head_dim=16)


@torch.no_grad()
def read(model, cache, *cuts):
    ids = torch.randint(5, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    ends = [*cuts, 20]
    pieces = [model(ids[:, a:b], past_key_values=cache).logits for a, b in zip([0, *cuts], ends, strict=True)]
    return torch.cat(pieces, 1)


def test_kivi_keeps_its_window_whole_and_blocks_by_channel(model):
    whole, cache = DynamicCache(), KIVI(block=4).cache(model)
    read(model, whole)
    read(model, cache, 11, 12, 13)
    layer = cache.layers[0]
    assert layer.last_keys.shape[2] == 4
    assert layer.kept_keys[1].shape == (2, 2, 4, 16, 1)  # a scale for each channel of a block
    assert layer.kept_values[1].shape == (2, 2, 4, 4, 4)  # and for 4 of a token's 16 values
    assert torch.equal(layer.last_keys, whole.layers[0].keys[:, :, -4:])
    back = layer.quantiser.restore(layer.kept_keys).transpose(3, 4).flatten(2, 3)
    steps = layer.kept_keys[1].float().transpose(3, 4).repeat_interleave(4, 3).flatten(2, 3)
    assert ((back - whole.layers[0].keys[:, :, :16]).abs() <= 0.51 * steps).all()
    assert cache.nbytes() == sum(one.nbytes for layer in cache.layers for one in layer.tensors())


def test_kivi_with_room_for_all_is_the_full_cache(model):
    torch.testing.assert_close(read(model, KIVI(block=32).cache(model), 9), read(model, DynamicCache()))


def test_as_many_tokens_are_whole_at_random_and_others(model):
    own, drawn = RotateKVCache(model, sinks=3), RandomSinks(sinks=3).cache(model)
    read(model, own)
    read(model, drawn)
    assert own.sink_tokens()[0] == drawn.sink_tokens()[0]
    for one, other in zip(own.layers[0].sink_at, drawn.layers[0].sink_at, strict=True):
        assert not {*one.tolist()} & {*other.tolist()} - {-1}


def test_a_headline_fits_its_cell():
    rows = dict.fromkeys((rotatekv.FULL, rotatekv.CHOSEN, rotatekv.OWN), ("12345.6 +- 1000", "0.123", "-"))
    assert len(rotatekv.headline(rows, {})) <= HEADLINE


def test_it_runs_tiny(monkeypatch):
    """On a model without training, which knows as many layers and head sizes as the real one."""
    tokenizer = small_tokenizer([text[:300] for text in pydoc_data.topics.topics.values()], size=400)
    sizes = {"layers": 3, "hidden": 48, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64}
    loaded = SimpleNamespace(model=make_llama(vocab=len(tokenizer), **sizes), tokenizer=tokenizer)
    monkeypatch.setattr(rotatekv, "load", lambda name: loaded)
    claim, record = run("rotatekv", Budget("tiny", (0,)))
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert len(claim.rows) == 11
    assert rotatekv.headline(record["rows"], record["extra"]) == record["headline"]
    assert float(record["rows"][rotatekv.OWN][1]) < float(record["rows"][rotatekv.FULL][1]) == 1
