"""One application of a method to a language model: rows of text, the tokenizer, adapters, and the training of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ....data import Examples, ForgetSplit
from ....data.text.encoding import Encoded, encode_all, pad
from ....errors import MethodError, ModelError, setting
from ....models import Anatomy, anatomy
from ....models.curvature import next_token
from ....scoring import row_length
from ..phase import Phase
from ..reads import HIDDEN
from ..work import Work
from . import fsdp
from .arguments import UnlearnArguments, training_arguments
from .trainer import train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ....models.curvature.losses import LabelledBatch
    from ...base import Objective

__all__ = ["TextWork"]


@dataclass(kw_only=True)
class TextWork(Work[Examples, UnlearnArguments]):
    """As `Work`, on a causal language model of transformers."""

    reads: ClassVar[frozenset[str]] = frozenset(
        {"nll", "token counts", "logits", "alternate nll", "retain", "retain nll", "retain logits", HIDDEN}
        | {f"reference {name}" for name in ("nll", "token counts", "logits", "alternate nll", "retain logits", HIDDEN)}
    )

    args: UnlearnArguments = field(default_factory=UnlearnArguments)

    @classmethod
    def arguments(cls, args: UnlearnArguments | dict[str, Any] | None, defaults: Mapping[str, Any]) -> UnlearnArguments:
        return training_arguments(args, defaults)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, under the name it has for texts."""
        return self.processing_class

    @cached_property
    def anatomy(self) -> Anatomy:
        """The model's parts: blocks, projections, norms, embeddings, head.

        Raises:
            ModelError: an architecture that is not known here.
        """
        return anatomy(self.model)

    def depth(self) -> int:
        return len(self.anatomy.blocks)

    def check(self) -> None:
        ForgetSplit(self.forget, self.retain, self.holdout, allow_overlap=self.allow_overlap)
        if getattr(self.tokenizer, "pad_token_id", None) is None:
            raise ModelError("the tokenizer has no pad token. Set one: tokenizer.pad_token = tokenizer.eos_token")
        if not isinstance(self.model, nn.Module):
            raise ModelError(
                f"the model is {type(self.model).__name__}, not a torch module. Load it with unwrite.models."
            )
        fsdp.check(self.args, self.model)
        if self.peft_config is not None:
            from peft import PeftConfig

            if not isinstance(self.peft_config, PeftConfig):
                raise MethodError(
                    f"{setting('peft_config')} is {type(self.peft_config).__name__}, not adapters of peft. Give one of its "
                    "configs, such as LoraConfig()."
                )

    def check_phase(self, phase: Phase, objective: Objective) -> None:
        super().check_phase(phase, objective)
        if phase.then is not None:
            raise MethodError(
                f"{type(objective).__name__} on text: a phase has 'then', another update on the same rows, which the "
                "trainer of language models can't make. Give it a phase of its own."
            )
        ways = {"fp16": self.args.fp16, "fsdp": fsdp.wanted(self.args), "deepspeed": self.args.deepspeed}
        split = [name for name, used in ways.items() if used]
        if phase.apart and not objective.separable:
            raise MethodError(
                f"{type(objective).__name__} has updates apart, but its loss can't be asked of forget and retain rows apart."
            )
        if (phase.descent is not None or phase.apart) and split:
            raise MethodError(
                f"{type(objective).__name__} moves weights within a step and needs whole, unscaled gradients, which there are "
                f"none of with {' and '.join(split)}. Train without, on one device or several by data parallelism."
            )
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        if phase.descent is not None and self.args.gradient_checkpointing and reentrant:
            raise MethodError(
                f"{type(objective).__name__} takes gradients several times a step, which reentrant gradient checkpointing "
                "can't give. Use the kind that is not reentrant, or none."
            )

    def train(self, objective: Objective) -> nn.Module:
        """As `Work.train`, by transformers' trainer.

        Everything random, the adapters' first weights too, comes from the arguments' seed; the caller's random state
        is left as it was.

        Raises:
            as `Work.train`.
        """
        return train(objective, self)

    def encoded(self, rows: Examples) -> list[Encoded]:
        """The rows' windows, as training has them."""
        return encode_all(rows, self.tokenizer, row_length(self.model, self.args.max_length))

    def batches(self, rows: list[Encoded], batch_size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """({token ids, attention mask}, labels) in the set's own order, all `[rows, length]`."""
        for first in range(0, len(rows), batch_size):
            padded = pad(rows[first : first + batch_size], self.tokenizer.pad_token_id)
            yield {name: padded[name] for name in ("input_ids", "attention_mask")}, padded["labels"]

    def content(self, rows: list[Encoded]) -> list[tuple[list[int], list[int]]]:
        return [(row.input_ids, row.labels) for row in rows]

    @property
    def row_loss(self) -> Callable[[nn.Module, LabelledBatch], Tensor]:
        return next_token
