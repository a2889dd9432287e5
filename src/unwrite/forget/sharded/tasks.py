"""What a sharded training does with each kind of data: a record's name and content, its training rows, their loss.

    images    `Images` with labels, on any module that takes pixels to logits
    labels    `Examples` whose question is the text and whose answer names the class, on a sequence classifier of transformers
    tokens    `Examples`, on a causal language model

Nothing here looks at more than one record, so no row depends on another that may be deleted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data import Example, Examples
from ...data.images.images import Images
from ...data.text.encoding import encode_rows
from ...errors import DataError, ModelError, setting
from ...models.recipe import causal_loss
from ...models.vision_layout import logits_of, vision_layout
from ...runs import hash_json, hash_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CausalTask", "ClassifierTask", "ImageTask", "LabelTask", "ShardTask", "contents", "record_ids", "task_for"]


def record_ids(dataset: Images | Examples) -> list[str]:
    """The records' names where none are given: an image's index, a hash of what a text says.

    Both stay as they are whatever other records there are.
    """
    if isinstance(dataset, Images):
        return [str(one) for one in dataset.index.tolist()]
    return contents(dataset)


def contents(dataset: Images | Examples) -> list[str]:
    """A hash of what each record says."""
    if isinstance(dataset, Images):
        columns = {"pixels": dataset.pixels, "target": dataset.target}
        return [hash_tensors({name: column[row] for name, column in columns.items()}) for row in range(len(dataset))]
    return [hash_json({**asdict(row), "index": 0, "source": ""}) for row in dataset]


@dataclass(frozen=True)
class ShardTask(ABC):
    """How one kind of data is trained on; sent to the processes that train."""

    kind: ClassVar[str]

    @abstractmethod
    def encoded(self, dataset: Any) -> list[list[Any]]:
        """The training rows of each record."""

    @abstractmethod
    def loss(self, model: nn.Module, rows: list[Any], device: str) -> Tensor:
        """The mean loss of a batch."""

    def head(self, model: nn.Module, dataset: Any) -> tuple[str, ...]:
        """Paths of the modules that every stage trains for itself: what stands beside a transformers model's backbone."""
        backbone = getattr(model, "base_model_prefix", "")
        children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
        return tuple(name for name in children if name != backbone) if backbone in children else ()


class ClassifierTask(ShardTask):
    """A model with one logit a class; a row is (input, label)."""

    @abstractmethod
    def inputs(self, rows: Any) -> list[Any]:
        """What is classified of each row."""

    @abstractmethod
    def logits(self, model: nn.Module, inputs: Sequence[Any], device: str) -> Tensor:
        """`[rows, classes]`"""

    def loss(self, model: nn.Module, rows: list[Any], device: str) -> Tensor:
        labels = torch.tensor([label for _, label in rows], device=device)
        return F.cross_entropy(self.logits(model, [one for one, _ in rows], device).float(), labels)


@dataclass(frozen=True)
class ImageTask(ClassifierTask):
    """Pixels and their labels."""

    kind: ClassVar[str] = "images"

    def inputs(self, rows: Images | Tensor) -> list[np.ndarray]:
        """Arrays: a tensor each would take a file handle each on its way to another process."""
        return list((rows.pixels if isinstance(rows, Images) else rows).numpy())

    def encoded(self, dataset: Images) -> list[list[Any]]:
        if dataset.labels is None:
            raise DataError(f"{dataset.name} has targets, and shards are combined as probabilities. Give labels.")
        return [[(pixels, label)] for pixels, label in zip(self.inputs(dataset), dataset.labels.tolist(), strict=True)]

    def logits(self, model: nn.Module, inputs: Sequence[np.ndarray], device: str) -> Tensor:
        return logits_of(model, torch.from_numpy(np.stack(inputs)).to(device))

    def head(self, model: nn.Module, dataset: Images) -> tuple[str, ...]:
        return super().head(model, dataset) or (vision_layout(model, dataset.pixels[:2]).head,)


@dataclass(frozen=True)
class LabelTask(ClassifierTask):
    """Texts and the names of their classes.

    Args:
        tokenizer: of the model; needs a pad token.
        classes: {name: number}, as `model.config.label2id` has them.
        max_length: a longer text is cut.
    """

    kind: ClassVar[str] = "labels"

    tokenizer: PreTrainedTokenizerBase
    classes: dict[str, int]
    max_length: int

    def inputs(self, rows: Examples | Sequence[str]) -> list[list[int]]:
        texts = [row if isinstance(row, str) else row.question or row.answer for row in cast("Sequence[Any]", rows)]
        return [self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"] for text in texts]

    def encoded(self, dataset: Examples) -> list[list[Any]]:
        for row in dataset:
            if row.question is None or row.answer not in self.classes:
                raise DataError(
                    f"{row.source or f'row {row.index}'} has the answer {row.answer!r:.40}"
                    f"{'' if row.question else ' and no question'}. A classified text is the question, and its answer one of "
                    f"{', '.join(list(self.classes)[:10])} (label2id of the model's configuration)."
                )
        labels = [self.classes[row.answer] for row in dataset]
        return [[(ids, label)] for ids, label in zip(self.inputs(dataset), labels, strict=True)]

    def logits(self, model: nn.Module, inputs: Sequence[list[int]], device: str) -> Tensor:
        longest = max(map(len, inputs))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in inputs], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in inputs], device=device)
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits


@dataclass(frozen=True)
class CausalTask(ShardTask):
    """Question-answer rows, chats or plain texts; the head stays as it is.

    Args:
        tokenizer: of the model.
        max_length: tokens; a longer text becomes several rows.
    """

    kind: ClassVar[str] = "tokens"

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def encoded(self, dataset: Examples) -> list[list[Any]]:
        return [list(rows) for rows in encode_rows(list[Example](dataset), self.tokenizer, self.max_length)]

    def loss(self, model: nn.Module, rows: list[Any], device: str) -> Tensor:
        return causal_loss(model, rows, device)

    def head(self, model: nn.Module, dataset: Examples) -> tuple[str, ...]:
        return ()


def task_for(
    model: nn.Module, images: bool, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None
) -> ShardTask:
    """The task of a model.

    Args:
        images: whether the records are `Images`.
        tokenizer: for texts.
        max_length: tokens a row of text; None for the model's own length, 512 at most.

    Raises:
        ModelError: texts without a tokenizer or its pad token, or for a model of neither kind.
    """
    if images:
        return ImageTask()
    if tokenizer is None:
        raise ModelError(f"texts need the model's tokenizer: {setting('processing_class')}.")
    config: Any = getattr(model, "config", None)
    length = max_length or min(512, getattr(config, "max_position_embeddings", None) or 512)
    if "ForSequenceClassification" in type(model).__name__:
        if tokenizer.pad_token_id is None:
            raise ModelError(f"the tokenizer ({type(tokenizer).__name__}) has no pad token. Set one.")
        return LabelTask(tokenizer, dict(config.label2id), length)
    if getattr(model, "can_generate", bool)() and getattr(model, "get_output_embeddings", bool)() is not None:
        return CausalTask(tokenizer, length)
    raise ModelError(
        f"{type(model).__name__} is neither a causal language model nor a sequence classifier of transformers. Give one."
    )
