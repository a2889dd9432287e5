"""TOFU: is the model statistically indistinguishable from one never trained on the forget rows, and still useful?

    truth ratio     TR_i = exp(-mean_j L(wrong_ij)) / exp(-L(correct_i)),   L = mean token loss of an answer
    forget quality  p-value of a two-sample Kolmogorov-Smirnov test between the TR of this model and of the oracle
    model utility   harmonic mean of {probability, ROUGE-L recall, truth ratio} x {retain, real authors, world facts}

The conventions are open-unlearning's: losses are averaged before the exponential (a geometric mean), all rows are
used, and the "correct" answer of forget and retain rows is their paraphrase. `mean="arithmetic"` is the first
release's; it moves utility by about 0.04, so the two never share a table. (TOFU, arXiv 2401.06121)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from ...data.text.examples import Example, Examples, ForgetSplit
from ...errors import DataError, MethodError
from ...runs import conforms, hash_json, read_json, write_json
from ...scoring.rouge import Words
from ..base import Better, Headline, Panel, Score, Suite, harmonic_mean
from ..text.basic import Probability, RougeRecall
from ..text.context import TextContext
from ..text.membership import Membership
from ..text.memorisation import ExactMemorisation, ExtractionStrength
from ..text.metric import TextMetric
from ..text.rows import has_rows, kept_sets, rows_of

Mean = Literal["geometric", "arithmetic"]
Aggregator = Literal["closer_to_1_better", "true_better", "prob_mean"]
TINY = 1e-10


def truth_ratio(wrong: Sequence[Sequence[float]], correct: Sequence[float], mean: Mean = "geometric") -> np.ndarray:
    """Returns per row how likely wrong answers are beside the right one; 1 means the model can't tell.

    Args:
        wrong: mean token losses in nats, per row any number of wrong answers.
        correct: mean token loss of the right answer, one a row.

    Raises:
        DataError: a row without a wrong answer, counts that differ, or a loss that is not finite.
    """
    if mean not in ("geometric", "arithmetic"):
        raise MethodError(f"the truth ratio's mean is 'geometric' or 'arithmetic', not {mean!r}.")
    if len(wrong) != len(correct):
        raise DataError(f"truth ratio: {len(wrong)} rows of wrong answers, but {len(correct)} right ones.")
    ratios = []
    for i, (losses, right) in enumerate(zip(wrong, correct, strict=True)):
        if len(losses) == 0:
            raise DataError(f"truth ratio: row {i} has no wrong answer. Give perturbed answers for every row.")
        if not (np.isfinite(losses).all() and math.isfinite(right)):
            raise DataError(f"truth ratio: row {i} has a loss that is not finite.")
        minus = -np.asarray(losses, dtype=np.float64)
        # In log space: exp of a large loss underflows long before their ratio does.
        log_wrong = minus.mean() if mean == "geometric" else np.logaddexp.reduce(minus) - math.log(len(minus))
        ratios.append(math.exp(min(log_wrong - np.logaddexp(-right, math.log(TINY)), 700)))
    return np.array(ratios)


def aggregate(ratios: Sequence[float] | np.ndarray, how: Aggregator) -> float:
    """Averages over rows: min(TR, 1/TR) for forget rows, max(0, 1 - TR) for kept ones, or 1 / (1 + TR)."""
    tr = np.asarray(ratios, dtype=np.float64)
    if how == "closer_to_1_better":
        return float(np.minimum(tr, 1 / (tr + TINY)).mean())
    if how == "true_better":
        return float(np.maximum(0, 1 - tr).mean())
    if how == "prob_mean":
        return float((1 / (1 + tr)).mean())
    raise MethodError(f"unknown aggregator {how!r}. Known: closer_to_1_better, true_better, prob_mean.")


def model_utility(parts: Sequence[float]) -> float:
    """Returns the harmonic mean of the nine numbers (or of those a split has); 0 as soon as one is 0."""
    if len(parts) == 0:
        raise DataError("model utility needs at least one number.")
    return harmonic_mean(parts)


class ForgetQuality(NamedTuple):
    """p and log10 p of the KS test, its distance, and median TR less the oracle's: above 0 means over-unlearned."""

    p: float
    log10_p: float
    distance: float
    sign: float


