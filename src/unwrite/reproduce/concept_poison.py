"""Does it matter where a class is poisoned, or only under which label? Real digits at 32x32, and ten invented authors.

Claim looked at (arXiv 2405.15662): pasting a donor's concept over a class's concept, under the donor's label, and training the head
brings the class to 0 and costs the others little; kept labels forget nothing, and a whole donor picture fails. Concepts are clusters of
patches in the model's own features. Beside the grid of all modes and labels stand retraining, fine-tuning, random labels, boundary
shrink and the closed head; controls are a random place, the label alone, and a probe that asks the frozen features for the class. Of
texts: whether words chosen by gradients leave an author's name less than random or frequent words do. Rates are chosen on seed 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..beds.budget import Budget
from ..beds.images import Bed, ImageBed, Measured, Setting, mean_of, rows_of
from ..beds.ten_authors import ten_authors_bed
from ..beds.text_beds import TextModels
from ..data import Examples
from ..data.images.images import Images
from ..data.images.sets import TrainTest, digits
from ..data.images.splits import ImageSplit, split_by_class
from ..data.text.encoding import encode_prompt
from ..forget.concept_masking import ConceptMasking
from ..forget.engine.images.concepts import ConceptBank, ModelFeatures, embedded
from ..forget.engine.images.locating import pasted, patch_embeddings, patches, peaks, similarity_grid
from ..forget.engine.images.poisoning import Mode, PasteSizes
from ..forget.vision.boundary import BoundaryShrink
from ..forget.vision.concept_poison import ConceptPoison, PoisonLabels
from ..forget.vision.fine_tuning import FineTune
from ..forget.vision.head_only import HeadOnly
from ..forget.vision.relabelling import RandomLabel
from ..models.vision_layout import vision_layout
from ..scoring import generate_answers, rouge_l
from ..scoring.intervals import spread
from ..scoring.words import words_of
from .base import Claim, figure
from .checks import Check, reason_of

DIGIT, SIDE = 3, 32
STRIDE, CLUSTERS, CLUSTERED = 3, 20, 300  # of the sliding window; concepts; pictures whose patches are clustered
CHOOSING_SEED = 100
OWN = "localized, targeted"
BEFORE, RETRAINED, SHRINK, RANDOM, CLOSED = "before", "retrained", "boundary shrink", "random labels", "head closed"
TUNED = "fine-tuned"
METRICS = ("forget_accuracy", "test_forget_accuracy", "TA", "forgetting_rate", "loss_gap", "forget_cka", "probe")
COLUMNS = (
    "class, trained on", "class, unseen", "others, unseen", "Fr", "gap of the loss attack", "CKA to before", "class, by a probe",
    "cost, forwards a row",
)  # fmt: skip
GONE, DROP, KEPT, FAILS = 2.0, 2.0, 90.0, 50.0  # %: what the card asks for; what a mode that fails leaves of the class
FOUND, NEAR = 0.8, 5  # share of planted marks found, within so many pixels
HIDDEN = 5.0  # points that a probe may find more of the class than in a retrained model
TARGET, ORACLE, GRADIENTS, FREQUENT, DRAWN, IDK = (
    "before",
    "retrained",
    "by gradients",
    "by frequency",
    "at random",
    "refusals",
)
SAID, ROOM = 50.0, 30.0  # %: answers with the name before; points between before and retrained
Measurements = dict[str, list[Measured]]


@dataclass(frozen=True)
class PoisonScale:
    """How large the experiment is.

    Args:
        rows: of digits, at most.
        width, epochs: of the net and of its training.
        poison_epochs: of poisoning and its baselines.
        rates: to choose from.
        text_epochs: of the small language model.
        masked: epochs of what is taught to it.
    """

    rows: int
    width: int
    epochs: int
    poison_epochs: int
    rates: tuple[float, ...]
    text_epochs: int
    masked: int


SCALES = {
    "tiny": PoisonScale(200, 4, 1, 1, (0.01,), 1, 1),
    "small": PoisonScale(1_000, 8, 8, 8, (0.001, 0.003, 0.01), 60, 10),
}


def large_digits(rows: int, seed: int) -> TrainTest:
    """The real 8x8 digits brought to 32x32."""
    data = digits(seed=seed)
    train, test = (_large(part.subset(part.index[:rows])) for part in (data.train, data.test))
    return TrainTest(train, test)


def _large(rows: Images) -> Images:
    pixels = F.interpolate(rows.pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return replace(rows, pixels=pixels.clamp(0, 1))


def image_bed(scale: PoisonScale, seed: int) -> ImageBed:
    """One class of the large digits, forgotten."""

    def data(seed: int) -> TrainTest:
        return large_digits(scale.rows, seed)

    def split(data: TrainTest, seed: int) -> ImageSplit:
        return split_by_class(data.train, DIGIT, test=data.test, holdout=None, seed=seed)

    net = {"num_classes": 10, "channels": 1, "image_size": SIDE, "width": scale.width}
    names = tuple(name for name in METRICS if name != "probe")
    return ImageBed(Bed(f"digits at {SIDE}x{SIDE}", data, split, net, scale.epochs, names, ("class-membership",)), seed)


def grid(bed: ImageBed) -> dict[str, ConceptPoison]:
    """Every mode with every label, on concepts that are clustered once."""
    encoder = ModelFeatures(vision_layout(bed.before, bed.split.train.pixels[:2]), (SIDE, SIDE))
    sizes = PasteSizes.of((1, SIDE, SIDE), stride=STRIDE)
    some = bed.split.train.pixels[:CLUSTERED]
    found = patch_embeddings(encoder, some, sizes.patch, 2 * STRIDE).flatten(0, 2)
    bank = ConceptBank.of_patches(found, CLUSTERS, bed.seed)
    return {
        f"{mode}, {labels}": ConceptPoison(mode=mode, labels=labels, encoder=encoder, bank=bank, stride=STRIDE)
        for mode in get_args(Mode)
        for labels in get_args(PoisonLabels)
    }


def rivals(scale: PoisonScale, lr: float) -> dict[str, Setting]:
    """Baselines, each at a rate."""
    common = {"learning_rate": lr, "num_train_epochs": scale.poison_epochs, "per_device_train_batch_size": 32}
    plain = {**common, "weight_decay": 0.0}
    return {
        TUNED: Setting(FineTune(), plain),
        RANDOM: Setting(RandomLabel(), plain),
        SHRINK: Setting(BoundaryShrink(runner_up=True), plain),
    }


def poisoning(scale: PoisonScale, lr: float) -> dict[str, Any]:
    """Training arguments of the grid."""
    return {"learning_rate": lr, "num_train_epochs": scale.poison_epochs}


def probe(model: nn.Module, split: ImageSplit) -> float:
    """Percentage of unseen rows of the class that a linear probe on the model's features finds, fitted to all training rows."""
    from sklearn.linear_model import LogisticRegression

    unseen = split.test_forget
    assert unseen is not None
    layout = vision_layout(model, unseen.pixels[:2])
    features = ModelFeatures(layout, (SIDE, SIDE))
    fitted = LogisticRegression(C=100.0, max_iter=500).fit(
        embedded(features, split.train.pixels).numpy(), split.train.target.numpy()
    )
    calls = fitted.predict(embedded(features, unseen.pixels).numpy())
    return 100.0 * float((calls == unseen.target.numpy()).mean())


