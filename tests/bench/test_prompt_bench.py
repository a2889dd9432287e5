"""The benchmark of reading prompts: the same tokens for both sides, in turns, and what does not fit is left out."""

import json

import numpy as np
import pytest
import torch

from conftest import make_llama, make_tokenizer
from unwrite.bench import prompt
from unwrite.bench.prompt import prompt_of, read_pairs, run_bench, seconds_of
from unwrite.cli import main
from unwrite.decode import last_stats
from unwrite.decode.plain import Plain
from unwrite.errors import DataError, ModelError
from unwrite.models import save
from unwrite.models.loading import Loaded


@pytest.fixture(scope="module")
def loaded():
    return Loaded(make_llama(0), make_tokenizer(), "tiny")


@pytest.mark.parametrize("tokens", [1, 16, 64])
def test_a_prompt_has_the_tokens_that_were_asked_for_and_longer_ones_begin_alike(loaded, tokens):
    ids = prompt_of(loaded.tokenizer, tokens)
    assert ids.shape == (1, tokens)
    assert torch.equal(prompt_of(loaded.tokenizer, 2 * tokens)[:, :tokens], ids)


def test_more_than_the_manual_has_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(prompt.pydoc_data.topics, "topics", {"one": "a few words"})
    with pytest.raises(DataError, match=r"fewer than 50: ask for less"):
        prompt_of(loaded.tokenizer, 50)


def test_our_side_reads_through_the_engine_and_the_other_does_not(loaded):
    ids = prompt_of(loaded.tokenizer, 12)
    seconds_of(loaded.model, ids, Plain())
    ours = last_stats()
    assert ours is not None
    seconds_of(loaded.model, ids)
    assert last_stats() is ours


def test_a_ratio_above_one_means_that_ours_is_faster(loaded, monkeypatch):
    order = []

    def timed(model, ids, strategy=None):
        order.append("ours" if strategy else "theirs")
        return 0.5 if strategy else 1.0

    monkeypatch.setattr(prompt, "seconds_of", timed)
    row = read_pairs(loaded, 8, 4)
    assert row == {
        **{"tokens": 8, "pairs": 4, "ours_s": 0.5, "peer_s": 1.0},
        **{"ratio": 2.0, "ratio_low": 2.0, "ratio_high": 2.0},
    }
    assert order[4:] == ["ours", "theirs", "theirs", "ours"] * 2
    assert sorted(order[:4]) == ["ours"] * 2 + ["theirs"] * 2


def test_an_interval_holds_the_ratio_of_uneven_pairs(loaded, monkeypatch):
    times = np.random.default_rng(0).uniform(0.5, 1.5, 100).tolist()
    monkeypatch.setattr(prompt, "seconds_of", lambda *_: times.pop())
    row = read_pairs(loaded, 8, 9)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_lengths_that_leave_no_room_for_a_token_are_left_out(loaded):
    room = loaded.model.config.max_position_embeddings
    seen = []
    rows = run_bench(loaded, (8, room - 1, room), 1, lambda rows: seen.append(len(rows)))
    assert [row["tokens"] for row in rows] == [8, room - 1]
    assert seen == [1, 2]
    with pytest.raises(ModelError, match=rf"no prompt of {room:,} tokens fits into a model of {room:,} positions"):
        run_bench(loaded, (room,), 1)


def test_the_command_writes_what_it_shows(loaded, tmp_path, capsys):
    save(loaded.model, tmp_path / "model", tokenizer=loaded.tokenizer)
    command = ["bench", "prompt", "--model", str(tmp_path / "model"), "--pairs", "2", "--out", str(tmp_path / "a.json")]
    main(command)
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads((tmp_path / "a.json").read_text())["lengths"]
    shown = [line.split()[0] for line in lines if line.split()[0].isdigit()]
    assert shown == [str(row["tokens"]) for row in rows] == ["16", "64"]
    assert max(map(len, lines)) <= 80
