"""A model that answers through an adapter as strongly as its prompt is like what was to be forgotten, and else is the model itself.

    y = W0 x + w (alpha / r) B A x,   w = max over requests of the detector's weight for the prompt

The weight of a row is read off its prompt once, before the answer begins. It is a transformers model: `generate` (greedy, sampling, beams,
batches padded on either side, drafting, streamers), `forward`, `save_pretrained` and `load` work. (O3, arXiv 2407.10223)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import ModelError, UnwriteError, notice
from ....models.checkpoints import read_json
from ....models.guarded import load_guarded
from ....runs import hash_json, hash_model, hash_tensors, read_tensors, write_json
from .guarded_model import GuardedModel, load_tokenizer, next_token_loss, padding_mask, prompt_ids
from .masked_encoder import MaskedEncoder
from .novelty import LayerStates, NoveltyDetector
from .prompts import PromptReader, unpadded
from .row_adapter import RowAdapter
from .row_states import RowStates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AdaptedRowsModel", "DeletionRequest"]

FILE, SETTINGS = "requests.safetensors", "requests.json"


@dataclass(frozen=True)
class DeletionRequest:
    """What one deletion request left behind.

    Args:
        adapter: as it was trained for this request and, where one adapter goes on from request to request, for those before.
        detector: tells prompts like the request's.
        encode: gives the detector its states.
    """

    adapter: RowAdapter
    detector: NoveltyDetector
    encode: LayerStates

    def weights(self, texts: Sequence[str]) -> list[float]:
        """How strongly each text asks for this request's adapter."""
        return self.detector.weights(self.encode(texts))


