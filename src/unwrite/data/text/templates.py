"""Chat templates are programs that come with a model: they get a bounded number of steps and of memory.

The sandbox they run in keeps them from files and the network, not from a loop within a loop within a loop, nor from a text that doubles
forty times.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import FrameType
from typing import Any

from ...errors import ModelError

__all__ = ["MEMORY", "STEPS", "bounded_template"]

STEPS = 2_000_000  # lines of a template and of what it calls, for one conversation; one of a thousand turns takes some 50,000
MEMORY = 1 << 30  # bytes


class _TooLong(Exception):
    """A template took more steps than it may."""


@contextlib.contextmanager
def bounded_template(source: Any) -> Iterator[None]:
    """Within the block, rendering the template ends after `STEPS` steps, or when it takes more than `MEMORY`.

    Args:
        source: the template, which must not raise numbers to powers: one such operation can take longer than any loop, and can't be
            interrupted.

    Raises:
        ModelError: it took more, or holds a power.
    """
    if isinstance(source, str) and _has_power(source):
        raise ModelError(
            "the chat template raises a number to a power, which may never end. Set tokenizer.chat_template to one that doesn't."
        )
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if event == "line":
            steps += 1
            if steps > STEPS:
                raise _TooLong
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        return count if file == "<template>" or "jinja2" in file else None

    tracer = sys.gettrace()
    try:
        with _memory():
            sys.settrace(enter)
            try:
                yield
            finally:
                sys.settrace(tracer)
    except (_TooLong, MemoryError) as error:
        what = f"{STEPS:,} steps" if isinstance(error, _TooLong) else f"{MEMORY >> 30} GiB of memory"
        raise ModelError(
            f"the chat template takes more than {what} for one conversation, so it may never end. Set tokenizer.chat_template to another."
        ) from None


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Bounds what the process may allocate, where the system can."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([used + MEMORY, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@lru_cache(maxsize=32)
def _has_power(source: str) -> bool:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(kind == "operator" and word == "**" for _, kind, word in Environment(autoescape=False).lex(source))
    except TemplateSyntaxError:
        return False  # said when it is compiled
