"""An adapter stands on a base that the user named, or one that can be nobody else's choice."""

import json
import re

import peft
import pytest
import torch

from helpers.architectures import tiny_model, tiny_tokenizer, tokens
from unwrite.errors import ModelError, Notice, naming
from unwrite.models import load, load_model, loading, save
from unwrite.models.adapters import adapter_base


@pytest.fixture
def base(tmp_path):
    home = tmp_path / "base"
    tiny_model("llama").save_pretrained(home)
    tiny_tokenizer().save_pretrained(home)
    return home


@pytest.fixture
def made(base):
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(load_model(base), config).eval()


@pytest.fixture
def adapter(made, tmp_path):
    """As another tool writes it, so with a base that nobody here has chosen."""
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def name_base(adapter, base):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


def same(loaded, made):
    return torch.equal(loaded(tokens()).logits, made(tokens()).logits)


def test_a_base_elsewhere_is_asked_for_and_loads_once_it_is_named(adapter, base, made):
    with pytest.raises(ModelError) as error, naming("flags"):
        load(adapter)
    assert str(error.value) == (
        f"{adapter}/adapter_config.json names {base} as its base, which lies outside its folder. If that is the one you "
        f"want, say so: --base {base}"
    )
    assert same(load_model(adapter, base=base), made)
    loaded = load(adapter, base=str(base))
    assert same(loaded.model, made)
    assert loaded.source["base"]["name"] == str(base)


@pytest.mark.parametrize("named", ["org/name", "hf:org/name", "gpt2"])
def test_a_base_of_the_hub_is_asked_for_and_not_fetched(adapter, monkeypatch, named):
    monkeypatch.setattr(loading, "_snapshot", lambda *_: pytest.fail("the Hub was asked"))
    name_base(adapter, named)
    whole = f"hf:{named.removeprefix('hf:')}"
    with pytest.raises(
        ModelError, match=f"names {named} as its base, which would be a model of the Hub.*base='{whole}'$"
    ):
        load(adapter)


def test_a_base_of_the_hub_that_was_named_is_fetched(adapter, base, made, monkeypatch):
    name_base(adapter, "org/name")
    monkeypatch.setattr(loading, "_snapshot", lambda name, options: {"org/name": base}[name])
    for given in ("org/name", "hf:org/name"):
        loaded = load(adapter, base=given)
        assert same(loaded.model, made)
        assert (loaded.source["base"]["name"], loaded.source["base"]["kind"]) == ("org/name", "hub")


@pytest.fixture
def cached(base, monkeypatch):
    """A model of the Hub in the local cache, at one revision; the calls that asked for it."""
    home, asked = base.rename(base.with_name("ab" * 20)), []

    def snapshot(name, options):
        asked.append((name, options.revision, options.offline))
        if name != "org/name" or options.revision not in (None, home.name):
            raise ModelError("not in the Hub cache")
        return home

    monkeypatch.setattr(loading, "_snapshot", snapshot)
    return asked


def saved_on_the_hubs(tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load_model("org/name"), config).eval()
    save(model, tmp_path / "own")
    return model


def test_an_adapter_on_a_model_of_the_hub_names_it_and_not_the_cache(cached, tmp_path):
    saved_on_the_hubs(tmp_path)
    named = json.loads((tmp_path / "own" / "adapter_config.json").read_text())["base_model_name_or_path"]
    noted = json.loads((tmp_path / "own" / "unwrite.json").read_text())
    assert (named, noted["base"], noted["revision"]) == ("org/name", "org/name", "ab" * 20)


def test_what_unwrite_saved_on_a_model_of_the_hub_loads_from_the_cache_and_fetches_nothing(cached, tmp_path):
    model = saved_on_the_hubs(tmp_path)
    cached.clear()
    loaded = load(tmp_path / "own")
    assert same(loaded.model, model)
    assert loaded.source["base"]["name"] == "org/name"
    assert set(cached) == {("org/name", "ab" * 20, True)}


