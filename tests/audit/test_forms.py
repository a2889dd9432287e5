"""Forms: how a fact is asked in each, what its probability is, and how differently forms were forgotten."""

import json
import math
from statistics import fmean, pstdev

import pytest
import torch

from helpers.tiny import lively, make_examples, make_llama, make_tokenizer
from unwrite.audit import TextContext, evaluate, forms_suite
from unwrite.audit.suites.forms import (
    ChoiceByLetter,
    FormProbability,
    FormsMean,
    FormVariation,
    encode_item,
    reductions,
    variation,
)
from unwrite.audit.suites.known import check_suite
from unwrite.data import Example, Examples, ForgetSplit, FormWording, Triple, forms_split, make_forms, ort, read_triples
from unwrite.data.text.forms import FormItem, items_of, letters_of
from unwrite.errors import DataError, MethodError

KING = Triple("Stephen King", "birthplace", "Maine", ("Ohio", "Texas", "Utah", "Iowa"))
TOWN = Triple("ann", "town", "the old river", ("a new stone", "the red book", "a song"))
OTHER = Triple("bert", "town", "the new harbour", ("a new stone", "the red book", "a song"))


def context(model=None, split=None, **settings):
    model = lively(make_llama()) if model is None else model
    return TextContext(model, split or forms_split([TOWN], [OTHER]), make_tokenizer(), cached=False, **settings)


def by_form(items):
    return {item.form: item for item in items}


def test_a_triple_is_asked_in_six_forms():
    forms = by_form(make_forms(KING))
    assert {form: (item.asked, item.answer) for form, item in forms.items() if form != "choice"} == {
        "qa": ("What is the birthplace of Stephen King?", "Maine"),
        "letters": ("What is the birthplace of Stephen King?", "M\na\ni\nn\ne"),
        "paraphrase": ("Tell me the birthplace of Stephen King.", "Maine"),
        "cloze": ("The birthplace of Stephen King is ___.", "Maine"),
        "reversed": ("Whose birthplace is Maine?", "Stephen King"),
    }
    question, *lines = forms["choice"].asked.splitlines()
    assert question == "What is the birthplace of Stephen King?"
    assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
    assert f"{forms['choice'].answer}. Maine" in lines
    assert {line[3:] for line in lines} == {"Maine", "Ohio", "Texas", "Utah"}
    assert {item.subject for item in forms.values()} == {"Stephen King"}


def test_the_options_order_is_a_function_of_the_seed_and_no_letter_is_always_right():
    assert make_forms(KING, seed=3) == make_forms(KING, seed=3)
    letters = [by_form(make_forms(KING, seed=seed))["choice"].answer for seed in range(40)]
    assert {*letters} == {*"ABCD"}


def test_a_wording_says_how_a_relation_is_asked_for_and_leaves_forms_out():
    wording = FormWording("Where was {subject} born?", cloze="{subject} was born in ___.")
    forms = by_form(make_forms(KING, wording))
    assert {*forms} == {"qa", "letters", "choice", "cloze"}
    assert forms["cloze"].asked == "Stephen King was born in ___."
    assert by_form(make_forms(Triple("a{b}", "{x}", "c")))["qa"].asked == "What is the {x} of a{b}?"


def test_an_answer_is_split_into_letters_without_its_blanks():
    assert letters_of("Stephen King") == tuple("StephenKing")
    assert letters_of("王 小明\n") == tuple("王小明")


def test_rows_carry_forms_by_their_paraphrases_and_wrong_answers():
    rows = Examples(
        [
            Example("red", "what ?", paraphrased_question="which ?", perturbed_answers=("blue", "Red", "old")),
            Example("red stone", "who ?"),
            Example("a plain text of the town"),
        ]
    )
    items = items_of(rows)
    assert [(item.form, item.fact) for item in items] == [
        ("qa", 0), ("letters", 0), ("paraphrase", 0), ("choice", 0), ("qa", 1), ("letters", 1),
    ]  # fmt: skip
    assert sorted(items[3].asked.splitlines()[1:], key=lambda line: line[3:])[0].endswith("blue")
    assert len(items[3].letters) == 3


