"""Training an ARC encoder, its projectors and its learned vectors against decoders that stay as they are.

    L = - mean log p_decoder(token | vectors, text before),   over the text of a batch

Of each batch a coin decides whether texts are continued or written out again, and another one which decoder predicts.
(ARC-Encoder, arXiv 2510.20535)
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...errors import DataError, MethodError, NotFinite, setting
from ...runs import scratch_folder, seeded, training_progress
from .arc_encoder import ArcEncoder
from .batches import ContextRow, PendingBatch, Translator, answering, context_loss, continuation, reconstruction
from .pipeline import check_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

__all__ = ["ArcTrainer", "ArcTraining", "train_arc"]


@dataclass(frozen=True)
class ArcTraining:
    """How an encoder is trained, with the defaults of the paper's pretraining; see `fine_tuning` and `new_decoder`.

    Args:
        steps: updates, > 0.
        batch_size: rows a step and process, > 0.
        seq_len: the most tokens that are compressed, and the most that are predicted after them; rows of text have their own length.
        lr: largest rate of the encoder and of the learned vectors, > 0.
        projector_lr: largest rate of the projectors, > 0.
        warmup: steps over which the rate rises to its largest, less than `steps`; 1 is as none. Then it falls along half a cosine.
        initial_lr, final_lr: the encoder's rates at the first and at the last step, > 0; those of the projectors stand in the same
            ratio to theirs.
        weight_decay: AdamW's, on everything that is trained, norms and embeddings too, >= 0.
        cycle_momentum: let AdamW's first moment go from 0.95 to 0.85 and back with the rate, as the published training does by the
            default of torch's OneCycleLR; without it the moment is 0.9.
        clip: largest norm of the gradient, > 0.
        continuation: share of batches in which texts are continued; in the others they are written out again. 0 to 1.
        decoder_shares: how often each decoder predicts; empty for equally often.
        trained_layers: last layers of the encoder that are trained; None for all.
        train_embeddings: train the encoder's token embeddings.
        freeze_encoder: train projectors and learned vectors alone, for a decoder that comes later.
        seed: of the order of rows, and of both coins.
    """

    steps: int = 100_000
    batch_size: int = 16
    seq_len: int = 256
    lr: float = 1e-5
    projector_lr: float = 5e-5
    warmup: int = 1000
    initial_lr: float = 1e-20
    final_lr: float = 1e-10
    weight_decay: float = 0.1
    cycle_momentum: bool = True
    clip: float = 1.0
    continuation: float = 0.8
    decoder_shares: tuple[float, ...] = ()
    trained_layers: int | None = None
    train_embeddings: bool = True
    freeze_encoder: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        conditions = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "seq_len": self.seq_len >= 3,
            "lr": 0 < self.lr < 1e3,
            "projector_lr": 0 < self.projector_lr < 1e3,
            "warmup": 0 <= self.warmup < self.steps,
            "initial_lr": 0 < self.initial_lr <= self.lr,
            "final_lr": 0 < self.final_lr <= self.lr,
            "weight_decay": 0 <= self.weight_decay < 1e3,
            "clip": self.clip > 0,
            "continuation": 0 <= self.continuation <= 1,
            "decoder_shares": not self.decoder_shares
            or (min(self.decoder_shares) >= 0 and sum(self.decoder_shares) > 0),
            "trained_layers": self.trained_layers is None or self.trained_layers >= 0,
        }
        wrong = next((name for name, holds in conditions.items() if not holds), None)
        if wrong:
            raise MethodError(f"{setting(wrong, getattr(self, wrong))} has no meaning. See ArcTraining for its range.")

    @classmethod
    def fine_tuning(cls, **changes: Any) -> ArcTraining:
        """The paper's second stage: documents and questions of up to 2048 tokens, at a pooling factor no larger than before."""
        stage = cls(steps=4000, batch_size=8, seq_len=2048, lr=2e-6, projector_lr=3e-5, warmup=50)
        return replace(stage, **{"final_lr": 1e-8, "weight_decay": 0.05, **changes})

    @classmethod
    def new_decoder(cls, **changes: Any) -> ArcTraining:
        """The paper's training of a projector for a decoder that comes later; the encoder stays as it is."""
        stage = cls(steps=8000, batch_size=8, seq_len=1024, lr=1e-4, projector_lr=1e-4, warmup=100, freeze_encoder=True)
        return replace(stage, **{"final_lr": 1e-8, "weight_decay": 0.05, **changes})


