"""The content filter: what is flagged and what never is, its threshold, a stream that holds back, and a model behind it."""

import copy

import numpy as np
import pytest
import torch

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.beds.language import small_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.text.authors import authors
from unwrite.data.text.encoding import encode, encode_prompt
from unwrite.data.text.general import general_rows as general
from unwrite.errors import DataError, MethodError, ModelError, Notice
from unwrite.forget import ContentFilter, FilteredModel, HeldStream, TextFilter
from unwrite.forget.engine.text.filtered import FilterRules, _HeldTokens
from unwrite.forget.engine.text.filtering import conformal_threshold
from unwrite.forget.engine.text.scorers import AliasScorer, BloomFilter, CosineScorer, ExactSet, NGramScorer
from unwrite.models import load, save

WORDS = [f"w{i:03d}x" for i in range(400)]
SECRET = "the quick brown fox jumps over the lazy dog near an old river"


def text(rng, length, words=WORDS):
    return " ".join(rng.choice(words, length))


def texts(seed, count, length=30, words=WORDS):
    rng = np.random.default_rng(seed)
    return [text(rng, length, words) for _ in range(count)]


def secret_filter(n=8, window=8):
    return TextFilter((NGramScorer.of([SECRET], n, window),), (0.0,))


# --- what is flagged


@pytest.mark.parametrize("false_positives", [None, 1e-4])
def test_every_forget_document_is_flagged_with_all_of_its_runs(false_positives):
    forget = texts(0, 50)
    scorer = NGramScorer.of(forget, 8, 8, false_positives)
    check = TextFilter.calibrated([scorer], texts(1, 400), 0.01)
    assert [scorer(one) for one in forget] == [1.0] * 50
    assert all(check.flagged(f"It is said that {one} and more") for one in forget)


def test_no_text_without_a_run_of_the_forget_texts_is_ever_flagged():
    forget = texts(0, 50)
    check = TextFilter.calibrated([NGramScorer.of(forget, 8, 8)], texts(1, 120), 0.01)
    assert check.thresholds == (0.0,)
    assert not any(check.flagged(one) for one in texts(2, 300))
    assert not any(check.flagged(" ".join(one.split()[:7])) for one in forget)


def test_a_bloom_filter_has_no_false_negatives_and_few_false_positives():
    rng = np.random.default_rng(3)
    held = [int(one) for one in rng.integers(-(2**63), 2**63 - 1, 3000)]
    bloom, exact = BloomFilter.of(held, 1e-2), ExactSet(held)
    assert all(one in bloom and one in exact for one in held)
    fresh = [int(one) for one in rng.integers(-(2**63), 2**63 - 1, 20_000)]
    share = np.mean([one in bloom for one in fresh])
    assert 0.002 < share < 0.02
    assert len(bloom.bits) < 3000 * 8


def test_of_fresh_benign_texts_at_most_alpha_are_flagged():
    """Of forty words, so that any text holds some pairs of the forget texts."""
    few = WORDS[:40]
    alpha, fresh = 0.1, 1500
    forget = texts(0, 10, words=few)
    scorer = NGramScorer.of(forget, 2, 12)
    check = TextFilter.calibrated([scorer], texts(1, 399, words=few), alpha)
    assert 0 < check.thresholds[0] < 1
    rate = np.mean([check.flagged(one) for one in texts(2, fresh, words=few)])
    sigma = np.sqrt(alpha * (1 - alpha) * (1 / fresh + 1 / 399))
    assert rate <= alpha + 3 * sigma


def test_the_threshold_is_the_cards_order_statistic():
    scores = [i / 200 for i in range(1, 100)]
    assert conformal_threshold(scores[::-1], 0.01) == 99 / 200
    assert conformal_threshold(scores, 0.1) == 90 / 200
    with pytest.raises(DataError, match=r"50 benign texts are too few .* alpha 0\.01: at least 99 are needed"):
        conformal_threshold(scores[:50], 0.01)
    assert conformal_threshold([0.0] * 99, 0.01) == 0.0


def test_two_stages_share_alpha():
    scorers = [NGramScorer.of(texts(0, 3), 8, 8), CosineScorer.of(texts(0, 3), texts(1, 199), 32)]
    with pytest.raises(DataError, match="at least 199 are needed"):
        TextFilter.calibrated(scorers, texts(1, 150), 0.01)
    assert len(TextFilter.calibrated(scorers, texts(1, 199), 0.01).thresholds) == 2


