"""Every tensor of a checkpoint is in the model and the other way round, for every format; else one line says which."""

from __future__ import annotations

import json
import shutil

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from test_merging import KINDS, adapted

from helpers.architectures import tiny_model, tokens
from unwrite.errors import ModelError
from unwrite.models import bundled, load, load_model, save
from unwrite.models.gguf_parts import join_parts, opened, parts_of
from unwrite.models.requantise import requantise
from unwrite.runs import hash_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def model():
    return tiny_model("llama", layers=2, tie_word_embeddings=False)


def drop(tensors):
    del tensors[next(name for name in tensors if name.split(".")[0] == "model" or name == "output_norm")]


def add(tensors):
    tensors["rope_factors_long"] = np.ones(4, np.float32) if "output_norm" in tensors else torch.ones(4)


def reshape(tensors):
    name = "lm_head.weight" if "lm_head.weight" in tensors else "output"
    tensors[name] = tensors[name][:63]


FAULTS = {
    "missing": (drop, r"lacks 1 of its model's weights \(first: model\.(embed_tokens|norm)\.weight\)"),
    "left over": (add, r"holds 1 weight that its LlamaForCausalLM has no place for \(first: rope_factors_long"),
    "another shape": (
        reshape,
        r"has 1 weight of another shape .*\(first: lm_head\.weight, \[63, 32\] for \[64, 32\]\)",
    ),
}


def one_file(folder, change, monkeypatch):
    model().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def shards(folder, change, monkeypatch):
    model().save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = load_file(shard)
        before = {name: value.shape for name, value in tensors.items()}
        try:
            change(tensors)
        except (StopIteration, KeyError):
            continue
        if {name: value.shape for name, value in tensors.items()} == before:
            continue
        save_file(tensors, shard, {"format": "pt"})
        index["weight_map"] = {n: s for n, s in index["weight_map"].items() if s != shard.name}
        index["weight_map"] |= dict.fromkeys(tensors, shard.name)
        break
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def hub(folder, change, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = folder / "models--some--model"
    one_file(folder / "x", change, monkeypatch)
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.move(folder / "x", home / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return "some/model"


def pickled(folder, change, monkeypatch):
    one_file(folder, change, monkeypatch)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def gguf_file(folder, change, monkeypatch):
    return write_gguf(folder / "tiny.gguf", model(), change=change)


def gguf_parts(folder, change, monkeypatch):
    write_gguf(folder / "tiny.gguf", model(), change=change, tensors_a_file=8)
    return sorted(folder.glob("*.gguf"))[0]


FORMATS = [one_file, shards, hub, pickled, gguf_file, gguf_parts]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_a_whole_checkpoint_gives_the_model_it_was_written_from(form, tmp_path, monkeypatch):
    name = form(tmp_path, lambda tensors: None, monkeypatch)
    read = load_model(name, allow_pickle=form is pickled, offline=True if form is hub else None)
    torch.testing.assert_close(read(tokens()).logits, model()(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_refuses_every_other_checkpoint_in_one_line_and_keeps_nothing_of_it(form, fault, tmp_path, monkeypatch, cache):
    change, message = FAULTS[fault]
    name = form(tmp_path, change, monkeypatch)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name, allow_pickle=form is pickled, offline=True if form is hub else None)
    assert "\n" not in str(caught.value)
    assert not cache.is_dir() or [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_tied_head_needs_no_tensor_of_its_own_in_any_format(tmp_path):
    tied = tiny_model("llama", layers=1, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    write_gguf(tmp_path / "tied.gguf", tied, change=lambda tensors: tensors.pop("output"))
    for name in ("m", "tied.gguf"):
        read = load_model(tmp_path / name)
        torch.testing.assert_close(read(tokens()).logits, tied(tokens()).logits, rtol=1e-4, atol=1e-4)
        assert read.lm_head.weight is read.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "shape", "harmless"),
    [
        ("model.layers.0.attn.bias", (1, 1, 8, 8), True),  # the causal mask, as older versions stored it
        ("model.layers.0.attn.masked_bias", (), True),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", (1, 1, 8, 8), True),
        ("model.layers.0.attn.bias", (32,), False),  # a bias that the class doesn't have
        ("model.layers.0.attn.extra", (1, 1, 8, 8), False),
    ],
)
def test_only_tables_that_are_computed_may_be_left_over(tmp_path, name, shape, harmless):
    tiny_model("llama", layers=1).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {name: torch.zeros(shape)}, tmp_path / "model.safetensors", {"format": "pt"})
    if harmless:
        assert load_model(tmp_path)
    else:
        with pytest.raises(
            ModelError, match=f"holds 1 weight that its LlamaForCausalLM has no place for .first: {name}"
        ):
            load_model(tmp_path)


def test_the_other_head_that_bert_was_trained_with_may_be_left_over(tmp_path):
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    BertForPreTraining(config).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "architectures": ["BertForMaskedLM"]}))
    assert type(load_model(tmp_path)).__name__ == "BertForMaskedLM"
    (tmp_path / "config.json").write_text(json.dumps({**described, "architectures": ["BertLMHeadModel"]}))
    with pytest.raises(ModelError, match="holds 4 weights that its BertLMHeadModel has no place for"):
        load_model(tmp_path)


