"""Exact unlearning by planning for it: slices are learnt one after another, each in LoRA layers that can be switched off.

Records are divided into shards, and each shard into slices. A shard's model is trained slice by slice: stage i sees slices pi_1 .. pi_i
and trains only group i of LoRA layers, the uppermost blocks first, and a head of its own. Deleting a record of slice j switches off
the groups trained at or after j; what is left has never seen it, and nothing is trained. With several orders pi of the slices a shard
dies only when the first slices of all of them are hit. (S3T, arXiv 2406.16257)

    served(shard) = argmax |prefix|  over orders pi,   prefix = the slices of pi before its first deleted one

A record's slice is a hash of its name and the seed, so no other record has a part in it, and what a fit, a deletion and a retraining
give is, bit for bit on one CPU thread, what a fit without the record gives. SISA, of which this is a refinement, stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from ...data import Examples
from ...data.images.images import Images
from ...errors import DataError, MethodError, RunError, setting, unknown
from ...models.recipe import CausalTraining
from ...runs import canonical_json, claimed, hash_model
from ..engine.checks import require
from .increments import (
    Increments,
    LoraGroups,
    WholeWeights,
    block_list,
    check_groups,
    default_targets,
    refuse_statistics,
)
from .ledger import Ledger, PlacedRecord, ShardPlan, placed, shards_of
from .model import ShardedModel, names_of
from .orders import Order, drawn_orders, matched_orders, rotated_orders
from .serving import Combine
from .tasks import CausalTask, ShardTask, contents, task_for
from .training import Base, loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["S3T", "SISA", "ShardedTraining"]

Orders = Literal["rotation", "matching", "sampling"]


def _training() -> CausalTraining:
    return CausalTraining(epochs=15, lr=2e-3, batch_size=64)


@dataclass(frozen=True, kw_only=True)
class ShardedTraining:
    """How records are divided, trained and served so that they can be deleted.

    Args:
        n_shards: models trained apart from each other, > 0.
        n_slices: of each shard, > 0.
        training: of every stage; AdamW as the paper, whose rate is 2e-3 at a full budget of orders, else 2e-4.
        combine: "mean" of the shards' probabilities, or "vote" (the paper leaves open which it is).
        seed: of the division, the first weights, the order of rows and dropout.
        max_length: tokens a row of text; None for the model's own, 512 at most.
    """

    n_shards: int = 5
    n_slices: int = 4
    training: CausalTraining = field(default_factory=_training)
    combine: Combine = "mean"
    seed: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        require("n_shards", self.n_shards, at_least=1)
        require("n_slices", self.n_slices, at_least=1)
        if self.combine not in get_args(Combine):
            raise MethodError(unknown(setting("combine"), str(self.combine), get_args(Combine)))

    def planned_orders(self) -> list[Order]:
        """The orders in which each shard's slices are trained."""
        raise NotImplementedError

    def increments(self, model: nn.Module, task: ShardTask, dataset: Any) -> Increments:
        """What a stage adds to this model.

        Raises:
            MethodError, ModelError: a field that it can't have.
        """
        raise NotImplementedError

    def fit(
        self,
        base: Base,
        dataset: Images | Examples,
        folder: str | Path,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        ids: Sequence[str | int] | None = None,
        places: Mapping[str, tuple[int, int]] | None = None,
        validation: Images | Examples | None = None,
        workers: int | None = 1,
        ray: str | None = None,
    ) -> ShardedModel:
        """Trains all stages of all shards into a folder, or those that are missing in it, and serves them.

        Args:
            base: a model that has not seen the records, never changed; or a function that loads it, which other processes are sent.
            dataset: `Images` with labels; `Examples` for a causal language model, or for a classifier, whose answers are classes.
            folder: of the ledger and the increments; a killed fit goes on there from the increments that are whole.
            processing_class: the tokenizer, for texts.
            ids: the records' names; an image's index or a hash of what a text says if None.
            places: {name: (shard, slice)}, where some records are more likely to be deleted than others; a hash of the name if None.
            validation: public rows that decide between stages of equal length.
            workers: processes that train shards side by side; None for one a core.
            ray: "local" or a cluster's address, to train there.

        Raises:
            DataError: records that are the same, or none for a slice; others than the folder was planned for.
            ModelError: a model with running statistics, or of no kind that can be trained so.
            RunError: the folder is in use, was planned otherwise, or doesn't match its ledger; a full disk.
        """
        model = loaded(base)
        refuse_statistics(model)
        task = task_for(model, isinstance(dataset, Images), processing_class, self.max_length)
        names = names_of(dataset, ids)
        records = self._records(names, contents(dataset), places)
        plan = ShardPlan(
            method=type(self).__name__,
            n_shards=self.n_shards,
            n_slices=self.n_slices,
            orders=tuple(self.planned_orders()),
            base=hash_model(model),
            settings=self._settings(task, self.increments(model, task, dataset)),
            records=records,
        )
        ledger = self._ledger(Path(folder), plan)
        loader = None if isinstance(base, nn.Module) else base
        sharded = ShardedModel(model, ledger, task, self.training.device, loader)
        sharded.retrain(dataset, ids=ids, shards=range(self.n_shards), validation=validation, workers=workers, ray=ray)
        return sharded

    def _settings(self, task: ShardTask, parts: Increments) -> dict[str, Any]:
        settings = {
            "task": task.kind,
            "max_length": getattr(task, "max_length", None),
            "parts": parts.described(),
            "training": self.training.settings,
            "combine": self.combine,
            "seed": self.seed,
        }
        plain: dict[str, Any] = json.loads(canonical_json(settings))
        return plain

    def _records(
        self, names: Sequence[str], hashes: Sequence[str], places: Mapping[str, tuple[int, int]] | None
    ) -> dict[str, PlacedRecord]:
        """Where each record goes.

        Raises:
            DataError: two that say the same, a place that there isn't.
        """
        first: dict[str, str] = {}
        for name, content in zip(names, hashes, strict=True):
            if (twin := first.setdefault(content, name)) != name:
                raise DataError(
                    f"the records {twin!r:.40} and {name!r:.40} say the same, so deleting one would leave the other. Leave one out."
                )
        records: dict[str, PlacedRecord] = {}
        for name, content in zip(names, hashes, strict=True):
            if places is None:
                shard, part = placed(name, self.seed, self.n_shards, self.n_slices)
            else:
                shard, part = places.get(name, (-1, -1))
                if not (0 <= shard < self.n_shards and 0 <= part < self.n_slices):
                    raise DataError(
                        f"{setting('places')} has {places.get(name)} for the record {name!r:.40}. Give a shard below "
                        f"{self.n_shards} and a slice below {self.n_slices}."
                    )
            records[name] = PlacedRecord(shard, part, content)
        return records

    def _ledger(self, folder: Path, plan: ShardPlan) -> Ledger:
        """A new folder's ledger, or the one that is there and is of the same plan.

        Raises:
            RunError: it is of another.
            DataError: a slice of a new one without records.
        """
        if not (folder / "plan.json").exists():
            if folder.is_dir() and any(
                path.name != "records.json" and path.name[0] != "." for path in folder.iterdir()
            ):
                raise RunError(f"{folder} holds files of something else. Choose another {setting('folder')}.")
            slices = plan.n_shards * plan.n_slices
            if missing := slices - len(shards_of(plan.records, plan)):
                raise DataError(
                    f"{missing} of {slices} slices get no record of {len(plan.records)}. Take fewer {setting('n_shards')} or "
                    f"{setting('n_slices')}."
                )
            with claimed(folder):
                return Ledger.create(folder, plan)
        ledger = Ledger.open(folder)
        now, then = plan.described(), ledger.plan.described()
        if other := [name for name in then if name != "records" and then[name] != now[name]]:
            raise RunError(
                f"{folder} was planned with another {other[0]}. Fit with the settings it has, or choose another "
                f"{setting('folder')}."
            )
        return ledger


