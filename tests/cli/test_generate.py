"""unwrite generate: streams, compares, accounts for what it did, and refuses in one line."""

import json

import pytest
import torch

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.cli.fields import build_strategy
from unwrite.cli.generate import _Show, _Transformers
from unwrite.cli.output import write
from unwrite.decode import RecyclingTable, TrigramTable
from unwrite.decode.token_recycling import TreeTemplate


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


@pytest.mark.parametrize("strategy", ["plain", "prompt-lookup", "token-recycling"])
def test_the_stream_is_the_whole_answer_without_the_prompt(capsys, folder, strategy):
    options = ("--model", folder, "--strategy", strategy, "--max-new-tokens", "8")
    text = json.loads(run(capsys, *options, "--json"))[strategy]["text"]
    streamed = " ".join(run(capsys, *options).split())
    assert len(text.split()) == 8
    assert streamed.startswith(f"{text} {strategy}:")


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--max-new-tokens", "0", "at least 1"),
        ("--max-new-tokens", "-1", "at least 1"),
        ("--temperature", "-0.5", "at least 0"),
        ("--temperature", "nan", "at least 0"),
        ("--seed", str(2**64), "at least"),
    ],
)
@pytest.mark.parametrize("how", [(), ("--sampler", "dual")])
def test_a_number_without_meaning_is_refused_before_anything_is_loaded(capsys, flag, value, rule, how):
    with pytest.raises(SystemExit) as end:
        main(["generate", "who ?", "--model", "/nowhere", flag, value, *how])
    assert end.value.code == 2
    assert f"unwrite: {flag} is" in (line := capsys.readouterr().err)
    assert f"it must be {rule}" in line


def test_tuples_and_templates_are_read_from_their_text():
    assert build_strategy("rsd", {"branching": "3,2"}).branching == (3, 2)
    assert build_strategy("token-recycling", {"template": "2.2.2"}).template == TreeTemplate.of("2.2.2")


def test_tables_are_read_from_their_files(tmp_path):
    RecyclingTable(67).save(tmp_path / "recycling")
    TrigramTable.fit([[3, 4, 5]], 67).save(tmp_path / "trigrams")
    assert build_strategy("token-recycling", {"table": str(tmp_path / "recycling")}).table.vocab == 67
    assert build_strategy("aded", {"table": str(tmp_path / "trigrams")}).table.weight(3, 4, 5) == 1


def test_a_table_of_another_tokenizer_is_refused(capsys, folder, tmp_path):
    other = make_tokenizer()
    other.add_tokens(["another"])
    RecyclingTable(67, tokenizer=other).save(tmp_path / "recycling")
    TrigramTable(67, other).save(tmp_path / "trigrams")
    for strategy, name in (("token-recycling", "recycling"), ("aded", "trigrams")):
        with pytest.raises(SystemExit):
            run(capsys, "--model", folder, "--strategy", strategy, "--table", str(tmp_path / name))
        assert "another tokenizer" in " ".join(capsys.readouterr().err.split())


def test_what_only_a_first_call_pays_is_paid_before_the_comparison(capsys, folder, monkeypatch):
    calls = []
    own = _Transformers.__call__

    def noted(self, prompt, way, count, *rest):
        calls.append((type(way).__name__, count))
        return own(self, prompt, way, count, *rest)

    monkeypatch.setattr(_Transformers, "__call__", noted)
    run(capsys, "--model", folder, "--compare", "prompt-lookup,plain", "--max-new-tokens", "8")
    assert calls == [("Plain", 4), ("PromptLookup", 8), ("NoneType", 8)]


def test_the_comparison_is_a_table_with_a_row_a_strategy(capsys, folder):
    text = run(capsys, "--model", folder, "--compare", "plain,prompt-lookup", "--max-new-tokens", "8")
    assert "tokens/forward" in text
    assert "prompt-lookup" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--strategy", "token-recyling"), "Did you mean 'token-recycling'"),
        (("--strategy", "prompt-lookup", "--ngrams", "2"), "'--ngram'"),
        (("--strategy", "prompt-lookup", "--budget", "0"), "budget is 0"),
        (("--strategy", "rsd"), "--draft-model"),
        (("--strategy", "rsd", "--branching", "2,x"), "branching is 'x'; it must be int"),
        (("--strategy", "token-recycling", "--template", "2.2"), "'2.2'"),
        (("--strategy", "token-recycling", "--table", "absent"), "absent is no recycling table"),
        (("--strategy", "token-recycling", "--tokenizer", "x"), "tokenizer can't be given on the command line"),
    ],
)
def test_refuses_in_one_line(capsys, folder, arguments, part):
    with pytest.raises(SystemExit) as error:
        main(["generate", "who ?", "--model", folder, *arguments])
    assert error.value.code == 2
    assert part in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    from transformers import MambaConfig, MambaForCausalLM

    path, tokenizer = tmp_path_factory.mktemp("recurrent"), make_tokenizer()
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=2)
    MambaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_without_a_strategy_a_model_that_takes_no_drafts_writes_plainly_and_says_so(capsys, recurrent):
    main(["generate", "who wrote the old book ?", "--model", recurrent, "--max-new-tokens", "6", "--json"])
    written = capsys.readouterr()
    assert "unwrite: MambaForCausalLM keeps a recurrent state, which cannot be rolled back. The text is" in written.err
    found = json.loads(written.out)
    assert list(found) == ["plain"]
    asked = json.loads(run(capsys, "--model", recurrent, "--strategy", "plain", "--max-new-tokens", "6", "--json"))
    assert asked["plain"]["text"] == found["plain"]["text"]


def test_a_strategy_asked_for_by_name_is_refused_where_the_model_takes_no_drafts(capsys, recurrent):
    with pytest.raises(SystemExit) as error:
        main(["generate", "who ?", "--model", recurrent, "--strategy", "token-recycling"])
    assert error.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "MambaForCausalLM keeps a recurrent state" in last
    assert "TokenRecycling cannot draft for it" in last


def test_without_a_strategy_drafts_run_where_they_can_and_nothing_is_noticed(capsys, folder):
    main(["generate", "who wrote the old book ?", "--model", folder, "--max-new-tokens", "6", "--json"])
    written = capsys.readouterr()
    assert list(json.loads(written.out)) == ["token-recycling"]
    assert "unwrite:" not in written.err


@pytest.mark.parametrize(("text", "sent"), [("a\r\nb", "a\r\nb"), ("a\rb", "a\\x0db"), ("a\r", "a\\x0d")])
def test_a_line_end_in_two_tokens_stays_one(capsys, text, sent):
    shown = _Show(lambda ids: text[: len(ids)], write)
    for token in range(len(text)):
        shown.put(torch.tensor([token]))
    shown.end()
    assert capsys.readouterr().out == sent