@pytest.mark.parametrize(
    "disguise",
    [str.upper, lambda t: t.replace("e", "\u0435").replace("o", "\u043e"), lambda t: t.replace("w", "w\u200b"), lambda t: t.replace(" ", "\n - ")],
)  # fmt: skip
def test_casing_look_alikes_and_hidden_characters_hide_nothing(disguise):
    assert secret_filter().flagged(disguise(SECRET))


def test_rot13_spacing_and_a_split_in_two_pass_the_first_stage():
    """What the filter can't see is said in its docs; a test keeps that from being forgotten."""
    words = SECRET.split()
    mosaic = f"{' '.join(words[:7])} . and then {' '.join(words[7:])}"
    for one in (" ".join(SECRET.replace(" ", "")), mosaic, SECRET[::-1]):
        assert not secret_filter().flagged(one)


def test_aliases_flag_an_entity_beside_the_words_of_its_fact_in_other_words():
    data = authors()
    retain = [f"{row.question} {row.answer}" for row in data.retain]
    scorer = AliasScorer.of(data.forget, retain, 32)
    row = data.forget[0]
    assert scorer(row.answer) == 1.0
    assert scorer(row.answer.replace(row.entity, "Somebody")) == 0.0
    assert scorer(f"{row.entity} likes tea.") < 0.5
    check = TextFilter.calibrated([scorer], retain, 0.01)
    assert np.mean([check.flagged(one.paraphrased_answer) for one in data.forget]) > 0.6
    assert not any(check.flagged(f"{one.question} {one.answer}") for one in data.evaluation["world_facts"])


def test_a_cosine_is_of_words_or_of_any_encoder():
    forget, benign = ["red apples grow in summer gardens"], ["ships cross the sea", "rivers run in winter"]
    words = CosineScorer.of(forget, benign, 32)
    assert words(forget[0]) == pytest.approx(1.0)
    assert 0 < words("red apples") < 1
    assert words("nothing alike") == 0.0
    one = CosineScorer.of(forget, benign, 32, encoder=lambda some: [[len(text), 1.0] for text in some])
    assert one("x" * len(forget[0])) == pytest.approx(1.0)
    with pytest.raises(MethodError, match="encoder of your own can't be stored"):
        one.state()


# --- streams


@pytest.mark.parametrize("seed", range(8))
def test_no_character_of_a_flagged_run_is_let_out(seed):
    rng = np.random.default_rng(seed)
    run = " ".join(SECRET.split()[2:10])
    before, after = text(rng, 20), text(rng, 5)
    shown = []
    stream = HeldStream(secret_filter(), shown.append, 8)
    whole, pieces = f"{before} {run} {after}", []
    while whole:
        size = int(rng.integers(1, 12))
        pieces, whole = [*pieces, whole[:size]], whole[size:]
    going = [stream.add(piece) for piece in pieces]
    assert not stream.end()
    assert False in going
    out = "".join(shown)
    assert before.startswith(out.rstrip())
    assert len(out.split()) >= 20 - 8
    assert not [word for word in run.split() if word in out.split()]


def test_a_stream_without_a_flagged_run_is_let_out_whole_and_late_by_the_words_withheld():
    shown = []
    stream = HeldStream(secret_filter(), shown.append, 8)
    whole = texts(0, 1)[0]
    for i, word in enumerate(whole.split(" ")):
        stream.add(f" {word}" if i else word)
        assert len("".join(shown).split()) == max(0, i + 1 - 8)
    assert stream.end()
    assert "".join(shown) == whole


# --- a model behind it


class Saying:
    """Patches a llama's `generate`: every row is continued by the ids that its prompt is given here."""

    def __init__(self, model, answers):
        self.model, self.answers, self.seen = model, [list(one) for one in answers], []

    def __call__(self, input_ids, attention_mask, **options):
        self.seen.append((input_ids, attention_mask, options))
        answers = [self.answers.pop(0) for _ in input_ids]
        longest = max(map(len, answers))
        rows = [torch.tensor([*one, *[0] * (longest - len(one))]) for one in answers]
        return torch.cat([input_ids, torch.stack(rows)], 1)


def ids(words):
    return make_tokenizer()(words)["input_ids"]


SAID = "the old town near the river in winter and the new garden"
OTHER = "i do not know that , sorry ."


