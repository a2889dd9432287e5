"""AdaBlock where an answer ends, where tokens are drawn, and where nothing is sure."""

from dataclasses import dataclass, field

import pytest
import torch
from masks import MASK, VOCAB, confident, lively, prompts_of, rows_of

from unwrite.diffusion import Gumbel, Sampler, Threshold
from unwrite.diffusion.parts.adablock import AdaBlock

NL = 5


@pytest.mark.parametrize(
    ("delimiters", "blocks", "delimited"),
    [
        ({0: 0.9}, [1, 8, 3], 1),  # three are left and no delimiter: all three
        ({0: 0.9, 11: 0.9}, [1, 8, 3], 2),  # at their offset 2: the same size, by the delimiter
        ({0: 0.9, 10: 0.9}, [1, 8, 2, 1], 2),
        ({0: 0.9, 11: 0.2}, [1, 8, 3], 1),
    ],
)
@pytest.mark.parametrize("window", ["fraction_of_budget", "fraction_of_done"])
def test_a_delimiter_in_what_remains_ends_the_block_there(delimiters, blocks, delimited, window):
    """Twelve positions, a window of 3 (after nine of them by either window), usual blocks of 8."""
    tokens = [NL if place in delimiters else 7 for place in range(12)]
    table = torch.cat([torch.zeros(1, VOCAB), confident(tokens, [delimiters.get(place, 0.9) for place in range(12)])])
    share = {"fraction_of_budget": 0.25, "fraction_of_done": 0.34}[window]
    blocks_part = AdaBlock(8, (NL,), 0.3, window, share)
    out = Sampler(gen_length=12, blocks=blocks_part, commit=Threshold(0.0))(rows_of(table), None, [[6]])
    assert out.trace.blocks == [blocks]
    assert out.trace.counts["delimited_blocks"].tolist() == [delimited]


@dataclass(frozen=True)
class Noted(AdaBlock):
    """Keeps what it saw at every step."""

    notes: list = field(default_factory=list)

    def candidates(self, step):
        found = super().candidates(step)
        self.notes.append((step, found))
        return found


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_delimiters_confidence_is_its_clean_probability(seed):
    """At temperature 1 and a fixed seed c = softmax(clean)[drawn], where a delimiter is drawn, whatever is likeliest."""
    blocks = Noted(5, tuple(range(3, 13)), 0.2)
    logits = torch.randn(33, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    sampler = Sampler(gen_length=32, blocks=blocks, commit=Threshold(0.5), propose=Gumbel(1.0), seed=seed)
    sampler(rows_of(logits), None, [[6]])
    clean = logits.double().index_fill(-1, torch.tensor(MASK), -torch.inf).softmax(-1)
    drawn = 0
    for step, found in blocks.notes:
        for offset, sure in enumerate(found[0].tolist()):
            place = int(step.start) + offset
            if place >= int(step.length) or int(step.canvas[0, place]) != MASK:
                continue
            token = int(step.ahead_proposed[0, offset])
            wanted = float(clean[place, token]) if token in blocks.delimiters else -torch.inf
            assert sure == pytest.approx(wanted, rel=1e-12)
            drawn += token in blocks.delimiters and token != int(clean[place].argmax())
    assert drawn > 2


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_threshold_of_zero_takes_one_forward_a_block_however_unlikely_its_tokens(cache):
    steps, blocks = [], AdaBlock(6, (13, 22), 0.01)
    parts = {"blocks": blocks, "commit": Threshold(0.0), "propose": Gumbel(9.0), "cache": cache}
    out = Sampler(gen_length=24, **parts, watch=steps.append)(lively(), None, prompts_of(3, 8))
    assert out.nfe.tolist() == [len(sizes) for sizes in out.trace.blocks]
    assert min(float(step.confidence.min()) for step in steps) < 1e-4
