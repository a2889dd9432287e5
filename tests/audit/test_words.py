"""What ROUGE counts and how KnowMem asks are the suite's choice, and reach every metric."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.short_answers import ROOM
from unwrite.audit import TextContext, evaluate
from unwrite.audit.suites.basic import BASIC
from unwrite.audit.suites.muse import KnowMem, VerbMem, muse_suite
from unwrite.audit.suites.tofu import tofu_suite
from unwrite.audit.text.basic import RougeRecall
from unwrite.data import Example, Examples, ForgetSplit

SPLIT = ForgetSplit(
    Examples([Example("Müller über", "Who?")]),
    evaluation={
        "verbmem_forget": Examples([Example("Müller über", "Once")]),
        "knowmem_forget": Examples([Example("Müller über", "Who?")]),
        "knowmem_forget_icl": Examples([Example("Ann", "Who is it?")]),
    },
)


class Saying(TextContext):
    """A context whose model says the same to everything; keeps the prompts."""

    def generate(self, prompts: Any, max_new_tokens: int) -> list[str]:
        self.prompts = [self.tokenizer.decode(prompt) for prompt in prompts]
        return ["M ller ber"] * len(prompts)


@pytest.mark.parametrize("metric", [RougeRecall("forget"), VerbMem(), KnowMem("forget")], ids=lambda m: m.name)
@pytest.mark.parametrize(("words", "score"), [("unicode", 0.0), ("ascii", 1.0)])
def test_letters_count_as_the_context_says(tokenizer: Any, model: Any, metric: Any, words: Any, score: float) -> None:
    value = metric(Saying(model, SPLIT, tokenizer, words=words)).value
    assert value in (score, 100 * score)


@pytest.mark.parametrize(("blank", "end"), [(False, "Answer:"), (True, "Answer: ")])
def test_the_prompt_ends_in_a_blank_only_where_that_is_asked_for(
    tokenizer: Any, model: Any, blank: bool, end: str
) -> None:
    context = Saying(model, SPLIT, tokenizer)
    KnowMem("forget", blank=blank)(context)
    assert context.prompts[0].endswith(f"Who?\n{end}")
    assert [m.blank for m in muse_suite(blank=blank).metrics if isinstance(m, KnowMem)] == [blank, blank]


def test_an_answer_has_room_for_twice_the_longest_reference(tokenizer: Any, model: Any) -> None:
    context = TextContext(model, SPLIT, tokenizer)
    assert [ROOM(context, texts) for texts in ([], ["in oslo"], ["y", 40 * "x"], [150 * "x"])] == [32, 32, 80, 200]


def test_the_suites_choice_reaches_the_models_and_the_report(tokenizer: Any, model: Any, monkeypatch: Any) -> None:
    from unwrite.audit import kinds

    seen: list[str] = []

    class Seen(TextContext):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            seen.append(self.words)

    monkeypatch.setattr(kinds, "CONTEXTS", [Seen])
    for suite in (replace(BASIC, words="ascii", max_length=64), tofu_suite(words="ascii"), muse_suite(words="ascii")):
        report = evaluate(model, SPLIT, tokenizer=tokenizer, suite=suite)
        assert report.provenance["rouge"] == "ROUGE counts rouge-score's words, a-z and 0-9 alone."
        assert report.provenance["max_length"] == min(512, suite.max_length)
    assert set(seen) == {"ascii"}
    evaluate(model, SPLIT, tokenizer=tokenizer)
    assert seen[-1] == "unicode"


def test_a_model_with_another_end_is_asked_again(tokenizer: Any, model: Any) -> None:
    prompt = [2, 40, 41, 42]
    new = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert TextContext(model, SPLIT, tokenizer).generate([prompt], 8) == [tokenizer.decode(new)]
    model.generation_config.eos_token_id = [1, new[0]]
    assert TextContext(model, SPLIT, tokenizer).generate([prompt], 8) == [tokenizer.decode(new[:1])]
