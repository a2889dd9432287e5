"""A route that has to be entered, once a text, runs only in texts long enough to make up for it."""

import numpy as np
import pytest
from tabular import Clock, Scripted, Tabular, hashed, junk

from unwrite.decode.engine.loop import Decoding
from unwrite.decode.engine.planning.knowledge import forget_knowledge, knowledge_of
from unwrite.decode.engine.planning.planner import Planner
from unwrite.decode.engine.planning.routes import ForwardRoutes
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.plain import Plain

VOCAB = 11
LOGITS = hashed(VOCAB)
ROUTES = ("packed", "stock")


@pytest.fixture(autouse=True)
def fresh():
    forget_knowledge()
    yield
    forget_knowledge()


class Entered(Tabular):
    """Using "packed" takes `entry` seconds, once a text."""

    entry = 1.2

    def prefill(self, rows, room):
        self.inside, self.entries = set(), 0
        return super().prefill(rows, room)

    def use(self, route):
        if route == "packed" and route not in self.inside:
            self.clock.now += self.entry
            self.entries += 1
        self.inside.add(route)
        super().use(route)


def write(seconds, count, clock):
    """One text. Returns its stats, the runtime, and what it took over `count` stock steps."""
    runtime = Entered(LOGITS, VOCAB, lambda rows, route: seconds[route] * (1 + 0.5 * (rows - 1)), clock, ROUTES)
    began = clock.now
    found = Decoding(runtime, Plain(), Sampling(), Stopping(2 + count), clock=clock).run([np.array([1, 2])])
    return found.stats, runtime, (clock.now - began) / (count * seconds["stock"])


def test_a_short_text_does_not_enter_a_way_that_gains_nothing():
    clock = Clock()
    level = {"packed": 1.0, "stock": 1.0}
    taken = [write(level, 32, clock) for _ in range(40)]
    assert taken[0][0].routes["packed"] > 20  # the default, before anything is known
    entries = sum(runtime.entries for _, runtime, _ in taken[2:])
    assert entries <= 3
    assert np.mean([ratio for _, _, ratio in taken[2:]]) < 1.01


def test_a_long_text_enters_a_way_whose_steps_make_up_for_it_and_a_short_one_does_not():
    clock = Clock()
    quick = {"packed": 0.97, "stock": 1.0}  # 40 steps make up for entering it; not quick enough to be seen as faster
    for _ in range(4):
        write(quick, 32, clock)
    short, runtime, _ = write(quick, 20, clock)
    assert runtime.entries == 0
    assert set(short.routes) == {"stock"}
    long, runtime, ratio = write(quick, 400, clock)
    assert runtime.entries == 1
    assert long.routes["packed"] > 390
    assert ratio < 0.98


def test_a_way_that_is_much_faster_is_entered_by_every_text():
    clock = Clock()
    for _ in range(4):
        stats, runtime, ratio = write({"packed": 0.5, "stock": 1.0}, 32, clock)
    assert runtime.entries == 1
    assert stats.routes["packed"] >= 29
    assert ratio < 0.62


def test_a_way_left_for_its_entry_is_taken_up_again_when_it_becomes_faster():
    clock = Clock()
    for _ in range(10):
        write({"packed": 1.0, "stock": 1.0}, 32, clock)
    faster = {"packed": 0.5, "stock": 1.0}
    ratios = [write(faster, 32, clock)[2] for _ in range(60)]
    assert np.mean(ratios[-10:]) < 0.62


def test_entering_is_no_part_of_a_step_s_own_work():
    clock = Clock()
    runtime = Entered(LOGITS, VOCAB, lambda rows, route: 1.0, clock, ROUTES)
    runtime.entry = 50.0
    paths = knowledge_of(runtime.fingerprint, ROUTES).routes
    paths.current = "stock"
    found = Decoding(runtime, Plain(), Sampling(), Stopping(12), clock=clock).run([np.array([1, 2])])
    assert runtime.entries == 1  # as a rival, in the middle of the text
    assert found.stats.seconds["other"] == pytest.approx(50.0)


def test_a_way_that_a_text_has_entered_already_costs_it_nothing_more():
    paths = ForwardRoutes(ROUTES)
    for _ in range(3):
        paths.begin(10, 5)
        paths.entered("packed", 5.0)
        for route, seconds in (("packed", 0.9), ("stock", 1.0)):
            paths.observe(route, 1, 5, seconds)
    assert paths.begin(10, 5) == "stock"
    assert paths.begin(10, 5) == "stock"
    assert paths.begin(10, 5, sunk=("packed",)) == "packed"


def test_what_the_first_text_took_to_pack_keeps_no_other_from_a_faster_way():
    clock = Clock()
    quick, dear = {"packed": 0.5, "stock": 1.0}, Entered.entry
    try:
        Entered.entry = 200.0
        write(quick, 32, clock)
    finally:
        Entered.entry = dear
    stats, runtime, _ = write(quick, 32, clock)
    assert runtime.entries == 1
    assert stats.routes["packed"] >= 29


def test_another_way_is_tried_for_single_steps():
    stats, *_ = write({"packed": 0.5, "stock": 1.0}, 200, Clock())
    assert 2 <= stats.routes["stock"] <= 6


@pytest.mark.parametrize("looks", [False, True])
def test_what_entering_took_is_not_taken_for_own_work(looks, monkeypatch):
    own = []
    monkeypatch.setattr(Planner, "rested", lambda self, seconds, steps=1: own.append(seconds))
    monkeypatch.setattr(Planner, "spent", lambda self, seconds, drafting, drafted: own.append(seconds))
    clock = Clock()
    runtime = Entered(LOGITS, VOCAB, lambda rows, route: 1.0, clock, ROUTES)
    knowledge_of(runtime.fingerprint, ROUTES).routes.current = "stock"
    Decoding(runtime, Scripted(junk(VOCAB)) if looks else Plain(), Sampling(), Stopping(12), clock=clock).run(
        [np.array([1, 2])]
    )
    assert runtime.entries == 1
    assert own
    assert max(own) == pytest.approx(0.0, abs=1e-9)


def test_a_single_way_is_always_the_one():
    paths = ForwardRoutes(["stock"])
    assert paths.begin(1, 1) == "stock"
    assert {paths.next() for _ in range(50)} == {"stock"}
