"""Where MLPs' value vectors lie in every architecture, and which tokens they name."""

import pytest
import torch

from helpers.architectures import ARCHITECTURES, INNER, WIDTH, tiny_model, tokens
from unwrite.errors import ModelError
from unwrite.models.layout import anatomy
from unwrite.models.value_vectors import (
    VectorPlace,
    noise_scale,
    output_embeddings,
    rank_by_tokens,
    replaced,
    top_tokens,
    value_vector,
    value_vectors,
    write_value_vector,
)
from unwrite.runs import hash_model

every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)
PLACE = VectorPlace(2, 5)


def inner_and_output(model, layer):
    """What goes into the last projection of a block's MLP, and what comes out."""
    seen = []
    hook = (
        anatomy(model)
        .blocks[layer]
        .down.module.register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0].detach().clone(), output.detach().clone()))
        )
    )
    with torch.no_grad():
        model(tokens())
    hook.remove()
    return seen[0]


@every_architecture
def test_without_a_vector_the_mlp_writes_less_by_its_activation_times_the_vector(arch):
    model = tiny_model(arch)
    vector = value_vector(model, PLACE)
    activation, before = inner_and_output(model, PLACE.layer)
    with replaced(model, {PLACE: torch.zeros(WIDTH)}):
        after = inner_and_output(model, PLACE.layer)[1]
    share = activation[..., PLACE.unit, None]
    assert share.abs().max() > 0
    torch.testing.assert_close(before - after, share * vector, rtol=1e-4, atol=1e-6)


def test_where_its_unit_is_off_a_vector_changes_nothing():
    model = tiny_model("opt")  # with a ReLU, units are off exactly
    activation, before = inner_and_output(model, PLACE.layer)
    with replaced(model, {PLACE: torch.zeros(WIDTH)}):
        after = inner_and_output(model, PLACE.layer)[1]
    off = activation[..., PLACE.unit] == 0
    assert off.any()
    assert not off.all()
    assert torch.equal(before[off], after[off])
    assert not torch.equal(before[~off], after[~off])


@every_architecture
def test_writing_a_vector_changes_it_alone(arch):
    model = tiny_model(arch)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    write_value_vector(model, PLACE, torch.ones(WIDTH))
    changed = {name: (parameter != before[name]) for name, parameter in model.named_parameters()}
    moved = [name for name, mask in changed.items() if mask.any()]
    assert len(moved) == 1
    assert changed[moved[0]].sum() == WIDTH
    assert torch.equal(value_vector(model, PLACE), torch.ones(WIDTH))
    assert value_vectors(model, PLACE.layer).shape == (INNER, WIDTH)


def test_replaced_vectors_come_back_bit_by_bit_also_after_an_error():
    model = tiny_model("gpt2")
    before = hash_model(model)
    with replaced(model, {PLACE: torch.ones(WIDTH)}):
        assert hash_model(model) != before
    assert hash_model(model) == before
    with pytest.raises(ModelError, match="another"), replaced(model, {PLACE: torch.ones(WIDTH)}):
        raise ModelError("another")
    assert hash_model(model) == before


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "modernbert"])
def test_projection_gives_the_models_own_logits_of_a_final_hidden_state(arch):
    model = tiny_model(arch)
    hidden, parts = torch.randn(3, WIDTH), anatomy(model)
    logits = hidden @ output_embeddings(model).T
    bias = getattr(parts.unembedding, "bias", None)
    with torch.no_grad():
        expected = parts.head(hidden)
    torch.testing.assert_close(logits + (0 if bias is None else bias.detach()), expected)


def test_a_linear_map_before_the_embeddings_is_part_of_the_projection():
    model = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    parts, vector = anatomy(model), value_vector(model, PLACE)
    with torch.no_grad():
        expected = parts.logits(parts.final_norm(vector))
    torch.testing.assert_close(output_embeddings(model) @ vector, expected)


def test_projection_ignores_the_final_norm():
    model = tiny_model("llama")
    before = output_embeddings(model).clone()
    with torch.no_grad():
        anatomy(model).final_norm.weight.mul_(3)
    assert torch.equal(output_embeddings(model), before)


def test_a_positive_factor_keeps_the_order_of_tokens_and_a_sign_reverses_it():
    model = tiny_model("llama")
    vector, embeddings = value_vector(model, PLACE)[None], output_embeddings(model)
    top = top_tokens(vector, embeddings, 64).ids
    assert torch.equal(top_tokens(7.5 * vector, embeddings, 64).ids, top)
    assert torch.equal(top_tokens(-vector, embeddings, 64).ids, top.flip(1))
    assert torch.equal(top_tokens(-vector, embeddings, 10).ids, top_tokens(vector, embeddings, 10, lowest=True).ids)


