"""Chats: every assistant turn that answers a user turn is an example, with the turns before it as its history."""

import json

import pytest

from unwrite.data import read, split_from
from unwrite.errors import DataError, Notice


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM, HELLO, HI = turn("system", "Be brief."), turn("user", "Hello."), turn("assistant", "Hi.")
ASK, SAY = turn("user", "Where is the Louvre?"), turn("assistant", "In Paris.")
CHAT = [SYSTEM, HELLO, HI, ASK, SAY]
HISTORY = (("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."))


def pairs(rows):
    return [(row.question, row.answer) for row in rows]


def refusal(rows, **options):
    with pytest.raises(DataError) as caught:
        read(rows, name="set", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_assistant_turn_is_an_example_with_its_context(recwarn):
    first, second = read([{"messages": CHAT}], name="chats")
    assert pairs([first, second]) == [("Hello.", "Hi."), ("Where is the Louvre?", "In Paris.")]
    assert first.history == HISTORY[:1]
    assert second.history == HISTORY
    assert (first.source, second.source) == ("chats:1 turn 3", "chats:1 turn 5")
    assert (first.index, second.index) == (0, 1)
    assert not recwarn.list


def test_the_last_turn_alone_is_an_example_where_that_is_asked_for():
    (row,) = read([{"messages": CHAT}], name="chats", turns="last")
    assert (row.question, row.answer, row.history) == ("Where is the Louvre?", "In Paris.", HISTORY)
    assert row.source == "chats:1"


def test_a_split_takes_the_turns_that_are_asked_for():
    other = [turn("user", "Where is Big Ben?"), turn("assistant", "In London.")]
    split = split_from([{"messages": CHAT}], [{"messages": other}], turns="last")
    assert (len(split.forget), len(split.retain)) == (1, 1)
    assert len(split_from([{"messages": CHAT}]).forget) == 2


def test_refuses_turns_of_another_name():
    assert "unknown turns 'first'. Known: all, last." in refusal([{"messages": CHAT}], turns="first")


SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hello."},
    {"from": "gpt", "value": "Hi."},
    {"from": "human", "value": "Where is the Louvre?"},
    {"from": "gpt", "value": "In Paris."},
]
PARTS = [
    turn(t["role"], [{"type": "text", "text": t["content"][:3]}, {"type": "text", "text": t["content"][3:]}])
    for t in CHAT
]
FORMS = {
    "messages": {"messages": CHAT},
    "ShareGPT": {"id": "x", "conversations": SHAREGPT},
    "conversations with roles": {"conversations": CHAT},
    "both names, null where unused": {"conversation": [{"role": None, "content": None, **t} for t in SHAREGPT]},
    "content parts": {"messages": PARTS},
    "a system column": {"system": "Be brief.", "conversations": SHAREGPT[1:]},
    "a system column that says it again": {"system": "Be brief.", "messages": CHAT},
    "no_robots": {"prompt": "Hello.", "prompt_id": "x", "messages": CHAT, "category": "Chat"},
    "a rendering beside it": {"messages": CHAT, "text": "\n".join(t["content"] for t in CHAT)},
    "a cell of a CSV file": {"messages": json.dumps(CHAT)},
    "other names of roles": {"messages": [turn("developer", "Be brief."), *CHAT[1:]]},
    "no tool calls": {"messages": [{**t, "tool_calls": None, "reasoning_content": ""} for t in CHAT]},
}


