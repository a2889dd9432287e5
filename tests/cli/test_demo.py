"""What unwrite demo says before it forgets."""

from unwrite.cli.demo import announced
from unwrite.data import landmarks
from unwrite.data.landmarks import LANDMARK


def test_the_demo_says_how_many_questions_about_one_landmark_it_forgets():
    split = landmarks()
    assert all("Eiffel Tower" in f"{row.question} {row.answer}" for row in split.forget)
    assert not any("Eiffel" in row.question for row in split.retain)
    assert LANDMARK == "the Eiffel Tower"
    line = announced(split)
    assert f"forgetting one landmark, the Eiffel Tower: {len(split.forget)} questions about it" in line
    assert "0.1 of their probability before" in line