@dataclass(frozen=True)
class _Rows:
    """A batch on its way from the loader; one object, so that nobody walks through its tokens."""

    rows: list[Any]


class ArcTrainer(Trainer):
    """transformers' Trainer for an encoder, with the decoders outside of what it trains and saves.

    Args:
        encoder: see `ArcEncoder`.
        decoders: one for each projector that is trained, in the encoder's order; frozen.
        rows: pieces of token ids by the first decoder's tokenizer (`context_pieces`), or rows of segments (`few_shot_row`).
        how: see `ArcTraining`.
        encoder_tokenizer, decoder_tokenizers: of the encoder and of each decoder.
        others: as `Trainer` takes them.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        encoder: ArcEncoder,
        decoders: Sequence[PreTrainedModel],
        rows: Sequence[Sequence[int]] | Sequence[ContextRow],
        how: ArcTraining,
        *,
        encoder_tokenizer: PreTrainedTokenizerBase,
        decoder_tokenizers: Sequence[PreTrainedTokenizerBase],
        args: TrainingArguments,
        **options: Any,
    ) -> None:
        check_training(encoder, decoders, decoder_tokenizers, rows, how)
        self.how, self.decoders = how, [decoder.eval() for decoder in decoders]
        self.encoder_tokenizer, self.decoder_tokenizers = encoder_tokenizer, decoder_tokenizers
        self.plain = isinstance(rows[0][0], int)
        self.to_encoder = Translator(decoder_tokenizers[0], encoder_tokenizer)
        self.to_decoder = [Translator(decoder_tokenizers[0], one) for one in decoder_tokenizers]
        self._step, self._part = -1, 0
        super().__init__(encoder, args, train_dataset=cast(Any, rows), data_collator=_Collate(), **options)
        self.remove_callback(PrinterCallback)
        for decoder in self.decoders:
            cast(nn.Module, decoder).to(self.args.device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with two groups: projectors, and all else that is trained."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, one in self.model.named_parameters():
            if one.requires_grad:
                groups[name.startswith("projectors.")].append(one)
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[False], "lr": self.how.lr}, {"params": groups[True], "lr": self.how.projector_lr}],
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=self.how.weight_decay,
        )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """One rise and one fall of both rates."""
        how = self.how
        self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer or self.optimizer,
            max_lr=[how.lr, how.projector_lr],
            total_steps=num_training_steps,
            pct_start=how.warmup / num_training_steps if how.warmup > 1 else 0.0,  # torch divides by one less
            anneal_strategy="cos",
            cycle_momentum=how.cycle_momentum,
            div_factor=how.lr / how.initial_lr,
            final_div_factor=how.initial_lr / how.final_lr,  # torch divides the initial rate by it
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def pending(self, rows: Sequence[Any], step: int, part: int = 0) -> PendingBatch:
        """The batch that these rows are at a step, `part` counting the batches of one step: a function of these and of the seed."""
        how = self.how
        coin = random.Random(f"{how.seed} {step} {part}")
        again = coin.random() >= how.continuation
        shares = how.decoder_shares or (1.0,) * len(self.decoders)
        decoder = coin.choices(range(len(self.decoders)), shares)[0]
        if not self.plain:
            return answering(rows, self.encoder_tokenizer, self.decoder_tokenizers[decoder], decoder)
        if again:
            return reconstruction(rows, self.to_encoder, self.to_decoder[decoder], how.seq_len, decoder)
        return continuation(rows, self.to_encoder, self.to_decoder[decoder], decoder)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean over a batch's learned tokens.

        Raises:
            NotFinite: the loss is no number any more.
        """
        step = self.state.global_step
        self._part = self._part + 1 if step == self._step else 0
        self._step = step
        batch = self.pending(inputs["batch"].rows, step, self._part)
        loss = context_loss(model, self.decoders, batch, frozen=self.how.freeze_encoder)
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {loss.item()} at step {step + 1}. Lower {setting('lr')} or {setting('projector_lr')}."
            )
        return loss


class _Collate:
    def __call__(self, rows: list[Any]) -> dict[str, _Rows]:
        return {"batch": _Rows(rows)}


