"""Token Recycling: the published tree and table, and text that stays the target's own."""

import json
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from driving import Formula, bigram_llama, cyclic, drive, endless, plain, prompts, written

from conftest import make_llama, make_tokenizer
from unwrite.decode.engine.runtime import Output
from unwrite.decode.engine.tree import Path
from unwrite.decode.token_recycling import (
    RecyclingDrafter,
    RecyclingTable,
    TokenRecycling,
    TreeTemplate,
    top_k,
)
from unwrite.errors import DataError, MethodError

TEMPLATE = TreeTemplate.of("2.2.2")
OFFICIAL = json.loads(FilePath(__file__).with_name("official.json").read_text())["token-recycling"]
VOCAB = 67
TOY = RecyclingTable.of([[1, 2], [3, 4], [0, 1], [0, 0], [0, 0]])
TOY_TEMPLATE = TreeTemplate.of([[0], [1], [0, 0], [0, 1], [1, 0]])


def official_table():
    return RecyclingTable.of((3 * np.arange(61)[:, None] + 5 * np.arange(8) + 1) % 61)


def random_table(seed=0, vocab=VOCAB, k=8):
    return RecyclingTable.of(np.random.default_rng(seed).integers(0, vocab, (vocab, k)))


class LastWriterTable(RecyclingTable):
    """Of several nodes with one token the last index counts, as in the authors' run."""

    def update(self, tokens, top, path):
        self.successors[tokens] = top
        self.seen[tokens] = True


def test_template_has_80_paths_in_levels_of_8_21_25_15_8_3():
    assert len(TEMPLATE.branches) == 80
    assert [level.stop - level.start for level in TEMPLATE.levels] == [8, 21, 25, 15, 8, 3]
    assert [level.start for level in TEMPLATE.levels] == [1, 9, 30, 55, 70, 78]


def test_template_has_40_leaves_and_is_closed_under_prefixes():
    assert len(set(range(81)) - set(TEMPLATE.fathers.tolist())) == 40
    assert all(not path[:-1] or path[:-1] in TEMPLATE.branches for path in TEMPLATE.branches)


def test_template_mask_has_324_ones():
    drafter = RecyclingDrafter(official_table(), TEMPLATE)
    tree = drafter.propose(np.array([4, 5]), 80)
    assert tree.nodes == 81
    assert tree.ancestors[0].sum() == 81 + 243 == OFFICIAL["mask_sum"]


def test_template_is_the_published_one():
    assert ["".join(map(str, path)) for path in TEMPLATE.branches] == OFFICIAL["paths"]


@pytest.mark.parametrize("nodes", [1, 7, 16, 40])
def test_smaller_templates_keep_the_likeliest_nodes_with_their_parents(nodes):
    small = TEMPLATE.best(nodes)
    assert len(small.branches) == nodes
    assert set(small.branches) <= set(TEMPLATE.best(nodes + 1).branches) <= set(TEMPLATE.branches)
    assert all(not path[:-1] or path[:-1] in small.branches for path in small.branches)


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        ([[0, 0]], "no parent"),
        ([[0], [0]], "twice"),
        ([[-1]], "from 0"),
        ([], "at least one"),
        ("9.9", "unknown template"),
    ],
)
def test_refuses_a_template_that_is_no_tree(paths, word):
    with pytest.raises(MethodError, match=word):
        TreeTemplate.of(paths)


def test_toy_tree_is_unrolled_from_the_table():
    assert TOY.unroll(0, TOY_TEMPLATE).tolist() == [0, 1, 2, 3, 4, 0]
    tree = RecyclingDrafter(TOY, TOY_TEMPLATE).propose(np.array([3, 0]), 80)
    assert tree.tokens[0].tolist() == [0, 1, 2, 3, 4, 0]
    assert tree.parents[0].tolist() == [-1, 0, 0, 1, 1, 2]


def test_first_tree_is_the_official_one():
    assert official_table().unroll(5, TEMPLATE).tolist() == OFFICIAL["tree"]


def test_kinds_tell_depth_and_rank_apart():
    tree = RecyclingDrafter(official_table(), TEMPLATE).propose(np.array([5]), 80)
    assert tree.kinds[0, 1:].tolist() == [8 * len(path) + path[-1] for path in TEMPLATE.branches]


