"""ADED: the table learns as published, is kept and refused as it should be, and the text is the target's."""

import math

import numpy as np
import pytest
import torch
from driving import bigram_llama, drive, endless, plain, prompts, written
from scipy.stats import chisquare
from tabular import Tabular
from test_aded_search import TOY, proposed, random_table, table_of

from conftest import make_llama, make_tokenizer
from unwrite.decode.aded import ADED, ADEDDrafter
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree
from unwrite.decode.trigrams import TrigramTable
from unwrite.errors import DataError, MethodError

VOCAB = 67


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


def pairs_pvalue(tokens):
    """Of the chi-square of the text cut into pairs against independent draws from P: 9 cells."""
    pairs = np.array(tokens[: len(tokens) // 2 * 2]).reshape(-1, 2) @ [3, 1]
    return chisquare(np.bincount(pairs, minlength=9), len(pairs) * np.outer(P, P).ravel()).pvalue


def engine_text(count, seed=0):
    """(tokens, accepted drafts among them) of texts of 1,000 tokens, drafted from the poisoned table for a target of P."""
    forget_knowledge()
    logits, sampling = torch.tensor(P).log().float(), Sampling((), True, torch.Generator().manual_seed(seed))
    strategy = ADED(table=table_of(POISON, 3), update="none", cost_model=False)
    tokens, accepted = [], 0
    while len(tokens) < count:
        runtime = Tabular(lambda ids: logits, 3)
        found = generate(runtime, np.array([0, 0]), strategy, sampling=sampling, stopping=Stopping(1002))
        tokens += found.sequences[0]
        accepted += found.stats.accepted
    return tokens, accepted


def official_text(count):
    """One draw for every draft and position, the draft that matches longest wins, then a fresh token."""
    drafter = ADEDDrafter(ADED(update="none"), table_of(POISON, 3))
    generator = np.random.default_rng(0)
    text = [0, 0]
    while len(text) < 2 + count:
        rows = paths_of(drafter.propose(np.array(text[-2:]), 64))
        drawn = generator.choice(3, (len(rows), 4), p=P)
        matched = [
            next((i for i, t in enumerate(row) if t != d[i]), len(row)) for row, d in zip(rows, drawn, strict=True)
        ]
        best = int(np.argmax(matched))
        text += [*rows[best][: matched[best]], int(generator.choice(3, p=P))]
    return text[2 : 2 + count]


def test_sampled_text_is_distributed_as_the_target():
    """Chi-square over the 9 pairs of 4,000 tokens, level 0.001."""
    tokens, accepted = engine_text(4000)
    assert accepted > 1000
    assert pairs_pvalue(tokens) > 1e-3


def test_text_sampled_the_official_way_is_not():
    """By the same test on as many tokens."""
    assert pairs_pvalue(official_text(4000)) < 1e-3


@pytest.mark.slow
def test_50_000_sampled_tokens_lie_within_three_sigmas_of_the_target():
    tokens, _ = engine_text(50_000, seed=1)
    assert sigmas(tokens) < 3
    assert pairs_pvalue(tokens) > 1e-3
    assert sigmas(official_text(50_000)) > 3


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
    from unwrite import catalog
    from unwrite.beds.budget import Budget
    from unwrite.reproduce.aded import run

    claim = run(Budget("tiny"))
    assert claim.slug == "aded"
    assert claim.holds["every text is greedy's own"]
    stored = {check["text"]: check["kind"] for check in catalog.system(claim.slug).result["checks"]}
    assert stored == {check.text: check.kind for check in claim.checks}
    assert all(len(figures) == len(claim.columns) for figures in claim.rows.values())
