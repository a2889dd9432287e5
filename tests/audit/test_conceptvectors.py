"""ConceptVectors: how concepts are found and tested, and what changed of them in the parameters and in the answers."""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.tiny import WORDS, make_examples, make_llama, make_tokenizer
from unwrite.audit import (
    ConceptRecord,
    concept_changes,
    concept_suite,
    evaluate,
    find_concepts,
    judged,
    validate_concept,
    vector_change,
)
from unwrite.audit.suites.concept_vectors import CONCEPT_VECTORS, ConceptCosine
from unwrite.audit.text.concept_search import ConceptValidation, coherence
from unwrite.audit.text.concept_vectors import article_tokens, jaccard
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.models import VectorPlace, anatomy, output_embeddings, value_vector, write_value_vector
from unwrite.runs import hash_model
from unwrite.scoring.bleu import bleu

PLACE = VectorPlace(1, 17)
COLOURS = ("red", "green", "blue", "old", "new", "stone")
ASKED = ("where is the old town ?", "who wrote the book ?")
UNRELATED = ("what is red ?", "where was the river ?", "who was born in winter ?")
RECORD = ConceptRecord("colours", PLACE, ASKED, UNRELATED, ("the red stone in", "his blue"), "the red town is old .")


def ids_of(words):
    return [WORDS.index(word) for word in words]


def naming(model, words):
    """A vector that names these words first; exact, for there are more entries than words."""
    embeddings = output_embeddings(model)
    indicator = torch.zeros(len(embeddings), 1).index_fill(0, torch.tensor(ids_of(words)), 1)
    return torch.linalg.lstsq(embeddings, indicator).solution[:, 0]


def planted(*, negated=False):
    """A random model in which one value vector names the colours."""
    model = make_llama(hidden=64)
    write_value_vector(model, PLACE, naming(model, COLOURS) * (-1 if negated else 1))
    return model


@torch.no_grad()
def wired(concept=("red", "blue")):
    """A model of single words: each is followed by the next of the list, but words of the concept by what one vector says.

    Embeddings are orthogonal and attention is off; unit 17 of block 1 is on at words of the concept alone.
    """
    model = make_llama(hidden=64, layers=2)
    for block in anatomy(model).blocks:
        block.o.write_(torch.zeros_like(block.o.weight))
        block.down.write_(torch.zeros_like(block.down.weight))
    vocabulary = len(WORDS)
    anatomy(model).embeddings.weight.copy_(torch.eye(vocabulary, 64))
    model.lm_head.weight.copy_(torch.eye(vocabulary, 64).roll(1, 0))
    for part in (anatomy(model).blocks[1].gate, anatomy(model).blocks[1].up):
        rows = torch.zeros_like(part.weight)
        rows[PLACE.unit, ids_of(concept)] = 1
        part.write_(rows)
    write_value_vector(model, PLACE, torch.eye(64)[WORDS.index("red") - 1])
    return model


def changes(before, after, **options):
    return concept_changes(before, after, make_tokenizer(), [RECORD], k=10, max_new_tokens=8, **options)[0]


def test_a_model_has_not_changed_from_itself():
    model = planted()
    change = changes(model, model)
    vector = change.vector
    assert (vector.cosine, vector.distance, vector.jaccard, vector.jaccard_before) == (
        pytest.approx(1, abs=1e-12),
        0,
        1,
        1,
    )
    assert vector.cosine <= 1
    assert (vector.precise, vector.related) == (1, 1)
    answers = change.answers
    assert answers.questions_bleu == answers.completions_bleu == answers.unrelated_bleu == 1
    assert answers.questions_rouge == answers.completions_rouge == answers.unrelated_rouge == 1


def test_rounding_puts_no_cosine_above_one():
    model = planted()
    cosines = [vector_change(model, model, (layer, unit), k=1).cosine for layer in range(3) for unit in range(40)]
    assert max(cosines) == 1


def test_bleu_of_a_short_text_with_itself_is_below_one_because_of_smoothing():
    assert bleu("a b c d", "a b c d") == 1
    assert 0 < bleu("red", "red") < bleu("red stone", "red stone") < bleu("a red stone", "a red stone") < 1
    assert bleu("", "red") == bleu("red", "") == 0
    assert bleu("a b c d e f", "u v w x y z") < 0.05


