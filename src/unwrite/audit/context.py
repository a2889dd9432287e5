"""One model under audit: its answer scores and generations, each computed once and kept on disk.

A pass is keyed by the content of the weights, the token ids and the settings, so a second audit of the same model
reads files. A model with `fingerprint()` (a guard: same weights, other inference) is keyed by that; a model with
forward hooks and no fingerprint is never cached, because its weights don't say what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from ..data.text.encoding import Encoded, encode_prompt, encode_rows
from ..data.text.examples import Example
from ..errors import ModelError, notice
from ..runs import cached_json, hash_json, hash_model
from ..scoring import AnswerScore, end_ids, generate_answers, row_length, score_answers
from ..scoring.rouge import Words

FORMAT = 1  # raise it when a cached value changes its meaning


class Context:
    """Shared passes of one model.

    Args:
        max_length: tokens a row may have; longer answers are cut and longer texts read in windows. None takes 512, or
            all of the model's positions where there are fewer.
        words: what ROUGE counts, see `rouge_l`.
        before, oracle: contexts of the model before unlearning and of the retrained one, where known.
        max_new_tokens: the longest generation; None picks twice the longest reference, 32 to 200.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        words: Words = "unicode",
        before: Context | None = None,
        oracle: Context | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ModelError("the tokenizer has no pad token. Set tokenizer.pad_token = tokenizer.eos_token.")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.words = words
        self.max_length = row_length(model, max_length)
        self.before, self.oracle = before, oracle
        self._memory: dict[str, Any] = {}
        self._said: dict[tuple[int, ...], str] = {}

    @cached_property
    def fingerprint(self) -> str | None:
        """What this model does, as a hash; None when its weights alone don't say."""
        own = getattr(self.model, "fingerprint", None)
        if callable(own):
            return str(own())
        if not hasattr(self.model, "state_dict") or any(
            module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()
        ):
            return None
        config: Any = getattr(self.model, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        told = {k: str(v) for k, v in settings.items() if k not in ("_name_or_path", "transformers_version")}
        return hash_json([type(self.model).__qualname__, told, hash_model(self.model)])

    def remember(self, kind: str, key: Any, compute: Callable[[], Any]) -> Any:
        """A JSON value by key: from memory, from the disk, or computed and kept in both."""
        name = hash_json([FORMAT, kind, key])
        if name in self._memory:
            return self._memory[name]
        if self.fingerprint:
            self._memory[name] = cached_json(("scores", self.fingerprint), f"{kind}-{name}", compute)
        else:
            self._memory[name] = compute()
        return self._memory[name]

    def encoded(self, rows: Sequence[Example]) -> list[list[Encoded]]:
        """Rows as token ids under this context's maximum length: the windows of each, one but for long texts."""
        return encode_rows(rows, self.tokenizer, self.max_length)

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

        kept = self.remember("score", [ids, moments], compute)
        return [AnswerScore(**{**score, "index": row.index}) for score, row in zip(kept, rows, strict=True)]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Greedy continuations of token-id prompts."""
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
        """(reference, what the model says) for every row.

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
        texts = self.generate(prompts, self.max_new_tokens or self._room(references))
        return [(ref, text.strip()) for ref, text in zip(references, texts, strict=True)]

    def _room(self, references: Sequence[str]) -> int:
        longest = max((len(self.tokenizer(r, add_special_tokens=False)["input_ids"]) for r in references), default=0)
        return min(200, max(32, 2 * longest))
