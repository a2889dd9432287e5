"""Requirements: what is asked of an audit's figures, what they were, and whether they keep it."""

import json
import math

import pytest

from unwrite.audit import Quantise, Relearn, Report, evaluate
from unwrite.audit.base import Attack, Score
from unwrite.audit.report.parts import AttackResult, RequirementOutcome
from unwrite.audit.requirements import Requirement, check_requirements, outcomes, parse_requirements
from unwrite.audit.suites.basic import BASIC
from unwrite.audit.suites.tofu import ForgetQualityTest
from unwrite.audit.text.context import TextContext
from unwrite.data import ForgetSplit
from unwrite.errors import MethodError, RunError, naming

from conftest import make_examples, make_llama, make_tokenizer  # isort: skip


def report(columns, attacks=()):
    """One with these values by role and metric."""
    names = dict.fromkeys(name for values in columns.values() for name in values)
    scores = {
        role: {name: Score(name, value, [], "lower") for name, value in values.items()}
        for role, values in columns.items()
    }
    metrics = [{"name": name, "better": "lower", "about": "", "panel": "forgotten"} for name in names]
    return Report("basic", "rows", {"forget": 4}, metrics, scores, attacks=list(attacks))


def relearning(**curves):
    points = {
        role: [{"step": 4.0 * n, "unseen": value, "shown": 2 * value} for n, value in enumerate(values)]
        for role, values in curves.items()
    }
    return AttackResult("relearning", "", "step", "steps", points, None, "unseen")


def outcome(text, *given):
    (only,) = outcomes(parse_requirements(text), report(*given))
    return only


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("forget_probability<=0.1x", Requirement("forget_probability", "<=", 0.1, True)),
        ("utility>=0.95x", Requirement("utility", ">=", 0.95, True)),
        ("relearn<=0.15", Requirement("relearn", "<=", 0.15)),
        ("  relearn.shown  <=  1e-1 ", Requirement("relearn.shown", "<=", 0.1)),
        ("min_k++_20>=-0.5", Requirement("min_k++_20", ">=", -0.5)),
        ("a>=1 x", Requirement("a", ">=", 1.0, True)),
    ],
)
def test_a_requirement_is_read_as_it_is_written(text, requirement):
    assert parse_requirements(text) == (requirement,)
    assert parse_requirements(str(requirement)) == (requirement,)


def test_commas_separate_requirements_and_their_order_is_kept():
    assert [str(one) for one in parse_requirements("b<=1, a>=0.5x,,a<=2")] == ["b<=1", "a>=0.5x", "a<=2"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no requirement"),
        (" , ", "names no requirement"),
        ("utility", "'utility' is no requirement"),
        ("utility<0.5", "is no requirement"),
        ("utility==0.5", "is no requirement"),
        ("<=0.5", "is no requirement"),
        ("utility>=", "is no requirement"),
        ("utility>=x", "is no requirement"),
        ("utility>=a lot", "is no requirement"),
        ("a<=1<=2", "is no requirement"),
        ("a<=nan", "the bound of a is nan; it must be finite"),
        ("a<=inf", "the bound of a is inf; it must be finite"),
        ("a<=-0.1x", "the bound of a is -0.1; it must be at least 0"),
        ("a<=1,b<=1,a<=2", "bounds a by <= twice"),
    ],
)
def test_what_is_no_requirement_is_refused_in_one_line(text, why):
    with pytest.raises(MethodError, match=f"^--require.*{why}") as error, naming("flags"):
        parse_requirements(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("a<=0.5", 0.4, True), ("a<=0.5", 0.5, True), ("a<=0.5", 0.6, False),
        ("a>=0.5", 0.4, False), ("a>=0.5", 0.5, True), ("a>=0.5", 0.6, True),
    ],
)  # fmt: skip
def test_a_bound_itself_is_allowed(text, value, met):
    assert outcome(text, {"after": {"a": value}}).met is met


def test_an_x_is_a_share_of_what_was_before():
    columns = {"before": {"a": 0.4, "b": 0.5}, "after": {"a": 0.05, "b": 0.4}}
    assert outcome("a<=0.1x", columns) == RequirementOutcome("a<=0.1x", "<=", 0.05, 0.1 * 0.4, False)
    assert outcome("b>=0.5x", columns) == RequirementOutcome("b>=0.5x", ">=", 0.4, 0.25, True)


def test_the_column_is_the_audited_model_and_not_the_oracle():
    columns = {"before": {"a": 0.9}, "oracle": {"a": 0.0}, "after": {"a": 0.8}}
    assert outcome("a<=0.5", columns).value == 0.8