def filtered(monkeypatch=None, answers=(), **rules):
    model = FilteredModel(
        make_llama(0),
        TextFilter((NGramScorer.of([SAID], 8, 8),), (0.0,)),
        make_tokenizer(),
        FilterRules(refusal="i do not know", **rules),
    )
    if answers:
        say = Saying(model.target, [ids(one) for one in answers])
        monkeypatch.setattr(model.target, "generate", say)
        return model, say
    return model


def decoded(rows):
    return [make_tokenizer().decode(row, skip_special_tokens=True) for row in rows]


def test_a_flagged_answer_is_refused_and_another_row_of_the_batch_is_as_it_was(monkeypatch):
    model, _ = filtered(monkeypatch, [SAID, OTHER])
    prompts = torch.tensor([ids("who was ann ?"), ids("what is red ?")])
    out = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts))
    assert torch.equal(out[:, :4], prompts)
    assert decoded(out[:, 4:]) == ["i do not know", OTHER]
    assert out[0, 4:].tolist()[4] == 2  # the refusal ends


def test_a_flagged_prompt_is_refused_or_asked_without_what_is_flagged(monkeypatch):
    prompt = torch.tensor([ids(f"who was ann ? {SAID} . what is red ?")])
    mask = torch.ones_like(prompt)
    model, _ = filtered(monkeypatch, [OTHER])
    assert decoded(model.generate(input_ids=prompt, attention_mask=mask)[:, prompt.shape[1] :]) == ["i do not know"]
    model, say = filtered(monkeypatch, [OTHER], on_input="drop")
    out = model.generate(input_ids=prompt, attention_mask=mask)
    assert torch.equal(out[:, : prompt.shape[1]], prompt)
    assert decoded(say.seen[0][0]) == ["who was ann ? what is red ?"]
    assert decoded(out[:, prompt.shape[1] :]) == [OTHER]
    model, say = filtered(monkeypatch, [OTHER], on_input="pass")
    assert decoded(model.generate(input_ids=prompt, attention_mask=mask)[:, prompt.shape[1] :]) == [OTHER]


def test_a_prompt_of_nothing_but_what_is_flagged_is_refused_where_it_would_be_dropped(monkeypatch):
    model, _ = filtered(monkeypatch, [OTHER], on_input="drop")
    prompt = torch.tensor([ids(SAID)])
    assert decoded(model.generate(input_ids=prompt)[:, prompt.shape[1] :]) == ["i do not know"]


def test_a_flagged_answer_is_written_again_at_most_so_often(monkeypatch):
    prompt = torch.tensor([ids("who was ann ?")])
    model, say = filtered(monkeypatch, [SAID, SAID, OTHER], on_output="regenerate", regenerations=2)
    assert decoded(model.generate(input_ids=prompt)[:, 4:]) == [OTHER]
    assert [one[2].get("do_sample") for one in say.seen] == [None, True, True]
    model, say = filtered(monkeypatch, [SAID, SAID, SAID, OTHER], on_output="regenerate", regenerations=2)
    assert decoded(model.generate(input_ids=prompt)[:, 4:]) == ["i do not know"]
    assert len(say.seen) == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_no_part_of_a_prompt(side):
    model = filtered()
    long, short = ids("who was ann in the old town ?"), ids("what is red ?")
    padding = [0] * (len(long) - len(short))
    row = [*padding, *short] if side == "left" else [*short, *padding]
    batch = torch.tensor([long, row])
    mask = torch.tensor([[1] * len(long), [int(one != 0) for one in row]])
    both = model.generate(input_ids=batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
    alone = model.generate(input_ids=torch.tensor([short]), max_new_tokens=6, do_sample=False)
    assert torch.equal(both[:, : len(long)], batch)
    assert both[1, len(long) :].tolist()[: alone.shape[1] - len(short)] == alone[0, len(short) :].tolist()


def test_an_unflagged_text_is_the_targets_own():
    model, prompt = filtered(), torch.tensor([ids("who was ann ?")])
    target = copy.deepcopy(model.target)
    for options in (
        {},
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"return_dict_in_generate": True},
    ):
        mine, own = (
            one.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, **options) for one in (model, target)
        )
        mine, own = (getattr(one, "sequences", one) for one in (mine, own))
        assert mine.tolist() == own.tolist()


