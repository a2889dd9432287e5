"""RSD through the whole decoder: the target's distribution, the closed forms of its verification, first leaves, L + 1."""

from itertools import chain, permutations, product, repeat
from math import prod

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tabular import Tabular, hashed

from conftest import make_llama
from unwrite.decode import RSD, DraftModel
from unwrite.decode.drafting import Drawn, gumbel_top_k, recursive_rejection
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree
from unwrite.reproduce.rsd import Independent

V = 5
SHAPES = {"C": {"mode": "C", "branching": (2, 2)}, "S": {"mode": "S", "beam_width": 3, "depth": 2}}
DRAFT = hashed(V, 1.5, order=1)
_target = hashed(V, 1.5)
_four = torch.tensor([-torch.inf, -torch.inf, -torch.inf, -torch.inf, 0.0])


def target(ids):
    """Random after every two tokens. After the prompt always 4: that token is drawn without a draft."""
    return _four if len(ids) == 1 else _target(ids)


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def sampling(seed):
    return Sampling((), True, torch.Generator().manual_seed(seed))


def softmax(logits):
    return logits.double().softmax(-1).numpy()


def pvalue(counts, chances):
    """Of a chi-square, cells of fewer than five expected counts taken together."""
    counts, expected = np.ravel(counts), np.ravel(chances) * np.sum(counts)
    small = expected < 5
    if small.any():
        counts, expected = (np.append(values[~small], values[small].sum()) for values in (counts, expected))
    return chisquare(counts, expected).pvalue


# The emitted text has the target's distribution

ONE = softmax(_target((1, 4)))
TWO = ONE[:, None] * np.stack([softmax(_target((4, first))) for first in range(V)])


def decoded_pairs(mode, runs, seed):
    """[V, V] counts of the first two tokens of whole runs of the decoder that a tree of depth 2 stands before."""
    strategy = RSD(draft_model=Tabular(DRAFT, V), cost_model=False, **SHAPES[mode])
    runtime, draws, counts = Tabular(target, V), sampling(seed), np.zeros((V, V))
    for _ in range(runs):
        found = generate(runtime, np.array([1]), strategy, sampling=draws, stopping=Stopping(5))
        always, first, second, _ = found.sequences[0]
        assert always == 4
        assert 7 in found.stats.rows
        counts[first, second] += 1
    return counts


def with_the_first_probabilities(q, log_p, ordered, draws):
    """Recursive rejection that forgets that the children were drawn without replacement."""
    left, p = q.double(), log_p.double().exp()
    for place, token in enumerate(ordered):
        if torch.rand(1, generator=draws.generator).item() * p[token] < left[token]:
            return token, place
        rest = (left - p).clamp(min=0)
        left = rest / rest.sum() if rest.sum() > 0 else left
    return int(torch.multinomial(left, 1, generator=draws.generator)), None


@pytest.mark.parametrize("mode", SHAPES)
def test_one_and_two_emitted_tokens_have_the_targets_distribution(mode):
    """Chi-square of 1,200 whole runs, level 0.001."""
    counts = decoded_pairs(mode, 1200, 0)
    assert pvalue(counts.sum(1), ONE) > 1e-3
    assert pvalue(counts, TWO) > 1e-3


@pytest.mark.parametrize("mode", SHAPES)
def test_verifying_all_children_against_the_first_probabilities_fails_the_same_test(mode, monkeypatch):
    monkeypatch.setattr("unwrite.decode.drafting.recursive_rejection", with_the_first_probabilities)
    counts = decoded_pairs(mode, 1200, 0)
    assert pvalue(counts.sum(1), ONE) < 1e-3
    assert pvalue(counts, TWO) < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", SHAPES)
def test_200_000_runs_have_the_targets_distribution(mode):
    counts = decoded_pairs(mode, 200_000, 1)
    assert pvalue(counts.sum(1), ONE) > 1e-3
    assert pvalue(counts, TWO) > 1e-3


WORDS = 4


def sharp_llama(seed, layers, vocab, scale=40.0):
    """A tiny Llama whose next token depends visibly on the text before it."""
    model = make_llama(seed, layers=layers, vocab=vocab)
    with torch.no_grad():
        model.lm_head.weight *= scale
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def joint_of(model, prompt, count):
    """[vocab] * count probabilities of the next tokens by the model's own softmax."""
    joint = np.ones([WORDS] * count)
    for words in product(range(WORDS), repeat=count):
        logits = model(torch.tensor([[*prompt, *words]])).logits[0, len(prompt) - 1 : -1]
        joint[words] = logits.double().softmax(-1)[torch.arange(count), list(words)].prod()
    return joint


