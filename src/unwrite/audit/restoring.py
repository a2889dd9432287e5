"""RESTOR's driver: a clean model is corrupted, an unlearner is given the documents, and the true facts are asked again.

    corrupted = FineTuning()(clean, split.forget, tokenizer)
    report = restore(clean, corrupted, unlearn_fn, split, tokenizer=tokenizer)

The unlearner is a callable `(model, forget, retain, spans) -> model`; the spans say which characters of every document
carry wrong facts, for methods that push on those alone. (arXiv 2411.00204)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..data.text.encoding import encode_all
from ..data.text.examples import Examples
from ..data.text.facts import CorruptedFacts, Span
from ..errors import MethodError
from ..models.merging import merged
from ..scoring import row_length
from .evaluation import evaluate
from .fine_tuning import adapted, fine_tune
from .report.report import Report
from .suites.known import suite_for
from .suites.restor import FactMetric, restoration
from .text.context import TextContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .base import Suite

Unlearn = Callable[
    ["PreTrainedModel", Examples, Examples | None, Sequence[tuple[Span, ...]]],
    "PreTrainedModel",
]
Repair = Callable[["PreTrainedModel"], "PreTrainedModel"]


def restore(
    clean: PreTrainedModel,
    corrupted: PreTrainedModel,
    unlearn_fn: Unlearn,
    split: CorruptedFacts,
    *,
    tokenizer: PreTrainedTokenizerBase,
    suite: str | Suite = "restor",
    repair_fn: Repair | None = None,
    batch_size: int = 16,
) -> Report:
    """Unlearns the documents from a copy of the corrupted model and measures it between the corrupted and the clean one.

    Args:
        clean: the model that never saw the documents.
        corrupted: the same model trained on them.
        unlearn_fn: `(model, forget, retain, spans) -> model`; it may train in place, as it gets a copy.
        split: documents and facts, as `corrupted_facts` makes them.
        suite: its name, or `restor_suite(...)`.
        repair_fn: `(model) -> model`, a light fine-tuning on instructions before scoring, such as the benchmark's
            (`FineTuning(2e-5, epochs=2, accumulation=8)` on LIMA); applied to copies of all three models alike, where the
            benchmark repairs the unlearned one alone (ours).

    Returns:
        A report with the columns before (corrupted), after (unlearned) and oracle (clean).

    Raises:
        DataError: the corruption took less than 0.05 of the accuracy; nothing is unlearned then.
        MethodError: a suite without RESTOR's metrics.
    """
    chosen = suite_for(suite, TextContext.kind, split)
    asked = next((metric for metric in chosen.for_split(split) if isinstance(metric, FactMetric)), None)
    if asked is None:
        raise MethodError(f"suite {chosen.name!r} asks for no facts. Use suite 'restor'.")
    if repair_fn is not None:
        clean, corrupted = repair_fn(copy.deepcopy(clean)), repair_fn(copy.deepcopy(corrupted))
    accuracies = [
        fmean(asked.right(TextContext(model, split, tokenizer, batch_size=batch_size))) for model in (corrupted, clean)
    ]
    restoration(accuracies[0], *accuracies)  # refuses where there is nothing to restore
    unlearned = unlearn_fn(copy.deepcopy(corrupted), split.forget, split.retain, split.spans)
    if unlearned is clean or unlearned is corrupted:
        unlearned = copy.deepcopy(unlearned)
    if repair_fn is not None:
        unlearned = repair_fn(unlearned)
    models: dict[str, Any] = {"before": corrupted, "oracle": clean}
    return evaluate(unlearned, split, suite=chosen, tokenizer=tokenizer, batch_size=batch_size, references=models)


@dataclass(frozen=True)
class FineTuning:
    """Ordinary training of a copy on rows, with a cosine schedule; the defaults are those of RESTOR's corruption.

    Args:
        learning_rate: AdamW's peak, > 0.
        epochs: passes over the rows, >= 1.
        batch_size, accumulation: rows a pass, and passes an update, >= 1.
        warmup: share of the updates over which the rate rises, 0 to 1.
        rank, alpha: of the LoRA adapters on all linear layers, merged at the end; rank 0 trains all weights (ours: a task
            vector restores a LoRA corruption trivially). 8 and 16 are the defaults of the official trainer, which the
            paper's configuration does not set.
        seed: of adapters, order of rows and dropout.
    """

    learning_rate: float = 5e-5
    epochs: int = 5
    batch_size: int = 2
    accumulation: int = 2
    warmup: float = 0.1
    rank: int = 8
    alpha: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulation) < 1 or self.rank < 0:
            raise MethodError(
                "fine-tuning needs epochs, batch_size and accumulation of at least 1, and a rank of at least 0."
            )
        if not (self.learning_rate > 0 and 0 <= self.warmup <= 1):
            raise MethodError("fine-tuning needs a learning rate above 0, and a warm-up between 0 and 1.")

    def adapted(self, model: PreTrainedModel, rows: Examples, tokenizer: PreTrainedTokenizerBase) -> Any:
        """As a call, with the adapters beside the weights: `unload()` takes them off again."""
        tuned: Any = copy.deepcopy(model)
        if self.rank:
            tuned = adapted(tuned, self.rank, self.alpha, self.seed)
        else:
            tuned.requires_grad_(True)
        encoded = encode_all(rows, tokenizer, row_length(model, None))
        updates = -(-len(encoded) // (self.batch_size * self.accumulation)) * self.epochs
        fine_tune(
            tuned,
            encoded,
            tokenizer.pad_token_id,
            seed=self.seed,
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulation,
            lr_scheduler_type="cosine",
            warmup_steps=round(self.warmup * updates),
        )
        return tuned.eval()

    def __call__(self, model: PreTrainedModel, rows: Examples, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Returns a trained copy; `model` stays as it is.

        Args:
            rows: documents (loss on every token) or questions with answers (loss on the answers).
        """
        tuned = self.adapted(model, rows, tokenizer)
        result: PreTrainedModel = merged(tuned, in_place=True) if self.rank else tuned
        return result.eval()
