"""Draft models cut from their targets: the first layers, distilled on what the target itself writes.

A draft has to guess the target, not the world. So texts and what should be said at every token of them are the target's
own: it answers prompts, half of them greedily and half sampled, and its largest probabilities are kept as they come.
Embeddings and head stay the target's, frozen; blocks and final norm learn. (Distillation of drafts: arXiv 2310.08461)

    L = -sum_v q(v) log p(v),   q: the target's largest probabilities at the token, renormalised
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, MethodError, NotFinite
from ..models import TrainRecipe, anatomy, load, load_model, trained
from ..models.recipe import CausalTraining
from ..runs import cached_files, hash_json, hash_model, hash_tensors, new_folder, progress, seal, sound
from ..scoring.batches import by_length
from .prompts import prompts as bench_prompts
from .texts import encoded
from .texts import prompts as library_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = 64  # probabilities kept at every token
HELD_OUT = 10  # every tenth prompt's texts are never trained on


@dataclass(frozen=True)
class Written:
    """A text the target wrote, and what else it would have said.

    Args:
        ids: [prompt + new] token ids.
        tokens: [new, kept] its likeliest tokens at every new one, by decreasing probability.
        log_p: [new, kept] their log-probabilities at temperature 1, over the whole vocabulary.
    """

    ids: Tensor
    tokens: Tensor
    log_p: Tensor

    @property
    def new(self) -> int:
        return len(self.tokens)


class OwnText(list[Written]):
    """Texts of one target: all written greedily, then the same prompts sampled. `hash` is their content's."""

    @property
    def hash(self) -> str:
        return hash_tensors({f"{i}.{key}": value for i, row in enumerate(self) for key, value in vars(row).items()})

    @property
    def new_tokens(self) -> int:
        return sum(row.new for row in self)

    def split(self) -> tuple[list[int], list[int]]:
        """Rows to train on and rows held out, the latter both texts of every tenth prompt."""
        half = len(self) // 2
        held_out = [i for i in range(len(self)) if i % half % HELD_OUT == HELD_OUT - 1]
        return [i for i in range(len(self)) if i not in set(held_out)], held_out


def own_text(
    name: str | Path,
    *,
    tokens: int = 40_000,
    length: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    questions: Sequence[str] | None = None,
) -> OwnText:
    """What a model answers to prompts: written once, kept batch by batch in the cache, gone on with after a kill.

    Args:
        name: what `load` takes; with a tokenizer.
        tokens: new ones in all, about: texts may end early.
        length: new tokens of a text at most.
        temperature: of the sampled half.
        questions: prompts; None for the benchmark's tuning prompts and questions about installed packages.

    Raises:
        DataError: no prompt leaves room for an answer.
    """
    loaded = load(name)
    model = loaded.model.eval()
    prompts = list(questions or _questions(math.ceil(tokens / (2 * length)), seed))
    most = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    rows = [row for row in encoded(loaded.tokenizer, prompts) if len(row) + length <= most]
    if not rows:
        raise DataError(
            f"none of {len(prompts)} prompts leaves room for {length} tokens within {most}. Use a smaller length."
        )
    what = {"weights": hash_model(model), "prompts": hash_json(rows), "length": length, "kept": KEPT}
    kind = f"own-text/{hash_json({**what, 'temperature': temperature, 'seed': seed})}"
    jobs = [(heat, batch) for heat in (0.0, temperature) for batch in by_length([len(row) for row in rows], 16)]
    by_row: dict[int, Written] = {}
    for number, (heat, batch) in enumerate(progress(jobs, "the target writes")):
        asks = partial(_write, model, [rows[i] for i in batch], length, heat, seed * 1_000_003 + number)
        texts = cached_files(kind, str(number), partial(_keep, asks), partial(_stored, count=len(batch)))
        by_row |= {i + (len(rows) if heat else 0): text for i, text in zip(batch, texts, strict=True)}
    return OwnText(by_row[i] for i in sorted(by_row))


