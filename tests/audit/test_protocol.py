"""One protocol for every kind of data: references by role, one evaluate, and a kind of its own in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from helpers.tiny import make_examples
from unwrite import catalog
from unwrite.audit import (
    Attack,
    Exhibit,
    Headline,
    ImageContext,
    Metric,
    Relearn,
    Report,
    Score,
    Suite,
    TextContext,
    evaluate,
)
from unwrite.audit import kinds as kinds_module
from unwrite.audit.context import Context, PassSettings
from unwrite.audit.images import context as image_context_module
from unwrite.audit.images.metrics import AverageGap, FeatureLikeness
from unwrite.audit.report.parts import Picture, Remark
from unwrite.audit.suites.known import suite_for
from unwrite.audit.text import context as text_context_module
from unwrite.audit.text.basic import Perplexity, Probability, RougeRecall
from unwrite.data import ForgetSplit, Images, Poisoning, split_identified
from unwrite.data.images.splits import split_by_class, split_by_target
from unwrite.errors import MethodError, ModelError, naming


def images(values: bool = False) -> Images:
    pixels = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, targets=pixels.mean((1, 2, 3))) if values else Images(pixels, labels=torch.arange(40) % 2)


def image_split() -> Any:
    data = images()
    return split_by_class(data.subset(range(30)), 1, test=data.subset(range(30, 40)), holdout=None)


def net(seed: int = 0, act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), act or nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


# -- references -------------------------------------------------------------------------------------------------------


def test_a_metric_without_the_model_it_needs_is_refused_by_name(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="forget_perplexity needs the model before unlearning: pass before"):
        Perplexity()(TextContext(model, split, tokenizer))
    context = ImageContext(net(), image_split())
    with pytest.raises(MethodError, match="avg_gap needs a retrained model: pass oracle"):
        AverageGap()(context, {"before": context})
    with (
        naming("flags"),
        pytest.raises(MethodError, match="forget_cka needs the model before unlearning: pass --before"),
    ):
        FeatureLikeness()(context)


def test_a_suite_that_compares_is_refused_before_the_first_forward(
    tokenizer: Any, split: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_context_module, "score_answers", None)
    needed = "suite 'membership' needs a retrained model or the model before unlearning: pass oracle or before"
    with pytest.raises(MethodError, match=needed):
        evaluate(model, split, tokenizer=tokenizer, suite="membership")


def test_in_a_report_a_metric_that_lacks_a_model_says_which() -> None:
    alone = evaluate(net(), image_split()).columns["after"]
    assert (alone["zrf"].value, alone["zrf"].note) == (None, "Needs an untrained model.")
    assert alone["avg_gap"].note == "Needs a retrained model."
    assert alone["retain_cka"].note == "Needs the model before unlearning."


def test_before_and_oracle_are_short_for_references(tokenizer: Any, split: Any, model: Any, target: Any) -> None:
    mine = Suite("mine", [Probability("forget"), Perplexity()])
    short = evaluate(model, split, tokenizer=tokenizer, suite=mine, before=target)
    whole = evaluate(model, split, tokenizer=tokenizer, suite=mine, references={"before": target, "oracle": None})
    assert whole.columns == short.columns
    assert whole.roles == ["before", "after"]


def test_columns_stand_in_the_same_order_whatever_was_given_first() -> None:
    control, before, oracle = (net(seed) for seed in (1, 2, 3))
    given = {"control": control, "oracle": oracle, "before": before}
    assert evaluate(net(), image_split(), references=given).roles == ["before", "after", "oracle", "head only"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"before": net(1), "references": {"before": net(2)}}, "'before' is given twice"),
        ({"references": {"after": net(1)}}, "'after' is given twice"),
        ({"references": {"contrl": net(1)}}, "unknown reference 'contrl'. Did you mean 'control'"),
        ({"tokenizer": object()}, "tokenizer has no meaning for images"),
        ({"max_length": 8}, "max_length has no meaning for images"),
        ({"attacks": [Relearn()]}, "the attack relearning is for text; this split is of images"),
        ({"suite": "tofu"}, "suite 'tofu' is for text; this split is of images"),
        ({"suite": Suite("none", [], of="images")}, "no metric of suite 'none' applies"),
        (
            {"suite": Suite("odd", [Probability()], of="images")},
            "forget_probability measures text, and class 1 is other",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_has_no_meaning_for_images_is_refused_before_a_forward(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageContext, "_forward", None)
    monkeypatch.setattr(image_context_module, "vision_layout", None)
    with pytest.raises(MethodError, match=said):
        evaluate(net(), image_split(), **given)


def test_a_reference_of_images_is_refused_for_texts(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="unknown reference 'control'"):
        evaluate(model, split, tokenizer=tokenizer, references={"control": net()})


def test_two_references_of_one_object_are_refused() -> None:
    twin = net(1)
    with pytest.raises(ModelError, match="oracle and random are one object"):
        evaluate(net(), image_split(), oracle=twin, references={"random": twin})


# -- passes -----------------------------------------------------------------------------------------------------------


def test_a_second_audit_of_an_image_model_makes_no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(net(), image_split(), before=net(1), oracle=net(2))

    def no_forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward ran")

    monkeypatch.setattr(nn.Sequential, "forward", no_forward)
    second = evaluate(net(), image_split(), before=net(1), oracle=net(2))
    assert second.columns == first.columns
    assert second.pictures == first.pictures


def test_an_image_model_that_must_not_be_kept_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ImageContext(net(), image_split()).logits("forget")
    monkeypatch.setattr(ImageContext, "_forward", lambda self, rows: pytest.fail("a forward ran"))
    ImageContext(net(), image_split()).logits("forget")
    with pytest.raises(pytest.fail.Exception):
        ImageContext(net(), image_split(), cached=False).logits("forget")
    with pytest.raises(pytest.fail.Exception):
        ImageContext(net(1), image_split()).logits("forget")
    with pytest.raises(pytest.fail.Exception):
        ImageContext(net(), image_split()).logits("retain")
    with pytest.raises(pytest.fail.Exception):  # the same weights, another function
        ImageContext(net(act=nn.Tanh()), image_split()).logits("forget")


def test_the_pass_that_gives_moments_goes_first_and_serves_the_others(
    tokenizer: Any, split: Any, model: Any, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    scored = text_context_module.score_answers

    def counted(*args: Any, **settings: Any) -> Any:
        passes.append(settings["moments"])
        return scored(*args, **settings)

    monkeypatch.setattr(text_context_module, "score_answers", counted)
    evaluate(model, split, tokenizer=tokenizer, suite="membership", before=target)
    assert passes.count(True) == 4  # forget and holdout rows of both models
    assert passes.count(False) == 0


# -- a kind of its own ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sounds:
    """A third kind of split: numbers, some of which are to be forgotten."""

    forget: tuple[float, ...]
    retain: tuple[float, ...]
    name: str = "sounds"
    hash: str = "5e"


class SoundContext(Context[Sounds]):
    """A model takes a number to a number."""

    kind: ClassVar[str] = "sounds"
    columns: ClassVar[Mapping[str, str | None]] = {**Context.columns, "silent": None}
    manner: ClassVar[str] = "Every model heard the same sounds."

    @classmethod
    def holds(cls, split: object) -> bool:
        return isinstance(split, Sounds)

    @classmethod
    def sets(cls, split: Sounds) -> Mapping[str, Sized]:
        return {"forget": split.forget, "retain": split.retain}

    @classmethod
    def pictures(cls, contexts: Mapping[str, Any]) -> tuple[Picture, ...]:
        return (Picture("Heard", f"By {', '.join(contexts)}."),)


class SoundMetric(Metric[SoundContext]):
    reads: ClassVar[type[Context]] = SoundContext


@dataclass(frozen=True)
class Heard(SoundMetric):
    """Whether the model still hears the forget rows, less what a silent one does."""

    name: ClassVar[str] = "heard"
    better: ClassVar[Any] = "lower"
    needs: ClassVar[tuple[str, ...]] = ("forget",)
    roles: ClassVar[tuple[str, ...]] = ("silent",)

    def measure(self, context: SoundContext, references: Mapping[str, SoundContext]) -> Score:
        silent = references["silent"].model
        return Score.mean("", [context.model(x) - silent(x) for x in context.split.forget], "higher")


@dataclass(frozen=True)
class Missing(SoundMetric):
    """A metric of a set that no such split has."""

    name: ClassVar[str] = "missing"
    needs: ClassVar[tuple[str, ...]] = ("holdout",)

    def measure(self, context: SoundContext, references: Mapping[str, SoundContext]) -> Score:
        raise AssertionError


@dataclass(frozen=True)
class Louder(Attack[SoundContext]):
    """Plays the forget rows louder."""

    reads: ClassVar[type[Context]] = SoundContext
    name: ClassVar[str] = "louder"
    x: ClassVar[str] = "times"
    label: ClassVar[str] = "times as loud"

    def __call__(self, context: SoundContext) -> list[dict[str, float]]:
        return [{"times": t, "forget": context.model(t * context.split.forget[0])} for t in (1.0, 2.0)]

    def remark(self, curves: Mapping[str, list[dict[str, float]]], main: str) -> Remark:
        return Remark(f"played twice as loud it hears {curves[main][-1]['forget']:g}", "bad")


class Microphone(Exhibit):
    reads: ClassVar[type[Context]] = SoundContext

    def provenance(self) -> Mapping[str, str | float]:
        return {"microphone": "an old one"}

    def pictures(self, contexts: Mapping[str, Any]) -> list[Picture]:
        return [Picture("Microphone", f"Before {len(contexts)} models.")]

    def remark(self, report: Report) -> Remark:
        return Remark("the microphone is old")


SOUNDS = Suite(
    "sounds",
    [Heard(), Missing()],
    of="sounds",
    gone=Headline("heard", "lower", noun="sounds"),
    attacks=("louder", "longer"),
)


def double(x: float) -> float:
    return min(1.0, 2 * x)


def half(x: float) -> float:
    return x / 2


def zero(x: float) -> float:
    return 0.0


@pytest.fixture
def sounds(monkeypatch: pytest.MonkeyPatch) -> Sounds:
    monkeypatch.setattr(kinds_module, "CONTEXTS", [*kinds_module.CONTEXTS, SoundContext])
    return Sounds((0.4, 0.5), (0.1,))


def test_a_third_kind_of_data_gets_a_whole_report(sounds: Sounds, tmp_path: Any) -> None:
    beside = {"silent": zero, "microphone": Microphone()}
    report = evaluate(half, sounds, suite=SOUNDS, before=double, references=beside, attacks=[Louder()])
    assert report.roles == ["before", "after"]
    assert report.rows == {"forget": 2, "retain": 1}
    assert {role: report.value("heard", role) for role in report.roles} == pytest.approx(
        {"before": 0.9, "after": 0.225}
    )
    assert report.columns["after"]["heard"].better == "lower"
    assert list(report.columns["after"]) == ["heard"]
    assert report.attacks[0].curves["after"][1] == {"times": 2.0, "forget": 0.4}
    assert [picture.title for picture in report.pictures] == ["Heard", "Microphone"]
    assert report.provenance["microphone"] == "an old one"
    assert report.provenance["silent model"] == "not hashed"
    assert report.summary.removed == "Removed: 2 of the 2 forget sounds it could reproduce before are gone."
    assert "played twice as loud it hears 0.4" in report.summary.sure
    assert "no longer attack was run" in report.summary.sure
    assert "no louder attack" not in report.summary.sure
    assert "the microphone is old" in report.summary.sure
    assert report.summary.sure_mark == "bad"
    assert "Every model heard the same sounds." in report.html()
    report.save(tmp_path)
    assert Report.load(tmp_path) == report


def test_a_third_kind_has_no_default_suite_until_one_is_named(sounds: Sounds) -> None:
    with pytest.raises(MethodError, match="suite 'basic' is for text; this split is of sounds"):
        evaluate(half, sounds)


def test_what_no_kind_holds_is_refused() -> None:
    with pytest.raises(MethodError, match="there is no audit of a Sounds; give a split of text, images"):
        evaluate(half, Sounds((1.0,), (1.0,)))


# -- suites -----------------------------------------------------------------------------------------------------------


def many() -> ForgetSplit:
    """As many rows as probes need."""
    return ForgetSplit(make_examples("forget", 38), make_examples("retain", 8))


@pytest.mark.parametrize("name", [name for name in catalog.suites() if catalog.suite(name).load().gone is not None])
def test_a_suites_headline_is_one_of_its_metrics_with_its_direction(name: str, split: Any) -> None:
    from .test_mufac import persons
    from .test_muse import corpus
    from .test_restor import corruption

    suite = catalog.suite(name).load()
    own = {"muse": corpus, "restor": corruption, "removal": many, "removal-quick": many}
    rows = own[name]() if name in own else split if suite.of == "text" else image_split()
    if name == "vision-regression":
        data = images(values=True)
        rows = split_by_target(data.subset(range(30)), high=0.5, test=data.subset(range(30, 40)), holdout=None)
    if name == "corrective":
        rows = split_identified(
            images().subset(range(30)),
            Poisoning(share=0.5, size=1),
            0.5,
            test=images().subset(range(30, 40)),
            holdout=None,
        )
    if name == "mufac":
        rows = persons()
    metrics = {metric.name: metric for metric in suite.for_split(rows)}
    for headline, panel in ((suite.gone, "forgotten"), (suite.kept, "kept")):
        assert headline is not None
        metric = metrics[headline.metric.split("|")[0]]
        assert (metric.better, metric.panel) == (headline.better, panel)
    axes = suite.on_axes()
    assert axes is not None
    assert set(axes) <= set(metrics)


def test_the_default_suite_is_that_of_the_kind_and_its_targets() -> None:
    assert suite_for("basic", "images", image_split()).name == "vision"
    values = split_by_target(images(values=True), high=0.5, holdout=None)
    assert suite_for("basic", "images", values).name == "vision-regression"
    assert suite_for("basic", "text", None).name == "basic"


def test_settings_reach_the_contexts_of_all_models_alike(tokenizer: Any, split: Any, model: Any, target: Any) -> None:
    suite = Suite("mine", [RougeRecall()], max_new_tokens=3, words="ascii", max_length=64)
    contexts = TextContext.beside({"before": target, "after": model}, split, suite, PassSettings(4, tokenizer))
    assert {role: context.role for role, context in contexts.items()} == {"before": "before", "after": "after"}
    for context in (*contexts.values(), contexts["after"].of(target)):
        assert (context.max_length, context.max_new_tokens, context.words, context.batch_size) == (64, 3, "ascii", 4)
        assert context.split is split
