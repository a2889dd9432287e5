"""unwrite generate: write text by any decoding strategy, and say what it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from ..errors import MethodError, ModelError, UnwriteError, naming, notice, renamed
from ..runs import progress
from .fields import build_cache, build_strategy
from .inputs import need_number
from .output import console, label, print_json, quiet_libraries, write

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..cache import CompressedCache, Compression
    from ..decode.base import Strategy
    from ..decode.engine.stats import Stats

PLAIN, DEFAULT = "plain", "token-recycling"


def generate(
    prompt: str,
    *,
    strategy: str | None = None,
    sampler: str | None = None,
    compare: str | None = None,
    cache: str | None = None,
    model: str = "smollm2-135m",
    draft_model: str | None = None,
    base: str | None = None,
    draft_base: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    raw: bool = False,
    json: bool = False,
    **fields: Annotated[str, Parameter(help="The strategy's own fields, such as --budget 16.")],
) -> None:
    """Write an answer, streaming, and end with one line of statistics.

    Args:
        prompt: the question.
        strategy: how to decode: plain, or a drafting strategy. Where it is left out: token-recycling; plain with a
            notice where the model takes no drafts, and plain with a cache.
        sampler: for a diffusion language model: parts of the denoising loop joined by +, such as
            "threshold(threshold=0.8)+dual"; the canvas is shown as it fills.
        compare: several strategies separated by commas; a table of all of them in place of the stream.
        cache: keys and values in fewer bytes: a cache with its fields, such as "uncomp:groups=heads.json,capacity=256";
            the text is written plainly then.
        model: bundled name, local folder, .gguf file or Hub id. A .gguf file runs on llama.cpp.
        draft_model: a smaller model of the same vocabulary, for strategies that need one.
        base, draft_base: where model or draft_model is an adapter, the model it stands on: its own file may choose only one
            that is bundled or in its folder.
        max_new_tokens: tokens at most.
        temperature: 0 for the most likely token.
        seed: of sampling.
        raw: take the prompt as it is, without the chat template.
        json: print JSON.
    """
    need_number("--max-new-tokens", max_new_tokens, at_least=1)
    need_number("--temperature", temperature, at_least=0)
    need_number("--seed", seed, at_least=-(2**63), below=2**64)
    compression = _compression(cache, sampler, model)
    if sampler is not None:
        from .canvas import denoise

        denoise(prompt, sampler, model, base, max_new_tokens, temperature, seed, raw, json, fields)
        return
    names = [name.strip() for name in (compare or strategy or (DEFAULT if compression is None else PLAIN)).split(",")]
    chosen = {name: None if name == PLAIN else build_strategy(name, fields) for name in names}
    if compression is not None and (drafting := next((name for name, way in chosen.items() if way), None)):
        raise MethodError(
            f"{drafting} drafts, and a compressed cache can't give drafted tokens back. Write --strategy plain, or leave --cache out."
        )
    quiet_libraries()
    from ..decode import Plain

    writer = _writer(model, draft_model, base, draft_base, raw, compression)
    if strategy is None and compare is None and compression is None and _falls_back(writer):
        names, chosen = [PLAIN], {PLAIN: None}
    if compare:  # what only a first call pays, such as packing, is nobody's
        writer(prompt, Plain(), 4, temperature, seed, None)
    results = {}
    streams = not (compare or json)
    for name, way in chosen.items() if streams else progress(chosen.items(), "writing"):
        show = write if streams else None
        results[name] = writer(prompt, way, max_new_tokens, temperature, seed, show)
    if json:
        print_json({name: {"text": text, **stats.json()} for name, (text, stats) in results.items()})
    elif compare:
        _table(results)
    else:
        write("\n")
        console().print(label(f"{names[0]}: {results[names[0]][1].line()}", "dim"))


def _compression(cache: str | None, sampler: str | None, model: str) -> Compression | None:
    """The settings of the cache that is asked for.

    Raises:
        MethodError: an unknown cache or field; a sampler or a GGUF file, which keep no such cache.
    """
    if cache is None:
        return None
    other = "a sampler" if sampler is not None else "a GGUF file" if model.endswith(".gguf") else None
    if other is not None:
        raise MethodError(
            f"--cache is of a transformers model that writes token by token, not of {other}. Leave it out."
        )
    with naming("settings"):
        return build_cache(cache)


def _falls_back(writer: Writer) -> bool:
    """Whether the model takes no drafts; if so, that is said."""
    if why := writer.why_plain():
        notice(f"{why} The text is written plainly, one token a forward; --strategy asks for another way.")
    return why is not None


class Writer(Protocol):
    """Writes an answer with one model."""

    def __call__(
        self,
        prompt: str,
        way: Strategy | None,
        count: int,
        temperature: float,
        seed: int,
        show: Callable[[str], None] | None,
    ) -> tuple[str, Stats]:
        """(text, statistics)."""

    def why_plain(self) -> str | None:
        """Why no draft runs with this model; None where drafts do."""


def _writer(
    model: str,
    draft: str | None,
    base: str | None,
    draft_base: str | None,
    raw: bool,
    compression: Compression | None = None,
) -> Writer:
    if not model.endswith(".gguf"):
        return _Transformers(model, draft, raw, base, draft_base, compression)
    for flag, value in (("--base", base), ("--draft-base", draft_base)):
        if value is not None:
            raise MethodError(
                f"{model} is a GGUF file and no adapter, so {flag} has no meaning beside it. Leave it out."
            )
    return _LlamaCpp(model, draft, raw)


@dataclass
class _Show:
    """A streamer that decodes as transformers' TextStreamer does, into a callback."""

    decode: Callable[[list[int]], str]
    show: Callable[[str], None]

    def __post_init__(self) -> None:
        self._ids: list[int] = []
        self._shown = 0

    def put(self, value: Tensor) -> None:
        self._ids.extend(int(token) for token in value.flatten().tolist())
        text = self.decode(self._ids)
        # A character may span tokens; what is not yet complete ends in the replacement sign.
        # Nor is it known of a carriage return whether it begins a line end.
        if not text.endswith(("\ufffd", "\r")):
            self.show(text[self._shown :])
            self._shown = len(text)

    def end(self) -> None:
        text = self.decode(self._ids)
        self.show(text[self._shown :])


