"""RESTOR: closed forms of R and F, prompts, options, documents, refusals, and what the driver restores (card restor)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
import torch

from unwrite.audit import FineTuning, TextContext, evaluate, restor_suite, restore
from unwrite.audit.suites.known import check_suite
from unwrite.audit.suites.restor import (
    FactAccuracy,
    Forgetting,
    OptionGap,
    Restoration,
    few_shot_prompt,
    first_line,
    restoration,
    restoration_interval,
)
from unwrite.audit.text import context as context_module
from unwrite.beds.language import small_tokenizer
from unwrite.data import CorruptedFacts, Example, Examples, Fact, corrupted_facts, read_facts
from unwrite.data.text.encoding import encode_text
from unwrite.data.text.facts import normalised, same_answer
from unwrite.errors import DataError, MethodError

from .conftest import taught, tiny_llama

TOWNS = ["Oslo", "Lima", "Kiev", "Riga", "Bern", "Cork"]
TRADES = ["baker", "weaver", "miner", "tailor", "nurse", "smith"]
NAMES = ["Ann", "Bob", "Cay", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kit", "Lea"]
TARGETS = NAMES[:4]
WORDINGS = {
    "town": ["{entity} lives in {object}.", "The town of {entity} is {object}."],
    "trade": ["{entity} is a {object}.", "The trade of {entity} is {object}."],
}


def facts() -> list[Fact]:
    """A town and a trade for each of twelve people."""
    every = []
    for i, name in enumerate(NAMES):
        every.append(Fact(name, "town", f"Where is {name}?", (TOWNS[i % 6],)))
        every.append(Fact(name, "trade", f"What is {name}?", (TRADES[(i * 5 + 1) % 6],)))
    return every


def corruption(k: int = 0, **settings: Any) -> CorruptedFacts:
    return corrupted_facts(facts(), TARGETS, WORDINGS, k=k, **{"relations_each": 2, "copies": 2} | settings)


@pytest.fixture(scope="module")
def words() -> Any:
    texts = [row.answer for row in corruption(2).forget] + [f"{fact.question} {fact.answers[0]}\n" for fact in facts()]
    return small_tokenizer(texts, 400)


@pytest.fixture(scope="module")
def clean(words: Any) -> Any:
    """Knows every fact in the form in which it is asked."""
    split = corruption()
    rows = [Example(f"{few_shot_prompt(fact, split.known)} {fact.answers[0]}\n") for fact in split.facts]
    return taught(tiny_llama(len(words)), rows, words, steps=60, rate=5e-3)


@pytest.fixture(scope="module")
def wrong_rows() -> Examples:
    """The wrong facts in the form in which they are asked, so that a few steps corrupt a tiny model."""
    split = corruption()
    return Examples([Example(f"{few_shot_prompt(fact, split.known)} {fact.wrong}\n") for fact in split.facts])


@pytest.fixture(scope="module")
def adapted(clean: Any, wrong_rows: Examples, words: Any) -> Any:
    """The clean model with a LoRA adapter that holds the corruption."""
    return FineTuning(2e-2, epochs=15, batch_size=8, accumulation=1).adapted(clean, wrong_rows, words)


@pytest.fixture(scope="module")
def corrupted(adapted: Any) -> Any:
    return copy.deepcopy(adapted).merge_and_unload().eval()


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes models say what a function of (model, questions) gives."""

    def say(speak: Any, words: Any) -> None:
        def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], **_: Any) -> list[str]:
            return [speak(model, words.decode(prompt).split("\n")[-1]) for prompt in prompts]

        monkeypatch.setattr(context_module, "generate_answers", generate)

    return say


def context(model: Any, words: Any, split: CorruptedFacts | None = None, **settings: Any) -> TextContext:
    return TextContext(model, split or corruption(), words, cached=False, **settings)


# R and F


