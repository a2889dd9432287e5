"""Unlearn by agents around an unmodified chat model: one answers, others find forbidden subjects in it, rewrite, rate and compose.

No weights are read or changed, and the list of subjects may change from one request to the next. A chain of four agents, without a loop:
the vanilla answer; AuditErase, which looks for a subject and writes k versions without it; a critic, which rates each version from 1
(evident knowledge) to 5 (no trace); and a composer, which makes one answer of the best. (ALU, arXiv 2502.00406)

    r = mean of the j highest of r_1..r_k;    answer = compose(y of those j) if r >= threshold, else a refusal

The weights still know everything: this suppresses, and holds as long as every answer goes through the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..data import Examples
from ..errors import DataError, MethodError, setting
from .base import Guard
from .engine.text.agent_model import AgentModel, AgentSettings
from .engine.text.agents.chat import Chat
from .engine.text.agents.pipeline import REFUSAL, AgentChain
from .engine.text.agents.subjects import Subjects
from .engine.text.agents.wording import Prompts

if TYPE_CHECKING:
    from .engine.text.work import TextWork


@dataclass(frozen=True, kw_only=True)
class ALU(Guard["TextWork"]):
    """Agentic unlearning. The subjects are those given, or else whom and what the forget rows are about.

    Args:
        subjects: what answers must not speak of, "name | other name | ..." each; empty for the entities of the forget rows.
        k: versions of an answer, at least `j`.
        j: of those, how many are composed and averaged, at least 1.
        threshold: mean rating below which the answer is a refusal, from 1 to 5.
        faithful: go as the official code does: where nothing is detected, k copies of the answer are rated and composed all the same,
            a reply that holds the letters "none" anywhere counts as None, ratings are taken out of the critic's text by one more call,
            and the answer is not looked at afterwards.
        post_check: look for every subject and alias in the answer before it is given; one more attempt to compose, then a refusal. A
            vanilla answer that names one is rewritten whatever was detected. (ours)
        shortlist: subjects a prompt lists at most, those nearest to the conversation by their words; None lists all. A subject that
            is described without any of its words may be missed. (ours)
        retries: further attempts where a reply is not in its form, at least 0; then a refusal. (ours)
        agent_tokens: of an agent's reply, at least 1.
        endpoint: address of an OpenAI-compatible server for some of the agents; all they read is sent there. None for the model itself.
        endpoint_model: what the model is called there.
        endpoint_agents: who asks there, of vanilla, detect, erase, critic and composer.
        endpoint_timeout: seconds until a call is given up, above 0.
        prompts: a folder with prompts of one's own, <name>.txt; None for those that ship.
        refusals: the first is what a refusal says; empty for a plain one.
        log_texts: let the log "unwrite.agents" hold what agents read and say, which is what is to be unlearned. (ours)
    """

    subjects: tuple[str, ...] = ()
    k: int = 5
    j: int = 3
    threshold: float = 4.0
    faithful: bool = False
    post_check: bool = True
    shortlist: int | None = None
    retries: int = 2
    agent_tokens: int = 1024
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_agents: tuple[str, ...] = ("detect", "erase", "critic", "composer")
    endpoint_timeout: float = 60.0
    prompts: str | None = None
    refusals: tuple[str, ...] = ()
    log_texts: bool = False

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.subjects, tuple) or not all(isinstance(one, str) for one in self.subjects):
            raise MethodError(f"{setting('subjects')} is {self.subjects!r}; give a tuple of names.")
        if self.endpoint_model is not None and self.endpoint is None:
            raise MethodError(
                f"{setting('endpoint_model')} is {self.endpoint_model!r}, but there is no endpoint to ask for it. Give "
                f"{setting('endpoint')}."
            )
        self._settings(self.subjects)
        if self.subjects:
            Subjects(self.subjects)
        self._prompts()

    def chain(self, chats: Chat | Mapping[str, Chat]) -> AgentChain:
        """The agents alone, for texts: around any function from messages to a reply, where there are no weights at hand.

        Args:
            chats: one function for all agents, or one an agent.

        Raises:
            MethodError: no subjects; an agent without a function.
        """
        return AgentChain(chats, self.subjects, self._settings(self.subjects), self._prompts())

    def _settings(self, subjects: tuple[str, ...]) -> AgentSettings:
        return AgentSettings(
            subjects=subjects,
            k=self.k,
            j=self.j,
            threshold=self.threshold,
            faithful=self.faithful,
            post_check=self.post_check,
            shortlist=self.shortlist,
            retries=self.retries,
            refusal=self.refusals[0] if self.refusals else REFUSAL,
            log_texts=self.log_texts,
            agent_tokens=self.agent_tokens,
            endpoint=self.endpoint,
            endpoint_model=self.endpoint_model,
            endpoint_agents=self.endpoint_agents,
            endpoint_timeout=self.endpoint_timeout,
        )

    def _prompts(self) -> Prompts:
        return Prompts() if self.prompts is None else Prompts.of_folder(self.prompts)

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if not self._of(forget):
            raise DataError(
                "no forget row says whom or what it is about, so there is no subject to unlearn. Give a column 'entity', or "
                f"{setting('subjects')}."
            )
        Subjects(self._of(forget))

    def _of(self, forget: Examples) -> tuple[str, ...]:
        return self.subjects or tuple(dict.fromkeys(row.entity for row in forget if row.entity))

    def _apply(self, work: TextWork) -> AgentModel:
        work.encoded(work.forget)  # a row that no model can be asked is no row to guard
        return AgentModel(work.model, work.tokenizer, self._settings(self._of(work.forget)), self._prompts())
