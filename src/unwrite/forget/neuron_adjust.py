"""Neuron Adjust: switch a skill off by leading the neurons that are typical of it back to where other texts have them.

An MLP neuron's value before the activation is nearly normal on the texts of one skill, with another mean on those of another.
Where a value looks more like the skill to forget, it is mapped to the other distribution and mirrored about its mean.
(Effective Skill Unlearning through Intervention and Abstention, arXiv 2503.21730)

    p_f(x) >= p_r(x):   with probability p_f / (p_f + p_r),   x <- mu_r - s_r (x - mu_f) / s_f,    p = N(mu, s) of each set

The neurons are those with the largest mu_f - mu_r over all blocks. Weights stay as they are, so the skill is in them still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ..errors import MethodError, setting, unknown
from .base import Guard
from .engine.checks import require
from .engine.text.activation_statistics import ActivationStatistics, Positions, check_positions
from .engine.text.adjusted_neurons import AdjustedNeuronsModel, NeuronRules, NeuronTable
from .engine.text.guarded_model import GuardedModel

if TYPE_CHECKING:
    from .engine.text.work import TextWork

Score = Literal["difference", "standardised", "importance"]
Action = Literal["adjust", "prune"]
Draws = Literal["hashed", "fresh"]
SMALLEST = 1e-6  # deviation of a neuron that never moved


@dataclass(frozen=True, kw_only=True)
class NeuronAdjust(Guard["TextWork"]):
    """Leads a skill's neurons back to where the retain texts have them.

    Args:
        percent: of all neurons of all blocks, above 0 up to 100: 0.5 for a language, 3 for mathematics or code in the paper.
            At least one neuron is taken.
        score: how typical of the skill a neuron is: the "difference" of its means, forget less retain, as in the paper; that
            difference without its sign, "standardised" by both deviations (ours); or "importance", the ratio of its mean sizes,
            as selective pruning has it.
        positions: what the means are taken over: "all" tokens of a row but padding and BOS, or its "last" one.
        action: "adjust" the neurons, or "prune" them: zero instead, the paper's baseline.
        draws: the chance that decides is "hashed" from seed, neuron, position and token, so that a text is the same however it is
            decoded (ours); or "fresh" in every forward, as in the paper, which can't be drafted for.
        probe_batch: rows a forward while measuring, at least 1.
    """

    percent: float = 0.5
    score: Score = "difference"
    positions: Positions = "all"
    action: Action = "adjust"
    draws: Draws = "hashed"
    probe_batch: int = 8

    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require("percent", self.percent, above=0, at_most=100)
        require("probe_batch", self.probe_batch, at_least=1)
        for name, known in (("score", Score), ("action", Action), ("draws", Draws)):
            if getattr(self, name) not in get_args(known):
                raise MethodError(f"{setting(name)}: {unknown('choice', str(getattr(self, name)), get_args(known))}")
        check_positions(self.positions)

    def fitted(self, model: nn.Module) -> Self:
        if isinstance(model, GuardedModel):
            raise MethodError("the model is a guard already. Apply Neuron Adjust to the model inside: model.bare")
        return self

    def _apply(self, work: TextWork) -> AdjustedNeuronsModel:
        forget, retain = (
            ActivationStatistics.fit(
                work.model,
                [row.input_ids for row in work.encoded(rows)],
                positions=self.positions,
                bos=work.tokenizer.bos_token_id,
                batch_size=self.probe_batch,
            )
            for rows in (work.forget, work.retained)
        )
        table = neuron_table(forget, retain, chosen(scores(forget, retain, self.score), self.percent))
        return AdjustedNeuronsModel(work.model, table, NeuronRules(self.action, self.draws, work.args.seed))


def scores(forget: ActivationStatistics, retain: ActivationStatistics, score: Score) -> dict[int, Tensor]:
    """{block: how typical of the forget texts each neuron is, `[width]`}."""
    if score == "importance":
        return {i: size / (retain.size[i] + 1e-8) for i, size in forget.size.items()}
    apart = {i: mean - retain.mean[i] for i, mean in forget.mean.items()}
    if score == "difference":
        return apart
    both = {i: (forget.std[i] ** 2 + retain.std[i] ** 2).sqrt().clamp(min=SMALLEST) for i in apart}
    return {i: value.abs() / both[i] for i, value in apart.items()}


def chosen(scores: Mapping[int, Tensor], percent: float) -> dict[int, Tensor]:
    """{block: its neurons among the top percent of all blocks together}; equal scores at the bound are all taken."""
    pooled = torch.cat([scores[i] for i in sorted(scores)]).sort().values
    bound = pooled[max(0, min(int(len(pooled) * (1 - percent / 100)), len(pooled) - 1))]
    return {i: (scores[i] >= bound).nonzero().flatten() for i in sorted(scores)}


def neuron_table(
    forget: ActivationStatistics, retain: ActivationStatistics, neurons: Mapping[int, Tensor]
) -> NeuronTable:
    """The neurons with what is known of them on both sets. neurons: {block: numbers}."""

    def column(values: Mapping[int, Tensor], smallest: float = -inf) -> Tensor:
        return torch.cat([values[i][at] for i, at in neurons.items()]).clamp(min=smallest).float()

    return NeuronTable(
        torch.cat([torch.full_like(at, i) for i, at in neurons.items()]),
        torch.cat([*neurons.values()]),
        column(forget.mean),
        column(forget.std, SMALLEST),
        column(retain.mean),
        column(retain.std, SMALLEST),
    )
