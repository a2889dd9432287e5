"""Who takes part in the decoding benchmark: strategies on both runtimes, and what they are measured against.

The peer is plain decoding: transformers' own `generate`, and on llama.cpp a loop of one-token calls. Tables are filled from
the tuning prompts and copied for every text, so no text profits from another that is reported.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..beds.draft_files import Files
from ..beds.prompts import prompts
from ..beds.texts import corpus
from ..decode import (
    ADED,
    RSD,
    DraftModel,
    Joined,
    LlamaCppRuntime,
    Plain,
    PromptLookup,
    RecyclingTable,
    Strategy,
    TokenRecycling,
    TrigramTable,
    calibrate,
    generate,
)
from ..decode.engine.sampling import Sampling, from_processors
from ..decode.joined import default_parts
from .ctranslate import OnCTranslate2, generators
from .decode import TOKENS, BenchSample, DecodeContender, Measuring

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..decode.engine.llamacpp.context import NativeContext

ASSISTED, HIGH_LEVEL = "transformers, assisted", "Llama.generate"
STOCK = "transformers, its own forward"
TRANSFORMERS, LLAMA_CPP = RUNTIMES = ("transformers", "llama.cpp")
FEW = 6  # repeats of a short run
SAMPLED_TOKENS = 32  # of a text of a short run at temperatures above 0
TOP_K = 50  # transformers' own default when it samples
CORPUS = 1_000_000  # characters of installed packages' documentation that ADED's trigrams are counted in
StrategyFactory = Callable[[], Strategy]


class FirstTokens:
    """A streamer that notes when the first tokens came.

    Args:
        skip: calls that bring the prompt, as transformers' streamers get it.
    """

    def __init__(self, skip: int = 0) -> None:
        self.skip, self.start = skip, time.perf_counter()
        self.seen: tuple[float, int] | None = None

    def put(self, value: Tensor) -> None:
        if self.skip:
            self.skip -= 1
        elif self.seen is None:
            self.seen = (time.perf_counter() - self.start, int(value.numel()))

    def end(self) -> None:
        pass


class OnTransformers:
    """`model.generate`, plainly, with some of its own arguments, or with a strategy."""

    def __init__(self, model: PreTrainedModel, strategy_of: StrategyFactory | None = None, **options: Any) -> None:
        self.model, self.strategy_of, self.options = model, strategy_of, options

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample:
        import torch

        inputs = torch.tensor([list(ids)])
        options = {"max_new_tokens": count, "do_sample": temperature > 0, "pad_token_id": 0, **self.options}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": TOP_K}
        strategy = self.strategy_of() if self.strategy_of else None
        torch.manual_seed(seed)
        watch = FirstTokens(1)
        if strategy is not None:
            strategy = dataclasses.replace(strategy, streamer=watch)
            options |= {"custom_generate": strategy, "return_dict_in_generate": True}
        else:
            options["streamer"] = watch
        start = time.perf_counter()
        out = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
        seconds = time.perf_counter() - start
        sequences = out if strategy is None else out.sequences
        account = None if strategy is None else out.stats.json()
        new = tuple(sequences[0, len(ids) :].tolist())
        return BenchSample(seconds, new, watch.seen or (0.0, 0), account)


class OnLlamaCpp:
    """A GGUF file with a strategy."""

    def __init__(self, runtime: LlamaCppRuntime, strategy_of: StrategyFactory) -> None:
        self.runtime, self.strategy_of = runtime, strategy_of

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample:
        import torch
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=count, do_sample=temperature > 0)
        if temperature > 0:
            config.temperature, config.top_k = temperature, TOP_K
        strategy = self.strategy_of()
        torch.manual_seed(seed)
        watch = FirstTokens(1)
        start = time.perf_counter()
        output = generate(self.runtime, list(ids), strategy, config, streamer=watch)
        seconds = time.perf_counter() - start
        return BenchSample(seconds, tuple(output.sequences[0]), watch.seen or (0.0, 0), output.stats.json())


class PlainLoop:
    """llama.cpp without any of this library's engine: a prompt, then one token a call and the same choice of tokens."""

    def __init__(self, runtime: LlamaCppRuntime) -> None:
        self.model, self.threads = runtime.model, runtime.threads
        self._context: NativeContext | None = None

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample:
        import torch

        from ..decode.engine.llamacpp.context import NativeContext

        if self._context is None or self._context.size < len(ids) + count:
            self._context = NativeContext(self.model, len(ids) + count, 2, self.threads)
        sampling, none = _sampling(temperature), torch.empty(1, 0, dtype=torch.long)

        def pick(logits: np.ndarray) -> int:
            return sampling.pick(sampling.scores(torch.from_numpy(logits), none))

        torch.manual_seed(seed)
        one, outputs = np.ones(1, dtype=np.int64), np.ones(1, dtype=bool)
        start = time.perf_counter()
        new = [pick(self._context.prefill(np.array(ids)))]
        first = time.perf_counter() - start
        while len(new) < count:
            place = np.array([len(ids) + len(new) - 1])
            logits = self._context.decode(np.array(new[-1:]), place, one, np.zeros(1, dtype=np.int64), outputs)[0]
            new.append(pick(logits))
        return BenchSample(time.perf_counter() - start, tuple(new), (first, 1))


