"""unwrite data: which sets of real pictures can be fetched, and fetch one."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from ..errors import renamed
from .listing import plain_table
from .output import console, print_json

app = App(name="data", help="Real pictures for beds: list what can be fetched, fetch it.")


@app.default
def list_data(*, json: bool = False) -> None:
    """List the data sets that can be fetched, and whether they are here.

    Args:
        json: print JSON instead of a table.
    """
    from ..data.images.fetched import FETCHED
    from ..runs import fetched_dir

    here = {name: (fetched_dir("data") / name).is_dir() for name in FETCHED}
    if json:
        print_json(
            [
                {"name": name, "package": one.package, "about": one.about, "licence": one.licence, "here": here[name]}
                for name, one in FETCHED.items()
            ]
        )
        return
    rows = [[name, "here" if here[name] else "not here", one.licence, one.about] for name, one in FETCHED.items()]
    console().print(plain_table(["data", "", "licence", "what it is"], rows))


@app.command
def add(name: str, *, source: Annotated[str | None, Parameter(name="--from")] = None) -> None:
    """Fetch a data set: apt downloads Debian's package of it, without root.

    Args:
        name: the data set: fashion-mnist or emoji.
        source: a folder of its files, or its .deb file, to take it from instead.
    """
    from ..data.images.fetched import add_data

    with renamed(source="from"):
        folder = add_data(name, source)
    console().print(f"{name} is ready in {folder}", soft_wrap=True)
