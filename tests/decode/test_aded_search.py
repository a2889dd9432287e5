"""ADED's search: the authors' with its reward corrected, the drafts made of it, and when it runs anew."""

import json
import math
import subprocess
import sys
from pathlib import Path as FilePath
from random import Random

import numpy as np
import pytest
import torch

from unwrite.decode.aded import ADED, ADEDDrafter, Search, cut, exploration, trie
from unwrite.decode.engine.runtime import Output
from unwrite.decode.engine.tree import Path
from unwrite.decode.trigrams import TrigramTable

VOCAB = 67
OFFICIAL = json.loads(FilePath(__file__).with_name("official.json").read_text())["aded"]
TOY = {(0, 1): {2: 0.6, 3: 0.3, 4: 0.1}, (1, 2): {5: 0.9, 6: 0.1}, (1, 3): {5: 0.5, 6: 0.5}, (1, 4): {5: 1.0}}


def table_of(entries, vocab=10):
    table = TrigramTable(vocab)
    for (first, second), weights in entries.items():
        table.set(first, second, weights)
    return table


def official_table(vocab=20):
    def followers(a, b):
        return [c for c in range(vocab) if (3 * a + 5 * b + 11 * c) % 4 == 0 or c == (a + 2 * b + 1) % vocab]

    pairs = [(a, b) for a in range(vocab) for b in range(vocab)]
    return table_of(
        {(a, b): {c: ((7 * a + 13 * b + 29 * c) % 97 + 1) / 64 for c in followers(a, b)} for a, b in pairs}, vocab
    )


def search(table, root, iterations=150, depth=4, c1=32.0, c2=8.0, reward="weights", uniform=None):
    found = Search(table, root, depth, c1, c2, reward, uniform or Random(0).random)
    found.run(iterations)
    return found


def root_visits(found):
    return {
        word: visits
        for word, visits, parent in zip(found.words, found.visits, found.parents, strict=True)
        if parent == 0
    }


def random_table(seed=0, vocab=VOCAB, fan=6):
    random = Random(seed)
    pairs = [(a, b) for a in range(vocab) for b in range(vocab)]
    return table_of(
        {
            pair: {c: 0.01 + random.random() for c in random.sample(range(vocab), random.randint(1, fan))}
            for pair in pairs
        },
        vocab,
    )


def proposed(table, committed=(0, 1), **settings):
    return ADEDDrafter(ADED(**settings), table).propose(np.array(committed), 64)


def test_puct_values_of_the_card():
    assert 3 / 2 + exploration(10, 32, 8) * 0.25 / 3 == pytest.approx(10.1607, abs=1e-3)
    assert 1.2 / 1 + exploration(10, 32, 8) * 0.6 / 2 == pytest.approx(32.3785, abs=1e-3)


def prepared(visits, scores):
    """A search whose root (0, 1) has the children 2 and 3 of p = 0.6 and 0.25, with these visits and summed rewards."""
    found = search(table_of({(0, 1): {2: 0.6, 3: 0.25}}), (0, 1), iterations=2)
    assert found.words[1:] == [2, 3]
    found.visits[1:], found.scores[1:] = visits, scores
    found.means[1:] = [w / n for w, n in zip(scores, visits, strict=True)]
    found.bonuses[1:] = [p / (1 + n) for p, n in zip((0.6, 0.25), visits, strict=True)]
    found.tried[0] = 1
    return found


@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        (3.0, 2),  # 1.5 + 8.6607 = 10.1607
        (47.42, 2),  # 23.71 + 8.6607 = 32.3707
        (47.45, 3),  # 23.725 + 8.6607 = 32.3857
    ],
)
def test_the_child_of_the_highest_value_is_selected(other, chosen):
    """Ten visits above: token 2 (W = 1.2, n = 1, p = .6) has 1.2 + 31.1785 = 32.3785, token 3 W / 2 + 8.6607."""
    found = prepared([1, 2], [1.2, other])
    assert found.words[found._select(0, exploration(10, 32.0, 8.0))] == chosen


