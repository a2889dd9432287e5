"""Re-introduction: what hints hold, what U and A say of models that read, remember or do neither, and what is refused."""

import codecs
import dataclasses
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import WORDS, make_llama, make_tokenizer
from unwrite.audit import (
    Reintroduce,
    TextContext,
    copy_control,
    disguised,
    false_refusals,
    reintroduced,
    reintroduction,
    success_by_disguise,
)
from unwrite.audit.attacks.reintroduction import reintroduction_rate
from unwrite.audit.reintroducing import figures_of
from unwrite.audit.text.hints import LEVELS, HintMaker, hidden_words
from unwrite.data import Example, Examples, ForgetSplit, read
from unwrite.data.text.authors import authors
from unwrite.data.text.encoding import encode
from unwrite.errors import DataError, MethodError, Notice
from unwrite.scoring.intervals import wilson
from unwrite.scoring.words import forms_of, says, words_of

PEOPLE = ("ann", "bert", "cora", "dov")
COLOURS = ("red", "blue", "green", "old")
STOP = WORDS.index(".")


def rows_about(people=PEOPLE):
    rows = []
    for i, name in enumerate(people):
        own, other = COLOURS[i % 4], COLOURS[(i + 1) % 4]
        rows += [
            Example(
                question=f"what book was his {name} ?",
                answer=f"the {own} book .",
                paraphrased_answer=f"a {own} book",
                perturbed_answers=(f"a {other} book",),
                premises=(f"{name} wrote by the {own} river",),
                entity=name,
            ),
            Example(question=f"where lives {name} ?", answer=f"{name} lives near the garden .", entity=name),
        ]
    return Examples(rows, "forget")


def split(rows=None):
    retain = [
        Example(question=f"who wrote {n} ?", answer=f"song {n} in winter", entity=f"other {n}") for n in ("six", "ten")
    ]
    return ForgetSplit(rows or rows_about(), Examples(retain, "retain"), name="people")


class Model(nn.Module):
    """Logits of a rule: `likes(ids)` of one prefix gives the tokens that come next."""

    def __init__(self, likes, positions=400):
        super().__init__()
        self.weight, self.likes = nn.Parameter(torch.zeros(1)), likes
        self.config = SimpleNamespace(max_position_embeddings=positions)

    def forward(self, input_ids, attention_mask=None, **_):
        logits = torch.zeros(*input_ids.shape, 70)
        for row, ids in enumerate(input_ids.tolist()):
            for at in range(len(ids)):
                logits[row, at, list(self.likes(ids[: at + 1]))] = 6.0
        return SimpleNamespace(logits=logits)


def knowing(rows):
    """Remembers every row's answer by its question, whatever stands before it."""
    tokenizer, known = make_tokenizer(), {}
    for row in rows:
        whole = encode(row, tokenizer)
        asked = tuple(tokenizer(row.question)["input_ids"])
        known[asked] = whole.input_ids[whole.prompt_length :]

    def likes(ids):
        mark = len(ids) - 1 - ids[::-1].index(4) if 4 in ids else len(ids)  # <assistant>
        answer = next((one for asked, one in known.items() if tuple(ids[mark - len(asked) : mark]) == asked), [])
        return answer[len(ids) - mark - 1 :][:1]

    return Model(likes)


def reading():
    """Begins with a word it was told, goes on as the text before did behind the same word, and ends at a full stop."""

    def likes(ids):
        if ids[-1] == 4:  # <assistant>
            return set(ids)
        return {2} if ids[-1] == STOP else {after for one, after in pairwise(ids) if one == ids[-1]}

    return Model(likes)


def ignorant():
    return Model(lambda ids: set())


def of(model, rows=None, tokenizer=None):
    return TextContext(model, split(rows), tokenizer or make_tokenizer(), cached=False)


def table(after, before, oracle=None, **options):
    contexts = [None if one is None else of(one) for one in (after, before, oracle)]
    return reintroduction(*contexts, **options)


def constant(values):
    return {level: [value] * 4 for level, value in values.items()}


# --- U and A


def test_u_of_no_hint_is_zero_and_of_a_hint_that_reaches_the_model_before_is_one():
    scores = {"after": constant({"none": 0.1, "verbatim": 0.9}), "before": constant({"none": 0.9, "verbatim": 0.95})}
    none, verbatim = figures_of(scores, list("aabb"))
    assert none.rate == 0.0
    assert none.rate_interval == (0.0, 0.0)
    assert verbatim.rate == pytest.approx(1.0)


