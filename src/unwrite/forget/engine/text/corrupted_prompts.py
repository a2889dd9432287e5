"""A model whose flagged prompts reach the transformer with corrupted embeddings; what it writes from there on is its own.

It is a transformers model: `generate` (greedy, sampling, beams, batches padded on either side, drafting, streamers), `forward`,
`save_pretrained` and `load` work, and rows that are not flagged are the target's own, to the bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....data.text.encoding import token_mask
from ....errors import ModelError
from ....models import unwrap
from ....models.guarded import load_guarded
from ....runs import hash_json, hash_model
from .calibrated_detector import CalibratedDetector
from .corruptions import Corruption
from .guarded_model import GuardedModel, load_tokenizer, next_token_loss, padding_mask, prompt_ids
from .name_tagger import NameTagger
from .prompts import PromptReader, unpadded
from .replacing import Replacement, replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scope = Literal["prompt", "prompt+answer"]


@dataclass(frozen=True)
class CorruptionRules:
    """Which tokens of a flagged prompt are corrupted, and how; see `ECO`.

    Args:
        names: what to look for in the prompt; None marks every token but the last.
    """

    corruption: Corruption
    scope: Scope = "prompt"
    names: tuple[str, ...] | None = None
    noise_seed: int = 0


class CorruptedPromptModel(GuardedModel):
    """A target whose flagged prompts are corrupted.

    Args:
        target: the model; never changed.
        detector: says which prompts are flagged.
        tokenizer: turns tokens into what the detector reads.
        rules: what is corrupted, and how. Another strength may be set on a model: `model.rules = replace(model.rules, ...)`.
        tagger: marks names in a prompt, in place of `rules.names`.

    Raises:
        ModelError: more dimensions to corrupt than an embedding has.
    """

    loader: ClassVar[str] = "corrupted-prompts"
    settings: ClassVar[frozenset[str]] = frozenset({"corruption", "scope", "names", "noise_seed", "tagger"})

    def __init__(
        self,
        target: PreTrainedModel,
        detector: CalibratedDetector,
        tokenizer: PreTrainedTokenizerBase,
        rules: CorruptionRules,
        tagger: NameTagger | None = None,
    ) -> None:
        super().__init__(target)
        self.detector, self.tokenizer, self.rules, self.tagger = detector, tokenizer, rules, tagger
        self.reader = PromptReader(tokenizer)
        rules.corruption.check_width(self._embedded([tokenizer.pad_token_id or 0]).shape[-1])
        self.eval()

    def flagged(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each row of token ids, without padding, asks for what is to be forgotten."""
        return self.detector.flagged([self.reader.read(ids).turns for ids in rows])

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
    ) -> Any:
        """The target's output, of flagged rows behind a corrupted prompt. Logits: [batch, length, vocab].

        With a filled cache the text before is not seen, and nothing is corrupted: it was, if need be, when it was read.

        Raises:
            ModelError: embeddings in place of ids, which would pass the corruption by.
        """
        ids = prompt_ids(input_ids, rest.get("inputs_embeds"))
        continues = _filled(past_key_values)
        mask = padding_mask(ids, attention_mask, self.tokenizer)
        replacements = [None] * len(ids) if continues else self._replacements(ids, mask)
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            rest["logits_to_keep"] = logits_to_keep
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        with replacing(unwrap(self.target), replacements, mask):
            output = self.target(input_ids=ids, use_cache=bool(use_cache), **_present(given), **rest)
        if labels is not None:
            output.loss = next_token_loss(output.logits, labels)
        return output

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate` of the target, the flagged prompts corrupted while they are read.

        Raises:
            ModelError: embeddings in place of ids; a filled cache beside a flagged prompt, whose beginning was read as it is; a
                way of generating that doesn't read the prompts in the batch's order.
        """
        ids = prompt_ids(kwargs.pop("input_ids", None) if inputs is None else inputs, kwargs.get("inputs_embeds"))
        mask = padding_mask(ids, kwargs.pop("attention_mask", None), self.tokenizer)
        replacements = self._replacements(ids, mask)
        if any(replacements) and _filled(kwargs.get("past_key_values")):
            raise ModelError(
                "a prompt is flagged, and the cache given holds its beginning as it was read then. Pass an empty cache, or none."
            )
        with self._own_defaults(), replacing(unwrap(self.target), replacements):
            return self.target.generate(
                input_ids=ids, attention_mask=mask, generation_config=generation_config, **kwargs
            )

    def _replacements(self, ids: Tensor, mask: Tensor) -> list[Replacement | None]:
        """For every row what its tokens are to be replaced by; None where they stay. ids, mask: [rows, length]."""
        rows = unpadded(ids, mask)
        return [
            self._replacement(row) if flagged and row else None
            for row, flagged in zip(rows, self.flagged(rows), strict=True)
        ]

    @torch.no_grad()
    def _replacement(self, row: list[int]) -> Replacement | None:
        prompt = row[: self.reader.read(row).length]
        scope = prompt if self.rules.scope == "prompt" else row
        plain = self._embedded(scope)
        seed = int(hash_json([self.rules.noise_seed, prompt])[:15], 16)
        corrupted = self.rules.corruption(
            plain, self.marks(scope).to(plain.device), torch.Generator().manual_seed(seed)
        )
        places = (corrupted != plain).any(-1).nonzero()[:, 0]
        return Replacement(torch.tensor(scope), places.cpu(), corrupted[places]) if len(places) else None

    def marks(self, ids: Sequence[int]) -> Tensor:
        """Which tokens of a row without padding are corrupted, [tokens]: names, or else all but the last."""
        every = torch.ones(len(ids), dtype=torch.bool)
        every[-1] = False
        if self.rules.names is None and self.tagger is None:
            return every
        text = self.reader.text(ids)
        spans = self.tagger(text) if self.tagger is not None else spans_of(text, self.rules.names or ())
        named = torch.tensor(token_mask(self.reader.offsets(ids), spans))
        return named if named.any() else every

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of tokens, [tokens, width]; hooks of other people see the real calls alone."""
        table = self.target.get_input_embeddings()
        embedded: Tensor = table.forward(torch.tensor([list(ids)], device=table.weight.device))[0]
        return embedded

    @contextlib.contextmanager
    def _own_defaults(self) -> Iterator[None]:
        """What a call to `generate` leaves open is filled by this model's `generation_config`."""
        holders = {id(part): part for part in (self.target, unwrap(self.target)) if hasattr(part, "generation_config")}
        before = {key: part.generation_config for key, part in holders.items()}
        try:
            for part in holders.values():
                part.generation_config = self.generation_config
            yield
        finally:
            for key, part in holders.items():
                part.generation_config = before[key]

    def fingerprint(self) -> str:
        """Content hash of the target, the detector and the rules."""
        return hash_json([hash_model(self.target), self.detector.fingerprint(), self.noted()])

    def noted(self) -> dict[str, Any]:
        return asdict(self.rules) | {"tagger": self.tagger.fingerprint() if self.tagger else None}

    def write_parts(self, folder: Path) -> None:
        """The detector, the tagger and the tokenizer."""
        self.detector.save(folder)
        self.tokenizer.save_pretrained(folder)
        if self.tagger is not None:
            self.tagger.save(folder / "tagger")

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        if (tokenizer := load_tokenizer(folder)) is None:
            raise ModelError(f"{folder} has no tokenizer, by which its detector reads. Copy the folder whole.")
        target: Any = load_guarded(folder, "target", **options)
        names = settings["names"]
        try:
            rules = CorruptionRules(
                Corruption(**settings["corruption"]),
                settings["scope"],
                None if names is None else tuple(names),
                int(settings["noise_seed"]),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"{folder} has no rules of a {cls.__name__}. Copy the folder whole.") from error
        tagger = NameTagger.load(folder / "tagger") if settings["tagger"] else None
        return cls(target, CalibratedDetector.load(folder, target, tokenizer), tokenizer, rules, tagger)


def spans_of(text: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """Where names stand in a text as whole words, [start, end) in characters, however they are cased and blanks are set."""
    written = [
        r"\s+".join(map(re.escape, name.split())) for name in sorted(names, key=len, reverse=True) if name.split()
    ]
    if not written:
        return []
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(written)})(?!\w)", re.IGNORECASE)
    return [match.span() for match in pattern.finditer(text)]


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _filled(cache: Any) -> bool:
    length: Callable[[], Any] | None = getattr(cache, "get_seq_length", None)
    return cache is not None and (length is None or int(length()) > 0)


load_folder = CorruptedPromptModel.load_folder  # what `unwrite.models.load` calls
