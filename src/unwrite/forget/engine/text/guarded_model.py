"""What every guard of texts is: a transformers model around one whose weights stay as they are.

A guard says in `forward` and `generate` what becomes of a prompt; here is what they share: the model inside, the configuration that
`generate` reads, and a folder that only `unwrite.models.load` and `from_pretrained` read, so that no other tool takes the model
inside for the guarded one.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationMixin, PreTrainedModel

from ....errors import ModelError
from ....models import Loaded
from ....models.checkpoints import first_line, read_json
from ....models.guarded import save_guarded
from ....runs import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["GuardedModel", "load_tokenizer", "next_token_loss", "padding_mask", "prompt_ids"]

NOTE = "unwrite.json"


class GuardedModel(PreTrainedModel, GenerationMixin):
    """A model whose inference is changed and whose weights are not.

    Args:
        target: the model inside, whose weights still know; never changed.

    Class attributes:
        loader: what `unwrite.json` of a saved one calls it, and the catalogue's name of its `load_folder`.
        settings: names of what `unwrite.json` holds of it.
        also: attributes that are models stored beside the target.
    """

    loader: ClassVar[str]
    settings: ClassVar[frozenset[str]]
    also: ClassVar[tuple[str, ...]] = ()

    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, target: PreTrainedModel) -> None:
        super().__init__(copy.deepcopy(target.config))
        self.target = target
        self.generation_config = copy.deepcopy(target.generation_config)

    @property
    def bare(self) -> PreTrainedModel:
        """The model inside, whose weights still know."""
        return self.target

    def get_input_embeddings(self) -> nn.Module:
        """The target's."""
        return self.target.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: logits are not always the output of one head."""
        return

    @abstractmethod
    def fingerprint(self) -> str:
        """Content hash of the models and of all that changes what they say."""

    @abstractmethod
    def noted(self) -> dict[str, Any]:
        """The settings as `unwrite.json` holds them, as plain values."""

    def write_parts(self, folder: Path) -> None:
        """Writes what is neither a model nor a setting."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """Makes the guard of a folder's content.

        Args:
            settings: as `noted` gave them.
            options: those of `unwrite.models.load`, for the models inside.
        """

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes the models, the settings and all else, in a form that only `unwrite.models.load` and `from_pretrained` read.

        Raises:
            ModelError: `push_to_hub`; a part that can't be stored.
        """
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            raise ModelError("a guard is not pushed to a hub: what is in it knows all. Save it, and share the folder.")
        models = {name: getattr(self, name) for name in ("target", *self.also)}
        save_guarded(folder, type(self).__name__, **models)
        self.write_parts(folder)
        write_json(folder / NOTE, {"loader": self.loader, "settings": self.noted()})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Reads what `save_pretrained` wrote; `options` are those of `unwrite.models.load`.

        Raises:
            ModelError: a folder of something else, or one that is not whole.
        """
        folder = Path(folder)
        settings = read_json(folder / NOTE).get("settings")
        if not isinstance(settings, dict) or set(settings) != cls.settings:
            raise ModelError(f"{folder / NOTE} has no settings of a {cls.__name__}. Copy the folder whole.")
        return cls.read(folder, settings, options)

    @classmethod
    def load_folder(cls, folder: str | Path, **options: Any) -> Loaded:
        """What `unwrite.models.load` calls for a folder whose `unwrite.json` names this loader."""
        model = cls.from_pretrained(folder, **options)
        return Loaded(model, load_tokenizer(Path(folder)), {"loader": cls.loader})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, None where there is none.

    Raises:
        ModelError: it is damaged.
    """
    if not (folder / "tokenizer_config.json").exists():
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library meets in a damaged file
        raise ModelError(f"the tokenizer of {folder} could not be loaded: {first_line(error)}") from error
    return tokenizer


def next_token_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """The mean cross-entropy of each label after the first, -100 left out. logits: [batch, length, vocab]; labels: [batch, length]."""
    if labels is None:
        return None
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def prompt_ids(ids: Tensor | None, embeddings: Tensor | None = None) -> Tensor:
    """Token ids as they are given, [batch, length].

    Raises:
        ModelError: none, or embeddings in their place, which would pass a guard by.
    """
    if ids is None or embeddings is not None or ids.is_floating_point():
        raise ModelError(
            "a guard reads token ids, and embeddings given in their place would pass it by. Pass input_ids."
        )
    return ids


def padding_mask(ids: Tensor, given: Tensor | None, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The mask given, or the one that a pad token tells, [batch, length]: padding is what stands at a row's side and is no end."""
    if given is not None and given.shape == ids.shape:
        return given
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        return torch.ones_like(ids)
    shown = ids != pad
    return ((shown.cumsum(-1) > 0) & (shown.flip(-1).cumsum(-1).flip(-1) > 0)).long()
