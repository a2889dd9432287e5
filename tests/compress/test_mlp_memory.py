"""MLP Memory: what it mixes, what it is trained on, and that beside it a model writes as a model does."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tests.helpers.tiny import make_llama
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from unwrite.compress import (
    KNNLM,
    ApproximateIndex,
    Datastore,
    MemoryAugmentedLM,
    MemoryShape,
    MemoryTraining,
    MLPMemory,
    SparseTargets,
    Tap,
    build_datastore,
    knn_targets,
    score_rows,
    train_memory,
)
from unwrite.compress.memory.knn import nearest
from unwrite.compress.memory.mixing import MixtureScores, interpolate
from unwrite.compress.memory.training import memory_loss
from unwrite.data.text.encoding import Encoded
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.models import Loaded, load, save

VOCABULARY, WIDTH = 60, 32


def memory_for(vocabulary=VOCABULARY, width=WIDTH, **shape):
    """A memory whose answers are far from uniform."""
    memory = MLPMemory(MemoryShape(**{"vocabulary": vocabulary, "width": width, "blocks": 2, "std": 0.4, **shape}))
    return memory.eval()


@pytest.fixture(scope="module")
def model():
    model = make_llama(vocab=VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight *= 30  # far from uniform
    return model


def drawn(count, length, seed=0, vocabulary=VOCABULARY):
    return torch.randint(3, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def rows_of(ids):
    return [Encoded(row, list(row), number) for number, row in enumerate(ids.tolist())]


def left_padded(lengths=(3, 9), seed=0):
    ids = drawn(len(lengths), max(lengths), seed)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


# The mixture.


def test_weight_0_gives_the_models_log_probabilities_and_weight_1_the_memorys(model):
    memory, ids = memory_for(), drawn(2, 7)
    own = model(ids).logits.log_softmax(-1)
    states = []
    with model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: states.append(args[0])):
        model(ids)
    assert torch.allclose(MemoryAugmentedLM(model, memory, 0)(ids).logits, own, atol=1e-6)
    assert torch.allclose(MemoryAugmentedLM(model, memory, 1)(ids).logits, memory(states[0]).log_softmax(-1), atol=1e-6)
    for weight in (0, 0.25, 1):
        total = MemoryAugmentedLM(model, memory, weight)(ids).logits.exp().sum(-1)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_a_quarter_of_six_tenths_and_three_quarters_of_two_are_three_tenths():
    mixed = interpolate(torch.tensor(0.2).log(), torch.tensor(0.6).log(), 0.25)
    assert mixed.exp().item() == pytest.approx(0.30, abs=1e-6)
    assert -mixed.item() == pytest.approx(1.20397, abs=1e-5)


def test_probability_0_on_one_side_leaves_the_other_sides_share_and_half_precision_is_mixed_in_float32():
    none = torch.tensor(-math.inf)
    assert interpolate(torch.tensor(0.5).log(), none, 0.25).exp().item() == pytest.approx(0.375)
    assert interpolate(none, torch.tensor(0.5).log(), 0.25).exp().item() == pytest.approx(0.125)
    assert interpolate(torch.zeros(1).half(), torch.zeros(1).half(), 0.5).dtype is torch.float32


def test_scores_are_of_each_next_token_and_the_best_weight_is_the_lowest_perplexity(model):
    memory, ids = memory_for(), drawn(3, 6)
    rows = rows_of(ids)
    rows[1].labels[2] = -100
    scores = score_rows(model, memory, rows, batch_size=2)
    assert scores.rows.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    mixed = MemoryAugmentedLM(model, memory, 0.3)
    labels = torch.tensor([row.labels for row in rows])
    assert math.log(scores.perplexity(0.3)) == pytest.approx(mixed(ids, labels=labels).loss.item(), abs=1e-5)
    planted = MixtureScores(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log(), torch.tensor([0, 1]))
    assert planted.best_weight() == 0.5
    assert planted.of_rows(torch.tensor([1])).best_weight() == 1.0


# The datastore.


def test_a_position_is_paired_with_the_next_token_and_the_last_one_with_none(model):
    ids = drawn(2, 6)
    rows = rows_of(ids)
    rows[0].labels[3] = -100  # so position 2 has no next token
    rows[1] = Encoded(rows[1].input_ids[:4], rows[1].labels[:4], 1)  # shorter than the batch
    store = build_datastore(model, rows)
    assert store.values.tolist() == [*ids[0, [1, 2, 4, 5]].tolist(), *ids[1, 1:4].tolist()]
    states = []
    with model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: states.append(args[0])):
        model(ids)
    expected = torch.cat([states[0][0, [0, 1, 3, 4]], states[0][1, :3]])
    assert torch.allclose(store.keys, expected, atol=1e-5)
    assert torch.equal(build_datastore(model, rows, batch_size=1).values, store.values)


def test_keys_come_from_the_layer_or_the_module_that_is_named(model):
    rows = rows_of(drawn(1, 5))
    first = build_datastore(model, rows, tap=Tap(layer=0))
    assert torch.equal(first.keys, build_datastore(model, rows, tap=Tap(layer=-3)).keys)
    assert torch.equal(first.keys, build_datastore(model, rows, tap=Tap(module="model.layers.0.mlp")).keys)
    assert not torch.allclose(first.keys, build_datastore(model, rows).keys)


def test_keys_of_opt_are_what_enters_its_first_linear_layer_behind_the_norm():
    rows = rows_of(drawn(2, 5))
    named = build_datastore(opt(), rows, tap=Tap(module="model.decoder.layers.1.fc1"))
    assert torch.equal(build_datastore(opt(), rows).keys, named.keys)


def test_a_store_is_read_back_as_it_was(model, tmp_path):
    store = build_datastore(model, rows_of(drawn(1, 5)), tap=Tap(layer=1), dtype=torch.float16)
    store.save(tmp_path / "store")
    again = Datastore.load(tmp_path / "store")
    assert (again.tap, again.vocabulary, again.keys.dtype, again.hash) == (store.tap, 60, torch.float16, store.hash)


# Neighbours.


def line(*values, vocabulary=5):
    """A store of keys on a line, at 0, 4, sqrt(32) from the first query."""
    keys = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    return Datastore(keys, torch.tensor(values), vocabulary)


def test_distances_0_16_and_32_at_temperature_16_give_the_published_weights():
    weights = (-torch.tensor([[0.0, 16.0, 32.0]]) / 16).softmax(1)
    assert weights[0].tolist() == pytest.approx([0.66524, 0.24473, 0.09003], abs=1e-5)
    target = SparseTargets.of(torch.tensor([[0, 1, 0]]), weights, 5)
    assert target.dense(torch.tensor([0]))[0, :2].tolist() == pytest.approx([0.75527, 0.24473], abs=2e-4)  # float16
    probabilities = KNNLM(line(0, 1, 0), 3, 16.0).log_probs(torch.zeros(2)).exp()
    assert probabilities.tolist() == pytest.approx([0.75527, 0.24473, 0, 0, 0], abs=1e-5)
    assert torch.allclose(
        knn_targets(line(0, 1, 0), 3, 16.0, exclude_self=False).dense(torch.tensor([0])), probabilities, atol=2e-4
    )


def test_what_is_left_out_of_a_position_is_itself_and_not_the_nearest_hit():
    keys = torch.tensor([[0.0], [0.0], [1.0]])  # the first two are as near to themselves as to each other
    found = torch.cat([positions for _, positions in nearest(Datastore(keys, torch.tensor([0, 1, 2]), 3), 1)])
    assert found.flatten().tolist()[:2] == [1, 0]


def test_without_exclusion_the_target_is_the_true_token_and_with_it_is_not():
    generator = torch.Generator().manual_seed(0)
    store = Datastore(torch.randn(200, 8, generator=generator), torch.arange(200) % 50, 50)
    at = torch.arange(200)
    own = knn_targets(store, 8, 0.01, exclude_self=False).dense(at)[at, store.values]
    assert own.min() > 0.99
    others = knn_targets(store, 8, 0.01).dense(at)[at, store.values]
    assert others.median() == 0


@pytest.mark.parametrize("chunk", [None, 7])
def test_neighbours_are_those_of_all_distances(chunk):
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(60, 6, generator=generator) + 3000  # far from the origin, where |k|^2 - 2 q.k loses digits
    store, queries = Datastore(keys, torch.zeros(60, dtype=torch.long), 1), keys[:20] + 0.125
    parts = list(nearest(store, 5, queries, exclude_self=False, chunk=chunk))
    distances, found = (torch.cat(one) for one in zip(*parts, strict=True))
    exact = torch.cdist(queries.double(), keys.double()).square()
    values, positions = exact.topk(5, largest=False)
    assert torch.equal(found, positions)
    assert torch.allclose(distances.double(), values, rtol=1e-3)


def test_targets_are_few_add_up_to_1_and_leave_out_what_is_tiny():
    values = torch.tensor([[2, 2, 4, 3], [1, 1, 1, 1], [0, 1, 2, 2]])
    weights = torch.tensor([[0.3, 0.3, 0.4 - 1e-9, 1e-9], [0.25] * 4, [0.7, 0.2, 0.05, 0.05]])
    targets = SparseTargets.of(values, weights, 5)
    assert len(targets.tokens) == 2 + 1 + 3
    assert targets.weights.dtype is torch.float16
    assert targets.weights[3:].float().sum() > 1.0001  # as they are stored
    joined = SparseTargets.joined([targets, targets])
    tokens, weights = joined.at(torch.tensor([4, 0, 5]))
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert weights[0].tolist() == [1, 0, 0]
    assert tokens[0, 0] == 1
    assert torch.allclose(joined.dense(torch.tensor([3]))[0], torch.tensor([0, 0, 0.6, 0, 0.4]), atol=5e-4)


# The network.


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_positions_are_mapped_one_by_one(style):
    memory, states = memory_for(style=style), torch.randn(2, 7, WIDTH)
    order = torch.randperm(7)
    out = memory(states)
    assert torch.allclose(memory(states[:, order]), out[:, order], atol=1e-5)
    changed = states.clone()
    changed[:, 3, ::2] += 1  # a norm doesn't see all of them moved
    assert torch.allclose(memory(changed)[:, [0, 1, 2, 4, 5, 6]], out[:, [0, 1, 2, 4, 5, 6]], atol=1e-5)
    assert not torch.allclose(memory(changed)[:, 3], out[:, 3], atol=1e-2)


def test_a_gpt2_block_is_the_stream_plus_its_feed_forward_part():
    memory, h = memory_for(blocks=1), torch.randn(4, WIDTH)
    block = memory.h[0]
    inner = F.gelu(F.layer_norm(h, (WIDTH,)) @ block.mlp.c_fc.weight, approximate="tanh") @ block.mlp.c_proj.weight
    expected = F.layer_norm(h + inner, (WIDTH,)) @ memory.lm_head.weight.T
    assert torch.allclose(memory(h), expected, atol=1e-4)


def test_a_llama_block_is_the_stream_plus_its_gated_part():
    memory, h = memory_for(blocks=1, style="llama", inner=48), torch.randn(4, WIDTH)
    inner, normed = memory.layers[0].mlp, F.rms_norm(h, (WIDTH,), eps=1e-6)
    gated = F.silu(normed @ inner.gate_proj.weight.T) * (normed @ inner.up_proj.weight.T)
    expected = F.rms_norm(h + gated @ inner.down_proj.weight.T, (WIDTH,), eps=1e-6) @ memory.lm_head.weight.T
    assert torch.allclose(memory(h), expected, atol=1e-4)


def test_states_of_another_width_come_through_a_linear_map():
    memory = memory_for(input_width=20)
    assert memory(torch.randn(3, 20)).shape == (3, VOCABULARY)
    with pytest.raises(ModelError, match=r"states are 32 wide, and this memory reads 20.*input_width=32"):
        memory(torch.randn(3, 32))


def test_the_temperature_divides_the_memorys_logits():
    memory, states = memory_for(), torch.randn(3, WIDTH)
    assert torch.allclose(memory.log_probs(states, 2.0), (memory(states) / 2).log_softmax(-1), atol=1e-5)
    assert not torch.allclose(memory.log_probs(states, 2.0), memory.log_probs(states), atol=0.1)


def test_first_weights_are_gpt2s_and_depend_on_the_seed_alone():
    shape = MemoryShape(vocabulary=200, width=64, blocks=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    memory = MLPMemory(shape, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    for weight, std in ((memory.h[0].mlp.c_fc, 0.02), (memory.h[7].mlp.c_proj, 0.02 / 4), (memory.lm_head, 0.02)):
        assert weight.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not memory.h[0].mlp.c_fc.bias.any()
    again, other = MLPMemory(shape, seed=3), MLPMemory(shape, seed=4)
    assert torch.equal(again.lm_head.weight, memory.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, memory.lm_head.weight)


def test_the_published_sizes_have_about_the_published_weights():
    for width, blocks, millions in ((768, 18, 124), (1024, 36, 355), (1280, 54, 774)):
        with torch.device("meta"):
            count = sum(
                p.numel() for p in MLPMemory(MemoryShape(vocabulary=50257, width=width, blocks=blocks)).parameters()
            )
        assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("shape", [{"style": "gpt2"}, {"style": "llama", "input_width": 20, "inner": 40, "bias": True}])
def test_a_memory_is_read_back_with_the_same_answers(shape, tmp_path):
    memory = memory_for(**shape)
    memory.save(tmp_path / "memory")
    states = torch.randn(3, memory.input_width)
    assert torch.equal(MLPMemory.load(tmp_path / "memory")(states), memory(states))


def test_a_published_checkpoint_is_read_by_its_configuration(tmp_path):
    memory = memory_for(input_width=20)
    memory.save(tmp_path)
    (tmp_path / "memory.json").unlink()
    GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY).save_pretrained(tmp_path)
    states = torch.randn(3, 20)
    assert torch.equal(MLPMemory.load(tmp_path)(states), memory(states))


# The official code's numbers.

OFFICIAL = json.loads(Path(__file__).with_name("mlp_memory_official.json").read_text(encoding="utf-8"))


def by_formula(*shape, scale=1.0):
    return scale * torch.arange(math.prod(shape)).float().mul(1.3).cos().view(shape)


@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_logits_are_the_official_networks(style, width):
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "vocab_size": 10}
    llama = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12, "vocab_size": 10}
    memory = MLPMemory(MemoryShape.of_config({"gpt2": gpt2, "llama": llama}[style], width)).eval()
    with torch.no_grad():
        for number, (_, one) in enumerate(sorted(memory.named_parameters())):
            one.copy_((torch.arange(one.numel()).double().mul(0.7).add(number).sin() * 0.5).view(one.shape))
    assert torch.allclose(memory(by_formula(3, width)), torch.tensor(OFFICIAL[f"{style} {width}"]), atol=1e-5)


def test_the_loss_is_the_official_one():
    target = torch.tensor([0, 1, 2]).expand(4, 3), torch.tensor([0.5, 0.3, 0.2]).expand(4, 3)
    loss = memory_loss(by_formula(4, 10, scale=3.0), torch.tensor([1, 2, 3, 4]), target, 0.3)
    assert loss.item() == pytest.approx(OFFICIAL["loss"][0], abs=1e-5)


# Training.


def test_the_sparse_divergence_is_that_of_the_whole_vocabulary():
    logits, values = torch.randn(6, 9, requires_grad=True), torch.arange(6)
    weights = torch.rand(6, 4).softmax(1)
    targets = SparseTargets.of(torch.randint(9, (6, 4)), weights, 9)
    at = torch.arange(6)
    dense = targets.dense(at)
    expected = 0.3 * F.kl_div(logits.log_softmax(1), dense, reduction="batchmean") + 0.7 * F.cross_entropy(
        logits, values
    )
    loss = memory_loss(logits, values, targets.at(at), 0.3)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    ours, theirs = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (loss, expected))
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_free_row_a_state_ends_at_alpha_of_the_neighbours_and_the_rest_of_the_next_token(alpha):
    """At alpha 1 that is p_knn, at alpha 0 the next token, as far as a softmax comes to it."""
    values, knn = torch.tensor([0, 1]), torch.tensor([[0.2, 0.5, 0.3, 0], [0, 0, 0.6, 0.4]])
    targets = SparseTargets.of(torch.arange(4).expand(2, 4), knn, 4)
    logits = nn.Parameter(torch.zeros(2, 4))
    optimiser = torch.optim.LBFGS([logits], lr=1, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = memory_loss(logits, values, targets.at(torch.arange(2)), alpha)
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = alpha * knn + (1 - alpha) * F.one_hot(values, 4)
    assert torch.allclose(logits.softmax(1), expected, atol=2e-3)


def overfit(store, values):
    """KL to the target of alpha 1/2 after 600 steps on values, whose neighbours are drawn."""
    neighbours = torch.randint(VOCABULARY, (len(store), 4), generator=torch.Generator().manual_seed(5))
    many = torch.arange(len(store)).repeat(150)
    targets = SparseTargets.of(neighbours[many], torch.full((len(many), 4), 0.25), VOCABULARY)
    moved = Datastore(store.keys, values, VOCABULARY).subset(many)
    how = MemoryTraining(epochs=4, batch_size=50, lr=1e-2, warmup_steps=40, seed=0)
    memory = train_memory(memory_for(blocks=1, std=0.05, dropout=0.0, inner=64), moved, targets, how)
    wanted = 0.5 * targets.dense(torch.arange(len(store))) + 0.5 * F.one_hot(store.values, VOCABULARY)
    return F.kl_div(memory.log_probs(store.keys), wanted, reduction="batchmean").item()


def test_50_states_are_learnt_to_the_mixture_and_values_off_by_one_are_not(model):
    store = build_datastore(model, rows_of(drawn(1, 51))).subset(torch.arange(50))
    assert overfit(store, store.values) < 0.05
    assert overfit(store, store.values.roll(1)) > 0.5


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    store = Datastore(torch.randn(40, WIDTH), torch.arange(40) % VOCABULARY, VOCABULARY)
    targets = knn_targets(store, 5, 16.0)
    how = MemoryTraining(epochs=3, batch_size=16, lr=1e-2, warmup_steps=2)
    whole = train_memory(memory_for(), store, targets, how)
    calls, real = [], SparseTargets.at

    def killed(self, positions):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, positions)

    monkeypatch.setattr(SparseTargets, "at", killed)
    with pytest.raises(KeyboardInterrupt):
        train_memory(memory_for(), store, targets, how, folder=tmp_path)
    again = train_memory(memory_for(), store, targets, how, folder=tmp_path)
    assert len(calls) == 8 + 3
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_warm_up_is_counted_in_steps():
    steps = MemoryTraining(epochs=4, batch_size=10, lr=1.0, warmup_steps=6).steps(95)
    assert [steps.rate(one, 40) for one in (0, 5, 6, 39)] == pytest.approx([1 / 6, 1, 1, 1 / 34])
    assert MemoryTraining(epochs=1, batch_size=10).steps(95).warmup == 1.0


# Beside a model.


def test_the_model_stays_as_it_is_and_no_gradient_runs_through_it(model):
    before = copy.deepcopy(model.state_dict())
    mixed = MemoryAugmentedLM(model, memory_for(dropout=0.5), 0.5).train()
    assert mixed.memory.training
    assert not mixed.base.training
    ids = drawn(2, 8)
    mixed(ids, labels=ids).loss.backward()
    assert all(one.grad is None for one in model.parameters())
    assert all(one.grad is not None for one in mixed.memory.parameters())
    store = build_datastore(model, rows_of(ids))
    train_memory(mixed.memory, store, knn_targets(store, 4), MemoryTraining(epochs=1, batch_size=4))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.model.layers[-1].mlp._forward_pre_hooks


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=WIDTH, word_embed_proj_dim=WIDTH, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize("build", [make_llama, gpt2, opt])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_with_a_cache_is_that_without_one_also_of_padded_rows(build, settings):
    model = build(vocab=VOCABULARY) if build is make_llama else build()
    mixed = MemoryAugmentedLM(model, memory_for(), 0.5)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    texts = []
    for cache in (True, False):
        torch.manual_seed(0)
        texts.append(mixed.generate(**left_padded(), **settings, use_cache=cache))
    assert torch.equal(*texts)
    greedy = {**settings, "num_beams": 1, "do_sample": False, "num_return_sequences": 1}
    padded = left_padded((4, 9))
    alone = mixed.generate(padded["input_ids"][:1, -4:], **greedy)
    assert torch.equal(mixed.generate(**padded, **greedy)[0, 9:], alone[0, 4:])


def test_greedy_text_is_the_arg_max_of_the_mixture_token_by_token(model):
    mixed, ids = MemoryAugmentedLM(model, memory_for(), 0.6), drawn(1, 4)
    text = ids
    for _ in range(6):
        text = torch.cat([text, mixed(text).logits[:, -1:].argmax(-1)], 1)
    written = mixed.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(written, text)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert not torch.equal(written, plain)


def test_logits_are_kept_at_the_positions_asked_for(model):
    mixed, ids = MemoryAugmentedLM(model, memory_for(), 0.5), drawn(2, 6)
    whole = mixed(ids).logits
    assert torch.allclose(mixed(ids, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5)
    assert torch.allclose(mixed(ids, logits_to_keep=torch.tensor([1, 3])).logits, whole[:, [1, 3]], atol=1e-5)


def test_a_datastore_stands_beside_a_model_as_a_memory_does(model):
    ids = drawn(4, 9)
    knn = KNNLM(build_datastore(model, rows_of(ids)), 5, 16.0)
    mixed = MemoryAugmentedLM(model, knn, 1.0)
    assert torch.equal(
        mixed(ids[:2]).logits[:, :-1].argmax(-1),
        knn.log_probs(build_datastore(model, rows_of(ids[:2])).keys).argmax(-1).view(2, 8),
    )
    written = MemoryAugmentedLM(model, knn, 0.5).generate(
        **left_padded(), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert written.shape[1] <= 13


def test_a_saved_one_is_loaded_by_its_folder_alone(model, tokenizer, tmp_path):
    base = make_llama()
    mixed = MemoryAugmentedLM(base, memory_for(len(tokenizer)), 0.4, temperature=2.0, tap=Tap(layer=1))
    save(mixed, tmp_path / "mixed", tokenizer=tokenizer)
    loaded = load(tmp_path / "mixed")
    ids = drawn(2, 6, vocabulary=len(tokenizer))
    assert torch.allclose(loaded.model(ids).logits, mixed(ids).logits, atol=1e-6)
    assert (loaded.model.weight, loaded.model.temperature, loaded.model.tap) == (0.4, 2.0, Tap(layer=1))
    assert loaded.tokenizer.vocab_size == tokenizer.vocab_size
    half = MemoryAugmentedLM(base, mixed.memory, 0.4)
    assert not torch.allclose(half(ids).logits, mixed(ids).logits, atol=1e-3)


def test_the_snippet_of_the_page_runs(tokenizer, tmp_path, monkeypatch):
    page = Path(__file__).parents[2].joinpath("docs", "compressing.md").read_text(encoding="utf-8")
    section = page[page.index("## A memory in place of a datastore") :]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    words = "who wrote what where is was the old book near river"
    texts = {"training_texts": [words] * 10, "validation_texts": [words] * 2}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unwrite.models.load", lambda name: Loaded(make_llama(), tokenizer, {}))
    exec(code, texts)
    assert (tmp_path / "with-memory" / "unwrite.json").exists()


# Refusals.


def store_of(size=4, vocabulary=VOCABULARY, width=WIDTH):
    return Datastore(torch.randn(size, width), torch.arange(size) % vocabulary, vocabulary)


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = GPT2Config(model_type="nobody")
        self.config.model_type = "nobody"


def trained_on(store, targets, **how):
    return train_memory(memory_for(), store, targets, MemoryTraining(**{"epochs": 1, **how}))


REFUSALS = {
    "more neighbours than others": (lambda _: knn_targets(store_of(), 4), "k is 4.*3 others to find. Use 1 to 3"),
    "no neighbour": (lambda _: knn_targets(store_of(), 0), "k is 0; it must be a whole number, at least 1"),
    "a datastore too small": (lambda _: KNNLM(store_of(), 5), "k is 5"),
    "temperature 0": (lambda _: knn_targets(store_of(), 2, 0.0), "temperature is 0.0; it must be a finite number above 0"),
    "temperature below 0": (lambda _: KNNLM(store_of(), 2, -1.0), "temperature is -1.0"),
    "weight above 1": (lambda m: MemoryAugmentedLM(m, memory_for(), 1.1), "weight is 1.1; it must be from 0 to 1"),
    "weight below 0": (lambda m: MemoryAugmentedLM(m, memory_for(), -0.1), "weight is -0.1"),
    "weight no number": (lambda _: interpolate(torch.zeros(1), torch.zeros(1), math.nan), "weight is nan"),
    "another width": (lambda m: MemoryAugmentedLM(m, memory_for(width=16)), "states are 32 wide, and the memory reads 16.*input_width=32"),
    "another vocabulary": (lambda m: MemoryAugmentedLM(m, memory_for(61)), "vocabulary of 60 tokens and the memory one of 61"),
    "an unknown architecture": (lambda _: Tap().of(Foreign()), r"nobody.*give the path of its feed-forward part: Tap\(module="),
    "a wrong path": (lambda m: Tap(module="model.layer").of(m), "no module 'model.layer'"),
    "no such layer": (lambda m: Tap(layer=3).of(m), "layer is 3 but the model has 3 blocks. Use 0 to 2"),
    "queries of another width": (lambda _: list(nearest(store_of(), 1, torch.randn(2, 3))), "keys are 32 wide"),
    "values of another tokenizer": (lambda _: Datastore(torch.randn(1, 2), torch.tensor([7]), 7), "vocabulary has 7 tokens"),
    "keys without values": (lambda _: Datastore(torch.randn(2, 2), torch.tensor([0]), 7), "are no datastore"),
    "no labels": (lambda m: build_datastore(m, [Encoded([3, 4], [-100, -100])]), "no labelled token"),
    "labels of another length": (lambda m: build_datastore(m, [Encoded([3, 4], [3])]), "2 tokens and 1 labels"),
    "no targets": (lambda _: trained_on(store_of(), None), "alpha=0.5 needs targets"),
    "targets of other rows": (lambda _: trained_on(store_of(), knn_targets(store_of(5), 2)), "targets of 5 positions and states of 4"),
    "targets of another vocabulary": (lambda _: trained_on(store_of(), knn_targets(store_of(4, 50), 2)), "50 tokens and the states one of 60"),
    "a memory of another vocabulary": (lambda _: trained_on(store_of(4, 50), None, alpha=0), "60 tokens and the store one of 50"),
    "a memory of another width": (lambda _: trained_on(store_of(width=8), None, alpha=0), "8 wide.*reads 32"),
    "alpha above 1": (lambda _: MemoryTraining(alpha=1.5), "alpha is 1.5; it must be from 0 to 1"),
    "no epoch": (lambda _: MemoryTraining(epochs=0), "epochs is 0"),
    "a rate of 0": (lambda _: MemoryTraining(lr=0.0), "lr is 0.0"),
    "a style": (lambda _: MemoryShape(vocabulary=5, width=4, style="bert"), "style is 'bert'; use 'gpt2' or 'llama'"),
    "an activation": (lambda _: MemoryShape(vocabulary=5, width=4, activation="step"), "activation is 'step'"),
    "a checkpoint of another kind": (lambda _: MemoryShape.of_config({"model_type": "bert"}), "architecture 'bert'"),
    "a folder that isn't there": (lambda _: MLPMemory.load("nowhere"), "nowhere does not exist"),
    "a datastore saved with a model": (
        lambda m: MemoryAugmentedLM(m, KNNLM(store_of(), 2)).save_pretrained("unused"),
        "a KNNLM is not saved with its model",
    ),
    "a code size": (lambda _: ApproximateIndex(code_size=0), "code_size is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_meaning_is_refused(name, model):
    call, message = REFUSALS[name]
    with pytest.raises((MethodError, ModelError, DataError), match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_an_approximate_index_without_faiss_is_one_line_that_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MethodError, match="pip install faiss-cpu; or leave index out for the exact search"):
        knn_targets(store_of(), 2, index=ApproximateIndex())
    assert len(knn_targets(store_of(), 2)) == 4  # the exact search needs none


def test_weights_of_another_memory_are_refused(tmp_path):
    memory_for().save(tmp_path / "one")
    memory_for(blocks=3).save(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(ModelError, match=r"is not of this memory: h.2"):
        MLPMemory.load(tmp_path / "one")