@pytest.fixture
def on_a_base(tmp_path):
    base = save(tiny_model("llama", layers=1), tmp_path / "base")
    return lambda kind="attention": save(adapted(load_model(base), KINDS[kind]()), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(sorted(tensors)[0]), r"lacks 1 of its model's weights \(first: .*lora_A"),
        (lambda tensors: tensors.update(more=torch.ones(2)), r"holds 1 weight .*\(first: more\)"),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(8, 31)}), "could not be loaded on .*base"),
    ],
    ids=["missing", "left over", "another shape"],
)
def test_adapters_are_held_to_the_same(on_a_base, change, message):
    folder = on_a_base()
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def scaled(**changed):
    """A llama with the rotary scaling of Llama 3.1 and 3.2, whose four wavelengths are 6, 167, 4443 and 118144."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192, **changed}
    return tiny_model("llama", layers=2, tie_word_embeddings=False, rope_parameters=rope)


def with_table(model, table=None):
    """Adds what llama.cpp writes: the factor each frequency is divided by."""
    plain = 1 / 500000.0 ** (np.arange(0, 8, 2) / 8)
    factors = plain / model.model.rotary_emb.inv_freq.numpy() if table is None else np.array(table)

    def change(tensors):
        tensors["rope_freqs"] = factors.astype(np.float32)

    return change


@pytest.mark.parametrize("changed", [{}, {"factor": 32.0}, {"original_max_position_embeddings": 4096}])
def test_the_rotary_scaling_of_llama_3_is_read_from_its_table(tmp_path, changed):
    given = scaled(**changed)
    read = load_model(write_gguf(tmp_path / "a.gguf", given, change=with_table(given)))
    torch.testing.assert_close(read.model.rotary_emb.inv_freq, given.model.rotary_emb.inv_freq, rtol=1e-4, atol=0)
    torch.testing.assert_close(read(tokens()).logits, given(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert read.config.rope_parameters["factor"] == {**{"factor": 8.0}, **changed}["factor"]


def test_a_rotary_table_of_ones_scales_nothing(tmp_path):
    read = load_model(write_gguf(tmp_path / "a.gguf", model(), change=with_table(None, [1, 1, 1, 1])))
    torch.testing.assert_close(read(tokens()).logits, model()(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("table", [[1, 1, 2, 9], [1, 1, 1, 8, 8], [1, 2, 2, 2]])
def test_refuses_a_rotary_table_that_no_known_numbers_give(tmp_path, table):
    path = write_gguf(tmp_path / "a.gguf", scaled(), change=with_table(None, table))
    with pytest.raises(ModelError, match=r"no place for \(first: rope_freqs\.weight\).* get the model as safetensors"):
        load_model(path)


def test_parts_are_quantised_again_as_one_model(tmp_path):
    pytest.importorskip("llama_cpp")
    from tiny_gguf import make_model
    from tiny_gguf import write_gguf as write

    whole = write(tmp_path / "whole.gguf", make_model())
    parts = write(tmp_path / "x.gguf", make_model(), tensors_a_file=8).parent.glob("x-*.gguf")
    again = requantise(sorted(parts)[1], "q8_0")
    assert again.name == "x.Q8_0.gguf"
    tensors = [{t.name: t.data for t in gguf.GGUFReader(p).tensors} for p in (again, requantise(whole, "q8_0"))]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def split(folder, count=3):
    """The tiny llama's 21 tensors in parts of seven."""
    write_gguf(folder / "tiny.gguf", model(), tensors_a_file=7)
    parts = sorted(folder.glob("*.gguf"))
    assert [part.name for part in parts] == [f"tiny-0000{i}-of-0000{count}.gguf" for i in range(1, count + 1)]
    return parts


