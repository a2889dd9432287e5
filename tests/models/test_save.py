"""What is saved comes back, is whole, and says where it is from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from helpers.architectures import tiny_model, tiny_tokenizer, tokens
from unwrite.errors import ModelError, Notice, RunError
from unwrite.models import load, load_model, load_state, save, saving
from unwrite.models.agreement import allowed
from unwrite.runs import hash_model


def adapted(model):
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def note(folder):
    return json.loads((folder / "unwrite.json").read_text())


def test_a_model_and_its_tokenizer_come_back(tmp_path):
    model = tiny_model("gpt2")
    folder = save(model, tmp_path / "m", tokenizer=tiny_tokenizer())
    loaded = load(folder)
    torch.testing.assert_close(loaded.model(tokens()).logits, model(tokens()).logits)
    assert not list(folder.glob("*.bin"))


def test_the_note_says_what_was_saved_and_with_which_versions(tmp_path):
    model = tiny_model("llama")
    written = note(save(model, tmp_path / "m", provenance={"method": "npo", "seed": 3}))
    assert written["kind"] == "model"
    assert written["class"] == "LlamaForCausalLM"
    assert written["weights"] == hash_model(model)
    assert written["provenance"] == {"method": "npo", "seed": 3}
    assert set(written["versions"]) == {"unwrite", "torch", "transformers", "peft"}


def test_an_adapter_is_saved_alone_and_names_its_base(tmp_path):
    base = save(tiny_model("llama"), tmp_path / "base", tokenizer=tiny_tokenizer())
    model = adapted(load_model(base))
    folder = save(model, tmp_path / "adapter")
    assert not (folder / "model.safetensors").exists()
    assert (note(folder)["kind"], note(folder)["base"]) == ("adapter", str(base))
    torch.testing.assert_close(load(folder).model(tokens()).logits, model(tokens()).logits)


def test_an_adapter_on_a_bundled_model_names_it_not_this_machines_cache(tmp_path):
    base = save(tiny_model("llama"), tmp_path / "cache")
    (base / "unwrite.json").write_text('{"bundled": "smollm2-135m"}')
    folder = save(adapted(load_model(base)), tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2-135m"
    assert note(folder)["base"] == "smollm2-135m"


def test_merging_gives_one_model_with_the_same_answers_and_leaves_the_adapter_alone(tmp_path):
    model = adapted(tiny_model("llama"))
    before = hash_model(model)
    merged = load_model(save(model, tmp_path / "m", merge=True))
    torch.testing.assert_close(merged(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert hash_model(model) == before


def test_a_plain_module_with_shared_weights_comes_back(tmp_path):
    def build():
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        return net

    model = build()
    restored = load_state(build(), save(model, tmp_path / "m"))
    assert torch.equal(restored(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_what_saves_itself_is_asked_to_and_keeps_its_own_note(tmp_path):
    class Guard:
        def save_pretrained(self, folder):
            (folder / "unwrite.json").write_text('{"loader": "uld", "kind": "guard"}')

    written = note(save(Guard(), tmp_path / "g", provenance={"a": 1}))
    assert (written["loader"], written["kind"], written["provenance"]) == ("uld", "guard", {"a": 1})


def test_a_second_save_replaces_the_first(tmp_path):
    save(tiny_model("llama", layers=4), tmp_path / "m", tokenizer=tiny_tokenizer())
    save(tiny_model("llama", layers=1), tmp_path / "m")
    assert load_model(tmp_path / "m").config.num_hidden_layers == 1
    assert not (tmp_path / "m" / "tokenizer.json").exists()


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            (folder / "half").write_text("half")
            raise OSError("no space left on device")

    model = tiny_model("llama")
    save(model, tmp_path / "m")
    with pytest.raises(ModelError, match="could not be written: no space left"):
        save(Broken(), tmp_path / "m")
    assert hash_model(load_model(tmp_path / "m")) == hash_model(model)
    assert os.listdir(tmp_path) == ["m"]


def changed_config(model):
    model.config.rope_parameters["rope_theta"] = 3.0  # the model in memory still turns by the old one


def shared_head(model):
    model.lm_head.weight = model.model.embed_tokens.weight  # and the config says they are two


@pytest.mark.parametrize("fault", [changed_config, shared_head])
def test_refuses_what_would_load_as_another_model_and_leaves_the_old_folder(tmp_path, fault):
    save(tiny_model("llama", seed=1), tmp_path / "m")
    before = hash_model(load_model(tmp_path / "m"))
    model = tiny_model("llama", tie_word_embeddings=False)
    fault(model)
    with pytest.raises(
        ModelError, match=r"/m would (not load again|load as another model).*nothing was written"
    ) as caught:
        save(model, tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert "/.m." not in str(caught.value)  # the folder's name while it is written
    assert hash_model(load_model(tmp_path / "m")) == before
    assert os.listdir(tmp_path) == ["m"]


def test_refuses_an_adapter_whose_base_was_changed_after_it_was_loaded(tmp_path):
    base = save(tiny_model("llama"), tmp_path / "base")
    model = adapted(load_model(base))
    with torch.no_grad():
        model.base_model.model.model.norm.weight.mul_(1.5)
    with pytest.raises(ModelError, match="would load as another model"):
        save(model, tmp_path / "adapter")


def test_reading_an_adapter_back_leaves_the_callers_random_numbers_alone(tmp_path):
    base = save(tiny_model("llama"), tmp_path / "base")
    config = peft.LoraConfig(target_modules=["q_proj"])  # whose first weights are drawn when it is read
    model = peft.get_peft_model(load_model(base), config)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    save(model, tmp_path / "a")
    assert torch.equal(torch.rand(1), expected)


def test_of_several_adapters_the_one_that_loads_must_be_the_one_in_use(tmp_path):
    base = save(tiny_model("llama"), tmp_path / "base")
    model = adapted(load_model(base))
    model.add_adapter("second", peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    logits = model(tokens()).logits
    torch.testing.assert_close(load_model(save(model, tmp_path / "a"))(tokens()).logits, logits)
    model.set_adapter("second")
    with pytest.raises(ModelError, match="its outputs differ by"):
        save(model, tmp_path / "b")


def test_an_adapter_whose_base_has_no_name_is_written_unread_and_merging_needs_none(tmp_path):
    assert save(adapted(tiny_model("llama")), tmp_path / "a").is_dir()
    assert load_model(save(adapted(tiny_model("llama")), tmp_path / "b", merge=True))


def test_refuses_an_adapter_under_a_name_that_load_does_not_look_for(tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), config, adapter_name="second")
    with pytest.raises(ModelError, match="the adapter is named 'second', and only one named 'default' loads again"):
        save(model, tmp_path / "a")


def test_weights_that_are_no_numbers_are_saved_as_they_are(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 0] = float("nan")
    assert load_model(save(model, tmp_path / "m")).lm_head.weight[3, 0].isnan()


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "modernbert", "opt"])
def test_saving_reads_back_every_family_and_leaves_mode_and_randomness_alone(tmp_path, arch):
    model = tiny_model(arch).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    save(model, tmp_path / "m")
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in model.modules())


def test_a_picture_model_is_read_back_too(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    model = ResNetForImageClassification(config)
    model.resnet.encoder.stages[1].layers[0].shortcut.normalization.eps = 1.0  # not in the config, so it would be lost
    with pytest.raises(ModelError, match="its outputs differ by"):
        save(model, tmp_path / "m")


def test_refuses_to_replace_a_folder_it_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="did not write"):
        save(tiny_model("llama"), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_refuses_to_merge_what_has_no_adapter(tmp_path):
    with pytest.raises(ModelError, match=r"merge=True needs an adapter.*LlamaForCausalLM"):
        save(tiny_model("llama"), tmp_path / "m", merge=True)


def test_refuses_a_provenance_that_is_not_json(tmp_path):
    with pytest.raises(ModelError, match="provenance is not plain JSON"):
        save(tiny_model("llama"), tmp_path / "m", provenance={"x": object()})
    with pytest.raises(ModelError, match="provenance is not plain JSON"):
        save(tiny_model("llama"), tmp_path / "m", provenance={"x": float("nan")})


def test_refuses_weights_of_another_module_and_of_none(tmp_path):
    folder = save(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(ModelError, match="is not of this Linear"):
        load_state(nn.Linear(3, 2), folder)
    with pytest.raises(RunError, match="does not exist"):
        load_state(nn.Linear(2, 2), tmp_path / "none")


def test_a_model_that_memory_does_not_hold_twice_is_written_and_said_to_be_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "free_memory", lambda: 1000.0)
    model = tiny_model("llama")
    changed_config(model)  # so that reading it back would refuse it
    with pytest.warns(Notice, match=r"/m was not read back: that takes 0\.0 GiB of memory, and 0\.0 are free"):
        save(model, tmp_path / "m")
    monkeypatch.setattr(saving, "free_memory", lambda: 1e9)
    with pytest.raises(ModelError, match="as another model"):
        save(model, tmp_path / "n")


class Own(nn.Linear):
    """A model of somebody's own class, which has what it takes to be saved and perhaps what it takes to be read."""

    config = None

    def save_pretrained(self, folder):
        torch.save(self.state_dict(), folder / "own.pt")


