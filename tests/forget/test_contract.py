"""What every method of the catalogue keeps to, whatever it does inside."""

import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import typing
import warnings

import pytest
import torch
from forgetting import SGD
from peft import PeftModel

import unwrite
from conftest import make_llama
from unwrite import catalog
from unwrite.cli.forget import forget as forget_command
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import Edit, Guard, Method, Objective
from unwrite.runs import hash_model

METHODS = {slug: record for slug, record in catalog.methods().items() if "text" in record.forgets}
# Batches of fewer rows than there are; everything else is as it comes, on a model of three blocks and sixteen rows.
FIELDS = {slug: {"importance_batch": 4} for slug in ("ssd", "lfssd", "random-dampening")}
KINDS = {"objective": Objective, "edit": Edit, "guard": Guard}
every_method = pytest.mark.parametrize("slug", METHODS)


def made(slug):
    return METHODS[slug].load()(**FIELDS.get(slug, {}))


def apply(slug, model, forget, retain, tokenizer, **options):
    args = {**SGD, "max_steps": 2, "per_device_train_batch_size": 4}
    return made(slug).apply(model, forget, retain, processing_class=tokenizer, args=args, **options)


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
def test_every_field_has_a_default_and_a_line_in_a_docstring(slug):
    cls = METHODS[slug].load()
    cls()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    undocumented = [field.name for field in dataclasses.fields(cls) if field.name not in documented]
    assert undocumented == []


@every_method
def test_fields_have_names_that_no_flag_of_the_command_line_has(slug):
    flags = set(inspect.signature(forget_command).parameters) - {"fields"}
    assert not flags & {field.name for field in dataclasses.fields(METHODS[slug].load())}


@every_method
def test_has_its_record_and_its_name_in_the_package(slug):
    cls = METHODS[slug].load()
    assert cls.__name__ == METHODS[slug].name
    assert getattr(unwrite.forget, cls.__name__) is cls
    assert getattr(unwrite, cls.__name__) is cls


@every_method
def test_module_starts_with_the_idea_and_where_it_is_from(slug):
    module = importlib.import_module(METHODS[slug].entry.split(":")[0])
    assert METHODS[slug].paper.removeprefix("arXiv ").split()[0] in module.__doc__


@every_method
def test_refuses_an_empty_forget_set(slug, retain, tokenizer, tiny_llama):
    with pytest.raises(DataError, match=r"the forget set is empty. Give at least one row"):
        apply(slug, tiny_llama, Examples([], "forget"), retain, tokenizer)


@every_method
def test_refuses_an_empty_retain_set(slug, forget, tokenizer, tiny_llama):
    with pytest.raises(DataError, match="the retain set is empty"):
        apply(slug, tiny_llama, forget, Examples([], "retain"), tokenizer)


@every_method
def test_refuses_rows_in_both_sets_and_names_the_first_and_their_number(slug, forget, retain, tokenizer, tiny_llama):
    both = Examples([*retain, forget[2], forget[5]], "retain")
    with pytest.raises(DataError, match=r'share 2 rows \(first: forget.jsonl:3, "what .* was cora one \?"\)'):
        apply(slug, tiny_llama, forget, both, tokenizer)


@every_method
def test_allow_overlap_turns_the_refusal_into_a_warning(slug, forget, retain, tokenizer, tiny_llama):
    both = Examples([*retain, forget[2]], "retain")
    with pytest.warns(UserWarning, match="share 1 rows"):
        apply(slug, tiny_llama, forget, both, tokenizer, allow_overlap=True)


@every_method
def test_refuses_holdout_rows_in_the_forget_set(slug, forget, retain, tokenizer, tiny_llama):
    with pytest.raises(DataError, match="forget and holdout share 16 rows"):
        apply(slug, tiny_llama, forget, retain, tokenizer, holdout=forget)


@every_method
def test_refuses_a_tokenizer_without_a_pad_token(slug, forget, retain, tokenizer, tiny_llama):
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"no pad token. Set one: tokenizer.pad_token = tokenizer.eos_token"):
        apply(slug, tiny_llama, forget, retain, tokenizer)


@every_method
def test_refuses_rows_whose_labels_are_all_masked(slug, retain, tokenizer, tiny_llama):
    long = Examples([Example(question="what is the " * 200 + "?", answer="red", source="forget.jsonl:1")], "forget")
    with pytest.raises(DataError, match=r"forget\.jsonl:1: the prompt has \d+ tokens and leaves no room"):
        apply(slug, tiny_llama, long, retain, tokenizer)


@every_method
def test_a_copy_leaves_the_model_bit_identical(slug, forget, retain, tokenizer, tiny_llama):
    before = hash_model(tiny_llama)
    flags = [parameter.requires_grad for parameter in tiny_llama.parameters()]
    unlearned = apply(slug, tiny_llama, forget, retain, tokenizer, copy=True)
    assert unlearned is not tiny_llama
    assert hash_model(tiny_llama) == before
    assert [parameter.requires_grad for parameter in tiny_llama.parameters()] == flags
    assert not {p.data_ptr() for p in unlearned.parameters()} & {p.data_ptr() for p in tiny_llama.parameters()}


@every_method
def test_what_comes_back_is_a_model_that_generates_and_is_in_evaluation_mode(
    slug, forget, retain, tokenizer, tiny_llama
):
    unlearned = apply(slug, tiny_llama, forget, retain, tokenizer)
    assert not unlearned.training
    ids = torch.tensor([[3, 8, 9, 10]])
    assert unlearned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[1] > 4
    assert torch.isfinite(unlearned(input_ids=ids).logits).all()


