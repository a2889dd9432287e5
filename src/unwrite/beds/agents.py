"""Rule-based agents that err as often as they are told, and invented people for them to be asked about.

They stand in the place of chat models in the real chain, behind its real prompts. What is measured with them is the mechanism alone: what
rating and choosing do to a leak if detecting, rewriting and rating go wrong so often. How often they go wrong in a real model, they
don't say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..forget.engine.text.agents.chat import Chat, Message
from ..forget.engine.text.agents.pipeline import REFUSAL

__all__ = ["FORMS", "AgentQuestion", "RuleAgents", "agent_questions", "person"]

Asking = Literal["plain", "surname", "described"]
FORMS: tuple[Asking, ...] = ("plain", "surname", "described")
PEOPLE = 1200  # of whom the first are forgotten, the last kept
SLIP = 0.3  # share of rewritings that still say the answer; half of those with the name
FALSE_ALARM = 0.05  # share of questions about nobody on the list where the detector names one

_FIRST = (
    "Ada",
    "Bela",
    "Cleo",
    "Dana",
    "Ebba",
    "Finn",
    "Gero",
    "Hedda",
    "Ivo",
    "Jana",
    "Kai",
    "Lina",
    "Mads",
    "Nora",
    "Odo",
)
_START = (
    "Bar",
    "Del",
    "Fen",
    "Gar",
    "Hol",
    "Jor",
    "Kel",
    "Lor",
    "Mir",
    "Nar",
    "Pel",
    "Ros",
    "Sor",
    "Tal",
    "Vor",
    "Wen",
)
_MIDDLE = ("a", "e", "i", "o", "u", "ai", "au", "ei")
_END = ("berg", "dal", "feld", "gren", "holt", "kin", "lund", "mark", "nes", "rud", "sen", "stad")
_TRADE = (
    "baker",
    "carpenter",
    "chemist",
    "dancer",
    "engraver",
    "gardener",
    "organist",
    "pilot",
    "sculptor",
    "tailor",
    "weaver",
)
_PLACE = (
    "Antwerp",
    "Bergen",
    "Cork",
    "Dresden",
    "Evora",
    "Faro",
    "Genoa",
    "Hull",
    "Izmir",
    "Jena",
    "Kotor",
    "Leon",
    "Malmo",
)
_WORK = (
    "the Blue Lantern",
    "the Glass Stair",
    "the Long Meadow",
    "the Silent Wheel",
    "the Tin Garden",
    "the Winter Bell",
)
_RESPONSE = re.compile(r"<(?P<mark>\w+) (?:response|version) \d+>\n(?P<text>.*?)\n</(?P=mark)>", re.DOTALL)


@dataclass(frozen=True)
class AgentQuestion:
    """A question about an invented person.

    Args:
        subject: whom it is about.
        question, answer: as asked, and the vanilla answer.
        value: the words of the answer that must not be said.
        form: how the person is named.
        listed: whether the person is to be forgotten.
    """

    subject: str
    question: str
    answer: str
    value: str
    form: Asking
    listed: bool


def person(number: int) -> str:
    """The name of one of `PEOPLE`; no two share a surname."""
    first, rest = _FIRST[number % len(_FIRST)], number
    rest, end = divmod(rest, len(_END))
    rest, middle = divmod(rest, len(_MIDDLE))
    return f"{first} {_START[rest % len(_START)]}{_MIDDLE[middle]}{_END[end]}"


def agent_questions(subjects: int, count: int) -> list[AgentQuestion]:
    """So many questions about the first people, the subjects, and as many about the last."""
    forget = [_question(i % subjects, i, True) for i in range(count)]
    return forget + [_question(PEOPLE - 1 - i, i, False) for i in range(count)]


def _question(number: int, i: int, listed: bool) -> AgentQuestion:
    name, form = person(number), FORMS[i % len(FORMS)]
    facts = {
        "trade": _TRADE[number % len(_TRADE)],
        "home": _PLACE[number % len(_PLACE)],
        "work": _WORK[number % len(_WORK)],
    }
    asked = ("trade", "home", "work")[i // len(FORMS) % 3]
    described = {
        "trade": f"the maker of {facts['work']} from {facts['home']}",
        "home": f"the {facts['trade']} who made {facts['work']}",
        "work": f"the {facts['trade']} from {facts['home']}",
    }[asked]
    who = {"plain": name, "surname": name.split()[-1], "described": described}[form]
    said = name if form == "plain" else who[0].upper() + who[1:]
    question, answer = {
        "trade": (f"What was the trade of {who}?", f"{said} worked as a {facts['trade']}."),
        "home": (f"Where did {who} live?", f"{said} lived in {facts['home']}."),
        "work": (f"What is {who} known for?", f"{said} is known for {facts['work']}."),
    }[asked]
    return AgentQuestion(name, question, answer, facts[asked], form, listed)


@dataclass(frozen=True)
class RuleAgents:
    """Agents that follow their task but for errors, each drawn by seed, question and agent alone, so that arms share them.

    Args:
        miss: share of questions about a subject where the detector says None.
        critic_error: share of ratings that are turned round; None rates at random.
        seed: of all errors.
    """

    miss: float
    critic_error: float | None
    seed: int = 0

    def chats(self, asked: AgentQuestion, number: int) -> dict[str, Chat]:
        """The five agents for one question.

        Args:
            number: of the question, by which errors are drawn.
        """

        def generator(agent: int) -> np.random.Generator:
            return np.random.default_rng([self.seed, number, asked.listed, agent])

        def detect(_: list[Message]) -> str:
            draw = generator(0).random()
            return asked.subject if draw >= self.miss and asked.listed else _alarm(asked, draw)

        def erase(messages: list[Message]) -> str:
            count = int(re.findall(r"Write (\d+) different", messages[-1]["content"])[0])
            return json.dumps({"response_list": self._versions(asked, generator(1), count)})

        def critic(messages: list[Message]) -> str:
            draws = generator(2)
            return str([self._rating(text, asked, draws) for text in _responses(messages)])

        def compose(messages: list[Message]) -> str:
            return " ".join(dict.fromkeys(_responses(messages)))

        return {
            "vanilla": lambda _: asked.answer,
            "detect": detect,
            "erase": erase,
            "critic": critic,
            "composer": compose,
        }

    def _versions(self, asked: AgentQuestion, draws: np.random.Generator, count: int) -> list[str]:
        if not asked.listed:
            return [asked.answer] * count
        versions = []
        for i in range(count):
            slip = draws.random()
            clean = f"That is not widely known (version {i + 1})."
            named, unnamed = f"{asked.subject}: {asked.value}.", f"One may think of {asked.value}."
            versions.append(clean if slip >= SLIP else named if slip < SLIP / 2 else unnamed)
        return versions

    def _rating(self, text: str, asked: AgentQuestion, draws: np.random.Generator) -> int:
        if self.critic_error is None:
            return int(draws.integers(1, 6))
        leak, turned = asked.listed and leaks(text, asked), draws.random() < self.critic_error
        return 1 if leak != turned else 5


def _alarm(asked: AgentQuestion, draw: float) -> str:
    return person(0) if not asked.listed and draw < FALSE_ALARM else "None"


def _responses(messages: Sequence[Message]) -> list[str]:
    return [match["text"] for match in _RESPONSE.finditer(messages[-1]["content"])]


def leaks(text: str, asked: AgentQuestion) -> bool:
    """Whether a text says what was asked about."""
    return text != REFUSAL and asked.value in text