class Readable(Own):
    @classmethod
    def from_pretrained(cls, folder):
        model = cls(2, 2)
        model.load_state_dict({name: value + cls.error for name, value in torch.load(folder / "own.pt").items()})
        return model


def test_quantised_weights_are_not_read_back(tmp_path):
    model = tiny_model("llama")
    changed_config(model)  # so that reading it back would refuse it
    model.is_quantized = True
    assert save(model, tmp_path / "a").is_dir()


def test_refuses_weights_that_are_not_in_memory(tmp_path):
    model = tiny_model("llama").to("meta")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has weights that are not in memory.*Load it whole"):
        save(model, tmp_path / "a")


def test_models_of_ones_own_class_are_read_back_where_that_is_possible(tmp_path):
    assert save(Own(2, 2), tmp_path / "a").is_dir()
    Readable.error = 0.0
    assert save(Readable(2, 2), tmp_path / "b").is_dir()
    Readable.error = 1.0
    with pytest.raises(ModelError, match=r"as another model than the Readable in memory \(bias differs"):
        save(Readable(2, 2), tmp_path / "c")


def test_the_documented_tolerances_are_those_that_hold():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| (float32|float16|bfloat16) \| ([\d.]+) \|$", text, re.MULTILINE))
    model = nn.Linear(1, 1)
    held = {name: allowed(model.to(getattr(torch, name))) for name in ("float32", "float16", "bfloat16")}
    assert {name: float(value) for name, value in documented.items()} == held
    assert allowed(nn.Linear(1, 1, device="meta")) == 0.005  # as any device that isn't the CPU
    assert "(0.005 for float32 on a GPU" in text
