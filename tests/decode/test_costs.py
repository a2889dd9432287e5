"""The cost model: learns from forwards that run anyway, drafts what pays, falls back when costs jump."""

import numpy as np
import pytest
from tabular import Clock, Scripted, Tabular, greedy, hashed, junk, oracle

from unwrite.decode.engine.loop import Decoding
from unwrite.decode.engine.planning.calibration import calibrate
from unwrite.decode.engine.planning.costs import SIZES, Acceptance, DraftCosts, ForwardCosts
from unwrite.decode.engine.planning.curves import read_shape, write_shape
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.planning.planner import Planner
from unwrite.decode.engine.planning.routes import ForwardRoutes
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree
from unwrite.decode.plain import Plain
from unwrite.errors import Notice
from unwrite.runs import cache_dir

VOCAB = 11
LOGITS = hashed(VOCAB)


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def run(strategy, cost, count=200, routes=("stock",)):
    clock = Clock()
    runtime = Tabular(LOGITS, VOCAB, cost, clock, routes)
    found = Decoding(runtime, strategy, Sampling(), Stopping(2 + count), clock=clock).run([np.array([1, 2])])
    assert found.sequences == [greedy(LOGITS, (1, 2), count)]
    return found.stats, clock


def test_an_unmeasured_size_follows_the_shape():
    costs = ForwardCosts()
    costs.observe(1, 100, 2.0)
    assert costs.estimate(8, 100) == pytest.approx(2.0 * costs.shape[SIZES.index(8)])


def test_between_two_measured_sizes_the_estimate_lies_between_them():
    costs = ForwardCosts()
    costs.observe(1, 100, 1.0)
    costs.observe(16, 100, 9.0)
    assert 1.0 < costs.estimate(8, 100) < 9.0


def test_one_outlier_moves_nothing():
    costs = ForwardCosts()
    for seconds in (1.0, 1.0, 1.0, 50.0):
        costs.observe(4, 100, seconds)
    assert costs.estimate(4, 100) == 1.0


def test_a_measurement_is_forgotten_after_twenty_steps():
    costs = ForwardCosts()
    costs.observe(8, 100, 10.0)
    for _ in range(19):
        costs.observe(1, 100, 1.0)
    assert costs.estimate(8, 100) == 10.0
    for _ in range(3):
        costs.observe(1, 100, 1.0)
    assert costs.estimate(8, 100) == pytest.approx(costs.shape[SIZES.index(8)])


def test_a_retry_that_disappoints_makes_the_next_one_come_later():
    costs = ForwardCosts()
    costs.observe(8, 100, 10.0)
    for _ in range(25):
        costs.observe(1, 100, 1.0)
    costs.observe(8, 100, 10.0)
    for _ in range(35):
        costs.observe(1, 100, 1.0)
    assert costs.estimate(8, 100) == 10.0


def test_longer_contexts_have_costs_of_their_own():
    costs = ForwardCosts()
    costs.observe(1, 100, 1.0)
    costs.observe(1, 3000, 3.0)
    assert (costs.estimate(1, 100), costs.estimate(1, 3000)) == (1.0, 3.0)


def test_acceptance_starts_at_the_belief_and_follows_what_is_seen():
    acceptance = Acceptance()
    assert acceptance.estimate(1, 0.3) == 0.3
    for _ in range(100):
        acceptance.observe(1, True)
    assert acceptance.estimate(1, 0.3) > 0.9


def test_the_most_likely_nodes_are_kept():
    paths = ForwardRoutes(["stock"])
    paths.observe("stock", 1, 10, 1.0)
    for rows in SIZES[1:]:
        paths.observe("stock", rows, 10, 1.0 + 0.3 * rows)
    planner = Planner(paths, {1: 0.9, 2: 0.01}.__getitem__)
    tree = DraftTree.of([0, 1, 2, 3, 4], [-1, 0, 0, 1, 1], [0, 2, 1, 1, 2])
    kept = planner.prune(tree, 10)
    assert kept.tokens.tolist() == [[0, 2]]  # 1.9 tokens in 1.6 s beat 1.03 in 1 s; a third row gives 1.91 in 1.9 s
    known = ForwardRoutes(["stock"])
    known.observe("stock", 1, 10, 1.0)
    generous = Planner(known, {1: 0.9, 2: 0.8}.__getitem__)
    assert generous.prune(tree, 10).nodes > 2


def test_right_drafts_are_drafted_whole_and_wrong_ones_not_at_all():
    cheap = lambda rows, path: 1.0 + 0.02 * rows  # noqa: E731
    good, _ = run(Scripted(oracle(LOGITS, 7)), cheap)
    assert good.tokens_per_forward > 6
    wrong, clock = run(Scripted(junk(VOCAB * 1000)), lambda rows, path: 1.0 + 0.2 * rows, 400)
    assert clock.now < 399 * 1.2 / 0.97
    assert wrong.rows[1] > 390


def test_nothing_is_drafted_before_a_plain_step_was_timed():
    planner = Planner(ForwardRoutes(["stock"]), lambda kind: 0.99)
    assert planner.prune(DraftTree.chain(0, [1, 2]), 10).nodes == 1


def test_when_forwards_of_many_rows_become_ten_times_dearer_the_engine_falls_back_and_returns():
    """Rows beyond one cost ten times as much between seconds 40 and 240; nothing is drafted there but rare retries."""
    clock = Clock()

    def cost(rows, path):
        jumped = 40 < clock.now < 240
        return 1.0 if rows == 1 else (1.0 + 0.02 * rows) * (10 if jumped else 1)

    log = []

    def noted(rows, path):
        seconds = cost(rows, path)
        log.append((clock.now, rows))
        return seconds

    runtime = Tabular(LOGITS, VOCAB, noted, clock)
    Decoding(runtime, Scripted(oracle(LOGITS, 7)), Sampling(), Stopping(2000), clock=clock).run([np.array([1, 2])])
    share = lambda start, end: np.mean([rows > 1 for at, rows in log if start < at < end])  # noqa: E731
    assert share(0, 40) > 0.9
    assert share(100, 240) < 0.1
    assert share(400, 10**9) > 0.9


