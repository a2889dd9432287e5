"""Following objectives, epoch by epoch, on the invented authors: the retrained oracle is exact, so closeness is too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..audit.suites.tofu import truth_ratio
from ..data import Examples
from ..data.text.encoding import encode, encode_all, encode_prompt
from ..forget import NPO
from ..forget.base import Method
from ..forget.gradient_ascent import GradientAscent, GradientDifference, KLAscent
from ..forget.refusal import DPO
from ..scoring import generate_answers, rouge_l, score_answers
from ..scoring.intervals import spread
from .budget import Budget
from .language import LanguageBed, authors_bed

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

LEARNING_RATE = 2e-4
EPOCHS = 10
RETAIN_ROWS = 80
MEASURED = (1, 2, 3, 5, 7, 10)
BASELINES: dict[str, Method] = {
    "GA": GradientAscent(),
    "GradDiff": GradientDifference(),
    "KL": KLAscent(),
    "DPO": DPO(),
    "NPO": NPO(retain_loss="none"),
    "NPO+RT": NPO(),
}


def probability(model: nn.Module, bed: LanguageBed, rows: Examples) -> float:
    """Mean answer probability, exp(-mean token nll)."""
    scores = score_answers(model, encode_all(rows, bed.tokenizer), pad_id=bed.tokenizer.pad_token_id)
    return fmean(exp(-score.mean_nll) for score in scores)


def forget_truth_ratios(model: nn.Module, bed: LanguageBed) -> list[float]:
    """TOFU's truth ratio of every forget row."""
    rows, tokenizer = bed.split.forget, bed.tokenizer
    variants = [row.ask(answer=row.paraphrased_answer) for row in rows]
    variants += [row.ask(answer=wrong) for row in rows for wrong in row.perturbed_answers]
    encoded = [encode(row, tokenizer) for row in variants]
    losses = [s.mean_nll for s in score_answers(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=64)]
    right, wrong = losses[: len(rows)], losses[len(rows) :]
    each = len(wrong) // len(rows)
    return truth_ratio([wrong[i * each : (i + 1) * each] for i in range(len(rows))], right).tolist()


def rouge(model: nn.Module, bed: LanguageBed, rows: Examples) -> float:
    """Mean ROUGE-L recall of greedy answers."""
    prompts = [encode_prompt(row, bed.tokenizer) for row in rows]
    answers = generate_answers(model, bed.tokenizer, prompts, max_new_tokens=48, batch_size=40)
    return fmean(rouge_l(row.answer, text).recall for row, text in zip(rows, answers, strict=True))


def same_distribution(ratios: list[float], oracle: list[float]) -> float:
    """TOFU's forget quality: the p-value of a two-sample Kolmogorov-Smirnov test."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(ratios, oracle).pvalue)


@dataclass(frozen=True)
class Point:
    """After some epochs: probabilities, and the forget truth ratios' p-value against the oracle's."""

    forget: float
    retain: float
    quality: float


@dataclass(frozen=True)
class Ends:
    """Where every method ends, a figure a seed.

    Args:
        points, rouge: {method: its last point, and its ROUGE on retain rows, of every seed}.
        twin: the oracle's probability of the forget rows.
        start_rouge: the target's ROUGE on retain rows.
    """

    points: Mapping[str, list[Point]]
    rouge: Mapping[str, list[float]]
    twin: float
    start_rouge: float


@dataclass
class Follow(TrainerCallback):
    """Measures before the first epoch, and after those of `MEASURED`."""

    bed: LanguageBed
    oracle: list[float]
    points: list[Point] = field(default_factory=list)

    def _measure(self, model: nn.Module) -> None:
        assert self.bed.split.retain is not None
        self.points.append(
            Point(
                probability(model, self.bed, self.bed.split.forget),
                probability(model, self.bed, self.bed.split.retain[:RETAIN_ROWS]),
                same_distribution(forget_truth_ratios(model, self.bed), self.oracle),
            )
        )

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The start."""
        self._measure(model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """After an epoch, if it is one of those measured."""
        if round(state.epoch) in MEASURED:
            self._measure(model)


def unlearn(
    bed: LanguageBed, method: Method, seed: int, callbacks: tuple[TrainerCallback, ...] = (), **changes: Any
) -> tuple[nn.Module, float]:
    """Applies a method to a fresh target; the second value is seconds of training."""
    args = {
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": EPOCHS,
        "warmup_epochs": 0,
        "lr_scheduler_type": "constant",
        "seed": seed,
        "use_cpu": True,
    }
    start = time.perf_counter()
    split = bed.split
    model = method.apply(
        bed.load(), split.forget, split.retain, processing_class=bed.tokenizer, args=args | changes, callbacks=callbacks
    )
    return model, time.perf_counter() - start


def npo_on_authors(budget: Budget) -> tuple[dict[str, Any], Ends]:
    """NPO against the baselines: the whole way as figures, and where every method ends."""
    bed = authors_bed()
    assert bed.split.retain is not None
    oracle, target = bed.load("oracle"), bed.load()
    ratios = forget_truth_ratios(oracle, bed)
    retain = bed.split.retain[:RETAIN_ROWS]
    twin = probability(oracle, bed, bed.split.forget)
    start_rouge = rouge(target, bed, retain)
    ways: dict[str, list[list[Point]]] = {name: [] for name in BASELINES}
    final_rouge: dict[str, list[float]] = {name: [] for name in BASELINES}
    for seed in budget.seeds:
        for name, method in BASELINES.items():
            follow = Follow(bed, ratios)
            model, _ = unlearn(bed, method, seed, (follow,))
            ways[name].append(follow.points)
            final_rouge[name].append(rouge(model, bed, retain))
    extra = {
        "authors": {
            "setting": f"3.4M model on 40 invented authors, forget 4, {EPOCHS} epochs, lr {LEARNING_RATE}, batch 8, "
            f"{len(budget.seeds)} seeds, retrained oracle",
            "oracle": {"forget": twin, "retain": probability(oracle, bed, retain), "rouge": rouge(oracle, bed, retain)},
            "target": {"forget": probability(target, bed, bed.split.forget), "rouge": start_rouge},
            "epochs": {
                name: {
                    str(epoch): {
                        part: spread([getattr(way[at], part) for way in runs])
                        for part in ("forget", "retain", "quality")
                    }
                    for at, epoch in enumerate((0, *MEASURED))
                }
                for name, runs in ways.items()
            },
            "final_rouge": {name: spread(values) for name, values in final_rouge.items()},
        }
    }
    ends = {name: [way[-1] for way in runs] for name, runs in ways.items()}
    return extra, Ends(ends, final_rouge, twin, start_rouge)
