"""Multiple choice through the chain: a letter, and a uniformly random one where the chain refuses. (ours)

Accuracy and refusals are reported apart: a model that refuses everything is right as often as chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from .pipeline import AgentAnswer, AgentChain

__all__ = ["ChosenOption", "choice_figures", "choose"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ChosenOption:
    """One answer to a multiple choice.

    Args:
        letter: of the option.
        refused: whether the chain refused, so that the letter was drawn.
        answer: the chain's.
    """

    letter: str
    refused: bool
    answer: AgentAnswer


def choose(chain: AgentChain, question: str, options: Sequence[str], seed: int = 0) -> ChosenOption:
    """Asks a question with its options.

    Args:
        seed: a refusal's letter is a function of it and of the question.
    """
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    asked = "\n".join([question, *lines, "Answer with a letter alone."])
    answer = chain(asked, options)
    if not answer.refused:
        return ChosenOption(answer.text, False, answer)
    own = [ord(one) for one in question]
    drawn = int(np.random.default_rng([seed, 8, *own]).integers(len(options)))
    return ChosenOption(LETTERS[drawn], True, answer)


def choice_figures(chosen: Sequence[ChosenOption], right: Sequence[str]) -> dict[str, float]:
    """The share of right letters, drawn ones included, and the share of refusals."""
    pairs = zip(chosen, right, strict=True)
    return {
        "accuracy": fmean(one.letter == letter for one, letter in pairs),
        "refusal rate": fmean(one.refused for one in chosen),
    }