@pytest.mark.parametrize(
    ("fact", "wording", "message"),
    [
        (Triple("ann", "town", " "), None, "the town of ann has no answer"),
        (Triple(" ", "town", "x"), None, "has no subject"),
        (Triple("ann", "town", "red", ("blue", "Red")), None, "'red' is among the wrong answers"),
        (Triple("ann", "town", "red"), FormWording("q ?", cloze="ann lives in"), "has no blank"),
    ],
)
def test_refuses_facts_that_no_form_can_ask_for(fact, wording, message):
    with pytest.raises(DataError, match=message):
        make_forms(fact, wording)


def test_refuses_items_and_sets_without_answers():
    split = forms_split([TOWN])
    with pytest.raises(DataError, match="has no answer to look for"):
        type(split)(split.forget, items=(FormItem("qa", "where ?", " "),))
    with pytest.raises(DataError, match="no question in any form"):
        type(split)(split.forget)
    with pytest.raises(MethodError, match="unknown form 'clozee'"):
        type(split)(split.forget, items=(FormItem("clozee", "where ?", "x"),))
    with pytest.raises(DataError, match="no fact to forget"):
        forms_split([])
    with pytest.raises(DataError, match="fact 0 has no form 'reversed'"):
        forms_split([TOWN], wordings={"town": FormWording("where is {subject} ?")}, train="reversed")
    with pytest.raises(MethodError, match="it needs questions with their answers"):
        check_suite("forms", ForgetSplit(Examples([Example("a plain text of the town")])), references=("before",))


def test_rows_are_in_the_form_that_is_trained_on_and_items_in_all():
    split = forms_split([TOWN], [OTHER], train="cloze")
    assert [(row.question, row.answer) for row in split.forget] == [("The town of ann is ___.", "the old river")]
    assert [(row.question, row.answer) for row in split.retain] == [("The town of bert is ___.", "the new harbour")]
    assert len(split.items) == len(split.kept_items) == 6
    assert split.hash != forms_split([TOWN], [OTHER], train="cloze", seed=1).hash


def test_the_joint_probability_is_the_product_of_the_token_probabilities():
    model, tokenizer = lively(make_llama()), make_tokenizer()
    item = by_form(make_forms(TOWN))["cloze"]
    row = encode_item(item, tokenizer)
    start = row.prompt_length
    text = tokenizer.convert_ids_to_tokens(row.input_ids)
    assert text[start:] == ["the", "old", "river"]
    with torch.no_grad():
        p = model(torch.tensor([row.input_ids])).logits[0].softmax(-1)
    each = [float(p[start - 1 + i, token]) for i, token in enumerate(row.input_ids[start:])]
    score = FormProbability(form="cloze")(context(model))
    assert score.value == pytest.approx(math.prod(each), rel=1e-4)
    per_token = FormProbability(form="cloze", per_token=True)(context(model))
    assert per_token.value == pytest.approx(math.prod(each) ** (1 / 3), rel=1e-4)


def test_every_form_is_asked_through_the_chat_template_and_answered_behind_its_lead():
    from unwrite.beds.language import small_tokenizer

    tokenizer = small_tokenizer(["what is this"], 300)
    for item in make_forms(KING):
        row = encode_item(item, tokenizer)
        prompt = tokenizer.decode(row.input_ids[: row.prompt_length])
        answer = tokenizer.decode(row.input_ids[row.prompt_length :])
        lead = "Answer:\n" if item.form == "letters" else "Answer:"
        assert prompt == f"<|user|>{item.message()}<|assistant|>{lead}"
        assert answer == (item.answer if item.form == "letters" else f" {item.answer}")
    letters = by_form(make_forms(KING))["letters"]
    assert letters.message(shot=True).startswith("Example:\n")
    tokenizer.chat_template = None
    row = encode_item(letters, tokenizer)
    assert tokenizer.decode(row.input_ids[: row.prompt_length]).endswith("\nAnswer:\n")


