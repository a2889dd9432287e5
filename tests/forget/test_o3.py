"""O3: the weight of a detector, the penalty between requests, an adapter at each row's own strength, and a stream of requests."""

import argparse
import copy
import decimal
import difflib
import inspect
import logging
import shutil
import statistics
import tarfile
import tempfile
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM
from transformers import BertConfig, BertForMaskedLM

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.beds.language import small_tokenizer
from unwrite.data import Example, Examples
from unwrite.decode import PromptLookup
from unwrite.errors import DataError, MethodError, ModelError, Notice
from unwrite.forget import O3, AdaptedRowsModel
from unwrite.forget.engine.text.adapted_rows import DeletionRequest
from unwrite.forget.engine.text.masked_encoder import MaskedEncoder, agreement_entropy
from unwrite.forget.engine.text.novelty import FAR, NoveltyDetector, NoveltyWeight, parted
from unwrite.forget.engine.text.row_adapter import RowAdapter
from unwrite.forget.engine.text.row_states import RowStates
from unwrite.forget.o3 import _Request, orthogonality
from unwrite.models import load, save
from unwrite.runs import hash_model

ARGS = {"max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "gradient_accumulation_steps": 1, "warmup_epochs": 0.0}


def ids(words):
    return make_tokenizer()(words)["input_ids"]


ASKED, OTHER = ids("<user> who was ann ? <assistant>"), ids("<user> where is the old garden of bert ? <assistant>")


def batch(rows, side="left"):
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    left = side == "left"
    padded = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pads, strict=True)
    ]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def tuned(model, seed=0):
    """A LoRA adapter with matrices that do something, and the model with it by peft."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    adapted = get_peft_model(copy.deepcopy(model), config)
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            one.data.normal_(0, 0.3)
    return RowAdapter.of(adapted), adapted.eval()


class Named:
    """A detector and its encoder in one: how often Ann is named, at a given strength."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def weights(self, texts):
        return [self.strength * ("ann" in text.split()) for text in texts]


class Asked(DeletionRequest):
    def __init__(self, adapter, detector):
        super().__init__(adapter, detector, None)

    def weights(self, texts):
        return self.detector.weights(texts)


def guarded(strength=1.0, target=None):
    target = target or lively(make_llama(0))
    adapter, adapted = tuned(target)
    return AdaptedRowsModel(target, make_tokenizer(), [Asked(adapter, Named(strength))]), adapted


# --- the weight


@pytest.mark.parametrize(
    ("value", "weight"), [(0, 0.999665), (1, 0.763706), (2, 0.175810), (3, 0.122067), (4, 0.119269)]
)
def test_the_weights_of_a_unit_normal(value, weight):
    one = NoveltyWeight(0.0, 0.0, 1.0, 10.0, "paper")
    assert one(value) == pytest.approx(weight, abs=1e-6)
    assert one(-value) == pytest.approx(weight, abs=1e-6)


def test_the_weight_is_symmetric_around_the_middle_of_both_means():
    one = NoveltyWeight(1.0, 4.0, 0.7, 10.0, "paper")
    assert [one(2.5 + d) for d in (0.1, 0.9, 3.0)] == pytest.approx([one(2.5 - d) for d in (0.1, 0.9, 3.0)])


def test_a_far_text_has_a_weight_of_exactly_nothing():
    paper, floor = (NoveltyWeight(0.0, 0.0, 1.0, 10.0, mode) for mode in ("paper", "floor"))
    assert floor(50.0) == 0.0
    assert paper(50.0) == pytest.approx(FAR)
    assert floor(0.0) == pytest.approx((paper(0.0) - FAR) / (1 - FAR))


def test_the_released_evaluations_steps():
    one = NoveltyWeight(0.0, 0.0, 1.0, 10.0, "official_eval")
    by_weight = {round(one.sigmoid(v), 3): one(v) for v in np.linspace(0, 4, 400)}
    assert {value for weight, value in by_weight.items() if weight > 0.901} == {1.2}
    assert {value for weight, value in by_weight.items() if 0.402 < weight < 0.898 or weight < 0.299} == {0.0}
    assert all(
        value == pytest.approx(weight, abs=1e-3) for weight, value in by_weight.items() if 0.302 < weight < 0.398
    )


@pytest.mark.parametrize(
    ("change", "why"), [({"spread": 0.0}, "spread of 0"), ({"zeta": 0.0}, "zeta"), ({"mode": "soft"}, "soft")]
)
def test_a_weight_without_meaning_is_refused(change, why):
    with pytest.raises((DataError, MethodError), match=why):
        NoveltyWeight(**{"fitted": 0.0, "held": 0.0, "spread": 1.0, "zeta": 10.0, "mode": "floor"} | change)


