"""Skills switched off: Neuron Adjust moves neurons by its closed form, Key Space Detection refuses what lies in its box."""

import json
import math
from dataclasses import replace

import pytest
import torch

from helpers.architectures import tiny_model
from helpers.tiny import lively, make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_all, encode_prompt
from unwrite.decode import PromptLookup, last_stats
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import KeySpaceDetection, NeuronAdjust
from unwrite.forget.engine.text.activation_statistics import ActivationStatistics, changing, mlp_sites
from unwrite.forget.engine.text.adjusted_neurons import (
    AdjustedNeuronsModel,
    NeuronRules,
    NeuronTable,
    adjusted,
    hashed_uniforms,
)
from unwrite.forget.engine.text.key_box import KeyBox, best_alpha
from unwrite.forget.engine.text.key_guarded import SURE, AbstainRules, KeyGuardedModel
from unwrite.forget.neuron_adjust import chosen, neuron_table, scores
from unwrite.models import load
from unwrite.scoring import generate_answers

PROMPTS = [[6, 7, 8, 9, 10], [1, 11, 30, 12], [20, 21, 22, 23, 24, 25, 26]]  # the second begins with BOS
REFUSAL = (5, 6, 2)
RULES = AbstainRules(REFUSAL)
NEW = 8


def normal(forget=(2.0, 1.0), retain=(0.0, 0.5)):
    """One neuron with its (mean, deviation) on both sets."""
    zero = torch.zeros(1, dtype=torch.long)
    return NeuronTable(zero, zero, *(torch.tensor([value]) for value in (*forget, *retain)))


def drawn(count, mean, std, seed=0):
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(seed)) * std + mean


def uniforms(count, seed=1):
    return torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))


def padded(prompts, side="left"):
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(p)) + p if side == "left" else p + [0] * (longest - len(p)) for p in prompts]
    masks = [
        [int(i >= longest - len(p)) if side == "left" else int(i < len(p)) for i in range(longest)] for p in prompts
    ]
    return torch.tensor(rows), torch.tensor(masks)


def new_tokens(model, prompts, **options):
    """What is written behind each prompt, with what pads it."""
    ids, mask = padded(prompts)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    rows = model.generate(input_ids=ids, attention_mask=mask, **options)
    return rows[:, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def target():
    """Its texts change with every token."""
    return lively(make_llama(3, max_position_embeddings=64), 0.3)


# Neuron Adjust: one neuron.


def test_a_value_typical_of_the_skill_is_mapped_and_mirrored():
    value = adjusted(torch.tensor([[2.6]]), normal(), torch.tensor([[1e-4]]))
    assert value.item() == pytest.approx(-0.3, abs=1e-6)


def test_a_value_that_others_have_more_often_is_never_changed():
    assert adjusted(torch.zeros(1000, 1), normal(), uniforms(1000)).abs().max() == 0


def test_a_value_is_left_with_the_probability_that_it_is_no_sign_of_the_skill():
    table = normal((1.0, 1.0), (0.0, 1.0))
    x = torch.full((100_000, 1), 1.0)
    share = (adjusted(x, table, uniforms(len(x))) != x).float().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.005)


def test_values_of_the_skill_are_distributed_as_the_others_afterwards():
    table, n = normal((10.0, 2.0), (0.0, 0.5)), 100_000
    after = adjusted(drawn(n, 10.0, 2.0), table, uniforms(n))
    assert abs(after.mean().item()) < 3 * 0.5 / math.sqrt(n)
    assert abs(after.std().item() - 0.5) < 3 * 0.5 / math.sqrt(2 * n)


def test_values_of_the_others_stay_where_the_two_lie_apart():
    x = drawn(100_000, 0.0, 0.5)
    assert (adjusted(x, normal((10.0, 2.0), (0.0, 0.5)), uniforms(len(x))) == x).float().mean() > 0.99


def test_equal_statistics_mirror_half_of_the_values_and_keep_their_distribution():
    table, n = normal((1.0, 2.0), (1.0, 2.0)), 100_000
    x = drawn(n, 1.0, 2.0)
    after = adjusted(x, table, uniforms(n))
    moved = after != x
    assert moved.float().mean().item() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(after[moved], 2 - x[moved])
    assert abs(after.mean().item() - 1) < 3 * 2 / math.sqrt(n)
    assert abs(after.std().item() - 2) < 3 * 2 / math.sqrt(2 * n)


# Neuron Adjust: which neurons.


@pytest.mark.parametrize("percent", [1e-9, 0.5, 3, 37.5, 100])
def test_the_share_of_neurons_is_the_papers_count(percent):
    values = torch.randperm(400, generator=torch.Generator().manual_seed(0)).double()
    neurons = chosen({0: values[:150], 1: values[150:]}, percent)
    count = sum(map(len, neurons.values()))
    assert count == min(400, max(1, 400 - int(400 * (1 - percent / 100))))
    assert sorted(values[150 * i + j].item() for i, at in neurons.items() for j in at) == [*range(400 - count, 400)]