def test_cosine_and_distance_are_those_of_the_two_vectors():
    before, after = planted(), planted()
    v = value_vector(before, PLACE)
    write_value_vector(after, PLACE, 3 * v)
    change = vector_change(before, after, PLACE, k=10)
    assert change.cosine == pytest.approx(1)
    assert change.distance == pytest.approx(2 * float(v.norm()), rel=1e-6)
    assert change.jaccard == 1  # a positive factor keeps the ranks
    write_value_vector(after, PLACE, -v)
    change = vector_change(before, after, PLACE, k=10)
    assert change.cosine == pytest.approx(-1)
    assert change.jaccard == 0


def test_jaccard_of_an_overlap():
    assert jaccard(range(200), range(100, 300)) == pytest.approx(1 / 3)
    for overlap in (0, 1, 50, 200):
        assert jaccard(range(200), range(200 - overlap, 400 - overlap)) == pytest.approx(overlap / (400 - overlap))
    assert math.isnan(jaccard([], []))


def test_jaccard_of_models_projects_each_with_its_own_embeddings_and_both_with_those_before():
    before, after = planted(), planted()
    with torch.no_grad():
        after.lm_head.weight.copy_(after.lm_head.weight.roll(7, 0))
    change = vector_change(before, after, PLACE, k=6)
    shifted = {(i + 7) % len(WORDS) for i in ids_of(COLOURS)}
    assert change.jaccard == jaccard(ids_of(COLOURS), shifted) < 1
    assert change.jaccard_before == 1


def test_precise_and_related_count_tokens_that_the_article_has():
    before, after = planted(), planted()
    write_value_vector(after, PLACE, naming(after, ["red", "old", "town", "river", "summer", "letter"]))
    article = ids_of(["red", "green", "old", "town", "river", "garden"])
    change = vector_change(before, after, PLACE, k=6, article=article)
    assert change.precise == 4 / 3  # red, old, town, river after; red, green, old before
    assert change.related == 2 / 3  # red and old of red, green, old
    off_topic = vector_change(before, after, PLACE, k=6, article=ids_of(["garden"]))
    assert math.isnan(off_topic.precise)
    assert math.isnan(off_topic.related)


def test_figures_are_those_of_the_official_code():
    """On vectors and embeddings by formula, so that they are the same wherever this runs."""
    official = json.loads(Path(__file__).with_name("official_conceptvectors.json").read_text(encoding="utf-8"))
    rows, entries = torch.arange(len(WORDS)).double()[:, None], torch.arange(32).double()
    v = torch.cos(1.3 * entries)
    before, after = make_llama(), make_llama()
    for model, vector in ((before, v), (after, v + 0.8 * torch.sin(2.1 * entries))):
        model.lm_head.weight.data.copy_(torch.sin(1 + 3.1 * rows + 0.7 * rows * entries))
        write_value_vector(model, PLACE, vector)
    article = article_tokens(official["text"], make_tokenizer())
    for k, figures in official["jaccard"].items():
        change = vector_change(before, after, PLACE, k=int(k), article=article)
        assert [change.jaccard, change.precise, change.related] == pytest.approx(figures)
    assert change.cosine == pytest.approx(official["cosine"], rel=1e-6)
    assert change.distance == pytest.approx(official["distance"], rel=1e-6)
    for reference, output, figure in official["bleu"]:
        assert bleu(reference, output) == pytest.approx(figure)


def test_article_tokens_are_without_stop_words_punctuation_and_special_tokens():
    text = "the red town is in a garden . </s> , ?"
    assert article_tokens(text, make_tokenizer()) == set(ids_of(["red", "town", "garden"]))
    assert article_tokens("the red", make_tokenizer(), stop_words=("red",)) == set(ids_of(["the"]))


def test_answers_of_a_batch_are_those_of_single_questions():
    before, after = make_llama(0), make_llama(1)
    alone, together = changes(before, after, batch_size=1), changes(before, after, batch_size=8)
    assert alone.answers == together.answers
    assert alone.answers.questions_bleu < 1


