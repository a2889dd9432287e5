"""Training on documents longer than a row: all of a text is trained on, and limits are refused before a step."""

from math import log

import pytest
import torch
from forgetting import train
from transformers import TrainerCallback

from conftest import make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_rows
from unwrite.errors import DataError, ModelError
from unwrite.forget import NPO, SSD, GradientAscent, StopWhenForgotten
from unwrite.forget.engine.text.stopping import answer_probability
from unwrite.scoring import score_rows

TEXTS = Examples(
    [
        Example("the old red book was near the new garden in the old town by the river"),
        Example("ann and bert and cora and dov and eli lives near the stone harbour in winter"),
    ]
)


def test_a_step_moves_by_the_gradient_of_every_token(tokenizer):
    model, twin = make_llama(), make_llama()
    options = {"max_length": 6, "per_device_train_batch_size": 16, "max_steps": 1, "learning_rate": 0.1}
    train(GradientAscent(), model, TEXTS, None, tokenizer, max_grad_norm=0.0, **options)
    rows = [window for row in encode_rows(TEXTS, tokenizer, 6) for window in row]
    total, count = 0.0, 0
    for row in rows:
        logits = twin(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += int((labels != -100).sum())
    assert count == sum(len(row.answer.split()) - 1 for row in TEXTS)
    (-total / count).backward()
    for (name, after), before in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_each_window_meets_its_own_reference(tokenizer):
    """Before the first step every window's ratio to its reference is 0, so that NPO's loss is 2 / beta * log 2."""
    seen = []

    class FirstLoss(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(logs)

    options = {"max_length": 6, "per_device_train_batch_size": 16, "max_steps": 1, "callbacks": [FirstLoss()]}
    train(NPO(retain_loss="none", beta=0.5), make_llama(), TEXTS, None, tokenizer, **options)
    assert seen[0]["loss"] == pytest.approx(4 * log(2), abs=1e-4)


def test_refuses_rows_longer_than_the_model_before_training(tokenizer, forget, tiny_llama):
    with pytest.raises(ModelError, match="max_length is 129, but the model has positions for 128"):
        train(GradientAscent(), tiny_llama, forget, None, tokenizer, max_length=129)
    with pytest.raises(DataError, match="max_length is 0"):
        train(GradientAscent(), tiny_llama, forget, None, tokenizer, max_length=0)


def test_stopping_looks_at_whole_texts_of_the_same_length(tokenizer, tiny_llama):
    stop = StopWhenForgotten(tokenizer, {"forget": TEXTS}, max_length=6)
    scores = score_rows(tiny_llama, encode_rows(TEXTS, tokenizer, 6), pad_id=0)
    expected = sum(torch.tensor(-score.mean_nll).exp().item() for score in scores) / 2
    assert stop._measure(tiny_llama, 0)["forget"] == pytest.approx(expected, rel=1e-5)
    assert answer_probability(tiny_llama, tokenizer, TEXTS) != pytest.approx(expected, rel=1e-5)


def test_importances_are_of_whole_texts(tokenizer, tiny_llama):
    work = SSD().work(tiny_llama, TEXTS, processing_class=tokenizer, args={"max_length": 6})
    assert len(work.encoded(TEXTS)) == sum(len(row) for row in encode_rows(TEXTS, tokenizer, 6))
