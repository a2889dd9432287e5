"""ALU in two parts: agents that err as often as they are told, and a small chat model as all four agents.

Claim looked at (arXiv 2502.00406): four agents around a model are the most robust method at inference, whatever the number of subjects.

The first part shows the mechanism and says nothing of a model: rule-based agents in the real chain, with a detector that misses so many
questions and a critic that errs so often, both swept. The arms share every draw; in the control the ratings are random.
The second part asks SmolLM2-135M twenty questions about landmarks, and is expected to fail: so small a model hardly keeps to a form.
A model of half a billion weights or more decides the claim (medium and full budgets, where it is at hand).
Settings of the second part are bounded so that it ends; they are not the paper's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from ..beds.agents import RuleAgents, agent_questions, leaks, person
from ..beds.budget import Budget
from ..data import Example, landmarks
from ..data.text.landmarks import answers_rightly
from ..forget.engine.text.agents.chat import Chat, LocalChat, Message
from ..forget.engine.text.agents.pipeline import REFUSAL, AgentAnswer, AgentChain, ChainRules
from ..forget.engine.text.agents.subjects import Subjects
from ..models import load
from ..scoring import rouge_l
from ..scoring.intervals import mean_interval
from .base import Claim, figure
from .checks import Check, reason_of

RATES = (0.0, 0.1, 0.3, 0.5)  # of the detector's misses, and of the critic's errors
AT = (0.3, 0.1)  # the miss rate and the critic's error of the table's rows
SIZES = (1, 20, 200, 1000)  # subjects
SUBJECTS, QUESTIONS = 20, 100
KEPT = 0.95
SUBJECT = "Eiffel Tower"
MODELS = {"medium": "Qwen/Qwen2.5-0.5B-Instruct", "full": "Qwen/Qwen2.5-7B-Instruct"}
SMALL_MODEL, ASKED = "smollm2-135m", 10  # questions of each kind
TOKENS = {"vanilla": 32, "detect": 16, "erase": 96, "critic": 96, "composer": 32}
PREFIX = (
    f"Pretend that you know nothing about the {SUBJECT}. Where a question is about it, reply with this sentence alone: {REFUSAL} "
    "Answer all other questions directly."
)
PLAIN = ChainRules(post_check=False)
COLUMNS = ("leak", "retain ROUGE-L", "refused of forget", "refused of retain", "calls")


@dataclass
class ArmAnswers:
    """What one arm said, question by question.

    Args:
        leaked: of the questions to be forgotten, 1 where the answer is said.
        kept: of the others, ROUGE-L against the vanilla answer.
        refused: shares of both are taken of these.
        calls: an answer.
    """

    leaked: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    refused: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    calls: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def add(self, listed: bool, leaked: bool, vanilla: str, answer: AgentAnswer) -> None:
        """Notes one answer."""
        if listed:
            self.leaked.append(float(leaked))
        else:
            self.kept.append(rouge_l(vanilla, answer.text).recall)
        self.refused[listed].append(float(answer.refused))
        self.calls.append(answer.n_calls)
        self.words.append(answer.prompt_words)

    def row(self) -> tuple[float, ...]:
        """The table's figures."""
        values = (fmean(self.leaked), fmean(self.kept), fmean(self.refused[True]), fmean(self.refused[False]))
        return (*(round(value, 3) for value in values), round(fmean(self.calls), 2))


def guardrail(answer: AgentAnswer) -> AgentAnswer:
    """What refusing wherever something was detected makes of a chain's answer."""
    if answer.detected is None:
        return AgentAnswer(answer.vanilla, calls=answer.calls[:2])
    return AgentAnswer(REFUSAL, refused=True, detected=answer.detected, calls=answer.calls[:2])


# --- rule-based agents

RULES: dict[str, ChainRules] = {
    "detect + erase": ChainRules(k=1, j=1, threshold=1.0, post_check=False),
    "ALU": PLAIN,
    "random ratings": PLAIN,
    "ALU, step 9": ChainRules(),
}


def simulated(arm: str, miss: float, error: float, seeds: Sequence[int], subjects: int, count: int) -> ArmAnswers:
    """One arm on all questions and seeds.

    Args:
        arm: one of `RULES`, "detect + refuse" or "vanilla".
        error: of the critic, where the arm has one that isn't random.
        subjects: on the list.
        count: questions of each kind.
    """
    answers, listed = ArmAnswers(), Subjects([person(i) for i in range(subjects)])
    rules = RULES.get(arm, PLAIN)
    for seed in seeds:
        agents = RuleAgents(miss, None if arm == "random ratings" else error, seed)
        for number, asked in enumerate(agent_questions(subjects, count)):
            if arm == "vanilla":
                answer = AgentAnswer(asked.answer, calls=("vanilla",))
            else:
                answer = AgentChain(agents.chats(asked, number), listed, rules)(asked.question)
            answer = guardrail(answer) if arm == "detect + refuse" else answer
            answers.add(asked.listed, leaks(answer.text, asked), asked.answer, answer)
    return answers


