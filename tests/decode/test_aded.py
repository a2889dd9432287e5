"""ADED: the table learns as published, the search is the authors' with its reward corrected, the text is the target's."""

import json
import math
import subprocess
import sys
from pathlib import Path as FilePath
from random import Random

import numpy as np
import pytest
import torch
from driving import bigram_llama, drive, endless, plain, prompts, walk, written

from conftest import make_llama, make_tokenizer
from unwrite.decode.aded import ADED, ADEDDrafter, Search, cut, exploration, trie
from unwrite.decode.engine.runtime import Output
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.tree import DraftTree, Path
from unwrite.decode.trigrams import TrigramTable
from unwrite.errors import DataError, MethodError

VOCAB = 67
OFFICIAL = json.loads(FilePath(__file__).with_name("official.json").read_text())["aded"]
TOY = {(0, 1): {2: 0.6, 3: 0.3, 4: 0.1}, (1, 2): {5: 0.9, 6: 0.1}, (1, 3): {5: 0.5, 6: 0.5}, (1, 4): {5: 1.0}}


def table_of(entries, vocab=10):
    table = TrigramTable(vocab)
    for (first, second), weights in entries.items():
        table.set(first, second, weights)
    return table


def official_table(vocab=20):
    def followers(a, b):
        return [c for c in range(vocab) if (3 * a + 5 * b + 11 * c) % 4 == 0 or c == (a + 2 * b + 1) % vocab]

    pairs = [(a, b) for a in range(vocab) for b in range(vocab)]
    return table_of(
        {(a, b): {c: ((7 * a + 13 * b + 29 * c) % 97 + 1) / 64 for c in followers(a, b)} for a, b in pairs}, vocab
    )


def search(table, root, iterations=150, depth=4, c1=32.0, c2=8.0, reward="weights", uniform=None):
    found = Search(table, root, depth, c1, c2, reward, uniform or Random(0).random)
    found.run(iterations)
    return found


def root_visits(found):
    return {
        word: visits
        for word, visits, parent in zip(found.words, found.visits, found.parents, strict=True)
        if parent == 0
    }


def random_table(seed=0, vocab=VOCAB, fan=6):
    random = Random(seed)
    pairs = [(a, b) for a in range(vocab) for b in range(vocab)]
    return table_of(
        {
            pair: {c: 0.01 + random.random() for c in random.sample(range(vocab), random.randint(1, fan))}
            for pair in pairs
        },
        vocab,
    )


def proposed(table, committed=(0, 1), **settings):
    return ADEDDrafter(ADED(**settings), table).propose(np.array(committed), 64)


def test_fitting_counts_trigrams_and_normalises_per_pair():
    table = TrigramTable.fit([[1, 2, 3, 1, 2, 4, 1, 2, 3], [1, 2], [2, 1]], 10)
    assert table.successors(table.key(1, 2)).weights == pytest.approx({3: 2 / 3, 4: 1 / 3})
    assert table.weight(2, 3, 1) == 1.0
    assert table.weight(2, 2, 1) == 0.0  # trigrams do not cross documents
    assert len(table) == 5


def test_fitting_keeps_the_twelve_largest_successors_as_they_are():
    texts = [[0, 1, 2 + successor] for successor in range(20) for _ in range(20 - successor)]
    kept = TrigramTable.fit(texts, 30).successors(1)
    assert kept.tokens == list(range(2, 14))
    assert kept.weights[2] == pytest.approx(20 / 210)


def test_fitting_in_parts_equals_fitting_at_once(monkeypatch):
    texts = np.random.default_rng(0).integers(0, 6, (40, 30)).tolist()
    whole = TrigramTable.fit(texts, 6)
    monkeypatch.setattr("unwrite.decode.trigrams.CHUNK", 50)
    parts = TrigramTable.fit(iter(texts), 6)
    assert [whole.successors(key).weights for key in range(36)] == [parts.successors(key).weights for key in range(36)]


def test_a_trigram_gains_004_up_to_3():
    table = table_of({(1, 2): {3: 0.6}})
    table.add([1, 2, 3])
    assert table.weight(1, 2, 3) == pytest.approx(0.64)
    for _ in range(59):
        table.add([1, 2, 3])
    assert table.weight(1, 2, 3) == pytest.approx(3.0)
    for _ in range(40):
        table.add([1, 2, 3])
    assert table.weight(1, 2, 3) == 3.0


def test_fitted_weights_are_added_to():
    table = TrigramTable.fit([[1, 2, 3], [1, 2, 4]], 10)
    table.add([1, 2, 3])
    assert table.successors(12).weights == pytest.approx({3: 0.54, 4: 0.5})


