import copy

import numpy as np
import pytest
import torch
from targets import CLOSE, FAMILIES, VOCAB, branch, fresh_logits, make_target, prompt, random_tree, start
from torch import nn

from conftest import make_llama
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel, PairCache

TARGETS = [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa")]


def paths_of(model):
    return TransformersRuntime(model, pack="always").routes


def lora(model, seed=0):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    return tuned


def greedy(model, ids, count, path=None, **options):
    """Plain decoding driven by hand, one node a step."""
    runtime, logits = start(model, [np.asarray(ids)], path, **options)
    tokens = [int(logits[0].argmax())]
    while len(tokens) < count:
        output = runtime.forward(DraftTree.chain(tokens[-1], []))
        runtime.commit([[0]])
        tokens.append(int(output.logits[0, 0].argmax()))
    return tokens


def generated(model, ids, count):
    given = torch.tensor([list(map(int, ids))])
    out = model.generate(input_ids=given, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return out[0, given.shape[1] :].tolist()


def unending(model):
    """`generate` must not suppress eos in one and not in the other: no eos at all."""
    model.generation_config.eos_token_id = None
    return model


# One forward over a tree


@pytest.mark.parametrize(("family", "attention"), TARGETS)
def test_tree_logits_equal_recomputing_every_path(family, attention):
    model, rng = make_target(family, attention), np.random.default_rng(1)
    text, tree = prompt(rng), random_tree(rng, 40)
    expected = [fresh_logits(model, [*text, *tree.tokens[0, branch(tree, node)]]) for node in range(40)]
    for path in paths_of(model):
        runtime, _ = start(model, [text], path)
        logits = runtime.forward(tree).logits[0]
        for node in range(40):
            assert (logits[node] - expected[node]).abs().max() < CLOSE, (path, node)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_causal_mask_gives_other_logits(family):
    model, rng = make_target(family), np.random.default_rng(1)
    text, tree = prompt(rng), random_tree(rng, 40)
    runtime, _ = start(model, [text])
    right = runtime.forward(tree).logits[0]
    causal = DraftTree(tree.tokens, tree.parents, tree.kinds, tree.sizes)
    vars(causal).update(depths=tree.depths, ancestors=np.tril(np.ones((1, 40, 40), dtype=bool)))
    assert (runtime.forward(causal).logits[0] - right).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_share_a_position(family):
    model, rng = make_target(family), np.random.default_rng(1)
    text, tree = prompt(rng), random_tree(rng, 20)
    runtime, _ = start(model, [text])
    right = runtime.forward(tree).logits[0]
    counted = DraftTree(tree.tokens, tree.parents, tree.kinds, tree.sizes)
    vars(counted).update(depths=np.arange(20)[None], ancestors=tree.ancestors)
    assert (runtime.forward(counted).logits[0] - right).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_gives_the_logits_of_the_stock_forward(family):
    model, rng = make_target(family), np.random.default_rng(2)
    text, tree = prompt(rng), random_tree(rng, 17)
    stock, _ = start(model, [text], "stock")
    expected = stock.forward(tree).logits
    expected_paths = ("packed", "stock") if family in ("gemma", "gpt2", "opt") else ("fused", "stock")
    assert paths_of(model) == expected_paths
    other, _ = start(model, [text], expected_paths[0])
    assert (other.forward(tree).logits - expected).abs().max() < CLOSE


def test_fused_packed_and_stock_agree_on_one_model():
    model, rng = make_target("llama"), np.random.default_rng(2)
    text, tree = prompt(rng), random_tree(rng, 17)
    fused, _ = start(model, [text], "fused")
    expected = fused.forward(tree).logits
    handle = model.model.register_forward_hook(lambda *_: None)  # no longer stock, so the packed copy it is
    packed, _ = start(model, [text], "packed")
    assert (packed.forward(tree).logits - expected).abs().max() < CLOSE
    handle.remove()


def test_the_fused_loop_runs_without_packs_too():
    model, rng = make_target("qwen2"), np.random.default_rng(2)
    text = prompt(rng)
    for nodes in (1, 5, 30):
        tree = random_tree(rng, nodes)
        stock, _ = start(model, [text], "stock")
        bare = TransformersRuntime(model, pack="never")
        bare.prefill([text], 60)
        bare.use("fused")
        assert (bare.forward(tree).logits - stock.forward(tree).logits).abs().max() < CLOSE


# Rollback


@pytest.mark.parametrize(("family", "attention"), TARGETS)
def test_after_every_commit_the_next_logits_equal_a_fresh_forward(family, attention):
    model, rng = make_target(family, attention), np.random.default_rng(3)
    for path in paths_of(model):
        text = list(prompt(rng))
        runtime, logits = start(model, [np.array(text)], path)
        assert (logits[0] - fresh_logits(model, text)).abs().max() < CLOSE
        text.append(5)
        for _ in range(6):
            tree = random_tree(rng, int(rng.integers(1, 20)))
            tree.tokens[0, 0] = text[-1]
            logits = runtime.forward(tree).logits[0]
            kept = branch(tree, int(rng.integers(tree.nodes)))
            runtime.commit([kept])
            text += tree.tokens[0, kept[1:]].tolist()
            assert runtime.lengths.tolist() == [len(text)]
            assert (logits[kept[-1]] - fresh_logits(model, text)).abs().max() < CLOSE
            text.append(int(rng.integers(3, VOCAB)))


def test_a_step_that_is_not_committed_leaves_no_trace():
    model, rng = make_target("llama"), np.random.default_rng(4)
    text = prompt(rng)
    runtime, _ = start(model, [text])
    tree = random_tree(rng, 9)
    first = runtime.forward(tree).logits
    runtime.forward(random_tree(rng, 21))
    assert torch.equal(runtime.forward(tree).logits, first)


def test_paths_can_change_from_step_to_step():
    model, rng = make_target("qwen3"), np.random.default_rng(5)
    text = list(prompt(rng))
    runtime, _ = start(model, [np.array(text)])
    for path in ("fused", "stock", "fused", "stock"):
        runtime.use(path)
        text.append(int(rng.integers(3, VOCAB)))
        logits = runtime.forward(DraftTree.chain(text[-1], [])).logits[0, 0]
        runtime.commit([[0]])
        assert (logits - fresh_logits(model, text)).abs().max() < CLOSE


# Batches


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_unequal_length_equal_single_rows(family):
    model, rng = make_target(family), np.random.default_rng(6)
    rows = [prompt(rng, length) for length in (4, 13, 8)]
    for path in paths_of(model):
        together, logits = start(model, rows, path)
        alone = [start(model, [row], path) for row in rows]
        for index, (_, single) in enumerate(alone):
            assert (logits[index] - single[0]).abs().max() < CLOSE
        for _ in range(4):
            trees = [random_tree(rng, int(rng.integers(1, 9))) for _ in rows]
            output = together.forward(DraftTree.stack(trees))
            kept = [branch(tree, tree.nodes - 1) for tree in trees]
            for index, (runtime, _) in enumerate(alone):
                one = runtime.forward(trees[index]).logits[0]
                assert (output.row(index, trees[index].nodes).logits - one).abs().max() < CLOSE, path
                runtime.commit([kept[index]])
            together.commit(kept)
            assert together.lengths.tolist() == [int(runtime.lengths[0]) for runtime, _ in alone]


@pytest.mark.parametrize("path", ["fused", "stock"])
def test_a_single_node_of_a_short_row_does_not_see_the_longer_rows_columns(path):
    model, rng = make_target("llama"), np.random.default_rng(6)
    rows = [prompt(rng, 4), prompt(rng, 11)]
    runtime, _ = start(model, rows, path)
    logits = runtime.forward(DraftTree.stack([DraftTree.chain(5, []), DraftTree.chain(6, [])])).logits
    assert (logits[0, 0] - fresh_logits(model, [*rows[0], 5])).abs().max() < CLOSE
    assert (logits[1, 0] - fresh_logits(model, [*rows[1], 6])).abs().max() < CLOSE


def test_a_finished_row_keeps_its_length():
    model, rng = make_target("llama"), np.random.default_rng(6)
    runtime, _ = start(model, [prompt(rng, 4), prompt(rng, 6)])
    runtime.forward(DraftTree.stack([random_tree(rng, 3), random_tree(rng, 1)]))
    runtime.commit([[0], []])
    assert runtime.lengths.tolist() == [5, 6]


# The model's own text


@pytest.mark.parametrize("family", FAMILIES)
def test_single_nodes_write_the_text_of_generate(family):
    model, rng = unending(make_target(family)), np.random.default_rng(7)
    for _ in range(2):
        ids = prompt(rng)
        expected = generated(model, ids, 40)
        for path in paths_of(model):
            assert greedy(model, ids, 40, path) == expected, path


def test_a_guarded_model_writes_its_own_text():
    model, rng = LogitDifferenceModel(make_llama(0), make_llama(1)), np.random.default_rng(8)
    model.generation_config.eos_token_id = None
    empty = PairCache(model.target.config, model.assistant.config)
    ids = prompt(rng)
    expected = generated(model, ids, 30)
    assert expected != generated(unending(make_llama(0)), ids, 30)
    for path in ("packed", "stock"):
        assert greedy(model, ids, 30, path, cache=copy.deepcopy(empty)) == expected


def test_a_guarded_model_drops_filtered_tokens_as_it_does_in_generate():
    model = LogitDifferenceModel(make_llama(0), make_llama(1), top_filter=0.9)
    runtime, _ = start(model, [np.arange(3, 12)], cache=PairCache(model.target.config, model.assistant.config))
    assert torch.isinf(runtime.forward(DraftTree.chain(5, [6, 7])).logits).any()


def test_a_guarded_model_rolls_both_caches_back():
    model, rng = LogitDifferenceModel(make_llama(0), make_llama(1), alpha=2.0), np.random.default_rng(9)
    text = list(prompt(rng))
    runtime, _ = start(model, [np.array(text)], cache=PairCache(model.target.config, model.assistant.config))
    runtime._extras = {}  # scores of all tokens, to compare numbers
    tree = random_tree(rng, 15)
    runtime.forward(tree)
    kept = branch(tree, 14)
    runtime.commit([kept])
    text += tree.tokens[0, kept].tolist()
    logits = runtime.forward(DraftTree.chain(7, [])).logits[0, 0]
    assert (logits - fresh_logits(model, [*text, 7])).abs().max() < CLOSE


def test_an_unmerged_lora_writes_its_own_text():
    rng = np.random.default_rng(10)
    model = lora(unending(make_target("llama")))
    ids = prompt(rng)
    expected = generated(model, ids, 30)
    assert expected != generated(unending(make_target("llama")), ids, 30)
    assert paths_of(model) == ("packed", "stock")
    for path in paths_of(model):
        assert greedy(model, ids, 30, path) == expected
    with model.disable_adapter():
        assert greedy(model, ids, 30) == generated(model, ids, 30) != expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_text_follows_an_edit_through_data(family):
    model, rng = unending(make_target(family)), np.random.default_rng(11)
    ids = prompt(rng)
    runtime, _ = start(model, [ids])
    before = greedy(model, ids, 20)
    linear = next(m for m in model.modules() if type(m) is nn.Linear or type(m).__name__ == "Conv1D")
    linear.weight.data.mul_(-3.0)
    after = generated(model, ids, 20)
    assert after != before
    assert greedy(model, ids, 20) == after
    logits = runtime.prefill([ids], 40)  # and in a runtime made before the edit
    tokens = [int(logits[0].argmax())]
    for _ in range(19):
        tokens.append(int(runtime.forward(DraftTree.chain(tokens[-1], [])).logits[0, 0].argmax()))
        runtime.commit([[0]])
    assert tokens == after


def test_the_text_follows_an_edit_of_one_element():
    model = unending(make_target("llama"))
    ids = np.arange(3, 12)
    runtime, _ = start(model, [ids], "fused")
    tree = DraftTree.chain(5, [6, 7])
    before = runtime.forward(tree).logits
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 2.0
    runtime.prefill([ids], 40)
    after = runtime.forward(tree).logits
    expected = fresh_logits(model, [*ids, 5, 6, 7])
    assert (after[0, -1] - expected).abs().max() < CLOSE
    assert (before[0, -1] - expected).abs().max() > 10 * CLOSE


@pytest.mark.parametrize("path", ["fused", "packed", "stock"])
def test_hidden_states_are_those_of_the_model(path):
    model, rng = make_target("llama"), np.random.default_rng(12)
    if path == "packed":
        model.model.register_forward_hook(lambda *_: None)
    text = prompt(rng)
    runtime, _ = start(model, [text], path)
    assert runtime.provides == {"logits", "final_hidden", "layers"}
    output = runtime.forward(DraftTree.chain(5, [6, 7]), frozenset({"logits", "final_hidden", "layer:0", "layer:2"}))
    with torch.no_grad():
        full = model.model(torch.tensor([[*text, 5, 6, 7]]), output_hidden_states=True)
    assert (output.final_hidden[0] - full.last_hidden_state[0, -3:]).abs().max() < CLOSE
    assert (output.layers[0][0] - full.hidden_states[1][0, -3:]).abs().max() < CLOSE
    assert (model.model.norm(output.layers[2])[0] - full.last_hidden_state[0, -3:]).abs().max() < CLOSE


def test_no_path_touches_the_model():
    model = make_target("gpt2")
    modules = [(name, id(m), type(m), sorted(vars(m)), len(m._forward_hooks)) for name, m in model.named_modules()]
    tensors = [(name, id(p), p.clone()) for name, p in model.named_parameters()]
    for path in paths_of(model):
        runtime, _ = start(model, [np.arange(3, 12)], path)
        runtime.forward(DraftTree.chain(5, [6]), frozenset({"logits", "final_hidden", "layer:1"}))
    assert modules == [(n, id(m), type(m), sorted(vars(m)), len(m._forward_hooks)) for n, m in model.named_modules()]
    for (name, identity, value), (other, parameter) in zip(tensors, model.named_parameters(), strict=True):
        assert (name, identity) == (other, id(parameter))
        assert torch.equal(value, parameter)


# What the engine asks of it


def test_positions_end_where_the_model_does():
    assert TransformersRuntime(make_target("gpt2")).max_positions == 160
    assert TransformersRuntime(make_target("llama")).max_positions == 128


def test_the_fingerprint_tells_models_and_thread_counts_apart():
    one, other = TransformersRuntime(make_target("llama")), TransformersRuntime(make_target("qwen2"))
    assert one.fingerprint != other.fingerprint
    before, threads = one.fingerprint, torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert one.fingerprint != before
    finally:
        torch.set_num_threads(threads)
