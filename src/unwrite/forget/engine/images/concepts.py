"""Concepts of images: named directions in an encoder's features, and a classifier that reads nothing else.

A concept is a direction that an embedding lies along more or less: the embedding of a text, the normal of a linear SVM between
pictures with and without it (a CAV), or, where nothing has a name, the way from the mean patch to a cluster of patches. The
post-hoc bottleneck is a sparse linear classifier of the scores, so that its weights say which concepts carry a class.
(Concept inference and poisoning, arXiv 2405.15662; post-hoc concept bottlenecks, arXiv 2205.15480)

    s_j = (e . v_j + b_j) / |v_j|,   p(c | x) = sigmoid(W_c . s + w_c),   target concept of c: argmax_j W_cj
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.images.images import first_few
from ....errors import DataError, MethodError, ModelError, unknown
from ....models.curvature import evaluating
from ....models.vision_layout import VisionLayout
from ..checks import require

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

__all__ = [
    "ClipEncoder",
    "ConceptBank",
    "ConceptBottleneck",
    "ConceptCase",
    "Encoder",
    "ModelFeatures",
    "choose_case",
    "donor_of",
    "embedded",
]

Encoder = Callable[[Tensor], Tensor]  # pixels [rows, channels, height, width] in 0..1 to embeddings [rows, dim]
Rule = Literal["confusion", "shared", "given"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SVM_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
AT_ONCE = 1024  # pictures an encoder is given at once


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """Embeds pictures and texts by a CLIP of transformers; pictures of any size, grey ones too.

    Args:
        model: a `CLIPModel`, read in evaluation mode.
        tokenizer: its tokenizer, for texts.
    """

    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def size(self) -> int:
        """Height and width that the model reads."""
        return int(self.model.config.vision_config.image_size)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """`[rows, dim]` of pixels `[rows, 1 or 3, height, width]`."""
        device = next(self.model.parameters()).device
        colour = pixels.to(device).expand(-1, 3, -1, -1)
        sized = F.interpolate(colour, (self.size, self.size), mode="bilinear", align_corners=False)
        mean, deviation = (torch.tensor(one, device=device)[None, :, None, None] for one in (CLIP_MEAN, CLIP_STD))
        with evaluating(self.model), torch.no_grad():
            output = self.model.get_image_features(pixel_values=(sized - mean) / deviation)
        return _pooled(output).float()

    @torch.no_grad()
    def texts(self, names: Sequence[str]) -> Tensor:
        """`[names, dim]` of length 1."""
        device = next(self.model.parameters()).device
        tokens = self.tokenizer(list(names), padding=True, truncation=True, return_tensors="pt").to(device)
        with evaluating(self.model), torch.no_grad():
            output = self.model.get_text_features(**tokens)
        return F.normalize(_pooled(output).float(), dim=1)


def _pooled(output: object) -> Tensor:
    """The projected embedding, which newer versions of transformers wrap."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True, eq=False)
class ModelFeatures:
    """Embeds pictures by what goes into a classifier's own head, at length 1; for where no other encoder is at hand.

    Args:
        layout: the classifier, read in evaluation mode.
        size: height and width that pictures are brought to.
    """

    layout: VisionLayout
    size: tuple[int, int]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """`[rows, dim]`"""
        device = next(self.layout.model.parameters()).device
        sized = pixels.to(device)
        if tuple(sized.shape[-2:]) != self.size:
            sized = F.interpolate(sized, self.size, mode="bilinear", align_corners=False)
        with evaluating(self.layout.model), torch.no_grad():
            return F.normalize(self.layout.observe(sized).features.float(), dim=1)


def embedded(encoder: Encoder, pixels: Tensor) -> Tensor:
    """`[rows, dim]`, float32 on the CPU, a few hundred rows at once.

    Raises:
        ModelError: what the encoder gives is not one finite vector a row.
    """
    parts = [torch.as_tensor(encoder(some)).detach().float().cpu() for some in pixels.split(AT_ONCE)]
    if any(part.ndim != 2 for part in parts) or sum(map(len, parts)) != len(pixels):
        raise ModelError(
            f"the encoder gives {list(parts[0].shape)} for {min(len(pixels), AT_ONCE)} pictures. Give one that makes "
            "[rows, dim] of pixels [rows, channels, height, width]."
        )
    found = torch.cat(parts)
    if not bool(found.isfinite().all()):
        raise ModelError("the encoder gives embeddings that are not finite. Give one that was trained.")
    return found


