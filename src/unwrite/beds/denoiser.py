"""The small mask predictor on which samplers are compared, and the tasks that it was trained for.

At most a million weights, characters for tokens, prompts in fixed slots, answers in 64 positions filled up with end tokens.
The kinds of tasks differ in what decoding in parallel can break:

    sums     worked lines of very different lengths, then "#" and the result: order matters, lines are blocks
    anchored the same, with the result at a fixed place after "answer is": it may be known before the work is written
    json     a record whose keys and words are long fixed strings: strong local structure
    lists    copy, flip and sort (items are determined), mix and swap (items depend on each other)

One table, `TASKS`, names the mix; `testbed_items` draws them. A trained bed ships (`keep` made it): of another recipe or seed, whoever
asks first trains, in about half an hour on two cores. `gate` says whether what came out may be used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ..diffusion.adapter import MaskPredictor
from ..diffusion.parts.rules import FixedBlocks, Threshold
from ..diffusion.sampler import Sampler
from ..diffusion.training import MaskedRow, mask_predictor_recipe
from ..errors import ModelError
from ..models import load_model, trained
from ..runs import hash_json, write_text
from .denoiser_items import (
    ANCHOR,
    ANCHOR_AT,
    ANSWER,
    PROMPT,
    Item,
    Task,
    anchored,
    exact,
    list_is_right,
    lists,
    records,
    sums,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

MASK, END = "<mask>", "<end>"
CHARACTERS = ' \n0123456789abcdefghijklmnopqrstuvwxyz+-=#,:"{}[]'
SHIPPED, MADE_BY = Path(__file__).parent / "denoiser_model", "made-by.txt"
SHORT = 28  # positions of the canvas on which training begins; sums and lists have room there

TASKS = (
    Task("sums", 0.3, sums, exact),
    Task("anchored", 0.2, anchored, exact),
    Task("json", 0.1, records, exact),
    Task("lists", 0.4, lists, list_is_right),
)
BY_NAME: Mapping[str, Task] = {task.name: task for task in TASKS}


def items(count: int, seed: int, tasks: Sequence[str] | None = None) -> list[Item]:
    """`count` items in turn by share, or evenly from the tasks named. Seeds below 1,000 are for training."""
    random = Random(seed)
    chosen = [BY_NAME[name] for name in tasks] if tasks else list(TASKS)
    weights = [1.0] * len(chosen) if tasks else [task.share for task in chosen]
    return [random.choices(chosen, weights)[0].make(random) for _ in range(count)]


def right(item: Item, text: str) -> bool:
    """Whether the answer is, by its task's own metric."""
    return BY_NAME[item.task].right(item, text)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters; mask and end token are known to it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate((END, MASK, *CHARACTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=END, mask_token=MASK, clean_up_tokenization_spaces=False
    )


def config(width: int = 128, layers: int = 4, inner: int = 352) -> LlamaConfig:
    """A Llama of 0.8 million weights at the defaults."""
    from transformers import LlamaConfig

    ids = tokenizer()
    return LlamaConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=PROMPT + ANSWER,
        pad_token_id=ids.eos_token_id,
        eos_token_id=ids.eos_token_id,
        bos_token_id=None,
        mask_token_id=ids.mask_token_id,
        is_causal=False,
        tie_word_embeddings=False,
    )


class Rows(list[MaskedRow]):
    """Rows with the content hash that `trained` asks for."""

    @property
    def hash(self) -> str:
        return hash_json([list(row.input_ids) for row in self])


def rows(count: int, seed: int, tasks: Sequence[str] | None = None, room: int = ANSWER) -> Rows:
    """Training rows: prompt, answer, one end token, filled up with more of them; without answers that have no room."""
    ids = tokenizer()
    return Rows(
        MaskedRow([*ids(item.prompt)["input_ids"], *ids(item.answer)["input_ids"], ids.eos_token_id], PROMPT)
        for item in items(count, seed, tasks)
        if len(item.answer) < room
    )


@dataclass(frozen=True)
class Stage:
    """One stretch of training, by Muon.

    Args:
        rows: drawn; those without room are left out.
        epochs, batch_size, lr: see `mask_predictor_recipe`.
        tasks: drawn from evenly; None for the mix.
        room: positions of the answer.
    """

    rows: int
    epochs: int
    batch_size: int
    lr: float
    tasks: tuple[str, ...] | None = None
    room: int = ANSWER


@dataclass(frozen=True)
class Recipe:
    """Short answers first: there a step costs half, and most of what is predicted must be computed, not copied. From the mix alone
    the model learns to copy and to keep the form, and still adds wrongly every third line after as many minutes.

    Args:
        stages: one goes on from where the other ended.
        eps: shares of hidden tokens go from eps to 1; the loss divides by them, so small ones make its gradient noisy.
        width, layers, inner: of the model.
    """

    stages: tuple[Stage, ...] = (
        Stage(256_000, 1, 64, 4e-3, ("sums", "sums", "lists"), SHORT),
        Stage(160_000, 1, 32, 2e-3),
    )
    eps: float = 0.1
    width: int = 128
    layers: int = 4
    inner: int = 352


@dataclass(frozen=True)
class TestBed:
    """The trained model with its tokenizer, and where it lies."""

    predictor: MaskPredictor
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @property
    def model(self) -> nn.Module:
        return self.predictor.model


