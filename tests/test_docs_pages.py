"""The pages of the documentation: their Markdown shows on the site what it says."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def plain(page):
    """Lines of a page that are no code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return text.splitlines()


def anchors(page):
    """Ids of a page's headings, as the site makes them."""
    titles = [re.sub(r"[`*]|\]\(.*?\)|\[", "", line.lstrip("# ")) for line in plain(page) if re.match("#+ ", line)]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


EVERY = sorted(DOCS.rglob("*.md"))
named = pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(DOCS).with_suffix("")))


@named
def test_headings_begin_with_one_title_and_skip_no_level(page):
    levels = [len(line.split(" ")[0]) for line in plain(page) if re.match("#+ ", line)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@named
def test_every_anchor_is_a_heading_and_every_picture_says_what_it_shows(page):
    text = "\n".join(plain(page))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text):
        assert anchor in anchors(page.parent / target if target else page), anchor
    assert all(re.findall(r"!\[(.*?)\]\(", text))


@named
def test_a_list_stands_behind_a_blank_line(page):
    """Without one the site runs its points into the paragraph above."""
    for block in re.split(r"\n\s*\n", "\n".join(plain(page))):
        first, *others = block.strip("\n").splitlines() or [""]
        point = re.compile(r"\s*([-*]|\d+\.) ")
        assert point.match(first) or not any(map(point.match, others)), block


@named
def test_a_table_has_a_heading_a_column_and_no_escape_in_code(page):
    """The site shows the backslash of a bar that is escaped in code."""
    rows = [line for line in plain(page) if line.startswith("|")]
    assert not [row for row in rows if re.search(r"`[^`|]*\\\|[^`|]*`", row)]
    heads = [row for row, rule in pairwise(rows) if re.fullmatch(r"[|\-\s:]+", rule)]
    assert all(cell.strip() for head in heads for cell in head.strip("|").split("|")), heads


def test_every_page_is_in_the_navigation_or_linked_from_one_that_is():
    navigation = set(re.findall(r": (\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    index = (DOCS / "systems" / "index.md").read_text(encoding="utf-8")
    linked = {f"systems/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", index)}
    assert {str(page.relative_to(DOCS)) for page in EVERY} == navigation | linked