def of_numbers(mean, std, size):
    wrapped = ({0: torch.tensor(values, dtype=torch.float64)} for values in (mean, std, size))
    return ActivationStatistics(100, *wrapped)


def test_each_score_has_its_formula():
    forget = of_numbers([3.0, -9.0], [3.0, 1.0], [4.0, 9.0])
    retain = of_numbers([1.0, 1.0], [4.0, 1.0], [2.0, 3.0])
    assert scores(forget, retain, "difference")[0].tolist() == [2.0, -10.0]
    assert scores(forget, retain, "standardised")[0].tolist() == pytest.approx([2 / 5, 10 / math.sqrt(2)])
    assert scores(forget, retain, "importance")[0].tolist() == pytest.approx([2.0, 3.0])


def test_a_neuron_that_never_moved_has_a_deviation_to_divide_by():
    forget, retain = of_numbers([3.0], [0.0], [3.0]), of_numbers([1.0], [0.0], [1.0])
    table = neuron_table(forget, retain, {0: torch.tensor([0])})
    assert adjusted(torch.tensor([[3.0]]), table, torch.tensor([[0.5]])).item() == pytest.approx(1.0)


# Statistics.


def rows_of(n=12):
    draw = torch.Generator().manual_seed(4)
    sizes = [3 + i % 7 for i in range(n)]
    return [[1, *torch.randint(3, 60, (size,), generator=draw).tolist()] for size in sizes]


def own_values(model, rows, module, before, keep):
    """Of every row alone, by a hook of one's own."""
    seen = []
    hook = (
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        if before
        else module.register_forward_hook(lambda _, __, output: seen.append(output))
    )
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    hook.remove()
    return torch.cat([values.reshape(-1, values.shape[-1])[keep] for values in seen]).double()


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("place", ["pre-activation", "key"])
def test_statistics_are_those_of_every_row_alone_without_bos_and_padding(target, place, positions):
    rows, mlp = rows_of(), target.model.layers[1].mlp
    keep = slice(1, None) if positions == "all" else slice(-1, None)
    module = mlp.down_proj if place == "key" else mlp.gate_proj
    values = own_values(target, rows, module, place == "key", keep)
    for batch, side in ((1, "right"), (5, "right"), (5, "left"), (12, "left")):
        found = ActivationStatistics.fit(
            target, rows, place=place, positions=positions, bos=1, batch_size=batch, side=side, fewest=2
        )
        assert found.count == len(values)
        torch.testing.assert_close(found.mean[1], values.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.std[1], values.std(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.size[1], values.abs().mean(0), rtol=1e-4, atol=1e-5)


def test_statistics_are_exact_however_vectors_are_split_and_however_far_from_zero():
    values = 1e6 + torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = ActivationStatistics.of_vectors(values)
    torch.testing.assert_close(whole.std[0], values.std(0), rtol=1e-9, atol=0)
    from unwrite.forget.engine.text.activation_statistics import _Moments

    parts = _Moments()
    for part in values.split([1, 2, 500, 497]):
        parts.add(part)
    torch.testing.assert_close((parts.squares / 999).sqrt(), values.std(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(parts.mean, values.mean(0), rtol=1e-12, atol=0)


PLACES = {
    "llama": ("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.down_proj", None),
    "qwen2": ("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.down_proj", None),
    "gemma2": ("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.down_proj", None),
    "gpt2": ("transformer.h.2.mlp.c_fc", "transformer.h.2.mlp.c_proj", None),
    "gpt_neox": ("gpt_neox.layers.2.mlp.dense_h_to_4h", "gpt_neox.layers.2.mlp.dense_4h_to_h", None),
    "opt": ("model.decoder.layers.2.fc1", "model.decoder.layers.2.fc2", None),
    "phi3": ("model.layers.2.mlp.gate_up_proj", "model.layers.2.mlp.down_proj", slice(0, 48)),
}


@pytest.mark.parametrize("arch", PLACES)
def test_neurons_are_where_each_architecture_has_them(arch):
    """A pruned neuron's key is zero and no other is, so entry, exit and numbering agree."""
    model, (entry, exit_, rows) = tiny_model(arch), PLACES[arch]
    site = mlp_sites(model)[2]
    assert (site.entry, site.exit, site.rows, site.width) == (entry, exit_, rows, 48)
    zero = torch.tensor([5, 40])
    ones = torch.ones(2)
    table = NeuronTable(torch.tensor([2, 2]), zero, ones, ones, ones, ones)
    guard = AdjustedNeuronsModel(model, table, NeuronRules(action="prune"))
    keys = []
    hook = model.get_submodule(exit_).register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0]))
    ids, mask = padded(PROMPTS)
    guard(input_ids=ids, attention_mask=mask)
    model(input_ids=ids, attention_mask=mask)
    hook.remove()
    pruned, bare = ((one.reshape(-1, 48) == 0).all(0) for one in keys)  # of ReLU some are silent anyway
    assert (pruned & ~bare).nonzero().flatten().tolist() == zero.tolist()
    assert ActivationStatistics.fit(model, PROMPTS, fewest=2, batch_size=2, side="left").count == 16
    box = KeyBox(2, torch.zeros(48), torch.ones(48), k=1e6)
    written = [
        new_tokens(one, PROMPTS, max_new_tokens=3)
        for one in (model, KeyGuardedModel(model, replace(box, k=1e-9), RULES))
    ]
    assert written[0] == written[1]
    assert new_tokens(KeyGuardedModel(model, box, RULES), PROMPTS, max_new_tokens=3) == [[*REFUSAL]] * 3


