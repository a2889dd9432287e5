"""How tokens are drawn, and how sure a draw is: frequencies, closed forms, LLaDA's and Dream's definitions."""

import math
from dataclasses import replace

import pytest
import torch
from masks import END, MASK, VOCAB, confident, rows_of

from unwrite.diffusion import (
    Confidence,
    EndLast,
    FixedBlocks,
    Gumbel,
    LeftToRight,
    Margin,
    NegativeEntropy,
    Nucleus,
    RandomOrder,
    Sampler,
    Threshold,
    TopK,
)
from unwrite.errors import MethodError

DRAWS = 100_000


def frequencies(proposal, probabilities, seed=0):
    noise = torch.rand(DRAWS, len(probabilities), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = torch.tensor(probabilities).log().expand(DRAWS, -1)
    return torch.bincount(proposal.propose(logits, noise), minlength=len(probabilities)) / DRAWS


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.6, 0.3, 0.1]), (0.5, [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46])],
)
@pytest.mark.parametrize("proposal", [Gumbel, lambda t: Nucleus(t, top_p=None)])
def test_draws_come_from_the_tempered_softmax(proposal, temperature, expected):
    found = frequencies(proposal(temperature), [0.6, 0.3, 0.1])
    for share, p in zip(found.tolist(), expected, strict=True):
        assert abs(share - p) < 3 * math.sqrt(p * (1 - p) / DRAWS)


def test_at_temperature_zero_the_likeliest_token_is_taken():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    for proposal in (Gumbel(), Nucleus(0.0)):
        assert torch.equal(proposal.propose(logits, None), logits.argmax(-1))


def test_noise_of_zero_and_one_draws_something_finite():
    logits = torch.zeros(2, 3)
    noise = torch.tensor([[0.0, 0.5, 0.5], [1 - 1e-16, 0.5, 0.5]], dtype=torch.float64)
    assert Gumbel(1.0).propose(logits, noise).tolist()[0] != 0


def test_top_p_keeps_the_token_that_crosses_the_bound():
    found = frequencies(Nucleus(1.0, top_p=0.7), [0.6, 0.3, 0.1])
    assert found[2] == 0
    assert abs(float(found[1]) - 1 / 3) < 0.01


def test_top_k_keeps_k_tokens():
    found = frequencies(Nucleus(1.0, top_p=None, top_k=1), [0.3, 0.6, 0.1])
    assert found.tolist() == [0.0, 1.0, 0.0]


