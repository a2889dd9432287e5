"""One language model under audit: its answer scores and generations, each computed once and kept on disk.

A pass is keyed by the content of the weights, the token ids and the settings, so a second audit of the same model
reads files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ...data.text.encoding import Encoded, encode_prompt, encode_rows
from ...data.text.examples import Example, Examples, ForgetSplit
from ...errors import MethodError, ModelError, notice
from ...runs import hash_json
from ...scoring import WORDS, AnswerScore, end_ids, generate_answers, row_length, score_answers
from ...scoring.rouge import Words
from ..context import FORMAT, Context, PassSettings
from .rows import sets_of
from .samples import samples_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..base import Suite
    from ..report.parts import Sample

__all__ = ["TextContext"]

INSIDE = "inside"  # the model inside an audited guard, as a role and a column


class TextContext(Context[ForgetSplit]):
    """One language model on one split of texts.

    Args:
        model: anything with `forward(input_ids, attention_mask)` giving logits, and `generate`.
        split: the rows.
        tokenizer: turns rows into token ids.
        role, batch_size, cached: as `Context`.
        max_length: tokens a row may have; longer answers are cut and longer texts read in windows. None takes 512, or
            all of the model's positions where there are fewer.
        max_new_tokens: the longest generation; None picks twice the longest reference, 32 to 200.
        words: what ROUGE counts, see `rouge_l`.
    """

    kind: ClassVar[str] = "text"
    takes: ClassVar[frozenset[str]] = frozenset({"tokenizer", "max_length"})
    columns: ClassVar[Mapping[str, str | None]] = {**Context.columns, INSIDE: INSIDE}
    manner: ClassVar[str] = "Every model was asked the same questions with the same settings, greedily."

    def __init__(
        self,
        model: PreTrainedModel,
        split: ForgetSplit,
        tokenizer: PreTrainedTokenizerBase,
        *,
        role: str = "after",
        batch_size: int = 16,
        cached: bool = True,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        words: Words = "unicode",
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ModelError("the tokenizer has no pad token. Set tokenizer.pad_token = tokenizer.eos_token.")
        super().__init__(model, split, role=role, batch_size=batch_size, cached=cached)
        self.tokenizer, self.words, self.max_new_tokens = tokenizer, words, max_new_tokens
        self.max_length = row_length(model, max_length)
        self._said: dict[tuple[int, ...], str] = {}

    @classmethod
    def holds(cls, split: object) -> bool:
        return isinstance(split, ForgetSplit)

    @classmethod
    def sets(cls, split: ForgetSplit) -> Mapping[str, Sized]:
        return sets_of(split)

    @classmethod
    def beside(
        cls, models: Mapping[str, Any], split: ForgetSplit, suite: Suite, settings: PassSettings
    ) -> dict[str, Self]:
        """A context per model; rows are of one length for all, that of the model with the fewest positions."""
        if settings.tokenizer is None:
            raise MethodError("an audit of texts needs a tokenizer.")
        length = min(row_length(model, settings.max_length, suite.max_length) for model in models.values())
        contexts = {
            role: cls(
                model,
                split,
                settings.tokenizer,
                role=role,
                batch_size=settings.batch_size,
                max_length=length,
                max_new_tokens=suite.max_new_tokens,
                words=suite.words,
            )
            for role, model in models.items()
        }
        return cls._with_inside(contexts)

    @classmethod
    def _with_inside(cls, contexts: dict[str, Self]) -> dict[str, Self]:
        """With the model inside an audited guard, in a column of its own unless another column has it."""
        after = contexts.get("after")
        if after is None or after.bare is after or INSIDE in contexts:
            return contexts
        mark = after.bare.fingerprint
        twin = next((role for role, one in contexts.items() if mark is not None and one.fingerprint == mark), None)
        where = f"a column of its own, {INSIDE!r}" if twin is None else f"the column {cls.columns[twin]!r}"
        notice(f"The model is a guard, which changes no weight. What the weights still know is in {where}.")
        if twin is not None:
            return contexts
        inside = {INSIDE: after.of(after.bare.model, INSIDE)}
        ordered: dict[str, Self] = {}
        for role, one in contexts.items():
            ordered |= {role: one} | (inside if one is after else {})
        return ordered

    def of(self, model: PreTrainedModel, role: str = "after") -> Self:
        """Another model with the same rows and settings."""
        return type(self)(
            model,
            self.split,
            self.tokenizer,
            role=role,
            batch_size=self.batch_size,
            cached=self.cached,
            max_length=self.max_length,
            max_new_tokens=self.max_new_tokens,
            words=self.words,
        )

    @cached_property
    def bare(self) -> Self:
        """Of a guard, the model inside, whose weights still know, on the same rows; any other model is itself.

        A guard says what it guards by an attribute `bare`, which may be a guard again.
        """
        inside = self.model
        while (guarded := getattr(inside, "bare", None)) is not None:
            inside = guarded
        return self if inside is self.model else self.of(inside, self.role)

    @classmethod
    def samples(cls, contexts: Mapping[str, Self], measured: Collection[str]) -> list[Sample]:
        """What each model says to the forget questions, and to a few of every kept set."""
        return samples_of(contexts, measured)

    def provenance(self) -> dict[str, str | float]:
        guard = {} if self.bare is self else {"guard": type(self.model).__name__}
        return {"max_length": self.max_length, "rouge": WORDS[self.words], **guard}

    def encoded(self, rows: Sequence[Example]) -> list[list[Encoded]]:
        """Rows as token ids under this context's maximum length: the windows of each, one but for long texts."""
        key = rows.hash if isinstance(rows, Examples) else None
        encode = partial(encode_rows, rows, self.tokenizer, self.max_length)
        return encode() if key is None else self.once(("encoded", key), encode)

    def scores(self, rows: Sequence[Example], *, moments: bool = False) -> list[AnswerScore]:
        """Token log-likelihoods of every row's answer, or of all of a text, in row order."""
        encoded = self.encoded(rows)
        scored = iter(self.score_encoded([window for row in encoded for window in row], moments=moments))
        return [AnswerScore.joined([next(scored) for _ in row]) for row in encoded]

    def score_encoded(self, rows: Sequence[Encoded], *, moments: bool = False) -> list[AnswerScore]:
        """As `scores`, for rows already encoded. With `moments`, also what Min-K%++ reads."""
        ids = [[row.input_ids, row.prompt_length] for row in rows]
        if not moments and hash_json([FORMAT, "score", [ids, True]]) in self._memory:
            moments = True

        def compute() -> list[dict[str, Any]]:
            passed = score_answers(
                self.model,
                rows,
                pad_id=self.tokenizer.pad_token_id,
                batch_size=self.batch_size,
                moments=moments,
            )
            return [asdict(score) for score in passed]

        scores = self.remember("score", [ids, moments], compute)
        return [AnswerScore(**{**score, "index": row.index}) for score, row in zip(scores, rows, strict=True)]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Continues token-id prompts greedily."""
        tok = self.tokenizer
        prompts = [list(prompt) for prompt in prompts]
        names = [(max_new_tokens, *prompt) for prompt in prompts]

        def compute() -> list[str]:
            return generate_answers(self.model, tok, prompts, max_new_tokens=max_new_tokens, batch_size=self.batch_size)

        if not all(name in self._said for name in names):
            key = [prompts, max_new_tokens, end_ids(self.model, tok), tok.pad_token_id]
            self._said |= zip(names, self.remember("text", key, compute), strict=True)
        return [self._said[name] for name in names]

    def answers(self, rows: Sequence[Example]) -> list[tuple[str, str]]:
        """Returns (reference, what the model says) for every row.

        A question is asked through the chat template; a plain text is cut in half, and the model continues it. Of a
        text longer than `max_length` that is its first window.
        """
        prompts, references = [], []
        plain = [row for row in rows if row.is_text]
        windows_of = dict(zip(map(id, plain), self.encoded(plain), strict=True))
        if long := sum(len(windows) > 1 for windows in windows_of.values()):
            notice(f"{long} of {len(rows)} texts are continued within their first {self.max_length} tokens alone.")
        for row in rows:
            if row.is_text:
                ids = windows_of[id(row)][0].input_ids
                half = max(1, len(ids) // 2)
                prompts.append(ids[:half])
                references.append(self.tokenizer.decode(ids[half:], skip_special_tokens=True))
            else:
                prompts.append(encode_prompt(row, self.tokenizer))
                references.append(row.answer)
        texts = self.generate(prompts, self.max_new_tokens or self.room(references))
        return [(ref, text.strip()) for ref, text in zip(references, texts, strict=True)]

    def room(self, references: Sequence[str]) -> int:
        """Tokens for an answer: twice the longest reference, 32 to 200."""
        longest = max((len(self.tokenizer(r, add_special_tokens=False)["input_ids"]) for r in references), default=0)
        return min(200, max(32, 2 * longest))
