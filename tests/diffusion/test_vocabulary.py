"""Numbers read off the logits are those of whole float64 copies, bit for bit; ties are decided as before."""

import math

import pytest
import torch

from unwrite.diffusion.base import Step, ranked
from unwrite.diffusion.vocabulary import entropy_of, logsumexp, margin_of, probability_of, top_token

VOCABULARIES = (7, 53, 70_000)  # the last is wider than what is widened at once, and than what one thread sums


def drawn(vocabulary, dtype=torch.float32, rows=(2, 5)):
    logits = torch.randn(*rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 4
    logits[..., 3] = -torch.inf  # the mask token
    return logits.to(dtype)


def reference(logits):
    return logits.double().logsumexp(-1)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_normalisers_are_those_of_a_whole_float64_copy(vocabulary, dtype, threads):
    logits = drawn(vocabulary, dtype)
    before = logits.clone()
    assert torch.equal(logsumexp(logits), reference(logits))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_logits_far_below_the_largest_change_nothing(vocabulary):
    logits = drawn(vocabulary)
    logits[..., 4:] = -1e4
    logits[0, :, 5] = -690.0
    assert torch.equal(logsumexp(logits), reference(logits))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_position_has_the_same_number_alone_and_among_others(vocabulary, threads):
    logits = drawn(vocabulary)
    tokens, whole = top_token(logits), reference(logits)
    for row in range(2):
        for place in range(5):
            alone = torch.zeros(2, 5, dtype=torch.bool)
            alone[row, place] = True
            assert torch.equal(logsumexp(logits, alone), whole.masked_fill(~alone, 0.0))
            sure = probability_of(logits, tokens, alone)
            assert torch.equal(sure, probability_of(logits, tokens).masked_fill(~alone, 0.0))


def test_nothing_is_asked_for_and_nothing_is_possible():
    logits = drawn(53)
    nowhere = torch.zeros(2, 5, dtype=torch.bool)
    for measure in (logsumexp, margin_of, entropy_of):
        assert measure(logits, nowhere).eq(0).all()
    assert logsumexp(torch.full((1, 1, 9), -torch.inf)).item() == -math.inf


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_margin_and_entropy_are_those_of_a_whole_float64_copy(vocabulary):
    logits = drawn(vocabulary)
    wide = logits.double()
    two = wide.topk(2).values - wide.logsumexp(-1, keepdim=True)
    assert torch.equal(margin_of(logits), two[..., 0].exp() - two[..., 1].exp())
    p = (wide - wide.logsumexp(-1, keepdim=True)).exp()
    assert torch.equal(entropy_of(logits), -(p * (p + 1e-10).log()).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_of_equal_logits_the_first_token_is_chosen(dtype):
    logits = drawn(53, dtype)
    logits[0, :, 10:20] = 50.0
    logits[1, :, 40] = logits[1].max() + 1
    logits[1, :, 52] = logits[1, :, 40]
    assert torch.equal(top_token(logits), logits.argmax(-1))
    assert top_token(logits).tolist() == [[10] * 5, [40] * 5]
    apart = logits.transpose(0, 1)[:, :, ::2]
    assert torch.equal(top_token(apart), apart.argmax(-1))  # not in one piece of memory


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("height", [0.5, 20.0, 40.0])
def test_equal_and_saturated_positions_are_revealed_in_the_order_of_the_float64_path(vocabulary, height):
    """Eight positions: two groups of equal logits, and tops so high that most probabilities are 1 or nearly."""
    logits = drawn(vocabulary, rows=(1, 8))
    logits[0, 4], logits[0, 6], logits[0, 7] = logits[0, 1], logits[0, 1], logits[0, 2]
    logits[..., 0] = height + torch.tensor([0.0, 1.0, 2.0, 3.0, 1.0, 0.0, 1.0, 2.0])
    tokens = top_token(logits)
    before = (logits.double().gather(-1, tokens[..., None])[..., 0] - reference(logits)).exp()
    masked = torch.tensor([[True, True, True, False, True, True, True, True]])
    after = probability_of(logits, tokens, masked)
    assert torch.equal(after[masked], before[masked])
    assert after[0, 1] == after[0, 4] == after[0, 6]
    zero = torch.zeros(1, dtype=torch.long)
    step = Step(
        rows=zero, canvas=zero[None], prompt=zero, length=zero, start=zero, end=zero, opening=zero, opened=zero, number=zero,
        in_block=zero, at_entry=zero, total=8, size=8, mask_id=3, eos_ids=(), ahead=logits, masked=masked,
    )  # fmt: skip
    for count in range(8):
        many = torch.tensor([count])
        assert torch.equal(ranked(step, many, after), ranked(step, many, before))


def test_the_number_of_threads_changes_no_position_alone(threads):
    logits = drawn(70_000, rows=(1, 40))
    whole = reference(logits)
    for place in range(40):
        alone = torch.arange(40)[None] == place
        assert torch.equal(logsumexp(logits, alone)[alone], whole[alone])
