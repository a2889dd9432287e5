"""The benchmark compares like with like: both sides minimise the same loss, from the same weights."""

import copy

import pytest

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.bench.unlearn_step import compare, our_step, peer_step, text_rows
from unwrite.data.text.encoding import encode_all, pad


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_both_sides_walk_the_same_losses(retain_loss):
    tokenizer, model = make_tokenizer(), make_llama()
    # Rows of one length: the peer's KL also averages over padding, which ours leaves out.
    rows = {}
    for name in ("forget", "retain"):
        encoded = encode_all(make_examples(name, 16), tokenizer)
        rows[name] = [row for row in encoded if len(row.input_ids) == len(encoded[1].input_ids)][:3]
    tensors = {name: pad(part, 0) for name, part in rows.items()}
    theirs = peer_step(copy.deepcopy(model), copy.deepcopy(model), tensors["forget"], tensors["retain"], retain_loss)
    ours, _ = our_step(copy.deepcopy(model), rows, tensors, 0, retain_loss)
    for _ in range(3):
        assert ours() == pytest.approx(theirs(), rel=1e-5)


def test_a_comparison_reports_both_times_and_their_ratio():
    tokenizer = make_tokenizer()
    forget, retain = (encode_all(make_examples(name, 4), tokenizer) for name in ("forget", "retain"))
    found = compare(make_llama(), forget, retain, 0, "nll", pairs=3)
    low, high = found["middle_half"]
    assert 0 < low <= found["ratio"] <= high
    assert found["ours_s"] > 0
    assert found["peer_s"] > 0


def test_text_rows_are_distinct_and_of_the_length_asked_for():
    rows = text_rows(4, 20)
    assert len({row.answer for row in rows}) == 4
    assert all(len(row.answer.split()) == 20 for row in rows)