def test_an_empty_table_learns_the_last_16_tokens_trigrams_only():
    table = TrigramTable(100)
    proposed(table, range(40), iterations=1)
    assert len(table) == 14
    assert table.weight(24, 25, 26) == pytest.approx(0.04)
    assert table.weight(23, 24, 25) == 0.0


def test_the_window_is_added_again_before_every_draft_and_new_only_once():
    for update, expected in (("window", 0.12), ("new_only", 0.04), ("none", 0.0)):
        table = TrigramTable(100)
        drafter = ADEDDrafter(ADED(update=update, iterations=1), table)
        drafter.reset(np.arange(5), None)
        for length in (5, 6, 9):
            drafter.propose(np.arange(length), 64)
        assert table.weight(0, 1, 2) == pytest.approx(expected)
        assert len(table) == (0 if update == "none" else 7)


def test_the_pair_longest_without_news_is_forgotten_first():
    table = TrigramTable(10, max_keys=2)
    for ids in ([1, 2, 3], [2, 3, 4], [1, 2, 3], [3, 4, 5]):
        table.add(ids)
    assert table.weight(1, 2, 3) == pytest.approx(0.08)
    assert table.weight(2, 3, 4) == 0.0
    assert len(table) == 2


def test_successors_stand_by_weight_then_id():
    table = table_of({(0, 1): {7: 0.2, 5: 0.4, 3: 0.2, 9: 0.2}})
    assert table.successors(1).tokens == [5, 3, 7, 9]


def test_puct_values_of_the_card():
    assert 3 / 2 + exploration(10, 32, 8) * 0.25 / 3 == pytest.approx(10.1607, abs=1e-3)
    assert 1.2 / 1 + exploration(10, 32, 8) * 0.6 / 2 == pytest.approx(32.3785, abs=1e-3)


def test_toy_visits_sum_to_150_and_follow_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1)))
    assert sum(visits.values()) == 150
    assert visits[2] > visits[3] > visits[4]


def test_toy_visits_with_the_official_reward_are_proportional_to_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1), reward="official"))
    assert [visits[2], visits[3], visits[4]] == pytest.approx([90, 45, 15], abs=2)


def test_without_exploration_visits_gather_on_the_best_mean_reward():
    found = search(table_of(TOY), (0, 1), c1=0.0, c2=math.inf)
    means = {word: found.scores[node] / found.visits[node] for node, word in enumerate(found.words[:4]) if node}
    best = max(means, key=means.get)
    assert root_visits(found)[best] == 148


def test_with_little_exploration_visits_gather_on_the_corrected_reward_only():
    assert root_visits(search(table_of(TOY), (0, 1), c1=1.0, c2=math.inf))[2] > 140
    assert root_visits(search(table_of(TOY), (0, 1), c1=1.0, c2=math.inf, reward="official"))[2] == 90


def test_with_endless_exploration_visits_are_proportional_to_the_weights():
    visits = root_visits(search(table_of(TOY), (0, 1), c1=1e6))
    assert [visits[2], visits[3], visits[4]] == pytest.approx([90, 45, 15], abs=2)


def test_the_corrected_reward_is_the_weights_of_what_was_drafted():
    table = table_of({(0, 1): {2: 0.5}, (1, 2): {3: 0.25}, (2, 3): {4: 2.0}})
    found = search(table, (0, 1), iterations=1)
    assert found.scores == [1 + 0.5 + 0.25 + 2.0] * 2
    assert search(table, (0, 1), iterations=1, reward="official").scores == [1.0] * 2


def test_the_official_reward_counts_only_a_repeated_token():
    table = table_of({(0, 1): {1: 0.5, 2: 0.25}})
    assert search(table, (0, 1), iterations=1, reward="official", depth=2).scores == [1.5, 0.0, 1.5]


@pytest.mark.parametrize("reward", ["official", "weights"])
def test_drafts_are_the_official_ones(reward):
    table = official_table()
    for root, drafts, nodes in zip(OFFICIAL["roots"], OFFICIAL[reward], OFFICIAL[f"{reward}_nodes"], strict=True):
        numbers = iter((7919 * i) % 9973 / 9973 for i in range(1000))
        found = search(table, tuple(root), reward=reward, uniform=lambda numbers=numbers: next(numbers))
        kept = cut(found.drafts(24), 64, "longest")
        assert sorted(map(list, kept)) == drafts
        assert len(trie(kept, 64)) == nodes