def generated(mode, seeds):
    """(counts of three new tokens, their probabilities), [4, 4, 4] each."""
    model, draft, prompt = sharp_llama(0, 2, WORDS), sharp_llama(1, 1, WORDS), [3, 1, 2]
    strategy, counts = RSD(draft_model=draft, cost_model=False, **SHAPES[mode]), np.zeros([WORDS] * 3)
    ids = torch.tensor([prompt])
    for seed in seeds:
        torch.manual_seed(seed)
        new = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            custom_generate=strategy,
            do_sample=True,
            top_k=0,
            max_new_tokens=3,
        )
        counts[tuple(new[0, 3:].tolist())] += 1
    return counts, joint_of(model, prompt, 3)


@pytest.mark.parametrize("mode", SHAPES)
def test_a_models_sampled_text_has_its_own_softmax_distribution(mode):
    """Chi-square of the first two and of all three new tokens of 160 seeds, level 0.001."""
    counts, joint = generated(mode, range(160))
    assert pvalue(counts.sum(2), joint.sum(2)) > 1e-3
    assert pvalue(counts, joint) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", SHAPES)
def test_a_models_sampled_text_has_its_own_softmax_distribution_over_many_seeds(mode):
    """The same over 4,000 seeds."""
    counts, joint = generated(mode, range(1000, 5000))
    assert pvalue(counts.sum(2), joint.sum(2)) > 1e-3
    assert pvalue(counts, joint) > 1e-3


# Closed forms: q = (.2, .3, .5) the target, p = (.6, .3, .1) the draft

Q, P = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def numbers(monkeypatch, values):
    """The next uniform numbers of any verification; ones, which accept nothing that can be refused, when they run out."""
    coming = chain(values, repeat(1.0))

    def fixed(shape, draws, like):
        return torch.tensor([next(coming) for _ in range(prod(shape))], dtype=torch.float64).reshape(*shape)

    for module in ("unwrite.decode.drafting", "unwrite.reproduce.rsd"):
        monkeypatch.setattr(f"{module}.uniform", fixed)


def chances(monkeypatch, verify, order):
    """Of every child to be accepted once those before it were refused: the largest number that accepts it, by bisection.

    Children behind one that can't be refused are left out. verify(order) -> the place that was accepted, or None.
    """
    found = []
    for place in range(len(order)):

        def accepted(number, place=place):
            numbers(monkeypatch, [*[1.0] * place, number])
            return verify(order) == place

        if accepted(1.0):
            return [*found, 1.0]
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if accepted(middle) else (low, middle)
        found.append(low)
    return found


def recursive(order, q=Q):
    return recursive_rejection(q, P.log(), order, sampling(0))[1]


def independent(order):
    """By the rule of the control whose children are drawn with replacement."""
    runtime = Tabular(lambda ids: P.log().float(), 3)
    drafter = Independent(draft_model=runtime, branching=(len(order),)).drafter(runtime, sampling(0))
    tree = DraftTree.of([0, *order], [-1, *[0] * len(order)], None, Drawn({0: P.log()}))
    child = drafter.accept(tree, 0, Q.log(), sampling(0))[1]
    return None if child is None else child - 1


def accept_any(monkeypatch, verify, orders):
    """orders: {ordered children: their chance to be drawn so}."""
    assert sum(orders.values()) == pytest.approx(1)
    refused = {order: prod(1 - chance for chance in chances(monkeypatch, verify, list(order))) for order in orders}
    return sum(chance * (1 - refused[order]) for order, chance in orders.items())


def without_replacement(count):
    p = P.tolist()
    return {
        order: prod(p[token] / (1 - sum(p[before] for before in order[:place])) for place, token in enumerate(order))
        for order in permutations(range(3), count)
    }


@pytest.mark.parametrize(("children", "expected"), [(1, 0.6), (2, 0.7), (3, 1.0)])
def test_some_child_is_accepted_with_its_closed_form_probability(monkeypatch, children, expected):
    """Exactly: over all orders in which the children can be drawn."""
    assert accept_any(monkeypatch, recursive, without_replacement(children)) == pytest.approx(expected, abs=1e-6)


def test_with_replacement_two_children_are_accepted_less_often(monkeypatch):
    orders = {order: float(P[order[0]] * P[order[1]]) for order in product(range(3), repeat=2)}
    assert accept_any(monkeypatch, independent, orders) == pytest.approx(0.64, abs=1e-6)


def test_children_are_drawn_in_order_without_replacement():
    """Chi-square of the six ordered pairs over 3,000 draws, level 0.001."""
    draws, orders = sampling(3), without_replacement(2)
    found = [tuple(gumbel_top_k(P.log(), 2, draws).tolist()) for _ in range(3000)]
    assert pvalue([found.count(order) for order in orders], list(orders.values())) > 1e-3


