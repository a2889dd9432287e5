"""Rows at their own strength: an adapter's share in each row of a batch, in forwards, generation, drafts and caches."""

import copy

import pytest
import torch
from adapting import Asked, Named, guarded, tuned
from asked_prompts import ASKED, OTHER, batch, ids
from peft import LoraConfig, get_peft_model

from conftest import make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.decode import PromptLookup
from unwrite.errors import ModelError, Notice
from unwrite.forget import AdaptedRowsModel
from unwrite.forget.engine.text.row_adapter import RowAdapter


def test_rows_of_no_weight_are_the_target_to_the_bit_and_full_rows_are_pefts():
    model, adapted = guarded()
    inputs = batch([ASKED, ASKED])
    with torch.no_grad():
        bare, full = model.target(**inputs).logits, adapted(**inputs).logits
        [adapter] = model.adapters
        with adapter.applied(model.target, [0.0, 0.0]):
            assert torch.equal(model.target(**inputs).logits, bare)
        with adapter.applied(model.target, [1.0, 1.0]):
            assert torch.equal(model.target(**inputs).logits, full)
        with adapter.applied(model.target, [0.0, 1.0]):
            mixed = model.target(**inputs).logits
    assert torch.equal(mixed[0], bare[0])
    assert torch.allclose(mixed[1], full[1], atol=1e-6)
    assert not torch.allclose(full, bare, atol=1e-3)


def test_a_layers_output_is_linear_in_the_weight():
    model, _ = guarded()
    [adapter] = model.adapters
    name = next(iter(adapter.down))
    layer = dict(model.target.named_modules())[name]
    x = torch.randn(1, 3, layer.in_features)
    outputs = []
    for weight in (0.0, 0.25, 1.0):
        with adapter.applied(model.target, [weight]), torch.no_grad():
            outputs.append(layer(x))
    assert torch.allclose(outputs[1], 0.75 * outputs[0] + 0.25 * outputs[2], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_adapts_the_rows_that_are_asked_about_it(side):
    model, adapted = guarded()
    inputs = batch([OTHER, ASKED], side)
    with torch.no_grad():
        logits, bare, full = model(**inputs).logits, model.target(**inputs).logits, adapted(**inputs).logits
    there = inputs["attention_mask"][0].bool()
    assert torch.equal(logits[0, there], bare[0, there])
    there = inputs["attention_mask"][1].bool()
    assert torch.allclose(logits[1, there], full[1, there], atol=1e-5)


def test_no_hook_is_left_behind_and_none_of_others_is_taken():
    model, _ = guarded()
    seen = []
    model.target.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
    model.generate(**batch([ASKED]), max_new_tokens=2)
    hooks = [hook for module in model.target.modules() for hook in module._forward_hooks.values()]
    assert len(hooks) == 1
    assert len(seen) == 2


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_a_batch_writes_what_its_rows_write_alone(options):
    model, adapted = guarded()
    rows, count = [OTHER, ASKED], options.get("num_return_sequences", 1)
    options = {"max_new_tokens": 6, "pad_token_id": 0, **options}
    written = model.generate(**batch(rows), **options)
    for i, (row, alone) in enumerate(zip(rows, (model.target, adapted), strict=True)):
        expected = alone.generate(**batch([row]), **options)
        got = written[i * count : (i + 1) * count, -6:]
        assert torch.equal(got[:, : expected.shape[1] - len(row)], expected[:, len(row) :])


def test_drafts_of_a_batch_give_its_own_text():
    model, _ = guarded()
    inputs = batch([OTHER, ASKED])
    plain = model.generate(**inputs, max_new_tokens=8, pad_token_id=0)
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=8, pad_token_id=0, custom_generate=PromptLookup()), plain
    )
    with pytest.raises(ModelError, match="Ask them one by one"):
        model.generate(**inputs, max_new_tokens=8, custom_generate=PromptLookup(), return_dict_in_generate=True)


def test_a_weight_is_read_off_the_prompt_and_not_off_the_answer():
    model, _ = guarded()
    naming = [*OTHER, *ids("ann ann ann")]
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=torch.tensor([naming])).logits, model.target(input_ids=torch.tensor([naming])).logits
        )


def test_a_cache_keeps_its_rows_weights_and_one_of_another_model_is_refused():
    model, _ = guarded()
    inputs = torch.tensor([ASKED])
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([[*ASKED, 9]])).logits[:, -1]
        first = model(input_ids=inputs, use_cache=True)
        assert torch.allclose(
            model(input_ids=torch.tensor([[9]]), past_key_values=first.past_key_values, use_cache=True).logits[:, -1],
            whole,
            atol=1e-5,
        )
        foreign = model.target(input_ids=inputs, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="filled by another model"):
        model(input_ids=torch.tensor([[9]]), past_key_values=foreign)
    with pytest.raises(ModelError, match="Pass input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 8))


def test_a_detector_that_fails_answers_as_for_what_is_forgotten():
    class Broken(Named):
        def weights(self, texts):
            raise RuntimeError("no states")

    adapter, adapted = tuned(target := lively(make_llama(0)))
    model = AdaptedRowsModel(target, make_tokenizer(), [Asked(adapter, Broken())])
    with pytest.warns(Notice, match="a detector failed"), torch.no_grad():
        logits = model(input_ids=torch.tensor([OTHER])).logits
    assert torch.equal(logits, adapted(input_ids=torch.tensor([OTHER])).logits)


def test_the_worst_turn_of_a_conversation_and_the_worst_request_count():
    adapter, _ = tuned(target := lively(make_llama(0)))
    model = AdaptedRowsModel(target, make_tokenizer(), [Asked(adapter, Named(0.25)), Asked(adapter, Named(0.75))])
    assert model.weights([("who was ann ?", "and then ?"), ("and then ?", "who was ann ?"), ("and then ?",)]) == [
        0.75,
        0.75,
        0.0,
    ]


def test_fresh_adapters_add_up():
    target = lively(make_llama(0))
    (one, adapted), (two, _) = tuned(target, 0), tuned(target, 1)
    model = AdaptedRowsModel(target, make_tokenizer(), [Asked(one, Named()), Asked(two, Named())], fresh=True)
    with torch.no_grad():
        both = model(input_ids=torch.tensor([ASKED])).logits
        with two.applied(adapted.base_model.model, [0.0]):
            single = adapted(input_ids=torch.tensor([ASKED])).logits
    assert not torch.allclose(both, single, atol=1e-3)
    layer = next(iter(one.down))
    module, x = dict(target.named_modules())[layer], torch.randn(1, 2, one.down[layer].shape[1])
    with torch.no_grad(), model._adapted([1.0]):
        added = module(x)
    expected = module(x) + sum(a.scaling * x @ a.down[layer].T @ a.up[layer].T for a in (one, two))
    assert torch.allclose(added, expected, atol=1e-5)


def test_an_adapter_of_another_kind_has_no_row_strength():
    adapted = get_peft_model(
        copy.deepcopy(make_llama(0)),
        LoraConfig(target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 64}),
    )
    with pytest.raises(ModelError, match="2 scalings"):
        RowAdapter.of(adapted)