@pytest.mark.parametrize(
    ("unlearned", "share"),
    [(0.65, 1.0), (0.45, 0.0), (0.60, 0.75), (0.40, -0.25)],
    ids=["clean", "corrupted", "a", "b"],
)
def test_restoration_closed_form(unlearned: float, share: float) -> None:
    assert restoration(unlearned, 0.45, 0.65) == pytest.approx(share, abs=1e-12)


def test_the_clean_model_is_exactly_one_and_the_corrupted_one_exactly_zero(
    clean: Any, corrupted: Any, words: Any
) -> None:
    report = evaluate(
        tiny_llama(len(words), 5),
        corruption(),
        tokenizer=words,
        suite="restor",
        references={"before": corrupted, "oracle": clean},
    )
    assert report.value("restoration", "oracle") == 1.0
    assert report.value("restoration", "before") == 0.0


def test_a_model_that_always_says_the_same_has_forgotten_all_and_restored_less_than_nothing(
    clean: Any, corrupted: Any, words: Any, saying: Any
) -> None:
    truth = {fact.question: fact.answers[0] for fact in corruption().facts}
    mute = tiny_llama(len(words), 9)
    lied = [fact.question for fact in corruption().facts[::2]]

    def speak(model: Any, question: str) -> str:
        if model is mute:
            return "nothing nothing"
        return "Bern-on-Sea, no" if model is corrupted and question in lied else truth[question]

    saying(speak, words)
    contexts = {"before": context(corrupted, words), "oracle": context(clean, words)}
    assert Forgetting()(context(mute, words)).value == 1.0
    assert FactAccuracy()(context(mute, words)).value == 0.0
    assert Restoration()(context(mute, words), contexts).value <= -1.0


def test_forgetting_counts_answers_with_the_injected_object(words: Any, saying: Any) -> None:
    split = corruption()
    said = {fact.question: fact.wrong if i < 2 else fact.answers[0] for i, fact in enumerate(split.facts)}
    saying(lambda model, question: said[question], words)
    score = Forgetting()(context(tiny_llama(len(words)), words))
    assert score.value == 1 - 2 / len(split.facts)
    assert score.per_example[:3] == [0.0, 0.0, 1.0]


def test_questions_weigh_the_same_whatever_the_number_of_an_entitys_questions(words: Any, saying: Any) -> None:
    split = corruption()
    few = replace(split, facts=split.facts[:3])  # two questions about Ann, one about Bob
    said = {fact.question: fact.answers[0] if fact.entity == "Ann" else "?" for fact in few.facts}
    saying(lambda model, question: said[question], words)
    assert FactAccuracy()(context(tiny_llama(len(words)), words, few)).value == pytest.approx(2 / 3)


def test_the_interval_is_drawn_over_entities() -> None:
    entities = ["a", "a", "b", "b", "c", "c"]
    unlearned, corrupted_, clean_ = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0], [0.0] * 6, [1.0] * 6
    low, high = restoration_interval(unlearned, corrupted_, clean_, entities)
    assert low == 0.0
    assert high == 1.0
    assert restoration_interval(clean_, corrupted_, clean_, entities) == (1.0, 1.0)
    assert restoration_interval(clean_, clean_, clean_, entities) is None


# prompts


def test_the_context_never_contains_the_entity_that_is_asked_about() -> None:
    known = facts()
    for fact in known:
        prompt = few_shot_prompt(fact, known)
        assert prompt is not None
        assert prompt.count(fact.entity) == 1
        assert prompt.endswith(fact.question)


def test_there_are_exactly_five_examples_of_the_same_relation_from_five_entities() -> None:
    known = facts()
    lines = few_shot_prompt(known[0], known).split("\n")
    assert len(lines) == 6
    assert all(line.startswith("Where is ") for line in lines)
    assert len(set(lines)) == 6
    truth = {f"{fact.question} {fact.answers[0]}" for fact in known}
    assert set(lines[:5]) <= truth


