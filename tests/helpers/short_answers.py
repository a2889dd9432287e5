"""Audits in tests have answers of a few tokens: a random model never ends one, and most of an audit's time is spent on them."""

from collections.abc import Sequence

from unwrite.audit.text.context import TextContext

LEAST = 8
ROOM = TextContext.room  # as it is outside the tests


def room(context: TextContext, references: Sequence[str]) -> int:
    """Twice the longest reference, as ever, but at least 8 tokens in place of 32."""
    lengths = [len(context.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in references]
    return min(ROOM(context, references), max(LEAST, 2 * max(lengths, default=0)))