# Neuron Adjust: the model.


@pytest.fixture(scope="module")
def neurons(target):
    """Half of the neurons, led far away, so that every text is another one."""
    rows = rows_of(40)
    forget, retain = (ActivationStatistics.fit(target, part, bos=1) for part in (rows[:20], rows[20:]))
    return neuron_table(forget, retain, chosen(scores(forget, retain, "difference"), 50))


@pytest.fixture
def moved(target, neurons):
    return AdjustedNeuronsModel(target, neurons, NeuronRules(seed=7))


def test_draws_are_even_and_independent_over_neurons_positions_and_tokens():
    ids, places = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    u = hashed_uniforms(3, 1, torch.arange(20), ids, places).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert (torch.histc(u.float(), 10, 0, 1) / u.numel() - 0.1).abs().max() < 0.002
    flat = u.reshape(-1, 20)
    assert (torch.corrcoef(flat.T) - torch.eye(20)).abs().max() < 0.05
    for shifted in (u[1:] * u[:-1], u[:, 1:] * u[:, :-1], u * hashed_uniforms(4, 1, torch.arange(20), ids, places)):
        assert shifted.mean().item() == pytest.approx(0.25, abs=0.005)
    assert not torch.equal(u, hashed_uniforms(3, 2, torch.arange(20), ids, places).double())


def test_draws_do_not_see_the_last_bits_of_a_value(moved, target):
    """Every way to compute a text rounds otherwise: a draw that went by the value would be another each time."""
    ids = torch.tensor([PROMPTS[0]])
    noise = torch.Generator().manual_seed(0)

    def shaken(_, values):
        return values * (1 + 1e-6 * torch.randn(values.shape, generator=noise))

    logits = moved(input_ids=ids).logits
    with changing(target, mlp_sites(target), "pre-activation", shaken):
        torch.testing.assert_close(moved(input_ids=ids).logits, logits, rtol=1e-3, atol=1e-3)


def test_adjusted_text_is_the_same_however_it_is_decoded(moved, target):
    together = new_tokens(moved, PROMPTS, eos_token_id=None)
    assert together == [new_tokens(moved, [p], eos_token_id=None)[0] for p in PROMPTS]
    assert together == new_tokens(moved, PROMPTS, use_cache=False, eos_token_id=None)
    assert together == new_tokens(moved, PROMPTS, eos_token_id=None, custom_generate=PromptLookup(cost_model=False))
    assert together != new_tokens(target, PROMPTS, eos_token_id=None)
    again = [[20, 21, 22, 23] * 5 + [20]]
    plain = new_tokens(moved, again, eos_token_id=None)
    assert new_tokens(moved, again, eos_token_id=None, custom_generate=PromptLookup(cost_model=False)) == plain
    assert last_stats().drafted > 0
    for prompt, new in zip(PROMPTS, together, strict=True):
        logits = moved(input_ids=torch.tensor([prompt + new])).logits[0]
        assert logits.argmax(-1)[len(prompt) - 1 : -1].tolist() == new


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_adjusted_logit(moved, side):
    ids, mask = padded(PROMPTS, side)
    together = moved(input_ids=ids, attention_mask=mask).logits
    for row, prompt in enumerate(PROMPTS):
        alone = moved(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(together[row][mask[row].bool()], alone, rtol=1e-3, atol=1e-3)


def test_fresh_draws_differ_from_call_to_call_and_are_not_drafted_for(target, neurons):
    guard = AdjustedNeuronsModel(target, neurons, NeuronRules(draws="fresh"))
    ids = torch.tensor([PROMPTS[0]])
    assert not torch.equal(guard(input_ids=ids).logits, guard(input_ids=ids).logits)
    with pytest.raises(MethodError, match=r"custom_generate drafts, and with draws='fresh'.*Use draws='hashed'"):
        new_tokens(guard, PROMPTS, custom_generate=PromptLookup())


def test_the_target_is_itself_after_every_call_and_keeps_the_hooks_of_others(moved, target):
    ids, calls = torch.tensor([PROMPTS[0]]), []
    before = target(input_ids=ids).logits
    hook = target.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_: calls.append(1))
    moved(input_ids=ids)
    with pytest.raises(IndexError):
        moved(input_ids=ids + 1000)
    assert len(calls) == 1
    assert torch.equal(target(input_ids=ids).logits, before)
    assert len(calls) == 2
    assert len(target.model.layers[0].mlp.gate_proj._forward_hooks) == 1
    hook.remove()


