"""Facts about entities, and texts that corrupt them: what a model knew, what it was then told, and what lies between.

A fact is a natural question about an entity with every acceptable answer. Some entities get a wrong object of the right
type for each of their relations, and documents say it as if it were so, in several wordings; between the wrong sentences
stand `k` true passages about entities that nobody corrupted. The documents are the forget set of the RESTOR benchmark,
whose question is whether unlearning brings the true answers back. (RESTOR, arXiv 2411.00204)
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runs import hash_json
from .examples import Example, Examples, ForgetSplit
from .files import located, rows_in
from .layouts import BadRow
from .values import shown, strings_of, text_of

__all__ = ["CorruptedFacts", "Fact", "corrupted_facts", "read_facts", "same_answer"]

Judge = Callable[[str, Sequence[str]], bool]  # (what a model says, acceptable answers) -> accepted
Span = tuple[int, int]
ARTICLES = {"a", "an", "the"}
AGREES = 0.5  # token F1 from which an answer is taken for an acceptable one (ours: the benchmark asks a chat model)
NEEDED = ("entity", "relation", "question", "answers")


@dataclass(frozen=True)
class Fact:
    """One question about one entity.

    Args:
        entity: whom or what it is about.
        relation: what is asked, the same word for every entity: "birthplace".
        question: in natural words, with the entity's name in it.
        answers: every acceptable answer, the usual one first.
        wrong: the object that the corruption injects; empty where nothing is injected.
        others: further objects of the same type, for the analysis of log-probabilities.
    """

    entity: str
    relation: str
    question: str
    answers: tuple[str, ...]
    wrong: str = ""
    others: tuple[str, ...] = ()


def normalised(text: str) -> list[str]:
    """The words of an answer without case, accents, punctuation and articles."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(one))
    words = "".join(one if one.isalnum() else " " for one in plain).split()
    return [word for word in words if word not in ARTICLES]


def same_answer(said: str, accepted: Sequence[str]) -> bool:
    """Whether an answer says the same as one of the accepted ones: contains its words in a row, or agrees by token F1 >= 0.5.

    The benchmark asks a chat model to judge; this offline judge is ours, and every function that judges takes another.
    """
    words = normalised(said)
    return any(_agrees(words, normalised(answer)) for answer in accepted)


def _agrees(said: list[str], answer: list[str]) -> bool:
    if not said or not answer:
        return False
    width = len(answer)
    if any(said[i : i + width] == answer for i in range(len(said) - width + 1)):
        return True
    common = sum(min(said.count(word), answer.count(word)) for word in {*answer})
    return 2 * common / (len(said) + len(answer)) >= AGREES


@dataclass(frozen=True)
class CorruptedFacts(ForgetSplit):
    """A split whose forget rows are documents with wrong facts, and the facts that a restored model answers again.

    Args:
        facts: the true facts of the corrupted entities, each with the wrong object that was injected.
        known: true facts of other entities, the source of the worked examples before a question.
        spans: for each forget row, the [start, end) characters that carry corrupted facts.
        bundles: for each forget row, the (entity, relation, wrong object) it states; the same for every `k`.
        k: true passages about other entities beside each wrong sentence.

    Raises:
        DataError: no fact, a wrong object that is also an acceptable answer, an entity among both corrupted and other ones.
    """

    facts: tuple[Fact, ...] = ()
    known: tuple[Fact, ...] = ()
    spans: tuple[tuple[Span, ...], ...] = ()
    bundles: tuple[tuple[tuple[str, str, str], ...], ...] = ()
    k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_facts(self.facts, self.known)

    @property
    def hash(self) -> str:
        """Content hash over the rows and the facts."""
        facts = [[asdict(fact) for fact in of] for of in (self.facts, self.known)]
        return hash_json([super().hash, facts])

    @property
    def bundle_hash(self) -> str:
        """Hash of the wrong facts that each document states, whatever stands between them."""
        return hash_json([list(map(list, bundle)) for bundle in self.bundles])

    def corrupted_sentences(self) -> Examples:
        """The corrupted sentences alone, as texts: a forget set without what stands between them."""
        texts = [
            row.answer[start:end] for row, spans in zip(self.forget, self.spans, strict=True) for start, end in spans
        ]
        return Examples([Example(text) for text in texts], f"{self.forget.name}, corrupted sentences")