def forget_quality(unlearned: Mapping[str, float], oracle: Mapping[str, float]) -> ForgetQuality:
    """Runs the KS test between the truth ratios of two models on the same rows.

    Args:
        unlearned, oracle: truth ratio by row id.

    Raises:
        DataError: the rows differ in number or in id.
    """
    from scipy.stats import ks_2samp

    if len(unlearned) != len(oracle):
        raise DataError(
            f"forget quality compares the same rows: {len(unlearned)} here, {len(oracle)} in the retrained model's "
            "scores. Score both on the same forget set."
        )
    if odd := next((row for row in unlearned if row not in oracle), None):
        raise DataError(
            f"forget quality compares the same rows: row {odd} is not among the retrained model's scores. "
            "Score both on the same forget set."
        )
    a = np.array(list(unlearned.values()))
    b = np.array([oracle[row] for row in unlearned])
    test = ks_2samp(a, b)
    p, distance = float(test.pvalue), float(test.statistic)
    return ForgetQuality(p, _log10(p, distance, len(a)), distance, float(np.median(a) - np.median(b)))


def _log10(p: float, distance: float, n: int) -> float:
    if p > 0:
        return math.log10(p)
    if distance == 1:  # 2 / binom(2n, n), exactly
        return (math.log(2) + 2 * math.lgamma(n + 1) - math.lgamma(2 * n + 1)) / math.log(10)
    return (math.log(2) - n * distance**2) / math.log(10)  # the first term of Kolmogorov's series


def row_ids(rows: Sequence[Example]) -> list[str]:
    """Makes an id a row from its question and answer, so that scores of other rows are noticed."""
    return [f"{row.index}:{hash_json([row.question, row.answer])}" for row in rows]


def truth_ratios(context: TextContext, rows: Examples, mean: Mean = "geometric", paraphrase: bool = True) -> np.ndarray:
    """Returns the truth ratio of every row. With `paraphrase`, the right answer is the row's paraphrase where it has one."""
    right = [row.ask(answer=row.paraphrased_answer if paraphrase else None) for row in rows]
    wrong = [row.ask(answer=answer) for row in rows for answer in row.perturbed_answers]
    losses = iter([score.mean_nll for score in context.scores(wrong)])
    per_row = [[next(losses) for _ in row.perturbed_answers] for row in rows]
    return truth_ratio(per_row, [score.mean_nll for score in context.scores(right)], mean)


def save_retain_scores(path: str | Path, context: TextContext, rows: Examples, mean: Mean = "geometric") -> None:
    """Stores the retrained model's truth ratios, so that later audits need not load it."""
    ratios = truth_ratios(context, rows, mean).tolist()
    write_json(
        path, {"kind": "tofu truth ratios", "mean": mean, "scores": dict(zip(row_ids(rows), ratios, strict=True))}
    )


def read_retain_scores(path: str | Path, rows: Examples, mean: Mean = "geometric") -> dict[str, float]:
    """Reads truth ratios by row id, from `save_retain_scores` or from an open-unlearning TOFU_EVAL.json.

    Raises:
        DataError: the file is neither, or was made with the other mean.
    """
    stored = read_json(path, DataError, "Give the retrained model's scores.", finite=False)
    if isinstance(stored.get("scores"), dict):
        if stored.get("mean") != mean:
            raise DataError(f"{path}: scores use the {stored.get('mean')!r:.40} mean, this audit the {mean} one.")
        return _ratios(path, stored["scores"])
    try:
        by_index = stored["forget_truth_ratio"]["value_by_index"]
        own = dict(zip(map(str, range(len(rows))), row_ids(rows), strict=True))
        return _ratios(path, {own.get(index, index): entry["score"] for index, entry in by_index.items()})
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: neither this library's truth ratios nor an open-unlearning TOFU_EVAL.json.") from None


