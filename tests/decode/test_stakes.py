"""A text's credit: where rows are dear, what other texts taught is not enough to draft on."""

import numpy as np
import pytest
from tabular import Clock, Tabular, greedy, hashed, junk, oracle
from test_resting import Asked

from unwrite.decode.engine.loop import Decoding
from unwrite.decode.engine.planning import knowledge as planning
from unwrite.decode.engine.planning.costs import SIZES
from unwrite.decode.engine.planning.knowledge import Knowledge, forget_knowledge
from unwrite.decode.engine.planning.planner import PROBE_SHARE, STAKE, WORTH, Planner
from unwrite.decode.engine.planning.reading import ReadingRoutes
from unwrite.decode.engine.planning.routes import ForwardRoutes
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree, Path

VOCAB = 11
LOGITS = hashed(VOCAB)
PROMPT = (1, 2)
COUNT = 32
right, wrong = oracle(LOGITS, 7), junk(VOCAB * 1000)


def dear(rows, route):
    """As on llama.cpp: two rows cost more than two."""
    return float(np.interp(rows, [1, 2, 4, 8, 16, 32], [1, 2.23, 3.33, 3.86, 5.05, 9.05]))


def cheap(rows, route):
    return 1.0 + 0.05 * (rows - 1)


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def seconds(fn, cost=dear, count=COUNT):
    """Of a text whose drafts are `fn`'s; the shape of the costs is known, as after a start-up check."""
    clock = Clock()
    runtime = Tabular(LOGITS, VOCAB, cost, clock)
    shape = tuple(cost(rows, None) for rows in SIZES)
    planning._known.setdefault(
        f"{runtime.fingerprint}|{'|'.join(runtime.routes)}",
        Knowledge(ForwardRoutes(runtime.routes, shape), ReadingRoutes(runtime.routes)),
    )
    found = Decoding(runtime, Asked(fn, clock, 0.0), Sampling(), Stopping(2 + count), clock=clock).run(
        [np.array(PROMPT)]
    )
    assert found.sequences == [greedy(LOGITS, PROMPT, count)]
    return clock.now, found.stats


def test_a_text_that_refuses_what_the_others_took_loses_at_most_its_stake():
    for _ in range(6):
        took, _ = seconds(right, count=100)
    assert took < 80  # drafting pays there, and that is what is believed now
    plain, _ = seconds(lambda ids, budget: DraftTree.chain(int(ids[-1]), []))
    refused, stats = seconds(wrong)
    assert refused <= plain + STAKE + PROBE_SHARE * COUNT
    assert stats.drafted == 0  # every draft there would have risked more


def test_a_proposal_that_would_have_paid_opens_the_drafting():
    for _ in range(6):
        _, stats = seconds(right, count=100)
    assert stats.accepted > 50
    assert stats.rows[1] >= 4  # but not before this text itself showed it


def test_where_rows_are_cheap_nothing_waits():
    seconds(right, cheap, count=100)
    _, stats = seconds(right, cheap)
    assert stats.rows[1] <= 3  # the prompt's, one that is timed, and the last, which has no room for a draft


def planner(cost, believed=0.99, batch=1):
    paths = ForwardRoutes(["stock"])
    for rows in (1, 2, 4, 8):
        paths.observe("stock", rows * batch, 10, cost(rows * batch, None))
    return Planner(paths, lambda kind: believed, batch=batch)


def offer(one, tokens):
    tree = DraftTree.chain(0, tokens)
    one.propose(tree)
    return one.prune(tree, 10)


def test_credit_moves_by_what_a_draft_gained_and_lost():
    one = planner(cheap)
    tree = offer(one, [5, 6, 7])
    assert tree.nodes == 4
    one.judge(tree, Path(nodes=[0, 1, 2, 3], tokens=[5, 6, 7, 8]))
    assert one.credit == pytest.approx(STAKE + 3 - 0.15)
    one.judge(offer(one, [5, 6, 7]), Path(nodes=[0], tokens=[1]))
    assert one.credit == pytest.approx(STAKE + 3 - 2 * 0.15)
    for _ in range(20):
        one.judge(offer(one, [5, 6, 7]), Path(nodes=[0, 1, 2, 3], tokens=[5, 6, 7, 8]))
    assert one.credit == WORTH


def test_what_was_lost_is_allowed_again_little_by_little():
    one = planner(cheap)
    one.credit = 0.5
    for _ in range(200):
        one.rested(0.0)
    assert STAKE <= one.credit < STAKE + PROBE_SHARE


def test_one_proposal_at_a_time_is_watched():
    """The same right continuation, offered at every step, counts once."""
    one = planner(dear)
    for token in (5, 6, 7, 8):
        assert offer(one, list(range(token, token + 7))).nodes == 1
        one.follow(token)
    assert one.credit == pytest.approx(
        STAKE + 0.14 + 1
    )  # 7 nodes risk 2.86: the third token won pays that, the fourth is gain


def test_the_texts_of_a_batch_have_none_to_keep_to():
    assert offer(planner(dear, batch=1), [5, 6, 7, 8, 9, 10, 11]).nodes == 1
    assert offer(planner(lambda rows, route: dear(rows / 8, route), batch=8), [5, 6, 7, 8, 9, 10, 11]).nodes > 1


def test_a_draft_model_risks_the_reading_of_the_prompt_too():
    plan = [DraftTree.chain(0, [1, 2, 3])]
    one = planner(cheap)
    one.drafting.observe(0, 3, 0.3)
    one.drafting.reading = 0.01
    assert one.choose_plan(plan, 50, 8, 8) == 3  # 0.15 of the forward, 0.3 of drafting, 0.5 of reading
    two = planner(cheap)
    two.drafting.observe(0, 3, 0.3)
    two.drafting.reading = 0.02
    assert two.choose_plan(plan, 50, 8, 8) == 0
    two._began = True
    assert two.choose_plan(plan, 50, 8, 8) == 3


def test_reading_is_timed_by_the_first_draft_of_a_text():
    one = planner(cheap)
    one.drafting.reading = 0.0
    one.drafting.observe(0, 1, 0.1)
    assert one.choose_plan([DraftTree.chain(0, [1])], 50, 8, 8) == 1
    one.spent(own=0.6, drafting=0.5, drafted=True)
    assert one.drafting.reading == pytest.approx(0.01)
    assert one.drafting.seconds[0] == pytest.approx(0.1)
