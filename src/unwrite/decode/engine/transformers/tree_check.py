"""Whether a model's forward over a tree says what its own steps say: a small tree against its branches, on the real weights.

prompt, root ── a ── c          every branch is decoded in the model's own steps, as a row of one batch;
          │      └── d          then the tree in one forward, then one branch is kept and goes on
          └── b ── e
prompt, padding                 beside a longer prompt
padding, prompt, root           in the model's own steps
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..tree import DraftTree
from .limits import Support
from .own_steps import OwnSteps
from .tree_runtime import TreeRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["disagreement", "own_fault"]

PARENTS = [-1, 0, 0, 1, 1, 2]
BRANCHES = [[0, 1, 3], [0, 1, 4], [0, 2, 5]]
PROMPT, PADDING = 3, 2
CLOSE, ROUGH = 2e-3, 0.2  # of the spread of a node's logits: in float32, and in shorter formats
WHYS = (
    "gives other logits for a prompt beside a longer one, as if its tokens saw those behind them",
    "gives other logits for a prompt behind padding than for the prompt alone",
    "gives other logits in a tree than in its own steps",
)
RIGHT = 0.75  # of the nodes must agree in shorter formats, where a router may choose another expert


def own_fault(model: PreTrainedModel) -> str:
    """What stops the model's own steps after a few tokens; empty where nothing does."""
    try:
        with _quiet(model):
            own = OwnSteps(model, _ids(model, 1)[:, :PROMPT], [0])
            own.prefill()
            own.step(torch.tensor([_first(model)]))
    except Exception as error:
        return _line(error)
    return ""


def disagreement(model: PreTrainedModel) -> str:
    """Why a tree cannot run, as the end of a sentence that begins with the model's name; empty where it can."""
    try:
        with _quiet(model):
            error = _compare(model)
    except Exception as error_:
        return f"takes no tree ({_line(error_)})"
    exact = model.dtype in (torch.float32, torch.float64)
    for distances, why in zip(error, WHYS, strict=True):
        worst = float(distances.max() if exact else distances.quantile(RIGHT))
        if not worst <= (CLOSE if exact else ROUGH):
            return why
    return ""


def _compare(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Differences of logits, in their spreads, for each of `WHYS`: [1]; [2], one
    step behind it as well; [nodes + 1], one step behind a kept branch as well."""
    ids = _ids(model, len(BRANCHES))
    own = OwnSteps(model, ids[:, :PROMPT], [0] * len(ids))
    first = own.prefill()
    steps = torch.stack([own.step(column) for column in ids[:, PROMPT:].T], 1)  # [branches, depth + 1, vocab]
    runtime = TreeRuntime(model, Support(), pack="never")
    runtime.prefill([ids[0, :PROMPT].numpy()], 2 * len(PARENTS))
    runtime.use("stock")
    tokens = {
        node: int(ids[row, PROMPT + depth]) for row, path in enumerate(BRANCHES) for depth, node in enumerate(path)
    }
    tree = runtime.forward(DraftTree.of([tokens[node] for node in range(len(PARENTS))], PARENTS)).logits[0]
    expected = {node: steps[row, depth] for row, path in enumerate(BRANCHES) for depth, node in enumerate(path)}
    runtime.commit([BRANCHES[-1][:-1]])
    last = runtime.step(tokens[BRANCHES[-1][-1]])
    longer = ids[0].numpy()
    behind = runtime.prefill([longer[:PROMPT], longer], 1)[0]
    left = torch.cat([torch.zeros(1, PADDING, dtype=ids.dtype), ids[:1, :PROMPT]], 1)
    padded = OwnSteps(model, torch.cat([left, ids[1:2, : PROMPT + PADDING]]), [PADDING, 0])
    shifted = torch.stack([padded.prefill()[0], padded.step(ids[:2, PROMPT])[0]])
    pairs = [*((tree[node], expected[node]) for node in range(len(PARENTS))), (last, steps[-1, -1])]
    return (
        _distance(behind, first[0])[None],
        torch.stack([_distance(*pair) for pair in zip(shifted, (first[0], steps[0, 0]), strict=True)]),
        torch.stack([_distance(*pair) for pair in pairs]),
    )


def _distance(logits: Tensor, expected: Tensor) -> Tensor:
    """How far two rows of logits lie apart; tokens that both take out of the choice (-inf) lie on each other."""
    logits, expected = logits.float(), expected.float()
    apart = (logits - expected).masked_fill(logits == expected, 0.0).abs().mean()
    return apart / expected[expected.isfinite()].std().clamp(min=1e-30)


def _ids(model: PreTrainedModel, rows: int) -> Tensor:
    """[rows, PROMPT + depth + 1] ids of the branches behind one prompt; nodes that branches share have one token."""
    draw = np.random.default_rng(0)
    config = model.config.get_text_config(decoder=True)
    low, high = _first(model), min(int(config.vocab_size), 1000)
    prompt, nodes = draw.integers(low, high, PROMPT), draw.integers(low, high, len(PARENTS))
    return torch.tensor(np.array([[*prompt, *nodes[path]] for path in BRANCHES[:rows]]))


def _first(model: PreTrainedModel) -> int:
    """An id beyond those that mean padding, beginning and end in most vocabularies."""
    return min(5, int(model.config.get_text_config(decoder=True).vocab_size) - 1)


def _line(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:120]}" if first else type(error).__name__


@contextmanager
def _quiet(model: PreTrainedModel) -> Iterator[None]:
    """No gradient, no dropout, and torch's random numbers as they were."""
    training = [module for module in model.modules() if module.training]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)  # one verdict, also of models that draw in their forward
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
