"""What O3's detector reads of a text: states of the model's own blocks, or of a masked encoder fitted to the request."""

import numpy as np
import pytest
import torch
from adapting import masked_encoder
from asked_prompts import ids

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.errors import ModelError
from unwrite.forget.engine.text.masked_encoder import MaskedEncoder, agreement_entropy
from unwrite.forget.engine.text.row_states import RowStates
from unwrite.runs import hash_model


def test_states_are_means_over_a_texts_own_tokens_whatever_is_beside_it():
    model, tokenizer = lively(make_llama(0)), make_tokenizer()
    read = RowStates(model, tokenizer, layers=2)
    short, long = "who was ann ?", "where is the old garden of bert near the river ?"
    alone, both = read([short]), read([long, short])
    assert alone.shape == (1, 2, model.config.hidden_size)
    assert np.allclose(both[1], alone[0], atol=1e-6)
    hidden = model.model(input_ids=torch.tensor([ids(short)]), output_hidden_states=True).hidden_states
    assert read.blocks[-1] == len(model.model.layers) - 1
    assert np.allclose(read([short])[0, 0], hidden[read.blocks[0] + 1][0].mean(0).detach().numpy(), atol=1e-5)


def test_an_encoders_states_do_not_depend_on_padding(tmp_path):
    _, encode = masked_encoder(tmp_path)
    short, long = "who was ann ?", "where is the old garden of bert near the river ?"
    alone, both = encode([short]), encode([long, short])
    assert alone.shape == (1, 2, 16)
    assert np.allclose(both[1], alone[0], atol=1e-6)


def test_fitting_an_encoder_learns_the_texts_and_leaves_the_one_given(tmp_path):
    _, encode = masked_encoder(tmp_path, epochs=6)
    texts = [row.question for row in make_examples("forget", 16)]
    before = hash_model(encode.model)
    again, other = encode.fitted(texts, seed=1), encode.fitted(texts, seed=2)
    assert hash_model(encode.model) == before
    assert np.allclose(again(texts), encode.fitted(texts, seed=1)(texts))
    assert not np.allclose(again(texts), other(texts))
    assert again.mean_loss(texts) < encode.mean_loss(texts)


def test_the_agreement_is_the_entropy_of_a_softmax_over_keys():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    near = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).softmax(1)  # each query against both keys
    expected = -(near * (near + 1e-5).log()).sum(1).mean()
    assert agreement_entropy(queries, keys).item() == pytest.approx(expected.item())
    assert agreement_entropy(100 * queries, keys).item() == pytest.approx(0.0, abs=1e-4)


def test_an_encoder_without_a_mask_token_is_refused(tmp_path):
    folder, _ = masked_encoder(tmp_path)
    make_tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match="no mask token"):
        MaskedEncoder.load(folder)
