"""ALU's experiment: its rule-based agents err as often as they are told, and its verdict follows from both parts."""

from dataclasses import replace
from statistics import fmean

import pytest

from unwrite.beds.agents import FALSE_ALARM, FORMS, PEOPLE, SLIP, RuleAgents, agent_questions, leaks, person
from unwrite.beds.budget import Budget
from unwrite.forget.engine.text.agents.pipeline import AGENTS, REFUSAL
from unwrite.forget.engine.text.agents.subjects import Subjects
from unwrite.reproduce import alu
from unwrite.reproduce.checks import verdict_of


def test_people_have_names_of_their_own_and_are_asked_about_in_three_forms():
    assert len({person(i).split()[-1] for i in range(PEOPLE)}) == PEOPLE
    questions = agent_questions(20, 100)
    assert len(questions) == 200
    assert {one.form for one in questions} == {*FORMS}
    for one in questions:
        assert one.value in one.answer
        assert one.value not in one.question
        assert Subjects([one.subject]).flagged(one.question) == (one.form == "plain")
    listed = Subjects([person(i) for i in range(1000)])
    assert not any(listed.flagged(one.question) for one in questions if not one.listed)


def test_agents_err_as_often_as_they_are_told():
    agents, asked = RuleAgents(0.3, 0.1), agent_questions(20, 1000)
    replies = [agents.chats(one, i)["detect"]([]) for i, one in enumerate(asked)]
    assert fmean(reply == "None" for reply in replies[:1000]) == pytest.approx(0.3, abs=0.04)
    assert fmean(reply != "None" for reply in replies[1000:]) == pytest.approx(FALSE_ALARM, abs=0.02)
    erased = alu.simulated("detect + erase", 0.0, 0.0, (0,), 20, 400)
    assert fmean(erased.leaked) == pytest.approx(SLIP, abs=0.07)
    assert fmean(erased.kept) == 1.0
    refused = alu.simulated("detect + refuse", 0.3, 0.0, (0,), 20, 400)
    assert fmean(refused.leaked) == pytest.approx(0.3, abs=0.07)
    assert fmean(refused.kept) == pytest.approx(1 - FALSE_ALARM, abs=0.03)
    assert not any(leaks(REFUSAL, one) for one in asked)


class Model:
    """A model as all agents that detects, rewrites and rates without fault, or keeps to no form."""

    def __init__(self, *, able=True, heeds=False, knows=True, keeps=True):
        self.able, self.heeds, self.knows, self.keeps = able, heeds, knows, keeps
        self.calls = 0

    def chats(self):
        return dict.fromkeys(AGENTS, self)

    def __call__(self, messages):
        self.calls += 1
        first, last = messages[0]["content"], messages[-1]["content"]
        if first == alu.PREFIX and self.heeds and "Eiffel" in last:
            return REFUSAL
        if first == alu.PREFIX or "helpful assistant" in first:
            rows = {row.question: row.answer for part in (alu.landmarks().forget, *alu.landmarks().evaluation.values()) for row in part}  # fmt: skip
            return rows[last] if self.knows else "I know nothing."
        if not self.able:
            return "Sure, gladly."
        if "check conversations" in first:
            return "Eiffel Tower" if "Eiffel" in last.partition("conversation>")[2] or not self.keeps else "None"
        if "rewrite answers" in first:
            return '{"response_list": ["It is a place.", "a", "b", "c", "d"]}'
        return "[5, 5, 5, 5, 5]" if "judge whether" in first else "It is a place."


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "reproduced"),
        ({"heeds": True}, "not reproduced"),
        ({"keeps": False}, "partly"),
        ({"able": False}, "bed says nothing"),
        ({"knows": False}, "bed says nothing"),
    ],
)
def test_the_verdict_is_of_the_model_and_says_nothing_of_one_that_keeps_to_no_form(given, verdict):
    made = alu.reality(Model(**given).chats(), 4)
    assert verdict_of(alu.reality_checks(made)) == verdict
    assert fmean(made.arms["ALU"].leaked) == 0.0


def test_arms_share_what_they_ask_alike():
    model = Model()
    alu.reality(model.chats(), 2)
    # Vanilla, detect and the prefix of four; erase and critic of the two detected, and a composer whose versions are the same.
    assert model.calls == 4 * 3 + 2 * 2 + 1


def test_both_parts_run_tiny(monkeypatch):
    monkeypatch.setattr(alu, "model_chats", lambda size: Model().chats())
    monkeypatch.setattr(alu, "SIZES", (1, 1000))
    claim = alu.run(Budget("tiny"))
    assert {check.kind for check in claim.checks} == {"set-up", "mechanism", "claim", "control"}
    by_text = {check.text: check for check in claim.checks}
    assert by_text["calls are the same for 1 and for 1000 subjects"].value is True
    assert by_text["nothing leaks where neither detector nor critic errs"].value is True
    assert len(claim.headline) <= 100
    assert all(len(row) == len(claim.columns) for row in claim.rows.values())
    words = [int(one) for one in claim.extra["words of all prompts an answer, by subjects"].values()]
    assert words == sorted(words)
    assert "0.5B" in replace(claim, too_small=False).reason


def test_a_critic_that_rates_at_random_fails_the_control():
    misses = (0.0, alu.AT[0])
    made = alu.simulation((0,), 45, misses, (0.0, alu.AT[1]))
    checks = {check.text: check.holds for check in alu.simulation_checks(made, misses)}
    assert checks["random ratings leak more than ALU's"]
    arms = {**made.arms, **{("ALU", miss, alu.AT[1]): made.arms["random ratings", miss, 0.0] for miss in misses}}
    worse = {check.text: check.holds for check in alu.simulation_checks(replace(made, arms=arms), misses)}
    assert not worse["random ratings leak more than ALU's"]