def test_after_refusing_token_0_the_target_is_left_with_token_2_only(monkeypatch):
    """norm(max((.2, .3, .5) - (.6, .3, .1), 0)) = (0, 0, 1): nothing else is drawn, and child 1 is never accepted."""
    numbers(monkeypatch, [])
    draws = sampling(4)
    assert {recursive_rejection(Q, P.log(), [0], draws) for _ in range(300)} == {(2, None)}
    assert chances(monkeypatch, recursive, [0, 1, 2]) == pytest.approx([1 / 3, 0, 1], abs=1e-9)
    assert chances(monkeypatch, recursive, [0, 2]) == pytest.approx([1 / 3, 1], abs=1e-9)


@pytest.mark.parametrize(
    ("q", "token", "left"),
    [((0.2, 0.4, 0.4), 1, 0.25), ((0.1, 0.75, 0.15), 2, 0.1)],  # what norm(max(q - p, 0)) leaves of q for the token
)
def test_after_refusing_token_0_the_draft_is_0_75_and_0_25_of_the_others(monkeypatch, q, token, left):
    """Read off the second child's chance of acceptance, left / p_2(token), under targets that leave it below 1."""
    verify = lambda order: recursive(order, torch.tensor(q, dtype=torch.float64))  # noqa: E731
    first, second = chances(monkeypatch, verify, [0, token])
    assert first == pytest.approx(q[0] / 0.6)
    assert left / second == pytest.approx((0, 0.75, 0.25)[token])


# A draft that is the target


@pytest.mark.parametrize(
    "shape",
    [
        {"mode": "C", "branching": (1, 1, 1)},
        {"mode": "C", "branching": (2, 3)},
        {"mode": "S", "beam_width": 1, "depth": 3},
        {"mode": "S", "beam_width": 3, "depth": 2},
        {"mode": "S", "beam_width": 4, "depth": 4},
    ],
    ids=str,
)
def test_of_a_draft_equal_to_the_target_every_first_child_is_accepted(shape):
    """L + 1 tokens a step, in a beam too: the first child's own first child has the largest perturbed value of its level."""
    depth = len(shape["branching"]) if shape["mode"] == "C" else shape["depth"]
    accepted = []

    class Noted(Tabular):
        def commit(self, paths):
            first = [int(np.flatnonzero(self.trees.parents[0] == node)[0]) for node in paths[0][:-1]]
            assert paths[0][1:] == first
            accepted.append(len(first))
            super().commit(paths)

    stats = generate(
        Noted(_target, V),
        np.array([1, 2]),
        RSD(draft_model=Tabular(_target, V), cost_model=False, **shape),
        sampling=sampling(5),
        stopping=Stopping(3 + 40 * (depth + 1)),
    ).stats
    assert stats.forwards == 1 + 40
    assert stats.tokens_per_forward == depth + 1
    assert set(accepted) == {depth}


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_a_model_that_drafts_for_itself_commits_l_plus_one_tokens_a_forward(do_sample):
    """Its cache as a draft holds just what was committed: else it would say something else than as a target."""
    model, ids = sharp_llama(0, 3, 67, 60.0), torch.arange(3, 10)[None]
    for strategy, depth in (
        (DraftModel(draft_model=model, depth=4, cost_model=False), 4),
        (RSD(draft_model=model, mode="C", branching=(1, 1), cost_model=False), 2),
    ):
        torch.manual_seed(0)
        stats = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            custom_generate=strategy,
            do_sample=do_sample,
            max_new_tokens=1 + 12 * (depth + 1),
            return_dict_in_generate=True,
        ).stats
        assert stats.forwards == 1 + 12
        assert stats.tokens_per_forward == depth + 1


# The first leaf of a beam


@pytest.mark.parametrize("width", [2, 3])
def test_the_first_leaf_of_a_beam_is_a_sample_of_the_draft(width):
    """Chi-square of whole paths of depth 2 over 1,200 trees, level 0.001."""
    drafter = RSD(draft_model=Tabular(DRAFT, V), mode="S", beam_width=width, depth=2).drafter(
        Tabular(_target, V), sampling(6)
    )
    counts = np.zeros((V, V))
    for _ in range(1200):
        tree = drafter.propose(np.array([1, 2]), 99)
        leaf = int(np.flatnonzero(tree.depths[0] == 2)[0])
        assert tree.parents[0, leaf] == 1
        counts[tree.tokens[0, 1], tree.tokens[0, leaf]] += 1
    one = softmax(DRAFT((2,)))
    assert pvalue(counts, one[:, None] * np.stack([softmax(DRAFT((first,))) for first in range(V)])) > 1e-3
