"""DP2Unlearning: train a base under differential privacy first, so that a deletion can go back to it.

Before anybody asks, a base reads all records through a private mechanism, and is kept. The model that is deployed is fine-tuned from
it on everything. A deletion throws that one away and fine-tunes the base on the records that remain, with the same settings: what is
to be forgotten has reached the new model only through the mechanism. (DP2Unlearning, arXiv 2504.13774)

    BM = private(theta_0, D)      FDM = fine_tune(BM, D)      UM = fine_tune(BM, D without D_f)
    P(UM in S) <= e^epsilon P(UM' in S) + delta,    UM' from a base that lacks any one forgotten record

The bound is of one record. For k of them it is k epsilon and k e^((k-1) epsilon) delta, which for a handful is already no bound: the
certificate says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...data import Examples
from ...data.text.encoding import IGNORE, Encoded, encode_all, encode_rows, pad
from ...data.text.rendering import where
from ...errors import DataError, MethodError, RunError, setting
from ...models import Loaded, load, load_model, save
from ...models.merging import merged
from ...models.recipe import Start
from ...runs import hash_json, hash_model
from ...scoring import row_length
from .accounting import second_opinions
from .dp_sgd import DPSGD, private_fit
from .gradients import Batch
from .ledger import (
    BASE,
    DEPLOYED,
    UNLEARNED,
    PrivacyCertificate,
    PrivacyLedger,
    check_ids,
    data_hash,
    finite,
    notes_on,
    read_ledger,
)
from .rewriting import MaskedWords, Rewriting
from .tuning import DeploymentTuning, beside, fine_tuned

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase

__all__ = ["DPBase", "Unlearned", "row_losses"]

_ADD_OR_REMOVE = "data sets of which one has a record that the other lacks"
_OTHER_WORDS = "data sets of which one has other words in a record, of those that are rewritten"


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model's folder, and what can be said of it; None where no certificate was wanted."""

    folder: Path
    certificate: PrivacyCertificate | None

    def load(self) -> nn.Module:
        """The model, in evaluation mode."""
        return load_model(self.folder)


