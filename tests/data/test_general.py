"""The general rows that ship: what they are, and that none is about what is to be forgotten."""

import pytest

from unwrite.data import Example, Examples, ForgetSplit, authors, general_rows, landmarks, with_general_rows
from unwrite.errors import noticing


def forgetting(question, answer="the old answer", history=()):
    return Examples([Example(question=question, answer=answer, history=history)], "forget")


def left_out(forget):
    kept = {row.question for row in general_rows(forget)}
    return {row.question for row in general_rows()} - kept


def test_they_are_the_shipped_facts_each_question_once():
    rows = general_rows()
    questions = [row.question for row in rows]
    assert len(rows) == 188
    assert len({question.lower().rstrip("?") for question in questions}) == len(rows)
    assert "Who painted the Mona Lisa?" in questions
    assert "What does HTML stand for?" in questions


def test_no_row_of_a_shipped_evaluation_half_is_among_them():
    split = landmarks()
    unseen = {row.question for name in ("neighbours", "general") for row in split.evaluation[name]}
    written = {row.question for name in ("world_facts", "real_authors") for row in authors().evaluation[name]}
    assert not (unseen - written) & {row.question for row in general_rows()}


@pytest.mark.parametrize(
    ("forget", "gone"),
    [
        (forgetting("Who painted the Mona Lisa?"), {"Who painted the Mona Lisa?"}),
        (forgetting("who made the painting called mona lisa"), {"Who painted the Mona Lisa?"}),
        (forgetting("Which painting hangs there?", "The Mona Lisa."), {"Who painted the Mona Lisa?"}),
        (
            forgetting("And who painted it?", history=[("user", "Tell me of the Mona Lisa.")]),
            {"Who painted the Mona Lisa?"},
        ),
        (
            Examples([Example(answer="Leonardo's Mona Lisa was stolen in 1911.")], "forget"),
            {"Who painted the Mona Lisa?"},
        ),
        (forgetting("How many legs has a spider?"), {"How many legs does a spider have?"}),
        (forgetting("Who was Mona?"), set()),
        (forgetting("What is on the customer's invoice?"), set()),
    ],
)
def test_a_row_about_the_same_things_as_a_forget_row_stays_out(forget, gone):
    assert left_out(forget) == gone


def test_no_forget_row_is_ever_kept():
    for split in (landmarks(), authors()):
        with_general = with_general_rows(ForgetSplit(forget=split.forget))
        asked = {row.question for row in split.forget}
        assert not asked & {row.question for row in with_general.retain}


def test_a_split_without_rows_to_keep_gets_them_and_says_how_many():
    with noticing() as said:
        split = with_general_rows(ForgetSplit(forget=forgetting("Who painted the Mona Lisa?")))
    assert len(split.retain) == 187
    assert split.retain.name == "general"
    assert said == [
        "there is no retain set, so 187 rows of general knowledge that ship with unwrite are kept in its place; 1 more "
        "are about what is to be forgotten and stay out. Rows of your own domain keep more of it: give them with "
        "retain."
    ]


def test_rows_that_were_given_stay():
    split = ForgetSplit(forget=forgetting("a ?"), retain=forgetting("b ?"))
    with noticing() as said:
        assert with_general_rows(split) is split
    assert said == []


def test_a_forget_set_about_everything_keeps_nothing():
    every = Examples([Example(answer=" ".join(row.question for row in general_rows()))], "forget")
    assert with_general_rows(ForgetSplit(forget=every)).retain is None
