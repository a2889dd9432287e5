"""A sampler: the parts of the denoising loop in one frozen object.

    Sampler(blocks=AdaBlock(), logits=CreditDecoding(), commit=LocalLeap(), stop=Prophet(), cache="dual")(model, tokenizer, prompts)

`generate(custom_generate=sampler)` runs the same where the model has `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..errors import MethodError
from .adapter import MaskPredictor
from .base import Blocks, CommitRule, Constraint, Edit, Logits, Part, Proposal, Quota, Score, Stop, Watch, finite
from .block_cache import CacheKind, check_cacheable
from .loop import Denoising, Fixed, all_parts
from .parts.proposing import Confidence, Gumbel, NegativeEntropy, Nucleus
from .parts.rules import Fading, FixedBlocks, Threshold, TopK, Uniform
from .prompts import checked_prompts
from .trace import Trace

if TYPE_CHECKING:
    from torch import nn
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

__all__ = ["DiffusionOutput", "Sampler"]


@dataclass
class DiffusionOutput(ModelOutput):
    """What was written.

    Attributes:
        sequences: [batch, longest] prompt and answer of every row, padded on the right; the whole canvas, with what follows
            the first end token.
        answers: ids of each answer, cut before its first end token.
        nfe: [batch] forwards.
        trace: everything else that is known of the call: order, blocks, work, counts.
    """

    sequences: Tensor | None = None
    answers: list[list[int]] | None = None
    nfe: Tensor | None = None
    trace: Trace | None = None

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The answers as text."""
        return [tokenizer.decode(answer, skip_special_tokens=True) for answer in self.answers or []]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a mask predictor writes.

    Args:
        gen_length: positions of the answer, at least 1.
        steps: of the whole answer, for rules that count; None for one a position.
        blocks: where blocks end.
        logits: what changes the logits tokens are chosen from; one or several, in order.
        propose: how tokens are chosen.
        score: how sure a choice is.
        quota: how many positions a step reveals, for rules that count.
        commit: which positions are revealed.
        constraint: what overrules a commit.
        edit: what happens after it; one or several.
        stop: what ends a row early.
        cache: "none", "prefix" or "dual", see `BlockCache`.
        guidance: classifier-free guidance w: logits = l_unc + (w + 1)(l_cond - l_unc); 0 is off, more doubles the forwards.
        seed: of everything random; each row draws from its own generator.
        keep_history: keep the canvas after every step.
        watch: called after every step.

    Raises:
        MethodError: a setting without meaning, parts that cannot work together.
    """

    gen_length: int = 256
    steps: int | None = None
    blocks: Blocks = FixedBlocks()
    logits: Logits | tuple[Logits, ...] | None = None
    propose: Proposal = Gumbel()
    score: Score = Confidence()
    quota: Quota = Uniform()
    commit: CommitRule = Threshold()
    constraint: Constraint | None = None
    edit: Edit | tuple[Edit, ...] | None = None
    stop: Stop | tuple[Stop, ...] | None = None
    cache: CacheKind = "none"
    guidance: float = 0.0
    seed: int = 0
    keep_history: bool = False
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.gen_length < 1:
            raise MethodError(f"gen_length is {self.gen_length}; use at least 1.")
        if self.steps is not None and not 1 <= self.steps <= self.gen_length:
            raise MethodError(f"steps is {self.steps}; use 1 to gen_length, {self.gen_length}.")
        if self.cache not in ("none", "prefix", "dual"):
            raise MethodError(f"cache is {self.cache!r}; use 'none', 'prefix' or 'dual'.")
        finite(self, guidance=self.guidance)
        for part in self.parts():
            part.check(self)

    @classmethod
    def llada(cls, gen_length: int = 128, steps: int = 128, block: int = 32, **others: Any) -> Sampler:
        """LLaDA's own loop: the surest positions of a block, evenly over the steps (arXiv 2502.09992)."""
        return cls(gen_length=gen_length, steps=steps, blocks=FixedBlocks(block), commit=TopK(), **others)

    @classmethod
    def dream(cls, gen_length: int = 256, steps: int = 256, temperature: float = 0.2, **others: Any) -> Sampler:
        """Dream's loop as its authors use it: one block, a schedule in time, warped choices of least entropy
        (arXiv 2508.15487)."""
        parts: dict[str, Any] = {"blocks": FixedBlocks(None), "quota": Fading(), "commit": TopK()}
        parts |= {"propose": Nucleus(temperature), "score": NegativeEntropy()}
        return cls(gen_length=gen_length, steps=steps, **{**parts, **others})

    def parts(self) -> list[Part]:
        """Every part, in the order they are asked."""
        return all_parts(self)

    def __call__(
        self,
        model: nn.Module | MaskPredictor,
        tokenizer: Any = None,
        prompts: Any = None,
        *,
        fixed: Fixed | Sequence[Fixed] | None = None,
        input_ids: Tensor | None = None,
        **generate: Any,
    ) -> Any:
        """Writes an answer to every prompt.

        Args:
            model: a mask predictor: a transformers model, or a `MaskPredictor`.
            tokenizer: for prompts that are text, and for its mask and end tokens.
            prompts: texts, or ids: one row, a list of rows, [batch, length].
            fixed: {generated position: id} that is given, for all rows or for each; such tokens count as prompt.
            input_ids, generate: what `generate(custom_generate=...)` passes.

        Returns:
            DiffusionOutput; to `generate` what it asks for, ids [batch, length] or the output.

        Raises:
            MethodError, ModelError: what cannot be written, before the first forward.
        """
        if "generation_config" in generate:
            ids = tokenizer if input_ids is None else input_ids  # `generate` passes its ids second
            return self._for_generate(model, ids, **generate)
        if generate:
            raise MethodError(f"{next(iter(generate))} is not known here. Set it as a field of the Sampler.")
        predictor = MaskPredictor.of(model, tokenizer)
        if self.cache != "none":
            check_cacheable(predictor)
        rows = checked_prompts(prompts, predictor, self.gen_length, tokenizer)
        return self._run(predictor, rows, self._fixed(fixed, len(rows), predictor))

    def _run(self, predictor: MaskPredictor, rows: list[list[int]], fixed: list[Fixed]) -> DiffusionOutput:
        denoising = Denoising(self, predictor, rows, fixed)
        trace = denoising.run()
        canvas, fill = denoising.canvas, predictor.end_ids[0] if predictor.end_ids else predictor.pad_id
        columns = torch.arange(canvas.shape[1])
        full = denoising.prompt + self.gen_length
        cut = (columns >= denoising.length[:, None]) & (columns < full[:, None])  # shortened by an edit
        canvas = canvas.masked_fill(cut.to(canvas.device), fill)
        answers = []
        for row, prompt in enumerate(rows):
            answer = canvas[row, len(prompt) : len(prompt) + self.gen_length].tolist()
            ends = [place for place, token in enumerate(answer) if token in predictor.end_ids]
            answers.append(answer[: ends[0]] if ends else answer)
        return DiffusionOutput(sequences=canvas, answers=answers, nfe=trace.nfe, trace=trace)

    def _fixed(self, fixed: Any, batch: int, predictor: MaskPredictor) -> list[Fixed]:
        entries = list(fixed) if isinstance(fixed, list | tuple) else [fixed or {}] * batch
        if len(entries) != batch:
            raise MethodError(
                f"fixed has {len(entries)} entries for {batch} prompts. Give one for each, or one for all."
            )
        for one in entries:
            for place, token in one.items():
                if not 0 <= place < self.gen_length:
                    raise MethodError(
                        f"fixed sets position {place}, outside 0 to {self.gen_length - 1}. Move it inside."
                    )
                if token == predictor.mask_id:
                    raise MethodError(f"fixed sets position {place} to the mask token. Leave it out.")
        return entries

    def _for_generate(
        self,
        model: nn.Module | MaskPredictor,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: Any = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor | DiffusionOutput:
        """`generate(custom_generate=self)`: left-padded prompts in, left-padded prompts with answers out."""
        config = generation_config
        if logits_processor is not None and len(logits_processor):
            raise MethodError(
                f"{type(logits_processor[0]).__name__} expects text from left to right. Set temperature and the like on the Sampler."
            )
        if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
            raise MethodError("a Sampler writes one text a prompt. Leave num_beams and num_return_sequences at 1.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[shown.bool()].tolist() for ids, shown in zip(input_ids, mask, strict=True)]
        predictor = MaskPredictor.of(model, end_ids=_ids(config.eos_token_id))
        new = config.max_new_tokens
        sampler = self if new is None or new == self.gen_length else replace(self, gen_length=int(new))
        checked_prompts(rows, predictor, sampler.gen_length, None)
        out = sampler._run(predictor, rows, [{}] * len(rows))
        assert out.sequences is not None
        answers = [out.sequences[row, len(ids) : len(ids) + sampler.gen_length] for row, ids in enumerate(rows)]
        sequences = torch.cat([input_ids, torch.stack(answers).to(input_ids.device)], 1)
        return replace(out, sequences=sequences) if config.return_dict_in_generate else sequences


def _ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    return tuple(torch.as_tensor(value).flatten().tolist())