@dataclass(frozen=True)
class DPBase:
    """A private base in its folder. Use `DPBase.fit`, `DPBase.open`.

    Args:
        folder: of the model, with the ledger in its `unwrite.json`. It must be kept: no deletion is possible without it.
        ledger: what training it spent.
    """

    folder: Path
    ledger: PrivacyLedger

    @classmethod
    def open(cls, folder: str | Path) -> DPBase:
        """A base as it was stored.

        Raises:
            RunError: no ledger, a damaged one, or the deployed model in the base's place.
        """
        return cls(Path(folder), read_ledger(folder))

    @classmethod
    def fit(
        cls,
        start: Any,
        data: Examples,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase,
        mechanism: DPSGD | Rewriting | None = None,
        masked: MaskedWords | None = None,
        training: DeploymentTuning | None = None,
        peft_config: PeftConfig | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> DPBase:
        """Trains a base on all records and stores it with its ledger. Each base that is made of the same records spends its own epsilon.

        Args:
            start: a configuration, or anything `load_model` takes, which never read the records.
            folder: new or empty.
            tokenizer: stored with the base.
            mechanism: `DPSGD`, or `Rewriting`, which trains on rewritten records as usual.
            masked: the masked language model that rewrites.
            training: how to train on rewritten records; 10 epochs where it is left out.
            peft_config: for `DPSGD`: trains adapters, which are merged into the base; its other weights are public.
            max_length: tokens a record may have.

        Raises:
            MethodError: an epsilon, delta or batch without meaning; a mechanism without what it needs.
            DataError: a record that doesn't fit: the unit is a record, so none is split.
            RunError: the folder is not empty.
        """
        folder, mechanism = _empty(folder), mechanism or DPSGD()
        begin = Start(start)
        given = _Given(begin, data, tokenizer, max_length, seed, folder)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = begin.build(seed)
            if isinstance(mechanism, DPSGD):
                if masked is not None or training is not None:
                    raise MethodError("masked and training are for a base by Rewriting. Leave them out.")
                model, said = _by_dp_sgd(model, given, mechanism, peft_config)
            else:
                if masked is None or peft_config is not None:
                    raise MethodError(
                        "Rewriting needs a masked language model (masked=MaskedWords(...)), and takes no adapters."
                    )
                model, said = _by_rewriting(model, given, mechanism, masked, training or DeploymentTuning(epochs=10))
        ledger = PrivacyLedger(
            **said,
            records=len(data),
            repeats=max(Counter((row.history, row.question, row.answer) for row in data).values()),
            secure=mechanism.secure,
            data=data_hash(data),
            start=hash_json(begin.origin),
            weights=hash_model(model),
        )
        save(model, folder, tokenizer=tokenizer, provenance={BASE: ledger.record()})
        return cls(folder, ledger)

    def deploy(
        self,
        data: Examples,
        folder: str | Path,
        training: DeploymentTuning | None = None,
        *,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Path:
        """Fine-tunes the base on all records and stores the model to deploy. It is thrown away at a deletion.

        Raises:
            RunError: the folder is not empty; the base is not what its ledger says.
        """
        folder, training = _empty(folder), training or DeploymentTuning()
        loaded = self._checked()
        model = fine_tuned(self.folder, _encoded(data, loaded, max_length), training, seed, folder)
        origin = {"base": self.ledger.weights, "data": data_hash(data), "training": asdict(training)}
        return save(model, folder, tokenizer=loaded.tokenizer, provenance={DEPLOYED: origin})

    def unlearn(
        self,
        data: Examples,
        forget_ids: Iterable[int],
        folder: str | Path,
        training: DeploymentTuning | None = None,
        *,
        certify: bool = True,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Unlearned:
        """Fine-tunes the base on what remains and stores the unlearned model with its certificate.

        Records that are forgotten are not read: only the hash of all records, which the certificate needs, is taken over them.

        Args:
            data: the records the base was trained on, in their order.
            forget_ids: numbers of those to forget, of earlier requests too: each unlearning begins at the base.
            training: the same as `deploy` was given.
            certify: False gives a model without a certificate, whatever the records and the mechanism.

        Raises:
            DataError: other records than the base's; numbers that are none.
            MethodError: a mechanism without a guarantee.
            RunError: the folder is not empty; the base is not what its ledger says.
        """
        folder, training = _empty(folder), training or DeploymentTuning()
        ids = check_ids(forget_ids, len(data))
        if certify:
            self.ledger.need_formal()
            if data_hash(data) != self.ledger.data:
                raise DataError(
                    f"these {len(data)} records are not the {self.ledger.records} the base was trained on, so nothing can be certified. "
                    f"Give those, in their order, or unlearn without a certificate: {setting('certify', False)}."
                )
        loaded, gone = self._checked(), {*ids}
        retained = Examples((row for row in data if row.index not in gone), "retain")
        model = fine_tuned(self.folder, _encoded(retained, loaded, max_length), training, seed, folder)
        certificate = self._certificate(ids, len(retained), training, hash_model(model)) if certify else None
        record = None if certificate is None else certificate.record()
        save(model, folder, tokenizer=loaded.tokenizer, provenance={UNLEARNED: {"certificate": record}})
        return Unlearned(folder, certificate)

    def _checked(self) -> Loaded:
        """The base, once its weights are those of the ledger."""
        loaded = load(self.folder)
        if hash_model(loaded.model) != self.ledger.weights:
            raise RunError(f"the weights in {self.folder} are not those of its ledger. Restore the folder.")
        return loaded

    def _certificate(
        self, ids: list[int], retained: int, training: DeploymentTuning, weights: str
    ) -> PrivacyCertificate:
        ledger = self.ledger
        assert ledger.epsilon is not None
        return PrivacyCertificate(
            mechanism=ledger.mechanism,
            neighbours=ledger.neighbours,
            epsilon_record=ledger.epsilon,
            delta=ledger.delta,
            forgotten=len(ids),
            retained=retained,
            steps=training.steps(retained),
            retraining_steps=training.steps(retained, training.retraining_epochs),
            base_steps=ledger.steps,
            base=ledger.weights,
            data=ledger.data,
            model=weights,
            notes=notes_on(ledger),
        )


def row_losses(forward: Any, batch: Batch) -> Tensor:
    """Each row's mean loss over its labelled tokens. [rows]

    Args:
        batch: input_ids and labels `[rows, length]`, padded on the right, where no causal model looks: no mask is needed.
    """
    logits = forward(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float()  # [rows, length - 1, vocab]
    targets = batch["labels"][:, 1:]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return nll.sum(1) / (targets != IGNORE).sum(1).clamp(min=1)


@dataclass(frozen=True)
class _Given:
    """What `DPBase.fit` was given, for either mechanism."""

    begin: Start
    data: Examples
    tokenizer: Any
    max_length: int | None
    seed: int
    folder: Path


def _by_dp_sgd(
    model: nn.Module, given: _Given, how: DPSGD, peft_config: PeftConfig | None
) -> tuple[nn.Module, dict[str, Any]]:
    rows = _records(given.data, given.tokenizer, row_length(model, given.max_length))
    plan = how.plan(len(rows))
    opinions = second_opinions(plan.q, plan.sigma, plan.steps, plan.delta) if how.private else {}
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    device, pad_id = next(model.parameters()).device, given.tokenizer.pad_token_id or 0

    def batch(numbers: list[int]) -> Batch:
        padded = pad([rows[number] for number in numbers], pad_id)
        return {name: padded[name].to(device) for name in ("input_ids", "labels")}

    adapters = None if peft_config is None else peft_config.to_dict()
    with beside(
        given.folder, [given.begin.origin, asdict(how), given.seed, adapters, data_hash(given.data), len(rows)]
    ) as partial:
        spent = private_fit(model, batch, len(rows), row_losses, how, given.seed, plan, partial)
    if peft_config is not None:
        model = merged(model, in_place=True)
    account = {
        **{"sigma": spent.sigma, "q": spent.q, "clip": finite(how.clip), "accountants": opinions},
        **{"batch": how.batch, "rate": how.rate, "optimiser": how.optimiser, "adapters": peft_config is not None},
    }
    said = {"mechanism": "dp_sgd" if how.private else "none", "epsilon": finite(spent.epsilon), "delta": spent.delta}
    return model, {**said, "neighbours": _ADD_OR_REMOVE, "account": account, "steps": spent.steps}


def _by_rewriting(
    model: nn.Module, given: _Given, how: Rewriting, masked: MaskedWords, training: DeploymentTuning
) -> tuple[nn.Module, dict[str, Any]]:
    rewritten, words = how.rows(given.data, masked, given.seed)
    most = max(words)
    if most == 0:
        raise DataError(
            "the records have no word to rewrite, so a base would read them as they are. Rewrite words='all'."
        )
    rows = _records(rewritten, given.tokenizer, row_length(model, given.max_length))
    model = fine_tuned(given.begin.given, rows, training, given.seed, given.folder)
    account = {
        **{"epsilon_word": finite(how.epsilon), "most_words": most, "words": sum(words), "range": [how.low, how.high]},
        **{"rewritten": how.words, "keep_case": how.keep_case},
    }
    epsilon = how.epsilon * most if how.formal else None
    said = {"mechanism": how.variant if math.isfinite(how.epsilon) else "none", "epsilon": epsilon, "delta": 0.0}
    return model, {**said, "neighbours": _OTHER_WORDS, "account": account, "steps": training.steps(len(rows))}


def _encoded(data: Examples, base: Loaded, max_length: int | None) -> list[Encoded]:
    return encode_all(data, base.tokenizer, row_length(base.model, max_length))


def _records(data: Examples, tokenizer: Any, max_length: int) -> list[Encoded]:
    """One row a record.

    Raises:
        DataError: a record of several windows, each of which would be a unit of its own.
    """
    if len(data) < 2:
        raise DataError(f"there are {len(data)} records; a private base needs at least 2.")
    rows = encode_rows(data, tokenizer, max_length)
    long = next((row for row, parts in zip(data, rows, strict=True) if len(parts) > 1), None)
    if long is not None:
        raise DataError(
            f"{where(long)} is longer than {max_length} tokens. The unit of privacy is one record, so it is not split: shorten it, or "
            f"raise {setting('max_length')}."
        )
    return [parts[0] for parts in rows]


def _empty(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"{folder} is there already, and is not replaced. Choose another {setting('folder')}.")
    return folder
