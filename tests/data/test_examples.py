"""Examples are numbered, hashed by content, and split without overlap."""

import pytest

from unwrite.data import Example, Examples, ForgetSplit
from unwrite.errors import DataError


def rows(*questions, source=""):
    return Examples((Example(f"The answer to {q}.", q, source=source) for q in questions), "rows")


def test_rows_are_numbered_by_position():
    assert [row.index for row in Examples([Example("a", "q", index=9), Example("b", "r", index=9)])] == [0, 1]


def test_a_slice_is_a_set_of_the_same_name():
    part = rows("a", "b", "c")[1:]
    assert (part.name, len(part), part[0].index) == ("rows", 2, 0)


def test_the_hash_is_of_the_content_not_the_file():
    assert rows("a", source="x:1").hash == rows("a", source="y:9").hash
    assert rows("a").hash != rows("b").hash


def test_a_question_is_the_same_row_whatever_its_answer():
    with pytest.raises(DataError, match=r'share 1 rows \(first: row 0, "a"\)'):
        ForgetSplit(rows("a"), Examples([Example("Another answer.", "a")]))


def test_the_same_question_in_another_chat_is_another_row():
    other = Examples([Example("The answer.", "a", history=(("user", "hello"),))])
    assert ForgetSplit(rows("a"), other).retain is other


def test_refuses_an_empty_forget_set():
    with pytest.raises(DataError, match="the forget set is empty"):
        ForgetSplit(Examples([]))


def test_refuses_an_empty_retain_set():
    with pytest.raises(DataError, match="the retain set is empty"):
        ForgetSplit(rows("a"), Examples([]))


def test_refuses_a_holdout_that_shares_rows_with_the_forget_set():
    with pytest.raises(DataError, match="forget and holdout share 1 rows"):
        ForgetSplit(rows("a"), None, rows("a"))


@pytest.mark.parametrize(("row", "part"), [(Example(" ", "q"), "answer"), (Example("a", ""), "question")])
def test_refuses_an_empty_answer_or_question_and_names_the_row(row, part):
    with pytest.raises(DataError, match=f"mine row 0: the {part} is empty"):
        Examples([row], "mine")


@pytest.mark.parametrize(
    "row",
    [
        Example("\ud800", "q"),
        Example("a", "\ud800"),
        Example("a", "q", history=(("user", "\ud800"),)),
        Example("a", "q", paraphrased_question="\ud800"),
        Example("a", "q", paraphrased_answer="\ud800"),
        Example("a", "q", perturbed_answers=("b", "\ud800")),
    ],
)
def test_refuses_half_a_character_wherever_it_stands(row):
    with pytest.raises(DataError, match=r"mine row 0 holds a lone surrogate \(U\+D800 at character 1\)"):
        Examples([row], "mine")


def test_the_hash_of_a_split_covers_its_evaluation_sets():
    assert ForgetSplit(rows("a")).hash != ForgetSplit(rows("a"), evaluation={"more": rows("b")}).hash
