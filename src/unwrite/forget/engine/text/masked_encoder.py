"""An encoder of a request's texts: a masked language model whose adapter learns them, and whose layers agree with the original's.

A batch with masked tokens goes through the model with adapter, the same batch whole through the model without, which is the key
encoder. Of every layer's mean states z and z',

    L = L_MLM + sum_l mean_i -sum_j D_ij log(D_ij + 1e-5),   D = softmax_j(z_i . z'_j)

an entropy that wants every text near one of the batch. (O3, arXiv 2407.10223; layers, rates and masks of its released code. Means
are over tokens that are there; the released one takes padding in.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ....errors import DataError, ModelError
from ....models.classifiers import load_text_model
from ....models.merging import merged
from ....runs import hash_model, progress, seeded
from ..checks import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["EncoderTraining", "MaskedEncoder", "agreement_entropy"]

TINY = 1e-5  # inside the logarithm


@dataclass(frozen=True)
class EncoderTraining:
    """How the adapter is trained; the released code's values.

    Args:
        epochs, batch_size, learning_rate, weight_decay, warmup: AdamW with a linear rate; weight decay not on norms and biases.
        masked: share of tokens that are masked, in (0, 1).
        rank, alpha, dropout: of the adapter on queries, keys and values.
        layers: states of the embedding and of so many layers count.
        max_length: tokens of a text.
    """

    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    warmup: float = 0.06
    masked: float = 0.15
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    layers: int = 12
    max_length: int = 512

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "rank", "layers"):
            require(name, getattr(self, name), at_least=1)
        require("learning_rate", self.learning_rate, above=0)
        require("masked", self.masked, above=0, below=1)


def agreement_entropy(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean entropy of each query's softmax over the keys, in nats. Both [rows, width]."""
    near = (queries @ keys.T).softmax(1)
    return -(near * (near + TINY).log()).sum(1).mean()


class MaskedEncoder:
    """Texts to mean states of a masked language model's layers.

    Args:
        model: a masked language model.
        tokenizer: its own, with a mask token.
        settings: how it is trained, and which layers count.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: EncoderTraining | None = None
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the encoder's tokenizer has no mask token. Name a masked language model, such as roberta-large."
            )
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings or EncoderTraining()

    @classmethod
    def load(cls, name: str | Path, **settings: Any) -> Self:
        """A masked language model of a local folder, or of the Hub where that may be asked.

        Args:
            settings: fields of `EncoderTraining`.

        Raises:
            ModelError: it can't be loaded.
        """
        return cls(*load_text_model(name, "masked"), EncoderTraining(**settings))

    def fitted(self, texts: Sequence[str], seed: int = 0) -> Self:
        """A copy that has learnt the texts by an adapter, folded in; this one stays as it is.

        Raises:
            DataError: no text.
        """
        from peft import LoraConfig, get_peft_model
        from transformers import DataCollatorForLanguageModeling, get_linear_schedule_with_warmup

        if not texts:
            raise DataError("an encoder is fitted on a request's texts, and there are none.")
        own = self.settings
        with seeded(seed):
            config = LoraConfig(
                r=own.rank,
                lora_alpha=own.alpha,
                lora_dropout=own.dropout,
                target_modules=["query", "key", "value"],
            )
            model = get_peft_model(copy.deepcopy(self.model), config)
            steps = own.epochs * max(1, len(texts) // own.batch_size)
            optimiser = torch.optim.AdamW(_groups(model, own.weight_decay), lr=own.learning_rate, eps=1e-6)
            schedule = get_linear_schedule_with_warmup(optimiser, int(own.warmup * steps), steps)
            mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=own.masked)
            model.train()
            for batch in progress(list(self._batches(texts)) * own.epochs, "fitting the detector's encoder"):
                inputs = self._masked(batch, mask)
                output = model(**inputs, output_hidden_states=True)
                keys = self._original(model, batch)
                queries = _pooled(output.hidden_states[: own.layers + 1], batch["attention_mask"])
                entropy = torch.stack([agreement_entropy(q, k) for q, k in zip(queries, keys, strict=True)]).sum()
                loss = entropy if inputs["labels"].eq(-100).all() else entropy + output.loss
                loss.backward()
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        return type(self)(merged(model, in_place=True), self.tokenizer, own)  # type: ignore[arg-type]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean states behind each layer but the embedding, [texts, layers, width]."""
        means = [torch.stack(self._means(self.model, batch)[1:], 1) for batch in self._batches(texts, keep=True)]
        return torch.cat(means).double().numpy()

    @torch.no_grad()
    def mean_loss(self, texts: Sequence[str], seed: int = 0) -> float:
        """What the model loses at masked tokens of the texts, in nats: how well it knows them."""
        from transformers import DataCollatorForLanguageModeling

        mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=self.settings.masked)
        with seeded(seed):
            losses = [self._masked(batch, mask) for batch in self._batches(texts, keep=True)]
        return float(np.mean([float(self.model(**inputs).loss) for inputs in losses]))

    def _masked(self, batch: dict[str, Tensor], mask: Any) -> dict[str, Tensor]:
        """A batch with masked tokens, and labels where they are."""
        special = _special(batch["input_ids"], self.tokenizer)
        ids, labels = mask.torch_mask_tokens(batch["input_ids"].clone(), special)
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}

    def _original(self, model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
        """The key encoder's means: those of the model without its adapter, without dropout."""
        model.eval()
        with torch.no_grad(), model.disable_adapter():
            means = self._means(model, batch)
        model.train()
        return means

    def _means(self, model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
        states = model(**batch, output_hidden_states=True).hidden_states
        return _pooled(states[: self.settings.layers + 1], batch["attention_mask"])

    def _batches(self, texts: Sequence[str], keep: bool = False) -> Iterator[dict[str, Tensor]]:
        """Batches in order; the last one only where it is full, or `keep`, or the only one."""
        size = self.settings.batch_size
        for start in range(0, len(texts), size):
            some = list(texts[start : start + size])
            if keep or len(some) == size or start == 0:
                encoded = self.tokenizer(
                    some, padding=True, truncation=True, max_length=self.settings.max_length, return_tensors="pt"
                )
                yield {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def noted(self) -> dict[str, Any]:
        """The settings and a hash of the weights, as plain values."""
        return asdict(self.settings) | {"hash": hash_model(self.model)}

    def save(self, folder: Path) -> None:
        """Writes the model and the tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def of_folder(cls, folder: Path, noted: Mapping[str, Any]) -> Self:
        """Reads what `save` wrote.

        Raises:
            ModelError: another model than the one that was noted.
        """
        made = cls.load(folder, **{name: value for name, value in noted.items() if name != "hash"})
        if hash_model(made.model) != noted["hash"]:
            raise ModelError(f"{folder} holds another encoder than the detector was made with. Copy the folder whole.")
        return made


def _pooled(states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Means over the tokens that are there, [rows, width] a layer. states: [rows, length, width] each; mask: [rows, length]."""
    there = mask[..., None].to(states[0].dtype)
    return [(layer * there).sum(1) / there.sum(1).clamp(min=1) for layer in states]


def _special(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return torch.isin(ids, torch.tensor(tokenizer.all_special_ids))


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    plain = [one for name, one in trained if name.endswith("bias") or "LayerNorm" in name]
    names = {id(one) for one in plain}
    return [
        {"params": [one for _, one in trained if id(one) not in names], "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]