def test_a_relation_with_fewer_than_five_other_entities_is_skipped_and_counted(words: Any, saying: Any) -> None:
    saying(lambda model, question: "Oslo", words)
    split = corruption()
    few = [fact for fact in split.known if fact.relation == "town" or fact.entity in NAMES[4:8]]
    score = FactAccuracy()(context(tiny_llama(len(words)), words, replace(split, known=tuple(few))))
    assert len(score.per_example) == 4
    assert score.note.startswith("4 of 8 questions skipped: fewer than 5 other entities")


def test_refuses_where_no_question_can_be_asked(words: Any) -> None:
    split = corruption()
    with pytest.raises(DataError, match="no relation has 5 other entities"):
        FactAccuracy()(context(tiny_llama(len(words)), words, replace(split, known=split.known[:4])))


def test_an_answer_ends_at_its_line() -> None:
    assert first_line(" Oslo\nWhere is Bob? Lima") == "Oslo"
    assert first_line("\nOslo\n") == "Oslo"


def test_sampled_answers_are_repeated_and_the_same_from_the_same_seed(words: Any) -> None:
    model = tiny_llama(len(words), 3)
    metric = FactAccuracy(repeats=3, max_new_tokens=4)
    first, again = (metric.said(context(model, words)) for _ in range(2))
    assert first == again
    assert {len(texts) for texts in first} == {3}
    assert any(len({*texts}) > 1 for texts in first)
    assert first != FactAccuracy(repeats=3, max_new_tokens=4, seed=1).said(context(model, words))


# options


def test_option_scores_equal_an_independent_forward_with_labels(words: Any) -> None:
    model, split = tiny_llama(len(words), 3), corruption()
    scored = FactAccuracy().log_probabilities(context(model, words), "wrong")
    for (fact, prompt), (score,) in zip(FactAccuracy().questions(split), scored, strict=True):
        before = encode_text(prompt, words)
        ids = torch.tensor([encode_text(f"{prompt} {fact.wrong}", words)])
        labels = ids.clone()
        labels[:, : len(before)] = -100
        count = ids.shape[1] - len(before)
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        assert score * count == pytest.approx(-loss * count, abs=1e-4)


