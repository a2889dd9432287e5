"""One optimiser step of NPO, ours against the same method as open-unlearning computes it.

The peer keeps a second live model for the reference, runs the vocabulary head at every position, runs forget and retain
rows apart, and for its KL term runs the policy on the retain rows twice. Both sides use the same weights, the
same rows, the same fused AdamW, and are timed in turns; a pair is one step of each.
"""

from __future__ import annotations

import copy
import gc
import pydoc_data.topics
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Example, Examples
from ..data.text.encoding import Encoded, encode_all, pad
from ..forget import NPO
from ..forget.engine.batch import make_parts, run
from ..forget.engine.text.reference import Wanted, compute
from ..scoring import prediction_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..forget.base import RetainLoss

Step = Callable[[], float]


def text_rows(count: int, words: int, skip: int = 0) -> Examples:
    """Plain text of the Python manual that comes with Python, `words` words a row."""
    all_words = " ".join(pydoc_data.topics.topics.values()).split()
    picks = (all_words[(skip + i) * words : (skip + i + 1) * words] for i in range(count))
    return Examples([Example(answer=" ".join(pick)) for pick in picks], "manual")


def peer_step(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    forget: dict[str, Tensor],
    retain: dict[str, Tensor],
    retain_loss: RetainLoss,
) -> Step:
    """NPO + retain term with a live reference and full logits."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def logits(of: PreTrainedModel, rows: dict[str, Tensor]) -> Tensor:
        return of(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits

    def answer_nll(of: PreTrainedModel, rows: dict[str, Tensor]) -> Tensor:
        scores, labels = logits(of, rows)[:, :-1].contiguous(), rows["labels"][:, 1:].contiguous()
        return F.cross_entropy(scores.transpose(-1, -2), labels, reduction="none").sum(-1)

    def step() -> float:
        with torch.no_grad():
            before = answer_nll(reference, forget)
        loss = -(2 / 0.1) * F.logsigmoid(0.1 * (answer_nll(model, forget) - before)).mean()
        if retain_loss == "nll":
            loss = loss + model(**{k: retain[k] for k in ("input_ids", "attention_mask", "labels")}).loss
        else:
            with torch.no_grad():
                target = logits(reference, retain).log_softmax(-1).flatten(0, 1)
                model(**{k: retain[k] for k in ("input_ids", "attention_mask", "labels")})  # the pass it discards
            now = logits(model, retain).log_softmax(-1).flatten(0, 1)
            loss = loss + F.kl_div(now, target, reduction="batchmean", log_target=True)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def our_step(
    model: PreTrainedModel,
    rows: dict[str, list[Encoded]],
    tensors: dict[str, dict[str, Tensor]],
    pad_id: int,
    retain_loss: RetainLoss,
) -> tuple[Step, float]:
    """The same, as `UnlearnTrainer` computes it; the second value is the one-time reference pass, in seconds."""
    objective = NPO(retain_loss=retain_loss)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    mask = objective.retain_positions()
    quantities = Wanted(("forget",), ("retain",) if retain_loss == "kl" else (), (), mask)
    start = time.perf_counter()
    reference = compute(model, quantities, rows, blocks=[], pad_id=pad_id, batch_size=len(rows["forget"]), disk=False)
    once = time.perf_counter() - start

    def step() -> float:
        batch = make_parts(tensors, mask)
        counts = {
            f"{name}.{unit}": torch.tensor(float(value))
            for name, part in batch.present()
            for unit, value in (
                ("rows", len(part.index)),
                ("tokens", int(prediction_mask(part.labels).sum())),
                ("positions", int(part.where.sum())),
            )
        }
        reference.attach(batch)
        run(model, batch, logits=True)
        loss = torch.stack([term.total(counts) for term in objective.total_loss(batch).terms.values()]).sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step, once


def compare(
    model: PreTrainedModel,
    forget: list[Encoded],
    retain: list[Encoded],
    pad_id: int,
    retain_loss: RetainLoss,
    pairs: int,
) -> dict[str, Any]:
    """Medians of paired steps on fixed rows, and their ratio with its middle half."""
    rows = {"forget": forget, "retain": retain}
    tensors = {name: pad(part, pad_id) for name, part in rows.items()}
    model.train()
    theirs = peer_step(
        copy.deepcopy(model), copy.deepcopy(model).eval(), tensors["forget"], tensors["retain"], retain_loss
    )
    ours, once = our_step(copy.deepcopy(model), rows, tensors, pad_id, retain_loss)
    theirs()
    ours()
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        pair = []
        for step in (ours, theirs):
            start = time.perf_counter()
            step()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    ratios = sorted(a / b for a, b in times)
    del theirs, ours
    gc.collect()
    return {
        "ours_s": median(a for a, _ in times),
        "peer_s": median(b for _, b in times),
        "ratio": median(ratios),
        "middle_half": (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]),
        "reference_once_s": once,
    }


def cases(
    tokenizer: PreTrainedTokenizerBase, batch: int
) -> Iterator[tuple[str, RetainLoss, list[Encoded], list[Encoded]]]:
    """(rows, retain term, forget rows, retain rows)."""
    from ..data.text.authors import authors

    split = authors()
    assert split.retain is not None
    questions = encode_all(split.forget[:batch], tokenizer), encode_all(split.retain[:batch], tokenizer)
    texts = encode_all(text_rows(batch, 120), tokenizer, 256), encode_all(text_rows(batch, 120, batch), tokenizer, 256)
    for rows, (forget, retain) in (("questions and answers", questions), ("raw text", texts)):
        for retain_loss in ("nll", "kl"):
            yield rows, retain_loss, forget, retain


def peak_memory(model_name: str, side: str, case: int, batch: int, base: str | None = None) -> float:
    """MiB at the most while one side takes two steps of a case; to be called in a process of its own."""
    import resource

    from ..models import load

    loaded = load(model_name, base=base)
    pad_id = loaded.tokenizer.pad_token_id
    _, retain_loss, forget, retain = list(cases(loaded.tokenizer, batch))[case]
    rows = {"forget": forget, "retain": retain}
    tensors = {name: pad(part, pad_id) for name, part in rows.items()}
    model = loaded.model.train()
    if side == "ours":
        step, _ = our_step(model, rows, tensors, pad_id, retain_loss)
    else:
        step = peer_step(model, copy.deepcopy(model).eval(), tensors["forget"], tensors["retain"], retain_loss)
    for _ in range(2):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peaks(model_name: str, case: int, batch: int, base: str | None) -> dict[str, float]:
    """Both sides' peak memory, each in a fresh process."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    peaks = {}
    for side in ("ours", "peer"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[f"{side}_mib"] = pool.submit(peak_memory, model_name, side, case, batch, base).result()
    return peaks


def run_bench(
    model_name: str = "smollm2-135m",
    batch: int = 4,
    pairs: int = 9,
    done: Sequence[dict[str, Any]] = (),
    after: Callable[[list[dict[str, Any]]], None] = lambda results: None,
    base: str | None = None,
) -> list[dict[str, Any]]:
    """All cases; one dict each.

    Args:
        done: cases an earlier, stopped run measured already.
        after: gets all cases so far after each.
        base: of an adapter, as `load` takes it.
    """
    from ..models import load

    loaded = load(model_name, base=base)
    results = list(done)
    for number, (rows, retain_loss, forget, retain) in enumerate(cases(loaded.tokenizer, batch)):
        if number < len(results):
            continue
        case = compare(loaded.model, forget, retain, loaded.tokenizer.pad_token_id, retain_loss, pairs)
        case |= _peaks(model_name, number, batch, base)
        results.append({"rows": rows, "method": f"NPO + {retain_loss}", "batch": batch, "pairs": pairs, **case})
        after(results)
    return results
