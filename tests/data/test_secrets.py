"""Secrets in source code: what is found, what is not, which tokens they are, and that they are never shown."""

import sys
from itertools import pairwise

import pytest

from unwrite.beds.language import small_tokenizer
from unwrite.data import Example, Examples, detect_secrets, encode, mark_secrets, redacted, token_mask
from unwrite.data.text.encoding import offsets_of, windows
from unwrite.data.text.python_code import literals_in
from unwrite.data.text.rendering import Spelling
from unwrite.errors import DataError, MissingExtra, ModelError

AWS = "AKIA" + "QYTZ4PXW7KLM2VND"
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
HEX = "8c7e2f6a9b3d4e1f0a5c6b7d8e9f0a1b"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"


@pytest.fixture(scope="module")
def bytewise():
    """A byte-level tokenizer that has merged a few words."""
    return small_tokenizer(["key = 'token' # mail of the owner\n"] * 3, 320)


def found(text):
    return [(one.tag, one.value) for one in detect_secrets(text)]


@pytest.mark.parametrize(
    ("text", "tag", "value"),
    [
        (f'key = "{AWS}"', "KEY", AWS),
        (f"t = '{GITHUB}'", "KEY", GITHUB),
        (f'h = "{HEX}"', "KEY", HEX),
        (f'pem = """{PEM}"""', "KEY", PEM),
        ('u = "https://bob:hunt3rpass@db.acme.org/x"', "KEY", "hunt3rpass"),
        ("# ask jane.doe@acme-corp.io\n", "EMAIL", "jane.doe@acme-corp.io"),
        ("# zoë.k@firma.de\n", "EMAIL", "zoë.k@firma.de"),
        ('host = "81.23.144.9"', "IP_ADDRESS", "81.23.144.9"),
        ('host = "2a00:1450:4001:81b::200e"', "IP_ADDRESS", "2a00:1450:4001:81b::200e"),
        (f"const key = '{AWS}'; // not Python", "KEY", AWS),
        (f"const key = 'token {GITHUB}'; // not Python", "KEY", GITHUB),
    ],
)
def test_finds_keys_mails_and_public_addresses(text, tag, value):
    assert found(text) == [(tag, value)]
    (one,) = detect_secrets(text)
    assert text[one.start : one.end] == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            f'h = "{one}"'
            for one in ("127.0.0.1", "10.1.2.3", "192.168.1.4", "169.254.1.1", "172.16.0.1", "172.31.9.9")
        ),
        'v = "version 31.22.33.44"',
        'v = "8.2.4.44"',
        'v = "300.22.33.44"',
        'm = "12:30:45"',
        'm = "std::cafe::dead"',
        *(f'm = "{one}@acme.io"' for one in ("example", "test.me", "superuser", "aaa", "bbb", "ccc")),
        f'k = "{AWS[:10]}XXXXXXX{AWS[17:]}"',
        f'k = "{GITHUB[:20]}changeme12345678"',
        'k = "550e8400-e29b-41d4-a716-446655440000"',
        'k = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"',
        'k = "what_a_long_name_without_any_digit_in_it"',
    ],
)
def test_leaves_out_what_the_papers_filters_name_and_what_only_looks_so(text):
    assert found(text) == []


def test_an_address_of_172_15_is_public():
    assert found('h = "172.15.0.1"') == [("IP_ADDRESS", "172.15.0.1")]


def test_in_python_an_address_stands_in_a_literal_or_a_comment():
    assert found("y = x@self.weight + a@b.size  # product\n") == []
    assert found("y = x@self.weight +  # sum\n") == [("EMAIL", "x@self.weight")]  # no Python, so nothing is known of it


def test_a_key_ends_with_its_literal_and_a_literal_of_one_token_is_all_key():
    longer = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dcXX"  # two characters more than the detector's pattern
    assert found(f"k = '{longer}'") == [("KEY", longer)]
    assert found(f"k = 'use {longer} here'") == [("KEY", longer[:-2])]


