"""Five deletion requests one after another, without retained rows: is what stays as it was, and what is asked for gone?

Claims looked at (arXiv 2407.10223): the best trade between unlearning and utility of a stream of requests, against methods that are
given retained data, at a cost that stays the same. Every request is a topic of invented facts; two topics stay. Controls: the same
adapters without the detector, and a detector of another topic. With a gate that knows the topics the stream must be without fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..beds.budget import Budget
from ..beds.topics import KEPT, REQUESTED, TopicBed, topic_bed
from ..data import Examples
from ..forget import O3, AdaptedRowsModel
from ..forget.base import Method
from ..forget.engine.text.adapted_rows import DeletionRequest
from ..forget.gradient_ascent import GradientAscent, GradientDifference
from ..runs import seeded
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TUNING_SEED = 100  # no reported one
RATES = (
    1e-3,
    3e-3,
    1e-2,
)  # of the adapters: the least at which the first request's answers are gone is taken, on the tuning seed
EPOCHS, BATCH = 15, 8  # the paper's epochs; forty rows a request leave no room for its batches of 128
BASELINE = {"learning_rate": 2e-4, "num_train_epochs": 5, "lr_scheduler_type": "constant", "warmup_epochs": 0}
GONE = 0.05  # of the answers, word for word
WITHIN, LOST = 0.02, 0.10  # what a gated stream may lose of the topics that stay, and what the others must lose
ADAPTED = 0.5  # a prompt with such a weight is answered as one to be forgotten


@dataclass
class Course:
    """One arm's figures after every request.

    Args:
        forgotten, paraphrased: mean share of right answers over the topics asked for so far.
        kept: the same over the two that stay.
        seconds: of processor time each request took.
        model: after the last.
    """

    forgotten: list[float] = field(default_factory=list)
    paraphrased: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    model: Any = None


class KnownTopics:
    """A gate that knows which questions are asked for: the detector that could not be better."""

    def __init__(self, bed: TopicBed, topics: Sequence[str]) -> None:
        self.bed, self.topics = bed, {*topics}

    def weights(self, texts: Sequence[str]) -> list[float]:
        """1 for a question of its topics, else 0."""
        return [float(self.bed.questions.get(text) in self.topics) for text in texts]


class Gated(DeletionRequest):
    """A request whose gate is another's."""

    def __init__(self, request: DeletionRequest, gate: Any) -> None:
        super().__init__(request.adapter, request.detector, request.encode)
        object.__setattr__(self, "gate", gate)

    def weights(self, texts: Sequence[str]) -> list[float]:
        weights: list[float] = self.gate.weights(texts)  # type: ignore[attr-defined]
        return weights


class Always:
    """No gate at all."""

    def weights(self, texts: Sequence[str]) -> list[float]:
        """1 for everything."""
        return [1.0] * len(texts)


def run(budget: Budget) -> Claim:
    """O3 beside its own adapters ungated and with a perfect gate, gradient ascent and gradient difference."""
    tiny = budget.size == "tiny"
    bed = topic_bed(epochs=1) if tiny else topic_bed()
    seeds, topics = (budget.seeds[:1], REQUESTED[:1]) if tiny else (budget.seeds, REQUESTED)
    rate = RATES[0] if tiny else chosen_rate(bed)
    base = {topic: bed.right(bed.load(), topic) for topic in bed.rows}
    courses: dict[str, list[Course]] = {}
    detection: list[dict[str, float]] = []
    for seed in seeds:
        courses.setdefault("gradient ascent", []).append(_trained(bed, GradientAscent(), seed, topics, retain=False))
        courses.setdefault("gradient difference, with retained rows", []).append(
            _trained(bed, GradientDifference(), seed, topics, retain=True)
        )
        plain = stream(bed, O3(orthogonality=0.0), seed, topics, rate)
        courses.setdefault("LoRA alone, no penalty, no detector", []).append(regated(bed, plain, topics, Always))
        o3 = stream(bed, O3(), seed, topics, rate)
        courses.setdefault("O3's adapters without detectors", []).append(regated(bed, o3, topics, Always))
        known = {topic: KnownTopics(bed, [topic]) for topic in topics}
        courses.setdefault("O3's adapters, gate that knows the topics", []).append(regated(bed, o3, topics, known))
        wrong = {topic: KnownTopics(bed, KEPT) for topic in topics}
        courses.setdefault("O3's adapters, gate of other topics", []).append(regated(bed, o3, topics, wrong))
        courses.setdefault("O3", []).append(o3)
        detection.append(_detection(bed, o3.model, topics))
    return _claim(bed, base, courses, detection, seeds, rate, topics)


