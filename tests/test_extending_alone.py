"""A component needs its file and its record, nothing else: the pages' own examples are added to a copy of the repository.

What they show is taken as it stands there. What changes is found by the contents of all files before and after.
"""

import os
import re
import subprocess
import sys

import pytest

from helpers.extending import KINDS, Page, copy_of_the_house
from unwrite.runs import hash_file

pytestmark = pytest.mark.timeout(300)  # seconds of one core, minutes where many share it
SHOWN = {name: Page.of(name) for name in KINDS}
# What holds lists, counts, arrows, language, stubs, documentation, and stored results.
KEPT = """
    tests/test_arrows.py tests/test_catalog.py tests/test_docs_forgetting.py tests/test_docs_reliability.py tests/test_foreign.py
    tests/test_house_language.py tests/test_import.py tests/test_packages.py tests/test_settings.py
    tests/cli/test_cli.py tests/cli/test_listing.py tests/cli/test_outcome.py tests/cli/test_samplers.py
    tests/decode/test_decode_arrows.py tests/diffusion/test_diffusion_arrows.py
    tests/reproduce/test_claims.py tests/reproduce/test_constants.py tests/reproduce/test_freshness.py
    tests/audit/test_protocol.py tests/audit/test_attacks.py tests/forget/test_trainer.py tests/forget/vision/test_sparse.py
"""

MARK = "=== next ==="
ERRANDS = f"""
import sys, pytest
from unwrite.cli import main
from unwrite.cli.samplers import sampler_of
main(["docs"])
print({MARK!r})
main(["methods", "satimp"])
print({MARK!r})
print(sampler_of("entropy-bound(gamma=0.2)+dual", 8).commit, flush=True)
print({MARK!r}, flush=True)
kinds = [f"tests/contracts/test_{{kind}}.py" for kind in ("method", "objective", "part")]
chosen = " or ".join([*sys.argv[1:], "list_of_stale_results"])
quiet = ["-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore"]
sys.exit(pytest.main([*kinds, "tests/reproduce/test_freshness.py", "-k", chosen, *quiet]))
"""


class House:
    """A copy of the repository with some pages' components in it, and commands that run there."""

    def __init__(self, folder, *names):
        self.root = copy_of_the_house(folder)
        self.pages = [SHOWN[name] for name in names]
        self.slugs = [slug for page in self.pages for slug in page.slugs]
        self.before = self.contents()
        for page in self.pages:
            page.add(self.root)

    def run(self, *arguments):
        """Python's output there.

        Raises:
            AssertionError: it failed; with what it said.
        """
        settings = os.environ | {"PYTHONPATH": str(self.root / "src")}
        if "pytest" not in arguments:  # a line of output is a line; what is tested has a terminal's width of its own
            settings["COLUMNS"] = "500"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        return done.stdout

    def contents(self):
        """{file: hash of it}, without what Python compiles."""
        files = (path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(self.root).as_posix(): hash_file(path) for path in files}

    def changed(self):
        """The files that are new or not as they were."""
        return {path for path, content in self.contents().items() if self.before.get(path) != content}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """One with an objective and a part of a sampler, and what was said there: all of it in one process, which imports torch once."""
    house = House(tmp_path_factory.mktemp("house"), "objective", "part")
    house.said = house.run("-c", ERRANDS, *house.slugs).split(MARK)
    return house


@pytest.fixture(scope="module")
def full_house(tmp_path_factory):
    """One with a component of every page."""
    return House(tmp_path_factory.mktemp("full"), *KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_component_is_at_most_sixty_lines_of_file_and_record(name):
    page = SHOWN[name]
    assert page.lines <= 60
    assert page.entries
    assert page.catalogue.removeprefix("src/unwrite/catalog/").removesuffix(".toml") == page.module.split(".")[1]


def check_changes(house, written):
    """Files and records, and of what is generated exactly what names the new ones."""
    own = {page.file for page in house.pages} | {page.catalogue for page in house.pages}
    assert own <= house.changed()
    assert house.changed() - own == set(written.removeprefix("written: ").strip().split(", "))
    for page in house.pages:
        stub = house.root / "src" / "unwrite" / page.module.split(".")[1] / "__init__.pyi"
        assert all(f" {entry} as {entry}" in stub.read_text(encoding="utf-8") for entry in page.entries)


def test_nothing_changes_but_file_record_and_what_is_generated(house):
    check_changes(house, house.said[0])
    assert house.changed() == {
        *("src/unwrite/forget/satimp.py", "src/unwrite/diffusion/parts/entropy_bound.py"),
        *("src/unwrite/catalog/forget.toml", "src/unwrite/catalog/diffusion.toml"),
        *("docs/choose.md", "docs/diffusion.md", "src/unwrite/__init__.pyi"),
        *("src/unwrite/forget/__init__.pyi", "src/unwrite/diffusion/__init__.pyi"),
    }


def test_the_command_line_knows_an_objective_and_a_part(house):
    _, method, part, _ = house.said
    assert all(word in method for word in ("--beta1", "--beta2", "--retain-loss", "arXiv 2505.11953"))
    assert part.strip() == "EntropyBound(gamma=0.2)"


def test_an_objective_and_a_part_keep_their_contracts_and_no_result_becomes_stale(house):
    """Their processes would have failed; this sees that tests of both ran."""
    tests = house.said[3]
    assert int(re.search(r"^(\d+) passed", tests, re.M)[1]) >= 25


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_of_the_house_is_stale_with_a_component_of_every_page(full_house):
    check_changes(full_house, full_house.run("-m", "unwrite.cli", "docs"))
    quiet = ("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider")
    full_house.run(*quiet, "tests/contracts", "-k", " or ".join(full_house.slugs))
    full_house.run(*quiet, *KEPT.split(), "-m", "not slow and not net and not gpu")
    for tool in (("ruff", "check", "src"), ("ruff", "format", "--check", "src"), ("mypy",)):
        full_house.run("-m", *tool)
    full_house.run("-c", "from importlinter.cli import lint_imports_command as lint; lint()")