@pytest.mark.parametrize(
    "note", [{"revision": "cd" * 20}, {"revision": "main"}, {"revision": 3}, {"base": "org/other"}, None], ids=str
)
def test_what_is_not_cached_or_not_noted_is_asked_for(cached, tmp_path, note):
    saved_on_the_hubs(tmp_path)
    file = tmp_path / "own" / "unwrite.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **note})) if note else file.unlink()
    with pytest.raises(
        ModelError, match=r"names org/name as its base, which would be a model of the Hub.*'hf:org/name'"
    ):
        load(tmp_path / "own")
    assert all(offline for _, _, offline in cached[1:])


def test_what_unwrite_saved_loads_without_a_word(made, base, tmp_path):
    save(made, tmp_path / "own")
    assert same(load(tmp_path / "own").model, made)


@pytest.mark.parametrize("noted", [None, "/elsewhere", "../base"])
def test_a_note_of_another_base_is_no_leave(adapter, base, noted):
    (adapter / "unwrite.json").write_text(json.dumps({"base": noted}))
    name_base(adapter, "../base" if noted == "../base" else str(base))
    with pytest.raises(ModelError, match="lies outside its folder"):
        load(adapter)


def test_a_base_inside_the_adapters_folder_comes_with_it(adapter, base, made):
    base.rename(adapter / "whole")
    name_base(adapter, "whole")
    assert same(load(adapter).model, made)
    assert same(load_model(adapter), made)


def test_a_link_in_the_folder_leads_out_of_it(adapter, base):
    (adapter / "whole").symlink_to(base)
    name_base(adapter, "whole")
    with pytest.raises(ModelError, match="lies outside its folder"):
        load(adapter)


@pytest.mark.parametrize("named", ["../base", "~/base", "base", "../base/model.gguf"])
def test_no_spelling_of_a_place_outside_is_let_in(adapter, base, monkeypatch, named):
    monkeypatch.setenv("HOME", str(base.parent))
    monkeypatch.chdir(base.parent)
    (base / "model.gguf").write_bytes(b"GGUF")
    name_base(adapter, named)
    with pytest.raises(ModelError, match=re.escape(f"say so: base='{base}")):
        load(adapter)


def test_a_bundled_base_is_no_strangers_choice(adapter):
    name_base(adapter, "smollm2-135m")
    assert adapter_base(adapter, None) == "smollm2-135m"


@pytest.mark.parametrize("named", ["/nowhere/at/all", "org/x.gguf", "a/b/c"])
def test_a_base_that_is_missing_is_not_looked_for_elsewhere(adapter, monkeypatch, named):
    monkeypatch.setattr(loading, "_snapshot", lambda *_: pytest.fail("the Hub was asked"))
    name_base(adapter, named)
    with pytest.raises(ModelError, match=re.escape(named)):
        load(adapter)


@pytest.mark.parametrize("named", [None, "", 3, ["org/name"]])
def test_a_base_that_is_no_name_is_refused_and_can_be_given(adapter, base, made, named):
    name_base(adapter, named)
    with pytest.raises(ModelError, match=r"names no base model\. Give it by base"):
        load(adapter)
    assert same(load_model(adapter, base=base), made)


def test_another_base_than_the_adapter_names_is_noticed(adapter, base, made):
    name_base(adapter, "org/name")
    with pytest.warns(Notice, match=f"names org/name as its base, and {base} is used, as base says"):
        assert same(load_model(adapter, base=base), made)


@pytest.mark.filterwarnings("error::unwrite.errors.Notice")
def test_the_same_base_by_another_path_is_the_same(adapter, base, made, monkeypatch):
    monkeypatch.chdir(base.parent)
    assert same(load_model(adapter, base="base"), made)


@pytest.mark.parametrize("read", [load, load_model])
def test_a_base_for_a_whole_model_is_refused(base, read):
    with pytest.raises(ModelError, match="is no adapter, so base has no meaning for it"):
        read(base, base="org/name")
