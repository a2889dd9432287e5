"""Beds of texts in a sweep: settings are chosen on other rows, costs are counted, methods of other data are refused."""

import copy
from dataclasses import replace

import pytest
from sweeping import TINY, lines

from helpers.small_texts import TINY_TEXT, few
from unwrite.audit import Suite
from unwrite.audit.report.parts import Verdict
from unwrite.audit.text.basic import Probability
from unwrite.beds import language, text_beds
from unwrite.beds.named import bed_named, beds
from unwrite.beds.text_beds import BEDS, TextModels
from unwrite.bench.sweep import Trial, run_trial, sweep, trials_of
from unwrite.bench.sweep_kinds import Contender, sweep_kind
from unwrite.bench.sweep_table import markdown, summary
from unwrite.data.text.authors import authors
from unwrite.errors import MethodError
from unwrite.forget import NPO, ULD, Smooth, TaskVector
from unwrite.forget.dampening import SSD
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.text.counting import counting
from unwrite.forget.vision.scrub import SCRUB
from unwrite.runs import hash_model

NPO_TRIAL = Contender("npo", NPO())
COLUMNS = {
    "forget_quality_log10", "model_utility", "forget_truth_ratio", "forget_probability", "forget_paraphrase_probability",
    "forget_rouge", "retain_rouge",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny bed's models, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        some = TextModels(TINY_TEXT, 0)
        _ = some.before, some.oracle
    return some


# What is trained and forgotten


@pytest.mark.parametrize(("name", "kept"), [("authors/small", 360), ("authors/smollm2", 160)])
def test_settings_are_chosen_on_authors_that_are_not_reported(name, kept):
    reported, tuning = BEDS[name].split(), BEDS[name].other()
    gone, other = ({row.key for row in split.forget} for split in (reported, tuning))
    assert len(gone) == len(other) == 40
    assert len(reported.retain) == len(tuning.retain) == kept
    assert not gone & other
    assert gone <= {row.key for row in tuning.retain}
    assert {row.key for row in (*reported.forget, *reported.retain)} == {
        row.key for row in (*tuning.forget, *tuning.retain)
    }


def test_target_and_oracle_are_read_once_whoever_asks(monkeypatch):
    made = []

    class Read(text_beds.TextContext):
        def __init__(self, model, *rest, cached, **more):
            made.append((model, cached))
            super().__init__(model, *rest, cached=cached, **more)

    monkeypatch.setattr(text_beds, "TextContext", Read)
    models = TextModels(replace(TINY_TEXT, suites=("tofu",)), 0)
    other = copy.deepcopy(models.before)
    for model in (models.before, models.oracle, models.before, other):
        models.scores(model)
    assert sorted((id(model), kept) for model, kept in made) == sorted(
        [(id(models.before), True), (id(models.oracle), True), (id(other), False)]
    )


def test_a_bed_may_have_a_template_of_its_own(monkeypatch):
    tokenizer = language.small_tokenizer(["a b c"])
    monkeypatch.setattr(text_beds, "load", lambda name: type("Any", (), {"tokenizer": tokenizer}))
    bed = BEDS["authors/smollm2"]
    asked = [{"role": "user", "content": "Who?"}]
    for template, text in (
        (bed.template, "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"),
        (None, "<|user|>Who?<|assistant|>"),
    ):
        tokenizer.chat_template = language.TEMPLATE
        found = TextModels(replace(bed, template=template), 0).tokenizer
        assert found.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == text


def test_a_target_is_trained_once_for_both_and_an_oracle_for_each(monkeypatch):
    asked = []
    monkeypatch.setattr(text_beds, "trained", lambda recipe, data, rows, seed: asked.append((data.hash, tuple(rows))))
    monkeypatch.setattr(text_beds, "load_model", lambda folder: type("Any", (), {"eval": lambda self: self})())
    for bed in (TINY_TEXT, TINY_TEXT.tuning()):
        some = TextModels(bed, 0)
        _ = some.before, some.oracle
    (target, oracle), (same, other) = asked[:2], asked[2:]
    assert target == same == (target[0], tuple(range(16)))
    assert oracle[1] == tuple(range(4, 16))
    assert other[1] == (0, 1, 2, 3, *range(8, 16))


def test_the_small_bed_is_the_one_of_the_experiments(monkeypatch):
    asked = []

    def noted(recipe, data, rows, seed):
        asked.append((recipe.name, recipe.settings, data.hash, list(rows), seed))

    class Loaded:
        def eval(self):
            return self

    for module in (language, text_beds):
        monkeypatch.setattr(module, "trained", noted)
    monkeypatch.setattr(text_beds, "load_model", lambda folder: Loaded())
    language.authors_bed.__wrapped__()
    some = TextModels(BEDS["authors/small"], 3)
    _ = some.before, some.oracle
    assert asked[:2] == asked[2:]


def test_beds_of_both_kinds_have_a_name():
    assert {"authors/small", "authors/smollm2", "digits/class"} <= set(beds())
    assert bed_named("authors/smollm2").start == "smollm2-135m"
    with pytest.raises(MethodError, match=r"unknown bed 'authors/smal'\. Did you mean 'authors/small'"):
        bed_named("authors/smal")


def test_a_key_is_of_every_field_of_the_bed():
    base = Trial(NPO_TRIAL, TINY_TEXT, 0).key
    changes = [
        {"suites": ("basic",)},
        {"epochs": 3},
        {"model_seed": 1},
        {"fact_rows": 2},
        {"training": {}},
        {"split": authors},
    ]
    others = [
        Trial(NPO_TRIAL, bed, 0).key for bed in (TINY_TEXT.tuning(), *(replace(TINY_TEXT, **one) for one in changes))
    ]
    assert len({base, *others}) == 1 + len(others)
    assert Trial(NPO_TRIAL, replace(TINY_TEXT), 0).key == base


# What is measured


def test_a_model_has_the_columns_of_tofu_and_the_retrained_one_is_its_own_goal(models):
    before, retrained = models.measure(models.before), models.retraining()
    assert set(before.values) == set(retrained.values) == COLUMNS
    assert before["forget_quality_log10"] < 0 == retrained["forget_quality_log10"]
    assert (before.cost, retrained.cost) == (0, 3 * 2 * 12 / 16)


def test_other_suites_are_columns_by_one_field_of_the_bed(models):
    both = TextModels(replace(TINY_TEXT, suites=("tofu", "basic")), 0)
    names = {metric.name for metric in both.metrics}
    assert names > COLUMNS
    assert "utility" in names
    assert not {metric.name for metric in TextModels(replace(TINY_TEXT, suites=("basic",)), 0).metrics} >= COLUMNS


def test_as_many_rows_are_audited_as_the_bed_says():
    audited = TextModels(replace(TINY_TEXT, retain_rows=3, fact_rows=2), 0).audited
    assert [len(audited.forget), len(audited.retain), *map(len, audited.evaluation.values())] == [4, 3, 2, 2]


# What it costs: 4 forget rows, 4 retain rows beside them, a forward 1, a backward 2, of 16 rows


@pytest.mark.parametrize(
    ("method", "forwards"),
    [
        (NPO(retain_loss="none"), 4 + 4 * 3),
        (NPO(), 4 + 8 * 3),
        (Smooth(NPO()), 4 + 2 * 4 * 3 + 4 * 3),
        (TaskVector(), 4 * 3),
        (SSD(), (4 + 6) * 3),
    ],
)
def test_costs_are_those_counted_by_hand_and_the_target_stays(models, method, forwards):
    before = hash_model(models.before)
    for _ in range(2):  # what is kept on disk saves nothing
        assert models.unlearn(method)[1] == pytest.approx(forwards)
    assert hash_model(models.before) == before


def test_a_shortened_copy_counts_its_share(models):
    """An assistant of one of two blocks: a row's forward and backward is half of a whole one's."""
    whole, half = (models.unlearn(ULD(layers=layers))[1] for layers in (2, 1))
    assert half == pytest.approx(whole / 2)
    assert half > 0


def test_counting_leaves_nothing_behind(models):
    cost = Cost()
    encoded = models.tokenizer("one", return_tensors="pt")["input_ids"]
    with counting(models.before, cost):
        models.before(encoded.repeat(3, 1))
    models.before(encoded)
    assert cost.forwards == pytest.approx(9)  # gradients are recorded
    assert not any(module._forward_hooks for module in models.before.modules())


# What is refused


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: trials_of([Contender("scrub", SCRUB())], [TINY_TEXT], [0]), r"scrub has no meaning for text \(bed tiny text\); it forgets images"),
        (lambda: trials_of([Contender("uld", ULD())], [TINY], [0]), r"uld has no meaning for images \(bed tiny\); it forgets text"),
        (lambda: trials_of([NPO_TRIAL], [TINY, TINY_TEXT, TINY_TEXT], [0]), "bed 'tiny text' is there twice"),
        (lambda: Trial(Contender("npo", NPO(), {"epochs": 1}), TINY_TEXT, 0), "unknown training argument 'epochs'"),
        (lambda: Trial(Contender("npo", NPO(), {"num_train_epochs": -1.0}), TINY_TEXT, 0), "num_train_epochs is -1"),
        (lambda: Trial(Contender("npo", NPO(), {"per_device_train_batch_size": 0}), TINY_TEXT, 0), "batch_size is 0"),
        (lambda: Trial(NPO_TRIAL, replace(TINY_TEXT, split=lambda: few()), 0), "no name that another process could find"),
        (lambda: sweep_kind(TINY).audited(TINY, ("tofu",)), "suite 'tofu' is for text; bed tiny is of images"),
        (lambda: sweep_kind(TINY_TEXT).audited(TINY_TEXT, ("tofo",)), "unknown suite 'tofo'. Did you mean 'tofu'"),
        (lambda: sweep_kind(TINY_TEXT).audited(TINY_TEXT, ("vision",)), "suite 'vision' is for images"),
        (lambda: sweep_kind("glyphs"), "'glyphs' is no bed. Give a Bed or TextBed"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_on_a_bed_is_refused_at_once(made, message):
    with pytest.raises(MethodError, match=message):
        made()


# The sweep


def test_a_sweep_of_texts_has_references_and_ranks_by_forget_quality(tmp_path):
    some = trials_of([NPO_TRIAL, Contender("gentle", NPO(), {"learning_rate": 1e-9})], [TINY_TEXT], [0])
    rows = sweep(some, tmp_path / "rows.jsonl", 1)
    assert [(row["contender"], row["kind"]) for row in rows] == [
        ("before", "reference"), ("retrained", "reference"), ("npo", "method"), ("gentle", "method"),
    ]  # fmt: skip
    assert all(set(row["values"]) == COLUMNS for row in rows)
    assert rows[2]["cost"] == rows[3]["cost"] == 28 / 16
    assert len(lines(tmp_path / "rows.jsonl")) == 5
    assert sweep(some, tmp_path / "rows.jsonl", 1) == rows
    assert rows[3]["values"] == pytest.approx(rows[0]["values"], abs=1e-4)
    heads = markdown(rows)[2]
    assert heads.startswith("| rank | model | forget quality, log10 p | model utility | truth ratio | P(forget) |")


def test_the_highest_forget_quality_comes_first():
    rows = [
        {"bed": "b", "contender": name, "kind": "method", "seed": 0, "values": {"forget_quality_log10": p}, "cost": 0.0}
        for name, p in (("far", -6.0), ("near", -0.1), ("middle", -1.0))
    ]
    assert [entry["contender"] for entry in summary(rows)] == ["near", "middle", "far"]


def test_a_seed_is_of_unlearning_alone(models):
    assert Trial(NPO_TRIAL, TINY_TEXT, 0).home != Trial(NPO_TRIAL, TINY_TEXT, 1).home
    again = TextModels(TINY_TEXT, 1)
    again.before, again.oracle = models.before, models.oracle
    assert hash_model(again.unlearn(NPO())[0]) != hash_model(models.unlearn(NPO())[0])
    assert hash_model(models.unlearn(NPO())[0]) == hash_model(models.unlearn(NPO())[0])


@pytest.mark.slow
def test_processes_give_the_rows_of_one(tmp_path):
    some = trials_of([NPO_TRIAL], [TINY_TEXT, TINY_TEXT.tuning()], [0])
    one, two = (sweep(some, tmp_path / f"{workers}.jsonl", workers) for workers in (1, 2))
    assert [row["values"] for row in one] == [row["values"] for row in two]


def test_a_refusal_of_the_rows_is_a_row():
    row = run_trial(Trial(NPO_TRIAL, replace(TINY_TEXT, split=_without_retain), 0))
    assert "there is no retain set" in row["error"]


def _without_retain():
    return replace(few(), retain=None)


def test_a_trial_has_the_verdict_of_the_first_suite_that_judges(models, monkeypatch):
    def judge(report):
        kept = report.value("retain_probability") == report.value("retain_probability", "before")
        return Verdict("kept" if kept else "moved", "")

    assert models.measure(models.before).verdict == ""
    own = {
        "plain": Suite("plain", [Probability("forget")]),
        "judging": Suite("judging", [Probability("retain")], judge=judge),
        "other": Suite("other", [Probability("holdout")], judge=lambda report: Verdict("wrong", "")),
    }
    monkeypatch.setattr(text_beds, "suite_for", lambda name, kind, split: own[name])
    judged = TextModels(replace(TINY_TEXT, suites=tuple(own)), 0)
    judged.before, judged.oracle = models.before, models.oracle
    assert judged.measure(models.before).verdict == "kept"
    assert judged.measure(models.oracle).verdict == "moved"
