"""What a loss needs from the model before unlearning: computed once, kept by row, never a second live model.

Answer nlls are one number a row. Logits over the vocabulary would be 50,000 numbers a token, so the head's input
is kept instead (a few hundred) and the logits are rebuilt from it with a frozen copy of the head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ....data.text.encoding import IGNORE, Encoded, pad
from ....errors import MethodError, setting
from ....runs import cached_files, hash_json, model_key, progress
from ....scoring.batches import by_length
from ..batch import BatchPart, KLMask, PairedBatch, make_parts, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "reference.safetensors"
_NO_HEAD = "a KL term needs a model with one vocabulary head; {} has none. Use retain_loss='nll'."


class FrozenHead(nn.Module):
    """The vocabulary head as it was, with the soft-capping or scaling that the architecture applies after it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise MethodError(_NO_HEAD.format(type(model).__name__))
        shared = all(not p.requires_grad for p in head.parameters())
        self.head = head if shared else copy.deepcopy(head)
        self.head.requires_grad_(False)
        self.soft_cap = getattr(model.config, "final_logit_softcapping", None)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        """[positions, d] to [positions, vocab]."""
        logits = nn.functional.linear(hidden, self.head.weight, getattr(self.head, "bias", None))
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


@dataclass
class Reference:
    """Values of the model before unlearning, by part and row.

    Args:
        nll: {part: [rows]}, indexed by the row's stable number; NaN where it was not computed.
        hidden: {part: {row: [positions, d]}} going into the head.
        layers: {layer: {row: [length, d]}} block outputs on retain rows.
        head: rebuilds logits from `hidden`.
    """

    nll: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    layers: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    head: FrozenHead | None = None

    def attach(self, batch: PairedBatch[BatchPart]) -> None:
        """Fills the reference fields of each part of a batch."""
        for name, part in batch.present():
            rows = part.index.tolist()
            if name in self.nll:
                part.reference = self.nll[name].to(part.index.device)[part.index]
            if name in self.hidden and self.head is not None:
                # With kl_mask="all" a row is kept at the longest width and cut to this batch's.
                counts = part.where.sum(1).tolist()
                states = [self.hidden[name][row][:n] for row, n in zip(rows, counts, strict=True)]
                part.reference_logits = self.head(torch.cat(states).to(part.index.device))
            if name == "retain":
                part.reference_hidden = {
                    layer: _stack([values[row] for row in rows], part) for layer, values in self.layers.items()
                }


def _stack(rows: list[Tensor], part: BatchPart) -> Tensor:
    """Rows [length_i, d] to [rows, length, d] on the part's attended positions."""
    out = torch.zeros(*part.input_ids.shape, rows[0].shape[-1], dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : row.shape[0]] = row
    return out.to(part.input_ids.device)


@dataclass(frozen=True)
class Wanted:
    """What to compute, and on which rows."""

    nll: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    retain_mask: KLMask | None = None


@torch.no_grad()
def compute(
    model: PreTrainedModel,
    wanted: Wanted,
    rows: dict[str, Sequence[Encoded]],
    *,
    blocks: list[nn.Module],
    pad_id: int,
    batch_size: int,
    disk: bool = True,
) -> Reference:
    """One pass of the model, as it is now, over the rows; kept on disk by content.

    Args:
        rows: {part: encoded rows}; only parts named in `wanted` are run.
    """
    key = hash_json(
        [model_key(model), wanted, {n: [(r.input_ids, r.labels, r.index) for r in v] for n, v in rows.items()}]
    )
    if disk:
        reference = cached_files(
            "references",
            key,
            lambda folder: _write(_run(model, wanted, rows, blocks, pad_id, batch_size), folder / FILE),
            lambda folder: _read(folder / FILE),
        )
    else:
        reference = _run(model, wanted, rows, blocks, pad_id, batch_size)
    if wanted.logits:
        reference.head = FrozenHead(model)
        _check_head(model, reference, wanted, rows, pad_id)
    return reference


