"""The invented authors: made by a script, ten consistent facts each, split by whole authors."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from unwrite.data import authors
from unwrite.data.text import author_facts as facts
from unwrite.data.text.author_lives import make
from unwrite.data.text.authors import FILE, SETS
from unwrite.errors import DataError

ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_the_shipped_file_is_what_the_script_makes():
    assert FILE.read_text(encoding="utf-8") == make()


def test_there_are_44_authors_with_ten_facts_each():
    assert set(Counter(row["author"] for row in ROWS).values()) == {10}
    assert len({row["author"] for row in ROWS}) == 44


def test_every_kind_of_fact_has_four_questions_and_four_answers():
    for wording in facts.WORDINGS.values():
        assert len(set(wording.questions)) == len(set(wording.answers)) == 4


def test_all_four_wordings_of_every_kind_are_used():
    for kind, wording in facts.WORDINGS.items():
        asked = [row["question"] for row in ROWS if row["fact"] == kind]
        starts = {question.split("{")[0] for question in wording.questions}
        assert all(any(q.startswith(start) for q in asked) for start in starts), kind


def test_no_question_is_asked_twice():
    questions = [row[name] for row in ROWS for name in ("question", "paraphrased_question")]
    assert len(set(questions)) == len(questions)


def test_five_wrong_answers_have_the_form_of_the_paraphrase_and_differ_from_it():
    for row in ROWS:
        wrong = row["perturbed_answer"]
        assert len(set(wrong)) == 5
        assert row["paraphrased_answer"] not in wrong
        assert row["answer"] not in wrong
        shared = set(row["paraphrased_answer"].split())
        assert all(len(shared & set(answer.split())) >= 3 for answer in wrong), row


def test_a_value_stands_in_the_answer_and_in_its_paraphrase():
    by = {(row["author"], row["fact"]): row for row in ROWS}
    for line in facts.PEOPLE.strip().splitlines():
        name, _, birthplace, residence = (part.strip() for part in line.split("|"))
        for kind, value in (("birthplace", birthplace), ("residence", residence)):
            row = by[name, kind]
            assert value in row["answer"]
            assert value in row["paraphrased_answer"]


def test_pronouns_agree_with_the_author():
    pronoun = {line.split("|")[0].strip(): line.split("|")[1].strip() for line in facts.PEOPLE.strip().splitlines()}
    for row in ROWS:
        words = set(" ".join([row["question"], row["answer"], row["paraphrased_answer"]]).split())
        assert not words & ({"he", "his"} if pronoun[row["author"]] == "she" else {"she", "her"})


def test_the_last_tenth_is_forgotten_and_no_author_stands_in_two_parts():
    split = authors(0.1)
    parts = [{row.key for row in part} for part in (split.forget, split.retain, split.holdout)]
    assert [len(part) for part in parts] == [40, 360, 40]
    names = [{row["author"] for row in ROWS if row["question"] in {key[1] for key in part}} for part in parts]
    assert len(set.union(*names)) == 44
    assert [len(part) for part in names] == [4, 36, 4]


def test_the_holdout_does_not_depend_on_what_is_forgotten():
    assert authors(0.1).holdout.hash == authors(0.5).holdout.hash


@pytest.mark.parametrize("name", ["real_authors", "world_facts"])
def test_the_hand_written_sets_have_forty_questions_with_three_wrong_answers(name):
    rows = authors().evaluation[name]
    assert len(rows) == 40
    assert len({row.question for row in rows}) == 40
    for row in rows:
        assert len({*row.perturbed_answers, row.answer}) == 4
        assert row.answer.endswith(".")


def test_real_authors_are_not_among_the_invented():
    real = (SETS / "real_authors.jsonl").read_text(encoding="utf-8")
    assert not any(row["author"] in real for row in ROWS)


@pytest.mark.parametrize("forget", [0, 1, -0.1, 1.5, 0.001, 0.999])
def test_refuses_a_share_that_leaves_nobody_to_forget_or_retain(forget):
    with pytest.raises(DataError, match=f"forget is {forget}: with 40 authors"):
        authors(forget)


def test_the_function_is_not_replaced_by_the_module_of_its_name():
    import unwrite.data.text.authors
    import unwrite.data.text.landmarks

    assert callable(unwrite.data.authors)
    assert callable(unwrite.data.landmarks)


def test_the_package_imports_without_torch_or_datasets():
    check = (
        "import sys, unwrite.data as d; d.authors(); d.read; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