def _sampling(temperature: float) -> Sampling:
    """As `generate` samples on llama.cpp."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper

    if temperature == 0:
        return Sampling()
    return from_processors([TemperatureLogitsWarper(temperature), TopKLogitsWarper(TOP_K)], True, inverts=True)


class HighLevel:
    """llama-cpp-python's `Llama.generate`."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def __call__(self, ids: Sequence[int], count: int, temperature: float, seed: int) -> BenchSample:
        self.llama.set_seed(seed)
        self.llama.reset()  # else it keeps what the last prompt began with
        top_k = TOP_K if temperature > 0 else 1
        start, first, new = time.perf_counter(), 0.0, []
        for token in self.llama.generate(
            list(ids), temp=temperature, top_k=top_k, top_p=1.0, min_p=0.0, repeat_penalty=1.0
        ):
            first = first or time.perf_counter() - start
            new.append(int(token))
            if len(new) == count:
                break
        return BenchSample(time.perf_counter() - start, tuple(new), (first, 1))


@dataclass
class Warm:
    """Tables filled from the tuning prompts; every strategy starts from a copy."""

    recycling: RecyclingTable
    trigrams: TrigramTable

    def strategies(self, draft: PreTrainedModel | LlamaCppRuntime) -> dict[str, StrategyFactory]:
        """Every strategy with the cost model on. draft: model or runtime for those that need one."""

        def recycling() -> TokenRecycling:
            return TokenRecycling(table=copy.deepcopy(self.recycling))

        return {
            "plain": Plain,
            "prompt-lookup": PromptLookup,
            "token-recycling": recycling,
            "aded": lambda: ADED(table=copy.deepcopy(self.trigrams)),
            "joined": lambda: Joined((default_parts()[0], recycling())),
            "draft-model": lambda: DraftModel(draft_model=draft),
            "rsd": lambda: RSD(draft_model=draft),
        }


def warmed(model: PreTrainedModel, encode: Callable[[str], list[int]], corpus: Sequence[Sequence[int]]) -> Warm:
    """What the target's greedy answers to the tuning prompts leave in the tables; trigrams of the corpus before."""
    vocab = model.config.vocab_size
    warm = Warm(RecyclingTable(vocab), TrigramTable.fit(corpus, vocab))
    writer = OnTransformers(model, lambda: TokenRecycling(table=warm.recycling))
    for prompt in prompts("tune"):
        ids = encode(prompt.text)
        warm.trigrams.add([*ids, *writer(ids, TOKENS, 0.0, 0).ids])
    return warm


def on_transformers(
    model: PreTrainedModel, draft: PreTrainedModel, warm: Warm, peers: Mapping[str, DecodeContender] | None = None
) -> dict[str, DecodeContender]:
    """transformers' own ways, other engines on the same weights, then every strategy."""
    contenders: dict[str, DecodeContender] = {
        "transformers": OnTransformers(model),
        "transformers, prompt lookup": OnTransformers(model, prompt_lookup_num_tokens=10, max_matching_ngram_size=3),
        ASSISTED: OnTransformers(model, assistant_model=draft),
    }
    ours = {name: OnTransformers(model, strategy_of) for name, strategy_of in warm.strategies(draft).items()}
    return contenders | dict(peers or {}) | ours


def on_llamacpp(runtime: LlamaCppRuntime, draft: LlamaCppRuntime, warm: Warm) -> dict[str, DecodeContender]:
    """llama.cpp's plain loops, then every strategy."""
    contenders: dict[str, DecodeContender] = {
        "llama.cpp": PlainLoop(runtime),
        HIGH_LEVEL: HighLevel(runtime.path, runtime.threads),
    }
    return contenders | {name: OnLlamaCpp(runtime, strategy_of) for name, strategy_of in warm.strategies(draft).items()}