@every_method
def test_weights_change_exactly_where_the_catalogue_says_so(slug, forget, retain, tokenizer, tiny_llama):
    before, kind = hash_model(tiny_llama), type(tiny_llama)
    unlearned = apply(slug, tiny_llama, forget, retain, tokenizer)
    assert (hash_model(tiny_llama) != before) == METHODS[slug].weights_changed
    assert type(tiny_llama) is kind
    if METHODS[slug].kind != "guard":
        assert unlearned is tiny_llama


@pytest.mark.parametrize("slug", [slug for slug, record in METHODS.items() if record.kind == "objective"])
def test_objectives_train_adapters_and_give_the_adapted_model(slug, forget, retain, tokenizer, tiny_llama):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    assert isinstance(apply(slug, tiny_llama, forget, retain, tokenizer, peft_config=config), PeftModel)


@every_method
def test_needs_a_retain_set_exactly_if_the_catalogue_says_so(slug, forget, tokenizer, tiny_llama):
    if "retain set" in METHODS[slug].needs:
        with pytest.raises(DataError, match="retain set"):
            apply(slug, tiny_llama, forget, None, tokenizer)
    else:
        apply(slug, tiny_llama, forget, None, tokenizer)


@every_method
def test_every_number_refuses_nan(slug):
    cls = METHODS[slug].load()
    for field in dataclasses.fields(cls):
        if isinstance(field.default, float):
            with pytest.raises(MethodError, match=f"{field.name} is nan"):
                cls(**{field.name: float("nan")})


@every_method
def test_every_choice_refuses_an_unknown_word(slug):
    cls = METHODS[slug].load()
    for field in dataclasses.fields(cls):
        if isinstance(field.default, str):
            with pytest.raises(MethodError, match=f"{field.name} is 'nonsense'; use"):
                cls(**{field.name: "nonsense"})


@pytest.mark.parametrize("slug", [slug for slug, record in METHODS.items() if record.kind == "objective"])
@pytest.mark.parametrize("name", ["forget_weight", "retain_weight"])
def test_objectives_refuse_negative_weights(slug, name):
    with pytest.raises(MethodError, match=f"{name} is -1.0; it must be a finite number, at least 0"):
        METHODS[slug].load()(**{name: -1.0})


def test_every_field_without_a_range_check_is_a_known_one():
    """Booleans, seeds and sentences have no range; whatever else is new needs a refusal."""
    free = {"raw", "refusals", "control_seed", "stored", "cache"}
    for record in METHODS.values():
        cls = record.load()
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            # A default that is left to the model or the rows is None; what may be given is in the hint.
            kind = next(
                (one for one in typing.get_args(hints[field.name]) if field.default is None), type(field.default)
            )
            bad = {int: -1, float: float("nan"), str: "nonsense"}.get(kind)
            if field.name in free:
                continue
            with pytest.raises(MethodError):
                cls(**{field.name: bad})


def packages():
    return [unwrite, *(
        importlib.import_module(f"unwrite.{module.name}")
        for module in pkgutil.iter_modules(unwrite.__path__)
        if module.ispkg and module.name not in ("cli", "web")
    )]  # fmt: skip


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_no_module_takes_the_place_of_a_public_name(package):
    """Importing a module binds it in its package, over a function of the same name unless that is bound first."""
    for module in pkgutil.iter_modules(package.__path__):
        if module.name in getattr(package, "__all__", ()):
            importlib.import_module(f"{package.__name__}.{module.name}")
            assert not inspect.ismodule(getattr(package, module.name))


def test_no_public_function_has_the_name_of_a_family():
    families = {module.name for module in pkgutil.iter_modules(unwrite.__path__) if module.ispkg}
    for package in packages():
        assert not families & set(getattr(package, "__all__", ())), package.__name__


@pytest.mark.parametrize("name", [name for name in unwrite.__all__ if name != "__version__"])
def test_every_public_name_is_there(name):
    assert getattr(unwrite, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unwrite.nonsense
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = unwrite.Nonsense


def test_method_is_no_class_to_make():
    with pytest.raises(TypeError, match="abstract"):
        Method()


def test_alpha_zero_of_the_task_vector_changes_nothing(forget, tokenizer, tiny_llama):
    from unwrite.forget import TaskVector

    before = hash_model(tiny_llama)
    args = {**SGD, "max_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TaskVector(alpha=0.0).apply(tiny_llama, forget, processing_class=tokenizer, args=args)
    assert hash_model(tiny_llama) == before


def test_task_vector_goes_against_the_fine_tuning_direction(forget, tokenizer):
    from unwrite.data.text.encoding import encode_all
    from unwrite.forget import TaskVector
    from unwrite.scoring import score_answers

    model, rows = make_llama(), encode_all(forget, tokenizer)
    before = sum(score.nll for score in score_answers(model, rows, pad_id=0))
    args = {**SGD, "max_steps": 5, "learning_rate": 0.1}
    TaskVector(alpha=1.0).apply(model, forget, processing_class=tokenizer, args=args)
    assert sum(score.nll for score in score_answers(model, rows, pad_id=0)) > before


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_refuses_a_task_vector_of_a_tied_head_alone(forget, tokenizer, tiny_llama):
    """A shared weight has two changes then, and no single direction to go against."""
    from peft import LoraConfig

    from unwrite.forget import TaskVector

    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    before = hash_model(tiny_llama)
    config = LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.raises(MethodError, match=r"share one weight.*out of its target_modules"):
        TaskVector().apply(
            tiny_llama, forget, processing_class=tokenizer, args={**SGD, "max_steps": 1}, peft_config=config
        )
    assert hash_model(tiny_llama) == before
