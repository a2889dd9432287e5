"""What neurons do on a set of texts: exact statistics, and where each architecture has its neurons."""

from dataclasses import replace

import pytest
import torch
from skill_guards import PROMPTS, REFUSAL, RULES, new_tokens, padded, rows_of, target

from helpers.architectures import tiny_model
from unwrite.forget.engine.text.activation_statistics import ActivationStatistics, _Moments, mlp_sites
from unwrite.forget.engine.text.adjusted_neurons import AdjustedNeuronsModel, NeuronRules, NeuronTable
from unwrite.forget.engine.text.key_box import KeyBox
from unwrite.forget.engine.text.key_guarded import KeyGuardedModel

__all__ = ["target"]


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
