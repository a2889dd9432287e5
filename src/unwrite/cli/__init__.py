"""The command line: thin files, one a command, imported only when their command runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

# Before torch is imported: idle worker threads sleep after about 0.1 ms, instead of spinning against other programs for long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

OFFLINE = "--offline"  # of every command

# name: (where it is, one line of help), so that --help imports none of them
COMMANDS = {
    "demo": ("demo:demo", "A real model forgets a landmark and is audited, in a few minutes."),
    "forget": ("forget:forget", "Make a model forget, save it, and audit it."),
    "audit": ("audit:audit", "Measure forgetting, utility and leakage."),
    "chat": ("chat:chat", "Ask the model before and after the same question."),
    "generate": ("generate:generate", "Write text by any decoding strategy, and say what it took."),
    "methods": ("listing:methods", "The forgetting methods: what each intends, needs, guarantees and costs."),
    "systems": ("listing:systems", "All systems: family, status, and the verdict measured here."),
    "shield": (
        "shield:app",
        "Protect pictures against training: list the ways, write a protected copy of a folder, attack one.",
    ),
    "compress": ("compress:compress", "Make an image classifier smaller without data: fewer channels, fewer bits."),
    "models": ("models:app", "Bundled models: list them, add their package."),
    "data": ("data:app", "Real pictures for beds: list what can be fetched, fetch it."),
    "reproduce": ("reproduce:reproduce", "Measure a paper's claim again."),
    "sweep": ("sweep:sweep", "Methods that forget images, on beds over seeds, in one table."),
    "bench": ("bench:app", "Speed, as ratios against a named peer."),
    "doctor": ("doctor:doctor", "What is installed, what is missing, and for what."),
    "docs": ("docs:docs", "Write the generated tables into README and docs."),
}


def commands() -> App:
    """The command line, as an App of cyclopts."""
    from cyclopts import App

    from .. import __version__

    app = App(
        name="unwrite",
        version=__version__,
        help="Take knowledge out of a trained model, prove that it is gone, and let what remains write fast.\n\n"
        "With --offline, anywhere in the line, no command fetches anything.",
        result_action="return_value",
    )
    for name, (home, line) in COMMANDS.items():
        app.command(f"unwrite.cli.{home}", name=name, help=line)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; a refusal is one line on standard error and exit code 2."""
    from ..errors import UnwriteError, naming
    from ..runs import unwritable
    from .output import complain, plain_notices, progress_console, show_traceback, write_anything

    app = commands()
    app.error_console = progress_console()
    write_anything()
    if arguments is None:  # a process of our own
        sys.excepthook = show_traceback
    try:
        words = sys.argv[1:] if arguments is None else arguments
        with plain_notices(), naming("flags"), _offline_if_said(words) as rest:
            _need_utf8(rest)
            app(rest)
            _show_fields(rest)
    except UnwriteError as error:
        complain(error)
        sys.exit(2)
    except KeyboardInterrupt:
        complain("stopped.")
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, OSError) and not unwritable(error):
            raise
        # A full disk, a folder without permission: the system's own words name the file.
        complain(error)
        sys.exit(2)


@contextlib.contextmanager
def _offline_if_said(arguments: list[str]) -> Iterator[list[str]]:
    """The arguments without --offline; inside, for this process and those it starts, nothing may be fetched if it was there."""
    if OFFLINE not in arguments:
        yield arguments
        return
    from ..hub import SWITCH, closed

    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        with closed():
            yield [word for word in arguments if word != OFFLINE]
    finally:
        os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})


def _show_fields(arguments: list[str]) -> None:
    """Behind the help of `unwrite forget --method npo`, the method's own flags."""
    if arguments[:1] != ["forget"] or not {"--help", "-h"} & set(arguments):
        return
    from ..catalog import method
    from .describe import field_table
    from .fields import holds_method
    from .output import console

    words = [part for argument in arguments for part in argument.split("=", 1)]
    named = [after for before, after in itertools.pairwise(words) if before == "--method"]
    for slug in named:
        cls = method(slug).load()
        console().print(f"Flags of {slug}:")
        console().print(field_table(cls))
        if holds_method(cls):
            inside = type(cls().chosen)
            console().print(f"Flags of the method in it, {inside.__name__} unless --inner names another:")
            console().print(field_table(inside))


def _need_utf8(arguments: list[str]) -> None:
    """Refuses names that no record of a run can hold: half characters, as Python has bytes that are no UTF-8."""
    from ..errors import UnwriteError

    with contextlib.suppress(FileNotFoundError):  # a working folder that was removed matters to who uses it
        arguments = [*arguments, os.getcwd()]
    for name in arguments:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UnwriteError(f"{name} is no UTF-8 text. Rename it, or use a link of another name.") from None
