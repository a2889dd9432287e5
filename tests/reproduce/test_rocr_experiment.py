"""The people's bed, and what the verdict on ROCR rests on, on made-up figures and on a tiny model."""

import pytest

from helpers.tiny import lively, make_llama
from unwrite.beds.people import (
    FACTS,
    FORMS_ASKED,
    SUBSTITUTE,
    TARGETS,
    VALIDATION,
    PeopleBed,
    facts_of,
    mistaken,
    people_split,
)
from unwrite.data.text.forms import FORMS
from unwrite.reproduce import rocr
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.rocr import BASELINES, OURS, FormsTable, _checks

PEOPLE = TARGETS[:3]


def table(
    *, baseline=(0.9, 0.2), ours=0.8, elsewhere=0.1, kept=0.95, wrong=0.02, missed=1e-5, seconds=1.0, undone=True
):
    """Baselines take (of questions, of other forms), ROCR as much of every form."""
    made = FormsTable(wrong={form: [wrong] for form in FORMS_ASKED}, misses=[missed], undone=undone)
    shares = {"nothing": (0.0, 0.0), **dict.fromkeys(BASELINES, baseline), OURS: (ours, ours)}
    for name, (questions, others) in shares.items():
        for person in PEOPLE:
            gone = {form: questions if form == "qa" else others for form in FORMS_ASKED}
            made.asked[name, person] = {form: [0.1 * (1 - share)] * 4 for form, share in gone.items()}
            made.kept[name, person] = [0.1 if name == "nothing" else 0.1 * kept]
            made.seconds[name, person] = seconds
    made.others = {person: {form: [0.1 * (1 - elsewhere)] * 4 for form in FORMS_ASKED} for person in PEOPLE}
    return made


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "reproduced"),
        ({"ours": 0.4}, "partly"),
        ({"kept": 0.8}, "partly"),
        ({"seconds": 11.0}, "partly"),
        ({"baseline": (0.9, 0.5)}, "partly"),
        ({"baseline": (0.9, 0.9)}, "not reproduced"),
        ({"elsewhere": 0.9}, "not reproduced"),
        ({"baseline": (0.3, 0.1)}, "bed says nothing"),
        ({"wrong": 0.08}, "bed says nothing"),
        ({"missed": 0.01}, "untested here"),
        ({"undone": False}, "untested here"),
    ],
)
def test_the_verdict_follows_from_forms_neighbours_and_the_edit_of_somebody_else(given, verdict):
    assert verdict_of(_checks(table(**given))) == verdict


def test_a_row_says_where_there_is_no_variation_and_can_be_stored():
    assert table().row("nothing") == (0.0, 0.0, 0.0, 0.0, "-", 1.0, 1.0)
    assert table().row("GA") == (0.9, 0.2, 0.2, 0.2, pytest.approx(0.808, abs=1e-3), 0.95, 1.0)


def test_a_person_has_four_facts_in_forms_that_name_it_but_for_the_one_turned_round():
    for person in TARGETS:
        split = people_split(person)
        assert len(split.forget) == 4
        for item in split.items:
            assert (person in item.asked) == (item.form != "reversed")
        assert {item.form for item in split.items} == {*FORMS}


def test_nobody_who_is_measured_beside_is_forgotten_or_chosen_on():
    kept = {item.subject for item in people_split(TARGETS[0]).kept_items}
    assert not kept & {*TARGETS, VALIDATION, SUBSTITUTE}
    assert len(kept) >= 5
    assert VALIDATION not in TARGETS
    assert {VALIDATION, SUBSTITUTE, *TARGETS} < {*FACTS}


def test_somebody_elses_object_is_another_one_in_the_same_form():
    items = people_split(TARGETS[0]).items
    wrong = mistaken(items)
    right = {(item.form, item.asked): item.answer for item in items}
    assert [item.form for item in wrong].count("reversed") == 1
    assert len(wrong) == 13
    for item in wrong:
        assert item.answer != right[item.form, item.asked]
    assert all(fact.answer not in fact.others for fact in facts_of(TARGETS[0]))


@pytest.mark.slow
def test_the_experiment_runs_on_a_tiny_model_and_leaves_it_as_it_was(monkeypatch):
    from unwrite.beds.language import small_tokenizer
    from unwrite.runs import hash_model

    tokenizer = small_tokenizer(["what is this"], 300)
    model = lively(make_llama(layers=7, vocab=len(tokenizer), max_position_embeddings=512), 0.2)
    bed = PeopleBed(model, tokenizer, [[5, 6, 7, 8] * 20] * 10)
    before = hash_model(model)
    monkeypatch.setattr(rocr, "BASELINES", {"GA": BASELINES["GA"]})
    made = rocr.measured(bed, PEOPLE[:2], PEOPLE[:1], tiny=True)
    assert hash_model(model) == before
    assert made.undone
    assert max(made.misses) < 1e-2
    assert {name for name, _ in made.asked} == {"nothing", "GA", OURS, f"{OURS}, reject", f"{OURS}, noise"}
    assert {*made.others} == {*PEOPLE[:2]}
    assert made.row("nothing")[:4] == (0.0,) * 4
    assert {check.kind for check in _checks(made)} == {"set-up", "mechanism", "claim", "control"}
