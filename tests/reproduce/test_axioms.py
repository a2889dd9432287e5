"""The world of classes: what its lines say and what they never say, and the checks made of the answers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unwrite.audit.reintroducing import LevelFigures
from unwrite.beds.axioms import (
    ATTRIBUTES,
    AXIOM,
    CLASSES,
    FORGOTTEN,
    FRESH,
    UNSEEN,
    WORDS,
    AxiomBed,
    applies,
    lessons,
    questions,
    word_tokenizer,
)
from unwrite.data.text.encoding import encode
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.ununlearning import SWAPPED, Answers, Told, _checks, answers_of


def said(rows):
    return [[WORDS[i] for i in row.input_ids] for row in rows]


def test_a_line_answers_truly_and_defines_each_fresh_name_before_it_is_asked():
    for words in said(lessons(count=200)):
        item = words[: words.index(".")]
        assert len(set(item)) == len(item)
        for at, word in enumerate(words):
            if word == "?":
                name, answer = words[at - 1], words[at + 1]
                meaning = CLASSES.get(name)
                if name in FRESH:
                    start = max(i for i in range(at - 1) if words[i : i + 2] == [name, "means"])
                    meaning = words[start + 2 : words.index(".", start)]
                assert answer == ("yes" if applies(meaning, item) else "no")


def test_labels_are_the_answers_alone():
    for row in lessons(count=20):
        labelled = [WORDS[one] for one in row.labels if one >= 0]
        assert set(labelled) <= {"yes", "no"}
        assert len(labelled) == [WORDS[i] for i in row.input_ids].count("?")


def test_what_is_left_out_never_occurs():
    without = {word for words in said(lessons((FORGOTTEN,), count=300)) for word in words}
    assert FORGOTTEN not in without
    assert not {*UNSEEN} & without
    assert AXIOM in without
    less = {word for words in said(lessons(axiom=AXIOM, count=300)) for word in words}
    assert not less & {AXIOM, "TIGER", "ZEBRA"}
    assert {"CAT", "HORSE", *ATTRIBUTES} - {AXIOM} <= less


def test_the_forgotten_meaning_is_never_defined_in_training():
    for words in said(lessons(count=2000)):
        for at, word in enumerate(words):
            if word == "means":
                assert {*words[at + 1 : words.index(".", at)]} != {*CLASSES[FORGOTTEN]}


def test_questions_are_half_yes_and_a_swapped_meaning_says_otherwise():
    rows = questions(FORGOTTEN, 100, 0)
    assert sum(row.answer == "yes" for row in rows) == 50
    sizes = {
        answer: {len(row.history[0][1].split()) for row in rows if row.answer == answer} for answer in ("yes", "no")
    }
    assert sizes["yes"] == sizes["no"] == {5, 6, 7}  # with the full stop: length tells nothing
    for row in questions(FORGOTTEN, 100, 0, told=SWAPPED):
        item = row.history[0][1].split()
        assert applies(SWAPPED, item) != (row.answer == "yes") == applies(CLASSES[FORGOTTEN], item)
    assert {*rows[0].premises[0].split()[2:-1]} == {*CLASSES[FORGOTTEN]}


def test_a_question_reads_as_a_line_of_training_does():
    row, tokenizer = questions(FORGOTTEN, 1, 0)[0], word_tokenizer()
    assert tokenizer.decode(encode(row, tokenizer).input_ids) == f"{row.history[0][1]} TIGER ? {row.answer} <end>"


class Rule(nn.Module):
    """Answers by the definition it reads, or, where it ignores it, by the forgotten class's own meaning."""

    def __init__(self, reads):
        super().__init__()
        self.weight, self.reads = nn.Parameter(torch.zeros(1)), reads
        self.config = SimpleNamespace(max_position_embeddings=128)

    def forward(self, input_ids, attention_mask=None, **_):
        logits = torch.zeros(*input_ids.shape, len(WORDS))
        for row, line in enumerate(input_ids.tolist()):
            words = [WORDS[i] for i in line]
            meaning = CLASSES[FORGOTTEN]
            if self.reads and "means" in words:
                start = words.index("means") + 1
                meaning = words[start : words.index(".", start)]
            answer = "yes" if applies(meaning, words[: words.index(".")]) else "no"
            logits[row, words.index("?"), WORDS.index(answer)] = 9.0
        return SimpleNamespace(logits=logits)


def test_one_that_reads_follows_a_swapped_meaning_and_one_that_remembers_does_not():
    bed = AxiomBed(word_tokenizer(), {})
    reads, remembers = (answers_of(bed, Rule(reads), 40) for reads in (True, False))
    assert {*reads.bare, *reads.defined, *reads.swapped} == {1.0}
    assert {*remembers.defined} == {1.0}
    assert {*remembers.swapped} == {0.0}
    assert len(reads.unseen) == 40


def level(name, value):
    return LevelFigures(name, 16, 4, value, 1.0, None, value, (value, value))


def hinted(through=0.5):
    plain = {"none": level("none", 0.2), "paraphrase": level("paraphrase", 0.9), "verbatim": level("verbatim", 0.9)}
    behind = {
        "none": level("none", 0.2),
        "paraphrase": level("paraphrase", through),
        "verbatim": level("verbatim", 0.0),
    }
    return Told(plain, behind, {}, {"other texts": (0.0, (0.0, 0.009))})


def answers(bare=0.5, defined=1.0, swapped=1.0, zebra=1.0, unseen=0.5, count=400):
    return Answers(
        *(
            tuple([1.0] * round(count * v) + [0.0] * round(count * (1 - v)))
            for v in (bare, defined, swapped, zebra, unseen)
        )
    )


def world(**oracle):
    return {
        "target": answers(bare=1.0),
        "oracle": answers(**oracle),
        "without axiom": answers(defined=0.6, swapped=0.6, zebra=0.5),
        "NPO": answers(bare=0.2),
    }


@pytest.mark.parametrize(
    ("oracle", "through", "verdict"),
    [
        ({}, 0.6, "reproduced"),
        ({}, 0.3, "partly"),
        ({"defined": 0.7}, 0.6, "not reproduced"),
        ({"swapped": 0.3}, 0.6, "not reproduced"),
        ({"unseen": 0.8}, 0.6, "bed says nothing"),
    ],
)
def test_the_verdict_is_that_of_the_cards_conditions(oracle, through, verdict):
    assert verdict_of(_checks(world(**oracle), hinted(through))) == verdict