def test_every_selection_of_a_search_is_the_arg_max_of_the_published_value(monkeypatch):
    """Computed anew from visits, rewards and weights; a child never visited has an infinite value."""
    c1, c2, seen = 3.0, 8.0, []
    select = Search._select

    def value(found, child, above):
        wins, visits, p = found.scores[child], found.visits[child], found.priors[child]
        if visits == 0:
            return math.inf
        return wins / visits + (c1 + math.log((above + c2 + 1) / c2)) * p * math.sqrt(above) / (1 + visits)

    def checked(found, node, weight):
        chosen = select(found, node, weight)
        children = range(found.first[node], found.first[node] + found.count[node])
        values = {child: value(found, child, found.visits[node]) for child in children}
        assert values[chosen] == pytest.approx(max(values.values()), rel=1e-12)
        seen.append(chosen - found.first[node])
        return chosen

    monkeypatch.setattr(Search, "_select", checked)
    search(random_table(), (0, 1), c1=c1, c2=c2)
    assert len(seen) > 150
    assert len(set(seen)) > 2


def test_toy_visits_sum_to_150_and_follow_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1)))
    assert sum(visits.values()) == 150
    assert visits[2] > visits[3] > visits[4]


def test_toy_visits_with_the_official_reward_are_proportional_to_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1), reward="official"))
    assert [visits[2], visits[3], visits[4]] == pytest.approx([90, 45, 15], abs=2)


def test_without_exploration_visits_gather_on_the_best_mean_reward():
    found = search(table_of(TOY), (0, 1), c1=0.0, c2=math.inf)
    means = {word: found.scores[node] / found.visits[node] for node, word in enumerate(found.words[:4]) if node}
    best = max(means, key=means.get)
    assert root_visits(found)[best] == 148


def test_with_little_exploration_visits_gather_on_the_corrected_reward_only():
    assert root_visits(search(table_of(TOY), (0, 1), c1=1.0, c2=math.inf))[2] > 140
    assert root_visits(search(table_of(TOY), (0, 1), c1=1.0, c2=math.inf, reward="official"))[2] == 90


def test_with_endless_exploration_visits_are_proportional_to_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1), c1=1e6))
    assert [visits[2], visits[3], visits[4]] == pytest.approx([90, 45, 15], abs=2)


def test_the_corrected_reward_is_the_weights_of_what_was_drafted():
    table = table_of({(0, 1): {2: 0.5}, (1, 2): {3: 0.25}, (2, 3): {4: 2.0}})
    found = search(table, (0, 1), iterations=1)
    assert found.scores == [1 + 0.5 + 0.25 + 2.0] * 2
    assert search(table, (0, 1), iterations=1, reward="official").scores == [1.0] * 2


def test_the_official_reward_counts_only_a_repeated_token():
    table = table_of({(0, 1): {1: 0.5, 2: 0.25}})
    assert search(table, (0, 1), iterations=1, reward="official", depth=2).scores == [1.5, 0.0, 1.5]


@pytest.mark.parametrize("reward", ["official", "weights"])
def test_drafts_are_the_official_ones(reward):
    table = official_table()
    for root, drafts, nodes in zip(OFFICIAL["roots"], OFFICIAL[reward], OFFICIAL[f"{reward}_nodes"], strict=True):
        numbers = iter((7919 * i) % 9973 / 9973 for i in range(1000))
        found = search(table, tuple(root), reward=reward, uniform=lambda numbers=numbers: next(numbers))
        kept = cut(found.drafts(24), 64, "longest")
        assert sorted(map(list, kept)) == drafts
        assert len(trie(kept, 64)) == nodes


def test_drafts_end_in_the_likeliest_successor_and_hold_at_most_four_tokens():
    found = search(table_of(TOY), (0, 1))
    drafts = found.drafts(24)
    assert (2, 5) in drafts
    assert (4, 5) in drafts
    assert len(set(drafts)) == len(drafts) <= 23
    assert {len(draft) for draft in search(random_table(), (0, 1)).drafts(24)} <= {1, 2, 3, 4}


def test_the_cut_drops_the_longest_first_and_of_those_the_least_visited():
    drafts = [(1, 2, 3), (4,), (5, 6, 7), (8, 8, 8), (9, 1)]
    assert cut(drafts, 7, "longest") == [(1, 2, 3), (4,), (8, 8, 8), (9, 1)]
    assert cut(drafts, 4, "longest") == [(4,), (8, 8, 8), (9, 1)]
    assert cut(drafts, 7, "low_visits") == [(1, 2, 3), (4,), (5, 6, 7)]


