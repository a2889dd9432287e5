"""What every compressed cache does, shown on one that keeps everything: the full cache's tokens, and clear refusals."""

import copy

import pytest
import torch
from tests.helpers.architectures import tiny_model
from tests.helpers.tiny import make_llama
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, T5Config, T5ForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unwrite.cache import CompressedCache, CompressedLayer, Compression
from unwrite.cache.engine.attention import NAME, visible
from unwrite.errors import MethodError, ModelError


class WholeLayer(CompressedLayer):
    """Keeps all keys and values as they come, in two pieces each."""

    stored = ("old", "new")

    def __init__(self):
        super().__init__()
        self.old = self.new = None
        self.moments = []

    def store(self, keys, values):
        self.moments.append(self.moment)
        joined = torch.stack([keys, values], 1)
        if self.new is not None:
            self.old = self.new if self.old is None else torch.cat([self.old, self.new], -2)
        self.new = joined
        whole = joined if self.old is None else torch.cat([self.old, joined], -2)
        return whole[:, 0], whole[:, 1]

    def attend(self, call):
        self.calls = getattr(self, "calls", 0) + 1
        new, known = call.query.shape[2], call.keys.shape[2]
        mask = visible(call.attention_mask, new, known, call.query.device)
        group = call.query.shape[1] // call.keys.shape[1]
        keys, values = (one.repeat_interleave(group, 1) for one in (call.keys, call.values))
        scores = (call.query @ keys.transpose(-1, -2) * call.scaling).masked_fill(~mask, -1e30)
        return (scores.softmax(-1) @ values).transpose(1, 2), None


class Whole(Compression):
    def layer(self, index, shape, prepared):
        return WholeLayer()


class WholeAttending(Whole):
    attends = True


@pytest.fixture(scope="module")
def model():
    return make_llama().eval()


def left_padded(model, lengths=(3, 9), seed=0):
    rows = torch.randint(
        5, model.config.vocab_size, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return {"input_ids": rows.masked_fill(~mask, 0), "attention_mask": mask.long()}


def written(model, cache, inputs, **settings):
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    return model.generate(**inputs, past_key_values=cache, **settings)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", [Whole, WholeAttending])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_keeping_everything_writes_the_text_of_a_full_cache(model, way, attention, settings):
    model.set_attn_implementation(attention)
    inputs = left_padded(model)
    texts = []
    for cache in (DynamicCache(), way().cache(model)):
        torch.manual_seed(0)
        texts.append(written(model, cache, inputs, **settings))
    assert torch.equal(*texts)
    model.set_attn_implementation("sdpa")


def test_a_second_call_goes_on_from_what_the_first_one_read(model):
    inputs = left_padded(model, (7,))
    cache = WholeAttending().cache(model)
    first = written(model, cache, inputs)
    longer = torch.cat([first, torch.tensor([[5, 6, 7]])], 1)
    again = written(model, cache, {"input_ids": longer, "attention_mask": torch.ones_like(longer)})
    assert torch.equal(again, written(model, None, {"input_ids": longer, "attention_mask": torch.ones_like(longer)}))


def test_a_copy_and_its_original_write_the_same_on(model):
    prefix = torch.randint(5, 60, (1, 6))
    cache = WholeAttending().cache(model)
    with torch.no_grad():
        model(prefix, past_key_values=cache)
    inputs = {"input_ids": torch.cat([prefix, torch.tensor([[9, 8]])], 1), "attention_mask": torch.ones(1, 8)}
    assert torch.equal(written(model, copy.deepcopy(cache), inputs), written(model, cache, inputs))


def test_layers_see_rope_mask_and_hidden_states_of_their_calls_only(model):
    cache = Whole().cache(model)
    inputs = left_padded(model)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    moment = cache.layers[1].moments[0]
    assert moment.hidden_states.shape == moment.residual.shape == (2, 9, model.config.hidden_size)
    torch.testing.assert_close(model.model.layers[1].input_layernorm(moment.residual), moment.hidden_states)
    assert [one.shape[-2] for one in moment.rope] == [9, 9]
    assert not visible(moment.attention_mask, 9, 9, torch.device("cpu"))[0, 0, :, :6].any(-1)[-1]
    assert cache.layers[1].moment is None


def test_a_layer_attends_where_its_settings_say_so_and_the_model_is_as_before(model):
    plain, attending = Whole().cache(model), WholeAttending().cache(model)
    inputs = left_padded(model, (5,))
    for cache in (plain, attending):
        written(model, cache, inputs, max_new_tokens=2)
    assert not hasattr(plain.layers[0], "calls")
    assert attending.layers[0].calls == 2
    assert model.config._attn_implementation == "sdpa"


def test_a_copy_of_a_model_that_had_a_cache_has_caches_of_its_own(model):
    WholeAttending().cache(model)
    twin = copy.deepcopy(model)
    cache = WholeAttending().cache(twin)
    assert torch.equal(written(twin, cache, left_padded(twin)), written(model, None, left_padded(model)))
    assert cache.layers[0].calls == 12
    assert [len(one._forward_pre_hooks) for one in (twin.model.layers[0], twin.model.layers[0].self_attn)] == [1, 1]


def test_a_layer_attends_also_where_another_package_wraps_all_attention_functions(model, monkeypatch):
    """kvpress hands dropout on by its place, as transformers' own functions take it."""
    inner = ALL_ATTENTION_FUNCTIONS[NAME]

    def wrapper(module, query, key, value, attention_mask, dropout, **others):
        return inner(module, query, key, value, attention_mask, dropout, **others)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, wrapper)
    inputs = left_padded(model)
    assert torch.equal(written(model, WholeAttending().cache(model), inputs), written(model, None, inputs))


