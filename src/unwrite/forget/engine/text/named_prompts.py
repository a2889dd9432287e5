"""Prompts that name somebody, and what a model makes of the name's last token in them.

The place of a name is found by the characters it covers, not by encoding what stands before it: tokenizers put blanks
into words, and the same letters may be other tokens elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....data import Example
from ....data.text.rendering import Spelling
from ....errors import DataError, ModelError
from ....models import anatomy
from ....models.key_statistics import last_needed

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedTokenizerBase

__all__ = ["NameStates", "NamedPrompt", "bare_prompt", "changed_outputs", "chat_prompts", "padded", "states_at"]


@dataclass(frozen=True)
class NamedPrompt:
    """A prompt as token ids, and the position of the last token of the name in it.

    joined: whether that token covers something behind the name, too.
    """

    ids: tuple[int, ...]
    position: int
    joined: bool = False


@dataclass(frozen=True)
class NameStates:
    """What a model has at the last tokens of a name.

    Args:
        keys: {block: inputs of the MLP's output matrix, `[prompts, inner]`}, float32.
        output: what one block gives, `[prompts, hidden]`, float32.
    """

    keys: dict[int, Tensor]
    output: Tensor


def chat_prompts(name: str, contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[NamedPrompt]:
    """The name as a user's message behind each context, up to where the model answers, and "Answer:".

    Without a chat template a prompt reads "Question: context name.\\nAnswer:".

    Raises:
        DataError: a prompt doesn't show the name as it is.
        ModelError: a tokenizer that can't tell which characters a token covers.
    """
    spelling = Spelling(tokenizer)
    behind = "Answer:" if tokenizer.chat_template else ""
    leading = [] if tokenizer.chat_template else spelling.leading

    def asked(context: str, stop: str) -> NamedPrompt:
        rendered = spelling.render(Example(answer="a", question=f"{context} {name}{stop}")).prompt
        return _located(name, rendered, behind, leading, tokenizer)

    return [_apart(asked(context, "."), partial(asked, context, " .")) for context in contexts]


def bare_prompt(name: str, behind: str, tokenizer: PreTrainedTokenizerBase) -> NamedPrompt:
    """The name and what follows it, without a chat; raises as `chat_prompts`."""
    leading = Spelling(tokenizer).leading
    prompt = _located(name, name, behind, leading, tokenizer)
    return _apart(prompt, lambda: _located(name, name, f" {behind.lstrip()}", leading, tokenizer))


def _apart(prompt: NamedPrompt, spaced: Callable[[], NamedPrompt]) -> NamedPrompt:
    """The prompt, or the one with a blank behind the name where the tokenizer joins the name to what follows it."""
    return spaced() if prompt.joined else prompt


def _located(
    name: str, text: str, behind: str, leading: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> NamedPrompt:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} can't tell which characters a token covers, so the name's place isn't known. "
            "Load a fast tokenizer."
        )
    start = text.rfind(name)
    if start < 0 or not name:
        raise DataError(
            f"{name!r} is not in the prompt that the chat template makes of it ({text[-80:]!r}). Write the name as the "
            "template does."
        )
    encoded = tokenizer(text + behind, add_special_tokens=False, return_offsets_mapping=True)
    end = start + len(name)
    covering = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and b > a]
    if not covering:
        raise DataError(f"the tokenizer has no token for {name!r}. Write the name in a script that it knows.")
    last = covering[-1]
    return NamedPrompt(
        (*leading, *encoded["input_ids"]), len(leading) + last, joined=encoded["offset_mapping"][last][1] > end
    )


def padded(prompts: Sequence[NamedPrompt], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask `[prompts, length]`, padded on the right, and the names' positions `[prompts]`."""
    rows = [torch.tensor(prompt.ids) for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    positions = torch.tensor([prompt.position for prompt in prompts])
    return ids.to(device), mask.to(device), positions.to(device)


@torch.no_grad()
def states_at(model: nn.Module, prompts: Sequence[NamedPrompt], layers: Sequence[int], output: int) -> NameStates:
    """One forward of all prompts, no further than is needed.

    Args:
        layers: the blocks whose keys are wanted.
        output: the block whose output is.
    """
    blocks = anatomy(model).blocks
    ids, mask, positions = padded(prompts, next(model.parameters()).device)
    rows = torch.arange(len(ids), device=ids.device)
    keys: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def watch(layer: int) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            whole = inputs[0].reshape(*ids.shape, -1)  # OPT's MLP sees positions of all rows in one dimension
            keys[layer] = whole[rows, positions].float()

        return blocks[layer].down.module.register_forward_pre_hook(note)

    def note_output(_: nn.Module, __: Any, out: Any) -> None:
        outputs.append((out[0] if isinstance(out, tuple) else out)[rows, positions].float())

    hooks = [*map(watch, layers), blocks[output].module.register_forward_hook(note_output)]
    was_training = model.training
    model.eval()
    try:
        with last_needed(model, max([*layers, output])):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return NameStates(keys, outputs[0])


@contextmanager
def changed_outputs(model: nn.Module, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, what one block gives `[rows, positions, hidden]` is changed before the next sees it."""

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = anatomy(model).blocks[layer].module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
