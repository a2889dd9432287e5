"""The benchmark of a decoding step: the same draft for everyone, in turns, and figures that say what was measured."""

import json

import numpy as np
import pytest
import torch

from conftest import make_llama, make_tokenizer
from unwrite.bench import ctranslate, steps
from unwrite.bench.steps import (
    BF16,
    COMPILED,
    EXACT,
    FUSED,
    PEER,
    StepContender,
    StepMachine,
    multiply_rate,
    read_bandwidth,
    run_bench,
)
from unwrite.bench.steps_report import checks, groups, head, part_cells, step_cells
from unwrite.cli import main
from unwrite.errors import ModelError
from unwrite.models import save
from unwrite.models.loading import Loaded

OURS = (FUSED, COMPILED, EXACT, BF16)


@pytest.fixture(scope="module")
def loaded():
    model = make_llama(0, hidden=64, head_dim=32, max_position_embeddings=160)
    head = model.lm_head.weight  # the one matrix that fits in fewer bytes
    head.data = head.data.bfloat16().float()
    return Loaded(model, make_tokenizer(), {"folder": "tiny"})


@pytest.fixture(scope="module")
def found(loaded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "READ", 1 << 20)
        patch.setattr(ctranslate, "find_spec", lambda name: None)  # another engine needs a model it knows
        return run_bench(loaded, (1, 3), (8, 40), (1, 2), 2)


def test_everyone_is_measured_at_every_number_of_threads_prompt_and_rows(found):
    places = {(row["contender"], row["threads"], row["prompt"], row["rows"]) for row in found}
    assert places == {(name, t, p, r) for name in (PEER, *OURS) for t in (1, 2) for p in (8, 40) for r in (1, 3)}
    assert len(found) == len(places)


def test_threads_are_as_they_were(loaded, found):
    assert torch.get_num_threads() == 1


def test_the_floor_is_what_must_be_read_or_multiplied_over_what_can_be(loaded, found):
    linear = sum(4 * m.weight.numel() for m in loaded.model.modules() if isinstance(m, torch.nn.Linear))
    column = 2 * 4 * 2 * 32 * 3  # keys and values of two heads of 32 in three layers
    for row in found:
        head = 2 * loaded.model.lm_head.weight.numel()
        weights = {BF16: linear // 2, EXACT: linear - head}.get(row["contender"], linear)
        assert row["bytes"] == weights + column * (row["prompt"] + row["rows"])
        work = linear // 4 * 2 * row["rows"]
        assert row["floor"] == pytest.approx(max(row["bytes"] / row["bandwidth"], work / row["rate"]))


def test_parts_add_up_to_the_step(found):
    told = [row for row in found if row["parts"]]
    assert {row["contender"] for row in told} == {COMPILED, EXACT, BF16}
    for row in told:
        assert all(seconds >= 0 for seconds in row["parts"].values())
        assert "Python between" in row["parts"]
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"], rel=0.9)


def test_a_ratio_above_one_means_faster_than_transformers_and_turns_differ():
    order = []

    def timed(name, seconds):
        return lambda size: order.append(name) or seconds * size

    several = {PEER: StepContender(timed(PEER, 1.0), 100), FUSED: StepContender(timed(FUSED, 0.5), 100)}
    several["one row"] = StepContender(timed("one row", 0.25), 50, 1, 2)
    for size in (1, 2):
        steps._measure(several, size, 3)
    rows = steps._found(several, (1, 2), 10, 1, StepMachine(1000.0, 80.0, 4, 6))
    assert {(row["contender"], row["rows"]): row["ratio"] for row in rows} == {
        (PEER, 1): 1.0, (FUSED, 1): 2.0, ("one row", 1): 4.0, (PEER, 2): 1.0, (FUSED, 2): 2.0,
    }  # fmt: skip
    floors = {(row["contender"], row["rows"]): row["floor"] for row in rows}
    assert floors["one row", 1] == 2 * 6 / 80  # arithmetic
    assert floors[PEER, 1] == 2 * 6 / 80
    rows = steps._found(several, (1, 2), 10, 1, StepMachine(1000.0, 1e9, 4, 6))
    assert {row["floor"] for row in rows if row["contender"] == "one row"} == {(50 + 4 * 11) / 1000}  # memory
    assert order[3:11] == [
        PEER,
        FUSED,
        "one row",
        FUSED,
        "one row",
        PEER,
        PEER,
        FUSED,
    ]  # after one uncounted step of each
    assert len(several["one row"].seconds[1]) == 2


def test_bandwidth_is_of_bytes_that_are_read(monkeypatch):
    ticks = iter(np.arange(0, 100, 0.5).tolist())
    monkeypatch.setattr(steps, "READ", 1 << 12)
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(ticks))
    assert read_bandwidth(2) == 2 * (1 << 12)


