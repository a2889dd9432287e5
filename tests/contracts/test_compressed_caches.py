"""What every compressed cache keeps to: its form, the full cache's text at its limit, its bytes, its rows, and clear refusals."""

import copy
import dataclasses
import importlib
import itertools
import pickle
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache

import pytest
import torch
from transformers import DynamicCache

from helpers.architectures import tiny_model
from unwrite import catalog
from unwrite.cache import CompressedCache, Compression, HeadGroups
from unwrite.catalog.records import OURS
from unwrite.errors import MethodError, ModelError, UnwriteError

CACHES = catalog.caches()
PROMPT, NEW = 40, 12
every_cache = pytest.mark.parametrize("slug", CACHES)


@dataclasses.dataclass(frozen=True)
class Fields:
    """A cache's settings for these tests.

    Args:
        limit: with these it gives the full cache's text.
        lossy: with these it holds less than the full cache of 40 tokens of 16 numbers, and the text may change.
        given: what it takes beside them, made for a model: what was calibrated.
        smaller: with these it takes fewer bytes than the full cache of so many `tokens`; those of `lossy` without.
        free: fields of which any number or word has a meaning.
        objects: fields that no text on a command line says but by a file.
    """

    limit: Mapping[str, object]
    lossy: Mapping[str, object]
    given: Callable[[object], dict[str, object]] = lambda model: {}
    smaller: Mapping[str, object] | None = None
    tokens: int = PROMPT
    free: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()


def head_groups(model):
    """Groups as a calibration gives them, alternating."""
    config = model.config
    heads = config.num_key_value_heads
    return HeadGroups(tuple(tuple((layer + head) % min(2, heads) for head in range(heads)) for layer in range(2)))


FIELDS: dict[str, Fields] = {  # one for every record
    "uncomp": Fields(
        limit={"capacity": 4096},
        lossy={"capacity": 16, "window": 4, "kernel": 3},
        given=lambda model: {"groups": head_groups(model)},
        objects=frozenset({"groups"}),
    ),
    "mustafar": Fields(
        limit={"k_sparsity": 0.0, "v_sparsity": 0.0},
        lossy={"window": 8, "block": 16, "packed": False},
        smaller={"window": 8, "block": 64},
        tokens=100,
        free=frozenset({"seed"}),
    ),
    "rotatekv": Fields(limit={"bits": 16}, lossy={"sinks": 3}, objects=frozenset({"order"})),
}

