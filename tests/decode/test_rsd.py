"""RSD: exact in distribution for every shape of tree, identical when greedy, and its pieces as the paper has them."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tabular import Tabular, greedy, hashed

from conftest import make_llama
from unwrite.decode import RSD, DraftModel
from unwrite.decode.drafting import gumbel_top_k, recursive_rejection, stochastic_beam_step
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.errors import MethodError

V = 5
TARGET = hashed(V, 1.5)
DRAFT = hashed(V, 1.5, order=1)
SHAPES = {
    "C (2, 2)": {"mode": "C", "branching": (2, 2)},
    "C (3, 1)": {"mode": "C", "branching": (3, 1)},
    "S 3 x 2": {"mode": "S", "beam_width": 3, "depth": 2},
    "S 2 x 3": {"mode": "S", "beam_width": 2, "depth": 3},
}


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def sampling(seed=0):
    return Sampling((), True, torch.Generator().manual_seed(seed))


def after(logits_of, text):
    return logits_of(tuple(text)).double().softmax(-1)


def one_step(strategy, draws, count, target=TARGET, draft=DRAFT, prompt=(1, 2)):
    """Texts of the first tokens a step commits after a fixed prompt, [count] lists."""
    runtime = Tabular(target, V)
    drafter = strategy.drafter(runtime, draws)
    ids, found = np.array(prompt), []
    runtime.prefill([ids[:-1]], 9)
    drafter.reset(ids, None)
    scores = {}
    for _ in range(count):
        tree = drafter.propose(ids, 99)
        node, text = 0, []
        while node is not None:
            key = tuple(text)
            if key not in scores:
                scores[key] = target((*prompt, *text)).float()
            token, node = drafter.accept(tree, node, scores[key], draws)
            text.append(token)
        found.append(text)
    return found


def pairs_table(texts, draws, target=TARGET, prompt=(1, 2)):
    """Counts of the first two tokens beside what the target expects; a text of one token is gone on from by the target."""
    counts = np.zeros((V, V))
    for text in texts:
        second = (
            text[1]
            if len(text) > 1
            else int(torch.multinomial(after(target, (*prompt, text[0])), 1, generator=draws.generator))
        )
        counts[text[0], second] += 1
    first = after(target, prompt)
    expected = np.array([[float(first[a] * after(target, (*prompt, a))[b]) for b in range(V)] for a in range(V)])
    return counts.ravel(), expected.ravel() * len(texts)


def whole(draft, **shape):
    return RSD(draft_model=Tabular(draft, V), **shape)


@pytest.mark.parametrize("name", SHAPES)
def test_two_tokens_have_the_targets_joint_distribution(name):
    """Chi-square over 25 pairs, 2,500 steps, level 0.001."""
    draws = sampling(1)
    texts = one_step(whole(DRAFT, **SHAPES[name]), draws, 2500)
    assert chisquare(*pairs_table(texts, draws)).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SHAPES)
def test_two_tokens_have_the_targets_joint_distribution_over_many_steps(name):
    """The same with 100,000 steps."""
    draws = sampling(2)
    texts = one_step(whole(DRAFT, **SHAPES[name]), draws, 100_000)
    assert chisquare(*pairs_table(texts, draws)).pvalue > 1e-3


def test_verifying_with_the_first_childs_probabilities_for_all_would_be_caught():
    """Siblings drawn without replacement, verified as if with: the chi-square above rejects it."""
    draws, q, log_p = sampling(3), after(TARGET, (1, 2)), DRAFT((2,)).double().log_softmax(-1)
    counts = np.zeros(V)
    for _ in range(6000):
        left = q.clone()
        token = None
        for child in gumbel_top_k(log_p.float(), 3, draws).tolist():
            p = log_p.exp()
            if torch.rand(1, generator=draws.generator).item() < left[child] / p[child]:
                token = child
                break
            left = (left - p).clamp(min=0)
            left = left / left.sum() if left.sum() > 0 else q
        counts[int(torch.multinomial(left, 1, generator=draws.generator)) if token is None else token] += 1
    assert chisquare(counts, 6000 * q.numpy()).pvalue < 1e-3


@pytest.mark.parametrize(("children", "accepted"), [(1, 0.6), (2, 0.7), (3, 1.0)])
def test_acceptance_has_its_closed_form(children, accepted):
    """q = (.2, .3, .5), p = (.6, .3, .1): 0.6, 0.7 and 1.0 for one, two and three children; three standard errors of 4,000."""
    q, log_p, draws = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1]).log(), sampling(4)
    hits = sum(
        recursive_rejection(q, log_p, gumbel_top_k(log_p, children, draws).tolist(), draws)[1] is not None
        for _ in range(4000)
    )
    assert hits / 4000 == pytest.approx(accepted, abs=3 * 0.5 / 4000**0.5 if accepted < 1 else 0)


def test_with_as_many_children_as_the_vocabulary_nothing_falls_through():
    draws = sampling(5)
    for trial in range(300):
        q = torch.rand(2, generator=draws.generator) + 0.01
        log_p = (torch.rand(2, generator=draws.generator) + 0.01).log().log_softmax(-1)
        _, place = recursive_rejection(q / q.sum(), log_p, gumbel_top_k(log_p, 2, draws).tolist(), draws)
        assert place is not None, trial


def test_a_chain_is_accepted_as_often_as_two_distributions_overlap():
    """sum min(q, p), three standard errors of 1,500 steps; for a chain, RSD-C of ones and RSD-S of width one alike."""
    overlap = float(torch.minimum(after(TARGET, (1, 2)), after(DRAFT, (2,))).sum())
    for strategy in (
        DraftModel(draft_model=Tabular(DRAFT, V), depth=1),
        whole(DRAFT, mode="C", branching=(1,)),
        whole(DRAFT, mode="S", beam_width=1, depth=1),
    ):
        texts = one_step(strategy, sampling(6), 1500)
        assert np.mean([len(text) == 2 for text in texts]) == pytest.approx(overlap, abs=3 * 0.5 / 1500**0.5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_draft_equal_to_the_target_is_accepted_whole(name):
    depth = len(SHAPES[name]["branching"]) if SHAPES[name]["mode"] == "C" else SHAPES[name]["depth"]
    texts = one_step(whole(TARGET, **SHAPES[name]), sampling(7), 60)
    assert {len(text) for text in texts} == {depth + 1}


def test_the_largest_of_a_nodes_perturbed_children_is_its_own_value():
    log_p = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    phi, u = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([0.3, -0.1, 1.2])
    parent, token, _, values = stochastic_beam_step(phi, u, log_p, 120, sampling())
    for node in range(3):
        assert float(values[parent == node].max()) == pytest.approx(float(u[node]), abs=1e-5)
    assert len({(int(a), int(b)) for a, b in zip(parent, token, strict=True)}) == 120


def test_siblings_and_sequences_of_a_beam_are_distinct():
    tree = (
        whole(DRAFT, mode="S", beam_width=4, depth=3)
        .drafter(Tabular(TARGET, V), sampling(8))
        .propose(np.array([1, 2]), 99)
    )
    assert tree.without_twins() is tree
    assert tree.nodes == 1 + 4 * 3


def test_the_first_sequence_of_a_beam_is_a_sample_of_the_draft():
    """Chi-square of the first leaf's first token over 3,000 trees, level 0.001."""
    drafter = whole(DRAFT, mode="S", beam_width=2, depth=1).drafter(Tabular(TARGET, V), sampling(9))
    counts = np.bincount([int(drafter.propose(np.array([1, 2]), 99).tokens[0, 1]) for _ in range(3000)], minlength=V)
    assert chisquare(counts, 3000 * after(DRAFT, (2,)).numpy()).pvalue > 1e-3


