"""Long texts: windows that cover them, each token predicted exactly once; what does not fit is counted and said."""

import pytest

from unwrite.data import Example, encode_all
from unwrite.data.text.encoding import IGNORE, Encoded, encode_rows, numbered, windows
from unwrite.errors import DataError, Notice, noticing


def predicted(parts, leading=0):
    """Every label that has a token before it, in order."""
    return [label for part in parts for label in part.labels[1:] if label != IGNORE]


def text(length):
    return Encoded(list(range(100, 100 + length)), list(range(100, 100 + length)), index=4)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 14, 15, 16, 22, 50])
def test_every_token_but_the_first_is_predicted_exactly_once(length):
    parts = windows(text(length), 8)
    assert predicted(parts) == text(length).labels[1:]
    assert all(len(part.input_ids) == min(8, length) for part in parts)
    assert {part.index for part in parts} == {4}


@pytest.mark.parametrize("length", [9, 16, 31])
def test_each_window_starts_with_what_the_tokenizer_puts_in_front(length):
    row = Encoded([1, *range(100, 100 + length)], [1, *range(100, 100 + length)])
    parts = windows(row, 8, [1])
    assert all(part.input_ids[0] == 1 for part in parts)
    assert predicted(parts) == row.labels[1:]
    for part in parts:
        assert all(label in (IGNORE, i) for i, label in zip(part.input_ids, part.labels, strict=True))


def test_windows_of_a_tokenizer_with_bos_start_with_it(tokenizer):
    from tokenizers import processors

    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    with pytest.warns(Notice):
        parts = encode_rows([Example("the old red book was near the new garden")], tokenizer, 5)[0]
    assert [part.input_ids[0] for part in parts] == [1] * len(parts)
    assert len(parts) == 3


def test_windows_are_those_of_lm_evaluation_harness():
    """Of 10 tokens in windows of 4: (inputs, predictions), by its rolling windows with one token of context."""
    parts = windows(text(10), 4)
    assert [part.input_ids for part in parts] == [
        [100, 101, 102, 103],
        [103, 104, 105, 106],
        [106, 107, 108, 109],
    ]
    last = windows(text(9), 4)[-1]
    assert (last.input_ids, last.labels) == ([105, 106, 107, 108], [IGNORE, IGNORE, 107, 108])


def test_a_text_that_fits_stays_whole():
    assert windows(text(8), 8) == [text(8)]


def test_refuses_windows_that_could_not_move_on():
    with pytest.raises(DataError, match="maximum length of 2 leaves no room"):
        windows(text(9), 2, [1])


def test_windows_of_texts_are_rows_of_their_own_between_the_others(tokenizer):
    rows = [Example("one two three four five six seven", index=0), Example("ann .", "who ?", index=1)]
    encoded = encode_all(rows, tokenizer, 7)
    assert [row.index for row in encoded] == [0, 1]
    encoded = encode_all([*rows, Example("one two three four five six seven eight nine", index=2)], tokenizer, 7)
    assert [row.index for row in encoded] == [0, 1, 2, 2]
    assert [row.index for row in numbered(encoded)] == [0, 1, 2, 3]


def test_what_is_cut_and_what_is_split_is_counted(tokenizer):
    answer = "ann wrote the old letter near the river ."
    rows = [Example(answer, "who ?", source="forget.jsonl:1"), Example("ann .", "who ?", index=1)]
    with pytest.warns(Notice), noticing() as said:
        cut = encode_rows(rows, tokenizer, 9)
    assert cut[0][0].cut == 10 + 4 - 9
    assert cut[1][0].cut == 0
    assert said == [
        "1 of 2 answers are cut at 9 tokens, 5 tokens in all (first: forget.jsonl:1). Raise max_length to use all of them."
    ]
    with pytest.warns(Notice), noticing() as said:
        encode_rows([Example(answer, source="a.txt"), Example("ann ."), Example("the old red book .")], tokenizer, 4)
    assert said == ["2 of 3 texts are longer than 4 tokens and are read in 5 windows (first: a.txt)."]


def test_nothing_is_said_where_everything_fits(tokenizer):
    with noticing() as said:
        encode_rows([Example("ann .", "who ?"), Example("the old river")], tokenizer)
    assert said == []