class AdaptedRowsModel(GuardedModel):
    """A target with an adapter that each row of a batch gets at its own strength.

    Args:
        target: the model; never changed.
        tokenizer: turns tokens into what the detectors read.
        requests: in the order they came; none leaves the target as it is.
        fresh: every request has an adapter of its own, and all are added up; else the last one's is that of all.
    """

    loader: ClassVar[str] = "adapted-rows"
    settings: ClassVar[frozenset[str]] = frozenset({"fresh", "encoder"})

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[DeletionRequest] = (),
        *,
        fresh: bool = False,
    ) -> None:
        super().__init__(target)
        self.tokenizer, self.requests, self.fresh = tokenizer, tuple(requests), fresh
        self.reader = PromptReader(tokenizer)
        self.eval()

    @property
    def adapters(self) -> tuple[RowAdapter, ...]:
        """Those that are applied."""
        all_ = tuple(request.adapter for request in self.requests)
        return all_ if self.fresh else all_[-1:]

    def weights(self, prompts: Sequence[Sequence[str]]) -> list[float]:
        """How strongly each prompt's answer is adapted: the most of any request and turn, 0 for none.

        It fails closed: a prompt that a detector can't judge is adapted in full.

        Args:
            prompts: each as the turns of its users.
        """
        turns = [turn for prompt in prompts for turn in prompt]
        if not turns or not self.requests:
            return [0.0] * len(prompts)
        try:
            most = [max(of_turn) for of_turn in zip(*(one.weights(turns) for one in self.requests), strict=True)]
        except (UnwriteError, ValueError, RuntimeError, FloatingPointError) as error:
            notice(f"a detector failed ({error}), so what it can't judge is answered as a prompt to be forgotten.")
            return [1.0] * len(prompts)
        values, at = [], 0
        for prompt in prompts:
            values.append(max(most[at : at + len(prompt)], default=0.0))
            at += len(prompt)
        return values

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        """The target's output, each row's adapted by its prompt. Logits: [batch, length, vocab].

        Raises:
            ModelError: embeddings in place of ids; a cache that another model filled.
        """
        ids = prompt_ids(input_ids, rest.get("inputs_embeds"))
        weights = self._weights_of(ids, attention_mask, past_key_values)
        with self._adapted(weights):
            output = self.target(
                input_ids=ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=bool(use_cache),
                **rest,
            )
        if output.past_key_values is not None:
            output.past_key_values.row_weights = weights
        if labels is not None:
            output.loss = next_token_loss(output.logits, labels)
        return output

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate` of the target, each row adapted by its prompt from the first token to the last.

        Raises:
            ModelError: as `forward`.
        """
        ids = prompt_ids(kwargs.pop("input_ids", None) if inputs is None else inputs, kwargs.get("inputs_embeds"))
        mask = padding_mask(ids, kwargs.pop("attention_mask", None), self.tokenizer)
        weights = self._weights_of(ids, mask, kwargs.get("past_key_values"))
        config = self.generation_config if generation_config is None else generation_config
        options = {"generation_config": config, **kwargs}
        # a strategy of one's own may feed rows in another order
        if kwargs.get("custom_generate") is not None and len({*weights}) > 1:
            return self._one_by_one(ids, mask, weights, options)
        with self._adapted(weights):
            return self.target.generate(input_ids=ids, attention_mask=mask, **options)

    def _one_by_one(self, ids: Tensor, mask: Tensor, weights: Sequence[float], options: dict[str, Any]) -> Tensor:
        """Rows of one weight together, and joined again, padded behind."""
        if options.get("return_dict_in_generate") or options.get("streamer") is not None:
            raise ModelError(
                "prompts of this batch are adapted differently, so a strategy decodes them apart, and there is no one output or "
                "stream of all. Ask them one by one."
            )
        answers: list[Tensor] = [ids[i] for i in range(len(ids))]
        for weight in dict.fromkeys(weights):
            rows = [i for i, one in enumerate(weights) if one == weight]
            with self._adapted([weight] * len(rows)):
                written = self.target.generate(input_ids=ids[rows], attention_mask=mask[rows], **options)
            for i, row in zip(rows, written, strict=True):
                answers[i] = row
        longest = max(len(row) for row in answers)
        pad = self.tokenizer.pad_token_id
        return torch.stack([torch.cat([row, row.new_full((longest - len(row),), pad)]) for row in answers])

    def _weights_of(self, ids: Tensor, mask: Tensor | None, cache: Any) -> list[float]:
        if cache is not None and int(cache.get_seq_length()) > 0:
            kept = getattr(cache, "row_weights", None)
            if kept is None or len(ids) % len(kept):
                raise ModelError(
                    "the cache was filled by another model, so it isn't known how its rows are adapted. Pass an empty one, or none."
                )
            return list(kept)
        rows = unpadded(ids, padding_mask(ids, mask, self.tokenizer))
        return self.weights([self.reader.read(row).turns if row else () for row in rows])

    @contextlib.contextmanager
    def _adapted(self, weights: Sequence[float]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for adapter in self.adapters:
                stack.enter_context(adapter.applied(self.target, weights))
            yield

    def fingerprint(self) -> str:
        """Content hash of the target, the adapters and the detectors."""
        tensors, settings = self._stored()
        return hash_json([hash_model(self.target), hash_tensors(tensors), settings, self.noted()])

    def noted(self) -> dict[str, Any]:
        encoders = [request.encode.noted() for request in self.requests if hasattr(request.encode, "noted")]
        return {"fresh": self.fresh, "encoder": encoders}

    def _stored(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        tensors: dict[str, Tensor] = {}
        settings = []
        for number, request in enumerate(self.requests):
            own, plain = request.detector.state()
            tensors |= {f"{number}.detector.{name}": one for name, one in own.items()}
            tensors |= {f"{number}.adapter.{name}": one for name, one in request.adapter.tensors().items()}
            settings.append({"scaling": request.adapter.scaling, "detector": plain})
        return tensors, settings

    def write_parts(self, folder: Path) -> None:
        """Adapters, detectors, their encoders and the tokenizer. A detector holds vectors of the texts that were to be forgotten."""
        tensors, settings = self._stored()
        save_file({name: one.contiguous() for name, one in tensors.items()}, str(folder / FILE))
        write_json(folder / SETTINGS, {"requests": settings})
        self.tokenizer.save_pretrained(folder)
        for number, request in enumerate(self.requests):
            if isinstance(request.encode, MaskedEncoder):
                request.encode.save(folder / f"encoder-{number}")

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        if (tokenizer := load_tokenizer(folder)) is None:
            raise ModelError(f"{folder} has no tokenizer, by which its detectors read. Copy the folder whole.")
        target: Any = load_guarded(folder, "target", **options)
        tensors, _ = read_tensors(folder / FILE, "adapters and detectors", ModelError)
        stored = read_json(folder / SETTINGS).get("requests")
        if not isinstance(stored, list) or len(stored) != len(settings["encoder"]):
            raise ModelError(f"{folder / SETTINGS} has no requests of a {cls.__name__}. Copy the folder whole.")
        requests = []
        for number, (plain, noted) in enumerate(zip(stored, settings["encoder"], strict=True)):
            adapter = RowAdapter.of_tensors(_beginning(tensors, f"{number}.adapter."), float(plain["scaling"]))
            detector = NoveltyDetector.of_state(_beginning(tensors, f"{number}.detector."), plain["detector"])
            encode = _encoder(folder / f"encoder-{number}", noted, target, tokenizer)
            requests.append(DeletionRequest(adapter, detector, encode))
        return cls(target, tokenizer, requests, fresh=bool(settings["fresh"]))


def _encoder(
    folder: Path, noted: Mapping[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LayerStates:
    if "layers" in noted and "epochs" not in noted:
        return RowStates(model, tokenizer, int(noted["layers"]))
    return MaskedEncoder.of_folder(folder, noted)


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}


load_folder = AdaptedRowsModel.load_folder  # what `unwrite.models.load` calls
