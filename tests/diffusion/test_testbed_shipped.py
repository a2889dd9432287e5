"""The test bed that ships: made by the recipe of today, and it answers."""

from dataclasses import replace

import pytest

from unwrite.beds import denoiser as testbed
from unwrite.beds import denoiser_items as testbed_items


def test_it_was_made_by_the_recipe_and_the_rows_of_today():
    """Where this fails, `testbed.keep()` trains it again."""
    assert (testbed.SHIPPED / testbed.MADE_BY).read_text().strip() == testbed.made_by()
    assert testbed.folder() == testbed.SHIPPED


def test_another_recipe_or_seed_is_trained(monkeypatch):
    monkeypatch.setattr(testbed, "train", lambda how, seed: (how, seed))
    how = testbed.Recipe()
    other = replace(how, stages=(replace(how.stages[0], lr=1e-3), *how.stages[1:]))
    assert testbed.folder(other) == (other, 0)
    assert testbed.folder(how, 1) == (how, 1)


def test_changed_tasks_are_noticed(monkeypatch):
    before = testbed.made_by()
    monkeypatch.setattr(testbed_items, "LARGEST", testbed_items.LARGEST + 1)
    assert testbed.made_by() != before


@pytest.mark.parametrize("task", [task.name for task in testbed.TASKS])
def test_it_answers_one_by_one(task):
    """Thirty prompts; the gate asks for 0.9 of 400, which 0.8 of thirty leaves room for."""
    asked = testbed.items(30, 9, [task])
    found = testbed.judge(testbed.load(), testbed.one_by_one(), asked)
    assert sum(found.right) >= 24


def test_nothing_in_it_says_where_it_was_trained():
    texts = [file.read_text() for file in testbed.SHIPPED.iterdir() if file.suffix in (".json", ".txt")]
    assert not [text for text in texts if "/root" in text or "/home" in text or ".cache" in text]
