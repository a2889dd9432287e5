"""Any causal model of transformers as a target: trees in, logits out, accepted rows kept.

The model's own forward runs on an arena cache; a tree is a float mask added to the scores and a position id for every
node. Beyond the length up to which that is what `generate` computes (`support.py`), the model's own steps go on. Where it
gives the same sums for less, prompts and small forwards run on packed copies of the linear layers or, for a stock
Llama-family model, in a fused loop. The model itself is never changed.

    node i sees column j  iff  j < length  or  node j - length is i or above it;   position(i) = length + depth(i)
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

from ....errors import MethodError, ModelError
from ....models import unwrap
from ....runs.provenance import processor
from ..planning.knowledge import COMPILED, knowledge_of
from ..runtime import LOGITS, Output, Runtime, positions, visible
from ..tree import DraftTree, Ints
from .arena import Arena, empty_cache, fill, filled_length
from .compiled import compiled_loop, compiled_routes
from .fused import FusedLoop, is_stock
from .limits import Support
from .model_check import check_cache, check_model
from .observing import listening, observed_modules
from .own_steps import OwnSteps
from .packed import fits_memory, packable, packed_copy, structural_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .compiled.loop import CompiledLoop

__all__ = ["TreeRuntime"]

# what the runtime passes itself; whatever else `prepare_inputs_for_generation` adds is the model's own wish
OURS = {
    "input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "inputs_embeds",
    "cache_position", "return_dict",
}  # fmt: skip
Twin = tuple[nn.Module, dict[int, nn.Module]]  # a structural copy, and {id of an original: its copy}


class TreeRuntime(Runtime):
    """A transformers model with an arena cache, of which is known how far trees go.

    Args:
        model: any causal model; a PeftModel or compiled model stands for the model inside.
        pack: "auto" lays out the linear layers once for small forwards where the packs take at most
            `packed.MEMORY_SHARE` of the free memory; "always" whatever they take; "never" not. Only float32 weights in
            main memory are packed.
        cache: the cache that `generate` was given, empty or filled with a beginning of every prompt; its class is
            kept. None for what the model's `empty_cache()` returns, or a DynamicCache.
        support: how far trees go.

    Raises:
        ModelError: see `check_model`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        support: Support,
        *,
        pack: Literal["auto", "never", "always"] = "auto",
        cache: Cache | None = None,
    ) -> None:
        if pack not in ("auto", "never", "always"):
            raise MethodError(f"pack is {pack!r}; use 'auto', 'never' or 'always'.")
        self.model = unwrap(model)
        check_model(self.model)
        config = self.model.config.get_text_config(decoder=True)
        self.vocab = int(getattr(self.model, "vocab_size", 0) or config.vocab_size)
        self._support = support
        self.limit, self.max_columns = support.limit, support.columns
        self.limited_by = f"{type(self.model).__name__} {support.why}" if support.why else ""
        self.max_positions = min(
            filter(None, (getattr(config, "max_position_embeddings", None), support.limit)), default=None
        )
        self.max_nodes = 1 if support.plain else None
        self._pack = pack
        self._own: OwnSteps | None = None
        self._user, self._unread = cache, True  # what is given counts for the first prompts only
        self._arena = Arena()
        if not support.plain:
            self._given = empty_cache(self.model) if cache is None else cache
            check_cache(self._given, type(self.model).__name__)
            self._cache = self._arena.cache(self._given, config.num_hidden_layers)
        self._accepts = set(inspect.signature(self.model.forward).parameters)
        self._observed = observed_modules(self.model)
        hidden = {name if name == "final_hidden" else "layers" for name in self._observed}
        self.provides = LOGITS | hidden
        self._extras: dict[str, Any] = {}
        self._bodies: dict[str, FusedLoop | CompiledLoop | Twin | None] = {}
        self._readying: dict[str, float] = {}  # seconds that making each took
        self._twin: Twin | None = None
        self._placed: tuple[Any, ...] = ()
        self._route = ""
        self._routes: tuple[str, ...] | None = None

    @property
    def lengths(self) -> Ints:  # type: ignore[override]
        """[batch] cached tokens of every row."""
        return self._arena.lengths

    @property
    def routes(self) -> tuple[str, ...]:  # type: ignore[override]
        """How this model can run in this call: adapters and hooks may have come or gone since the last."""
        if self._routes is None:
            self._routes = self._find_routes()
        return self._routes

    def hand_back(self) -> Cache | None:
        """The cache given, filled: now holding all committed tokens but the last, as `generate` leaves it.

        None where the rows differ in length: a plain cache can't say so.
        """
        if self._own is not None:
            return self._own.cache
        if (self.lengths != self._arena.longest).any():
            return None
        fill(self._given, self._cache, self._arena.longest)
        return self._given

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return self.model.get_input_embeddings().weight.device

    @torch.no_grad()
    def prefill(self, rows: Sequence[Ints], room: int) -> Tensor:
        """See `Runtime.prefill`. Where the cache given is filled, its part of the prompts is not computed again.

        That the cache holds the beginning of just these prompts can't be seen from it: `custom_generate` checks it
        (`prefix.py`); other callers vouch for it.

        Raises:
            ModelError: the cache given holds another number of rows, or as much as the shortest prompt.
        """
        if self._support.plain:
            raise ModelError(f"{self.limited_by}. Use Plain(), or the model's own `generate`.")
        self._own = None
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        skip = _fitting_length(self._given, sizes) if self._unread else 0
        self._unread = False
        columns = int(sizes.max()) + room
        autocast, inference = torch.is_autocast_enabled(self.device.type), torch.is_inference_mode_enabled()
        placed = self.model.dtype, self.device, autocast, inference
        if placed != self._placed:
            self._arena.drop()
            self._placed = placed
        self._arena.begin(len(rows), columns)
        if skip:
            self._arena.adopt(self._given, columns)
        ids = np.zeros((len(rows), int(sizes.max()) - skip), dtype=np.int64)
        for row, text in enumerate(rows):
            ids[row, : len(text) - skip] = text[skip:]
        tokens = torch.from_numpy(ids).to(self.device)
        self._extras = _extra_inputs(self.model, tokens, self._cache)
        self._bodies, self._readying, self._twin, self._routes = {}, {}, None, None
        logits = self._read(tokens, sizes - skip, skip, columns)
        self._arena.settle(columns)
        self._arena.set_lengths(sizes)
        return logits

    @torch.no_grad()
    def forward(self, trees: DraftTree, want: frozenset[str] = LOGITS, graft: Any = None) -> Output:
        """See `Runtime.forward`.

        Raises:
            MethodError: something wanted that this model does not provide, or a graft.
        """
        if graft is not None:
            raise MethodError("this runtime has no graft: use a strategy that reads logits or hidden states only.")
        unknown = [name for name in want if name != "logits" and name not in self._observed]
        if unknown:
            raise MethodError(f"{type(self.model).__name__} gives no {unknown[0]!r}; it gives {sorted(self.provides)}.")
        route = self._route if self._route in self.routes else self.routes[0]
        body = self._body_of(route)
        self._arena.expect(trees.nodes)
        where = positions(trees, self.lengths)
        if self.limit is not None:  # a row that waits for others at the limit must not switch the rope of all
            where = where.clip(max=self.limit - 1)
        if not isinstance(body, FusedLoop | tuple | None):
            return body(trees, where, self._arena, want)
        tokens, places = (torch.from_numpy(ids).to(self.device) for ids in (trees.tokens, where))
        mask = self._mask(trees)
        if isinstance(body, FusedLoop):
            return body(tokens, places, mask, self._arena, want)
        return self._run(body, tokens, places, mask, want)

    def own_prefill(self, ids: Ints, padding: Sequence[int], room: int) -> Tensor:
        """See `Runtime.own_prefill`. A cache given goes on being filled, from what it holds."""
        cache = self._user if self._unread else None
        self._unread = False
        self._arena.set_lengths(np.zeros(len(ids), dtype=np.int64))
        self._own = OwnSteps(self.model, torch.from_numpy(ids), padding, cache, room)
        return self._own.prefill()

    def hand_over(self, ids: Ints, padding: Sequence[int]) -> None:
        """See `Runtime.hand_over`. The cache given gets what the arena holds."""
        fill(self._given, self._cache, ids.shape[1], padding)
        self._own = OwnSteps(self.model, torch.from_numpy(ids), padding, self._given, handed_over=True)

    def own_step(self, tokens: Ints) -> Tensor:
        """See `Runtime.own_step`."""
        assert self._own is not None
        return self._own.step(torch.from_numpy(tokens))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """See `Runtime.commit`."""
        self._arena.keep(paths)

    def nbytes(self) -> int:
        """Bytes of the arena's storage."""
        return self._arena.nbytes()

    @property
    def entered(self) -> Collection[str]:  # type: ignore[override]
        """The routes whose packs have been compared with the weights in this call."""
        return self._bodies.keys()

    def use(self, route: str) -> float:
        """Runs the next forwards as one of `routes`: "fused", "compiled", "compact", "packed" or "stock". See `Runtime.use`.

        Raises:
            MethodError: this model has no such route.
        """
        if route not in self.routes:
            raise MethodError(f"{type(self.model).__name__} runs as {', '.join(self.routes)}, not as {route!r}.")
        self._route = route
        self._body_of(route)  # here, so that no forward's time holds the packing
        return self._readying[route]

    @property
    def fingerprint(self) -> str:
        """Model shape, class, precision, threads and processor."""
        config = self.model.config.get_text_config(decoder=True)
        shape = [getattr(config, name, "") for name in ("num_hidden_layers", "hidden_size", "intermediate_size")]
        parts = [type(self.model).__name__, *shape, self.vocab, self.model.dtype, config._attn_implementation]
        return "/".join(str(part) for part in [*parts, self.device, torch.get_num_threads(), processor()])

    @property
    def body(self) -> FusedLoop | CompiledLoop | Twin | None:
        """What runs forwards by the route in use; None for the model itself."""
        return self._body_of(self._route)

    def _find_routes(self) -> tuple[str, ...]:
        if torch.is_autocast_enabled(self.device.type):
            return ("stock",)
        some = any(packable(module) for module in self.model.modules())
        self._packs = some and (self._pack == "always" or (self._pack == "auto" and fits_memory(self.model)))
        if not self._extras and is_stock(self.model):
            return ("fused", *compiled_routes(self.model, self._pack), "stock")
        return ("packed", "stock") if self._packs else ("stock",)

    def _body_of(self, route: str) -> FusedLoop | CompiledLoop | Twin | None:
        """What runs a forward; None for the model itself. Packs are compared with the weights once a call, here."""
        if route not in self._bodies:
            start = time.perf_counter()
            compiled = compiled_loop(self.model, route == "compact") if route in COMPILED else None
            if compiled is not None:
                self._bodies[route] = compiled
            elif route == "fused" or route in COMPILED:
                self._bodies[route] = FusedLoop(self.model, self._packs)
            else:
                self._bodies[route] = packed_copy(self.model) if route == "packed" else None
            self._readying[route] = time.perf_counter() - start
        return self._bodies[route]

    def _run(
        self, twin: Twin | None, tokens: Tensor, places: Tensor, mask: Tensor | None, want: frozenset[str]
    ) -> Output:
        """The model's own forward, or that of a structural copy."""
        modules = {name: self._observed[name] for name in want if name != "logits"}
        if modules and twin is None:
            twin = self._twin = self._twin or structural_copy(self.model)  # the user's model never carries our hooks
        body, copies = (self.model, {}) if twin is None else twin
        taps = {name: (copies[id(module)], kind) for name, (module, kind) in modules.items()}
        with listening(taps) as hidden:
            result = body(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                **self._extras,
            )
        layers = {int(name.split(":")[1]): states for name, states in hidden.items() if name.startswith("layer:")}
        return Output(result.logits, hidden.get("final_hidden"), layers or None)

    def _read(self, tokens: Tensor, sizes: Ints, skip: int, columns: int) -> Tensor:
        """The prompts' forward, by the route that has been fastest for prompts so long. Returns [batch, vocab]."""
        known, count = knowledge_of(self.fingerprint, self.routes), tokens.numel()
        reading = known.reading.of(count // len(tokens))
        reading.begin(count, 1, count, sunk=(known.routes.current,))
        route = reading.next()
        body = self._body_of(route)
        reading.entered(route, self._readying[route])
        start = time.perf_counter()
        if isinstance(body, tuple | None):
            logits = self._prompt_logits(body[0] if body else self.model, tokens, sizes, skip)
        else:
            self._lay_out(columns)
            if isinstance(body, FusedLoop):
                logits = self._fused_prompt(body, tokens, sizes, skip)
            else:
                logits = body.read(tokens.numpy(), sizes - 1, self._arena)
        reading.observe(route, count, 1, (time.perf_counter() - start) / count)
        return logits

    def _lay_out(self, columns: int) -> None:
        """Storage of at least `columns` for the keys and values of a stock model."""
        parts = [layer.self_attn for layer in self.model.model.layers[: self.model.config.num_hidden_layers]]
        shapes = [(part.k_proj.out_features // part.head_dim, part.head_dim) for part in parts]
        self._arena.lay_out(shapes, self.model.lm_head.weight, columns)

    def _fused_prompt(self, loop: FusedLoop, tokens: Tensor, sizes: Ints, skip: int) -> Tensor:
        """The same through the fused loop, behind `skip` cached columns."""
        nodes = tokens.shape[1]
        self._arena.expect(nodes)
        places = torch.arange(skip, skip + nodes).expand(len(tokens), -1)
        mask = None
        if skip:
            mask = torch.full((nodes, skip + nodes), torch.finfo(self.model.dtype).min).triu_(skip + 1)[None, None]
        ends = torch.from_numpy(sizes - 1)
        return loop(tokens, places, mask, self._arena, LOGITS, causal=not skip, ends=ends).logits[:, 0]

    def _prompt_logits(self, model: PreTrainedModel, tokens: Tensor, sizes: Ints, skip: int) -> Tensor:
        """A model's forward over prompts padded on the right, where no real token sees it. Returns [batch, vocab]."""
        last = torch.from_numpy(sizes - 1).to(tokens.device)
        even = bool((sizes == sizes[0]).all())
        keep = {"logits_to_keep": 1 if even else last} if "logits_to_keep" in self._accepts else {}
        self._arena.expect(tokens.shape[1])
        places = torch.arange(skip, skip + tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        logits = model(
            input_ids=tokens,
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
            **keep,
            **self._extras,
        ).logits
        if not keep:
            return logits[torch.arange(len(tokens)), last]
        return logits[:, -1] if even else logits[torch.arange(len(tokens)), torch.arange(len(tokens))]

    def _mask(self, trees: DraftTree) -> Tensor | None:
        """[batch, 1, nodes, columns] to add to the scores; None where every node sees every column."""
        batch, nodes = trees.tokens.shape
        longest = self._arena.longest
        dtype = self.model.dtype
        if nodes == 1 and (batch == 1 or (self.lengths == longest).all()):
            return None
        if batch == 1:
            mask = torch.zeros(nodes, longest + nodes, dtype=dtype)
            mask[:, longest:].masked_fill_(torch.from_numpy(~trees.ancestors[0]), torch.finfo(dtype).min)
            return mask[None, None].to(self.device)
        hidden = torch.from_numpy(~visible(trees, self.lengths))
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
        return mask[:, None].to(self.device)


def _fitting_length(cache: Cache, sizes: Ints) -> int:
    """Tokens of every prompt that a given cache holds."""
    length = filled_length(cache)
    if length == 0:
        return 0
    rows = cache.layers[0].keys.shape[0]
    if rows != len(sizes):
        raise ModelError(f"the cache holds {rows} rows and the batch {len(sizes)}. Pass an empty cache, or none.")
    if length > int(sizes.min()) - 1:
        raise ModelError(
            f"the cache holds {length} tokens and the shortest prompt {int(sizes.min())}; at least the prompt's last "
            "token must be new. Pass the whole text with its cache, or no cache."
        )
    return length


def _extra_inputs(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> dict[str, Any]:
    """What a model asks for at generation beyond what every model takes."""
    prepared = model.prepare_inputs_for_generation(tokens, past_key_values=cache, attention_mask=None, use_cache=True)
    return {key: value for key, value in prepared.items() if key not in OURS and value is not None}