@dataclass(frozen=True, eq=False)
class ConceptBank:
    """Named directions in the space of one encoder.

    Args:
        names: of the concepts, each once.
        vectors: `[concepts, dim]`, none of them 0.
        intercepts: `[concepts]`, b; None for zeros.
    """

    names: tuple[str, ...]
    vectors: Tensor
    intercepts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not self.names:
            raise DataError(
                f"a bank of {len(self.names)} concepts has vectors of shape {list(self.vectors.shape)}. Give [concepts, dim], "
                "one a name."
            )
        if len({*self.names}) < len(self.names):
            twice = [name for name in dict.fromkeys(self.names) if self.names.count(name) > 1]
            raise DataError(f"concepts stand more than once in the bank: {first_few(twice)}. Name each once.")
        if self.intercepts is not None and self.intercepts.shape != (len(self.names),):
            raise DataError(f"a bank of {len(self.names)} concepts has intercepts {list(self.intercepts.shape)}.")
        norms = self.vectors.norm(dim=1)
        for name, norm in zip(self.names, norms.tolist(), strict=True):
            if not 0 < norm < float("inf"):
                raise DataError(f"the concept {name!r} has a vector of length {norm:g}, which is no direction.")

    def at(self, name: str) -> int:
        """Where a concept stands.

        Raises:
            MethodError: there is none of this name.
        """
        if name not in self.names:
            raise MethodError(unknown("concept", name, self.names))
        return self.names.index(name)

    def scores(self, embeddings: Tensor) -> Tensor:
        """How far embeddings `[rows, dim]` lie along each concept, `[rows, concepts]`.

        Raises:
            ModelError: embeddings of another width.
        """
        if embeddings.shape[1] != self.vectors.shape[1]:
            raise ModelError(
                f"the encoder has {embeddings.shape[1]} features and the bank's vectors {self.vectors.shape[1]}. Make the bank "
                "with the same encoder."
            )
        along = embeddings @ self.vectors.T
        return (along if self.intercepts is None else along + self.intercepts) / self.vectors.norm(dim=1)

    @classmethod
    def of_texts(cls, encoder: ClipEncoder, names: Sequence[str]) -> ConceptBank:
        """One concept a name, such as the neighbours of class names in ConceptNet: the name's own embedding."""
        return cls(tuple(names), encoder.texts(names).cpu())

    @classmethod
    def of_examples(
        cls,
        encoder: Encoder,
        examples: Mapping[str, tuple[Tensor, Tensor]],
        strengths: Sequence[float] = SVM_STRENGTHS,
        seed: int = 0,
    ) -> ConceptBank:
        """Concept activation vectors: the normal of a linear SVM between pictures with the concept and without it.

        Args:
            examples: {concept: (pictures with it, pictures without it)}, each `[rows, channels, height, width]`; a hundred in
                the paper, two at least.
            strengths: C of the SVM to choose from, by its accuracy on a half held back; then it is fitted to all pictures.
            seed: of the halves.
        """
        from sklearn.svm import SVC

        vectors, intercepts = [], []
        for name, (positive, negative) in examples.items():
            if min(len(positive), len(negative)) < 2:
                raise DataError(
                    f"the concept {name!r} has {len(positive)} pictures with it and {len(negative)} without. Give two or more of each."
                )
            sides = [embedded(encoder, one).numpy() for one in (positive, negative)]
            rows, labels = np.concatenate(sides), np.repeat([1, 0], [len(side) for side in sides])
            held = np.concatenate([_half(len(side), seed + number) for number, side in enumerate(sides)])
            right = {
                c: SVC(C=c, kernel="linear").fit(rows[~held], labels[~held]).score(rows[held], labels[held])
                for c in strengths
            }
            chosen = SVC(C=max(strengths, key=lambda c: right[c]), kernel="linear").fit(rows, labels)
            vectors.append(torch.tensor(chosen.coef_[0]).float())
            intercepts.append(float(chosen.intercept_[0]))
        return cls(tuple(examples), torch.stack(vectors), torch.tensor(intercepts))

    @classmethod
    def of_patches(cls, embeddings: Tensor, count: int, seed: int = 0) -> ConceptBank:
        """Clusters of patches by k-means, where there are no names: "cluster 0", "cluster 1", ...

        Args:
            embeddings: of patches, `[patches, dim]`.
            count: clusters; fewer where there are fewer different patches.
            seed: of k-means.
        """
        from sklearn.cluster import KMeans

        require("count", count, at_least=1)
        different = len(torch.unique(embeddings, dim=0))
        means = KMeans(min(count, different), n_init=3, random_state=seed).fit(embeddings.double().numpy())
        middle = embeddings.double().mean(0)
        vectors = torch.from_numpy(means.cluster_centers_) - middle
        apart = vectors.norm(dim=1) > 1e-9
        if not bool(apart.any()):
            raise DataError("all patches are alike, so there are no clusters to be concepts. Give a bank.")
        vectors = vectors[apart]
        names = tuple(f"cluster {number}" for number in range(len(vectors)))
        return cls(names, vectors.float(), -(vectors @ middle).float())