def chosen_rate(bed: TopicBed) -> float:
    """The least rate at which the first request's answers are gone, on the tuning seed; the largest where none does it."""
    for rate in RATES:
        course = regated(bed, stream(bed, O3(), TUNING_SEED, REQUESTED[:1], rate), REQUESTED[:1], Always)
        if course.forgotten[-1] <= GONE:
            return rate
    return RATES[-1]


def stream(bed: TopicBed, method: O3, seed: int, topics: Sequence[str], rate: float) -> Course:
    """A stream of requests, each added to what the one before returned."""
    args = {
        "learning_rate": rate,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
    }
    return _course(bed, topics, lambda model, topic: _apply(bed, method, model, topic, None, args | {"seed": seed}))


def _trained(bed: TopicBed, method: Method, seed: int, topics: Sequence[str], *, retain: bool) -> Course:
    def forget(model: Any, topic: str) -> Any:
        later = [one for one in bed.rows if one not in topics[: topics.index(topic) + 1]]
        kept = Examples([row for one in later for row in bed.rows[one]], "retain") if retain else None
        return _apply(bed, method, model, topic, kept, BASELINE | {"seed": seed})

    return _course(bed, topics, forget)


def _apply(
    bed: TopicBed, method: Method, model: Any, topic: str, retain: Examples | None, args: Mapping[str, Any]
) -> Any:
    given = {"processing_class": bed.tokenizer, "args": {**args, "use_cpu": True}}
    return method.apply(model, bed.rows[topic], retain, **given)


def _course(bed: TopicBed, topics: Sequence[str], forget: Callable[[Any, str], Any]) -> Course:
    course, model = Course(), bed.load()
    for number, topic in enumerate(topics, 1):
        start = time.process_time()
        model = forget(model, topic)
        course.seconds.append(time.process_time() - start)
        _measure(bed, course, model, topics[:number])
    course.model = model
    return course


def _measure(bed: TopicBed, course: Course, model: PreTrainedModel, topics: Sequence[str]) -> None:
    with seeded(0):
        course.forgotten.append(fmean(bed.right(model, topic) for topic in topics))
        course.paraphrased.append(fmean(bed.right(model, topic, paraphrased=True) for topic in topics))
        course.kept.append(fmean(bed.right(model, topic) for topic in KEPT))


def regated(
    bed: TopicBed, course: Course, topics: Sequence[str], gate: Mapping[str, Any] | Callable[[], Any]
) -> Course:
    """The last model's adapters behind another gate.

    Args:
        gate: by topic, or makes one.
    """
    given: AdaptedRowsModel = course.model
    requests = [
        Gated(request, gate[topic] if isinstance(gate, Mapping) else gate())
        for request, topic in zip(given.requests, topics, strict=True)
    ]
    other = Course(seconds=course.seconds)
    other.model = AdaptedRowsModel(given.target, given.tokenizer, requests, fresh=given.fresh)
    _measure(bed, other, other.model, topics)
    return other


def _detection(bed: TopicBed, model: AdaptedRowsModel, topics: Sequence[str]) -> dict[str, float]:
    """Shares of questions that are answered as ones to be forgotten."""

    def share(some: Sequence[str], *, paraphrased: bool = False) -> float:
        rows = [row for topic in some for row in bed.rows[topic]]
        asked = [((row.paraphrased_question if paraphrased else row.question) or "",) for row in rows]
        return fmean(float(weight >= ADAPTED) for weight in model.weights(asked))

    return {
        "seen": share(topics),
        "paraphrased": share(topics, paraphrased=True),
        "kept": share(KEPT),
        "kept, paraphrased": share(KEPT, paraphrased=True),
    }


