"""unwrite reproduce: measure a paper's claim again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..runs import progress
from .inputs import need_number
from .output import console, label, print_json, quiet_libraries

WORDS = {True: ("holds", "green"), False: ("fails", "red"), None: ("open ", "yellow")}


def reproduce(
    slug: str,
    *,
    budget: Literal["tiny", "small", "medium", "full"] = "small",
    seeds: int = 3,
    out: Path | None = None,
    overwrite: bool = False,
    dry: bool = False,
    json: bool = False,
) -> None:
    """Run a system's smallest honest experiment, print what came out, and store it.

    Args:
        slug: the system (unwrite systems).
        budget: tiny (seconds), small (minutes), medium (hours), full (GPU).
        seeds: how many seeds.
        out: a folder: store the JSON there instead of in the package's results.
        overwrite: replace what is stored in OUT already.
        dry: don't store anything.
        json: print JSON.
    """
    from ..beds.budget import Budget
    from ..reproduce.base import run, store, table
    from ..runs import need_free

    need_number("--seeds", seeds, at_least=1)
    quiet_libraries()
    if out is not None and not dry:
        need_free(out / f"{slug}.json", overwrite=overwrite)
    with progress(None, f"measuring {slug}"):
        claim, record = run(slug, Budget(budget, tuple(range(seeds))))
    if not dry and (budget != "tiny" or out is not None):
        store(record, out)
    if json:
        print_json(record)
        return
    console().print(label("claim", then=f"    {claim.claim}"))
    console().print(table(claim))
    for check in claim.checks:
        word, colour = WORDS[check.holds]
        figures = f": {check.figures}" if check.figures else ""
        console().print(label(word, colour, f"    {check.kind}: {check.text}{figures}"))
    console().print(label("here", then=f"     {claim.headline}"))
    console().print(label("verdict", then=f"  {claim.verdict}: {claim.reason}  ({record['seconds']} s)"))
