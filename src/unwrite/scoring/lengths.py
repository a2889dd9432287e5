"""How many tokens a row may have: what was asked for, within what the model has positions for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..data.text.encoding import MAX_LENGTH
from ..errors import DataError, ModelError, setting

if TYPE_CHECKING:
    from torch import nn

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def positions_of(model: nn.Module) -> int | None:
    """How many positions a model was made for; None where its configuration names no limit."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limits = (getattr(config, name, None) for name in _NAMES)
    return next((value for value in limits if isinstance(value, int) and value > 0), None)


def row_length(model: nn.Module, limit: int | None = None, default: int = MAX_LENGTH) -> int:
    """Tokens a row may have.

    Args:
        limit: what the user wants; None takes the default, or all of the model's positions where there are fewer.

    Raises:
        DataError: fewer than 2 tokens.
        ModelError: more than the model has positions for.
    """
    positions = positions_of(model)
    if limit is None:
        return default if positions is None else min(default, positions)
    if limit < 2:
        raise DataError(
            f"{setting('max_length')} is {limit}; a row needs at least 2 tokens, one to read and one to predict."
        )
    if positions is not None and limit > positions:
        raise ModelError(
            f"{setting('max_length')} is {limit}, but the model has positions for {positions} tokens. Use at most {positions}."
        )
    return limit
