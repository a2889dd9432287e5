"""A model that abstains where the key of a query, or of what it writes, lies in the box of a skill.

A row is flagged where the key of its prompt's last token, or of a token written with another one after it, is in the box: the
tokens behind which the model was asked for more. That is a statement about the finished text alone, so it holds however the text
came about. Greedy decoding and sampling are watched while they run and end for a row that is flagged; texts of beams and of
drafting, in whose forwards the tokens that are kept can't be told from others, are looked at once they are written. Either way
the whole text becomes a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import GenerationMode
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from ....errors import ModelError
from ....models.guarded import load_guarded
from ....models.key_statistics import last_needed
from ....runs import hash_json, hash_model
from .activation_statistics import changing, mlp_sites
from .guarded_model import GuardedModel, next_token_loss
from .key_box import KeyBox

__all__ = ["AbstainRules", "KeyGuardedModel"]

SURE = 30.0  # nats by which `forward` prefers the refusal on a flagged row
PLAIN = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
SHOWN = ("sequences", "stats")  # of a returned mapping, what says nothing of the text that was refused


@dataclass(frozen=True)
class AbstainRules:
    """What becomes of flagged rows.

    Args:
        refusal: token ids of what is said instead, the end included.
        steers: put another key in the place of one in the box, and refuse nothing.
        marker: token ids that stand right before every answer, by which `forward` knows where it begins; empty where there
            are none.
        bos: a token whose key means nothing at a text's beginning, None where there is none.
    """

    refusal: tuple[int, ...]
    steers: bool = False
    marker: tuple[int, ...] = ()
    bos: int | None = None


class KeyGuardedModel(GuardedModel):
    """A target whose keys are looked at.

    Args:
        target: the model; never changed: the hook is there during a call only.
        box: where the keys of the skill are.
        rules: what becomes of flagged rows.

    Raises:
        ModelError: a box of another model's width or depth.
    """

    loader: ClassVar[str] = "key-space"
    settings: ClassVar[frozenset[str]] = frozenset(
        {one.name for one in fields(AbstainRules)} | {"layer", "k", "alpha", "true_rate", "false_rate"}
    )

    def __init__(self, target: PreTrainedModel, box: KeyBox, rules: AbstainRules) -> None:
        super().__init__(target)
        sites = mlp_sites(target)
        if not 0 <= box.layer < len(sites) or sites[box.layer].width != len(box.mean):
            raise ModelError(
                f"a box of {len(box.mean)} dimensions at block {box.layer} is not of this {type(target).__name__}. Probe this "
                "model for it."
            )
        self.box, self.rules, self._site = box, rules, sites[box.layer]
        self.eval()

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
        """The target's logits [batch, length, vocab]; of a flagged row, those of a refusal at every position.

        The prompt ends before the first label, or else behind the last `marker`; where there is neither, every token counts as
        written. With a cache the text before is not seen: there, each position whose own key is in the box is refused.
        """
        if input_ids is None:
            raise ModelError("a guard of keys reads token ids, and there are none. Pass input_ids.")
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": bool(use_cache),
            "logits_to_keep": logits_to_keep,
        }
        with self._looking(input_ids) as seen:
            output = self.target(**given, **rest)
        logits = output.logits
        if not self.rules.steers:
            where = seen[-1]
            if past_key_values is None and not use_cache:
                where = (
                    (where & self._counted(input_ids, attention_mask, labels)).any(-1, keepdim=True).expand_as(where)
                )
            kept = where[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else where[:, logits_to_keep]
            logits = logits.masked_fill(kept[..., None], 0.0)
            logits[..., self.rules.refusal[0]] += kept * SURE
        loss = next_token_loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)

    @contextmanager
    def _looking(self, ids: Tensor) -> Iterator[list[Tensor]]:
        """Yields what is inside at every position of each forward on these ids, [batch, length]; steers where it should."""
        seen: list[Tensor] = []

        def look(_: int, keys: Tensor) -> Tensor | None:
            inside = self.box.inside(keys)
            seen.append(inside.reshape(ids.shape))
            if not self.rules.steers or self.box.steer is None:
                return None
            return torch.where(inside[..., None], self.box.steer.to(keys), keys)

        with changing(self.target, [self._site], "key", look):
            yield seen

    def _counted(self, ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> Tensor:
        """[batch, length]: the tokens of whole texts that count as the prompt's last or as written."""
        real = torch.ones_like(ids) if mask is None or mask.dim() != 2 else mask.to(ids)
        place = real.cumsum(-1) * real  # 1 for the first token
        columns = torch.arange(ids.shape[1], device=ids.device)
        if labels is not None:
            start = (labels != -100).int().argmax(-1) - 1
        else:
            start = self._last_marker(ids)
        bos = -1 if self.rules.bos is None else self.rules.bos
        first = (place == 1) & (ids == bos) & (real.sum(-1, keepdim=True) > 1)
        return real.bool() & ~first & (columns >= start[:, None])

    def _last_marker(self, ids: Tensor) -> Tensor:
        """[batch]: the column at which the last marker ends, 0 where there is none."""
        size = len(self.rules.marker)
        if not 0 < size <= ids.shape[1]:
            return torch.zeros_like(ids[:, 0])
        there = (ids.unfold(1, size, 1) == torch.tensor(self.rules.marker).to(ids)).all(-1)
        ends = torch.arange(size - 1, ids.shape[1], device=ids.device)
        return (there * ends).amax(-1)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate` on the target; flagged rows become a refusal, behind their prompts.

        A streamer gets the prompt at once and the text once it is whole: the last token may still turn it into a refusal, and
        what was shown can't be taken back. Of a mapping, scores, states and caches are left out where a row is refused.

        Raises:
            ModelError: no token ids; padding on the right; a streamer for several texts.
        """
        if self.rules.steers:
            return super().generate(inputs, generation_config, **kwargs)
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None or ids.is_floating_point():
            raise ModelError("a guard of keys reads token ids, and there are none. Pass input_ids.")
        before, self.target.generation_config = self.target.generation_config, self.generation_config
        try:
            return self._generate(ids, generation_config, kwargs)
        finally:
            self.target.generation_config = before

    def _generate(self, ids: Tensor, generation_config: Any, kwargs: dict[str, Any]) -> Any:
        config, _ = self.target._prepare_generation_config(generation_config, **kwargs)
        mask = _mask_of(ids, kwargs.pop("attention_mask", None), config)
        streamer = _take_streamer(kwargs, len(ids) * (config.num_return_sequences or 1))
        if streamer is not None:
            streamer.put(ids.cpu())
        plain = config.get_generation_mode(kwargs.get("assistant_model")) in PLAIN and not kwargs.get("custom_generate")
        options = {"generation_config": generation_config, "attention_mask": mask, **kwargs}
        look = self._watched if plain and not config.cache_implementation else self._looked_at
        output, written = look(ids, options, config)
        sequences = output if isinstance(output, Tensor) else output.sequences
        refused = [flag for _, flag in written]
        givers = (
            kwargs.get("max_length"),
            getattr(generation_config, "max_length", None),
            self.generation_config.max_length,
        )
        length = next(filter(None, givers), None)  # where nobody gives one, `generate` counts from the prompt's end
        room = config.max_new_tokens or (max(1, length - ids.shape[1]) if length else None)
        refusal = torch.tensor(self.rules.refusal[:room]).to(ids)
        answers = [
            refusal if flag else row[ids.shape[1] :][:end] for row, (end, flag) in zip(sequences, written, strict=True)
        ]
        checked = _joined(sequences[:, : ids.shape[1]], answers, config)
        if streamer is not None:
            for token in answers[0].cpu():
                streamer.put(token[None])
            streamer.end()
        if isinstance(output, Tensor):
            return checked
        output.sequences = checked
        for name in [name for name in output if name not in SHOWN] if any(refused) else ():
            output[name] = None
        return output

    def _watched(self, ids: Tensor, options: dict[str, Any], config: Any) -> tuple[Any, list[tuple[int, bool]]]:
        """What `generate` gives, watched token by token; and for every row where its text ends and whether it is flagged."""
        watch = _Watch(self.box, len(ids) * (config.num_return_sequences or 1), ids.device)
        criteria = StoppingCriteriaList([*(options.pop("stopping_criteria", None) or ()), watch])
        with changing(self.target, [self._site], "key", watch.see):
            output = self.target.generate(input_ids=ids, stopping_criteria=criteria, **options)
        sequences = output if isinstance(output, Tensor) else output.sequences
        written = []
        for row, first in zip(sequences, watch.first.tolist(), strict=True):
            end, asked = _written(row[ids.shape[1] :], config)
            written.append((end, 0 <= first < asked))
        return output, written

    def _looked_at(self, ids: Tensor, options: dict[str, Any], config: Any) -> tuple[Any, list[tuple[int, bool]]]:
        """The same, looked at when it is whole. Where every prompt is flagged, nothing is written at all."""
        mask, copies = options["attention_mask"], config.num_return_sequences or 1
        if bool(self._inside(ids, mask)[:, -1].all()):
            repeated = ids.repeat_interleave(copies, 0)
            output = GenerateDecoderOnlyOutput(sequences=repeated) if config.return_dict_in_generate else repeated
            return output, [(0, True)] * len(repeated)
        output = self.target.generate(input_ids=ids, **options)
        sequences, width = output if isinstance(output, Tensor) else output.sequences, ids.shape[1]
        ends = [_written(row[width:], config) for row in sequences]
        columns = torch.arange(sequences.shape[1], device=ids.device)
        asked = torch.tensor([count for _, count in ends], device=ids.device)[:, None]
        whole = torch.cat([mask.repeat_interleave(copies, 0), (columns[width:] - width < asked).to(mask)], 1)
        counted = (columns >= width - 1) & (columns < width - 1 + asked)
        flags = (self._inside(sequences, whole) & counted).any(-1).tolist()
        return output, [(end, flag) for (end, _), flag in zip(ends, flags, strict=True)]

    def _inside(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[batch, length]: which tokens' keys are in the box, padding on the left."""
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._looking(ids) as seen, last_needed(self.target, self.box.layer):
            self.target(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        return seen[-1]

    def fingerprint(self) -> str:
        """Content hash of the target, the box and the rules."""
        return hash_json([hash_model(self.target), self.box.fingerprint(), asdict(self.rules)])

    def noted(self) -> dict[str, Any]:
        return asdict(self.rules) | self.box.noted()

    def write_parts(self, folder: Path) -> None:
        """The box."""
        self.box.save(folder)

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        own = {one.name: settings[one.name] for one in fields(AbstainRules)}
        rules = AbstainRules(**own | {name: tuple(own[name]) for name in ("refusal", "marker")})
        box = KeyBox.load(folder, {name: settings[name] for name in settings.keys() - own.keys()}, rules.steers)
        target: Any = load_guarded(folder, "target", **options)
        return cls(target, box, rules)


class _Watch(StoppingCriteria):
    """Ends the rows whose last key was in the box.

    Attributes:
        first: [rows] the step at which a row was flagged first, 0 for its prompt, -1 for none.
    """

    def __init__(self, box: KeyBox, rows: int, device: torch.device) -> None:
        self.box, self.rows, self.step = box, rows, 0
        self.first = torch.full((rows,), -1, device=device)
        self.now = torch.zeros(rows, dtype=torch.bool, device=device)

    def see(self, _: int, keys: Tensor) -> None:
        """The keys of one forward; a prompt may take several, of which the last one counts."""
        self.now = self.box.inside(keys.reshape(self.rows, -1, keys.shape[-1])[:, -1]).to(self.first.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
        self.first = torch.where(self.now & (self.first < 0), self.step, self.first)
        self.step += 1
        return self.first >= 0


def _mask_of(ids: Tensor, given: Tensor | None, config: Any) -> Tensor:
    """The mask given, or the one `generate` makes out: a pad token that ends nothing is padding."""
    if given is None:
        pad, ends = config.pad_token_id, _ends(config)
        given = torch.ones_like(ids) if pad is None or pad in ends else (ids != pad).long()
    if not bool(given[:, -1].all()):
        raise ModelError("a prompt ends in padding, whose key says nothing. Let the tokenizer pad on the left.")
    return given


def _take_streamer(kwargs: dict[str, Any], rows: int) -> Any:
    """The call's streamer, or the strategy's, which would show what may be refused; neither is left where it was."""
    streamer, strategy = kwargs.pop("streamer", None), kwargs.get("custom_generate")
    own = getattr(strategy, "streamer", None)
    if own is not None and is_dataclass(strategy) and not isinstance(strategy, type):
        kwargs["custom_generate"] = replace(strategy, streamer=None)
        streamer = own if streamer is None else streamer
    if streamer is not None and rows > 1:
        raise ModelError(f"a streamer shows one text, and there are {rows}. Leave it out, or ask one by one.")
    return streamer


def _ends(config: Any) -> set[int]:
    ends = config.eos_token_id
    if ends is None:
        return set()
    return {int(end) for end in torch.as_tensor(ends).flatten().tolist()}


def _written(new: Tensor, config: Any) -> tuple[int, int]:
    """How many tokens a row's text has, padding behind it left out, and of how many keys the model was asked for more.

    The first key is the prompt's last, so a text of n tokens has n; where an end can't be told from padding (a criterion of the
    caller's ended the row beside others), the last token's key counts as well.
    """
    ids, ends, pad = new.tolist(), _ends(config), config.pad_token_id
    for i, one in enumerate(ids):
        if one in ends:
            return i + 1, i + 1
    size = len(ids)
    while size and pad is not None and ids[size - 1] == pad:
        size -= 1
    return size, max(1, min(len(ids), size + 1))


def _joined(prompts: Tensor, answers: list[Tensor], config: Any) -> Tensor:
    longest = max(map(len, answers))
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(sorted(_ends(config))), 0)
    rows = [torch.cat([one, one.new_full((longest - len(one),), pad)]) for one in answers]
    return torch.cat([prompts, torch.stack(rows)], 1)


load_folder: Callable[..., Any] = KeyGuardedModel.load_folder  # what `unwrite.models.load` calls
