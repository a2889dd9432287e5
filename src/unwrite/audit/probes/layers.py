"""Reading hidden states where a probe needs them, and putting others in their place.

States are those behind each block, before the final norm, whatever the family calls its parts (`models.anatomy`).
"""

from __future__ import annotations

import contextlib
import inspect
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.text.encoding import Encoded, encode_rows, pad
from ...data.text.examples import Example
from ...models import anatomy
from ...runs import progress
from ...scoring.batches import by_length
from ..text.context import TextContext

__all__ = [
    "begun_at",
    "evenly",
    "identity",
    "replaced",
    "run",
    "states_at",
    "states_of",
    "telling",
    "watched",
    "with_states",
]

_PROCESS = uuid.uuid4().hex


def identity(context: TextContext) -> str:
    """What stands for a model in a key: its content hash, or, where it has none, this object in this process."""
    return context.fingerprint or f"{_PROCESS} {id(context.model)}"


def evenly(count: int, most: int | None) -> list[int]:
    """The numbers of the blocks to look at: all, or so many of them, the last one always and the others evenly spaced."""
    if most is None or most >= count:
        return list(range(count))
    return sorted({count - 1 - (i * count) // most for i in range(most)})


def telling(row: Example, context: TextContext) -> tuple[Encoded, range]:
    """A row as token ids, and the places of the answer's tokens that tell it from its wrong answers: between what all of them share.

    Without wrong answers that is the whole answer, its end token left out. (ours)
    """
    answers = [row, *(row.ask(answer=wrong) for wrong in row.perturbed_answers)]
    own, *wrong = (windows[0] for windows in encode_rows(answers, context.tokenizer, context.max_length))
    start, end = own.prompt_length, len(own.input_ids) - 1
    ids = own.input_ids[start:]
    others = [other.input_ids[start:] for other in wrong]
    before = min((_shared(ids, other) for other in others), default=0)
    behind = min((_shared(ids[::-1], other[::-1]) for other in others), default=1)
    first = min(start + before, end - 1)
    return own, range(max(1, first), max(first + 1, min(end, len(own.input_ids) - behind)))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def states_of(output: Any) -> Tensor:
    """Of a block's output: the states themselves, or the first of several things."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """A block's output with other states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextlib.contextmanager
def _hooks(modules: Mapping[int, nn.Module], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook(number)) for number, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced(model: nn.Module, change: Mapping[int, Any]) -> Iterator[None]:
    """Within the block, states behind some blocks are changed: `change[number](states) -> states`, [rows, length, hidden]."""
    blocks = anatomy(model).blocks

    def hook(number: int) -> Any:
        def run(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return with_states(output, change[number](states_of(output)))

        return run

    with _hooks({number: blocks[number].module for number in change}, hook):
        yield


@contextlib.contextmanager
def watched(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Within the block, every forward leaves what some blocks gave in the dictionary, see `states_of`."""
    blocks = anatomy(model).blocks
    seen: dict[int, Any] = {}

    def hook(number: int) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(number, output)

    with _hooks({number: blocks[number].module for number in layers}, hook):
        yield seen


@contextlib.contextmanager
def begun_at(model: nn.Module, number: int, output: Any) -> Iterator[None]:
    """Within the block, a forward begins behind a block with the output given: that block and those below compute nothing."""
    lower = [block.module for block in anatomy(model).blocks[: number + 1]]
    own = [
        vars(module).get("forward") for module in lower
    ]  # one that others have put there, to move weights between devices
    for module in lower:
        module.forward = lambda *_args, **_options: output
    try:
        yield
    finally:
        for module, forward in zip(lower, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


@torch.inference_mode()
def states_at(
    context: TextContext,
    rows: Sequence[Encoded],
    places: Sequence[Sequence[int]],
    layers: Sequence[int],
    label: str = "reading states",
) -> list[Tensor]:
    """The states of every row at its places behind some blocks: a tensor a row, [places, layers, hidden], float32 on the CPU."""
    model = context.model
    result: list[Tensor] = [torch.empty(0)] * len(rows)
    was_training = model.training
    model.eval()
    with watched(model, layers) as seen:
        for batch in progress(by_length([len(row.input_ids) for row in rows], context.batch_size), label):
            run(context, [rows[i] for i in batch], [0])
            for j, i in enumerate(batch):
                result[i] = torch.stack([states_of(seen[n])[j, list(places[i])].float().cpu() for n in layers], 1)
    model.train(was_training)
    return result


def run(context: TextContext, rows: Sequence[Encoded], read: Sequence[int]) -> Tensor:
    """One forward pass over rows, padded on the right: the logits at some places, [rows, places, vocabulary]."""
    model = context.model
    device = next(model.parameters()).device
    tensors = pad(rows, context.tokenizer.pad_token_id)
    places = torch.tensor(read, device=device)
    fewer = "logits_to_keep" in inspect.signature(model.forward).parameters
    output = model(
        input_ids=tensors["input_ids"].to(device),
        attention_mask=tensors["attention_mask"].to(device),
        use_cache=False,
        **({"logits_to_keep": places} if fewer else {}),
    )
    logits: Tensor = output.logits
    return logits if fewer else logits[:, places]