def test_drafts_end_in_the_likeliest_successor_and_hold_at_most_four_tokens():
    found = search(table_of(TOY), (0, 1))
    drafts = found.drafts(24)
    assert (2, 5) in drafts
    assert (4, 5) in drafts
    assert len(set(drafts)) == len(drafts) <= 23
    assert {len(draft) for draft in search(random_table(), (0, 1)).drafts(24)} <= {1, 2, 3, 4}


def test_the_cut_drops_the_longest_first_and_of_those_the_least_visited():
    drafts = [(1, 2, 3), (4,), (5, 6, 7), (8, 8, 8), (9, 1)]
    assert cut(drafts, 7, "longest") == [(1, 2, 3), (4,), (8, 8, 8), (9, 1)]
    assert cut(drafts, 4, "longest") == [(4,), (8, 8, 8), (9, 1)]
    assert cut(drafts, 7, "low_visits") == [(1, 2, 3), (4,), (5, 6, 7)]


def test_the_trie_is_ordered_by_depth_then_branch_and_truncated():
    drafts = [(7, 1), (3, 1), (7, 2, 9)]
    assert trie(drafts, 64) == [(7,), (3,), (7, 1), (7, 2), (3, 1), (7, 2, 9)]
    assert trie(drafts, 3) == [(7,), (3,), (7, 1)]


@pytest.mark.parametrize("budget", [1, 5, 20, 64])
@pytest.mark.parametrize("order", ["longest", "low_visits"])
def test_a_proposal_is_a_tree_within_its_budget_without_equal_siblings(budget, order):
    drafter = ADEDDrafter(ADED(cut=order, update="none"), random_table())
    for first in range(8):
        tree = drafter.propose(np.array([first, 2 * first]), budget)
        assert 1 < tree.nodes <= budget + 1 <= 65
        assert (tree.parents[0, 1:] < np.arange(1, tree.nodes)).all()
        assert len(set(zip(tree.parents[0].tolist(), tree.tokens[0].tolist(), strict=True))) == tree.nodes
        assert tree.depths.max() <= 4


def test_nothing_is_drafted_after_an_unknown_pair_or_a_single_token():
    assert proposed(table_of(TOY), (5, 5), update="none").nodes == 1
    assert proposed(table_of(TOY), (1,)).nodes == 1


def same(one, other):
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.parents, other.parents)


def test_a_draft_is_a_function_of_seed_table_and_the_last_two_tokens():
    table = random_table(1)
    drafter = ADEDDrafter(ADED(update="none"), table)
    for pair in ((3, 4), (5, 6)):
        drafter.propose(np.array([1, *pair]), 64)
    assert same(drafter.propose(np.array([9, 9, 3, 4]), 64), proposed(random_table(1), (3, 4), update="none"))