@dataclass(frozen=True, kw_only=True)
class S3T(ShardedTraining):
    """Slices in LoRA groups that can be switched off, trained in several orders.

    Args:
        budget: orders of the slices a shard is trained in, 1 to L!; those that begin alike share their stages.
        orders: "rotation" where all slices are equally likely to be hit; "matching" or "sampling" by `probabilities`.
        probabilities: that a deletion hits the slice, one a slice; None for rotation.
        rank, alpha, dropout: of the LoRA layers.
        rslora: scale them by alpha / sqrt(rank) instead of alpha / rank.
        targets: paths of linear layers below a block; None for the paper's: all of them in a causal language model, the query and
            value projections in a classifier.
        head: paths of the modules that each stage trains for itself; None to find a classifier's head. A causal language model's
            head stays as it is.
    """

    budget: int = 4
    orders: Orders = "rotation"
    probabilities: tuple[float, ...] | None = None
    rank: int = 16
    alpha: float = 16
    rslora: bool = True
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    head: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("n_slices", self.n_slices, at_least=2)
        require("rank", self.rank, at_least=1)
        require("alpha", self.alpha, above=0)
        require("dropout", self.dropout, at_least=0, below=1)
        if self.orders not in get_args(Orders):
            raise MethodError(unknown(setting("orders"), str(self.orders), get_args(Orders)))
        if (self.orders == "rotation") != (self.probabilities is None):
            does = "takes no" if self.orders == "rotation" else "needs"
            raise MethodError(f"{setting('orders', self.orders)} {does} {setting('probabilities')}.")
        if self.probabilities is not None and len(self.probabilities) != self.n_slices:
            raise MethodError(
                f"{setting('probabilities')} has {len(self.probabilities)} values for {self.n_slices} slices. Give each one."
            )
        self.planned_orders()

    def planned_orders(self) -> list[Order]:
        if self.probabilities is None:
            return rotated_orders(self.n_slices, self.budget)
        if self.orders == "matching":
            return matched_orders(self.probabilities, self.budget)
        return drawn_orders(self.probabilities, self.budget, self.seed)

    def increments(self, model: nn.Module, task: ShardTask, dataset: Any) -> LoraGroups:
        blocks, count = block_list(model)
        causal = isinstance(task, CausalTask)
        targets = default_targets(model, blocks, all_linear=causal) if self.targets is None else self.targets
        check_groups(model, blocks, count, self.n_slices, targets)
        head = self.head if self.head is not None else task.head(model, dataset)
        paths = dict(model.named_modules())
        if odd := [path for path in head if path not in paths or path.startswith(blocks)]:
            raise MethodError(
                f"{setting('head')} has {odd[0]!r}, which is no module behind the blocks of {type(model).__name__}."
            )
        if not head and not causal:
            raise MethodError(f"no head of {type(model).__name__} was found. Name it by {setting('head')}.")
        adapters = (self.rank, self.alpha, self.rslora, self.dropout)
        return LoraGroups(blocks, self.n_slices, count, tuple(targets), tuple(head), *adapters)


@dataclass(frozen=True, kw_only=True)
class SISA(ShardedTraining):
    """One order a shard and all weights trained, with a checkpoint a slice (arXiv 1912.03817): the baseline.

    After a deletion a shard answers from the checkpoint before the slice; `retrain` trains what followed it. With one shard and one
    slice this is retraining.
    """

    def planned_orders(self) -> list[Order]:
        return [tuple(range(self.n_slices))]

    def increments(self, model: nn.Module, task: ShardTask, dataset: Any) -> WholeWeights:
        return WholeWeights()
