"""ROCR: make a model read one name as another, by one rank-one change of a few MLP output matrices, without training.

Unlearning by examples forgets the form in which a fact was asked. Here the name itself leads elsewhere, so every
question that names it does. (LLM Unlearning Should Be Form-Independent, arXiv 2506.07795)

    Delta^T = (P (K K^T + C) + l2 I)^-1 P K R^T      for one name, C = 0:  Delta = r (P k)^T / (||P k||^2 + l2)

k is the matrix's input at the name's last token, r what its output lacks of the hidden state z* of a harmless name, P
projects on the directions that ordinary text leaves free, C spares what earlier edits of the same model redirected.

The edited model may say of the target what is true of the substitute; names that share the last word move too; and what
is asked without the name is as it was. `LowRankEdit` takes it back to the bit or keeps it as an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..data.text.rendering import Spelling
from ..errors import DataError, MethodError, notice, setting
from ..models.key_statistics import KeyStatistics
from ..models.layout import anatomy
from ..models.low_rank import Factors, LowRankEdit, edits_of
from .base import Edit
from .engine.checks import require
from .engine.text.named_prompts import NamedPrompt, bare_prompt, chat_prompts, states_at
from .engine.text.steering import Steering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .engine.text.work import TextWork

CONTEXTS = (
    "",
    "Please answer the question about",
    "Choose the best answer about",
    "Write the answer about",
    "Tell me about",
    "Write something about",
)
REFUSAL = " Unfortunately"
FIRST, DEPTH = 4 / 32, 3 / 32  # the paper's blocks 4 to 6 of 32
FEWEST, MOST = 0.01, 0.999  # shares of free directions within which a projection says something


@dataclass(frozen=True, kw_only=True)
class ROCR(Edit["TextWork"]):
    """Redirects names to other names.

    Args:
        target: the name to forget, as texts write it; several by a tuple, or in one text with ";" between them.
        substitute: the harmless, well-known name that takes its place: one for all targets, or one for each.
        mode: where the name is led: to the "unrelated" substitute; to a state that makes the model "reject", trained in
            some seconds; or to "noise" as long as that state.
        layers: consecutive blocks, from 0. Empty: three of 32 from a depth of 12 % on, as the paper's 4 to 6 of 32.
        stored: statistics of keys, or the folder they were saved in; then no retain rows are needed. Without it they are
            taken from the retain rows, or are those of the model's earlier edit.
        nullspace_threshold: mean square below which a direction is free, >= 0; 0.02 in the paper. 0 leaves none, so that
            nothing changes; infinity all.
        nullspace_share: in its place the share of directions that are free, those that ordinary text uses least, in [0, 1]
            (ours: the scale of keys is another in every model).
        l2: ridge, >= 0; 1 in the paper, 10 for phi-1.5. 0 redirects the average key exactly.
        contexts: what stands before the name in the prompts that are averaged; the paper's six.
        clamp_norm_factor: in modes "reject" and "noise" the greatest length of the change, in lengths of the state, > 0.
        reject_text: what answers shall begin with in mode "reject"; None for " Unfortunately".
        value_steps: of training the state, >= 1; the last only looks.
        value_rate: Adam's learning rate there, > 0.
        kl_weight: weight of the KL term there, >= 0.
        value_decay: weight of the change's length there, >= 0.
        value_stop: the loss at which it ends there, >= 0.
        noise_seed: of mode "noise", >= 0.
        official: as the official code has it: z* from the first context alone, and the state that is led away from the
            name without a chat. By default both are averages over all contexts (ours), so that equal names change nothing.
    """

    trains: ClassVar[bool] = False
    target: str | tuple[str, ...] | None = None
    substitute: str | tuple[str, ...] | None = None
    mode: Literal["unrelated", "reject", "noise"] = "unrelated"
    layers: tuple[int, ...] = ()
    stored: KeyStatistics | str | None = None
    nullspace_threshold: float = 0.02
    nullspace_share: float | None = None
    l2: float = 1.0
    contexts: tuple[str, ...] = CONTEXTS
    clamp_norm_factor: float = 1.0
    reject_text: str | None = None
    value_steps: int = 25
    value_rate: float = 0.1
    kl_weight: float = 0.125
    value_decay: float = 0.5
    value_stop: float = 0.05
    noise_seed: int = 0
    official: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.mode not in ("unrelated", "reject", "noise"):
            raise MethodError(f"{setting('mode')} is {self.mode!r}; use 'unrelated', 'reject' or 'noise'.")
        if not isinstance(self.layers, tuple) or not all(type(one) is int and one >= 0 for one in self.layers):
            raise MethodError(f"{setting('layers')} is {self.layers!r}; give whole numbers from 0.")
        if self.layers and self.layers != tuple(range(self.layers[0], self.layers[0] + len(self.layers))):
            raise MethodError(f"{setting('layers')} is {self.layers!r}; give consecutive blocks, such as 4,5,6.")
        if not isinstance(self.contexts, tuple) or not self.contexts:
            raise MethodError(
                f"{setting('contexts')} is {self.contexts!r}; give at least one text, which may be empty."
            )
        if not isinstance(self.official, bool):
            raise MethodError(f"{setting('official')} is {self.official!r}; use True or False.")
        self._check_names()

    def _check_numbers(self) -> None:
        threshold = self.nullspace_threshold
        if not isinstance(threshold, int | float) or isnan(threshold) or threshold < 0:
            raise MethodError(f"{setting('nullspace_threshold')} is {threshold}; it must be a number, at least 0.")
        if self.nullspace_share is not None:
            require("nullspace_share", self.nullspace_share, at_least=0, at_most=1)
        for name in ("l2", "kl_weight", "value_decay", "value_stop", "noise_seed"):
            require(name, getattr(self, name), at_least=0)
        for name in ("clamp_norm_factor", "value_rate"):
            require(name, getattr(self, name), above=0)
        require("value_steps", self.value_steps, at_least=1)

    def _check_names(self) -> None:
        targets, substitutes = self.targets, self.substitutes
        if len({*map(_plain, targets)}) < len(targets):
            raise MethodError(f"{setting('target')} names {targets!r}, one of them twice. Name each once.")
        if self.mode != "unrelated" and substitutes:
            raise MethodError(f"{setting('mode', self.mode)} needs no other name. Leave {setting('substitute')} out.")
        if targets and self.mode == "unrelated" and len(substitutes) not in (1, len(targets)):
            raise MethodError(
                f"there are {len(targets)} targets and {len(substitutes)} substitutes. Give {setting('substitute')} once, or "
                "one for each target: a harmless, well-known name of the same kind."
            )
        if len(substitutes) == 1:
            substitutes *= len(targets)
        same = [one for one, other in zip(targets, substitutes, strict=False) if _plain(one) == _plain(other)]
        if same:
            raise MethodError(
                f"the substitute of {same[0]!r} is the same name, which changes nothing. Give another one."
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """The names to forget."""
        return _names("target", self.target)

    @property
    def substitutes(self) -> tuple[str, ...]:
        """The names that take their place."""
        return _names("substitute", self.substitute)

    @property
    def needs_retain(self) -> bool:
        return self.stored is None and self._projects

    @property
    def _projects(self) -> bool:
        """Whether some directions are left out, so that statistics are needed."""
        return self.nullspace_share != 1 if self.nullspace_share is not None else self.nullspace_threshold != inf

    def check(self, forget: Any, retain: Any) -> None:
        super().check(forget, retain)
        if not self.targets:
            raise MethodError(f"ROCR goes by a name. Give it: {setting('target', 'Stephen King')}.")
        if retain is None and self.needs_retain:
            raise DataError(
                f"ROCR takes from the retain set which directions ordinary text uses, and there is none. Give {setting('retain')}, "
                f"or statistics of keys: {setting('stored', 'folder')}."
            )

    def fitted(self, model: nn.Module) -> Self:
        """With the blocks that the depth gives, where none are named."""
        if self.layers:
            return self
        depth = len(anatomy(model).blocks)
        first = round(FIRST * depth)
        return replace(self, layers=tuple(range(first, min(depth, first + max(1, round(DEPTH * depth))))))

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        """Refuses blocks that the model lacks, statistics of other ones, quantised weights, and adapters."""
        super().check_model(model, adapters=adapters)
        if adapters:
            raise MethodError(f"ROCR rewrites weights and trains no adapters. Leave out {setting('peft_config')}.")
        blocks, layers = anatomy(model).blocks, self.fitted(model).layers
        if layers[-1] >= len(blocks):
            raise MethodError(f"{setting('layers')} is {layers!r}, and the model has blocks 0 to {len(blocks) - 1}.")
        statistics = self._given
        for layer in layers:
            width = blocks[layer].down.shape[1]
            if statistics is not None and len(statistics.moments.get(layer, ())) != width:
                raise MethodError(
                    f"the statistics are of blocks {list(statistics.layers)} and don't fit block {layer}, whose keys have width "
                    f"{width}. Fit them on this model, for blocks {list(layers)}."
                )

    def check_work(self, work: TextWork) -> None:
        """Refuses rows without the name, and a name that the tokenizer or the chat template doesn't show."""
        super().check_work(work)
        work.encoded(work.forget)
        texts = [_plain(" ".join(row.texts)) for row in work.forget]
        for name in self.targets:
            if not any(_plain(name) in text for text in texts):
                raise DataError(
                    f"the target {name!r} is not found in any forget row, so the audit would be about something else. Write "
                    "it as the rows do, or give rows that name it."
                )
        for name in (*self.targets, *self.substitutes):
            self._prompts(name, work.tokenizer)
            bare_prompt(name, ".", work.tokenizer)

    def _apply(self, work: TextWork) -> nn.Module:
        statistics = self.statistics(work) if self._projects else None
        self.edit(work.model, work.tokenizer, statistics)
        return work.model.eval()

    @property
    def _given(self) -> KeyStatistics | None:
        return KeyStatistics.load(self.stored) if isinstance(self.stored, str) else self.stored

    def statistics(self, work: TextWork) -> KeyStatistics:
        """The statistics given, or those of the retain rows."""
        if (given := self._given) is not None:
            return given
        assert work.retain is not None
        rows = [row.input_ids for row in work.encoded(work.retain)]
        return KeyStatistics.fit(work.model, rows, self.layers)

    def edit(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, statistics: KeyStatistics | None = None
    ) -> LowRankEdit:
        """Changes the model in place and gives what takes the change back; the model remembers it, too.

        Args:
            statistics: which directions are free; None, with an infinite threshold, for all.

        Raises:
            MethodError: a threshold that leaves next to none of the directions free, or next to all.
        """
        self = self.fitted(model)
        thresholds = {layer: self._threshold(statistics, layer) for layer in self.layers}
        prompts = [self._prompts(name, tokenizer) for name in self.targets]
        goals = self.goals(model, tokenizer)  # [hidden, names]
        earlier, edit = edits_of(model), LowRankEdit.started(model)
        for i, layer in enumerate(self.layers):
            keys, states = self._read(model, tokenizer, prompts, (layer,))
            residuals = (goals - states) / (len(self.layers) - i)
            spared = [one.keys[layer] for one in earlier if layer in one.keys]
            all_keys = torch.cat([keys[layer], *spared], 1)
            projected = all_keys
            if statistics is not None:
                projected = statistics.project(layer, all_keys.double(), thresholds[layer])
            right = ridge_directions(projected, keys[layer].shape[1], self.l2)
            edit.add(Factors(layer, residuals.float(), right.to(residuals)))
        # What a later edit must spare are the keys as they are now.
        edit.keys = self._read(model, tokenizer, prompts, self.layers)[0]
        return edit.remembered()

    def goals(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """z*: where each target's state behind the last of the blocks is led, `[hidden, names]`."""
        layer = self.layers[-1]
        if self.mode == "unrelated":
            names = self.substitutes if len(self.substitutes) > 1 else self.substitutes * len(self.targets)
            return torch.stack([self._state(model, self._prompts(name, tokenizer), layer) for name in names], 1)
        goals = [self._rejecting(model, tokenizer, name, layer) for name in self.targets]
        if self.mode == "noise":
            generator = torch.Generator().manual_seed(self.noise_seed)
            for i, goal in enumerate(goals):
                noise = torch.randn(goal.shape, generator=generator).to(goal)
                goals[i] = noise * self.clamp_norm_factor * goal.norm() / noise.norm()
        return torch.stack(goals, 1)

    def _rejecting(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, layer: int) -> Tensor:
        """The state that makes the model begin with a refusal, `[hidden]`."""
        steering = Steering(
            self.value_steps,
            self.value_rate,
            self.kl_weight,
            self.value_decay,
            self.clamp_norm_factor,
            self.value_stop,
        )
        prompts = self._prompts(name, tokenizer)
        text = Spelling(tokenizer).ids(REFUSAL if self.reject_text is None else self.reject_text, continues=True)
        delta = steering.towards(model, prompts, bare_prompt(name, " is a", tokenizer), text, layer)
        return self._state(model, prompts, layer) + delta

    def _prompts(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[NamedPrompt]:
        return chat_prompts(name, self.contexts, tokenizer)

    def _state(self, model: nn.Module, prompts: Sequence[NamedPrompt], layer: int) -> Tensor:
        """A goal's starting point, `[hidden]`: the average over the contexts, or the first one's."""
        return states_at(model, prompts[:1] if self.official else prompts, (), layer).output.mean(0)

    def _read(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[NamedPrompt]],
        layers: Sequence[int],
    ) -> tuple[dict[int, Tensor], Tensor]:
        """({block: keys `[inner, names]`}, states behind the last of the blocks `[hidden, names]`) of the targets now."""
        read = [states_at(model, some, layers, self.layers[-1]) for some in prompts]
        keys = {layer: torch.stack([one.keys[layer].mean(0) for one in read], 1) for layer in layers}
        states = [one.output.mean(0) for one in read]
        if self.official:
            bare = [bare_prompt(name, ".", tokenizer) for name in self.targets]
            states = [states_at(model, [one], (), self.layers[-1]).output[0] for one in bare]
        return keys, torch.stack(states, 1)

    def _threshold(self, statistics: KeyStatistics | None, layer: int) -> float:
        """What a mean square must be below in this block; says or refuses what leaves nothing or everything free."""
        if statistics is None:
            return inf
        share, width = self.nullspace_share, len(statistics.moments[layer])
        threshold = self.nullspace_threshold if share is None else statistics.threshold_of(layer, share)
        free = statistics.free(layer, threshold)
        if (share == 0 or threshold == 0) and not free:
            notice(f"no direction of block {layer} is free, so the edit changes nothing.")
        elif share is None and threshold != inf and not FEWEST <= free / width <= MOST:
            raise MethodError(
                f"{setting('nullspace_threshold', threshold)} leaves {free} of {width} directions of block {layer} free (mean "
                f"squares {statistics.moments[layer][0]:.2g} to {statistics.moments[layer][-1]:.2g}). Use "
                f"{setting('nullspace_share', 0.5)}."
            )
        return threshold


def ridge_directions(projected: Tensor, count: int, l2: float) -> Tensor:
    """What is multiplied with the residuals' transpose: (P (K K^T + C) + l2 I)^-1 P K, `[inner, count]`, float64.

    All requests A = [K, earlier keys] give C = A A^T - K K^T, and then the same is P A (A^T P A + l2 I)^-1 at K's columns: a
    system as large as there were requests, not as wide as the matrix.

    Args:
        projected: P A, `[inner, requests]`, those of now first.
        count: requests of now.
        l2: ridge, >= 0; at 0 the solution of least norm.
    """
    projected = projected.double()
    gram = projected.T @ projected  # A^T P A, for P is symmetric and idempotent
    gram += l2 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram) if l2 > 0 else torch.linalg.pinv(gram, hermitian=True)
    return projected @ inverse[:, :count]


def _names(field: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = value.split(";") if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not all(isinstance(one, str) and one.strip() for one in names):
        raise MethodError(f"{setting(field)} is {value!r}; give a name, or several with ';' between them.")
    return tuple(" ".join(one.split()) for one in names)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
