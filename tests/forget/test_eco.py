"""ECO: what its corruptions change, whose prompts they reach, how the detector is calibrated, and a model behind it."""

import copy
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification, TextStreamer

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively, save_bert
from unwrite.beds.budget import Budget
from unwrite.beds.language import LanguageBed, small_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.text.authors import authors
from unwrite.decode import PromptLookup, TokenRecycling
from unwrite.errors import DataError, MethodError, ModelError, NotFinite, Notice
from unwrite.forget import ECO, CalibratedDetector, CorruptedPromptModel, PromptDetector
from unwrite.forget.eco import fit_strength, strength_distance
from unwrite.forget.engine.text.corrupted_prompts import CorruptionRules, spans_of
from unwrite.forget.engine.text.corruptions import Corruption
from unwrite.forget.engine.text.prompts import PromptReader, turns_of
from unwrite.models import load, save
from unwrite.reproduce import eco as experiment


@dataclass(frozen=True)
class Naming(PromptDetector):
    """Flags texts that name Ann."""

    name = "naming"

    def fit(self, forget, retain, seed=0):
        return self

    def __call__(self, texts):
        return np.array([float("ann" in text.split()) for text in texts])

    def state(self):
        return {}, {}

    @classmethod
    def of_state(cls, tensors, settings, source):
        return cls()


def guarded(strength=5.0, threshold=0.5, detector=None, name="rand_noise_first_n", dims=1, target=None, **rules):
    rules = CorruptionRules(Corruption(name, strength, dims), **rules)
    check = CalibratedDetector(detector or Naming(), threshold)
    return CorruptedPromptModel(target or lively(make_llama(0)), check, make_tokenizer(), rules)


def ids(words):
    return make_tokenizer()(words)["input_ids"]


ASKED, OTHER = ids("<user> who was ann ? <assistant>"), ids("<user> where is the old garden of bert ? <assistant>")


def batch(rows, side="left"):
    longest = max(map(len, rows))
    left = side == "left"
    pads = [[0] * (longest - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pads, strict=True)
    ]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


# --- names
def test_a_name_marks_exactly_the_tokens_that_share_its_characters():
    tokenizer = small_tokenizer(["abc"])  # bytes, so that names have many tokens
    text = "Who is Harry Potter?"
    assert spans_of(text, ["Harry Potter", "Ron"]) == [(7, 19)]
    coarse = small_tokenizer([text, "He lives in Edinburgh with a red owl."], 300)
    for one in (tokenizer, coarse):
        encoded = one(text, return_offsets_mapping=True)
        model = guarded(names=("Harry Potter",))
        model.tokenizer, model.reader = one, PromptReader(one)
        expected = [start < 19 and end > 7 for start, end in encoded["offset_mapping"]]
        assert any(expected)
        assert not all(expected)
        assert model.marks(encoded["input_ids"]).tolist() == expected
    assert spans_of("HARRY  POTTER'S owl, not Harry Potters", ["Harry Potter"]) == [(0, 13)]


def test_a_character_of_several_tokens_marks_all_of_them():
    tokenizer = small_tokenizer(["abc"])
    model = guarded(names=("Ågot",))
    model.tokenizer, model.reader = tokenizer, PromptReader(tokenizer)
    marks = model.marks(tokenizer("Is Ågot in?")["input_ids"])
    assert marks.tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_without_a_name_all_but_the_last_token_are_marked():
    assert guarded(names=("Eve",)).marks(ASKED).tolist() == [True] * (len(ASKED) - 1) + [False]
    assert guarded(names=("Ann",)).marks(ASKED).tolist() == [False, False, False, True, False, False]


# --- a model behind it