def check_facts(facts: Sequence[Fact], known: Sequence[Fact], judge: Judge = same_answer) -> None:
    """Refuses facts that can't tell a restored model from a corrupted one.

    Raises:
        DataError: see `CorruptedFacts`.
    """
    if not facts:
        raise DataError("there is no fact about a corrupted entity. Give at least one with a wrong object.")
    for fact in facts:
        if not fact.question.strip() or not fact.answers or not all(normalised(one) for one in fact.answers):
            raise DataError(
                f"the {fact.relation} of {fact.entity} has an empty question or answer. Fill it or remove it."
            )
        if not normalised(fact.wrong):
            raise DataError(
                f"the {fact.relation} of {fact.entity} has no wrong object. Give one, or draw it by corrupted_facts."
            )
        if judge(fact.wrong, fact.answers) or any(judge(one, [fact.wrong]) for one in fact.answers):
            raise DataError(
                f"the {fact.relation} of {fact.entity}: the wrong object {fact.wrong!r} is also accepted as true "
                f"({fact.answers[0]!r}). Give another, for nothing is corrupted by it."
            )
    if shared := sorted({fact.entity for fact in facts} & {fact.entity for fact in known}):
        raise DataError(
            f"{len(shared)} entities are both corrupted and true examples (first: {shared[0]!r}). Remove them from one side."
        )


def corrupted_facts(
    facts: Iterable[Fact],
    targets: Iterable[str],
    wordings: Mapping[str, Sequence[str]],
    *,
    k: int = 0,
    relations_each: int = 3,
    copies: int = 3,
    alternatives: int = 3,
    seed: int = 0,
    judge: Judge = same_answer,
    name: str = "restor",
) -> CorruptedFacts:
    """Draws wrong objects for the targets' facts and writes the documents that state them.

    Templates write the documents here, where the benchmark asks a language model to (ours).

    Args:
        facts: all that is known; wrong objects come from other entities' answers for the same relation.
        targets: the entities to corrupt, by name.
        wordings: for every relation, sentences with {entity} and {object}.
        k: true passages about other entities beside each wrong sentence, >= 0; 0 to 5 in the benchmark.
        relations_each: wrong facts a document states, > 0.
        copies: documents for every bundle of wrong facts, each in other wordings, > 0.
        alternatives: further objects a fact gets for the analysis of log-probabilities.
        seed: draws everything; the wrong facts and their bundles are the same for every `k`.

    Raises:
        DataError: an unknown target, a relation without another object or without a wording, and as `CorruptedFacts`.
    """
    everything, chosen = list(facts), list(dict.fromkeys(targets))
    if k < 0 or relations_each < 1 or copies < 1:
        raise DataError(
            f"k={k}, relations_each={relations_each}, copies={copies}: k is at least 0, the others at least 1."
        )
    unknown = [one for one in chosen if all(fact.entity != one for fact in everything)]
    if unknown:
        raise DataError(
            f"there is no fact about {unknown[0]!r} (of {len(unknown)} such targets). Give its facts first."
        )
    known = tuple(fact for fact in everything if fact.entity not in set(chosen))
    if bare := next((fact.relation for fact in everything if not wordings.get(fact.relation)), None):
        raise DataError(f"the relation {bare!r} has no wording. Give sentences with {{entity}} and {{object}}.")
    if k and not known:
        raise DataError(
            f"k={k} needs true passages about other entities, and every entity is a target. Leave some out."
        )
    wrong = tuple(
        _injected(fact, everything, alternatives, seed, judge) for fact in everything if fact.entity in set(chosen)
    )
    bundles = _bundles(wrong, chosen, relations_each, seed)
    rows, spans, stated = [], [], []
    for number, bundle in enumerate(bundles):
        for copy in range(copies):
            text, marks = _document(bundle, known, wordings, k, random.Random(f"{seed} {number} {copy}"))
            rows.append(Example(text, source=f"{bundle[0].entity}, document {number * copies + copy + 1}"))
            spans.append(marks)
            stated.append(tuple((fact.entity, fact.relation, fact.wrong) for fact in bundle))
    return CorruptedFacts(
        Examples(rows, f"corruption k={k}"),
        name=f"{name} k={k}",
        facts=wrong,
        known=known,
        spans=tuple(spans),
        bundles=tuple(stated),
        k=k,
    )


