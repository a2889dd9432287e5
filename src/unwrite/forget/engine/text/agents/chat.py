"""What an agent is: a function from messages to a reply, here a local model's own greedy text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .....data.text.encoding import encode_prompt
from .....data.text.examples import Example
from .....errors import DataError
from .....scoring import end_ids, new_tokens_within

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Chat", "LocalChat", "Message"]

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Chat = Callable[[list[Message]], str]


class LocalChat:
    """A chat model of transformers, asked by its own template.

    Args:
        model, tokenizer: what answers.
        max_new_tokens: of a reply.
        options: of `generate`, such as sampling or a way to decode.

    Attributes:
        prompt_tokens: tokens of all prompts until now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 1024,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.options = dict(options or {})
        self.prompt_tokens = 0

    def __call__(self, messages: list[Message]) -> str:
        """The reply as text, without special tokens.

        Raises:
            DataError: a prompt that fills all of the model's positions.
        """
        prompt = prompt_of(messages, self.tokenizer)
        self.prompt_tokens += len(prompt)
        ids = torch.tensor([prompt], device=self.model.device)
        greedy = {} if self.options.get("generation_config") else {"do_sample": False}
        settings: dict[str, Any] = {
            **greedy,
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": end_ids(self.model, self.tokenizer),
            **self.options,
            "max_new_tokens": new_tokens_within(self.model, [prompt], self.max_new_tokens),
        }
        row: Tensor = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0]
        return str(self.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True))


def prompt_of(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation up to where the model answers; special tokens in what is said are spelt as text.

    Where a template takes no system message, it stands before the first user's.
    """
    try:
        return encode_prompt(_example(messages), tokenizer)
    except DataError:
        first, *rest = messages
        if first["role"] != "system" or not rest:
            raise
        joined = {"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}
        return encode_prompt(_example([joined, *rest[1:]]), tokenizer)


def _example(messages: Sequence[Message]) -> Example:
    *before, last = messages
    history = tuple((one["role"], one["content"]) for one in before)
    return Example(answer="a", question=last["content"], history=history)
