"""Filter what a model is told and what it says: no unlearning stops a model from using what stands in its prompt.

Even a model retrained without the forget set gives it back when told, so that an act is prevented at inference or not at all.
(UnUnlearning, arXiv 2407.00106, which asks for such filters and describes none; stages, calibration and rules are ours)

    flagged(text) = max over windows w of f(w) > tau,    tau by split-conformal calibration on benign texts

The first stage stops the forget texts word for word and no paraphrase of them; none stops what follows from premises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ..data import Examples
from ..data.text.examples import Example
from ..errors import DataError, MethodError, notice, setting, unknown
from ..scoring.words import words_of
from .base import Guard
from .engine.checks import require
from .engine.text.filtered import FilteredModel, FilterRules
from .engine.text.filtering import TextFilter
from .engine.text.scorers import AliasScorer, CosineScorer, Encoder, NGramScorer, Scorer

if TYPE_CHECKING:
    from .engine.text.work import TextWork

Stage = Literal["ngrams", "aliases", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ContentFilter(Guard["TextWork"]):
    """Refuses prompts and answers that hold what is to be forgotten.

    Args:
        stages: how a text is scored: "ngrams", runs of n words of the forget answers; "aliases", an entity named beside the
            words of one of its facts; "cosine", TF-IDF likeness to a forget answer. A text is flagged where one stage does.
        n: words a run, at least 1 (ours).
        window: words whose runs are looked at together, at least n; n means that a single run is enough (ours).
        context: words in which the stages "aliases" and "cosine" look, at least 1 (ours).
        alpha: share of benign texts that may be flagged, between 0 and 1; at least 1/alpha - 1 retain rows are needed (ours).
        storage: "exact" hashes, or a "bloom" filter, which is smaller and now and then takes a run for one of them.
        false_positives: of the Bloom filter, a run, between 0 and 1.
        on_input: what becomes of a flagged prompt: "refuse" it, "drop" the sentences that are flagged, or "pass".
        on_output: what becomes of a flagged answer: "refuse", "regenerate" by sampling, or "pass".
        regenerations: attempts before a refusal, at least 0.
        withheld: words that a stream holds back until they were looked at, at least n (ours).
        refusals: the first is what a refusal says; empty for a plain one.
    """

    stages: tuple[Stage, ...] = ("ngrams",)
    n: int = 8
    window: int = 8
    context: int = 32
    alpha: float = 0.01
    storage: Literal["exact", "bloom"] = "exact"
    false_positives: float = 1e-4
    on_input: Literal["refuse", "drop", "pass"] = "refuse"
    on_output: Literal["refuse", "regenerate", "pass"] = "refuse"
    regenerations: int = 2
    withheld: int = 8
    refusals: tuple[str, ...] = ()

    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        named = self.stages if isinstance(self.stages, tuple) else ()
        if not named or len({*named}) < len(named) or not {*named} <= {*get_args(Stage)}:
            raise MethodError(
                f"{setting('stages')} is {self.stages!r}; name some of {', '.join(get_args(Stage))}, each once."
            )
        choices = {
            "storage": ("exact", "bloom"),
            "on_input": ("refuse", "drop", "pass"),
            "on_output": ("refuse", "regenerate", "pass"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise MethodError(f"{setting(name)}: {unknown('choice', str(getattr(self, name)), known)}")
        for name, least in (("n", 1), ("context", 1), ("regenerations", 0), ("window", self.n), ("withheld", self.n)):
            require(name, getattr(self, name), at_least=least)
        for name in ("alpha", "false_positives"):
            require(name, getattr(self, name), above=0, below=1)

    def filter(self, forget: Examples, benign: Examples, encoder: Encoder | None = None) -> TextFilter:
        """The filter alone, calibrated: for texts that no model of ours writes.

        Args:
            forget: what is to be flagged: the answers of rows, or plain texts.
            benign: rows like those that will be asked and answered; each is one text, question and answer.
            encoder: for the stage "cosine": texts to vectors, in place of TF-IDF.

        Raises:
            DataError: too few benign rows; forget texts that no stage can see.
        """
        harmless = [benign_text(row) for row in benign]
        scorers = [self._scorer(stage, rows, harmless, encoder) for stage, rows in self._seeing(forget).items()]
        return TextFilter.calibrated(scorers, harmless, self.alpha)

    def _seeing(self, forget: Examples) -> dict[Stage, Examples]:
        """The rows that each stage is made of. Those too short for a run of n words are seen by the stage "aliases"."""
        rows: dict[Stage, Examples] = dict.fromkeys(self.stages, forget)
        short = [row for row in forget if len(words_of(row.answer)) < self.n]
        if "ngrams" not in rows or "aliases" in rows or not short:
            return rows
        named = [row for row in short if row.entity]
        if named:
            rows["aliases"] = Examples(named, forget.name)
            if len(short) == len(forget):
                del rows["ngrams"]
        seen = f"the stage 'aliases' looks for {len(named)} of them" if named else "they are not looked for"
        notice(f"{len(short)} of {len(forget)} forget texts have fewer than {self.n} words; {seen}.")
        return rows

    def _scorer(self, stage: Stage, forget: Examples, benign: list[str], encoder: Encoder | None) -> Scorer:
        texts = [row.answer for row in forget]
        if stage == "aliases":
            return AliasScorer.of(forget, benign, self.context)
        if stage == "cosine":
            return CosineScorer.of(texts, benign, self.context, encoder)
        return NGramScorer.of(texts, self.n, self.window, self.false_positives if self.storage == "bloom" else None)

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if retain is None:
            raise DataError(
                f"a content filter needs a retain set, benign texts to set its threshold on. Give {setting('retain')}."
            )

    def _apply(self, work: TextWork) -> FilteredModel:
        work.encoded(work.forget)  # a row that no model can be asked is no row to filter
        check = self.filter(work.forget, work.retained)
        said = self.refusals[0] if self.refusals else FilterRules().refusal
        rules = FilterRules(self.on_input, self.on_output, self.regenerations, self.withheld, said)
        return FilteredModel(work.model, check, work.tokenizer, rules)


def benign_text(row: Example) -> str:
    """A row as one text."""
    return row.answer if row.is_text else f"{row.question} {row.answer}"
