"""A prompt read with fewer tokens in deeper layers: which stages, which tokens, and at which places."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from helpers.kept_tokens import GROUPS, prompt, read, tokens_of, written
from helpers.tiny import make_llama
from unwrite.cache import UNComp, UNCompCache, stage_labels
from unwrite.cache.engine.stages import kept_lengths
from unwrite.errors import MethodError


@pytest.fixture(scope="module")
def model():
    return make_llama()


def test_a_stage_begins_where_entropy_falls_by_more_than_the_bar():
    assert stage_labels([71.1, 70.9, 67.4, 69.0, 69.2]) == (0, 0, 1, 1, 1)
    assert stage_labels([3.0, 2.0, 0.5, 0.4, 0.0], 0.25) == (0, 1, 2, 2, 3)
    assert stage_labels([3.0, 2.0]) == (0, 0)  # by 1, and no more


def test_later_stages_read_fewer_tokens():
    """The published 32 layers: 1,536 tokens at the end, a quarter of the rest more from stage to stage."""
    stages = (0,) * 2 + (1,) * 13 + (2,) * 11 + (3,) * 5 + (4,)
    lengths = kept_lengths(4096, stages, 1536)
    assert sorted(set(lengths), reverse=True) == [4096, 3456, 2816, 2176, 1536]
    assert kept_lengths(1536, stages, 1536) == (1536,) * 32


STAGES = {"stages": (0, 1, 2), "least_length": 12, "window": 4, "capacity": 40}


def test_layers_of_later_stages_hold_the_tokens_that_were_left(model):
    cache = UNCompCache(model, groups=GROUPS, **STAGES)
    logits = read(model, cache, prompt(length=40))
    held = [next(iter(tokens_of(layer).values())) for layer in cache.layers]
    assert [len(tokens) for tokens in held] == [40, 26, 12]
    assert all(set(less) < set(more) for more, less in pairwise(held))
    assert all(tokens[-4:] == [36, 37, 38, 39] for tokens in held)
    assert {layer.get_seq_length() for layer in cache.layers} == {40}
    assert all(layer.reading is None for layer in cache.layers)
    assert (logits - read(model, None, prompt(length=40))).abs().max() > 1e-4


def test_tokens_leave_by_what_the_layer_above_attended_to():
    model = make_llama(attn_implementation="eager")
    cache = UNCompCache(model, groups=GROUPS, **STAGES)
    ids = prompt(length=40)
    read(model, cache, ids)
    with torch.no_grad():
        scores = model(ids, output_attentions=True).attentions[0][0, :, -4:].sum((0, 1))
    scores[-4:] = torch.inf
    assert next(iter(tokens_of(cache.layers[1]).values())) == scores.topk(26).indices.sort().values.tolist()


def test_what_is_left_is_read_at_its_own_place(model):
    """Stages by hand: the same tokens taken out between the model's own layers, at their positions."""
    cache = UNCompCache(model, groups=GROUPS, **STAGES)
    ids = prompt(length=40)
    logits = read(model, cache, ids)
    inner = model.model
    with torch.no_grad():
        hidden, before = inner.embed_tokens(ids), torch.arange(40)
        for layer, held in zip(inner.layers, cache.layers, strict=True):
            tokens = torch.tensor(next(iter(tokens_of(held).values())))
            hidden = hidden[:, torch.isin(before, tokens)]
            hidden = layer(hidden, position_embeddings=inner.rotary_emb(hidden, tokens[None]))
            before = tokens
        expected = model.lm_head(inner.norm(hidden))[:, -1]
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_row_loses_what_it_loses_alone(model, attention):
    """The padding goes first; with as many tokens of the text as are read in each stage, both read the same."""
    model.set_attn_implementation(attention)
    ids = prompt(2, 44)
    mask = torch.ones_like(ids)
    mask[0, :14] = 0
    together = UNCompCache(model, groups=GROUPS, **(STAGES | {"stages": (0, 1, 1)}))
    first = read(model, together, ids, mask)[:1]
    alone = UNCompCache(model, groups=GROUPS, **(STAGES | {"stages": (0, 1, 1)}))
    assert torch.allclose(first, read(model, alone, ids[:1, 14:]), atol=1e-4)
    for layer, other in zip(together.layers, alone.layers, strict=True):
        moved = {head: [token + 14 for token in tokens] for head, tokens in tokens_of(other).items()}
        assert tokens_of(layer) == moved
    model.set_attn_implementation("sdpa")


def test_a_token_that_is_masked_is_no_token_in_any_stage(model):
    ids, columns = prompt(1, 44), [column for column in range(44) if column != 35]
    mask = torch.ones_like(ids)
    mask[0, 35] = 0
    settings = STAGES | {"stages": (0, 1, 1)}
    first = read(model, UNCompCache(model, groups=GROUPS, **settings), ids, mask)
    alone = UNCompCache(model, groups=GROUPS, **settings)
    with torch.no_grad():
        logits = model(ids[:, columns], position_ids=torch.tensor([columns]), past_key_values=alone).logits[:, -1]
    assert torch.allclose(first, logits, atol=1e-4)


def test_texts_go_on_behind_a_prompt_read_in_stages(model):
    cache = UNCompCache(model, groups=GROUPS, **(STAGES | {"capacity": 10}))
    ids = prompt(2, 40)
    written(model, cache, ids)
    assert cache.get_seq_length() == 51
    assert all(max(tokens) == 50 for layer in cache.layers for tokens in tokens_of(layer).values())
    whole = UNCompCache(model, groups=GROUPS, stages=(0, 1, 2), capacity=60)  # within the least length of 1,536
    assert torch.equal(written(model, whole, ids), written(model, DynamicCache(), ids))
    assert torch.equal(written(model, None, ids), written(model, DynamicCache(), ids))  # the hooks rest without stages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": (0, 1)}, "stages are 0, 1; give 0, 1, ... in order, one for each of the 3 layers"),
        ({"stages": (0, 2, 3)}, "stages are 0, 2, 3"),
        ({"stages": (0, 1, 0)}, "stages are 0, 1, 0"),
        ({"stages": (0, 1, 1), "least_length": 8}, "the last stage reads 8 tokens, and the window takes 8"),
    ],
)
def test_stages_that_dont_fit_are_refused(model, fields, message):
    with pytest.raises(MethodError, match=message):
        UNComp(groups=GROUPS, **fields).cache(model)
