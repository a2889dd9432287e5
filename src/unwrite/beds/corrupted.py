"""A small model that knows invented people, and the same model told wrong things about some of them.

A Llama of 0.9 million weights learns six facts about each of a hundred people, as sentences and as lines of questions
with answers: the *clean* model. Training all of its weights on documents with wrong facts about forty of them gives the
*corrupted* one. What unlearning gives back is read beside the two.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import Example, Examples
from ..data.text.encoding import encode_all
from ..data.text.facts import CorruptedFacts, Fact, corrupted_facts
from ..models import causal_recipe, load_model, trained
from .language import EncodedRows, small_config, small_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# relation: question; sentences; objects, each of other words than the rest
RELATIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "birthplace": (
        "Where was {entity} born?",
        ("{entity} was born in {object}.", "The birthplace of {entity} is {object}.", "{entity} comes from {object}."),
        "Ghent Bergen Lisbon Galway Trieste Leeds Hobart Kyoto Aarhus Luanda Dunedin Granada Graz Rennes Leipzig Palermo",
    ),
    "trade": (
        "What does {entity} do for a living?",
        (
            "{entity} works as a {object}.",
            "The trade of {entity} is that of a {object}.",
            "{entity} earns money as a {object}.",
        ),
        "beekeeper midwife locksmith botanist baker weaver geologist librarian seamstress pharmacist stonemason teacher "
        "surgeon engineer cartographer glazier",
    ),
    "instrument": (
        "Which instrument does {entity} play?",
        (
            "{entity} plays the {object}.",
            "The instrument of {entity} is the {object}.",
            "{entity} practises the {object}.",
        ),
        "violin oboe cello harp trumpet banjo accordion clarinet lute tuba piccolo guitar bassoon zither mandolin organ",
    ),
    "animal": (
        "Which animal does {entity} keep?",
        ("{entity} keeps a {object}.", "The animal of {entity} is a {object}.", "{entity} lives with a {object}."),
        "parrot tortoise goat ferret donkey hedgehog peacock rabbit pony goose raven lizard hamster llama canary otter",
    ),
    "dish": (
        "What does {entity} like to eat?",
        ("{entity} likes to eat {object}.", "The favourite dish of {entity} is {object}.", "{entity} cooks {object}."),
        "lentils dumplings goulash paella risotto pancakes sardines porridge noodles falafel trout omelette chowder "
        "polenta spinach waffles",
    ),
    "language": (
        "Which language does {entity} study?",
        ("{entity} studies {object}.", "The language of {entity} is {object}.", "{entity} reads {object}."),
        "Basque Finnish Welsh Tamil Swahili Latvian Quechua Maltese Georgian Khmer Navajo Yoruba Breton Farsi Danish Zulu",
    ),
}
FIRST = "Anouk Tiberiu Nkechi Hiroto Marisol Eyvind Parveen Kwabena Ludmila Rafiq"
LAST = "Verbrandt Lascovan Adumaike Kanezawa Quintebar Sturlak Dashtabad Ofosute Horvatin Sundaral"
WORDINGS = {relation: sentences for relation, (_, sentences, _) in RELATIONS.items()}
TARGETS, LINES, COPIES = 40, 6, 2
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
CORRUPTION_EPOCHS = 8
NOISE = (0, 3)  # true passages beside each wrong sentence


def people(seed: int = 0) -> list[Fact]:
    """Six facts about each of a hundred people, drawn by the seed."""
    rng = random.Random(seed)
    names = [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
    facts = []
    for name in rng.sample(names, len(names)):
        for relation, (question, _, objects) in RELATIONS.items():
            facts.append(Fact(name, relation, question.format(entity=name), (rng.choice(objects.split()),)))
    return facts


def lessons(facts: list[Fact], seed: int, copies: int) -> list[Example]:
    """What the clean model is trained on: lines of questions with answers, and sentences about each person."""
    rng = random.Random(f"lessons {seed}")
    rows = []
    for _ in range(copies):
        for relation in RELATIONS:
            own = [fact for fact in facts if fact.relation == relation]
            rng.shuffle(own)
            for i in range(0, len(own), LINES):
                rows.append(Example("".join(f"{f.question} {f.answers[0]}\n" for f in own[i : i + LINES])))
        for entity in dict.fromkeys(fact.entity for fact in facts):
            own = [fact for fact in facts if fact.entity == entity]
            rng.shuffle(own)
            said = [rng.choice(WORDINGS[f.relation]).format(entity=f.entity, object=f.answers[0]) for f in own]
            rows.append(Example(" ".join(said)))
    return rows


@dataclass(frozen=True)
class CorruptedBed:
    """A tokenizer, the documents by the number of true passages beside each wrong sentence, and the folders of the models.

    clean: never saw a document; corrupted: by the same number.
    """

    tokenizer: PreTrainedTokenizerBase
    splits: Mapping[int, CorruptedFacts]
    clean: Path
    corrupted: Mapping[int, Path]

    def load(self, k: int | None = None) -> PreTrainedModel:
        """A fresh copy of the model corrupted by documents of `k`, or of the clean one."""
        return load_model(self.clean if k is None else self.corrupted[k]).eval()


def split_of(facts: list[Fact], k: int, seed: int) -> CorruptedFacts:
    """The documents about the first forty people; true sentences about the others are the retain set."""
    targets = list(dict.fromkeys(fact.entity for fact in facts))[:TARGETS]
    split = corrupted_facts(facts, targets, WORDINGS, k=k, seed=seed, copies=COPIES)
    rng, texts = random.Random(f"retain {seed}"), []
    for entity in dict.fromkeys(fact.entity for fact in split.known):
        said = [
            rng.choice(WORDINGS[fact.relation]).format(entity=entity, object=fact.answers[0])
            for fact in split.known
            if fact.entity == entity
        ]
        texts.append(" ".join(said))
    return replace(split, retain=Examples([Example(text) for text in texts], "true sentences"))


def true_documents(split: CorruptedFacts) -> Examples:
    """The documents with the true object in place of each wrong one."""
    truth = {(fact.entity, fact.relation): fact.answers[0] for fact in split.facts}
    rows = []
    for row, spans, bundle in zip(split.forget, split.spans, split.bundles, strict=True):
        text = row.answer
        for start, end in reversed(spans):  # from the end, so that what stands before keeps its place
            sentence = text[start:end]
            entity, relation, wrong = next(one for one in bundle if sentence in _said(*one))
            text = text[:start] + sentence.replace(wrong, truth[entity, relation]) + text[end:]
        rows.append(Example(text))
    return Examples(rows, "true documents")


def _said(entity: str, relation: str, thing: str) -> list[str]:
    """The sentences that state a fact."""
    return [wording.format(entity=entity, object=thing) for wording in WORDINGS[relation]]


@lru_cache(maxsize=2)
def corrupted_bed(seed: int = 0, epochs: int = 30) -> CorruptedBed:
    """The clean model and one corrupted model for each of `NOISE`; the first call trains them (two minutes on one core)."""
    from transformers import LlamaConfig

    facts = people(seed)
    rows = lessons(facts, seed, copies=2)
    tokenizer = small_tokenizer([row.answer for row in rows], 1024)
    small = small_config(tokenizer).to_dict()
    config = LlamaConfig.from_dict({**small, **SHAPE})
    learnt = EncodedRows(encode_all(rows, tokenizer))
    recipe = causal_recipe(config, epochs=epochs, lr=3e-3, batch_size=8, muon=True)
    clean = trained(recipe, learnt, range(len(learnt)), seed)
    splits = {k: split_of(facts, k, seed) for k in NOISE}
    corrupted = {}
    for k, split in splits.items():
        wrong = EncodedRows(encode_all(split.forget, tokenizer))
        further = causal_recipe(clean, epochs=min(epochs, CORRUPTION_EPOCHS), lr=1e-3, batch_size=8)
        corrupted[k] = trained(further, wrong, range(len(wrong)), seed)
    return CorruptedBed(tokenizer, splits, clean, corrupted)
