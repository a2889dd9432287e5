"""Greedy answers and ROUGE-L."""

import random

import pytest
import torch

from conftest import make_llama
from unwrite.data.text.encoding import encode_prompt
from unwrite.errors import DataError
from unwrite.scoring import end_ids, generate_answers, rouge_l
from unwrite.scoring.batches import by_length
from unwrite.scoring.rouge import UnicodeWords


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


def test_answers_end_where_the_model_ends_them(model, tokenizer, prompts):
    """A second end in the model's own settings (a turn's end beside the text's) ends an answer, too."""
    ids = torch.tensor([prompts[0]])
    model.generation_config.eos_token_id = 2
    long = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    new = long[0, len(prompts[0]) :].tolist()
    stop = new[3]
    model.generation_config.eos_token_id = [2, stop]
    assert stop in end_ids(model, tokenizer)
    said = generate_answers(model, tokenizer, prompts[:1], max_new_tokens=12)[0]
    assert said == tokenizer.decode(new[: new.index(stop) + 1], skip_special_tokens=True)


def test_answers_end_at_the_end_the_template_writes(model, tokenizer):
    model.generation_config.eos_token_id = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("' </s> '", "' <user> '")
    assert set(end_ids(model, tokenizer)) == {2, tokenizer.convert_tokens_to_ids("<user>")}


@pytest.mark.parametrize(
    "default",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"num_beams": 4},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(6, 60))},
        {"bad_words_ids": [[i] for i in range(6, 60)]},
        {"min_new_tokens": 6},
        {"forced_eos_token_id": 9},
    ],
    ids=lambda default: next(iter(default)),
)
def test_no_default_of_the_model_changes_a_greedy_answer(model, tokenizer, prompts, default):
    greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=6)
    for name, value in default.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=6) == greedy
    assert model.generation_config is own


def test_adapters_keep_their_settings_and_answer_greedily(model, tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=6)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.generation_config.repetition_penalty = model.generation_config.repetition_penalty = 9.0
    assert generate_answers(adapted, tokenizer, prompts, max_new_tokens=6) == greedy
    assert adapted.generation_config.repetition_penalty == model.generation_config.repetition_penalty == 9.0


def test_writes_no_further_than_the_model_has_positions(tokenizer):
    model = make_llama()
    model.config.max_position_embeddings = 12
    said = generate_answers(model, tokenizer, [[6, 7, 8, 9]], max_new_tokens=50)[0]
    assert len(said.split()) <= 8
    with pytest.raises(DataError, match="a prompt has 12 tokens, and the model has positions for 12"):
        generate_answers(model, tokenizer, [[6] * 12], max_new_tokens=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("东京是首都。", ["东", "京", "是", "首", "都"]),
        ("Москва — столица", ["москва", "столица"]),
        ("القاهرة عاصمة", ["القاهرة", "عاصمة"]),
        ("กรุงเป็น", ["ก", "รุ", "ง", "เ", "ป็", "น"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 말", ["한국어", "말"]),
        ("Ｍüller ÜBER 1984", ["ｍüller", "über", "1984"]),
        ("Stra\u00dfe e\u0301tude", ["strasse", "\u00e9tude"]),
        ("iPhone手机 x_y", ["iphone", "手", "机", "x", "y"]),
        ("!?", []),
    ],
)
def test_words_of_every_script_are_kept(text, words):
    assert UnicodeWords(stemmer=False).tokenize(text) == words
    assert rouge_l(text, text).f1 == (1.0 if words else 0.0)


def test_letters_are_not_dropped():
    assert rouge_l("Müller über", "M ller ber").f1 == 0.0
    assert rouge_l("Müller über", "M ller ber", words="ascii").f1 == 1.0


@pytest.mark.parametrize("stemmer", [True, False])
def test_on_ascii_the_words_are_those_of_rouge_score(stemmer):
    from nltk.stem.porter import PorterStemmer
    from rouge_score.tokenize import tokenize

    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice("abcdefgshiingesXYZ019 _-'.,!?\n\t\\/") for _ in range(40))
        assert UnicodeWords(stemmer).tokenize(text) == tokenize(text, PorterStemmer() if stemmer else None)


def test_only_english_words_are_stemmed():
    assert UnicodeWords(stemmer=True).tokenize("cafés books") == ["cafés", "book"]
