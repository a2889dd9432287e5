"""Probes of what a model's states hold, whatever it says: the answer read off linearly, and the head held to every layer.

A linear probe is worth what it does beyond the same probe fitted on shuffled answers, its control task (Hewitt & Liang, arXiv
1909.03368); the logit lens reads a layer by the model's own final norm and head (nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from ...data.text.encoding import Encoded
from ...data.text.examples import Example, Examples, ForgetSplit
from ...errors import MethodError
from ...models import anatomy
from ...runs import hash_json
from ..text.context import TextContext
from ..text.rows import has_rows, rows_of
from .base import Floats, Probe, Values
from .layers import identity, states_at, telling
from .prompts import asked, placed

__all__ = ["LinearProbe", "LogitLens", "last_states", "ridge"]


def ridge(x: Floats, y: Floats, strength: float) -> tuple[Floats, Floats, Floats]:
    """Ridge regression on standardised inputs: the map, and the mean and scale to standardise others by.

    Args:
        x, y: [rows, inputs] and [rows, outputs].
        strength: of the penalty, in units of rows: the identity added to the covariance of standardised inputs.

    Returns:
        [inputs + 1, outputs], [inputs], [inputs].
    """
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], 1)
    penalty = np.eye(z.shape[1]) * strength * len(x)
    penalty[-1, -1] = 0.0
    return np.linalg.solve(z.T @ z + penalty, z.T @ y), mean, scale


@dataclass(frozen=True)
class LinearProbe(Probe):
    """P4: whether a ridge regression from a state to the answer finds the right one among wrong ones, beyond its control task.

    The state is that of the prompt's last token; the answer stands as the mean of its tokens' embeddings in the model before;
    the candidates are the row's own wrong answers, or other rows' answers. The regression learns from retain rows and one half
    of the forget rows, and is tested on the other half, then the other way round. The layer is the one that does best on
    retain rows in the model before, for all models alike. (Every choice here is ours.)

    Args:
        strength: of the ridge penalty.
        controls: shufflings of the answers among the rows learnt from.
        retained: retain rows at most.
        wrong: candidates beside the right answer, where rows have none of their own.
        seed: of halves, shufflings and candidates.
    """

    strength: float = 0.1
    controls: int = 5
    retained: int = 200
    wrong: int = 3
    seed: int = 0

    name: ClassVar[str] = "probed"
    way: ClassVar[str] = "a linear probe of its states"
    about: ClassVar[str] = "A linear probe reads the answer off the states; what it finds beyond chance."
    weights: ClassVar[bool] = True
    attack: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def __post_init__(self) -> None:
        if not self.strength > 0 or min(self.controls, self.retained, self.wrong) < 1:
            raise MethodError(
                "a linear probe needs a strength above 0, and controls, retained and wrong of at least 1."
            )

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def applies(self, split: ForgetSplit) -> bool:
        kept = rows_of(split, "retain") if has_rows(split, "retain") else ()
        return len(self.tested(split)) > 3 and sum(not row.is_text for row in kept) > 3

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        before = references["before"]
        rows = asked(context.split)
        retained = [row for row in rows_of(context.split, "retain", self.retained) if not row.is_text]
        key = [
            [windows[0].input_ids for windows in context.encoded(Examples([*rows, *retained]))],
            hash_json([row.perturbed_answers for row in rows]),
            [self.strength, self.controls, self.wrong, self.seed, identity(before)],
        ]
        found = context.remember("probed", key, lambda: self._found(context, before, rows, retained))
        return placed(context.split, rows, found)

    def _found(
        self, context: TextContext, before: TextContext, rows: list[Example], retained: list[Example]
    ) -> list[float]:
        answers = _embedded(before, [[row.answer] for row in [*rows, *retained]])
        targets = np.concatenate(answers)
        layer = self._layer(before, retained, targets[len(rows) :])
        states = last_states(context, [*rows, *retained], [layer])[:, 0]
        candidates = _embedded(before, self._candidates(rows, [row.answer for row in [*rows, *retained]]))
        generator = np.random.default_rng(self.seed)
        order = generator.permutation(len(rows))
        halves = order[: len(rows) // 2], order[len(rows) // 2 :]
        kept = np.arange(len(rows), len(states))
        found = np.zeros(len(rows))
        for learnt, tested in (halves, halves[::-1]):
            known = np.concatenate([learnt, kept])
            right = self._right(states, targets, known, tested, candidates)
            chance = [
                self._right(states, targets, known, tested, candidates, generator.permutation(len(known)))
                for _ in range(self.controls)
            ]
            found[tested] = right - np.mean(chance, 0)
        return [float(value) for value in found]

    def _right(
        self,
        states: Floats,
        targets: Floats,
        known: Floats,
        tested: Floats,
        candidates: Sequence[Floats],
        shuffled: Floats | None = None,
    ) -> Floats:
        """Which tested rows the regression learnt on the known ones gets right, 1 or 0; the first candidate is right."""
        learnt = targets[known] if shuffled is None else targets[known][shuffled]
        weights, mean, scale = ridge(states[known], learnt, self.strength)
        z = np.concatenate([(states[tested] - mean) / scale, np.ones((len(tested), 1))], 1)
        said = z @ weights
        return np.array([_nearest(said[n], candidates[i]) == 0 for n, i in enumerate(tested)], dtype=float)

    def _layer(self, before: TextContext, retained: list[Example], targets: Floats) -> int:
        """The block from whose states retained answers are found best in the model before, by two-fold validation."""
        blocks = list(range(len(anatomy(before.model).blocks)))
        states = last_states(before, retained, blocks)
        pools = self._candidates(retained, [row.answer for row in retained])
        candidates = _embedded(before, pools)
        order = np.random.default_rng(self.seed + 1).permutation(len(retained))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        right = [
            sum(
                self._right(states[:, b], targets, one, other, candidates).sum()
                for one, other in (halves, halves[::-1])
            )
            for b in blocks
        ]
        return int(np.argmax(right))

    def _candidates(self, rows: Sequence[Example], pool: Sequence[str]) -> list[list[str]]:
        """The right answer first, then the wrong ones: the row's own, or other rows' answers."""
        generator = np.random.default_rng(self.seed + 2)
        result = []
        for row in rows:
            others = sorted({answer for answer in pool if answer != row.answer})
            drawn = [others[i] for i in generator.permutation(len(others))[: self.wrong]]
            result.append([row.answer, *(row.perturbed_answers or drawn)])
        return result


def _nearest(said: Floats, candidates: Floats) -> int:
    return int(np.argmin(((candidates - said) ** 2).sum(-1)))


@torch.inference_mode()
def _embedded(context: TextContext, texts: Sequence[Sequence[str]]) -> list[Floats]:
    """Texts as the mean of their tokens' embeddings, scaled to unit variance. One array a group, [texts, hidden]."""
    table = context.model.get_input_embeddings().weight.detach().float().cpu()
    table = (table - table.mean(0)) / table.std()
    ids = [[context.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in group] for group in texts]
    return [np.stack([table[one].mean(0).double().numpy() for one in group]) for group in ids]


