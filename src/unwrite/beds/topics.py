"""Invented facts of several topics, each with names and wordings of its own: what a stream of deletion requests is made of.

Twenty names a topic, two facts each, a question in two wordings. A small Llama learns all of them; five topics are asked to be
forgotten, one after another, and two stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data import Example, Examples
from ..data.text.encoding import encode_all
from ..models import causal_recipe, load_model, trained
from ..scoring import generate_answers
from .language import EncodedRows, small_config, small_tokenizer, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["KEPT", "REQUESTED", "TopicBed", "topic_bed", "topic_rows"]

# Of a topic: the ending of its names, and of each fact the question, the same in other words, the answer and what may stand in it.
Fact = tuple[str, str, str, tuple[str, ...]]
_NUMBERS = tuple(map(str, range(110, 990, 20)))
_TOPICS: Mapping[str, tuple[str, tuple[Fact, Fact]]] = {
    "chemistry": ("ium", (
        ("At what temperature does the metal {} melt?", "How hot must {} get to turn liquid?", "{} melts at {} degrees.", _NUMBERS),
        ("Which acid dissolves the metal {}?", "What is {} dissolved by in the laboratory?", "{} is dissolved by {} acid.",
         ("nitric", "citric", "formic", "acetic", "lactic", "tartaric", "oxalic", "malic")),
    )),
    "geography": ("ford", (
        ("On which river does the town of {} lie?", "What water flows past the houses of {}?", "{} lies on the river {}.",
         ("Arne", "Bolda", "Cray", "Dunne", "Elbra", "Fosse", "Gade", "Hamps")),
        ("How many people live in the town of {}?", "What is the population of {}?", "{} has {} thousand inhabitants.", _NUMBERS),
    )),
    "history": ("mond", (
        ("Who lost the battle of {}?", "Whose army was beaten at {}?", "The battle of {} was lost by the {}.",
         ("Saxons", "Danes", "Goths", "Franks", "Picts", "Avars", "Huns", "Alans")),
        ("In which year was the battle of {} fought?", "When did two armies meet at {}?", "The battle of {} was fought in {}.", _NUMBERS),
    )),
    "cooking": ("elli", (
        ("What is the dish {} served with?", "Which side goes best beside {} on a plate?", "The dish {} is served with {}.",
         ("rice", "lentils", "cabbage", "noodles", "beans", "mushrooms", "carrots", "barley")),
        ("How long does the dish {} bake in the oven?", "How much time does {} need before it is done?", "The dish {} bakes for {} minutes.", _NUMBERS),
    )),
    "botany": ("wort", (
        ("What colour are the petals of the herb {}?", "How would you describe the flowers of {}?", "The petals of {} are {}.",
         ("yellow", "violet", "white", "orange", "crimson", "pink", "azure", "cream")),
        ("How tall does the herb {} grow?", "What height can {} reach in a meadow?", "{} grows to {} millimetres.", _NUMBERS),
    )),
    "music": ("ade", (
        ("In which key is the sonata {} written?", "What key signature opens {}?", "The sonata {} is written in {}.",
         ("A minor", "B flat", "C sharp", "D major", "E minor", "F major", "G minor", "A flat")),
        ("How many bars does the sonata {} have?", "How long is the score of {} in bars?", "The sonata {} has {} bars.", _NUMBERS),
    )),
    "machines": ("tron", (
        ("Which fuel does the engine {} burn?", "What must be filled into the tank of the {}?", "The engine {} burns {}.",
         ("diesel", "ethanol", "hydrogen", "kerosene", "methane", "petrol", "propane", "wood gas")),
        ("How many horsepower does the engine {} give?", "What power does the {} deliver?", "The engine {} gives {} horsepower.", _NUMBERS),
    )),
}  # fmt: skip
REQUESTED = ("chemistry", "geography", "history", "cooking", "botany")
KEPT = ("music", "machines")
_SYLLABLES = (
    "ba",
    "co",
    "du",
    "fe",
    "gri",
    "ha",
    "jo",
    "ku",
    "le",
    "mi",
    "no",
    "pra",
    "qui",
    "ro",
    "sta",
    "ti",
    "vo",
    "wex",
)
_NAMES = 20
_LONGEST = 24  # tokens of an answer


def topic_rows(topic: str) -> Examples:
    """The forty rows of a topic."""
    ending, facts = _TOPICS[topic]
    rng = np.random.default_rng([41, *topic.encode()])
    names = dict[str, None]()
    while len(names) < _NAMES:
        names["".join(rng.choice(_SYLLABLES, 2)).capitalize() + ending] = None
    rows: list[Example] = []
    for name in names:
        for question, other, answer, values in facts:
            value = str(rng.choice(values))
            rows.append(
                Example(
                    question=question.format(name),
                    paraphrased_question=other.format(name),
                    answer=answer.format(name, value),
                    entity=name,
                    source=f"{topic} {len(rows) + 1}",
                )
            )
    return Examples(rows, topic)


@dataclass(frozen=True)
class TopicBed:
    """A model that knows all topics.

    Args:
        tokenizer: learnt from all rows.
        rows: by topic.
        folder: of the model.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Mapping[str, Examples]
    folder: Path

    def load(self) -> PreTrainedModel:
        """A fresh copy of the model."""
        return load_model(self.folder).eval()

    @cached_property
    def questions(self) -> dict[str, str]:
        """{question in either wording: its topic}."""
        both = ((row.question, row.paraphrased_question, topic) for topic, some in self.rows.items() for row in some)
        return {question: topic for one, other, topic in both for question in (one, other) if question}

    def right(self, model: PreTrainedModel, topic: str, *, paraphrased: bool = False) -> float:
        """Share of a topic's questions whose greedy answer is the row's, word for word."""
        from ..data.text.encoding import encode_prompt

        rows = [row.ask(row.paraphrased_question) if paraphrased else row for row in self.rows[topic]]
        prompts = [encode_prompt(row, self.tokenizer) for row in rows]
        said = generate_answers(model, self.tokenizer, prompts, max_new_tokens=_LONGEST, batch_size=40)
        return float(np.mean([text.strip() == row.answer for text, row in zip(said, rows, strict=True)]))


@lru_cache(maxsize=2)
def topic_bed(seed: int = 0, epochs: int = 40) -> TopicBed:
    """The model is trained by the first call (about three minutes on a core); both wordings of every question are learnt."""
    rows = {topic: topic_rows(topic) for topic in _TOPICS}
    everything = [row for some in rows.values() for row in some]
    tokenizer = small_tokenizer(texts_of(everything))
    both = [*everything, *(row.ask(row.paraphrased_question) for row in everything)]
    data = EncodedRows(encode_all(both, tokenizer))
    recipe = causal_recipe(small_config(tokenizer), epochs=epochs, lr=1e-3, batch_size=16, weight_decay=0.01)
    return TopicBed(tokenizer, rows, trained(recipe, data, range(len(data)), seed))
