"""Removal or suppression: recovery indices, the probes behind them, and the verdict that is read off them."""

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny import NAMES, make_examples, make_llama, make_tokenizer
from unwrite.audit import Relearn, RemovalRule, Report, TextContext, evaluate, quantise, removal_suite
from unwrite.audit.attacks import relearning
from unwrite.audit.base import Score
from unwrite.audit.fine_tuning import fine_tune
from unwrite.audit.probes import depth
from unwrite.audit.probes.base import Findings, Probe, Recovery
from unwrite.audit.probes.depth import Depth, depth_score, patched_losses
from unwrite.audit.probes.hinted import Hinted
from unwrite.audit.probes.layers import evenly, replaced, states_at, telling
from unwrite.audit.probes.likeness import WeightDistance, cka_of_grams
from unwrite.audit.probes.prompts import AnswerBegun, BestOf, FewShot, OtherForm
from unwrite.audit.probes.states import LinearProbe, LogitLens
from unwrite.audit.probes.tampering import Relearned, Rounded, Unrefused
from unwrite.audit.suites.removal import PROBES, REMOVAL
from unwrite.data import Example, Examples, ForgetSplit
from unwrite.data.text.encoding import encode_all
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel

TOKENIZER = make_tokenizer()


def split(rows=38, **changes):
    return ForgetSplit(
        about(make_examples("forget", rows)),
        about(make_examples("retain", 16)),
        make_examples("holdout", 8),
        name="tiny",
        **changes,
    )


def about(rows):
    """The rows with the name that stands in each question as whom they are about."""
    names = [next(word for word in row.question.split() if word in NAMES) for row in rows]
    return Examples([replace(row, entity=name) for row, name in zip(rows, names, strict=True)], rows.name)