MODELS = {
    "llama": ("llama", {}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, as many key heads": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
}


@lru_cache
def model_of(name):
    arch, settings = MODELS[name]
    return tiny_model(arch, layers=2, head_dim=16, **settings)


@pytest.fixture
def model():
    return model_of("llama")


def made(slug, model, **fields):
    return CACHES[slug].load()(**{**FIELDS[slug].given(model), **fields})


def limit(slug, model):
    return made(slug, model, **FIELDS[slug].limit).cache(model)


def lossy(slug, model):
    return made(slug, model, **FIELDS[slug].lossy).cache(model)


def prompts(model, rows=1, length=PROMPT, padding=0, seed=0):
    """Random ids; the first row is padded on the left by so many."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def written(model, cache, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(**inputs, past_key_values=cache, **options)


@torch.no_grad()
def read(model, cache, ids):
    """[rows, vocab] logits behind these ids."""
    return model(ids, past_key_values=cache).logits[:, -1]


def tried(call):
    """(what it returns, None), or (None, its refusal in words)."""
    try:
        return call(), None
    except UnwriteError as error:
        return None, str(error)


def storages(value, seen=None):
    """{address: bytes} of all storages that an object leads to, through lists, mappings and attributes."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()} if storage.nbytes() else {}
    if id(value) in seen or isinstance(value, str | torch.nn.Module | type):
        return {}
    seen.add(id(value))
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    found = {}
    for one in itertools.chain(inside, vars(value).values() if hasattr(value, "__dict__") else ()):
        found |= storages(one, seen)
    return found


# Its form


@every_cache
def test_is_a_frozen_value_with_defaults_and_documented_fields(slug):
    cls = CACHES[slug].load()
    assert issubclass(cls, Compression)
    assert cls.__dataclass_params__.frozen
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    assert [field.name for field in dataclasses.fields(cls) if field.name not in documented] == []
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    assert pickle.loads(pickle.dumps(cls())) == cls()
    assert cls().slug == slug


@pytest.mark.parametrize("slug", [slug for slug, record in CACHES.items() if record.package == OURS])
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(CACHES[slug].module)
    assert CACHES[slug].paper.removeprefix("arXiv ").split()[0] in module.__doc__


@every_cache
def test_every_field_refuses_what_has_no_meaning(slug):
    cls = CACHES[slug].load()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = {type(field.default), *typing.get_args(hints[field.name])}
        kind = next((one for one in (int, float, str) if one in kinds), None)
        if kind is None or bool in kinds or field.name in FIELDS[slug].free | FIELDS[slug].objects:
            continue
        for bad in {int: [-1], float: [float("nan"), -1.0], str: ["nonsense"]}[kind]:
            with pytest.raises(MethodError, match=field.name if kind is not str else "nonsense"):
                cls(**{field.name: bad})


@every_cache
@pytest.mark.parametrize("which", ["limit", "lossy"])
def test_round_trips_through_its_text(slug, which):
    from unwrite.cli.fields import build_cache

    fields = getattr(FIELDS[slug], which)
    plain = {name: value for name, value in fields.items() if name not in FIELDS[slug].objects}
    text = ",".join(f"{name}={str(value).lower()}" for name, value in plain.items())
    assert build_cache(f"{slug}:{text}" if text else slug) == CACHES[slug].load()(**plain)


@every_cache
def test_the_class_of_the_cache_takes_the_fields_of_its_settings(slug, model):
    """`XCache(model, **fields)` beside `X(**fields).cache(model)`."""
    settings = made(slug, model, **FIELDS[slug].lossy)
    module = importlib.import_module(CACHES[slug].module)
    cls = getattr(module, f"{type(settings).__name__}Cache")
    assert issubclass(cls, CompressedCache)
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    assert cls(model, **fields).compression == settings


# Its text at the limit


@every_cache
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_at_its_limit_it_gives_the_full_caches_text(slug, name, attention):
    model = model_of(name)
    model.set_attn_implementation(attention)
    try:
        for rows, padding in ((1, 0), (1, 7), (3, 25)):
            inputs = prompts(model, rows, padding=padding)
            assert torch.equal(written(model, limit(slug, model), inputs), written(model, DynamicCache(), inputs))
    finally:
        model.set_attn_implementation("sdpa")


@every_cache
@pytest.mark.parametrize("length", [1, 2, 5])
def test_at_its_limit_it_gives_the_full_caches_text_of_a_short_prompt(slug, length, model):
    inputs = prompts(model, 2, length)
    assert torch.equal(written(model, limit(slug, model), inputs), written(model, None, inputs))


@every_cache
def test_at_its_limit_a_text_read_piece_by_piece_is_the_text(slug, model):
    ids = prompts(model, 2)["input_ids"]
    cache = limit(slug, model)
    for piece in ids.split([17, 1, 2, 20], 1):
        logits = read(model, cache, piece)
    assert torch.allclose(logits, read(model, None, ids), atol=1e-4)


@every_cache
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision_work(slug, dtype):
    model = copy.deepcopy(model_of("llama")).to(dtype)
    ids = prompts(model, 2)["input_ids"]
    difference = read(model, limit(slug, model), ids) - read(model, None, ids)
    assert difference.abs().max() < 0.05 * read(model, None, ids).abs().max()
    cache = lossy(slug, model)
    out = written(model, cache, prompts(model, 2, padding=9), output_scores=True, return_dict_in_generate=True)
    assert all(scores.isfinite().all() for scores in out.scores)


@every_cache
def test_sampling_several_texts_of_a_prompt_works_at_the_limit(slug, model):
    texts = []
    for cache in (DynamicCache(), limit(slug, model)):
        torch.manual_seed(0)
        options = {"do_sample": True, "num_return_sequences": 3}
        texts.append(written(model, cache, prompts(model, 2, padding=4), **options))
    assert torch.equal(*texts)


@every_cache
def test_beams_are_those_of_the_full_cache_at_the_limit_or_refused(slug, model):
    inputs = prompts(model, 2, padding=4)
    beams, refusal = tried(lambda: written(model, limit(slug, model), inputs, num_beams=3))
    if refusal is not None:
        assert "beam" in refusal
    else:
        assert torch.equal(beams, written(model, DynamicCache(), inputs, num_beams=3))


# Lengths and bytes


@every_cache
def test_lengths_are_those_of_the_text(slug, model):
    cache = lossy(slug, model)
    written(model, cache, prompts(model, 2, padding=5))
    assert cache.get_seq_length() == PROMPT + NEW - 1
    assert cache.get_mask_sizes(1, 0) == (PROMPT + NEW, 0)
    assert cache.get_max_length() == -1


@every_cache
@pytest.mark.parametrize("which", [limit, lossy])
@pytest.mark.parametrize(("rows", "length", "padding"), [(1, 1, 0), (1, 40, 0), (3, 40, 0), (2, 33, 20), (2, 70, 0)])
def test_bytes_are_those_of_all_storages_and_nothing_else_is_kept_of_the_text(
    slug, which, rows, length, padding, model
):
    cache = which(slug, model)
    before = storages(cache.layers)
    assert cache.nbytes() == 0
    for new in (2, 6):
        written(model, cache, prompts(model, rows, length, padding), max_new_tokens=new)
        after = storages(cache.layers)
        assert cache.nbytes() == sum(size for place, size in after.items() if place not in before) > 0
        cache.reset()
        assert cache.nbytes() == 0


@every_cache
@pytest.mark.parametrize("rows", [1, 3])
def test_it_holds_fewer_bytes_than_a_full_cache(slug, rows, model):
    fields = FIELDS[slug]
    cache = made(slug, model, **(fields.smaller or fields.lossy)).cache(model)
    written(model, cache, prompts(model, rows, fields.tokens))
    config = model.config
    full = 2 * 4 * rows * (fields.tokens + NEW - 1) * config.num_key_value_heads * 16 * config.num_hidden_layers
    assert cache.nbytes() < full


# Its rows, copies, and further calls


@every_cache
def test_a_second_call_goes_on_where_the_first_one_ended(slug, model):
    inputs = prompts(model, 2)
    whole = written(model, lossy(slug, model), inputs, max_new_tokens=2 * NEW)
    cache = lossy(slug, model)
    first = written(model, cache, inputs)
    again = written(model, cache, {"input_ids": first, "attention_mask": torch.ones_like(first)})
    assert torch.equal(again, whole)


@every_cache
def test_a_further_turn_is_read_behind_the_first_one(slug, model):
    cache = limit(slug, model)
    first = written(model, cache, prompts(model, 2))
    longer = torch.cat([first, prompts(model, 2, 9, seed=5)["input_ids"]], 1)
    inputs = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    assert torch.equal(written(model, cache, inputs), written(model, None, inputs))
    cache = lossy(slug, model)
    assert written(model, cache, prompts(model, 2)).shape == first.shape
    assert read(model, cache, prompts(model, 2, 9)["input_ids"]).isfinite().all()
    assert cache.get_seq_length() == PROMPT + NEW - 1 + 9


@every_cache
def test_a_copy_goes_on_as_its_original_and_neither_changes_the_other(slug, model):
    ids, more = prompts(model, 2)["input_ids"], prompts(model, 2, 3, seed=3)["input_ids"]
    cache, other = lossy(slug, model), lossy(slug, model)
    for one in (cache, other):
        read(model, one, ids)
    twin = copy.deepcopy(cache)
    for token in more.split(1, 1):
        first = read(model, twin, token)
    for token in more.split(1, 1):
        second, third = read(model, cache, token), read(model, other, token)
    assert torch.equal(first, second)
    assert torch.equal(second, third)
    assert not storages(twin.layers).keys() & {one.untyped_storage().data_ptr() for one in cache.layers[0].tensors()}


@every_cache
@pytest.mark.parametrize("chosen", [[1, 0], [1, 1, 0], [1]])
def test_rows_are_chosen_with_all_that_is_kept_of_them(slug, chosen, model):
    ids, token = prompts(model, 2)["input_ids"], torch.tensor([[7], [9]])
    cache, other = lossy(slug, model), lossy(slug, model)
    for one in (cache, other):
        read(model, one, ids)
        read(model, one, token)
    bytes_of_a_row = cache.nbytes() / 2
    if refusal := tried(lambda: other.reorder_cache(torch.tensor(chosen)))[1]:
        assert "beam" in refusal
        return
    assert other.nbytes() == bytes_of_a_row * len(chosen)
    for _ in range(3):
        expected = read(model, cache, token)[chosen]
        assert torch.allclose(read(model, other, token[chosen]), expected, atol=1e-5)


@every_cache
def test_it_is_emptied(slug, model):
    cache = lossy(slug, model)
    written(model, cache, prompts(model, 2, padding=3))
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes()) == (0, 0)
    inputs = prompts(model, 3, seed=4)
    assert torch.equal(written(model, cache, inputs), written(model, lossy(slug, model), inputs))


