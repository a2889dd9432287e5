"""MUSE: six properties of an unlearned language model, for its deployer and for the data's owner.

C1 verbatim memorisation (VerbMem) and C2 knowledge memorisation (KnowMem) of the forget set should go; C3 privacy
leakage should be near 0; C4 utility (KnowMem of the retain set) should stay; C5 it should scale with the forget set;
C6 it should survive request after request.

    PrivLeak = 100 * (AUC_u - AUC_r) / AUC_r,   AUC = P(s_forget > s_holdout) + P(tie)/2,   s = Min-40 %, high = unseen

so a memorising model is at -100 and over-unlearning is above 0. Percentages throughout. (arXiv 2407.06460)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...data.text.encoding import encode_text
from ...data.text.examples import Example, Examples, ForgetSplit, first_overlap
from ...errors import DataError
from ...scoring import Words, rouge_l
from ..base import Better, Headline, Panel, Score, Suite
from ..text.context import TextContext
from ..text.membership import Membership, auc
from ..text.metric import TextMetric
from ..text.rows import has_rows, rows_of

AUC_RETRAIN = {"news": 0.4772, "books": 0.5393}
VERBATIM_TOKENS, ANSWER_TOKENS = 128, 32


def privleak(auc_unlearned: float, auc_retrain: float) -> float:
    """Returns the relative distance to the retrained model's AUC, in percent.

    Raises:
        DataError: AUC_retrain is below 0.05, where the ratio explodes.
    """
    if not 0.05 <= auc_retrain <= 1:
        raise DataError(
            f"PrivLeak divides by the retrained model's AUC, which is {auc_retrain:.3g}. Below 0.05 it says nothing: "
            "draw the holdout from the same source as the forget set."
        )
    return 100 * (auc_unlearned - auc_retrain) / auc_retrain


def cut_answer(text: str) -> str:
    """Cuts an answer where a model goes on to invent the next question."""
    for stop in ("\n\n", "\nQuestion", "Question:"):
        text = text.split(stop)[0]
    return text


def few_shot_prompt(question: str, shots: Sequence[Example], *, blank: bool = False) -> str:
    """Question-answer pairs as plain text, then the question; it ends in 'Answer:'.

    Args:
        blank: end in 'Answer: ', as the official code does. Most tokenizers make the blank a token of its own there,
            behind which a model that learnt ' Paris' as one token seldom writes 'Paris'.
    """
    pairs = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{pairs}Question: {question}\nAnswer:{' ' if blank else ''}"


@dataclass(frozen=True)
class VerbMem(TextMetric):
    """ROUGE-L F1 between the model's continuation of a forget text's beginning and the text, x 100.

    Reads the evaluation set `verbmem_forget` (question = prompt, answer = its true continuation).
    """

    on: str = "verbmem_forget"
    stemmer: bool = False
    name: ClassVar[str] = "verbmem_f"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "How closely the model continues a forget text word for word."

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        rows, tok = rows_of(context.split, self.on), context.tokenizer
        prompts = [encode_text(row.question or "", tok) for row in rows]
        expected = [
            tok.decode(encode_text(row.answer, tok)[:VERBATIM_TOKENS], skip_special_tokens=True) for row in rows
        ]
        answers = context.generate(prompts, VERBATIM_TOKENS)
        values = [
            100 * rouge_l(ref, text, stemmer=self.stemmer, words=context.words).f1
            for ref, text in zip(expected, answers, strict=True)
        ]
        return Score.mean(self.name, values, self.better, _stemmed(self.stemmer))


@dataclass(frozen=True)
class KnowMem(TextMetric):
    """ROUGE-L F1 of few-shot answers to questions about the forget or the retain set, x 100.

    Reads the evaluation sets `knowmem_<of>` and `knowmem_<of>_icl`.

    Args:
        of: the set that is asked about.
        stemmer: whether ROUGE stems words.
        blank: end the prompt in a blank, see `few_shot_prompt`.
    """

    of: Literal["forget", "retain"] = "forget"
    stemmer: bool = False
    blank: bool = False

    @property
    def better(self) -> Better:
        return "lower" if self.of == "forget" else "higher"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self.of == "forget" else "kept"

    @property
    def about(self) -> str:
        return f"How well it answers questions about the {self.of} set."

    @property
    def name(self) -> str:
        return f"knowmem_{self.of[0]}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"knowmem_{self.of}",)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        split, icl = context.split, f"knowmem_{self.of}_icl"
        if not has_rows(split, icl):
            raise DataError(f"KnowMem asks after a few examples, and the set {icl!r} is missing. Add it to the split.")
        rows, shots, tok = rows_of(split, f"knowmem_{self.of}"), rows_of(split, icl), context.tokenizer
        prompts = [encode_text(few_shot_prompt(row.question or "", shots, blank=self.blank), tok) for row in rows]
        answers = context.generate(prompts, ANSWER_TOKENS)
        values = [
            100 * rouge_l(row.answer, cut_answer(text.lstrip(" ")), stemmer=self.stemmer, words=context.words).f1
            for row, text in zip(rows, answers, strict=True)
        ]
        return Score.mean(self.name, values, self.better, _stemmed(self.stemmer))


def _stemmed(stemmer: bool) -> str:
    return f"ROUGE with{'' if stemmer else 'out'} stemming."


@dataclass(frozen=True)
class PrivLeak(TextMetric):
    """Privacy leakage against the retrained model. `per_example` holds the forget texts' Min-K% scores.

    Reads the evaluation sets `privleak_forget` and `privleak_holdout`, else the split's forget and holdout rows.

    Args:
        auc_retrain: the retrained model's AUC where it is known but not at hand (published: `AUC_RETRAIN`).
        k: fraction of tokens, 0.4 in the benchmark.
    """

    auc_retrain: float | None = None
    k: float = 0.4
    name: ClassVar[str] = "privleak"
    better: ClassVar[Better] = "toward_reference"
    panel: ClassVar[Panel] = "privacy"
    about: ClassVar[str] = "Membership leak beside the retrained model: -100 fully visible, 0 as if never trained."

    def applies(self, split: ForgetSplit) -> bool:
        return has_rows(split, "privleak_holdout") or has_rows(split, "holdout")

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        split = context.split
        forget = rows_of(split, "privleak_forget" if has_rows(split, "privleak_forget") else "forget")
        holdout = rows_of(split, "privleak_holdout" if has_rows(split, "privleak_holdout") else "holdout")
        if shared := first_overlap(forget, holdout):
            raise DataError(
                f"PrivLeak: {len(shared)} rows stand in both forget and holdout "
                f"(first: {shared[0].source or f'row {shared[0].index}'}). Remove them from the holdout."
            )
        scores, value = self._auc(context, forget, holdout)
        reference, note = self.auc_retrain, f"Against AUC {self.auc_retrain}."
        if reference is None and "oracle" in references:
            reference = self._auc(references["oracle"], forget, holdout)[1]
            note = f"Against the retrained model's AUC, {reference:.4f}."
        if reference is None:
            reference, note = 0.5, "Not MUSE's number: no retrained model, so against AUC 0.5."
        if not 0.3 <= reference <= 0.7:
            note += " That AUC is far from 0.5: forget and holdout may not be alike."
        return Score(self.name, privleak(value, reference), list(scores), self.better, note)

    def _auc(self, context: TextContext, forget: Examples, holdout: Examples) -> tuple[list[float], float]:
        attack = Membership("min_k", self.k)
        for rows in (forget, holdout):
            for row, windows in zip(rows, context.encoded(rows), strict=True):
                if row.is_text and len(windows[0].input_ids) < 3:
                    raise DataError(f"{row.source or f'row {row.index}'}: Min-K% needs texts of at least 3 tokens.")
        scores = attack.values(context, forget)
        return scores, auc(attack.values(context, holdout), scores)


def muse_suite(
    auc_retrain: float | None = None, stemmer: bool = False, *, blank: bool = False, words: Words = "unicode"
) -> Suite:
    """Makes the MUSE suite with its choices.

    Args:
        auc_retrain: the retrained model's AUC where it is known but not at hand.
        stemmer: True is open-unlearning's ROUGE, False the benchmark's own.
        blank: end KnowMem's prompt in a blank, as the benchmark's code does; for figures beside published ones.
        words: "ascii" for the same reason, see `rouge_l`.
    """
    metrics = [
        VerbMem(stemmer=stemmer),
        KnowMem("forget", stemmer, blank),
        KnowMem("retain", stemmer, blank),
        PrivLeak(auc_retrain),
    ]
    return Suite(
        "muse",
        metrics,
        "Verbatim and knowledge memorisation, privacy leakage, utility.",
        gone=Headline("knowmem_f", "lower", 100.0),
        kept=Headline("knowmem_r", "higher", 100.0),
        scale=100.0,
        attacks=("relearning",),
        max_length=2048,
        words=words,
        requires=("knowmem_f", "knowmem_r"),
        needs="the benchmark's own question sets, as unwrite.data.muse loads them",
    )


MUSE = muse_suite()
