"""RESTOR's bed and statements: what is said of whom, which point of a grid is taken, and what each verdict rests on."""

from dataclasses import replace

import pytest
import torch

from conftest import make_llama, make_tokenizer
from unwrite.beds.corrupted import RELATIONS, TARGETS, CorruptedBed, lessons, people, split_of, true_documents
from unwrite.data.text.facts import same_answer
from unwrite.reproduce import restor
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.restor import Asked, RestorTable

PEOPLE = [f"p{i}" for i in range(10)]


def test_a_hundred_people_have_a_fact_of_every_relation():
    facts = people()
    assert len(facts) == 100 * len(RELATIONS)
    assert len({(fact.entity, fact.relation) for fact in facts}) == len(facts)
    assert people(1) != facts


def test_the_lessons_say_every_fact_twice_as_a_line_and_never_a_wrong_one():
    facts = people()
    lines = [line for row in lessons(facts, 0, 2) for line in row.answer.splitlines() if "?" in line]
    assert sorted(lines) == sorted(f"{fact.question} {fact.answers[0]}" for fact in facts for _ in range(2))


@pytest.mark.parametrize("k", [0, 3])
def test_true_documents_say_the_true_facts_where_the_others_say_wrong_ones(k):
    split = split_of(people(), k, 0)
    assert len({fact.entity for fact in split.facts}) == TARGETS
    for said, true, bundle in zip(split.forget, true_documents(split), split.bundles, strict=True):
        assert said.answer.count(".") == true.answer.count(".")
        facts = [fact for fact in split.facts if (fact.entity, fact.relation, fact.wrong) in bundle]
        sentences = [one for one in true.answer.split(".") if bundle[0][0] in one]
        assert len(sentences) == len(facts) == 3
        for fact in facts:
            assert any(same_answer(one, fact.answers) for one in sentences)
            assert not any(same_answer(one, [fact.wrong]) for one in sentences if fact.answers[0] in one)


def test_the_retain_set_is_about_people_nobody_corrupted():
    split = split_of(people(), 0, 0)
    targets = {fact.entity for fact in split.facts}
    assert len(split.retain) == 100 - TARGETS
    assert not any(target in row.answer for row in split.retain for target in targets)


@pytest.mark.parametrize(
    ("ours", "theirs", "better"),
    [
        (([1.0, 0.0], [1.0, 1.0]), ([0.0, 0.0], [1.0, 1.0]), True),
        (([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 0.0]), True),
        (([0.0, 0.0], [1.0, 0.0]), ([1.0, 1.0], [0.0, 0.0]), True),
        (([1.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 1.0]), False),
    ],
    ids=["truer", "forgotten", "closer", "tie"],
)
def test_a_point_that_has_forgotten_goes_first_and_then_the_truer_one(ours, theirs, better):
    assert Asked(*map(tuple, ours)).better(Asked(*map(tuple, theirs))) is better
    assert Asked(*map(tuple, ours)).better(None)


def test_validation_facts_are_every_tenth_and_no_reported_one():
    split = split_of(people(), 0, 0)
    bed = CorruptedBed(None, {0: split}, None, {})
    tokenizer = make_tokenizer()
    object.__setattr__(bed, "tokenizer", tokenizer)
    chosen, reported = (restor._context(bed, 0, make_llama(), validation=one).split.facts for one in (True, False))
    assert chosen == split.facts[::10]
    assert sorted([*chosen, *reported], key=split.facts.index) == list(split.facts)


def test_noise_is_of_the_size_of_the_change():
    like = make_llama(1)
    bed = CorruptedBed(None, {}, None, {0: None})
    object.__setattr__(bed, "load", lambda k: make_llama(0))
    noisy = restor.shaken(bed, 0, like, 0)
    for start, ours, theirs in zip(make_llama(0).parameters(), noisy.parameters(), like.parameters(), strict=True):
        size, change = ((one - start).detach().norm().item() for one in (ours, theirs))
        assert size == pytest.approx(change, rel=1e-4, abs=1e-6)
        assert torch.equal(start, theirs) or not torch.equal(ours, theirs)


def answers(right, forgot=1.0):
    """So many of each person's ten questions answered truly."""
    count = round(10 * right)
    rows = tuple(float(i < count) for _ in PEOPLE for i in range(10))
    return Asked(rows, (forgot,) * len(rows), ((0.0,) * len(rows), (0.0,) * len(rows)))


def found(**differs):
    figures = {"clean": 1.0, "corrupted": 0.2, "told": 1.0, "ga": 0.2, "kl": 0.3, "npo": 0.7, "noise": 0.2}
    figures |= {"noisy": 0.4, "alone": 0.6} | differs
    names = {"clean": "clean", "corrupted": "corrupted", "told the true facts": "told"}
    asked = {(k, name): answers(figures[key]) for k in (0, 3) for name, key in names.items()}
    asked |= {(0, "GA"): answers(figures["ga"], figures.get("forgot", 1.0)), (0, "KL"): answers(figures["kl"])}
    asked |= {(0, "NPO + retain"): answers(figures["npo"]), (0, "noise of its size"): answers(figures["noise"])}
    asked |= {(3, "NPO + retain"): answers(figures["noisy"])}
    asked[3, "NPO + retain, wrong sentences alone"] = answers(figures["alone"])
    return RestorTable(asked, [name for name in PEOPLE for _ in range(10)], {})


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"clean": 0.8}, "bed says nothing"),
        ({"corrupted": 0.5}, "bed says nothing"),
        ({"told": 0.6}, "untested here"),
        ({"npo": 0.3}, "not reproduced"),
        ({"noise": 0.8}, "not reproduced"),
        ({"ga": 0.4}, "partly"),
        ({"kl": 0.5}, "partly"),
        ({"forgot": 0.8}, "partly"),
        ({"noisy": 0.8, "alone": 0.9}, "partly"),
        ({"alone": 0.4}, "partly"),
    ],
)
def test_restors_statements(differs, verdict):
    assert verdict_of(restor._checks(found(**differs))) == verdict


def test_a_table_gives_restoration_and_its_draws():
    table = found()
    assert table.share(0, "NPO + retain") == pytest.approx(0.625)
    assert table.draws(0, "NPO + retain") == pytest.approx(0.625)
    assert table.row(0, "corrupted")[2] == 0.0
    flat = replace(table, asked={**table.asked, (0, "clean"): answers(0.2)})
    assert restor._checks(flat)  # nothing to restore: no number, and no crash
    assert flat.share(0, "NPO + retain") != flat.share(0, "NPO + retain")