def test_the_cards_figures():
    assert reintroduction_rate(0.86, 0.1, 0.9) == pytest.approx(0.95)
    scores = {
        "after": constant({"none": 0.1, "related": 0.45, "verbatim": 0.86}),
        "before": constant({"none": 0.9, "related": 0.9, "verbatim": 0.9}),
        "oracle": constant({"none": 0.1, "related": 0.2, "verbatim": 0.86}),
    }
    figures = {one.level: one for one in figures_of(scores, list("abcd"))}
    assert figures["verbatim"].rate == pytest.approx(0.95)
    assert figures["related"].advantage == pytest.approx(0.25)


def test_a_fall_of_less_than_a_twentieth_counts_as_one():
    assert reintroduction_rate(0.2, 0.1, 0.1) == pytest.approx(2.0)
    assert reintroduction_rate(0.2, 0.1, 0.05) == pytest.approx(2.0)


def test_a_model_beside_itself_as_the_retrained_one_has_no_advantage_at_any_level():
    shown = table(make_llama(0), make_llama(1), make_llama(0))
    assert [one.level for one in shown.levels] == list(LEVELS)
    assert {one.advantage for one in shown.levels} == {0.0}
    assert {one.advantage_interval for one in shown.levels} == {(0.0, 0.0)}


def test_the_model_before_has_all_its_knowledge_as_advantage():
    before, oracle = knowing(rows_about()), reading()
    shown = table(before, before, oracle)
    none = shown["none"]
    assert none.advantage == pytest.approx(none.before - none.oracle)
    assert none.advantage > 0.3
    assert shown.verdict.startswith("suppressed, not removed: it knows more than the retrained model at topic")


def test_a_uniform_model_brings_nothing_back_and_reads_less_than_the_retrained_one():
    shown = table(ignorant(), knowing(rows_about()), reading())
    assert all(abs(one.rate) < 1e-6 for one in shown.levels)
    assert shown["verbatim"].advantage < 0
    assert "reads less of what it is told than the retrained model at paraphrase and verbatim" in shown.verdict
    assert shown.minimal is None


def test_swapping_the_models_negates_a():
    one = table(knowing(rows_about()), make_llama(1), reading())
    other = table(reading(), make_llama(1), knowing(rows_about()))
    for level in LEVELS:
        assert one[level].advantage == pytest.approx(-other[level].advantage)
        low, high = one[level].advantage_interval
        assert other[level].advantage_interval == pytest.approx((-high, -low))


def test_a_model_that_never_knew_but_reads_gives_verbatim_answers_back_and_is_no_suppression():
    shown = table(reading(), knowing(rows_about()), reading())
    assert shown["verbatim"].rate > 0.5
    assert shown["verbatim"].rate >= shown["none"].rate
    assert shown.verdict == "hints bring back no more than in a retrained model"
    assert shown.minimal is not None


def test_intervals_are_over_entities_and_not_over_rows():
    values = [0.0] * 10 + [1.0] * 10
    scores = {
        "after": {"none": values},
        "before": {"none": [1.0] * 20},
        "oracle": {"none": [0.0] * 20},
    }
    two = figures_of(scores, ["a"] * 10 + ["b"] * 10)[0]
    twenty = figures_of(scores, [str(i) for i in range(20)])[0]
    assert two.advantage_interval == (0.0, 1.0)
    assert 0.2 < twenty.advantage_interval[0] < twenty.advantage_interval[1] < 0.8
    assert (two.entities, twenty.entities, two.rows) == (2, 20, 20)


def test_a_level_is_measured_on_the_rows_that_have_it_for_the_start_too():
    scores = {
        "after": {"none": [0.0, 0.5], "premises": [0.4, None]},
        "before": {"none": [0.8, 0.5], "premises": [0.8, None]},
    }
    premises = figures_of(scores, ["a", "b"])[1]
    assert premises.rows == 1
    assert premises.rate == pytest.approx(0.5)


def test_without_a_retrained_model_the_table_and_the_report_cannot_separate():
    assert table(reading(), knowing(rows_about())).verdict.startswith("cannot separate: without a retrained model")
    attack = Reintroduce(levels=("none", "verbatim"))
    curves = {"after": attack(of(reading())), "before": attack(of(knowing(rows_about()))), "oracle": None}
    said = attack.remark({name: curve for name, curve in curves.items() if curve}, "after")
    assert (
        "bring half of it back from 'verbatim' on; without a retrained model that cannot tell suppression" in said.text
    )
    assert said.mark == "unknown"