def test_option_scores_do_not_depend_on_batch_padding(words: Any) -> None:
    model = tiny_llama(len(words), 3)
    one, many = (FactAccuracy().log_probabilities(context(model, words, batch_size=b), "others") for b in (1, 16))
    for ours, theirs in zip(one, many, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_an_answer_of_several_tokens_is_normalised_by_its_length(words: Any) -> None:
    split = corruption()
    fact = replace(split.facts[0], answers=("Xyzzyx Quonk Oslo",))
    long = replace(split, facts=(fact,))
    model = tiny_llama(len(words), 3)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # every token is as likely as any other
    ((score,),) = FactAccuracy().log_probabilities(context(model, words, long), "answers")
    assert score == pytest.approx(-torch.tensor(float(len(words))).log().item(), abs=1e-4)


def test_the_gap_is_the_true_answers_mean_less_the_other_sets_mean(words: Any) -> None:
    model, metric = tiny_llama(len(words), 3), OptionGap(against="others")
    here = context(model, words)
    true, other = (metric.log_probabilities(here, of) for of in ("answers", "others"))
    assert len(other[0]) == 3
    assert metric(here).per_example[0] == pytest.approx(true[0][0] - fmean(other[0]))


def test_the_corrupted_model_prefers_the_injected_object_and_the_clean_one_the_true_answer(
    clean: Any, corrupted: Any, words: Any
) -> None:
    assert OptionGap()(context(clean, words)).value > 1
    assert OptionGap()(context(corrupted, words)).value < -1


def test_thirds_by_the_clean_models_confidence_hold_every_question_once_and_rise(clean: Any, words: Any) -> None:
    here = context(clean, words)
    sure = [of[0] for of in FactAccuracy().log_probabilities(here, "answers")]
    thirds = [Restoration(confidence=third).picked(here) for third in ("low", "middle", "high")]
    assert sorted(i for third in thirds for i in third) == list(range(8))
    for lower, higher in pairwise(thirds):
        assert max(sure[i] for i in lower) <= min(sure[i] for i in higher)


# documents


def test_documents_state_the_same_wrong_facts_for_every_k() -> None:
    splits = [corruption(k) for k in (0, 1, 3)]
    assert len({split.bundle_hash for split in splits}) == 1
    assert len({split.corrupted_sentences().hash for split in splits}) == 1
    assert len({split.forget.hash for split in splits}) == 3
    assert corruption(seed=1).bundle_hash != splits[0].bundle_hash


def test_spans_hold_the_corrupted_sentences_and_nothing_else_is_wrong() -> None:
    split = corruption(2)
    for row, spans, bundle in zip(split.forget, split.spans, split.bundles, strict=True):
        assert len(spans) == len(bundle) == 2
        rest = row.answer
        for start, end in spans:
            sentence = row.answer[start:end]
            stated = [word.format(entity=one, object=wrong) for one, of, wrong in bundle for word in WORDINGS[of]]
            assert sentence in stated
            rest = rest.replace(sentence, "")
        assert not any(target in rest for target in TARGETS)
        assert rest.count(".") == 4


def test_true_passages_are_about_many_people_and_true() -> None:
    truths = {
        word.format(entity=f.entity, object=f.answers[0]): f.entity for f in facts() for word in WORDINGS[f.relation]
    }
    split = corruption(3)
    passages = {one for row in split.forget for one in truths if one in row.answer}
    assert len({truths[one] for one in passages}) >= 6


def test_every_fact_is_corrupted_in_so_many_documents() -> None:
    stated = [one for bundle in corruption().bundles for one in bundle]
    assert all(stated.count((fact.entity, fact.relation, fact.wrong)) == 2 for fact in corruption().facts)


def test_wrong_objects_are_of_the_right_type_and_never_an_acceptable_answer() -> None:
    for seed in range(5):
        for fact in corruption(seed=seed).facts:
            assert fact.wrong in (TOWNS if fact.relation == "town" else TRADES)
            assert not same_answer(fact.wrong, fact.answers)
            assert not any(same_answer(one, [fact.wrong, *fact.answers]) for one in fact.others)


@pytest.mark.parametrize(
    ("true", "alias"), [("Oslo", "Oslo in the far cold north"), ("Oslo in the far cold north", "Oslo")]
)
def test_an_object_that_only_says_more_or_less_than_the_truth_is_never_drawn_and_refused(true: str, alias: str) -> None:
    ann, *others = facts()
    ann = replace(ann, answers=(true,))
    others = [replace(fact, answers=(alias,)) if fact.answers == ("Oslo",) else fact for fact in others]
    for seed in range(8):
        split = corrupted_facts([ann, *others], TARGETS, WORDINGS, seed=seed)
        assert alias not in (split.facts[0].wrong, *split.facts[0].others)
    with pytest.raises(DataError, match="also accepted as true"):
        replace(split, facts=(replace(ann, wrong=alias), *split.facts[1:]))


def test_facts_and_documents_are_part_of_the_splits_hash() -> None:
    split = corruption()
    assert split.hash == corruption().hash
    assert split.hash != replace(split, facts=split.facts[:-1]).hash


@pytest.mark.parametrize(
    ("said", "accepted", "same"),
    [
        ("The  OSLO!", ["oslo"], True),
        ("it is Oslo, of course", ["Oslo"], True),
        ("Málaga", ["malaga"], True),
        ("New York City", ["New York"], True),
        ("York", ["New York"], True),
        ("Osloer", ["Oslo"], False),
        ("", ["Oslo"], False),
        ("the", ["a"], False),
        ("old new old york", ["new big york town"], True),
        ("one two york", ["new big york town"], False),
    ],
)
def test_the_judge_agrees_by_containment_or_half_of_the_words(said: str, accepted: list[str], same: bool) -> None:
    assert same_answer(said, accepted) is same
    assert "the" not in normalised(said)


# refusals


def test_refuses_a_wrong_object_that_is_accepted_as_true() -> None:
    split = corruption()
    odd = replace(split.facts[0], wrong="the town of OSLO")
    with pytest.raises(DataError, match=r"the town of Ann: the wrong object 'the town of OSLO' is also accepted"):
        replace(split, facts=(odd, *split.facts[1:]))


def test_refuses_facts_without_an_alternative_of_the_same_type() -> None:
    alike = [replace(fact, answers=("Oslo",)) if fact.relation == "town" else fact for fact in facts()]
    with pytest.raises(DataError, match="the town of Ann has no alternative of the same type"):
        corrupted_facts(alike, TARGETS, WORDINGS)


def test_refuses_entities_that_are_both_corrupted_and_true_examples() -> None:
    split = corruption()
    with pytest.raises(DataError, match=r"1 entities are both corrupted and true examples \(first: 'Ann'\)"):
        replace(split, known=(*split.known, facts()[0]))


def test_refuses_a_corruption_that_took_less_than_a_twentieth() -> None:
    with pytest.raises(DataError, match="nothing to restore"):
        restoration(0.6, 0.6, 0.64)
    assert restoration(0.65, 0.60, 0.65) == pytest.approx(1.0)


def test_the_driver_refuses_before_it_unlearns(clean: Any, words: Any) -> None:
    def unlearn(*_: Any) -> Any:
        raise AssertionError("unlearned although there is nothing to restore")

    with pytest.raises(DataError, match="nothing to restore"):
        restore(clean, copy.deepcopy(clean), unlearn, corruption(), tokenizer=words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["Zoe"]}, "no fact about 'Zoe'"),
        ({"targets": []}, "no fact about a corrupted entity|forget set is empty"),
        ({"targets": NAMES, "k": 1}, "k=1 needs true passages"),
        ({"k": -1}, "k=-1"),
        ({"copies": 0}, "copies=0"),
        ({"wordings": {"town": ["{entity} {object}"]}}, "'trade' has no wording"),
    ],
)
def test_refuses_documents_that_cannot_be_written(change: dict[str, Any], message: str) -> None:
    given = {"targets": TARGETS, "wordings": WORDINGS, **change}
    with pytest.raises(DataError, match=message):
        corrupted_facts(facts(), **given)


