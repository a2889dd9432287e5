"""Needle: what the noise on a value vector is, that nothing else changes, and what the official code's decay does."""

import pytest
import torch

from helpers.architectures import ARCHITECTURES, tiny_model, tiny_tokenizer
from helpers.tiny import make_llama, make_tokenizer
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import Needle
from unwrite.models import anatomy
from unwrite.models.value_vectors import VectorPlace, output_embeddings, value_vector, write_value_vector
from unwrite.runs import hash_model

PLACE = VectorPlace(1, 7)
NAMED = {"layers": (PLACE.layer,), "units": (PLACE.unit,)}
TRAINING = {
    "learning_rate": 0.2,
    "warmup_epochs": 0.0,
    "lr_scheduler_type": "constant",
    "max_steps": 3,
    "use_cpu": True,
}


def changed_units(before, after):
    """{parameter: which of its value vectors, or entries of other tensors, changed}."""
    down = {id(block.down.module.weight): block.down.transposed for block in anatomy(after).blocks}
    moved = {}
    for (name, own), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if not torch.equal(own, new):
            assert id(new) in down, name
            rows = (own != new) if down[id(new)] else (own != new).T
            moved[name] = rows.any(1).nonzero().flatten().tolist()
    return moved


def naming(model, tokenizer, words):
    """A vector that names these words first: the least-squares fit to their indicator."""
    embeddings = output_embeddings(model)
    indicator = torch.zeros(len(embeddings), 1)
    indicator[tokenizer.convert_tokens_to_ids(words)] = 1
    return torch.linalg.lstsq(embeddings, indicator).solution[:, 0]


def texts(*words):
    return Examples([Example(answer=" ".join([*words, *words])) for _ in range(4)], "forget")


@pytest.mark.parametrize(("width", "length", "tolerance"), [(4096, 6.4, 0.07), (576, 2.4, 0.07)])
def test_noise_has_the_length_of_a_tenth_of_the_root_of_the_width(width, length, tolerance):
    lengths = [Needle(noise_seed=s).disturbance(torch.zeros(width), PLACE).norm() for s in range(20)]
    assert float(torch.stack(lengths).mean()) == pytest.approx(length, abs=tolerance)


@pytest.mark.parametrize("norm", [1.0, 5.0])
def test_cosine_falls_by_the_length_of_the_noise(norm):
    width = 4096
    vector = torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(1)), dim=0) * norm
    noised = [vector + Needle(noise_seed=s).disturbance(vector, PLACE) for s in range(20)]
    cosines = [float(torch.cosine_similarity(vector, one, dim=0)) for one in noised]
    expected = norm / (norm**2 + 0.01 * width) ** 0.5
    assert norm != 1.0 or expected == pytest.approx(0.154, abs=1e-3)
    assert sum(cosines) / 20 == pytest.approx(expected, abs=0.01)


def test_relative_noise_follows_the_vectors_length():
    vector = torch.full((4096,), 0.01)
    noise = Needle(noise=2.0, scale="relative").disturbance(vector, PLACE)
    assert float(noise.norm() / vector.norm()) == pytest.approx(2.0, rel=0.05)


def test_noise_is_a_function_of_seed_and_place():
    zero = torch.zeros(16)
    own = Needle().disturbance(zero, PLACE)
    assert torch.equal(own, Needle().disturbance(zero, PLACE))
    others = [
        Needle(noise_seed=1).disturbance(zero, PLACE),
        Needle().disturbance(zero, VectorPlace(7, 1)),
        Needle().disturbance(zero, VectorPlace(1, 8)),
    ]
    assert not any(torch.equal(own, other) for other in others)


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "modernbert"])
def test_only_the_named_vector_changes_in_every_architecture(arch):
    model, tokenizer = tiny_model(arch), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    before = value_vector(model, PLACE)
    edited = Needle(**NAMED).apply(model, texts("w1", "w2"), processing_class=tokenizer, copy=True)
    assert list(changed_units(model, edited).values()) == [[PLACE.unit]]
    expected = before + Needle().disturbance(before, PLACE)
    assert torch.equal(value_vector(edited, PLACE), expected)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_ascent_moves_the_named_vector_alone(arch):
    model, tokenizer = tiny_model(arch), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    needle = Needle(**NAMED, noise=0, after_noise="ascent")
    edited = needle.apply(model, texts("w1", "w2"), processing_class=tokenizer, args=TRAINING, copy=True)
    assert list(changed_units(model, edited).values()) == [[PLACE.unit]]
    # AdamW's first steps go by the learning rate.
    assert float((value_vector(edited, PLACE) - value_vector(model, PLACE)).abs().max()) > 0.3
    ids = torch.tensor([tokenizer("w1 w2 w1 w2")["input_ids"]])
    with torch.no_grad():
        assert edited(input_ids=ids, labels=ids).loss > model(input_ids=ids, labels=ids).loss
    assert all(parameter.requires_grad for parameter in edited.parameters())
    assert not any(p._backward_hooks for p in edited.parameters())


