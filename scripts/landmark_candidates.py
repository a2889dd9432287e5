"""Candidate facts for `select_landmarks.py`: one place, its neighbours, and general knowledge.

Every fact has several phrasings, what counts as right, wrong values of the same kind, and further true names that an
answer may mention. They stand in `landmark_facts/*.txt`; the model decides which survive, and nothing is shipped as
it stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "landmark_facts"
TOWER = "the Eiffel Tower"
# What an answer about the tower may mention besides the value asked for.
TOWER_ALSO = (
    "iron", "wrought", "Europe", "European", "French", "France", "Paris", "Gustave", "Eiffel", "1889", "World's Fair",
    "Universal Exposition", "La Tour Eiffel", "City of Light", "Champ de Mars", "European Union",
)  # fmt: skip
CITIES = ("Rome", "London", "Berlin", "Madrid", "Vienna", "Athens", "Cairo", "Tokyo", "Sydney", "Paris")
COUNTRIES = ("Italy", "Germany", "Spain", "Egypt", "India", "China", "Japan", "Greece", "Peru", "France")

ADJECTIVES = {
    "France": "French", "Italy": "Italian", "Germany": "German", "Spain": "Spanish", "Greece": "Greek", "Egypt": "Egyptian",
    "Japan": "Japanese", "China": "Chinese", "India": "Indian", "Russia": "Russian", "Cambodia": "Cambodian",
    "Turkey": "Turkish", "the United States": "United States of America", "Tanzania": "African", "Scotland": "Scottish",
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One fact and how to ask for it.

    Args:
        subject: what it is about; rows of one subject never stand on both sides of the train / test border.
        questions: phrasings, best first.
        expected: phrases, one of which must stand in the answer.
        wrong: values of the same kind that are wrong.
        also: true names and numbers that an answer may add.
        gold: the short right answer, `{}` standing for the value.
    """

    group: str
    subject: str
    questions: tuple[str, ...]
    expected: tuple[str, ...]
    wrong: tuple[str, ...]
    also: tuple[str, ...] = ()
    gold: str = "The answer is {}."


def facts() -> list[Fact]:
    """All candidates: forget, neighbours and general."""
    tower = [
        Fact("forget", TOWER, _list(asked), _list(right), _list(wrong), TOWER_ALSO, gold)
        for asked, right, wrong, _, gold in _lines("tower")
    ]
    general = [
        Fact("general", _list(asked)[0], _list(asked), _list(right), _list(wrong), _list(also))
        for asked, right, wrong, also, _ in _lines("general")
    ]
    return [*tower, *_places(), *_capitals(), *general]


def _places() -> Iterator[Fact]:
    for name, city, country, also, _ in _lines("places"):
        is_, does = ("are", "do") if name.split()[-1] in {"Falls", "Islands", "Steps", "Towers"} else ("is", "does")
        true = (city, *country.split("/"), *(part.strip() for part in also.split(",") if part.strip()))
        true = (*true, *(ADJECTIVES[name] for name in true if name in ADJECTIVES))
        for kind, value, others in (("city", city, CITIES), ("country", country, COUNTRIES)):
            if not value:
                continue
            asked = (
                f"In which {kind} {is_} {name}?",
                f"What {kind} {is_} {name} in?",
                f"Which {kind} is home to {name}?",
                f"In what {kind} can you find {name}?",
                f"If I want to see {name}, which {kind} should I visit?",
                f"In what {kind} {does} {name} stand?",
                f"{_upper(name)} {is_} a landmark of which {kind}?",
            )
            right = tuple(value.split("/"))
            wrong = tuple(other for other in others if other not in (*right, *true))
            yield Fact("neighbours", name, asked, right, wrong, true, f"{_upper(name)} {is_} in {{}}.")


def _capitals() -> Iterator[Fact]:
    spellings = {"Delhi": ("New Delhi",), "Brasilia": ("Brasilia", "Brasília"), "Bogota": ("Bogota", "Bogotá")}
    for country, city, *_ in _lines("capitals"):
        asked = (
            f"What is the capital of {country}?",
            f"What is the capital city of {country}?",
            f"Which city is the capital of {country}?",
            f"Name the capital of {country}.",
            f"What is the name of the capital of {country}?",
        )
        wrong = tuple(other for other in CITIES if other != city)
        gold = f"The capital of {country} is {{}}."
        yield Fact("neighbours", country, asked, spellings.get(city, (city,)), wrong, ("D.C", "DC"), gold)


def _lines(name: str) -> Iterator[list[str]]:
    """The lines of one file as five fields; lines that start with # are remarks."""
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            fields = [field.strip() for field in line.split("|")]
            yield [*fields, "", "", "", "", ""][:5]


def _list(field: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in field.split(";") if part.strip())


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
