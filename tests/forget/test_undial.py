"""UNDIAL: the lowered targets, their limits, and labels that are ignored."""

import pytest
import torch
from forgetting import encoded, forward, gradients, references, value
from test_npo import moved

from conftest import make_llama
from unwrite.errors import MethodError
from unwrite.forget import UNDIAL
from unwrite.forget.undial import undial_targets


@pytest.fixture
def rows(forget, tokenizer):
    return {"forget": encoded(forget[:6], forget[:6], tokenizer)["forget"]}


def test_targets_have_the_cards_closed_form():
    q = undial_targets(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), 10.0)
    torch.testing.assert_close(q, torch.tensor([[9.0212e-05, 0.730993, 0.268917]]), rtol=1e-4, atol=1e-6)


def test_large_strength_removes_the_token_and_keeps_the_ratios_of_the_rest():
    logits = torch.randn(5, 9)
    targets = torch.arange(5)
    q = undial_targets(logits, targets, 1e3)
    rest = torch.ones_like(q, dtype=torch.bool).scatter_(1, targets[:, None], False)
    p = logits.softmax(-1)
    assert q[~rest].max() == 0
    expected = p[rest].view(5, 8) / p[rest].view(5, 8).sum(-1, keepdim=True)
    torch.testing.assert_close(q[rest].view(5, 8), expected)


def test_strength_zero_is_self_distillation_with_no_gradient_at_the_start(rows):
    model = make_llama()
    objective = UNDIAL(strength=0.0)
    loss = value(objective, forward(objective, model, rows, references(objective, model, rows)))
    assert gradients(loss, model).abs().max() < 1e-6


def test_strength_zero_is_smallest_where_the_model_is_unchanged(rows):
    model = make_llama()
    objective = UNDIAL(strength=0.0)
    reference = references(objective, model, rows)
    start = value(objective, forward(objective, model, rows, reference))
    assert all(value(objective, forward(objective, moved(model, s, 0.02), rows, reference)) > start for s in range(3))


def test_targets_leave_the_reference_logits_alone():
    logits = torch.randn(2, 5)
    before = logits.clone()
    undial_targets(logits, torch.tensor([1, 2]), 10.0)
    assert torch.equal(logits, before)


def test_ignored_positions_never_index_the_vocabulary(rows, tiny_llama):
    """The official port reads entry V - 100 at every position whose label is -100."""
    objective = UNDIAL()
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    part = batch["forget"]
    assert (part.targets >= 0).all()
    assert len(part.targets) == sum(row.targets for row in rows["forget"])
    assert len(part.logits) == len(part.reference_logits) == len(part.targets)


def test_mean_is_over_label_positions_only(rows, tiny_llama):
    objective = UNDIAL()
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    q = undial_targets(batch["forget"].reference_logits, batch["forget"].targets, 10.0)
    expected = -(q * batch["forget"].logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(value(objective, batch), expected)


def test_usual_learning_rate_is_its_own():
    assert UNDIAL.training["learning_rate"] == 1e-4


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_refuses_a_strength_without_meaning(strength):
    with pytest.raises(MethodError, match=r"strength is .* at least 0"):
        UNDIAL(strength=strength)