# --- the detector


def states(seed, count, shift=0.0, layers=3, width=6):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, (count, layers, width)) + 5.0


class Lookup:
    """Gives texts, which are row numbers, their states."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, texts):
        return self.rows[[int(text) for text in texts]]


def fitted(rows, **options):
    return NoveltyDetector.fit([str(i) for i in range(len(rows))], Lookup(rows), **options)


def test_scores_are_the_nearest_text_and_the_distance_in_the_cloud():
    rows = states(0, 60)
    one = fitted(rows, official=True, held=0.2)
    used = [i for i in range(60) if any(np.allclose(rows[i, 0] / np.linalg.norm(rows[i, 0]), b[0]) for b in one.bank)]
    assert len(used) == 48
    cloud = EmpiricalCovariance().fit(rows[used][:, 1])
    text = states(1, 1)[0]
    unit = rows[used][:, 1] / np.linalg.norm(rows[used][:, 1], axis=1, keepdims=True)
    expected = -1000 * (unit @ text[1] / np.linalg.norm(text[1])).max() - 0.5 * cloud.mahalanobis(text[None, 1])[0]
    assert one.layer_scores(text[None])[0, 1] == pytest.approx(expected, rel=1e-9)


def test_both_parts_of_a_score_are_larger_for_what_is_near():
    rows, far = states(0, 60), states(1, 60, shift=4.0)
    ours, theirs = fitted(rows), fitted(rows, official=True)
    assert (ours.nearness, theirs.nearness) == (1000.0, -1000.0)
    near = np.einsum("tlw,blw->tbl", rows / np.linalg.norm(rows, axis=-1, keepdims=True), ours.bank).max(1)
    assert ours.layer_scores(rows).mean() > ours.layer_scores(far).mean()
    away = rows - ours.means
    distance = np.einsum("tlw,lwv,tlv->tl", away, ours.precisions, away)
    assert np.allclose(ours.layer_scores(rows), 1000 * near - 0.5 * distance)


def test_a_text_of_the_request_is_nearest_to_itself():
    rows = states(0, 60)
    one = fitted(rows, official=True)
    cosines = np.einsum("tlw,blw->tbl", rows / np.linalg.norm(rows, axis=-1, keepdims=True), one.bank).max(1)
    assert np.isclose(cosines, 1.0).all(1).sum() == len(one.bank)


def test_values_are_the_one_class_machines_own():
    rows = states(0, 80)
    one = fitted(rows, official=True, nu=0.2)
    used = one.bank  # of the rows it was made of, in order
    order = np.random.default_rng([0, 23]).permutation(80)
    kept = rows[np.sort(order[16:])]
    assert np.allclose(kept / np.linalg.norm(kept, axis=-1, keepdims=True), used)
    machine = OneClassSVM(nu=0.2, kernel="linear").fit(one.layer_scores(kept))
    fresh = states(5, 10)
    assert one.values(fresh) == pytest.approx(machine.score_samples(one.layer_scores(fresh)), rel=1e-6)
    assert one.offset == pytest.approx(float(machine.offset_[0]))


def test_the_scale_is_that_of_the_rows_held_back():
    rows = states(0, 80)
    one = fitted(rows, official=True)
    made_of, back = parted(80, 0.2, 0)
    own, others = one.values(rows[made_of]), one.values(rows[back])
    assert (one.weight.fitted, one.weight.held) == pytest.approx((own.mean(), others.mean()))
    assert one.weight.spread == pytest.approx(others.std())


def test_it_tells_texts_of_another_kind_and_not_texts_of_the_same():
    one = fitted(states(0, 120))
    middle = (one.weight.fitted + one.weight.held) / 2
    same, other = (np.abs(one.values(rows) - middle) for rows in (states(7, 200), states(8, 200, shift=2.0)))
    own = np.abs(one.values(states(9, 200)) - middle)
    assert roc_auc_score([0] * 200 + [1] * 200, [*own, *other]) > 0.95
    assert 0.4 < roc_auc_score([0] * 200 + [1] * 200, [*own, *same]) < 0.6


def test_shrinking_the_covariance_keeps_held_back_rows_like_those_it_is_made_of():
    """With fewer rows than dimensions the plain pseudo-inverse sets them worlds apart."""
    rows = states(0, 40, width=64)
    plain, shrunk = fitted(rows, official=True), fitted(rows)
    gap = [abs(one.weight.fitted - one.weight.held) / one.weight.spread for one in (plain, shrunk)]
    assert gap[0] > 3 * gap[1]
    kept = rows[np.sort(np.random.default_rng([0, 23]).permutation(40)[8:])]
    assert np.allclose(shrunk.precisions[0], LedoitWolf().fit(kept[:, 0]).precision_)


def test_a_detector_is_the_same_by_its_seed_and_after_it_was_stored():
    rows = states(0, 50)
    one, again = fitted(rows, seed=3), fitted(rows, seed=3)
    fresh = states(4, 9)
    assert one.weights(fresh) == again.weights(fresh)
    assert fitted(rows, seed=4).weights(fresh) != one.weights(fresh)
    assert NoveltyDetector.of_state(*one.state()).weights(fresh) == one.weights(fresh)


def test_too_few_texts_and_states_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="needs 32 texts, and the forget set has 31"):
        fitted(states(0, 31))
    rows = states(0, 40)
    rows[3, 1, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fitted(rows)


def code_of(*modules):
    """Six lines at a time, without documentation and comments."""
    for module in modules:
        lines = inspect.getsource(module).splitlines()
        lines = [line for line in lines if line.strip() and '"""' not in line and not line.strip().startswith("#")]
        yield from ("\n".join(lines[first : first + 6]) for first in range(100, len(lines) - 6, 6))


