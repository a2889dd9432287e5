"""What is done to the embeddings of a prompt: some dimensions of the marked tokens get noise, zeros, another sign or a value.

Every corruption is a function of embeddings [tokens, width], a mask [tokens] and a generator, which gives new embeddings and
leaves those given as they are. Sums are made in float32 and rounded once, so that noise has the same values whatever the
format of the weights. (ECO, arXiv 2406.07933)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ....errors import MethodError, ModelError, setting, unknown
from ..checks import require

__all__ = ["Corruption", "CorruptionName"]

CorruptionName = Literal[
    "rand_noise_first_n",
    "rand_noise_rand_n",
    "rand_noise_top_k",
    "set_rand_noise_first_n",
    "zero_out_first_n",
    "zero_out_top_k",
    "flip_sign_first_n",
    "flip_sign_top_k",
    "add_value_first_n",
    "add_value_least_k",
    "sub_value_first_n",
    "sub_value_top_k",
    "reverse_order",
    "shuffle",
]

Choice = Callable[[Tensor, int, torch.Generator], Tensor]  # values [marked, width] to dimensions [marked, dims]
Change = Callable[[Tensor, float, torch.Generator], Tensor]  # values [marked, dims] to what they become


def _first(values: Tensor, dims: int, _: torch.Generator) -> Tensor:
    return torch.arange(dims, device=values.device).expand(len(values), -1)


def _random(values: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    """One set for all tokens."""
    return torch.randperm(values.shape[-1], generator=generator)[:dims].to(values.device).expand(len(values), -1)


def _farthest(values: Tensor, dims: int, _: torch.Generator) -> Tensor:
    return values.abs().topk(dims, -1).indices


def _highest(values: Tensor, dims: int, _: torch.Generator) -> Tensor:
    return values.topk(dims, -1).indices


def _lowest(values: Tensor, dims: int, _: torch.Generator) -> Tensor:
    return values.topk(dims, -1, largest=False).indices


def _noise(values: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return torch.randn(values.shape, generator=generator).to(values.device) * strength


def _plus_noise(values: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return values + _noise(values, strength, generator)


def _zero(values: Tensor, _: float, __: torch.Generator) -> Tensor:
    return torch.zeros_like(values)


def _flip(values: Tensor, _: float, __: torch.Generator) -> Tensor:
    return -values


def _plus(values: Tensor, strength: float, _: torch.Generator) -> Tensor:
    return values + strength


def _minus(values: Tensor, strength: float, _: torch.Generator) -> Tensor:
    return values - strength


_PARTS: dict[str, tuple[Choice, Change]] = {
    "rand_noise_first_n": (_first, _plus_noise),
    "rand_noise_rand_n": (_random, _plus_noise),
    "rand_noise_top_k": (_farthest, _plus_noise),
    "set_rand_noise_first_n": (_first, _noise),
    "zero_out_first_n": (_first, _zero),
    "zero_out_top_k": (_farthest, _zero),
    "flip_sign_first_n": (_first, _flip),
    "flip_sign_top_k": (_farthest, _flip),
    "add_value_first_n": (_first, _plus),
    "add_value_least_k": (_lowest, _plus),
    "sub_value_first_n": (_first, _minus),
    "sub_value_top_k": (_highest, _minus),
}


@dataclass(frozen=True)
class Corruption:
    """One corruption with its strength.

    Args:
        name: what is done. `rand_noise` adds N(0, strength^2), `set_rand_noise` puts it in place; `zero_out` and `flip_sign` have
            no strength but 0; `add_value` and `sub_value` move by it. `first_n`, `rand_n`: dimensions 0 to dims - 1, or as
            many random ones, the same for all tokens of a prompt; `top_k`: those of largest size (`sub_value`: of largest value),
            `least_k`: of smallest value. `reverse_order` and `shuffle` move whole tokens, marked or not.
        strength: 0 is no corruption at all, whatever the name.
        dims: how many dimensions.

    Raises:
        MethodError: a name there isn't, a negative strength, no dimension.
    """

    name: CorruptionName = "rand_noise_first_n"
    strength: float = 50.0
    dims: int = 1

    def __post_init__(self) -> None:
        if self.name not in get_args(CorruptionName):
            raise MethodError(f"{setting('corruption')}: {unknown('corruption', self.name, get_args(CorruptionName))}")
        require("strength", self.strength, at_least=0)
        require("dims", self.dims, at_least=1)

    def check_width(self, width: int) -> None:
        """Refuses more dimensions than an embedding has.

        Raises:
            ModelError: which has how many.
        """
        if self.dims > width:
            raise ModelError(
                f"{setting('dims')} is {self.dims}, and this model's embeddings have {width} dimensions. Give at most {width}."
            )

    def __call__(self, embeddings: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """The corrupted embeddings.

        Args:
            embeddings: [tokens, width].
            mask: [tokens], true at the tokens that are marked.
            generator: of the CPU, the one source of randomness.

        Raises:
            ModelError: a mask of another length, too many dimensions, or values that the format of the weights can't hold.
        """
        if mask.shape != embeddings.shape[:1]:
            raise ModelError(f"the mask has {tuple(mask.shape)} marks for {len(embeddings)} tokens; give one each.")
        self.check_width(embeddings.shape[-1])
        if self.strength == 0 or not mask.any():
            return embeddings
        if self.name == "reverse_order":
            return embeddings.flip(0)
        if self.name == "shuffle":
            return embeddings[torch.randperm(len(embeddings), generator=generator).to(embeddings.device)]
        choose, change = _PARTS[self.name]
        marked = embeddings[mask]
        values = marked.float()
        chosen = choose(values, self.dims, generator)
        changed = change(values.gather(-1, chosen), self.strength, generator).to(embeddings.dtype)
        if not changed.isfinite().all():
            raise ModelError(
                f"{setting('strength')} {self.strength:g} leads out of the numbers of {str(embeddings.dtype).removeprefix('torch.')}. "
                f"Load the model in bfloat16 or float32, or lower {setting('strength')}."
            )
        corrupted = embeddings.clone()
        corrupted[mask] = marked.scatter(-1, chosen, changed)
        return corrupted
