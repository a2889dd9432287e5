"""What stands beside a private base for ever, and what is handed out with a model that was made from it.

The ledger says by which mechanism the base read which records, and what that spent. It is sealed by a hash over all it says and over the
weights: whoever alters one by accident is told. The seal is no signature; who may write the folder may write another ledger, too.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from ...data import Examples
from ...errors import DataError, MethodError, RunError, setting
from ...models.saving import NOTE
from ...runs import canonical_json, conforms, read_json
from .accounting import GroupPrivacy, group_privacy

__all__ = ["PrivacyCertificate", "PrivacyLedger", "data_hash", "read_certificate", "read_ledger"]

BASE, DEPLOYED, UNLEARNED = "private_base", "deployed_model", "unlearned_model"  # in a folder's provenance


def data_hash(rows: Examples) -> str:
    """SHA-256 of what the records say, in their order."""
    content = [[row.question, row.answer, row.history] for row in rows]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PrivacyLedger:
    """The account of a private base.

    Args:
        mechanism: "dp_sgd", "dp_mlm", "dp2u_nouns", or "none" for a base that was trained without noise.
        epsilon: of one record; None where nothing is guaranteed.
        delta: of one record.
        neighbours: which data sets can't be told apart.
        account: the mechanism's own figures.
        records, repeats: how many records there were, and the most that say the same.
        steps: of training.
        secure: whether noise came from the operating system.
        data: hash of the records.
        start: hash of what training started from.
        weights: hash of the base's weights.
    """

    mechanism: str
    epsilon: float | None
    delta: float
    neighbours: str
    account: dict[str, Any] = field(default_factory=dict)
    records: int
    repeats: int
    steps: int
    secure: bool
    data: str
    start: str
    weights: str

    @property
    def seal(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What is stored."""
        return asdict(self) | {"seal": self.seal}

    @classmethod
    def of(cls, stored: Mapping[str, Any], where: str) -> Self:
        """A ledger as it was stored.

        Raises:
            RunError: it is damaged, or not what was sealed.
        """
        hints: dict[str, Any] = {
            "epsilon": float | int | None, "delta": float | int, "account": dict, "records": int, "repeats": int, "steps": int,
            "secure": bool,
        }  # fmt: skip
        names = [one.name for one in fields(cls)]
        wrong = [name for name in names if name not in stored or not conforms(stored[name], hints.get(name, str))]
        if wrong or {*stored} - {*names} != {"seal"}:
            raise RunError(
                f"the ledger of {where} is damaged ({wrong[0] if wrong else 'its entries'}). Restore the folder."
            )
        ledger = cls(**{name: stored[name] for name in names})
        if ledger.seal != stored["seal"]:
            raise RunError(f"the ledger of {where} is not what was sealed: somebody changed it. Restore the folder.")
        return ledger

    def need_formal(self) -> None:
        """Refuses what no statement can be made of.

        Raises:
            MethodError: a mechanism without a guarantee.
        """
        if self.epsilon is None:
            why = {
                "dp2u_nouns": "the words it chooses from depend on the text itself, so no epsilon bounds it",
                "none": "it was trained without noise",
            }.get(self.mechanism, "its epsilon is infinite")
            raise MethodError(
                f"a base by {self.mechanism} has no formal guarantee: {why}. Train one by dp_sgd or dp_mlm, or unlearn without a "
                f"certificate: {setting('certify', False)}."
            )

    def sentence(self) -> str:
        """The account in one line, as it is printed."""
        if self.epsilon is None:
            return f"{self.mechanism}: no formal guarantee; {self.records} records"
        spent = f"epsilon {self.epsilon:.4g}, delta {self.delta:.3g} for one record"
        return f"{self.mechanism}: {spent} of {self.records} ({self.neighbours})"


@dataclass(frozen=True, kw_only=True)
class PrivacyCertificate:
    """What can be said of an unlearned model.

    Args:
        mechanism, neighbours, base, data: as the base's ledger.
        epsilon_record, delta: of each forgotten record on its own.
        forgotten, retained: how many records.
        steps, retraining_steps, base_steps: of fine-tuning from the base, of training anew, and of the base, once for all requests.
        model: hash of the unlearned weights.
        notes: what the statement doesn't cover.
    """

    mechanism: str
    neighbours: str
    epsilon_record: float
    delta: float
    forgotten: int
    retained: int
    steps: int
    retraining_steps: int
    base_steps: int
    base: str
    data: str
    model: str
    notes: tuple[str, ...] = ()

    def group(self, records: int) -> GroupPrivacy:
        """What it says of several forgotten records together."""
        return group_privacy(self.epsilon_record, self.delta, records)

    def epsilon_group(self, records: int) -> float:
        """Their epsilon, so many times one record's."""
        return self.group(records).epsilon

    @property
    def cost_ratio(self) -> float:
        """Steps of unlearning over steps of retraining."""
        return self.steps / self.retraining_steps

    @property
    def statement(self) -> str:
        """The formal statement, in words."""
        together = self.group(self.forgotten)
        said = "which says nothing" if together.empty else f"delta {together.delta:.3g}"
        return (
            f"This model is ({self.epsilon_record:.4g}, {self.delta:.3g})-indistinguishable from one whose base never had any single "
            f"one of the {self.forgotten} forgotten records ({self.neighbours}); for all {self.forgotten} together epsilon is "
            f"{together.epsilon:.4g}, {said}."
        )

    def record(self) -> dict[str, Any]:
        """What is stored and shown."""
        together = self.group(self.forgotten)
        return asdict(self) | {
            "statement": self.statement,
            "cost_ratio": self.cost_ratio,
            "group": {
                "records": self.forgotten,
                "epsilon": together.epsilon,
                "delta": together.delta,
                "empty": together.empty,
            },
        }