class Caught:
    """Keeps the steps of a call."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)


def first_step(table, **parts):
    caught = Caught()
    settings = {"gen_length": len(table) - 1, "blocks": FixedBlocks(None), "commit": Threshold(2.0), **parts}
    Sampler(**settings, watch=caught)(rows_of(table), None, [[5]])
    return caught.steps[0]


def test_confidence_is_the_clean_probability_even_of_a_drawn_token():
    table = torch.cat([torch.zeros(1, VOCAB), torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(3))])
    step = first_step(table, propose=Gumbel(1.0))
    clean = table[1:].double().index_fill(-1, torch.tensor(MASK), -torch.inf).softmax(-1)
    torch.testing.assert_close(step.confidence, clean.gather(1, step.proposed[0][:, None]).T, atol=1e-12, rtol=1e-9)
    assert (step.proposed[0] != table[1:].argmax(-1)).any()  # something was drawn that is not the likeliest


def test_dreams_confidence_is_of_the_warped_distribution():
    table = torch.cat([torch.zeros(1, VOCAB), torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(3))])
    step = first_step(table, propose=Nucleus(0.5, top_p=None))
    warped = (table[1:].double().index_fill(-1, torch.tensor(MASK), -torch.inf) / 0.5).softmax(-1)
    torch.testing.assert_close(step.confidence, warped.gather(1, step.proposed[0][:, None]).T, atol=1e-12, rtol=1e-9)


def test_margin_and_entropy_are_dreams():
    table = confident([5, 6], [0.7, 0.4]).float()
    step = first_step(torch.cat([torch.zeros(1, VOCAB), table]))
    p = table.double().softmax(-1)
    two = p.topk(2).values
    torch.testing.assert_close(Margin().score(step)[0], two[:, 0] - two[:, 1], atol=1e-7, rtol=0)
    torch.testing.assert_close(NegativeEntropy().score(step)[0], (p * (p + 1e-10).log()).sum(-1), atol=1e-7, rtol=0)


def test_entropy_is_finite_where_top_p_removed_tokens():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 6], [0.9, 0.5])])
    step = first_step(table, propose=Nucleus(0.5, top_p=0.8), score=NegativeEntropy())
    assert step.confidence.isfinite().all()


def test_left_to_right_and_random_order():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 6, [0.5, 0.9, 0.3, 0.8, 0.7, 0.6])])
    sampler = Sampler(gen_length=6, blocks=FixedBlocks(None), commit=TopK(), score=LeftToRight())
    assert sampler(rows_of(table), None, [[5]]).trace.order[0].tolist() == [0, 1, 2, 3, 4, 5]
    orders = {
        tuple(replace(sampler, score=RandomOrder(), seed=seed)(rows_of(table), None, [[5]]).trace.order[0].tolist())
        for seed in range(8)
    }
    assert len(orders) > 4


def test_end_last_reveals_end_tokens_after_all_others_and_still_chooses_them():
    table = torch.cat([torch.zeros(1, VOCAB), confident([END, 7, END, 8], [0.99, 0.4, 0.95, 0.5])])
    sampler = Sampler(gen_length=4, blocks=FixedBlocks(None), commit=TopK())
    assert sampler(rows_of(table), None, [[5]]).trace.order[0].tolist() == [0, 3, 1, 2]
    out = replace(sampler, score=EndLast())(rows_of(table), None, [[5]])
    assert out.trace.order[0].tolist() == [2, 1, 3, 0]
    assert out.sequences[0, 1:].tolist() == [END, 7, END, 8]


def test_end_last_holds_drawn_end_tokens_back_as_well_as_the_likeliest():
    """Above temperature 0, where the official option does nothing for the end of text."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([END, 7, END, 8], [0.999999, 0.9999, 0.99999, 0.9998])])
    sampler = Sampler(gen_length=4, blocks=FixedBlocks(None), commit=TopK(), propose=Gumbel(1.0))
    assert sampler(rows_of(table), None, [[5]]).trace.order[0].tolist() == [0, 2, 1, 3]
    out = replace(sampler, score=EndLast())(rows_of(table), None, [[5]])
    assert out.trace.order[0].tolist() == [2, 0, 3, 1]
    assert out.sequences[0, 1:].tolist() == [END, 7, END, 8]


def test_end_last_does_not_change_what_one_confident_answer_says():
    table = torch.cat([torch.zeros(1, VOCAB), confident([7, 8, 9], [0.9, 0.5, 0.7])])
    sampler = Sampler(gen_length=3, blocks=FixedBlocks(None), commit=TopK())
    plain, last = (replace(sampler, score=score)(rows_of(table), None, [[5]]) for score in (Confidence(), EndLast()))
    assert torch.equal(plain.trace.order, last.trace.order)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gumbel(-0.1),
        lambda: Gumbel(math.nan),
        lambda: Gumbel(math.inf),
        lambda: Nucleus(math.inf),
        lambda: Nucleus(-1.0),
        lambda: Nucleus(top_p=0.0),
        lambda: Nucleus(top_p=1.1),
        lambda: Nucleus(top_k=0),
        lambda: Threshold(-0.1),
        lambda: Threshold(math.nan),
        lambda: Threshold(None),
        lambda: TopK(temperature=-1),
    ],
)
def test_settings_without_meaning_are_refused(make):
    with pytest.raises(MethodError, match=r"use|Use"):
        make()