def truncated_draft(
    name: str | Path = "smollm2-135m",
    layers: int = 3,
    *,
    text: OwnText | None = None,
    loss: Literal["kl", "tokens"] = "kl",
    epochs: int = 6,
    lr: float = 1e-3,
    batch_size: int = 8,
    seed: int = 0,
) -> Path:
    """The folder of a draft model: the target's first layers, distilled on its own text. Trained if it isn't there.

    `unwrite.json` in the folder says what made it (`made_of`).

    Args:
        name: the target, as `load` takes it.
        layers: blocks kept, from 1 to all.
        text: of the same target; None for what `own_text(name)` writes.
        loss: "kl" to the target's kept probabilities, or cross-entropy on the "tokens" it wrote.
        epochs, lr, batch_size: see `CausalTraining`.

    Raises:
        ModelError: layers out of range, a setting without meaning.
        MethodError: an unknown loss.
    """
    if loss not in ("kl", "tokens"):
        raise MethodError(f"loss is {loss!r}; use 'kl' or 'tokens'.")
    how = CausalTraining(epochs, lr, batch_size)
    rows = own_text(name) if text is None else text
    train, _ = rows.split()
    return trained(_distilling(name, layers, loss, how), rows, train, seed)


def made_of(folder: str | Path) -> Mapping[str, Any]:
    """Recipe, settings, data and seed of a draft, for reports."""
    from ..models.checkpoints import read_json

    provenance: Mapping[str, Any] = read_json(Path(folder) / "unwrite.json")["provenance"]
    return provenance


@torch.inference_mode()
def agreement(draft: nn.Module, rows: Sequence[Written]) -> dict[str, float]:
    """How well a draft guesses texts' tokens, means over all of them.

    Returns:
        overlap: sum_v min(q, p) over the kept tokens, what a chain's first token is accepted at with temperature 1;
        greedy: how often both have the same likeliest token.
    """
    overlap, same, count = 0.0, 0, 0
    for row in rows:
        log_p = _answers(draft, [row]).log_softmax(-1)
        near = torch.minimum(log_p.gather(1, row.tokens.long()), row.log_p).exp()
        overlap += float(near.sum())
        same += int((log_p.argmax(-1) == row.tokens[:, 0]).sum())
        count += row.new
    return {"overlap": overlap / count, "greedy": same / count}


def _questions(count: int, seed: int) -> list[str]:
    """Tuning prompts of the benchmark, then questions about one half of the installed packages; the other half tests."""
    tuning = [prompt.text for prompt in bench_prompts("tune")][:count]
    rest = count - len(tuning)
    pairs = zip(library_prompts(0, "free", rest, seed), library_prompts(0, "copy", rest, seed + 1), strict=False)
    return tuning + [question for pair in pairs for question in pair][:rest]


def _keep(write: Callable[[], Sequence[Written]], folder: Path) -> None:
    tensors = {f"{i}.{key}": value for i, text in enumerate(write()) for key, value in vars(text).items()}
    save_file(tensors, folder / "texts.safetensors")


def _stored(folder: Path, count: int) -> list[Written]:
    tensors = load_file(folder / "texts.safetensors")
    return [Written(**{key: tensors[f"{i}.{key}"] for key in ("ids", "tokens", "log_p")}) for i in range(count)]


