"""One fact asked in several forms: as a question, in other words, as a blank, as a choice, letter by letter, and turned round.

A model that no longer answers a question may still fill the blank. Items are made offline from (subject, relation, object)
or from rows of questions, or read as the benchmark publishes them.
(ORT: LLM Unlearning Should Be Form-Independent, arXiv 2506.07795; on top of RWKU, arXiv 2406.10890)
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import DataError, MethodError, unknown
from ...runs import hash_json
from .benchmarks import local, table
from .examples import Example, Examples, ForgetSplit
from .files import located, rows_in
from .layouts import BadRow
from .values import strings_of, text_of

__all__ = [
    "FormItem",
    "FormWording",
    "FormsSplit",
    "Triple",
    "forms_split",
    "letters_of",
    "make_forms",
    "ort",
    "read_triples",
]

Form = Literal["qa", "paraphrase", "cloze", "choice", "letters", "reversed"]
FORMS: tuple[Form, ...] = get_args(Form)
BLANK = "___"
OPTIONS = 4  # of a choice, the answer among them
ASKED: dict[Form, str] = {
    "qa": "Please briefly answer the following question.\nQuestion: {}\n",
    "paraphrase": "Please briefly answer the following question.\nQuestion: {}\n",
    "reversed": "Please briefly answer the following question.\nQuestion: {}\n",
    "cloze": "Please complete the blank in the following question.\nQuestion: {}\n",
    "choice": "Please answer the following multiple choice question. Just provide the letter of the correct answer.\n"
    "Question: {}\n",
    "letters": "Write the answer character by character, each on a new line.\n"
    "Please briefly answer the following question.\nQuestion: {}\n",
}
EXAMPLE = "Example:\nQuestion: What is the capital of Japan?\nAnswer:\nT\no\nk\ny\no\n\n"
# Names of ORT's files, and whether they are of what is forgotten.
PUBLISHED: dict[str, tuple[Form, bool]] = {
    "forget_level1": ("cloze", True),
    "forget_level2": ("qa", True),
    "forget_mcp": ("choice", True),
    "neighbor_level1": ("cloze", False),
    "neighbor_level2": ("qa", False),
    "neighbor_mcp": ("choice", False),
}
RWKU_SPLIT = "test"


@dataclass(frozen=True)
class FormWording:
    """How a relation is asked for, with {subject} and {object}; an empty text leaves that form out.

    Args:
        question: asks for the object.
        paraphrase: asks for it in other words.
        cloze: a sentence that ends in the blank ___, which the object fills.
        reversed: asks for the subject by the object.
    """

    question: str
    paraphrase: str = ""
    cloze: str = ""
    reversed: str = ""

    @classmethod
    def of(cls, relation: str) -> FormWording:
        """Words that fit any relation that is a noun: "birthplace", "best-known work" (ours)."""
        return cls(
            f"What is the {relation} of {{subject}}?",
            f"Tell me the {relation} of {{subject}}.",
            f"The {relation} of {{subject}} is {BLANK}.",
            f"Whose {relation} is {{object}}?",
        )


@dataclass(frozen=True)
class Triple:
    """What is asked: (subject, relation, object).

    Args:
        answer: the object.
        others: wrong objects of the same type, for the choice.
    """

    subject: str
    relation: str
    answer: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class FormItem:
    """One fact in one form.

    Args:
        form: which.
        asked: the question, blank or choice, without instruction.
        answer: what follows behind "Answer:": words, the right option's letter, or characters line by line.
        fact: number of the fact; the same in all of its forms.
        subject: whom it is about.
        letters: the letters of a choice; empty for other forms.
    """

    form: Form
    asked: str
    answer: str
    fact: int = 0
    subject: str = ""
    letters: tuple[str, ...] = ()

    def message(self, *, shot: bool = False) -> str:
        """What the user says.

        Args:
            shot: an example before a question that is answered letter by letter, as the benchmark has it for all models
                but Llama.
        """
        return (EXAMPLE if shot and self.form == "letters" else "") + ASKED[self.form].replace("{}", self.asked)

    def answered(self, answer: str) -> FormItem:
        """The same item with another answer."""
        return replace(self, answer=answer)


def letters_of(answer: str) -> tuple[str, ...]:
    """The characters of an answer without its blanks: what is asked for letter by letter.

    >>> "".join(letters_of("Stephen King"))
    'StephenKing'
    """
    return tuple(one for one in answer if not one.isspace())


def make_forms(
    fact: Triple, wording: FormWording | None = None, *, number: int = 0, seed: int = 0
) -> tuple[FormItem, ...]:
    """A fact in every form that it can be asked in.

    Args:
        wording: of its relation; None takes words that fit any.
        number: of the fact.
        seed: orders the options of the choice, a function of (seed, subject, relation).

    Raises:
        DataError: a fact without an answer or a subject, or a wrong object that is the answer.
    """
    where = f"the {fact.relation or 'fact'} of {fact.subject or 'nobody'}"
    if not letters_of(fact.answer) or not fact.subject.strip():
        raise DataError(f"{where} has no {'subject' if letters_of(fact.answer) else 'answer'}, so no form asks for it.")
    said = wording or FormWording.of(fact.relation)
    texts = {
        name: text.replace("{subject}", fact.subject).replace("{object}", fact.answer)
        for name, text in asdict(said).items()
    }
    if said.cloze and BLANK not in said.cloze:
        raise DataError(f"{where}: the cloze {said.cloze!r} has no blank. Write {BLANK} where the object stands.")
    items = _asked(texts["question"], texts["paraphrase"], fact.answer, fact.others, f"{seed} {where}", where)
    if texts["cloze"]:
        items.append(FormItem("cloze", texts["cloze"], fact.answer))
    if texts["reversed"]:
        items.append(FormItem("reversed", texts["reversed"], fact.subject))
    return tuple(replace(item, fact=number, subject=fact.subject) for item in items)


def _asked(question: str, paraphrase: str, answer: str, others: Sequence[str], seed: str, where: str) -> list[FormItem]:
    """The forms that need no more than a question: itself, in other words, letter by letter, and as a choice."""
    if any(_same(other, answer) for other in others):
        raise DataError(f"{where}: {answer!r} is among the wrong answers. Remove it there.")
    items = [FormItem("qa", question, answer), FormItem("letters", question, "\n".join(letters_of(answer)))]
    if paraphrase:
        items.append(FormItem("paraphrase", paraphrase, answer))
    wrong = list(dict.fromkeys(others))[: OPTIONS - 1]
    if wrong:
        options = [*wrong, answer]
        random.Random(seed).shuffle(options)
        letters = tuple(string.ascii_uppercase[: len(options)])
        lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
        right = letters[options.index(answer)]
        items.append(FormItem("choice", "\n".join([question, *lines]), right, letters=letters))
    return items


def items_of(rows: Iterable[Example], seed: int = 0) -> tuple[FormItem, ...]:
    """The forms that rows of questions carry: paraphrases and wrong answers where they have them; plain texts have none."""
    items: list[FormItem] = []
    for row in rows:
        if row.question is None or row.history:
            continue
        where, wrong = row.source or f"row {row.index}", [w for w in row.perturbed_answers if not _same(w, row.answer)]
        forms = _asked(row.question, row.paraphrased_question or "", row.answer, wrong, f"{seed} {row.question}", where)
        items += [replace(item, fact=row.index) for item in forms]
    return tuple(items)


@dataclass(frozen=True)
class FormsSplit(ForgetSplit):
    """A split whose facts are asked in several forms; `forget` and `retain` hold the form that methods train on.

    Args:
        items: of what is to be forgotten.
        kept_items: of the neighbours, which must stay.

    Raises:
        DataError: no item, or one without an answer.
    """

    items: tuple[FormItem, ...] = ()
    kept_items: tuple[FormItem, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.items:
            raise DataError("there is no question in any form. Give facts with their answers.")
        for item in (*self.items, *self.kept_items):
            if item.form not in FORMS:
                raise MethodError(unknown("form", item.form, FORMS))
            if not item.answer.strip() or not item.asked.strip():
                raise DataError(f"the {item.form} {item.asked[:60]!r} has no answer to look for. Fill it or remove it.")

    @property
    def hash(self) -> str:
        """Content hash over the rows and the forms."""
        return hash_json([super().hash, [asdict(item) for item in (*self.items, *self.kept_items)]])


def forms_split(
    facts: Iterable[Triple],
    kept: Iterable[Triple] = (),
    wordings: Mapping[str, FormWording] | None = None,
    *,
    train: Form = "qa",
    seed: int = 0,
    name: str = "forms",
) -> FormsSplit:
    """A split from triples, whose rows are in one form and whose items in all.

    Args:
        facts: what is to be forgotten.
        kept: about neighbours, which must stay.
        wordings: by relation; the others get words that fit any.
        train: the form of the rows that methods are given: "qa", "paraphrase", "cloze" or "reversed".
        seed: orders the options of choices.

    Raises:
        DataError: no fact, a fact without an answer, or one without the form to train on.
    """
    words = wordings or {}
    made = [
        [make_forms(fact, words.get(fact.relation), number=i, seed=seed) for i, fact in enumerate(of)]
        for of in (facts, kept)
    ]
    rows = []
    for forms in made:
        chosen = [next((item for item in items if item.form == train), None) for items in forms]
        if None in chosen:
            raise DataError(f"fact {chosen.index(None)} has no form {train!r}. Give its relation a wording for it.")
        rows.append([Example(item.answer, item.asked, source=f"{item.subject}: {train}") for item in chosen if item])
    if not rows[0]:
        raise DataError("there is no fact to forget. Give at least one.")
    retain = Examples(rows[1], f"{name} kept") if rows[1] else None
    forget, neighbours = (tuple(item for items in forms for item in items) for forms in made)
    return FormsSplit(Examples(rows[0], name), retain, name=name, items=forget, kept_items=neighbours)


def read_triples(file: str | Path) -> list[Triple]:
    """Reads facts from a table (JSON lines, JSON, CSV, Parquet): subject, relation, object, and optionally others.

    Raises:
        DataError: no such file, none in it, or a row that is no fact; says which.
    """
    facts = []
    for place, row in rows_in(*located(file)):
        try:
            if isinstance(row, BadRow):
                raise row
            cells = row if isinstance(row, Mapping) else {}
            if missing := [name for name in ("subject", "relation", "object") if not cells.get(name)]:
                raise BadRow(f"it has no {missing[0]}")
            subject, relation, answer = (text_of(cells[name], name) for name in ("subject", "relation", "object"))
            others = strings_of(cells["others"], "others") if cells.get("others") else ()
            facts.append(Triple(subject, relation, answer, others))
        except BadRow as error:
            raise DataError(f"{place} is no fact: {error}. It needs subject, relation and object.") from None
    if not facts:
        raise DataError(f"{file} has no facts. Each is a row with subject, relation and object.")
    return facts


def ort(target: str, root: str | Path = "jinzhuoran/RWKU") -> FormsSplit:
    """The benchmark's items about one person, as ORT and RWKU publish them.

    Rows to forget are the questions of forget_level2, rows to keep those of neighbor_level2; letters are made of the questions.
    RWKU has no multiple choice, and its adversarial level 3 is not read.

    Args:
        target: the person, as the files have it under "subject", or the name of ORT's folder: "1_Stephen_King".
        root: ORT's folder `Target`, whose folders hold forget_level1.json and so on; or RWKU on the Hub, or a local folder of the
            same layout (configurations forget_level1, forget_level2, neighbor_level1, neighbor_level2; split test).

    Raises:
        DataError: no such person or file, or a row without a query or an answer; says which.
    """
    items: dict[bool, list[FormItem]] = {True: [], False: []}
    rows: dict[bool, list[Example]] = {True: [], False: []}
    folder = local(root)
    own = _person(folder, target) if folder is not None else None
    for name, (form, forgotten) in PUBLISHED.items():
        for number, row in enumerate(_published(root, own, name, target)):
            asked, answer = (str(row.get(key) or "").strip() for key in ("query", "answer"))
            if not asked or not answer:
                raise DataError(
                    f"{name} row {number + 1} of {target} has no {'answer' if asked else 'query'}. Use the published files."
                )
            letters = tuple("ABCD") if form == "choice" else ()
            made = [FormItem(form, asked, answer, letters=letters)]
            if form == "qa":
                made.append(FormItem("letters", asked, "\n".join(letters_of(answer))))
                rows[forgotten].append(Example(answer, asked, source=f"{name}:{number + 1}"))
            subject = str(row.get("subject", target))
            items[forgotten] += [replace(item, fact=number, subject=subject) for item in made]
    if not rows[True]:
        raise DataError(f"{root} has no questions about {target!r}. Name the person as its files do.")
    retain = Examples(rows[False], f"neighbours of {target}") if rows[False] else None
    return FormsSplit(
        Examples(rows[True], target),
        retain,
        allow_overlap=True,  # nothing promises that no question stands in both
        name=f"ort {target}",
        items=tuple(items[True]),
        kept_items=tuple(items[False]),
    )


def _person(root: Path, target: str) -> Path | None:
    """ORT's folder of a person: by its name, or by the name without number; None for RWKU's layout."""
    wanted = _folder_name(target)
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and wanted in (_folder_name(folder.name), _folder_name(folder.name.partition("_")[2])):
            return folder
    return None


def _folder_name(name: str) -> str:
    return name.replace("_", " ").casefold().strip()


def _published(root: str | Path, own: Path | None, name: str, target: str) -> list[Mapping[str, Any]]:
    """The rows of one file about one person."""
    if own is None:
        if name.endswith("_mcp"):
            return []
        return [row for row in table(root, name, RWKU_SPLIT) if row.get("subject") == target]
    file = own / f"{name}.json"
    if not file.is_file():
        if name.startswith("neighbor") or name.endswith("_mcp"):
            return []
        raise DataError(f"there is no file {file}. Use a folder of the benchmark as it is published.")
    rows = []
    for place, row in rows_in(file):
        if not isinstance(row, Mapping):
            raise DataError(f"{place} is no row with a query and an answer. Use the published files.")
        rows.append(row)
    return rows


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split()
