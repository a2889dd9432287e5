"""Memory stays flat, however often a model writes and however often one forgets.

    python tests/robustness/growth.py --generates 500 --drawings 1000 --forgets 300

Every strategy in turn, transformers' own `generate`, a sampler on a canvas, batches and fresh models; then the drawings of a report; then every
kind of method on tiny models, and the whole command with its report. After each round of all of them the process is looked at: resident memory, tensors, objects that Python's
collector knows, open files, threads. What comes in the first rounds (at least ten calls) is not counted: caches fill, modules load.
The JavaScript engine that draws takes some 35 MB in its first hundred drawings and collects its own rubbish only from then on, so that
`FIRST_DRAWINGS` come before its memory is looked at, and before the forgets. After that

    memory     grows by less than `KB` a call: by the slope of a straight line through all rounds, or by the medians of the first and the
               last third, whichever is less (an allocator takes memory in steps, so either alone cries wolf)
    objects    less than `OBJECTS` a call, likewise
    tensors, files, threads    are as many in the last third as in the first, by their medians
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))

# oneDNN keeps up to 1024 kernels it compiled, one for each number of rows, of 2 MB each: bounded, and not what is looked for.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"

import numpy as np
import torch
from cli_runs import make_files
from masks import END, MASK, lively

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.audit.report.charts import heatmaps, layers_chart
from unwrite.cli import main
from unwrite.data.images.sets import digits
from unwrite.data.images.splits import split_by_class
from unwrite.decode import ADED, RSD, DraftModel, Joined, PromptLookup, TokenRecycling
from unwrite.diffusion import FixedBlocks, Sampler, Threshold
from unwrite.forget import NPO, RMU, SCRUB, SSD, ULD, HeadOnly, TaskVector
from unwrite.nets import SmallCNN

KB = 16.0  # a call may add so much resident memory; a tiny model is 100
OBJECTS = 3.0  # and so many objects
FIRST_DRAWINGS = 200
LEAST = 2048.0  # kB: what an allocator takes at once, and less is no growth
VOCAB = 64
Call = Callable[[int], object]


@dataclass(frozen=True)
class Look:
    """The process at one moment."""

    memory: float  # kB
    objects: int
    tensors: int
    files: int
    threads: int


def look() -> Look:
    """After a collection, with free memory given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    every = gc.get_objects()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    tensors = sum(issubclass(type(one), torch.Tensor) for one in every)
    return Look(resident, len(every), tensors, len(os.listdir("/proc/self/fd")), threading.active_count())