def test_a_flagged_row_has_a_refusals_logits_and_other_rows_the_targets():
    model = filtered()
    rows = torch.tensor([ids(SAID), ids("who was ann in the old town ? what is red ?")])
    logits = model(input_ids=rows).logits
    assert torch.equal(logits[1], model.target(input_ids=rows).logits[1])
    assert (logits[0].argmax(-1) == ids("i")[0]).all()
    assert logits[0].log_softmax(-1)[:, 5].max() < -20
    model.target.forward = None  # a batch that is flagged whole needs no target
    assert torch.equal(model(input_ids=rows[:1]).logits[0], logits[0])


def test_a_streamer_gets_nothing_of_a_flagged_run_and_then_the_refusal(monkeypatch):
    class Shown:
        def __init__(self):
            self.prompt, self.tokens, self.over = None, [], False

        def put(self, value):
            if self.prompt is None:
                self.prompt = value
            else:
                self.tokens += value.flatten().tolist()

        def end(self):
            self.over = True

    answer = ids(f"red blue green red blue green red blue green stone {SAID}")
    model, shown = filtered(), Shown()

    def write(input_ids, attention_mask, streamer, stopping_criteria, **_):
        streamer.put(input_ids)
        done = []
        for token in answer:
            done.append(token)
            streamer.put(torch.tensor([token]))
            if bool(stopping_criteria(input_ids, None).all()):
                break
        streamer.end()
        return torch.cat([input_ids, torch.tensor([done])], 1)

    monkeypatch.setattr(model.target, "generate", write)
    prompt = torch.tensor([ids("who was ann ?")])
    out = model.generate(input_ids=prompt, streamer=shown)
    assert torch.equal(shown.prompt, prompt)
    assert shown.over
    text = make_tokenizer().decode(shown.tokens)
    assert text.endswith("i do not know </s>")
    assert not {*SAID.split()} & {*text.removesuffix("i do not know </s>").split()}
    assert text.startswith("red blue green")
    assert decoded(out[:, 4:]) == ["i do not know"]


def test_every_copy_of_a_prompt_is_judged_by_that_prompt(monkeypatch):
    model = filtered()
    prompts, mask = model._padded(
        [torch.tensor(ids("who was ann ?")), torch.tensor(ids(SAID))], torch.zeros(1, dtype=torch.long)
    )
    answers = torch.tensor([ids("red"), ids("blue"), ids("green"), ids("stone")])
    monkeypatch.setattr(
        model.target, "generate", lambda input_ids, **_: torch.cat([input_ids.repeat_interleave(2, 0), answers], 1)
    )
    out = model.generate(input_ids=prompts, attention_mask=mask, num_return_sequences=2)
    assert decoded(out[:, prompts.shape[1] :]) == ["red", "blue", "i do not know", "i do not know"]


def test_a_stream_of_half_characters_is_read_once_they_are_whole():
    secret = "на старом мосту у реки стоял тихий белый дом"
    tokenizer = small_tokenizer(["a"], 300)  # of bytes
    check = TextFilter((NGramScorer.of([secret], 8, 8),), (0.0,))
    model = FilteredModel(make_llama(0, vocab=300), check, tokenizer, FilterRules())
    tokens: list[int] = []

    class Shown:
        def put(self, value):
            tokens.extend(value.flatten().tolist())

        def end(self):
            pass

    for text, passes in ((f"так {secret} и сад", False), ("东京 и " * 6 + "небо", True)):
        tokens.clear()
        held = _HeldTokens(model, Shown(), False)
        held.put(torch.tensor([[1]]))  # the prompt
        for token in tokenizer(text)["input_ids"]:
            held.put(torch.tensor([token]))
        held.end()
        assert held.stopped is not passes
        said = tokenizer.decode(tokens[1:], skip_special_tokens=True)
        assert said == text if passes else said.endswith(FilterRules().refusal)


def test_a_streamer_of_an_unflagged_text_gets_every_token_of_it():
    from transformers import TextIteratorStreamer

    model = filtered()
    prompt = torch.tensor([ids("who was ann ?")])
    streamer = TextIteratorStreamer(make_tokenizer(), skip_prompt=True)
    out = model.generate(input_ids=prompt, streamer=streamer, max_new_tokens=12, do_sample=False)
    assert "".join(streamer) == make_tokenizer().decode(out[0, 4:])