def run(
    files: Files,
    minutes: float,
    most: int,
    tell: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
    runtimes: Collection[str] = RUNTIMES,
) -> dict[str, Any]:
    """Measures everything once, then what is undecided again while there is time.

    Args:
        files: llama.cpp takes part where it has some.
        minutes: after which nothing is measured again.
        most: repeats of a cell at most.
        tell: gets a line of progress.
        keep: gets what is known so far, after every runtime and temperature.
        runtimes: of these `RUNTIMES` alone.

    Returns:
        {"rows": a row a cell, "costs": {runtime: {rows: seconds}}, "seconds": of the whole}
    """
    import torch

    from ..models import load, load_model

    start = time.perf_counter()
    loaded = load(files.model)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    draft = load_model(files.draft).eval()
    for one in (model, draft):
        one.generation_config.eos_token_id = None

    def encode(text: str) -> list[int]:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        return list(chat["input_ids"])

    tell("filling tables from the tuning prompts")
    texts = [tokenizer(text)["input_ids"] for text in corpus(0, CORPUS)]
    warm = warmed(model, encode, texts)
    results: dict[str, Any] = {"rows": [], "costs": {}}
    with ExitStack() as stack:
        parts: list[BenchPart] = []
        if TRANSFORMERS in runtimes:
            native = stack.enter_context(generators(Path(loaded.source["folder"]), torch.get_num_threads(), tokenizer))
            peers = {name: OnCTranslate2(generator, tokenizer) for name, generator in native.items()}
            everyone = on_transformers(model, draft, warm, peers)
            sampled = everyone if most > FEW else _without(everyone, ASSISTED)
            parts += [BenchPart(TRANSFORMERS, everyone, 0.0, 6), BenchPart(TRANSFORMERS, sampled, 0.7, 3)]
        if LLAMA_CPP in runtimes:
            parts += _native(files, warm, stack)
        for number, part in enumerate(parts):
            if not number or parts[number - 1].runtime != part.runtime:
                tell(f"{part.runtime}: warming up")
                for prompt in _one_a_kind():
                    for contender in part.contenders.values():
                        contender(encode(prompt), TOKENS // 2, 0.0, 0)
            # A share of the time for each part that is left; what one does not use is the next one's.
            left = 60 * minutes - (time.perf_counter() - start)
            share = left * part.weight / sum(later.weight for later in parts[number:])
            deadline = time.perf_counter() + share
            tokens = SAMPLED_TOKENS if part.temperature > 0 and most <= FEW else TOKENS
            peer = next(iter(part.contenders))
            run = Measuring(part.contenders, peer, encode, deadline, part.runtime, tokens, tell)
            results["rows"] += run.run((part.temperature,), most=most)
            if part.runtime not in results["costs"]:
                results["costs"] |= _costs(part, model)
            results["seconds"] = time.perf_counter() - start
            keep(results)
    return results


@dataclass(frozen=True)
class BenchPart:
    """Contenders on one runtime at one temperature; the first is the peer, `weight` its share of the time."""

    runtime: str
    contenders: Mapping[str, DecodeContender]
    temperature: float
    weight: int
    native: LlamaCppRuntime | None = None


def _costs(part: BenchPart, model: PreTrainedModel) -> dict[str, dict[int, float]]:
    """{runtime: {rows: seconds of a forward}}; of a transformers model, what its own forward takes, too."""
    from ..decode import TransformersRuntime

    if part.native is not None:
        return {part.runtime: calibrate(part.native)}
    return {
        part.runtime: calibrate(TransformersRuntime(model)),
        STOCK: calibrate(TransformersRuntime(model), route="stock"),
    }


def _without(contenders: Mapping[str, DecodeContender], name: str) -> dict[str, DecodeContender]:
    """Several times slower than the rest, so that a short run leaves it out where nothing is judged by it."""
    return {other: contender for other, contender in contenders.items() if other != name}


def _one_a_kind() -> list[str]:
    return list({row.kind: row.text for row in prompts("tune")}.values())


def _native(files: Files, warm: Warm, stack: ExitStack) -> Iterator[BenchPart]:
    for form, (target, draft) in files.gguf.items():
        runtime, small = (stack.enter_context(LlamaCppRuntime(path)) for path in (target, draft))
        everyone, name = on_llamacpp(runtime, small, warm), f"llama.cpp {form}"
        if form == "q8_0":
            yield BenchPart(name, everyone, 0.0, 2, runtime)
            yield BenchPart(name, _without(everyone, HIGH_LEVEL), 0.7, 2, runtime)
        else:  # hardly batches: enough to see it
            few = {one: everyone[one] for one in ("llama.cpp", "plain", "joined")}
            yield BenchPart(name, few, 0.0, 1, runtime)