def growth(values: Sequence[float], calls: int) -> float:
    """By how much a call raised a value looked at after every `calls` of them: the lesser of two ways to tell."""
    third = max(1, len(values) // 3)
    slope = float(np.polyfit(np.arange(len(values)), values, 1)[0])
    by_medians = (median(values[-third:]) - median(values[:third])) / (len(values) - third)
    return min((slope, by_medians), key=abs) / calls


def grown(looks: Sequence[Look], calls: int) -> list[str]:
    """What did not stay flat, a line each."""
    third = max(1, len(looks) // 3)
    wrong = []
    for field, values in zip(fields(Look), zip(*map(astuple, looks), strict=True), strict=True):
        more, a_call = median(values[-third:]) - median(values[:third]), growth(values, calls)
        bound = {"memory": KB, "objects": OBJECTS}.get(field.name, 0.0)
        if a_call > bound and more > (LEAST if field.name == "memory" else 0):
            wrong.append(f"{field.name}: {a_call:.2f} more a call, from {values[0]:.0f} to {values[-1]:.0f}")
    return wrong


def watched(calls: Mapping[str, Call], count: int, tell: bool, first: int = 10) -> list[str]:
    """What grew in so many calls, each of them in turn, after the `first` ones."""
    looks: list[Look] = []
    rounds, before = max(3, -(-count // len(calls))), -(-first // len(calls))
    for number in range(before + rounds):
        for place, (name, call) in enumerate(calls.items()):
            try:
                call(number * len(calls) + place)
            except Exception as error:
                raise RuntimeError(f"{name} failed") from error
        if number == before - 1:
            gc.collect()
            gc.freeze()  # what is here stays: only what comes is looked at
        if number >= before:
            looks.append(look())
    gc.unfreeze()
    if tell:
        names = [field.name for field in fields(Look)]
        rates = {n: growth(v, len(calls)) for n, v in zip(names, zip(*map(astuple, looks), strict=True), strict=True)}
        print(f"{len(looks) * len(calls)} calls of {', '.join(calls)}")
        for name, first, last in zip(names, astuple(looks[0]), astuple(looks[-1]), strict=True):
            print(f"    {name:8} {first:10.0f} {last:10.0f}   {rates[name]:+.3f} a call", flush=True)
    return grown(looks, len(calls))


def generates() -> dict[str, Call]:
    """Ways to write."""
    model, draft = make_llama(0, vocab=VOCAB), make_llama(1, layers=1, vocab=VOCAB)
    canvas = lively()
    canvas.model.config.mask_token_id = MASK
    sampler = Sampler(gen_length=8, blocks=FixedBlocks(4), commit=Threshold(0.5))
    strategies = {
        "prompt lookup": PromptLookup, "token recycling": TokenRecycling, "aded": ADED, "joined": Joined,
        "draft model": lambda: DraftModel(draft_model=draft), "rsd": lambda: RSD(draft_model=draft),
    }  # fmt: skip

    def write(writer: torch.nn.Module, number: int, rows: int = 1, vocab: int = VOCAB - 1, **more: object) -> None:
        ids = torch.randint(3, vocab, (rows, 10), generator=torch.Generator().manual_seed(number))
        options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        writer.generate(ids, **options | more)

    calls: dict[str, Call] = {
        name: lambda number, make=make: write(model, number, custom_generate=make(), do_sample=number % 3 == 0)
        for name, make in strategies.items()
    }
    return calls | {
        "transformers": lambda number: write(model, number),
        "a batch": lambda number: write(model, number, 3, custom_generate=PromptLookup()),
        "a fresh model": lambda number: write(make_llama(number, vocab=VOCAB), number, custom_generate=Joined()),
        "sampler": lambda number: write(
            canvas.model, number, 1, MASK, custom_generate=sampler, max_new_tokens=8, eos_token_id=END
        ),
    }


def drawings() -> dict[str, Call]:
    """Charts of a report, each time of other values."""

    def shares(number: int) -> object:
        return layers_chart({f"layer{n}.weight": (number + n) % 97 / 100 for n in range(8)})

    def tables(number: int) -> object:
        counts = np.random.default_rng(number).integers(0, 50, (4, 4))
        return heatmaps({"before": counts, "unlearned": counts.T}, list("abcd"))

    return {"shares of layers": shares, "heat maps": tables}


def forgets(home: Path) -> dict[str, Call]:
    """Methods of every kind, on fresh tiny models, and the whole command."""
    from peft import LoraConfig

    tokenizer, forget, retain = make_tokenizer(), make_examples("forget", 4), make_examples("retain", 4)
    args = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "learning_rate": 1e-3}
    rows = digits(0.9)
    split = split_by_class(rows.train, 3, test=rows.test, seed=0)
    files = make_files(home)

    def text(method: object, **more: object) -> Call:
        return lambda number: method.apply(
            make_llama(number), forget, retain, processing_class=tokenizer, args=dict(args), **more
        )

    def images(method: object) -> Call:
        return lambda number: method.apply(
            SmallCNN(num_classes=10, channels=1, image_size=8, width=4),
            split.forget,
            split.retain,
            args={"num_train_epochs": 1.0},
        )

    def command(number: int) -> None:
        paths = (f"--{name}={files / f'{name}.jsonl'}" for name in ("forget", "retain"))
        flags = ("--epochs=1", "--device=cpu", "--attacks=quantise", "--overwrite")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["forget", f"--model={files / 'model'}", *paths, f"--out={home / 'run'}", *flags])

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    return {
        "npo": text(NPO()), "npo with kl": text(NPO(retain_loss="kl")), "lora": text(NPO(), peft_config=lora),
        "rmu": text(RMU()), "task vector": text(TaskVector()), "ssd": text(SSD(importance_batch=4)), "uld": text(ULD()),
        "scrub": images(SCRUB()), "head only": images(HeadOnly()), "the command": command,
    }  # fmt: skip


def main_program() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generates", type=int, default=500)
    parser.add_argument("--drawings", type=int, default=1000)
    parser.add_argument("--forgets", type=int, default=300)
    parser.add_argument(
        "--but-memory", action="store_true", help="too few calls to tell an allocator's steps from growth"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, wrong = time.monotonic(), []
    with tempfile.TemporaryDirectory() as place:
        os.environ["UNWRITE_CACHE"] = f"{place}/cache"
        if options.generates:
            wrong += [f"generates, {what}" for what in watched(generates(), options.generates, tell=True)]
        if options.drawings:
            wrong += [
                f"drawings, {what}" for what in watched(drawings(), options.drawings, tell=True, first=FIRST_DRAWINGS)
            ]
        if options.forgets:
            home = Path(place) / "home"
            home.mkdir()
            wrong += [f"forgets, {what}" for what in watched(forgets(home), options.forgets, tell=True)]
    if options.but_memory:
        wrong = [what for what in wrong if ", memory: " not in what]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(
        f"{options.generates} generates, {options.drawings} drawings and {options.forgets} forgets, {len(wrong)} figures grew, "
        f"{time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main_program()
