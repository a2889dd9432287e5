"""unwrite generate: streams, compares, accounts for what it did, and refuses in one line."""

import json

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_llama().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def run(capsys, *arguments):
    main(["generate", "who wrote the old book ?", *arguments])
    return capsys.readouterr().out


def test_every_strategy_without_a_draft_writes_the_text_of_plain_decoding(capsys, folder):
    found = json.loads(
        run(
            capsys,
            "--model",
            folder,
            "--compare",
            "plain,prompt-lookup,token-recycling,aded",
            "--max-new-tokens",
            "24",
            "--json",
        )
    )
    assert list(found) == ["plain", "prompt-lookup", "token-recycling", "aded"]
    assert len({row["text"] for row in found.values()}) == 1
    assert all(row["tokens"] == found["plain"]["tokens"] for row in found.values())


def test_a_draft_model_is_loaded_by_name(capsys, folder):
    options = ("--model", folder, "--draft-model", folder, "--strategy", "rsd", "--max-new-tokens", "12", "--json")
    assert json.loads(run(capsys, *options))["rsd"]["tokens"] > 0


def test_the_stream_ends_with_one_line_of_statistics(capsys, folder):
    lines = run(capsys, "--model", folder, "--strategy", "prompt-lookup", "--max-new-tokens", "8").strip().splitlines()
    assert "tokens in" in " ".join(lines[-2:])


def test_the_comparison_is_a_table_with_a_row_a_strategy(capsys, folder):
    text = run(capsys, "--model", folder, "--compare", "plain,prompt-lookup", "--max-new-tokens", "8")
    assert "tokens/forward" in text
    assert "prompt-lookup" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--strategy", "token-recyling"), "Did you mean 'token-recycling'"),
        (("--strategy", "prompt-lookup", "--ngrams", "2"), "'ngram'"),
        (("--strategy", "prompt-lookup", "--budget", "0"), "budget is 0"),
        (("--strategy", "rsd"), "RSD(draft_model=...)"),
    ],
)
def test_refuses_in_one_line(capsys, folder, arguments, part):
    with pytest.raises(SystemExit) as error:
        main(["generate", "who ?", "--model", folder, *arguments])
    assert error.value.code == 2
    assert part in capsys.readouterr().err.strip().splitlines()[-1]
