"""Forms: does the model still give the answer when the same fact is asked in another way?

Unlearning by questions may take away the answer to a question and leave it in a blank, a choice, or spelt letter by letter.
(ORT: LLM Unlearning Should Be Form-Independent, arXiv 2506.07795)

    p(answer | form) = exp(sum_t log p(y_t | prompt, y_<t)),   the gold answer behind "Answer:" where the model answers
    reduction of a form = 1 - mean p after / mean p before;    variation = standard deviation / |mean| of the reductions

The paper's tables are of the geometric mean over tokens, exp(mean_t log p), as its code computes it: `per_token=True`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...data.text.encoding import IGNORE, Encoded
from ...data.text.examples import Example, ForgetSplit
from ...data.text.forms import FORMS, Form, FormItem, FormsSplit, items_of
from ...data.text.rendering import Spelling
from ...errors import MethodError, unknown
from ..base import Better, Headline, Panel, Score, Suite
from ..text.context import TextContext
from ..text.metric import TextMetric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Set = Literal["forget", "retain"]


def encode_item(item: FormItem, tokenizer: PreTrainedTokenizerBase, *, shot: bool = False) -> Encoded:
    """An item as token ids with labels on the answer, without the end token, as the benchmark scores it.

    Args:
        shot: see `FormItem.message`.
    """
    spelling = Spelling(tokenizer)
    prompt = spelling.render(Example(answer="a", question=item.message(shot=shot))).prompt
    if tokenizer.chat_template:
        prompt += "Answer:"
    by_letter = item.form == "letters"
    before = [] if tokenizer.chat_template else spelling.leading
    ids = before + spelling.ids(prompt + "\n" * by_letter)
    answer = spelling.ids(spelling.escaped(item.answer if by_letter else f" {item.answer}"), continues=True)
    return Encoded(ids + answer, [IGNORE] * len(ids) + answer, item.fact)


def items_in(split: ForgetSplit, of: Set) -> tuple[FormItem, ...]:
    """What a split asks of one of its sets: its own items, or those that its rows carry."""
    if isinstance(split, FormsSplit):
        return split.items if of == "forget" else split.kept_items
    rows = split.forget if of == "forget" else split.retain
    return items_of(rows or ())


def reductions(after: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Which share of each form's mean probability is gone; a form that had none is left out."""
    return {
        form: 1 - fmean(after[form]) / fmean(values) for form, values in before.items() if values and fmean(values) > 0
    }


def variation(values: Iterable[float]) -> float | None:
    """The coefficient of variation: standard deviation over the mean's size; None where the mean is 0."""
    values = list(values)
    return pstdev(values) / abs(fmean(values)) if values and fmean(values) else None


@dataclass(frozen=True)
class FormMetric(TextMetric):
    """Base of what is measured on forms.

    Args:
        of: "forget" or "retain", the set that is asked about.
        per_token: the geometric mean over an answer's tokens in place of their product.
        shot: an example before a question that is answered letter by letter.
    """

    of: Set = "forget"
    per_token: bool = False
    shot: bool = False

    def __post_init__(self) -> None:
        if self.of not in ("forget", "retain"):
            raise MethodError(unknown("set", self.of, ("forget", "retain")))

    @property
    def better(self) -> Better:
        return "lower" if self.of == "forget" else "higher"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self.of == "forget" else "kept"

    def applies(self, split: ForgetSplit) -> bool:
        return bool(self.items(split))

    def items(self, split: ForgetSplit) -> list[FormItem]:
        """What is asked."""
        return list(items_in(split, self.of))

    def probabilities(self, context: TextContext, items: Sequence[FormItem]) -> list[float]:
        """The probability of every item's answer, in [0, 1]."""
        rows = [encode_item(item, context.tokenizer, shot=self.shot) for item in items]
        scores = context.score_encoded(rows)
        return [exp(-(score.mean_nll if self.per_token else score.nll)) for score in scores]

    def by_form(self, context: TextContext) -> dict[str, list[float]]:
        """The same, form by form in the order of `FORMS`."""
        items = self.items(context.split)
        pairs = list(zip(items, self.probabilities(context, items), strict=True))
        named = {form: [value for item, value in pairs if item.form == form] for form in FORMS}
        return {form: values for form, values in named.items() if values}


