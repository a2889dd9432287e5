"""The chain of agents: one answers, one looks for subjects and rewrites, one rates, one composes. No loop, no weights changed.

    vanilla -> detect --None--> the vanilla answer, word for word
                     \\-> erase: y_1..y_k -> critic: r_1..r_k in 1..5 -> mean of the j highest < threshold ? refusal : compose

It fails closed: whatever goes wrong in an agent, the answer is a refusal. What agents read and say may be what is to be unlearned, so
nothing of it is logged or shown unless asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TypeVar

from .....errors import MethodError, UnwriteError, notice, setting, unknown
from ...checks import require
from .chat import Chat, Message
from .parsing import LEAST, MOST, BadReply, Detected, detection, letter, ratings, selected, variants
from .subjects import Subjects, as_list
from .wording import Prompts, fenced

__all__ = ["AGENTS", "AgentAnswer", "AgentChain", "ChainRules"]

AGENTS = ("vanilla", "detect", "erase", "critic", "composer")
REFUSAL = "I cannot assist with that question."

log = logging.getLogger("unwrite.agents")
log.addHandler(logging.NullHandler())
T = TypeVar("T")


def need_whole(name: str, value: object, least: int) -> None:
    """Refuses what is no whole number of at least so much."""
    if type(value) is not int or value < least:
        raise MethodError(f"{setting(name)} is {value!r}; it must be a whole number, at least {least}.")


@dataclass(frozen=True)
class ChainRules:
    """How the chain goes; see `ALU`.

    Args:
        retries: further attempts where a reply is not in its form.
        refusal: what is said in place of an answer.
    """

    k: int = 5
    j: int = 3
    threshold: float = 4.0
    faithful: bool = False
    post_check: bool = True
    shortlist: int | None = None
    retries: int = 2
    refusal: str = REFUSAL
    log_texts: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "j", "retries", *(("shortlist",) if self.shortlist is not None else ())):
            need_whole(name, getattr(self, name), 0 if name == "retries" else 1)
        for name in ("faithful", "post_check", "log_texts"):
            if not isinstance(getattr(self, name), bool):
                raise MethodError(f"{setting(name)} is {getattr(self, name)!r}; use True or False.")
        require("threshold", self.threshold, at_least=LEAST, at_most=MOST)
        if self.k < self.j:
            raise MethodError(
                f"{setting('k')} is {self.k}, but the best {self.j} of so many versions are to be composed. Use "
                f"{setting('k')} of at least {setting('j')}."
            )

    @property
    def checks(self) -> bool:
        """Whether the answer is looked at for subjects before it is given."""
        return self.post_check and not self.faithful


@dataclass(frozen=True)
class AgentAnswer:
    """What the chain answers, and how it came to it. Printed, it doesn't show what is not part of the answer.

    Args:
        text: the answer.
        refused: whether it is a refusal.
        detected: names of the subjects detected, empty where something was that is not on the list; None where nothing was.
        verbatim: whether it is the vanilla answer as it was.
        calls: the agent of every call, in order.
        ratings: of the variants.
        chosen: places of the variants that were composed, the best first.
        prompt_words: words of all prompts.
        failure: what went wrong, without any text of an agent; None where nothing did.
        vanilla, variants: the answer before it was looked at, and its rewritings.
    """

    text: str
    refused: bool = False
    detected: Detected = None
    verbatim: bool = False
    calls: tuple[str, ...] = ()
    ratings: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    prompt_words: int = 0
    failure: str | None = None
    vanilla: str = field(default="", repr=False)
    variants: tuple[str, ...] = field(default=(), repr=False)

    @property
    def n_calls(self) -> int:
        """How often an agent was asked."""
        return len(self.calls)


class AgentChain:
    """Four agents around a chat model, for texts alone: `chain("Who ...?").text`.

    Args:
        chats: what is asked: one function from messages to a reply for all agents, or one an agent ("vanilla", "detect", "erase",
            "critic", "composer"; the paper's AuditErase is two of them).
        subjects: what must not be spoken of.
        rules: how the chain goes.
        prompts: the agents' prompts.

    Raises:
        MethodError: an agent without a chat, or of an unknown name.
    """

    def __init__(
        self,
        chats: Chat | Mapping[str, Chat],
        subjects: Subjects | Sequence[str],
        rules: ChainRules | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.chats: dict[str, Chat] = dict(chats) if isinstance(chats, Mapping) else dict.fromkeys(AGENTS, chats)
        for name in {*self.chats} ^ {*AGENTS}:
            if name in AGENTS:
                raise MethodError(
                    f"the agent {name!r} has nobody to ask. Give a function from messages to a reply for it."
                )
            raise MethodError(unknown("agent", name, AGENTS))
        self.subjects = subjects if isinstance(subjects, Subjects) else Subjects(subjects)
        self.rules, self.prompts = rules or ChainRules(), prompts or Prompts()

    def __call__(self, dialogue: str | Sequence[Message], options: Sequence[str] = ()) -> AgentAnswer:
        """Answers the last message of a conversation, all of which is looked at.

        Args:
            dialogue: a question, or messages of which the last is the user's.
            options: of a multiple choice; the composer then sees the question, the options and the variants it may use, and the
                answer is a letter. The question must show the options itself.
        """
        messages = [{"role": "user", "content": dialogue}] if isinstance(dialogue, str) else list(dialogue)
        passage = _Passage(self, messages, options)
        try:
            passage.go()
        except Exception as error:  # fails closed, whatever it was
            passage.fail(error)
        return passage.answer


class _Passage:
    """One conversation's way through the chain; `answer` is a refusal until the end is reached."""

    def __init__(self, chain: AgentChain, dialogue: list[Message], options: Sequence[str]) -> None:
        self.chain, self.rules, self.subjects = chain, chain.rules, chain.subjects
        self.dialogue, self.options = dialogue, options
        self.answer = AgentAnswer(chain.rules.refusal, refused=True)
        self.listed = ""

    def go(self) -> None:
        """vanilla, detect, erase, critic, compose."""
        vanilla = self._vanilla()
        self.note(vanilla=vanilla)
        transcript = self._transcript(vanilla)
        self.listed = as_list(self.subjects.nearest(transcript, self.rules.shortlist))
        detected = self._detect(transcript)
        if detected is None and self.rules.checks:
            missed = self.subjects.mentioned(vanilla)
            detected = tuple(one.name for one in missed) or None
        self.note(detected=detected)
        if detected is None and not self.rules.faithful:
            self.note(
                text=letter(vanilla, len(self.options)) if self.options else vanilla, refused=False, verbatim=True
            )
            return
        target = ", ".join(detected or ()) or ("None" if detected is None else "one of the list")
        texts = [vanilla] * self.rules.k if detected is None else self._erase(transcript, target)
        self.note(variants=tuple(texts))
        rated = self._rate(texts, target)
        chosen = selected(rated, self.rules.j)
        self.note(ratings=tuple(rated), chosen=tuple(chosen))
        if fmean(rated[i] for i in chosen) >= self.rules.threshold:
            self.note(text=self._compose([texts[i] for i in chosen]), refused=False)

    def note(self, **values: object) -> None:
        """Fills in what is known by now."""
        self.answer = replace(self.answer, **values)  # type: ignore[arg-type]

    def fail(self, error: Exception) -> None:
        """Refuses, and says why without a word of what an agent said."""
        own = isinstance(error, UnwriteError | BadReply)
        failure = str(error) if own else type(error).__name__
        agent = self.answer.calls[-1] if self.answer.calls else "vanilla"
        self.note(text=self.rules.refusal, refused=True, verbatim=False, failure=failure)
        log.warning("refused, for the agent %s failed: %s", agent, failure)
        if not isinstance(error, BadReply):
            notice(f"an answer was refused, for the agent {agent} failed: {failure}")

    def _vanilla(self) -> str:
        own = [] if self.dialogue[0]["role"] == "system" else self.chain.prompts.messages("vanilla")
        reply = self._ask("vanilla", [*own, *self.dialogue])
        if not reply.strip():
            raise BadReply("an empty answer")
        return reply

    def _transcript(self, answer: str) -> str:
        return f"{self._turns()}\nAssistant: {answer}"

    def _turns(self) -> str:
        """What was said until now, without instructions in front."""
        turns = self.dialogue[self.dialogue[0]["role"] == "system" :]
        return "\n".join(f"{one['role'].capitalize()}: {one['content']}" for one in turns)

    def _detect(self, transcript: str) -> Detected:
        reply = self._ask("detect", self._prompt("detect", {"conversation": transcript}))
        return detection(reply, self.subjects, official=self.rules.faithful)

    def _erase(self, transcript: str, target: str) -> list[str]:
        k = self.rules.k
        messages = self._prompt(
            "erase", {"conversation": transcript}, k=str(k), target=target, refusal=self.rules.refusal
        )
        return self._until("erase", messages, lambda reply: variants(reply, k))

    def _rate(self, texts: list[str], target: str) -> list[int]:
        shown = {"question": self._turns()} | {f"response {i}": text for i, text in enumerate(texts, start=1)}
        messages = self._prompt("critic", shown, k=str(self.rules.k), target=target)
        if not self.rules.faithful:
            return self._until("critic", messages, lambda reply: ratings(reply, len(texts)))
        reasons = self._ask("critic", messages)
        return self._until(
            "critic", self._prompt("ratings", {"text": reasons}), lambda reply: ratings(reply, len(texts))
        )

    def _compose(self, texts: list[str]) -> str:
        shown = {f"version {i}": text for i, text in enumerate(texts, start=1)}
        if self.options:
            messages = self._prompt("choose", {"question": self.dialogue[-1]["content"], **shown})
            return self._until("composer", messages, lambda reply: letter(reply, len(self.options)))
        messages = self._prompt("compose", shown)
        return self._until("composer", messages, self._passed, retries=1 if self.rules.checks else 0)

    def _passed(self, reply: str) -> str:
        if not reply.strip():
            raise BadReply("an empty answer")
        if self.rules.checks and self.subjects.flagged(reply):
            raise BadReply("it names a forbidden subject")
        return reply.strip()

    def _prompt(self, name: str, shown: Mapping[str, str], **values: str) -> list[Message]:
        texts, mark = fenced(shown)
        known = values if name == "ratings" else values | {"subjects": self.listed}
        return self.chain.prompts.messages(name, texts=texts, mark=mark, **known)

    def _until(self, agent: str, messages: list[Message], read: Callable[[str], T], retries: int | None = None) -> T:
        """Asks until the reply can be read; asking again says what was wrong, for a greedy model repeats itself.

        Raises:
            BadReply: none of the attempts could be read.
        """
        for left in range(self.rules.retries if retries is None else retries, -1, -1):
            reply = self._ask(agent, messages)
            try:
                return read(reply)
            except BadReply as error:
                if not left:
                    raise
                again = self.chain.prompts.messages("again", problem=str(error))
                messages = [*messages, {"role": "assistant", "content": reply}, *again]
        raise AssertionError("unreachable")

    def _ask(self, agent: str, messages: list[Message]) -> str:
        words = sum(len(one["content"].split()) for one in messages)
        self.note(calls=(*self.answer.calls, agent), prompt_words=self.answer.prompt_words + words)
        start = time.perf_counter()
        reply = self.chain.chats[agent](messages)
        if not isinstance(reply, str):
            raise BadReply(f"the agent {agent} gave no text but {type(reply).__name__}")
        log.info("%s: %d words asked, %d said, %.2f s", agent, words, len(reply.split()), time.perf_counter() - start)
        if self.rules.log_texts:
            log.info("%s asked: %s", agent, messages)
            log.info("%s said: %s", agent, reply)
        return reply