@pytest.mark.parametrize("budget", [1, 5, 33, 80])
def test_a_proposal_never_exceeds_its_budget_and_holds_every_parent(budget):
    tree = RecyclingDrafter(official_table(), TEMPLATE).propose(np.array([5]), budget)
    assert tree.nodes == budget + 1
    assert (tree.parents[0, 1:] < np.arange(1, tree.nodes)).all()
    assert (tree.parents[0, 1:] >= 0).all()


def test_what_follows_an_unseen_token_is_left_out():
    table = RecyclingTable(VOCAB)
    table.update(np.array([5]), np.arange(6, 14)[None], [0])
    drafter = RecyclingDrafter(table, TEMPLATE)
    assert drafter.propose(np.array([5]), 80).tokens[0].tolist() == [5, *range(6, 14)]
    assert drafter.propose(np.array([9]), 80).nodes == 1


def test_equal_siblings_are_merged():
    tree = RecyclingDrafter(RecyclingTable(VOCAB), TEMPLATE, prune_unseen=False).propose(np.array([5]), 80)
    assert tree.tokens[0].tolist() == [5, 0, 0, 0, 0, 0, 0]
    assert tree.parents[0].tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_every_row_of_the_tree_is_refreshed_rejected_ones_too():
    table = RecyclingTable.of(TOY.successors)
    drafter = RecyclingDrafter(table, TOY_TEMPLATE)
    tree = drafter.propose(np.array([0]), 80)
    logits = torch.randn(tree.nodes, 5, generator=torch.Generator().manual_seed(0))
    drafter.observe(tree, Output(logits), Path([0], [4]))
    assert table.successors[0].tolist() == logits[0].topk(2).indices.tolist()
    for node in (1, 2, 3, 4):
        assert table.successors[tree.tokens[0, node]].tolist() == logits[node].topk(2).indices.tolist()


def test_after_a_step_the_roots_row_is_the_targets_top_k_after_the_whole_text():
    model, prompt = make_llama(vocab=997), [7, 12, 30]
    table = random_table(vocab=997)
    driven = drive(TokenRecycling(table=table), model, prompt, 2)
    text = torch.tensor([prompt + driven.tokens[:1]])
    tree = driven.trees[0]
    assert (tree.tokens[0] == driven.tokens[0]).sum() == 1
    assert table.successors[driven.tokens[0]].tolist() == model(text).logits[0, -1].topk(8).indices.tolist()


def test_of_equal_tokens_the_accepted_node_counts_then_the_earliest():
    table = RecyclingTable(9, 1)
    tokens, top = np.array([5, 6, 6, 7, 7, 7]), np.arange(6)[:, None]
    table.update(tokens, top, [0, 4])
    assert table.successors[[5, 6, 7], 0].tolist() == [0, 1, 4]
    assert table.seen.tolist() == [False] * 5 + [True] * 3 + [False]


def test_the_prompts_last_token_is_learnt_before_the_first_draft():
    table = RecyclingTable(VOCAB)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    RecyclingDrafter(table, TEMPLATE).reset(np.array([3, 9]), logits)
    assert table.successors[9].tolist() == logits.topk(8).indices.tolist()
    assert table.seen.sum() == 1


def test_rows_after_one_step_are_the_official_ones():
    table = official_table()
    drive(TokenRecycling(table=table), Formula(), OFFICIAL["prompts"][0][:-1], 2, first=5)
    for token, row in OFFICIAL["unique_rows"].items():
        assert table.successors[int(token)].tolist() == row


@pytest.mark.parametrize("number", range(4))
def test_every_step_commits_what_the_official_loop_commits(number):
    prompt, accepted = OFFICIAL["prompts"][number], OFFICIAL["accepted"][number]
    table = LastWriterTable(61)
    table.successors[:], table.seen[:] = official_table().successors, True
    driven = drive(TokenRecycling(table=table), Formula(), prompt[:-1], 81, first=prompt[-1])
    assert driven.accepted == accepted[: len(driven.accepted)]
    assert len(accepted) - len(driven.accepted) <= 2  # the authors' length check is later by up to two steps


@pytest.mark.parametrize(("nodes", "vocab", "k"), [(81, 49152, 8), (3, 5000, 8), (1, 4097, 3), (5, 300, 8), (2, 8, 8)])
def test_top_k_by_blocks_equals_topk(nodes, vocab, k):
    logits = torch.stack([torch.randperm(vocab, generator=torch.Generator().manual_seed(n)) for n in range(nodes)])
    logits = logits.float()
    assert torch.equal(top_k(logits, k), logits.topk(k).indices)
    rising = torch.arange(vocab).float()[None]  # the whole answer in the last block, or behind it
    assert torch.equal(top_k(rising, k), rising.topk(k).indices)


