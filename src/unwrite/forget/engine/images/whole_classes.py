"""Whether whole classes are to be forgotten, which some methods treat apart from single rows."""

from __future__ import annotations

from ....data.images.images import Images

__all__ = ["whole_classes"]


def whole_classes(forget: Images, retain: Images) -> tuple[int, ...]:
    """The forget rows' classes, in order, if the retain set has no row of any of them; otherwise none."""
    if forget.labels is None or retain.labels is None:
        return ()
    wanted, kept = (set(rows.labels.unique().tolist()) for rows in (forget, retain) if rows.labels is not None)
    return () if wanted & kept else tuple(sorted(wanted))
