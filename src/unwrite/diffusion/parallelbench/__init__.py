"""ParallelBench: tasks that are easy one token at a time and break when several are written at once (arXiv 2510.04767).

    load("waiting_line/shuffle")                          samples, drawn from seeds; nothing is downloaded
    score(sample, text, strict=True)                      0.0 or 1.0
    total_correlation, lower_bound, optimal_bound         what a step of several tokens loses, in bits
    IdealListModel                                        exact conditionals: what a sampler alone gets wrong
    sweep(model, samplers, tasks, tokens).curve()         score against tokens a step

Left out are the two tasks whose texts would have to be downloaded (SAMSum, ChatGPT-paraphrases); the words of words_to_sentence
come from lists of topics instead of a language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazily

if TYPE_CHECKING:
    from .ideal import Frame, IdealListModel, ListTokens
    from .metrics import grade, language_tool, score, sentence
    from .summary import decode_order, oracle, order_preference, parallelizability
    from .sweeping import Sweep, TextTokens, paper_samplers, sweep
    from .tasks import TASKS, Sample, Task, load, seed_of
    from .theory import (
        Joint,
        accuracy,
        bound,
        correlation,
        lower_bound,
        optimal_bound,
        threshold_accuracy,
        total_correlation,
        written_right,
    )

_HOMES = {
    "ideal": ("Frame", "IdealListModel", "ListTokens"),
    "metrics": ("grade", "language_tool", "score", "sentence"),
    "summary": ("decode_order", "oracle", "order_preference", "parallelizability"),
    "sweeping": ("Sweep", "TextTokens", "paper_samplers", "sweep"),
    "tasks": ("TASKS", "Sample", "Task", "load", "seed_of"),
    "theory": (
        "Joint", "accuracy", "bound", "correlation", "lower_bound", "optimal_bound", "threshold_accuracy", "total_correlation",
        "written_right",
    ),
}  # fmt: skip

__all__ = [
    "TASKS",
    "Frame",
    "IdealListModel",
    "Joint",
    "ListTokens",
    "Sample",
    "Sweep",
    "Task",
    "TextTokens",
    "accuracy",
    "bound",
    "correlation",
    "decode_order",
    "grade",
    "language_tool",
    "load",
    "lower_bound",
    "optimal_bound",
    "oracle",
    "order_preference",
    "paper_samplers",
    "parallelizability",
    "score",
    "seed_of",
    "sentence",
    "sweep",
    "threshold_accuracy",
    "total_correlation",
    "written_right",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
