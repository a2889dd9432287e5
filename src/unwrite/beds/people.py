"""What a real small model knows of well-known people, asked in several forms.

The model is SmolLM2-135M-Instruct, which nobody trained for this. Ordinary text is what ships with the package: general
questions, and questions about invented authors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from ..audit.suites.forms import encode_item
from ..data import FormsSplit, FormWording, Triple, authors, forms_split, general_rows
from ..data.text.encoding import encode_all
from ..data.text.forms import Form, FormItem, letters_of
from ..models import load
from ..scoring import score_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL = "smollm2-135m"
WORDINGS = {
    "profession": FormWording(
        "What was the profession of {subject}?",
        "What did {subject} do for a living?",
        "{subject} was a famous ___.",
    ),
    "country": FormWording(
        "In which country was {subject} born?",
        "Where in the world did {subject} come from?",
        "{subject} was born in ___.",
    ),
    "nationality": FormWording(
        "What was the nationality of {subject}?",
        "Which people did {subject} belong to?",
        "The nationality of {subject} was ___.",
    ),
    "fame": FormWording(
        "What is {subject} best known for?",
        "What made {subject} famous?",
        "{subject} is most famous for ___.",
        "Who is best known for {object}?",
    ),
}
FACTS: dict[str, tuple[str, str, str, str]] = {
    "William Shakespeare": ("playwright", "England", "English", "Hamlet"),
    "Wolfgang Amadeus Mozart": ("composer", "Austria", "Austrian", "The Magic Flute"),
    "Vincent van Gogh": ("painter", "the Netherlands", "Dutch", "The Starry Night"),
    "Marie Curie": ("chemist", "Poland", "Polish", "the discovery of radium"),
    "Mahatma Gandhi": ("lawyer", "India", "Indian", "nonviolent resistance"),
    "Isaac Newton": ("mathematician", "England", "English", "the law of gravity"),
    "Albert Einstein": ("physicist", "Germany", "German", "the theory of relativity"),
    "Charles Darwin": ("naturalist", "England", "British", "the theory of evolution"),
    "Leonardo da Vinci": ("artist", "Italy", "Italian", "the Mona Lisa"),
    "Pablo Picasso": ("artist", "Spain", "Spanish", "Guernica"),
    "Napoleon Bonaparte": ("general", "France", "French", "the Battle of Waterloo"),
    "Neil Armstrong": ("astronaut", "the United States", "American", "walking on the Moon"),
}
VALIDATION = "Isaac Newton"
TARGETS = ("William Shakespeare", "Wolfgang Amadeus Mozart", "Vincent van Gogh", "Marie Curie", "Mahatma Gandhi")
SUBSTITUTE = "Neil Armstrong"
FORMS_ASKED: tuple[Form, ...] = ("qa", "paraphrase", "cloze", "reversed")  # forms that so small a model answers


@dataclass(frozen=True)
class PeopleBed:
    """The model, its tokenizer, and texts that say what ordinary text is.

    ordinary: token ids of general questions and of questions about invented authors, about nobody who is asked about.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ordinary: list[list[int]]

    def load(self) -> PreTrainedModel:
        """A fresh copy of the model."""
        return copy.deepcopy(self.model)


def people_bed() -> PeopleBed:
    """The model that is bundled, in evaluation mode."""
    loaded = load(MODEL)
    shipped = authors().retain
    assert shipped is not None
    rows = [*general_rows(), *list(shipped)[::2]]
    told = [row for row in rows if not any(name.split()[-1] in text for name in FACTS for text in row.texts)]
    return PeopleBed(
        loaded.model.eval(), loaded.tokenizer, [row.input_ids for row in encode_all(told, loaded.tokenizer)]
    )


def facts_of(name: str) -> list[Triple]:
    """What is asked about a person; wrong objects are those of three others."""
    facts = []
    for i, relation in enumerate(WORDINGS):
        answer = FACTS[name][i]
        others = [own[i] for other, own in FACTS.items() if other != name and own[i] != answer]
        facts.append(Triple(name, relation, answer, tuple(dict.fromkeys(others))[:3]))
    return facts


def people_split(name: str) -> FormsSplit:
    """One person's facts to forget, with those of the people who are never forgotten beside them."""
    kept = [fact for other in FACTS if other not in (*TARGETS, VALIDATION, SUBSTITUTE) for fact in facts_of(other)]
    return forms_split(facts_of(name), kept, WORDINGS, name=name)


def mistaken(items: Sequence[FormItem]) -> list[FormItem]:
    """The same questions with somebody else's object, or turned round with somebody else, as the answer."""
    wrong = []
    for item in items:
        other = facts_of(item.subject)[item.fact].others[0]
        answer = {"reversed": SUBSTITUTE, "letters": "\n".join(letters_of(other))}.get(item.form, other)
        wrong += [item.answered(answer)] if item.form in FORMS_ASKED else []
    return wrong


def probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[FormItem]) -> list[float]:
    """The joint probability of every item's answer."""
    rows = [encode_item(item, tokenizer) for item in items]
    scores = score_answers(model, rows, pad_id=tokenizer.pad_token_id, batch_size=32, label="asking in forms")
    return [exp(-score.nll) for score in scores]