def test_top_k_values_are_exact_with_ties():
    logits = torch.randint(0, 4, (7, 6000), generator=torch.Generator().manual_seed(0)).float()
    chosen = top_k(logits, 8)
    assert torch.equal(logits.gather(1, chosen), logits.topk(8).values)
    assert all(len(set(row)) == 8 for row in chosen.tolist())


@pytest.fixture(scope="module")
def llama():
    return endless(make_llama())


@pytest.fixture(scope="module")
def texts(llama):
    """[(prompt, its greedy continuation of 60 tokens)]"""
    return [(prompt, plain(llama, prompt, 60)) for prompt in prompts(4, VOCAB)]


@pytest.mark.parametrize("kind", ["zeros", "random", "cold"])
@pytest.mark.parametrize("prune_unseen", [True, False])
def test_greedy_text_is_the_targets_own(llama, texts, kind, prune_unseen):
    table = {"zeros": RecyclingTable(VOCAB), "random": random_table(), "cold": None}[kind]
    strategy = TokenRecycling(table=table, prune_unseen=prune_unseen, cost_model=False)
    for prompt, text in texts:
        ids, stats = written(llama, strategy, prompt, 60)
        assert ids == text
        assert stats.forwards <= 60
        assert max(stats.rows) <= 81


class AlwaysWrong(RecyclingTable):
    """Every row the same ids, whatever the target says."""

    def __init__(self, ids):
        super().__init__(VOCAB, len(ids))
        self.successors[:], self.seen[:] = ids, True

    def update(self, tokens, top, path):
        pass


def test_a_table_that_is_always_wrong_costs_no_forward(llama, texts):
    for prompt, text in texts[:2]:
        never = sorted(set(range(VOCAB)) - set(text))[:8]
        ids, stats = written(llama, TokenRecycling(table=AlwaysWrong(never), cost_model=False), prompt, 60)
        assert ids == text
        assert stats.forwards == 60
        assert stats.accepted == 0 < stats.drafted


@pytest.fixture(scope="module")
def long_texts(llama):
    """20 prompts with their greedy continuation of 128 tokens."""
    return [(prompt, plain(llama, prompt, 128)) for prompt in prompts(20, VOCAB, seed=1)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["zeros", "random", "adversarial"])
def test_20_prompts_of_128_tokens_are_greedys_own(llama, long_texts, kind):
    table = {"zeros": RecyclingTable(VOCAB), "random": random_table(3), "adversarial": AlwaysWrong(range(8))}[kind]
    for prompt, text in long_texts:
        ids, _ = written(llama, TokenRecycling(table=table, cost_model=False), prompt, 128)
        assert ids == text


def test_the_engine_takes_as_many_forwards_as_the_slow_way(llama):
    prompt = prompts(1, VOCAB, seed=5)[0]
    strategy = TokenRecycling(cost_model=False)
    _, stats = written(llama, strategy, prompt, 60)
    driven = drive(strategy, llama, prompt, 60)
    assert stats.forwards == len(driven.accepted) + 1  # the prefill


def test_a_cyclic_text_is_written_seven_tokens_a_step():
    model = bigram_llama(cyclic(10, 24))
    table = RecyclingTable(24)
    written(model, TokenRecycling(table=table, cost_model=False), [0], 12)  # one cycle
    ids, stats = written(model, TokenRecycling(table=table, cost_model=False), [4], 1 + 7 * 8)
    assert ids == [(5 + i) % 10 for i in range(57)]
    assert stats.forwards == 1 + 8


def test_a_shared_table_writes_the_same_text_as_fresh_ones(llama):
    shared = RecyclingTable(VOCAB)
    for prompt in prompts(3, VOCAB, seed=2):
        hot, _ = written(llama, TokenRecycling(table=shared, cost_model=False), prompt, 40)
        cold, _ = written(llama, TokenRecycling(cost_model=False), prompt, 40)
        assert hot == cold
    assert shared.successors.dtype == np.int32
    assert shared.successors.min() >= 0
    assert shared.successors.max() < VOCAB


def test_a_hot_table_saves_forwards_on_a_text_seen_before(llama):
    shared, prompt = RecyclingTable(VOCAB), prompts(1, VOCAB, seed=3)[0]
    _, first = written(llama, TokenRecycling(table=shared, cost_model=False), prompt, 60)
    _, second = written(llama, TokenRecycling(table=shared, cost_model=False), prompt, 60)
    assert second.forwards < first.forwards


