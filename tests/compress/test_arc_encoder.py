"""ARC-Encoder, the encoder: how tokens are grouped, who sees whom, where vectors stand, what is saved and what is refused."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from helpers.architectures import tiny_model, tokens
from helpers.formula import filled
from unwrite import models
from unwrite.compress import ArcEncoder, ArcSettings
from unwrite.compress.contexts.arc_encoder import FAMILIES
from unwrite.compress.contexts.pooling import ContextGroups, group_sizes
from unwrite.compress.contexts.projectors import ContextProjector
from unwrite.errors import MethodError, ModelError


def make(arch="llama", *, truncate=2, factor=4, out=(24,), layers=4, **settings):
    model = tiny_model(arch, layers=layers)
    torch.manual_seed(3)
    encoder = ArcEncoder.from_causal_lm(model, out_dims=out, truncate=truncate, pooling_factor=factor, **settings)
    return encoder.eval()


def states_after(model, layer, ids):
    """What a layer of the model itself gives."""
    seen = {}
    hook = model.base_model.layers[layer].register_forward_hook(lambda module, inputs, output: seen.update(out=output))
    model(ids)
    hook.remove()
    return seen["out"]


# Groups.


@pytest.mark.parametrize(
    ("length", "factor", "sizes"),
    [
        (9, 8, [5, 4]),
        (17, 8, [6, 6, 5]),
        (20, 8, [7, 7, 6]),
        (100, 8, [8] * 9 + [7] * 4),
        (64, 8, [8] * 8),
        (33, 4, [4, 4, 4, 4, 4, 4, 3, 3, 3]),
        (5, 8, [5]),
        (8, 8, [8]),
        (1, 8, [1]),
        (6, 1, [1] * 6),
    ],
)
def test_group_sizes_are_those_of_the_official_code(length, factor, sizes):
    assert group_sizes(length, factor) == sizes


def test_sizes_add_up_to_the_length_and_differ_by_one_at_most():
    for length, factor in itertools.product(range(1, 70), range(1, 12)):
        sizes = group_sizes(length, factor)
        assert sum(sizes) == length
        assert len(sizes) == -(-length // factor)
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1


def test_a_number_of_slots_is_that_many_groups_or_one_a_token():
    assert group_sizes(9, slots=4) == [3, 2, 2, 2]
    assert group_sizes(16, slots=5) == [4, 3, 3, 3, 3]
    assert group_sizes(3, slots=4) == [1, 1, 1]


def test_means_agree_with_the_official_pooling_module():
    """embedding_modules.py, PoolingModule("mean_pooled_queries"), on 17 rows sin(0.7 k) of 3 numbers, rate -8; 6 decimals."""
    rows = torch.sin(0.7 * torch.arange(51, dtype=torch.float64)).view(1, 17, 3)
    means = ContextGroups.of(torch.ones(1, 17, dtype=torch.long), 8).mean(rows)
    official = [-0.002775, -0.001057, 0.001159, -0.002718, -0.000953, 0.001259, 0.178744, 0.191645, 0.114412]
    assert means.flatten().tolist() == pytest.approx(official, abs=6e-7)


def test_means_of_half_precision_are_summed_in_single():
    states = torch.randn(1, 63, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    means = ContextGroups.of(torch.ones(1, 63, dtype=torch.long), 7).mean(states)
    assert torch.equal(means, states.double().view(1, 9, 7, 32).mean(2).to(torch.bfloat16))


def test_groups_of_a_row_with_two_texts_and_padding():
    groups = ContextGroups.of(torch.tensor([[1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 3, 3]]), 2)
    assert groups.counts == (2, 1, 3)
    assert groups.group.tolist() == [[0, 0, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]]
    assert groups.position.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    assert groups.text.tolist() == [[1, 1, 2], [3, 3, 3]]
    assert groups.slot.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert groups.end.tolist() == [[1, 2, 1], [1, 3, 5]]


# Who sees whom.


def test_the_last_token_changes_the_first_vector_and_not_where_it_is_causal():
    ids = tokens(batch=1, length=10)
    other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 60 + 3], 1)
    for causal, changes in ((False, True), (True, False)):
        encoder = make(causal=causal)
        first, second = encoder.encode(ids)[0], encoder.encode(other)[0]
        assert (not torch.equal(first[0], second[0])) is changes
        assert not torch.equal(first[-1], second[-1])


def test_a_causal_vector_sees_its_whole_group():
    """The published causal mask lets vector j see the first j + 1 tokens alone; of two vectors here the first sees four."""
    encoder, ids = make(causal=True, factor=4, layers=1, truncate=0), tokens(batch=1, length=8)
    states, places = encoder.embed_tokens(ids), torch.cat([torch.arange(2), torch.arange(8)])[None]
    rows = torch.cat([states.view(1, 2, 4, -1).mean(2), states], 1)
    mask = torch.full((1, 1, 10, 10), torch.finfo(torch.float32).min)
    mask[..., 2:] = 0
    mask[..., 0, 6:] = torch.finfo(torch.float32).min
    whole = encoder.layers[0](
        rows, attention_mask=mask, position_ids=places, position_embeddings=encoder.rotary_emb(rows, places)
    )
    assert torch.allclose(encoder.encode(ids)[0], whole[0, :2], atol=1e-5)


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("pooled", ["queries", "all"])
def test_packed_texts_and_padded_ones_are_as_they_are_alone(arch, pooled):
    encoder = make(arch, pooled=pooled)
    first, second = tokens(batch=1, length=9, seed=1)[0], tokens(batch=1, length=6, seed=2)[0]
    alone = [encoder.encode(one[None])[0] for one in (first, second)]
    packed = torch.cat([first, second, torch.tensor([7, 9])])[None]
    numbers = torch.tensor([[1] * 9 + [2] * 6 + [0] * 2])
    together = encoder.encode(packed, numbers)
    rows = torch.stack([first, F.pad(second, (0, 3), value=11)])
    padded = encoder.encode(rows, torch.tensor([[1] * 9, [1] * 6 + [0] * 3]))
    for one, two, three in zip(alone, together, padded, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
        assert torch.allclose(one, three, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    encoder = make()
    ids, numbers = tokens(batch=1, length=9), torch.tensor([[1] * 7 + [0] * 2])
    other = ids.clone()
    other[0, -2:] = torch.tensor([5, 6])
    assert torch.equal(encoder.encode(ids, numbers)[0], encoder.encode(other, numbers)[0])


# The last layer.


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_causal_encoder_without_pooling_is_the_models_own_layers(arch):
    ids = tokens(length=8)  # within Mistral's window here
    encoder = make(arch, factor=1, causal=True)
    assert torch.allclose(torch.stack(encoder.encode(ids)), states_after(tiny_model(arch), 1, ids), atol=1e-6)


@pytest.mark.parametrize("arch", FAMILIES)
def test_without_pooling_the_last_layer_is_the_unmodified_layer_without_a_causal_mask(arch):
    encoder, ids = make(arch, factor=1), tokens(length=10)
    texts = torch.ones_like(ids)
    states, places = encoder.embed_tokens(ids), torch.arange(10)[None].expand(2, -1)
    turn, mask = encoder.rotary_emb(states, places), torch.zeros(2, 1, 10, 10)
    for layer in encoder.layers:
        states = layer(states, attention_mask=mask, position_ids=places, position_embeddings=turn)
    assert torch.allclose(torch.stack(encoder.encode(ids, texts)), states, atol=1e-6)


@pytest.mark.parametrize("arch", FAMILIES)
def test_pooled_queries_beside_all_states_in_the_models_own_layer_give_the_vectors(arch):
    """The layer as it is, on the means followed by the states, where each sees the states alone."""
    encoder, ids = make(arch, factor=4), tokens(batch=1, length=10)
    states, places = encoder.embed_tokens(ids), torch.arange(10)[None]
    turn = encoder.rotary_emb(states, places)
    states = encoder.layers[0](
        states, attention_mask=torch.zeros(1, 1, 10, 10), position_ids=places, position_embeddings=turn
    )
    means = torch.stack([part.mean(1) for part in states.split([4, 3, 3], 1)], 1)
    rows, at = torch.cat([means, states], 1), torch.cat([torch.arange(3), torch.arange(10)])[None]
    mask = torch.zeros(1, 1, 13, 13)
    mask[..., :3] = torch.finfo(torch.float32).min
    whole = encoder.layers[1](
        rows, attention_mask=mask, position_ids=at, position_embeddings=encoder.rotary_emb(rows, at)
    )
    assert torch.allclose(encoder.encode(ids)[0], whole[0, :3], atol=1e-5)


def test_group_j_stands_at_rotary_position_j():
    """One layer by hand, 24 tokens in three groups of eight; at the positions of the tokens the result is another one."""
    encoder = make(layers=1, truncate=0, factor=8)
    ids = tokens(batch=1, length=24)
    by_hand, elsewhere = (one_layer(encoder, ids, torch.tensor([at])) for at in ([0, 1, 2], [0, 8, 16]))
    vectors = encoder.encode(ids)[0]
    assert torch.allclose(vectors, by_hand, atol=1e-5)
    assert not torch.allclose(vectors, elsewhere, atol=1e-3)


def one_layer(encoder, ids, at):
    layer = encoder.layers[0]
    states = encoder.embed_tokens(ids)
    means = states.view(1, 3, 8, -1).mean(2)
    attention = layer.self_attn
    query = attention.q_proj(layer.input_layernorm(means)).view(1, 3, 4, 8).transpose(1, 2)
    key, value = (
        part(layer.input_layernorm(states)).view(1, 24, 2, 8).transpose(1, 2)
        for part in (attention.k_proj, attention.v_proj)
    )
    query, _ = apply_rotary_pos_emb(query, query, *encoder.rotary_emb(states, at))
    key, _ = apply_rotary_pos_emb(key, key, *encoder.rotary_emb(states, torch.arange(24)[None]))
    key, value = (part.repeat_interleave(2, 1) for part in (key, value))
    weights = (query @ key.transpose(2, 3) / 8**0.5).softmax(-1)
    mixed = means + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    return (mixed + layer.mlp(layer.post_attention_layernorm(mixed)))[0]


def test_pooling_everything_attends_to_the_means_alone():
    queries, everything = make(), make(pooled="all")
    ids = tokens(batch=1, length=9)
    assert torch.equal(queries.layers[0].mlp.up_proj.weight, everything.layers[0].mlp.up_proj.weight)
    assert not torch.allclose(queries.encode(ids)[0], everything.encode(ids)[0], atol=1e-3)
    one = tokens(batch=1, length=3)  # a single vector attends to itself, so its values are those of its mean
    vector = everything.encode(one)[0]
    layer = everything.layers[1]
    states, places = everything.embed_tokens(one), torch.arange(3)[None]
    turn = everything.rotary_emb(states, places)
    states = everything.layers[0](
        states, attention_mask=torch.zeros(1, 1, 3, 3), position_ids=places, position_embeddings=turn
    )
    mean = states.mean(1)
    value = layer.self_attn.v_proj(layer.input_layernorm(mean)).view(2, 8).repeat_interleave(2, 0).flatten()
    mixed = mean + layer.self_attn.o_proj(value[None])
    assert torch.allclose(vector, mixed + layer.mlp(layer.post_attention_layernorm(mixed)), atol=1e-5)


def test_attention_computed_eagerly_is_the_same():
    model = tiny_model("llama")
    ids, texts = tokens(length=10), torch.tensor([[1] * 10, [1] * 6 + [0] * 4])
    vectors = []
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        encoder = ArcEncoder.from_causal_lm(model, out_dims=[8]).eval()
        assert encoder.base_config._attn_implementation == kind
        vectors.append(torch.cat(encoder.encode(ids, texts)))
    assert torch.allclose(*vectors, atol=1e-5)


# Projectors and learned vectors.


def test_256_tokens_are_33_vectors():
    encoder = make(factor=8)
    encoder.base_config.max_position_embeddings = 256
    assert encoder(tokens(batch=1, length=256))[0].shape == (33, 24)


def test_the_learned_vector_of_its_purpose_and_decoder_comes_last():
    encoder = make(out=(24, 16))
    for number, vector in enumerate((*encoder.continuation, *encoder.reconstruction)):
        vector.data = torch.full_like(vector, number + 1.0)
    ids = tokens(batch=1, length=9)
    for decoder, (purpose, start) in itertools.product((0, 1), (("continuation", 1), ("reconstruction", 3))):
        projected = encoder(ids, decoder=decoder, purpose=purpose)[0]
        expected = encoder.projectors[decoder](torch.full((32,), start + float(decoder)))
        assert torch.allclose(projected[-1], expected, atol=1e-5)
        assert torch.allclose(projected[:-1], encoder.projectors[decoder](encoder.encode(ids)[0]), atol=1e-5)


def test_learned_vectors_begin_as_ones():
    assert all(torch.equal(one, torch.ones(32)) for one in (*make().continuation, *make().reconstruction))


def test_the_projector_is_linear_and_of_the_rank_of_its_middle():
    torch.manual_seed(0)
    projector = ContextProjector(32, 24, 6)
    a, b = torch.randn(2, 32)
    assert torch.allclose(projector(a + b), projector(a) + projector(b), atol=1e-6)
    assert torch.equal(projector(torch.zeros(32)), torch.zeros(24))
    assert torch.linalg.matrix_rank(projector.second.weight @ projector.first.weight) == 6
    assert [tuple(one.shape) for one in ContextProjector(32, 24).parameters()] == [(24, 32), (24, 24)]


def test_other_projectors_are_one_matrix_or_a_norm_before_two():
    torch.manual_seed(0)
    linear, normed = ContextProjector(8, 6, kind="linear"), filled(ContextProjector(8, 6, 4, kind="rms"))
    vectors = torch.randn(3, 8)
    assert torch.equal(linear(vectors), vectors @ linear.first.weight.T)
    normal = vectors / (vectors.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * normed.scale
    assert torch.allclose(normed(vectors), normal @ normed.first.weight.T @ normed.second.weight.T, atol=1e-6)
    assert normed.scale.std() > 0
    assert linear.out_dim == normed.out_dim == 6


# Making, changing, saving.


def test_the_encoder_shares_nothing_with_the_model_it_was_made_of():
    """Tied embeddings too: the copy has its own, and a model that is frozen gives an encoder that can be trained."""
    model = tiny_model("llama", tie_word_embeddings=True).requires_grad_(False)
    encoder = ArcEncoder.from_causal_lm(model, out_dims=[32])
    theirs = {one.data_ptr() for one in model.parameters()}
    assert not theirs & {one.data_ptr() for one in encoder.parameters()}
    assert all(one.requires_grad for one in encoder.parameters())
    assert len(encoder.layers) == encoder.base_config.num_hidden_layers == model.config.num_hidden_layers - 2 == 2
    assert not any(name == "norm.weight" or "head" in name for name in encoder.state_dict())


def test_another_pooling_factor_changes_how_many_vectors_there_are_and_no_weight():
    encoder, ids = make(factor=8), tokens(batch=1, length=16)
    before = {name: one.clone() for name, one in encoder.state_dict().items()}
    assert [len(encoder.at(factor).encode(ids)[0]) for factor in (8, 4, 1)] == [2, 4, 16]
    assert len(encoder.at(8, slots=5).encode(ids)[0]) == 5
    assert all(torch.equal(one, before[name]) for name, one in encoder.state_dict().items())


def test_a_decoder_added_later_has_a_projector_and_vectors_of_its_own():
    encoder, ids = make(out=(24,), decoders=["one"]), tokens(batch=1, length=9)
    before = encoder(ids)[0]
    assert encoder.add_decoder(16, "two") == 1
    assert encoder.settings.decoders == ("one", "two")
    assert encoder(ids, decoder=1)[0].shape == (4, 16)
    assert torch.equal(encoder(ids)[0], before)


@pytest.mark.parametrize("arch", FAMILIES)
def test_what_is_saved_comes_back_and_holds_no_decoder(arch, tmp_path):
    encoder = make(arch, out=(24, 16), decoders=["one", "two"], projector="rms", projector_dim=5, pooled="all")
    models.save(encoder, tmp_path / "encoder")
    again = ArcEncoder.from_pretrained(tmp_path / "encoder")
    assert again.settings == encoder.settings
    assert not again.training
    ids = tokens(length=7)
    assert torch.equal(torch.cat(again(ids, decoder=1)), torch.cat(encoder(ids, decoder=1)))
    files = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert files == {"arc_encoder.json", "arc_encoder.safetensors", "unwrite.json"}
    size = sum(one.numel() * 4 for one in encoder.parameters())
    assert (tmp_path / "encoder" / "arc_encoder.safetensors").stat().st_size < size + 20_000


def test_half_precision_is_kept(tmp_path):
    encoder = make().to(torch.bfloat16)
    encoder.save_pretrained(tmp_path)
    assert {one.dtype for one in ArcEncoder.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no ARC encoder \(no arc_encoder.json\)"):
        ArcEncoder.from_pretrained(tmp_path)
    encoder = make()
    encoder.save_pretrained(tmp_path)
    note = tmp_path / "arc_encoder.json"
    whole = note.read_text(encoding="utf-8")
    for old, new, message in (
        ('"form": 1', '"form": 2', "of another form"),
        ('"pooling_factor": 4', '"pooling_factor": 0', "no note of an ARC encoder: .*pooling_factor=0"),
        ('"model_type": "llama"', '"model_type": "gpt2"', "can't be made of 'gpt2'"),
        ('"hidden_size": 32', '"hidden_size": 64', "no encoder of these settings: continuation.0"),
    ):
        assert old in whole
        note.write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            ArcEncoder.from_pretrained(tmp_path)


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0}, "pooling_factor=0 has no meaning"),
        ({"slots": 0}, "slots=0 has no meaning"),
        ({"out": ()}, "names no decoder"),
        ({"out": (8, 8), "decoders": ["one"]}, "1 names and 2 widths of decoders"),
        ({"truncate": 4}, "truncate=4 of 4 layers has no meaning"),
        ({"projector": "mlpp"}, "unknown kind of projector 'mlpp'. Did you mean 'mlp'"),
        ({"pooled": "none"}, "unknown way to pool 'none'"),
        ({"projector_dim": 0}, "projector_dim=0 has no meaning"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        make(**settings)


def test_models_that_no_encoder_can_be_made_of_are_refused():
    with pytest.raises(ModelError, match=r"can't be made of 'gpt2': its layers aren't known here. Known: llama"):
        ArcEncoder.from_causal_lm(tiny_model("gpt2"), out_dims=[8])
    for mark, message in (("peft_config", "has an adapter"), ("is_quantized", "weights are quantised")):
        model = tiny_model("llama")
        setattr(model, mark, True)
        with pytest.raises(ModelError, match=message):
            ArcEncoder.from_causal_lm(model, out_dims=[8])


def test_texts_that_cant_be_encoded_are_refused():
    encoder, ids = make(), tokens(batch=1, length=6)
    with pytest.raises(MethodError, match="a row holds no text, only padding"):
        encoder.encode(ids, torch.zeros_like(ids))
    with pytest.raises(MethodError, match="two texts of a row have one number"):
        encoder.encode(ids, torch.tensor([[1, 1, 2, 2, 1, 1]]))
    encoder.base_config.max_position_embeddings = 5
    with pytest.raises(ModelError, match="a text of 6 tokens is longer than the encoder reads, 5"):
        encoder.encode(ids)
    with pytest.raises(MethodError, match="a text of 0 tokens has nothing to compress"):
        group_sizes(0)


def test_a_decoder_without_a_projector_and_an_unknown_purpose_are_refused():
    encoder, ids = make(), tokens(batch=1, length=6)
    with pytest.raises(MethodError, match="no projector for decoder 1: the encoder was made for 1"):
        encoder(ids, decoder=1)
    with pytest.raises(MethodError, match=r"unknown purpose 'continue'\. Did you mean 'continuation'"):
        encoder(ids, purpose="continue")


def test_the_defaults_are_the_papers():
    settings = ArcSettings((4096,))
    assert (settings.pooling_factor, settings.projector, settings.causal, settings.pooled) == (
        8,
        "mlp",
        False,
        "queries",
    )