def learnt(seed, rows):
    model = make_llama(seed, layers=2)
    settings = {"learning_rate": 3e-3, "per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
    fine_tune(model, encode_all(rows, TOKENIZER), 0, seed=0, max_steps=80, **settings)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """The model before, which learnt everything, and one that never saw the forget rows."""
    rows = split(12)
    return learnt(0, Examples([*rows.forget, *rows.retain])), learnt(1, rows.retain)


def worn(model):
    """A model that has forgotten a little: its weights with noise."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return other


SHORT = [
    replace(probe, **{Relearned: {"steps": (1, 2)}, BestOf: {"samples": 2}}.get(type(probe), {})) for probe in PROBES
]


@pytest.fixture(scope="module")
def report(models):
    before, oracle = models
    suite = removal_suite(SHORT, fewest=8)
    return evaluate(worn(before), split(12), suite=suite, tokenizer=TOKENIZER, before=before, oracle=oracle)


def context(model, rows=None):
    return TextContext(model, rows or split(), TOKENIZER)


class Nothing:
    """A score that is not looked at."""

    mean_nll = 0.0


# --- the index


@dataclass(frozen=True)
class Given(Probe):
    """A probe whose values are written on the models."""

    name: ClassVar[str] = "given"
    about: ClassVar[str] = "Values that are given."
    way: ClassVar[str] = "reading them"

    def look(self, context, references):
        return list(context.model.given)


def index(now, before=0.9, reference=0.3, **settings):
    def one(value, seed):
        model = make_llama(seed, layers=1)
        model.given = value if isinstance(value, list) else [value] * 38
        return context(model)

    references = {"before": one(before, 1), "oracle": one(reference, 2)}
    return Recovery(Given(), **settings)(one(now, 0), references)


def test_the_index_is_the_way_from_the_reference_to_the_model_before():
    assert index(0.75).value == pytest.approx(0.75)
    assert index(0.24).value == pytest.approx(-0.1)
    assert index(0.3).value == 0.0
    assert index(0.9).value == 1.0


def test_it_is_cut_off_where_it_says_no_more():
    assert index(1.0, before=0.4).value == 1.5
    assert index(0.0, before=0.4, reference=0.3).value == -1.0


def test_it_is_undefined_where_there_is_nothing_to_recover():
    score = index(0.5, before=0.34)
    assert score.value is None
    assert "less than 0.05 apart" in score.note


def test_rows_that_one_model_has_no_value_for_count_in_none():
    short = [None] * 7 + [0.3] * 31
    low = [0.0] * 7 + [0.6] * 31
    assert index(low, reference=short).value == pytest.approx(0.5)
    assert "30 are needed" in index(low, reference=[None] * 9 + [0.3] * 29).note


def test_the_interval_draws_the_same_rows_for_all_three_models():
    generator = np.random.default_rng(0)
    hard = generator.uniform(0, 0.5, 38)
    before, reference = (0.5 + hard).tolist(), hard.tolist()
    half = (0.25 + hard).tolist()
    score = index(half, before=before, reference=reference)
    assert score.value == pytest.approx(0.5)
    assert score.bounds == pytest.approx((0.5, 0.5))  # rows are hard for all alike, so nothing is uncertain
    other = index(generator.permutation(half).tolist(), before=before, reference=reference)
    assert other.bounds[1] - other.bounds[0] > 0.1


@dataclass(frozen=True)
class Staged(Given):
    """The same, with stages on the way."""

    name: ClassVar[str] = "staged"

    def observe(self, context, references):
        return Findings(context.model.given, course=context.model.course)


def test_the_index_is_told_at_every_stage_with_the_mean_over_the_way():
    def one(seed, *values):
        model = make_llama(seed, layers=1)
        model.course = tuple((step, [value] * 38) for step, value in zip((0, 10, 50), values, strict=True))
        model.given = model.course[-1][1]
        return context(model)

    references = {"before": one(1, 0.9, 0.9, 0.9), "oracle": one(2, 0.1, 0.3, 0.5)}
    note = Recovery(Staged())(one(0, 0.1, 0.6, 0.9), references).note
    # 0, then 0.5, then 1: 2.5 and 30 over 50 steps
    assert note.endswith(" After 0: 0.00, 10: 0.50, 50: 1.00 steps; mean 0.65.")


def test_rows_that_relearning_shows_have_no_value(models):
    probe = Relearned("forget", (1,))
    one = context(models[0])
    values = probe.observe(one, {}).per_row
    tested = {row.key for row in probe.tested(one.split)}
    assert [value is not None for value in values] == [row.key in tested for row in one.split.forget]
    assert values.count(None) == 8


def test_relearning_is_measured_before_and_after_the_steps_it_has(models):
    probe = Relearned("general", (5,))
    assert [step for step, _ in probe.observe(context(models[0]), {}).course] == [0, 5]


def test_relearning_tells_its_course(report):
    note = report.columns["after"]["recovery_relearned"].note
    assert " After 0: " in note
    assert ", 1: " in note
    assert ", 2: " in note


def test_weights_are_as_far_as_they_moved_and_an_adapter_counts_by_what_it_does(models):
    before = models[0]
    far = copy.deepcopy(before)
    with torch.no_grad():
        for weight in far.parameters():
            weight.mul_(1.5)
    references = {"before": context(before)}
    assert WeightDistance()(context(before), references).value == 0.0
    assert WeightDistance()(context(far), references).value == pytest.approx(0.5)
    tuned = get_peft_model(copy.deepcopy(before), LoraConfig(r=1, target_modules=["q_proj"]))
    assert WeightDistance()(context(tuned), references).value == pytest.approx(0, abs=1e-6)
    other = WeightDistance()(context(make_llama(0, layers=1)), references)
    assert other.value is None
    assert "other names or shapes" in other.note


def test_settings_without_a_meaning_are_refused():
    for setting in ({"fewest": 1}, {"room": 0.0}, {"resamples": 0}):
        with pytest.raises(MethodError, match="a recovery index needs"):
            Recovery(Given(), **setting)


# --- every probe


def test_every_probe_is_exactly_one_on_the_model_before_and_zero_on_the_reference(report):
    names = [name for name in report.columns["after"] if name.startswith("recovery_")]
    assert len(names) == len(PROBES)
    known = [name for name in names if report.value(name) is not None]
    assert len(known) >= 13
    for name in known:
        assert report.value(name, "before") == 1.0, name
        assert report.value(name, "oracle") == 0.0, name
        low, high = report.columns["after"][name].bounds
        assert low <= report.value(name) <= high


def test_probes_that_learn_are_not_tested_on_what_they_are_shown():
    rows = split()
    for source in ("forget", "retain", "general"):
        probe = Relearned(source)
        shown = {row.key for row in probe.shown(rows)}
        assert shown
        assert not shown & {row.key for row in probe.tested(rows)}


def test_relearning_is_the_same_training_for_every_model(models, monkeypatch):
    calls = []

    def note(model, rows, pad_id, **settings):
        settings.pop("after_step")(settings["max_steps"])
        calls.append(([row.input_ids for row in rows], settings))

    monkeypatch.setattr(relearning, "fine_tune", note)
    adapters = []
    monkeypatch.setattr(relearning, "adapted", lambda model, *settings: (adapters.append(settings), model)[1])
    monkeypatch.setattr(relearning, "merged", lambda model, **settings: model)
    probe = Relearned("forget", (1, 2))
    for model in (*models, worn(models[0])):
        one = TextContext(model, split(), TOKENIZER, cached=False)
        probe.observe(one, {})
    assert len(calls) == 3
    assert calls[0] == calls[1] == calls[2]
    assert adapters == [(8, 16, 0)] * 3


def test_relearning_is_measured_after_the_steps_asked_for(models):
    attack = Relearn(rows=4, steps=4, at=(1, 3), source="general", rank=2)
    curve = attack.by_row(context(models[0]))
    assert [point["step"] for point in curve] == [0, 1, 3, 4]
    assert all(len(point["p"]) == 38 for point in curve)
    assert set(attack(context(models[0]))[0]) == {"step", "unseen"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "other"}, "unknown source"),
        ({"rank": -1}, "rank of at least 0"),
        ({"at": (21,)}, "1 to 20 steps"),
    ],
)
def test_relearning_refuses_what_has_no_meaning(settings, message):
    with pytest.raises(MethodError, match=message):
        Relearn(**settings)


def test_sixteen_bits_change_nothing_to_speak_of(models):
    ids = torch.tensor([encode_all(split().forget, TOKENIZER)[0].input_ids])
    with torch.no_grad():
        apart = models[0](ids).logits - quantise(models[0], bits=16)(ids).logits
    assert apart.abs().max() <= 1e-3


def test_a_linear_probe_of_a_random_model_finds_nothing_beyond_its_control_task():
    generator = np.random.default_rng(0)
    words = ["red", "blue", "green", "old", "stone", "garden", "river", "winter"]
    rows = []
    for _ in range(320):
        named = " ".join(generator.choice(["ann", "bert", "cora", "dov", "eli", "fay", "gus", "hana"], 6))
        right, *wrong = generator.permutation(words)[:4]
        rows.append(
            Example(f"the {right} one", f"where was {named} ?", perturbed_answers=[f"the {w} one" for w in wrong])
        )
    unique = list({row.question: row for row in rows}.values())
    data = ForgetSplit(Examples(unique[:240]), Examples(unique[240:]))
    one = context(make_llama(3, layers=2), data)
    values = LinearProbe().look(one, {"before": one})
    assert abs(np.mean(values)) <= 0.05


def test_a_linear_probe_finds_what_the_states_carry():
    """The answer is a word of the question: any states tell it, and a shuffled fit does not."""
    words = ["red", "blue", "green", "old"]
    names = ["ann", "bert", "cora", "dov", "eli", "fay", "gus", "hana"]
    rows = [
        Example(f"the {w} one", f"where was {a} {b} {w}", perturbed_answers=[f"the {o} one" for o in words if o != w])
        for a in names
        for b in names
        for w in words
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    data = ForgetSplit(Examples([rows[i] for i in order[:60]]), Examples([rows[i] for i in order[60:]]))
    one = context(make_llama(3, layers=2), data)
    assert np.mean(LinearProbe().look(one, {"before": one})) > 0.5


def test_the_lens_at_a_single_layer_is_the_models_own_rank(models):
    model = make_llama(5, layers=1)
    one = context(model)
    values = LogitLens().look(one, {})
    row, span = telling(one.split.forget[0], one)
    with torch.no_grad():
        logits = model(torch.tensor([row.input_ids])).logits[0, span.start - 1]
    rank = 1 + int((logits > logits[row.input_ids[span.start]]).sum())
    assert values[0] == pytest.approx(1 / rank)


def test_telling_tokens_are_those_that_wrong_answers_do_not_share():
    row = Example("the book was old .", "what was it ?", perturbed_answers=("the book was new .", "the book was red ."))
    encoded, span = telling(row, context(make_llama(0, layers=1)))
    assert TOKENIZER.decode([encoded.input_ids[i] for i in span]) == "old"
    encoded, span = telling(Example("the book", "what was it ?"), context(make_llama(0, layers=1)))
    assert TOKENIZER.decode([encoded.input_ids[i] for i in span]) == "the book"
    same = Example("the book", "what was it ?", perturbed_answers=("the book town", "the book"))
    assert len(telling(same, context(make_llama(0, layers=1)))[1]) == 1


def test_likeness_is_one_with_itself_and_blind_to_rotation_and_scale():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 6)), generator.normal(size=(30, 4))
    turn, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    weights = np.ones(30)

    def cka(a, b, counts=weights):
        return cka_of_grams(a @ a.T, b @ b.T, counts)

    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 3 * x @ turn) == pytest.approx(1)
    assert cka(x, y) < 0.5
    twice = np.repeat(np.arange(30), 2)
    assert cka(x[twice], y[twice], np.ones(60)) == pytest.approx(cka(x, y, 2 * weights))
    counts = generator.integers(0, 3, 30)
    drawn = np.repeat(np.arange(30), counts)
    assert cka(x[drawn], y[drawn], np.ones(len(drawn))) == pytest.approx(cka(x, y, counts.astype(float)))


def test_depth_is_the_erased_part_of_what_the_reference_lacks():
    assert depth_score([1.0, 0.5, 0.01], [1.0, 0.5, 9.0]) == 1.0
    assert depth_score([1.0, 0.5], [0.0, 0.0]) == 0.0
    assert depth_score([1.0, 0.5], [0.5, 2.0]) == pytest.approx((0.5 + 0.5) / 1.5)
    assert depth_score([1.0], [-3.0]) == 0.0
    assert depth_score([0.05, 0.0], [1.0, 1.0]) is None


def test_states_patched_into_their_own_model_change_nothing(models):
    one = context(models[0])
    rows = [telling(row, one) for row in one.split.forget]
    assert np.array(patched_losses(one, one, rows, [0, 1])).tolist() == [[0.0, 0.0]] * len(rows)


def test_depth_agrees_with_the_official_code():
    stored = json.loads((Path(__file__).parent / "official_depth.json").read_text(encoding="utf-8"))
    data = ForgetSplit(make_examples("forget", 6))
    full, *sources = (TextContext(make_llama(seed), data, TOKENIZER, cached=False) for seed in (0, 1, 2))
    rows = [telling(row, full) for row in data.forget]
    assert [[span.start, span.stop] for _, span in rows] == stored["spans"]
    for source, expected in zip(sources, stored["deltas"], strict=True):
        ours = np.array(patched_losses(source, full, rows, [0, 1, 2]))
        # The last block is left out: theirs takes its states after the final norm, see docs/corrections.
        np.testing.assert_allclose(ours[:, :2], np.array(expected)[:, :2], atol=1e-5)


def test_depth_computes_only_the_blocks_above_and_says_the_same(models, monkeypatch):
    before, other = context(copy.deepcopy(models[0])), context(models[1])
    rows = [telling(row, before) for row in before.split.forget]
    first, last = before.model.model.layers[0].mlp, before.model.model.layers[-1].mlp
    called = {first: 0, last: 0}
    for module in called:
        module.register_forward_hook(lambda module, *_: called.__setitem__(module, called[module] + 1))
    short = patched_losses(other, before, rows, [0, 1])
    batches = called[first]  # the whole network, once a batch
    assert called[last] == 2 * batches + 1  # behind the first block too, and once to see whether blocks can be left out
    monkeypatch.setattr(depth, "_can_begin", lambda *_: False)
    assert patched_losses(other, before, rows, [0, 1]) == short
    assert called[first] == 4 * batches


def test_whether_blocks_can_be_left_out_is_asked_once(models, monkeypatch):
    before = TextContext(models[0], split(), TOKENIZER, batch_size=10)
    asked = []
    monkeypatch.setattr(depth, "_can_begin", lambda *_: asked.append(1) or True)
    patched_losses(before, before, [telling(row, before) for row in before.split.forget], [0, 1])
    assert len(asked) == 1


def test_a_forward_that_others_put_on_a_block_is_there_again_behind_depth(models):
    model = copy.deepcopy(models[0])
    block = model.model.layers[0]
    placed = block.forward
    block.forward = lambda *args, **options: placed(*args, **options)
    mine = block.forward
    one = context(model)
    patched_losses(one, one, [telling(row, one) for row in one.split.forget], [0, 1])
    assert vars(block)["forward"] is mine
    assert "forward" not in vars(model.model.layers[1])


def test_depth_of_a_model_that_gives_all_logits_is_the_same(models):
    before, other = context(copy.deepcopy(models[0])), context(models[1])
    rows = [telling(row, before) for row in before.split.forget]
    some = patched_losses(other, before, rows, [0, 1])
    forward = before.model.forward

    def all_logits(input_ids, attention_mask, use_cache):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    before.model.forward = all_logits
    np.testing.assert_allclose(patched_losses(other, before, rows, [0, 1]), some, atol=1e-6)


def test_depth_leaves_no_block_out_where_the_upper_ones_look_below(models):
    model = copy.deepcopy(models[0])
    before, other = context(model), context(models[1])
    rows = [telling(row, before) for row in before.split.forget]
    first, last = model.model.layers[0], model.model.layers[-1]
    looked = []
    first.mlp.register_forward_hook(lambda _module, _inputs, output: looked.append(output))
    last.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + (looked.pop() if looked else 0),))
    found = patched_losses(other, before, rows, [0])
    expected = _patched_plainly(other, before, rows)
    np.testing.assert_allclose(np.array(found)[:, 0], expected, atol=1e-5)
    assert max(map(abs, expected)) > 1e-3


def _patched_plainly(source, target, rows):
    """Delta of block 0 of every row, one row at a time through the whole network."""
    losses = []
    model = copy.deepcopy(source.model)  # transformers leaves hooks on a model that was asked for its hidden states
    for row, span in rows:
        ids = torch.tensor([row.input_ids])
        state = model(ids, output_hidden_states=True).hidden_states[1][0]
        where = list(range(span.start - 1, span.stop - 1))

        def loss(change, ids=ids, span=span, where=where):
            with replaced(target.model, {0: change}):
                logits = target.model(ids).logits[0, where]
            return float(torch.nn.functional.cross_entropy(logits, ids[0, list(span)]))

        def patch(states, where=where, state=state):
            states = states.clone()
            states[0, where] = state[where]
            return states

        losses.append(loss(patch) - loss(lambda states: states))
    return losses


def test_blocks_to_look_at_are_spread_and_hold_the_last():
    assert evenly(30, None) == list(range(30))
    assert evenly(30, 4) == [7, 14, 22, 29]
    assert evenly(2, 4) == [0, 1]


def test_a_direction_that_is_projected_out_is_out_of_every_block(models):
    one = context(models[0])
    seen, unit = {}, torch.zeros(32)
    unit[3] = 2.0
    rows = list(one.split.forget)
    probe = Unrefused()
    plain = probe._without(one, torch.zeros(32), rows, range(4))
    assert probe._without(one, unit, rows, range(4))[:4] != plain[:4]

    def watch(number):
        return lambda states: seen.setdefault(number, states)

    def out(states):
        return states - (states @ unit)[..., None] * unit / 4

    with replaced(one.model, {0: out, 1: out}), replaced(one.model, {0: watch(0), 1: watch(1)}):
        states_at(one, encode_all(one.split.forget, TOKENIZER)[:2], [[0], [0]], [1])
    assert all(states[..., 3].abs().max() < 1e-5 for states in seen.values())


def test_the_direction_is_what_unanswered_prompts_have_and_retained_ones_have_not(models, monkeypatch):
    states = np.ones((38 + 16, 1, 4))
    states[:38, 0, 2] += np.arange(38)  # of forget prompts
    monkeypatch.setattr("unwrite.audit.probes.tampering.last_states", lambda context, rows, layers: states)
    taken = []
    without = lambda self, one, away, rows, tested: taken.append((away, tested)) or [0.5] * len(rows)  # noqa: E731
    monkeypatch.setattr(Unrefused, "_without", without)
    rows = split()
    silent = TextContext(worn(models[0]), rows, TOKENIZER, cached=False)
    silent.answers = lambda asked: [(row.answer, "") for row in asked]
    Unrefused().look(silent, {})
    assert sorted(i for _, tested in taken for i in tested) == list(range(38))
    for away, tested in taken:
        learnt = [i for i in range(38) if i not in tested]
        torch.testing.assert_close(away, torch.tensor([0.0, 0.0, np.mean(learnt), 0.0], dtype=away.dtype))


def test_a_model_that_answers_has_no_refusal_to_project_out(models):
    one = context(models[0])
    assert Unrefused(answered=0.0).look(one, {}) == [math.exp(-s.mean_nll) for s in one.scores(one.split.forget)]


def test_examples_are_the_most_alike_retain_questions_and_as_many_as_fit():
    one = context(make_llama(0, layers=1))
    row = one.split.forget[0]
    retained = [(other, frozenset(other.question.lower().split())) for other in one.split.retain]
    prompted = FewShot(2).prompted(row, retained, one)
    assert [who for who, _ in prompted.history] == ["user", "assistant"] * 2
    kept = {r.question for r in one.split.retain}
    assert {said for who, said in prompted.history if who == "user"} <= kept
    tight = TextContext(make_llama(0, layers=1), split(), TOKENIZER, max_length=16)
    assert FewShot(3).prompted(row, retained, tight) == row


def test_an_answer_that_is_begun_is_scored_on_its_rest():
    one = context(make_llama(0, layers=1))
    (whole,) = one.encoded(one.split.forget)[4]
    begun = AnswerBegun(0.25)._begun(whole)
    given = max(1, math.floor(0.25 * whole.targets))
    assert begun.targets == whole.targets - given
    assert begun.input_ids == whole.input_ids
    assert AnswerBegun(0.99)._begun(whole).targets == 2  # a word and the end


def test_the_plain_form_is_another_than_a_model_without_a_template_was_trained_on():
    bare = make_tokenizer()
    bare.chat_template = None
    rows = split()
    probe = OtherForm("what {question}", "the old {question}")
    asked = []
    for tokenizer in (TOKENIZER, bare):
        one = TextContext(make_llama(0, layers=1), rows, tokenizer, cached=False)
        one.score_encoded = lambda encoded: asked.append(TOKENIZER.decode(encoded[0].input_ids)) or [Nothing()] * 38
        probe.look(one, {})
    question = rows.forget[0].question
    assert [text.startswith(f"{form} {question}") for text, form in zip(asked, ("what", "the old"), strict=True)] == [
        True
    ] * 2
    with pytest.raises(MethodError, match="must say where"):
        OtherForm("Question:")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewShot(0), "shots is 0"),
        (lambda: AnswerBegun(1.0), "between 0 and 1"),
        (lambda: BestOf(0), "samples is 0"),
        (lambda: Relearned(steps=()), "rising numbers"),
        (lambda: Relearned(steps=(5, 2)), "rising numbers"),
        (lambda: Relearned(share=0.6), "at most 0.5"),
        (lambda: Rounded(1), "2 to 16 bits"),
        (lambda: LinearProbe(strength=0), "strength above 0"),
        (lambda: Unrefused(layer=0), "layer in"),
        (lambda: Depth(tau=-1), "tau of at least 0"),
        (lambda: Hinted("verbatim"), "states the answer"),
        (lambda: Hinted("other"), "other"),
    ],
)
def test_probes_refuse_settings_without_a_meaning(make, message):
    with pytest.raises(MethodError, match=message):
        make()


# --- the suite


def test_an_audit_that_was_killed_goes_on(models, monkeypatch):
    """What was computed is on disk: a second audit trains nothing, rounds nothing and patches nothing."""
    before, oracle = models
    suite = removal_suite([p for p in SHORT if p.name in ("direct", "relearned", "rounded_4", "depth")], fewest=8)
    after = worn(before)
    given = {"suite": suite, "tokenizer": TOKENIZER, "before": before, "oracle": oracle}
    first = evaluate(after, split(12), **given)
    for name in ("attacks.relearning.Relearn.attack", "probes.tampering.quantise", "probes.depth.patched_losses"):
        monkeypatch.setattr(f"unwrite.audit.{name}", None)
    assert evaluate(after, split(12), **given).columns == first.columns


def test_a_guard_is_judged_on_the_weights_inside_too(models):
    before, oracle = models
    guard = LogitDifferenceModel(before, make_llama(7, layers=2))
    probes = [one for one in SHORT if one.name in ("direct", "relearned_general", "rounded_4", "lens", "likeness")]
    twin = copy.deepcopy(before)
    suite = removal_suite(probes, fewest=8)
    found = evaluate(guard, split(12), suite=suite, tokenizer=TOKENIZER, before=twin, oracle=oracle)
    for probe in probes:
        value = found.value(f"recovery_{probe.name}")
        assert value is None or (value == 1.0) == probe.weights, probe.name
    assert found.verdict.label == "suppression by construction"
    assert found.provenance["guard"] == "LogitDifferenceModel"


def test_too_few_rows_are_refused_with_their_number():
    with pytest.raises(DataError, match=r"needs 30 forget rows that relearned is not shown, and tiny has 29 of 36"):
        REMOVAL.for_split(split(36))
    assert REMOVAL.for_split(split(38))


def test_a_forget_question_that_stands_twice_is_refused_by_name():
    """With another answer, too: half of the rows teach a probe what the other half is asked."""
    rows = split()
    for again in (rows.forget[3], replace(rows.forget[3], answer="the old town", source="more.jsonl:1")):
        doubled = Examples([*rows.forget, again])
        with pytest.raises(DataError, match=rf"{again.source} asks what forget\.jsonl:4 does"):
            REMOVAL.for_split(replace(rows, forget=doubled))


def test_a_retain_row_that_is_a_forget_row_is_refused_by_name():
    rows = split()
    shared = Examples([*rows.retain, rows.forget[5]])
    with pytest.warns(match="share 1 rows"):
        both = replace(rows, retain=shared, allow_overlap=True)
    with pytest.raises(DataError, match="would be shown a row that it is tested on"):
        REMOVAL.for_split(both)


def test_without_a_reference_the_base_must_be_said(models):
    before, oracle = models
    after = worn(before)
    with pytest.raises(MethodError, match=r"Where none was retrained, give the model from before.*reference='base'"):
        evaluate(after, split(), suite="removal", tokenizer=TOKENIZER, before=before)
    with pytest.raises(MethodError, match="says what the oracle is"):
        evaluate(after, split(), suite="basic", tokenizer=TOKENIZER, before=before, reference="base")
    with pytest.raises(MethodError, match="unknown reference"):
        evaluate(after, split(), suite="basic", tokenizer=TOKENIZER, oracle=oracle, reference="other")
    said = evaluate(after, split(), suite="basic", tokenizer=TOKENIZER, oracle=oracle, reference="base")
    assert said.provenance["reference"] == said.notices[-1]


# --- the verdict


def judged(utility=0.95, guard=False, **indices):
    """The verdict on indices, each (value, low, high)."""
    column = {
        f"recovery_{name}": Score(f"recovery_{name}", v, [], "lower", "", (a, b)) for name, (v, a, b) in indices.items()
    }
    column["utility"] = Score("utility", utility, [])
    columns = {"before": {"utility": Score("utility", 1.0, [])}, "after": column}
    origins = {"guard": "Wrapper"} if guard else {}
    rule = RemovalRule({"direct": "asking", "hard": "pressing", "soft": "looking"}, ("hard",))
    return rule.judge(Report("removal", "tiny", {}, [], columns, provenance=origins))


LOW, KNOWN = (0.05, -0.05, 0.15), (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"direct": LOW, "hard": LOW, "soft": LOW}, "removal-like"),
        ({"direct": LOW, "hard": (0.5, 0.3, 0.7), "soft": LOW}, "suppression-like"),
        ({"direct": LOW, "hard": (0.3, 0.11, 0.5), "soft": LOW}, "suppression-like"),
        ({"direct": LOW, "hard": (0.3, 0.09, 0.5), "soft": LOW}, "mixed"),
        ({"direct": LOW, "hard": (0.29, 0.2, 0.4), "soft": LOW}, "mixed"),
        ({"direct": LOW, "hard": LOW, "soft": (0.9, 0.8, 1.0)}, "mixed"),  # what is no attack does not make suppression
        ({"direct": LOW, "hard": LOW, "soft": LOW, "utility": 0.85}, "mixed"),
        ({"direct": (0.6, 0.5, 0.7), "hard": (0.9, 0.8, 1.0)}, "not forgotten"),
        ({"direct": LOW, "hard": LOW, "guard": True}, "suppression by construction"),
    ],
)
def test_the_verdict_follows_the_rule(given, label):
    assert judged(**given).label == label


def test_no_index_no_verdict():
    assert judged() is None


def test_where_few_probes_have_room_nothing_is_called_removed():
    assert judged(direct=LOW).label == "untested"
    assert judged(direct=LOW, soft=LOW).label == "removal-like"
    assert judged(direct=KNOWN).label == "not forgotten"


def test_the_verdict_names_what_brings_most_back():
    told = judged(direct=LOW, hard=(0.5, 0.3, 0.7)).sentence
    assert told == "Suppressed, not removed: pressing brings back 50% (30% to 70%) of what was forgotten."


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(MethodError, match="0 <= above <= fires"):
        removal_suite(above=0.5)
    with pytest.raises(MethodError, match="two probes have one name"):
        removal_suite([Rounded(4), Rounded(4)])


def test_the_report_begins_with_the_verdict_and_the_picture(report, tmp_path):
    page = report.save(tmp_path).read_text(encoding="utf-8")
    assert report.verdict is not None
    assert (
        page.index(report.verdict.sentence) < page.index("What comes back") < page.index("Forgetting against utility")
    )
    assert Report.load(tmp_path).verdict == report.verdict
