"""Training a mask predictor: hide a random share of each answer, predict what was hidden (LLaDA, arXiv 2502.09992, eq. 3).

    t ~ U(0, 1),  p = (1 - eps) t + eps;  every answer token is hidden with probability p
    L = mean over rows of  1 / length * sum over hidden tokens of  -log p(token | what is visible) / p

Prompts are never hidden. The end tokens that fill up an answer belong to it: the model learns where to stop. The mask token
is no answer, so its logit is left out, as it is when writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from ..errors import DataError, MethodError, ModelError, NotFinite
from ..models import TrainRecipe
from ..models.recipe import CausalTraining, Start, fit_rows
from .adapter import MaskPredictor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

__all__ = [
    "MaskedCollator",
    "MaskedDiffusionTrainer",
    "MaskedRow",
    "mask_predictor_recipe",
    "masked_diffusion_loss",
]


@dataclass(frozen=True)
class MaskedRow:
    """A text to learn from.

    Args:
        input_ids: the prompt's and the answer's.
        answer: place of the answer's first token; 0 where all of it is learnt.
    """

    input_ids: Sequence[int]
    answer: int = 0


@dataclass(frozen=True)
class MaskedCollator:
    """Rows to tensors.

    Args:
        end_id: fills up answers that are shorter than the longest, and is learnt there. None: such rows are padded,
            and what pads them is neither seen nor learnt.
        length: tokens every row is filled up to; None for the longest of the batch.
    """

    end_id: int | None = None
    length: int | None = None

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """input_ids [rows, longest] padded on the right, lengths [rows], prompt_lengths [rows].

        Raises:
            DataError: a row without an answer, or one longer than `length`.
        """
        pairs = [(list(_of(row, "input_ids")), int(_of(row, "answer", 0))) for row in rows]
        for ids, answer in pairs:
            if not 0 <= answer < len(ids):
                raise DataError(f"a row has {len(ids)} tokens and its answer begins at {answer}. Give it an answer.")
        longest = self.length or max(len(ids) for ids, _ in pairs)
        too_long = max(len(ids) for ids, _ in pairs)
        if too_long > longest:
            raise DataError(f"a row has {too_long} tokens, more than length, {longest}. Cut it or raise length.")
        fill = 0 if self.end_id is None else self.end_id
        lengths = [len(ids) if self.end_id is None else longest for ids, _ in pairs]
        return {
            "input_ids": torch.tensor([ids + [fill] * (longest - len(ids)) for ids, _ in pairs]),
            "lengths": torch.tensor(lengths),
            "prompt_lengths": torch.tensor([answer for _, answer in pairs]),
        }


def masked_diffusion_loss(
    predictor: MaskPredictor,
    ids: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    *,
    eps: float = 1e-3,
    short: float = 0.0,
    spread: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One draw of the loss for every row, [rows] in nats a token.

    Args:
        ids: [rows, longest].
        lengths, prompt_lengths: [rows] of each row; what follows a row's length is not seen.
        eps: least share hidden, in (0, 1).
        short: how often the whole batch is cut to a random length (LLaDA's pre-training: 0.01); only without prompts.
        spread: spread the rows' times evenly over (0, 1) from a random first one: the same expectation, less variance
            (MDLM, arXiv 2406.07524).
        generator: of what is drawn; None for torch's own.
    """
    device = ids.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    if short > 0 and not bool(prompt_lengths.any()) and float(uniform(1)) < short:
        cut = 1 + int(float(uniform(1)) * ids.shape[1])
        ids, lengths = ids[:, :cut], lengths.clamp(max=cut)
    times = (uniform(1) + torch.arange(len(ids), device=device) / len(ids)) % 1 if spread else uniform(len(ids))
    share = (1 - eps) * times + eps  # [rows]
    columns = torch.arange(ids.shape[1], device=device)
    first = prompt_lengths.clamp(min=int(predictor.shift))  # nothing predicts a shifted model's first token
    answer = (columns >= first[:, None]) & (columns < lengths[:, None])
    hidden = answer & (uniform(*ids.shape) < share[:, None])
    # The hidden columns of each row come first, so that the head runs at no more than the most hidden ones.
    count = hidden.sum(1)
    where = (~hidden).long().sort(dim=1, stable=True).indices[:, : max(1, int(count.max()))]
    logits = predictor.logits(ids.masked_fill(hidden, predictor.mask_id), lengths, where).float()
    if predictor.mask_id < logits.shape[-1]:
        logits = logits.index_fill(-1, torch.tensor(predictor.mask_id, device=device), -torch.inf)
    counted = torch.arange(where.shape[1], device=device) < count[:, None]
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids.gather(1, where).flatten(), reduction="none"
    ).view_as(where)
    return nll.masked_fill(~counted, 0.0).sum(1) / share / answer.sum(1).clamp(min=1)