def _claim(
    bed: TopicBed,
    base: Mapping[str, float],
    courses: Mapping[str, Sequence[Course]],
    detection: Sequence[Mapping[str, float]],
    seeds: tuple[int, ...],
    rate: float,
    topics: Sequence[str],
) -> Claim:
    before = fmean(base[topic] for topic in KEPT)
    asked = fmean(base[topic] for topic in topics)
    rows: dict[str, tuple[Any, ...]] = {"before": (f"{asked:.3f}", "", f"{before:.3f}", "")}
    for name, some in courses.items():
        ends = [[getattr(course, part)[-1] for course in some] for part in ("forgotten", "paraphrased", "kept")]
        rows[name] = (*map(spread, ends), spread([fmean(course.seconds) for course in some]))
    found = {name: [one[name] for one in detection] for name in detection[0]}
    checks = _checks(courses, before, asked, found)
    return Claim(
        slug="o3",
        claim="a stream of requests is answered without retained data, with the best trade between unlearning and utility and at a constant "
        "cost (Llama-2-7B on ScienceQA, TOFU, CLINC150)",
        setting=f"five topics of forty invented facts asked for in turn, two that stay; a Llama of 3.4M weights, {len(seeds)} seeds, "
        f"detectors on its own states, adapters at a rate of {rate:g}",
        columns=("forgotten, right", "in other words", "kept, right", "seconds a request"),
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=seeds,
        extra={
            "detected": {name: spread(values) for name, values in found.items()},
            "kept after each request": {
                name: [spread(list(v)) for v in zip(*(c.kept for c in some), strict=True)]
                for name, some in courses.items()
            },
        },
    )


def _checks(
    courses: Mapping[str, Sequence[Course]], before: float, asked: float, found: Mapping[str, Sequence[float]]
) -> tuple[Check, ...]:
    def lost(name: str) -> list[float]:
        return [before - course.kept[-1] for course in courses[name]]

    def left(name: str, part: str = "forgotten") -> list[float]:
        return [getattr(course, part)[-1] for course in courses[name]]

    known, bare = "O3's adapters, gate that knows the topics", "O3's adapters without detectors"
    slope = [course.seconds[-1] / course.seconds[0] for course in courses["O3"]]
    return (
        Check("set-up", "the model knows what is asked for", asked, ">=", 0.9),
        Check("set-up", "the model knows what stays", before, ">=", 0.9),
        Check.by_seed(
            "mechanism", "behind a gate that knows the topics, what is asked for is gone", left(known), "<=", GONE
        ),
        Check.by_seed(
            "mechanism", "behind a gate that knows the topics, what stays is as it was", lost(known), "<=", 0.0
        ),
        Check.by_seed("claim", "O3 loses at most 2 points of what stays", lost("O3"), "<=", WITHIN),
        Check.by_seed("claim", "what was asked for is gone", left("O3"), "<=", GONE),
        Check.by_seed("claim", "in other words it is gone, too", left("O3", "paraphrased"), "<=", GONE),
        Check.by_seed(
            "claim", "gradient ascent loses 10 points or more of what stays", lost("gradient ascent"), ">=", LOST
        ),
        Check.by_seed(
            "claim",
            "gradient difference, given retained rows, loses 10 points or more of what stays",
            lost("gradient difference, with retained rows"),
            ">=",
            LOST,
        ),
        Check.by_seed("claim", "the last request takes at most 1.1 of the first's time", slope, "<=", 1.1),
        Check.by_seed("control", "the same adapters without detectors lose more of what stays", lost(bare), ">=", LOST),
        Check.by_seed(
            "control",
            "behind a gate of other topics what was asked for is still there",
            left("O3's adapters, gate of other topics"),
            ">=",
            0.5,
        ),
        Check.by_seed(
            "claim", "a detector takes at most 2 % of what stays for what is asked for", found["kept"], "<=", WITHIN
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is left of what was asked for, and of the rest."""
    left, kept, before = figure(rows, "O3", 0), figure(rows, "O3", 2), figure(rows, "before", 2)
    return f"answers asked to go: {left} right; kept: {kept}, of {before} before"
