"""The secret a protection hangs on: a whole number, and the random numbers that it stands for on every machine.

Whoever has the key can make filters and noise again and take them out. So it is in no `repr`, message or file: files hold a
slow, salted hash (scrypt), by which a key can be told to be the same and not be found, as long as it can't be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from ...errors import MethodError, setting

__all__ = ["BITS", "check_key", "generator", "is_key_of", "legacy_generator", "sealed", "seed_of"]

BITS = 256
_WORD = 2**32


def check_key(key: object) -> None:
    """Refuses what is no key, without repeating it.

    Raises:
        MethodError: no whole number, or none from 0 to 2 ** 256 - 1.
    """
    if isinstance(key, bool) or not isinstance(key, int):
        raise MethodError(
            f"{setting('key')} is of type {type(key).__name__}. Give a whole number: the secret, such as secrets.randbits(64)."
        )
    if not 0 <= key < 2**BITS:
        wrong = "is negative" if key < 0 else f"has more than {BITS} bits"
        raise MethodError(
            f"{setting('key')} {wrong}. Give a whole number from 0 to 2**{BITS} - 1, such as secrets.randbits(64)."
        )


def legacy_generator(key: int) -> np.random.RandomState:
    """Numpy's old generator, whose stream never changes: below 2 ** 32 that of `np.random.seed(key)`, above seeded by 32-bit words."""
    return np.random.RandomState(key if key < _WORD else np.array(_words(key), dtype=np.uint32))


def generator(key: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for each purpose, so that drawing more for one leaves the others as they are.

    Args:
        numbers: from 0, of a row or another member that has a generator of its own.
    """
    return np.random.default_rng([*_words(key), crc32(purpose.encode()), *numbers])


def seed_of(key: int, purpose: str) -> int:
    """A seed below 2 ** 63 for generators that take no more, such as torch's."""
    return int(generator(key, purpose).integers(2**63))


def sealed(key: int) -> dict[str, str]:
    """What a file says of the key: a salt and the key's scrypt hash under it, in hex."""
    salt = secrets.token_bytes(16)
    return {"salt": salt.hex(), "scrypt": _hash(key, salt)}


def is_key_of(key: int, seal: Mapping[str, Any]) -> bool:
    """Whether a file's hash is of this key; no, where it is no such hash."""
    try:
        salt = bytes.fromhex(seal["salt"])
        return hmac.compare_digest(_hash(key, salt), str(seal["scrypt"]))
    except (KeyError, TypeError, ValueError):
        return False


def _hash(key: int, salt: bytes) -> str:
    return hashlib.scrypt(key.to_bytes(BITS // 8, "little"), salt=salt, n=2**14, r=8, p=1, dklen=32).hex()


def _words(key: int) -> list[int]:
    """Its 32-bit words, the lowest first, at least one."""
    count = max(1, -(-key.bit_length() // 32))
    return [key >> 32 * number & _WORD - 1 for number in range(count)]