class _Transformers:
    """Writes with a transformers model."""

    def __init__(
        self,
        name: str,
        draft: str | None,
        raw: bool,
        base: str | None = None,
        draft_base: str | None = None,
        compression: Compression | None = None,
    ) -> None:
        from ..models import load

        if draft is None and draft_base is not None:
            raise MethodError("--draft-base is of --draft-model, which is not given. Leave it out.")
        self.loaded, self.raw = load(name, base=base), raw
        with renamed(base="draft_base"):
            self.draft = load(draft, base=draft_base).model if draft else None
        self.compression = compression

    def why_plain(self) -> str | None:
        """Why no draft runs with this model."""
        from ..decode import why_plain

        return why_plain(self.loaded.model)

    def __call__(
        self,
        prompt: str,
        way: Strategy | None,
        count: int,
        temperature: float,
        seed: int,
        show: Callable[[str], None] | None,
    ) -> tuple[str, Stats]:
        import time

        import torch

        from ..decode.engine.stats import Stats

        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        inputs = encoded(tokenizer, prompt, self.raw).to(model.device)
        streamer = _shown(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), show)
        options: dict[str, Any] = {
            "max_new_tokens": count,
            "pad_token_id": tokenizer.pad_token_id,
            "do_sample": temperature > 0,
        }
        if temperature > 0:
            options["temperature"] = temperature
        torch.manual_seed(seed)
        if way is None:
            if (cache := self._cache()) is not None:
                options["past_key_values"] = cache
            start = time.perf_counter()
            ids = model.generate(inputs, attention_mask=torch.ones_like(inputs), streamer=streamer, **options)
            new = ids[0, inputs.shape[1] :]
            stats = Stats(forwards=len(new), tokens=len(new))
            stats.cache = None if cache is None else (cache.nbytes(), cache.full_nbytes())
            stats.seconds["forward"] = time.perf_counter() - start
        else:
            way = _with(way, streamer=streamer, draft_model=self.draft, tokenizer=tokenizer)
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                custom_generate=way,
                return_dict_in_generate=True,
                **options,
            )
            new, stats = out.sequences[0, inputs.shape[1] :], out.stats
        return tokenizer.decode(new, skip_special_tokens=True), stats

    def _cache(self) -> CompressedCache | None:
        if self.compression is None:
            return None
        with naming("settings"):
            return self.compression.cache(self.loaded.model)


