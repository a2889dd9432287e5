"""The decoding benchmark runs end to end on a small model, and its report says what its rows say."""

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.beds.draft_files import Files
from unwrite.bench import contenders, decode, decode_report
from unwrite.bench.contenders import FirstTokens
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.models import save

KINDS = decode.KINDS[:2]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Files of a tiny target and draft, with two prompts and eight tokens a text."""
    forget_knowledge()
    everyone = decode.prompts
    for module in (decode, contenders):
        monkeypatch.setattr(
            module,
            "prompts",
            lambda use: [row for row in everyone(use) if row.kind in KINDS][:: 5 if use == "tune" else 3],
        )
        monkeypatch.setattr(module, "TOKENS", 8)
    monkeypatch.setattr(decode, "KINDS", KINDS)
    monkeypatch.setattr(decode.Measuring, "tokens", 8)
    monkeypatch.setattr(contenders, "CORPUS", 2000)
    tokenizer = make_tokenizer()
    vocab = len(tokenizer)
    target = save(make_llama(vocab=vocab), tmp_path / "target", tokenizer=tokenizer)
    return Files(str(target), save(make_llama(layers=1, vocab=vocab), tmp_path / "draft"), {})


def test_every_contender_has_a_row_for_every_kind_and_greedy_texts_are_the_peers(small):
    kept = []
    found = contenders.run(
        small, minutes=0.0, most=1, tell=lambda line: None, keep=lambda now: kept.append(len(now["rows"]))
    )
    strategies = {"plain", "prompt-lookup", "token-recycling", "aded", "joined", "draft-model", "rsd"}
    greedy = [row for row in found["rows"] if row["temperature"] == 0]
    for kind in KINDS:
        assert {row["strategy"] for row in greedy if row["kind"] == kind} == strategies | set(decode_report.PEERS[:3])
    assert all(row["same_text"] == 1.0 for row in greedy)
    assert all(row["tokens_per_forward"] >= 1 for row in greedy if row["strategy"] in strategies)
    assert contenders.ASSISTED not in {row["strategy"] for row in found["rows"] if row["temperature"] > 0}
    assert kept == [len(greedy), len(found["rows"])]
    assert found["costs"]["transformers"][1] > 0


def test_a_runtime_can_be_measured_alone(small, monkeypatch):
    asked = []
    monkeypatch.setattr(contenders, "_native", lambda *rest: asked.append(rest) or ())
    monkeypatch.setattr(contenders.Measuring, "run", lambda self, heats, most: [{"runtime": self.runtime}])

    def runtimes(*which):
        found = contenders.run(small, 0.0, 1, lambda line: None, lambda now: None, *which)
        return [row["runtime"] for row in found["rows"]]

    assert runtimes(["transformers"]) == ["transformers"] * 2
    assert not asked
    assert runtimes(["llama.cpp"]) == []
    assert len(asked) == 1
    assert runtimes() == ["transformers"] * 2
    assert len(asked) == 2


def test_a_runtime_that_isnt_there_is_refused_before_a_draft_is_made(capsys, monkeypatch):
    from unwrite.beds import draft_files
    from unwrite.cli import main

    def refused(runtime):
        with pytest.raises(SystemExit):
            main(["bench", "decode", "--runtime", runtime])
        return capsys.readouterr().err

    monkeypatch.setattr(draft_files, "find_spec", lambda name: None)
    assert "unknown runtime 'llamacpp'. Did you mean 'llama.cpp'?" in refused("llamacpp")
    assert "Install 'unwrite[llamacpp]'" in refused("llama.cpp")


def row(strategy, kind="edit", ratio=2.0, high=2.1, temperature=0.0):
    cell = {"strategy": strategy, "kind": kind, "runtime": "transformers", "temperature": temperature, "ratio": ratio}
    seconds = {"prefill": 1.0, "draft": 0.5, "forward": 2.0, "verify": 0.25, "other": 0.25}
    return cell | {
        "ratio_low": ratio - 0.1,
        "ratio_high": high,
        "writing_ratio": ratio,
        "copy_rate": 0.5,
        "tokens_per_forward": 3.0,
        "rows_per_forward": 4.0,
        "seconds": seconds,
    }


def test_a_cell_is_too_slow_only_when_its_whole_interval_is():
    rows = [
        row("aded", ratio=0.9, high=0.98),
        row("rsd", ratio=0.9, high=0.96),
        row("Llama.generate", ratio=0.5, high=0.6),
    ]
    assert decode_report.slow_cells(rows) == ["rsd on transformers, edit, temperature 0: 0.90"]
    assert not decode_report.checks(rows)["no strategy below 0.97 of plain decoding in any of 2 cells"]


def test_ahead_means_ahead_of_every_rival_that_was_there():
    rivals = [row("transformers, prompt lookup", ratio=1.5), row("CTranslate2, float32", ratio=2.5)]
    name = "edit: ahead of transformers, prompt lookup; CTranslate2, float32"
    assert not decode_report.checks([*rivals, row("joined", ratio=2.4)])[name]
    assert decode_report.checks([*rivals, row("joined", ratio=2.4), row("aded", ratio=2.6)])[name]


def test_the_short_table_names_the_strategy_that_is_fastest_and_leaves_absent_peers_out():
    rows = [row("transformers", ratio=1.0), row("CTranslate2, float32", ratio=1.5), row("plain", ratio=2.0)]
    rows += [row("joined", ratio=3.0), row("aded", ratio=2.5), row("joined", ratio=9.0, temperature=0.7)]
    assert decode_report.fastest(rows, "transformers") == [
        "| kind of text | CTranslate2, float32 | plain | fastest |",
        "|---|---|---|---|",
        "| edit | 1.50 | 2.00 | **3.00** joined |",
    ]


def test_writing_for_nothing_would_leave_the_prompts_share():
    lines = decode_report.bounds([row("joined", ratio=2.0)], {"transformers": {"1": 0.05, "8": 0.1}})
    cells = lines[2].split(" | ")
    assert cells[-1] == "8.0x |"  # ratio 2 with a quarter of the time spent on the prompt
    assert lines[-1] == "| transformers | 1.00 | - | - | 2.00 | - | - | - | 50 |"


def test_the_first_tokens_are_those_after_the_prompt():
    import torch

    watch = FirstTokens(1)
    watch.put(torch.zeros(1, 9))
    assert watch.seen is None
    watch.put(torch.zeros(3))
    watch.put(torch.zeros(1))
    assert watch.seen[1] == 3