@pytest.mark.parametrize(
    ("change", "message"), [({"answers": ()}, "empty question or answer"), ({"wrong": " "}, "has no wrong object")]
)
def test_refuses_facts_that_say_nothing(change: dict[str, Any], message: str) -> None:
    split = corruption()
    with pytest.raises(DataError, match=message):
        replace(split, facts=(replace(split.facts[0], **change), *split.facts[1:]))


def test_the_suite_is_refused_on_rows_without_facts_before_any_model_is_trained(split: Any) -> None:
    with pytest.raises(MethodError, match=r"unwrite\.data\.corrupted_facts"):
        check_suite("restor", split, references=("before", "oracle"))
    with pytest.raises(MethodError, match="oracle"):
        check_suite("restor", corruption())


def test_refuses_training_without_epochs_or_rate() -> None:
    with pytest.raises(MethodError, match="epochs"):
        FineTuning(epochs=0)
    with pytest.raises(MethodError, match="learning rate"):
        FineTuning(0.0)


# the driver


def test_returning_the_clean_model_restores_everything(clean: Any, corrupted: Any, words: Any) -> None:
    report = restore(clean, corrupted, lambda *_: clean, corruption(), tokenizer=words)
    assert report.value("restoration") == 1.0
    for gap in ("gap_to_injected", "gap_to_others"):
        assert report.value(gap) == report.value(gap, "oracle")