def test_a_base_model_in_the_retrained_ones_place_is_named():
    assert "a base model stands in" in table(reading(), knowing(rows_about()), reading(), stand_in=True).verdict


def test_the_remark_names_the_first_hint_that_brings_half_back_and_what_the_retrained_model_does_not_know():
    def curve(**values):
        return [{"level": float(LEVELS.index(level)), "forget": value} for level, value in values.items()]

    attack = Reintroduce()
    after, before = curve(none=0.1, topic=0.2, related=0.6), curve(none=0.9)
    curves = {"after": after, "before": before, "oracle": curve(none=0.1, topic=0.1, related=0.2)}
    said = attack.remark(curves, "after")
    assert "half of it back from 'related' on; at 'related' it knows 0.40 more" in said.text
    assert said.mark == "bad"
    assert attack.remark(curves | {"oracle": after}, "after").mark == "good"


# --- hints


def test_hints_tell_more_and_more():
    maker = HintMaker(split())
    told = {level: maker.level(level)[0] for level in LEVELS}
    assert told["none"].context == ""
    assert told["topic"].context == "You will be asked about ann."
    assert told["related"].context == "ann lives near garden ."
    assert told["premises"].context == "ann wrote by the red river"
    assert (told["paraphrase"].context, told["verbatim"].context) == ("a red book", "the red book .")
    assert told["renamed"].context == "XXX wrote by the red river"
    assert told["renamed"].row.question == "what book was his XXX ?"
    assert told["renamed"].row.entity == "XXX"


NASTY = (
    "Ghent", "GHENT", "ghént", "G\u200bhent", "Ｇｈｅｎｔ", "Gh\u0435nt", "Ghentish", "seven", "VII", "7th", "٧", "07", "Seventh", "1,949", "1949",
    "１９４９", "Göteborg", "goteborg", "Go\u0308teborg", "JULY", "born-in-Ghent",
)  # fmt: skip
FILLER = ("Ann", "likes", "the", "sea", "and", "東京", "Москва", "river.", "in", "1850", "twenty", "1,9")


@pytest.mark.parametrize("seed", range(60))
def test_related_facts_hold_no_word_of_the_answer_or_its_aliases(seed):
    rng = random.Random(seed)
    words = rng.choices([*NASTY, *FILLER], k=rng.randint(1, 14))
    row = Example("Ghent, on 7 July 1949.", "Where was Ann born?", entity="Ann", aliases=("Göteborg",))
    other = Example(f"Ann {rng.choice([' ', ', ', '-', chr(10)]).join(words)}", "What of Ann?", entity="Ann")
    told = HintMaker(ForgetSplit(Examples([row, other]))).level("related")[0].context
    hidden = hidden_words(row)
    assert {"ghent", "7", "1949", "goteborg"} <= hidden
    assert "ann" not in hidden
    assert not any(says(word.form, hidden) for word in words_of(told))
    assert not [one for one in NASTY if one in told.split()]
    assert {"sea", "東", "mockba"} & forms_of(words) <= forms_of([told])


def test_no_hint_of_the_invented_authors_related_facts_tells_the_answer():
    data = authors()
    for row, hint in zip(data.forget, HintMaker(data).level("related"), strict=True):
        assert not forms_of([hint.context]) & hidden_words(row)
        assert len(words_of(hint.context)) > 20
    assert len({row.entity for row in data.forget}) == 4


def test_rows_about_someone_hash_as_before_and_are_read_from_columns():
    plain = Example("a", "q ?")
    about = dataclasses.replace(plain, entity="x", aliases=("b",), premises=("c",))
    assert Examples([plain]).hash == Examples([about]).hash
    row = {"question": "q ?", "answer": "a", "entity": "x", "aliases": ["b"], "premises": '["c", "d"]'}
    (read_row,) = read([row])
    assert (read_row.entity, read_row.aliases, read_row.premises) == ("x", ("b",), ("c", "d"))


