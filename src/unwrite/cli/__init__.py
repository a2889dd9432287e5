"""The command line: thin files, one a command, imported only when their command runs."""

from __future__ import annotations

import os
import sys

# Before torch is imported: idle worker threads sleep instead of spinning against other programs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

COMMANDS = {
    "forget": "forget:forget",
    "audit": "audit:audit",
    "chat": "chat:chat",
    "demo": "demo:demo",
    "systems": "listing:systems",
    "methods": "listing:methods",
    "models": "models:app",
    "reproduce": "reproduce:reproduce",
    "bench": "bench:bench",
    "doctor": "doctor:doctor",
    "docs": "docs:docs",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; a refusal is one line on standard error and exit code 2."""
    from cyclopts import App

    from .. import __version__
    from ..errors import UnwriteError

    app = App(
        name="unwrite",
        version=__version__,
        help="Take knowledge out of a trained model, prove that it is gone, and let what remains write fast.",
        result_action="return_value",
    )
    for name, home in COMMANDS.items():
        app.command(f"unwrite.cli.{home}", name=name)
    try:
        app(arguments)
    except UnwriteError as error:
        print(f"unwrite: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A full disk, a folder without permission: the system's own words name the file.
        print(f"unwrite: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("unwrite: stopped.", file=sys.stderr)
        sys.exit(130)