def test_what_was_not_asked_has_no_figure():
    model = planted()
    record = ConceptRecord("colours", PLACE)
    change = concept_changes(model, model, make_tokenizer(), [record], k=10)[0]
    assert math.isnan(change.answers.questions_bleu)
    assert math.isnan(change.vector.precise)
    assert change.vector.jaccard == 1


@pytest.mark.parametrize("negated", [False, True])
def test_a_planted_vector_is_first_of_its_concept(negated):
    model, words = planted(negated=negated), {"colours": COLOURS, "numbers": ("one", "two", "three", "four")}
    found = find_concepts(model, make_tokenizer(), words, k=6, at_least=4)
    first = found["colours"][0]
    assert (first.vector.place, first.vector.matches, first.vector.lowest) == (PLACE, 6, negated)
    assert {*first.words} == {*COLOURS}
    assert all(one.vector.matches >= 4 for candidates in found.values() for one in candidates)
    assert not found["numbers"]


def test_candidates_are_words_in_any_case_and_need_some_word_that_is_a_token():
    model = planted()
    found = find_concepts(model, make_tokenizer(), {"colours": [one.upper() + " " for one in COLOURS]}, k=6)
    assert not found["colours"]  # ten matches are asked for by default
    assert find_concepts(model, make_tokenizer(), {"c": [one.upper() for one in COLOURS]}, k=6, at_least=6)["c"]
    with pytest.raises(DataError, match="no word of 'fruit' is a token"):
        find_concepts(model, make_tokenizer(), {"fruit": ["apple", ""]})
    with pytest.raises(MethodError, match="at_least is 0"):
        find_concepts(model, make_tokenizer(), {"colours": COLOURS}, at_least=0)


def test_a_judge_names_the_concept_and_drops_what_is_unclear():
    candidates = find_concepts(planted(), make_tokenizer(), {"colours": COLOURS}, k=6, at_least=1)["colours"]
    assert len(candidates) > 1
    clear = judged(candidates, lambda words: ("paint", 0.9 if {*words} == {*COLOURS} else 0.85))
    assert [(one.concept, one.clarity, one.vector.place) for one in clear] == [("paint", 0.9, PLACE)]
    for bad in (1.1, -0.1, math.nan):
        with pytest.raises(MethodError, match="clarity for 'x'"):
            judged(candidates, lambda words, bad=bad: ("x", bad))


def test_coherence_is_the_mean_cosine_of_different_tokens():
    embeddings = torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, 0]])
    assert coherence([0, 1], embeddings) == pytest.approx(1)
    assert coherence([0, 2], embeddings) == pytest.approx(0)
    assert coherence([0, 1, 2], embeddings) == pytest.approx(1 / 3)
    assert coherence([0, 1, 2], embeddings, first=2) == pytest.approx(1)
    assert math.isnan(coherence([0], embeddings))


def test_noise_on_the_vector_of_a_concept_changes_answers_about_it_alone():
    model = wired()
    before = hash_model(model)
    options = {"noise": 5.0, "relative": True, "prompt": "{question}", "max_new_tokens": 8}
    ask = make_tokenizer(), PLACE, ("who red", "the blue"), ("the stone", "his ann", "one")
    found = validate_concept(model, *ask, **options)
    assert found.unrelated == found.unrelated_rouge == 1
    assert found.related < 0.3
    assert found.related_rouge < 0.5
    assert found.gap == found.unrelated - found.related
    assert found.holds
    assert hash_model(model) == before
    other = validate_concept(model, ask[0], VectorPlace(1, 3), *ask[2:], **options)
    assert (other.related, other.unrelated, other.holds) == (1, 1, False)  # its unit is off everywhere


def test_noise_of_the_papers_size_is_absolute():
    model = wired()
    write_value_vector(model, PLACE, 100 * value_vector(model, PLACE))
    ask = make_tokenizer(), PLACE, ("who red",), ("the town",)
    assert validate_concept(model, *ask, prompt="{question}", max_new_tokens=8).related == 1
    assert validate_concept(model, *ask, noise=500, prompt="{question}", max_new_tokens=8).related < 0.3


