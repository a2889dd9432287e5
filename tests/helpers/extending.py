"""What the pages on extending show: the file of a component, its records, its use, and a copy of the house with them in it."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "extending"
KINDS = ("objective", "edit", "guard", "image-method", "strategy", "part", "metric", "attack")
BLOCK = re.compile(r"^```(python|toml)\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"`(src/unwrite/[a-z_/]+\.py)`:")
CATALOGUE = re.compile(r"`(src/unwrite/catalog/[a-z]+\.toml)`")


@dataclass(frozen=True)
class Page:
    """One page, read as a stranger reads it.

    Args:
        name: its file's name without the ending.
        file, code: where the component goes, and what stands there.
        catalogue, records: the same of its records.
        use: how it is used in Python.
    """

    name: str
    file: str
    code: str
    catalogue: str
    records: tuple[str, ...]
    use: str

    @classmethod
    def of(cls, name: str) -> "Page":
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        found = BLOCK.findall(text)
        code, use = (block for language, block in found if language == "python")
        records = tuple(block for language, block in found if language == "toml")
        return cls(name, FILE.search(text)[1], code, CATALOGUE.search(text)[1], records, use)

    @property
    def module(self) -> str:
        """The module that the file is."""
        return self.file.removeprefix("src/").removesuffix(".py").replace("/", ".")

    @property
    def entries(self) -> list[str]:
        """The names that the records give it."""
        return re.findall(rf'^entry = "{self.module}:(\w+)"', "\n".join(self.records), re.M)

    @property
    def slugs(self) -> list[str]:
        """What its records are called."""
        return re.findall(r'^slug = "(.+)"', "\n".join(self.records), re.M)

    @property
    def lines(self) -> int:
        """Lines of the file and the records, without empty ones."""
        return sum(bool(line.strip()) for line in "\n".join((self.code, *self.records)).splitlines())

    def add(self, root: Path) -> None:
        """Does what the page says, in the repository at `root`: a new file, and lines in the catalogue."""
        target = root / self.file
        assert not target.exists()
        target.write_text(self.code, encoding="utf-8")
        catalogue = root / self.catalogue
        text = catalogue.read_text(encoding="utf-8")
        for record in self.records:
            head, _, rest = record.partition("\n")
            if head.startswith("[["):
                text += f"\n{record}"
            else:  # a table that is there once
                assert text.count(f"\n{head}\n") == 1
                text = text.replace(f"\n{head}\n", f"\n{head}\n{rest}")
        catalogue.write_text(text, encoding="utf-8")


def copy_of_the_house(folder: Path) -> Path:
    """The repository without its history; what Python compiled is as good there as here."""
    left_out = shutil.ignore_patterns(".*cache*")
    for name in ("src", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    return folder
