"""The names by which an objective says what its loss looks at, and what follows from them.

"nll", "logits", "token counts", "features", "blocks"    of the forget rows
"alternate ...", "retain ..."                            of other rows; "retain" alone, whatever of them
"hidden:<layer>"                                         what comes out of a block, of forget and retain rows
"reference ..."                                          of the model before unlearning
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ...errors import MethodError, unknown

__all__ = ["HIDDEN", "check_reads", "layers_of", "needs_retain", "reads_outputs", "reads_retain"]

HIDDEN = "hidden:<layer>"
_HIDDEN = re.compile(r"((?:reference )?)hidden:(.*)")


def check_reads(method: str, reads: Iterable[str], known: frozenset[str], kind: str, depth: Callable[[], int]) -> None:
    """Refuses names that this kind of data doesn't have.

    Args:
        method: who reads, for the message.
        known: the names there are, layers as `hidden:<layer>`.
        kind: of the data, for the message.
        depth: gives the number of the model's blocks; called where a layer is read.

    Raises:
        MethodError: an unknown name, with the nearest known one; a layer that the model hasn't.
    """
    for name in sorted(reads):
        layer = _HIDDEN.fullmatch(name)
        if (name if layer is None else f"{layer[1]}{HIDDEN}") not in known or name.endswith(HIDDEN):
            raise MethodError(f"{method} on {kind}: {unknown('name in reads', name, known)}")
        if layer is not None and not (layer[2].isdecimal() and int(layer[2]) < depth()):
            raise MethodError(
                f"{method} reads {name!r}, but the model has {depth()} blocks. Use hidden:0 to hidden:{depth() - 1}."
            )


def layers_of(reads: Iterable[str], *, reference: bool = False) -> tuple[int, ...]:
    """The layers whose outputs are read, in order; with `reference`, those read of the model before.

    >>> layers_of({"nll", "hidden:3", "hidden:1", "reference hidden:1"})
    (1, 3)
    """
    layers = [match for name in reads if (match := _HIDDEN.fullmatch(name))]
    return tuple(sorted({int(match[2]) for match in layers if bool(match[1]) == reference}))


def reads_retain(reads: Iterable[str]) -> bool:
    """Whether the retain rows of a paired step are looked at."""
    return any("retain" in name or "hidden:" in name for name in reads)


def needs_retain(reads: Iterable[str]) -> bool:
    """Whether something is read that there is of retain rows alone; "retain" by itself can do without them."""
    return any(name.removeprefix("reference ").startswith("retain ") for name in reads)


def reads_outputs(reads: Iterable[str]) -> bool:
    """Whether anything is read that needs logits of the model as it is."""
    return any(name.endswith(("nll", "logits")) and not name.startswith("reference ") for name in reads)