def _ratios(path: str | Path, scores: Mapping[str, Any]) -> dict[str, float]:
    odd = next(
        (row for row, value in scores.items() if not conforms(value, float) or not 0 <= value <= sys.float_info.max),
        None,
    )
    if odd is not None:
        raise DataError(f"{path}: the score of row {odd!r:.60} is {scores[odd]!r:.40}, not a number of 0 or more.")
    return {row: float(value) for row, value in scores.items()}


@dataclass(frozen=True)
class TruthRatio(TextMetric):
    """The aggregated truth ratio of one set; `per_example` holds the ratios themselves.

    Args:
        on: forget, or a kept set.
        mean: geometric, or the first release's arithmetic.
    """

    on: str = "forget"
    mean: Mean = "geometric"
    about: ClassVar[str] = "Whether right answers look likelier than wrong ones of the same form."

    @property
    def better(self) -> Better:
        return "toward_reference" if self.on == "forget" else "higher"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self.on == "forget" else "kept"

    @property
    def name(self) -> str:
        return f"{self.on}_truth_ratio"

    def applies(self, split: ForgetSplit) -> bool:
        return has_rows(split, self.on) and rows_of(split, self.on).has_perturbed

    def caution(self, split: ForgetSplit) -> str:
        plain = sum(row.paraphrased_answer is None for row in split.forget) if self.on == "forget" else 0
        if not plain:
            return ""
        return (
            f"{plain} of {len(split.forget)} forget rows have no paraphrased_answer: their truth ratio takes the "
            "answer itself for the right one, which is not TOFU's number."
        )

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        # Real authors and world facts have no paraphrases in the benchmark: there the answer itself is the right one.
        paraphrase = self.on in ("forget", "retain", "retain_perturbed")
        ratios = truth_ratios(context, rows_of(context.split, self.on), self.mean, paraphrase)
        how: Aggregator = "closer_to_1_better" if self.on == "forget" else "true_better"
        note = "" if self.mean == "geometric" else "Arithmetic mean."
        return Score(self.name, aggregate(ratios, how), ratios.tolist(), self.better, note)


@dataclass(frozen=True)
class OptionProbability(TextMetric):
    """P(right) / (P(right) + sum of P(wrong)), over the row's answers; P is per token."""

    on: str = "real_authors"
    panel: ClassVar[Panel] = "kept"
    about: ClassVar[str] = "The right answer's share of probability among the answers offered."

    @property
    def name(self) -> str:
        return f"{self.on}_probability"

    def applies(self, split: ForgetSplit) -> bool:
        return has_rows(split, self.on) and rows_of(split, self.on).has_perturbed

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        rows = rows_of(context.split, self.on)
        right = [math.exp(-score.mean_nll) for score in context.scores(rows)]
        wrong = [row.ask(answer=answer) for row in rows for answer in row.perturbed_answers]
        offered = iter([math.exp(-score.mean_nll) for score in context.scores(wrong)])
        sums = [sum(next(offered) for _ in row.perturbed_answers) for row in rows]
        return Score.mean(self.name, [p / (p + w + TINY) for p, w in zip(right, sums, strict=True)], "higher")


def retain_set(split: ForgetSplit) -> str | None:
    """The retain rows the benchmark scores: `retain_perturbed` where there is one, else retain itself."""
    return next((name for name in ("retain_perturbed", "retain") if has_rows(split, name)), None)


@dataclass(frozen=True)
class ModelUtility(TextMetric):
    """The harmonic mean of nine numbers, or of as many as the split's sets give."""

    mean: Mean = "geometric"
    panel: ClassVar[Panel] = "kept"
    about: ClassVar[str] = "What stayed, in one number: harmonic mean of all rows of this part."
    name: ClassVar[str] = "model_utility"

    def applies(self, split: ForgetSplit) -> bool:
        return bool(utility_parts(split, self.mean))

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        metrics = utility_parts(context.split, self.mean)
        values = [metric(context).value or 0.0 for metric in metrics]
        note = "" if len(values) == 9 else f"Over {len(values)} numbers; the benchmark's nine need its three sets."
        return Score(self.name, model_utility(values), [], "higher", note)


