"""The denoising loop: forwards until no mask is left, every decision a part's.

    canvas = [prompt ; masks]
    while a row has masks:  logits = model(canvas); choose tokens; reveal some of them

Rows are independent: each has its own block and count of steps, and a forward takes those that are not done. On a device, one
small transfer a step tells the host how many masks each block has left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MethodError
from .adapter import MaskPredictor
from .base import Commit, Part, Step, Wide, parts_of
from .block_cache import BlockCache
from .memory import Desk
from .trace import Trace
from .vocabulary import top_token

if TYPE_CHECKING:
    from .sampler import Sampler

Fixed = Mapping[int, int]  # generated position -> id


class Denoising:
    """One call of a sampler.

    Args:
        sampler: the parts.
        predictor: the model.
        prompts: ids of each row.
        fixed: for each row, generated positions that are given; they count as prompt.
    """

    def __init__(
        self, sampler: Sampler, predictor: MaskPredictor, prompts: Sequence[Sequence[int]], fixed: Sequence[Fixed]
    ) -> None:
        self.sampler, self.predictor = sampler, predictor
        device = predictor.device
        batch, size = len(prompts), sampler.gen_length
        # Bounds are kept on the host, where they decide what is run, and sent along.
        self.prompt = torch.tensor([len(prompt) for prompt in prompts])
        self.length = self.prompt + size
        self.start, self.end = self.prompt.clone(), self.prompt.clone()
        columns = int(self.length.max())
        canvas = torch.full((batch, columns), predictor.pad_id)
        for row, prompt in enumerate(prompts):
            canvas[row, : len(prompt)] = torch.as_tensor(prompt)
            canvas[row, len(prompt) : len(prompt) + size] = predictor.mask_id
            for place, token in fixed[row].items():
                canvas[row, len(prompt) + place] = token
        self.preset = (canvas != predictor.mask_id).to(device)  # what guidance hides
        self.left = canvas == predictor.mask_id  # on the host
        self.canvas = canvas.to(device)
        self.number, self.in_block = torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
        self.at_entry, self.opened = torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
        self.done = torch.zeros(batch, dtype=torch.bool)
        self.opening = torch.ones(batch, dtype=torch.bool)
        self.idle = 0
        self.desk = Desk(batch, sampler.seed, device)
        kind = sampler.cache
        self._caches = [
            BlockCache(predictor, kind, batch, columns) for _ in range(1 + (sampler.guidance > 0)) if kind != "none"
        ]
        # A stop fills the whole row, whatever it reads itself.
        self.reads_canvas = bool(parts_of(sampler.stop)) or any(part.reads == "canvas" for part in sampler.parts())
        self.scores_all = sampler.watch is not None or any(part.reads_revealed for part in sampler.parts())
        self.reach = sampler.blocks.reach(size)
        none = torch.full((batch,), -1)
        self.trace = Trace(
            torch.zeros(batch, dtype=torch.long),
            torch.zeros(batch, dtype=torch.long),
            torch.full((batch, size), -1, device=device),
            [[] for _ in prompts],
            none,
            revealed=[[] for _ in prompts],
            canvases=[[] for _ in prompts],
        )

    @torch.no_grad()
    def run(self) -> Trace:
        """Until every row is done."""
        while True:
            self._advance()
            rows = torch.nonzero(~self.done)[:, 0]
            if not len(rows):
                break
            start = time.perf_counter()
            step = self._look(rows)
            self._synchronise()
            looked = time.perf_counter()
            self._decide(step)
            self.trace.seconds["forward"] += looked - start
            self.trace.seconds["parts"] += time.perf_counter() - looked
        self.trace.counts = {name: total.cpu() for name, total in self.desk.counts.items()}
        return self.trace

    def _advance(self) -> None:
        """Rows whose block is finished go on to the next one with a mask in it."""
        default = self.sampler.blocks.default
        for row in torch.nonzero(~self.done)[:, 0].tolist():
            start, end, length = int(self.start[row]), int(self.end[row]), int(self.length[row])
            if bool(self.left[row, start:end].any()):
                continue
            start = end
            while start < length and not bool(self.left[row, start : min(start + default, length)].any()):
                self.trace.blocks[row].append(min(default, length - start))
                start += default
            self.start[row] = self.end[row] = min(start, length)
            self.opening[row], self.in_block[row] = True, 0
            self.done[row] = start >= length

    def _look(self, rows: Tensor) -> Step:
        """One forward of these rows, and the step that shows it."""
        device, sampler = self.canvas.device, self.sampler
        start, length, prompt, opening = self.start[rows], self.length[rows], self.prompt[rows], self.opening[rows]
        default = torch.full_like(start, min(sampler.blocks.default, sampler.gen_length))
        widths = torch.where(opening, default.clamp(min=self.reach), self.end[rows] - start)
        widths = torch.minimum(widths, length - start)
        columns = int(length.max())
        where, at = self._where(widths, start, length, prompt)
        canvas = self.canvas[rows.to(device), :columns]
        logits = self._forward(rows, canvas, where, widths)
        wide = None
        if self.reads_canvas:
            places = torch.minimum(
                prompt[:, None] + torch.arange(sampler.gen_length), length[:, None] - 1
            )  # [rows, generated]
            exists = torch.arange(sampler.gen_length) < (length - prompt)[:, None]
            known = exists & self._known(rows, places, widths)
            everywhere = bool(known.all())  # on the host
            masked = (canvas.gather(1, places.to(device)) == self.predictor.mask_id) & exists.to(device)
            known = known.to(device)
            clean = logits if everywhere else logits.masked_fill(~known[..., None], 0.0)
            wide = Wide(places.to(device), clean, known, masked)
            ahead = logits[torch.arange(len(rows), device=device)[:, None], at.to(device)]
        else:
            ahead = logits
        shape = (sampler.gen_length if self.reads_canvas else ahead.shape[1], logits.shape[-1])
        noise = self.desk.random(rows, shape, None if wide is not None else widths) if sampler.propose.random else None
        looks_ahead = self.reach > 0 and (bool(opening.any()) or sampler.watch is not None)
        ahead_noise = noise
        if noise is not None and wide is not None:
            ahead_noise = noise.gather(1, at.to(device)[..., None].expand(-1, -1, noise.shape[-1]))
        return Step(
            rows=rows.to(device),
            canvas=canvas,
            prompt=prompt.to(device),
            length=length.to(device),
            start=start.to(device),
            end=self.end[rows].to(device),
            opening=opening.to(device),
            opened=self.opened[rows].to(device),
            number=self.number[rows].to(device),
            in_block=self.in_block[rows].to(device),
            at_entry=self.at_entry[rows].to(device),
            total=sampler.steps or sampler.gen_length,
            size=sampler.gen_length,
            mask_id=self.predictor.mask_id,
            eos_ids=self.predictor.end_ids,
            ahead=ahead,
            wide=wide,
            ahead_proposed=sampler.propose.propose(ahead, ahead_noise) if looks_ahead else None,
            noise=ahead_noise,
            wide_noise=noise if wide is not None else None,
            desk=self.desk,
        )

    def _where(self, widths: Tensor, start: Tensor, length: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Columns whose logits are asked for, and where among them each row's block lies."""
        ahead = torch.minimum(start[:, None] + torch.arange(int(widths.max())), length[:, None] - 1)
        if not self.reads_canvas:
            return ahead, ahead
        size = self.sampler.gen_length
        wide = torch.minimum(prompt[:, None] + torch.arange(size), length[:, None] - 1)
        return wide, ahead - prompt[:, None]

    def _known(self, rows: Tensor, places: Tensor, widths: Tensor) -> Tensor:
        """[rows, n] where this forward computes logits."""
        kind, opening = self.sampler.cache, self.opening[rows][:, None]
        start = self.start[rows][:, None]
        if kind == "none":
            return torch.ones_like(places, dtype=torch.bool)
        after = places >= start
        if kind == "prefix":
            return opening | after
        return opening | (after & (places < start + widths[:, None]))

    def _forward(self, rows: Tensor, canvas: Tensor, where: Tensor, widths: Tensor) -> Tensor:
        """[rows, n, vocab] clean logits: guidance applied, the mask token removed."""
        logits = self._predict(0, rows, canvas, where, widths)
        if self.sampler.guidance > 0:
            preset = self.preset[rows.to(canvas.device), : canvas.shape[1]]
            unconditional = self._predict(1, rows, canvas.masked_fill(preset, self.predictor.mask_id), where, widths)
            logits = unconditional + (self.sampler.guidance + 1) * (logits - unconditional)
        mask_id = self.predictor.mask_id
        if mask_id < logits.shape[-1]:
            logits = logits.clone() if logits.is_inference() else logits  # else it is this forward's own memory
            logits[..., mask_id] = -torch.inf
        return logits

    def _predict(self, which: int, rows: Tensor, canvas: Tensor, where: Tensor, widths: Tensor) -> Tensor:
        lengths = self.length[rows].to(canvas.device)
        where = where.to(canvas.device)
        self.trace.nfe[rows] += 1
        if not self._caches:
            self.trace.work[rows] += self.length[rows]
            return self.predictor.logits(canvas, lengths, where)
        cache, opening = self._caches[which], self.opening[rows]
        logits: Tensor | None = None
        for fresh in (True, False):
            some = torch.nonzero(opening == fresh)[:, 0]
            if not len(some):
                continue
            there = some.to(canvas.device)
            if fresh:
                self.trace.work[rows[some]] += self.length[rows[some]]
                part = cache.refresh(rows[some].to(canvas.device), canvas[there], lengths[there], where[there])
            else:
                start = self.start[rows[some]]
                count = widths[some] if cache.kind == "dual" else self.length[rows[some]] - start
                self.trace.work[rows[some]] += count + int(self.predictor.shift)  # and the column before
                first, last = start[:, None].to(canvas.device), (start + count - 1)[:, None].to(canvas.device)
                inside = torch.maximum(torch.minimum(where[there], last), first)
                part = cache.within(
                    rows[some].to(canvas.device),
                    canvas[there],
                    lengths[there],
                    start.to(canvas.device),
                    count.to(canvas.device),
                    inside,
                )
            if logits is None:
                logits = part.new_zeros(len(rows), *part.shape[1:])
            logits[there] = part
        assert logits is not None
        return logits

    def _decide(self, step: Step) -> None:
        """Everything after the forward, and its consequences."""
        step = self._bounded(step)
        step = self._proposed(step)
        sampler = self.sampler
        stopped = torch.zeros_like(step.opening)
        for part in parts_of(sampler.stop):
            stopped = stopped | part.stop(step)
        if step.wide is not None:  # what has no logits cannot be filled
            stopped = stopped & (step.wide.known | ~step.wide.masked).all(1)
        quota = sampler.quota.count(step)
        step = replace(step, quota=torch.minimum(quota, step.masked.sum(1)))
        commit = sampler.commit.commit(step)
        for part in parts_of(sampler.constraint):
            commit = part.allow(step, commit)
        self._reveal(step, commit, stopped)

    def _bounded(self, step: Step) -> Step:
        """With the block's bounds, and its own logits."""
        rows = step.rows.cpu()
        if bool(self.opening[rows].any()):
            sizes = self.sampler.blocks.lengths(step).clamp(min=1)
            ends = torch.minimum(step.start + sizes, step.length)
            ends = torch.where(step.opening, ends, step.end).cpu()
            fresh = self.opening[rows]
            sizes_of = zip(rows[fresh].tolist(), (ends - self.start[rows])[fresh].tolist(), strict=True)
            for row, size in sizes_of:
                self.trace.blocks[row].append(size)
            self.end[rows] = ends
            self.opened[rows] = torch.where(fresh, ends - self.start[rows], self.opened[rows])
            # Masks before every column; the difference is what a block holds.
            before = torch.nn.functional.pad(self.left[rows].long().cumsum(1), (1, 0))
            entry = (before.gather(1, ends[:, None]) - before.gather(1, self.start[rows][:, None]))[:, 0]
            self.at_entry[rows] = torch.where(self.opening[rows], entry, self.at_entry[rows])
        width = int((self.end[rows] - self.start[rows]).max())
        step = replace(
            step,
            end=self.end[rows].to(step.start.device),
            opened=self.opened[rows].to(step.start.device),
            at_entry=self.at_entry[rows].to(step.start.device),
            masked=torch.zeros(len(rows), width, dtype=torch.bool, device=step.start.device),
        )
        masked = (step.tokens == step.mask_id) & step.inside
        clean = step.ahead[:, :width]
        return replace(step, masked=masked, clean=clean, fused=clean, judged=clean)

    def _proposed(self, step: Step) -> Step:
        """With fused logits, tokens and their scores."""
        sampler = self.sampler
        for part in parts_of(sampler.logits):
            step = replace(step, fused=part.fuse(step))
        wide, noise = step.wide, step.noise
        if wide is not None:
            wide = replace(wide, proposed=sampler.propose.propose(wide.clean, step.wide_noise))
        if noise is not None:
            noise = noise[:, : step.masked.shape[1]]
        step = replace(
            step,
            wide=wide,
            proposed=sampler.propose.propose(step.fused, noise),
            judged=sampler.propose.judged(step.clean, step.fused),
            scored=None if self.scores_all else step.masked,
        )
        return replace(step, confidence=sampler.score.score(step))

    def _reveal(self, step: Step, commit: Commit, stopped: Tensor) -> None:
        """Writes the tokens; what the host must know comes back in one transfer."""
        rows, reveal = step.rows.cpu(), commit.reveal & step.masked & ~stopped[:, None]
        tokens = step.proposed if commit.tokens is None else commit.tokens
        columns, canvas, mask_id = step.columns, step.canvas.clone(), self.predictor.mask_id
        # Places past a shorter row's block repeat a column: they are written with what stands there.
        canvas = _written(canvas, columns, reveal, tokens)
        if commit.hide is not None:
            preset = self.preset[step.rows, : canvas.shape[1]].gather(1, columns)
            hide = commit.hide & step.inside & ~preset & ~stopped[:, None]
            canvas = _written(canvas, columns, hide, torch.full_like(tokens, mask_id))
        if step.wide is not None and self.sampler.stop is not None:
            assert step.wide.proposed is not None
            fill = step.wide.masked & stopped[:, None]
            if canvas.device.type != "cpu" or bool(stopped.any()):  # a device would have to be waited for
                canvas = _written(canvas, step.wide.columns, fill, top_token(step.wide.clean))
        changed = (canvas != step.canvas).any(1)
        after, length = replace(step, canvas=canvas), step.length
        for part in parts_of(self.sampler.edit):
            length = torch.minimum(length, torch.maximum(part.edit(after, reveal), step.prompt + 1))
        self.trace.note(step, canvas, self.sampler.keep_history)
        self.canvas[step.rows, : canvas.shape[1]] = canvas
        outcome = torch.cat([(canvas == mask_id).long(), torch.stack([stopped.long(), length, changed.long()], 1)], 1)
        outcome = outcome.cpu()  # the step's one synchronisation
        self.left[rows, : canvas.shape[1]] = outcome[:, :-3].bool()
        self.trace.exits[rows[outcome[:, -3].bool()]] = self.number[rows[outcome[:, -3].bool()]]
        self.length[rows] = outcome[:, -2]
        self.end[rows] = torch.minimum(self.end[rows], self.length[rows])
        self.done[rows] |= outcome[:, -3].bool()
        self.opening[rows] = False
        self.number[rows] += 1
        self.in_block[rows] += 1
        self.idle = 0 if bool(outcome[:, -1].any()) else self.idle + 1
        if self.idle > 4 * self.sampler.gen_length + (self.sampler.steps or 0):
            raise MethodError(
                f"{type(self.sampler.commit).__name__} has revealed nothing for {self.idle} forwards. Let it fall back on the "
                "surest position."
            )
        if self.sampler.watch is not None:
            self.sampler.watch(replace(after, length=length))

    def _synchronise(self) -> None:
        if self.canvas.device.type == "cuda":
            torch.cuda.synchronize(self.canvas.device)


def _written(canvas: Tensor, columns: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """The canvas with tokens [rows, n] at columns [rows, n] where `where`; a repeated column is never written twice."""
    # What is not to be written goes to a column of its own, which is cut off again.
    spare = torch.full_like(columns, canvas.shape[1])
    wider = torch.cat([canvas, canvas.new_zeros(len(canvas), 1)], 1)
    return wider.scatter(1, torch.where(where, columns, spare), tokens)[:, :-1]


def all_parts(sampler: Sampler) -> list[Part]:
    """Every part, in the order they are asked."""
    parts = (
        sampler.blocks, *parts_of(sampler.logits), sampler.propose, sampler.score, *parts_of(sampler.stop), sampler.quota,
        sampler.commit, *parts_of(sampler.constraint), *parts_of(sampler.edit),
    )  # fmt: skip
    return list(parts)