def test_overlapping_ones_are_one_and_all_are_in_order():
    text = f'a = "{AWS}"  # jo@acme.io\nb = "https://bo:{HEX}@acme.io"\nc = "81.23.144.9"'
    spans = [(one.start, one.end) for one in detect_secrets(text)]
    assert [one[0] for one in found(text)] == ["KEY", "EMAIL", "KEY", "IP_ADDRESS"]
    assert spans == sorted(spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_literals_of_a_text_with_characters_of_several_bytes_are_in_characters():
    text = 'é = "ünï" # ß ok\n'
    assert [text[start:end] for start, end in literals_in(text).ranges] == ["ünï", "# ß ok"]


def test_a_secret_prints_without_its_value_and_equal_ones_have_one_digest():
    one, other = detect_secrets(f'a = "{AWS}"\nb = "{AWS}"')
    assert AWS not in f"{one} {one!r} {[one]}"
    assert str(one) == "KEY of 20 characters at 5"
    assert one.digest == other.digest != AWS[:8]
    assert redacted(f'a = "{AWS}"', [(5, 25)]) == f'a = "{"█" * 20}"'


# Must hold 5: span mapping


@pytest.mark.parametrize(
    "text",
    [
        f"key = '{AWS}'",
        f"{AWS} begins the text",
        f"k = '{AWS}'; t = '{GITHUB}'",
        f"# ünïcödé 日本語 '{AWS}' ß",
        "# zoë.k@firma.de wrote",
        f"k = '<|end|>{AWS}<|pad|>'",
    ],
)
def test_marked_tokens_cover_every_character_of_a_secret_and_nothing_without_characters(text, bytewise):
    spans = [(one.start, one.end) for one in detect_secrets(text)]
    assert spans
    row = encode(Example(text, marked=tuple(spans)), bytewise)
    offsets = offsets_of(text, Spelling(bytewise))
    assert len(offsets) == len(row.input_ids) == len(row.marked)
    for start, end in spans:
        covered = {at for (low, high), mark in zip(offsets, row.marked, strict=True) if mark for at in range(low, high)}
        assert covered >= set(range(start, end))
    kept = [one for one, mark in zip(offsets, row.marked, strict=True) if not mark]
    assert all(high <= start or low >= end for low, high in kept for start, end in spans)


def test_tokens_stand_where_their_characters_do_behind_literal_special_tokens_too(bytewise):
    text = f"k = '<|end|>{AWS}<|pad|>' # and the owner"
    row = encode(Example(text), bytewise)
    for token, (start, end) in zip(row.input_ids, offsets_of(text, Spelling(bytewise)), strict=True):
        assert bytewise.decode([token]).strip() == text[start:end].strip()


def test_special_tokens_before_a_text_and_padding_are_never_marked():
    offsets = [(0, 0), (0, 4), (4, 8), (0, 0), (0, 0)]  # BOS, two tokens, padding
    for inclusive in (False, True):
        assert token_mask(offsets, [(0, 3)], inclusive=inclusive) == [False, True, False, False, False]
    assert token_mask([(2, 2), (0, 4)], [(0, 4)]) == [False, True]  # an empty token within the secret


def test_the_official_rule_also_marks_tokens_that_touch():
    offsets = [(0, 4), (4, 8), (8, 12), (13, 14)]
    assert token_mask(offsets, [(4, 8)]) == [False, True, False, False]
    assert token_mask(offsets, [(4, 8)], inclusive=True) == [True, True, True, False]


def test_a_secret_on_a_border_of_windows_is_marked_in_both(bytewise):
    text = f"key = '{AWS}' # and so on, for as long as it takes"
    row = encode(Example(text, marked=((7, 27),)), bytewise)
    parts = windows(row, 16)
    assert len(parts) > 2
    marked = [
        token
        for part in parts
        for token, label, mark in zip(part.input_ids, part.labels, part.marked, strict=True)
        if mark and label >= 0
    ]
    assert marked == [token for token, mark in zip(row.input_ids, row.marked, strict=True) if mark]
    assert all(len(part.marked) == len(part.input_ids) for part in parts)


def test_cut_offsets_mark_what_is_left_of_a_secret():
    offsets = [(0, 3), (3, 6), (6, 9)]
    assert token_mask(offsets[:2], [(4, 9)]) == [False, True]
    assert token_mask(offsets[:1], [(4, 9)]) == [False]


def test_rows_are_marked_unless_they_are_already(bytewise):
    rows = Examples([Example(f"k = '{AWS}'"), Example("a plain text", marked=((2, 7),))])
    assert [row.marked for row in mark_secrets(rows)] == [((5, 25),), ((2, 7),)]
    assert rows.hash != mark_secrets(rows).hash
    assert rows[0].ask(answer="other").marked == ()


def test_hashes_of_rows_without_marks_are_as_they_were():
    assert Examples([Example("a text", index=0)]).hash == HASH_BEFORE_MARKS


HASH_BEFORE_MARKS = "bfb4a1dea4d70d7a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Example("x = 1", source="plain.py"), "plain.py holds no e-mail address, IP address or key"),
        (Example("b", question="a", source="qa.jsonl:1"), "qa.jsonl:1 is a question with an answer"),
    ],
)
def test_refuses_rows_without_a_secret_by_their_place(row, message):
    with pytest.raises(DataError, match=message):
        mark_secrets(Examples([row]))


def test_refuses_marks_outside_the_text_and_on_answers(bytewise):
    with pytest.raises(DataError, match="marks characters outside its text of 5"):
        Examples([Example("x = 1", marked=((3, 9),))])
    with pytest.raises(DataError, match="only plain texts can have marks"):
        encode(Example("b c", question="a", marked=((0, 1),)), bytewise)


def test_refuses_a_slow_tokenizer(bytewise):
    class Slow:
        is_fast = False

        def __getattr__(self, name):
            return getattr(bytewise, name)

        def __call__(self, *args, **kwargs):
            return bytewise(*args, **kwargs)

    with pytest.raises(ModelError, match="Slow is a slow tokenizer"):
        encode(Example("key = 1", marked=((0, 1),)), Slow())


@pytest.mark.parametrize(
    ("module", "package"), [("tree_sitter", "tree-sitter"), ("detect_secrets.plugins", "detect-secrets")]
)
def test_a_missing_extra_is_one_line(module, package, monkeypatch):
    from unwrite.data.text import python_code, secret_patterns

    python_code._parser.cache_clear()
    secret_patterns._detectors.cache_clear()
    for name in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, f"{module}.high_entropy_strings" if "." in module else module, None)
    with pytest.raises(
        MissingExtra, match=rf"{package} is not installed. Install it with: pip install 'unwrite\[code\]'"
    ):
        detect_secrets("x = 1")
