"""A sharded training that is served: predictions, deletions without training, what is to be trained again, and the certificate.

sharded = S3T(n_shards=3, n_slices=4, budget=4).fit(base, records, "folder")
sharded.predict(rows)             # [rows, classes], the mean over the shards
sharded.delete(["17", "203"])     # at once: what saw them is off, and gone from the disk
sharded.certificate()             # what every tensor in use saw
sharded.retrain(records)          # when there is time: the stages that are missing
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ...data import Examples
from ...data.images.images import Images
from ...errors import DataError, MethodError, RunError, setting
from ...models.recipe import CausalTraining
from ...runs import claimed, hash_model, hash_tensors, progress
from ...runs.jobs import crew
from .increments import Increments, LoraGroups, WholeWeights, built
from .ledger import Ledger, shards_of
from .nodes import NodeNote, read_increment
from .orders import Order
from .serving import ShardEnsemble, combined
from .tasks import CausalTask, ClassifierTask, ShardTask, contents, record_ids, task_for
from .training import Base, ShardJob, loaded, stage_seed, train_shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SHARDS_ASSUME", "ShardCertificate", "ShardedModel", "SwitchedOff"]

SHARDS_ASSUME = (
    "the base model, the tokenizer, and every setting were chosen without the records",
    "validation rows, where there are any, are public",
    "no copy of a record lies in another slice under another name with other content",
    "no copy of the folder or of a model read from it was kept elsewhere",
)


@dataclass(frozen=True)
class SwitchedOff:
    """What a deletion did.

    Args:
        records: the records.
        slices: (shard, slice) of each, which no stage in use has seen any more.
        stages: (shard, slices) of each stage that is off by it.
        queue: shards that have no stage left, to be trained again.
        seconds: it took, none of them training.
    """

    records: tuple[str, ...]
    slices: tuple[tuple[int, int], ...]
    stages: tuple[tuple[int, Order], ...]
    queue: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class ShardCertificate:
    """What every tensor in use has seen, and that no deleted record is among it.

    Args:
        method: the class that trained.
        plan, base: hashes of the plan and of the model below all increments.
        tensors: one entry a tensor: shard, slices in order, name, hash, whether it answers now.
        slices: {"shard-slice": the records that those saw who saw it}.
        deleted: every deletion, with what it named.
        when: it was written.
        guarantee: "exact": the tensors are what training without the deleted records gives.
        assumes: what that rests on, and is not to be seen in a folder.
    """

    method: str
    plan: str
    base: str
    tensors: tuple[dict[str, Any], ...]
    slices: dict[str, list[str]]
    deleted: tuple[dict[str, Any], ...]
    when: str
    guarantee: str = "exact"
    assumes: tuple[str, ...] = SHARDS_ASSUME

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value


class ShardedModel:
    """One folder's training, with the model below it.

    Args:
        model: the model that all increments stand on; never changed, but put on the device.
        ledger: of the folder.
        task: what the rows are.
        device: where to train and to answer.
        loader: a function that loads the model, for other processes; None to send it.

    Raises:
        RunError: the model is another one than the ledger's.
    """

    def __init__(
        self,
        model: nn.Module,
        ledger: Ledger,
        task: ShardTask,
        device: str = "cpu",
        loader: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.ledger, self.task, self.device = ledger, task, device
        self._base = loaded(model, ledger.plan.base).to(device)
        self._given: Base = loader or self._base
        self._models: dict[int, tuple[Order, nn.Module]] = {}
        settings = ledger.plan.settings
        self.training = CausalTraining(**settings["training"], device=device)
        self.parts = _parts(settings["parts"])

    @classmethod
    def open(
        cls,
        folder: str | Path,
        base: Base,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        device: str = "cpu",
    ) -> Self:
        """What was fitted into a folder, once its ledger and its increments agree.

        Args:
            base: the model that it was fitted on, or a function that loads it.
            processing_class: the tokenizer, for texts.

        Raises:
            RunError: no such folder, one that doesn't match its ledger, or another base.
        """
        ledger = Ledger.open(Path(folder))
        settings = ledger.plan.settings
        model = loaded(base)
        task = task_for(model, settings["task"] == "images", processing_class, settings["max_length"])
        return cls(model, ledger, task, device, None if isinstance(base, nn.Module) else base)

    @property
    def served(self) -> dict[int, Order]:
        """{shard: the slices its model in use was trained on}; shards without one are missing."""
        self.ledger.refresh()
        chosen = {shard: self.ledger.served(shard) for shard in range(self.ledger.plan.n_shards)}
        return {shard: prefix for shard, prefix in chosen.items() if prefix is not None}

    @property
    def queue(self) -> list[int]:
        """Shards that answer nothing until they are trained again."""
        return sorted({*range(self.ledger.plan.n_shards)} - self.served.keys())

    def model(self, shard: int) -> nn.Module:
        """A shard's model, in evaluation mode; it shares what lies below its increments with all others.

        Raises:
            RunError: the shard has no stage left; an increment that isn't as it was written.
        """
        prefix = self.served.get(shard)
        if prefix is None:
            raise RunError(f"shard {shard} has no model: every stage of it saw a deleted record. Call retrain.")
        if shard not in self._models or self._models[shard][0] != prefix:
            self._models.pop(shard, None)
            self._models[shard] = (prefix, self.stage(shard, prefix))
        return self._models[shard][1]

    def stage(self, shard: int, prefix: Order) -> nn.Module:
        """The model after an active stage.

        Raises:
            RunError: it is no active stage.
        """
        if prefix not in self.ledger.active(shard):
            raise RunError(f"shard {shard} has no active stage on slices {list(prefix)}.")
        lengths = range(1, len(prefix) + 1)
        notes = [self.ledger.notes[shard, prefix[:length]] for length in lengths]
        increments = [read_increment(self.ledger.folder, note) for note in notes]
        return built(self.parts, self._base, increments).to(self.device)

    def predict(self, rows: Any, batch_size: int = 256) -> Tensor:
        """`[rows, classes]`: probabilities, or shares of votes.

        Args:
            rows: `Images` or pixels; `Examples` or texts.

        Raises:
            RunError: no shard has a model; MethodError: for a language model.
        """
        served = sorted(self.served)
        if not served:
            raise RunError("no shard has a model: every stage saw a deleted record. Call retrain.")
        return combined(
            torch.stack([self.probabilities(self.model(shard), rows, batch_size) for shard in served]),
            self.ledger.plan.settings["combine"],
        )

    @torch.no_grad()
    def probabilities(self, model: nn.Module, rows: Any, batch_size: int = 256) -> Tensor:
        """`[rows, classes]` of one model.

        Raises:
            MethodError: for a language model.
        """
        if not isinstance(self.task, ClassifierTask):
            raise MethodError("a language model has no classes to predict. Use language_model().")
        inputs = self.task.inputs(rows)
        parts = [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
        logits = [self.task.logits(model, part, self.device).float().softmax(-1) for part in parts]
        return torch.cat(logits).cpu()

    def language_model(self) -> ShardEnsemble:
        """The served shards as one model for `generate`; made of what is active now.

        Raises:
            MethodError: for a classifier.
        """
        if not isinstance(self.task, CausalTask):
            raise MethodError("a classifier writes no text. Use predict().")
        members: list[Any] = [self.model(shard) for shard in sorted(self.served)]
        return ShardEnsemble(members)

    def delete(self, records: Iterable[str | int]) -> SwitchedOff:
        """Switches off every stage that saw one of the records, and removes it from the disk; nothing is trained.

        Raises:
            DataError: a record that nobody knows, that is deleted already, or that is named twice; nothing is changed.
            RunError: the folder is being trained in.
        """
        start = time.perf_counter()
        names = [str(one) for one in ([records] if isinstance(records, str | int) else records)]
        stages = self.ledger.delete(names)
        served = self.served
        for shard, (prefix, _) in [*self._models.items()]:
            if served.get(shard) != prefix:
                del self._models[shard]
        slices = tuple(shards_of(names, self.ledger.plan))
        return SwitchedOff(tuple(names), slices, tuple(stages), tuple(self.queue), time.perf_counter() - start)

    def retrain(
        self,
        dataset: Images | Examples,
        *,
        ids: Sequence[str | int] | None = None,
        shards: Sequence[int] | None = None,
        validation: Images | Examples | None = None,
        workers: int | None = 1,
        ray: str | None = None,
    ) -> int:
        """Trains the stages that are missing, on the records that are left; gives their number.

        Args:
            dataset, ids: as they were fitted; deleted ones may be missing, and are left out.
            shards: which; None for the queue.
            validation, workers, ray: as `fit`.

        Raises:
            DataError: other records than those of the ledger; RunError: as `fit`.
        """
        chosen = self.queue if shards is None else list(shards)
        if odd := [shard for shard in chosen if not 0 <= shard < self.ledger.plan.n_shards]:
            raise MethodError(f"{setting('shards')} has {odd[0]}, and there are {self.ledger.plan.n_shards}, from 0.")
        names = names_of(dataset, ids)
        with claimed(self.ledger.folder):
            self.ledger.refresh()
            self.ledger.check_rows(names, contents(dataset))
            self.ledger.finish()
            base = self._base if workers == 1 and ray is None else self._given
            made = (self._job(one, base, dataset, names, validation) for one in chosen)
            jobs = [job for job in made if job.stages]
            total = sum(len(job.stages) for job in jobs)
            if jobs:
                with progress(total, "training stages") as bar, crew(workers, ray) as each:
                    for job, number in each(train_shard, jobs, lambda running: bar.say(", ".join(map(str, running)))):
                        bar.say(str(job))
                        bar.advance(number)
            self.ledger.refresh()
        return total

    def _job(self, shard: int, base: Base, dataset: Any, names: Sequence[str], validation: Any) -> ShardJob:
        ledger = self.ledger
        plan, stages = ledger.plan, ledger.missing(shard)
        positions = {name: at for at, name in enumerate(names)}
        rows: dict[int, list[Any]] = {}
        for part in sorted({*chain.from_iterable(stages)}):
            at = [positions[name] for name in ledger.remaining(shard, part)]
            rows[part] = list(chain.from_iterable(self.task.encoded(_subset(dataset, at))))
        seed = plan.settings["seed"]
        notes = tuple(
            NodeNote(
                shard,
                prefix,
                plan.hash,
                stage_seed(seed, shard, prefix),
                ledger.saw(shard, prefix),
                sum(len(ledger.remaining(shard, part)) for part in prefix),
                len(ledger.deletions),
                parent="",
            )
            for prefix in stages
        )
        return ShardJob(
            base=base,
            base_hash=plan.base,
            parts=self.parts,
            task=self.task,
            how=self.training,
            folder=ledger.folder,
            seed=seed,
            rows=rows,
            validation=[] if validation is None else list(chain.from_iterable(self.task.encoded(validation))),
            stages=notes,
            partial=tuple(ledger.partial(shard, prefix) for prefix in stages),
            done=tuple(ledger.notes[shard, prefix] for prefix in ledger.active(shard)),
        )

    def certificate(self) -> ShardCertificate:
        """What every active tensor saw; read from the disk, hash by hash.

        Raises:
            RunError: the base has changed, files don't match the ledger, or something that saw a deleted record is left.
        """
        ledger = self.ledger
        ledger.refresh()
        ledger.check()
        if (found := hash_model(self._base)) != ledger.plan.base:
            raise RunError(f"the base has changed since the training (hash {found}, not {ledger.plan.base}).")
        if left := ledger.remnants():
            raise RunError(f"{left[0]} saw a deleted record and is still there. Open the folder again to remove it.")
        served, tensors, slices = self.served, list[dict[str, Any]](), dict[str, list[str]]()
        for shard in range(ledger.plan.n_shards):
            for prefix in ledger.active(shard):
                slices |= {f"{shard}-{part}": ledger.remaining(shard, part) for part in prefix}
                in_use = served[shard] == prefix if self.parts.whole else served[shard][: len(prefix)] == prefix
                for name, tensor in sorted(read_increment(ledger.folder, ledger.notes[shard, prefix]).items()):
                    told = {"shard": shard, "slices": list(prefix), "tensor": name, "in use": in_use}
                    tensors.append(told | {"hash": hash_tensors({name: tensor})})
        if seen := {*chain.from_iterable(slices.values())} & ledger.deleted.keys():
            raise RunError(f"{sorted(seen)[0]!r} is deleted, and an active stage saw it. Report this as a bug.")
        return ShardCertificate(
            method=ledger.plan.method,
            plan=ledger.plan.hash,
            base=ledger.plan.base,
            tensors=tuple(tensors),
            slices=slices,
            deleted=tuple(ledger.deletions),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def names_of(dataset: Images | Examples, ids: Sequence[str | int] | None) -> list[str]:
    """The records' names, each once.

    Raises:
        DataError: another number of names, or one twice.
    """
    names = record_ids(dataset) if ids is None else [str(one) for one in ids]
    if len(names) != len(dataset):
        raise DataError(f"{len(names)} {setting('ids')} are given for {len(dataset)} records. Give each one.")
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if (earlier := first.setdefault(name, row)) != row:
            raise DataError(
                f"rows {earlier} and {row} have one name, {name!r:.40}: they are the same record, or the names are wrong. "
                "Leave one of them out, or name them apart."
            )
    return names


def _subset(dataset: Images | Examples, at: Sequence[int]) -> Images | Examples:
    if isinstance(dataset, Images):
        return dataset.subset(dataset.index[list(at)])
    return Examples([dataset[row] for row in at], dataset.name)


def _parts(described: dict[str, Any]) -> Increments:
    """The increments that a plan describes."""
    kinds: dict[str, type[Increments]] = {kind.__name__: kind for kind in (LoraGroups, WholeWeights)}
    kind = kinds[described["increments"]]
    values = {field.name: described[field.name] for field in fields(kind)}
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in values.items()})
