"""Key Space Detection: abstain from a skill where the key of a query lies where that skill's keys lie.

The input of the last MLP's output matrix tells skills apart: a box around the keys of queries of one skill leaves those of others
out. A query whose key falls into it, or an answer that does while it is written, becomes a refusal; nothing is trained.
(Effective Skill Unlearning through Intervention and Abstention, arXiv 2503.21730)

    flagged(v):   |v_d - m_d| <= alpha k s_d in every dimension d,     k = max_i max_d |v_id - m_d| / s_d over the probes v_i

Weights stay as they are: this is suppression, and a query in other words may pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import nn

from ..data import Examples
from ..data.text.encoding import encode_prompt, encode_text
from ..data.text.rendering import Spelling
from ..errors import MethodError, setting, unknown
from ..models import anatomy
from ..scoring import row_length
from .base import Guard
from .engine.checks import require
from .engine.stream import permutation
from .engine.text.activation_statistics import ActivationStatistics, MlpSite, Positions, check_positions, mlp_sites
from .engine.text.guarded_model import GuardedModel
from .engine.text.key_box import KeyBox
from .engine.text.key_guarded import AbstainRules, KeyGuardedModel

if TYPE_CHECKING:
    from .engine.text.work import TextWork

REFUSAL = "I'm sorry, but I can't answer that question."


@dataclass(frozen=True, kw_only=True)
class KeySpaceDetection(Guard["TextWork"]):
    """Refuses queries, and answers, whose key lies in the box of the forget skill's keys.

    Args:
        layer: the block whose keys are looked at, from 0; None for the last, as in the paper.
        alpha: factor of the box, at least 0: 2 for GSM8K and 1.4 for MBPP in the paper, which no other probes share. None
            chooses it on queries that are held out, the most of the skill with at most a share `false_alarms` of the retain
            queries (ours); 1 takes in every probe, 0 nothing. Given by hand, all forget queries are probes.
        false_alarms: share of retain queries that may be refused, from 0 to below 1 (ours).
        held_out: share of the forget queries that alpha is chosen on and the box isn't made of, between 0 and 1 (ours).
        quantile: share of the probes that the box takes in at alpha 1, above 0 up to 1; 1 in the paper. Below 1, a few
            outliers no longer decide (ours).
        positions: a vector of each query's "last" token, or of "all" its tokens, as the paper has it for languages.
        on_flag: "refuse", or "steer": put the retain queries' mean key in the place of one in the box and go on; it is then
            looked at, and changed, at every position (the paper has the last alone).
        reject_text: what a refusal says; None for a plain one.
        probe_batch: queries a forward while probing, at least 1.
    """

    layer: int | None = None
    alpha: float | None = None
    false_alarms: float = 0.05
    held_out: float = 0.25
    quantile: float = 1.0
    positions: Positions = "last"
    on_flag: Literal["refuse", "steer"] = "refuse"
    reject_text: str | None = None
    probe_batch: int = 8

    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layer is not None and (type(self.layer) is not int or self.layer < 0):
            raise MethodError(
                f"{setting('layer')} is {self.layer!r}; give a whole number from 0, or leave it out for the last block."
            )
        if self.alpha is not None:
            require("alpha", self.alpha, at_least=0)
        require("false_alarms", self.false_alarms, at_least=0, below=1)
        require("held_out", self.held_out, above=0, below=1)
        require("quantile", self.quantile, above=0, at_most=1)
        require("probe_batch", self.probe_batch, at_least=1)
        check_positions(self.positions)
        if self.on_flag not in ("refuse", "steer"):
            raise MethodError(f"{setting('on_flag')}: {unknown('choice', str(self.on_flag), ('refuse', 'steer'))}")
        if self.reject_text is not None and not self.reject_text.strip():
            raise MethodError(f"{setting('reject_text')} is empty. Say something, or leave it out for a plain refusal.")

    def fitted(self, model: nn.Module) -> Self:
        if isinstance(model, GuardedModel):
            raise MethodError("the model is a guard already. Apply Key Space Detection to the model inside: model.bare")
        depth = len(anatomy(model).blocks)
        if self.layer is not None and self.layer >= depth:
            raise MethodError(
                f"{setting('layer')} is {self.layer} but the model has {depth} blocks. Use 0 to {depth - 1}, or leave it out "
                "for the last."
            )
        return self if self.layer is not None else replace(self, layer=depth - 1)

    def _apply(self, work: TextWork) -> KeyGuardedModel:
        work.encoded(work.forget)  # a row that no model can be asked is no query
        assert self.layer is not None
        site, bos = mlp_sites(work.model)[self.layer], work.tokenizer.bos_token_id
        forget, other = (_queries(work, rows) for rows in (work.forget, work.retained))
        probes, held_out = self._parted(forget, work.args.seed)
        options: dict[str, Any] = {"bos": bos, "batch_size": self.probe_batch}
        box = KeyBox.fit(work.model, probes, site, positions=self.positions, quantile=self.quantile, **options)
        others = box.radii(work.model, other, site, **options)
        if self.alpha is None:
            box = box.calibrated(box.radii(work.model, held_out, site, **options), others, self.false_alarms)
        else:
            box = replace(box, alpha=self.alpha)
            box = replace(box, false_rate=float(box.takes_in(others).double().mean()))
        if self.on_flag == "steer":
            box = replace(box, steer=self._goal(work, other, site))
        spelling, said = Spelling(work.tokenizer), self.reject_text or REFUSAL
        refusal = (*spelling.ids(spelling.escaped(said), continues=True), spelling.end())
        rows = [*work.forget, *work.retained]
        asked = [query for query, row in zip([*forget, *other], rows, strict=True) if not row.is_text]
        rules = AbstainRules(refusal, self.on_flag == "steer", _common_end(asked), bos)
        return KeyGuardedModel(work.model, box, rules)

    def _parted(self, queries: Sequence[list[int]], seed: int) -> tuple[list[list[int]], list[list[int]]]:
        """Probes, and queries to choose alpha on; all are probes where it is given."""
        if self.alpha is not None:
            return [*queries], []
        order = [int(i) for i in permutation(len(queries), seed, 11)]
        count = max(1, round(self.held_out * len(queries)))
        return [queries[i] for i in sorted(order[count:])], [queries[i] for i in sorted(order[:count])]

    def _goal(self, work: TextWork, queries: Sequence[list[int]], site: MlpSite) -> torch.Tensor:
        """The mean of the retain queries' keys."""
        statistics = ActivationStatistics.fit(
            work.model,
            queries,
            place="key",
            layers=[site.layer],
            positions="last",
            batch_size=self.probe_batch,
            fewest=2,
        )
        return statistics.mean[site.layer].float()


def _queries(work: TextWork, rows: Examples) -> list[list[int]]:
    """What a model is asked, as token ids: prompts, or the ends of plain texts that are too long."""
    most = row_length(work.model, work.args.max_length)
    return [
        encode_text(row.answer, work.tokenizer)[-most:] if row.is_text else encode_prompt(row, work.tokenizer)
        for row in rows
    ]


def _common_end(prompts: Sequence[list[int]]) -> tuple[int, ...]:
    """The ids that all prompts end in: what a template writes before an answer."""
    size, shortest = 0, min(map(len, prompts), default=0)
    while size < shortest and len({prompt[-size - 1] for prompt in prompts}) == 1:
        size += 1
    return tuple(prompts[0][len(prompts[0]) - size :]) if size else ()
