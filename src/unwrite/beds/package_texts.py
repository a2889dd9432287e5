"""Running text that every installation has, split by package, and a small language model trained on it until its validation stops improving.

Docstrings and descriptions of the installed packages fall into training, validation and test by the package's name, so that no
package stands in two of them; what a validation or test text shares with a training text, paragraph by paragraph, is left out. A
byte-level tokenizer is learnt from the training texts, and all are cut into blocks of one length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..data.text.encoding import Encoded
from ..models import TrainRecipe, load_model, trained
from ..models.recipe import CausalTraining, Start, causal_loss, fit_rows
from ..runs import cached_json, drop, hash_json, new_folder, read_json, seal, sound, write_json
from .language import EncodedRows, small_tokenizer
from .texts import _texts_of, packages

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PARAGRAPH = 80  # characters from which a paragraph that stands in training and elsewhere counts as shared
OURSELVES = "unwrite"  # whose texts change with every commit


@dataclass(frozen=True)
class PackageScale:
    """How much text, and how large a model.

    Args:
        train, held_out: characters of the training texts, and of validation and test each, at most.
        each: texts of a package, at most.
        vocabulary, block: of the tokenizer, and tokens a block.
        width, layers, inner: of the model.
        epochs: the most that the model is trained for.
        lr, batch: of its training; Muon for the matrices.
    """

    train: int = 2_200_000
    held_out: int = 260_000
    each: int = 300
    vocabulary: int = 4096
    block: int = 128
    width: int = 128
    layers: int = 4
    inner: int = 384
    epochs: int = 3
    lr: float = 3e-3
    batch: int = 16


SCALES = {
    "tiny": PackageScale(24_000, 6_000, 6, 400, 32, 24, 2, 48, 1, 3e-3, 8),
    "small": PackageScale(),
}


@dataclass(frozen=True)
class PackageTexts:
    """The texts in blocks, their tokenizer and the model.

    Args:
        scale: how much of all.
        seed: of the model.
    """

    scale: PackageScale = SCALES["small"]
    seed: int = 0

    @cached_property
    def texts(self) -> dict[Split, list[str]]:
        """The texts of every split; no paragraph of a training text in the others."""
        scale = self.scale
        names = {split: names_of(split) for split in SPLITS}
        versions = {name: metadata.version(name) for several in names.values() for name in several}
        key = hash_json({"version": 1, "of": versions, "limits": [scale.train, scale.held_out, scale.each]})

        def read() -> dict[str, list[str]]:
            limits = {"train": scale.train, "validation": scale.held_out, "test": scale.held_out}
            return without_shared({split: list(in_turn(names[split], scale.each, limits[split])) for split in SPLITS})

        stored = cached_json(("package-texts",), key, read, _checked)
        return {split: stored[split] for split in SPLITS}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Learnt from the training texts."""
        return small_tokenizer(self.texts["train"], self.scale.vocabulary)

    @cached_property
    def blocks(self) -> dict[Split, EncodedRows]:
        """The texts one after the other, an end token behind each, in blocks; what doesn't fill a block is left out."""
        return {split: in_blocks(self.tokenizer, self.texts[split], self.scale.block) for split in SPLITS}

    def config(self, width: int | None = None, inner: int | None = None) -> LlamaConfig:
        """The model's shape, or one of another width."""
        from transformers import LlamaConfig

        width = width or self.scale.width
        return LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            intermediate_size=inner or self.scale.inner,
            num_hidden_layers=self.scale.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,
        )

    def recipe(self, start: LlamaConfig | Path, *, epochs: int | None = None, lr: float | None = None) -> TrainRecipe:
        """How a model is trained here: until its validation stops improving.

        Args:
            start: a shape, or the folder of a model to go on from.
            epochs, lr: the scale's without.
        """
        scale = self.scale
        how = CausalTraining(
            epochs or scale.epochs, lr or scale.lr, scale.batch, warmup=0.05, weight_decay=0.01, muon=True
        )
        return stopped_recipe(start, self.blocks["validation"], how)

    def fitted(self, recipe: TrainRecipe, seed: int | None = None) -> Path:
        """The folder of the model that a recipe makes of the training blocks; trained if it isn't there."""
        rows = self.blocks["train"]
        return trained(recipe, rows, range(len(rows)), self.seed if seed is None else seed)

    @cached_property
    def base(self) -> Path:
        """The folder of the model: about 1.9 million weights and three minutes on one core at the scale "small"."""
        return self.fitted(self.recipe(self.config()))

    def load(self, folder: Path | None = None) -> PreTrainedModel:
        """A fresh copy of the model, or of the one in a folder."""
        model: PreTrainedModel = load_model(folder or self.base).eval()
        return model