def test_letters_of_a_choice_need_not_sum_to_one_and_the_likeliest_is_the_answer():
    model = lively(make_llama())
    split = forms_split([TOWN, OTHER])
    metric, at = ChoiceByLetter(), context(model, split)
    choices = metric.items(split)
    every = [metric.probabilities(at, [item.answered(letter) for letter in item.letters]) for item in choices]
    assert all(sum(values) < 1 - 1e-6 for values in every)
    score = metric(at)
    best = [item.letters[values.index(max(values))] for item, values in zip(choices, every, strict=True)]
    tied = [sorted(values)[-1] == sorted(values)[-2] for values in every]  # one token stands for all four here
    assert tied == [True, True]
    assert score.per_example == [0.0, 0.0]
    assert len(best) == 2
    assert "By chance 0.25" in score.note


def test_the_right_letter_counts_where_it_is_the_likeliest_of_all():
    split = forms_split([TOWN, OTHER])
    metric = ChoiceByLetter()
    right = {(item.asked, item.answer) for item in metric.items(split)[:1]}

    class Known(ChoiceByLetter):
        def probabilities(self, context, items):
            return [0.6 if (item.asked, item.answer) in right else 0.2 for item in items]

    assert Known()(context(split=split)).per_example == [1.0, 0.0]


def test_variation_is_zero_where_every_form_loses_alike_and_grows_with_their_spread():
    before = {"qa": [0.4, 0.6], "cloze": [0.2, 0.2], "reversed": [0.0]}
    assert reductions({"qa": [0.2, 0.3], "cloze": [0.1, 0.1], "reversed": [0.0]}, before) == {"qa": 0.5, "cloze": 0.5}
    assert variation([0.5, 0.5]) == 0
    assert variation([0.9, 0.1]) == pytest.approx(pstdev([0.9, 0.1]) / 0.5)
    assert variation([-0.1, -0.3]) == pytest.approx(0.5)
    assert variation([0.5, -0.5]) is None
    assert variation([]) is None


def test_the_suites_variation_is_that_of_its_own_figures():
    split = forms_split([TOWN, OTHER], [Triple("cora", "town", "a garden")])
    models = {role: lively(make_llama(seed)) for role, seed in (("after", 1), ("before", 0))}
    report = evaluate(models["after"], split, suite="forms", tokenizer=make_tokenizer(), before=models["before"])
    forms = ("qa", "paraphrase", "cloze", "choice", "letters", "reversed")
    figures = {role: [report.columns[role][f"forget_{form}"].value for form in forms] for role in ("after", "before")}
    gone = [1 - after / before for after, before in zip(figures["after"], figures["before"], strict=True)]
    measured = report.columns["after"]["form_variation"]
    assert measured.per_example == pytest.approx(gone)
    assert measured.value == pytest.approx(pstdev(gone) / abs(fmean(gone)))
    assert report.columns["after"]["forget_forms"].value == pytest.approx(fmean(figures["after"]))
    assert "retain_choice" not in report.columns["after"]
    own = FormVariation()(context(models["before"], split), {"before": context(models["before"], split)})
    assert own.value is None
    assert "Nothing is gone on average" in own.note


def test_the_suite_takes_rows_of_questions_and_its_choices():
    split = ForgetSplit(make_examples("forget", 3), make_examples("retain", 3))
    names = [metric.name for metric in forms_suite(per_token=True).for_split(split)]
    assert names == [
        "forget_qa", "forget_paraphrase", "forget_choice", "forget_letters", "retain_qa", "retain_paraphrase",
        "retain_choice", "retain_letters", "forget_forms", "retain_forms", "forget_choice_accuracy",
        "retain_choice_accuracy", "form_variation",
    ]  # fmt: skip
    assert FormsMean(of="retain").better == "higher"
    with pytest.raises(MethodError, match="unknown set 'kept'"):
        FormsMean(of="kept")
    with pytest.raises(MethodError, match="unknown form 'blank'"):
        FormProbability(form="blank")


