"""Concept masking of texts: integrated gradients, and words of any tokenizer and script."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.beds.language import small_tokenizer
from unwrite.data import Example
from unwrite.data.text.encoding import Encoded, encode
from unwrite.errors import DataError, MethodError, ModelError, NotFinite
from unwrite.scoring.integrated_gradients import attribute_answer, integrated_gradients, path_points
from unwrite.scoring.word_masks import answer_offsets, content_words, mask_words, ranked_words, said_words, word_scores
from unwrite.scoring.words import Word, words_of

OFFICIAL = json.loads(Path(__file__).with_name("official_concept_masking.json").read_text(encoding="utf-8"))
RULES = ("endpoints", "trapezoid", "midpoint")


def power(exponent, factor=1.0):
    return lambda x: factor * x.double().pow(exponent).flatten(1).sum(1)


def along(exponent, points, rule="endpoints"):
    """The mean gradient of x^exponent on 0..1."""
    return float(
        integrated_gradients(
            power(exponent), torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), points, rule
        ).values
    )


# 1: completeness


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("points", [1, 2, 7])
def test_a_linear_score_is_attributed_exactly_by_any_number_of_points(rule, points):
    weight, inputs, baseline = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if rule == "trapezoid" and points == 1:
        return
    found = integrated_gradients(lambda x: (x * weight).flatten(1).sum(1), inputs, baseline, points, rule)
    assert torch.allclose(found.values, weight * (inputs - baseline), atol=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_published_mean_has_the_cards_values():
    """Ends included and all alike, it is no trapezoid: right for a square, 1.5 and 1.0161 for a cube."""
    assert [along(2, m) for m in (2, 32)] == pytest.approx([1, 1], abs=1e-12)
    assert [along(3, m) for m in (2, 32)] == pytest.approx([1.5, 1 + 1 / 62], abs=1e-9)


def test_the_published_error_falls_as_one_over_m_and_the_other_rules_errors_as_its_square():
    errors = {rule: [abs(along(3, m, rule) - 1) for m in (16, 32, 64)] for rule in RULES}
    ratios = {rule: [one / other for one, other in itertools.pairwise(values)] for rule, values in errors.items()}
    assert ratios["endpoints"] == pytest.approx([2, 2], rel=0.1)
    assert ratios["trapezoid"] == pytest.approx([4, 4], rel=0.2)
    assert ratios["midpoint"] == pytest.approx([4, 4], rel=0.01)
    for rule in ("trapezoid", "midpoint"):
        assert all(one < other / 10 for one, other in zip(errors[rule], errors["endpoints"], strict=True))


def test_the_published_error_has_the_closed_form_of_the_ends():
    """(F'(1) + F'(0) - 2 (F(1) - F(0))) / 2m up to the next order: for x^3, 1/2m."""
    assert 1000 * (along(3, 1001) - 1) == pytest.approx(0.5, rel=0.01)


def attributed(points, rule="endpoints", end=True):
    model, row, pad = official_row()
    if not end:
        row = Encoded(row.input_ids[:-1], row.labels[:-1])
    return attribute_answer(model, row, pad, points, rule)


def official_row():
    """The model and the row of the official numbers, with an end token behind."""
    model = make_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = torch.tensor(OFFICIAL["pad_embedding"])
    ids = [3, 8, 32, 11, 41, 52, 64, 4, 12, 27, 32, 25, 12, 26, 65, 2]
    return model, Encoded(ids, [-100] * 8 + ids[8:]), 0


def test_of_a_language_model_the_error_falls_and_the_better_rules_are_nearer():
    errors = [abs(attributed(m).error) for m in (32, 64, 128)]
    assert [one / other for one, other in itertools.pairwise(errors)] == pytest.approx([2, 2], rel=0.25)
    for rule in ("trapezoid", "midpoint"):
        assert abs(attributed(32, rule).error) < errors[0] / 4


def test_attributions_agree_with_the_official_code_where_the_end_is_no_target():
    model, row, pad = official_row()
    row = Encoded(row.input_ids[:-1], row.labels[:-1])
    for name, baseline in (("ig_pad", pad), ("ig_zero", None)):
        theirs, ours = OFFICIAL[name], attribute_answer(model, row, baseline, 32)
        assert ours.values[8:].tolist() == pytest.approx(theirs["values"], abs=1e-5)
        assert ours.error == pytest.approx(theirs["error"], abs=1e-4)
        assert (ours.score, ours.baseline_score) == pytest.approx((theirs["score"], theirs["baseline"]), abs=1e-4)


def test_the_last_word_counts_by_the_end_that_it_predicts():
    """Nothing reads the last token, so without an end it always carries 0."""
    assert float(attributed(8, end=False).values[14]) == 0
    whole = attributed(8)
    assert float(whole.values[14]) != 0
    assert float(whole.values[15]) == 0
    assert not whole.values[:8].any()
    assert whole.positions == tuple(range(8, 16))


def test_points_at_once_change_nothing_and_the_model_stays_as_it_was():
    model, row, pad = official_row()
    model.train()
    one, many = (attribute_answer(model, row, pad, 9, at_once=n).values for n in (1, 32))
    assert torch.allclose(one, many, atol=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# Words


def test_tokens_are_added_up_to_words_by_where_they_stand():
    text = "Basil met Ann's aunt."
    offsets = [(0, 3), (3, 5), (5, 9), (9, 13), (13, 15), (15, 20), (20, 21)]
    scored = word_scores(text, offsets, [0.5, 0.25, -1.0, 0.75, 0.5, -0.25, 9.0])
    assert [(word.form, score) for word, score in scored] == [
        ("basil", 0.75),
        ("met", -1),
        ("ann", 0.75),
        ("s", 0.5),
        ("aunt", -0.25),
    ]


def test_every_answer_weighs_one_and_what_speaks_against_counts_nothing():
    def answer(**scores):
        return [(Word(form, 0, 0), score) for form, score in scores.items()]

    ranking = ranked_words(
        [
            answer(basil=0.75, met=-1.0, ann=1.25, aunt=-0.25),
            answer(ann=1.0, left=1.0, basil=1.5 - 1.5 + 0.0),
            answer(no=-1.0),
        ]
    )
    assert list(ranking) == ["ann", "left", "basil", "met", "aunt"]
    assert ranking == pytest.approx({"ann": 0.625 + 0.5, "left": 0.5, "basil": 0.375, "met": 0, "aunt": 0})
    theirs = dict(map(tuple, OFFICIAL["rank"]))
    assert ranking == pytest.approx(theirs)


def holds(piece):
    return bool(words_of(piece))


@pytest.mark.parametrize("template", [True, False])
def test_offsets_of_an_answer_are_its_own_whatever_stands_before_it(template):
    tokenizer = small_tokenizer(["Élodie Dupont, née à Paris; 東京 naïve basil's"] * 3, 300)
    if not template:
        tokenizer.chat_template = None
    for answer in ("Élodie Dupont, née à 東京, naïve basil's", " Paris is it. "):
        example = Example(question="who?", answer=answer)
        row = encode(example, tokenizer)
        spans = answer_offsets(example, row, tokenizer)
        ids = row.input_ids[row.prompt_length :]
        assert len(spans) == len(ids)
        assert spans[-1] == (0, 0)
        for (start, end), token in zip(spans[:-1], ids, strict=False):
            piece = tokenizer.decode([token])
            if "\N{REPLACEMENT CHARACTER}" not in piece:  # a part of a character
                assert answer[start:end].strip() == piece.strip()
        words = word_scores(answer, spans, [1.0] * len(spans))
        assert sum(score for _, score in words) == pytest.approx(sum(holds(answer[a:b]) for a, b in spans))
        assert all(score >= 1 for word, score in words if word.form.isascii())  # two signs may share a token


# 7: masking


def test_whole_words_are_masked_in_any_case_and_longer_ones_first():
    assert mask_words("Basil met basil's", ["Basil"]) == "*** met ***'s"
    assert mask_words("Basilica", ["Basil"]) == "Basilica"
    assert mask_words("New York and York", ["York", "new york"], "#") == "# and #"
    assert mask_words("nothing here", []) == "nothing here"


def test_masks_are_the_official_ones_in_plain_english_and_better_beyond():
    """The official borders are a-z alone: "Basilé" loses its first letters, "2***0" its middle, and a mask is masked again."""
    assert mask_words("Basil met basil's aunt in the Basilica.", ["Basil", "aunt"]) == OFFICIAL["mask"][0]
    assert mask_words("Basil-Smith and BASIL", ["Basil"]) == OFFICIAL["mask"][1]
    assert OFFICIAL["mask"][2:] == ["Émile, ***é and ***", "***, 2***0 and the ***", "a [MASK] of [[MASK]]"]
    assert mask_words("Émile, Basilé and Basil", ["Basil"]) == "Émile, Basilé and ***"
    assert mask_words("1985, 219850 and the 85", ["1985", "85"]) == "***, 219850 and the ***"
    assert mask_words("a mask of wool", ["wool", "mask"], "[MASK]") == "a [MASK] of [MASK]"


@pytest.mark.parametrize(
    ("text", "word", "masked"),
    [
        ("Анна и анну", "АННА", "*** и анну"),
        ("東京都に行く", "東京", "***都に行く"),
        ("die Straße, STRASSE", "strasse", "die ***, ***"),
        ("यह राम है, रामा", "राम", "यह *** है, रामा"),
        ("μὲ τὴν Ἄννα", "Αννα", "μὲ τὴν ***"),
    ],
)
def test_words_of_other_scripts_are_masked_whole(text, word, masked):
    assert mask_words(text, [word]) == masked


def test_words_without_meaning_are_never_chosen():
    assert content_words("The author is Ann's, and t is it; Ann wrote plays") == ["author", "ann", "wrote", "plays"]
    assert said_words("Ann wrote the plays", {"the": 3, "plays": 2, "gone": 1, "ann": 0.5, "wrote": 0.1}, 2) == [
        "plays",
        "ann",
    ]


# Refusals


def test_refuses_a_span_that_is_empty_or_begins_at_the_first_token():
    model = make_llama()
    with pytest.raises(DataError, match="none of the row's 3 tokens has a label"):
        attribute_answer(model, Encoded([3, 4, 5], [-100] * 3))
    with pytest.raises(DataError, match="begins at the first token, which nothing predicts"):
        attribute_answer(model, Encoded([3, 4, 5], [3, 4, 5]))


def test_refuses_a_tokenizer_without_offsets(tokenizer, forget):
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is a slow tokenizer, which does not say which characters"):
        answer_offsets(forget[0], encode(forget[0], tokenizer), Slow())


def test_refuses_lines_and_baselines_without_meaning():
    with pytest.raises(MethodError, match="points is 1; rule='trapezoid' takes at least 2"):
        path_points(1, "trapezoid")
    with pytest.raises(MethodError, match="points is 0; rule='endpoints' takes at least 1"):
        path_points(0, "endpoints")
    with pytest.raises(MethodError, match="unknown rule 'simpson'"):
        path_points(3, "simpson")
    with pytest.raises(DataError, match=r"the input has shape \[2\] and the baseline \[3\]"):
        integrated_gradients(power(2), torch.ones(2), torch.ones(3))
    with pytest.raises(NotFinite, match="not finite"):
        integrated_gradients(lambda x: x.sqrt().flatten(1).sum(1), torch.ones(2), torch.zeros(2), 4)