def _checked(value: Any) -> dict[str, list[str]]:
    stored: dict[str, list[str]] = {split: list(value[split]) for split in SPLITS}
    assert all(isinstance(text, str) for texts in stored.values() for text in texts)
    return stored


def names_of(split: Split) -> list[str]:
    """Packages of a split, in order: a tenth by their names for test, a tenth for validation, the others for training."""
    part = {0: "test", 1: "validation"}
    return [
        name
        for name in sorted({*packages(0), *packages(1)} - {OURSELVES})
        if part.get(crc32(name.encode()) % 10, "train") == split
    ]


def in_turn(names: Sequence[str], each: int, characters: int) -> Iterator[str]:
    """Texts of packages, the first of every one, then the second, until there are enough characters, each text once."""
    piles = [islice(_texts_of(name), each) for name in names]
    seen: set[str] = set()
    length = 0
    while piles and length < characters:
        for pile in list(piles):
            text = next(pile, None)
            if text is None:
                piles.remove(pile)
            elif text not in seen:
                seen.add(text)
                yield text
                length += len(text)
            if length >= characters:
                return


def without_shared(texts: dict[Split, list[str]]) -> dict[str, list[str]]:
    """Without the validation and test texts that have a paragraph of a training text, or test ones of a validation text."""
    clean: dict[str, list[str]] = {}
    known: set[str] = set()
    for split in SPLITS:
        clean[split] = (
            texts[split] if split == "train" else [one for one in texts[split] if not known & paragraphs(one)]
        )
        for text in clean[split]:
            known |= paragraphs(text)
    return clean


def paragraphs(text: str) -> set[str]:
    """Long paragraphs of a text, with spaces alike."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {part for part in parts if len(part) >= PARAGRAPH}


def in_blocks(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], block: int) -> EncodedRows:
    """All texts as one run of tokens, in blocks of `block`, every token its own label."""
    run: list[int] = []
    for ids in tokenizer(list(texts))["input_ids"]:
        run += [*ids, tokenizer.eos_token_id]
    pieces = [run[start : start + block] for start in range(0, len(run) - block + 1, block)]
    return EncodedRows([Encoded(piece, list(piece), index) for index, piece in enumerate(pieces)])


class _Enough(Exception):
    """Validation has stopped improving."""


def stopped_recipe(start: Any, validation: EncodedRows, how: CausalTraining) -> TrainRecipe:
    """As `causal_recipe`, ended by the first epoch that doesn't lower the validation loss; the weights are the best epoch's.

    Args:
        start: a configuration or a model's folder.
        validation: rows whose mean loss is taken after every epoch.
        how: of the training; its epochs are the most there can be.
    """
    begin = Start(start)

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        watch = _Watch(model, validation, folder)
        try:
            fit_rows(model, [data[i] for i in indices], how, seed, folder, causal_loss, before_epoch=watch)
            watch(how.epochs)
        except _Enough:
            pass
        watch.restore()

    settings = {"version": 1, "start": begin.origin, "validation": validation.hash, **how.settings}
    return TrainRecipe(begin.build, fit, name="causal, stopped by validation", settings=settings)


class _Watch:
    """Looks at validation between epochs and keeps the best weights on disk, so that a killed training goes on with them."""

    def __init__(self, model: nn.Module, rows: EncodedRows, folder: Path) -> None:
        self.model, self.rows, self.home = model, rows, folder / "best"
        self.losses: list[float] = []
        if sound(self.home):
            self.losses = read_json(self.home / "validation.json")["losses"]

    def __call__(self, epoch: int) -> None:
        """Called before each epoch from 0, and after the last."""
        if epoch == 0:
            return
        if epoch > len(self.losses):
            self.losses.append(validation_loss(self.model, self.rows))
            if self.losses[-1] == min(self.losses):
                self.keep()
        if self.losses[epoch - 1] > min(self.losses[:epoch]) or not math.isfinite(self.losses[epoch - 1]):
            raise _Enough

    def keep(self) -> None:
        """Writes the weights of now."""
        drop(self.home)
        with new_folder(self.home) as fresh:
            save_file(
                {name: value.contiguous() for name, value in self.model.state_dict().items()},
                fresh / "best.safetensors",
            )
            write_json(fresh / "validation.json", {"losses": self.losses})
        seal(self.home)

    def restore(self) -> None:
        """Gives the model its best weights."""
        self.model.load_state_dict(load_file(self.home / "best.safetensors"))
        self.model.eval()


@torch.no_grad()
def validation_loss(model: nn.Module, rows: EncodedRows, batch: int = 32) -> float:
    """The mean loss of a token, in nats; rows are blocks of one length."""
    was_training = model.training
    model.eval()
    total = 0.0
    for at in range(0, len(rows), batch):
        some: list[Any] = rows[at : at + batch]
        total += float(causal_loss(model, some, "cpu")) * len(some)
    model.train(was_training)
    return total / len(rows)
