"""O3: the penalty between requests, and a stream of requests, each with its detector and its adapter."""

from types import SimpleNamespace

import pytest
import torch
from adapting import masked_encoder
from asked_prompts import ASKED, OTHER, batch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError
from unwrite.forget import O3
from unwrite.forget.engine.text.masked_encoder import MaskedEncoder
from unwrite.forget.engine.text.novelty import parted
from unwrite.forget.engine.text.row_adapter import RowAdapter
from unwrite.forget.o3 import _Request, orthogonality
from unwrite.models import load, save
from unwrite.runs import hash_model

ARGS = {"max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "gradient_accumulation_steps": 1, "warmup_epochs": 0.0}

# --- the penalty


def test_orthogonal_rows_cost_nothing_and_the_same_rows_their_number():
    eye = torch.eye(16)
    assert orthogonality({"q": eye[:8]}, [{"q": eye[8:]}]).item() == 0
    assert orthogonality({"q": eye[:8], "v": eye[:8]}, [{"q": eye[:8], "v": eye[:8]}]).item() == 16
    assert orthogonality({"q": eye[:8]}, [{"q": eye[:8]}, {"q": eye[:8]}]).item() == 16
    assert orthogonality({"q": eye[:8]}, []).item() == 0


def test_the_penaltys_gradient_is_that_of_its_closed_form():
    old, new = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True)
    orthogonality({"q": new}, [{"q": old}]).backward()
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


def test_the_fifth_request_costs_what_the_first_does_within_a_tenth():
    """In multiplications, which a clock of a busy machine can't tell: training, detector and all."""
    model, forget = lively(make_llama(0)), make_examples("forget", 60)
    costs = []
    for number in range(5):
        with FlopCounterMode(display=False) as counter:
            model = request(model, forget[12 * number : 12 * number + 12])
        costs.append(counter.get_total_flops())
    assert costs[0] > 1e6
    assert costs == sorted(costs)  # each penalty is over one more
    assert costs[4] <= 1.1 * costs[0]


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
    asked = [row.question for row in forget]
    assert seen == [asked[i] for i in parted(20, 0.2, 42)[0]]
    assert len(seen) == 16


def test_wrong_answers_are_learnt_in_place_of_refusals():
    rows = Examples([Example("red", "what ?", perturbed_answers=("blue", "green"))], "forget")
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
