"""The loop: lossless whatever is drafted, exact counts, stops where plain decoding stops."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tabular import Scripted, Tabular, greedy, hashed, junk, oracle

from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree
from unwrite.decode.plain import Plain
from unwrite.decode.prompt_lookup import PromptLookup
from unwrite.decode.rsd import RSD
from unwrite.decode.token_recycling import RecyclingTable, TokenRecycling
from unwrite.errors import MethodError

VOCAB = 11
LOGITS = hashed(VOCAB)


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


def decode(strategy, prompt=(1, 2), count=24, logits=LOGITS, runtime=None, **options):
    runtime = runtime or Tabular(logits, VOCAB)
    options.setdefault("stopping", Stopping(len(prompt) + count))
    return generate(runtime, np.array(prompt), strategy, **options)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("draft", [junk(VOCAB), oracle(LOGITS, 4), junk(VOCAB, 40, 3)], ids=["junk", "oracle", "wide"])
def test_greedy_text_is_the_same_whatever_is_drafted(draft, active):
    found = decode(Scripted(draft, cost_model=active))
    assert found.sequences == [greedy(LOGITS, (1, 2), 24)]


def test_wrong_drafts_never_cost_more_forwards_than_new_tokens():
    def wrong(ids, budget):
        right = greedy(LOGITS, ids.tolist(), 1)[0]
        return DraftTree.chain(int(ids[-1]), [VOCAB - 1 if right == 0 else 0] * 3)

    stats = decode(Scripted(wrong, cost_model=False)).stats
    assert (stats.forwards, stats.accepted) == (24, 0)


def test_an_oracle_chain_of_g_commits_g_plus_one_tokens_a_forward():
    found = decode(Scripted(oracle(LOGITS, 4), cost_model=False), count=1 + 5 * 6)
    assert found.stats.forwards == 1 + 6
    assert found.stats.tokens_per_forward == 5


def test_tokens_per_forward_follows_the_closed_form_for_independent_acceptance():
    """(1 - a^(g+1)) / (1 - a): 3.3616 for a = 0.8, g = 4; 600 steps, three standard errors."""
    generator = np.random.default_rng(0)

    def mostly_right(ids, budget):
        right = greedy(LOGITS, ids.tolist(), 4)
        return DraftTree.chain(int(ids[-1]), [t if generator.random() < 0.8 else (t + 1) % VOCAB for t in right])

    stats = decode(Scripted(mostly_right, cost_model=False), count=2000).stats
    assert stats.tokens_per_forward == pytest.approx(3.3616, abs=3 * 1.7 / (2000 / 3.36) ** 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_sampled_text_is_the_same_at_the_same_seed_whatever_is_drafted(seed):
    texts = []
    for draft in (lambda ids, budget: DraftTree.of([int(ids[-1])], [-1]), oracle(LOGITS, 3), junk(VOCAB, seed=seed)):
        generator = torch.Generator().manual_seed(seed)
        found = decode(Scripted(draft, cost_model=False), sampling=Sampling((), True, generator))
        texts.append(found.sequences[0])
    assert texts[0] == texts[1] == texts[2]


def test_a_deterministic_candidate_set_leaves_the_distribution_as_it_is():
    """Candidates {2, 0} under p = (.5, .3, .2): accepted in 0.7 of the steps, marginal p (chi-square, level 0.001)."""
    p = torch.tensor([0.5, 0.3, 0.2])
    strategy = Scripted(lambda ids, budget: DraftTree.of([int(ids[-1]), 2, 0], [-1, 0, 0]), cost_model=False)
    sampling = Sampling((), True, torch.Generator().manual_seed(0))
    found = generate(
        Tabular(lambda ids: p.log(), 3), np.array([0]), strategy, sampling=sampling, stopping=Stopping(6001)
    )
    counts = np.bincount(found.sequences[0], minlength=3)
    assert chisquare(counts, 6000 * p.numpy().astype(float)).pvalue > 1e-3
    drawn_at_root = found.stats.forwards - 1
    assert found.stats.accepted / drawn_at_root == pytest.approx(0.7, abs=0.03)


def test_the_scheme_that_draws_once_a_candidate_would_be_caught():
    """Independent draws for each candidate, then a fresh one from p, give (.60, .12, .28)."""
    generator = np.random.default_rng(0)
    p, tokens = np.array([0.5, 0.3, 0.2]), []
    for _ in range(6000):
        hit = next((c for c in (2, 0) if generator.choice(3, p=p) == c), None)
        tokens.append(generator.choice(3, p=p) if hit is None else hit)
    assert chisquare(np.bincount(tokens, minlength=3), 6000 * p).pvalue < 1e-6


def test_an_end_token_inside_an_accepted_path_ends_the_text_there():
    text = greedy(LOGITS, (1, 2), 24)
    end = next(t for i, t in enumerate(text) if i >= 4 and t not in text[:i])
    found = decode(Scripted(oracle(LOGITS, 9), cost_model=False), stopping=Stopping(26, frozenset({end})))
    assert found.sequences[0] == text[: text.index(end) + 1]


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_number_of_new_tokens_is_exact(count):
    found = decode(Scripted(oracle(LOGITS, 5), cost_model=False), count=count)
    assert found.sequences == [greedy(LOGITS, (1, 2), count)]


def test_nothing_is_drafted_that_the_text_has_no_room_for():
    found = decode(Scripted(oracle(LOGITS, 9), cost_model=False), count=4)
    assert found.stats.rows == {3: 1}


def test_a_draft_stays_within_the_positions_a_model_can_encode():
    runtime = Tabular(LOGITS, VOCAB)
    runtime.max_positions = 8
    found = decode(Scripted(oracle(LOGITS, 9), cost_model=False), count=6, runtime=runtime)
    assert found.sequences == [greedy(LOGITS, (1, 2), 6)]


def test_a_criterion_is_asked_after_every_token_in_order():
    seen = []

    class Seen:
        def __call__(self, ids, scores):
            seen.append(ids[0].tolist())
            return torch.tensor([ids.shape[1] == 9])

    found = decode(Scripted(oracle(LOGITS, 4), cost_model=False), stopping=Stopping(26, criteria=[Seen()]))
    text = [1, 2, *greedy(LOGITS, (1, 2), 7)]
    assert seen == [text[:n] for n in range(3, 10)]
    assert found.sequences == [text[2:]]


@pytest.mark.parametrize("answer", [bool, lambda yes: torch.tensor([yes]), np.bool_], ids=["bool", "tensor", "numpy"])
def test_a_criterion_may_answer_with_a_plain_bool(answer):
    found = decode(Plain(), stopping=Stopping(26, criteria=[lambda ids, scores: answer(ids.shape[1] >= 9)]))
    assert found.sequences == [greedy(LOGITS, (1, 2), 7)]


def test_rows_without_padding_all_get_the_same_number_of_new_tokens_and_their_own_text_to_processors():
    seen = []

    def note(ids, scores):
        seen.append(ids[0].tolist())
        return scores

    prompts = [np.array([1, 2, 3, 4]), np.array([5])]
    found = generate(
        Tabular(LOGITS, VOCAB), prompts, Plain(), sampling=Sampling((note,)), stopping=Stopping(7)
    ).sequences
    assert [len(row) for row in found] == [3, 3]
    assert [5, *found[1][:2]] in seen
    assert [1, 2, 3, 4, *found[0][:2]] in seen


def test_a_processor_that_keeps_a_state_sees_what_plain_decoding_shows_it():
    class Counting:
        """Forbids token (calls so far) mod vocabulary."""

        def __init__(self):
            self.calls = 0

        def __call__(self, ids, scores):
            scores = scores.clone()
            scores[:, self.calls % VOCAB] = -torch.inf
            self.calls += 1
            return scores

    plain, drafted = (
        decode(Scripted(draft, cost_model=False), sampling=Sampling((Counting(),))).sequences
        for draft in (lambda ids, budget: DraftTree.of([int(ids[-1])], [-1]), junk(VOCAB, 30))
    )
    assert plain == drafted


def test_the_prompt_is_streamed_then_tokens_one_by_one_and_the_end_is_told():
    class Sink:
        calls, ended = [], 0

        def put(self, value):
            self.calls.append(value.tolist())

        def end(self):
            self.ended += 1

    sink = Sink()
    found = decode(Scripted(oracle(LOGITS, 4)), streamer=sink)
    assert sink.calls == [[[1, 2]], *([token] for token in found.sequences[0])]
    assert sink.ended == 1


def test_rows_of_a_batch_are_the_rows_alone():
    prompts = [np.array([1, 2]), np.array([3, 4, 5, 6]), np.array([7])]
    strategy = Scripted(oracle(LOGITS, 3), cost_model=False)
    found = generate(Tabular(LOGITS, VOCAB), prompts, strategy, stopping=Stopping(16))
    assert found.sequences == [greedy(LOGITS, prompt.tolist(), 12) for prompt in prompts]


def test_plain_decoding_commits_one_token_a_forward():
    found = decode(Plain())
    assert found.sequences == [greedy(LOGITS, (1, 2), 24)]
    assert (found.stats.forwards, found.stats.drafted) == (24, 0)


def test_prompt_lookup_copies_what_followed_the_first_match():
    drafter = PromptLookup(count=3).drafter(None, Sampling())
    tree = drafter.propose(np.array([1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 2, 3]), 10)
    assert tree.tokens.tolist() == [[3, 4, 5, 9]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2]]


def test_prompt_lookup_tries_longer_matches_first():
    drafter = PromptLookup(count=1).drafter(None, Sampling())
    assert drafter.propose(np.array([2, 3, 5, 1, 2, 3, 6, 1, 2, 3]), 10).tokens.tolist() == [[3, 6]]


def test_prompt_lookup_drafts_nothing_in_new_text():
    assert PromptLookup().drafter(None, Sampling()).propose(np.array([1, 2, 3]), 10).nodes == 1


def test_refuses_a_budget_of_zero():
    with pytest.raises(MethodError, match="budget is 0: a draft needs at least 1 node"):
        decode(PromptLookup(budget=0))


def test_refuses_a_drafter_that_needs_what_the_runtime_has_not():
    strategy = Scripted(junk(VOCAB))
    object.__setattr__(strategy, "needs", frozenset({"logits", "layer:3"}))
    with pytest.raises(MethodError, match="needs layer:3 of the target, which Tabular does not give"):
        decode(strategy)


def test_what_a_drafter_refuses_is_refused_before_any_forward():
    runtime = Tabular(LOGITS, VOCAB)
    with pytest.raises(MethodError, match="the recycling table has 12 rows"):
        decode(TokenRecycling(table=RecyclingTable(VOCAB + 1)), runtime=runtime)
    assert runtime.forwards == 0


@pytest.mark.parametrize(
    ("strategy", "smallest"), [(RSD(mode="C", branching=(3, 2), budget=2), 3), (RSD(beam_width=2, budget=1), 2)]
)
def test_refuses_a_budget_below_the_smallest_tree(strategy, smallest):
    object.__setattr__(strategy, "draft_model", Tabular(LOGITS, VOCAB))
    with pytest.raises(MethodError, match=f"budget={smallest - 1} is below the smallest tree, {smallest} nodes"):
        decode(strategy)
    object.__setattr__(strategy, "budget", smallest)
    assert decode(strategy).sequences == [greedy(LOGITS, (1, 2), 24)]


def test_refuses_an_empty_prompt():
    with pytest.raises(MethodError, match="a prompt has no token"):
        decode(PromptLookup(), prompt=())