def test_the_model_is_as_before_when_a_forward_fails(model):
    class Broken(WholeAttending):
        def layer(self, index, shape, prepared):
            layer = WholeLayer()
            layer.attend = lambda call: 1 / 0
            return layer

    with pytest.raises(ZeroDivisionError), torch.no_grad():
        model(torch.tensor([[5, 6]]), past_key_values=Broken().cache(model))
    assert model.config._attn_implementation == "sdpa"


def test_bytes_are_those_of_all_storages_whole(model):
    cache = Whole().cache(model)
    written(model, cache, left_padded(model, (5, 5)), max_new_tokens=3)
    shape = cache.shape
    numbers = 2 * 7 * 2 * shape.kv_heads * shape.head_dim * shape.layers  # rows, tokens, keys and values
    assert cache.nbytes() == 4 * numbers
    view = cache.layers[0]
    view.old = view.old[:, :, :, :1]  # a view keeps all of what it is a view of
    assert cache.nbytes() == 4 * numbers
    view.new = view.old
    assert cache.nbytes() == 4 * (numbers - 2 * 2 * shape.kv_heads * shape.head_dim)


def test_rows_are_chosen_repeated_and_emptied(model):
    cache = Whole().cache(model)
    written(model, cache, left_padded(model), max_new_tokens=2)
    before = [one.clone() for one in cache.layers[0].tensors()]
    cache.batch_repeat_interleave(2)
    assert torch.equal(next(iter(cache.layers[0].tensors())), before[0][[0, 0, 1, 1]])
    cache.batch_select_indices(torch.tensor([3]))
    assert torch.equal(next(iter(cache.layers[0].tensors())), before[0][[1]])
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes()) == (0, 0)
    assert torch.equal(
        written(model, cache, left_padded(model, seed=1)), written(model, None, left_padded(model, seed=1))
    )


def test_a_cache_of_another_model_is_refused(model):
    other = make_llama().eval()
    cache = Whole().cache(model)
    for hooked in (False, True):
        with pytest.raises(MethodError, match="another model"), torch.no_grad():
            other(torch.tensor([[5, 6]]), past_key_values=cache)
        if not hooked:
            Whole().cache(other)
    assert cache.get_seq_length() == 0


def test_models_whose_caches_are_no_list_of_all_keys_are_refused():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    sliding = Gemma3ForCausalLM(
        Gemma3TextConfig(
            **sizes, num_attention_heads=2, num_key_value_heads=1, layer_types=["sliding_attention", "full_attention"]
        )
    )
    with pytest.raises(ModelError, match="1 of 2 layers of the kind sliding attention"):
        Whole().cache(sliding)
    encoder = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )
    with pytest.raises(ModelError, match="encoder"):
        Whole().cache(encoder)


def test_attention_without_tensors_for_masks_is_refused(model):
    model.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(ModelError, match="set_attn_implementation"):
            WholeAttending().cache(model)
        Whole().cache(model)
    finally:
        model.config._attn_implementation_internal = "sdpa"


def test_a_bound_on_scores_is_refused_where_layers_attend():
    bounded = tiny_model("gemma2", layers=2, layer_types=["full_attention"] * 2)
    with pytest.raises(ModelError, match="bounds the scores of its attention by 50"):
        WholeAttending().cache(bounded)
    Whole().cache(bounded)


def test_a_cache_can_be_neither_cropped_nor_moved(model):
    cache = Whole().cache(model)
    cache.crop(0)
    with pytest.raises(MethodError, match="can't give back 2 tokens"):
        cache.crop(-2)
    with pytest.raises(MethodError, match="offloading"):
        cache.layers[0].offload()


def test_settings_are_given_once(model):
    with pytest.raises(MethodError, match="no settings"):
        CompressedCache(model)
    with pytest.raises(MethodError, match="bits is given beside"):
        CompressedCache(model, Whole(), bits=2)