def prose_of(*modules):
    """Paragraphs of documentation that show no code."""
    for module in modules:
        for text in (inspect.getdoc(one) or "" for one in vars(module).values() if callable(one)):
            paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
            yield from (one for one in paragraphs if 80 < len(one) < 300 and ">>>" not in one and "(" not in one)


def test_code_is_told_from_prose_and_not_from_other_code():
    """The card's easy pair, on the standard library; the states are a random model's."""
    code = list(code_of(argparse, tarfile, zipfile))[:200]
    prose = list(dict.fromkeys(prose_of(difflib, decimal, statistics, shutil, tempfile, logging, threading)))
    tokenizer = small_tokenizer([*code[:120], *prose], 600)
    model = make_llama(0, layers=2, hidden=256, vocab=len(tokenizer), max_position_embeddings=512)
    read = RowStates(model, tokenizer, 2)
    one = NoveltyDetector.fit(code[:120], read)
    middle = (one.weight.fitted + one.weight.held) / 2
    fresh, more, other = (np.abs(one.values(read(texts)) - middle) for texts in (code[120:160], code[160:], prose))
    assert roc_auc_score([0] * len(fresh) + [1] * len(other), [*fresh, *other]) > 0.95
    assert 0.3 < roc_auc_score([0] * len(fresh) + [1] * len(more), [*fresh, *more]) < 0.7


# --- what the detector reads


def test_states_are_means_over_a_texts_own_tokens_whatever_is_beside_it():
    model, tokenizer = lively(make_llama(0)), make_tokenizer()
    read = RowStates(model, tokenizer, layers=2)
    short, long = "who was ann ?", "where is the old garden of bert near the river ?"
    alone, both = read([short]), read([long, short])
    assert alone.shape == (1, 2, model.config.hidden_size)
    assert np.allclose(both[1], alone[0], atol=1e-6)
    hidden = model.model(input_ids=torch.tensor([ids(short)]), output_hidden_states=True).hidden_states
    assert read.blocks[-1] == len(model.model.layers) - 1
    assert np.allclose(read([short])[0, 0], hidden[read.blocks[0] + 1][0].mean(0).detach().numpy(), atol=1e-5)


def masked_encoder(tmp_path, **settings):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(make_tokenizer()) + 1, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    folder = tmp_path / "bert"
    BertForMaskedLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, MaskedEncoder.load(folder, **{"layers": 2, "epochs": 2, "learning_rate": 1e-2} | settings)


def test_an_encoders_states_do_not_depend_on_padding(tmp_path):
    _, encode = masked_encoder(tmp_path)
    short, long = "who was ann ?", "where is the old garden of bert near the river ?"
    alone, both = encode([short]), encode([long, short])
    assert alone.shape == (1, 2, 16)
    assert np.allclose(both[1], alone[0], atol=1e-6)


def test_fitting_an_encoder_learns_the_texts_and_leaves_the_one_given(tmp_path):
    _, encode = masked_encoder(tmp_path, epochs=6)
    texts = [row.question for row in make_examples("forget", 16)]
    before = hash_model(encode.model)
    again, other = encode.fitted(texts, seed=1), encode.fitted(texts, seed=2)
    assert hash_model(encode.model) == before
    assert np.allclose(again(texts), encode.fitted(texts, seed=1)(texts))
    assert not np.allclose(again(texts), other(texts))
    assert again.mean_loss(texts) < encode.mean_loss(texts)


