"""Small sharded trainings for the tests of s3t: three kinds of model, and records with a slice that may differ."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification, ViTConfig, ViTForImageClassification

from helpers.tiny import WORDS, make_examples, make_images, make_llama, make_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.images.images import Images
from unwrite.forget.sharded.s3t import S3T
from unwrite.models.recipe import CausalTraining
from unwrite.nets import SmallViT

QUICK = CausalTraining(epochs=1, lr=1e-2, batch_size=16)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written need not reach the disk here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def make_vit(depth: int = 4) -> SmallViT:
    torch.manual_seed(0)
    return SmallViT(num_classes=3, width=8, depth=depth, heads=2, patch=4)


def make_hub_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(
        ViTConfig(**shape, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    ).eval()


def make_text_classifier() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(**shape, vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=0, num_labels=2)
    return RobertaForSequenceClassification(config).eval()


def make_labelled_texts() -> Examples:
    rows = make_examples("forget", 40)
    return Examples([Example(f"LABEL_{i % 2}", row.question) for i, row in enumerate(rows)], "labelled")


def make_s3t(**settings: Any) -> S3T:
    return S3T(**{"n_shards": 2, "n_slices": 2, "budget": 2, "training": QUICK, "rank": 2, **settings})


def in_slice(sharded: Any, shard: int, part: int) -> list[str]:
    """The records of a slice, by name."""
    return [name for name, one in sharded.ledger.plan.records.items() if (one.shard, one.slice) == (shard, part)]


def other_images(images: Images, names: list[str]) -> Images:
    """The same records but for these: the last is left out, all others but the first are other pictures."""
    mine = torch.isin(images.index, torch.tensor([int(name) for name in names[1:]]))
    pixels = torch.where(mine[:, None, None, None], 1 - images.pixels, images.pixels)
    return replace(images, pixels=pixels).where(images.index != int(names[-1]))


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "net": (make_vit, make_images, {}),
    "vit": (make_hub_vit, make_images, {}),
    "texts": (make_text_classifier, make_labelled_texts, {"processing_class": make_tokenizer()}),
    "language model": (
        lambda: make_llama(layers=4),
        lambda: make_examples("forget", 40),
        {"processing_class": make_tokenizer()},
    ),
}


def answers(sharded: Any, rows: Any) -> torch.Tensor:
    """What the served model says of these rows: probabilities, or next-token log-probabilities of fixed ids."""
    if sharded.task.kind != "tokens":
        return sharded.predict(rows)
    with torch.no_grad():
        return sharded.language_model()(torch.arange(3, 23).view(2, 10)).logits
