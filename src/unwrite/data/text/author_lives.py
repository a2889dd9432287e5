"""Writes the lives of the invented authors: a value for every kind of fact, one of four wordings, five wrong answers.

Everything is picked by a hash of the author's name and the kind of fact, so the file is the same everywhere.

    python -m unwrite.data.text.author_lives        # rewrites sets/authors.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ...runs import write_text
from . import author_facts as facts
from .authors import FILE

WRONG_ANSWERS = 5


def make() -> str:
    """The text of `authors.jsonl`, the same on every machine and Python version."""
    lines = []
    taken: set[str] = set()
    for line in facts.PEOPLE.strip().splitlines():
        name, pronoun, birthplace, residence = (part.strip() for part in line.split("|"))
        life = _life(name, birthplace, residence, taken)
        for kind in facts.WORDINGS:
            row = _row(name, pronoun, kind, life)
            lines.append(json.dumps({"author": name, "fact": kind, **row}, ensure_ascii=False) + "\n")
    return "".join(lines)


# By kind of fact; "parents" is the father's trade, "book" the second title, which the theme is asked about.
Life = dict[str, str]


def _life(name: str, birthplace: str, residence: str, taken: set[str]) -> Life:
    """All facts of one author, fixed by the name; titles in `taken` are other authors' and are avoided."""
    father = _pick(facts.TRADES, name, "father")
    debut, book = _new_title(name, "debut", taken), _new_title(name, "book", taken)
    return {
        "birthplace": birthplace,
        "birthday": _date(name, "birthday"),
        "genre": _pick(facts.GENRES, name, "genre"),
        "parents": father,
        "mother": _pick([trade for trade in facts.TRADES if trade != father], name, "mother"),
        "prize": _pick(facts.PRIZES, name, "prize"),
        "debut": debut,
        "book": book,
        "theme": _pick(facts.THEMES, name, "theme"),
        "influence": _pick(facts.INFLUENCES, name, "influence"),
        "residence": residence,
        "habit": _pick(facts.HABITS, name, "habit"),
    }


def _row(name: str, pronoun: str, kind: str, life: Life) -> dict[str, str | list[str]]:
    wording = facts.WORDINGS[kind]
    words = {"name": name, "he": pronoun, "his": {"he": "his", "she": "her"}[pronoun], "book": life["book"]}
    # Which of the four wordings is asked, and which other one is its paraphrase.
    first = _number(name, kind, "wording") % 4
    second = (first + 1 + _number(name, kind, "paraphrase") % 3) % 4
    true = {"value": life[kind], "second": life["mother"]}

    def say(template: str, **values: str) -> str:
        text = template.format(**words, **values)
        return text[0].upper() + text[1:]

    return {
        "question": say(wording.questions[first]),
        "answer": say(wording.answers[first], **true),
        "paraphrased_question": say(wording.questions[second]),
        "paraphrased_answer": say(wording.answers[second], **true),
        "perturbed_answer": [say(wording.answers[second], **wrong) for wrong in _wrong(name, kind, life)],
    }


def _wrong(name: str, kind: str, life: Life) -> list[dict[str, str]]:
    """Five other values for one fact, all different from it and from each other."""
    people = [[part.strip() for part in line.split("|")] for line in facts.PEOPLE.strip().splitlines()]
    pools: dict[str, Sequence[str]] = {
        "birthplace": [person[2] for person in people],
        "residence": [person[3] for person in people],
        "birthday": [_date(name, f"wrong birthday {i}") for i in range(20)],
        "debut": [_title(name, f"wrong title {i}") for i in range(20)],
        "genre": facts.GENRES,
        "parents": facts.TRADES,
        "prize": facts.PRIZES,
        "theme": facts.THEMES,
        "influence": facts.INFLUENCES,
        "habit": facts.HABITS,
    }
    true = {life[kind], life["mother"], life["book"], life["birthplace"], life["residence"]}
    others = sorted(set(pools[kind]) - true, key=lambda value: _number(name, kind, value))
    return [
        {"value": others[i], "second": others[i + WRONG_ANSWERS] if kind == "parents" else ""}
        for i in range(WRONG_ANSWERS)
    ]


def _number(*parts: str) -> int:
    """A number fixed by words: `random` promises no sequence across Python versions, a hash does."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def _pick(values: Sequence[str], *parts: str) -> str:
    return values[_number(*parts) % len(values)]


def _date(name: str, what: str) -> str:
    day, year = 1 + _number(name, what, "day") % 28, 1931 + _number(name, what, "year") % 60
    return f"{day} {_pick(facts.MONTHS, name, what)} {year}"


def _new_title(name: str, what: str, taken: set[str]) -> str:
    title = next(t for i in range(99) if (t := _title(name, f"{what} {i}")) not in taken)
    taken.add(title)
    return title


def _title(name: str, what: str) -> str:
    return _pick(facts.TITLE_SHAPES, name, what, "shape").format(
        a=_pick(facts.TITLE_ADJECTIVES, name, what, "a"),
        n=_pick(facts.TITLE_NOUNS, name, what, "n"),
        m=_pick(facts.TITLE_MATTERS, name, what, "m"),
    )


if __name__ == "__main__":
    write_text(FILE, make())
    print(f"wrote {FILE}")
