"""One uniform number draws from the target's distribution, and only where no `generate` has to be followed."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tabular import Tabular
from transformers import GenerationConfig

from conftest import make_llama
from unwrite.decode import Plain, TokenRecycling, TransformersRuntime
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling, inverted
from unwrite.errors import NotFinite

P = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3, 0.0])


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def test_draws_have_the_distribution_and_leave_out_what_has_no_probability():
    """20,000 draws, chi-square at level 0.001."""
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount([inverted(5 + P.log(), generator) for _ in range(20_000)], minlength=6)
    assert counts[[1, 5]].tolist() == [0, 0]
    held = P.numpy() > 0
    expected = P.double().numpy()[held]
    assert chisquare(counts[held], 20_000 * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("number", "token"),
    [(0.0, 0), (0.0999, 0), (0.1001, 2), (0.4999, 2), (0.5001, 3), (0.6999, 3), (0.7001, 4), (1.0, 4)],
)
def test_the_token_is_the_first_whose_sum_exceeds_the_number(number, token, monkeypatch):
    """1.0 is what rounding may make of the largest number below it."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.tensor(number, dtype=torch.float64))
    assert inverted(P.log()) == token


def test_a_draw_takes_one_number_of_the_generator():
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    inverted(P.log(), ours)
    torch.rand((), generator=theirs, dtype=torch.float64)
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("wrong", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_scores_that_are_no_distribution_are_refused(wrong):
    with pytest.raises(NotFinite, match="nothing can be drawn"):
        inverted(torch.tensor(wrong))


class Inverting(Tabular):
    inverts = True


def test_a_target_says_whether_it_is_drawn_from_so():
    """One without context: another text than the usual draw writes at the same seed, and the one that inverting draws."""
    config = GenerationConfig(max_new_tokens=6000, do_sample=True, top_k=0)
    texts = []
    for made in (Tabular, Inverting):
        torch.manual_seed(0)
        texts.append(generate(made(lambda ids: P.log(), 6), np.array([0]), Plain(), config).sequences[0])
    assert texts[0] != texts[1]
    torch.manual_seed(0)
    assert texts[1] == [Sampling((), True, inverts=True).pick(P.log()) for _ in range(6000)]


def test_a_transformers_target_is_drawn_from_as_generate_does():
    model, prompt = make_llama(0, vocab=64), torch.tensor([[3, 1, 2]])
    model.generation_config.eos_token_id = None
    config = GenerationConfig(max_new_tokens=40, do_sample=True, temperature=0.8, top_k=20)
    torch.manual_seed(1)
    found = generate(TransformersRuntime(model), prompt, TokenRecycling(cost_model=False), config)
    torch.manual_seed(1)
    own = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert found.sequences == [own[0, 3:].tolist()]
