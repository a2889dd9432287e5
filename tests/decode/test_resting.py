"""A drafter that finds nothing rests: steps go by without it, and it is asked as often as a hundredth of the time allows."""

import numpy as np
import pytest
from tabular import Clock, Tabular, greedy, hashed, junk, oracle

from conftest import make_llama
from unwrite.decode import Joined, PromptLookup, TokenRecycling
from unwrite.decode.base import Drafter, Strategy
from unwrite.decode.engine.loop import Decoding
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.planning.planner import IDLE_AFTER, LONGEST_REST, PROBE_SHARE, Planner, RowOutcome
from unwrite.decode.engine.planning.routes import ForwardRoutes
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree, Path
from unwrite.decode.plain import NoDrafter, Plain

VOCAB = 11
LOGITS = hashed(VOCAB)
PROMPT = np.array([1, 2])


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


class Asked(Strategy):
    """fn(committed, budget) -> tree takes `seconds`; notes at which lengths it was asked and what it observed."""

    def __init__(self, fn, clock, seconds, rests=True, **options):
        super().__init__(**options)
        for name, value in {
            "fn": fn,
            "clock": clock,
            "seconds": seconds,
            "asked": [],
            "seen": [],
            "rests": rests,
        }.items():
            object.__setattr__(self, name, value)

    def drafter(self, runtime, sampling):
        strategy = self

        class Calls(Drafter):
            rests = strategy.rests

            def propose(self, committed, budget):
                strategy.asked.append(len(committed))
                strategy.clock.now += strategy.seconds
                return strategy.fn(committed, budget)

            def observe(self, tree, output, path):
                strategy.seen.append(tree.nodes)

        return Calls()


def run(fn, seconds=0.1, count=300, rests=True, **options):
    clock = Clock()
    strategy = Asked(fn, clock, seconds, rests, **options)
    runtime = Tabular(LOGITS, VOCAB, lambda rows, path: 1.0 + 0.2 * (rows - 1), clock)
    found = Decoding(runtime, strategy, Sampling(), Stopping(2 + count), clock=clock).run([PROMPT])
    assert found.sequences == [greedy(LOGITS, tuple(PROMPT), count)]
    return strategy, found.stats, clock


def test_looks_that_find_nothing_take_a_hundredth_of_the_time():
    strategy, stats, _ = run(junk(VOCAB * 1000), seconds=0.1)
    late = [at for at in strategy.asked if at > 2 + 3 * IDLE_AFTER]
    assert len(late) * 0.1 <= 1.3 * PROBE_SHARE * stats.forwards
    assert len(late) >= 20  # and no less: a look every ten steps


def test_cheap_looks_come_often_and_dear_ones_never_stop():
    cheap, *_ = run(junk(VOCAB * 1000), seconds=0.005)
    dear, *_ = run(junk(VOCAB * 1000), seconds=5.0)
    assert len(cheap.asked) > 140  # every other step
    gaps = np.diff(dear.asked)
    assert gaps.max() == LONGEST_REST + 1


def test_a_resting_drafter_observes_nothing():
    strategy, stats, _ = run(junk(VOCAB * 1000), seconds=0.5)
    assert len(strategy.seen) == len(strategy.asked) < stats.forwards / 5


def test_drafting_begins_again_once_it_pays():
    right, wrong = oracle(LOGITS, 7), junk(VOCAB * 1000)
    strategy, stats, _ = run(lambda ids, budget: (wrong if len(ids) < 200 else right)(ids, budget), count=500)
    begun = next(at for at in strategy.asked if at >= 200)
    assert begun <= 200 + LONGEST_REST
    assert stats.forwards < 420


def test_what_is_always_right_never_rests():
    strategy, stats, _ = run(oracle(LOGITS, 7))
    assert len(strategy.asked) >= stats.forwards - 3


@pytest.mark.parametrize("options", [{"rests": False}, {"cost_model": False}])
def test_drafters_that_must_see_every_step_do(options):
    strategy, stats, _ = run(junk(VOCAB * 1000), seconds=0.5, **options)
    assert len(strategy.seen) >= stats.forwards - 2  # but the last, which has no room for a draft


def test_a_chosen_plan_that_drafts_nothing_takes_its_seconds_off_once():
    planner = Planner(ForwardRoutes(["stock"]), lambda kind: 0.9)
    planner.routes.observe("stock", 1, 10, 1.0)
    assert planner.choose_plan([DraftTree.chain(0, [1])], 10, 8, 8) == 1
    planner.spent(own=0.5, drafting=0.4, drafted=False)
    assert planner.own.of(False) == pytest.approx(0.1)


