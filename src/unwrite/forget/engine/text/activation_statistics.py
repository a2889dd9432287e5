"""What the neurons of a model's MLPs do on some texts: mean, deviation and size, summed up in float64 batch by batch.

    gated      y = W_down (act(W_gate x) * W_up x)      pre-activation: W_gate x;    key: the input of W_down
    plain      y = W_2 act(W_1 x + b)                   pre-activation: W_1 x + b;   key: the input of W_2

No number depends on how rows are batched or padded: sums of batches are joined exactly as Chan, Golub and LeVeque join them,
and neither padding nor BOS counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ....errors import DataError, MethodError, ModelError, setting, unknown
from ....models import anatomy
from ....models.key_statistics import last_needed
from ....runs import progress

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["ActivationStatistics", "MlpSite", "Positions", "changing", "check_positions", "mlp_sites", "values_of"]

Positions = Literal["all", "last"]
Place = Literal["pre-activation", "key"]
Change = Callable[[int, Tensor], Tensor | None]  # block, values -> what takes their place, None to leave them
FEWEST = 30  # vectors, below which a mean and a deviation say too little


@dataclass(frozen=True)
class MlpSite:
    """Where the neurons of one block are, by names below the model, so that a copy of the model has the same.

    Args:
        layer: the block, from 0.
        entry: the module whose output holds the pre-activations.
        rows: which of its outputs they are, where it holds other maps, too.
        exit: the module whose input is the key.
        width: how many neurons there are.
    """

    layer: int
    entry: str
    rows: slice | Tensor | None
    exit: str
    width: int


def mlp_sites(model: nn.Module) -> list[MlpSite]:
    """The neurons of every block, in order.

    Raises:
        ModelError: an architecture without a record, or an MLP without the projections of its record.
    """
    parts, sites = anatomy(model), []
    names = {id(module): name for name, module in model.named_modules()}
    into = parts.layout.gate or parts.layout.up
    for block in parts.blocks:
        below = f"{names[id(block.module)]}."
        width = (block.gate or block.up).shape[0]
        rows = into.rows(parts.model.config)
        sites.append(MlpSite(block.index, below + into.path, rows, below + parts.layout.down.path, width))
    return sites


def check_positions(positions: str) -> None:
    """Refuses what is neither "all" nor "last"."""
    if positions not in get_args(Positions):
        raise MethodError(f"{setting('positions')}: {unknown('choice', str(positions), get_args(Positions))}")


@contextmanager
def changing(model: nn.Module, sites: Sequence[MlpSite], place: Place, change: Change) -> Iterator[None]:
    """Within the block, every forward shows the neurons' values to `change`, and goes on with what that gives back.

    The hooks are gone afterwards; other hooks run as ever. Values are `[..., width]`, with as many leading dimensions as the
    model's MLP has (OPT's has one). Nothing is changed in place.
    """
    handles: list[RemovableHandle] = []
    try:
        for site in sites:
            if place == "key":
                handles.append(model.get_submodule(site.exit).register_forward_pre_hook(_before(site, change)))
            else:
                handles.append(model.get_submodule(site.entry).register_forward_hook(_behind(site, change)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(site: MlpSite, change: Change) -> Callable[..., tuple[Tensor, ...] | None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        new = change(site.layer, inputs[0])
        return None if new is None else (new, *inputs[1:])

    return hook


def _behind(site: MlpSite, change: Change) -> Callable[..., Tensor | None]:
    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        new = change(site.layer, output if site.rows is None else output[..., site.rows])
        if new is None or site.rows is None:
            return new
        whole = output.clone()
        whole[..., site.rows] = new
        return whole

    return hook


@torch.no_grad()
def values_of(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    sites: Sequence[MlpSite],
    place: Place,
    take: Callable[[int, Tensor], None],
    *,
    positions: Positions = "all",
    bos: int | None = None,
    batch_size: int = 8,
    side: Literal["right", "left"] = "right",
    label: str = "reading activations",
) -> list[int]:
    """Runs rows through the model and gives `take` the values of each batch, `[vectors, width]` in float64, block by block.

    Args:
        rows: token ids; empty ones are left out.
        positions: of every token, or of each row's last one.
        bos: a token that doesn't count where a row begins with it, unless there is no other.
        side: where rows are padded.

    Returns:
        The rows' numbers in the order in which `take` was given them.
    """
    order = sorted((i for i, row in enumerate(rows) if len(row)), key=lambda i: -len(rows[i]))
    device, was_training = next(model.parameters()).device, model.training
    counted = torch.empty(0)

    def see(layer: int, values: Tensor) -> None:
        take(layer, values.reshape(-1, values.shape[-1])[counted.flatten()].double())

    model.eval()
    try:
        with changing(model, sites, place, see):
            for first in progress(range(0, len(order), batch_size), label):
                batch = [rows[i] for i in order[first : first + batch_size]]
                ids, mask = _padded(batch, side, device)
                counted = _counted(ids, mask, positions, bos)
                places = (mask.cumsum(-1) - 1).clamp(min=0)
                with last_needed(model, max(site.layer for site in sites)):
                    model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
    finally:
        model.train(was_training)
    return order


def _padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, at], mask[i, at] = torch.tensor(list(row)), 1
    return ids.to(device), mask.to(device)


def _counted(ids: Tensor, mask: Tensor, positions: Positions, bos: int | None) -> Tensor:
    """[rows, length]: the tokens whose values count."""
    place = mask.cumsum(-1) * mask  # 1 for the first token
    if positions == "last":
        return place == mask.sum(-1, keepdim=True)
    first = (place == 1) & (ids == (-1 if bos is None else bos)) & (mask.sum(-1, keepdim=True) > 1)
    return mask.bool() & ~first


@dataclass
class _Moments:
    """Running count, mean, sum of squared distances from it, and sum of sizes."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))
    sizes: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, values: Tensor) -> None:
        """Joins those of more vectors to them, `[vectors, width]` in float64."""
        if not len(values):
            return
        mean, total = values.mean(0), self.count + len(values)
        apart = mean - self.mean.to(mean)
        squares = (values - mean).square().sum(0) + apart.square() * (self.count * len(values) / total)
        self.mean = self.mean.to(mean) + apart * (len(values) / total)
        self.squares = self.squares.to(mean) + squares
        self.sizes = self.sizes.to(mean) + values.abs().sum(0)
        self.count = total


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Of each block's neurons, in float64.

    Args:
        count: vectors that were seen in each block.
        mean, std, size: {block: `[width]`}: the mean, the deviation with n - 1 below, and the mean of absolute values.
    """

    count: int
    mean: Mapping[int, Tensor] = field(repr=False)
    std: Mapping[int, Tensor] = field(repr=False)
    size: Mapping[int, Tensor] = field(repr=False)

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        *,
        place: Place = "pre-activation",
        layers: Sequence[int] | None = None,
        positions: Positions = "all",
        bos: int | None = None,
        batch_size: int = 8,
        side: Literal["right", "left"] = "right",
        fewest: int = FEWEST,
    ) -> ActivationStatistics:
        """Runs texts through the model.

        Args:
            rows: token ids of the texts.
            layers: the blocks, from 0; None for all.
            fewest: vectors below which it is refused, at least 2.
            others: see `values_of`.

        Raises:
            DataError: too few vectors.
            ModelError: an MLP that isn't known; values that are not finite.
        """
        sites = [site for site in mlp_sites(model) if layers is None or site.layer in layers]
        moments = {site.layer: _Moments() for site in sites}
        values_of(
            model,
            rows,
            sites,
            place,
            lambda layer, values: moments[layer].add(values),
            positions=positions,
            bos=bos,
            batch_size=batch_size,
            side=side,
            label=f"reading {place}s",
        )
        return cls._of(moments, fewest)

    @classmethod
    def of_vectors(cls, vectors: Tensor, layer: int = 0, fewest: int = 2) -> ActivationStatistics:
        """Of vectors that are there already, `[vectors, width]`, as one block's.

        Raises:
            DataError: too few vectors.
            ModelError: a number that is not finite.
        """
        moments = _Moments()
        moments.add(vectors.double())
        return cls._of({layer: moments}, fewest)

    @classmethod
    def _of(cls, moments: Mapping[int, _Moments], fewest: int) -> ActivationStatistics:
        count, least = min(one.count for one in moments.values()), max(2, fewest)
        if count < least:
            raise DataError(
                f"{count} vectors are too few for the mean and the deviation of neurons: at least {least} are needed. Give "
                f"more rows, or count every token: {setting('positions', 'all')}."
            )
        for layer, one in moments.items():
            if not (one.mean.isfinite().all() and one.squares.isfinite().all()):
                raise ModelError(
                    f"the neurons of block {layer} have values that are not finite; the model's weights may be damaged, or "
                    "its format too short. Load it in float32."
                )
        return cls(
            count,
            {layer: one.mean.cpu() for layer, one in moments.items()},
            {layer: (one.squares / (one.count - 1)).sqrt().cpu() for layer, one in moments.items()},
            {layer: (one.sizes / one.count).cpu() for layer, one in moments.items()},
        )