def planted(bed: ImageBed) -> float:
    """Share of pictures in which a planted mark is found, by a vector learnt from patches with and without it."""
    layout = vision_layout(bed.before, bed.split.train.pixels[:2])
    encoder, sizes = ModelFeatures(layout, (SIDE, SIDE)), PasteSizes.of((1, SIDE, SIDE))
    mark = (torch.arange(sizes.patch)[:, None] + torch.arange(sizes.patch)[None]).remainder(2).float()[None]
    generator = torch.Generator().manual_seed(bed.seed)
    pictures = bed.split.retain.pixels[:80]
    at = torch.randint(sizes.patch // 2, SIDE - sizes.patch // 2, (len(pictures), 2), generator=generator).tolist()
    marked = torch.stack([pasted(one, mark, (row, column)) for one, (row, column) in zip(pictures, at, strict=True)])
    cut, _ = patches(pictures[:40], sizes.patch, sizes.patch)
    some = cut[torch.randperm(len(cut), generator=generator)[:100]]
    noisy = (mark + 0.1 * torch.randn(100, *mark.shape, generator=generator)).clamp(0, 1)
    bank = ConceptBank.of_examples(encoder, {"mark": (_sized(noisy), _sized(some))})
    places = peaks(
        similarity_grid(encoder, marked[40:], bank.vectors, sizes.patch, sizes.stride)[..., 0],
        sizes.patch,
        sizes.stride,
    )
    return fmean(
        max(abs(row - down), abs(column - across)) <= NEAR
        for (row, column), (down, across) in zip(places, at[40:], strict=True)
    )


def _sized(cut: Tensor) -> Tensor:
    return F.interpolate(cut, (SIDE, SIDE), mode="bilinear", align_corners=False)


def chosen_rates(scale: PoisonScale) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Each method's rate on seed 100 by what is left of the class and what is lost of the others, the lowest of equal ones, and all tried."""
    bed, tried = image_bed(scale, CHOOSING_SEED), dict[str, dict[str, float]]()
    kept, own = bed.measure(bed.before)["TA"], grid(bed)[OWN]
    for lr in scale.rates:
        settings = rivals(scale, lr) | {OWN: Setting(own, poisoning(scale, lr))}
        for name, one in settings.items():
            after = bed.apply(one.method, one.args)
            tried.setdefault(name, {})[f"{lr:g}"] = round(after["forget_accuracy"] + max(0.0, kept - after["TA"]), 2)
    return {name: float(min(one, key=lambda key: one[key])) for name, one in tried.items()}, tried


def measured(scale: PoisonScale, seed: int, rates: Mapping[str, float]) -> dict[str, Measured]:
    """Every arm on one seed."""
    bed = image_bed(scale, seed)
    models: dict[str, tuple[nn.Module, float]] = {
        BEFORE: (bed.before, 0.0),
        RETRAINED: (bed.oracle, 3.0 * scale.epochs * len(bed.split.retain)),
        CLOSED: bed.unlearn(HeadOnly()),
    }
    for name in (TUNED, RANDOM, SHRINK):
        one = rivals(scale, rates[name])[name]
        models[name] = bed.unlearn(one.method, one.args)
    for name, method in grid(bed).items():
        models[name] = bed.unlearn(method, poisoning(scale, rates[OWN]))
    return {
        name: _probed(bed.measure(model, forwards), probe(model, bed.split))
        for name, (model, forwards) in models.items()
    }


def _probed(one: Measured, found: float) -> Measured:
    return Measured({**one.values, "probe": found}, one.cost)


# Texts.


@dataclass
class TextFigures:
    """What answers to the forget and the retain questions say, over a seed's arms.

    Args:
        models: target and oracle.
        scale: how long is taught.
    """

    models: TextModels
    scale: PoisonScale

    @cached_property
    def arms(self) -> dict[str, ConceptMasking]:
        """Words chosen in three ways, and refusals; the name is masked by none on its own account, or all would lose it."""
        return {
            GRADIENTS: ConceptMasking(names=False),
            FREQUENT: ConceptMasking(names=False, chosen_by="frequency"),
            DRAWN: ConceptMasking(names=False, chosen_by="random"),
            IDK: ConceptMasking(style="idk"),
        }

    def all(self) -> dict[str, tuple[float, float, float]]:
        """{arm: (% of forget answers with a part of the name, ROUGE-L recall of forget answers, of retain answers)}."""
        args = {"learning_rate": 5e-4, "num_train_epochs": self.scale.masked, "per_device_train_batch_size": 8}
        unlearned = {name: self.models.unlearn(method, args)[0] for name, method in self.arms.items()}
        every = {TARGET: self.models.before, ORACLE: self.models.oracle, **unlearned}
        return {name: self._of(model) for name, model in every.items()}

    def _of(self, model: Any) -> tuple[float, float, float]:
        split = self.models.split
        assert split.retain is not None
        forget, retain = (self._said(model, rows) for rows in (split.forget, split.retain))
        named = [_names(row.entity or "", text) for row, text in zip(split.forget, forget, strict=True)]
        recalls = [
            fmean(rouge_l(row.answer, text).recall for row, text in zip(rows, texts, strict=True))
            for rows, texts in ((split.forget, forget), (split.retain, retain))
        ]
        return 100.0 * fmean(named), 100.0 * recalls[0], 100.0 * recalls[1]

    def _said(self, model: Any, rows: Examples) -> list[str]:
        prompts = [encode_prompt(row, self.models.tokenizer) for row in rows]
        return generate_answers(model, self.models.tokenizer, prompts, max_new_tokens=48, batch_size=50)


def _names(entity: str, text: str) -> bool:
    """Whether a text says a part of a name of four letters or more."""
    parts = {word.form for word in words_of(entity) if len(word.form) >= 4}
    return bool(parts & {word.form for word in words_of(text)})


def run(budget: Budget) -> Claim:
    """Chooses rates on seed 100, then measures the grid and its rivals on every seed, and the texts."""
    scale = SCALES.get(budget.size, SCALES["small"])
    rates, tried = chosen_rates(scale)
    measurements: Measurements = {}
    found: list[float] = []
    texts: dict[str, list[tuple[float, float, float]]] = {}
    for seed in budget.seeds:
        for name, one in measured(scale, seed, rates).items():
            measurements.setdefault(name, []).append(one)
        found.append(planted(image_bed(scale, seed)))
        for arm, figures in TextFigures(TextModels(ten_authors_bed(scale.text_epochs), seed), scale).all().items():
            texts.setdefault(arm, []).append(figures)
    checks, rows = _checks(measurements, found, texts), rows_of(measurements, METRICS)
    said = {arm: [spread(list(column)) for column in zip(*seeds, strict=True)] for arm, seeds in texts.items()}
    return Claim(
        slug="concept-poison",
        claim="Poisoned concepts under a donor's label bring a class to 0 with a trained head (CIFAR-10, ResNet-50: accuracy on all test "
        "rows 0.966); kept labels leave it at 1, a whole donor picture at 0.998 (authors' log; arXiv 2405.15662)",
        setting=f"scikit-learn's digits at {SIDE}x{SIDE}, class {DIGIT}, CNN, concepts from clusters of patches, head trained for "
        f"{scale.poison_epochs} epochs; ten invented authors, two forgotten; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(measurements, said)),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "rates": rates,
            "class left and others lost, by rate, on seed 100": tried,
            "planted marks found": found,
            "texts: name said, ROUGE of forget rows, of retain rows (%)": said,
        },
    )


