"""Rows to token ids: the prompt masked, exactly one end token, padding by length."""

import pytest
import torch

from unwrite.data import Example, encode, encode_all, pad
from unwrite.data.text.encoding import IGNORE, encode_prompt, prompt_text
from unwrite.errors import DataError, ModelError

ROW = Example(question="who wrote the letter ?", answer="ann wrote a letter .", index=7)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def test_the_answer_and_its_end_token_carry_labels_and_the_prompt_none(tokenizer):
    row = encode(ROW, tokenizer)
    labelled = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE]
    assert words(tokenizer, labelled) == ["ann", "wrote", "a", "letter", ".", "</s>"]
    assert row.input_ids[: row.prompt_length] == encode_prompt(ROW, tokenizer)
    assert (row.targets, row.index) == (6, 7)


def test_what_a_template_writes_after_the_end_token_is_cut(tokenizer):
    tokenizer.chat_template += "{% if not add_generation_prompt %} winter {% endif %}"
    assert words(tokenizer, encode(ROW, tokenizer).input_ids)[-2:] == [".", "</s>"]


def test_an_end_token_is_added_where_the_template_writes_none(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "")
    assert words(tokenizer, encode(ROW, tokenizer).input_ids)[-2:] == [".", "</s>"]


def test_without_a_template_the_prompt_is_question_and_answer(tokenizer):
    tokenizer.chat_template = None
    assert prompt_text(ROW, tokenizer) == "Question: who wrote the letter ?\nAnswer:"
    assert encode(ROW, tokenizer).input_ids[-1] == tokenizer.eos_token_id


def test_earlier_turns_stand_in_the_prompt(tokenizer):
    row = Example("two .", "what year ?", history=(("user", "what day ?"), ("assistant", "one .")))
    encoded = encode(row, tokenizer)
    assert words(tokenizer, encoded.input_ids).count("</s>") == 2
    assert encoded.targets == 3


def test_plain_text_is_labelled_throughout(tokenizer):
    row = encode(Example("the old river in winter ."), tokenizer)
    assert row.labels == row.input_ids
    assert row.targets == len(row.input_ids) - 1


def test_a_long_answer_is_cut_at_the_maximum_length(tokenizer):
    assert len(encode(ROW, tokenizer, max_length=10).input_ids) == 10


def test_refuses_a_prompt_that_leaves_no_room_for_the_answer(tokenizer):
    with pytest.raises(DataError, match=r"row 7: the prompt has \d+ tokens and leaves no room"):
        encode(ROW, tokenizer, max_length=5)


def test_refuses_a_text_of_one_token(tokenizer):
    with pytest.raises(DataError, match=r"a.jsonl:3: the text has 1 token\(s\)"):
        encode(Example("river", source="a.jsonl:3"), tokenizer)


def test_refuses_a_tokenizer_without_an_end_token(tokenizer):
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no eos token"):
        encode(ROW, tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_keeps_every_token_even_where_pad_is_the_end_token(tokenizer, side):
    rows = encode_all([ROW, Example("ann .", "who ?", index=2)], tokenizer)
    batch = pad(rows, tokenizer.eos_token_id, side)
    assert batch["attention_mask"].sum(1).tolist() == [len(row.input_ids) for row in rows]
    for i, row in enumerate(rows):
        kept = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][kept].tolist() == row.input_ids
        assert batch["labels"][i][kept].tolist() == row.labels
        assert torch.all(batch["labels"][i][~kept] == IGNORE)
    assert batch["index"].tolist() == [7, 2]
    assert bool(batch["attention_mask"][:, 0 if side == "right" else -1].all())


def test_refuses_an_answer_that_the_tokenizer_drops(tokenizer):
    from tokenizers import normalizers

    tokenizer._tokenizer.normalizer = normalizers.Replace("#", "")
    with pytest.raises(DataError, match="no answer token is left to score"):
        encode(Example("#", "who wrote the letter ?"), tokenizer)
