"""What a command was asked for: typed requests that read, load and check everything before anything is written.

DataRequest    which rows, and how they are read
ModelRequest   which model, and how it is loaded
AuditRequest   suite, attacks and length of an audit
ForgetRequest  all three, the method and its training; `ready()` gives a `Ready`, with nothing left to refuse
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import catalog
from ..errors import DataError, MethodError, ModelError, RunError, notice, unknown
from .fields import build
from .sources import DataRequest, ModelRequest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..audit.base import Attack
    from ..audit.requirements import Requirement
    from ..data import ForgetSplit
    from ..forget.base import Method
    from ..models import Loaded

NO_ATTACKS = "none"
FEWEST_TO_RELEARN = 2  # one row to show, one to test


def need_number(
    flag: str, value: float | None, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    """Refuses a number that isn't finite or lies outside its range; None, a flag that was not given, passes."""
    if value is None or (value > above and value >= at_least and value < below):  # NaN is on no side of anything
        return
    bounds = {"above": above, "at least": at_least, "below": below}
    rule = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    raise MethodError(f"{flag} is {value:g}; it must be {rule}.")


def need_one_tokenizer(main: Loaded, other: Loaded, role: str) -> None:
    """Refuses a model that reads texts by other tokens than the audited one: their figures could not be compared.

    Raises:
        ModelError: which model.
    """
    if other.tokenizer.get_vocab() != main.tokenizer.get_vocab():
        raise ModelError(
            f"--{role} ({other.source.get('name', role)}) has another tokenizer than the audited model. Give a model of the same family."
        )


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What an audit measures.

    Args:
        attacks: names, also several in one joined by commas; None for those that the rows allow, "none" for none.
        require: bounds that the figures must keep; None for none.
    """

    suite: str = "basic"
    attacks: tuple[str, ...] | None = None
    require: str | None = None
    batch_size: int = 16
    max_length: int | None = None

    @property
    def attack_names(self) -> tuple[str, ...] | None:
        """Every attack that was named, once; None where none was.

        Raises:
            MethodError: an unknown name, or "none" beside another.
        """
        if self.attacks is None:
            return None
        names = list(dict.fromkeys(n.strip() for text in self.attacks for n in text.split(",") if n.strip()))
        for name in names:
            if name not in (known := (*catalog.attacks(), NO_ATTACKS)):
                raise MethodError(unknown("attack", name, known))
        if NO_ATTACKS in names and len(names) > 1:
            raise MethodError(f"--attacks is {','.join(names)}; {NO_ATTACKS} stands alone.")
        return tuple(name for name in names if name != NO_ATTACKS)

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The bounds that the figures must keep.

        Raises:
            MethodError: what is no requirement.
        """
        from ..audit.requirements import parse_requirements

        return () if self.require is None else parse_requirements(self.require)

    def check(self) -> None:
        """Refuses what is wrong whatever the rows and the model are.

        Raises:
            MethodError: an unknown suite or attack, a number out of range, a requirement that is none.
        """
        from ..audit.suites.known import suite_named

        suite = suite_named(self.suite)
        if suite.of != "text":
            raise MethodError(f"--suite {self.suite} is for images; these rows are texts. Use --suite basic.")
        _ = self.attack_names, self.requirements
        need_number("--batch-size", self.batch_size, at_least=1)
        need_number("--max-length", self.max_length, at_least=2)

    def attacks_on(self, split: ForgetSplit) -> list[Attack]:
        """The attacks to run on these rows.

        Raises:
            DataError: an attack that was asked for by name needs more rows.
        """
        names, rows = self.attack_names, len(split.forget)
        chosen = tuple(catalog.attacks()) if names is None else names
        if "relearn" in chosen and rows < FEWEST_TO_RELEARN:
            few = f"relearning shows some forget rows and tests the others, and there is only {rows}"
            if names is not None:
                raise DataError(f"{few}. Give at least {FEWEST_TO_RELEARN}, or leave relearn out of --attacks.")
            notice(f"{few}: that attack is left out.")
            chosen = tuple(name for name in chosen if name != "relearn")
        return [catalog.attack(name).load()() for name in chosen]

    def lengths(self, models: Sequence[nn.Module]) -> int:
        """Tokens a row may have in the audit.

        Raises:
            ModelError: more than one of the models has positions for.
        """
        from ..audit.suites.known import suite_named
        from ..scoring import row_length

        default = suite_named(self.suite).max_length
        return min(row_length(model, self.max_length, default) for model in models)

    def check_rows(
        self,
        split: ForgetSplit,
        tokenizer: PreTrainedTokenizerBase,
        models: Sequence[nn.Module],
        *,
        references: Collection[str],
        attacks: Sequence[Attack] = (),
    ) -> None:
        """Refuses a suite that these rows can't serve, a requirement without a figure, and rows that can't be scored.

        Args:
            references: the models there are besides, by role: before, oracle.
            attacks: those of the audit.

        Raises:
            MethodError, DataError, ModelError: what is missing, or which row.
        """
        from ..audit.requirements import check_requirements
        from ..audit.suites.known import check_suite, suite_named
        from ..data.text.encoding import encode_rows

        check_suite(self.suite, split, references=references)
        check_requirements(self.requirements, suite_named(self.suite).for_split(split), attacks, references)
        length = self.lengths(models)
        for rows in (split.forget, split.retain, split.holdout, *split.evaluation.values()):
            if rows is not None:
                encode_rows(rows, tokenizer, length)


