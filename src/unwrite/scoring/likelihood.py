"""Answer log-likelihood: one forward pass, the vocabulary head only at positions that are scored.

With V = 49,152 the head costs as much as a dozen blocks, and most positions (prompt, padding) need no logits.
A pre-hook on the head picks the wanted rows, so everything a model does after it (soft-capping, scaling) still
happens. Models without a plain head (guards that combine logits) are run in full and indexed.

    nll(answer | prompt) = - sum_t log p(y_t | x, y_<t),   in nats, t over labels != -100, computed in float32
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.text.encoding import IGNORE, Encoded, pad
from ..errors import DataError
from ..runs import progress
from .batches import by_length

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass
class HeadTap:
    """What passed through the head: `hidden` [positions, d] going in, in row-major order of a mask, or [rows, n, d] at columns; None
    where the model has no head of its own."""

    hidden: Tensor | None = None


@contextlib.contextmanager
def head_at(model: PreTrainedModel, where: Tensor, shape: tuple[int, ...] | None = None) -> Iterator[HeadTap]:
    """Within the block the model's head sees only some positions.

    Args:
        where: [rows, length] bool, true at those positions; or [rows, n] their column numbers, as many in every row.
        shape: rows and length of the forward that is meant, where `where` holds column numbers.
    """
    expected = torch.Size(where.shape if shape is None else shape)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tap = HeadTap()
    if head is None:
        yield tap
        return

    def pick(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        if hidden.dim() != 3 or hidden.shape[:2] != expected:
            return inputs
        if where.dtype == torch.bool:
            tap.hidden = hidden[where]
        else:
            tap.hidden = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))
        return (tap.hidden, *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield tap
    finally:
        handle.remove()


def prediction_mask(labels: Tensor) -> Tensor:
    """True where a logit predicts a label: one position before each label. labels, result: [rows, length]."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE
    return mask


def logits_at(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, where: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Logits [positions, vocab] at the true positions of `where` [rows, length], and the head's input there.

    The second value is None for models whose logits don't come out of one head.
    """
    with head_at(model, where) as tap:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    if logits.dim() == 3:
        logits = logits[where]
    return logits, tap.hidden


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position in float32. logits: [positions, vocab]; targets, result: [positions].

    log-sum-exp adds up in a tree; the fused kernel's running sum is off by 1e-5 a token over large vocabularies on some
    processors, which a sum over an answer multiplies.
    """
    scores = logits.float()
    return scores.logsumexp(-1) - scores.gather(-1, targets[:, None])[:, 0]


def sum_rows(values: Tensor, where: Tensor) -> Tensor:
    """Sums position values [positions] (row-major in `where` [rows, length]) into [rows]."""
    rows = torch.nonzero(where)[:, 0]
    return torch.zeros(where.shape[0], dtype=values.dtype, device=values.device).index_add(0, rows, values)


@dataclass(frozen=True)
class AnswerScore:
    """What one forward pass says about one answer.

    Args:
        token_nll: nats per label token, end token included.
        correct: whether the most likely token was the label (teacher forced), per token.
        mean_log_prob, std_log_prob: mean and deviation of log p under the model's own next-token
            distribution, per token (Min-K%++); empty unless asked for.
    """

    token_nll: list[float]
    correct: list[bool]
    mean_log_prob: list[float]
    std_log_prob: list[float]
    index: int = 0

    @property
    def nll(self) -> float:
        """Summed over tokens, in nats."""
        return sum(self.token_nll)

    @property
    def mean_nll(self) -> float:
        """Per token: TOFU's length-normalised loss."""
        return self.nll / len(self.token_nll)

    @classmethod
    def joined(cls, windows: Sequence[AnswerScore]) -> AnswerScore:
        """The score of a text from those of its windows, in order."""
        if len(windows) == 1:
            return windows[0]
        return cls(
            [value for window in windows for value in window.token_nll],
            [value for window in windows for value in window.correct],
            [value for window in windows for value in window.mean_log_prob],
            [value for window in windows for value in window.std_log_prob],
            index=windows[0].index,
        )


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    batch_size: int = 16,
    moments: bool = False,
    label: str = "scoring",
) -> list[AnswerScore]:
    """Scores every row; results are in the order given and don't depend on the batch size or padding.

    Args:
        moments: also the mean and deviation of log p under the model's own distribution (needs the whole row).

    Raises:
        DataError: a row without a label to predict, or logits that are not finite.
    """
    for row in rows:
        if row.targets == 0:
            raise DataError(f"row {row.index} has no answer token to score: all its labels are masked.")
    scores: list[AnswerScore | None] = [None] * len(rows)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = by_length([len(row.input_ids) for row in rows], batch_size)
    for batch in progress(batches, label):
        tensors = pad([rows[i] for i in batch], pad_id)
        ids, mask = tensors["input_ids"].to(device), tensors["attention_mask"].to(device)
        labels = tensors["labels"].to(device)
        where = prediction_mask(labels)
        logits, _ = logits_at(model, ids, mask, where)
        # -inf is a token a guard has ruled out; a row of nothing else, or a NaN, is damage.
        if logits.isnan().any() or not torch.isfinite(logits).any(dim=-1).all():
            raise DataError("the model's logits are not finite; its weights may be damaged.")
        parts = _position_scores(logits.float(), labels[:, 1:][where[:, :-1]], moments)
        counts = where.sum(1).tolist()
        split = [part.split(counts) if len(part) else None for part in parts]
        for j, i in enumerate(batch):
            nll, correct, mean, std = (s[j].tolist() if s is not None else [] for s in split)
            scores[i] = AnswerScore(nll, correct, mean, std, index=rows[i].index)
    model.train(was_training)
    return [score for score in scores if score is not None]


def score_rows(
    model: PreTrainedModel, rows: Sequence[Sequence[Encoded]], *, pad_id: int, **options: Any
) -> list[AnswerScore]:
    """As `score_answers`, for rows that are lists of windows: one score a row."""
    scored = iter(score_answers(model, [window for row in rows for window in row], pad_id=pad_id, **options))
    return [AnswerScore.joined([next(scored) for _ in row]) for row in rows]


def _position_scores(logits: Tensor, targets: Tensor, moments: bool) -> tuple[Tensor, ...]:
    nll = token_nll(logits, targets)
    correct = logits.argmax(-1) == targets
    if not moments:
        return nll, correct, nll[:0], nll[:0]
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    finite = log_p.masked_fill(p == 0, 0.0)  # 0 * -inf
    mean = (p * finite).sum(-1)
    variance = (p * (finite - mean[:, None]).square()).sum(-1)
    return nll, correct, mean, variance.clamp(min=1e-6).sqrt()