def _run(
    model: PreTrainedModel,
    wanted: Wanted,
    rows: dict[str, Sequence[Encoded]],
    blocks: list[nn.Module],
    pad_id: int,
    batch_size: int,
) -> Reference:
    reference = Reference()
    was_training = model.training
    model.eval()
    for name in sorted({*wanted.nll, *wanted.logits, *(("retain",) if wanted.layers else ())}):
        part_rows = rows[name]
        layers = wanted.layers if name == "retain" else ()
        need_logits = name in wanted.nll or name in wanted.logits
        mask = wanted.retain_mask if name == "retain" else None
        for picked in progress(by_length([len(r.input_ids) for r in part_rows], batch_size), f"reference on {name}"):
            tensors = pad([part_rows[i] for i in picked], pad_id)
            if mask == "all":
                tensors = _padded_to(max(len(r.input_ids) for r in part_rows), tensors, pad_id)
            batch = make_parts({name: {k: v.to(model.device) for k, v in tensors.items()}}, mask)
            part = batch[name]
            run(model, batch, layers=layers, blocks=blocks, logits=need_logits)
            if name in wanted.nll:
                store = reference.nll.setdefault(name, torch.full((1 + max(r.index for r in part_rows),), torch.nan))
                store[part.index.cpu()] = part.nll.float().cpu()
            if name in wanted.logits:
                if part.head_input is None:
                    raise MethodError(_NO_HEAD.format(type(model).__name__))
                pieces = part.head_input.cpu().split(part.where.sum(1).tolist())
                reference.hidden.setdefault(name, {}).update(zip(part.index.tolist(), pieces, strict=True))
            for layer in layers:
                states = [part.hidden[layer][i, : int(n)].cpu() for i, n in enumerate(part.attention_mask.sum(1))]
                reference.layers.setdefault(layer, {}).update(zip(part.index.tolist(), states, strict=True))
    model.train(was_training)
    return reference


def _padded_to(length: int, tensors: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE}
    return {
        name: nn.functional.pad(value, (0, length - value.shape[1]), value=fill[name]) if name in fill else value
        for name, value in tensors.items()
    }


def _check_head(
    model: PreTrainedModel, reference: Reference, wanted: Wanted, rows: dict[str, Sequence[Encoded]], pad_id: int
) -> None:
    """Rebuilt logits must be the model's own; an architecture with another rule after its head is refused."""
    name = wanted.logits[0]
    was_training = model.training
    model.eval()
    first = {k: v.to(model.device) for k, v in pad([rows[name][0]], pad_id).items()}
    batch = make_parts({name: first}, wanted.retain_mask if name == "retain" else None)
    run(model, batch, logits=True)
    reference.attach(batch)
    model.train(was_training)
    part = batch[name]
    assert part.logits is not None
    assert part.reference_logits is not None
    if not torch.allclose(part.logits.float(), part.reference_logits.float(), rtol=1e-2, atol=1e-2):
        raise MethodError(
            f"{type(model).__name__} changes its logits after the head in a way that is not known here, so a KL "
            f"retain term can't be rebuilt. Use {setting('retain_loss', 'nll')}."
        )


def _write(reference: Reference, path: Path) -> None:
    flat = {f"nll|{name}": values for name, values in reference.nll.items()}
    for name, hidden in reference.hidden.items():
        flat |= {f"hidden|{name}|{row}": value.contiguous() for row, value in hidden.items()}
    for layer, states in reference.layers.items():
        flat |= {f"layers|{layer}|{row}": value.contiguous() for row, value in states.items()}
    save_file(flat, path)


def _read(path: Path) -> Reference:
    reference = Reference()
    for key, value in load_file(path).items():
        kind, name, *row = key.split("|")
        if kind == "nll":
            reference.nll[name] = value
        elif kind == "hidden":
            reference.hidden.setdefault(name, {})[int(row[0])] = value
        else:
            reference.layers.setdefault(int(name), {})[int(row[0])] = value
    return reference