def _half(rows: int, seed: int) -> np.ndarray:
    """A mask of half of the rows, drawn."""
    mask = np.zeros(rows, dtype=bool)
    mask[np.random.default_rng(seed).permutation(rows)[: rows // 2]] = True
    return mask


@dataclass(frozen=True, eq=False)
class ConceptBottleneck:
    """A linear classifier of concept scores.

    Args:
        bank: the concepts.
        weights: `[classes, concepts]`, W.
        bias: `[classes]`
    """

    bank: ConceptBank
    weights: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls,
        bank: ConceptBank,
        embeddings: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        alpha: float = 1e-5,
        l1_ratio: float = 0.99,
        max_iter: int = 10_000,
        seed: int = 42,
    ) -> ConceptBottleneck:
        """Stochastic descent with an elastic net, one class against the others.

        Args:
            embeddings, labels: of the training rows, `[rows, dim]` and `[rows]`.
            classes: the classes' names.
            alpha, l1_ratio, max_iter, seed: of scikit-learn's SGDClassifier.

        Raises:
            DataError: a class without a training row.
        """
        from sklearn.linear_model import SGDClassifier

        if empty := [name for number, name in enumerate(classes) if not bool((labels == number).any())]:
            raise DataError(
                f"{first_few(empty)} has no training rows, so nothing is known of its concepts. Leave it out."
            )
        fitted = SGDClassifier(
            loss="log_loss", penalty="elasticnet", alpha=alpha, l1_ratio=l1_ratio, max_iter=max_iter, random_state=seed
        ).fit(bank.scores(embeddings).double().numpy(), labels.numpy())
        weights, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
        if len(classes) == 2:  # scikit-learn fits the second class alone
            weights, bias = torch.cat([-weights, weights]), torch.cat([-bias, bias])
        return cls(bank, weights, bias)

    def logits(self, embeddings: Tensor) -> Tensor:
        """`[rows, classes]`"""
        return self.bank.scores(embeddings) @ self.weights.T + self.bias

    def strongest(self, label: int, count: int = 1) -> list[int]:
        """The concepts that speak most for a class, the strongest first."""
        order: list[int] = torch.argsort(self.weights[label], descending=True, stable=True).tolist()
        return order[:count]


@dataclass(frozen=True)
class ConceptCase:
    """What is pasted over what.

    Args:
        target_concept: of the class to forget; what is found in its pictures and pasted over.
        donor_class: whose pictures the patches come from, and the label of a targeted poisoning.
        donor_concept: what is found in the donor's pictures.
        rule: how the donor was chosen.
    """

    target_concept: int
    donor_class: int
    donor_concept: int
    rule: Rule


def donor_of(weights: Tensor, target: int, concept: int) -> int:
    """The other class that a concept speaks for most.

    Raises:
        MethodError: there is no other class.
    """
    if len(weights) < 2:
        raise MethodError("there is one class alone, so none can be the donor. Give data of two classes or more.")
    others = weights[:, concept].clone()
    others[target] = -torch.inf
    return int(others.argmax())


def choose_case(weights: Tensor, target: int, top: int = 5) -> ConceptCase:
    """The strongest concept of the class to forget, and a donor by the weights `[classes, concepts]` of a bottleneck.

    "confusion": of the class's strongest concepts, the first that is the strongest of the class it speaks for most otherwise; that
    class is the donor, with this concept. "shared", where there is none: the class that the strongest concept speaks for most
    otherwise, with the same concept.

    Args:
        target: the class to forget.
        top: how many of its concepts are looked at.
    """
    order: list[int] = torch.argsort(weights[target], descending=True, stable=True).tolist()
    strongest = weights.argmax(1).tolist()
    for concept in order[:top]:
        donor = donor_of(weights, target, concept)
        if strongest[donor] == concept:
            return ConceptCase(order[0], donor, concept, "confusion")
    return ConceptCase(order[0], donor_of(weights, target, order[0]), order[0], "shared")