def test_a_vector_holds_a_concept_above_the_bar_alone():
    assert ConceptValidation(0.5, 0.75, 0, 0, bar=0.25).holds is False
    assert ConceptValidation(0.5, 0.75, 0, 0).holds is True
    assert ConceptValidation(0.1, 0.1, 0, 0).holds is False


def test_suite_measures_named_vectors_and_what_is_said():
    before, after = planted(), planted()
    write_value_vector(after, PLACE, -value_vector(before, PLACE))
    split = ForgetSplit(make_examples("forget", 4), make_examples("retain", 4))
    suite = concept_suite((PLACE.layer, 0), (PLACE.unit, 2), top=6)
    report = evaluate(after, split, suite=suite, tokenizer=make_tokenizer(), before=before)
    scores = report.columns["after"]
    assert scores["concept_cosine"].per_example == pytest.approx([-1, 1])
    assert scores["concept_jaccard"].per_example == [0, 1]
    assert scores["concept_jaccard"].value == 0.5
    assert scores["concept_distance"].per_example == pytest.approx([2 * float(value_vector(before, PLACE).norm()), 0])
    assert scores["concept_cosine"].note == "Layer/unit: 1/17, 0/2."
    assert report.columns["before"]["concept_jaccard"].value == 1


def test_suite_finds_the_vectors_of_the_forget_answers_in_the_model_before():
    before, after = planted(), make_llama(5, hidden=64)
    common = ["one", "two", "three", "four", "five", "six", "seven", "eight"]  # retain answers have these, too
    write_value_vector(before, (0, 5), 9 * naming(before, common))
    forget = Examples([Example(question="what is it ?", answer=" ".join([*common, *COLOURS]))], "forget")
    split = ForgetSplit(forget, Examples([Example(question="how many ?", answer=" ".join(common))], "retain"))
    report = evaluate(after, split, suite=concept_suite(top=8), tokenizer=make_tokenizer(), before=before)
    note = report.columns["after"]["concept_jaccard"].note
    assert note.startswith("Layer/unit: 1/17, ")
    assert len(report.columns["after"]["concept_jaccard"].per_example) == 5
    assert report.columns["before"]["concept_cosine"].note == note


def test_suite_needs_the_model_before():
    split = ForgetSplit(make_examples("forget", 4), make_examples("retain", 4))
    with pytest.raises(MethodError, match="the model before unlearning"):
        evaluate(planted(), split, suite=CONCEPT_VECTORS, tokenizer=make_tokenizer())
    with pytest.raises(MethodError, match="layers has 1 entries and units 0"):
        ConceptCosine(layers=(1,))


def test_records_are_read_as_the_benchmark_publishes_them(tmp_path):
    row = {
        "Concept": "colours",
        "Layer": 1,
        "Dim": 17,
        "QA": list(ASKED),
        "unrelated_QA": list(UNRELATED),
        "text_completion": [{"First_half": one, "Second_half": "."} for one in RECORD.halves],
        "wikipedia_content": RECORD.text,
    }
    file = tmp_path / "records.json"
    file.write_text(json.dumps([row]), encoding="utf-8")
    assert ConceptRecord.read(file) == [RECORD]
    numbered = json.dumps([{**row, "QA": [1, 2]}])
    for bad in ("[{}]", "{", '["a"]', "3", "[" * 100_000, numbered, numbered.replace("17", "Infinity")):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(DataError, match="holds no records of ConceptVectors"):
            ConceptRecord.read(file)
    with pytest.raises(DataError, match="holds no records"):
        ConceptRecord.read(tmp_path / "none.json")


def test_refuses_what_cannot_be_compared():
    model, tokenizer = planted(), make_tokenizer()
    with pytest.raises(ModelError, match="layer 9 is not one"):
        vector_change(model, model, (9, 0))
    with pytest.raises(MethodError, match="64 and 32 entries"):
        vector_change(model, make_llama(), (0, 0))
    with pytest.raises(DataError, match="there are no concepts"):
        concept_changes(model, model, tokenizer, [])
    with pytest.raises(DataError, match="at least one of each"):
        validate_concept(model, tokenizer, PLACE, [], UNRELATED)
