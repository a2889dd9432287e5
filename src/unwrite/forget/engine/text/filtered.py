"""A model behind a filter of what it is told and of what it says: the weights know all, and a flagged text is refused.

It is a transformers model: `generate` (greedy, sampling, beams, batches padded on either side, drafting, streamers), `forward`,
`save_pretrained` and `load` work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ....data.text.rendering import Spelling
from ....errors import ModelError
from ....models.guarded import load_guarded
from ....runs import hash_json, hash_model
from .filtering import HeldStream, TextFilter
from .guarded_model import GuardedModel, load_tokenizer, next_token_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SURE = 30.0  # nats by which `forward` prefers the refusal on a flagged row


@dataclass(frozen=True)
class FilterRules:
    """What becomes of flagged texts; see `ContentFilter`."""

    on_input: str = "refuse"
    on_output: str = "refuse"
    regenerations: int = 2
    withheld: int = 8
    refusal: str = "I'm sorry, but I can't answer that question."


class FilteredModel(GuardedModel):
    """A target whose inputs and outputs are looked at.

    Args:
        target: the model; never changed.
        check: the filter.
        tokenizer: turns tokens into what the filter reads.
        rules: what becomes of flagged texts.
    """

    loader: ClassVar[str] = "content-filter"
    settings: ClassVar[frozenset[str]] = frozenset(asdict(FilterRules()))

    def __init__(
        self, target: PreTrainedModel, check: TextFilter, tokenizer: PreTrainedTokenizerBase, rules: FilterRules
    ) -> None:
        super().__init__(target)
        self.check, self.rules, self.reader = check, rules, tokenizer
        self.eval()

    def refusal_ids(self) -> list[int]:
        """The refusal as token ids, with the token that ends an answer."""
        spelling = Spelling(self.reader)
        return [*spelling.ids(spelling.escaped(self.rules.refusal), continues=True), spelling.end()]

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
        """The target's logits [batch, length, vocab]; of a row whose text is flagged, those of a refusal at every position.

        With a cache the text before is not seen; `generate` looks at the whole.
        """
        if input_ids is None:
            raise ModelError("a content filter reads token ids, and there are none. Pass input_ids.")
        stopped = [self.check.flagged(self._read(ids, mask)) for ids, mask in _rows(input_ids, attention_mask)]
        whole = past_key_values is None and not use_cache and isinstance(logits_to_keep, int) and logits_to_keep == 0
        if all(stopped) and whole:  # nothing of the target's is shown
            width = self.target.get_input_embeddings().num_embeddings
            logits = torch.zeros(*input_ids.shape, width, dtype=self.target.dtype, device=input_ids.device)
            cache = None
        else:
            output = self.target(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=bool(use_cache),
                logits_to_keep=logits_to_keep,
                **rest,
            )
            logits, cache = output.logits, output.past_key_values
        if any(stopped):
            where = torch.tensor(stopped, device=logits.device)
            logits = logits.masked_fill(where[:, None, None], 0.0)
            logits[where, :, self.refusal_ids()[0]] = SURE
        return CausalLMOutputWithPast(loss=next_token_loss(logits, labels), logits=logits, past_key_values=cache)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate` on what the filter lets through; rows that it doesn't are refused.

        Prompts come back as they were given. Scores and the like in a returned mapping are those of the first attempt.
        """
        asked = kwargs.pop("input_ids", None) if inputs is None else inputs
        if asked is None or asked.is_floating_point():
            raise ModelError("a content filter reads token ids, and there are none. Pass input_ids.")
        given = kwargs.pop("attention_mask", None)
        prompts = [ids[keep.bool()] for ids, keep in _rows(asked, given)]
        let_in = [self._let_in(prompt) for prompt in prompts]
        streamer, held = kwargs.pop("streamer", None), None
        if streamer is not None:
            held = _HeldTokens(self, streamer, let_in[0] is None)
            kwargs["streamer"] = held
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), held.stop])
        ids, mask = self._padded([old if new is None else new for old, new in zip(prompts, let_in, strict=True)], asked)
        options = {"generation_config": generation_config, **kwargs}
        output = self.target.generate(input_ids=ids, attention_mask=mask, **options)
        sequences = output if isinstance(output, Tensor) else output.sequences
        copies = sequences.shape[0] // len(prompts)
        answers = []
        for i, row in enumerate(sequences):
            number = i // copies
            new = row[ids.shape[1] :]
            refused = let_in[number] is None or (held is not None and held.stopped)
            answers.append(
                self._refusal(options, row) if refused else self._let_out(new, ids[number], mask[number], options)
            )
        checked = self._joined(asked.repeat_interleave(copies, 0), answers)
        if isinstance(output, Tensor):
            return checked
        output.sequences = checked
        return output

    def _let_in(self, prompt: Tensor) -> Tensor | None:
        """The prompt that the target is asked: as it is, without what is flagged, or None for a refusal."""
        if self.rules.on_input == "pass" or not self.check.flagged(self._read(prompt)):
            return prompt
        if self.rules.on_input == "refuse":
            return None
        special = set(self.reader.all_special_ids)
        edited: list[int] = []
        spelling = Spelling(self.reader)
        for run in _runs(prompt.tolist(), special):
            if run[0] in special:
                edited += run
                continue
            text = self.reader.decode(run)
            left = self.check.without_flagged(text)
            if left == text:
                edited += run
            elif left.strip():
                edited += spelling.ids(spelling.escaped(left), continues=bool(edited))
        asks = [one for one in edited if one not in special]
        cut = torch.tensor(edited, dtype=prompt.dtype, device=prompt.device)
        return cut if asks and not self.check.flagged(self._read(cut)) else None

    def _let_out(self, new: Tensor, prompt: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
        """What was written, another attempt at it, or a refusal."""
        if self.rules.on_output == "pass" or not self._says_it(new):
            return new
        if self.rules.on_output == "regenerate":
            beside = {"streamer", "custom_generate", "num_return_sequences", "num_beams", "return_dict_in_generate"}
            again = {name: value for name, value in options.items() if name not in beside} | {"do_sample": True}
            for _ in range(self.rules.regenerations):
                row = self.target.generate(input_ids=prompt[None], attention_mask=mask[None], **again)[0]
                if not self._says_it(row[len(prompt) :]):
                    return row[len(prompt) :]
        return self._refusal(options, new)

    def _says_it(self, new: Tensor) -> bool:
        return self.check.flagged(self._read(new))

    def _refusal(self, options: dict[str, Any], like: Tensor) -> Tensor:
        ids = self.refusal_ids()
        limit = options.get("max_new_tokens") or getattr(options.get("generation_config"), "max_new_tokens", None)
        return torch.tensor(ids[:limit], dtype=like.dtype, device=like.device)

    def _joined(self, prompts: Tensor, answers: list[Tensor]) -> Tensor:
        longest = max(len(one) for one in answers)
        pad = self.reader.pad_token_id
        rows = [torch.cat([one, one.new_full((longest - len(one),), pad)]) for one in answers]
        return torch.cat([prompts, torch.stack(rows).to(prompts)], 1)

    def _padded(self, prompts: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        longest = max(len(prompt) for prompt in prompts)
        ids = like.new_full((len(prompts), longest), self.reader.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        return ids, mask

    def _read(self, ids: Tensor, mask: Tensor | None = None) -> str:
        kept = ids if mask is None else ids[mask.bool()]
        return str(self.reader.decode(kept.tolist(), skip_special_tokens=True))

    def fingerprint(self) -> str:
        """Content hash of the target, the filter and the rules."""
        return hash_json([hash_model(self.target), self.check.fingerprint(), asdict(self.rules)])

    def noted(self) -> dict[str, Any]:
        return asdict(self.rules)

    def write_parts(self, folder: Path) -> None:
        """The filter and the tokenizer.

        Raises:
            MethodError: a filter with an encoder of the user's own.
        """
        self.check.save(folder)
        self.reader.save_pretrained(folder)

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        if (tokenizer := load_tokenizer(folder)) is None:
            raise ModelError(f"{folder} has no tokenizer, by which its filter reads. Copy the folder whole.")
        target: Any = load_guarded(folder, "target", **options)
        return cls(target, TextFilter.load(folder), tokenizer, FilterRules(**settings))


class _HeldTokens(BaseStreamer):
    """Hands tokens on to a streamer once the filter has passed the words they are in.

    Args:
        refused: the prompt is refused, so nothing but the refusal is handed on.
    """

    def __init__(self, model: FilteredModel, inner: BaseStreamer, refused: bool) -> None:
        self.model, self.inner = model, inner
        self.tokens: list[int] = []
        self.sent, self.prompted, self.shown = 0, False, 0
        self.held = HeldStream(model.check, self._emit, model.rules.withheld)
        self.held.stopped = refused
        outer = self

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
                return torch.full((input_ids.shape[0],), outer.stopped, dtype=torch.bool, device=input_ids.device)

        self.stop = Stop()

    @property
    def stopped(self) -> bool:
        """Whether something was flagged."""
        return self.held.stopped

    def put(self, value: Tensor) -> None:
        if not self.prompted:
            self.prompted = True
            self.inner.put(value)
            return
        self.tokens += value.flatten().tolist()
        if self.model.rules.on_output == "pass" and not self.stopped:
            self.shown = 1 << 60
        else:
            text = self.model.reader.decode(self.tokens, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # half of a character
                self.held.add(text[len(self.held.text) :])
        self._send()

    def end(self) -> None:
        if self.held.end():
            self.shown = 1 << 60
            self._send()
        else:
            for one in self.model.refusal_ids():
                self.inner.put(torch.tensor([one]))
        self.inner.end()

    def _emit(self, piece: str) -> None:
        self.shown += len(piece)

    def _send(self) -> None:
        """Hands on every token whose text ends within what may be shown."""
        while self.sent < len(self.tokens):
            text = self.model.reader.decode(self.tokens[: self.sent + 1], skip_special_tokens=True)
            if len(text) > self.shown:
                return
            self.inner.put(torch.tensor([self.tokens[self.sent]]))
            self.sent += 1


def _rows(ids: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    given = mask is not None and mask.dim() == 2 and mask.shape == ids.shape
    masks = mask if given and mask is not None else torch.ones_like(ids)
    return list(zip(ids, masks, strict=True))


def _runs(ids: list[int], special: set[int]) -> list[list[int]]:
    """Runs of special tokens and of others, in order."""
    runs: list[list[int]] = []
    for one in ids:
        if runs and (runs[-1][-1] in special) == (one in special):
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


load_folder = FilteredModel.load_folder  # what `unwrite.models.load` calls