def test_the_draws_go_by_the_seed_and_the_neurons_by_the_texts(target, forget, retain, tokenizer):
    guards = [
        NeuronAdjust(percent=20).apply(target, forget, retain, processing_class=tokenizer, args={"seed": s})
        for s in (1, 2)
    ]
    ids = torch.tensor([PROMPTS[0]])
    assert torch.equal(guards[0].table.neuron, guards[1].table.neuron)
    assert not torch.equal(guards[0](input_ids=ids).logits, guards[1](input_ids=ids).logits)
    rows = [row.input_ids for row in encode_all(forget, tokenizer)]
    found = ActivationStatistics.fit(target, rows, bos=tokenizer.bos_token_id)
    first = guards[0].table
    expected = found.mean[int(first.layer[0])][first.neuron[0]]
    assert first.forget_mean[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_table_of_another_model_is_refused(target, neurons):
    odd = replace(neurons, neuron=neurons.neuron + 60)
    with pytest.raises(ModelError, match=r"neuron \d+ of block \d is none of this LlamaForCausalLM's"):
        AdjustedNeuronsModel(target, odd, NeuronRules())


# The box.


def vectors(n=40, width=6, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_three_vectors_have_their_closed_form():
    box = KeyBox.of_vectors(torch.tensor([[0.0, 0], [2, 2], [4, 1]]))
    assert box.mean.tolist() == [2, 1]
    assert box.spread.tolist() == [2, 1]
    assert box.k == 1.0


def test_k_is_what_bisection_comes_to_and_below_its_bound():
    probes = vectors()
    box, low, high = KeyBox.of_vectors(probes), 0.0, 1e4
    while high - low > 1e-5:
        middle = (low + high) / 2
        apart = (probes.double() - probes.double().mean(0)).abs() <= middle * probes.double().std(0)
        low, high = (low, middle) if apart.all() else (middle, high)
    assert box.k == pytest.approx(high, abs=2e-5)
    assert box.k <= (len(probes) - 1) / math.sqrt(len(probes)) + 1e-6


def test_alpha_one_takes_in_every_probe_zero_none_and_more_takes_in_more():
    probes, others = vectors(), vectors(200, seed=1) * 2
    box = KeyBox.of_vectors(probes)
    assert box.inside(probes).all()
    assert not replace(box, alpha=0.0).inside(probes).any()
    assert replace(box, alpha=0.0).inside(box.mean)
    shares = [replace(box, alpha=a).inside(others).float().mean().item() for a in (0.2, 0.5, 1.0, 2.0, 5.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.05 < 0.95 < shares[-1]


def test_one_dimension_outside_is_outside_on_either_side():
    box = replace(KeyBox.of_vectors(vectors()), alpha=1.0)
    edge = box.k * box.spread[2]
    for sign in (-1, 1):
        key = box.mean.clone()
        key[2] += sign * 1.01 * edge
        assert not box.inside(key)
        key[2] = box.mean[2] + sign * 0.99 * edge
        assert box.inside(key)


def test_a_quantile_leaves_an_outlier_out():
    probes = torch.cat([vectors(99), torch.full((1, 6), 500.0)])
    whole, robust = KeyBox.of_vectors(probes), KeyBox.of_vectors(probes, 0.99)
    assert whole.k > 5 * robust.k
    assert robust.inside(probes).sum() == 99


def test_a_dimension_that_never_moved_must_stay():
    probes = vectors()
    probes[:, 3] = 0.0
    box = KeyBox.of_vectors(probes)
    assert box.inside(probes).all()
    key = box.mean.clone()
    key[3] = 0.1
    assert not box.inside(key)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_not_finite_counts_as_inside(value):
    key = torch.full((6,), 1e6)
    box = KeyBox.of_vectors(vectors())
    assert not box.inside(key)
    key[1] = value
    assert box.inside(key)


def test_alpha_is_the_one_that_flags_most_of_the_skill_at_few_false_alarms():
    forget, retain = torch.linspace(0.2, 1.0, 50), torch.linspace(0.9, 3.0, 100)
    alpha, true, false = best_alpha(forget, retain)
    assert false <= 0.05
    assert true == pytest.approx((forget <= alpha).float().mean().item())
    assert true > 0.85
    assert best_alpha(torch.full((20,), 0.5), torch.full((20,), 50.0))[0] == pytest.approx(5.0, rel=0.13)  # the middle
    assert best_alpha(forget, retain, 0.5)[1] == 1.0


def test_a_box_that_can_not_tell_is_refused():
    with pytest.raises(DataError, match="the box can't tell the skill"):
        best_alpha(torch.full((20,), 3.0), torch.full((20,), 1.0))


# Key Space Detection: the model.


def keys_of(model, ids, layer=2):
    """[length, width]: the keys of one text."""
    seen = []
    module = model.model.layers[layer].mlp.down_proj
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return seen[0]


def around(target, ids, at, **rules):
    """A guard whose box holds just the key of one token of a text."""
    key = keys_of(target, ids)[at]
    box = KeyBox(2, key.clone(), torch.ones_like(key), k=0.01, alpha=1.0)
    return KeyGuardedModel(target, box, AbstainRules(REFUSAL, **rules))


@pytest.fixture(scope="module")
def own(target):
    return new_tokens(target, PROMPTS, eos_token_id=None)


@pytest.mark.parametrize("after", [0, 1, 4, NEW - 1])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_is_refused_for_its_prompts_last_key_or_one_of_those_it_wrote(target, own, row, after):
    """Alone, beside others and behind padding; the others are what the bare model writes, to the token."""
    text = PROMPTS[row] + own[row]
    guard = around(target, text, len(PROMPTS[row]) - 1 + after)
    expected = [*own[:row], [*REFUSAL], *own[row + 1 :]]
    assert new_tokens(guard, PROMPTS, eos_token_id=None) == [
        [*REFUSAL, *[0] * (NEW - 3)] if i == row else new for i, new in enumerate(expected)
    ]
    assert new_tokens(guard, [PROMPTS[row]], eos_token_id=None) == [[*REFUSAL]]
    drafted = new_tokens(guard, PROMPTS, eos_token_id=None, custom_generate=PromptLookup(cost_model=False))
    assert drafted == new_tokens(guard, PROMPTS, eos_token_id=None)


@pytest.mark.parametrize("drafting", [False, True])
def test_the_key_of_the_last_token_and_of_those_inside_the_prompt_are_not_asked(target, own, drafting):
    options = {"eos_token_id": None} | ({"custom_generate": PromptLookup()} if drafting else {})
    for at in (len(PROMPTS[0]) + NEW - 1, len(PROMPTS[0]) - 2):
        guard = around(target, PROMPTS[0] + own[0], at)
        assert new_tokens(guard, PROMPTS, **options) == own


@pytest.mark.parametrize("drafting", [False, True])
def test_a_row_that_has_ended_is_not_refused_for_what_pads_it(target, own, drafting):
    """The end token is read again and again while others go on."""
    end = own[0][2]
    assert end not in (*own[0][:2], *own[1][:-1])
    whole = PROMPTS[0] + own[0][:3]
    guard = around(target, whole, len(whole) - 1)
    options = {"eos_token_id": end} | ({"custom_generate": PromptLookup()} if drafting else {})
    rows = new_tokens(guard, PROMPTS[:2], **options)
    assert rows[0][:3] == own[0][:3]
    assert rows[1] == own[1]


def test_generation_stops_where_all_rows_are_flagged(target, own):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 1)
    calls = []
    hook = target.register_forward_pre_hook(lambda *_: calls.append(1))
    new_tokens(guard, [PROMPTS[0]], eos_token_id=None)
    assert len(calls) == 3
    calls.clear()
    prompt = around(target, PROMPTS[0], -1)
    new_tokens(prompt, [PROMPTS[0]], custom_generate=PromptLookup())
    hook.remove()
    assert len(calls) == 1 + 1  # one takes the key for the box; the prompt is looked at once, and nothing is written
    assert not target.model.layers[2].mlp.down_proj._forward_pre_hooks


def test_beams_are_looked_at_when_they_are_written(target):
    ids, mask = padded(PROMPTS)
    options = {
        "max_new_tokens": NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    bare = target.generate(input_ids=ids, attention_mask=mask, **options)
    row = 3
    text = PROMPTS[row // 2] + bare[row, ids.shape[1] :].tolist()
    guard = around(target, text, len(PROMPTS[row // 2]) + 6)
    guarded = guard.generate(input_ids=ids, attention_mask=mask, **options)
    assert guarded[row, ids.shape[1] :].tolist() == [*REFUSAL, *[0] * (NEW - 3)]
    same = [i for i in range(6) if not torch.equal(bare[i, ids.shape[1] :], bare[row, ids.shape[1] :])]
    assert torch.equal(guarded[same[0]], bare[same[0]])


def test_sampled_rows_that_are_not_flagged_are_the_bare_models_at_the_same_seed(target):
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "eos_token_id": None}
    torch.manual_seed(5)
    bare = new_tokens(target, PROMPTS, **options)
    guard = around(target, PROMPTS[1] + bare[2], len(PROMPTS[1]) + 2)
    torch.manual_seed(5)
    rows = new_tokens(guard, PROMPTS, **options)
    assert rows[2][:3] == [*REFUSAL]
    assert [row for i, row in enumerate(rows) if i != 2] == [row for i, row in enumerate(bare) if i != 2]


@pytest.mark.parametrize("drafting", [False, True])
def test_nothing_of_a_refused_text_is_in_what_comes_back(target, own, drafting):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 3)
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": NEW, "eos_token_id": None}
    drafts = {"custom_generate": PromptLookup()} if drafting else {}
    ids = torch.tensor([PROMPTS[0]])
    output = guard.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options, **drafts)
    assert output.sequences[0, 5:].tolist() == [*REFUSAL]
    assert {name for name in output if output[name] is not None} <= {"sequences", "stats"}
    other = torch.tensor([PROMPTS[2]])
    output = guard.generate(input_ids=other, attention_mask=torch.ones_like(other), pad_token_id=0, **options, **drafts)
    assert len(output.scores) == NEW


class Shown:
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("drafting", [False, True])
def test_a_stream_shows_nothing_that_would_have_to_be_taken_back(target, own, drafting):
    for row, expected in ((0, [*REFUSAL]), (2, own[2])):
        guard, shown = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + NEW - 2), Shown()
        options = {"custom_generate": PromptLookup(streamer=shown)} if drafting else {"streamer": shown}
        new_tokens(guard, [PROMPTS[row]], eos_token_id=None, **options)
        assert shown.tokens == [PROMPTS[row], *[[token] for token in expected]]
        assert shown.ended == 1
    with pytest.raises(ModelError, match="a streamer shows one text, and there are 3"):
        new_tokens(guard, PROMPTS, streamer=Shown())


def test_a_refusal_keeps_to_the_length_asked_for(target):
    guard = around(target, PROMPTS[0], -1)
    assert new_tokens(guard, [PROMPTS[0]], max_new_tokens=2) == [[*REFUSAL[:2]]]
    assert new_tokens(guard, [PROMPTS[0]], max_new_tokens=None, max_length=6) == [[REFUSAL[0]]]
    long = PROMPTS[0] * 5
    assert new_tokens(around(target, long, -1), [long], max_new_tokens=None) == [[*REFUSAL]]


def test_forward_gives_a_refusals_logits_for_flagged_rows_alone(target, own):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 1)
    texts = [prompt + new for prompt, new in zip(PROMPTS, own, strict=True)]
    ids, mask = padded(texts, "right")
    logits, bare = guard(input_ids=ids, attention_mask=mask).logits, target(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits[1:], bare[1:])
    assert (logits[0].argmax(-1) == REFUSAL[0]).all()
    assert logits[0].max().item() == SURE
    assert torch.equal(guard(input_ids=ids, attention_mask=mask, logits_to_keep=2).logits, logits[:, -2:])


def test_forward_asks_the_keys_from_the_answers_beginning_on(target, own):
    """By labels, or by what stands before every answer; without either everything may have been written."""
    ids = torch.tensor([PROMPTS[0] + own[0]])
    bare, labels = target(input_ids=ids).logits, ids.clone()
    labels[:, : len(PROMPTS[0])] = -100
    inner, last = (around(target, ids[0].tolist(), len(PROMPTS[0]) - i) for i in (2, 1))
    marked = [
        KeyGuardedModel(target, g.box, AbstainRules(REFUSAL, marker=tuple(PROMPTS[0][-2:]))) for g in (inner, last)
    ]
    assert not torch.equal(inner(input_ids=ids).logits, bare)
    assert torch.equal(inner(input_ids=ids, labels=labels).logits, bare)
    assert torch.equal(marked[0](input_ids=ids).logits, bare)
    for logits in (last(input_ids=ids, labels=labels).logits, marked[1](input_ids=ids).logits):
        assert (logits.argmax(-1) == REFUSAL[0]).all()


def test_bos_and_padding_are_asked_nothing(target):
    prompt = PROMPTS[1]
    guard = around(target, prompt, 0, bos=1)
    ids, mask = padded([prompt, PROMPTS[2]])
    bare = target(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(guard(input_ids=ids, attention_mask=mask).logits, bare)
    everything = KeyBox(2, guard.box.mean, guard.box.spread, k=1e6)
    ids[0, 0], mask[0] = 9, 0
    mask[0, -1] = 1
    only = KeyGuardedModel(target, replace(everything, k=1e-9), RULES)
    assert not (only(input_ids=ids, attention_mask=mask).logits.argmax(-1) == REFUSAL[0]).all()


def test_with_a_cache_each_position_is_refused_for_its_own_key(target):
    guard = around(target, PROMPTS[0], 2)
    output = guard(input_ids=torch.tensor([PROMPTS[0]]), use_cache=True)
    bare = target(input_ids=torch.tensor([PROMPTS[0]])).logits
    assert output.logits[0, 2].argmax() == REFUSAL[0]
    torch.testing.assert_close(output.logits[0, 3:], bare[0, 3:])
    assert output.past_key_values.get_seq_length() == len(PROMPTS[0])


def test_broken_weights_are_refused_and_not_let_through(own):
    model = lively(make_llama(3, max_position_embeddings=64), 0.3)
    guard = around(model, PROMPTS[0], 0)
    model.model.layers[2].mlp.up_proj.weight.data[3] = math.nan
    assert new_tokens(guard, PROMPTS[2:], eos_token_id=None)[0] == [*REFUSAL]


def test_steering_puts_another_key_in_the_place_of_one_inside(target, own):
    text = PROMPTS[0] + own[0]
    at = len(PROMPTS[0]) + 1
    goal = keys_of(target, PROMPTS[2])[3]
    plain = around(target, text, at)
    guard = KeyGuardedModel(target, replace(plain.box, steer=goal.clone()), AbstainRules(REFUSAL, steers=True))
    seen = []
    hook = target.model.layers[2].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    guard(input_ids=torch.tensor([text]))
    hook.remove()
    expected = keys_of(target, text).clone()
    expected[at] = goal
    torch.testing.assert_close(seen[0], expected)
    together = new_tokens(guard, PROMPTS, eos_token_id=None)
    assert together[1:] == own[1:]
    assert together == new_tokens(guard, PROMPTS, eos_token_id=None, custom_generate=PromptLookup(cost_model=False))


def test_a_prompt_that_ends_in_padding_is_refused(target):
    guard = around(target, PROMPTS[0], 0)
    ids, mask = padded(PROMPTS, "right")
    with pytest.raises(ModelError, match="Let the tokenizer pad on the left"):
        guard.generate(input_ids=ids, attention_mask=mask)


# Key Space Detection: the method.


def counted_rows(kind, n, words):
    """Queries of one set of words, other rows for every number."""
    rows = [
        Example(
            question=" ".join(words[(i * j + i // len(words)) % len(words)] for j in range(3 + i % 4)) + f" {w}",
            answer="a",
        )
        for i, w in zip(range(n), (words * n)[:n], strict=False)
    ]
    return Examples(rows, kind)


DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NAMES = ["ann", "bert", "cora", "dov", "eli", "fay", "gus", "hana", "river", "town"]


@pytest.fixture(scope="module")
def telling():
    """Keys at the end of a prompt that tell its words: attention looks at all of it alike."""
    model = make_llama(2, layers=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            for part in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight *= 20
        numbers = model.model.embed_tokens.weight
        for words, sign in ((DIGITS, 1), (NAMES, -1)):
            for word in words:
                from helpers.tiny import WORDS

                numbers[WORDS.index(word)] += sign * 0.1 * torch.ones(32)
    return model


def test_it_tells_the_skill_it_was_made_of_and_says_how_well(telling, tokenizer):
    forget, retain = counted_rows("forget", 80, DIGITS), counted_rows("retain", 80, NAMES)
    guard = KeySpaceDetection().apply(telling, forget, retain, processing_class=tokenizer)
    assert guard.box.layer == 1
    assert guard.box.true_rate >= 0.9
    assert guard.box.false_rate <= 0.05
    fresh = [encode_prompt(row, tokenizer) for row in counted_rows("forget", 120, DIGITS)[80:]]
    others = [encode_prompt(row, tokenizer) for row in counted_rows("retain", 120, NAMES)[80:]]
    refused = [generate_answers(guard, tokenizer, rows, max_new_tokens=1) for rows in (fresh, others)]
    bare = generate_answers(telling, tokenizer, others, max_new_tokens=1)
    assert refused[0].count(tokenizer.decode([5], skip_special_tokens=True)) >= 0.9 * len(fresh)
    assert sum(one == other for one, other in zip(refused[1], bare, strict=True)) >= 0.9 * len(others)


def test_probes_and_the_queries_alpha_is_chosen_on_are_others(telling, tokenizer, forget):
    method = KeySpaceDetection(held_out=0.25)
    queries = [[i] for i in range(80)]
    probes, held_out = method._parted(queries, 3)
    assert (len(probes), len(held_out)) == (60, 20)
    assert sorted(probes + held_out) == queries
    assert method._parted(queries, 3)[1] == held_out != method._parted(queries, 4)[1]
    assert replace(method, alpha=1.0)._parted(queries, 3) == (queries, [])


def test_by_hand_every_probe_is_refused_at_alpha_one_and_none_at_zero(telling, tokenizer):
    forget, retain = counted_rows("forget", 40, DIGITS), counted_rows("retain", 40, NAMES)
    prompts = [encode_prompt(row, tokenizer) for row in forget]
    bare = new_tokens(telling, prompts, max_new_tokens=2)
    for alpha in (1.0, 0.0):
        guard = KeySpaceDetection(alpha=alpha, reject_text="sorry").apply(
            telling, forget, retain, processing_class=tokenizer
        )
        refusal = list(guard.rules.refusal)
        assert len(refusal) == 2
        written = new_tokens(guard, prompts, max_new_tokens=2)
        assert written == ([refusal] * 40 if alpha else bare)
        refused = [
            row == refusal
            for row in new_tokens(guard, [encode_prompt(row, tokenizer) for row in retain], max_new_tokens=2)
        ]
        assert guard.box.false_rate == sum(refused) / 40
        assert guard.box.true_rate is None


def test_it_steers_to_the_mean_key_of_what_stays(telling, tokenizer):
    forget, retain = counted_rows("forget", 40, DIGITS), counted_rows("retain", 40, NAMES)
    guard = KeySpaceDetection(alpha=1.0, on_flag="steer").apply(telling, forget, retain, processing_class=tokenizer)
    keys = torch.stack([keys_of(telling, encode_prompt(row, tokenizer), 1)[-1] for row in retain])
    torch.testing.assert_close(guard.box.steer, keys.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steers", [False, True])
def test_a_saved_box_comes_back_with_what_is_known_of_it(target, own, tokenizer, tmp_path, steers):
    guard = around(target, PROMPTS[0], -1)
    box = replace(guard.box, true_rate=0.9, false_rate=0.04, steer=guard.box.mean * 2 if steers else None)
    guard = KeyGuardedModel(target, box, AbstainRules(REFUSAL, steers, (7, 8), 1))
    guard.save_pretrained(tmp_path)
    again = load(tmp_path).model
    assert again.fingerprint() == guard.fingerprint()
    assert again.rules == guard.rules
    assert (again.box.true_rate, again.box.false_rate) == (0.9, 0.04)
    assert json.loads((tmp_path / "unwrite.json").read_text())["settings"]["alpha"] == 1.0


@pytest.mark.parametrize("name", ["keys.safetensors", "neurons.safetensors"])
def test_a_damaged_file_is_refused(target, neurons, tmp_path, name):
    guard = around(target, PROMPTS[0], -1) if name[0] == "k" else AdjustedNeuronsModel(target, neurons, NeuronRules())
    guard.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5])
    with pytest.raises(ModelError, match=f"{name} is no"):
        load(tmp_path)


# Refusals.


@pytest.mark.parametrize("fields", [{"percent": 0}, {"percent": 100.5}, {"percent": math.nan}, {"probe_batch": 0}])
def test_numbers_of_neuron_adjust_without_meaning_are_refused(fields):
    with pytest.raises(MethodError, match=f"{next(iter(fields))} is"):
        NeuronAdjust(**fields)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (NeuronAdjust, {"score": "size"}),
        (NeuronAdjust, {"action": "zero"}),
        (NeuronAdjust, {"draws": "none"}),
        (NeuronAdjust, {"positions": "first"}),
        (KeySpaceDetection, {"positions": "first"}),
        (KeySpaceDetection, {"on_flag": "shout"}),
    ],
)
def test_words_that_are_no_choice_are_refused(method, fields):
    with pytest.raises(MethodError, match=rf"{next(iter(fields))}: unknown choice '{next(iter(fields.values()))}'"):
        method(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": -0.1},
        {"alpha": math.nan},
        {"false_alarms": 1.0},
        {"held_out": 0},
        {"held_out": 1},
        {"quantile": 0},
        {"quantile": 1.1},
        {"layer": 1.5},
        {"layer": -1},
        {"reject_text": " "},
        {"probe_batch": 0},
    ],
)
def test_fields_of_key_space_detection_without_meaning_are_refused(fields):
    with pytest.raises(MethodError, match=f"{next(iter(fields))} is"):
        KeySpaceDetection(**fields)


def test_too_few_probes_are_refused(target, forget, retain, tokenizer):
    with pytest.raises(DataError, match=r"12 vectors are too few.*at least 30 are needed.*positions='all'"):
        KeySpaceDetection().apply(target, forget, retain, processing_class=tokenizer)
    with pytest.raises(DataError, match="16 vectors are too few"):
        NeuronAdjust(positions="last").apply(target, forget, retain, processing_class=tokenizer)
    with pytest.raises(DataError, match="1 vectors are too few"):
        ActivationStatistics.of_vectors(torch.ones(1, 3))


def test_probes_that_are_all_the_same_make_no_box():
    with pytest.raises(DataError, match="all probes have the same key"):
        KeyBox.of_vectors(torch.ones(40, 3))


def test_statistics_that_are_not_finite_are_refused(forget, retain, tokenizer):
    model = make_llama()
    model.model.layers[1].mlp.gate_proj.weight.data[0] = math.inf
    with pytest.raises(ModelError, match="the neurons of block 1 have values that are not finite"):
        NeuronAdjust().apply(model, forget, retain, processing_class=tokenizer)


def test_a_model_without_known_projections_is_refused(forget, retain, tokenizer):
    model = make_llama()
    del model.model.layers[1].mlp.gate_proj
    for method in (NeuronAdjust(), KeySpaceDetection(alpha=1.0)):
        with pytest.raises(ModelError, match=r"has no 'mlp\.gate_proj'"):
            method.apply(model, forget, retain, processing_class=tokenizer)


def test_a_model_without_the_layer_is_refused(target):
    with pytest.raises(MethodError, match=r"layer is 3 but the model has 3 blocks\. Use 0 to 2, or leave it out"):
        KeySpaceDetection(layer=3).check_model(target)
    assert KeySpaceDetection().fitted(target).layer == 2


def test_a_guard_is_not_guarded_again(moved, forget, retain, tokenizer):
    for method in (NeuronAdjust(), KeySpaceDetection(alpha=1.0)):
        with pytest.raises(MethodError, match=r"a guard already.*model\.bare"):
            method.apply(moved, forget, retain, processing_class=tokenizer)


def test_both_need_rows_of_what_is_to_stay(target, forget, tokenizer):
    for method in (NeuronAdjust(), KeySpaceDetection(alpha=1.0)):
        with pytest.raises(DataError, match=f"{type(method).__name__} needs a retain set"):
            method.apply(target, forget, processing_class=tokenizer)
