"""unwrite chat writes what the audit generates: greedy, up to where the model ends."""

from types import SimpleNamespace

import pytest
import torch
from cli_runs import make_run, refused
from transformers import GenerationConfig

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.cli.chat import Answer
from unwrite.data import Example
from unwrite.data.text.encoding import encode_prompt
from unwrite.scoring import generate_answers

QUESTION = "who wrote the book ?"


def written(model, question=QUESTION, room=12) -> str:
    """What the streamer gives."""
    answer = Answer(SimpleNamespace(model=model, tokenizer=make_tokenizer()), question, room)
    answer.write()
    assert answer.error is None
    return "".join(answer.streamer)


def audited(model, room=12) -> str:
    tokenizer = make_tokenizer()
    prompt = encode_prompt(Example(question=QUESTION, answer="-"), tokenizer)
    return generate_answers(model, tokenizer, [prompt], max_new_tokens=room)[0]


def test_it_writes_what_the_audit_generates():
    model = make_llama()
    assert written(model) == audited(model)


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": True, "temperature": 5.0},
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4},
        {"max_length": 3},
        {"suppress_tokens": list(range(3, 60))},
    ],
    ids=lambda given: next(iter(given)),
)
def test_it_is_greedy_whatever_the_models_generation_defaults_are(defaults):
    model = make_llama()
    plain = written(model)
    model.generation_config = GenerationConfig(**defaults, eos_token_id=2)
    assert written(model) == plain


@pytest.mark.parametrize("many", [True, False], ids=["a list of ends", "one end"])
def test_it_ends_at_every_end_the_model_has(many):
    model = make_llama()
    ids = make_tokenizer()(written(model), add_special_tokens=False).input_ids
    third = ids[2]
    assert third not in ids[:2]
    model.generation_config = GenerationConfig(eos_token_id=[2, third] if many else third)
    assert make_tokenizer()(written(model), add_special_tokens=False).input_ids[:2] == ids[:2]
    assert len(make_tokenizer()(written(model), add_special_tokens=False).input_ids) <= 3


def test_an_answer_ends_within_the_models_positions():
    model = make_llama()
    model.config.max_position_embeddings = 16
    answer = Answer(SimpleNamespace(model=model, tokenizer=make_tokenizer()), QUESTION, 500)
    assert answer.settings["max_new_tokens"] == 16 - answer.settings["input_ids"].shape[1]


def test_a_question_that_fills_the_model_is_refused_in_one_line(tmp_path, capsys):
    line = refused(capsys, ["chat", str(make_run(tmp_path)), "--question", "who " * 200])
    assert "the model has positions for 128" in line


def test_a_length_below_one_is_refused(tmp_path, capsys):
    assert "--max-new-tokens is 0" in refused(capsys, ["chat", str(tmp_path), "--max-new-tokens", "0"])


def test_a_fault_while_writing_ends_the_stream_and_is_kept():
    model = make_llama()
    answer = Answer(SimpleNamespace(model=model, tokenizer=make_tokenizer()), QUESTION, 4)
    with torch.no_grad():
        answer.settings["input_ids"] = torch.tensor([[10_000]])
    answer.write()
    assert list(answer.streamer) in ([], [""])
    assert isinstance(answer.error, IndexError)


def test_both_answers_are_shown(tmp_path, capsys):
    main(["chat", str(make_run(tmp_path)), "--question", QUESTION, "--max-new-tokens", "6"])
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after" in shown
    first = audited(make_llama(), room=6).split()[0]
    assert first in shown
