"""Neuron Adjust: neurons moved by its closed form, which ones, and the text of a model with them however it is decoded."""

import math
from dataclasses import replace

import pytest
import torch
from skill_guards import PROMPTS, moved, neurons, new_tokens, padded, target

from unwrite.data.text.encoding import encode_all
from unwrite.decode import PromptLookup, last_stats
from unwrite.errors import MethodError, ModelError
from unwrite.forget import NeuronAdjust
from unwrite.forget.engine.text.activation_statistics import ActivationStatistics, changing, mlp_sites
from unwrite.forget.engine.text.adjusted_neurons import (
    AdjustedNeuronsModel,
    NeuronRules,
    NeuronTable,
    adjusted,
    hashed_uniforms,
)
from unwrite.forget.neuron_adjust import chosen, neuron_table, scores

__all__ = ["moved", "neurons", "target"]

# --- one neuron


def normal(forget=(2.0, 1.0), retain=(0.0, 0.5)):
    """One neuron with its (mean, deviation) on both sets."""
    zero = torch.zeros(1, dtype=torch.long)
    return NeuronTable(zero, zero, *(torch.tensor([value]) for value in (*forget, *retain)))


def drawn(count, mean, std, seed=0):
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(seed)) * std + mean


def uniforms(count, seed=1):
    return torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))


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


# --- which neurons


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


# --- the model


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
