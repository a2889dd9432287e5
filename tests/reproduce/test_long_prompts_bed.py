"""Long prompts for caches: what is asked for is there, and scores are those of a forward over the whole text."""

import pydoc_data.topics

import pytest
import torch
from tests.helpers.tiny import make_llama
from tokenizers import pre_tokenizers
from transformers import DynamicCache

from unwrite.beds.language import small_tokenizer
from unwrite.beds.long_texts import (
    REPORTED,
    TUNING,
    continuation_losses,
    needle_hits,
    needles,
    passages,
    prompt_loss,
)  # fmt: skip
from unwrite.errors import MethodError


@pytest.fixture(scope="module")
def tokenizer():
    """Digits are tokens of their own, as those of many models are."""
    made = small_tokenizer([text[:300] for text in pydoc_data.topics.topics.values()], size=400)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_llama(vocab=len(tokenizer), layers=1, max_position_embeddings=1024).eval()


def test_scores_behind_a_prompt_are_those_of_one_forward_over_the_text(model):
    ids = torch.randint(5, model.config.vocab_size, (3, 14))
    losses, cache = continuation_losses(model, DynamicCache, ids, 8)
    with torch.no_grad():
        scores = -model(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses, scores[:, 8:].mean(1))
    assert cache.get_seq_length() == 13
    torch.testing.assert_close(prompt_loss(model, DynamicCache, ids), scores.mean(1))


def test_pages_are_of_one_half_and_of_one_row_each(tokenizer):
    reported, again, tuning = (passages(tokenizer, 3, 40, half) for half in (REPORTED, REPORTED, TUNING))
    assert torch.equal(reported, again)
    assert reported.shape == (3, 40)
    assert len({tuple(row.tolist()) for row in torch.cat([reported, tuning])}) == 6


def test_more_text_than_the_manual_has_is_refused(tokenizer):
    with pytest.raises(MethodError, match="Ask for shorter ones"):
        passages(tokenizer, 500, 40)


def test_a_list_holds_the_line_that_is_asked_for_and_says_four_before_it_again(tokenizer):
    asked = needles(tokenizer, 4, 600, seed=3)
    assert asked.input_ids.shape[1] <= 600
    for row, mask, answer in zip(asked.input_ids, asked.attention_mask, asked.answers, strict=True):
        text, number = tokenizer.decode(row[mask.bool()]), tokenizer.decode(answer).strip()
        listed, again = (part.splitlines() for part in text.split("\n\n"))
        at = next(i for i, line in enumerate(listed) if line.startswith(again[-1]))
        assert listed[at] == f"{again[-1]} {number}"
        assert listed[at - 4 : at] == again[:-1]


def test_a_list_without_room_is_refused(tokenizer):
    with pytest.raises(MethodError, match="no room for 8 lines"):
        needles(tokenizer, 1, 100)


def test_a_number_counts_only_when_all_of_it_is_written(model, tokenizer):
    asked = needles(tokenizer, 2, 500)
    tokens = asked.answers.shape[1]
    wrote = model.generate(
        input_ids=asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=tokens, min_new_tokens=tokens,
        do_sample=False, pad_token_id=0,
    )[:, -tokens:]  # fmt: skip
    almost = wrote.clone()
    almost[1, -1] = (almost[1, -1] + 1) % model.config.vocab_size
    right = type(asked)(asked.input_ids, asked.attention_mask, almost)
    assert needle_hits(model, lambda: None, right).tolist() == [True, False]
    assert needle_hits(model, DynamicCache, right, rows=[1]).tolist() == [False]
