"""Pictures for the report of an image model: confusion before and after, who a forgotten row's neighbours are, what was dampened."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.image_splits import ImageSplit
from ..data.images import Images
from ..errors import MethodError
from .charts import heatmaps, layers_chart
from .report import Picture, Strip, Tile
from .vision_accuracy import confusion
from .vision_features import neighbours

if TYPE_CHECKING:
    from .vision import ImageContext

__all__ = ["layers_picture", "pictures_of"]

SHOWN, NEAREST, CLASSES = 6, 6, 60


def pictures_of(
    contexts: Mapping[str, ImageContext], split: ImageSplit, selected: Mapping[str, float] | None = None
) -> tuple[Picture, ...]:
    """Confusion matrices (classifiers of at most 60 classes with test rows), nearest neighbours, and what was selected."""
    found = [_neighbours(contexts, split)]
    classes = split.forget.classes
    if split.test is not None and split.forget.labels is not None and len(classes) <= CLASSES:
        tables = {role: confusion(*context.labelled("test")) for role, context in contexts.items()}
        about = "Unseen rows: the row is the true class, the column the answer, a cell's shade the share of its row."
        found.insert(0, Picture("Confusion", about, svg=heatmaps(tables, classes)))
    if selected is not None:
        about = (
            "Share of each parameter's weights that the method chose to change, by their importance to the forget rows."
        )
        found.append(layers_picture("Selected weights", about, selected))
    return tuple(found)


def layers_picture(title: str, about: str, shares: Mapping[str, float]) -> Picture:
    """A bar a parameter: what a method selected there.

    Args:
        shares: by parameter name, 0 to 1.

    Raises:
        MethodError: a share outside 0..1.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise MethodError(f"the share of {name} is {share}; it must lie in 0..1.")
    return Picture(title, about, svg=layers_chart(shares))


def _neighbours(contexts: Mapping[str, ImageContext], split: ImageSplit) -> Picture:
    """For a few forget rows, the nearest training rows in each model's feature space."""
    forget = split.forget
    picks = [i * len(forget) // min(SHOWN, len(forget)) for i in range(min(SHOWN, len(forget)))]
    strips = []
    nearest = {role: _nearest(context, picks) for role, context in contexts.items()}
    for at, pick in enumerate(picks):
        strips.append(Strip("forgotten", (_tile(forget, pick),)))
        strips += [Strip(role, tuple(_tile(rows, i) for rows, i in found[at])) for role, found in nearest.items()]
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
    found = neighbours(features[list(picks)], everything, k)
    rows = []
    for pick, near in zip(picks, found.index.tolist(), strict=True):
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


def data_uri(pixels: Any) -> str:
    """A PNG of pixels `[channels, height, width]` in 0..1."""
    from PIL import Image

    whole = (255 * np.asarray(pixels)).round().astype(np.uint8)
    picture = Image.fromarray(whole[0]) if len(whole) == 1 else Image.fromarray(whole.transpose(1, 2, 0))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
