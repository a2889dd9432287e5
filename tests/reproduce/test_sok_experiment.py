"""What the experiment of the removal battery says follows from its indices: what decides, and what shows it to be empty."""

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.audit.base import Score
from unwrite.reproduce import sok_llm
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.sok_llm import Battery, moved, probes

NAMES = [probe.name for probe in probes(False)]
GONE = (0.0, -0.1, 0.1)
KNOWN = (1.0, 1.0, 1.0)


def battery(verdict, index, **others):
    figures = dict.fromkeys(NAMES, index) | others
    scores = {name: Score(name, v, bounds=(low, high)) for name, (v, low, high) in figures.items()}
    return Battery(scores, verdict, 0.9)


def judged(**changes):
    return {
        "GradDiff": battery("suppression-like", GONE, relearned_general=(0.4, 0.35, 0.45)),
        "NPO": battery("removal-like", GONE),
        "IDK": battery("suppression-like", KNOWN),
        "refusal adapter": battery("suppression-like", KNOWN),
        "guard (ULD)": battery("suppression by construction", KNOWN, direct=GONE),
        "retrained, other seed": battery("removal-like", GONE),
        "moved at random": battery("not forgotten", KNOWN),
        "target, copied": battery("not forgotten", KNOWN),
        **changes,
    }


def verdict(**changes):
    return verdict_of(sok_llm._checks(judged(**changes)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "reproduced"),
        ({"GradDiff": battery("mixed", GONE, few_shot=(0.2, 0.15, 0.25))}, "partly"),
        ({"GradDiff": battery("mixed", GONE, few_shot=(0.2, 0.05, 0.3))}, "inconclusive"),
        ({"GradDiff": battery("removal-like", GONE)}, "not reproduced"),
        ({"GradDiff": battery("mixed", KNOWN), "NPO": battery("mixed", KNOWN)}, "bed says nothing"),
        ({"refusal adapter": battery("mixed", GONE)}, "untested here"),
        ({"guard (ULD)": battery("suppression by construction", KNOWN, depth=GONE)}, "untested here"),
        ({"target, copied": battery("not forgotten", (0.99, 0.9, 1.0))}, "untested here"),
        ({"retrained, other seed": battery("mixed", GONE)}, "not reproduced"),
        ({"retrained, other seed": battery("removal-like", GONE, few_shot=(0.35, -0.1, 0.5))}, "not reproduced"),
        ({"retrained, other seed": battery("removal-like", GONE, lens=(0.05, 0.01, 0.1))}, "partly"),
        ({"moved at random": battery("mixed", GONE, direct=(0.05, 0.0, 0.08))}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_indices(changes, expected):
    assert verdict(**changes) == expected


def test_what_was_not_forgotten_when_asked_does_not_count_as_hidden():
    """A method that still answers is no evidence of hiding, however much comes back."""
    kept = battery("not forgotten", (0.9, 0.85, 0.95))
    assert verdict(GradDiff=kept, NPO=battery("mixed", GONE, few_shot=(0.2, 0.15, 0.25))) == "partly"


def test_random_moves_are_as_long_as_those_of_unlearning_weight_by_weight():
    before, after = make_llama(0, layers=1), make_llama(1, layers=1)
    other = moved(before, after)
    for old, new, drawn in zip(before.parameters(), after.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close((drawn - old).norm(), (new - old).norm())
        assert not torch.equal(drawn, new) or torch.equal(old, new)