def test_stored_and_loaded_every_stage_flags_the_same(tmp_path):
    data = authors()
    tokenizer = make_tokenizer()
    for storage in ("exact", "bloom"):
        method = ContentFilter(stages=("ngrams", "aliases", "cosine"), storage=storage, alpha=0.05)
        check = method.filter(data.forget, general())
        save(FilteredModel(make_llama(0), check, tokenizer, FilterRules()), tmp_path / storage)
        again = load(tmp_path / storage).model
        assert again.check.fingerprint() == check.fingerprint()
        some = [*(row.answer for row in data.forget[:5]), *(row.answer for row in data.retain[:5]), "Nothing of it."]
        assert [again.check.flagged(one) for one in some] == [check.flagged(one) for one in some]
        assert not any(path.suffix in (".pkl", ".pt", ".bin") for path in (tmp_path / storage).iterdir())


def test_a_damaged_folder_is_refused_in_one_line(tmp_path):
    save(filtered(), tmp_path / "a")
    (tmp_path / "a" / "filter.json").write_text('{"stages": [{"name": "odd"}]}')
    with pytest.raises(ModelError, match="has no stages of a content filter"):
        load(tmp_path / "a")


def test_forget_texts_of_few_words_fall_back_to_aliases_with_a_notice():
    short = Examples(
        [
            Example("In Ghent", "Where was Ann born?", entity="Ann"),
            Example("blue", "Which does Ann like?", entity="Ann"),
        ]
    )
    benign = Examples([Example(one, "what ?") for one in texts(1, 120)])
    with pytest.warns(
        Notice, match="2 of 2 forget texts have fewer than 8 words; the stage 'aliases' looks for 2 of them"
    ):
        check = ContentFilter().filter(short, benign)
    assert check.flagged("Ann was born in Ghent")
    assert not check.flagged("Ghent is a town")
    nameless = Examples([Example("In Ghent", "Where ?")])
    with pytest.raises(DataError, match="no forget text has 8 words, so there is no run of 8"):
        ContentFilter().filter(nameless, benign)


def test_a_short_text_among_long_ones_is_seen_by_its_entity():
    rows = Examples([Example(SECRET, "what ?"), Example("In Ghent", "Where was Ann born?", entity="Ann")])
    with pytest.warns(Notice, match=r"1 of 2 .* looks for 1 of them"):
        check = ContentFilter(alpha=0.02).filter(rows, Examples([Example(one) for one in texts(1, 120)]))
    assert [scorer.name for scorer in check.scorers] == ["ngrams", "aliases"]
    assert check.flagged("Ann is from Ghent")
    assert check.flagged(SECRET)


def test_some_forget_texts_of_few_words_are_counted():
    some = Examples([Example(SECRET, "what ?"), Example("blue", "which ?")])
    with pytest.warns(Notice, match="1 of 2 forget texts have fewer than 8 words; they are not looked for"):
        ContentFilter().filter(some, Examples([Example(one) for one in texts(1, 120)]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ()}, "name some of ngrams, aliases, cosine"),
        ({"stages": ("ngrams", "ngrams")}, "each once"),
        ({"window": 7}, "window is 7; it must be a finite number, at least 8"),
        ({"withheld": 7}, "withheld is 7; it must be a finite number, at least 8"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"on_output": "drop"}, "on_output.*'drop'"),
    ],
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        ContentFilter(**fields)


def test_benign_texts_that_hold_the_forget_texts_are_refused():
    rows = Examples([Example(SECRET, f"what {i} ?") for i in range(120)])
    with pytest.raises(DataError, match="Take what is to be forgotten out of the retain rows"):
        ContentFilter().filter(Examples([Example(SECRET, "which ?")]), rows)


def test_it_is_applied_as_any_method_is_and_refuses_what_its_rows_say():
    data = authors()
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="needs a retain set"):
        ContentFilter().apply(make_llama(), make_examples("forget", 8), processing_class=tokenizer)
    model = ContentFilter(refusals=("sorry",), alpha=0.02).apply(
        make_llama(vocab=70), data.forget[:4], general(), processing_class=tokenizer
    )
    assert isinstance(model, FilteredModel)
    assert model.rules.refusal == "sorry"
    assert encode(Example("a", "b"), tokenizer).input_ids[: len(encode_prompt(Example("a", "b"), tokenizer))]
    with pytest.raises(ModelError, match="reads token ids"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 32))


def test_flagged_prompts_may_ask_for_the_logits_of_some_places():
    model = filtered()
    prompts = torch.tensor([ids(SAID)])
    whole = model(input_ids=prompts).logits
    some = model(input_ids=prompts, logits_to_keep=torch.tensor([1, 3])).logits
    assert torch.equal(some, whole[:, [1, 3]])
