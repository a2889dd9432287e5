"""Two prompts, one that names Ann, and rows of unequal length as one padded batch."""

import torch

from conftest import make_tokenizer


def ids(words):
    return make_tokenizer()(words)["input_ids"]


ASKED, OTHER = ids("<user> who was ann ? <assistant>"), ids("<user> where is the old garden of bert ? <assistant>")


def batch(rows, side="left"):
    longest = max(map(len, rows))
    left = side == "left"
    pads = [[0] * (longest - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pads, strict=True)
    ]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