@dataclass
class _SkipPrompt:
    """The prompt is streamed first, and not shown."""

    inner: _Show
    seen: bool = False

    def put(self, value: Tensor) -> None:
        if self.seen:
            self.inner.put(value)
        self.seen = True

    def end(self) -> None:
        self.inner.end()


def _shown(decode: Callable[[list[int]], str], show: Callable[[str], None] | None) -> _SkipPrompt | None:
    return _SkipPrompt(_Show(decode, show)) if show else None


class _LlamaCpp:
    """Writes with a GGUF file on llama.cpp."""

    def __init__(self, path: str, draft: str | None, raw: bool) -> None:
        from ..decode import LlamaCppRuntime

        if not Path(path).is_file():
            raise MethodError(f"{path}: no such file.")
        self.runtime, self.raw = LlamaCppRuntime(path), raw
        self.draft = LlamaCppRuntime(draft) if draft else None

    def why_plain(self) -> str | None:
        """Nothing: its own check decides how many rows a forward may have."""
        return None

    def __call__(
        self,
        prompt: str,
        way: Strategy | None,
        count: int,
        temperature: float,
        seed: int,
        show: Callable[[str], None] | None,
    ) -> tuple[str, Stats]:
        import torch
        from transformers import GenerationConfig

        from ..decode import Plain
        from ..decode import generate as decode

        runtime = self.runtime
        ids = runtime.encode(prompt) if self.raw else runtime.chat([{"role": "user", "content": prompt}])
        config = GenerationConfig(
            max_new_tokens=count,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            eos_token_id=list(runtime.eos_token_ids),
        )
        torch.manual_seed(seed)
        streamer = _shown(runtime.decode, show)
        way = _with(way, draft_model=self.draft) if way is not None else Plain()
        decoded = decode(runtime, ids, way, config, streamer=streamer)
        return runtime.decode(decoded.sequences[0]), decoded.stats


def _with(way: Strategy, **parts: Any) -> Strategy:
    """The strategy with what a command line can't spell; a draft model that is needed and missing is refused."""
    import dataclasses

    names = {field.name for field in dataclasses.fields(way)}
    values = {name: value for name, value in parts.items() if name in names and value is not None}
    return dataclasses.replace(way, **values)


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool) -> Tensor:
    """[1, length] ids of a question in the model's chat form, or of the text as it is.

    Raises:
        ModelError: a chat template that fails, or doesn't end.
    """
    if raw or tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    messages = [{"role": "user", "content": prompt}]
    from ..data.text.templates import bounded_template

    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    try:
        with bounded_template(tokenizer.chat_template):
            return tokenizer.apply_chat_template(messages, **options)["input_ids"]
    except UnwriteError:
        raise
    except Exception as error:  # a template is a program of its own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the model's chat template can't be used: {why}. Pass --raw to give the text as it is."
        ) from error


def _table(results: dict[str, tuple[str, Stats]]) -> None:
    from rich.table import Table

    table = Table("strategy", "tokens/s", "tokens/forward", "forwards", "same text", header_style="bold")
    first = next(iter(results.values()))[0]
    for name, (text, stats) in results.items():
        rate = f"{stats.tokens / max(1e-9, stats.total_seconds):.1f}"
        same = "yes" if text == first else "no"
        table.add_row(name, rate, f"{stats.tokens_per_forward:.2f}", str(stats.forwards), same)
    write(f"{first}\n")
    console().print(table)
