"""Damage to files, drawn from a seed: bytes changed blindly, and changes that know what a file is made of.

Blind changes find what a reader does with a broken disk or a cut download; most end at its first check. Changes that keep the
grammar (another type in a JSON value, a name twice, another shape in a safetensors header) get past it.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

EDGES = [0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [b"", b"\0", b"\n", b"\r\n", b'"', b",", b"{", b"]", b"\xff\xfe", b"\xed\xa0\x80", b"NaN", b"-", b"\x1b[2J"]
SCALARS = [
    "null", "true", "false", "0", "1", "-1", "0.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "-0.0",
    str(2**31), str(2**40), str(2**63), str(2**64), "9" * 400, "9" * 5000, "1." + "0" * 400, '""', '" "', '"\\u200b"',
    '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u001b[31m"', '"none"', '"1"', '"../../x"', '"[a/b]"', "[]", "{}",
    "[[]]", "[null]", "[{}]", '{"a":1}', '[1,"a"]', '{"a":1,"a":2}', "[0,0]", '"(a+)+$"',
]  # fmt: skip
# Costly ones: drawn less often, since most are refused for the same reason.
LARGE = [
    '"' + "x" * 100_000 + '"',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "[" + "0," * 20_000 + "0]",
]


class Raw(str):
    """A piece of JSON that is written as it stands."""


class Pairs(list):
    """An object as its (name, value) pairs, so that a name may stand twice."""


def mutated(name: str, data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file after one to three changes, by its name's ending."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        own = GRAMMARS.get(PurePath(name).suffix)
        try:
            data = own(data, rng) if own is not None and rng.random() < 0.7 else blind(data, rng)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            struct.error,
            RecursionError,
        ):  # no longer of its grammar
            data = blind(data, rng)
    return data


def blind(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, a stretch cut, zeroed or doubled, bytes put in, a number put to an edge, or cut off."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 2, 8, 64, 512]))
    kind = rng.randrange(8)
    if kind == 0:
        return data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        return data[:start] + bytes(end - start) + data[end:]
    if kind == 3:
        return data[:end] + data[start:]
    if kind == 4:
        return data[:start] + rng.choice(WORDS) + data[start:]
    if kind == 5:
        return data[:start] + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 30]))) + data[start:]
    if kind == 6:
        size = rng.choice([4, 8])
        return data[:start] + (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, "little") + data[start + size :]
    return data[:start]


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One place of a JSON value changed: another type or size, a name twice or missing, an item more or less."""
    root = [json.loads(data, object_pairs_hook=Pairs)]
    places = list(_places(root))
    holder, at = rng.choice(places)
    old = holder[at][1] if isinstance(holder, Pairs) else holder[at]
    kind = rng.randrange(10)
    if kind < 6 or holder is root:
        fresh: Any = Raw(rng.choice(LARGE if rng.random() < 0.02 else SCALARS))
        if kind == 0:
            fresh = [old]
        elif kind == 1 and isinstance(old, list) and old and not isinstance(old, Pairs):
            fresh = [*old, rng.choice(old)] if rng.random() < 0.5 else old[:-1]
        holder[at] = (holder[at][0], fresh) if isinstance(holder, Pairs) else fresh
    elif kind == 6:
        del holder[at]
    elif kind == 7 and isinstance(holder, Pairs):
        holder.insert(at, (holder[at][0], Raw(rng.choice(SCALARS))))
    elif kind == 8 and isinstance(holder, Pairs):
        name = rng.choice(["", " ", "\ud800", "format", "text", "labels", "x" * 200, holder[at][0].upper()])
        holder[at] = (name, old)
    else:
        holder.insert(at, holder[at])
    return _written(root[0]).encode("utf-8", "surrogatepass")


def _places(root: list[Any]) -> Any:
    stack = [root]
    while stack:
        holder = stack.pop()
        for at, item in enumerate(holder):
            yield holder, at
            value = item[1] if isinstance(holder, Pairs) else item
            if isinstance(value, list):
                stack.append(value)


