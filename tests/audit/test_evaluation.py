"""One audit end to end: columns, caching, attacks, refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from unwrite import catalog
from unwrite.audit import Quantise, Relearn, Report, Score, Suite, TextContext, evaluate
from unwrite.audit.text import context as context_module
from unwrite.audit.text.basic import Perplexity, Probability, Repetition, RougeRecall, repetition
from unwrite.data.text.examples import Example, Examples, ForgetSplit
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.scoring import score_answers

from .conftest import tiny_llama


@pytest.fixture(scope="module")
def after(tokenizer: Any) -> Any:
    return tiny_llama(len(tokenizer), 7)


@pytest.fixture(scope="module")
def report(tmp_path_factory: Any, tokenizer: Any, split: Any, target: Any, oracle: Any, after: Any) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        attacks = [Relearn(rows=2, steps=4, every=2, learning_rate=1e-3), Quantise()]
        return evaluate(after, split, tokenizer=tokenizer, before=target, oracle=oracle, attacks=attacks, batch_size=4)


def test_the_three_models_stand_side_by_side(report: Report) -> None:
    assert report.roles == ["before", "after", "oracle"]
    assert {len(column) for column in report.columns.values()} == {len(report.metrics)}


def test_a_model_that_knows_its_rows_scores_high(report: Report) -> None:
    assert report.value("forget_probability", "before") > 0.9
    assert report.value("forget_rouge", "before") == 1.0
    assert report.value("utility", "before") > 0.9
    assert report.value("forget_extraction_strength", "before") == 1.0
    assert report.value("min_kpp_auc", "before") > 0.9


def test_an_untrained_model_scores_low(report: Report) -> None:
    assert report.value("forget_probability") < 0.05
    assert report.value("utility") < 0.1


def test_the_oracle_keeps_and_does_not_know(report: Report) -> None:
    assert report.value("forget_probability", "oracle") < 0.05
    assert report.value("utility", "oracle") > 0.9


def test_every_attack_runs_on_every_model(report: Report) -> None:
    assert [attack.name for attack in report.attacks] == ["relearning", "quantisation"]
    assert all(list(attack.curves) == ["before", "after", "oracle"] for attack in report.attacks)


def test_every_forget_row_and_a_sample_of_kept_ones_are_shown_with_all_answers(report: Report) -> None:
    parts = [sample.part for sample in report.samples]
    assert parts.count("forget") == 4
    assert {"retain", "world_facts"} < set(parts)
    assert report.samples[0].answers["before"] == report.samples[0].reference == "in oslo"


def test_the_headline_takes_the_kept_set_there_is(tokenizer: Any, split: Any, model: Any) -> None:
    moved = ForgetSplit(split.forget, evaluation={"retain_perturbed": split.retain})
    report = evaluate(model, moved, tokenizer=tokenizer, suite="tofu")
    assert "not measured" not in report.summary.kept


def test_probability_is_exp_of_the_mean_token_loss_end_token_included(tokenizer: Any, split: Any, target: Any) -> None:
    context = TextContext(target, split, tokenizer)
    score = Probability("forget")(context)
    first = context.scores(split.forget)[0]
    assert len(first.token_nll) == len("in oslo") + 1
    assert score.per_example[0] == pytest.approx(math.exp(-sum(first.token_nll) / 8))


def test_scores_do_not_depend_on_the_batch_size(tokenizer: Any, split: Any, target: Any) -> None:
    rows = [row[0] for row in TextContext(target, split, tokenizer).encoded(split.forget)]
    one, four = (score_answers(target, rows, pad_id=0, batch_size=b) for b in (1, 4))
    assert [s.nll for s in one] == pytest.approx([s.nll for s in four], abs=1e-5)


def test_a_second_audit_of_the_same_weights_runs_no_pass(
    tokenizer: Any, split: Any, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(target, split, tokenizer=tokenizer, attacks=[Relearn(rows=1, steps=1)])

    def no_pass(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pass ran")

    for name in ("score_answers", "generate_answers"):
        monkeypatch.setattr(context_module, name, no_pass)
    monkeypatch.setattr(Relearn, "attack", no_pass)
    second = evaluate(copy.deepcopy(target), split, tokenizer=tokenizer, attacks=[Relearn(rows=1, steps=1)])
    assert second.columns == first.columns


def test_one_changed_weight_is_another_model(tokenizer: Any, split: Any, model: Any) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    assert len({TextContext(one, split, tokenizer).fingerprint for one in (model, other)}) == 2


def test_a_models_own_fingerprint_is_used(tokenizer: Any, split: Any, model: Any) -> None:
    model.fingerprint = lambda: "guard-1"
    assert TextContext(model, split, tokenizer).fingerprint == "guard-1"


def test_a_hooked_model_without_fingerprint_is_never_cached(tokenizer: Any, split: Any, model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda m, i, o: None)
    assert TextContext(model, split, tokenizer).fingerprint is None


def test_a_model_that_was_asked_for_its_hidden_states_keeps_its_fingerprint(
    tokenizer: Any, split: Any, model: Any
) -> None:
    before = TextContext(model, split, tokenizer).fingerprint
    model(input_ids=torch.tensor([[3, 8, 9]]), output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())  # which transformers leaves, idle
    assert before is not None
    assert TextContext(model, split, tokenizer).fingerprint == before


def test_what_a_hooked_model_says_is_never_read_back(
    tokenizer: Any, split: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = model.model.layers[0].register_forward_hook(lambda m, i, o: None)
    TextContext(model, split, tokenizer).scores(split.forget)
    monkeypatch.setattr(context_module, "score_answers", lambda *a, **k: pytest.fail("a pass ran"))
    with pytest.raises(pytest.fail.Exception):
        TextContext(model, split, tokenizer).scores(split.forget)
    hook.remove()
    with pytest.raises(pytest.fail.Exception):
        TextContext(model, split, tokenizer, cached=False).scores(split.forget)


def test_a_damaged_cache_file_is_only_a_lost_pass(tokenizer: Any, split: Any, model: Any, tmp_path: Any) -> None:
    whole = Probability("forget")(TextContext(model, split, tokenizer))
    for path in (tmp_path / "cache").rglob("score-*.json"):
        path.write_text("{")
    assert Probability("forget")(TextContext(model, split, tokenizer)) == whole


def test_refuses_one_object_as_before_and_after_and_says_copy(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(ModelError, match="copy=True"):
        evaluate(model, split, tokenizer=tokenizer, before=model)


def test_refuses_an_unknown_suite_with_the_nearest_name(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(MethodError, match=r"'tofuu'\. Did you mean 'tofu'"):
        evaluate(model, split, tokenizer=tokenizer, suite="tofuu")


def test_refuses_a_suite_of_which_nothing_applies(tokenizer: Any, split: Any, model: Any) -> None:
    bare = ForgetSplit(split.forget, name="bare")
    with pytest.raises(MethodError, match="no metric of suite 'muse' applies to bare"):
        evaluate(model, bare, tokenizer=tokenizer, suite="muse")


def test_refuses_a_tokenizer_without_pad_token(tokenizer: Any, split: Any, model: Any) -> None:
    padless = copy.deepcopy(tokenizer)
    padless.pad_token = None
    with pytest.raises(ModelError, match="no pad token"):
        TextContext(model, split, padless)


def test_refuses_a_set_the_split_has_not(tokenizer: Any, split: Any, model: Any) -> None:
    with pytest.raises(DataError, match=r"unknown set 'world_fact'\. Did you mean 'world_facts'"):
        RougeRecall("world_fact")(TextContext(model, split, tokenizer))


def test_a_users_own_suite_is_a_list_of_metrics(tokenizer: Any, split: Any, model: Any) -> None:
    mine = Suite("mine", [Probability("retain"), RougeRecall("absent")])
    assert list(evaluate(model, split, tokenizer=tokenizer, suite=mine).columns["after"]) == ["retain_probability"]


def test_plain_text_is_continued_from_its_first_half(tokenizer: Any, model: Any) -> None:
    split = ForgetSplit(Examples([Example("abcdefgh")]))
    report = evaluate(model, split, tokenizer=tokenizer)
    assert (report.samples[0].asked, report.samples[0].reference) == ("abcd", "efgh")


def test_paraphrases_may_come_as_a_set_of_their_own(tokenizer: Any, split: Any, model: Any) -> None:
    rows = Examples([Example("in oslo", "Ann is where?")])
    own = ForgetSplit(Examples([Example("in oslo", "Where is Ann?")]), evaluation={"forget_paraphrases": rows})
    report = evaluate(model, own, tokenizer=tokenizer)
    assert report.value("forget_paraphrase_probability") is not None
    assert "utility" not in report.columns["after"]


def test_repetition_counts_repeated_three_grams() -> None:
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)
    assert repetition([1, 2]) == 0


def test_perplexity_without_the_before_model_has_no_value(tokenizer: Any, split: Any, model: Any) -> None:
    score = evaluate(model, split, tokenizer=tokenizer).columns["after"]["forget_perplexity"]
    assert score.value is None
    assert score.note == "Needs the model before unlearning."


def test_empty_answers_are_counted_not_scored(
    tokenizer: Any, split: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = TextContext(model, split, tokenizer)
    monkeypatch.setattr(context_module, "generate_answers", lambda *a, **k: ["", " ", "in rome", ""])
    assert Perplexity()(context, {"before": context}).note == "3 of 4 answers were empty."
    assert Repetition()(context).per_example[0] is None


def test_a_value_that_is_not_finite_becomes_none_with_a_note() -> None:
    score = Score("x", float("nan"), [1.0, float("inf")])
    assert score.value is None
    assert score.per_example == [1.0, None]
    assert "not finite" in score.note


def test_the_interval_holds_the_mean_and_is_reproducible() -> None:
    score = Score.mean("x", [0.0, 1.0, 1.0, 0.0, 1.0], "higher")
    low, high = score.interval()
    assert low < score.value < high
    assert score.interval() == (low, high)


def test_a_score_that_is_not_a_mean_has_no_interval() -> None:
    assert Score("auc", 0.7, [3.0, 4.0]).interval() is None


def test_the_named_suites_are_there() -> None:
    assert {"basic", "tofu", "muse", "membership"} <= set(catalog.suites())


def test_importing_the_audit_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, unwrite.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_conversations_samples_carry_its_earlier_turns(tokenizer: Any, model: Any) -> None:
    from unwrite.data import Example, Examples

    earlier = (("user", "Where is Bob?"), ("assistant", "in lima"))
    talk = ForgetSplit(Examples([Example("in oslo", "And Ann?", history=earlier)]))
    assert evaluate(model, talk, tokenizer=tokenizer).samples[0].history == earlier
