"""ECO: a model whose prompts are corrupted where they ask for what is to be forgotten answers as if it had never learnt it.

A detector judges each prompt; of a flagged one the token embeddings are disturbed on their way into the transformer, and
nothing else changes. (Embedding-COrrupted Prompts, arXiv 2406.07933)

    e_i <- e_i + s z_i,  z_i ~ N(0, 1) on the first n dimensions, for the marked tokens i, if p(forget | prompt) > tau

It suppresses and removes nothing: a prompt that the detector takes for another gets the whole answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ..data import Examples
from ..errors import DataError, MethodError, NotFinite, setting, unknown
from ..models.classifiers import ENCODER
from .base import Guard
from .engine.checks import require
from .engine.text.calibrated_detector import CalibratedDetector
from .engine.text.corrupted_prompts import CorruptedPromptModel, CorruptionRules, Scope
from .engine.text.corruptions import Corruption, CorruptionName
from .engine.text.detector_kinds import ClassifierDetector, EncoderDetector, HiddenStateDetector, TfidfDetector
from .engine.text.name_tagger import NameTagger
from .engine.text.prompts import turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .engine.text.detectors import PromptDetector
    from .engine.text.work import TextWork

DetectorName = Literal["tfidf", "encoder", "hidden", "classifier"]
Selection = Literal["all", "names", "tagger"]
SMALLEST = 1e-8  # strength that is tried


@dataclass(frozen=True, kw_only=True)
class ECO(Guard["TextWork"]):
    """Corrupts the embeddings of prompts that ask for what is to be forgotten.

    Args:
        detector: "tfidf", "encoder" (sentence vectors) or "hidden" (the model's own states), each with a logistic regression
            fitted on forget against retain questions (ours); or "classifier", one that was trained elsewhere, as in the paper.
        classifier: the folder or Hub id of that classifier; for "encoder", of another sentence encoder.
        forget_label: what the classifier calls prompts to be forgotten, or that label's number; None for LABEL_1.
        layer: for "hidden", the block behind which states are read, counted from 1; None for the middle one (ours).
        threshold: a prompt is flagged where its score is above it, from 0 to 1; 1 flags nothing. The paper has 0.99 to 0.9999.
            None sets it by alpha.
        alpha: share of fresh retain prompts that may be flagged, between 0 and 1.
        calibration_share: of the retain rows, those kept from fitting to set the threshold on, between 0 and 1 (ours). With
            fewer than 1/alpha - 1 of them nothing is flagged.
        corruption: what is done to an embedding; see `Corruption`.
        strength: of the corruption, at least 0, which is none. The paper's grid for TOFU has 5, 50 and the embedding's width.
        dims: dimensions that change, at least 1.
        scope: "prompt", or "prompt+answer" when a whole row is scored, as the official code scores TOFU. What is generated is never
            corrupted.
        selection: which tokens of the prompt: "all" but the last, "names" of the forget rows' entities, or those that a "tagger"
            labels; where there is no such token, all but the last.
        token_classifier: the folder or Hub id of the tagger, such as dslim/bert-base-NER.
        noise_seed: the noise is a function of it and the prompt; the detector's fit and split are, too.
    """

    detector: DetectorName = "tfidf"
    classifier: str | None = None
    forget_label: str | None = None
    layer: int | None = None
    threshold: float | None = None
    alpha: float = 0.01
    calibration_share: float = 0.5
    corruption: CorruptionName = "rand_noise_first_n"
    strength: float = 50.0
    dims: int = 1
    scope: Scope = "prompt"
    selection: Selection = "all"
    token_classifier: str | None = None
    noise_seed: int = 0

    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, known in (("detector", DetectorName), ("scope", Scope), ("selection", Selection)):
            if getattr(self, name) not in get_args(known):
                raise MethodError(f"{setting(name)}: {unknown('choice', str(getattr(self, name)), get_args(known))}")
        for name in ("alpha", "calibration_share"):
            require(name, getattr(self, name), above=0, below=1)
        if self.threshold is not None:
            require("threshold", self.threshold, at_least=0, at_most=1)
        if self.layer is not None:
            require("layer", self.layer, at_least=0)
        require("noise_seed", self.noise_seed, at_least=0)
        _ = self.rule
        if self.detector == "classifier" and not self.classifier:
            raise MethodError(
                f"{setting('classifier')} is not given. Name the folder or Hub id of a classifier of prompts."
            )
        if self.selection == "tagger" and not self.token_classifier:
            raise MethodError(
                f"{setting('token_classifier')} is not given. Name a folder or a Hub id: dslim/bert-base-NER."
            )

    @property
    def rule(self) -> Corruption:
        """The corruption with its strength."""
        return Corruption(self.corruption, self.strength, self.dims)

    def calibrated(
        self,
        forget: Examples,
        retain: Examples,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> CalibratedDetector:
        """The detector alone: fitted on forget and a part of the retain questions, its threshold set on the other part.

        Args:
            model, tokenizer: for the detector "hidden".

        Raises:
            DataError: too few retain rows to divide.
            MethodError, ModelError: a layer that the model hasn't, a label that the classifier hasn't, a model that can't be loaded.
        """
        order = list(range(len(retain)))
        random.Random(self.noise_seed).shuffle(order)
        trained_elsewhere = self.detector == "classifier"
        held = len(order) if trained_elsewhere else round(self.calibration_share * len(order))
        held = 0 if self.threshold is not None else held
        rows = [retain[i] for i in order]
        if not trained_elsewhere and len(rows) - held < 1:
            raise DataError(
                f"the retain set has {len(rows)} row(s), and none is left to fit a detector on. Give more, or lower "
                f"{setting('calibration_share')}."
            )
        asked, other = ([turns_of(row)[-1] for row in some] for some in (forget, rows[held:]))
        fitted = self._detector(model, tokenizer).fit(asked, other, self.noise_seed)
        if self.threshold is not None:
            return CalibratedDetector(fitted, self.threshold)
        return CalibratedDetector.calibrated(fitted, [turns_of(row) for row in rows[:held]], self.alpha)

    def _detector(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None) -> PromptDetector:
        if self.detector == "tfidf":
            return TfidfDetector()
        if self.detector == "encoder":
            return EncoderDetector(encoder=self.classifier or ENCODER)
        if self.detector == "classifier":
            return ClassifierDetector(str(self.classifier), self.forget_label or "LABEL_1")
        layer = self.layer
        if layer is None and model is not None:
            layer = model.config.get_text_config(decoder=True).num_hidden_layers // 2
        return HiddenStateDetector(layer=layer or 0, model=model, tokenizer=tokenizer)

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if retain is None:
            raise DataError(
                f"ECO needs a retain set, prompts that its detector tells from those to be forgotten. Give {setting('retain')}."
            )
        if self.selection == "names" and not any(row.entity for row in forget):
            raise DataError(
                f"{setting('selection', 'names')} looks for entities, and no forget row names one. Give a column 'entity'."
            )

    def _apply(self, work: TextWork) -> CorruptedPromptModel:
        work.encoded(work.forget)  # a row that no model can be asked is no row to flag
        names = tuple(dict.fromkeys(row.entity for row in work.forget if row.entity))
        rules = CorruptionRules(self.rule, self.scope, names if self.selection == "names" else None, self.noise_seed)
        tagger = NameTagger.load(str(self.token_classifier)) if self.selection == "tagger" else None
        model: PreTrainedModel = work.model  # type: ignore[assignment]
        detector = self.calibrated(work.forget, work.retained, model, work.tokenizer)
        return CorruptedPromptModel(model, detector, work.tokenizer, rules, tagger)


@dataclass(frozen=True)
class StrengthFit:
    """A search for a strength.

    Args:
        strength: the one found.
        steps: (strength, distance) of every step, in order; the distance is that of the strength plus epsilon.
    """

    strength: float
    steps: tuple[tuple[float, float], ...]


def fit_strength(
    distance: Callable[[float], float],
    start: float = 0.1,
    *,
    epsilon: float | None = None,
    rate: float = 100.0,
    least: float | None = None,
    steps: int = 10,
    enough: float | None = None,
) -> StrengthFit:
    """Finds a strength without gradients, by the slope between two strengths.

        g = (S(s + eps) - S(s - eps)) / 2 eps,    s <- max(s - rate g, least)

    Args:
        distance: S, how far the model at a strength is from what it should be; see `strength_distance`. It must be a function of the
            strength alone, with the same noise for both.
        start: the first strength, above 0.
        epsilon: half the way between the two; None for 0.999 of the start.
        rate: of a step, above 0.
        least: no strength is below it; None for the start.
        steps: at most.
        enough: a distance at s + eps below which the search ends.

    Raises:
        MethodError: a number without meaning.
        NotFinite: a distance that is no number.
    """
    epsilon = 0.999 * start if epsilon is None else epsilon
    least = start if least is None else least
    for name, value in (("start", start), ("epsilon", epsilon), ("rate", rate)):
        require(name, value, above=0)
    require("least", least, at_least=0)
    require("steps", steps, at_least=1)

    def at(strength: float) -> float:
        value = distance(strength)
        if not abs(value) < float("inf"):
            raise NotFinite(f"at strength {strength:g} the distance is {value}. Give one that is a number everywhere.")
        return value

    strength, way = start, list[tuple[float, float]]()
    for _ in range(steps):
        ahead = at(strength + epsilon)
        way.append((strength, ahead))
        if enough is not None and ahead < enough:
            break
        below = max(strength - epsilon, SMALLEST)
        slope = (ahead - at(below)) / (strength + epsilon - below)
        strength = max(strength - rate * slope, least)
    return StrengthFit(strength, tuple(way))


def strength_distance(
    model: CorruptedPromptModel, metric: Callable[[CorruptedPromptModel], float], retained: float
) -> Callable[[float], float]:
    """|metric at a strength - what a model that never learnt it scores|, the same noise at every strength.

    Args:
        model: keeps its own strength.
        metric: of the model, such as its accuracy on forget questions.
        retained: the value to come near: 0.25 for a choice among four, or that of a model trained without the forget set.
    """

    def distance(strength: float) -> float:
        before = model.rules
        model.rules = replace(before, corruption=replace(before.corruption, strength=strength))
        try:
            return abs(metric(model) - retained)
        finally:
            model.rules = before

    return distance