@every_cache
def test_tokens_are_given_back_or_that_is_refused(slug, model):
    """What was read without them is what is left, up to rounding, where a cache can crop at all."""
    ids, more = prompts(model, 2)["input_ids"], prompts(model, 2, 4, seed=2)["input_ids"]
    cache, other = lossy(slug, model), lossy(slug, model)
    for one in (cache, other):
        read(model, one, ids)
        read(model, one, more[:, :1])
    cache.crop(0)
    read(model, other, more[:, 1:3])
    if not cache.is_croppable:
        with pytest.raises(MethodError, match="can't give back 2 tokens"):
            other.crop(-2)
        return
    other.crop(-2)
    assert other.get_seq_length() == cache.get_seq_length()
    assert torch.allclose(read(model, other, more[:, 3:]), read(model, cache, more[:, 3:]), atol=1e-5)


# What it leaves alone, and refuses


@every_cache
def test_the_model_is_as_before(slug, model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs = prompts(model, 2)
    plain = written(model, None, inputs)
    written(model, lossy(slug, model), inputs)
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(written(model, None, inputs), plain)


@every_cache
def test_the_same_text_twice_is_the_same_bits(slug, model):
    ids = prompts(model, 2)["input_ids"]
    torch.manual_seed(1)
    first = read(model, lossy(slug, model), ids)
    torch.manual_seed(2)
    assert torch.equal(read(model, lossy(slug, model), ids), first)


@every_cache
def test_another_models_text_is_refused(slug, model):
    other = tiny_model("llama", layers=2, head_dim=16, seed=1)
    cache = lossy(slug, model)
    with pytest.raises(MethodError, match="another model"):
        read(other, cache, prompts(other)["input_ids"])
    assert cache.get_seq_length() == 0


@every_cache
@pytest.mark.parametrize("arch", ["mistral", "gemma2"])
def test_models_with_windows_are_refused(slug, arch, model):
    settings = made(slug, model, **FIELDS[slug].lossy)
    with pytest.raises(ModelError, match="sliding attention"):
        settings.cache(tiny_model(arch))


@every_cache
def test_a_refusal_is_one_line(slug, model):
    settings = made(slug, model, **FIELDS[slug].lossy)
    for arch in ("mistral", "gpt_neox", "opt"):
        refusal = tried(lambda arch=arch: settings.cache(tiny_model(arch)))[1]
        assert refusal is None or "\n" not in refusal
