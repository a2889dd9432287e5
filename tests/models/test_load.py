"""Every source gives the same model, and everything that can't be trusted is refused by name."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import huggingface_hub
import peft
import pytest
import torch
from torch import nn
from transformers import dynamic_module_utils

from helpers.architectures import tiny_model, tiny_tokenizer, tokens
from unwrite.errors import ModelError
from unwrite.models import Loaded, load, load_model, loading, register_loader
from unwrite.models.checkpoints import check_layers


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "model"
    tiny_model("llama").save_pretrained(home)
    tiny_tokenizer().save_pretrained(home)
    return home


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def in_hub_cache(folder, monkeypatch, tmp_path, name="some/model"):
    """Lays a folder out as the Hub client's cache does, and points the client at it."""
    home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "snapshots").mkdir(parents=True)
    folder.rename(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return commit


def test_a_folder_gives_the_model_that_was_saved_in_evaluation_mode(folder):
    loaded = load(folder)
    torch.testing.assert_close(loaded.model(tokens()).logits, tiny_model("llama")(tokens()).logits)
    assert not loaded.model.training
    assert loaded.source == {"name": str(folder), "kind": "folder", "folder": str(folder)}


def test_weights_come_in_the_type_asked_for(folder):
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_masked_model_comes_back_with_its_masked_head(tmp_path):
    tiny_model("modernbert").save_pretrained(tmp_path)
    assert load_model(tmp_path)(tokens()).logits.shape == (2, 10, 64)


def test_shards_are_read_as_one_model(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    torch.testing.assert_close(load_model(tmp_path)(tokens()).logits, model(tokens()).logits)


def test_a_tokenizer_without_a_pad_token_pads_with_eos(folder):
    assert load(folder).tokenizer.pad_token == "</s>"


def test_a_pad_token_that_is_there_stays(folder):
    tiny_tokenizer(eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    assert load(folder).tokenizer.pad_token == "<pad>"


def test_refuses_a_tokenizer_with_neither_pad_nor_eos(folder):
    tiny_tokenizer(unk_token="<unk>").save_pretrained(folder)
    with pytest.raises(ModelError, match="neither a pad nor an eos token"):
        load(folder)


def test_refuses_a_folder_without_a_tokenizer_and_names_the_call_that_needs_none(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer.*models\.load_model"):
        load(tmp_path)
    assert load_model(tmp_path)


def test_local_folders_never_reach_for_the_network(folder):
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "from unwrite.models import load; load(sys.argv[1])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_an_adapter_folder_gives_its_base_with_the_adapter_on_it(folder, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_model(folder), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", base=folder)
    torch.testing.assert_close(loaded.model(tokens()).logits, adapted(tokens()).logits)
    assert loaded.source["base"]["folder"] == str(folder)
    assert len(loaded.tokenizer) == 64


def test_refuses_an_adapter_whose_base_is_not_there(folder, tmp_path):
    peft.get_peft_model(load_model(folder), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path="/nowhere/model")
    with pytest.raises(ModelError, match="/nowhere/model"):
        load(tmp_path / "a")


def test_refuses_an_adapter_on_itself(folder, tmp_path):
    peft.get_peft_model(load_model(folder), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=".")
    with pytest.raises(ModelError, match="adapter on an adapter"):
        load(tmp_path / "a")


def test_refuses_a_pickled_adapter(folder, tmp_path):
    peft.get_peft_model(load_model(folder), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin is pickled"):
        load(tmp_path / "a")


def test_pickled_weights_are_refused_by_file_name_and_read_when_allowed(folder):
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled.*allow_pickle=True"):
        load(folder)
    torch.testing.assert_close(load(folder, allow_pickle=True).model(tokens()).logits, model(tokens()).logits)


def test_code_of_a_model_transformers_does_not_know_is_refused(folder):
    edit(folder / "config.json", model_type="unheard", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match=r"run its own code \(evil.Model\).*trust_remote_code=True"):
        load(folder)


def test_code_beside_a_model_transformers_knows_is_left_alone(folder):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    assert type(load(folder).model).__module__.startswith("transformers.")


def test_code_that_is_trusted_runs(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    edit(
        folder / "config.json",
        model_type="unheard",
        auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"},
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'unheard'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    assert type(load(folder, trust_remote_code=True).model).__name__ == "Own"


def test_refuses_a_shard_that_the_index_names_and_is_not_there(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} is missing"):
        load_model(tmp_path)


def test_refuses_an_index_that_names_a_file_elsewhere(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    edit(tmp_path / "model.safetensors.index.json", weight_map={"a": "../other.safetensors"})
    with pytest.raises(ModelError, match="outside its folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_refuses_a_truncated_file_by_name(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated"):
        load(folder)


def test_refuses_a_header_that_is_not_json(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nope")
    with pytest.raises(ModelError, match="broken safetensors header"):
        load(folder)


def test_refuses_a_git_lfs_pointer_and_says_how_to_fetch(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        load(folder)


def test_refuses_weights_that_would_be_filled_with_random_numbers(folder):
    edit(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"lacks 9 of its model's weights \(first: model\.layers\.4"):
        load(folder)


def test_refuses_weights_of_another_shape_in_one_line(folder):
    edit(folder / "config.json", vocab_size=65)
    shapes = r"lm_head\.weight, \[64, 32\] for \[65, 32\]"
    with pytest.raises(
        ModelError, match=rf"2 weights of another shape than its LlamaForCausalLM \(first: {shapes}\)"
    ) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "/nowhere/at/all", "a/b/c", "~nobody/x"])
def test_refuses_a_name_that_is_nothing(name):
    with pytest.raises(ModelError, match=r"unknown model .*smollm2-135m"):
        load(name)


def test_refuses_a_file_and_a_folder_without_a_model(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        load(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(tmp_path)


def test_refuses_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is damaged: it is not JSON"):
        load(folder)


def test_refuses_a_device_that_is_not_there(folder):
    with pytest.raises(ModelError, match="device 'nonsense' cannot be used here"):
        load(folder, device="nonsense")


def test_refuses_a_revision_for_what_has_none(folder):
    with pytest.raises(ModelError, match="revision 'main' is for a Hub id"):
        load(folder, revision="main")


def test_a_hub_id_loads_from_the_hub_cache_and_says_which_commit(folder, monkeypatch, tmp_path):
    expected = load_model(folder)(tokens()).logits
    commit = in_hub_cache(folder, monkeypatch, tmp_path)
    loaded = load("some/model", offline=True)
    torch.testing.assert_close(loaded.model(tokens()).logits, expected)
    assert (loaded.source["kind"], loaded.source["revision"]) == ("hub", commit)
    assert loaded.model.config._name_or_path == "some/model"


def test_a_hub_model_is_held_to_the_same_rules(folder, monkeypatch, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    in_hub_cache(folder, monkeypatch, tmp_path)
    with pytest.raises(ModelError, match="is pickled"):
        load("some/model", offline=True)


def test_refuses_a_hub_id_that_is_not_in_the_cache_when_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"some/model is not in the Hub cache, and nothing may be downloaded.*smollm2-135m"
    ):
        load("some/model", offline=True)


def test_says_in_one_line_that_the_hub_cannot_be_reached(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host\nand a page more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ModelError, match=r"the Hub cannot be reached \(ConnectionError\)\. Check the connection"
    ) as caught:
        load("some/model")
    assert "\n" not in str(caught.value)


def test_only_what_may_be_read_is_downloaded(monkeypatch, folder):
    asked = []

    def download(name, **options):
        asked.append(options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load("some/model", revision="v1")
    assert asked[0]["revision"] == "v1"
    assert not {"*.bin", "*.py"} & set(asked[0]["allow_patterns"])


def test_a_folder_that_names_a_loader_is_given_to_it(folder, monkeypatch):
    monkeypatch.setattr(loading, "LOADERS", {})
    seen = {}

    def guard(path, **options):
        seen.update(options, path=path)
        return Loaded(nn.Identity(), None, {"loader": "uld"})

    register_loader("uld", guard)
    (folder / "unwrite.json").write_text('{"loader": "uld"}')
    loaded = load(folder, dtype=torch.bfloat16)
    assert isinstance(loaded.model, nn.Identity)
    assert loaded.source["loader"] == "uld"
    assert "base" not in seen
    assert loaded.source["kind"] == "folder"
    assert (seen["path"], seen["dtype"], seen["allow_pickle"]) == (folder, torch.bfloat16, False)


def test_refuses_a_loader_nobody_registered(folder):
    (folder / "unwrite.json").write_text('{"loader": "os:system"}')
    with pytest.raises(ModelError, match="unknown loader 'os:system'"):
        load(folder)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, unwrite.models; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shape", [5, None, ["4"], [True], {"a": 1}, [1.5]])
def test_refuses_a_header_whose_shapes_are_none(folder, shape):
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    next(tensor for name, tensor in header.items() if name != "__metadata__")["shape"] = shape
    changed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    with pytest.raises(ModelError, match=r"model\.safetensors has a broken safetensors header"):
        load(folder)


def test_a_config_may_hold_what_other_tools_write(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "time_step_limit": [0.0, float("inf")]}))
    assert load(folder).model.config.time_step_limit[1] == float("inf")


def test_a_thousand_layers_are_let_through_whatever_the_files_hold(tmp_path):
    check_layers(tmp_path, {"num_hidden_layers": 1000, "text_config": {"n_layer": 1000}}, 20)
    check_layers(tmp_path, {"num_hidden_layers": 1200}, 1200)
    with pytest.raises(ModelError, match="n_layer is 1,001, and the checkpoint has 20 tensors"):
        check_layers(tmp_path, {"text_config": {"n_layer": 1001}}, 20)