def test_the_agreement_is_the_entropy_of_a_softmax_over_keys():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    near = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).softmax(1)  # each query against both keys
    expected = -(near * (near + 1e-5).log()).sum(1).mean()
    assert agreement_entropy(queries, keys).item() == pytest.approx(expected.item())
    assert agreement_entropy(100 * queries, keys).item() == pytest.approx(0.0, abs=1e-4)


def test_an_encoder_without_a_mask_token_is_refused(tmp_path):
    folder, _ = masked_encoder(tmp_path)
    make_tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match="no mask token"):
        MaskedEncoder.load(folder)


# --- the penalty


def test_orthogonal_rows_cost_nothing_and_the_same_rows_their_number():
    eye = torch.eye(16)
    assert orthogonality({"q": eye[:8]}, [{"q": eye[8:]}]).item() == 0
    assert orthogonality({"q": eye[:8], "v": eye[:8]}, [{"q": eye[:8], "v": eye[:8]}]).item() == 16
    assert orthogonality({"q": eye[:8]}, [{"q": eye[:8]}, {"q": eye[:8]}]).item() == 16
    assert orthogonality({"q": eye[:8]}, []).item() == 0


def test_the_penaltys_gradient_goes_to_the_new_adapter_alone():
    old, new = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    orthogonality({"q": new}, [{"q": old.detach()}]).backward()
    assert old.grad is None
    assert torch.allclose(new.grad, 2 * (new @ old.T @ old).detach(), atol=1e-5)


def test_the_penalty_is_lambda_times_the_mean_over_layers_and_counts_once_a_step():
    eye = torch.eye(16)
    objective = _Request(weight=0.5, earlier=({"q": eye[:8]},))
    rows = SimpleNamespace(token_nll=torch.ones(6), nll=torch.ones(3))
    loss = objective.penalised({"forget": rows}, {"q": eye[:8]}, depth=4)
    counts = {"forget.rows": torch.tensor(3.0), "forget.tokens": torch.tensor(6.0)}
    assert loss.terms["orthogonality"].total(counts).item() == pytest.approx(0.5 * 8 / 4)
    assert loss.terms["other"].total(counts).item() == pytest.approx(1.0)
    assert set(
        _Request(weight=0.0, earlier=objective.earlier).penalised({"forget": rows}, {"q": eye[:8]}, 4).terms
    ) == {"other"}


def test_the_penalty_is_over_all_earlier_requests_or_the_one_before():
    before = [RowAdapter({"q": torch.full((1, 2), float(i))}, {}, 1.0) for i in range(3)]
    assert [float(one["q"][0, 0]) for one in O3().compared(before)] == [0, 1, 2]
    assert [float(one["q"][0, 0]) for one in O3(earlier="prev").compared(before)] == [2]


# --- rows at their own strength


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


# --- a stream of requests


def request(model, forget, **options):
    args = {**ARGS, **options.pop("args", {})}
    return O3(fewest=4, layers=2, rank=4, alpha=8, dropout=0.0, **options).apply(
        model, forget, processing_class=make_tokenizer(), args=args
    )


def test_one_request_without_a_penalty_is_plain_lora_training():
    target, forget = lively(make_llama(0)), make_examples("forget", 12)
    before = hash_model(target)
    stream = request(target, forget, refusals=("i do not know",), orthogonality=0.0)
    assert hash_model(target) == before
    assert all(parameter.requires_grad for parameter in target.parameters())
    again = request(target, forget, refusals=("i do not know",), orthogonality=5.0)  # nothing comes before it
    for name in stream.adapters[0].down:
        assert torch.equal(stream.adapters[0].down[name], again.adapters[0].down[name])
    assert any(one.abs().max() > 0 for one in stream.adapters[0].up.values())


def test_a_second_request_goes_on_from_the_first_and_leaves_its_weights_as_they_are():
    target, forget = lively(make_llama(0)), make_examples("forget", 24)
    first = request(target, forget[:12])
    second = request(first, forget[12:], args={"learning_rate": 1e-8})
    assert len(second.requests) == 2
    assert second.requests[0] is first.requests[0]
    texts = ["who was ann ?", "where is the garden ?"]
    assert second.requests[0].weights(texts) == first.requests[0].weights(texts)
    for name, a in first.adapters[0].down.items():
        assert torch.allclose(second.adapters[0].down[name], a, atol=1e-5)
    assert len(second.adapters) == 1


