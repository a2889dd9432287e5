"""The detectors of prompts: a logistic regression on TF-IDF, on sentence vectors or on hidden states, or a classifier of one's own.

    score = sigmoid(w . features(text) + b),   w and b by logistic regression on forget against retain prompts

They keep numbers and no text that they were fitted on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from ....errors import MethodError, ModelError, setting, unknown
from ....models.classifiers import ENCODER, load_text_model
from ....runs import hash_model
from .detectors import DetectorSource, Floats, PromptDetector
from .vectors import HashedTfidf, unit_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DETECTORS", "ClassifierDetector", "EncoderDetector", "HiddenStateDetector", "LogisticHead", "TfidfDetector"]

FREEDOM = 10.0  # of the regression's weights, the inverse of their penalty (ours)
BATCH, LONGEST = 32, 512  # texts in a forward, and tokens of a text that are read


@dataclass(frozen=True)
class LogisticHead:
    """A fitted logistic regression as arrays.

    Args:
        weights: [width].
        bias: one number.
    """

    weights: Floats
    bias: float

    @classmethod
    def fit(cls, features: Any, forget: int, seed: int) -> LogisticHead:
        """By scikit-learn, both classes weighing the same.

        Args:
            features: [texts, width], dense or sparse; forget prompts first.
            forget: how many those are.
        """
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=FREEDOM, class_weight="balanced", max_iter=1000, random_state=seed)
        used = np.unique(features.nonzero()[1])  # the weights of all others stay at 0
        model.fit(features[:, used], np.arange(features.shape[0]) < forget)
        weights = np.zeros(features.shape[1])
        weights[used] = model.coef_[0]
        return cls(weights, float(model.intercept_[0]))

    def __call__(self, features: Any) -> Floats:
        from scipy.special import expit

        scores: Floats = expit(np.asarray(features @ self.weights) + self.bias)
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Both as tensors."""
        return {"weights": torch.from_numpy(self.weights), "bias": torch.tensor(self.bias, dtype=torch.float64)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LogisticHead:
        """From the tensors."""
        return cls(tensors["weights"].numpy(), float(tensors["bias"]))


@dataclass(frozen=True)
class _Regressed(PromptDetector):
    """Features with a regression behind them.

    Args:
        head: None until it is fitted.
    """

    head: LogisticHead | None = None

    @abstractmethod
    def features(self, texts: Sequence[str]) -> Any:
        """[texts, width], dense or sparse."""

    def learnt(self, texts: Sequence[str]) -> Self:
        """With what the features themselves take from the texts."""
        return self

    def fit(self, forget: Sequence[str], retain: Sequence[str], seed: int = 0) -> Self:
        if not forget or not retain:
            raise MethodError("a detector is fitted on forget and retain prompts. Give some of both.")
        ready = self.learnt([*forget, *retain])
        return replace(ready, head=LogisticHead.fit(ready.features([*forget, *retain]), len(forget), seed))

    def __call__(self, texts: Sequence[str]) -> Floats:
        return self._fitted(self.features(texts))

    @property
    def _fitted(self) -> LogisticHead:
        if self.head is None:
            raise MethodError(f"the detector {self.name!r} is not fitted. Call fit with forget and retain prompts.")
        return self.head

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._fitted.tensors(), {}


@dataclass(frozen=True)
class TfidfDetector(_Regressed):
    """TF-IDF over hashed words and pairs of words; words count as one however they are cased or disguised."""

    name = "tfidf"
    words: HashedTfidf | None = None

    def learnt(self, texts: Sequence[str]) -> Self:
        return replace(self, words=HashedTfidf.of(texts, longest=2))

    def features(self, texts: Sequence[str]) -> Any:
        if self.words is None:
            raise MethodError(f"the detector {self.name!r} is not fitted. Call fit with forget and retain prompts.")
        return self.words(texts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, _ = super().state()
        assert self.words is not None
        return tensors | {"rarity": torch.from_numpy(self.words.weights)}, {"longest": self.words.longest}

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: DetectorSource) -> Self:
        return cls(LogisticHead.of(tensors), HashedTfidf(tensors["rarity"].numpy(), int(settings["longest"])))


@dataclass(frozen=True)
class EncoderDetector(_Regressed):
    """A sentence encoder's vectors: the mean over the text's tokens, of length 1.

    Args:
        encoder: the package's all-MiniLM-L6-v2 by its name, a folder, or a Hub id. What isn't the package's is stored with a guard.
    """

    name = "encoder"
    encoder: str = ENCODER
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def learnt(self, texts: Sequence[str]) -> Self:
        return replace(self, loaded=self.loaded or load_text_model(self.encoder, "encoder"))

    def features(self, texts: Sequence[str]) -> Floats:
        model, tokenizer = self.loaded or load_text_model(self.encoder, "encoder")
        return unit_rows(_means(texts, model, tokenizer, lambda inputs: model(**inputs).last_hidden_state))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return super().state()[0], {"encoder": self.encoder, "hash": self._hash()}

    def _hash(self) -> str:
        model, _ = self.loaded or load_text_model(self.encoder, "encoder")
        return hash_model(model)

    def write_model(self, folder: Path) -> None:
        if self.encoder != ENCODER:
            for part in self.loaded or load_text_model(self.encoder, "encoder"):
                part.save_pretrained(folder)

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: DetectorSource) -> Self:
        encoder = settings["encoder"]
        place = encoder if encoder == ENCODER else source.folder
        made = cls(LogisticHead.of(tensors), encoder, load_text_model(place, "encoder"))
        if made._hash() != settings["hash"]:
            raise ModelError(f"the encoder {encoder} is not the one this detector was fitted with. Put that one back.")
        return made


