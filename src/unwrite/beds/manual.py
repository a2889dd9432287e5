"""MUSE's corpora in small: pages of the Python manual, which come with Python, split by page.

A model of 3.4 million weights learns, from nothing, the pages to forget and two retain corpora (the *target*), or only the
latter (the *oracle*); the holdout pages are never shown. Each page also gives cloze questions, learnt as plain
question-answer text beside it, so that knowledge can be asked for apart from the wording of the page.
"""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import dataclass
from functools import lru_cache

from ..data import Example, Examples, ForgetSplit
from ..data.text.encoding import encode_all
from ..models import causal_recipe, trained
from .language import EncodedRows, LanguageBed, small_config, small_tokenizer

PAGES, WORDS, PER_PAGE = 12, 160, 3
PROMPT_WORDS = 30


@dataclass(frozen=True)
class Page:
    """The first words of a manual page, and its cloze questions."""

    name: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def questions(self) -> list[Example]:
        """Which words follow these, on this page?"""
        rows = []
        for i in range(PER_PAGE):
            at = PROMPT_WORDS + i * 40
            before, after = " ".join(self.words[at : at + 6]), " ".join(self.words[at + 6 : at + 9])
            rows.append(Example(question=f"On the page {self.name}, what follows {before}?", answer=after))
        return rows

    @property
    def verbatim(self) -> Example:
        """The page's beginning, and how it goes on."""
        return Example(
            question=" ".join(self.words[:PROMPT_WORDS]), answer=" ".join(self.words[PROMPT_WORDS : PROMPT_WORDS + 60])
        )


def pages() -> dict[str, list[Page]]:
    """Forget, retain1, retain2 and holdout, drawn alternately from the pages in order of their names."""
    long = []
    for name, text in sorted(pydoc_data.topics.topics.items()):
        words = text.replace("*", "").split()
        if len(words) >= WORDS:
            long.append(Page(name, tuple(words[:WORDS])))
    corpora = ("forget", "retain1", "holdout", "retain2")
    return {corpus: long[i :: len(corpora)][:PAGES] for i, corpus in enumerate(corpora)}


def as_text(row: Example) -> Example:
    """A question and its answer as the plain text that few-shot prompts are made of."""
    return Example(answer=f"Question: {row.question}\nAnswer: {row.answer}")


def texts(of: list[Page]) -> Examples:
    """The pages as plain-text rows."""
    return Examples([Example(answer=page.text, source=page.name) for page in of], "manual")


def asked(of: list[Page]) -> list[Example]:
    """All cloze questions of the pages."""
    return [question for page in of for question in page.questions]


def split_of(corpora: dict[str, list[Page]]) -> ForgetSplit:
    """The split in MUSE's layout: retain1 regularises, retain2 evaluates."""
    forget_qa, retain_qa = asked(corpora["forget"]), asked(corpora["retain2"])
    return ForgetSplit(
        forget=texts(corpora["forget"]),
        retain=texts(corpora["retain1"]),
        holdout=texts(corpora["holdout"]),
        evaluation={
            "verbmem_forget": Examples([page.verbatim for page in corpora["forget"]], "verbmem"),
            "knowmem_forget": Examples(forget_qa, "knowmem forget"),
            "knowmem_retain": Examples(retain_qa, "knowmem retain"),
            "knowmem_forget_icl": Examples(asked(corpora["retain1"])[:2], "shots"),
            "knowmem_retain_icl": Examples(asked(corpora["retain1"])[:2], "shots"),
        },
        name="manual",
    )


@lru_cache(maxsize=2)
def manual_bed(seed: int = 0, epochs: int = 60) -> LanguageBed:
    """Target and oracle; the first call trains both."""
    corpora = pages()
    learnt = [corpora["forget"], corpora["retain1"], corpora["retain2"]]
    tokenizer = small_tokenizer([page.text for of in corpora.values() for page in of])
    rows = EncodedRows()
    for of in learnt:
        rows.extend(encode_all([*texts(of), *map(as_text, asked(of))], tokenizer))
    recipe = causal_recipe(small_config(tokenizer), epochs=epochs, lr=1e-3, batch_size=8, weight_decay=0.01)
    first = len(corpora["forget"]) * (1 + PER_PAGE)
    target = trained(recipe, rows, range(len(rows)), seed)
    oracle = trained(recipe, rows, range(first, len(rows)), seed)
    return LanguageBed(tokenizer, split_of(corpora), target, oracle)