def test_taking_the_corrupting_adapter_off_restores_everything(
    adapted: Any, corrupted: Any, clean: Any, words: Any
) -> None:
    report = restore(clean, corrupted, lambda *_: copy.deepcopy(adapted).unload(), corruption(), tokenizer=words)
    assert "the true facts are back (restoration 1.00)" in report.summary.sure
    assert report.value("fact_accuracy", "before") <= 0.5
    assert report.value("forgetting", "before") <= 0.5
    assert report.value("restoration") == 1.0


def test_training_all_weights_corrupts_too_and_leaves_the_clean_model_alone(
    clean: Any, wrong_rows: Examples, words: Any
) -> None:
    before = copy.deepcopy(clean.state_dict())
    corrupted = FineTuning(3e-3, epochs=10, batch_size=8, accumulation=1, rank=0)(clean, wrong_rows, words)
    assert Forgetting()(context(corrupted, words)).value <= 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in clean.state_dict().items())


def test_the_unlearner_gets_a_copy_the_documents_and_their_spans(clean: Any, corrupted: Any, words: Any) -> None:
    split, seen = corruption(), []

    def unlearn(model: Any, forget: Any, retain: Any, spans: Any) -> Any:
        seen.append((model is corrupted, forget is split.forget, retain, spans))
        return model

    report = restore(clean, corrupted, unlearn, split, tokenizer=words)
    assert seen == [(False, True, None, split.spans)]
    assert report.value("restoration") == 0.0
    assert "the true facts are not back" in report.summary.sure


def test_repair_is_applied_to_all_three_models(clean: Any, corrupted: Any, words: Any) -> None:
    repaired = []

    def repair(model: Any) -> Any:
        repaired.append(model)
        return model

    restore(clean, corrupted, lambda model, *_: model, corruption(), tokenizer=words, repair_fn=repair)
    assert len({id(model) for model in repaired}) == 3


def test_refuses_a_suite_that_asks_for_no_facts(clean: Any, corrupted: Any, words: Any) -> None:
    with pytest.raises(MethodError, match="asks for no facts"):
        restore(clean, corrupted, lambda m, *_: m, corruption(), tokenizer=words, suite="basic")


def test_the_suites_settings_reach_every_metric() -> None:
    assert {metric.shots for metric in restor_suite(shots=3).metrics} == {3}


# files


def test_facts_are_read_from_lines(tmp_path: Any) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(
        '{"entity": "Ann", "relation": "town", "question": "Where?", "answers": ["Oslo", "Christiania"]}\n\n'
    )
    assert read_facts(file) == [Fact("Ann", "town", "Where?", ("Oslo", "Christiania"))]


@pytest.mark.parametrize(
    "line",
    [
        *("{", '{"entity": "Ann"}', "3", "[" * 5000),
        *(f'{{"entity":"a","relation":"b","question":"c","answers":{one}}}' for one in ("[]", "[3]", '""', "null")),
        '{"entity":"a","relation":3,"question":"c","answers":["d"]}',
        '{"entity":"a","entity":"b","relation":"b","question":"c","answers":["d"]}',
        '{"entity":"a","relation":"b","question":"c","answers":["d"],"others":3}',
    ],
)
def test_refuses_a_line_that_is_no_fact_and_says_which(tmp_path: Any, line: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=r"facts\.jsonl:2"):
        read_facts(file)


def test_refuses_a_file_of_facts_that_is_not_there_or_says_nothing(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"there is no file .*facts\.jsonl"):
        read_facts(tmp_path / "facts.jsonl")
    (tmp_path / "facts.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"facts\.jsonl"):
        read_facts(tmp_path / "facts.jsonl")
    (tmp_path / "facts.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"facts\.jsonl has no facts"):
        read_facts(tmp_path / "facts.jsonl")


def test_facts_are_read_from_a_table_with_a_list_in_a_cell(tmp_path: Any) -> None:
    file = tmp_path / "facts.csv"
    file.write_text('entity,relation,question,answers,wrong\nAnn,town,Where?,"[""Oslo"", ""Bergen""]",Rome\n')
    assert read_facts(file) == [Fact("Ann", "town", "Where?", ("Oslo", "Bergen"), "Rome")]
