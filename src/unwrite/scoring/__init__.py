"""Answer log-likelihood, batched greedy generation and ROUGE: what objectives, stopping and metrics share."""

from .generation import end_ids, generate_answers, new_tokens_within, plain_defaults
from .lengths import positions_of, row_length
from .likelihood import (
    AnswerScore,
    head_at,
    logits_at,
    prediction_mask,
    score_answers,
    score_rows,
    sum_rows,
    token_nll,
)
from .rouge import WORDS, Rouge, Words, rouge_l

__all__ = [
    "WORDS",
    "AnswerScore",
    "Rouge",
    "Words",
    "end_ids",
    "generate_answers",
    "head_at",
    "logits_at",
    "new_tokens_within",
    "plain_defaults",
    "positions_of",
    "prediction_mask",
    "rouge_l",
    "row_length",
    "score_answers",
    "score_rows",
    "sum_rows",
    "token_nll",
]
