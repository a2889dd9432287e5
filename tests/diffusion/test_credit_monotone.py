"""Credit only ever helps a token that stays on top, and may cost a text forwards all the same."""

import pytest
import torch
from masks import MASK, VOCAB, confident, scripted

from unwrite.diffusion import Sampler, Threshold
from unwrite.diffusion.parts.credit import CreditDecoding, CreditThreshold

KINDS = [
    CreditDecoding(),
    CreditDecoding(storage="dense"),
    CreditDecoding.dinfer(),
    CreditDecoding(gamma=1.0, alpha=3.0),
]


@pytest.mark.parametrize("credit", KINDS)
def test_a_token_that_stays_on_top_is_surer_than_without_credit_at_every_step(credit):
    """Its probability goes up and down, and the runner-up changes."""
    sure, tables, steps = [0.5, 0.3, 0.7, 0.2, 0.35, 0.6, 0.25, 0.4], [], []
    for number, p in enumerate(sure):
        table = confident([5], [p])[0].exp()
        table[[6 + number % 3, 9]] += torch.tensor([0.5, -0.5]) * table[9]
        tables.append(table.log())
    counter = iter(tables)
    model = scripted(lambda canvas: next(counter).expand(*canvas.shape, -1).clone())
    commit = CreditThreshold(1.0, fallback="none", patience=len(sure) - 1)
    Sampler(gen_length=2, commit=commit, logits=credit, watch=steps.append)(model, None, [[7]], fixed={1: 8})
    assert len(steps) == len(sure)
    for step, p in zip(steps, sure, strict=True):
        assert int(step.proposed[0, 0]) == 5
        assert float(step.confidence[0, 0]) > p + 0.01


@pytest.mark.parametrize(("credit", "forwards"), [(None, 2), (CreditDecoding(), 5), (CreditDecoding.dinfer(), 5)])
def test_fewer_forwards_are_no_law(credit, forwards):
    """Credit reveals the first token a step sooner, beside the second; the model is unsure of all that follows it then."""

    def logits(canvas):
        if int(canvas[0, 1]) != MASK:
            sure = [0.9] * 2 + [0.3] * 4
        elif int(canvas[0, 2]) != MASK:
            sure = [0.95] * 6
        else:
            sure = [0.87, 0.95, 0.5, 0.5, 0.5, 0.5]
        return torch.cat([torch.zeros(1, VOCAB), confident([5] * 6, sure)])[None]

    out = Sampler(gen_length=6, commit=Threshold(0.9), logits=credit)(scripted(logits), None, [[7]])
    assert out.nfe.tolist() == [forwards]
    assert out.answers == [[5] * 6]
