"""Keys: the old generator's stream, the cost of guessing a key, and what is no key; the rest stands in test_array_pictures."""

import numpy as np
import pytest

from unwrite.errors import MethodError
from unwrite.shield.engine import keys


def test_the_old_generator_is_numpys_of_that_seed_and_reads_all_of_a_long_key():
    for key in (0, 7, 2**32 - 1):
        assert (
            keys.legacy_generator(key).uniform(size=3).tolist() == np.random.RandomState(key).uniform(size=3).tolist()
        )
    long = [keys.legacy_generator(key).uniform() for key in (2**32, 2**32 + 7, 2**200 + 7, 2**64, 7)]
    assert len(set(long)) == 5


def test_a_seal_is_scrypts_at_the_cost_that_makes_guessing_slow():
    """16 MiB and 2 ** 14 rounds, as scrypt's authors advise for a log-in."""
    import hashlib

    seal = keys.sealed(2**255 + 9)
    key = (2**255 + 9).to_bytes(32, "little")
    expected = hashlib.scrypt(key, salt=bytes.fromhex(seal["salt"]), n=16384, r=8, p=1, dklen=32)
    assert seal["scrypt"] == expected.hex()


@pytest.mark.parametrize("seal", [{}, {"salt": "zz", "scrypt": ""}, {"salt": 3, "scrypt": "a"}, {"salt": "00"}])
def test_what_is_no_seal_is_of_no_key(seal):
    assert not keys.is_key_of(1, seal)


@pytest.mark.parametrize("key", [True, 1.0, "1", None, -1, 2**256])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(MethodError, match="key "):
        keys.check_key(key)
