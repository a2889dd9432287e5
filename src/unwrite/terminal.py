"""What a terminal is sent: text as it reads, and never a command that came with a name, a row or a model's answer.

A path, a column, an answer may hold an escape sequence that moves the cursor, sets the title or makes a link, and signs that
turn the direction of reading. `visible` writes them out; every line that unwrite prints goes through it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["one_line", "text", "visible"]

# Control signs (C0, DEL, C1), separators of lines and paragraphs, embeddings, overrides and isolates of the reading direction,
# and halves of characters, which no encoding can write.
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAK = re.compile("[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029][ \t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*")


def visible(words: str, *, lines: bool = False) -> str:
    r"""The text with every control sign written out.

    Args:
        lines: line ends (\n and \r\n) and tabs stay as they are. A \r alone would let a text write over itself.

    >>> visible("a\x1b[2Jb\n"), visible("a\x1b[2Jb\n", lines=True)
    ('a\\x1b[2Jb\\x0a', 'a\\x1b[2Jb\n')
    """

    def written(match: re.Match[str]) -> str:
        sign = match[0]
        if lines and (sign in "\n\t" or (sign == "\r" and words[match.end() : match.end() + 1] == "\n")):
            return sign
        return f"\\x{ord(sign):02x}" if ord(sign) < 0x100 else f"\\u{ord(sign):04x}"

    return _HIDDEN.sub(written, words)


def one_line(words: object) -> str:
    r"""What is said, on one line: breaks become a space, other control signs are written out.

    >>> one_line("cut\n  short\x07")
    'cut short\\x07'
    """
    return visible(_BREAK.sub(" ", str(words)).strip())


def text(words: object, style: str = "") -> Text:
    """A cell or title of a table whose words are never read as markup, whichever console prints it."""
    from rich.text import Text

    return Text(visible(str(words)), style=style)
