"""Draft trees: depths, masks, pruning, and batches of unequal trees."""

import numpy as np

from unwrite.decode.engine.runtime import positions, visible
from unwrite.decode.engine.tree import DraftTree

# 0 -> 1 -> 3, 0 -> 2 -> 4, 2 -> 5
TREE = DraftTree.of([9, 1, 2, 3, 4, 5], [-1, 0, 0, 1, 2, 2])


def test_depth_is_the_distance_from_the_root():
    assert TREE.depths.tolist() == [[0, 1, 1, 2, 2, 2]]


def test_a_node_sees_itself_and_its_ancestors_only():
    assert TREE.ancestors[0, 5].tolist() == [True, False, True, False, False, True]
    assert TREE.ancestors.sum() == 6 + 2 * 1 + 3 * 2


def test_siblings_share_a_position():
    assert positions(TREE, np.array([7])).tolist() == [[7, 8, 8, 9, 9, 9]]


def test_every_row_sees_its_own_prefix_and_its_nodes_behind_it():
    both = DraftTree.stack([TREE, DraftTree.chain(9, [1])])
    seen = visible(both, np.array([3, 1]))
    assert seen.shape == (2, 6, 9)
    assert seen[0, 3].tolist() == [True] * 3 + [True, True, False, True, False, False]
    assert seen[1, 1].tolist() == [True] + [True, True] + [False] * 6


def test_a_row_of_a_batch_is_the_tree_it_was():
    both = DraftTree.stack([TREE, DraftTree.chain(9, [1])])
    assert both.row(1).tokens.tolist() == [[9, 1]]
    assert both.row(1).parents.tolist() == [[-1, 0]]


def test_kept_nodes_keep_their_parents():
    kept = TREE.keep(np.array([0, 2, 5]))
    assert kept.tokens.tolist() == [[9, 2, 5]]
    assert kept.parents.tolist() == [[-1, 0, 1]]


def test_equal_siblings_are_merged_with_their_subtrees():
    twins = DraftTree.of([9, 1, 1, 2, 3, 2], [-1, 0, 0, 1, 2, 2])
    merged = twins.without_twins()
    assert merged.tokens.tolist() == [[9, 1, 2, 3]]
    assert merged.parents.tolist() == [[-1, 0, 1, 1]]


def test_a_tree_without_twins_is_left_as_it_is():
    assert TREE.without_twins() is TREE


def test_of_equal_siblings_the_walk_takes_the_first():
    assert DraftTree.of([9, 1, 1], [-1, 0, 0]).children()[0] == {1: 1}