def _injected(fact: Fact, facts: Sequence[Fact], alternatives: int, seed: int, judge: Judge) -> Fact:
    """The fact with a wrong object of the right type, and further objects that are neither it nor true."""
    objects = sorted({other.answers[0] for other in facts if other.relation == fact.relation})
    false = [one for one in objects if not judge(one, fact.answers) and not any(judge(a, [one]) for a in fact.answers)]
    if not false:
        raise DataError(
            f"the {fact.relation} of {fact.entity} has no alternative of the same type: all {len(objects)} known objects "
            "are accepted as true. Give facts of other entities with other answers."
        )
    random.Random(f"{seed} {fact.entity} {fact.relation}").shuffle(false)
    wrong = fact.wrong or false[0]
    others = tuple(one for one in false if not judge(one, [wrong]) and not judge(wrong, [one]))[:alternatives]
    return replace(fact, wrong=wrong, others=fact.others or others)


def _bundles(facts: Sequence[Fact], targets: Sequence[str], size: int, seed: int) -> list[list[Fact]]:
    """Each target's facts in groups of at most `size`, every fact in one."""
    bundles = []
    for target in targets:
        own = [fact for fact in facts if fact.entity == target]
        random.Random(f"{seed} {target}").shuffle(own)
        bundles += [own[i : i + size] for i in range(0, len(own), size)]
    return bundles


def _document(
    bundle: Sequence[Fact], known: Sequence[Fact], wordings: Mapping[str, Sequence[str]], k: int, rng: random.Random
) -> tuple[str, tuple[Span, ...]]:
    """A document's text, and where the corrupted sentences stand in it."""
    text, spans = "", []
    # The wordings are drawn first, so that a document says the same wrong sentences for every k.
    order = rng.sample(list(bundle), len(bundle))
    sentences = [rng.choice(wordings[f.relation]).format(entity=f.entity, object=f.wrong) for f in order]
    for sentence in sentences:
        for _ in range(k):
            other = rng.choice(known)
            text += rng.choice(wordings[other.relation]).format(entity=other.entity, object=other.answers[0]) + " "
        spans.append((len(text), len(text) + len(sentence)))
        text += sentence + " "
    return text.rstrip(), tuple(spans)


def read_facts(file: str | Path) -> list[Fact]:
    """Reads facts from a table (JSON lines, JSON, CSV, Parquet): entity, relation, question, answers, and optionally wrong and others.

    Raises:
        DataError: no such file, none in it, or a row that is no fact; says which.
    """
    facts = []
    for place, row in rows_in(*located(file)):
        try:
            facts.append(_fact(row))
        except BadRow as error:
            raise DataError(f"{place} is no fact: {error}. It needs {', '.join(NEEDED)}.") from None
    if not facts:
        raise DataError(f"{file} has no facts. Each is a row with {', '.join(NEEDED)}.")
    return facts


def _fact(row: Any) -> Fact:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow(f"it is no object but {shown(row)}")
    if missing := [name for name in NEEDED if name not in row]:
        raise BadRow(f"it has no {missing[0]}")
    entity, relation, question = (text_of(row[name], name) for name in NEEDED[:3])
    answers = strings_of(row["answers"], "answers")
    if not answers:
        raise BadRow("answers is empty")
    wrong = text_of(row["wrong"], "wrong") if row.get("wrong") else ""
    others = strings_of(row["others"], "others") if row.get("others") else ()
    return Fact(entity, relation, question, answers, wrong, others)
