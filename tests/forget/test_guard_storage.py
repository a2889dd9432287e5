"""A saved guard is loaded by the guard alone: to every other tool it is no model, least of all the one before forgetting."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from conftest import make_llama
from unwrite.errors import ModelError, Notice
from unwrite.forget import ULD
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel
from unwrite.models import load, save


@pytest.fixture
def pair():
    return LogitDifferenceModel(make_llama(0, layers=2), make_llama(9, layers=1), alpha=0.8, top_filter=0.01)


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_no_other_tool_loads_what_is_inside_a_saved_guard(pair, tokenizer, tmp_path, max_shard_size):
    pair.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    assert folders == [tmp_path]
    for read in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="unwrite-guard"):
            read.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    weights = [path for path in tmp_path.iterdir() if path.stat().st_size > 20_000 or "safetensors" in path.name]
    assert len(weights) >= 2
    assert {path.suffix for path in weights} == {".guarded"}
    assert load(tmp_path).model.fingerprint() == pair.fingerprint()


def old_form(pair, folder):
    """As guards were stored before: two folders that are models to every tool."""
    pair.target.save_pretrained(folder / "target")
    pair.assistant.save_pretrained(folder / "assistant")
    settings = {"alpha": pair.alpha, "top_filter": pair.top_filter, "raw": pair.raw}
    (folder / "unwrite.json").write_text(json.dumps({"loader": "logit-difference", "settings": settings}))
    return folder


def test_a_guard_stored_in_the_old_form_loads_and_says_how_to_store_it_again(pair, tmp_path):
    folder = old_form(pair, tmp_path / "old")
    with pytest.warns(Notice, match=r"other tools load .*target as a model.*save it to another folder"):
        again = load(folder).model
    assert again.fingerprint() == pair.fingerprint()
    with pytest.raises(ModelError, match="in the old form"):
        again.save_pretrained(folder)
    assert (folder / "target" / "model.safetensors").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert load(save(again, tmp_path / "new")).model.fingerprint() == pair.fingerprint()


def test_saving_in_place_of_a_guard_in_the_old_form_leaves_nothing_of_it(pair, tmp_path):
    folder = old_form(pair, tmp_path / "old")
    save(pair, folder)
    assert not (folder / "target").exists()
    assert load(folder).model.fingerprint() == pair.fingerprint()


def remove(folder):
    for path in folder.glob("assistant.*"):
        path.unlink()


def cut(folder):
    path = folder / "target.model.safetensors.guarded"
    path.write_bytes(path.read_bytes()[:500])


def forget_settings(folder):
    (folder / "unwrite.json").write_text('{"loader": "logit-difference"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"holds no assistant \(files assistant\.\*\.guarded\)"),
        (cut, r"/g/target\.model\.safetensors\.guarded is truncated"),
        (forget_settings, r"unwrite\.json has no settings of a LogitDifferenceModel"),
    ],
)
def test_refuses_a_damaged_guard_by_the_names_its_files_have(pair, tmp_path, damage, message):
    damage(save(pair, tmp_path / "g"))
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / "g")
    assert "\n" not in str(caught.value)


def test_refuses_to_push_a_guard_and_one_whose_model_has_folders_of_its_own(pair, tmp_path):
    with pytest.raises(ModelError, match="a guard is not pushed to a hub"):
        pair.save_pretrained(tmp_path / "a", push_to_hub=True)
    assert not (tmp_path / "a").exists()
    pair.assistant = get_peft_model(pair.assistant, ULD()._lora(), adapter_name="second")
    with pytest.raises(
        ModelError, match=r"the assistant of this LogitDifferenceModel has a part of its own \(second/\)"
    ):
        pair.save_pretrained(tmp_path / "b")


def test_a_saved_guard_comes_back_in_the_type_asked_for(pair, tmp_path):
    again = load(save(pair, tmp_path / "g"), dtype=torch.bfloat16).model
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}
