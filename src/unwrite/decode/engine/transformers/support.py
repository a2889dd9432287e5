"""How far a tree is what a model's own `generate` computes, decided at the first sight of an architecture and its config.

Three questions, the cheap ones first:

    may it run at all?    a decoder with a causal head, whose `generate` runs                     else refused
    does it take trees?   position ids, masks of one's own, a cache of keys and values            else plain steps
    up to which length?   the shortest window, chunk or rope switch that config or modules name   beyond it plain steps

The first and the last are read from config and modules (`limits`). What can be measured with a dozen tokens is (`tree_check`): a small
tree against the same branches in the model's own steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....errors import ModelError
from ....models import unwrap
from . import tree_check
from .limits import Support, columns, decoders, limits, never
from .model_check import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["able", "support_of", "why_plain"]

SMALLEST = 8  # tokens: behind a shorter limit no draft is worth its trouble

_KNOWN: dict[Any, Support] = {}


def support_of(model: PreTrainedModel) -> Support:
    """What is known of this class with this config, after the first model of the kind from memory."""
    key = _key(model)
    known = _KNOWN.get(key) or _decide(model)
    if not known.fault:  # what failed may run another time
        _KNOWN[key] = known
    return known


def able(model: PreTrainedModel) -> Support:
    """The same, of a model that decodes.

    Raises:
        ModelError: not even its own steps run.
    """
    support = support_of(model)
    if support.fault:
        also = f" It {support.why}." if support.plain else ""
        raise ModelError(
            f"{type(model).__name__} does not generate from token ids alone ({support.fault}).{also} Use another causal model."
        )
    return support


def why_plain(model: PreTrainedModel) -> str | None:
    """Why a model decodes plainly at every length, as a sentence; None where drafts run.

    Raises:
        ModelError: it does not decode at all; see `check_model` and `able`.
    """
    model = unwrap(model)
    check_model(model)
    support = able(model)
    return f"{type(model).__name__} {support.why}." if support.plain else None


def _key(model: PreTrainedModel) -> tuple[Any, ...]:
    """Class, config and attention of the model and of every one inside it."""
    parts = [(type(part), repr(vars(part.config)), part.config._attn_implementation) for part in decoders(model)]
    return tuple(parts)


def _decide(model: PreTrainedModel) -> Support:
    if why := never(model):
        return Support(0, why, fault=tree_check.own_fault(model))
    limit, why = min(limits(model), default=(None, ""))
    if limit is not None and limit < SMALLEST:
        return Support(0, why, fault=tree_check.own_fault(model))
    if why_not := tree_check.disagreement(model):
        return Support(0, why_not, fault=tree_check.own_fault(model))
    return Support(limit, why, min(columns(model), default=None))
