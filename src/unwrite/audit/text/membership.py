"""Membership inference: can one tell rows the model was trained on from rows like them that it never saw?

Every attack gives each row a score that is high when it looks unseen; the number reported is
AUC = P(holdout scores above forget) + P(tie)/2: 1 when the forget rows stick out as familiar, 0.5 when nothing tells
them apart, towards 0 when unlearning overshot.

loss; zlib (loss over compressed length, Carlini et al., USENIX Security 2021); reference (loss less a reference
model's loss); gradnorm (size of the loss gradient, arXiv 2402.17012); Min-K% (mean of the least likely K % of
tokens, arXiv 2310.16789); Min-K%++ (the same after standardising each log p under the model's own next-token
distribution, arXiv 2404.02936).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...data.text.examples import Example
from ...errors import DataError, MethodError, unknown
from ...scoring import AnswerScore
from ..base import ALONE, Better, Panel, Score
from .context import TextContext
from .metric import TextMetric
from .rows import rows_of

AttackName = Literal["loss", "zlib", "reference", "gradnorm", "min_k", "min_k++"]
ATTACKS: tuple[AttackName, ...] = ("loss", "zlib", "reference", "gradnorm", "min_k", "min_k++")


def auc(lower: Sequence[float], higher: Sequence[float]) -> float:
    """Returns P(a value of `higher` exceeds one of `lower`) + P(tie)/2.

    Raises:
        DataError: one side is empty.
    """
    from scipy.stats import rankdata

    if len(lower) == 0 or len(higher) == 0:
        raise DataError("an AUC needs rows on both sides; give a forget set and a holdout set.")
    ranks = rankdata([*lower, *higher])  # ties share their mean rank
    n, m = len(lower), len(higher)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def min_k(log_probs: Sequence[float], k: float = 0.4) -> float:
    """Returns minus the mean of the lowest max(1, int(k * T)) of the token log-probabilities [T]; high = looks unseen."""
    if not 0 < k <= 1:
        raise MethodError(f"min-k takes a fraction of the tokens in (0, 1], not {k}.")
    if len(log_probs) == 0:
        raise DataError("min-k needs at least one token log-probability per row.")
    lowest = np.sort(np.asarray(log_probs, dtype=np.float64))[: max(1, int(k * len(log_probs)))]
    return -float(lowest.mean())


def min_k_plus_plus(score: AnswerScore, tokens: slice, k: float = 0.2) -> float:
    """Min-K% of (log p - mean) / deviation, both under the model's own next-token distribution."""
    log_p = -np.asarray(score.token_nll[tokens])
    z = (log_p - np.asarray(score.mean_log_prob[tokens])) / np.asarray(score.std_log_prob[tokens])
    return min_k(z.tolist(), k)


def gradient_norm(context: TextContext, row: Example, p: float = 2.0) -> float:
    """Mean over parameters of the p-norm of d(mean token loss)/d(parameter), for one row."""
    import torch

    from ...data.text.encoding import pad
    from ...scoring import logits_at, prediction_mask, token_nll

    model = context.model
    was_training, device = model.training, next(model.parameters()).device
    windows = context.encoded([row])[0]
    parameters = [q for q in model.parameters() if q.requires_grad]
    scored = sum(window.targets for window in windows) - (0 if row.is_text else 1)
    total: dict[int, Any] = {}
    model.eval()
    for window in windows:
        tensors = pad([window], context.tokenizer.pad_token_id)
        ids, mask = tensors["input_ids"].to(device), tensors["attention_mask"].to(device)
        labels = tensors["labels"].to(device)
        where = prediction_mask(labels)
        with torch.enable_grad():
            logits, _ = logits_at(model, ids, mask, where)
            losses = token_nll(logits, labels[:, 1:][where[:, :-1]])
            loss = losses[_scored(row)].sum() / scored
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                total[i] = total[i] + gradient if i in total else gradient
    model.train(was_training)
    return float(torch.stack([g.float().norm(p=p) for g in total.values()]).mean())


def _scored(row: Example) -> slice:
    # The end token of an answer says little about having been trained on; plain text has none.
    return slice(None) if row.is_text else slice(None, -1)


@dataclass(frozen=True)
class Membership(TextMetric):
    """AUC of one attack between the forget and the holdout rows. `per_example` holds the forget rows' scores.

    Args:
        attack: loss, zlib, reference, gradnorm, min_k or min_k++.
        k: fraction of tokens for the two min-k attacks (0.4 in MUSE and TOFU, 0.2 in Min-K%++).
        reference: the reference attack's model; None takes the oracle, else the model before.
    """

    attack: AttackName = "min_k"
    k: float = 0.4
    reference: Any = None
    needs: ClassVar[tuple[str, ...]] = ("forget", "holdout")
    better: ClassVar[Better] = "toward_reference"
    panel: ClassVar[Panel] = "privacy"
    about: ClassVar[str] = "How well an attacker tells forget rows from unseen ones: 0.5 is chance, 1 is certain."

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise MethodError(unknown("membership attack", self.attack, ATTACKS))

    @property
    def goes_first(self) -> bool:
        """Its pass gives the moments of log p, and serves the others, too."""
        return self._reads_moments

    @property
    def name(self) -> str:
        return f"{self.attack.replace('++', 'pp')}_auc"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("oracle|before",) if self.attack == "reference" and self.reference is None else ()

    @property
    def _reads_moments(self) -> bool:
        return self.attack == "min_k++"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        forget = self.values(context, rows_of(context.split, "forget"), references)
        holdout = self.values(context, rows_of(context.split, "holdout"), references)
        return Score(self.name, auc(forget, holdout), list(forget), self.better)

    def values(
        self, context: TextContext, rows: Sequence[Example], references: Mapping[str, TextContext] = ALONE
    ) -> list[float]:
        """Returns one score per row, high where it looks unseen."""
        if self.attack == "gradnorm":
            encoded = [[[part.input_ids, part.prompt_length] for part in row] for row in context.encoded(rows)]
            return context.remember("gradnorm", encoded, lambda: [gradient_norm(context, row) for row in rows])
        scores = context.scores(rows, moments=self._reads_moments)
        if self.attack == "min_k":
            return [min_k([-v for v in s.token_nll[_scored(r)]], self.k) for s, r in zip(scores, rows, strict=True)]
        if self.attack == "min_k++":
            return [min_k_plus_plus(s, _scored(r), self.k) for s, r in zip(scores, rows, strict=True)]
        losses = [score.mean_nll for score in scores]
        if self.attack == "zlib":
            sizes = [len(zlib.compress(row.answer.encode())) for row in rows]
            return [loss / size for loss, size in zip(losses, sizes, strict=True)]
        if self.attack == "reference":
            base = [score.mean_nll for score in self._reference(context, references).scores(rows)]
            return [loss - other for loss, other in zip(losses, base, strict=True)]
        return losses

    def _reference(self, context: TextContext, references: Mapping[str, TextContext]) -> TextContext:
        if self.reference is not None:
            return context.of(self.reference)
        return references["oracle" if "oracle" in references else "before"]
