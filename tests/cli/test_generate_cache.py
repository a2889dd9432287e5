"""unwrite generate --cache: the text of a compressed cache, its bytes, and what can't be had beside it."""

import json

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.cache import HeadGroups
from unwrite.cli import main
from unwrite.cli.fields import build_cache
from unwrite.errors import MethodError, naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_llama().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def run(capsys, *arguments):
    main(["generate", "who wrote the old book of ann and bert and cora ?", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["generate", "who ?", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_cache_that_keeps_everything_writes_the_plain_text_and_says_its_bytes(capsys, folder):
    options = ("--model", folder, "--max-new-tokens", "12", "--json", "--strategy", "plain")
    plain = json.loads(run(capsys, *options))["plain"]
    found = json.loads(run(capsys, *options, "--cache", "uncomp:groups=one,capacity=200"))["plain"]
    assert found["text"] == plain["text"]
    assert "cache_bytes" not in plain
    tokens = 14 + 11  # the question in its template, and all new tokens but the last
    assert found["full_cache_bytes"] == 2 * 3 * 2 * 8 * 4 * tokens  # layers, heads, numbers of a head, bytes of each
    assert found["cache_bytes"] > found["full_cache_bytes"]  # positions and weights beside keys and values


def test_a_small_cache_takes_fewer_bytes_and_the_line_says_so(capsys, folder):
    options = ("--model", folder, "--max-new-tokens", "20", "--cache", "uncomp:groups=one,capacity=8,window=2")
    found = json.loads(run(capsys, *options, "--json"))["plain"]
    assert found["cache_bytes"] < 0.5 * found["full_cache_bytes"]
    assert "MB of 0.0" in " ".join(run(capsys, *options).split())


def test_without_a_strategy_the_text_is_plain(capsys, folder):
    out = run(capsys, "--model", folder, "--max-new-tokens", "4", "--cache", "uncomp:groups=one")
    assert "plain: 4 tokens in" in " ".join(out.split())


def test_calibrated_groups_are_read_from_their_file(tmp_path, capsys, folder):
    file = HeadGroups(((0, 1),) * 3).save(tmp_path / "heads.json")
    options = ("--model", folder, "--max-new-tokens", "4", "--json")
    assert json.loads(run(capsys, *options, "--cache", f"uncomp:groups={file},capacity=16"))["plain"]["tokens"] == 4
    assert "no file of head groups" in refused(capsys, *options, "--cache", f"uncomp:groups={folder}/config.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache", "uncmp"), "unknown cache 'uncmp'. Did you mean 'uncomp'?"),
        (("--cache", "uncomp:capasity=3"), "unknown field of uncomp 'capasity'. Did you mean 'capacity'?"),
        (("--cache", "uncomp:capacity=x"), "capacity is 'x'; it must be int."),
        (("--cache", "uncomp:capacity=4"), "capacity is 4 and window is 8"),
        (("--cache", "uncomp:512"), "'512' of 'uncomp:512' is no field"),
        (("--cache", "uncomp", "--strategy", "token-recycling"), "token-recycling drafts"),
        (("--cache", "uncomp", "--compare", "plain,aded"), "aded drafts"),
        (("--cache", "uncomp", "--sampler", "dual"), "not of a sampler"),
        (("--cache", "uncomp", "--seed", "1"), "not of a GGUF file"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_loaded(capsys, options, message):
    model = "/nowhere/a.gguf" if "GGUF" in message else "/nowhere"
    assert message in refused(capsys, "--model", model, *options)


def test_a_cache_without_groups_says_how_to_calibrate(capsys, folder):
    assert "calibrate_head_entropy" in refused(capsys, "--model", folder, "--cache", "uncomp")


def test_a_text_names_a_cache_and_its_fields():
    settings = build_cache("uncomp:budgets=8,16,32,window=4,normalise=no,pooling=avg")
    assert (settings.budgets, settings.window, settings.normalise, settings.pooling) == ((8, 16, 32), 4, False, "avg")
    with pytest.raises(MethodError, match="pooling is 'sum'"), naming("settings"):
        build_cache("uncomp:pooling=sum")