def test_drafts_do_not_depend_on_the_hash_seed():
    program = (
        "import numpy as np; from random import Random; from unwrite.decode.aded import ADED, ADEDDrafter; "
        "from unwrite.decode.trigrams import TrigramTable; ids = Random(0).choices(range(6), k=400); "
        "table = TrigramTable.fit([ids], 6); "
        "print(ADEDDrafter(ADED(), table).propose(np.array(ids[:30]), 64).tokens.tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(json.loads(runs[0].stdout)[0]) > 10


def test_a_search_is_kept_until_a_weight_it_read_changes():
    table = table_of(TOY)
    drafter = ADEDDrafter(ADED(update="none"), table)
    first = drafter.propose(np.array([0, 1]), 64)
    table.add([7, 8, 9])
    assert drafter.propose(np.array([4, 0, 1]), 64) is first
    assert drafter.searches == 1
    table.add([1, 2, 7])
    assert not same(drafter.propose(np.array([0, 1]), 64), first)
    assert drafter.searches == 2


def test_a_kept_draft_equals_a_fresh_search():
    ids = Random(1).choices(range(8), k=300)
    table, kept = TrigramTable.fit([ids], 8), 0
    drafter = ADEDDrafter(ADED(update="none", seed=3), table)
    for end in range(2, 200):
        before = drafter.searches
        tree = drafter.propose(np.array(ids[:end]), 64)
        kept += drafter.searches == before
        assert same(tree, proposed(table, ids[end - 2 : end], update="none", seed=3))
        if end % 5 == 0:
            table.add(Random(end).choices(range(8), k=3))
    assert 10 < kept < 190


def test_a_search_runs_its_share_of_the_iterations_and_150_without_a_cost_model():
    table = random_table()
    drafter = ADEDDrafter(ADED(update="none"), table)
    tree = drafter.propose(np.array([0, 1]), 64)
    for _ in range(3):
        drafter.observe(tree.keep(np.array([0, 1])), Output(torch.zeros(2, VOCAB)), Path())
        drafter._proposed = tree.nodes - 1
    assert drafter.limit == 8
    drafter.observe(tree, Output(torch.zeros(tree.nodes, VOCAB)), Path())
    assert drafter.limit == 16
    fixed = ADEDDrafter(ADED(update="none", cost_model=False), table)
    tree = fixed.propose(np.array([0, 1]), 64)
    fixed.observe(tree.keep(np.array([0])), Output(torch.zeros(1, VOCAB)), Path())
    assert fixed.limit == 64


def test_a_saved_table_drafts_the_same(tmp_path):
    table = TrigramTable.fit(
        np.random.default_rng(0).integers(0, 12, (20, 60)).tolist(), 12, tokenizer=make_tokenizer()
    )
    table.add([1, 2, 3, 4, 5])
    table.add([11, 11, 11])
    table.save(tmp_path / "t.safetensors")
    loaded = TrigramTable.load(tmp_path / "t.safetensors", make_tokenizer())
    for key in range(144):
        assert loaded.successors(key).weights == pytest.approx(table.successors(key).weights)
        assert loaded.successors(key).tokens == table.successors(key).tokens
    assert len(loaded) == len(table)
    assert loaded.nbytes() > 0


def test_refuses_a_table_of_another_tokenizer(tmp_path):
    other = make_tokenizer()
    other.add_tokens(["brandnew"])
    TrigramTable(VOCAB, make_tokenizer()).save(tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="another tokenizer"):
        TrigramTable.load(tmp_path / "t.safetensors", other)
    with pytest.raises(DataError, match="another tokenizer"):
        ADED(table=TrigramTable.load(tmp_path / "t.safetensors"), tokenizer=other)


def test_refuses_a_file_that_is_no_table_or_a_damaged_one(tmp_path):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no trigram table"):
        TrigramTable.load(tmp_path / "x")
    table_of(TOY).save(tmp_path / "t")
    arrays = load_file(tmp_path / "t")
    arrays["tokens"] += 5
    save_file(arrays, tmp_path / "t", {"vocab": "10", "max_keys": "5"})
    with pytest.raises(DataError, match="damaged"):
        TrigramTable.load(tmp_path / "t")


def test_refuses_ids_outside_the_vocabulary():
    with pytest.raises(DataError, match="text 1 holds the id 10"):
        TrigramTable.fit([[1, 2, 3], [4, 10, 2]], 10)


@pytest.mark.parametrize(
    "settings",
    [
        {"depth": 1},
        {"iterations": 0},
        {"budget": 0},
        {"n_drafts": 1},
        {"c1": -1.0},
        {"c2": 0.0},
        {"c1": math.nan},
        {"update": "daily"},
        {"reward": "big"},
        {"cut": "none"},
    ],
)
def test_refuses_settings_without_meaning(settings):
    with pytest.raises(MethodError):
        ADED(**settings)


def test_refuses_a_table_of_another_vocabulary(llama):
    with pytest.raises(MethodError, match=r"vocabulary of 10.*67 wide"):
        written(llama, ADED(table=table_of(TOY)), [3, 4], 4)


@pytest.fixture(scope="module")
def llama():
    return endless(make_llama())


@pytest.fixture(scope="module")
def texts(llama):
    """[(prompt, its greedy continuation of 50 tokens)]"""
    return [(prompt, plain(llama, prompt, 50)) for prompt in prompts(3, VOCAB)]


@pytest.mark.parametrize("kind", ["empty", "correct", "poisoned"])
@pytest.mark.parametrize("cost_model", [True, False])
def test_greedy_text_is_the_targets_own(llama, texts, kind, cost_model):
    correct = TrigramTable.fit([prompt + text for prompt, text in texts], VOCAB)
    table = {"empty": TrigramTable(VOCAB), "correct": correct, "poisoned": random_table()}[kind]
    for prompt, text in texts:
        ids, stats = written(llama, ADED(table=table, cost_model=cost_model), prompt, 50)
        assert ids == text
        assert stats.forwards <= 50
        assert max(stats.rows) <= 65


def test_the_engine_takes_as_many_forwards_as_the_slow_way(llama, texts):
    strategy = ADED(cost_model=False)
    _, stats = written(llama, strategy, texts[0][0], 50)
    assert stats.forwards == len(drive(strategy, llama, texts[0][0], 50).accepted) + 1


def test_a_second_pass_over_a_text_accepts_more(llama):
    gains = []
    for prompt in prompts(10, VOCAB, seed=8):
        strategy = ADED(table=TrigramTable(VOCAB), cost_model=False)
        first, second = (written(llama, strategy, prompt, 40)[1].tokens_per_forward for _ in range(2))
        gains.append(second - first)
    assert min(gains) >= 0
    assert np.mean(gains) > 0


def test_sampled_text_is_generates_own_at_the_same_seed(llama):
    prompt = prompts(1, VOCAB, seed=6)[0]
    torch.manual_seed(0)
    ids, stats = written(llama, ADED(table=random_table(), cost_model=False), prompt, 40, do_sample=True)
    torch.manual_seed(0)
    own = llama.generate(torch.tensor([prompt]), do_sample=True, max_new_tokens=40)
    assert ids == own[0, len(prompt) :].tolist()
    assert stats.drafted > 0


P = np.array([0.5, 0.3, 0.2])
# Token 2, the rarest, is what the table believes in.
POISON = {(a, b): {2: 1.0, 0: 0.1} for a in range(3) for b in range(3)}


def sigmas(tokens):
    """Largest deviation of the tokens' frequencies from P, in standard errors of independent draws."""
    frequencies = np.bincount(tokens, minlength=3) / len(tokens)
    return float((np.abs(frequencies - P) / np.sqrt(P * (1 - P) / len(tokens))).max())


def test_sampling_is_distributed_as_the_target():
    drafter = ADEDDrafter(ADED(update="none"), table_of(POISON, 3))
    draws = torch.multinomial(torch.tensor(P), 60_000, True, generator=torch.Generator().manual_seed(0)).tolist()

    class Drawn(Sampling):
        """One draw per token, made beforehand."""

        def scores(self, logits, ids):
            return logits

        def pick(self, scores):
            return draws.pop()

    text, accepted = [0, 0], 0
    while len(text) < 50_000:
        tree = drafter.propose(np.array(text[-2:]), 64)
        path = walk(tree, tree.tokens[0], Drawn(), text[-2:])
        text += path.tokens
        accepted += len(path.tokens) - 1
    assert accepted > 10_000
    assert sigmas(text[2:]) < 3


def test_the_official_sampling_is_not():
    """One draw for every draft and position, the draft that matches longest wins, then a fresh token."""
    drafter = ADEDDrafter(ADED(update="none"), table_of(POISON, 3))
    drawn = np.random.default_rng(0).choice(3, (50_000, 24, 4), p=P)
    text, step = [0, 0], 0
    while len(text) < 50_000:
        rows = paths_of(drafter.propose(np.array(text[-2:]), 64))
        matched = [
            next((i for i, t in enumerate(row) if t != d[i]), len(row))
            for row, d in zip(rows, drawn[step], strict=False)
        ]
        best = int(np.argmax(matched))
        text += [*rows[best][: matched[best]], int(drawn[step, -1, 0])]
        step += 1
    assert sigmas(text[2:]) > 3


def paths_of(tree: DraftTree):
    """Root-to-leaf token paths."""
    parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
    found = []
    for leaf in set(range(tree.nodes)) - set(parents):
        path, node = [], leaf
        while node > 0:
            path.insert(0, tokens[node])
            node = parents[node]
        found.append(path)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sampling_through_generate_is_distributed_as_the_target():
    logits = torch.tensor(P).log().float().repeat(3, 1)
    model = endless(bigram_llama(logits))
    torch.manual_seed(0)
    tokens = []
    while len(tokens) < 50_000:
        strategy = ADED(table=table_of(POISON, 3), update="none", cost_model=False)
        ids, stats = written(model, strategy, [0, 0], 500, do_sample=True, top_k=0)
        assert stats.accepted > 100
        tokens += ids
    assert sigmas(tokens) < 3


@pytest.fixture(scope="module")
def long_texts(llama):
    """20 prompts with their greedy continuation of 128 tokens."""
    return [(prompt, plain(llama, prompt, 128)) for prompt in prompts(20, VOCAB, seed=9)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["empty", "correct", "poisoned"])
def test_20_prompts_of_128_tokens_are_greedys_own(llama, long_texts, kind):
    table = TrigramTable(VOCAB) if kind == "empty" else random_table(2)
    for prompt, text in long_texts:
        if kind == "correct":
            table = TrigramTable.fit([prompt + text], VOCAB)
        ids, _ = written(llama, ADED(table=table, cost_model=False), prompt, 128)
        assert ids == text


def test_the_experiment_runs_and_keeps_greedys_texts():
    from unwrite.reproduce.aded import run
    from unwrite.reproduce.claims import Budget

    claim = run(Budget("tiny"))
    assert claim.slug == "aded"
    assert claim.checks["every text is greedy's own"]
    assert all(len(figures) == len(claim.columns) for figures in claim.rows.values())
