"""What `make test` runs of crossed settings: every pair of values, by as few combinations as come to hand."""

from itertools import combinations, product

import pytest

from helpers.grids import crossed, spread


def kept(params):
    return [param.values for param in params if not param.marks]


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


def test_every_pair_of_values_is_run_and_every_combination_by_make_test_all():
    settings = {"a": [1, 2, 3], "b": ["x", "y"], "c": [None, 0.5], "d": [0, 1, 2]}
    params = crossed(**settings).args[1]
    everything = list(product(*settings.values()))
    assert [param.values for param in params] == everything
    assert pairs(kept(params)) == pairs(everything)
    assert 9 <= len(kept(params)) <= 12  # three by three values of a and d, and of 36 combinations a third at most
    assert {param.marks[0].name for param in params if param.marks} == {"slow"}
    assert params[0].id == "1-x-None-0"


def test_of_two_settings_every_combination_is_run():
    assert len(kept(crossed(a=[1, 2, 3], b=[4, 5]).args[1])) == 6


@pytest.mark.parametrize("cases", [[(1, 1), (1, 2), (2, 2), (1, 1)], [(1, 1, 5), (1, 2, 5), (2, 2, 6), (2, 2, 6)]])
def test_of_given_cases_those_are_run_that_hold_a_new_pair(cases):
    params = spread(cases, lambda case: case)
    assert [param.values for param in params] == cases
    assert kept(params) == cases[:3]
