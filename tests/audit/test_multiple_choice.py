"""Multiple choice: the general scorer, its shortcut, and what uniform logits give (card tofu, steps 12 to 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from unwrite.audit import MultipleChoice, TextContext, answer_choices, evaluate
from unwrite.audit.text.multiple_choice import encode_continuation, prompt_of
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.errors import DataError


@dataclass(frozen=True)
class Item:
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = "world_history"


SPLIT = ForgetSplit(Examples([Example("in oslo", "Where is Ann?")]))  # items don't come from it
ITEMS = [
    Item("How many?", ("one", "two", "six", "ten"), 1),
    Item("Who? ", ("Ann", "Bob", "Cay", "Dan"), 0),
    Item("When?", ("now", "then", "soon", "late"), 3),
]


@pytest.fixture
def words(tokenizer: Any) -> Any:
    """The byte tokenizer with ' A' to ' D' as single tokens."""
    import copy

    from tokenizers import AddedToken

    own = copy.deepcopy(tokenizer)
    own.add_tokens([AddedToken(f" {letter}", normalized=False) for letter in "ABCD"])
    return own


def test_the_prompt_is_the_harness_own() -> None:
    assert prompt_of(ITEMS[1]) == (
        "The following are multiple choice questions (with answers) about world history.\n\n"
        "Who?\nA. Ann\nB. Bob\nC. Cay\nD. Dan\nAnswer:"
    )


def test_solved_examples_come_first() -> None:
    assert "D. ten\nAnswer: B\n\nWho?" in prompt_of(ITEMS[1], ITEMS[:1])


def test_the_shortcut_equals_the_general_scorer(words: Any) -> None:
    from .conftest import tiny_llama

    context = TextContext(tiny_llama(len(words)), SPLIT, words)
    fast = answer_choices(context, ITEMS, shortcut=True)
    slow = answer_choices(context, ITEMS, shortcut=False)
    assert [c.prediction for c in fast] == [c.prediction for c in slow]
    for a, b in zip(fast, slow, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5)


def test_the_shortcut_is_refused_where_letters_are_several_tokens(tokenizer: Any, model: Any) -> None:
    with pytest.raises(DataError, match="more than one token"):
        answer_choices(TextContext(model, SPLIT, tokenizer), ITEMS, shortcut=True)


def test_letters_of_several_tokens_are_scored_by_their_sum(tokenizer: Any, model: Any) -> None:
    encoded = encode_continuation("Answer:", " B", tokenizer)
    assert encoded.targets == 2
    with torch.no_grad():
        log_p = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
    by_hand = sum(float(log_p[i - 1, encoded.input_ids[i]]) for i in (-2, -1) for i in [len(encoded.input_ids) + i])
    assert -TextContext(model, SPLIT, tokenizer).score_encoded([encoded])[0].nll == pytest.approx(by_hand, abs=1e-5)


def test_a_trailing_space_moves_to_the_continuation(tokenizer: Any) -> None:
    assert encode_continuation("Answer: ", "B", tokenizer) == encode_continuation("Answer:", " B", tokenizer)


def test_a_long_context_loses_its_beginning(tokenizer: Any) -> None:
    encoded = encode_continuation("x" * 50, " B", tokenizer, max_length=10)
    assert len(encoded.input_ids) == 10
    assert encoded.targets == 2


def test_uniform_logits_get_the_base_rate_of_letter_a(tokenizer: Any, model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = answer_choices(TextContext(model, SPLIT, tokenizer), ITEMS)
    assert [c.prediction for c in found] == [0, 0, 0]
    assert sum(c.correct for c in found) == 1


def test_shuffled_options_shuffle_the_predictions(tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that reads the option's text follows it wherever it stands."""
    from unwrite.audit.text import multiple_choice

    def by_text(context: Any, rows: Any) -> list[list[float]]:
        scores = []
        for options in rows:
            text = tokenizer.decode(options[0].input_ids)
            lines = dict(line.split(". ") for line in text.splitlines() if ". " in line[:3])
            scores.append([float(len(lines[letter])) for letter in "ABCD"])
        return scores

    monkeypatch.setattr(multiple_choice, "_general", by_text)
    item, turned = Item("?", ("a", "bb", "cccc", "ddd"), 2), Item("?", ("ddd", "cccc", "a", "bb"), 1)
    found = answer_choices(TextContext(model, SPLIT, tokenizer), [item, turned])
    assert [c.prediction for c in found] == [2, 1]
    assert all(c.correct for c in found)


def test_as_a_metric_it_says_what_chance_is(tokenizer: Any, split: Any, model: Any) -> None:
    from unwrite.audit import Suite

    suite = Suite("mcq", [MultipleChoice(ITEMS, "wmdp_bio", forget=True)])
    score = evaluate(model, split, tokenizer=tokenizer, suite=suite).columns["after"]["wmdp_bio"]
    assert score.better == "lower"
    assert score.note == "Chance is 0.25."


@pytest.mark.parametrize(("choices", "answer"), [(("a",), 0), (("a", "b"), 2), (("a", "b"), -1)])
def test_refuses_an_item_whose_answer_is_not_among_its_choices(
    tokenizer: Any, model: Any, choices: tuple[str, ...], answer: int
) -> None:
    with pytest.raises(DataError, match=f"item 0 has {len(choices)} choices and answer {answer}"):
        answer_choices(TextContext(model, SPLIT, tokenizer), [Item("?", choices, answer)])


def test_a_tokenizer_that_puts_bos_before_a_text_puts_it_before_a_question(words: Any) -> None:
    """As lm-evaluation-harness tokenises, which leaves the choice to the tokenizer."""
    import copy

    from tokenizers import processors

    plain = encode_continuation("Is it so?\nAnswer:", " A", words)
    own = copy.deepcopy(words)
    own._tokenizer.post_processor = processors.TemplateProcessing(single="<u> $A", special_tokens=[("<u>", 2)])
    row = encode_continuation("Is it so?\nAnswer:", " A", own)
    assert row.input_ids == [2, *plain.input_ids]
    assert row.labels == [-100, *plain.labels]