class MaskedDiffusionTrainer(Trainer):
    """transformers' Trainer with `masked_diffusion_loss`: mean over the rows of an accumulated batch and all processes.

    Args:
        mask_id, shift: see `MaskPredictor`; None for what the model's configuration or the tokenizer says.
        end_id: see `MaskedCollator`.
        eps, short: see `masked_diffusion_loss`.
        others: as `Trainer` takes them; rows are `MaskedRow`s or mappings with "input_ids" and "answer".

    Raises:
        MethodError: eps or short outside their range, rows that a column filter would strip.
        ModelError: see `MaskPredictor`.
        DataError: a row that holds the mask token, in training.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        mask_id: int | None = None,
        shift: bool | None = None,
        end_id: int | None = None,
        eps: float = 1e-3,
        short: float = 0.0,
        processing_class: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> None:
        if not 0 < eps < 1 or not 0 <= short <= 1:
            raise MethodError(f"eps is {eps} and short {short}; use 0 < eps < 1 and 0 <= short <= 1.")
        if args is not None and args.remove_unused_columns:
            raise MethodError(
                "remove_unused_columns would strip where the answers begin. Use TrainingArguments(remove_unused_columns=False)."
            )
        self.predictor = MaskPredictor.of(model, processing_class, mask_id=mask_id, shift=shift)
        self.eps, self.short = eps, short
        self._rows = 1
        options.setdefault("data_collator", MaskedCollator(end_id))
        super().__init__(model, args, processing_class=processing_class, **options)
        self.model_accepts_loss_kwargs = True  # the loss comes divided by the rows of the whole accumulated batch
        self.remove_callback(PrinterCallback)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """One optimiser step's batches, and the rows in all of them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        rows = torch.tensor(float(sum(len(batch["input_ids"]) for batch in batches)), device=device)
        if self.accelerator.num_processes > 1:
            rows = self.accelerator.reduce(rows, reduction="sum")
        return batches, rows

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum over this batch's rows, divided by the rows of the step.

        Raises:
            NotFinite: the loss is no number any more.
        """
        rows = self._losses(model, inputs)
        total = rows.sum() / (len(rows) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(total):
            raise NotFinite(
                f"the loss stopped being finite at step {self.state.global_step + 1}. Lower the learning rate."
            )
        return total if num_items_in_batch is None else total * self.accelerator.num_processes

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """The loss; what is hidden is drawn from the arguments' seed, the same at every evaluation."""
        with torch.no_grad():
            generator = torch.Generator().manual_seed(self.args.seed)
            rows = self._losses(model, self._prepare_inputs(inputs), generator)
        return rows.mean(), None, None

    def _losses(
        self, model: nn.Module, inputs: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        predictor = replace(self.predictor, model=model, probe=False)
        ids = inputs["input_ids"]
        inside = torch.arange(ids.shape[1], device=ids.device) < inputs["lengths"][:, None]
        if bool(((ids == predictor.mask_id) & inside).any()):
            raise DataError(f"a row holds the mask token {predictor.mask_id}. Use a token of its own.")
        return masked_diffusion_loss(
            predictor,
            ids,
            inputs["lengths"],
            inputs["prompt_lengths"],
            eps=self.eps,
            short=self.short if model.training else 0.0,
            generator=generator,
        )


def mask_predictor_recipe(
    start: str | Path,
    *,
    mask_id: int,
    end_id: int | None,
    epochs: int,
    lr: float,
    batch_size: int,
    length: int | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    eps: float = 1e-3,
    spread: bool = False,
    device: str = "cpu",
    muon: bool = False,
) -> TrainRecipe:
    """A recipe for `trained` that makes a decoder a mask predictor, on `MaskedRow`s.

    The saved configuration has `is_causal` False and `mask_token_id`, so that `MaskPredictor.of(load_model(folder))` works.

    Args:
        start: see `causal_recipe`; a causal model keeps its weights, its embeddings grow if mask_id is beyond them.
        mask_id: a token that no row holds.
        end_id, length: see `MaskedCollator`.
        eps, spread: see `masked_diffusion_loss`.
        others: see `CausalTraining`.

    Raises:
        ModelError: a setting outside its range; a start that isn't there.
        DataError: a row that holds the mask token.
    """
    how = CausalTraining(epochs, lr, batch_size, warmup, weight_decay, clip, device, muon)
    begin = Start(start)
    collate = MaskedCollator(end_id, length)

    def build(seed: int) -> nn.Module:
        model: Any = begin.build(seed)
        model.config.is_causal = False
        model.config.mask_token_id = mask_id
        if mask_id >= model.get_input_embeddings().weight.shape[0]:
            torch.manual_seed(seed)
            model.resize_token_embeddings(mask_id + 1)
        built: nn.Module = model
        return built

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        rows = _without(mask_id, data, indices)
        predictor = MaskPredictor.of(model.to(device), mask_id=mask_id)

        def loss(_: nn.Module, batch: list[Any], device: str) -> Tensor:
            tensors = {name: value.to(device) for name, value in collate(batch).items()}
            ids, lengths, prompts = tensors["input_ids"], tensors["lengths"], tensors["prompt_lengths"]
            return masked_diffusion_loss(predictor, ids, lengths, prompts, eps=eps, spread=spread).mean()

        fit_rows(model, rows, how, seed, folder, loss)

    if not 0 < eps < 1:
        raise ModelError(f"eps is {eps}; use a value above 0 and below 1.")
    of = {"mask_id": mask_id, "end_id": end_id, "length": length, "eps": eps, "spread": spread}
    return TrainRecipe(build, fit, "mask predictor", {"version": 1, "start": begin.origin, **of, **how.settings})


def _without(mask_id: int, data: Any, indices: Sequence[int]) -> list[Any]:
    """The rows, none of which may hold the mask token."""
    rows = [data[index] for index in indices]
    held = next((index for index, row in zip(indices, rows, strict=True) if mask_id in row.input_ids), None)
    if held is not None:
        raise DataError(f"row {held} holds the mask token {mask_id}. Use a token of its own.")
    return rows


def _of(row: MaskedRow | Mapping[str, Any], name: str, default: Any = None) -> Any:
    return row.get(name, default) if isinstance(row, dict) else getattr(row, name, default)
