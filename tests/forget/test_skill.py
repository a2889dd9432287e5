"""Skills switched off by Neuron Adjust and Key Space Detection: what they make of rows, what is stored, and what both refuse."""

import json
import math
from dataclasses import replace

import pytest
import torch
from skill_guards import PROMPTS, REFUSAL, around, keys_of, moved, neurons, new_tokens, target

from helpers.tiny import WORDS, make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_prompt
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import KeySpaceDetection, NeuronAdjust
from unwrite.forget.engine.text.activation_statistics import ActivationStatistics
from unwrite.forget.engine.text.adjusted_neurons import AdjustedNeuronsModel, NeuronRules
from unwrite.forget.engine.text.key_guarded import AbstainRules, KeyGuardedModel
from unwrite.models import load
from unwrite.scoring import generate_answers

__all__ = ["moved", "neurons", "target"]

# --- Key Space Detection


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


def test_probes_and_the_queries_alpha_is_chosen_on_are_others():
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
    keys = torch.stack(
        [keys_of(telling, torch.tensor([encode_prompt(row, tokenizer)]), layer=1)[0, -1] for row in retain]
    )
    torch.testing.assert_close(guard.box.steer, keys.mean(0), rtol=1e-4, atol=1e-5)


# --- what is stored


@pytest.mark.parametrize("steers", [False, True])
def test_a_saved_box_comes_back_with_what_is_known_of_it(target, tmp_path, steers):
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


# --- refusals


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