def test_a_filtered_token_is_never_drawn():
    log_p = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    assert sorted(gumbel_top_k(log_p, 4, sampling()).tolist()) == [0, 1]


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_is_the_targets(name):
    found = generate(
        Tabular(TARGET, V), np.array([1, 2]), whole(DRAFT, cost_model=False, **SHAPES[name]), stopping=Stopping(32)
    )
    assert found.sequences == [greedy(TARGET, (1, 2), 30)]


@pytest.mark.parametrize("shape", [{"mode": "C"}, {"mode": "S"}], ids=["C", "S"])
def test_greedy_text_of_a_model_is_that_of_generate(shape):
    target, draft = make_llama(0), make_llama(0, layers=1)
    ids = torch.randint(3, 60, (1, 10), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 30, "do_sample": False}
    for strategy in (RSD(draft_model=draft, cost_model=False, **shape), DraftModel(draft_model=draft)):
        assert torch.equal(target.generate(ids, custom_generate=strategy, **options), target.generate(ids, **options))


def test_every_target_forward_is_a_round_of_n_plus_one_rows():
    stats = generate(
        Tabular(TARGET, V), np.array([1, 2]), whole(DRAFT, cost_model=False, mode="C", branching=(2, 2)), stopping=Stopping(32),
        sampling=sampling(),
    ).stats  # fmt: skip
    assert set(stats.rows) <= {7, 3, 1}
    assert stats.rows[7] >= stats.forwards - 3