@pytest.mark.parametrize("side", ["left", "right"])
def test_unflagged_rows_are_the_targets_to_the_bit_beside_a_flagged_one(side):
    model, inputs = guarded(), batch([ASKED, OTHER], side)
    own, bare = model(**inputs).logits, model.target(**inputs).logits
    assert torch.equal(own[1], bare[1])
    assert not torch.allclose(own[0], bare[0])
    alone = model(**batch([OTHER])).logits
    assert torch.equal(alone, model.target(**batch([OTHER])).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbours_do_not_change_the_corruption(side):
    model = guarded()
    inputs = batch([ASKED, OTHER], side)
    shown = inputs["attention_mask"][0].bool()
    alone = model(input_ids=torch.tensor([ASKED])).logits[0]
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert torch.allclose(model(**inputs, position_ids=places).logits[0][shown], alone, atol=1e-5)


def test_noise_is_a_function_of_prompt_and_seed():
    def noise(prompt, seed=0):
        model = guarded(noise_seed=seed)
        return (model._replacement(prompt).values - model._embedded(prompt)[:-1])[:, 0]

    other = [ids("where")[0] if token == ids("who")[0] else token for token in ASKED]
    assert torch.equal(noise(ASKED), noise(ASKED))
    assert not torch.allclose(noise(ASKED), noise(other), atol=0.1)
    assert not torch.allclose(noise(ASKED), noise(ASKED, seed=1), atol=0.1)


def test_strength_0_and_threshold_1_are_the_bare_model():
    inputs = batch([ASKED, OTHER])
    for model in (guarded(strength=0.0), guarded(threshold=1.0)):
        assert torch.equal(model(**inputs).logits, model.target(**inputs).logits)
        assert not model.target._forward_pre_hooks
        own, bare = (one.generate(**inputs, max_new_tokens=8, do_sample=False) for one in (model, model.target))
        assert torch.equal(own, bare)


def explicit(model, prompt):
    """The prompt's embeddings as the model corrupts them."""
    one = model._replacement(prompt)
    table = model.target.get_input_embeddings()
    embeddings = table(torch.tensor([prompt]))
    embeddings[0, one.places] = one.values
    return embeddings


def test_generation_is_decoding_from_corrupted_embeddings():
    model = guarded(strength=20.0)
    own = model.generate(**batch([ASKED]), max_new_tokens=10, do_sample=False)[0, len(ASKED) :]
    by_hand = model.target.generate(inputs_embeds=explicit(model, ASKED), max_new_tokens=10, do_sample=False)[0]
    bare = model.target.generate(**batch([ASKED]), max_new_tokens=10, do_sample=False)[0, len(ASKED) :]
    assert own.tolist() == by_hand.tolist()
    assert own.tolist() != bare.tolist()
    assert torch.allclose(model(**batch([ASKED])).logits, model.target(inputs_embeds=explicit(model, ASKED)).logits)


def changed_by_call(model, **options):
    """How many positions of each call of the embedding differ from the table."""
    calls, table = [], model.target.get_input_embeddings()
    weights = table.weight

    def look(_, args, kwargs):
        embedded = kwargs.get("hidden_states", args[0] if args else None)
        calls.append((seen[-1].shape[1], int((embedded != weights[seen[-1]]).any(-1).sum())))

    seen = []
    handles = [
        table.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        model.target.model.layers[0].register_forward_pre_hook(look, with_kwargs=True),
    ]
    model.generate(do_sample=False, max_new_tokens=6, **options)
    for handle in handles:
        handle.remove()
    return calls


def test_only_the_prompt_is_corrupted_and_once():
    calls = changed_by_call(guarded(), **batch([ASKED, OTHER]))
    assert calls[0] == (len(OTHER), len(ASKED) - 1)
    assert [changed for width, changed in calls[1:]] == [0] * (len(calls) - 1)
    assert [width for width, _ in calls[1:]] == [1] * (len(calls) - 1)
    assert len(calls) > 1


def test_a_prompt_of_one_token_does_not_escape():
    prompt = ids("ann")
    calls = changed_by_call(guarded(name="reverse_order", dims=1), **batch([prompt]))
    assert calls[0] == (1, 0)  # all but the last token is none
    calls = changed_by_call(guarded(names=("ann",)), **batch([prompt]))
    assert calls[0] == (1, 1)
    assert not any(changed for _, changed in calls[1:])


WAYS = {
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3, "do_sample": False},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 3, "do_sample": False},
    "without cache": {"use_cache": False, "do_sample": False},
    "static cache": {"cache_implementation": "static", "do_sample": False},
    "lookup": {"prompt_lookup_num_tokens": 2, "do_sample": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_reads_the_corrupted_prompt(way):
    """As a target whose table itself holds the corrupted embeddings, under tokens of their own."""
    size = len(make_tokenizer())
    bias = {"sequence_bias": {(size + place,): -1e9 for place in range(len(ASKED))}}
    options = WAYS[way] | bias | {"max_new_tokens": 8}
    model = guarded(strength=20.0, target=lively(make_llama(0, vocab=size + len(ASKED))))
    one = model._replacement(ASKED)
    twin = copy.deepcopy(model.target)
    with torch.no_grad():
        twin.get_input_embeddings().weight[size:] = explicit(model, ASKED)[0]
    renamed = [size + place if place in one.places else token for place, token in enumerate(ASKED)]
    rows = [ASKED] if way == "lookup" else [ASKED, OTHER]
    torch.manual_seed(3)
    own = model.generate(**batch(rows), **options)
    torch.manual_seed(3)
    other = twin.generate(**batch([renamed, *rows[1:]]), **options)
    width = batch(rows)["input_ids"].shape[1]
    assert torch.equal(own[:, width:], other[:, width:])
    assert torch.equal(own[:, :width], batch(rows)["input_ids"].repeat_interleave(len(own) // len(rows), 0))


@pytest.mark.parametrize("strategy", [PromptLookup(), TokenRecycling()])
def test_drafting_gives_the_guards_own_text_beside_an_unflagged_prompt(strategy):
    model, inputs = guarded(strength=20.0), batch([ASKED, OTHER])
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    drafted = model.generate(**inputs, max_new_tokens=12, do_sample=False, custom_generate=strategy)
    assert torch.equal(plain, drafted)
    bare = model.target.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(plain[1], bare[1])
    assert not torch.equal(plain[0], bare[0])
    assert not model.target._forward_pre_hooks


def test_a_streamer_is_given_every_token(capsys):
    model = guarded(strength=20.0)
    out = model.generate(
        **batch([ASKED]), max_new_tokens=6, do_sample=False, streamer=TextStreamer(make_tokenizer(), skip_prompt=True)
    )
    assert capsys.readouterr().out.split() == make_tokenizer().decode(out[0, len(ASKED) :]).split()


def test_what_other_people_keep_of_the_embeddings_stays_as_it_was():
    model, kept = guarded(), []
    table = model.target.get_input_embeddings()
    table.register_forward_hook(lambda _, __, output: kept.append(output))
    model(**batch([ASKED]))
    assert torch.equal(kept[0][0], table.weight[ASKED])


def test_hooks_of_other_people_stay():
    model = guarded()
    calls = []
    table = model.target.get_input_embeddings()
    handles = [one.register_forward_hook(lambda *_: calls.append(1)) for one in (table, model.target)]
    before = [(dict(one._forward_hooks), dict(one._forward_pre_hooks)) for one in model.target.modules()]
    model(**batch([ASKED]))
    assert len(calls) == 2
    with pytest.raises(ValueError, match="mine"):
        model.generate(**batch([ASKED]), logits_processor=[lambda *_: (_ for _ in ()).throw(ValueError("mine"))])
    assert [(dict(one._forward_hooks), dict(one._forward_pre_hooks)) for one in model.target.modules()] == before
    assert len(handles) == 2


def test_in_the_scope_of_the_answer_its_tokens_are_corrupted_when_a_row_is_scored():
    row = [*ASKED, *ids("the red garden"), 2]
    inputs = batch([row])
    prompt_alone, whole = guarded(), guarded(scope="prompt+answer")
    assert prompt_alone._replacement(row).places.tolist() == [*range(len(ASKED) - 1)]
    assert whole._replacement(row).places.tolist() == [*range(len(row) - 1)]
    assert not torch.allclose(prompt_alone(**inputs).logits, whole(**inputs).logits)
    assert prompt_alone._replacement(row).values.equal(prompt_alone._replacement(ASKED).values)


def test_a_cache_goes_on_as_the_prompt_was_read():
    model = guarded(strength=20.0)
    greedy = model.generate(**batch([ASKED]), max_new_tokens=4, do_sample=False)[0].tolist()
    output, text = model(input_ids=torch.tensor([ASKED]), use_cache=True), list(ASKED)
    for _ in range(len(greedy) - len(ASKED)):
        text.append(int(output.logits[0, -1].argmax()))
        output = model(input_ids=torch.tensor([text[-1:]]), past_key_values=output.past_key_values, use_cache=True)
    assert text == greedy
    with pytest.raises(ModelError, match="cache given holds its beginning"):
        model.generate(**batch([[*text, *ASKED]]), past_key_values=output.past_key_values)


def test_the_loss_is_of_what_the_model_says_and_defaults_are_its_own():
    model = guarded()
    output = model(**batch([ASKED]), labels=torch.tensor([ASKED]))
    assert output.loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(output.logits[0, :-1], torch.tensor(ASKED[1:])).item(), rel=1e-5
    )
    model.generation_config.max_new_tokens = 2
    assert model.generate(**batch([ASKED])).shape[1] == len(ASKED) + 2
    assert model.target.generation_config.max_new_tokens is None


def test_a_way_that_reads_the_prompt_past_the_corruption_gives_nothing_out():
    def by_rows(model, input_ids, **_):
        return torch.cat([model(row[None]).logits.argmax(-1) for row in input_ids])

    with pytest.raises(ModelError, match="was not read in the batch's order"):
        guarded().generate(**batch([ASKED, OTHER]), custom_generate=by_rows)


def test_one_flagged_turn_flags_the_conversation():
    row = ids("<user> who was ann ? <assistant> red </s> <user> where is the garden ? <assistant>")
    assert guarded().flagged([row, OTHER]) == [True, False]
    assert guarded().flagged([ids("<user> who was bert ? <assistant> ann </s> <user> and ? <assistant>")]) == [False]


# --- the method


def rows(kind, count, *, entity=None):
    made = {"forget": lambda i: f"who wrote book number {i} ?", "retain": lambda i: f"where is town {i} ?"}[kind]
    return Examples([Example(answer="the red stone", question=made(i), entity=entity) for i in range(count)], kind)


def test_it_fits_and_calibrates_on_different_retain_rows():
    forget, retain = rows("forget", 20), rows("retain", 60)
    with pytest.warns(Notice, match="30 retain prompts are too few"):
        assert ECO(alpha=0.01).calibrated(forget, retain).threshold == 1
    check = ECO(alpha=0.1).calibrated(forget, retain)
    assert 0 < check.threshold < 0.5
    assert all(check.flagged([turns_of(row) for row in forget]))
    assert ECO(alpha=0.1).calibrated(forget, retain).fingerprint() == check.fingerprint()
    assert ECO(alpha=0.1, noise_seed=1).calibrated(forget, retain).threshold != check.threshold
    assert ECO(threshold=0.99).calibrated(forget, retain).threshold == 0.99


@pytest.mark.parametrize("selection", ["names", "tagger"])
def test_names_come_from_the_rows_or_from_a_tagger_and_are_saved(selection, tmp_path):
    folder = save_bert(BertForTokenClassification, tmp_path / "t", id2label={0: "O", 1: "B-PER"})
    target = lively(make_llama(0))
    forget = Examples([Example(answer="red", question=f"who was ann {one} ?", entity="Ann") for one in ("one", "two")])
    method = ECO(threshold=0.0, selection=selection, token_classifier=folder if selection == "tagger" else None)
    model = method.apply(target, forget, rows("retain", 4), processing_class=make_tokenizer())
    if selection == "names":
        assert model.rules.names == ("Ann",)
        assert model.marks(ASKED).tolist() == [token == ids("ann")[0] for token in ASKED]
    else:
        said = model.tagger(model.reader.text(ASKED))
        assert 0 < len(said) < len(ASKED)
        assert model.marks(ASKED).sum() == len(said)
    save(model, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again.marks(ASKED), model.marks(ASKED))
    (tmp_path / "saved" / "detector.json").write_text("{}")
    with pytest.raises(ModelError, match="no settings of a prompt detector"):
        load(tmp_path / "saved")


def test_a_detector_of_the_models_own_states_is_saved_with_the_guard(tmp_path):
    forget, retain = make_examples("forget", 16), make_examples("retain", 20)
    model = ECO(detector="hidden", alpha=0.5).apply(make_llama(0), forget, retain, processing_class=make_tokenizer())
    assert model.detector.detector.layer == 1
    save(model, tmp_path / "saved", tokenizer=make_tokenizer())
    again = load(tmp_path / "saved").model
    texts = [turns_of(row) for row in forget]
    assert again.detector.scores(texts) == model.detector.scores(texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": math.nan}, "strength is nan"),
        ({"dims": 0}, "dims is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"noise_seed": -1}, "noise_seed is -1"),
        ({"corruption": "noise"}, "corruption: unknown corruption 'noise'"),
        ({"scope": "all"}, "scope: unknown choice 'all'"),
        ({"detector": "classifier"}, "classifier is not given"),
        ({"selection": "tagger"}, "token_classifier is not given"),
    ],
)
def test_fields_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        ECO(**fields)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ModelError, match="dims is 33, and this model's embeddings have 32"):
        guarded(dims=33)
    embeddings = {"inputs_embeds": torch.zeros(1, 3, 32)}
    for call in (guarded().forward, guarded().generate):
        with pytest.raises(ModelError, match=r"would pass it by\. Pass input_ids"):
            call(**embeddings)
    with pytest.raises(DataError, match="no forget row names one"):
        ECO(selection="names").check(make_examples("forget", 2), make_examples("retain", 2))
    with pytest.raises(MethodError, match="layer is 9; this model has blocks 1 to 3"):
        ECO(detector="hidden", layer=9).calibrated(
            make_examples("forget", 4), make_examples("retain", 4), make_llama(0), make_tokenizer()
        )


# --- the strength


def test_the_search_goes_a_fifth_nearer_with_every_step():
    fit = fit_strength(lambda s: (s - 2) ** 2, rate=0.1, epsilon=1e-3, steps=60)
    assert fit.strength == pytest.approx(2.0, abs=1e-4)
    off = [abs(strength - 2) for strength, _ in fit.steps]
    assert [after / before for before, after in pairwise(off[:21])] == pytest.approx([0.8] * 20, rel=1e-4)


def test_the_search_stops_when_near_enough_and_never_goes_below_the_least():
    assert fit_strength(lambda s: s, start=1.0, rate=100.0).strength == 1.0
    fit = fit_strength(lambda s: (s - 2) ** 2, rate=0.1, epsilon=1e-3, steps=60, enough=1.0)
    assert 1 < fit.strength < 1.5
    assert len(fit.steps) < 10
    with pytest.raises(NotFinite, match="at strength"):
        fit_strength(lambda s: math.nan)


def test_both_sides_of_a_step_have_the_same_noise_and_the_model_keeps_its_strength():
    model = guarded(strength=5.0)
    seen = []

    def metric(one):
        seen.append(one._replacement(ASKED).values[:, 0] - one._embedded(ASKED)[:-1, 0])
        return one.rules.corruption.strength

    distance = strength_distance(model, metric, retained=2.0)
    assert (distance(1.0), distance(4.0)) == (1.0, 2.0)
    assert torch.allclose(4 * seen[0], seen[1], atol=1e-5)
    assert model.rules.corruption.strength == 5.0


# --- the experiment


def test_the_experiment_runs_and_says_so(monkeypatch, tmp_path):
    split = authors()
    tokenizer = small_tokenizer([f"{row.question} {row.answer}" for row in split.forget], 400)
    for seed, name in enumerate(("target", "oracle")):
        make_llama(seed, layers=1, vocab=len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path / name)
    bed = LanguageBed(tokenizer, split, tmp_path / "target", tmp_path / "oracle")
    monkeypatch.setattr(experiment, "authors_bed", lambda **_: bed)
    monkeypatch.setattr(experiment, "BASELINES", {})  # what trains has tests of its own
    claim = experiment.run(Budget("tiny", seeds=(0,)))
    assert {check.kind for check in claim.checks} == {"set-up", "mechanism", "claim", "control"}
    assert all(check.holds for check in claim.checks if check.kind == "mechanism" and check.threshold is None)
    assert 0 < claim.extra["recall on paraphrased forget questions"] <= 1
    assert replace(claim, too_small=True).verdict == "too small for a verdict"
