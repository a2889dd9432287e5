"""Words as they are compared rather than as they are spelt: one form for casing, accents, hidden characters, look-alikes and numerals.

"VII", "seven", "7th" and "٧" are all "7"; "Ｇhеnt" with a full-width G and a Cyrillic e is "ghent". Two texts share a word
where these forms are equal, whoever wrote them and however.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from .rouge import UNSPACED

if TYPE_CHECKING:
    from regex import Pattern

# Cyrillic and Greek letters that are drawn as Latin ones.
_LOOK_ALIKES = str.maketrans(
    "авеікмнорстухѕјԁһԛԝαικνορτυχϲ",
    "abeikmhopctyxsjdhqwaikvoptuxc",
)
_SEPARATORS = str.maketrans("", "", ",.'’\u00a0\u202f")
_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_ORDINALS = [
    "zeroth",
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = {
    **{word: i for i, word in enumerate(_UNITS)},
    **{word: i for i, word in enumerate(_ORDINALS)},
    **{word: 10 * i for i, word in enumerate(_TENS, start=2)},
    **{f"{word[:-1]}ieth": 10 * i for i, word in enumerate(_TENS, start=2)},
}
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
PART = 4  # letters from which a word within a longer one counts as said


class Word(NamedTuple):
    """A word of a text in the form it is compared in, and where it stands: text[start:end]."""

    form: str
    start: int
    end: int


@lru_cache(maxsize=1)
def _pattern() -> Pattern[str]:
    import regex

    unspaced = "".join(rf"\p{{Script={name}}}" for name in UNSPACED)
    number = r"\p{Nd}{1,3}(?:[,.'’\u00a0\u202f]\p{Nd}{3})+(?!\p{Nd})"  # 1,949
    # A hidden character within a word does not end it.
    return regex.compile(
        rf"{number}|[{unspaced}][\p{{M}}\p{{Cf}}]*|(?:(?![{unspaced}])[\p{{L}}\p{{N}}][\p{{M}}\p{{Cf}}]*)+"
    )


@lru_cache(maxsize=1)
def _roman() -> Pattern[str]:
    import regex

    return regex.compile(r"(?=[ivxlcdm]{2,})m{0,3}(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})")


@lru_cache(maxsize=65536)
def folded(word: str) -> str:
    """One word in the form it is compared in; empty where nothing of it is visible."""
    plain = "".join(
        str(unicodedata.decimal(one)) if one.isdecimal() else one
        for one in unicodedata.normalize("NFKD", word)
        if unicodedata.category(one) not in ("Mn", "Cf")
    )
    roman = plain.isupper()
    plain = unicodedata.normalize("NFKC", plain.casefold()).translate(_LOOK_ALIKES).replace("ı", "i")
    if plain[:1].isdigit():
        digits = plain.translate(_SEPARATORS)
        for ordinal in ("st", "nd", "rd", "th"):
            digits = digits.removesuffix(ordinal)
        return digits.lstrip("0") or "0" if digits.isdigit() else digits
    if plain in _NUMBERS:
        return str(_NUMBERS[plain])
    if roman and _roman().fullmatch(plain):
        values = [_ROMAN[one] for one in plain]
        return str(sum(-v if v < max(values[i:], default=0) else v for i, v in enumerate(values)))
    return plain


def words_of(text: str) -> list[Word]:
    """The words of a text in order; a tens and a unit behind it are one number ("twenty-one")."""
    words: list[Word] = []
    for match in _pattern().finditer(text):
        form = folded(match[0])
        if not form:
            continue
        before = words[-1] if words else None
        if before and _joins(text[before.start : before.end], form, text[before.end : match.start()]):
            words[-1] = Word(str(int(before.form) + int(form)), before.start, match.end())
        else:
            words.append(Word(form, match.start(), match.end()))
    return words


def _joins(tens: str, unit: str, between: str) -> bool:
    return tens.casefold() in _TENS and unit in "123456789" and len(unit) == 1 and between in ("-", " ", "\u2011")


def forms_of(texts: Iterable[str]) -> set[str]:
    """All words of some texts, as they are compared."""
    return {word.form for text in texts for word in words_of(text)}


def says(form: str, hidden: Iterable[str]) -> bool:
    """Whether a word is one of those hidden, or holds one of `PART` letters or more, as "Ghentish" does "Ghent"."""
    return any(form == one or (len(one) >= PART and one in form) for one in hidden)


def without(text: str, hidden: set[str]) -> str:
    """A text without the words that say one of those hidden; blanks in a row become one."""
    pieces: list[str] = []
    done = 0
    for word in words_of(text):
        if says(word.form, hidden):
            pieces.append(text[done : word.start])
            done = word.end
    return " ".join("".join([*pieces, text[done:]]).split())


def grams(forms: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words, in order."""
    return (tuple(forms[i : i + n]) for i in range(len(forms) - n + 1))
