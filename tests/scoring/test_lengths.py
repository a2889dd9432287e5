"""How long a row may be, and that a text in windows is scored as one."""

from types import SimpleNamespace

import pytest

from conftest import make_llama
from unwrite.data import Example, encode
from unwrite.data.text.encoding import encode_rows
from unwrite.errors import DataError, ModelError
from unwrite.scoring import positions_of, row_length, score_answers, score_rows


@pytest.mark.parametrize(
    ("settings", "positions"),
    [({"max_position_embeddings": 128}, 128), ({"n_positions": 64}, 64), ({"max_seq_len": 32}, 32), ({}, None)],
)
def test_positions_are_read_from_the_configuration(settings, positions):
    assert positions_of(SimpleNamespace(config=SimpleNamespace(**settings))) == positions


def test_positions_of_a_model_with_parts_are_those_of_its_text_part():
    inner = SimpleNamespace(max_position_embeddings=48)
    assert positions_of(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: inner))) == 48


def test_a_row_may_have_512_tokens_or_all_the_model_has_positions_for(tiny_llama):
    assert row_length(tiny_llama) == 128
    assert row_length(SimpleNamespace()) == 512
    assert row_length(tiny_llama, default=64) == 64
    assert row_length(tiny_llama, 128) == 128


def test_refuses_more_tokens_than_the_model_has_positions_for(tiny_llama):
    with pytest.raises(ModelError, match="max_length is 129, but the model has positions for 128 tokens"):
        row_length(tiny_llama, 129)


@pytest.mark.parametrize("asked", [1, 0, -5])
def test_refuses_rows_too_short_to_predict_anything(tiny_llama, asked):
    with pytest.raises(DataError, match=f"max_length is {asked}"):
        row_length(tiny_llama, asked)


def test_a_text_in_windows_has_the_score_of_its_windows_one_after_the_other(tokenizer):
    model = make_llama()
    row = Example("the old red book was near the new garden in the old town by the river", index=3)
    whole = encode(row, tokenizer)
    parts = encode_rows([row], tokenizer, 6)
    score = score_rows(model, parts, pad_id=0)[0]
    assert len(score.token_nll) == len(whole.input_ids) - 1
    assert score.index == 3
    alone = [score_answers(model, [part], pad_id=0)[0] for part in parts[0]]
    assert score.token_nll == pytest.approx([v for s in alone for v in s.token_nll], abs=1e-5)
    first = score_answers(model, [whole], pad_id=0)[0]
    assert score.token_nll[:5] == pytest.approx(first.token_nll[:5], abs=1e-5)
