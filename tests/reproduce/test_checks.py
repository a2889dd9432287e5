"""Verdicts follow from checks by kind: the headline and the controls decide, by the bounds of their intervals."""

import json
import math

import pytest

from unwrite.errors import MethodError
from unwrite.reproduce.checks import Check, reason_of, verdict_of

VALUES = {True: 1.0, False: -1.0, None: 0.0}


def check(kind, holds=True, text="it helps"):
    """A check that holds, fails, or is open."""
    value = VALUES[holds]
    made = Check(kind, text, value, ">", 0.0, (value - 0.5, value + 0.5))
    assert made.holds is holds
    return made


@pytest.mark.parametrize(
    ("sense", "interval", "holds"),
    [
        (">", (1.0, 2.0), None),
        (">", (1.1, 2.0), True),
        (">", (0.0, 1.0), False),
        (">=", (1.0, 2.0), True),
        (">=", (0.0, 0.9), False),
        (">=", (0.0, 1.0), None),
        ("<", (0.0, 0.9), True),
        ("<", (0.0, 1.0), None),
        ("<", (1.0, 2.0), False),
        ("<=", (0.0, 1.0), True),
        ("<=", (1.0, 1.1), None),
        ("<=", (1.1, 1.2), False),
    ],
)
def test_a_check_holds_where_its_whole_interval_does(sense, interval, holds):
    assert Check("claim", "a", sum(interval) / 2, sense, 1.0, interval).holds is holds


def test_a_figure_without_an_interval_is_exact():
    assert Check("claim", "a", 1.0, ">=", 1.0).holds is True
    assert Check("claim", "a", 0.99, ">=", 1.0).holds is False


def test_an_exact_statement_is_what_it_says():
    assert Check("mechanism", "a", True).holds is True
    assert Check("mechanism", "a", False).holds is False


def test_a_check_says_its_figure_and_what_it_is_held_against():
    made = Check("claim", "a", 1.234567, "<=", 0.5, (1.0, 1.5))
    assert made.figures == "1.23 (1 to 1.5), must be <= 0.5"
    assert Check("claim", "a", 1.0, ">", 2.0).figures == "1, must be > 2"
    assert Check("claim", "a", True).figures == ""


def test_what_is_no_number_is_open():
    assert Check("claim", "a", math.nan, ">", 1.0).holds is None
    assert Check("claim", "a", 2.0, ">", 1.0, (2.0, math.nan)).holds is None
    assert Check("claim", "a", 0.5, ">", 1.0, (0.5, math.nan)).holds is None


def test_figures_of_seeds_are_judged_by_their_range():
    made = Check.by_seed("claim", "a", [1.0, 2.0, 6.0], ">", 1.5)
    assert (made.value, made.interval, made.holds) == (3.0, (1.0, 6.0), None)
    assert Check.by_seed("claim", "a", [2.0, 6.0], ">", 1.5).holds is True


def test_a_check_is_stored_and_read_again():
    made = Check.by_seed("control", "a", [1.0, 2.0], "<", 1.5)
    record = json.loads(json.dumps(made.record()))
    assert record["holds"] is None
    assert Check.stored(record) == made


def test_a_check_that_says_nothing_is_refused():
    with pytest.raises(MethodError, match=r"unknown kind of check 'clam'. Did you mean 'claim'"):
        Check("clam", "a", True)
    with pytest.raises(MethodError, match="unknown sense of a check '=='"):
        Check("claim", "a", 1.0, "==", 1.0)
    with pytest.raises(MethodError, match="a figure needs a threshold"):
        Check("claim", "a", 1.0)
    with pytest.raises(MethodError, match="ends before it begins"):
        Check("claim", "a", 1.0, ">", 0.0, (2.0, 1.0))


def test_everything_that_holds_is_reproduced():
    assert verdict_of([check(kind) for kind in ("claim", "mechanism", "control", "set-up", "claim")]) == "reproduced"


def test_a_set_up_alone_gives_no_verdict():
    assert verdict_of([check("set-up")]) == verdict_of([]) == "untested here"


def test_without_a_claim_mechanisms_and_controls_give_no_verdict():
    assert verdict_of([check("mechanism"), check("control")]) == "untested here"


def test_where_the_set_up_fails_the_bed_says_nothing():
    assert verdict_of([check("claim", False), check("mechanism", False), check("set-up", False)]) == "bed says nothing"


def test_a_failed_mechanism_is_a_fault_of_ours_and_no_finding():
    checks = [check("claim", False), check("mechanism", False, "every text is greedy's own")]
    assert verdict_of(checks) == "untested here"
    assert "a fault of ours, for this must hold: every text is greedy's own" in reason_of(checks)


@pytest.mark.parametrize("kind", ["set-up", "claim", "mechanism", "control"])
def test_a_failed_headline_is_never_reproduced_nor_partly(kind):
    assert verdict_of([check("claim", False), check(kind), check("claim")]) == "not reproduced"


@pytest.mark.parametrize("headline", [True, None])
def test_a_control_that_does_as_well_is_never_reproduced(headline):
    assert verdict_of([check("claim", headline), check("claim"), check("control", False)]) == "not reproduced"


@pytest.mark.parametrize("kind", ["claim", "control", "mechanism", "set-up"])
def test_an_open_headline_control_mechanism_or_set_up_is_inconclusive(kind):
    assert verdict_of([check(kind, None), check("claim"), check("claim", False)]) == "inconclusive"


@pytest.mark.parametrize("other", [False, None])
def test_another_claim_that_fails_or_is_open_makes_it_partly(other):
    assert verdict_of([check("claim"), check("control"), check("claim", other)]) == "partly"


def test_the_reason_names_what_failed_and_what_is_open_then_the_figures():
    checks = [check("claim", False, "a"), check("claim", None, "b"), check("control", False, "c"), check("claim")]
    assert reason_of(checks, "1.2x") == (
        "the control does as well, for this does not hold: c. does not hold here: a. "
        "open, for the interval holds both: b. 1.2x"
    )
    assert reason_of([check("claim")]) == "every statement holds"
    assert reason_of([check("set-up", False, "it leaks")]) == "the bed can't tell, for this does not hold: it leaks"