@torch.inference_mode()
def _write(model: PreTrainedModel, prompts: Sequence[list[int]], length: int, heat: float, seed: int) -> list[Written]:
    """One batch. heat: temperature, 0 for greedy."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    options: dict[str, Any] = {
        "do_sample": heat > 0,
        "temperature": heat or None,
        "top_k": 0 if heat else None,
        "top_p": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=length, repetition_penalty=1.0, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True, **options,
        )  # fmt: skip
    best = [logits.float().log_softmax(-1).topk(min(KEPT, logits.shape[-1])) for logits in out.logits]
    log_p = torch.stack([step.values for step in best], 1)  # [batch, new, kept]
    tokens = torch.stack([step.indices for step in best], 1).int()
    ends = model.generation_config.eos_token_id
    last = torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else list(ends))
    written = []
    for row, prompt in enumerate(prompts):
        new = out.sequences[row, longest:]
        ended = torch.isin(new, last).nonzero()
        count = int(ended[0]) + 1 if len(ended) else len(new)
        whole = torch.cat([torch.tensor(prompt), new[:count]]).int()
        written.append(Written(whole, tokens[row, :count].clone(), log_p[row, :count].clone()))
    return written


def _distilling(name: str | Path, layers: int, loss: str, how: CausalTraining) -> TrainRecipe:
    whole = load_model(name).eval()
    settings = {"version": 1, "start": hash_model(whole), "layers": layers, "loss": loss, **asdict(how)}
    del settings["device"], settings["weight_decay"]

    def build(seed: int) -> nn.Module:
        return anatomy(whole).truncate(layers)

    def fit(model: nn.Module, data: OwnText, indices: list[int], seed: int, folder: Path) -> None:
        _fit(model, [data[i] for i in indices], loss, how, seed, folder)

    return TrainRecipe(build, fit, name="truncated draft", settings=settings)


def _fit(model: nn.Module, rows: list[Written], loss: str, how: CausalTraining, seed: int, folder: Path) -> None:
    parts = anatomy(model)
    for frozen in (parts.embeddings, parts.positions, parts.unembedding):
        if frozen is not None:
            frozen.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=how.lr, weight_decay=0.0)
    per_epoch = math.ceil(len(rows) / how.batch_size)
    model.train()
    first = _resume(learning, optimiser, folder)
    for epoch in progress(range(first, how.epochs), "distilling"):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(rows), generator=generator).tolist()
        for number, batch in enumerate(_batches(rows, order, how.batch_size)):
            for group in optimiser.param_groups:
                group["lr"] = how.rate(epoch * per_epoch + number, how.epochs * per_epoch)
            value = _loss(model, batch, loss)
            if not math.isfinite(value.item()):
                raise NotFinite(
                    f"the loss is {value.item()} in epoch {epoch + 1} (lr {how.lr}). Lower the learning rate."
                )
            value.backward()
            nn.utils.clip_grad_norm_(learning, how.clip)
            optimiser.step()
            optimiser.zero_grad()
        _checkpoint(learning, optimiser, epoch + 1, folder)
    model.requires_grad_(True).eval()


def _batches(rows: list[Written], order: list[int], size: int) -> Iterator[list[Written]]:
    for start in range(0, len(order), size):
        yield [rows[i] for i in order[start : start + size]]


def _loss(model: nn.Module, batch: Sequence[Written], loss: str) -> Tensor:
    """Mean over all new tokens of the batch."""
    logits = _answers(model, batch)
    if loss == "tokens":
        return F.cross_entropy(logits, torch.cat([row.ids[-row.new :] for row in batch]).long())
    tokens = torch.cat([row.tokens for row in batch]).long()
    q = torch.cat([row.log_p for row in batch]).softmax(-1)
    return -(q * (logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True))).sum(-1).mean()


def _answers(model: nn.Module, batch: Sequence[Written]) -> Tensor:
    """[new tokens of all rows, vocab] float32 logits; the head runs at new tokens only, since it is most of a draft."""
    longest = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(batch):
        ids[place, : len(row.ids)] = row.ids
        mask[place, : len(row.ids)] = 1
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    spans = [hidden[place, len(row.ids) - row.new - 1 : len(row.ids) - 1] for place, row in enumerate(batch)]
    return anatomy(model).logits(torch.cat(spans)).float()


def _checkpoint(learning: list[nn.Parameter], optimiser: torch.optim.Optimizer, epoch: int, folder: Path) -> None:
    """Weights and moments after whole epochs, replacing those before."""
    tensors = {f"weight.{i}": parameter.detach().contiguous() for i, parameter in enumerate(learning)}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"{key}.{i}": value.contiguous() for key, value in state.items()}
    with new_folder(folder / "whole") as fresh:
        save_file({**tensors, "epoch": torch.tensor(epoch)}, fresh / "state.safetensors")
    seal(folder / "whole")


@torch.no_grad()
def _resume(learning: list[nn.Parameter], optimiser: torch.optim.Optimizer, folder: Path) -> int:
    """Goes back to the last whole epoch and returns how many are done."""
    for leftover in folder.glob(".whole.*"):  # by a kill
        shutil.rmtree(leftover, ignore_errors=True)
    file = folder / "whole" / "state.safetensors"
    if not sound(folder / "whole"):
        return 0
    tensors = load_file(file)
    epoch = int(tensors.pop("epoch"))
    state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(learning))}
    for name, value in tensors.items():
        key, i = name.rsplit(".", 1)
        if key == "weight":
            learning[int(i)].copy_(value)
        else:
            state[int(i)][key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return epoch
