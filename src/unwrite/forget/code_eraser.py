"""CodeEraser: raise the loss on a file's secrets alone, and train on the code around them, near the model as it was.

    L_forget = - mean_M CE + gamma * mean_{not M} CE - constraint * mean_M KL(p || q)
    L_retain = + retain_weight * mean_all KL(p || q) on other files

M are the tokens of secrets (found by `data.detect_secrets`), p the model before, q as it is now. Each step is two updates, of
forget files and then of retained ones, until the model says no more of the secrets than of code it has never seen.
(arXiv 2509.13755; gamma = 0.1, lambda = constraint = 0.1, retain_weight = lambda * alpha = 0.1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from ..data import Examples
from ..data.text.rendering import where
from ..data.text.secrets import mark_secrets
from ..errors import DataError, MethodError, notice, setting, unknown
from ..scoring import Thresholds, calibrate_threshold, end_ids
from .base import Paired, RetainLoss
from .engine.batch import BatchPart, PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerMark, PerToken, Term, kl_divergence
from .engine.phase import Phase
from .engine.text.unsaid import StopWhenUnsaid, passages_of

if TYPE_CHECKING:
    from .engine.text.work import TextWork

__all__ = ["CodeEraser"]

Target = Literal["secrets", "all"]
Stop = Literal["auto", "required", "never"]
CHANCE = 8  # characters from which a marked text that stands elsewhere too is no coincidence


@dataclass(frozen=True, kw_only=True)
class CodeEraser(Paired["TextWork"]):
    """Selective, constrained gradient ascent on secrets in code.

    Rows to forget are source files as plain texts. What is marked in them (`Example.marked`) is forgotten, or, where nothing is, the
    e-mail addresses, IP addresses and keys that `detect_secrets` finds. Retain rows are other files. Long files are read in windows,
    so no secret is cut off. Its baselines are settings: `on="all"` is the constraint-based one without a mask (CU); `gamma=0,
    constraint=0, retain_loss="none"` is selective gradient ascent (SSGA), and with `on="all"` plain gradient ascent.

    Args:
        on: "secrets", or "all" for whole files: then nothing is looked for, and any rows of text will do.
        gamma: weight of training on the code around, >= 0; without meaning for "all".
        constraint: weight of the KL divergence from the model before on what is forgotten, >= 0. It is raised there.
        retain_loss, retain_weight: the retain term; "kl" with lambda * alpha in the paper.
        stop: when to end before all epochs: "auto" where thresholds are known, from the two fields below or from a holdout set of
            unseen texts; "required" to refuse a training without; "never".
        accuracy_below, likelihood_below: thresholds of memorisation accuracy and extraction likelihood, in [0, 1] or above; None for
            those of the holdout set. Both or neither.
        n: n-gram length of the likelihood, >= 1.
        margin: the likelihood is measured only where the accuracy is at most so far above its threshold, >= 0.
        patience: epochs without a better likelihood after which training ends, >= 1.
    """

    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-6,
        "num_train_epochs": 100,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "constant",
        "warmup_epochs": 0.0,
        "weight_decay": 0.0,
        "adam_beta2": 0.98,
    }
    on: Target = "secrets"
    gamma: float = 0.1
    constraint: float = 0.1
    retain_loss: RetainLoss = "kl"
    retain_weight: float = 0.1
    stop: Stop = "auto"
    accuracy_below: float | None = None
    likelihood_below: float | None = None
    n: int = 10
    margin: float = 0.3
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("on", get_args(Target)), ("stop", get_args(Stop))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(setting(name), str(getattr(self, name)), allowed))
        for name in ("gamma", "constraint", "margin"):
            require(name, getattr(self, name), at_least=0)
        for name in ("n", "patience"):
            require(name, getattr(self, name), at_least=1)
        given = {name: getattr(self, name) for name in ("accuracy_below", "likelihood_below")}
        for name, value in given.items():
            if value is not None:
                require(name, value, at_least=0)
        if list(given.values()).count(None) == 1:
            raise MethodError(f"{' and '.join(map(setting, given))} go together: give both, or neither.")

    def needed(self) -> frozenset[str]:
        return super().needed() | ({"logits", "reference logits"} if self.constraint else set())

    def phases(self, work: TextWork) -> list[Phase]:
        """One phase, whose steps update the weights on forget rows and then on retain rows."""
        return [Phase(stream="paired", loss=self.total_loss, apart=self.retain_loss != "none")]

    def loss(self, batch: PairedBatch) -> Loss:
        """Ascent on secrets, descent around them. batch.forget.token_nll: [label tokens] in nats, .marked: the same of bool."""
        part = batch["forget"]
        nll = part.token_nll
        if self.on == "all":
            whole: dict[str, Term] = {"forget": PerToken(-nll)}
            if self.constraint:
                whole["constraint"] = PerToken(-self.constraint * _drift(part))
            return Loss({}, **whole)
        marked = part.marked
        terms: dict[str, Term] = {"forget": PerMark(-nll[marked])}
        if self.gamma:
            terms["code"] = PerMark(self.gamma * nll[~marked], marked=False)
        if self.constraint:
            terms["constraint"] = PerMark(-self.constraint * _drift(part, marked))
        return Loss({}, **terms)

    def check(self, forget: Examples, retain: Examples | None) -> None:
        """Refuses files without a secret, before anything is computed."""
        super().check(forget, retain)
        if self.on == "secrets":
            mark_secrets(forget)

    def check_work(self, work: TextWork) -> None:
        """Refuses secrets that are never predicted or stand in retained files, and a missing threshold."""
        super().check_work(work)
        rows = self._rows(work)
        if self.on == "secrets":
            _check_predicted(rows, work)
            _check_retained(rows, work.retain, allowed=work.allow_overlap)
        if self.stop == "required" and self.accuracy_below is None and work.holdout is None:
            raise DataError(
                f"{setting('stop', 'required')} needs thresholds, and there are neither unseen texts nor numbers. Give "
                f"{setting('holdout')}, or {setting('accuracy_below')} and {setting('likelihood_below')}."
            )

    def _rows(self, work: TextWork) -> Examples:
        return mark_secrets(work.forget) if self.on == "secrets" else work.forget

    def _apply(self, work: TextWork) -> nn.Module:
        work = replace(work, forget=self._rows(work))
        stop = self._stop(work)
        if stop is None:
            return work.train(self)
        if stop.gone(work.model):
            notice(
                f"the model says no more of the forget texts than of unseen ones (memorisation accuracy "
                f"{stop.history[0]['accuracy']:.2f}, theirs {stop.thresholds.accuracy:.2f}), so nothing is trained."
            )
            return work.model.eval()
        model = replace(work, callbacks=[*work.callbacks, stop]).train(self)
        stop.place(model)
        return model

    def _stop(self, work: TextWork) -> StopWhenUnsaid | None:
        """What ends training, where thresholds are known and it is wanted."""
        if self.stop == "never":
            return None
        if self.accuracy_below is not None and self.likelihood_below is not None:
            thresholds = Thresholds(self.accuracy_below, self.likelihood_below, self.n)
        elif work.holdout is not None:
            thresholds = calibrate_threshold(work.model, work.tokenizer, work.holdout, n=self.n)
        else:
            notice(
                f"without unseen texts ({setting('holdout')}) it can't be told when the secrets are gone: all "
                f"{work.args.num_train_epochs:g} epochs are trained."
            )
            return None
        passages, ends = passages_of(work.encoded(work.forget)), end_ids(work.model, work.tokenizer)
        pad_id = int(work.tokenizer.pad_token_id)
        return StopWhenUnsaid(passages, thresholds, pad_id, ends, margin=self.margin, patience=self.patience)


def _drift(part: BatchPart, marked: Tensor | None = None) -> Tensor:
    """KL(p || q) from the model before, of each label token or of the marked ones, in nats."""
    assert part.logits is not None
    assert part.reference_logits is not None
    if marked is None:
        return kl_divergence(part.reference_logits, part.logits)
    return kl_divergence(part.reference_logits[marked], part.logits[marked])


def _check_predicted(rows: Examples, work: TextWork) -> None:
    """Refuses a row none of whose marked tokens is predicted: a secret of one token that begins the text."""
    said: set[int] = set()
    for row in work.encoded(rows):
        if row.marked is not None and any(row.marked[1:]):
            said.add(row.index)
    if silent := [row for row in rows if row.marked and row.index not in said]:
        raise DataError(
            f"{len(silent)} of {len(rows)} rows mark nothing that the model predicts (first: {where(silent[0])}): a text's first "
            "token has nothing before it. Leave them out."
        )


def _check_retained(forget: Examples, retain: Examples | None, *, allowed: bool) -> None:
    """Refuses retained texts that hold a secret which is to be forgotten, or says so; the secret is not named."""
    secrets = {row.answer[start:end]: row for row in forget for start, end in row.marked if end - start >= CHANCE}
    for row in retain or ():
        for secret, source in secrets.items():
            if any(secret in text for text in row.texts):
                message = (
                    f"{where(row)} is to be kept and holds a secret of {len(secret)} characters that {where(source)} is to lose. "
                    f"Take it out of one of them, or pass {setting('allow_overlap', True)}."
                )
                if not allowed:
                    raise DataError(message)
                notice(message)
                return
