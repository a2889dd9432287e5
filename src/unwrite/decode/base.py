"""What a decoding strategy is: settings that make a drafter, and a callable that `generate` takes.

    model.generate(**inputs, custom_generate=TokenRecycling())

A strategy is a frozen dataclass. Its drafter holds what one call learns: `propose` a tree, `observe` what the target
said about every node, `commit` what was kept. Masks, positions, rollback, budgets, stopping and statistics are the
engine's, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

    from .engine.runtime import Output, Runtime
    from .engine.sampling import Sampling
    from .engine.tree import DraftTree, Ints, Path


class Drafter(ABC):
    """What proposes, for one row of one call.

    rests: it may be left out of plain steps altogether; it neither proposes, observes nor commits then.
    drafts: off, it never proposes anything and is never asked.
    """

    rests: ClassVar[bool] = False
    drafts: ClassVar[bool] = True

    def reset(self, prompt: Ints, prefill: Tensor | None) -> None:  # noqa: B027
        """A new text begins. prompt: [length] ids; prefill: [vocab] logits after it."""

    @abstractmethod
    def propose(self, committed: Ints, budget: int) -> DraftTree:
        """A tree of one row, rooted at the last committed token.

        Args:
            committed: [length] all ids so far, a view that must not be kept or written.
            budget: nodes beside the root that can pay at most; the engine may prune further, best nodes first,
                unless the tree holds samples (`draft`).
        """

    def observe(self, tree: DraftTree, output: Output, path: Path) -> None:  # noqa: B027
        """What the target said. tree: as it ran, after pruning; output.logits: [nodes, vocab]; path: what was kept."""

    def commit(self, path: Path) -> None:  # noqa: B027
        """Follow with a cache of one's own; path.nodes index the tree as it ran."""

    def accept(self, tree: DraftTree, node: int, scores: Tensor, sampling: Sampling) -> tuple[int, int | None]:
        """For sampled drafts only: the token after `node` and the child that carries it, None where it leaves the tree.

        Args:
            scores: [vocab] float32 processed logits of the target after the node.

        Raises:
            NotImplementedError: the drafter's trees are functions of the past; the engine draws from the target.
        """
        raise NotImplementedError

    def prior(self, kind: int) -> float:
        """How often a node of this kind is accepted once its parent is, before anything was seen."""
        return 0.5

    @property
    def plans(self) -> Sequence[DraftTree]:
        """Shapes of tree to choose from, for drafters whose drafting costs real time or is sampled: only parents and
        kinds matter. The engine picks one, or none, and offers its node count as the budget; it does not prune what comes
        back. Empty for drafters that cost next to nothing: the engine prunes their whole proposal."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """A way to decode.

    Args:
        streamer: gets the prompt, then tokens as they are committed (transformers does not hand `generate`'s to a callable).
        cost_model: draft only what pays; off, every step drafts `budget` nodes.
        budget: nodes a step may draft at most beside the root; at least 1.
    """

    streamer: Any = None
    cost_model: bool = True
    budget: int = 80

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    batched: ClassVar[bool] = True
    drafts: ClassVar[bool] = True  # off: never, and so for targets that decode plainly only

    @property
    def key(self) -> str:
        """What calls must share to go on from one another's acceptance statistics."""
        return type(self).__name__

    @abstractmethod
    def drafter(self, runtime: Runtime, sampling: Sampling) -> Drafter:
        """A fresh drafter for one row."""

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: GenerationConfig | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """What `generate(custom_generate=self)` calls."""
        from .engine.bridge import custom_generate

        return custom_generate(
            self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
        )