def test_distractors_stand_around_the_hint_at_a_place_drawn_by_the_seed():
    rows = rows_about()
    lines = [HintMaker(split(), distractors=2, seed=seed).level("verbatim")[0].context.split("\n") for seed in range(8)]
    assert all(len(one) == 3 and rows[0].answer in one for one in lines)
    assert len({one.index(rows[0].answer) for one in lines}) > 1
    assert all(one == "the red book ." or "song" in one for some in lines for one in some)
    with pytest.raises(DataError, match=r"distractors is 5, and 2 other rows don't say its answer"):
        HintMaker(split(), distractors=5).level("verbatim")


def test_a_tokenizer_without_a_chat_template_gets_the_template_itself():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    maker = HintMaker(split())
    hint = maker.level("verbatim")[0]
    ids = maker.prompt(hint, tokenizer, None)
    words = "<unk> is <unk> <unk> the red book . <unk> what book was his ann ? <unk>"
    assert tokenizer.decode(ids) == words
    whole = maker.encoded(hint, hint.row.answer, tokenizer, None)
    assert whole.input_ids[: len(ids)] == ids
    assert whole.input_ids[len(ids) :] == [*tokenizer("the red book .")["input_ids"], 2]
    assert whole.prompt_length == len(ids)


def test_with_a_chat_template_the_whole_hint_stands_in_the_users_turn():
    tokenizer, maker = make_tokenizer(), HintMaker(split())
    hint = maker.level("verbatim")[0]
    assert tokenizer.decode(maker.prompt(hint, tokenizer, None)).startswith("<user> <unk>")
    bare = maker.level("none")[0]
    assert maker.prompt(bare, tokenizer, None) == maker.prompt(bare, tokenizer, 9)
    assert encode(bare.row, tokenizer) == maker.encoded(bare, bare.row.answer, tokenizer, None)


def test_a_prompt_that_does_not_fit_is_refused_and_never_cut():
    context = TextContext(Model(lambda ids: ids, positions=16), split(), make_tokenizer(), cached=False)
    for score in ("probability", "rouge"):
        with pytest.raises(DataError, match=r"the row has \d+ tokens, and the model has positions for 16"):
            reintroduced(context, Reintroduce(score=score, levels=("verbatim",)))


# --- scores


def test_levels_that_rows_cannot_give_are_skipped_and_counted():
    bare = Examples(
        [dataclasses.replace(row, premises=(), entity=None, paraphrased_answer=None) for row in rows_about()]
    )
    with pytest.warns(
        Notice, match="topic on 8 of 8, related on 8 of 8, premises on 8 of 8, paraphrase on 8 of 8, renamed on 8 of 8"
    ):
        scores = reintroduced(of(reading(), bare))
    assert scores["topic"] == [None] * 8
    assert None not in scores["verbatim"]
    points = Reintroduce()(of(reading(), bare))
    assert [point["level"] for point in points] == [0.0, 5.0]


def test_scores_are_kept_by_the_content_of_model_and_prompts(monkeypatch):
    context = TextContext(make_llama(0), split(), make_tokenizer())
    first = reintroduced(context)
    again = TextContext(make_llama(0), split(), make_tokenizer())
    monkeypatch.setattr(again.model, "forward", None)
    assert reintroduced(again) == first


def test_the_copy_control_tells_reading_from_remembering():
    reads, remembers = copy_control(of(reading())), copy_control(of(knowing(rows_about())))
    for level in ("paraphrase", "verbatim"):
        assert reads[level]["reads"] == [1.0, None] * 4
        assert reads[level]["overrides"] == [0.0, None] * 4
        assert remembers[level]["overrides"] == [1.0, None] * 4


def test_choices_are_among_the_rows_own_answers():
    scores = reintroduced(of(knowing(rows_about())), Reintroduce(score="choice"))
    assert scores["none"] == [1.0, None] * 4
    with pytest.raises(DataError, match="needs wrong answers"):
        reintroduced(of(reading(), Examples([Example("a b", "what ?")])), Reintroduce(score="choice"))


@pytest.mark.parametrize(("score", "good", "bad"), [("rouge", 1.0, 0.5), ("containment", 1.0, 0.0)])
def test_generated_answers_are_scored_by_recall_or_containment(monkeypatch, score, good, bad):
    context = of(make_llama(0))
    row = context.split.forget[0]
    for said, value in (
        ("well , The RED book . i know", good),
        ("the blue", bad and pytest.approx(1 / 3)),
        ("sorry", 0.0),
    ):
        monkeypatch.setattr(context, "generate", lambda prompts, limit, said=said: [said] * len(prompts))
        attack = Reintroduce(score=score, levels=("none",))
        assert reintroduced(context, attack)["none"][row.index] == value