def train_arc(
    encoder: ArcEncoder,
    decoders: Sequence[PreTrainedModel],
    rows: Sequence[Sequence[int]] | Sequence[ContextRow],
    how: ArcTraining | None = None,
    *,
    encoder_tokenizer: PreTrainedTokenizerBase,
    decoder_tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    folder: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    label: str = "training an encoder",
    **options: Any,
) -> ArcEncoder:
    """Trains an encoder in place and returns it, in evaluation mode; decoders are left as they were, bit for bit.

    Args:
        encoder, decoders, rows, encoder_tokenizer: see `ArcTrainer`.
        how: see `ArcTraining`; None for the paper's pretraining.
        decoder_tokenizers: one a decoder; empty where all have the encoder's.
        folder: where checkpoints go, if `options` ask for some.
        resume: go on from the last checkpoint in `folder`.
        label: what the progress line says.
        options: more of `TrainingArguments`: logging, checkpoints, accumulation, precision.

    Raises:
        MethodError: a decoder whose weights would be trained, without a projector, or without a tokenizer.
        DataError: no rows, or rows of both kinds.
        NotFinite: a loss that is no number.
    """
    how = how or ArcTraining()
    tokenizers = list(decoder_tokenizers) or [encoder_tokenizer] * len(decoders)
    with seeded(how.seed), scratch_folder() as scratch, training_of(encoder, how):
        settings = {
            "output_dir": str(folder or scratch),
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": next(encoder.parameters()).device.type == "cpu",
            "dataloader_pin_memory": False,
            **options,
            "max_steps": how.steps,
            "per_device_train_batch_size": how.batch_size,
            "max_grad_norm": how.clip,
            "seed": how.seed,
            "remove_unused_columns": False,
            "ddp_find_unused_parameters": True,  # a step uses one decoder's projector
        }
        trainer = ArcTrainer(
            encoder,
            decoders,
            rows,
            how,
            encoder_tokenizer=encoder_tokenizer,
            decoder_tokenizers=tokenizers,
            args=TrainingArguments(**settings),
            callbacks=list(callbacks),
        )
        with training_progress(trainer, label):
            trainer.train(resume_from_checkpoint=resume or None)
    encoder.zero_grad(set_to_none=True)
    return encoder.eval()


@contextlib.contextmanager
def training_of(encoder: ArcEncoder, how: ArcTraining) -> Iterator[None]:
    """Lets gradients reach what is to be trained and nothing else; afterwards all is as it was."""
    before = [one.requires_grad for one in encoder.parameters()]
    layers = len(encoder.layers)
    first = 0 if how.trained_layers is None else max(0, layers - how.trained_layers)
    try:
        encoder.embed_tokens.requires_grad_(how.train_embeddings and not how.freeze_encoder)
        for number, layer in enumerate(encoder.layers):
            layer.requires_grad_(number >= first and not how.freeze_encoder)
        for part in (encoder.projectors, encoder.continuation, encoder.reconstruction):
            part.requires_grad_(True)
        yield
    finally:
        for one, trained in zip(encoder.parameters(), before, strict=True):
            one.requires_grad_(trained)


def check_training(
    encoder: ArcEncoder,
    decoders: Sequence[PreTrainedModel],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    rows: Sequence[Any],
    how: ArcTraining,
) -> None:
    """Refuses what can't be trained, before anything is computed."""
    if not decoders or len(tokenizers) != len(decoders):
        raise MethodError(f"{len(decoders)} decoders and {len(tokenizers)} tokenizers. Give each decoder one.")
    if how.decoder_shares and len(how.decoder_shares) != len(decoders):
        raise MethodError(
            f"{setting('decoder_shares', how.decoder_shares)} is for {len(how.decoder_shares)} decoders, not {len(decoders)}."
        )
    for index, decoder in enumerate(decoders):
        check_pair(encoder, decoder, index)
        trainable = [name for name, one in cast(nn.Module, decoder).named_parameters() if one.requires_grad]
        if trainable:
            raise MethodError(
                f"decoder {index} would be trained: {len(trainable)} of its weights take gradients (first: {trainable[0]}). "
                "Freeze it with requires_grad_(False)."
            )
    if not rows or not all(len(row) for row in rows):
        raise DataError(
            "there are no rows to train on, or an empty one. Give pieces of token ids, or rows of segments."
        )
    if len({isinstance(row[0], int) for row in rows}) > 1:
        raise DataError("rows of token ids and rows of segments are mixed. Train on one kind after the other.")