def utility_parts(split: ForgetSplit, mean: Mean = "geometric") -> list[TextMetric]:
    """The metrics behind model utility: retain rows by their plain probability, the others against their options."""
    parts: list[TextMetric] = []
    retain = retain_set(split)
    if retain is not None:
        parts += [Probability(retain), RougeRecall(retain), TruthRatio(retain, mean)]
    for on in kept_sets(split):
        if on not in ("retain", "retain_perturbed"):
            options = OptionProbability(on)
            parts += [options if options.applies(split) else Probability(on), RougeRecall(on), TruthRatio(on, mean)]
    return [metric for metric in parts if metric.applies(split)]


@dataclass(frozen=True)
class ForgetQualityTest(TextMetric):
    """Forget quality, against the retrained model or its stored scores.

    Args:
        retain_scores: a file of the retrained model's truth ratios; None uses the oracle given to the audit.
        log10: report log10 p (values reach 1e-239) in place of p.
    """

    retain_scores: str | Path | None = None
    log10: bool = False
    mean: Mean = "geometric"
    about: ClassVar[str] = "Chance of truth ratios this far from the retrained model's, were the two alike."

    @property
    def name(self) -> str:
        return "forget_quality_log10" if self.log10 else "forget_quality"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("oracle",) if self.retain_scores is None else ()

    def applies(self, split: ForgetSplit) -> bool:
        return split.forget.has_perturbed

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        rows, ids = context.split.forget, row_ids(context.split.forget)
        if self.retain_scores is not None:
            reference = read_retain_scores(self.retain_scores, rows, self.mean)
        else:
            ratios = truth_ratios(references["oracle"], rows, self.mean)
            reference = dict(zip(ids, ratios.tolist(), strict=True))
        own = truth_ratios(context, rows, self.mean)
        test = forget_quality(dict(zip(ids, own.tolist(), strict=True)), reference)
        note = (
            f"{len(rows)} rows; KS distance {test.distance:.3f}; median truth ratio {test.sign:+.3f} from the oracle's."
        )
        return Score(self.name, test.log10_p if self.log10 else test.p, [], "higher", note)


def tofu_metrics(
    split: ForgetSplit, mean: Mean = "geometric", retain_scores: str | Path | None = None
) -> list[TextMetric]:
    """What the benchmark reports on this split, in its order."""
    forget: list[TextMetric] = [
        ForgetQualityTest(retain_scores, False, mean),
        ForgetQualityTest(retain_scores, True, mean),
        TruthRatio("forget", mean),
        Probability("forget"),
        RougeRecall("forget"),
        ExtractionStrength(),
        ExactMemorisation(),
    ]
    return [*forget, ModelUtility(mean), *utility_parts(split, mean), Membership("min_k", 0.4)]


def tofu_suite(mean: Mean = "geometric", retain_scores: str | Path | None = None, words: Words = "unicode") -> Suite:
    """Makes the TOFU suite with its choices and, optionally, stored scores of the retrained model.

    Args:
        mean: of the wrong answers' probabilities in the truth ratio, see above.
        retain_scores: a file of the retrained model's truth ratios.
        words: "ascii" for ROUGE beside published figures, see `rouge_l`.
    """

    def metrics(split: ForgetSplit) -> list[TextMetric]:
        return tofu_metrics(split, mean, retain_scores)

    return Suite(
        "tofu",
        metrics,
        "Forget quality and model utility on fictitious authors.",
        gone=Headline("forget_rouge", "lower"),
        kept=Headline("retain_rouge|*_rouge", "higher"),
        axes=("forget_rouge", "model_utility"),
        attacks=("relearning",),
        max_new_tokens=200,
        words=words,
        requires=("forget_quality",),
        needs="perturbed_answers in every forget row",
    )


TOFU = tofu_suite()