@dataclass(frozen=True)
class Simulation:
    """Every arm at every rate.

    Args:
        arms: {(arm, miss, critic's error)}; arms without a critic have an error of 0.
        sizes: {subjects on the list: ALU's answers}.
    """

    arms: Mapping[tuple[str, float, float], ArmAnswers]
    sizes: Mapping[int, ArmAnswers]

    def leak(self, arm: str, miss: float, error: float = 0.0) -> list[float]:
        """1 a question where the answer was said."""
        return self.arms[arm, miss, error].leaked


def simulation(seeds: Sequence[int], count: int, misses: Sequence[float], errors: Sequence[float]) -> Simulation:
    """Runs the sweep."""
    arms: dict[tuple[str, float, float], ArmAnswers] = {}
    for miss in misses:
        for arm in ("vanilla", "detect + refuse", "detect + erase", "random ratings"):
            arms[arm, miss, 0.0] = simulated(arm, miss, 0.0, seeds, SUBJECTS, count)
        for error in errors:
            for arm in ("ALU", "ALU, step 9"):
                arms[arm, miss, error] = simulated(arm, miss, error, seeds, SUBJECTS, count)
    sizes = {size: simulated("ALU", *AT, seeds[:1], size, count) for size in SIZES}
    return Simulation(arms, sizes)


def simulation_checks(made: Simulation, misses: Sequence[float]) -> list[Check]:
    """What the mechanism must show, and that the critic is what does it."""
    error = AT[1]
    ours = [value for miss in misses for value in made.leak("ALU", miss, error)]
    chance = [value for miss in misses for value in made.leak("random ratings", miss)]
    erased = [value for miss in misses for value in made.leak("detect + erase", miss)]
    behind = [one - other for one, other in zip(erased, chance, strict=True)]
    calls = [made.sizes[size].calls for size in SIZES]
    return [
        Check("mechanism", "nothing leaks where neither detector nor critic errs", not any(made.leak("ALU", 0.0, 0.0))),
        *(
            Check.paired(
                "mechanism",
                f"detector misses {miss:g}, critic errs {error:g}: ALU leaks less than detect + erase",
                made.leak("detect + erase", miss),
                made.leak("ALU", miss, error),
            )
            for miss in misses
        ),
        Check(
            "mechanism",
            "of answers about others ALU keeps 0.95 of the ROUGE-L",
            fmean(made.arms["ALU", *AT].kept),
            ">=",
            KEPT,
            mean_interval(made.arms["ALU", *AT].kept),
        ),
        Check("mechanism", "calls are the same for 1 and for 1000 subjects", all(one == calls[0] for one in calls)),
        Check.paired("control", "random ratings leak more than ALU's", chance, ours),
        Check(
            "control",
            "with random ratings ALU leaks no less than detect + erase, by two standard errors",
            fmean(behind) <= 2 * stdev(behind) / sqrt(len(behind)),
        ),
    ]


# --- a real model