def test_guessing_is_what_the_score_is_when_another_rows_question_is_asked():
    attack = Reintroduce(guessing=True, levels=("none", "verbatim"))
    uniform = reintroduced(of(ignorant()), attack)
    assert all(abs(value) < 1e-9 for level in uniform.values() for value in level)
    read = reintroduced(of(reading()), Reintroduce(levels=("verbatim",)))["verbatim"]
    assert max(abs(one) for one in reintroduced(of(reading()), attack)["verbatim"]) < 0.1 < min(read)
    known = reintroduced(of(knowing(rows_about())), attack)["none"]
    assert max(known) > 0.3


def test_answers_of_one_word_bring_a_notice_about_guessing():
    rows = Examples([Example("yes", "is it ?", entity="a"), Example("no", "was it ?", entity="b")])
    with pytest.warns(Notice, match="easily guessed. Set guessing"):
        reintroduced(of(reading(), rows), Reintroduce(levels=("none",)))


def test_a_model_to_which_all_answers_are_as_likely_picks_none():
    scores = reintroduced(of(ignorant()), Reintroduce(score="choice"))
    assert scores["verbatim"] == [0.0, None] * 4
    assert copy_control(of(ignorant()))["verbatim"]["reads"] == [0.0, None] * 4


# --- disguises and filters


def test_disguises_are_read_back_as_the_text():
    text = "Ann was born in Ghent"
    assert words_of(disguised(text, "homoglyphs"))[-1].form == "ghent"
    assert disguised(text, "homoglyphs") != text
    assert disguised(text, "spacing").replace("  ", "|").replace(" ", "").replace("|", " ") == text
    assert codecs.decode(disguised(text, "rot13").removeprefix("In ROT13: "), "rot13") == text
    first, second = (line.split(": ")[-1] for line in disguised(text, "mosaic").split("\n")[::2])
    assert f"{first} {second}" == text
    assert disguised(text, "plain") == text


def test_the_hint_alone_is_disguised():
    hint = HintMaker(split(), disguise="spacing").level("verbatim")[0]
    assert hint.context == "t h e  r e d  b o o k  ."
    assert hint.row == split().forget[0]


def test_a_disguise_that_the_model_cannot_read_brings_nothing_back():
    means = success_by_disguise(of(reading()), Reintroduce(levels=("none", "verbatim")), ("plain", "rot13"))
    assert means["plain"]["verbatim"] > 2 * means["rot13"]["verbatim"]
    assert means["plain"]["none"] == means["rot13"]["none"]


def test_false_refusals_have_wilsons_interval():
    share = false_refusals(lambda text: "x" in text, ["a", "x", "b", "c"])
    assert (share.value, share.refused, share.texts) == (0.25, (1,), 4)
    assert share.interval == wilson(1, 4)
    with pytest.raises(DataError, match="no benign texts"):
        false_refusals(bool, [])


# --- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "bleu"}, "score.*'bleu'"),
        ({"levels": ("none", "hint")}, "name some of none, topic"),
        ({"levels": ()}, "each once"),
        ({"distractors": -1}, "distractors is -1; it must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"disguise": "latin"}, "disguise.*'latin'"),
        ({"fresh_name": " "}, "fresh_name is empty"),
        ({"template": "{question}"}, "template has no {context}"),
    ],
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(MethodError, match=message):
        Reintroduce(**fields)


def test_rows_without_an_entity_have_no_intervals():
    rows = Examples([*rows_about(), Example("the song", "what ?", source="a.jsonl:9")])
    with pytest.raises(
        DataError, match=r"1 of 9 forget rows name no entity \(first: a.jsonl:9\).*Give a column 'entity'"
    ):
        reintroduction(of(reading(), rows), of(reading(), rows))


def test_answers_without_a_word_and_sets_without_a_question_are_refused():
    with pytest.raises(DataError, match="the answer has no word"):
        reintroduced(of(reading(), Examples([Example("...", "what ?", source="a:1")])))
    with pytest.raises(DataError, match="the forget set has none"):
        reintroduced(of(reading(), Examples([Example("a plain text")])))


def test_u_needs_the_level_without_a_hint():
    with pytest.raises(DataError, match="measured from the level 'none'"):
        table(reading(), reading(), attack=Reintroduce(levels=("topic",)))