def row(level, query, answer, subject="Stephen King"):
    return {"query": query, "answer": answer, "level": level, "type": "simple", "subject": subject}


FILES = {
    "forget_level1": [row("1", "Stephen King was born in ___.", "Maine"), row("1", "He wrote ___.", "It")],
    "forget_level2": [row("2", "Where was Stephen King born?", "Maine")],
    "forget_mcp": [row("4", "Where was he born?\nA. Ohio\nB. Maine\nC. Utah\nD. Iowa", "B")],
    "neighbor_level1": [row("1", "Maine lies in ___.", "the USA", "Maine")],
    "neighbor_level2": [row("2", "Where is Maine?", "the USA", "Maine")],
    "neighbor_mcp": [],
}


def published(root, files=FILES):
    folder = root / "1_Stephen_King"
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize("target", ["Stephen King", "1_Stephen_King", "stephen_king"])
def test_reads_orts_folder_of_a_person(tmp_path, target):
    split = ort(target, published(tmp_path))
    assert [(item.form, item.answer) for item in split.items] == [
        ("cloze", "Maine"), ("cloze", "It"), ("qa", "Maine"), ("letters", "M\na\ni\nn\ne"), ("choice", "B"),
    ]  # fmt: skip
    assert [item.form for item in split.kept_items] == ["cloze", "qa", "letters"]
    assert [row.question for row in split.forget] == ["Where was Stephen King born?"]
    assert [row.answer for row in split.retain] == ["the USA"]
    assert {metric.name for metric in forms_suite().for_split(split)} >= {"forget_choice_accuracy", "retain_cloze"}


def test_reads_rwkus_layout_by_the_persons_name(tmp_path):
    for name in ("forget_level1", "forget_level2", "neighbor_level1", "neighbor_level2"):
        (tmp_path / name).mkdir()
        rows = [*FILES[name], row("1", "Who?", "Someone", "Tom Cruise")]
        subject = [{**one, "subject": "Stephen King"} if one["subject"] == "Maine" else one for one in rows]
        (tmp_path / name / "test.jsonl").write_text("\n".join(map(json.dumps, subject)))
    split = ort("Stephen King", tmp_path)
    assert {item.subject for item in (*split.items, *split.kept_items)} == {"Stephen King"}
    assert [item.form for item in split.items] == ["cloze", "cloze", "qa", "letters"]
    with pytest.raises(DataError, match="no questions about 'Nobody'"):
        ort("Nobody", tmp_path)


def test_refuses_published_files_without_answers_and_folders_without_files(tmp_path):
    files = {**FILES, "forget_level2": [row("2", "Where?", "")]}
    with pytest.raises(DataError, match="forget_level2 row 1 of Stephen King has no answer"):
        ort("Stephen King", published(tmp_path, files))
    (tmp_path / "1_Stephen_King" / "forget_level2.json").unlink()
    with pytest.raises(DataError, match=r"there is no file .*forget_level2.json"):
        ort("Stephen King", tmp_path)


def test_reads_triples_and_says_which_row_is_none(tmp_path):
    file = tmp_path / "facts.jsonl"
    good = {"subject": "ann", "relation": "town", "object": "Rome", "others": ["Oslo"]}
    file.write_text(json.dumps(good))
    assert read_triples(file) == [Triple("ann", "town", "Rome", ("Oslo",))]
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "object": ""}))
    with pytest.raises(DataError, match=r"facts.jsonl:2 is no fact: it has no object"):
        read_triples(file)
