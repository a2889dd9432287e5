"""A chat template that never ends is stopped, and one that ends is not disturbed."""

import resource
import sys
import time

import pytest

from conftest import TEMPLATE, make_tokenizer
from unwrite.data import Example
from unwrite.data.text.rendering import Spelling
from unwrite.data.text.templates import bounded_template
from unwrite.errors import DataError, ModelError

LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "output": (LOOP * 4 + "x" + "{% endfor %}" * 4, "2,000,000 steps"),
    "silent": (LOOP * 4 + "{% set x = i %}" + "{% endfor %}" * 4, "2,000,000 steps"),
    "long words": ("{{ lipsum(n=99999999) }}", "2,000,000 steps"),
    "doubling": (
        "{% set n = namespace(x='abcd') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "1 GiB",
    ),
    "at once": ("{{ 'a' * 99999999999 }}", "1 GiB"),
    "padding": ("{{ '%9999999999d'|format(1) }}", "1 GiB"),
    "power": ("{{ 10**10**10 }}", "raises a number to a power"),
}


def rendered(template, **example):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Spelling(tokenizer).render(Example(answer="a book", question="who ?", source="rows.jsonl:3", **example))


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_template_is_refused_with_its_bound(kind):
    template, bound = ENDLESS[kind]
    before, tracer = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    began = time.process_time()
    with pytest.raises(ModelError, match=rf"the chat template .*{bound}.* Set tokenizer\.chat_template") as error:
        rendered(template)
    assert time.process_time() - began < 10
    assert len(str(error.value).splitlines()) == 1
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == (before, tracer)


def test_a_long_chat_is_no_endless_one():
    turns = (("user", "who ?"), ("assistant", "ann")) * 1000
    assert (
        rendered(TEMPLATE, history=turns).prompt
        == "<user> who ? <assistant> ann </s> " * 1000 + "<user> who ? <assistant>"
    )


def test_a_template_that_refuses_is_the_rows_fault_as_before():
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the chat template refuses this conversation: no"):
        rendered("{{ raise_exception('no') }}")


def test_what_a_template_writes_is_text():
    with pytest.raises(ModelError, match=r"the chat template writes a lone surrogate \(U\+D800 at character 1\)"):
        rendered("\ud800" + TEMPLATE)


def test_a_tracer_that_was_there_goes_on():
    seen = []
    before = sys.gettrace()
    sys.settrace(lambda *_: seen.append(1))
    try:
        with bounded_template(TEMPLATE):
            pass
        mine = sys.gettrace()
    finally:
        sys.settrace(before)
    assert mine is not None
    assert seen
