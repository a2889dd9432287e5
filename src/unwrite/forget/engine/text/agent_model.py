"""A model behind a chain of agents: what it writes is what the chain answers, and its own weights are unchanged.

`generate` reads the conversation from the token ids, asks the model inside for its answer to the prompt as it stands, and lets the other
agents look at that; rows of a batch go through the chain one by one. A way to decode, sampling and beams are those of every agent's call
of the model inside, so the text under a lossless strategy is the guard's own.

The chain has no likelihoods. `forward` gives the weights' own logits where a row names no subject, and a refusal's where one is named, so
that what reads logits finds neither a subject's text nor a model that fails; it says so in a notice. Judge it by what it writes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from ....data.text.rendering import Spelling
from ....errors import MethodError, ModelError, notice, setting
from ....models.guarded import load_guarded
from ....runs import hash_json, hash_model
from ..checks import require
from .agents.chat import Chat, LocalChat, Message
from .agents.endpoint import EndpointChat, check_endpoint, need_allowed
from .agents.pipeline import AGENTS, AgentAnswer, AgentChain, ChainRules, need_whole
from .agents.subjects import Subjects
from .agents.wording import Prompts
from .filtered import FilteredModel
from .guarded_model import load_tokenizer, padding_mask
from .prompts import PromptReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DETECTION_TOKENS = 128
# What a caller says of the answer alone; the agents in between write what they have to.
_OF_THE_ANSWER = frozenset(
    {"max_new_tokens", "max_length", "min_new_tokens", "min_length", "stopping_criteria", "logits_processor"}
    | {"stop_strings", "tokenizer", "prefix_allowed_tokens_fn", "num_return_sequences", "max_time"}
)
# What a chain can't give or be given.
_REFUSED = (
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "inputs_embeds",
    "past_key_values",
)


@dataclass(frozen=True)
class AgentSettings(ChainRules):
    """All that `unwrite.json` holds of a model behind agents, but for its prompts; see `ALU`."""

    subjects: tuple[str, ...] = ()
    agent_tokens: int = 1024
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_agents: tuple[str, ...] = ()
    endpoint_timeout: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_whole("agent_tokens", self.agent_tokens, 1)
        require("endpoint_timeout", self.endpoint_timeout, above=0)
        if not isinstance(self.endpoint_agents, tuple) or {*self.endpoint_agents} - {*AGENTS}:
            raise MethodError(
                f"{setting('endpoint_agents')} is {self.endpoint_agents!r}; name some of {', '.join(AGENTS)}."
            )
        if self.endpoint is not None:
            check_endpoint(self.endpoint)
            if not self.endpoint_model:
                raise MethodError(
                    f"{setting('endpoint_model')} is missing, by which {self.endpoint} knows the model. Give its name there."
                )


class AgentModel(FilteredModel):
    """A target around which four agents stand.

    Args:
        target: the model, which answers first; never changed. It is every agent that has no other.
        tokenizer: its tokenizer.
        settings: subjects and rules.
        prompts: the agents' prompts; those that ship unless given.
        agents: functions from messages to a reply in place of an agent of the chain. They can't be stored.
    """

    loader: ClassVar[str] = "alu"
    settings: ClassVar[frozenset[str]] = frozenset({*asdict(AgentSettings()), "prompts"})

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AgentSettings,
        prompts: Prompts | None = None,
        agents: Mapping[str, Chat] | None = None,
    ) -> None:
        subjects: Any = Subjects(settings.subjects)
        rules: Any = settings
        super().__init__(target, subjects, tokenizer, rules)
        self.chosen, self.prompts, self.agents = settings, prompts or Prompts(), dict(agents or {})
        self.prompt_reader = PromptReader(tokenizer)
        self.answers: list[AgentAnswer] = []  # of the last call of `generate`, a row each
        self._said = False
        self._own = uuid4().hex if agents else ""  # nothing says what a function of the user's does
        if settings.endpoint is not None:
            self.agents = {**dict.fromkeys(settings.endpoint_agents, self._remote()), **self.agents}

    def _remote(self) -> EndpointChat:
        chosen = self.chosen
        assert chosen.endpoint is not None
        return EndpointChat(
            chosen.endpoint,
            chosen.endpoint_model or "",
            max_tokens=chosen.agent_tokens,
            timeout=chosen.endpoint_timeout,
            retries=chosen.retries,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **rest: Any,
    ) -> CausalLMOutputWithPast:
        """The weights' logits [batch, length, vocab] of rows that name no subject; of others, a refusal's at every position.

        These are no likelihoods of what `generate` writes, for the chain has none.
        """
        if input_ids is None:
            raise ModelError("agents read a text, and there are no token ids. Pass input_ids.")
        if not self._said:
            self._said = True
            notice(
                "a chain of agents has no likelihoods: figures made of logits are those of the unchanged weights, and of a refusal "
                "where a row names a subject. Judge it by what it writes."
            )
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            labels,
            logits_to_keep,
            **rest,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """What the chain answers to each prompt; prompts come back as they were given.

        Args:
            kwargs: as transformers' `generate`. Limits, processors and stopping criteria hold for the vanilla answer and the composed
                one; a strategy (`custom_generate`) and sampling for every call of the model inside. A streamer gets the answer once
                it is whole: before the composer there is none.

        Raises:
            ModelError: no token ids, or something that a chain has not, such as scores or a cache.
        """
        asked = kwargs.pop("input_ids", None) if inputs is None else inputs
        if asked is None or asked.is_floating_point():
            raise ModelError("agents read a text, and there are no token ids. Pass input_ids.")
        given, streamer = kwargs.pop("attention_mask", None), kwargs.pop("streamer", None)
        as_output = kwargs.pop("return_dict_in_generate", None)
        if generation_config is not None:
            as_output = generation_config.return_dict_in_generate if as_output is None else as_output
            generation_config = copy.deepcopy(generation_config)
            generation_config.return_dict_in_generate = False
        for name in _REFUSED:
            value = kwargs.pop(name, None)
            if value is not None and value is not False:
                raise ModelError(f"{name} has no meaning for a chain of agents, whose answers are texts. Leave it out.")
        kwargs.pop("position_ids", None)  # rows are asked without their padding
        copies = (
            kwargs.pop("num_return_sequences", None) or getattr(generation_config, "num_return_sequences", None) or 1
        )
        if generation_config is not None:
            generation_config.num_return_sequences = 1
        prompts = [ids[keep.bool()] for ids, keep in zip(asked, padding_mask(asked, given, self.reader), strict=True)]
        options = {"generation_config": generation_config, **kwargs}
        self.answers, rows = [], []
        for prompt in prompts:
            rows += [self._answered(prompt, options) for _ in range(copies)]
        sequences = self._joined(asked.repeat_interleave(copies, 0), rows)
        if streamer is not None:
            streamer.put(asked.cpu())
            for token in rows[0]:
                streamer.put(token[None].cpu())
            streamer.end()
        return GenerateDecoderOnlyOutput(sequences=sequences) if as_output else sequences

    def _answered(self, prompt: Tensor, options: dict[str, Any]) -> Tensor:
        """The tokens of one row's answer."""
        limit = self._limit(prompt, options)
        written: dict[str, Tensor] = {}

        def vanilla(_: list[Message]) -> str:
            row = self.target.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), **options)[
                0
            ]
            text = str(self.reader.decode(row[len(prompt) :], skip_special_tokens=True))
            written[text] = row[len(prompt) :]
            return text

        messages = [{"role": role, "content": text} for role, text in self.prompt_reader.messages(prompt.tolist())]
        answer = self._chain(vanilla, options, limit)(messages)
        self.answers.append(answer)
        if answer.verbatim and answer.text in written:
            return written[answer.text]
        spelling = Spelling(self.reader)
        ids = [*spelling.ids(spelling.escaped(answer.text), continues=True), spelling.end()]
        return torch.tensor(ids[:limit], dtype=prompt.dtype, device=prompt.device)

    def _chain(self, vanilla: Chat, options: dict[str, Any], limit: int | None) -> AgentChain:
        config = options.get("generation_config")
        if config is not None:
            config = copy.deepcopy(config)
            config.max_length = config.min_new_tokens = config.stop_strings = None
            config.min_length = 0
        shared = {name: value for name, value in options.items() if name not in _OF_THE_ANSWER}
        shared = {**shared, "generation_config": config}
        longest = self.chosen.agent_tokens

        def local(tokens: int) -> LocalChat:
            return LocalChat(self.target, self.reader, tokens, shared)

        chats: dict[str, Chat] = {
            "vanilla": vanilla,
            "detect": local(min(DETECTION_TOKENS, longest)),
            "erase": local(longest),
            "critic": local(longest),
            "composer": local(limit or longest),
        }
        subjects: Any = self.check
        return AgentChain({**chats, **self.agents}, subjects, self.chosen, self.prompts)

    def _limit(self, prompt: Tensor, options: dict[str, Any]) -> int | None:
        """New tokens that the caller lets an answer have; None where it is left open."""
        config = options.get("generation_config")
        for name, before in (("max_new_tokens", 0), ("max_length", len(prompt))):
            value = options.get(name) or getattr(config, name, None)
            if value is not None:
                return max(1, int(value) - before)
        return None

    def chain(self) -> AgentChain:
        """The same agents for texts, where there are no token ids: `model.chain()("Who ...?")`."""
        vanilla = LocalChat(self.target, self.reader, self.chosen.agent_tokens)
        return self._chain(vanilla, {}, None)

    def fingerprint(self) -> str:
        """Content hash of the target, the settings and the prompts."""
        return hash_json([hash_model(self.target), asdict(self.chosen), self.prompts.texts, self._own])

    def noted(self) -> dict[str, Any]:
        return asdict(self.chosen) | {"prompts": self.prompts.texts}

    def write_parts(self, folder: Path) -> None:
        """The tokenizer.

        Raises:
            MethodError: an agent is a function of the user's own.
        """
        remote = (*self.chosen.endpoint_agents,) if self.chosen.endpoint is not None else ()
        if own := sorted(name for name in self.agents if name not in remote):
            raise MethodError(
                f"the agent {own[0]!r} is a function of your own, which can't be stored. Save without it."
            )
        self.reader.save_pretrained(folder)

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        if (tokenizer := load_tokenizer(folder)) is None:
            raise ModelError(f"{folder} has no tokenizer, by which its agents read. Copy the folder whole.")
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        texts = own.pop("prompts")
        try:
            chosen, prompts = AgentSettings(**own), Prompts(texts)
            if chosen.endpoint is not None:
                check_endpoint(chosen.endpoint)
                need_allowed(chosen.endpoint)
            target: Any = load_guarded(folder, "target", **options)
            return cls(target, tokenizer, chosen, prompts)
        except (MethodError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder} has no settings of a model behind agents: {error}") from error


load_folder = AgentModel.load_folder  # what `unwrite.models.load` calls