def test_the_trie_is_ordered_by_depth_then_branch_and_truncated():
    drafts = [(7, 1), (3, 1), (7, 2, 9)]
    assert trie(drafts, 64) == [(7,), (3,), (7, 1), (7, 2), (3, 1), (7, 2, 9)]
    assert trie(drafts, 3) == [(7,), (3,), (7, 1)]


@pytest.mark.parametrize("budget", [1, 5, 20, 64])
@pytest.mark.parametrize("order", ["longest", "low_visits"])
def test_a_proposal_is_a_tree_within_its_budget_without_equal_siblings(budget, order):
    drafter = ADEDDrafter(ADED(cut=order, update="none"), random_table())
    for first in range(8):
        tree = drafter.propose(np.array([first, 2 * first]), budget)
        assert 1 < tree.nodes <= budget + 1 <= 65
        assert (tree.parents[0, 1:] < np.arange(1, tree.nodes)).all()
        assert len(set(zip(tree.parents[0].tolist(), tree.tokens[0].tolist(), strict=True))) == tree.nodes
        assert tree.depths.max() <= 4


def test_nothing_is_drafted_after_an_unknown_pair_or_a_single_token():
    assert proposed(table_of(TOY), (5, 5), update="none").nodes == 1
    assert proposed(table_of(TOY), (1,)).nodes == 1


def same(one, other):
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.parents, other.parents)


def test_a_draft_is_a_function_of_seed_table_and_the_last_two_tokens():
    table = random_table(1)
    drafter = ADEDDrafter(ADED(update="none"), table)
    for pair in ((3, 4), (5, 6)):
        drafter.propose(np.array([1, *pair]), 64)
    assert same(drafter.propose(np.array([9, 9, 3, 4]), 64), proposed(random_table(1), (3, 4), update="none"))


def test_drafts_do_not_depend_on_the_hash_seed():
    program = (
        "import numpy as np; from random import Random; from unwrite.decode.aded import ADED, ADEDDrafter; "
        "from unwrite.decode.trigrams import TrigramTable; ids = Random(0).choices(range(6), k=400); "
        "table = TrigramTable.fit([ids], 6); "
        "print(ADEDDrafter(ADED(), table).propose(np.array(ids[:30]), 64).tokens.tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(json.loads(runs[0].stdout)[0]) > 10


def test_a_search_is_kept_until_a_weight_it_read_changes():
    table = table_of(TOY)
    drafter = ADEDDrafter(ADED(update="none"), table)
    first = drafter.propose(np.array([0, 1]), 64)
    table.add([7, 8, 9])
    assert drafter.propose(np.array([4, 0, 1]), 64) is first
    assert drafter.searches == 1
    table.add([1, 2, 7])
    assert not same(drafter.propose(np.array([0, 1]), 64), first)
    assert drafter.searches == 2


def test_a_kept_draft_equals_a_fresh_search():
    ids = Random(1).choices(range(8), k=300)
    table, kept = TrigramTable.fit([ids], 8), 0
    drafter = ADEDDrafter(ADED(update="none", seed=3), table)
    for end in range(2, 200):
        before = drafter.searches
        tree = drafter.propose(np.array(ids[:end]), 64)
        kept += drafter.searches == before
        assert same(tree, proposed(table, ids[end - 2 : end], update="none", seed=3))
        if end % 5 == 0:
            table.add(Random(end).choices(range(8), k=3))
    assert 10 < kept < 190


def test_a_search_runs_its_share_of_the_iterations_and_150_without_a_cost_model():
    table = random_table()
    drafter = ADEDDrafter(ADED(update="none"), table)
    tree = drafter.propose(np.array([0, 1]), 64)
    for _ in range(3):
        drafter.observe(tree.keep(np.array([0, 1])), Output(torch.zeros(2, VOCAB)), Path())
        drafter._proposed = tree.nodes - 1
    assert drafter.limit == 8
    drafter.observe(tree, Output(torch.zeros(tree.nodes, VOCAB)), Path())
    assert drafter.limit == 16
    fixed = ADEDDrafter(ADED(update="none", cost_model=False), table)
    tree = fixed.propose(np.array([0, 1]), 64)
    fixed.observe(tree.keep(np.array([0])), Output(torch.zeros(1, VOCAB)), Path())
    assert fixed.limit == 64
