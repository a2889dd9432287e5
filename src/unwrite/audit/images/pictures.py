"""Pictures for the report of an image model: confusion, who a forgotten row's neighbours are, what was selected."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError, ModelError
from ..report.charts import Filters, heatmaps, layers_chart
from ..report.parts import Picture, Strip, Tile
from .accuracy import confusion
from .arrays import ArrayLike
from .features import neighbours

if TYPE_CHECKING:
    from .context import ImageContext

__all__ = ["changed_weights", "layers_picture", "pictures_of", "selection_picture"]

SHOWN, NEAREST, CLASSES = 6, 6, 60
CELLS = 2400  # weights drawn one by one


def pictures_of(contexts: Mapping[str, ImageContext]) -> tuple[Picture, ...]:
    """Confusion matrices (classifiers of at most 60 classes with test rows), and nearest neighbours."""
    split = next(iter(contexts.values())).split
    pictures, classes = [_neighbours(contexts, split.forget)], split.forget.classes
    if split.test is not None and split.forget.labels is not None and len(classes) <= CLASSES:
        tables = {role: confusion(*context.labelled("test")) for role, context in contexts.items()}
        about = "Unseen rows: the row is the true class, the column the answer, a cell's shade the share of its row."
        pictures.insert(0, Picture("Confusion", about, svg=heatmaps(tables, classes)))
    return tuple(pictures)


def selection_picture(model: nn.Module, selected: Mapping[str, float | Tensor]) -> Picture:
    """What a method selected: a bar a parameter, and the first convolution's filters with the selected weights marked.

    Args:
        model: whose filters are drawn, best as they were before.
        selected: by parameter name a share in 0..1, or booleans in the parameter's shape, as `changed_weights` gives
            them. The filters need booleans; of more filters than fit, those with the most marks are drawn.

    Raises:
        MethodError: a share outside 0..1; what is neither a share nor booleans of a parameter.
    """
    parameters = dict(model.named_parameters())
    shares, marks = {}, {}
    for name, one in selected.items():
        if not isinstance(one, Tensor):
            shares[name] = one
            continue
        own = parameters.get(name)
        if own is None or one.dtype != torch.bool or one.shape != own.shape:
            expected = "no parameter of this model" if own is None else f"{list(own.shape)} there"
            raise MethodError(
                f"the selection of {name} is {one.dtype} {list(one.shape)}, which is {expected}. "
                "Give booleans in the parameter's shape, or its share."
            )
        marks[name], shares[name] = one, float(one.double().mean())
    about = "Share of each parameter's weights that the method chose to change."
    filters = _first_filters(model, marks)
    if filters is not None:
        about += (
            " Below, the first convolution's filters: a cell a weight, blue if negative, gold if positive, a dot where it "
            "was chosen."
        )
    return layers_picture("Selected weights", about, shares, filters)


def changed_weights(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Which weights differ between two models: booleans in each parameter's shape, by its name, on the CPU.

    After a method that dampens, masks or prunes, and trains nothing else, these are the weights that it selected,
    apart from those that were 0.

    Raises:
        ModelError: models of other parameters.
    """
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    for name in {**old, **new}:
        shapes = [list(one[name].shape) if name in one else "missing" for one in (old, new)]
        if shapes[0] != shapes[1]:
            raise ModelError(f"{name} is {shapes[0]} before and {shapes[1]} after. Compare two models of one kind.")
    return {name: (theta.detach().cpu() != new[name].detach().cpu()) for name, theta in old.items()}


def layers_picture(title: str, about: str, shares: Mapping[str, float], filters: Filters | None = None) -> Picture:
    """Draws a bar a parameter: what a method selected there.

    Args:
        shares: by parameter name, 0 to 1.
        filters: drawn below.

    Raises:
        MethodError: a share outside 0..1.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise MethodError(f"the share of {name} is {share}; it must lie in 0..1.")
    return Picture(title, about, svg=layers_chart(shares, filters))


def _first_filters(model: nn.Module, marks: Mapping[str, Tensor]) -> Filters | None:
    """Picks filters of the first two-dimensional convolution, as many as can be read; None without one, or without its marks."""
    name, conv = next((pair for pair in model.named_modules() if isinstance(pair[1], nn.Conv2d)), ("", None))
    name = f"{name}.weight".removeprefix(".")
    if conv is None or name not in marks:
        return None
    weights, marked = conv.weight.detach().double().cpu().numpy(), marks[name].cpu().numpy()
    most = min(len(weights), max(1, CELLS // weights[0].size))
    order = np.argsort(-marked.reshape(len(weights), -1).sum(1), kind="stable")[:most]
    some = "" if most == len(weights) else f"; the {most} of {len(weights)} filters with the most of them"
    title = f"{name}: {int(marked.sum())} of {marked.size} weights{some}"
    shown = np.sort(order)
    return Filters(title, shown.tolist(), weights[shown], marked[shown])


def _neighbours(contexts: Mapping[str, ImageContext], forget: Images) -> Picture:
    """For a few forget rows, the nearest training rows in each model's feature space."""
    picks = [i * len(forget) // min(SHOWN, len(forget)) for i in range(min(SHOWN, len(forget)))]
    strips = []
    nearest = {role: _nearest(context, picks) for role, context in contexts.items()}
    for at, pick in enumerate(picks):
        strips.append(Strip("forgotten", (_tile(forget, pick),)))
        strips += [
            Strip(role, tuple(_tile(rows, i) for rows, i in neighbourhoods[at]))
            for role, neighbourhoods in nearest.items()
        ]
    return Picture(
        "Nearest neighbours of forgotten rows",
        "The training rows that lie nearest to it in each model's features, below the head. A row that still lies among its "
        "own kind is still known there.",
        strips=tuple(strips),
    )


def _nearest(context: ImageContext, picks: Sequence[int]) -> list[list[tuple[Images, int]]]:
    forget, retain = context.set("forget"), context.set("retain")
    features = context.features("forget")
    everything = np.concatenate([features, context.features("retain")])
    k = min(NEAREST + 1, len(everything))
    nearest = neighbours(features[list(picks)], everything, k)
    rows = []
    for pick, near in zip(picks, nearest.index.tolist(), strict=True):
        others = [i for i in near if i != pick][:NEAREST]
        rows.append([(forget, i) if i < len(forget) else (retain, i - len(forget)) for i in others])
    return rows


def _tile(rows: Images, at: int) -> Tile:
    if rows.labels is None:
        return Tile(data_uri(rows.pixels[at].numpy()), f"{float(rows.target[at]):.3g}")
    name = rows.classes[int(rows.labels[at])]
    if rows.identity is not None:
        name = f"{name}, {rows.identities[int(rows.identity[at])]}"
    return Tile(data_uri(rows.pixels[at].numpy()), name)


def data_uri(pixels: ArrayLike) -> str:
    """Writes pixels `[channels, height, width]` in 0..1 as a PNG, in a data URI."""
    from PIL import Image

    whole = (255 * np.asarray(pixels)).round().astype(np.uint8)
    picture = Image.fromarray(whole[0]) if len(whole) == 1 else Image.fromarray(whole.transpose(1, 2, 0))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