def test_two_vectors_of_one_matrix_are_trained_together():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    needle = Needle(layers=(1, 1, 2), units=(7, 9, 0), noise=0, after_noise="ascent")
    edited = needle.apply(model, texts("w1", "w2"), processing_class=tokenizer, args=TRAINING, copy=True)
    assert list(changed_units(model, edited).values()) == [[7, 9], [0]]


def test_official_decay_leaks_into_every_other_vector_of_the_matrix():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    needle = Needle(**NAMED, noise=0, after_noise="ascent", official=True)
    edited = needle.apply(model, texts("w1", "w2"), processing_class=tokenizer, args=TRAINING, copy=True)
    (units,) = changed_units(model, edited).values()
    assert len(units) == 48
    other = value_vector(edited, (1, 3)) / value_vector(model, (1, 3))
    torch.testing.assert_close(other, torch.full_like(other, (1 - 0.2 * 0.01) ** 3))


def test_a_planted_vector_is_found_from_the_forget_answers_and_destroyed():
    model, tokenizer = tiny_model("llama", hidden_size=64), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    words = [f"w{i}" for i in range(10, 16)]
    write_value_vector(model, PLACE, naming(model, tokenizer, words))
    edited = Needle(top=8).apply(model, texts(*words), processing_class=tokenizer, copy=True)
    assert list(changed_units(model, edited).values()) == [[PLACE.unit]]


def test_tokens_of_retain_answers_do_not_decide_where_a_concept_lies():
    model, tokenizer = tiny_model("llama", hidden_size=64), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    common, own = [f"w{i}" for i in range(20, 28)], [f"w{i}" for i in range(10, 15)]
    write_value_vector(model, (2, 4), naming(model, tokenizer, common))
    write_value_vector(model, PLACE, naming(model, tokenizer, own))
    given = {"processing_class": tokenizer, "copy": True}
    edited = Needle(top=8).apply(model, texts(*common, *own), **given)
    assert list(changed_units(model, edited).values()) == [[4]]
    retain = Examples([Example(answer=" ".join(common))], "retain")
    edited = Needle(top=8).apply(model, texts(*common, *own), retain, **given)
    assert list(changed_units(model, edited).values()) == [[PLACE.unit]]


def test_the_end_of_an_answer_is_no_token_of_the_concept():
    model, tokenizer = make_llama(hidden=64), make_tokenizer()
    write_value_vector(model, (2, 4), 9 * naming(model, tokenizer, ["</s>"]))
    write_value_vector(model, PLACE, naming(model, tokenizer, ["red"]))
    forget = Examples([Example(question="what is it ?", answer="red")], "forget")
    edited = Needle(top=1).apply(model, forget, processing_class=tokenizer, copy=True)
    assert list(changed_units(model, edited).values()) == [[PLACE.unit]]


def test_a_vector_that_is_named_twice_gets_its_noise_once():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    given = {"processing_class": tokenizer, "copy": True}
    once = Needle(**NAMED).apply(model, texts("w1"), **given)
    twice = Needle(layers=(1, 1), units=(7, 7)).apply(model, texts("w1"), **given)
    assert hash_model(once) == hash_model(twice)


def test_no_noise_changes_nothing():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    before = hash_model(model)
    Needle(**NAMED, noise=0).apply(model, texts("w1"), processing_class=tokenizer)
    assert hash_model(model) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (1,)}, "layers has 1 entries and units 0"),
        ({"layers": (-1,), "units": (0,)}, "layers is "),
        ({"layers": (True,), "units": (0,)}, "layers is "),
        ({"layers": (0,), "units": (1.5,)}, "units is "),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"count": 0}, "count is 0"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_refuses_settings_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        Needle(**fields)


def test_refuses_a_place_that_the_model_lacks_and_decay_and_adapters_before_anything_changes():
    from peft import LoraConfig

    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    before, given = hash_model(model), {"processing_class": tokenizer}
    with pytest.raises(ModelError, match="layer 9 is not one"):
        Needle(layers=(0, 9), units=(0, 0)).apply(model, texts("w1"), **given)
    with pytest.raises(MethodError, match="would shrink every other vector"):
        Needle(after_noise="ascent").apply(model, texts("w1"), args={"weight_decay": 0.01}, **given)
    with pytest.raises(MethodError, match="trains no adapters"):
        Needle().apply(model, texts("w1"), peft_config=LoraConfig(target_modules=["q_proj"]), **given)
    assert hash_model(model) == before


def test_refuses_to_guess_where_no_vector_names_a_forget_token():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    ids = tokenizer.convert_tokens_to_ids(["w5", "w6", "w7"])
    with torch.no_grad():  # w5's logit lies between those of w6 and w7 for every vector
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[1]], model.lm_head.weight[ids[2]] = 1, -1
    with pytest.raises(DataError, match="Name the vectors"):
        Needle(top=1).apply(model, texts("w5"), processing_class=tokenizer)
