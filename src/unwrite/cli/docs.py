"""unwrite docs: writes what comes from the catalogue and the results: tables, pictures and pages in README.md and docs/, the packages' stubs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..catalog.packages import stubs
from ..errors import RunError
from ..runs import write_text
from .output import console
from .pages.pictures import PICTURES
from .pages.systems import PAGES
from .pages.tables import fill


def docs(*, root: Path = Path(), check: bool = False) -> None:
    """Write the generated tables, pictures, pages and stubs.

    Args:
        root: the repository.
        check: only check that they are up to date.
    """
    readme = root / "README.md"
    if not (readme.is_file() and "<!-- table: " in readme.read_text(encoding="utf-8")):
        raise RunError(f"{readme} has no table to fill in. Pass the folder of the repository as --root.")
    texts = dict(_generated(root))
    stale = [path for path, text in texts.items() if not (path.exists() and path.read_text(encoding="utf-8") == text)]
    names = ", ".join(map(str, stale))
    if check and stale:
        raise RunError(f"out of date: {names}. Run: unwrite docs")
    for path in stale:
        write_text(path, texts[path])
    console().print(f"written: {names}" if stale else "up to date")


def _generated(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file with generated text, as it should be."""
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if "<!-- table: " in text:
            yield path, fill(text)
    for name, write in PAGES.items():
        yield root / "docs" / name, write()
    for name, draw in PICTURES.items():
        if (svg := draw()) is not None:
            yield root / "docs" / name, svg
    if (root / "src").is_dir():
        yield from stubs(root / "src").items()
