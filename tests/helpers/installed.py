"""Small packages that add members to unwrite, installed by hand: a module and its dist-info in a folder on sys.path, no pip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

METHOD = '''
    """Forgets by whispering."""
    from dataclasses import dataclass
    from unwrite.forget import Loss, Objective, PerToken


    @dataclass(frozen=True, kw_only=True)
    class Whisper(Objective):
        """Gradient ascent, softly.

        Args:
            softness: factor of the loss.
        """

        softness: float = 0.5

        def loss(self, batch):
            return Loss(forget=PerToken(-self.softness * batch["forget"].token_nll, "forget"))
'''
STRATEGY = '''
    from dataclasses import dataclass
    from unwrite.decode import Drafter, DraftTree, Strategy


    class Repeat(Drafter):
        def propose(self, committed, budget):
            return DraftTree.of([int(committed[-1])] * 3, [-1, 0, 1])


    @dataclass(frozen=True, kw_only=True)
    class Echo(Strategy):
        """Drafts the last token again, twice."""

        record = {"exact": "identical"}

        def drafter(self, runtime, sampling):
            return Repeat()
'''
PART = '''
    from dataclasses import dataclass
    from unwrite.diffusion import Commit, CommitRule
    from unwrite.diffusion.base import ranked


    @dataclass(frozen=True)
    class Pairs(CommitRule):
        """The surest few."""

        count: int = 2

        def commit(self, step):
            return Commit(ranked(step, step.start * 0 + self.count))
'''
RECORD = """
    [[method]]
    slug = "whisper"
    title = "Whispering"
    paper = "none"
    year = 2026
    kind = "objective"
    intent = "removal"
    needs = ["forget set", "gradient access"]
    guarantee = "none"
    cost = "1 pass a step"
"""
POINTS = {
    "unwrite.methods": {"whisper": "whispering.method:Whisper"},
    "unwrite.strategies": {"echo": "whispering.strategy:Echo"},
    "unwrite.parts": {"pairs": "whispering.part:Pairs"},
}


def install(
    site: Path,
    name: str,
    files: Mapping[str, str],
    points: Mapping[str, Mapping[str, str]],
    module: str = "",
    version: str = "1.0",
) -> Path:
    """A package in the folder `site`, as an installer would leave it.

    Args:
        name: of the distribution.
        files: {file in the package: its text}.
        points: {group: {name: "module:object"}}.
        module: the package's name in Python; the distribution's unless given.
        version: of the distribution.
    """
    package = site / (module or name)
    package.mkdir(parents=True)
    for file, text in {"__init__.py": "", **files}.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(dedent(text), encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return package


def whispering(site: Path) -> Path:
    """A package with a method, a strategy and a part."""
    files = {"method.py": METHOD, "strategy.py": STRATEGY, "part.py": PART, "unwrite.toml": RECORD}
    return install(site, "unwrite-whispering", files, POINTS, "whispering")
