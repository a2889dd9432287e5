"""A datastore: a model's state at every position of some texts, with the token that comes next.

What a nearest-neighbour language model searches (kNN-LM, arXiv 1911.00172), and what an MLP memory is trained on (arXiv
2508.01832): the key of position t is the input of the last feed-forward part there, its value the label of position t + 1.

    store = build_datastore(model, encoded_rows)        # keys [size, width], values [size]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import DataError, ModelError, setting
from ...runs import hash_tensors, new_folder, progress, read_json, read_tensors, write_json
from .checks import whole
from .tap import Tap, inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Datastore", "EncodedRow", "build_datastore", "states_and_logits"]

_IGNORED = -100
_FORM = 1


class EncodedRow(Protocol):
    """A row of text: token ids and as many labels, -100 for none."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def labels(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Datastore:
    """States of texts, each with the token that follows. A position is named by its number here.

    Args:
        keys: [size, width], any float type.
        values: [size], token numbers.
        vocabulary: how many tokens there are.
        tap: where the states were read.
    """

    keys: Tensor
    values: Tensor
    vocabulary: int
    tap: Tap = field(default_factory=Tap)

    def __post_init__(self) -> None:
        whole("vocabulary", self.vocabulary)
        if self.keys.ndim != 2 or self.values.shape != self.keys.shape[:1] or not len(self.values):
            raise DataError(
                f"keys of shape {tuple(self.keys.shape)} and values of shape {tuple(self.values.shape)} are no "
                "datastore. Give keys [size, width] and one value each."
            )
        if int(self.values.min()) < 0 or int(self.values.max()) >= self.vocabulary:
            raise DataError(
                f"values go from {int(self.values.min())} to {int(self.values.max())}, and the vocabulary has "
                f"{self.vocabulary} tokens. Was it another tokenizer?"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        """Of a key."""
        return self.keys.shape[1]

    @property
    def hash(self) -> str:
        """Of its content."""
        return hash_tensors({"keys": self.keys, "values": self.values})

    def subset(self, positions: Tensor) -> Datastore:
        """Some positions, numbered anew in the order given."""
        return Datastore(self.keys[positions], self.values[positions], self.vocabulary, self.tap)

    def save(self, folder: str | Path) -> None:
        """Writes `store.safetensors` and `store.json` into a folder, whole or not at all."""
        with new_folder(folder) as fresh:
            save_file({"keys": self.keys.contiguous(), "values": self.values.contiguous()}, fresh / "store.safetensors")
            about = {"form": _FORM, "vocabulary": self.vocabulary, "layer": self.tap.layer, "module": self.tap.module}
            write_json(fresh / "store.json", about)

    @classmethod
    def load(cls, folder: str | Path) -> Datastore:
        """Reads what `save` wrote.

        Raises:
            DataError: it isn't there, or is damaged.
        """
        folder = Path(folder)
        about = read_json(folder / "store.json", DataError)
        tensors, _ = read_tensors(folder / "store.safetensors", "datastore", DataError)
        if about.get("form") != _FORM or set(tensors) != {"keys", "values"}:
            raise DataError(f"{folder} holds no datastore that this version reads. Make it again.")
        tap = Tap(about["layer"], about["module"])
        return cls(tensors["keys"], tensors["values"], about["vocabulary"], tap)


def build_datastore(
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    tap: Tap | None = None,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Datastore:
    """The states of a model at every labelled position of rows, in the order of rows and positions.

    Position t is in it if t + 1 is in the row and has a label; so a row's last position never is.

    Args:
        model: a causal language model; it stays as it is.
        tap: where its states are read; the input of the last feed-forward part without.
        batch_size: rows a forward.
        dtype: of the keys.

    Raises:
        DataError: rows without a labelled token after their first, or with other labels than tokens.
        ModelError: see `Tap.of`; a model that is no decoder.
    """
    tap = tap or Tap()
    keys, values = [], []
    vocabulary = 0
    for at in progress(range(0, len(rows), batch_size), "reading states"):
        batch = rows[at : at + batch_size]
        states, logits, labels = states_and_logits(model, batch, tap)
        used = labels != _IGNORED
        keys.append(states[used].to(dtype).cpu())
        values.append(labels[used].cpu())
        vocabulary = logits.shape[-1]
    if not keys or not sum(map(len, values)):
        raise DataError("there is no labelled token after the first of any row. Give rows with labels.")
    return Datastore(torch.cat(keys), torch.cat(values), vocabulary, tap)


@torch.no_grad()
def states_and_logits(model: PreTrainedModel, batch: Sequence[EncodedRow], tap: Tap) -> tuple[Tensor, Tensor, Tensor]:
    """States, logits and next labels of every position but the last, padded on the right.

    Returns:
        states [batch, length - 1, width], logits [batch, length - 1, vocabulary], labels [batch, length - 1], -100 for none.

    Raises:
        DataError, ModelError: as `build_datastore`.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is no decoder: its states have no next token. Give a causal model.")
    module = tap.of(model)
    odd = next((row for row in batch if len(row.input_ids) != len(row.labels)), None)
    if odd is not None:
        raise DataError(f"a row has {len(odd.input_ids)} tokens and {len(odd.labels)} labels. Give each token one.")
    longest = max(len(row.input_ids) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for at, row in enumerate(batch):
        ids[at, : len(row.input_ids)] = torch.as_tensor(row.input_ids)
        labels[at, : len(row.labels)] = torch.as_tensor(row.labels)
        mask[at, : len(row.input_ids)] = 1
    was_training = model.training
    model.eval()
    with inputs_of(module) as seen:
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    model.train(was_training)
    if not seen:
        raise ModelError(f"the module that {setting('tap')} names was not called. Name one that every token passes.")
    states = seen[-1].detach().reshape(*ids.shape, -1)  # OPT has batch and length in one
    return states[:, :-1], logits[:, :-1], labels[:, 1:].to(states.device)
