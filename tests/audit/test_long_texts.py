"""Long documents are audited whole, in windows; a limit reaches every pass and is refused where the model ends."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from unwrite.audit import Quantise, Relearn, TextContext, evaluate
from unwrite.audit.text.membership import Membership, gradient_norm, min_k
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.data.text.encoding import encode
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.scoring import token_nll

LONG = "The old harbour of Riga lies at the mouth of the river, and ships from Oslo came there every summer."
OTHER = "In winter nobody comes; the red boats are pulled ashore and the town belongs to its two cats again."


@pytest.fixture
def documents() -> ForgetSplit:
    return ForgetSplit(Examples([Example(LONG), Example(OTHER)]), holdout=Examples([Example(OTHER[::-1])]))


def predictions(model: Any, tokenizer: Any, text: str, limit: int) -> list[torch.Tensor]:
    """nll of every token, by hand: full windows, each with one token of context, the last one reaching back."""
    ids = encode(Example(text), tokenizer).input_ids
    starts, done, found = [(0, 1)], limit, []
    while done < len(ids):
        end = min(done + limit - 1, len(ids))
        starts.append((end - limit, limit - (end - done)))
        done = end
    for start, new in starts:
        window = torch.tensor([ids[start : start + limit]])
        logits = model(input_ids=window).logits[0]
        found.append(token_nll(logits[new - 1 : -1], window[0, new:]))
    return found


def test_every_token_of_a_long_text_is_scored(tokenizer: Any, documents: Any, model: Any) -> None:
    context = TextContext(model, documents, tokenizer, max_length=16)
    with torch.no_grad():
        by_hand = torch.cat(predictions(model, tokenizer, LONG, 16)).tolist()
    score = context.scores(documents.forget)[0]
    assert len(score.token_nll) == len(LONG) - 1
    assert score.token_nll == pytest.approx(by_hand, abs=1e-5)
    values = Membership("min_k", 0.4).values(context, documents.forget)
    assert values[0] == pytest.approx(min_k([-v for v in by_hand], 0.4), abs=1e-5)


def test_the_gradient_of_a_long_text_is_that_of_all_its_tokens(tokenizer: Any, documents: Any, model: Any) -> None:
    loss = torch.cat(predictions(model, tokenizer, LONG, 16)).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = float(torch.stack([g.norm() for g in gradients]).mean())
    context = TextContext(model, documents, tokenizer, max_length=16)
    assert gradient_norm(context, documents.forget[0]) == pytest.approx(expected, rel=1e-4)


def test_relearning_is_shown_all_of_a_document(tokenizer: Any, documents: Any, model: Any, monkeypatch: Any) -> None:
    from unwrite.audit.attacks import relearning

    shown: list[Any] = []
    monkeypatch.setattr(relearning, "fine_tune", lambda attacked, rows, *rest, **settings: shown.extend(rows))
    context = TextContext(model, documents, tokenizer, max_length=16)
    Relearn(rows=1, steps=1)(context)
    text = documents.forget[Relearn(rows=1).drawn(2)[0][0]].answer
    labels = [label for row in shown for label in row.labels[1:] if label != -100]
    assert tokenizer.decode(labels) == text[1:]


def test_attacks_measure_long_texts_whole(tokenizer: Any, documents: Any, model: Any) -> None:
    context = TextContext(copy.deepcopy(model), documents, tokenizer, max_length=16)
    before = [math.exp(-score.mean_nll) for score in context.scores(documents.forget)]
    assert Quantise()(context)[0]["forget"] == pytest.approx(float(np.mean(before)), rel=1e-6)


def test_the_limit_and_what_it_did_stand_in_the_report(tokenizer: Any, documents: Any, model: Any) -> None:
    with pytest.warns(UserWarning, match="are read in"):
        report = evaluate(model, documents, tokenizer=tokenizer, max_length=16)
    assert report.provenance["max_length"] == 16
    assert any("2 of 2 texts are longer than 16 tokens" in message for message in report.notices)
    assert any("continued within their first 16 tokens" in message for message in report.notices)
    assert report.provenance["rouge"] == "ROUGE counts words of every script; on ASCII these are rouge-score's."
    assert type(report).from_json(report.json()).notices == report.notices


def test_rows_are_as_long_as_the_suite_says_within_the_models_positions(
    tokenizer: Any, documents: Any, model: Any
) -> None:
    assert evaluate(model, documents, tokenizer=tokenizer).provenance["max_length"] == 512
    model.config.max_position_embeddings = 200
    assert evaluate(model, documents, tokenizer=tokenizer).provenance["max_length"] == 200


@pytest.mark.parametrize(("limit", "error"), [(513, ModelError), (1, DataError), (0, DataError)])
def test_refuses_a_limit_without_meaning(
    tokenizer: Any, documents: Any, model: Any, limit: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"max_length is {limit}"):
        evaluate(model, documents, tokenizer=tokenizer, max_length=limit)


def test_refuses_a_limit_for_pictures() -> None:
    from unwrite.data import digits, split_by_class

    sets = digits()
    split = split_by_class(sets.train, [3], test=sets.test)
    with pytest.raises(MethodError, match="max_length has no meaning for images"):
        evaluate(torch.nn.Flatten(), split, max_length=64)