def test_the_rate_is_of_operations_that_are_done(monkeypatch):
    ticks = iter(np.arange(0, 100, 0.5).tolist())
    monkeypatch.setattr(steps, "SIDE", 8)
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(ticks))
    assert multiply_rate(2) == 2 * 2 * 8**3


def test_a_prompt_that_leaves_no_room_is_left_out_and_none_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(steps, "READ", 1 << 12)
    monkeypatch.setattr(ctranslate, "find_spec", lambda name: None)
    rows = run_bench(loaded, (1,), (8, 150), (1,), 1)
    assert {row["prompt"] for row in rows} == {8}
    with pytest.raises(ModelError, match=r"no prompt of 150 tokens fits into a model of 160 positions"):
        run_bench(loaded, (1,), (150,), (1,), 1)


def test_tables_and_promises_come_from_the_rows(found):
    assert groups(found) == [(1, 8), (1, 40), (2, 8), (2, 40)]
    assert head(found) == ["milliseconds of a step", "floors", "1 row", "3 rows"]
    cells = step_cells(found, 2, 40)
    assert [row[0] for row in cells] == [PEER, *OURS]
    assert cells[0][2].endswith("(1.00x)")
    parts = part_cells(found, 1, 8, 3)
    assert parts[0] == ["3 rows, milliseconds", COMPILED, EXACT, BF16]
    seconds = {
        (COMPILED, 1): 4.0,
        (COMPILED, 8): 8.0,
        (BF16, 1): 2.0,
        (EXACT, 1): 1.0,
        ("CTranslate2, float32", 1): 8.0,
    }
    rows = [
        {"contender": name, "threads": 2, "prompt": 64, "rows": size, "seconds": value, "floor": size + 2, "rate": 1}
        for (name, size), value in seconds.items()
    ]
    promised = [(0.5, 0.9, None), (0.25, 0.7, None), (0.5, 1.0, None), (2.0, 1.4, 10 / 3)]
    assert [tuple(one) for _, *one in checks(rows)] == promised
    for row in rows:
        del row["rate"]  # a run that knew of memory alone
    assert [tuple(one)[-1] for one in checks(rows)] == [None] * 4


def test_the_command_writes_what_it_shows(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "READ", 1 << 12)
    monkeypatch.setattr(ctranslate, "find_spec", lambda name: None)
    save(loaded.model, tmp_path / "model", tokenizer=loaded.tokenizer)
    out = tmp_path / "a.json"
    main(["bench", "step", "--model", str(tmp_path / "model"), "--repeats", "1", "--out", str(out)])
    shown = capsys.readouterr().out
    written = json.loads(out.read_text())
    rows = written["rows"]
    assert {"numba", "torch"} <= {*written["versions"]}
    assert {row["prompt"] for row in rows} == {64}
    assert "threads: 1, prompt: 64 tokens" in shown
    assert all(name in shown for name in (PEER, FUSED, COMPILED))
    assert max(map(len, shown.splitlines())) <= 80