def made_by(how: Recipe = Recipe(), seed: int = 0) -> str:
    """By what a trained bed is known: its recipe and seed, and a sample of the rows that it learnt."""
    hashes = [rows(200, seed, stage.tasks, stage.room).hash for stage in how.stages]
    return hash_json({"recipe": asdict(how), "seed": seed, "rows": hashes})


def folder(how: Recipe = Recipe(), seed: int = 0) -> Path:
    """The saved transformers folder with its tokenizer: the one that ships where it was made by this recipe, or trained."""
    note = SHIPPED / MADE_BY
    if note.exists() and note.read_text(encoding="utf-8").strip() == made_by(how, seed):
        return SHIPPED
    return train(how, seed)


def keep(where: Path = SHIPPED, how: Recipe = Recipe(), seed: int = 0) -> dict[str, float]:
    """Trains a bed, and keeps it in a folder if it passes its gate: so the one that ships was made. See `gate`."""
    source = train(how, seed)
    shares = gate(load(source))
    here = shutil.ignore_patterns("unwrite.json")  # which names folders of this machine
    shutil.copytree(source, where, ignore=here, dirs_exist_ok=True)
    write_text(where / MADE_BY, made_by(how, seed) + "\n")
    return shares


def train(how: Recipe = Recipe(), seed: int = 0) -> Path:
    """The folder of a bed trained here, once."""
    ids = tokenizer()
    start: LlamaConfig | Path = config(how.width, how.layers, how.inner)
    for number, stage in enumerate(how.stages):
        recipe = mask_predictor_recipe(
            start,
            mask_id=ids.mask_token_id,
            end_id=ids.eos_token_id,
            length=PROMPT + stage.room,
            epochs=stage.epochs,
            lr=stage.lr,
            batch_size=stage.batch_size,
            eps=how.eps,
            spread=True,
            muon=True,
        )
        data = rows(stage.rows, seed * len(how.stages) + number, stage.tasks, stage.room)
        start = trained(recipe, data, range(len(data)), seed)
    home: Path = start
    if not (home / "tokenizer.json").exists():
        ids.save_pretrained(home)
    return home


def load(where: Path | None = None) -> TestBed:
    """A test bed from its folder; None for the default one.

    Raises:
        ModelError: the folder holds no mask predictor.
    """
    place = where or folder()
    ids = tokenizer()
    return TestBed(MaskPredictor.of(load_model(place).eval(), ids), ids, place)


@dataclass(frozen=True)
class Judged:
    """What a sampler wrote.

    Args:
        right: [items] by each task's own metric.
        nfe: [items] forwards.
        work: [items] columns computed, summed over forwards.
        texts: the answers.
    """

    right: list[bool]
    nfe: list[int]
    work: list[int]
    texts: list[str]

    def by_task(self, items: Sequence[Item]) -> dict[str, float]:
        """Share of right answers of each task, 0 to 1."""
        grades: dict[str, list[bool]] = {}
        for item, good in zip(items, self.right, strict=True):
            grades.setdefault(item.task, []).append(good)
        return {task: sum(good) / len(good) for task, good in sorted(grades.items())}


def judge(
    bed: TestBed, sampler: Sampler, items: Sequence[Item], batch_size: int = 128, fixed: Mapping[int, int] | None = None
) -> Judged:
    """Runs a sampler on items, in batches.

    Args:
        fixed: see `Sampler`; for all items.
    """
    ids = bed.tokenizer
    good: list[bool] = []
    nfe: list[int] = []
    work: list[int] = []
    texts: list[str] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        seeded = replace(sampler, seed=sampler.seed * 1_000_003 + start)
        out = seeded(bed.predictor, None, [ids(item.prompt)["input_ids"] for item in batch], fixed=fixed)
        assert out.answers is not None
        assert out.nfe is not None
        assert out.trace is not None
        answers = [ids.decode(answer) for answer in out.answers]
        good += [right(item, text) for item, text in zip(batch, answers, strict=True)]
        nfe += out.nfe.tolist()
        work += out.trace.work.tolist()
        texts += answers
    return Judged(good, nfe, work, texts)


def one_by_one(block: int | None = 32) -> Sampler:
    """The sampler that everything is compared with: one token a forward, the surest of the block."""
    return Sampler(gen_length=ANSWER, blocks=FixedBlocks(block), commit=Threshold(2.0))


def gate(bed: TestBed, count: int = 400, least: float = 0.9, seed: int = 2_000) -> dict[str, float]:
    """Share of right answers one by one, of each task; the bed may be used where all are at least `least`.

    Raises:
        ModelError: one of them is below.
    """
    prompts = [item for task in TASKS for item in items(count // len(TASKS), seed, [task.name])]
    shares = judge(bed, one_by_one(), prompts).by_task(prompts)
    low = {task: share for task, share in shares.items() if share < least}
    if low:
        raise ModelError(
            f"the test bed answers too little one by one: {low}. Train it longer (a Recipe with more epochs), or one a task."
        )
    return shares


def anchor() -> dict[int, int]:
    """The anchor of "anchored" sums as `fixed` tokens: {generated position: id}."""
    return {ANCHOR_AT + place: token for place, token in enumerate(tokenizer()(ANCHOR)["input_ids"])}
