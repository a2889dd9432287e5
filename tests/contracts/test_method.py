"""What every forgetting method keeps to before its first forward: its form, its words, and what it refuses."""

import dataclasses
import importlib
import inspect
import pickle
import typing

import pytest
from texts import ON_TEXTS, apply, made

from unwrite import catalog
from unwrite.catalog.records import OURS
from unwrite.cli.forget import forget as forget_command
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import Edit, Guard, Method, Objective

METHODS = catalog.methods()
KINDS = {"objective": Objective, "edit": Edit, "guard": Guard}
every_method = pytest.mark.parametrize("slug", METHODS)
on_texts = pytest.mark.parametrize("slug", ON_TEXTS)


@every_method
def test_is_a_frozen_dataclass_of_its_kind(slug):
    cls = METHODS[slug].load()
    assert issubclass(cls, KINDS[METHODS[slug].kind])
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    method = made(slug)
    assert hash(method) == hash(made(slug))
    assert pickle.loads(pickle.dumps(method)) == method


@every_method
def test_every_field_has_a_default_a_line_and_a_name_that_no_flag_has(slug):
    cls = METHODS[slug].load()
    cls()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert [name for name in fields if name not in documented] == []
    assert not fields & (set(inspect.signature(forget_command).parameters) - {"fields"})


@pytest.mark.parametrize("slug", [slug for slug, record in METHODS.items() if record.package == OURS])
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(METHODS[slug].module)
    assert METHODS[slug].paper.removeprefix("arXiv ").split()[0] in module.__doc__


@every_method
def test_every_number_refuses_nan_and_every_choice_an_unknown_word(slug):
    cls = METHODS[slug].load()
    for field in dataclasses.fields(cls):
        if isinstance(field.default, float):
            with pytest.raises(MethodError, match=f"{field.name} is nan"):
                cls(**{field.name: float("nan")})
        if isinstance(field.default, str):
            with pytest.raises(MethodError, match="'nonsense'"):
                cls(**{field.name: "nonsense"})


@pytest.mark.parametrize("slug", ON_TEXTS)
def test_every_field_without_a_range_check_is_a_known_one(slug):
    """Booleans, seeds, names and sentences have no range; whatever else is new needs a refusal."""
    free = {"inner", "raw", "refusals", "control_seed", "stored", "cache", "target", "substitute", "reject_text"}
    free |= {"classifier", "forget_label", "token_classifier", "fresh", "official_statistics", "mask"}
    cls = METHODS[slug].load()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        # A default that is left to the model or the rows is None; what may be given is in the hint.
        kind = next((one for one in typing.get_args(hints[field.name]) if field.default is None), type(field.default))
        bad = {int: -1, float: float("nan"), str: "nonsense"}.get(kind)
        if field.name in free:
            continue
        with pytest.raises(MethodError):
            cls(**{field.name: bad})


def test_method_is_no_class_to_make():
    with pytest.raises(TypeError, match="abstract"):
        Method()


@on_texts
@pytest.mark.parametrize("name", ["forget", "retain"])
def test_refuses_an_empty_set(slug, name, forget, retain, tokenizer, tiny_llama):
    given = {"forget": forget, "retain": retain, name: Examples([], name)}
    with pytest.raises(DataError, match=rf"the {name} set is empty. .*at least one row to"):
        apply(slug, tiny_llama, **given, tokenizer=tokenizer)


@on_texts
def test_refuses_rows_in_both_sets_and_names_the_first_and_their_number(slug, forget, retain, tokenizer, tiny_llama):
    both = Examples([*retain, forget[2], forget[5]], "retain")
    with pytest.raises(DataError, match=r'share 2 rows \(first: forget.jsonl:3, "what .* was cora one \?"\)'):
        apply(slug, tiny_llama, forget, both, tokenizer)


@on_texts
def test_allow_overlap_turns_the_refusal_into_a_warning(slug, forget, retain, tokenizer, tiny_llama):
    both = Examples([*retain, forget[2]], "retain")
    with pytest.warns(UserWarning, match="share 1 rows"):
        apply(slug, tiny_llama, forget, both, tokenizer, {"max_steps": 1}, allow_overlap=True)


@on_texts
def test_refuses_holdout_rows_in_the_forget_set(slug, forget, retain, tokenizer, tiny_llama):
    with pytest.raises(DataError, match="forget and holdout share 16 rows"):
        apply(slug, tiny_llama, forget, retain, tokenizer, holdout=forget)


@on_texts
def test_refuses_a_tokenizer_without_a_pad_token(slug, forget, retain, tokenizer, tiny_llama):
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"no pad token. Set one: tokenizer.pad_token = tokenizer.eos_token"):
        apply(slug, tiny_llama, forget, retain, tokenizer)


@on_texts
def test_refuses_rows_whose_labels_are_all_masked(slug, retain, tokenizer, tiny_llama):
    long = Examples([Example(question="what is the " * 200 + "?", answer="red", source="forget.jsonl:1")], "forget")
    with pytest.raises(DataError, match=r"forget\.jsonl:1: the prompt has \d+ tokens and leaves no room"):
        apply(slug, tiny_llama, long, retain, tokenizer)


@on_texts
def test_needs_a_retain_set_exactly_if_the_catalogue_says_so(slug, forget, tokenizer, tiny_llama):
    if "retain set" in METHODS[slug].needs:
        with pytest.raises(DataError, match="retain set"):
            apply(slug, tiny_llama, forget, None, tokenizer)
    else:
        apply(slug, tiny_llama, forget, None, tokenizer, {"max_steps": 1})