def test_a_packed_path_that_runs_slower_than_the_stock_one_is_left():
    stats, _ = run(
        Scripted(oracle(LOGITS, 3)), lambda rows, path: 2.0 if path == "packed" else 1.0, 200, ("packed", "stock")
    )
    assert stats.routes["packed"] < 15


def test_a_slower_alternative_is_tried_ever_more_rarely():
    stats, _ = run(Scripted(junk(VOCAB)), lambda rows, path: 1.0 if path == "packed" else 1.7, 400, ("packed", "stock"))
    assert 2 <= stats.routes["stock"] <= 8


def test_calibration_keeps_the_shape_for_the_next_process():
    clock_of = {rows: 1.0 + rows for rows in SIZES}
    runtime = Tabular(LOGITS, VOCAB, name="calibrated")
    found = calibrate(runtime, length=8, repeats=1)
    assert list(found) == list(clock_of)
    assert len(read_shape("calibrated") or ()) == len(SIZES)


def test_another_way_can_be_timed_without_becoming_the_shape_on_disk():
    clock = Clock()
    runtime = Tabular(
        LOGITS, VOCAB, lambda rows, route: rows * {"packed": 1.0, "stock": 2.0}[route], clock, ("packed", "stock")
    )
    runtime.name = "timed"
    calibrate(runtime, length=8, repeats=1, route="stock")
    assert runtime.route == "stock"
    assert read_shape("timed") is None


def test_a_broken_cost_file_counts_as_none():
    write_shape("some machine", tuple(float(i) for i in SIZES))
    assert read_shape("some machine") == tuple(float(i) for i in SIZES)
    (file,) = cache_dir("forward-costs").iterdir()
    file.write_text("{", encoding="utf-8")
    with pytest.warns(Notice, match="was damaged"):
        assert read_shape("some machine") is None


def test_a_packed_path_that_becomes_slower_late_costs_at_most_twenty_slow_steps():
    """Spinning threads under other load, from second 200 on: as 36 ms became 1,624."""
    clock = Clock()
    late = lambda rows, path: 45.0 if path == "packed" and clock.now > 200 else 1.0 if path == "packed" else 1.5  # noqa: E731
    runtime = Tabular(LOGITS, VOCAB, late, clock, ("packed", "stock"))
    Decoding(runtime, Scripted(junk(VOCAB)), Sampling(), Stopping(402), clock=clock).run([np.array([1, 2])])
    assert clock.now < 200 + 20 * 45 + 300 * 1.5  # retries, ever rarer, among the twenty


def test_one_pause_does_not_end_drafting():
    """A drafter that once stops for ten steps' time, and is always right."""
    clock = Clock()
    runtime, calls = Tabular(LOGITS, VOCAB, clock=clock), []

    def draft(committed, budget):
        calls.append(1)
        clock.now += 10.0 if len(calls) == 5 else 0.0
        return oracle(LOGITS, 6)(committed, budget)

    Decoding(runtime, Scripted(draft), Sampling(), Stopping(402), clock=clock).run([np.array([1, 2])])
    assert clock.now < 120  # 400 tokens one by one would take 420


def test_a_batch_pays_for_the_rows_of_all_its_texts():
    """Half of the drafts are right. One text gains by them; where every row costs as much as a forward, eight texts don't:
    what trying costs them is below 3 %, on average over draws."""

    def half(seed):
        draw = np.random.default_rng(seed)

        def draft(committed, budget):
            right = greedy(LOGITS, committed.tolist(), min(4, budget))
            return DraftTree.chain(int(committed[-1]), [t if draw.random() < 0.5 else (t + 1) % VOCAB for t in right])

        return draft

    def seconds(strategy):
        forget_knowledge()
        clock = Clock()
        runtime = Tabular(LOGITS, VOCAB, lambda nodes, path: 1.0 + 0.1 * 8 * nodes, clock)
        prompts = [np.array([1, number]) for number in range(8)]
        Decoding(runtime, strategy, Sampling(), Stopping(122), clock=clock).run(prompts)
        return clock.now

    assert np.mean([seconds(Scripted(half(seed))) for seed in range(8)]) < 1.03 * seconds(Plain())


def test_a_plan_never_drafted_is_expected_to_cost_its_levels():
    costs = DraftCosts()
    assert costs.estimate(3, 4, unknown=0.3) == pytest.approx(1.2)
    costs.observe(0, 1, 0.02)
    assert costs.estimate(3, 4, unknown=0.3) == pytest.approx(0.08)
    assert costs.estimate(0, 1, unknown=0.3) == pytest.approx(0.02)


def test_a_step_that_chose_no_plan_says_nothing_of_what_drafting_costs():
    """The last step of a text has no room for a draft; what it spent on drafting, nothing, is not the last plan's."""
    paths = ForwardRoutes(["stock"])
    paths.observe("stock", 1, 10, 1.0)
    planner = Planner(paths, lambda kind: 0.9)
    plan = DraftTree.of([0, 0], [-1, 0], [0, 1])
    for _ in range(3):
        assert planner.choose_plan([plan], 10, 8, 8) == 1
        planner.spent(0.2, 0.2, True)
    planner.spent(0.0, 0.0, False)
    assert planner.drafting.seconds[0] == pytest.approx(0.2)
