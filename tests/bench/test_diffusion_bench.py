"""The diffusion benchmark on a tiny random test bed: whole, twice the same, drawn."""

import json

import pytest
import torch

from unwrite.beds import denoiser as testbed
from unwrite.bench import diffusion, replay
from unwrite.bench.diffusion_report import html, losing_nothing, picture, table
from unwrite.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(testbed.config(width=16, layers=1, inner=16))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight *= 40.0 if name.startswith("lm_head") else 10.0
    path = tmp_path_factory.mktemp("bed")
    model.save_pretrained(path)
    testbed.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _little_to_learn_from(monkeypatch):
    for name, value in (("CALIBRATED", 4), ("LEARNT", 6), ("EPOCHS", 20)):
        monkeypatch.setattr(diffusion, name, value)


@pytest.fixture
def small(monkeypatch):
    """Two arms of each kind, a timing model of one layer, no gate: what is measured means nothing."""
    whole = diffusion.contenders

    def few(bed, seed):
        found = whole(bed, seed)
        names = (
            *("threshold 0.3", "threshold 0.9", "one by one", "AdaBlock", "Credit + LocalLeap", "random neighbours"),
            *("Prophet", "Learn2PD + EoTP"),
        )
        return {name: found[name] for name in names}

    monkeypatch.setattr(diffusion, "contenders", few)
    monkeypatch.setattr(diffusion, "TIMED", 1)
    monkeypatch.setattr(testbed, "gate", lambda bed: {"sums": 1.0})
    model = replay.timing_model(layers=1, vocabulary=256, width=72)
    monkeypatch.setattr(replay, "timing_model", lambda: model)


def without_clocks(rows):
    clocks = ("positions_per_second", "tokens_per_second", "seconds_against_threshold", "own_share")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


@pytest.mark.slow
def test_two_runs_differ_in_their_clocks_only(folder, small):
    first, second = (diffusion.run(folder, 6, workers=1) for _ in range(2))
    assert without_clocks(first["rows"]) == without_clocks(second["rows"])
    assert [row["sampler"] for row in first["rows"]][-2:] == ["drawn blocks", "stop at random"]
    assert all(row["replayed_alike"] for row in first["rows"] if "replayed_alike" in row)
    assert first["rows"][2]["forwards"] == 64.0


@pytest.mark.slow
def test_counting_runs_on_one_thread_and_clocks_on_all(folder, small, monkeypatch):
    threads, before = {}, torch.get_num_threads()

    def noting(name, inner):
        def noted(*args):
            threads[name] = torch.get_num_threads()
            return inner(*args)

        monkeypatch.setattr(diffusion, name, noted)

    for name in ("contenders", "_count", "_controls", "_clocks"):
        noting(name, getattr(diffusion, name))
    torch.set_num_threads(2)
    try:
        diffusion.run(folder, 2, workers=1)
        assert threads == {"contenders": 1, "_count": 1, "_controls": 1, "_clocks": 2}
    finally:
        torch.set_num_threads(before)


def test_bars_and_filter_come_from_prompts_that_no_arm_is_asked_and_come_again(folder, monkeypatch):
    bed, seeds, draw = testbed.load(folder), [], diffusion.prompts
    monkeypatch.setattr(diffusion, "prompts", lambda count, seed: seeds.append(seed) or draw(count, seed))
    first, second = (diffusion.contenders(bed, 3) for _ in range(2))
    assert set(seeds) == {4}
    assert first["Prophet"].sampler.stop == second["Prophet"].sampler.stop
    assert all(bar < float("inf") for bar in first["Prophet"].sampler.stop.bars)
    filters = (one["Learn2PD"].sampler.commit.filter.parameters() for one in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(*filters, strict=True))


NAMES = ("one by one", "threshold 0.5", "Prophet", "Learn2PD")


def test_workers_count_what_one_process_counts_and_parts_what_the_whole_does(folder, monkeypatch):
    bed = testbed.load(folder)
    arms = {name: one for name, one in diffusion.contenders(bed).items() if name in NAMES}
    whole = {name: testbed.judge(bed, one.sampler, diffusion.prompts(4, 0)) for name, one in arms.items()}
    monkeypatch.setattr(diffusion, "CHUNK", 3)
    alone, together = (diffusion._counted(bed, arms, 4, 0, workers, lambda line: None) for workers in (1, 2))
    for name in arms:
        assert (alone[name].nfe == together[name].nfe).all()
        assert (alone[name].right == together[name].right).all()
        assert alone[name].right.tolist() == whole[name].right
        assert alone[name].nfe.tolist() == whole[name].nfe
        assert alone[name].work.tolist() == whole[name].work


def test_every_contender_runs_on_the_bed(folder):
    bed = testbed.load(folder)
    asked = testbed.items(2, 5)
    for name, one in diffusion.contenders(bed).items():
        assert len(testbed.judge(bed, one.sampler, asked).texts) == 2, name


def test_the_command_writes_figures_page_and_pictures(folder, small, tmp_path, capsys):
    out = tmp_path / "found.json"
    main(["bench", "diffusion", "--bed", str(folder), "--prompts", "4", "--out", str(out), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(out.read_text())["rows"]
    page = out.with_suffix(".html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


ROWS = [
    {
        "sampler": name, "kind": kind, "forwards": forwards, "right": right, "by_task": {},
        "ahead": {"points": 0.0, "low": -1.0, "high": 1.0},
        "against_one_by_one": {"points": right - 90, "low": right - 90.5, "high": right - 89},
    }
    for name, kind, forwards, right in (
        ("one by one", "curve", 64.0, 90.0), ("fast", "method", 8.0, 89.8), ("careless", "method", 4.0, 70.0),
        ("lucky", "control", 6.0, 90.0),
    )
]  # fmt: skip


def test_what_loses_nothing_is_sorted_by_forwards_and_leaves_controls_out():
    assert [row["sampler"] for row in losing_nothing(ROWS)] == ["fast", "one by one"]


def test_the_table_has_a_line_a_sampler_and_the_picture_every_point():
    assert len(table(ROWS)) == 2 + len(ROWS)
    drawn = {value["sampler"] for side in picture(ROWS)["hconcat"] for value in side["layer"][2]["data"]["values"]}
    assert drawn == {row["sampler"] for row in ROWS}


def test_a_point_carries_its_number_and_what_lies_on_it_too():
    rows = [
        {**ROWS[0], "sampler": name, "kind": "method", "forwards": at}
        for name, at in zip("abc", (3, 3, 9), strict=True)
    ]
    few, many = (side["layer"][3]["data"]["values"] for side in picture(rows)["hconcat"])
    assert [value["label"] for value in few] == ["1, 2"]
    assert [value["label"] for value in many] == ["3"]
    assert [line.split("|")[1:3] for line in table(rows)[2:]] == [[" 1 ", " a "], [" 2 ", " b "], [" 3 ", " c "]]


def test_the_curve_is_labelled_by_its_thresholds():
    rows = [{**ROWS[0], "sampler": "threshold 0.9", "kind": "curve", "forwards": 3}]
    assert picture(rows)["hconcat"][0]["layer"][3]["data"]["values"][0]["label"] == "0.9"


def test_names_in_the_page_are_escaped():
    rows = [{**ROWS[0], "sampler": "<b>&"}]
    assert "<td>&lt;b&gt;&amp;</td>" in html({"rows": rows, "prompts": 1})


def test_the_page_fits_a_telephone_and_its_picture_has_a_name():
    page = html({"rows": ROWS, "prompts": 1})
    assert "name=viewport" in page
    assert page.count("<div class=wide>") == 2
    assert '<svg role="img" aria-label=' in page
