"""Encoders of texts and of pictures into one space, and the contrastive loss that ties them: CLIP's, or one's own of the same form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DataError, ModelError, setting
from ...models.loading import load
from ...runs import read_json
from .surrogates import frozen

__all__ = ["ClipEncoders", "DualEncoder", "TextEncoder", "frozen_encoders", "info_nce", "unit_text_features"]

# What CLIP's pictures are normalised by.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHOWN = 40  # characters of a caption in a message


@runtime_checkable
class TextEncoder(Protocol):
    """What turns texts into features."""

    def text_features(self, texts: Sequence[str], *, truncation: bool = False) -> Tensor:
        """`[texts, width]`, of any length; a text that is too long is refused unless `truncation`."""


class DualEncoder(TextEncoder, Protocol):
    """What turns texts and pictures into features of one space.

    It may have an `image_size`, the height and width of its pictures; without, they come as they are.
    """

    @property
    def scale(self) -> float:
        """The factor of cosine similarities in its loss: exp(logit_scale), about 100 for CLIP."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """`[rows, width]` of pictures `[rows, 3, height, width]` in 0..1, through which gradients flow."""


class ClipEncoders:
    """A CLIP model of transformers with what prepares its texts and pictures.

    Args:
        model: a `CLIPModel`, or one with its `get_text_features`, `get_image_features`, `logit_scale` and `config`.
        processor: its `CLIPProcessor`, or a tokenizer alone; then pictures are normalised as OpenAI's are.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        pictures = getattr(processor, "image_processor", None)
        self.mean = tuple(getattr(pictures, "image_mean", None) or MEAN)
        self.std = tuple(getattr(pictures, "image_std", None) or STD)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> ClipEncoders:
        """From a folder, or an id of the Hub.

        Raises:
            ModelError: it can't be loaded, or encodes no texts and pictures.
        """
        loaded = load(name, device=device)
        if not hasattr(loaded.model, "get_text_features"):
            raise ModelError(
                f"{name} is a {type(loaded.model).__name__}, which has no text features. Give a CLIP model, such as openai/clip-vit-base-patch32."
            )
        encoders = cls(loaded.model, loaded.tokenizer)
        file = Path(str(loaded.source["folder"])) / "preprocessor_config.json"
        if file.is_file():
            known = read_json(file, ModelError)
            encoders.mean = tuple(known.get("image_mean") or MEAN)
            encoders.std = tuple(known.get("image_std") or STD)
        return encoders

    @property
    def scale(self) -> float:
        """The factor of cosine similarities in its loss."""
        return float(self.model.logit_scale.detach().float().exp())

    @property
    def image_size(self) -> int:
        """Pixels of the height and width that its pictures have."""
        return int(self.model.config.vision_config.image_size)

    @property
    def most_tokens(self) -> int:
        """The longest text it takes, in tokens with those of beginning and end."""
        return min(int(self.tokenizer.model_max_length), int(self.model.config.text_config.max_position_embeddings))

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuses texts that would be cut.

        Raises:
            DataError: the first one that has too many tokens.
        """
        limit = self.most_tokens
        for text, ids in zip(texts, self.tokenizer(list(texts), verbose=False)["input_ids"], strict=True):
            if len(ids) > limit:
                raise DataError(
                    f"the caption {text!r:.{SHOWN}}... has {len(ids)} tokens, and the text encoder takes {limit}. Shorten it, or pass "
                    f"{setting('truncation', True)} to cut it off."
                )

    def text_features(self, texts: Sequence[str], *, truncation: bool = False) -> Tensor:
        """`[texts, width]`, projected.

        Raises:
            DataError: a text that is too long, unless `truncation`.
        """
        if not truncation:
            self.check_texts(texts)
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=truncation,
            max_length=self.most_tokens,
            return_tensors="pt",
            verbose=False,
        )
        device = next(self.model.parameters()).device
        return _features(
            self.model.get_text_features(
                input_ids=encoded["input_ids"].to(device), attention_mask=encoded["attention_mask"].to(device)
            )
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """`[rows, width]`, projected, of pictures in 0..1, normalised here."""
        mean, std = (torch.tensor(one, device=pixels.device).view(1, 3, 1, 1) for one in (self.mean, self.std))
        return _features(self.model.get_image_features(pixel_values=(pixels - mean) / std))


def _features(output: Any) -> Tensor:
    """The projected features, of whichever form a version of transformers gives them in."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def unit_text_features(encoder: TextEncoder, texts: Sequence[str], width: int | None, truncation: bool) -> Tensor:
    """`[texts, width]`, of length 1 each, without a graph.

    Args:
        width: that they must have; any where it is None.

    Raises:
        ModelError: another width.
    """
    with frozen_encoders(encoder), torch.no_grad():
        features = encoder.text_features(texts, truncation=truncation).float()
    if width is not None and features.shape[-1] != width:
        raise ModelError(
            f"the text encoder gives {features.shape[-1]} features, and the generator takes {width}. Use the text encoder that the generator "
            "was trained with."
        )
    return F.normalize(features, dim=-1)


def info_nce(images: Tensor, texts: Tensor, scale: float) -> Tensor:
    """The symmetric contrastive loss of matched pairs, in nats.

        0.5 (CE(scale V U^T, 1..N) + CE(scale U V^T, 1..N))

    Args:
        images, texts: `[pairs, width]`, V and U, of length 1 each.
        scale: of cosine similarities.
    """
    logits = scale * images.float() @ texts.float().T  # half precision would saturate at CLIP's 100
    matched = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, matched) + F.cross_entropy(logits.T, matched)) / 2


@contextlib.contextmanager
def frozen_encoders(encoders: Any) -> Iterator[None]:
    """Within the block an encoder is in evaluation mode and its weights take no gradients; afterwards all is as it was."""
    module = encoders if isinstance(encoders, nn.Module) else getattr(encoders, "model", None)
    with frozen(module) if isinstance(module, nn.Module) else contextlib.nullcontext():
        yield