def last_states(context: TextContext, rows: Sequence[Example], layers: Sequence[int]) -> Floats:
    """The state of each prompt's last token behind some blocks, [rows, layers, hidden]."""
    first = [windows[0] for windows in context.encoded(Examples(rows))]
    ids = [row.input_ids[: row.prompt_length] for row in first]
    prompts = [Encoded(one, one) for one in ids]
    read = states_at(context, prompts, [[len(row.input_ids) - 1] for row in prompts], layers)
    return torch.cat(read).double().numpy()


@dataclass(frozen=True)
class LogitLens(Probe):
    """P5: the best rank, as 1 / rank, that any layer gives the first telling token of the answer by the model's own head."""

    name: ClassVar[str] = "lens"
    way: ClassVar[str] = "reading its layers by its own head"
    about: ClassVar[str] = "Every layer read by the model's own head: the best rank of the answer's telling token."
    weights: ClassVar[bool] = True

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = asked(context.split)
        told = [context.once(("telling", row), partial(telling, row, context)) for row in rows]
        key = [[row.input_ids, span.start] for row, span in told]
        return placed(context.split, rows, context.remember("lens", key, lambda: self._ranks(context, told)))

    @torch.inference_mode()
    def _ranks(self, context: TextContext, told: Sequence[tuple[Encoded, range]]) -> list[float]:
        parts = anatomy(context.model)
        layers = list(range(len(parts.blocks)))
        states = states_at(context, [row for row, _ in told], [[span.start - 1] for _, span in told], layers)
        device, dtype = parts.embeddings.weight.device, parts.embeddings.weight.dtype
        best = []
        for (row, span), state in zip(told, states, strict=True):
            logits = parts.logits(parts.final_norm(state[0].to(device, dtype))).float()  # [layers, vocabulary]
            own = logits[:, row.input_ids[span.start]]
            rank = 1 + (logits > own[:, None]).sum(-1)
            best.append(float(1 / rank.min()))
        return best