@pytest.mark.parametrize("named", [0, 1, 2, "folder"])
def test_a_model_in_parts_is_read_whole_whatever_is_named(tmp_path, named, cache):
    (tmp_path / "m").mkdir()
    parts = split(tmp_path / "m")
    loaded = load(tmp_path / "m" if named == "folder" else parts[named])
    torch.testing.assert_close(loaded.model(tokens()).logits, model()(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer.eos_token == "</s>"
    assert loaded.tokenizer.chat_template
    assert loaded.source["kind"] == "gguf"
    assert sorted(path.name for path in (cache / loaded.source["folder"]).glob("*.gguf")) == []


def test_all_parts_and_their_folder_are_one_conversion(tmp_path, cache):
    (tmp_path / "m").mkdir()
    parts = split(tmp_path / "m")
    assert len({load(name).source["folder"] for name in (*parts, tmp_path / "m")}) == 1


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_refuses_a_model_with_a_missing_part_by_its_name(tmp_path, gone):
    parts = split(tmp_path)
    parts[gone].unlink()
    for name in (parts[gone - 1], parts[gone], tmp_path):
        with pytest.raises(ModelError, match=rf"{parts[gone].name} is missing: .* has 2 of the 3 parts") as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_refuses_parts_whose_names_say_something_else_than_they(tmp_path):
    parts = split(tmp_path)
    shutil.copy(parts[0], parts[1])
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf says that it is part 1 of 3, not 2 of 3"):
        load(parts[0])
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match=r"alone\.gguf says that it is part 1 of 3, not 1 of 1"):
        load(alone)


def test_refuses_parts_of_two_models(tmp_path):
    (tmp_path / "other").mkdir()
    parts = split(tmp_path)
    other = tiny_model("llama", layers=2, tie_word_embeddings=False)
    write_gguf(tmp_path / "other" / "tiny.gguf", other, tensors_a_file=7, change=lambda tensors: tensors.pop("output"))
    shutil.copy(tmp_path / "other" / parts[2].name, parts[2])
    with pytest.raises(ModelError, match="hold 20 tensors, and the model has 21"):
        load(parts[0])


def test_a_change_in_any_part_is_another_model(tmp_path):
    (tmp_path / "other").mkdir()
    parts = split(tmp_path)
    first = load(parts[0])

    def change(tensors):
        tensors["blk.1.ffn_norm"] = tensors["blk.1.ffn_norm"] * 2

    write_gguf(tmp_path / "other" / "tiny.gguf", model(), tensors_a_file=7, change=change)
    shutil.copy(tmp_path / "other" / parts[2].name, parts[2])
    second = load(parts[0])
    assert second.source["folder"] != first.source["folder"]
    norms = [loaded.model.model.layers[1].post_attention_layernorm.weight for loaded in (first, second)]
    torch.testing.assert_close(norms[1], 2 * norms[0])


@pytest.mark.parametrize("kind", ["Q8_0", "BF16", "F16"])
def test_tensors_of_every_number_format_are_joined_byte_for_byte(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    packed = [gguf.quantize(np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32), kind) for i in range(2)]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=1)
    for i, data in enumerate(packed):
        writer.add_tensor(f"t{i}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    join_parts(opened(parts_of(tmp_path / "x-00001-of-00002.gguf")), tmp_path / "whole.gguf")
    for i, tensor in enumerate(gguf.GGUFReader(tmp_path / "whole.gguf").tensors):
        assert (tensor.name, tensor.tensor_type, list(tensor.shape)) == (f"t{i}", kind, [64, 4])
        assert np.asarray(tensor.data).tobytes() == packed[i].tobytes()


def test_refuses_parts_that_share_a_tensor(tmp_path):
    (tmp_path / "other").mkdir()
    parts = split(tmp_path)
    last = lambda tensors: tensors.update(token_embd=tensors.pop("token_embd"))  # noqa: E731
    write_gguf(tmp_path / "other" / "tiny.gguf", model(), tensors_a_file=7, change=last)
    shutil.copy(tmp_path / "other" / parts[2].name, parts[2])
    with pytest.raises(ModelError, match=r"hold 21 tensors, token_embd\.weight twice, and the model has 21"):
        load(parts[0])


def test_refuses_a_damaged_part_by_its_name(tmp_path):
    parts = split(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:200])
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf has a damaged header"):
        load(parts[0])
    parts[1].write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf is not a GGUF file"):
        load(parts[0])


def test_a_folder_of_one_gguf_is_that_model_and_of_two_must_be_told_apart(tmp_path):
    write_gguf(tmp_path / "a.gguf", model())
    assert load(tmp_path).source["kind"] == "gguf"
    write_gguf(tmp_path / "b.gguf", model())
    with pytest.raises(ModelError, match=r"holds 2 GGUF models \(a\.gguf, b\.gguf\)\. Name the file"):
        load(tmp_path)


def test_safetensors_come_before_a_gguf_beside_them(tmp_path):
    model().save_pretrained(tmp_path)
    write_gguf(tmp_path / "a.gguf", tiny_model("llama", layers=2, seed=3))
    torch.testing.assert_close(load_model(tmp_path)(tokens()).logits, model()(tokens()).logits)


@pytest.mark.slow
def test_the_bundled_model_split_in_three_is_the_bundled_model(tmp_path, monkeypatch):
    """Quantised tensors, 49,152 tokens, a tied head; the whole file's conversion is in the user's own cache."""
    try:
        path = bundled.gguf_file("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "smol.gguf", "llama", split_max_tensors=122)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("smol-*.gguf"))
    assert len(parts) == 3
    read = load(parts[1])
    monkeypatch.delenv("UNWRITE_CACHE")
    whole = load("smollm2-135m")
    assert hash_model(read.model) == hash_model(whole.model)
    text = "Hello, na\u00efve caf\u00e9"
    assert read.tokenizer(text).input_ids == whole.tokenizer(text).input_ids