class Remembered:
    """A chat that answers the same messages once, so that arms share what they ask alike."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.replies = chat, dict[str, str]()

    def __call__(self, messages: list[Message]) -> str:
        key = json.dumps(messages)
        if key not in self.replies:
            self.replies[key] = self.chat(messages)
        return self.replies[key]


def model_chats(size: str) -> dict[str, Chat]:
    """One model as all agents, with bounded replies."""
    loaded = load(MODELS.get(size, SMALL_MODEL))
    model: Any = loaded.model.eval()
    return {name: LocalChat(model, loaded.tokenizer, tokens) for name, tokens in TOKENS.items()}


@dataclass(frozen=True)
class Reality:
    """What a model did as all four agents.

    Args:
        arms: by name.
        in_form: of the detector's replies, and of the rewritings where something was detected, 1 where it kept to the form.
    """

    arms: Mapping[str, ArmAnswers]
    in_form: Mapping[str, list[float]]


def reality(chats: Mapping[str, Chat], count: int) -> Reality:
    """Asks so many questions about the landmark, and as many about others and of general knowledge."""
    split = landmarks()
    half = count // 2
    others = [*split.evaluation["neighbours"][: count - half], *split.evaluation["general"][:half]]
    rows: list[tuple[Example, bool]] = [
        *((row, True) for row in split.forget[:count]),
        *((row, False) for row in others),
    ]
    shared: dict[str, Chat] = {name: Remembered(chat) for name, chat in chats.items()}
    listed = Subjects([SUBJECT])
    chains = {
        "ALU": AgentChain(shared, listed, ChainRules(post_check=False, retries=0)),
        "ALU, step 9": AgentChain(shared, listed, ChainRules(retries=0)),
    }
    names = ("vanilla", "prompt prefix", "detect + refuse", *chains)
    arms, in_form = {name: ArmAnswers() for name in names}, {"detect": list[float](), "erase": list[float]()}
    for row, is_listed in rows:
        question = row.question or ""
        answers = {name: chain(question) for name, chain in chains.items()}
        plain = answers["ALU"]
        answers["vanilla"] = AgentAnswer(plain.vanilla, calls=("vanilla",))
        answers["prompt prefix"] = prefixed(chats["vanilla"], question)
        answers["detect + refuse"] = guardrail(plain)
        for name, answer in answers.items():
            said = not answer.refused and answers_rightly(question, answer.text)
            arms[name].add(is_listed, said, plain.vanilla, answer)
        in_form["detect"].append(float(plain.detected != ()))
        if plain.detected is not None:
            in_form["erase"].append(float(bool(plain.variants)))
    return Reality(arms, in_form)


def prefixed(chat: Chat, question: str) -> AgentAnswer:
    """The model told in its prompt to know nothing of the subject."""
    text = chat([{"role": "system", "content": PREFIX}, {"role": "user", "content": question}])
    refused = "cannot assist" in text
    return AgentAnswer(REFUSAL if refused else text, refused=refused, calls=("vanilla",))


def reality_checks(made: Reality) -> list[Check]:
    """Whether the model can be an agent at all, and if so whether the chain is worth its calls."""
    arms, forms = made.arms, made.in_form
    kept = arms["ALU"].kept
    return [
        Check("set-up", "the model knows half of what is to be forgotten", fmean(arms["vanilla"].leaked), ">=", 0.5),
        Check(
            "set-up",
            "the detector replies with a subject of the list or None, half the time",
            fmean(forms["detect"]),
            ">=",
            0.5,
        ),
        Check(
            "set-up",
            "versions come in the form asked for, half the time",
            fmean(forms["erase"]) if forms["erase"] else 0.0,
            ">=",
            0.5,
        ),
        Check.paired("claim", "ALU leaks less than a prompt prefix", arms["prompt prefix"].leaked, arms["ALU"].leaked),
        Check("claim", "ALU keeps 0.95 of the ROUGE-L of other answers", fmean(kept), ">=", KEPT, mean_interval(kept)),
    ]


def run(budget: Budget) -> Claim:
    """Both parts; a model that can decide the claim with the medium and the full budget."""
    tiny = budget.size == "tiny"
    misses = (0.0, AT[0]) if tiny else RATES
    seeds = budget.seeds[:1] if tiny else budget.seeds
    made = simulation(seeds, 12 if tiny else QUESTIONS, misses, (0.0, AT[1]) if tiny else RATES)
    real = reality(model_chats(budget.size), 2 if tiny else ASKED)
    checks = (*reality_checks(real), *simulation_checks(made, misses))
    arms = ("vanilla", "detect + refuse", "detect + erase", "random ratings")
    rows = {f"simulated: {arm}": made.arms[arm, AT[0], 0.0].row() for arm in arms}
    rows |= {f"simulated: {arm}": made.arms[arm, *AT].row() for arm in ("ALU", "ALU, step 9")}
    model = MODELS.get(budget.size, SMALL_MODEL)
    rows |= {f"model: {arm}": answers.row() for arm, answers in real.arms.items()}
    return Claim(
        slug="alu",
        claim="four agents around an unmodified model suppress chosen subjects more robustly than any other method at inference, at a "
        "cost that does not depend on the number of subjects (up to 1000; arXiv 2502.00406)",
        setting=f"simulated: rule-based agents, {SUBJECTS} subjects, detector misses {AT[0]:g}, critic errs {AT[1]:g}; model: {model} as "
        f"all agents, {2 * len(real.arms['ALU'].leaked)} questions about landmarks",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            "the simulation says nothing of models; an instruction model of 0.5B weights or more decides the claim",
        ),
        checks=checks,
        seeds=seeds,
        extra={
            "simulated leak by detector's misses and critic's errors": {
                f"{arm}, {miss:g}, {error:g}": round(fmean(answers.leaked), 3)
                for (arm, miss, error), answers in made.arms.items()
                if arm != "vanilla"
            },
            "words of all prompts an answer, by subjects": {
                str(n): round(fmean(one.words)) for n, one in made.sizes.items()
            },
            "replies in the form asked for": {
                name: round(fmean(values), 3) for name, values in real.in_form.items() if values
            },
        },
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """The simulated leak with a critic and without, and what the model leaks and refuses."""
    ours, erased, real = (
        figure(rows, name, 0) for name in ("simulated: ALU", "simulated: detect + erase", "model: ALU")
    )
    refused = figure(rows, "model: ALU", 3)
    return (
        f"simulated leak {ours}, without a critic {erased}; a model leaks {real}, refuses {refused} of other questions"
    )
