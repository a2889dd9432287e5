"""Weighted gradient ascent: between gradient ascent and letting go."""

import pytest
import torch

from unwrite.errors import MethodError
from unwrite.forget import WGA, GradientAscent, PairedBatch
from unwrite.forget.engine.batch import BatchPart

COUNTS = {"forget.tokens": torch.tensor(3.0)}


def batch(logits: torch.Tensor) -> PairedBatch:
    labels = torch.tensor([[-100, 0, 1, 2]])
    where = torch.tensor([[True, True, True, False]])
    ones = torch.ones(1, 4, dtype=torch.long)
    return PairedBatch(forget=BatchPart(torch.tensor([0]), ones, ones, labels, where, logits=logits))


def gradient(method, logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    method.loss(batch(logits)).terms["forget"].total(COUNTS).backward()
    return logits.grad


def test_beta_of_zero_is_gradient_ascent():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gradient(WGA(beta=0), logits), gradient(GradientAscent(), logits))


def test_the_gradient_is_ascents_times_each_tokens_probability():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[range(3), [0, 1, 2]]
    expected = gradient(GradientAscent(), logits) * p[:, None] ** 2
    torch.testing.assert_close(gradient(WGA(beta=2), logits), expected)


def test_closed_form_of_one_token():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]).repeat_interleave(2, 1) / 2)
    value = WGA().loss(batch(logits)).terms["forget"].total(COUNTS)
    assert value.item() == pytest.approx(0.25 * torch.tensor(0.25).log().item(), rel=1e-6)


def test_refuses_a_negative_beta():
    with pytest.raises(MethodError, match="beta is -1"):
        WGA(beta=-1)
