"""A GGUF file as a target model: llama.cpp scores whole draft trees in one call.

Each leaf of a tree is a sequence that shares the prefix's cells; the accepted path's cells move up behind the prefix and
the rest are freed.

llama.cpp picks its kernels by the number of rows, and quantised files turn one differing last bit into logits that differ
in the first decimal. So which numbers of rows agree bit for bit, for this file, processor and thread count, is found by
trying, once (`check`). Where a lone row alone disagrees, it runs beside a twin that sees nothing and is dropped, if a second
row costs next to nothing; where it costs more, decoding is plain there: a text may leave drafting, but not come back to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.text.templates import bounded_template
from ....errors import MethodError, notice
from ....runs import cached_json, hash_file, hash_json, progress
from ..planning.curves import read_shape, write_shape
from ..runtime import Output, Runtime
from ..tree import ROOT, DraftTree, Ints
from .check import MOST_ROWS, Checked, check
from .context import Floats, NativeContext, NativeModel
from .trial import RISKY, try_apart

_TWIN = MOST_ROWS - 1  # a sequence no tree needs: 63 nodes have 62 leaves at most
_CHECK = 4  # version of the check; a change here checks again
_CHEAP_TWIN = 1.1  # what two rows may take, in forwards of one, for lone rows to have a twin


class LlamaCppRuntime(Runtime):
    """A GGUF model in llama.cpp, one text at a time, on the CPU.

    Use it as a context manager or call `close`; the garbage collector closes it too.

    Args:
        path: a GGUF file. Quantised to 4 bits it hardly gains from drafts on a CPU: see `unwrite models requantise`.
        threads: of llama.cpp; torch's number if None. Other counts give other last bits.
        max_nodes: rows a forward may have at most; the check may allow fewer. 1 decodes plainly and skips the check, so
            lone rows have no twin: on several threads, or unquantised, its last bits are not those of drafted text.

    Raises:
        MissingExtra: llama-cpp-python isn't installed.
        ModelError: a file that llama.cpp can't load or crashes on, or a model whose cache can't be rolled back.
        MethodError: threads or max_nodes out of range.
    """

    inverts = True

    def __init__(self, path: str | Path, *, threads: int | None = None, max_nodes: int = MOST_ROWS) -> None:
        self.path = Path(path).expanduser()
        self.threads = torch.get_num_threads() if threads is None else threads
        if self.threads < 1:
            raise MethodError(f"threads is {threads}: llama.cpp needs at least 1. Leave it out for torch's number.")
        if not 1 <= max_nodes <= MOST_ROWS:
            raise MethodError(f"max_nodes is {max_nodes}: use 1 (plain decoding) to {MOST_ROWS}, or leave it out.")
        self.model = NativeModel(self.path)
        if RISKY in self.model.features:
            try_apart(self.path, self.threads, self.fingerprint)
        self._context: NativeContext | None = None
        self._tree: DraftTree | None = None
        self.vocab = self.model.vocab
        self.max_positions = self.model.trained
        self.lengths = np.zeros(1, dtype=np.int64)
        self.max_nodes: int = max_nodes
        self.twin_from: int | None = None  # cached tokens from which a lone row has a twin
        self._plain_from: int | None = None  # or from which nothing is drafted
        if max_nodes > 1:
            checked = self._checked()
            self.max_nodes = min(max_nodes, checked.rows)
            if checked.twin_costs <= _CHEAP_TWIN:
                self.twin_from = checked.twin_from
            else:
                self._plain_from = checked.twin_from

    def prefill(self, rows: Sequence[Ints], room: int) -> Tensor:
        """As `Runtime.prefill`, for one row of at least one token.

        Raises:
            MethodError: more rows, an empty text, or a closed runtime.
        """
        if len(rows) != 1:
            raise MethodError(
                f"LlamaCppRuntime decodes one text at a time, but the batch has {len(rows)}. Call it row by row."
            )
        if not len(rows[0]):
            raise MethodError("The prompt is empty: llama.cpp needs at least one token. Start with a bos or a space.")
        if not self.model.free.alive:
            raise MethodError(f"{self.path.name} was closed. Make a new LlamaCppRuntime.")
        size = len(rows[0]) + room + 1  # and a twin
        if self._context is None or self._context.size < size:
            self._drop_context()
            self._context = NativeContext(self.model, size, MOST_ROWS + 1, self.threads)
        self._tree = None
        logits = torch.from_numpy(self._context.prefill(rows[0]).copy())[None]
        self.lengths = np.array([len(rows[0])])
        self._held = np.zeros(MOST_ROWS, dtype=np.int64)  # positions each sequence sees
        self._held[0] = len(rows[0])
        return logits

    def forward(self, trees: DraftTree, want: frozenset[str] = frozenset({"logits"}), graft: Any = None) -> Output:
        """As `Runtime.forward`; one row of at most `max_nodes` nodes.

        Raises:
            MethodError: more rows or nodes, something but logits wanted, or a graft.
        """
        context, length = self._running(), int(self.lengths[0])
        if len(trees.tokens) != 1:
            raise MethodError(f"LlamaCppRuntime decodes one text at a time, but the batch has {len(trees.tokens)}.")
        if trees.nodes > self.max_nodes:
            raise MethodError(f"The tree has {trees.nodes} nodes, but {self.path.name} takes {self.max_nodes} a step.")
        if want - self.provides or graft is not None:
            names = ", ".join(sorted(want - self.provides)) or "a graft"
            raise MethodError(f"LlamaCppRuntime gives logits only, not {names}. Use TransformersRuntime.")
        self._tree = trees
        if trees.nodes == 1 and self.twin_from is not None and length >= self.twin_from:
            return Output(torch.from_numpy(self._with_twin(context, int(trees.tokens[0, 0]), length))[None])
        members = below(trees)
        for leaf in np.flatnonzero(self._held[1 : members.shape[1]] < length) + 1:
            context.share(0, int(leaf), int(self._held[leaf]), length)
            self._held[leaf] = length
        ids = np.nonzero(members)[1]
        every = np.ones(trees.nodes, dtype=bool)
        logits = context.decode(trees.tokens[0], length + trees.depths[0], members.sum(1), ids, every)
        return Output(torch.from_numpy(logits.copy())[None])

    def step(self, token: int) -> Tensor:
        """As `Runtime.step`."""
        context, length = self._running(), int(self.lengths[0])
        if self.twin_from is not None and length >= self.twin_from:
            logits = self._with_twin(context, token, length)[0]
        else:
            logits = context.one(token, length)
        self.lengths = np.array([length + 1])
        self._held[0] = length + 1
        self._tree = None
        return torch.from_numpy(logits)

    def reach(self, length: int) -> int | None:
        """As `Runtime.reach`: no row of a draft may stand where a lone one says something else."""
        return None if self._plain_from is None else max(0, self._plain_from - length - 1)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """As `Runtime.commit`."""
        context, length = self._running(), int(self.lengths[0])
        if self._tree is None:
            raise MethodError("Nothing to commit: call forward first.")
        path, members = list(paths[0]), below(self._tree)
        end = length + len(path)
        if members.shape[1] == 1 or len(path) <= 1:
            # What stays carries all leaves' sequences and lies in order already.
            context.drop(-1, end)
            self._held[: members.shape[1]] = end
        else:
            context.gather(int(members[path[-1]].argmax()), length, end)
            self._held[0] = end
        self.lengths = np.array([end])
        self._tree = None

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` cached tokens, which must not exceed those cached."""
        self._running().drop(-1, length)
        self._held = np.minimum(self._held, length)
        self.lengths = np.array([length])
        self._tree = None

    def try_lone(self, token: int, length: int, twin: bool) -> None:
        """Runs one token behind `length` cached ones, with a twin or without; `rewind` forgets it."""
        context = self._running()
        if twin:
            self._with_twin(context, token, length)
        else:
            context.one(token, length)

    def nbytes(self) -> int:
        """Bytes of the cache's cells, used or not; 0 before two tokens are cached."""
        return 0 if self._context is None else self._context.nbytes

    @cached_property
    def fingerprint(self) -> str:
        """File content, llama.cpp's version and processor features, threads."""
        version = self.model.lib.__version__
        return f"llamacpp {version} {hash_file(self.path)[:16]} {self.threads} threads {self.model.features}"

    def encode(self, text: str) -> Ints:
        """[length] ids of plain text; control tokens spelled out in it stay text."""
        return self.model.tokenise(text, beginning=True, special=False)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids, without control tokens unless `special`."""
        return self.model.detokenise(np.fromiter(ids, dtype=np.int64), special=special)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Ints:
        """[length] ids of a conversation in the file's own chat template, up to where the assistant answers.

        Args:
            messages: {"role": ..., "content": ...} each.

        Raises:
            MethodError: the file has no chat template.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.model.text("tokenizer.chat_template")
        if not template:
            raise MethodError(f"{self.path.name} has no chat template. Use encode on a text of your own.")
        names = {f"{name}_token": self._control(name) for name in ("bos", "eos", "pad", "unk")}
        with bounded_template(template):
            texts, _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=template,
                add_generation_prompt=True,
                **names,
            )
        return self.model.tokenise(texts[0], beginning=False, special=True)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text or a turn."""
        return self.model.ends

    def close(self) -> None:
        """Frees the context and the model; the runtime can't be used afterwards."""
        self._drop_context()
        self.model.free()

    def __enter__(self) -> LlamaCppRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.free()
        self._context = None

    def _running(self) -> NativeContext:
        if self._context is None:
            raise MethodError("No text yet: call prefill first.")
        return self._context

    def _with_twin(self, context: NativeContext, token: int, length: int) -> Floats:
        """[1, vocab] of a lone row, run as the first of two."""
        tokens, one, both = np.full(2, token), np.ones(2, dtype=np.int64), np.ones(2, dtype=bool)
        logits = context.decode(tokens, np.full(2, length), one, np.array([0, _TWIN]), both)[:1].copy()
        context.drop(_TWIN, length)
        return logits

    def _control(self, name: str) -> str:
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        stored = self.model.text(f"tokenizer.ggml.{key}_token_id")
        return self.decode([int(stored)], special=True) if stored else ""

    def _checked(self) -> Checked:
        """What the check says for this file, machine and thread count; run on first use."""

        def compute() -> Checked:
            with progress(None, f"checking once how many rows a step {self.path.name} takes"):
                checked = check(self)
            self._drop_context()
            return checked

        verdict = cached_json(("llamacpp",), hash_json([_CHECK, self.fingerprint]), compute, Checked.read)
        if verdict.rows > 1 and read_shape(self.fingerprint) is None:
            write_shape(self.fingerprint, verdict.shape)
        if verdict.rows == 1:
            notice(
                f"{self.path.name}: trees and one-token decoding disagree on this machine, so it decodes plainly, "
                "without drafts. Another number format may help: unwrite models requantise.",
            )
        return verdict


def below(tree: DraftTree) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[nodes, leaves] of row 0: whether the leaf is the node or below it; leaves in node order."""
    parents = tree.parents[0]
    leaf = np.ones(tree.nodes, dtype=bool)
    leaf[parents[parents != ROOT]] = False
    members: np.ndarray[Any, np.dtype[np.bool_]] = tree.ancestors[0][leaf].T
    return members
