"""What every command prints with: a console for people, JSON for programs, quiet libraries.

The one place that prints. Nothing that is printed is read as markup, and no control sign that came with a name, a row or a
model's answer is sent (`unwrite.terminal`): colour is asked for by `label`, never by brackets.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import logging
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Notice
from ..terminal import one_line, text, visible

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.text import Text

_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # what JSON may hold as it is


@lru_cache(maxsize=2)
def _terminal(stderr: bool) -> Console:
    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        """A console that sends no control sign but its own."""

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text, lines=True), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
                words = segment.text if segment.control else visible(segment.text, lines=True)
                yield Segment(words, style, segment.control)

    return Terminal(stderr=stderr, markup=False, emoji=False)


def console() -> Console:
    """The terminal, by rich."""
    return _terminal(stderr=False)


def progress_console() -> Console:
    """Where progress goes, beside the output: standard error."""
    return _terminal(stderr=True)


def label(words: object, style: str = "bold", then: object = "") -> Text:
    """Words in a style, followed by others in none."""
    return text(words, style) if then == "" else text("").append_text(text(words, style)).append_text(text(then))


def write(words: str) -> None:
    """A model's text on standard output: its line ends and tabs as they are, never wrapped, and at once."""
    sys.stdout.write(visible(words, lines=True))
    sys.stdout.flush()


def say_where(report: Path, run: Path | None = None, program: str = "unwrite") -> None:
    """Where a report lies, and the command that asks the models of its run."""
    console().print(f"report  {report}", soft_wrap=True)
    if run is not None:
        console().print(f"chat    {program} chat {shlex.quote(str(run))}", soft_wrap=True)


def complain(words: object) -> None:
    """A refusal or a notice: one line on standard error."""
    print(f"unwrite: {one_line(words)}", file=sys.stderr)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error that nobody expected, for `sys.excepthook`: its message may hold anything, too."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace)), lines=True))


def print_json(value: object) -> None:
    """JSON on standard output, for `--json`; what a terminal could obey stands as \\uXXXX, which means the same."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    words = jsonlib.dumps(value, indent=2, ensure_ascii=not plain, sort_keys=False)
    print(_UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", words))


def write_anything() -> None:
    """Lets standard output write out what its encoding lacks, in place of failing on it."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # a stream of another kind, or a closed one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


@contextlib.contextmanager
def plain_notices() -> Iterator[None]:
    """Within the block a `Notice` is one line on standard error, each message once; other warnings stay as they are."""
    before, shown = warnings.showwarning, set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, Notice):
            before(visible(str(message), lines=True), category, *place, **options)
        elif (words := " ".join(str(message).split())) not in shown:
            shown.add(words)
            complain(words)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def quiet_libraries() -> None:
    """Keeps transformers' and torch's own bars and notices out of a command's output."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    from transformers.utils import logging as hf

    hf.set_verbosity_error()
    hf.disable_progress_bar()
