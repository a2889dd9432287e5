"""Greedy answers and ROUGE-L."""

import pytest
import torch

from conftest import make_llama
from unwrite.data.encoding import encode_prompt
from unwrite.scoring import generate_answers, rouge_l
from unwrite.scoring.batches import by_length, progress


@pytest.fixture
def model():
    model = make_llama()
    model.lm_head.weight.data *= 20  # no ties between greedy choices
    return model


@pytest.fixture
def prompts(forget, tokenizer):
    return [encode_prompt(row, tokenizer)[i % 3 :] for i, row in enumerate(forget[:8])]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_left_padded_batch_is_single_prompts_in_the_order_asked(model, tokenizer, prompts, batch_size):
    alone = [generate_answers(model, tokenizer, [p], max_new_tokens=6)[0] for p in prompts]
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=batch_size) == alone
    assert len(set(alone)) > 1


def test_answer_is_the_continuation_without_prompt_and_special_tokens(model, tokenizer, prompts):
    ids = torch.tensor([prompts[0]])
    own = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(own[0, len(prompts[0]) :], skip_special_tokens=True)
    assert generate_answers(model, tokenizer, prompts[:1], max_new_tokens=6) == [expected]


def test_answers_are_greedy_whatever_the_model_usually_does(model, tokenizer, prompts):
    greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=6)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 9.0
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=6) == greedy


def test_model_keeps_its_mode(model, tokenizer, prompts):
    model.train()
    generate_answers(model, tokenizer, prompts[:1], max_new_tokens=1)
    assert model.training


def test_no_prompts_give_no_answers(model, tokenizer):
    assert generate_answers(model, tokenizer, []) == []


def test_batches_are_of_like_length_longest_first_and_hold_every_row_once():
    batches = by_length([3, 9, 1, 7, 5], 2)
    assert batches == [[1, 3], [4, 0], [2]]


def test_progress_yields_everything(capsys):
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_rouge_recall_is_the_share_of_the_reference_found():
    score = rouge_l("the red book near the river", "the red river")
    assert score.recall == pytest.approx(3 / 6)
    assert score.precision == pytest.approx(3 / 3)
    assert score.f1 == pytest.approx(2 * 0.5 / 1.5)


def test_stemmer_is_what_makes_plural_and_singular_equal():
    assert rouge_l("books", "book").recall == 1.0
    assert rouge_l("books", "book", stemmer=False).recall == 0.0


def test_rouge_of_an_empty_output_is_zero():
    assert rouge_l("the red book", "") == (0.0, 0.0, 0.0)
