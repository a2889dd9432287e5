"""Speculative sampling has its closed forms, and drafts that really run leave every family's text as it is."""

import numpy as np
import pytest
import torch
from tabular import Tabular
from targets import FAMILIES, VOCAB, make_target

from conftest import make_llama
from unwrite.decode import DraftModel, PromptLookup, TokenRecycling
from unwrite.decode.drafting import gumbel_top_k, recursive_rejection
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel

TARGET, DRAFT = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def sampling(seed):
    return Sampling((), True, torch.Generator().manual_seed(seed))


# One drafted token: acceptance 0.7, residual (1, 0, 0), marginal the target


def trials(count, seed):
    """(tokens, accepted), [count] each: one token drafted and verified, as a chain does it at every depth."""
    draws, log_q, tokens, accepted = sampling(seed), DRAFT.log(), [], []
    for _ in range(count):
        token, place = recursive_rejection(TARGET, log_q, gumbel_top_k(log_q, 1, draws).tolist(), draws)
        tokens.append(token)
        accepted.append(place is not None)
    return np.array(tokens), np.array(accepted)


def check_one_drafted_token(tokens, accepted, tolerance):
    assert accepted.mean() == pytest.approx(0.7, abs=tolerance)
    assert set(tokens[~accepted].tolist()) == {0}
    assert np.bincount(tokens, minlength=3) / len(tokens) == pytest.approx(TARGET.numpy(), abs=tolerance)


def test_a_drafted_token_is_kept_or_replaced_as_leviathans_rule_says():
    """6,000 trials; four standard errors of a share of a half, the largest there is."""
    check_one_drafted_token(*trials(6000, 0), 4 * 0.5 / 6000**0.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drafted_token_leaves_the_marginal_within_0005_over_200_000_trials():
    """0.005 is four and a half standard errors of a share of a half."""
    check_one_drafted_token(*trials(200_000, 1), 0.005)


class Counted(Tabular):
    """Notes how many tokens every forward committed."""

    def prefill(self, rows, room):
        self.kept = []
        return super().prefill(rows, room)

    def commit(self, paths):
        self.kept.append(len(paths[0]))
        super().commit(paths)


@pytest.mark.parametrize(("acceptance", "expected"), [(0.5, 1.9375), (0.8, 3.3616)])
def test_a_chain_of_four_commits_what_the_closed_form_says(acceptance, expected):
    """(1 - a^5) / (1 - a) tokens a step for a = sum min(p, q); four standard errors of the steps that 1,500 tokens take."""
    p = torch.tensor([acceptance / 2, 1 - acceptance / 2]).log()
    target, draft = Counted(lambda ids: p, 2), Tabular(lambda ids: p.flip(0), 2)
    strategy = DraftModel(draft_model=draft, depth=4, cost_model=False)
    generate(target, np.array([0]), strategy, sampling=sampling(2), stopping=Stopping(1501))
    kept = np.array(target.kept[:-1])  # the last step ends where the text does
    sizes = np.arange(1, 6)
    chances = np.array([*(acceptance**n * (1 - acceptance) for n in range(4)), acceptance**4])
    assert chances @ sizes == pytest.approx(expected)
    deviation = (chances @ (sizes - expected) ** 2) ** 0.5
    assert kept.mean() == pytest.approx(expected, abs=4 * deviation / len(kept) ** 0.5)
    assert set(kept.tolist()) == {1, 2, 3, 4, 5}


# Drafts that run, on models

STRATEGIES = {
    "token recycling": lambda: TokenRecycling(cost_model=False),
    "prompt lookup": lambda: PromptLookup(cost_model=False),
}


def texts(model, strategy, prompt, count=40):
    """(new ids without drafts, new ids with them, statistics), greedy."""
    given = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": count, "do_sample": False, "attention_mask": torch.ones_like(given)}
    own = model.generate(input_ids=given, **options)
    found = model.generate(input_ids=given, custom_generate=strategy, return_dict_in_generate=True, **options)
    return own[0, len(prompt) :].tolist(), found.sequences[0, len(prompt) :].tolist(), found.stats


def repeated(seed, length=6, times=3):
    """A prompt that says something three times, so that looking it up finds something."""
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist() * times


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_drafts_that_run_leave_a_familys_greedy_text_as_it_is(family, name):
    model, accepted = make_target(family), 0
    for seed in range(2):
        own, found, stats = texts(model, STRATEGIES[name](), repeated(seed))
        assert found == own
        assert len(found) == 40
        assert stats.drafted > 0
        assert max(stats.rows) > 2
        accepted += stats.accepted
    assert accepted > 0


def test_a_guarded_model_writes_its_own_text_with_drafts():
    guarded = LogitDifferenceModel(make_llama(0), make_llama(1))
    for seed in range(2):
        own, found, stats = texts(guarded, TokenRecycling(cost_model=False), repeated(seed))
        assert found == own
        assert stats.drafted > 0
        assert max(stats.rows) > 2
        assert own != texts(make_llama(0), TokenRecycling(cost_model=False), repeated(seed))[0]


def test_an_unmerged_lora_writes_its_own_text_with_drafts():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tuned = get_peft_model(
        make_target("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    ).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    for seed in range(2):
        own, found, stats = texts(tuned, TokenRecycling(cost_model=False), repeated(seed))
        assert found == own
        assert stats.drafted > 0
        assert max(stats.rows) > 2
        assert own != texts(make_target("llama"), TokenRecycling(cost_model=False), repeated(seed))[0]
