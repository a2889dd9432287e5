"""Places for the names of points in a picture, so that no name lies on another, on a point or beyond the edge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
LETTER, HIGH = 0.52, 1.15  # of the letters' size: how wide a letter is on average, how high a line
NEAR = (1.0, 2.0, 3.2, 4.6)  # how far from its point a name may stand, in lines


@dataclass(frozen=True)
class Name:
    """A name to place.

    Args:
        text: what is written; nothing is placed for "".
        x, y: the point's place in pixels from the upper left.
    """

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Place:
    """Where a name stands.

    Args:
        x, y: the name's middle in pixels.
        line: the end at the name of a line from its point, where the name stands too far away to be read without one.
    """

    x: float
    y: float
    line: tuple[float, float] | None = None


def placed(names: Sequence[Name], width: float, height: float, size: float = 10, radius: float = 5) -> list[Place]:
    """The place of every name: beside its point where there is room, otherwise as near as a free place is.

    Args:
        names: in the order in which they choose their place.
        width, height: of the picture inside its axes, in pixels.
        size: of the letters, in pixels.
        radius: of the points, which no name may cover.
    """
    points = [(name.x - radius, name.y - radius, name.x + radius, name.y + radius) for name in names]
    taken: list[Box] = []
    places = []
    for name in names:
        wide, high = LETTER * size * len(name.text) + 2, HIGH * size
        boxes = [(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2) for x, y in _places(name, wide, high, radius)]
        inside = [
            box
            for box in boxes
            if box[0] >= 2 and box[1] >= -1.7 * high and box[2] <= width + 40 and box[3] <= height - 2
        ]
        box = min(inside or boxes, key=lambda one: sum(_shared(one, other) for other in (*taken, *points)))
        if name.text:
            taken.append(box)
        places.append(Place((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, _line(name, box, radius + 0.6 * size)))
    return places


def _line(name: Name, box: Box, near: float) -> tuple[float, float] | None:
    """The point of the box that is nearest to the name's point; None where that is `near` enough."""
    x, y = min(max(name.x, box[0]), box[2]), min(max(name.y, box[1]), box[3])
    return (x, y) if math.hypot(x - name.x, y - name.y) > near else None


def _places(name: Name, wide: float, high: float, radius: float) -> Iterator[tuple[float, float]]:
    """Middles to try, the best first: right, left, above, below, then the corners, then all of it further away."""
    for far in NEAR:
        across, down = radius + 2 + wide / 2, radius + high * (far - 0.4)
        aside = (far - 1) * high
        yield from ((name.x + across, name.y + aside), (name.x - across, name.y + aside))
        yield from ((name.x + across, name.y - aside), (name.x - across, name.y - aside))
        yield from ((name.x, name.y - down), (name.x, name.y + down))
        yield from ((name.x + across, name.y - down), (name.x - across, name.y - down))
        yield from ((name.x + across, name.y + down), (name.x - across, name.y + down))


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)