def test_plain_decoding_rests():
    clock = Clock()
    runtime = Tabular(LOGITS, VOCAB, clock=clock)
    calls = []
    runtime.step, inner = lambda token: calls.append(token) or inner(token), runtime.step
    found = Decoding(runtime, Plain(), Sampling(), Stopping(202), clock=clock).run([PROMPT])
    assert len(calls) == 199
    assert found.stats.forwards == 200
    assert found.stats.rows == {1: 199}
    assert found.sequences == [greedy(LOGITS, PROMPT, 200)]


def test_plain_decoding_asks_nobody(monkeypatch):
    def asked(self, committed, budget):
        raise AssertionError("asked for a draft")

    monkeypatch.setattr(NoDrafter, "propose", asked)
    runtime = Tabular(LOGITS, VOCAB, clock=Clock())
    found = Decoding(runtime, Plain(), Sampling(), Stopping(42), clock=runtime.clock).run([PROMPT])
    assert found.sequences == [greedy(LOGITS, PROMPT, 40)]


def test_a_look_that_drafts_nothing_still_sees_the_hidden_states_it_needs():
    model, seen = make_llama(), []

    class Watching(Drafter):
        def propose(self, committed, budget):
            return DraftTree.of([int(committed[-1])], [-1])

        def observe(self, tree, output, path):
            seen.append(output.final_hidden.shape)

    class Watched(Strategy):
        needs = frozenset({"logits", "final_hidden"})

        def drafter(self, runtime, sampling):
            return Watching()

    runtime = TransformersRuntime(model)
    Decoding(runtime, Watched(), Sampling(), Stopping(8)).run([PROMPT])
    assert seen == [(1, model.config.hidden_size)] * 5


def test_plain_steps_between_two_looks_stop_where_the_text_does():
    for count in range(1, 12):
        runtime = Tabular(LOGITS, VOCAB, clock=Clock())
        found = Decoding(runtime, Plain(), Sampling(), Stopping(2 + count), clock=runtime.clock).run([PROMPT])
        assert found.sequences == [greedy(LOGITS, PROMPT, count)]
        assert found.stats.forwards == runtime.forwards == count
        assert sum(found.stats.seconds.values()) == pytest.approx(runtime.clock.now)


def test_a_step_that_looks_and_drafts_nothing_forwards_no_tree():
    clock = Clock()
    runtime = Tabular(LOGITS, VOCAB, clock=clock)
    calls = []
    runtime.step, inner = lambda token: calls.append(token) or inner(token), runtime.step
    strategy = Asked(lambda ids, budget: DraftTree.of([int(ids[-1])], [-1]), clock, 0.5)
    found = Decoding(runtime, strategy, Sampling(), Stopping(42), clock=clock).run([PROMPT])
    assert strategy.asked
    assert len(calls) == found.stats.forwards - 1 == 39


def test_the_next_text_begins_with_a_few_looks_only():
    clock = Clock()
    strategy = Asked(lambda ids, budget: DraftTree.chain(int(ids[-1]), []), clock, 0.5)
    asked = []
    for _ in range(2):
        runtime = Tabular(LOGITS, VOCAB, lambda rows, path: 1.0 + 0.2 * (rows - 1), clock)
        strategy.asked.clear()
        Decoding(runtime, strategy, Sampling(), Stopping(42), clock=clock).run([PROMPT])
        asked.append(len(strategy.asked))
    assert asked == [IDLE_AFTER, IDLE_AFTER // 2]


def test_shipped_drafters_rest():
    from types import SimpleNamespace

    runtime = SimpleNamespace(vocab=VOCAB, fingerprint="t", max_nodes=None)
    for strategy in (PromptLookup(), TokenRecycling(), Joined()):
        assert strategy.drafter(runtime, Sampling()).rests


def test_a_run_of_plain_steps_tells_what_each_took_beside_its_forward():
    planner = Planner(ForwardRoutes(["stock"]), lambda kind: 0.9)
    planner.learn(RowOutcome(None, Path(tokens=[1, 2, 3, 4]), 4, lambda: 0.8))
    assert planner.own.of_rest == pytest.approx(0.2)


def test_the_tokens_of_plain_steps_judge_the_proposals_before_them():
    planner = Planner(ForwardRoutes(["stock"]), lambda kind: 0.5)
    planner.propose(DraftTree.chain(0, [5, 6]))
    planner.learn(RowOutcome(None, Path(tokens=[5, 7]), 2, lambda: 0.0))
    assert planner.acceptance.estimate(1, 0.5) > 0.5 > planner.acceptance.estimate(2, 0.5)