def notes_on(ledger: PrivacyLedger) -> tuple[str, ...]:
    """What a certificate of this base doesn't cover."""
    notes = [
        "One record is the unit: what stands in k records, in the same or in other words, has k times the epsilon.",
        "Settings that were chosen by looking at results on these records tell of them; that is not counted.",
        "The base, once published, stays as it is: the statement is of each model made from it, and of all of them together.",
        "The hash of the records tells nothing but to somebody who has all of them but one; keep it from those.",
    ]
    if not ledger.secure:
        notes.append(
            "Noise came from a seed: who knows or guesses the seed can take it off. Train with secure=True to hand out."
        )
    if ledger.repeats > 1:
        notes.append(
            f"Some record stands there {ledger.repeats} times; what it says has {ledger.repeats} times the epsilon."
        )
    if ledger.account.get("adapters"):
        notes.append(
            "Adapters alone were trained privately: the weights below them must be public, and have read none of the records."
        )
    if ledger.mechanism == "dp_mlm":
        notes.append(
            "Words that were kept (stop words, unless all are rewritten), the number and places of words, punctuation and, where "
            "they were kept, capitals stand in the base as they stood in the records."
        )
    return tuple(notes)


def provenance_of(folder: str | Path) -> dict[str, Any]:
    """What a saved model's folder says of where it is from.

    Raises:
        RunError: no such folder, or a damaged one.
    """
    note = Path(folder) / NOTE
    if not note.is_file():
        raise RunError(f"{folder} holds no model of unwrite ({NOTE} is missing). Give the folder of a private base.")
    provenance = read_json(note, RunError, "Restore the folder.").get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def read_ledger(folder: str | Path) -> PrivacyLedger:
    """The ledger of a private base.

    Raises:
        RunError: no ledger, a damaged one, or the deployed or an unlearned model in the base's place.
    """
    provenance = provenance_of(folder)
    for kind, what in (
        (DEPLOYED, "the deployed model, which has read the records to forget"),
        (UNLEARNED, "an unlearned model"),
    ):
        if kind in provenance:
            raise RunError(f"{folder} is {what}, not the private base. Deletions go back to the base: give its folder.")
    stored = provenance.get(BASE)
    if not isinstance(stored, dict):
        raise RunError(
            f"{folder} has no ledger, so nothing is known of how its model read the records. Make a base by DPBase.fit."
        )
    return PrivacyLedger.of(stored, str(folder))


def read_certificate(folder: str | Path) -> dict[str, Any] | None:
    """The certificate of an unlearned model as it was stored; None where it was made without one.

    Raises:
        RunError: the folder is no unlearned model's.
    """
    provenance = provenance_of(folder)
    if UNLEARNED not in provenance:
        raise RunError(f"{folder} holds no model that DPBase.unlearn made.")
    certificate = provenance[UNLEARNED].get("certificate")
    return certificate if isinstance(certificate, dict) else None


def check_ids(forget_ids: Iterable[int], records: int) -> list[int]:
    """The numbers of the records to forget, sorted.

    Raises:
        DataError: none, one twice, one that no record has, or all of them.
    """
    try:
        ids = sorted(operator.index(one) for one in forget_ids)
    except TypeError:
        raise DataError("records to forget are given by their numbers in the data, from 0.") from None
    if not ids:
        raise DataError("there are no records to forget. Give at least one number.")
    if len({*ids}) < len(ids):
        twice = next(one for one, other in pairwise(ids) if one == other)
        raise DataError(f"record {twice} is to be forgotten twice. Give each number once.")
    if ids[0] < 0 or ids[-1] >= records:
        raise DataError(
            f"record {ids[0] if ids[0] < 0 else ids[-1]} is none of the base's {records} records. Count them from 0."
        )
    if len(ids) == records:
        raise DataError("all records are to be forgotten. Go back to the model before the base.")
    return ids


def finite(value: float) -> float | None:
    """A number as JSON has it; None for an infinite one."""
    return value if math.isfinite(value) else None
