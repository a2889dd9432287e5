"""Answer log-likelihood, batched greedy generation and ROUGE: what objectives, stopping and metrics share."""

from .generation import generate_answers
from .likelihood import AnswerScore, head_at, logits_at, prediction_mask, score_answers, sum_rows, token_nll
from .rouge import Rouge, rouge_l

__all__ = [
    "AnswerScore",
    "Rouge",
    "generate_answers",
    "head_at",
    "logits_at",
    "prediction_mask",
    "rouge_l",
    "score_answers",
    "sum_rows",
    "token_nll",
]
