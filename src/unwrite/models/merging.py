"""Adapters folded into the weights they change, so that the merged model answers as the adapted one did.

An embedding and a head that share one weight can't both take what was learned for one of them: folded into the shared
weight, the head's adapter would change the embedding too. So a layer with an adapter gets a weight of its own before
the merge, and the model says afterwards that the two are no longer tied (unless both learned the same).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ModelError
from .agreement import allowed, disagreement, outputs, short_batch
from .checkpoints import first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["merged"]


def merged(model: PeftModel, *, in_place: bool = False) -> nn.Module:
    """The plain model with the adapters of a PeftModel in its weights.

    Its outputs on a short batch are compared with the adapted model's before it is given out.

    Args:
        model: a PeftModel, of any kind of adapter that has a place in the weights (LoRA, DoRA, IA3, LoHa, ...).
        in_place: use the model's own weights; the PeftModel is useless afterwards. By default it stays as it is.

    Raises:
        ModelError: no adapter, a kind that has no place in the weights (prompts, biases where there are none), or a
            merged model that answers otherwise than the adapted one.
    """
    if not hasattr(model, "merge_and_unload"):
        why = (
            "has none" if not hasattr(model, "peft_config") else f"has one that only adds to the input ({_kind(model)})"
        )
        raise ModelError(f"merge=True needs an adapter to merge, and this {type(model).__name__} {why}. Leave it out.")
    kind = _kind(model)
    batch = short_batch(model)
    expected = None if batch is None else outputs(model, batch)
    try:
        whole = model if in_place else _copy(model)
        tied = _own_weights(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of ties that are handled here
            plain = whole.merge_and_unload(safe_merge=True)
    except Exception as error:  # whatever the kind of adapter can't do
        raise ModelError(
            f"the {kind} adapter cannot be merged: {first_line(error)} Save it with merge=False."
        ) from error
    if tied:
        _tie_again(plain)
    if batch is not None and expected is not None:
        distance = disagreement(outputs(plain, batch), expected)
        if not distance <= allowed(plain):
            raise ModelError(
                f"merging the {kind} adapter gives another model: its outputs differ by {distance:.2g} of their size. "
                "Save it with merge=False."
            )
    return plain


def _kind(model: PeftModel) -> str:
    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()}
    return ", ".join(sorted(kinds))


def _copy(model: PeftModel) -> PeftModel:
    """A deep copy; tensors that are computed from weights (peft ties two adapters so) are copied as values."""
    computed = [tensor for module in model.modules() for tensor in _tensors(vars(module)) if not tensor.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _own_weights(model: nn.Module) -> bool:
    """Gives every layer under an adapter its own copy of a weight that other layers share; True if there was one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    shared = False
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        base = layer.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            if owners.get(id(weight), 0) > 1:
                setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))
                shared = True
    return shared


def _tie_again(model: PreTrainedModel) -> None:
    """Shares one weight where embedding and head are still equal; otherwise says that they are two."""
    if not hasattr(model, "get_output_embeddings"):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    same = head is not None and torch.equal(head.weight, embedding.weight)
    if head is not None and same:
        head.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = same
    if hasattr(model, "get_expanded_tied_weights_keys"):
        before = getattr(model, "all_tied_weights_keys", None) or {}
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        _part(model, before.keys() - model.all_tied_weights_keys.keys())


def _part(model: nn.Module, names: Iterable[str]) -> None:
    """Gives each of these weights a tensor of its own where another layer still shares it."""
    for name in sorted(names):
        place, _, own = name.rpartition(".")
        weight = model.get_parameter(name)
        users = [key for key, other in model.named_parameters(remove_duplicate=False) if other is weight]
        if len(users) > 1:
            copied = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            setattr(model.get_submodule(place), own, copied)