def test_an_attack_counts_at_the_worst_point_of_its_curve():
    attack = relearning(before=[0.6, 0.9, 0.8], after=[0.05, 0.3, 0.2])
    columns = {"before": {}, "after": {}}
    assert outcome("relearn<=0.25", columns, [attack]) == RequirementOutcome("relearn<=0.25", "<=", 0.3, 0.25, False)
    assert outcome("relearning<=0.3", columns, [attack]).met
    assert outcome("relearn>=0.1", columns, [attack]).value == 0.05
    assert outcome("relearn.shown<=1", columns, [attack]).value == 0.6
    assert outcome("relearn<=0.5x", columns, [attack]).limit == 0.45


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_could_not_be_measured_meets_nothing(value):
    columns = {"before": {"a": 0.5}, "after": {"a": value}}
    for text in ("a<=1", "a>=0", "a<=1x"):
        assert outcome(text, columns).met is False
        assert "not measured" in outcome(text, columns).figures
    reverse = {"before": {"a": value}, "after": {"a": 0.5}}
    assert outcome("a<=1x", reverse) == RequirementOutcome("a<=1x", "<=", 0.5, None, False)
    assert outcome("relearn<=1", {"after": {}}, [relearning(after=[0.1, math.nan])]).met is False


def test_a_report_without_requirements_meets_them_and_one_unmet_is_enough():
    plain = report({"after": {"a": 0.5}})
    assert plain.met
    one, other = RequirementOutcome("a<=1", "<=", 0.5, 1.0, True), RequirementOutcome("a<=0", "<=", 0.5, 0.0, False)
    for given, met in (((one,), True), ((one, other), False)):
        assert Report(**{**vars(plain), "outcomes": given}).met is met


SPLIT = ForgetSplit(forget=make_examples("forget", 4), retain=make_examples("retain", 4))
ATTACKS = (Relearn(), Quantise())


def checked(text, references=("before",), attacks=ATTACKS):
    check_requirements(parse_requirements(text), BASIC.for_split(SPLIT), attacks, references)


@pytest.mark.parametrize(
    "text", ["forget_probability<=0.1x,utility>=0.95x,relearn<=0.15", "quantise.kept>=0.5,quantisation<=1"]
)
def test_figures_of_the_suite_and_of_its_attacks_can_be_required(text):
    checked(text)


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("forget_probabilty<=1", {}, "unknown figure 'forget_probabilty'. Did you mean 'forget_probability'"),
        ("relearn<=1", {"attacks": ()}, "unknown figure 'relearn'"),
        ("relearn.sown<=1", {}, "relearn.sown is no figure of relearning. Known: relearn.unseen, relearn.shown"),
        ("utility>=0.9x", {"references": ()}, "utility>=0.9x needs the model before unlearning"),
    ],
)
def test_a_requirement_that_will_have_no_figure_is_refused_before_anything_is_measured(text, more, why):
    with pytest.raises(MethodError, match=why.replace(".", r"\.")):
        checked(text, **more)


def test_a_figure_that_needs_an_oracle_is_refused_without_one():
    quality = ForgetQualityTest()
    asked = parse_requirements(f"{quality.name}>=0.05")
    check_requirements(asked, [quality], (), ("before", "oracle"))
    with pytest.raises(MethodError, match=f"{quality.name} needs .*oracle"):
        check_requirements(asked, [quality], (), ("before",))


def test_an_attack_that_judges_no_series_wants_one_named():
    class Silent(Attack[TextContext]):
        reads, name, x, label, series = TextContext, "silent", "n", "n", ("a", "b")

        def __call__(self, context):
            return []

    checked("silent.a<=1", attacks=(Silent(),))
    with pytest.raises(MethodError, match=r"silent is no figure of silent\. Known: silent\.a, silent\.b"):
        checked("silent<=1", attacks=(Silent(),))


def test_an_audit_says_what_became_of_its_requirements_and_keeps_it(tmp_path):
    asked = {"tokenizer": make_tokenizer(), "before": make_llama(0), "attacks": [Quantise()]}
    audit = evaluate(make_llama(1), SPLIT, require="forget_probability<=1,forget_probability>=2x,quantise<=1", **asked)
    assert [one.met for one in audit.outcomes] == [True, False, True]
    assert not audit.met
    assert audit.outcomes[0].value == audit.value("forget_probability")
    assert audit.outcomes[1].limit == 2 * audit.value("forget_probability", "before")
    audit.save(tmp_path)
    assert Report.load(tmp_path).outcomes == audit.outcomes
    page = (tmp_path / "report.html").read_text()
    assert "Not every requirement is met." in page
    assert "forget_probability&gt;=2x" in page
    plain = evaluate(make_llama(1), SPLIT, **asked)
    assert plain.outcomes == ()
    assert "Required" not in plain.html()


def test_an_audit_refuses_a_requirement_before_its_first_forward(monkeypatch):
    model = make_llama(1)
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("a forward was run"))
    with pytest.raises(MethodError, match="unknown figure 'nothing'"):
        evaluate(model, SPLIT, tokenizer=make_tokenizer(), require="nothing<=1")


def test_outcomes_that_are_none_are_refused_where_a_report_is_read(tmp_path):
    report({"after": {"a": 0.5}}).save(tmp_path)
    file = tmp_path / "report.json"
    stored = json.loads(file.read_text())
    for odd in ([{"text": 3}], [{"text": 3, "relation": "<=", "value": 1.0, "limit": 1.0, "met": True}], 5):
        file.write_text(json.dumps({**stored, "outcomes": odd}))
        with pytest.raises(RunError, match="damaged"):
            Report.load(tmp_path)