DEFAULT_METHOD = "smooth"  # the best of all methods for texts that were compared, see docs/benchmarks.md


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """Everything that `unwrite forget` was asked for.

    Args:
        fields: the method's own, as texts.
        batch_size: forget rows a step of training.
    """

    data: DataRequest
    model: ModelRequest
    audit: AuditRequest
    method: str = DEFAULT_METHOD
    fields: Mapping[str, str] = field(default_factory=dict)
    epochs: float | None = None
    lr: float | None = None
    batch_size: int = 8
    accumulate: int | None = None
    seed: int = 0
    lora: int | None = None
    stop_at: float | None = None

    def arguments(self) -> dict[str, Any]:
        """As the run folder keeps it: JSON values, paths absolute."""
        own = {k: v for k, v in vars(self).items() if k not in ("data", "model", "audit", "fields")}
        names = self.audit.attack_names
        attacks = None if names is None else list(names)
        audit = {
            "suite": self.audit.suite,
            "attacks": attacks,
            "require": self.audit.require,
            "max_length": self.audit.max_length,
        }
        return {**self.data.arguments(), **self.model.arguments(), **audit, **own, "fields": dict(self.fields)}

    def check(self) -> Method:
        """The method, once nothing is wrong with the flags; nothing is read or loaded.

        Raises:
            MethodError: which flag, its value, and what it may be.
        """
        from ..forget.base import Objective

        need_number("--epochs", self.epochs, above=0)
        need_number("--lr", self.lr, above=0)
        need_number("--batch-size", self.batch_size, at_least=1)
        need_number("--accumulate", self.accumulate, at_least=1)
        need_number("--seed", self.seed, at_least=0, below=2**32)
        need_number("--lora", self.lora, at_least=1)
        need_number("--stop-at", self.stop_at, above=0, below=1)
        self.audit.check()
        chosen = build(self.method, self.fields)
        if "text" not in chosen.forgets:
            raise MethodError(
                f"{self.method} forgets images: unwrite forget --images FOLDER --by class NAME. See unwrite methods."
            )
        flags = {"--epochs": self.epochs, "--lr": self.lr, "--accumulate": self.accumulate, "--lora": self.lora}
        idle = [flag for flag, value in flags.items() if value is not None and not chosen.trains]
        if idle:
            raise MethodError(f"{self.method} trains nothing, so {idle[0]} has no meaning for it. Leave it out.")
        if self.stop_at is not None and not isinstance(chosen, Objective):
            raise MethodError(
                f"--stop-at watches the model while it is trained to forget, and {self.method} trains none that way. "
                "Leave it out."
            )
        return chosen

    def ready(self) -> Ready:
        """Reads, loads and checks everything; what can be refused is refused here.

        Raises:
            UnwriteError: what is wrong, with what value, and what to do.
        """
        from ..forget.base import Objective

        chosen = self.check()
        split = self.rows()
        chosen.check_data(split.forget, split.retain)
        if isinstance(chosen, Objective):
            chosen.alternates(split.forget, self.seed)  # refuses rows that no other answer can be given to
        attacks = self.audit.attacks_on(split)
        loaded = self.model.load()
        length = self._length(loaded.model)
        chosen.check_model(loaded.model, adapters=self.lora is not None)
        if self.lora is not None:
            _need_linear_layers(loaded.model)
        self._check_rows(split, loaded, length, attacks)
        return Ready(self, chosen.fitted(loaded.model), split, loaded, attacks)

    def rows(self) -> ForgetSplit:
        """The rows the run works on. Every set that was not given and has a default gets it here."""
        from ..data import with_general_rows

        split = self.data.read()
        return with_general_rows(split) if build(self.method, self.fields).needs_retain else split

    def _length(self, model: nn.Module) -> int:
        from ..scoring import row_length

        return row_length(model, self.audit.max_length)

    def _check_rows(self, split: ForgetSplit, loaded: Loaded, length: int, attacks: Sequence[Attack]) -> None:
        from ..data.text.encoding import encode_rows

        for rows in (split.forget, split.retain):
            if rows is not None:
                encode_rows(rows, loaded.tokenizer, length)
        self.audit.check_rows(split, loaded.tokenizer, [loaded.model], references=("before",), attacks=attacks)


def _need_linear_layers(model: nn.Module) -> None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not any(isinstance(module, nn.Linear | Conv1D) and module is not head for module in model.modules()):
        raise ModelError(f"--lora trains adapters of linear layers, and this {type(model).__name__} has none.")


@dataclass(frozen=True)
class Ready:
    """A request with what it names read, loaded and checked.

    Args:
        loaded: the model before; `source` names it, with its hash.
        attacks: those of the audit.
    """

    request: ForgetRequest
    method: Method
    split: ForgetSplit
    loaded: Loaded
    attacks: Sequence[Attack]

    @property
    def record(self) -> dict[str, Any]:
        """What the run was made from, by content."""
        sets = {name: getattr(self.split, name) for name in ("forget", "retain", "holdout")}
        rows = {name: rows.hash for name, rows in sets.items() if rows is not None}
        return {"source": dict(self.loaded.source), "data": self.split.hash, "rows": rows}

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Refuses to go on with a run that was started from another model or other rows.

        Raises:
            RunError: which of them has changed, with both hashes.
        """
        then, now = record.get("source", {}), self.loaded.source
        if then and then.get("weights") != now["weights"]:
            raise RunError(changed(now["name"], then.get("weights"), now["weights"]))
        current = self.record["rows"]
        for name, before in record.get("rows", {}).items():
            if before != current.get(name):
                source = getattr(self.request.data, name) or f"the {name} rows"
                raise RunError(changed(source, before, current.get(name)))
        if record.get("data", self.split.hash) != self.split.hash:
            raise RunError(changed("the rows", record["data"], self.split.hash))


def changed(what: str, then: object, now: object) -> str:
    """The refusal to go on with a run whose input is another one now."""
    return (
        f"{what} has changed since this run was started (hash {now}, then {then}), so it can't be resumed. Restore it, or "
        "start again with --overwrite."
    )