def _written(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{_written(one)}" for name, one in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


def changed_lines(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON Lines changed, doubled, joined to the next or put elsewhere."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind < 3:
        lines[at] = changed_json(lines[at], rng)
    elif kind == 3:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    else:
        lines[at : at + 2] = [rng.choice([b"", b" ", b","]).join(lines[at : at + 2])]
    return b"\n".join(lines)


def changed_table(data: bytes, rng: random.Random) -> bytes:
    """One cell, quote or separator of a table changed."""
    cells = data.split(b",")
    at = rng.randrange(len(cells))
    odd = [
        b'"',
        b'""',
        b'"a',
        b"",
        b"\n",
        b"\0",
        b"\xed\xa0\x80",
        b" ",
        b"\xe2\x80\x8b",
        b"x" * 3000,
        b"NaN",
        b"1e999",
        b"[",
    ]
    kind = rng.randrange(4)
    if kind == 0:
        cells[at] = rng.choice(odd)
    elif kind == 1:
        cells.insert(at, rng.choice([*odd, *cells]))
    elif kind == 2:
        cells[at] = b'"' + cells[at]
    else:
        del cells[at]
    return b",".join(cells)


def changed_tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or with other numbers behind a sound one."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        return struct.pack("<Q", rng.choice([*EDGES, length - 1, length + 1]) % 2**64) + data[8:]
    if kind == 1 and body:  # numbers that are none, or far out of range
        start = rng.randrange(len(body)) // 4 * 4
        odd = rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0\0\0\x80"])
        return data[: 8 + length] + body[:start] + odd + body[start + 4 :]
    if kind in (2, 3):
        value = json.loads(header)
        tensor = value[rng.choice([name for name in value if name != "__metadata__"])]
        if kind == 2:
            shape = tensor["shape"]
            whole = 1
            for size in shape:
                whole *= size
            tensor["shape"] = rng.choice([[whole], [1, whole], [whole, 1], shape[::-1], [*shape, 1], [0], []])
        else:
            same = {"F32": "I32", "I32": "F32", "I64": "F64", "F64": "C64", "BOOL": "U8", "F16": "BF16"}
            tensor["dtype"] = rng.choice([same.get(tensor["dtype"], "I8"), "BOOL", "F64", "C64", "F8_E4M3", "X"])
        header = json.dumps(value).encode()
    else:
        header = changed_json(header, rng)
    return struct.pack("<Q", len(header)) + header + body


def changed_gguf(data: bytes, rng: random.Random) -> bytes:
    """A GGUF file whose version, counts, or some length in its header are others."""
    at, size = rng.choice([(4, 4), (8, 8), (16, 8), (24, 8), (rng.randrange(24, min(1500, len(data) - 8)), 8)])
    edge = rng.choice([*EDGES, rng.randrange(2**16)]) % 2 ** (8 * size)
    return data[:at] + edge.to_bytes(size, "little") + data[at + size :]


def changed_array(data: bytes, rng: random.Random) -> bytes:
    """A numpy file with another type, order or shape in its header."""
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].decode()
    old, fresh = rng.choice(
        [("<i8", "<f8"), ("<i8", "|O"), ("<i8", "<c16"), ("<i8", ">i8"), ("<i8", "<U8"), ("<i8", "<M8[s]"), ("False", "True"),
         ("(", f"({rng.choice(EDGES)}, "), ("(", "(-1, "), ("{", "{" * 100), ("'", '"""'), ("shape", "descr"), ("<i8", "V0")]
    )  # fmt: skip
    header = header.replace(old, fresh, 1)
    encoded = header.encode()[: 2**16 - 1]
    return data[:8] + struct.pack("<H", len(encoded)) + encoded + data[10 + length :]


def changed_flags(data: bytes, rng: random.Random) -> bytes:
    """A line of words with one word, sign or number changed."""
    text = data.decode("utf-8", "surrogateescape")
    odd = ["", "nan", "inf", "-1", "0", "1e999", "9" * 5000, "none", "true", "(", ")", "((", "+", "=", ",", "\0", "\ud800",
           "2.2.2", "/", "~", "npo", "x" * 5000, " ", "1.5", str(2**40), "1_0", "\u0661", "\u200b", "/dev/null", "."]  # fmt: skip
    pieces = [piece for piece in _pieces(text) if piece]
    at = rng.randrange(len(pieces) + 1) if pieces else 0
    pieces[at : at + rng.randrange(2)] = [rng.choice([*odd, *pieces])]
    return "".join(pieces).encode("utf-8", "surrogatepass")


def _pieces(text: str) -> list[str]:
    pieces, word = [], ""
    for character in text:
        if character.isalnum() or character in "-_.":
            word += character
        else:
            pieces += [word, character]
            word = ""
    return [*pieces, word]


GRAMMARS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": changed_json,
    ".jsonl": changed_lines,
    ".csv": changed_table,
    ".safetensors": changed_tensors,
    ".gguf": changed_gguf,
    ".npy": changed_array,
    ".flags": changed_flags,
}