@dataclass(frozen=True)
class HiddenStateDetector(_Regressed):
    """The guarded model's own hidden states: the mean over the text's tokens, of length 1.

    Args:
        layer: block behind which they are read, counted from 1; 0 is the embeddings.
        model, tokenizer: the model that is guarded.

    Raises:
        MethodError: a layer that the model hasn't.
    """

    name = "hidden"
    layer: int = 0
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        depth = self.model.config.get_text_config(decoder=True).num_hidden_layers if self.model is not None else 0
        if self.model is None or self.tokenizer is None or not 0 <= self.layer <= depth:
            raise MethodError(
                f"{setting('layer')} is {self.layer}; this model has blocks 1 to {depth}, and 0 is before them."
            )

    def features(self, texts: Sequence[str]) -> Floats:
        model, tokenizer = self.model, self.tokenizer
        assert model is not None
        assert tokenizer is not None
        wanted = {"output_hidden_states": True, "use_cache": False}

        def states(inputs: dict[str, Tensor]) -> Tensor:
            inner = getattr(model, "base_model", model)
            output = inner(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **wanted)
            return cast(Tensor, output.hidden_states[self.layer])

        return unit_rows(_means(texts, model, tokenizer, states))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return super().state()[0], {"layer": self.layer}

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: DetectorSource) -> Self:
        return cls(LogisticHead.of(tensors), int(settings["layer"]), source.model, source.tokenizer)


@dataclass(frozen=True)
class ClassifierDetector(PromptDetector):
    """A classifier of texts that was trained elsewhere; its score is the probability of one label.

    Args:
        classifier: a folder or a Hub id; any model that transformers loads for sequence classification.
        label: what it calls prompts to be forgotten, or that label's number.
        loaded: the model and its tokenizer.

    Raises:
        MethodError: a label that the classifier hasn't.
    """

    name = "classifier"
    classifier: str
    label: str | int = "LABEL_1"
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __post_init__(self) -> None:
        if self.loaded is None:
            object.__setattr__(self, "loaded", load_text_model(self.classifier, "texts"))
        names = self._names
        if str(self.label) not in names and not (str(self.label).isdigit() and int(self.label) < len(names)):
            raise MethodError(f"{setting('forget_label')}: {unknown('label', str(self.label), names)}")

    @property
    def _names(self) -> list[str]:
        model, _ = cast("tuple[PreTrainedModel, PreTrainedTokenizerBase]", self.loaded)
        labels: dict[int, str] = model.config.id2label or {}
        return [labels[i] for i in sorted(labels)]

    def fit(self, forget: Sequence[str], retain: Sequence[str], seed: int = 0) -> Self:
        return self

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Floats:
        model, tokenizer = cast("tuple[PreTrainedModel, PreTrainedTokenizerBase]", self.loaded)
        names = self._names
        column = names.index(str(self.label)) if str(self.label) in names else int(self.label)
        scores = [model(**inputs).logits.float().softmax(-1)[:, column] for inputs in _batches(texts, model, tokenizer)]
        return torch.cat(scores).double().cpu().numpy()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model, _ = cast("tuple[PreTrainedModel, PreTrainedTokenizerBase]", self.loaded)
        return {"none": torch.zeros(0)}, {"label": self.label, "hash": hash_model(model)}

    def write_model(self, folder: Path) -> None:
        for part in cast("tuple[PreTrainedModel, PreTrainedTokenizerBase]", self.loaded):
            part.save_pretrained(folder)

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: DetectorSource) -> Self:
        return cls(str(source.folder), settings["label"])


DETECTORS: dict[str, type[PromptDetector]] = {
    one.name: one for one in (TfidfDetector, EncoderDetector, HiddenStateDetector, ClassifierDetector)
}


def _batches(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Tensor]]:
    """Inputs of some texts at a time, on the model's device."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or LONGEST
    offset = 2 if model.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0  # places before the first
    for first in range(0, len(texts), BATCH):
        inputs = tokenizer(
            list(texts[first : first + BATCH]),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=min(LONGEST, positions - offset),
            return_tensors="pt",
        )
        yield {name: value.to(model.device) for name, value in inputs.items()}


@torch.no_grad()
def _means(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    states: Callable[[dict[str, Tensor]], Tensor],
) -> Floats:
    """Mean of `states(inputs)` [texts, tokens, width] over each text's own tokens, [texts, width]."""
    means = []
    for inputs in _batches(texts, model, tokenizer):
        mask = inputs["attention_mask"][..., None].float()
        hidden = states(inputs).float()
        means.append((hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0))
    return torch.cat(means).double().cpu().numpy()
