"""A language model with a memory beside it, as one transformers model: `generate`, `forward` and saving work as for any.

The model runs as ever; what enters its last feed-forward part goes through the memory too, and the two distributions are mixed.
The logits are log-probabilities. The memory reads the current token's state alone, so caches, beams and padding are the model's own.
(MLP Memory, arXiv 2508.01832; the official wrapper writes greedily only, and forgets the attention mask after its first step)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...errors import MethodError, ModelError, setting
from ...models import Loaded, load_model
from ...models.checkpoints import first_line, read_json
from ...runs import write_json
from .checks import above_zero, share
from .mixing import StateMemory, check_memory, interpolate
from .mlp_memory import MLPMemory
from .tap import Tap, inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MemoryAugmentedLM", "load_folder"]

NOTE, LOADER = "unwrite.json", "memory-augmented"


class MemoryAugmentedLM(PreTrainedModel, GenerationMixin):
    """(1 - weight) p_model + weight p_memory.

    Args:
        base: a causal language model; never changed, and no gradient runs through it.
        memory: an `MLPMemory`, or anything with `vocabulary`, `input_width` and `log_probs`, such as a `KNNLM`.
        weight: of the memory, lambda, 0 to 1: 0.25 on WikiText-103, 0.5 on questions, as published. Choose it on validation.
        temperature: of the memory's logits, above 0.
        tap: where the memory reads; the input of the last feed-forward part without.

    Raises:
        MethodError: a number out of range.
        ModelError: a memory of another width or vocabulary, or no such place to read; see `Tap.of`.
    """

    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        base: PreTrainedModel,
        memory: StateMemory,
        weight: float = 0.25,
        *,
        temperature: float = 1.0,
        tap: Tap | None = None,
    ) -> None:
        share("weight", weight)
        above_zero("temperature", temperature)
        tap = tap or Tap()
        tap.of(base)
        head = base.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(base).__name__} has no head. Load it with a language-modelling head.")
        width = tap.width(base)
        check_memory(memory, memory.input_width if width is None else width, head.weight.shape[0])
        super().__init__(copy.deepcopy(base.config))
        self.base, self.memory = base, memory
        self.weight, self.temperature, self.tap = float(weight), float(temperature), tap
        self.generation_config = copy.deepcopy(base.generation_config)
        self.eval()

    @property
    def bare(self) -> PreTrainedModel:
        """The model inside."""
        return self.base

    def train(self, mode: bool = True) -> Self:
        """Only the memory is ever in training mode: dropout in the model would change the states."""
        super().train(mode)
        self.base.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The model's."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: what is said is not the output of one head."""
        return

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities of the mixture [batch, length, vocabulary]; only at the positions that `logits_to_keep` asks for.

        Args:
            labels: [batch, length], -100 for none; `loss` is then the mean over those after each row's first.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ModelError(f"there is nothing to read. Pass {setting('input_ids')} or {setting('inputs_embeds')}.")
        optional = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        with torch.no_grad(), inputs_of(self.tap.of(self.base)) as seen:
            outputs = self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=bool(use_cache),
                logits_to_keep=logits_to_keep,
                **{name: value for name, value in optional.items() if value is not None},
            )
        own = outputs.logits.float().log_softmax(-1)
        if self.weight == 0:
            logits = own
        else:
            states = seen[-1].reshape(*given.shape[:2], -1)  # [batch, length, width]
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            remembered = self.memory.log_probs(states[:, kept], self.temperature).to(own.device)
            logits = interpolate(own, remembered, self.weight)
        loss = None
        if labels is not None:
            loss = nn.functional.nll_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values if use_cache else None
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes the model into `base`, the memory into `memory`, and the settings; `unwrite.models.load` reads all.

        Raises:
            MethodError: a memory that is no `MLPMemory`; `push_to_hub`.
        """
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            raise MethodError(f"{setting('push_to_hub')} is not supported. Save it, and upload the folder.")
        if not isinstance(self.memory, MLPMemory):
            raise MethodError(
                f"a {type(self.memory).__name__} is not saved with its model. Save its datastore (Datastore.save) instead."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.base.save_pretrained(folder / "base")
        self.memory.save(folder / "memory")
        tap = {"layer": self.tap.layer, "module": self.tap.module}
        settings = {"weight": self.weight, "temperature": self.temperature, "tap": tap}
        write_json(folder / NOTE, {"loader": LOADER, "settings": settings})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> MemoryAugmentedLM:
        """Reads what `save_pretrained` wrote; `options` are those of `unwrite.models.load`, for the model.

        Raises:
            ModelError: a folder of something else, or one that is not whole.
        """
        folder = Path(folder)
        settings = read_json(folder / NOTE).get("settings")
        if not isinstance(settings, dict) or set(settings) != {"weight", "temperature", "tap"}:
            raise ModelError(f"{folder / NOTE} has no settings of a {cls.__name__}. Copy the folder whole.")
        base = load_model(folder / "base", **options)
        memory = MLPMemory.load(folder / "memory").to(next(base.parameters()).device)
        tap = Tap(**settings["tap"])
        return cls(base, memory, settings["weight"], temperature=settings["temperature"], tap=tap)


def load_folder(folder: str | Path, **options: Any) -> Loaded:
    """What `unwrite.models.load` calls for a folder whose `unwrite.json` names this loader."""
    folder = Path(folder)
    model = MemoryAugmentedLM.from_pretrained(folder, **options)
    return Loaded(model, _tokenizer(folder), {"loader": LOADER})


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, None where there is none."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library meets in a damaged file
        raise ModelError(f"the tokenizer of {folder} could not be loaded: {first_line(error)}") from error
    return tokenizer
