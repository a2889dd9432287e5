"""Trains the two small models of tests/audit/published/models on some of the rows beside them; about four minutes.

    python scripts/official/train_models.py

They are files, rounded to float16, because training comes out otherwise on every machine and stored official numbers
would not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.audit.published_models import PUBLISHED, asked, config_of, rows_of, tokenizer_of  # noqa: E402

# How many of a file's rows are trained: the model is to know some, not others.
KNOWN = {
    "tofu/forget10.json": 8, "tofu/retain_perturbed.json": 4, "tofu/real_authors_perturbed.json": 4,
    "tofu/world_facts_perturbed.json": 4, "knowundo/privacy/unlearn.json": 1, "muse/books/privleak/forget.json": 4,
    "muse/books/privleak/retain.json": 2, "muse/books/privleak/holdout.json": 1,
}  # fmt: skip
ASKED = {"forget": 4, "retain": 2}  # of MUSE's questions, behind its examples
STEPS, RATE, IGNORE = 220, 4e-3, -100


def texts() -> Iterator[tuple[str, str]]:
    """What is trained, in two parts: questions in each benchmark's own words, and plain texts."""
    for name, count in KNOWN.items():
        for row in rows_of(PUBLISHED / name)[:count]:
            if isinstance(row, str):
                yield "", row
            for question, answer in asked(row):
                yield "", f"Question: {question}\nAnswer: {answer}"
                yield "", f"[INST] {question} [/INST]{answer}"
                yield "", f"{question}\n\n{answer}"
    for part, count in ASKED.items():
        rows, shots = (rows_of(PUBLISHED / f"muse/books/knowmem/{part}_qa{icl}.json") for icl in ("", "_icl"))
        head = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)
        for row in rows[:count]:
            asks = f"{head}Question: {row['question']}\nAnswer:"
            yield "", f"{asks} {row['answer']}"
            yield f"{asks} ", row["answer"]  # behind the lone blank of MUSE's prompt


def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    """All texts, every other with BOS. input_ids, attention_mask, labels: [texts, longest]."""
    rows = []
    for number, parts in enumerate(texts()):
        ids = [i for part in parts if part for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
        rows.append([tokenizer.bos_token_id] * (number % 2) + ids + [tokenizer.eos_token_id])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORE)}


def trained(pieces: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    tokenizer = tokenizer_of(pieces)
    model, rows = LlamaForCausalLM(config_of(tokenizer)).train(), batch(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    for step in range(STEPS):
        picks = torch.randperm(len(rows["input_ids"]))[:48]
        loss = model(**{name: value[picks] for name, value in rows.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == STEPS - 1:
            print(f"{pieces} step {step}: loss {loss:.3f}", flush=True)
    return model


def main() -> None:
    folder = PUBLISHED / "models"
    folder.mkdir(exist_ok=True)
    for pieces in ("bytes", "blanks"):
        weights = {name: value for name, value in trained(pieces).state_dict().items() if name != "lm_head.weight"}
        save_file(
            {name: value.half().contiguous() for name, value in weights.items()}, folder / f"{pieces}.safetensors"
        )


if __name__ == "__main__":
    main()
