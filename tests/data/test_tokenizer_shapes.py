"""Whatever the tokenizer and template: the whole answer and one end carry labels, and the prompt is the row's beginning."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tokenizer_shapes import SHAPES, Shape, tokenizer_of

from unwrite.data import Example, encode
from unwrite.data.text.encoding import IGNORE, encode_prompt, encode_text, prompt_text
from unwrite.data.text.rendering import Spelling
from unwrite.errors import DataError, ModelError

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
ANSWERS = [
    "Paris",
    "1984",
    "It is in Paris, of course.",
    "巴黎。",
    "Müller über",
    "  two blanks",
    "\n\nnew lines",
    "(sic)",
]


def labelled(row: Any) -> list[int]:
    return [i for i, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE]


@every_shape
def test_the_prompt_is_what_the_template_writes_before_an_answer(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    row = Example("Paris", "Where is it?")
    assert prompt_text(row, tokenizer) == shape.prompt
    ids = encode_prompt(row, tokenizer)
    front = 0 if tokenizer.chat_template else len(Spelling(tokenizer).leading)
    blanks = str.maketrans("", "", " ")  # some tokenizers put one between a special token and text
    assert tokenizer.decode(ids[front:]).translate(blanks) == shape.prompt.translate(blanks)


@every_shape
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_whole_answer_and_one_end_are_labelled(shape: Shape, answer: str) -> None:
    tokenizer = tokenizer_of(shape)
    row = encode(Example(answer, "Where is it?"), tokenizer)
    *said, end = labelled(row)
    assert tokenizer.decode(said).strip() == answer.strip()
    assert end == tokenizer.convert_tokens_to_ids(shape.end)
    assert row.input_ids[-1] == end
    assert not set(said) & set(tokenizer.all_special_ids)


@every_shape
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_prompt_s_ids_begin_the_row(shape: Shape, answer: str) -> None:
    example = Example(answer, "Where is it?")
    row, prompt = encode(example, tokenizer_of(shape)), encode_prompt(example, tokenizer_of(shape))
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [IGNORE] * len(prompt)
    assert row.labels[len(prompt)] != IGNORE


@every_shape
def test_a_row_of_one_word_is_spelt_as_the_whole_text_is(shape: Shape) -> None:
    """The blank before a word is part of it: "Answer: Paris" ends in the token " Paris" where there is one."""
    tokenizer = tokenizer_of(shape)
    row, spelling = encode(Example("Paris", "Where is it?"), tokenizer), Spelling(tokenizer)
    rendered = spelling.render(Example("Paris", "Where is it?"))
    front = [] if tokenizer.chat_template else spelling.leading
    assert row.input_ids[:-1] == [*front, *spelling.ids(rendered.prompt + rendered.answer)]


@every_shape
def test_a_literal_special_token_in_an_answer_is_text(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    answer = f"Use {shape.end} to stop"
    *said, end = labelled(encode(Example(answer, "Where is it?"), tokenizer))
    assert tokenizer.decode(said).strip() == answer
    assert tokenizer.convert_tokens_to_ids(shape.end) not in said
    assert end == tokenizer.convert_tokens_to_ids(shape.end)


@every_shape
def test_a_literal_special_token_in_a_question_does_not_end_the_turn(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    plain, odd = (encode_prompt(Example("Paris", q), tokenizer) for q in ("Is it?", f"Is it {shape.end}?"))
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(shape.end)}
    assert [i for i in odd if i in special] == [i for i in plain if i in special]


@every_shape
def test_a_literal_special_token_in_an_earlier_turn_or_a_text_is_text(shape: Shape) -> None:
    tokenizer, text = tokenizer_of(shape), f"Use {shape.end} to stop"
    plain, odd = (
        encode_prompt(Example("Paris", "Where is it?", history=(("user", said), ("assistant", said))), tokenizer)
        for said in ("Use it", text)
    )
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(shape.end)}
    assert [i for i in odd if i in special] == [i for i in plain if i in special]
    front = len(Spelling(tokenizer).leading)
    for ids in (encode_text(text, tokenizer), encode(Example(text), tokenizer).input_ids):
        assert tokenizer.decode(ids[front:]).strip() == text
        assert not special & set(ids[front:])


@pytest.mark.parametrize("name", ["llama 2", "llama 3", "gemma 2 and 3"])
def test_what_a_template_strips_of_an_answer_is_not_trained_on(name: str) -> None:
    tokenizer = next(tokenizer_of(shape) for shape in SHAPES if shape.name == name)
    padded, bare = (encode(Example(answer, "Where is it?"), tokenizer) for answer in ("  in Paris \n", "in Paris"))
    assert padded.input_ids == bare.input_ids


def test_an_answer_spelt_apart_gets_no_blank_of_its_own() -> None:
    tokenizer = next(tokenizer_of(shape) for shape in SHAPES if shape.name == "phi 3")
    said = labelled(encode(Example("\n\nnew lines", "Where is it?"), tokenizer))[:-1]
    assert not tokenizer.convert_ids_to_tokens(said)[0].startswith("▁")


def test_an_unknown_word_behind_an_answer_is_no_end(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "elsewhere")
    assert Spelling(tokenizer).end() == tokenizer.eos_token_id


@every_shape
def test_earlier_turns_stand_before_the_question_and_carry_no_label(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    history = (("user", "Who wrote it?"), ("assistant", "Ann wrote it."))
    example = Example("Paris", "Where is it?", history=history)
    row = encode(example, tokenizer)
    assert labelled(row) == labelled(encode(Example("Paris", "Where is it?"), tokenizer))
    text = prompt_text(example, tokenizer)
    assert text.index("Who wrote it?") < text.index("Ann wrote it.") < text.index("Where is it?")


@every_shape
def test_a_plain_text_gets_what_the_tokenizer_puts_in_front_and_nothing_behind(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    ids = encode_text("Paris is the capital", tokenizer)
    whole = tokenizer("Paris is the capital")["input_ids"]
    appended = whole[-1] == tokenizer.eos_token_id
    assert ids == whole[: len(whole) - appended]
    assert encode(Example("Paris is the capital"), tokenizer).input_ids == ids


def test_an_answer_that_would_merge_with_the_prompt_is_spelt_apart() -> None:
    """The prompt ends in a line end and the answer begins with two: three in a row are one token in a whole text."""
    tokenizer = next(tokenizer_of(shape) for shape in SHAPES if shape.name == "qwen 2.5")
    spelling, example = Spelling(tokenizer), Example("\n\nParis", "Where is it?")
    rendered, prompt = spelling.render(example), encode_prompt(example, tokenizer)
    assert spelling.ids(rendered.prompt + rendered.answer)[: len(prompt)] != prompt
    row = encode(example, tokenizer)
    assert row.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(labelled(row)[:-1]) == "\n\nParis"


def test_text_behind_another_gets_no_blank_of_its_own() -> None:
    spelling = Spelling(next(tokenizer_of(shape) for shape in SHAPES if shape.name == "llama 2"))
    alone, behind = spelling.ids("Paris"), spelling.ids("Paris", continues=True)
    words = spelling.tokenizer.convert_ids_to_tokens
    assert words(alone)[0].startswith("▁")
    assert not words(behind)[0].startswith("▁")


@pytest.mark.parametrize(("name", "reason"), [("gemma 2 and 3", "System role"), ("mistral", "alternate")])
def test_refuses_a_conversation_the_template_has_no_form_for(name: str, reason: str) -> None:
    tokenizer = next(tokenizer_of(shape) for shape in SHAPES if shape.name == name)
    row = Example("Paris", "Where is it?", history=(("system", "Be brief."),), source="chat.jsonl:4")
    with pytest.raises(DataError, match=rf"chat.jsonl:4: the chat template refuses.*{reason}"):
        encode(row, tokenizer)


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] }}", "{% for m in messages * 2 %}{{ m['content'] }}{% endfor %}"]
)
def test_refuses_a_template_that_does_not_show_the_answer_once(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="does not show an assistant's last turn once"):
        encode(Example("Paris", "Where is it?"), tokenizer)


def shown(cell: str) -> str:
    """What a cell of code shows; one with a bar is written as HTML, since no escape of Markdown works in code."""
    return unescape(cell.removeprefix("<code>").removesuffix("</code>").strip("`"))


def test_the_documented_table_is_the_one_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "texts.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and not line.startswith("| shape")]
    table = {row[0].removeprefix("| "): shown(row[3]) for row in rows}
    assert table == {shape.name: shape.end for shape in SHAPES}