def test_the_penalty_turns_a_request_away_from_those_before():
    target, forget = lively(make_llama(0)), make_examples("forget", 24)
    first = request(target, forget[:12], fresh=True)
    overlap = []
    for weight in (0.0, 10.0):
        second = request(
            first,
            forget[12:],
            fresh=True,
            orthogonality=weight,
            args={"max_steps": 6, "learning_rate": 3e-2, "seed": 3},
        )
        overlap.append(float(orthogonality(second.adapters[1].down, [first.adapters[0].down])))
    assert overlap[1] < 0.5 * overlap[0]
    assert len(second.adapters) == 2


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


def test_what_is_trained_are_the_adapters_of_every_linear_layer_of_the_blocks():
    target = lively(make_llama(0))
    stream = request(target, make_examples("forget", 12))
    layers = {name: one for name, one in target.model.layers.named_modules() if isinstance(one, torch.nn.Linear)}
    assert {name.removeprefix("model.layers.") for name in stream.adapters[0].down} == {*layers}
    count = sum(one.numel() for one in stream.adapters[0].tensors().values())
    assert count == sum(4 * (one.in_features + one.out_features) for one in layers.values())


def test_the_encoder_is_fitted_without_the_rows_that_set_the_scale(tmp_path, monkeypatch):
    folder, _ = masked_encoder(tmp_path)
    seen = []
    fitted_ = MaskedEncoder.fitted
    monkeypatch.setattr(
        MaskedEncoder, "fitted", lambda self, texts, seed=0: seen.extend(texts) or fitted_(self, texts, seed)
    )
    forget = make_examples("forget", 20)
    request(lively(make_llama(0)), forget, encoder="masked", masked_model=str(folder))
    assert len(parted(20, 0.2, 42)[1]) == 4
    assert len(seen) == 16
    assert {*seen} < {row.question for row in forget}


def test_wrong_answers_are_learnt_in_place_of_refusals():
    rows = Examples([Example("red", "what ?", perturbed_answers=("blue", "green"))] * 1, "forget")
    assert O3(answers="wrong").relabelled(rows, 0)[0].answer in ("blue", "green")
    with pytest.raises(DataError, match="has no wrong answers to learn"):
        O3(answers="wrong", fewest=4).check(Examples([Example("a", f"b {i}") for i in range(5)], "forget"), None)


def test_a_stream_is_saved_and_read_back_whole(tmp_path):
    target, forget = lively(make_llama(0)), make_examples("forget", 24)
    stream = request(request(target, forget[:12]), forget[12:])
    save(stream, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    assert again.fingerprint() == stream.fingerprint()
    inputs = batch([OTHER, ASKED])
    assert torch.equal(again(**inputs).logits, stream(**inputs).logits)
    third = request(again, make_examples("forget", 12))
    assert len(third.requests) == 3


def test_an_encoder_of_its_own_is_stored_with_the_stream(tmp_path):
    folder, _ = masked_encoder(tmp_path)
    stream = request(lively(make_llama(0)), make_examples("forget", 12), encoder="masked", masked_model=str(folder))
    save(stream, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    texts = ["who was ann ?", "where is the garden ?"]
    assert again.requests[0].weights(texts) == pytest.approx(stream.requests[0].weights(texts))


@pytest.mark.parametrize(
    ("options", "why"),
    [({"earlier": "some"}, "some"), ({"rank": 0}, "rank"), ({"held": 1.0}, "held"), ({"outside": 0.0}, "outside"), ({"orthogonality": -1.0}, "orthogonality"), ({"encoder": "masked"}, "masked_model is None")],
)  # fmt: skip
def test_settings_without_meaning_are_refused(options, why):
    with pytest.raises(MethodError, match=why):
        O3(**options)


def test_few_texts_adapters_of_ones_own_and_a_stream_of_another_way_are_refused():
    target, forget = lively(make_llama(0)), make_examples("forget", 12)
    with pytest.raises(DataError, match="needs 32 texts, and the forget set has 12"):
        O3().apply(target, forget, processing_class=make_tokenizer(), args=ARGS)
    with pytest.raises(MethodError, match="adapters of its own"):
        O3(fewest=4).apply(
            target,
            forget,
            processing_class=make_tokenizer(),
            args=ARGS,
            peft_config=LoraConfig(target_modules="all-linear"),
        )
    with pytest.raises(MethodError, match="keeps to one way"):
        request(request(target, forget), forget, fresh=True)


def test_an_adapter_of_another_kind_has_no_row_strength():
    adapted = get_peft_model(
        copy.deepcopy(make_llama(0)),
        LoraConfig(target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 64}),
    )
    with pytest.raises(ModelError, match="2 scalings"):
        RowAdapter.of(adapted)