def test_the_cost_model_leaves_the_text_as_it_is(llama, texts):
    strategy = TokenRecycling(table=RecyclingTable(VOCAB))
    for prompt, text in texts:
        ids, stats = written(llama, strategy, prompt, 60)
        assert ids == text
        assert max(stats.rows) <= 81


def test_sampled_text_is_generates_own_at_the_same_seed(llama):
    for seed, prompt in enumerate(prompts(3, VOCAB, seed=6)):
        torch.manual_seed(seed)
        ids, stats = written(llama, TokenRecycling(table=random_table(), cost_model=False), prompt, 40, do_sample=True)
        torch.manual_seed(seed)
        own = llama.generate(torch.tensor([prompt]), do_sample=True, max_new_tokens=40)
        assert ids == own[0, len(prompt) :].tolist()
        assert stats.drafted > 0


def test_a_table_takes_two_megabytes_for_a_vocabulary_of_32000():
    assert RecyclingTable(32_000).nbytes() == 32_000 * (8 * 4 + 1) < 2_048_000


def test_a_saved_table_comes_back_whole(tmp_path):
    table = RecyclingTable(VOCAB, 5, make_tokenizer())
    table.update(np.array([5, 9]), np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]), [0])
    table.save(tmp_path / "t.safetensors")
    loaded = RecyclingTable.load(tmp_path / "t.safetensors", make_tokenizer())
    assert np.array_equal(loaded.successors, table.successors)
    assert np.array_equal(loaded.seen, table.seen)
    assert loaded.tokenizer == table.tokenizer is not None


def test_refuses_a_table_of_another_tokenizer(tmp_path):
    other = make_tokenizer()
    other.add_tokens(["brandnew"])
    RecyclingTable(VOCAB, tokenizer=make_tokenizer()).save(tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="another tokenizer"):
        RecyclingTable.load(tmp_path / "t.safetensors", other)
    with pytest.raises(DataError, match="another tokenizer"):
        TokenRecycling(table=RecyclingTable.load(tmp_path / "t.safetensors"), tokenizer=other)


def test_refuses_a_file_that_is_no_table(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a table")
    with pytest.raises(DataError, match="no recycling table"):
        RecyclingTable.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("rows", [[[5, 1], [0, 1]], [[-1, 1], [0, 1]]])
def test_refuses_ids_outside_the_vocabulary(rows):
    with pytest.raises(DataError, match="id"):
        RecyclingTable.of(rows)
    with pytest.raises(DataError, match="integers"):
        RecyclingTable.of(np.zeros((2, 2)))


def test_refuses_a_table_of_another_vocabulary(llama):
    with pytest.raises(MethodError, match=r"61 rows.*67 wide"):
        written(llama, TokenRecycling(table=official_table()), [3, 4], 4)


def test_refuses_a_table_of_another_k():
    with pytest.raises(MethodError, match="pass k=2"):
        TokenRecycling(table=TOY)


def test_refuses_template_ranks_beyond_k():
    with pytest.raises(MethodError, match=r"rank 7.*at least 8, not 4"):
        TokenRecycling(k=4)


@pytest.mark.parametrize("settings", [{"budget": 0}, {"k": 0}])
def test_refuses_nothing_to_draft(settings):
    with pytest.raises(MethodError, match="at least 1"):
        TokenRecycling(**settings)


def test_refuses_more_successors_than_the_vocabulary_has():
    with pytest.raises(MethodError, match="between 1 and the vocabulary size 5"):
        RecyclingTable(5, 8)


def test_another_k_than_8_drafts_and_learns(llama):
    strategy = TokenRecycling(k=3, template=TreeTemplate.of([[0], [1], [2], [0, 0], [0, 2]]), cost_model=False)
    prompt = prompts(1, VOCAB, seed=7)[0]
    ids, _ = written(llama, strategy, prompt, 40)
    assert ids == plain(llama, prompt, 40)


def test_the_experiment_runs_and_keeps_greedys_texts():
    from unwrite import catalog
    from unwrite.beds.budget import Budget
    from unwrite.reproduce.token_recycling import run

    claim = run(Budget("tiny"))
    assert claim.slug == "token-recycling"
    assert claim.holds["every text is greedy's own"]
    stored = {check["text"]: check["kind"] for check in catalog.system(claim.slug).result["checks"]}
    assert stored == {check.text: check.kind for check in claim.checks}
    assert all(len(figures) == len(claim.columns) for figures in claim.rows.values())
