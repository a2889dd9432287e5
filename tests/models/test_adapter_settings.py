"""An adapter's patterns end, and its sizes are those of its tensors."""

import json
import time

import pytest
from peft import LoraConfig, get_peft_model

from conftest import make_llama
from unwrite.errors import ModelError
from unwrite.models import adapter_settings, load_model


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter, and how to change its configuration."""
    make_llama(layers=2).save_pretrained(tmp_path / "own" / "base")
    model = get_peft_model(make_llama(layers=2), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "own")
    file = tmp_path / "own" / "adapter_config.json"

    def change(**settings):
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        return tmp_path / "own"

    change(base_model_name_or_path="base")
    return change


ENDLESS = r"(([\w.]+)+)+!"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"layers_pattern": [ENDLESS], "layers_to_transform": [0]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_pattern_without_end_is_refused_with_its_bound(adapter, settings, monkeypatch):
    monkeypatch.setattr(adapter_settings, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(
        ModelError, match=rf"adapter_config\.json: a pattern takes more than 1 s .*{next(iter(settings))}"
    ):
        load_model(adapter(**settings))
    assert time.monotonic() - began < 10


def test_a_pattern_of_the_usual_kind_is_carried_out(adapter):
    pattern = r".*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj)$"
    model = load_model(adapter(target_modules=pattern, rank_pattern={r"layers\.0\..*": 4}))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("pattern", ["(", "a**", "(?P<x", "[z-a]"])
def test_what_is_no_pattern_is_refused(adapter, pattern):
    with pytest.raises(ModelError, match=r"target_modules is no regular expression"):
        load_model(adapter(target_modules=pattern))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"r": 2**31}, r"r is 2,147,483,648, and the largest dimension of its tensors is 32"),
        ({"rank_pattern": {"q_proj": 2**40}}, r"rank_pattern of 'q_proj' is 1,099,511,627,776, and"),
        ({"r": "4"}, "r is '4', not a whole number"),
        ({"r": -1}, "r is -1, not a whole number"),
        ({"r": True}, "r is True, not a whole number"),
    ],
)
def test_sizes_are_those_of_the_tensors(adapter, settings, why):
    with pytest.raises(ModelError, match=rf"adapter_config\.json: {why}"):
        load_model(adapter(**settings))


@pytest.mark.parametrize("base", [5, [], {}, True, ""])
def test_a_base_is_a_name(adapter, base):
    with pytest.raises(ModelError, match=r"adapter_config\.json names no base model"):
        load_model(adapter(base_model_name_or_path=base))


@pytest.mark.parametrize("where", ["num_hidden_layers", "n_layer"])
def test_more_layers_than_tensors_are_refused_at_once(tmp_path, where):
    make_llama(layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, where: 2**31}))
    with pytest.raises(ModelError, match=rf"config\.json: {where} is 2,147,483,648, and the checkpoint has 12 tensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x/y", "x" * 300, "a" * 5000 + "/b"])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(ModelError):
        load_model(name, offline=True)
