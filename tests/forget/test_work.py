"""The work of every kind of data: what it is given, what may be read of it, and what it refuses by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from forgetting import SGD
from torch.nn import functional as F
from toy_works import PICTURES, PIXELS, SHORT, TEXTS, Plain, apply, both_kinds, made, net, untouched

from conftest import make_llama, make_tokenizer
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import NPO, RMU, SSD, ULD, Edit, GradientAscent, Objective, Paired, UnlearnArguments
from unwrite.forget.engine.images.arguments import ImageArguments
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.engine.reads import layers_of, reads_outputs
from unwrite.forget.vision.pruned import Pruned
from unwrite.forget.vision.salun import Salient
from unwrite.forget.vision.scrub import SCRUB


@both_kinds
def test_the_arguments_are_made_once_of_what_is_given_and_the_methods_own(kind):
    seen = []

    class Looking(Edit):
        forgets = ("text", "images")
        training = {"learning_rate": 0.25, "seed": 9}  # noqa: RUF012

        def _apply(self, work):
            seen.append(work)
            return work.model

    apply(kind, Looking(), args={"learning_rate": 0.5})
    (work,) = seen
    assert (work.args.learning_rate, work.args.seed, work.args.per_device_train_batch_size) == (0.5, 9, 4)
    assert type(work).arguments(work.args, {"seed": 1}) is work.args


def test_a_model_for_images_is_where_the_arguments_say_before_a_method_begins(monkeypatch):
    monkeypatch.setattr(ImageWork, "layout", None)  # nothing can be computed there
    places: list[str] = []

    class Looking(Edit):
        forgets = ("images",)

        def _apply(self, work):
            places.append(work.device.type)
            return work.model

    model = net()
    apply("images", Looking(), model, args={"device": "meta"}, copy=True)
    apply("images", Looking(), model)
    assert places == ["meta", "cpu"]


@pytest.mark.parametrize("read", ["outputs", "features"])
def test_what_is_read_of_pictures_is_read_in_evaluation_mode_and_holds_no_graph(read):
    modes: list[tuple[bool, bool]] = []

    class Looking(Edit):
        forgets = ("images",)

        def _apply(self, work):
            work.model.train()
            work.model.register_forward_hook(
                lambda module, args, output: modes.append((module.training, torch.is_grad_enabled()))
            )
            assert not getattr(work, read)(work.model, work.forget, 2).requires_grad
            assert work.model.training
            return work.model

    apply("images", Looking())
    assert {*modes} == {(False, False)}


def test_what_wraps_a_method_has_that_ones_arguments():
    inner = SCRUB()
    assert Salient(inner=inner).defaults() == Pruned(inner=Salient(inner=inner)).defaults() == SCRUB.training


@both_kinds
def test_what_is_no_model_is_refused_and_so_is_what_describes_no_adapters(kind):
    with pytest.raises(ModelError, match="the model is str, not a torch module"):
        apply(kind, GradientAscent(), "smollm2-135m")
    with pytest.raises(MethodError, match="adapters"):
        apply(kind, GradientAscent(), untouched(kind), peft_config={"r": 4})


def test_rows_in_two_sets_are_never_allowed_of_images():
    with pytest.raises(MethodError, match="allow_overlap is for texts"):
        apply("images", GradientAscent(), allow_overlap=True)


@both_kinds
def test_a_work_without_retain_rows_says_so_where_they_are_needed(kind):
    rows, model = (TEXTS[0], make_llama()) if kind == "text" else (PICTURES, net())
    with pytest.raises(DataError, match=r"there is no retain set\. Give the rows to keep"):
        _ = NPO().work(model, rows).retained


# --- reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("text", "nl", r"Plain on text: unknown name in reads 'nl'\. Did you mean 'nll'\?"),
        ("text", "referense logits", r"'referense logits'\. Did you mean 'reference logits'\?"),
        ("text", "reference retain nll", r"'reference retain nll'\. Did you mean"),
        ("text", "features", r"Plain on text: unknown name in reads 'features'"),
        ("text", "hiden:1", r"'hiden:1'\. Did you mean 'hidden:<layer>'\?"),
        ("text", "hidden:<layer>", r"unknown name in reads 'hidden:<layer>'"),
        ("text", "hidden:3", r"reads 'hidden:3', but the model has 3 blocks\. Use hidden:0 to hidden:2"),
        ("text", "hidden:-1", r"reads 'hidden:-1', but the model has 3 blocks"),
        ("text", "reference hidden:9", r"reads 'reference hidden:9', but the model has 3 blocks"),
        ("text", "hidden:last", r"reads 'hidden:last', but the model has 3 blocks"),
        ("images", "nlll", r"Plain on images: unknown name in reads 'nlll'\. Did you mean 'nll'\?"),
        ("images", "alternate nll", r"Plain on images: unknown name in reads 'alternate nll'"),
        ("images", "hidden:0", r"Plain on images: unknown name in reads 'hidden:0'"),
        ("images", "reference blocks", r"unknown name in reads 'reference blocks'"),
    ],
)
def test_a_name_in_reads_that_a_kind_of_data_has_not_is_refused_before_the_model_is_asked(kind, name, message):
    with pytest.raises(MethodError, match=message):
        apply(kind, Plain(names=("nll", name)), untouched(kind))


@both_kinds
def test_a_training_inside_a_method_refuses_them_too(kind):
    rows = TEXTS if kind == "text" else (PICTURES.subset(range(6)), PICTURES.subset(range(6, 12)))
    model = made(kind)
    work = GradientAscent().work(model, *rows, processing_class=make_tokenizer() if kind == "text" else None)
    with pytest.raises(MethodError, match=f"Plain on {kind}: unknown name in reads 'nlll'"):
        work.train(Plain(names=("nlll",)))
    assert all(torch.equal(tensor, made(kind).state_dict()[name]) for name, tensor in model.state_dict().items())


def test_logits_of_the_model_before_are_no_reason_to_compute_those_of_the_model_as_it_is():
    assert reads_outputs({"hidden:1", "retain nll"})
    assert not reads_outputs({"hidden:1", "reference nll", "reference logits"})


@pytest.mark.parametrize("wrap", [lambda inner: Salient(inner=inner), lambda inner: Pruned(inner=inner)])
def test_a_misspelt_name_of_a_wrapped_objective_is_refused_too(wrap):
    with pytest.raises(MethodError, match="Plain on images: unknown name in reads 'nlll'"):
        apply("images", wrap(Plain(names=("nlll",))), untouched("images"))


@pytest.mark.parametrize(
    "wrap",
    [lambda inner: inner, lambda inner: Salient(inner=inner), lambda inner: Pruned(inner=inner, scope="weights")],
)
def test_an_objective_is_fitted_to_the_model_before_its_reads_are_looked_at(wrap):
    class Fitting(Plain):
        def fitted(self, model):
            return replace(self, names=("nll",))

    apply("images", wrap(Fitting(names=("what the model has",))))
    work = Plain().work(net(), PICTURES)
    work.train(Fitting(names=("what the model has",)))


def test_other_answers_that_are_read_and_not_given_are_refused():
    with pytest.raises(MethodError, match="Plain reads 'alternate nll', but its `alternates` gives no other answers"):
        apply("text", Plain(names=("alternate nll",)), untouched("text"))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("text", ("nll", "token counts", "reference token counts", "logits", "reference logits", "hidden:2")),
        ("text", ("nll", "logits")),
        ("text", ("nll", "retain", "reference hidden:0", "retain logits", "reference retain logits")),
        ("images", ("nll", "token counts", "features", "blocks", "retain", "reference features", "reference logits")),
    ],
)
def test_what_is_read_is_there(kind, names):
    class Reading(Plain):
        def loss(self, batch):
            forget, retain = batch["forget"], batch.retain
            assert (retain is not None) == any("retain" in name or "hidden" in name for name in names)
            assert (forget.reference_logits is not None) == ("reference logits" in names or kind == "images")
            if kind == "text":
                assert set(forget.hidden) == set(layers_of(names))
                assert retain is None or set(retain.reference_hidden) == set(layers_of(names, reference=True))
                assert retain is None or (retain.reference_logits is not None) == ("reference retain logits" in names)
            else:
                assert forget.features is not None
                assert forget.reference_features is not None
            assert forget.tokens.min() >= 1
            return super().loss(type(batch)(forget=forget))

    apply(kind, Reading(names=names))


@both_kinds
@pytest.mark.parametrize("name", ["retain nll", "retain logits", "reference retain logits"])
def test_what_there_is_of_retain_rows_alone_needs_some(kind, name):
    assert Plain(names=(name,)).needs_retain
    with pytest.raises(DataError, match="Plain trains on retain rows too, but there is no retain set"):
        apply(kind, Plain(names=(name,)), untouched(kind), retain=None)
    assert not Plain(names=("nll", "retain")).needs_retain


@both_kinds
def test_arguments_of_another_kind_of_data_are_refused(kind):
    other, own = {"text": ("ImageArguments", "UnlearnArguments"), "images": ("UnlearnArguments", "ImageArguments")}[
        kind
    ]
    given = {"ImageArguments": ImageArguments, "UnlearnArguments": UnlearnArguments}[other]()
    rows, model = (TEXTS[0], untouched(kind)) if kind == "text" else (PICTURES, untouched(kind))
    with pytest.raises(MethodError, match=f"pass {own}, or a dict of settings"):
        GradientAscent().apply(model, rows, processing_class=make_tokenizer(), args=given)


def test_blocks_before_unlearning_are_of_retain_rows_and_none_without_any():
    class Reading(Plain):
        def loss(self, batch):
            assert batch.retain is None
            assert batch["forget"].reference_hidden == {}
            return super().loss(batch)

    apply("text", Reading(names=("nll", "reference hidden:0")), retain=None)


def test_a_retain_term_is_read_like_anything_else():
    assert NPO(retain_loss="none").needed() == {"nll", "reference nll"}
    assert NPO(retain_loss="nll").needed() == {"nll", "reference nll", "retain nll"}
    assert NPO(retain_loss="kl").needed() == {"nll", "reference nll", "retain logits", "reference retain logits"}
    assert RMU(layer=1, retain_loss="nll").needed() == {"hidden:1", "reference hidden:1", "retain nll"}
    assert not hasattr(Objective, "retain_loss")
    assert not issubclass(SCRUB, Paired)


@both_kinds
def test_a_work_says_how_its_rows_go_into_the_model_and_what_loss_they_have(kind):
    model = made(kind)
    rows = TEXTS[0] if kind == "text" else PICTURES
    work = SSD().work(model, rows, processing_class=make_tokenizer() if kind == "text" else None)
    batches = list(work.batches(work.encoded(rows), 5))
    losses = torch.cat([work.row_loss(model, batch) for batch in batches])
    assert len(losses) == len(rows)
    if kind == "images":
        torch.testing.assert_close(losses, F.cross_entropy(model(PIXELS), PICTURES.labels, reduction="none"))
    else:
        assert [len(batch[1]) for batch in batches] == [5, 3]


def test_a_work_fits_what_it_trains_to_its_model():
    model = make_llama()
    before, last = model.model.layers[1].mlp.down_proj.weight.detach().clone(), model.model.layers[2].state_dict()
    last = {name: tensor.clone() for name, tensor in last.items()}
    args = {**SGD, **SHORT, "learning_rate": 10.0}
    RMU().work(model, *TEXTS, processing_class=make_tokenizer(), args=args).train(RMU())  # layer 1, of three blocks
    assert not torch.equal(model.model.layers[1].mlp.down_proj.weight, before)
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.model.layers[2].state_dict().items())


def test_guards_and_edits_get_the_work_whole(monkeypatch):
    works: list[Any] = []
    monkeypatch.setattr(ULD, "_apply", lambda self, work: works.append(work) or work.model)
    model = make_llama()
    apply("text", ULD(), model, recipe="the recipe", callbacks=["callback"])
    (work,) = works
    assert (work.model, work.recipe, work.callbacks, work.retain) == (model, "the recipe", ["callback"], TEXTS[1])
    assert work.tokenizer is work.processing_class