@pytest.mark.parametrize(("arch", "width"), [("llama", "hidden_size"), ("gpt2", "n_embd")])
@pytest.mark.parametrize("lowest", [False, True])
def test_a_planted_vector_is_first_for_its_tokens_and_says_at_which_end(arch, width, lowest):
    model, words = tiny_model(arch, **{width: 64}), [10, 11, 12, 13]
    others = [20, 21, 22]
    indicator = torch.zeros(64, 1).index_fill(0, torch.tensor(words), 1)
    planted = torch.linalg.lstsq(output_embeddings(model), indicator).solution[:, 0] * (-1 if lowest else 1)
    write_value_vector(model, PLACE, planted)
    first, second = rank_by_tokens(model, [words, others], k=6, count=3)
    assert (first[0].place, first[0].lowest, first[0].matches) == (PLACE, lowest, 4)
    assert first[0].score == pytest.approx(
        float(top_tokens(planted[None], output_embeddings(model), 6, lowest=lowest).logits.mean()) * (-1) ** lowest,
        rel=1e-5,
    )
    assert {*words} <= {*first[0].top}
    assert first[0].matches > first[1].matches
    assert [one.matches for one in second] == sorted((one.matches for one in second), reverse=True)
    only_top = rank_by_tokens(model, [words], k=6, count=3, both_ends=False)[0]
    assert (only_top[0].place == PLACE) is not lowest
    elsewhere = rank_by_tokens(model, [words], k=6, count=100, layers=(0, 3))[0]
    assert {one.place.layer for one in elsewhere} == {0, 3}


def test_vectors_with_the_lowest_scores_of_their_block_are_dropped():
    model = tiny_model("llama", layers=1)
    write_value_vector(model, (0, 3), 1e-6 * output_embeddings(model)[[10, 11]].sum(0))

    def places(drop):
        return {one.place for one in rank_by_tokens(model, [[10, 11]], k=4, count=INNER, drop=drop, both_ends=False)[0]}

    assert (0, 3) in places(0.0)
    assert (0, 3) not in places(0.3)


def test_among_vectors_with_as_many_matches_the_higher_score_comes_first():
    model = tiny_model("llama", layers=2, hidden_size=64)
    indicator = torch.zeros(64, 1).index_fill(0, torch.tensor([10, 11]), 1)
    planted = torch.linalg.lstsq(output_embeddings(model), indicator).solution[:, 0]
    for place, factor in (((0, 3), 5.0), ((1, 0), 7.0), ((1, 9), 6.0)):
        write_value_vector(model, place, factor * planted)
    first = rank_by_tokens(model, [[10, 11]], k=2, count=3)[0]
    assert [one.place for one in first] == [(1, 0), (1, 9), (0, 3)]
    for unit in range(INNER):  # all of a block alike, the last one longest
        write_value_vector(model, (0, unit), (1 + unit) * planted)
    first = rank_by_tokens(model, [[10, 11]], k=2, count=5, layers=[0])[0]
    assert [one.place.unit for one in first] == [47, 46, 45, 44, 43]


def test_a_set_that_no_vector_names_has_no_candidates():
    model = tiny_model("llama", layers=1)
    assert rank_by_tokens(model, [[]], k=4) == [[]]


def test_relative_noise_has_the_length_of_so_many_vectors():
    vector = torch.full((100,), 0.3)
    assert noise_scale(vector, 0.1) == 0.1
    assert noise_scale(vector, 2.0, relative=True) * 10 == pytest.approx(2 * 3.0)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((4, 0), r"layer 4 is not one of the model's 4 blocks. Use 0 to 3"),
        ((-1, 0), "layer -1"),
        ((0, INNER), rf"unit {INNER} is not one of the {INNER} value vectors of layer 0"),
        ((0, -1), "unit -1"),
    ],
)
def test_refuses_a_place_that_is_not_there(place, message):
    with pytest.raises(ModelError, match=message):
        value_vector(tiny_model("llama"), place)


def test_refuses_quantised_weights_and_unknown_architectures_and_models_without_a_head():
    model = tiny_model("llama")
    anatomy(model).blocks[0].down.module.weight = torch.nn.Parameter(
        torch.zeros(WIDTH, INNER, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ModelError, match="quantised"):
        value_vector(model, (0, 0))
    with pytest.raises(ModelError, match="has no head"):
        output_embeddings(model.model)
    model.config.model_type = "mixtral"
    with pytest.raises(ModelError, match="mixtral"):
        value_vector(model, (0, 0))


def test_refuses_a_vector_of_another_width_no_tokens_and_an_impossible_share():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="cannot replace one of 32 entries"):
        write_value_vector(model, PLACE, torch.ones(5))
    with pytest.raises(ModelError, match="top 0 tokens"):
        top_tokens(torch.ones(1, WIDTH), output_embeddings(model), 0)
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(ModelError, match="share of vectors to drop"):
            rank_by_tokens(model, [[1]], drop=drop)
