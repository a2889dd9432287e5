"""What tests of private training train: small models, and rows with a loss each."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.data.text.encoding import encode_all, pad


def batch(rows=6):
    padded = pad(encode_all(make_examples("forget", rows), make_tokenizer()), 0)
    return {name: padded[name] for name in ("input_ids", "labels")}


def llama(shape):
    """In training, each time the same: "whole", with "tied" embeddings, or with random "adapters"."""
    model = make_llama(layers=2, hidden=16, tie_word_embeddings=shape == "tied").train()
    if shape != "adapters":
        return model
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


class Keyed(nn.Module):
    """A linear model that takes its input by position or by name."""

    def __init__(self, width=3):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(width, 1)

    def forward(self, x):
        return self.inner(x)


def keyed(forward, rows):
    return (forward(x=rows["x"])[:, 0] - rows["y"]).square()


def numbers(count=12, width=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, width, generator=generator), torch.randn(count, generator=generator)


def part(x, y):
    return lambda chosen: {"x": x[chosen], "y": y[chosen]}
