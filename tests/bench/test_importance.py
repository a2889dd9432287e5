"""The benchmark compares like with like: both sides give the same importances."""

import pytest
import torch

from unwrite.bench import importance
from unwrite.bench.importance import CASES, cnn, compare, mlp, peers, run_bench


def batches(size, *rows):
    return [(torch.randn(n, 3, size, size), torch.randint(0, 10, (n,))) for n in rows]


@pytest.mark.parametrize(("build", "size"), [(cnn, 8), (mlp, 4)])
@pytest.mark.parametrize("peer", ["official loop", "batch-1 loop", "torch.func.vmap"])
def test_both_sides_give_the_same_importances(build, size, peer):
    torch.manual_seed(0)
    ours, theirs = peers(build(size).eval(), batches(size, 4, 3))[peer]
    assert compare(ours, theirs, pairs=1)["difference"] < 1e-4  # float32, sums in another order


def test_a_comparison_reports_both_times_and_their_ratio():
    ours, theirs = peers(mlp(4).eval(), batches(4, 4))["batch-1 loop"]
    found = compare(ours, theirs, pairs=3)
    low, high = found["middle_half"]
    assert 0 < low <= found["ratio"] <= high
    assert found["ours_s"] > 0
    assert found["peer_s"] > 0


def test_a_stopped_run_goes_on_after_the_cases_it_has(monkeypatch):
    monkeypatch.setattr(importance, "CASES", {"MLP": (mlp, 4)})
    seen = []
    done = run_bench(rows=4, batch=2, pairs=1, after=lambda found: seen.append(len(found)))
    assert seen == [1, 2, 3]
    again = run_bench(rows=4, batch=2, pairs=1, done=done[:2])
    assert again[:2] == done[:2]
    assert [case["peer"] for case in again] == [case["peer"] for case in done]


def test_images_of_both_sizes_and_linear_layers_are_timed():
    assert set(CASES) == {"CNN, 8x8", "CNN, 32x32", "MLP, 8x8"}