@dataclass(frozen=True)
class FormProbability(FormMetric):
    """Mean probability of the answers in one form.

    Args:
        form: qa, paraphrase, cloze, choice, letters or reversed.
    """

    form: Form = "qa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise MethodError(unknown("form", self.form, FORMS))

    @property
    def name(self) -> str:
        return f"{self.of}_{self.form}"

    @property
    def about(self) -> str:
        return f"Probability of the answer, asked as {self.form}, of what is to be {_fate(self.of)}."

    def items(self, split: ForgetSplit) -> list[FormItem]:
        return [item for item in items_in(split, self.of) if item.form == self.form]

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return Score.mean(self.name, list(self.probabilities(context, self.items(context.split))), self.better)


@dataclass(frozen=True)
class FormsMean(FormMetric):
    """Mean over forms of the answers' mean probability: every form weighs the same; `per_example` has one figure a form."""

    @property
    def name(self) -> str:
        return f"{self.of}_forms"

    @property
    def about(self) -> str:
        return f"Probability of the answer, averaged over the forms, of what is to be {_fate(self.of)}."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        forms = self.by_form(context)
        return Score.mean(self.name, [fmean(values) for values in forms.values()], self.better, f"{', '.join(forms)}.")


@dataclass(frozen=True)
class ChoiceByLetter(FormMetric):
    """Share of the choices whose right letter is the likeliest of the letters; ties count as wrong."""

    @property
    def name(self) -> str:
        return f"{self.of}_choice_accuracy"

    @property
    def about(self) -> str:
        return f"Share of choices answered by the right letter, of what is to be {_fate(self.of)}."

    def items(self, split: ForgetSplit) -> list[FormItem]:
        return [item for item in items_in(split, self.of) if len(item.letters) > 1]

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        items = self.items(context.split)
        every = [item.answered(letter) for item in items for letter in item.letters]
        scores, right = iter(self.probabilities(context, every)), []
        for item in items:
            of = {letter: next(scores) for letter in item.letters}
            right.append(float(all(of[item.answer] > value for letter, value in of.items() if letter != item.answer)))
        chance = fmean(1 / len(item.letters) for item in items)
        return Score.mean(self.name, list(right), self.better, f"By chance {chance:.2f}.")


@dataclass(frozen=True)
class FormVariation(FormMetric):
    """How differently the forms were forgotten: standard deviation over mean of their reductions; 0 where all lost alike."""

    name: ClassVar[str] = "form_variation"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = (
        "Standard deviation over mean, by form, of the share of the answers' probability that is gone."
    )
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        gone = reductions(self.by_form(context), self.by_form(references["before"]))
        shares = ", ".join(f"{form} {share:.2f}" for form, share in gone.items())
        value = variation(gone.values())
        gained = not gone or fmean(gone.values()) <= 0
        note = f"Nothing is gone on average: {shares}." if gained else f"Gone: {shares}."
        return Score(self.name, value, list(gone.values()), self.better, note)


def _fate(of: Set) -> str:
    return "forgotten" if of == "forget" else "kept"


def forms_suite(**settings: Any) -> Suite:
    """Makes the suite with its choices: `FormMetric`'s per_token and shot, the same for every metric."""
    sets: tuple[Set, ...] = ("forget", "retain")
    metrics: list[TextMetric] = [FormProbability(of=of, form=form, **settings) for of in sets for form in FORMS]
    metrics += [FormsMean(of=of, **settings) for of in sets]
    metrics += [ChoiceByLetter(of=of, **settings) for of in sets]
    return Suite(
        "forms",
        [*metrics, FormVariation(**settings)],
        "Is the answer gone in whatever form the fact is asked?",
        gone=Headline(
            "forget_forms", "lower", None, says="it gives the forgotten answers probability {value}, over all forms"
        ),
        kept=Headline("retain_forms", "higher", None, says="it gives the kept answers probability {value}"),
        axes=("forget_forms", "retain_forms"),
        requires=("forget_qa",),
        needs="questions with their answers: rows with a question, or facts, as unwrite.data.forms_split makes them",
    )


FORMS_SUITE = forms_suite()