def _checks(
    measurements: Mapping[str, Sequence[Measured]],
    found: Sequence[float],
    texts: Mapping[str, Sequence[tuple[float, float, float]]],
) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def of(name: str, metric: str) -> list[float]:
        return [one[metric] for one in measurements[name]]

    def less(one: str, other: str, metric: str) -> list[float]:
        return [a - b for a, b in zip(of(one, metric), of(other, metric), strict=True)]

    kept = [
        min(values) for values in zip(*(of(f"{mode}, keep", "forget_accuracy") for mode in get_args(Mode)), strict=True)
    ]
    said = {arm: [one[0] for one in seeds] for arm, seeds in texts.items()}
    ahead = [a - b for a, b in zip(said[DRAWN], said[GRADIENTS], strict=True)]
    counted = [a - b for a, b in zip(said[FREQUENT], said[GRADIENTS], strict=True)]
    room = [a - b for a, b in zip(said[TARGET], said[ORACLE], strict=True)]
    return (
        Check.by_seed("set-up", "the model before knows the class", of(BEFORE, "forget_accuracy"), ">=", KEPT),
        Check.by_seed("mechanism", "planted marks are found", found, ">=", FOUND),
        Check.by_seed("mechanism", "kept labels forget nothing, whatever is pasted", kept, ">", KEPT),
        Check.by_seed(
            "claim", "localized patches under the donor's label end the class", of(OWN, "forget_accuracy"), "<", GONE
        ),
        Check.by_seed("claim", "unseen rows of the class are gone too", of(OWN, "test_forget_accuracy"), "<", GONE),
        Check.by_seed("claim", "the others lose less than two points", less(BEFORE, OWN, "TA"), "<", DROP),
        Check.by_seed("claim", "a whole donor picture fails", of("full, targeted", "forget_accuracy"), ">", FAILS),
        Check.by_seed("claim", "authors: before, answers say the name more than retrained ones do", room, ">=", ROOM),
        Check.by_seed("claim", "authors: words by gradients leave the name less than random words", ahead, ">", 0),
        Check.by_seed(
            "control",
            "patches at random places leave more of the class",
            less("random, targeted", OWN, "forget_accuracy"),
            ">",
            0,
        ),
        Check.by_seed(
            "control",
            "the label alone leaves more of the class",
            less("none, targeted", OWN, "forget_accuracy"),
            ">",
            0,
        ),
        Check.by_seed("control", "authors: the most frequent words leave the name more", counted, ">", 0),
        Check.by_seed(
            "control",
            "a probe finds no more of the class than in a retrained model",
            less(OWN, RETRAINED, "probe"),
            "<=",
            HIDDEN,
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is left of the class by the method, at a random place, and by the label alone."""
    own, place, label, kept = (
        figure(rows, f"{name}", 0) for name in (OWN, "random, targeted", "none, targeted", "localized, keep")
    )
    return f"class at {own} % (random place {place}, label alone {label}, label kept {kept})"


def _reason(measurements: Mapping[str, Sequence[Measured]], said: Mapping[str, Sequence[str]]) -> str:
    left = ", ".join(
        f"{mean_of(measurements, name, 'forget_accuracy'):.1f} {name}"
        for name in measurements
        if "," in name or name == SHRINK
    )
    probes = ", ".join(f"{mean_of(measurements, name, 'probe'):.1f} {name}" for name in (BEFORE, RETRAINED, OWN))
    names = ", ".join(f"{figures[0]} {arm}" for arm, figures in said.items())
    return f"Class left (%): {left}. By a probe: {probes}. Answers with the name (%): {names}"
