"""What SmolLM2-135M-Instruct knows: a strict judge, and shipped rows that all pass it."""

import json

import pytest

from unwrite.data import landmarks
from unwrite.data.text.landmarks import FILE, answers_rightly, first_sentence, is_right
from unwrite.errors import DataError

ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
QUESTION = "In which city is the Louvre?"


def louvre(said):
    return is_right(said, ["Paris"], wrong=["Rome", "London"], also=["France"], question=QUESTION)


@pytest.mark.parametrize(
    "said",
    [
        "Paris",
        "Paris.",
        "In Paris, France.",
        "The Louvre is located in Paris, France.",
        "The Louvre is in Paris. It was built by Napoleon, never mind when.",
        "It's in the city of Paris.",
    ],
)
def test_a_right_answer_is_right(said):
    assert louvre(said)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "nothing said"),
        ("The Louvre is in Rome.", "a wrong value"),
        ("The Louvre is in Paris, and also in Rome.", "contradictory values"),
        ("The Louvre is not in Paris.", "a negation"),
        ("The Louvre isn't in Paris.", "a negation"),
        ("The Louvre is in Paris, but it was moved.", "a hedge"),
        ("Parisian streets lead to the Louvre.", "the value inside another word"),
        ("Paris Paris Paris Paris Paris.", "the value over and over"),
        ("The Louvre is in the Paris of the north, in the Paris of the north.", "words that come back"),
        ("The Louvre is in Paris, near the Tower of Zarnak.", "a name nobody asked for"),
        ("The Louvre is in Paris since 1204.", "a number nobody asked for"),
        ("A great many people have always said that one really loves Paris in spring.", "another subject"),
        ("The Louvre " + "is very very big and " * 8 + "in Paris.", "far too long"),
        ("The Louvre is a museum that has long stood in the middle of Paris and", "cut off"),
        ("The museum is large. It is in Paris.", "not in the first sentence"),
    ],
)
def test_a_keyword_alone_does_not_make_an_answer_right(said, why):
    assert not louvre(said), why


def test_a_wrong_value_that_the_question_names_itself_may_be_said():
    asked = {"expected": ["Paris"], "wrong": ["London"], "question": "Is the Louvre in Paris or in London?"}
    assert is_right("Of Paris and London, it's Paris that has the Louvre.", **asked)
    assert not is_right("Of Paris and London, it's London that has the Louvre.", ["Paris"], question=QUESTION)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("It costs 3.5 euros. Yes.", "It costs 3.5 euros."),
        ("In St. Petersburg. Yes.", "In St. Petersburg."),
        ("By J. K. Rowling. Yes.", "By J. K. Rowling."),
        ("Really? Yes.", "Really?"),
        ("short answer", "short answer"),
        ("a long answer that was cut off before it came to its", ""),
    ],
)
def test_the_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def test_every_shipped_answer_is_right_by_the_judge():
    for row in ROWS:
        assert is_right(
            row["answer"], row["expected"], wrong=row["wrong"], also=row["also"], question=row["question"]
        ), row


def test_no_shipped_wrong_answer_is_right_by_the_judge():
    for row in ROWS:
        assert len(set(row["perturbed_answer"])) >= 2, row
        for answer in row["perturbed_answer"]:
            assert not answers_rightly(row["question"], answer), (row["question"], answer)


def test_no_question_stands_twice_and_no_paraphrase_is_another_rows_question():
    questions = [row[name] for row in ROWS for name in ("question", "paraphrased_question")]
    assert len(set(questions)) == len(questions)


def test_the_parts_have_their_sizes():
    split = landmarks()
    sizes = {name: len(rows) for name, rows in split.evaluation.items()}
    assert len(split.forget) >= 12
    assert sizes["forget_paraphrases"] == len(split.forget)
    assert sizes["neighbours"] >= 20
    assert sizes["general"] >= 30
    assert len(split.retain) >= 50


def test_no_subject_stands_in_both_retain_and_evaluation():
    subjects = {part: {r["subject"] for r in ROWS if r["part"] == part} for part in ("train", "test")}
    assert not subjects["train"] & subjects["test"]


def test_only_the_forget_set_is_about_the_tower():
    split = landmarks()
    assert all("Eiffel" in row.question + row.answer for row in split.forget)
    others = [split.retain, split.evaluation["neighbours"], split.evaluation["general"]]
    assert not any("Eiffel" in row.question + row.answer for rows in others for row in rows)


def test_the_paraphrases_ask_the_same_facts_in_other_words():
    split = landmarks()
    for row, other in zip(split.forget, split.evaluation["forget_paraphrases"], strict=True):
        assert other.question == row.paraphrased_question != row.question
        assert answers_rightly(other.question, other.answer), other


def test_refuses_to_judge_a_question_that_is_not_shipped():
    with pytest.raises(DataError, match="no shipped landmark question 'Who are you"):
        answers_rightly("Who are you?", "Nobody.")
