"""Answer log-likelihood, batched greedy generation and ROUGE: what objectives, stopping and metrics share."""

from .extraction import Extraction, Passage, extraction, secret_passages
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
from .thresholds import Thresholds, calibrate_threshold

__all__ = [
    "WORDS",
    "AnswerScore",
    "Extraction",
    "Passage",
    "Rouge",
    "Thresholds",
    "Words",
    "calibrate_threshold",
    "end_ids",
    "extraction",
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
    "secret_passages",
    "sum_rows",
    "token_nll",
]