def test_the_draft_is_warped_as_the_target_is():
    """With top-k 2 on both sides no drafted token lies outside the draft's two best."""
    from transformers import TopKLogitsWarper

    drafter = whole(DRAFT, mode="C", branching=(5,)).drafter(
        Tabular(TARGET, V), Sampling((TopKLogitsWarper(2),), True, torch.Generator().manual_seed(0))
    )
    tree = drafter.propose(np.array([1, 2]), 99)
    assert set(tree.tokens[0, 1:].tolist()) == set(DRAFT((2,)).topk(2).indices.tolist())


def test_refuses_a_draft_of_another_vocabulary():
    with pytest.raises(MethodError, match="vocabularies of 7 and 5 tokens"):
        generate(Tabular(TARGET, V), np.array([1]), RSD(draft_model=Tabular(hashed(7), 7)), stopping=Stopping(4))


def test_refuses_to_draft_without_a_draft_model():
    with pytest.raises(MethodError, match=r"Pass one: draft_model\."):
        generate(Tabular(TARGET, V), np.array([1]), RSD(), stopping=Stopping(4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "B"}, "mode is 'B'; use 'C' or 'S'"),
        ({"branching": (2, 0)}, r"branching is \(2, 0\)"),
        ({"branching": ()}, "every level needs at least 1 child"),
        ({"beam_width": 0}, "beam_width is 0"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_refuses_a_shape_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        RSD(**fields)


def test_refuses_a_batch():
    with pytest.raises(MethodError, match="decodes one text at a time, but the batch has 2"):
        generate(Tabular(TARGET, V), [[1, 2], [3, 4]], whole(DRAFT), stopping=Stopping(6))


def test_a_draft_model_with_a_window_drafts_while_the_text_fits_in_it():
    from transformers import MistralConfig, MistralForCausalLM

    sliding = MistralForCausalLM(
        MistralConfig(vocab_size=67, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, sliding_window=16)
    ).eval()  # fmt: skip
    target, strategy = make_llama(), RSD(draft_model=sliding, cost_model=False)
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    drafted = {}
    for length in (4, 16):
        ids = torch.arange(3, 3 + length)[None]
        out = target.generate(ids, custom_generate=strategy, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, target.generate(ids, **options))
        drafted[length] = out.stats.drafted
    assert drafted[4] > 0
    assert drafted[16] == 0
