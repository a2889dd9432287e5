"""A model whose skill-typical neurons are led back to where they are on other texts, at every token of every forward.

    lp(x; m, s) = -(x - m)^2 / (2 s^2) - log s                      log-density, a constant left out
    lp_f >= lp_r and u >= sigmoid(lp_r - lp_f):   x <- m_r - s_r (x - m_f) / s_f;      else x stays

u must be drawn for every neuron at every token, and yet be the same in `forward` over a text, in `generate` with a cache, beside
padding and in a drafted tree. So it is no draw but a hash of (seed, block, neuron, position in the text, token at that position),
all of them whole numbers. A hash of the neuron's value would not do: the same token has values that differ in the last bits from
one way of computing it to another, and would get another u each time. As it is, rounding can only matter where a value lies within
it of its own bound, as anywhere where a model decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import MethodError, ModelError, setting
from ....models.guarded import load_guarded
from ....runs import hash_json, hash_model, hash_tensors, read_tensors
from .activation_statistics import changing, mlp_sites
from .guarded_model import GuardedModel, next_token_loss

__all__ = ["AdjustedNeuronsModel", "NeuronTable", "adjusted", "hashed_uniforms"]

FILE = "neurons.safetensors"
_KINDS = {"layer": ("int64", 1), "neuron": ("int64", 1)}
_LOW = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class NeuronTable:
    """The neurons that are changed, in the order of blocks and neurons.

    Args:
        layer, neuron: where each is, `[neurons]`.
        forget_mean, forget_std, retain_mean, retain_std: of its pre-activation, `[neurons]`, float32, deviations above 0.
    """

    layer: Tensor
    neuron: Tensor
    forget_mean: Tensor
    forget_std: Tensor
    retain_mean: Tensor
    retain_std: Tensor

    def of(self, layer: int, device: torch.device | str) -> NeuronTable:
        """Those of one block."""
        here = self.layer == layer
        return NeuronTable(*(values[here].to(device) for values in self.tensors.values()))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class NeuronRules:
    """What becomes of the neurons; see `NeuronAdjust`."""

    action: Literal["adjust", "prune"] = "adjust"
    draws: Literal["hashed", "fresh"] = "hashed"
    seed: int = 0


def adjusted(x: Tensor, table: NeuronTable, u: Tensor) -> Tensor:
    """Values as they go on, in float32. x, u: [..., neurons]."""
    x = x.float()
    forget = -(((x - table.forget_mean) / table.forget_std) ** 2) / 2 - table.forget_std.log()
    retain = -(((x - table.retain_mean) / table.retain_std) ** 2) / 2 - table.retain_std.log()
    mirrored = table.retain_mean - table.retain_std * (x - table.forget_mean) / table.forget_std
    return torch.where((forget >= retain) & (u >= torch.sigmoid(retain - forget)), mirrored, x)


def hashed_uniforms(seed: int, layer: int, neurons: Tensor, ids: Tensor, places: Tensor) -> Tensor:
    """[..., neurons] numbers in [0, 1), functions of whole numbers alone. ids, places: [...]."""
    text = _mixed(_mixed(ids ^ _mixed(places + 1)) ^ _mixed(torch.tensor(seed & _LOW)).to(ids))
    each = _mixed(_mixed(neurons + 1) ^ _mixed(torch.tensor(layer + 1)).to(neurons))
    return (_mixed(text[..., None] ^ each) >> 8).float() / 2**24


def _mixed(values: Tensor) -> Tensor:
    """A bijection of the numbers below 2^32 that spreads every bit over all others; products stay below 2^63."""
    values = values.long() & _LOW
    for factor in (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39):
        values = ((values ^ (values >> 16)) * factor) & _LOW
    return values ^ (values >> 15)


class AdjustedNeuronsModel(GuardedModel):
    """A target some of whose neurons are adjusted, or pruned, while it runs.

    Args:
        target: the model; never changed: the hooks are there during a forward only.
        table: the neurons.
        rules: what becomes of them.

    Raises:
        ModelError: a neuron that the target doesn't have.
    """

    loader: ClassVar[str] = "neuron-adjust"
    settings: ClassVar[frozenset[str]] = frozenset(asdict(NeuronRules()))

    def __init__(self, target: PreTrainedModel, table: NeuronTable, rules: NeuronRules) -> None:
        super().__init__(target)
        self.table, self.rules = table, rules
        self.config.neuron_draws = rules.draws  # drafting asks once a configuration whether trees may run
        sites, widths = mlp_sites(target), [site.width for site in mlp_sites(target)]
        here = [0 <= i < len(widths) and 0 <= j < widths[i] for i, j in zip(*_pairs(table), strict=True)]
        if not all(here):
            i = here.index(False)
            raise ModelError(
                f"neuron {int(table.neuron[i])} of block {int(table.layer[i])} is none of this {type(target).__name__}'s. "
                "Measure the neurons on this model."
            )
        self._sites = [site for site in sites if bool((table.layer == site.layer).any())]
        self._tables: dict[tuple[int, torch.device], NeuronTable] = {}
        self._generator = torch.Generator().manual_seed(rules.seed)
        self.eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        """The target's own output, logits [batch, length, vocab], with its neurons changed at every position."""
        if input_ids is None:
            raise ModelError("adjusted neurons go by token ids, and there are none. Pass input_ids.")
        places = text_positions(input_ids, attention_mask, position_ids, past_key_values)
        with self._changing(input_ids, places):
            output = self.target(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=bool(use_cache),
                logits_to_keep=logits_to_keep,
                **rest,
            )
        output.loss = next_token_loss(output.logits, labels)
        return output

    def _changing(self, ids: Tensor, places: Tensor) -> AbstractContextManager[None]:
        def change(layer: int, values: Tensor) -> Tensor:
            table = self._table_of(layer, values.device)
            changed = values.reshape(*ids.shape, -1).clone()
            x = changed[..., table.neuron]
            if self.rules.action == "prune":
                new = torch.zeros_like(x)
            elif self.rules.draws == "fresh":
                new = adjusted(x, table, torch.rand(x.shape, generator=self._generator).to(x.device))
            else:
                new = adjusted(x, table, hashed_uniforms(self.rules.seed, layer, table.neuron, ids, places))
            changed[..., table.neuron] = new.to(changed.dtype)
            return changed.reshape(values.shape)

        return changing(self.target, self._sites, "pre-activation", change)

    def _table_of(self, layer: int, device: torch.device) -> NeuronTable:
        if (layer, device) not in self._tables:
            self._tables[layer, device] = self.table.of(layer, device)
        return self._tables[layer, device]

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`.

        Raises:
            MethodError: drafting with draws that are fresh in every forward.
        """
        drafting = [
            name for name in ("custom_generate", "assistant_model", "prompt_lookup_num_tokens") if kwargs.get(name)
        ]
        if drafting and self.rules.draws == "fresh" and self.rules.action == "adjust":
            raise MethodError(
                f"{drafting[0]} drafts, and with {setting('draws', 'fresh')} a drafted token would get other draws than one that "
                f"is written: there is no text of the model's own to keep to. Use {setting('draws', 'hashed')}."
            )
        return super().generate(*args, **kwargs)

    def fingerprint(self) -> str:
        """Content hash of the target, the neurons and the rules."""
        return hash_json([hash_model(self.target), hash_tensors(self.table.tensors), asdict(self.rules)])

    def noted(self) -> dict[str, Any]:
        return asdict(self.rules)

    def write_parts(self, folder: Path) -> None:
        """The neurons."""
        save_file({name: values.contiguous() for name, values in self.table.tensors.items()}, str(folder / FILE))

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        kinds = {one.name: _KINDS.get(one.name, ("float32", 1)) for one in fields(NeuronTable)}
        tensors, _ = read_tensors(folder / FILE, "table of neurons", ModelError, kinds)
        if len({len(values) for values in tensors.values()}) != 1:
            raise ModelError(f"{folder / FILE} is damaged: its columns differ in length. Copy the folder whole.")
        target: Any = load_guarded(folder, "target", **options)
        return cls(target, NeuronTable(**tensors), NeuronRules(**settings))


def text_positions(
    ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, past_key_values: Any = None
) -> Tensor:
    """[batch, length]: each token's place in its text, 0 for the first that is no padding, behind what is cached."""
    if position_ids is not None:
        return position_ids.expand_as(ids)
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    done = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    return torch.arange(done, done + ids.shape[1], device=ids.device).expand_as(ids)


def _pairs(table: NeuronTable) -> tuple[list[int], list[int]]:
    return table.layer.tolist(), table.neuron.tolist()


load_folder = AdjustedNeuronsModel.load_folder  # what `unwrite.models.load` calls