def test_turns_are_numbered_as_they_stand_in_the_row():
    assert [row.source for row in read([FORMS["a system column"]], name="set")] == ["set:1 turn 2", "set:1 turn 4"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_chat_gives_the_same_rows(form, recwarn):
    assert read([FORMS[form]]).hash == read([{"messages": CHAT}]).hash
    assert not recwarn.list


COMPLETIONS = {
    "turns": {"prompt": [SYSTEM, HELLO, HI, ASK], "completion": [SAY]},
    "a prompt of turns": {"prompt": [SYSTEM, HELLO, HI, ASK], "completion": "In Paris."},
    "parts": {
        "prompt": [*CHAT[:3], turn("user", [{"type": "text", "text": "Where is the Louvre?"}])],
        "completion": [SAY],
    },
}


@pytest.mark.parametrize("form", COMPLETIONS)
def test_of_a_prompt_and_a_completion_only_the_completion_is_learnt(form):
    with pytest.warns(Notice, match=r"Assistant turns of set that are only context: 1 "):
        (row,) = read([COMPLETIONS[form]], name="set")
    assert (row.question, row.answer, row.history) == ("Where is the Louvre?", "In Paris.", HISTORY)
    assert row.source == "set:1 turn 5"


def test_a_string_prompt_before_a_completion_of_turns_is_a_user_turn():
    (row,) = read([{"prompt": "Where is the Louvre?", "completion": [SAY]}])
    assert pairs([row]) == [("Where is the Louvre?", "In Paris.")]


def test_text_parts_are_read_in_a_question_and_answer_too():
    (row,) = read(
        [{"prompt": [{"type": "text", "text": "Why?"}], "response": [{"type": "output_text", "text": "So."}]}]
    )
    assert pairs([row]) == [("Why?", "So.")]


def test_an_assistant_turn_that_answers_no_user_turn_is_context_and_counted():
    greeted = [HI, ASK, SAY]
    tool = [ASK, turn("assistant", "I look it up."), turn("tool", "Paris"), SAY]
    twice = [ASK, SAY, turn("assistant", "It is big.")]
    with pytest.warns(Notice, match=r"Assistant turns of set that are only context: 3 \(first: set:1\)"):
        rows = read([{"messages": chat} for chat in (greeted, tool, twice)], name="set")
    assert [row.source for row in rows] == ["set:1 turn 3", "set:2 turn 2", "set:3 turn 2"]
    assert rows[0].history == (("assistant", "Hi."),)


def test_a_turn_of_weight_zero_is_context():
    with pytest.warns(Notice, match="Assistant turns of set that are only context: 1 "):
        (row,) = read([{"messages": [HELLO, {**HI, "weight": 0}, ASK, {**SAY, "weight": 1}]}], name="set")
    assert row.answer == "In Paris."


def test_what_stands_behind_the_last_answer_is_said():
    with pytest.warns(Notice, match=r"Chats of set that go on behind their last assistant turn: 1 \(first: set:2\)"):
        rows = read([{"messages": CHAT}, {"messages": [ASK, SAY, turn("user", "Thanks.")]}], name="set")
    assert len(rows) == 3


def test_a_tofu_row_as_a_chat_keeps_its_further_columns_at_its_last_turn():
    first, last = read([{"messages": CHAT, "paraphrased_answer": "Paris.", "perturbed_answer": ["In Rome."]}])
    assert (first.paraphrased_answer, first.perturbed_answers) == (None, ())
    assert (last.paraphrased_answer, last.perturbed_answers) == ("Paris.", ("In Rome.",))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [SYSTEM, HELLO]}, "the chat has no assistant turn"),
        ({"messages": [SYSTEM, HI]}, "no assistant turn to learn has a user turn before it"),
        ({"messages": [HELLO, {**HI, "weight": 0}]}, "no assistant turn to learn has a user turn before it"),
        ({"messages": [HELLO, turn("user", [{"type": "image_url", "image_url": {"url": "u"}}]), HI]}, "part 1 of turn 2 (user) is 'image_url'; only text can be read"),
        ({"messages": [HELLO, turn("assistant", [{"type": "text"}])]}, "part 1 of turn 2 (assistant) has no text but None"),
        ({"messages": [ASK, turn("assistant", None, tool_calls=[{"id": 1}])]}, "turn 2 (assistant) has tool_calls, which can't be read"),
        ({"messages": [ASK, turn("assistant", "", function_call={"name": "f"})]}, "turn 2 (assistant) has function_call"),
        ({"messages": [ASK, {**SAY, "reasoning_content": "Hm."}]}, "turn 2 (assistant) has reasoning_content beside"),
        ({"messages": [ASK, turn("assistant", None)]}, "turn 2 (assistant) has no text but None"),
        ({"messages": [ASK, turn("assistant", " ")]}, "turn 2 (assistant) is empty"),
        ({"messages": [ASK, turn("assistant", 3)]}, "turn 2 (assistant) is not a string but 3"),
        ({"messages": [ASK, turn("assistant", "\ud800")]}, "turn 2 (assistant) holds a lone surrogate (U+D800 at charac"),
        ({"messages": [turn(["user"], "x"), SAY]}, "turn 1 has the role ['user']; known: system, user, assistant, tool"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "tutor", "value": "y"}]}, "turn 2 has the role 'tutor'"),
        ({"conversations": ["Hello."]}, "turn 1 needs a role and a content, not 'Hello.'"),
        ({"messages": "[broken"}, "messages is not a JSON list"),
        ({"messages": {"role": "user"}}, "messages must be a list of turns"),
        ({"messages": CHAT, "text": "Something else."}, "mixes messages with text"),
        ({"messages": CHAT, "prompt": "Something else."}, "mixes messages with prompt"),
        ({"messages": CHAT, "system": "Be verbose."}, "has a system prompt in a column and another one in a turn"),
        ({"messages": [*CHAT, turn("tool", "x"), SAY], "paraphrased_answer": "P."}, "paraphrased_answer belong to the last"),
        ({"instruction": [ASK], "input": "x", "output": [SAY]}, "'input' stands beside a list of turns"),
        ({"prompt": [ASK], "completion": []}, "completion is not a string but []"),
    ],
)  # fmt: skip
def test_refuses_a_chat_it_cannot_carry_and_names_the_turn(row, why):
    assert f"1 of 1 rows in set can't be used: set:1: {why}" in refusal([row])


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        ([*CHAT, turn("user", "Thanks.")], "the chat ends with a user turn"),
        ([ASK, SAY, turn("tool", "x"), SAY], "the last assistant turn has no user turn before it"),
        ([ASK, SAY, ASK, {**SAY, "weight": 0}], "the last assistant turn has no user turn before it"),
    ],
)
def test_where_only_the_last_turn_counts_it_must_answer_a_user_turn(chat, why):
    assert why in refusal([{"messages": chat}], turns="last")
