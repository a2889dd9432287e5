"""Drafters joined: one tree of all parts' paths, text that stays the target's own."""

import numpy as np
import pytest
from driving import endless, plain, prompts, written

from conftest import make_llama
from unwrite.decode import ADED, RSD, Joined, PromptLookup, TokenRecycling
from unwrite.decode.engine.tree import DraftTree
from unwrite.decode.joined import JoinedDrafter
from unwrite.errors import MethodError

VOCAB = 61


class Fixed:
    """A part that always proposes one tree."""

    def __init__(self, tokens, parents, kinds):
        self.tree, self.budgets, self.heard = DraftTree.of(tokens, parents, kinds), [], []

    def propose(self, committed, budget):
        self.budgets.append(budget)
        return self.tree

    def prior(self, kind):
        return kind / 100

    def observe(self, tree, output, path):
        self.heard.append(tree)


def two_parts():
    chain = Fixed([5, 6, 7], [-1, 0, 1], [0, 10, 20])
    fork = Fixed([5, 6, 8, 7], [-1, 0, 0, 1], [0, 30, 40, 50])
    return JoinedDrafter([chain, fork]), chain, fork


def test_paths_that_both_parts_draft_stand_once_in_the_tree():
    joined, *_ = two_parts()
    tree = joined.propose(np.array([1, 5]), 80)
    assert tree.tokens[0].tolist() == [5, 6, 7, 8]
    assert tree.parents[0].tolist() == [-1, 0, 1, 0]


def test_a_kind_tells_the_part_its_own_kind_and_agreement():
    joined, *_ = two_parts()
    kinds = joined.propose(np.array([1, 5]), 80).kinds[0].tolist()
    believed = [joined.prior(kind) for kind in kinds[1:]]
    assert believed == pytest.approx([1 - 0.5 * 0.9, 1 - 0.5 * 0.8, 0.4])
    assert len(set(kinds)) == 4


def test_later_parts_get_the_budget_that_is_left():
    joined, chain, fork = two_parts()
    joined.propose(np.array([1, 5]), 10)
    joined.propose(np.array([1, 5]), 2)
    assert (chain.budgets, fork.budgets) == ([10, 2], [8])


def test_every_part_learns_from_the_whole_tree():
    joined, chain, fork = two_parts()
    tree = joined.propose(np.array([1, 5]), 80)
    joined.observe(tree, None, None)
    assert chain.heard == fork.heard == [tree]


@pytest.fixture(scope="module")
def llama():
    return endless(make_llama(vocab=VOCAB))


@pytest.mark.parametrize("cost_model", [True, False])
@pytest.mark.parametrize(
    "parts", [(PromptLookup(), TokenRecycling()), (TokenRecycling(), ADED(), PromptLookup(ngram=2))]
)
def test_greedy_text_is_the_targets_own(llama, parts, cost_model):
    for prompt in prompts(4, VOCAB):
        ids, _ = written(llama, Joined(parts, cost_model=cost_model), prompt, 40)
        assert ids == plain(llama, prompt, 40)


def test_one_tree_of_both_takes_no_more_forwards_than_the_better_part(llama):
    prompt = [*range(3, 30), *range(3, 12)]

    def forwards(strategy):
        return written(llama, strategy, prompt, 48)[1].forwards

    lookup, recycling = PromptLookup(cost_model=False), TokenRecycling(cost_model=False)
    assert forwards(Joined((lookup, recycling), cost_model=False)) <= min(forwards(lookup), forwards(recycling))


def test_refuses_a_single_part():
    with pytest.raises(MethodError, match="at least two parts, not 1"):
        Joined((PromptLookup(),))


def test_refuses_a_part_that_asks_a_draft_model():
    with pytest.raises(MethodError, match="can't take RSD"):
        Joined((PromptLookup(), RSD()))
